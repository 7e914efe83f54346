r"""The tensors of a file, read without running anything that is in it.

A checkpoint of PyTorch is a zip archive: `data.pkl` says by name which tensors there
are, `data/KEY` holds the bytes of each.  A pickle is a program.  This one is stepped
through by an interpreter that builds dictionaries, lists and records of tensors and
knows no way to import or call anything: the few names that a checkpoint needs are
looked up in a table, names that only the surroundings of the weights need (Lightning's
callbacks, OmegaConf's options, NumPy's scalars) stand for nothing, all others are
refused.  (The unpicklers of Python would do for that, but not for a file that is made
to exhaust the memory or the stack.)  `.safetensors` is read by its own library.

Everything is checked against the size of the file before it is read, and a tensor is
read when it is asked for: no two copies of the weights are ever in memory.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import re
import reprlib
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["Tensors", "read_tensors"]

_MAX_INDEX = 16 << 20  # bytes of a zip's directory or of a pickle; 1 MB is usual
_MAX_OPCODES = 1_000_000  # 30 for each tensor
_MAX_AXES = 16
_MAX_ELEMENTS = 2**48  # of one without any: its other axes
_MAX_NAME = 1000  # characters; of a key, longer ones take their time to compare
_MAX_SHOWN = 500  # characters of a message


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, in the order of the file; each is read when it is asked for.

    Attributes
    ----------
    path : Path
    shapes : dict of name to tuple of int
        Known without reading any.
    """

    def __init__(
        self,
        path: Path,
        shapes: dict[str, tuple[int, ...]],
        read: Callable[[str], Tensor],
    ):
        self.path, self.shapes, self._read = path, shapes, read

    def __getitem__(self, name: str) -> Tensor:
        """A tensor of its own on the CPU, as it is stored; ValueError if the file has
        changed since it was opened."""
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """Those of the mapping from new names to old ones, under the new."""
        shapes = {new: self.shapes[old] for new, old in names.items()}
        return Tensors(self.path, shapes, lambda new: self[names[new]])

    def below(self, prefix: str, *, without: tuple[str, ...] = ()) -> Tensors:
        """Those whose names start with the prefix, which is dropped, but for those that
        start with one of `without`."""
        names = [n for n in self if n.startswith(prefix) and not n.startswith(without)]
        return self.renamed({name.removeprefix(prefix): name for name in names})


def read_tensors(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of a checkpoint; what kind of file it is, its first bytes tell.

    Parameters
    ----------
    path : path of a zip archive written by `torch.save` (.pt, .pth, .ckpt, .bin), which
        holds a state dict or a dict with one under ``"state_dict"``, or with only one,
        and anything else beside it, or of a .safetensors file

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is of another kind, damaged, or asks for anything but tensors in
        plain containers.  The message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with open(path, "rb") as file:
        head = file.read(9)
    # at 8 the header of safetensors starts, after its length
    if head.startswith(b"\x80") and head[8:] != b"{":
        raise ValueError(
            f"{path}: a bare pickle, as torch before 1.6 wrote; convert it: "
            f"{_extraction(path)}"
        )
    try:
        if head.startswith(b"PK\x03\x04"):
            return _open_archive(path)
        if head[8:] == b"{":
            return _open_safetensors(path)
        raise ValueError("neither an archive of torch.save nor a safetensors file")
    except ValueError as error:
        # it may quote the file: a screen of it at most, nothing that steers a terminal
        shown = "".join(c if c.isprintable() else "?" for c in str(error)[:_MAX_SHOWN])
        raise ValueError(f"{path}: {shown}") from error


def _extraction(path: Path, key: str | None = None) -> str:
    """The line that writes what a file holds, or what is there under a key, to another
    file."""
    item = "" if key is None else f"[{key!r}]"
    return (
        f"import torch; torch.save(torch.load({str(path)!r}, map_location='cpu', "
        f"weights_only=True){item}, 'new.pt')"
    )


def _open_safetensors(path: Path) -> Tensors:
    try:
        stamp = _stamp(path)
        file = safe_open(path, framework="pt", device="cpu")
        shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"not a readable safetensors file: {error}") from error

    def read(name: str) -> Tensor:
        # of a file that was cut, the library's mapped memory would end the process
        _check_stamp(path, path, stamp)
        # a copy: what the library gives is the file itself
        return file.get_tensor(name).clone()

    return Tensors(path, shapes, read)


# ---- zip ----


def _open_archive(path: Path) -> Tensors:
    with _Bounded(path) as file:
        stamp = _stamp(file.fileno())
        spans = _entries(file)
        names = [n for n in spans if n.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError(f"not a checkpoint: {len(names)} entries */data.pkl")
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in spans:
            order = _bytes(file, spans[f"{folder}byteorder"])
            if order != b"little":
                raise ValueError(
                    f"byte order {order[:16]!r}: save it again on a machine with "
                    "little-endian numbers"
                )
        content = _Interpreter(folder, spans).run(_bytes(file, spans[names[0]]))

    if isinstance(content, dict):
        content = _state_dict(path, content)
    if not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
        raise ValueError(f"holds no state dict but a {_kind(content)}")
    for name, value in content.items():
        if not isinstance(value, _Strided):
            raise ValueError(f"{name} is a {_kind(value)}, no tensor")

    def read(name: str) -> Tensor:
        with open(path, "rb") as file:
            _check_stamp(path, file.fileno(), stamp)
            return content[name].read(file)

    return Tensors(path, {k: v.shape for k, v in content.items()}, read)


def _state_dict(path: Path, content: dict[Any, Any]) -> dict[Any, Any]:
    """What is under "state_dict", else the only dict of tensors, else all of it."""
    if isinstance(content.get("state_dict"), dict):
        return content["state_dict"]
    if any(isinstance(value, _Strided) for value in content.values()):
        return content
    nested: dict[int, str] = {}  # what has many names is looked at once
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, dict) and value:
            nested.setdefault(id(value), key)
    found = [
        key
        for key in nested.values()
        if all(isinstance(value, _Strided) for value in content[key].values())
    ]
    if len(found) > 1:
        names = ", ".join(map(_short, found[:4]))
        raise ValueError(
            f"holds {len(found)} dicts of tensors, {names}; take one out: "
            f"{_extraction(path, found[0])}"
        )
    return content[found[0]] if found else content


class _Bounded(io.FileIO):
    """A file of which zipfile, that reads as much as a directory claims to have, gets
    no more than there is, and than `_MAX_INDEX` bytes at a time."""

    def read(self, size: int | None = -1) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        return super().read(max(0, min(wanted, _MAX_INDEX)))


def _stamp(file: Path | int) -> tuple[int, int, int]:
    stat = os.stat(file)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _check_stamp(path: Path, file: Path | int, stamp: tuple[int, int, int]) -> None:
    if _stamp(file) != stamp:
        raise ValueError(f"{path}: changed while it was read")


def _entries(file: io.FileIO) -> dict[str, tuple[int, int]]:
    """Name -> first byte and number of bytes, of entries that lie in the file one after
    the other."""
    try:
        archive = zipfile.ZipFile(file)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        OSError,
        OverflowError,
        struct.error,
    ) as error:
        raise ValueError(f"damaged or truncated archive: {error}") from error
    spans: dict[str, tuple[int, int]] = {}
    end, last = 0, ""
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        name = entry.filename
        if name in spans:
            raise ValueError(f"two entries {name!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError(f"entry {name!r} is compressed or encrypted")
        if entry.compress_size != entry.file_size:
            raise ValueError(f"entry {name!r} claims two sizes")
        header = b""
        if 0 <= entry.header_offset <= archive.start_dir:
            file.seek(entry.header_offset)
            header = file.read(30)
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise ValueError(f"entry {name!r} is not where the directory says")
        if entry.header_offset < end:
            raise ValueError(f"entries {last!r} and {name!r} overlap")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        end, last = start + entry.file_size, name
        if end > archive.start_dir:
            raise ValueError(f"entry {name!r} is longer than the file")
        spans[name] = (start, entry.file_size)
    return spans


def _bytes(file: io.FileIO, span: tuple[int, int]) -> bytes:
    start, size = span
    if size > _MAX_INDEX:
        raise ValueError(f"an index of {size} bytes, at most {_MAX_INDEX} are read")
    file.seek(start)
    return file.read(size)


# ---- pickle ----


@dataclass(frozen=True)
class _Storage:
    start: int  # in the file, bytes
    count: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _Strided:
    """A tensor that is still in the file."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Elements of the storage from the first to the last in use."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.stride, strict=True)
        return 1 + sum((n - 1) * step for n, step in steps)

    def read(self, file: io.BufferedIOBase) -> Tensor:
        dtype = self.storage.dtype
        if not self.extent:
            return torch.empty(self.shape, dtype=dtype)
        file.seek(self.storage.start + self.offset * dtype.itemsize)
        raw = np.fromfile(file, np.uint8, self.extent * dtype.itemsize)
        if len(raw) != self.extent * dtype.itemsize:
            raise ValueError("the file was cut while it was read")
        tensor = torch.from_numpy(raw).view(dtype)
        return tensor.as_strided(self.shape, self.stride)


class _Nothing:
    """What a name that does not matter, and whatever is made with it, stands for."""


_NOTHING = _Nothing()
_NOTHING_IN = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)(\.|\Z)"
)
_NOTHING_NAMED = {
    *(("numpy", "dtype"), ("numpy.core.multiarray", "scalar")),
    *(("numpy._core.multiarray", "scalar"), ("_codecs", "encode")),
    *(("collections", "defaultdict"), ("typing", "Any")),
    *((m, t) for m in ("builtins", "__builtin__") for t in ("dict", "list", "set")),
    *((m, t) for m in ("builtins", "__builtin__") for t in ("int", "float", "str")),
}
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _lookup(module: Any, name: Any) -> Any:
    """What stands for a name; nothing is ever imported."""
    # hashing a tuple of tuples of ... would exhaust the stack
    if type(module) is not str or type(name) is not str:
        raise ValueError(f"asks for a {_kind(module)} and {_kind(name)}, no name")
    if (module, name) == ("collections", "OrderedDict"):
        return _new_dict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
        return _new_tensor
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
        return _new_parameter
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    if _NOTHING_IN.match(module) or (module, name) in _NOTHING_NAMED:
        return _NOTHING
    raise ValueError(f"asks for {module}.{name}: other objects are refused")


def _new_dict() -> dict[Any, Any]:
    return {}


def _new_parameter(data: Any, requires_grad: Any, hooks: Any) -> Any:
    return data


def _new_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> _Strided:
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor over a {_kind(storage)}")
    for numbers in ((offset,), shape, stride):
        if type(numbers) is not tuple or len(numbers) > _MAX_AXES:
            raise ValueError(f"a tensor of shape {_short(shape)}")
        if not all(type(n) is int and 0 <= n < _MAX_ELEMENTS for n in numbers):
            raise ValueError(
                f"a tensor of shape {_short(shape)}, strides {_short(stride)}, offset "
                f"{_short(offset)}"
            )
    if len(shape) != len(stride):
        raise ValueError(f"a tensor of {len(shape)} axes, {len(stride)} strides")
    tensor = _Strided(storage, offset, shape, stride)
    if math.prod(n or 1 for n in shape) > _MAX_ELEMENTS:  # torch would overflow
        raise ValueError(f"a tensor of shape {shape}")
    # no more elements than there is memory behind them
    if math.prod(shape) > storage.count or offset + tensor.extent > storage.count:
        raise ValueError(
            f"a tensor of shape {shape}, strides {stride}, offset {offset} exceeds its "
            f"storage of {storage.count} elements"
        )
    return tensor


class _Interpreter:
    """Steps through a pickle.

    Parameters
    ----------
    folder : str
        Where in the archive the pickle is.
    spans : dict
        The archive's entries, from `_entries`.
    """

    def __init__(self, folder: str, spans: dict[str, tuple[int, int]]):
        self._folder, self._spans = folder, spans
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under a mark
        self._memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        """The object that the pickle describes; ValueError if it is damaged or does
        what no checkpoint needs."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
                if opcode.name == "STOP":
                    return self._stack.pop()
                if count == _MAX_OPCODES:
                    raise ValueError(f"more than {_MAX_OPCODES} steps")
                self._step(opcode.name, argument)
        except ValueError as error:
            raise ValueError(f"data.pkl: {error}") from error
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"data.pkl is damaged: {error!r}") from error
        raise ValueError("data.pkl is cut short")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name == "TUPLE":
            items = self._above_mark()
            self._stack.append(tuple(items))
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            items = self._above_mark()
            self._fill(self._stack[-1], name, items)
        elif name in ("APPEND", "SETITEM"):
            n = 1 if name == "APPEND" else 2
            items = [stack.pop() for _ in range(n)][::-1]
            self._fill(stack[-1], name, items)
        elif name == "GLOBAL":
            module, _, qualname = argument.partition(" ")
            stack.append(_lookup(module, qualname))
        elif name == "STACK_GLOBAL":
            qualname, module = stack.pop(), stack.pop()
            stack.append(_lookup(module, qualname))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._make(name, function, arguments))
        elif name == "BUILD":  # attributes of a dictionary, such as its versions
            stack.pop()
            if not isinstance(stack[-1], dict | _Nothing):
                raise ValueError(f"gives attributes to a {_kind(stack[-1])}")
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"step {name}, which no checkpoint needs")

    def _above_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _fill(self, target: Any, name: str, items: list[Any]) -> None:
        if isinstance(target, dict) and name.startswith("SETITEM"):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # others, such as a tuple of tuples of ..., are not hashed
                is_name = type(key) is str and len(key) <= _MAX_NAME
                target[key if is_name else _NOTHING] = value
        elif isinstance(target, list) and name.startswith("APPEND"):
            target.extend(items)
        elif target is not _NOTHING:
            raise ValueError(f"step {name} on a {_kind(target)}")

    def _make(self, name: str, function: Any, arguments: Any) -> Any:
        if function is _NOTHING:
            return _NOTHING
        if name != "REDUCE" or not callable(function) or type(arguments) is not tuple:
            raise ValueError(f"calls a {_kind(function)}")
        return function(*arguments)

    def _storage(self, identity: Any) -> _Storage:
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(count)):
                pass
            case _:
                raise ValueError(f"unknown reference {_short(identity)}")
        if (entry := f"{self._folder}data/{key}") not in self._spans:
            raise ValueError(f"the archive has no entry {_short(entry)}")
        start, size = self._spans[entry]
        if count * dtype.itemsize != size:
            raise ValueError(
                f"entry {entry!r} has {size} bytes, {_short(count)} elements of "
                f"{dtype} were announced"
            )
        return _Storage(start, count, dtype)


_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: _NOTHING,
}


def _kind(value: Any) -> str:
    if isinstance(value, _Strided):
        return "tensor"
    if isinstance(value, _Nothing):
        return "foreign object"
    return type(value).__name__


_short = reprlib.repr  # bounded, however deeply nested the value is
