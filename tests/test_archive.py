"""Files of tensors: what is read, and what is refused without being run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import types
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffstategrad.models.archive import read_tensors

MEGABYTE = 1 << 20
REBUILD = torch._utils._rebuild_tensor_v2


class Storage:
    """Pickled as a reference, as torch does with what lies beside the pickle."""

    def __init__(self, *identity):
        self.identity = identity


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.identity if isinstance(value, Storage) else None


FOUR = Storage("storage", torch.FloatStorage, "0", "cpu", 4)


def pickled(value):
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def tensor(storage=FOUR, offset=0, shape=(2, 2), stride=(2, 1)):
    return Call(REBUILD, storage, offset, shape, stride, False, OrderedDict())


def archive(path, pickle, entries=None, compress=zipfile.ZIP_STORED):
    """An archive as torch writes it, with this pickle (bytes or an object)."""
    if not isinstance(pickle, bytes):
        pickle = pickled(pickle)
    entries = {"data/0": np.arange(4, dtype=np.float32).tobytes(), **(entries or {})}
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("net/data.pkl", pickle)
        for name, content in entries.items():
            file.writestr(f"net/{name}", content)


# ---- what is read ----


def test_tensors_come_back_as_they_were_saved(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    saved = OrderedDict(
        plain=base,
        transposed=base.T,
        part=base[1:3, ::2],
        shared=base[2],
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(3)),
        flags=torch.tensor([True, False]),
    )
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64):
        saved[str(dtype)] = torch.arange(5).to(dtype)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        saved[str(dtype)] = torch.arange(5).to(dtype)
    torch.save(saved, tmp_path / "net.pt")
    read = read_tensors(tmp_path / "net.pt")
    assert list(read) == list(saved)
    assert read.shapes == {name: tuple(value.shape) for name, value in saved.items()}
    for name, value in saved.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value), name
    assert "absent" not in read
    with pytest.raises(KeyError):
        read["absent"]


def test_a_tensor_that_was_read_is_nobody_elses(tmp_path):
    base = torch.arange(6.0)
    torch.save({"a": base, "b": base}, tmp_path / "net.pt")
    save_file({"a": base}, tmp_path / "net.safetensors")
    for name in ("net.pt", "net.safetensors"):
        read = read_tensors(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        read["a"].zero_()
        assert torch.equal(read["a"], base)
        assert (tmp_path / name).read_bytes() == before
    torch.save({"a": base, "b": base}, tmp_path / "net.pt")
    read = read_tensors(tmp_path / "net.pt")
    read["a"].zero_()
    assert torch.equal(read["b"], base)


def test_a_modules_state_and_what_lies_beside_it(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    beside = {
        "epoch": 3,
        "lr": 1e-3,
        "done": True,
        "none": None,
        "betas": (0.9, 0.99),
        "set": {1, 2},
        "counts": defaultdict(dict, a={}),
        "score": np.float64(0.5),
        "by pair": {(1, (2, 3)): [b"bytes", 2**70]},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "state_dict": net.state_dict(),
    }
    torch.save(beside, tmp_path / "net.ckpt")
    read = read_tensors(tmp_path / "net.ckpt")
    for name, value in net.state_dict().items():
        assert torch.equal(read[name], value)
    assert len(read) == len(net.state_dict())


@pytest.mark.parametrize("key", ["model", "ema", "params", "any other"])
def test_the_only_dict_of_tensors_is_the_state(tmp_path, key):
    net = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    beside = {"optimizer": optimizer.state_dict(), "epoch": 3, "args": {"lr": 1e-3}}
    saved = net.state_dict()
    torch.save({**beside, key: saved, "same": saved, "none": {}}, tmp_path / "net.pt")
    read = read_tensors(tmp_path / "net.pt")
    assert read.keys() == saved.keys()
    assert all(torch.equal(read[name], value) for name, value in saved.items())


def test_of_two_dicts_of_tensors_one_has_to_be_taken_out(tmp_path, monkeypatch):
    """By the line that the message holds, from anywhere."""
    path = tmp_path / "it's" / "net.pt"
    path.parent.mkdir()
    torch.save({"mod'el": {"a": torch.ones(2)}, "ema": {"a": torch.zeros(2)}}, path)
    with pytest.raises(
        ValueError, match=r"holds 2 dicts of tensors, .*'ema'; "
    ) as caught:
        read_tensors(path)
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).partition("take one out: ")[2], {})
    assert torch.equal(read_tensors("new.pt")["a"], torch.ones(2))


def test_a_dict_of_tensors_beside_tensors_is_not_taken_out(tmp_path):
    saved = {"a": torch.ones(2), "model": {"b": torch.ones(2)}}
    torch.save(saved, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="model is a dict, no tensor"):
        read_tensors(tmp_path / "net.pt")


def test_a_safetensors_file_that_starts_as_a_pickle_does(tmp_path):
    """Its header has 0x80 = 128 bytes."""
    tensors_file((ONE % 4).ljust(128), struct.pack("<f", 2.0))(tmp_path / "net")
    assert (tmp_path / "net").read_bytes().startswith(b"\x80")
    assert read_tensors(tmp_path / "net")["a"].item() == 2


def test_objects_of_lightning_are_passed_over_and_not_imported(tmp_path, monkeypatch):
    """A callback's class as key, an object with state, a named tuple of options."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    parts = name.split(".")
    with monkeypatch.context() as patch:
        for i in range(3):
            module = types.ModuleType(".".join(parts[: i + 1]))
            patch.setitem(sys.modules, module.__name__, module)

        class ModelCheckpoint:
            def __init__(self):
                self.best = torch.ones(1)

            def __setstate__(self, state):
                raise AssertionError("was run")

        ModelCheckpoint.__module__ = name
        ModelCheckpoint.__qualname__ = "ModelCheckpoint"
        module.ModelCheckpoint = ModelCheckpoint
        saved = {
            "callbacks": {ModelCheckpoint: {"monitor": "loss"}},
            "object": ModelCheckpoint(),
            "state_dict": {"a": torch.ones(2)},
        }
        torch.save(saved, tmp_path / "net.ckpt")
    assert name not in sys.modules
    read = read_tensors(tmp_path / "net.ckpt")
    assert torch.equal(read["a"], torch.ones(2))
    assert name not in sys.modules


def test_names_can_be_chosen_and_changed(tmp_path):
    torch.save({f"a.{i}": torch.full((1,), i) for i in range(3)}, tmp_path / "net.pt")
    read = read_tensors(tmp_path / "net.pt")
    below = read.below("a.", without=("a.1",))
    assert list(below) == ["0", "2"] and below["2"].item() == 2
    assert list(read.renamed({"b": "a.1"})) == ["b"]
    assert read.renamed({"b": "a.1"})["b"].item() == 1


def test_the_hand_made_archive_of_these_tests_is_read(tmp_path):
    archive(tmp_path / "net.pt", {"a": tensor()}, {"byteorder": b"little"})
    expected = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert torch.equal(read_tensors(tmp_path / "net.pt")["a"], expected)


@pytest.mark.parametrize("keep", [0, 50, 200])
@pytest.mark.parametrize(
    ("name", "save"), [("net.pt", torch.save), ("net.safetensors", save_file)]
)
def test_a_file_that_changes_after_it_was_opened_is_noticed(tmp_path, keep, name, save):
    path = tmp_path / name
    save({"a": torch.arange(1000.0)}, path)
    read = read_tensors(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{name}: changed while it was read"):
        read["a"]


def test_reading_takes_the_memory_of_one_tensor(tmp_path):
    """Of which NumPy tells; nothing of the others is read."""
    torch.save({f"{i}": torch.ones(MEGABYTE) for i in range(8)}, tmp_path / "net.pt")
    tracemalloc.start()
    try:
        read = read_tensors(tmp_path / "net.pt")
        assert tracemalloc.get_traced_memory()[1] < MEGABYTE
        for value in read.values():
            assert value.sum() == MEGABYTE
        assert tracemalloc.get_traced_memory()[1] < 2.5 * 4 * MEGABYTE
    finally:
        tracemalloc.stop()


# ---- what is refused ----


def raw(*steps, entries=None):
    """A pickle given step by step."""
    return lambda path: archive(path, b"\x80\x02" + b"".join(steps), entries)


def state(value, entries=None):
    return lambda path: archive(path, {"a": value}, entries)


def top(value):
    return lambda path: archive(path, value)


def stored(*identity):
    return state(tensor(Storage(*identity)))


def edited(change):
    """A good archive, of which some bytes are changed afterwards."""

    def write(path):
        archive(path, {"a": tensor()})
        data = bytearray(path.read_bytes())
        path.write_bytes(bytes(change(data) or data))

    return write


def directory(data, name):
    """Where the directory's line of an entry begins."""
    at = data.index(b"PK\x01\x02")
    while data[at + 46 :][: len(name)] != name:
        at = data.index(b"PK\x01\x02", at + 4)
    return at


def set_long(field, value, name=b"net/data/0"):
    """Change a 4-byte field of the directory."""

    def change(data):
        struct.pack_into("<L", data, directory(data, name) + field, value)

    return edited(change)


def set_flag(data):
    data[directory(data, b"net/data/0") + 8] |= 1


def overlap(data):
    first = directory(data, b"net/data.pkl")
    offset = struct.unpack_from("<L", data, first + 42)
    struct.pack_into("<L", data, directory(data, b"net/data/0") + 42, *offset)


def set_end(field, value):
    """Change a 4-byte field of the line at the end."""
    return edited(
        lambda data: struct.pack_into(
            "<L", data, data.index(b"PK\x05\x06") + field, value
        )
    )


def far_away(data):
    """An entry 2**64 bytes from here, told in an extra field."""
    line = directory(data, b"net/data/0")
    struct.pack_into("<H", data, line + 30, 12)
    struct.pack_into("<L", data, line + 42, 0xFFFFFFFF)
    end = data.index(b"PK\x05\x06")
    size = struct.unpack_from("<L", data, end + 12)[0]
    struct.pack_into("<L", data, end + 12, size + 12)
    at = line + 46 + len(b"net/data/0")
    return data[:at] + struct.pack("<HHQ", 1, 8, 2**64 - 1) + data[at:]


def spoil_header(data):
    data[data.index(b"PK\x03\x04", 4)] = 0


def cut(keep):
    return edited(lambda data: data[: int(len(data) * keep)])


def compressed(path):
    """256 KB that would become 256 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("net/data.pkl", "w") as entry:
            for _ in range(16):
                entry.write(bytes(16 * MEGABYTE))
        file.writestr("net/data/0", bytes(16))


def half_compressed(path):
    archive(path, {"a": tensor()}, {"data/1": bytes(100)}, zipfile.ZIP_DEFLATED)


def twice(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("net/data.pkl", pickled({"a": tensor()}))
        file.writestr("net/data/0", bytes(16))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("net/data/0", bytes(16))


def two_folders(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("net/data.pkl", pickled({}))
        file.writestr("other/data.pkl", pickled({}))


def wide_pickle(path):
    """A sparse one of 64 GB, were it not for a directory that says where it ends."""
    archive(path, {"a": tensor()})
    data = bytearray(path.read_bytes())
    end = data.index(b"PK\x01\x02")
    hole = 1 << 31
    line = directory(data, b"net/data.pkl")
    at = struct.unpack_from("<L", data, line + 42)[0]
    struct.pack_into("<LL", data, line + 20, hole, hole)
    struct.pack_into("<L", data, directory(data, b"net/data/0") + 42, hole + end)
    tail = data.index(b"PK\x05\x06")
    struct.pack_into("<L", data, tail + 16, hole + 2 * end)
    second = data.index(b"PK\x03\x04", at + 4)
    with open(path, "wb") as file:
        file.write(data[:end])
        file.seek(hole + end)
        file.write(data[second:end])
        file.seek(hole + 2 * end)
        file.write(data[end:])


def wide_directory(path):
    """A directory of 3 GB, a hole in the file."""
    archive(path, {"a": tensor()})
    data = bytearray(path.read_bytes())
    tail = data.index(b"PK\x05\x06")
    size = struct.unpack_from("<L", data, tail + 12)[0]
    hole = 3 << 30
    struct.pack_into("<L", data, tail + 12, hole + size)
    with open(path, "wb") as file:
        file.write(data[:tail])
        file.seek(tail + hole)
        file.write(data[tail:])


def tarred(path):
    with tarfile.open(path, "w") as file:
        file.add(__file__, "net/data.pkl")


def given(content):
    return lambda path: path.write_bytes(content)


def tensors_file(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else header.encode()
    length = len(text) if length is None else length
    return given(struct.pack("<Q", length) + text + data)


def recursive(path):
    content = {"a": tensor()}
    content["state_dict"] = content
    archive(path, content)


def mkdir(path):
    return os.mkdir, str(path.parent / "executed")


ONE = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,%d]}}'
DEEP = b"N" + b"\x85" * 50_000  # a tuple of a tuple of ...
WIDE = b")" + b"".join(
    b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)
)  # twice a pair of twice a pair of ...: 2**60 to hash

LONG_NUMBER = b"\x8b" + struct.pack("<L", 12 * MEGABYTE) + b"\1" * (12 * MEGABYTE)
LONG_NAME = b"X" + struct.pack("<L", 6 * MEGABYTE) + b"a" * (6 * MEGABYTE)
LONG_MODULE = b"X" + struct.pack("<L", 9 + 9 * MEGABYTE) + b"omegaconf"
LONG_MODULE += b".ab" * (3 * MEGABYTE)
AGAIN = b"h\1N" * 50_000

HOSTILE = {
    # calls
    "os.mkdir": (
        lambda p: archive(p, {"a": Call(*mkdir(p))}),
        r"asks for posix\.mkdir",
    ),
    "in a list in a tuple": (
        lambda p: archive(p, {"a": tensor(), "b": [(Call(*mkdir(p)),)]}),
        r"asks for posix\.mkdir",
    ),
    "as a key": (lambda p: archive(p, {Call(*mkdir(p)): 1}), "asks for posix"),
    "as a hook": (
        lambda p: archive(
            p, {"a": Call(REBUILD, FOUR, 0, (4,), (1,), False, Call(*mkdir(p)))}
        ),
        "asks for posix",
    ),
    "as a storage": (
        lambda p: archive(p, {"a": tensor(Call(*mkdir(p)))}),
        "asks for posix",
    ),
    "as a reference": (
        lambda p: archive(p, {"a": Storage(Call(*mkdir(p)))}),
        "asks for posix",
    ),
    "eval": (state(Call(eval, "open('executed', 'w')")), "asks for .*eval"),
    "exec": (state(Call(exec, "raise SystemExit")), "asks for .*exec"),
    "Popen": (state(Call(subprocess.Popen, ["true"])), r"asks for .*\.Popen"),
    "getattr": (state(Call(getattr, 1, "real")), "asks for .*getattr"),
    "torch.load": (
        state(Call(torch.load, "a")),
        r"asks for torch\.serialization\.load",
    ),
    "torch.hub": (raw(b"ctorch.hub\nload\n."), r"asks for torch\.hub\.load"),
    "another of torch's": (
        raw(b"ctorch._utils\n_rebuild_qtensor\n."),
        "asks for torch._utils._rebuild_qtensor",
    ),
    "an attribute of a name": (
        raw(b"\x8c\x0bcollections\x8c\x15OrderedDict.__class__\x93."),
        r"asks for collections\.OrderedDict\.__class__",
    ),
    "a name that starts well": (
        raw(b"cpytorch_lightning_evil\nrun\n."),
        "asks for pytorch_lightning_evil",
    ),
    "a call of a type": (raw(b"ctorch\nFloatStorage\n)R."), "calls a dtype"),
    "a call of a dictionary": (raw(b"})R."), "calls a dict"),
    "a call with no tuple": (
        raw(b"ccollections\nOrderedDict\n]R."),
        "calls a function",
    ),
    "a call with the wrong number": (
        raw(b"ccollections\nOrderedDict\nK\x01\x85R."),
        "data.pkl is damaged: TypeError",
    ),
    "a new object": (raw(b"ccollections\nOrderedDict\n)\x81."), "calls a function"),
    "attributes of a tensor": (
        lambda p: archive(p, pickled(tensor())[:-1] + b"}b."),
        "gives attributes to a tensor",
    ),
    "attributes of a function": (
        raw(b"ccollections\nOrderedDict\n}b."),
        "gives attributes to a function",
    ),
    # steps that no checkpoint has
    "step INST": (raw(b"(iposix\nmkdir\n."), "step INST"),
    "step OBJ": (raw(b"(cposix\nmkdir\no."), "asks for posix"),
    "step EXT1": (raw(b"\x82\x01."), "step EXT1"),
    "step NEWOBJ_EX": (raw(b"ccollections\nOrderedDict\n)}\x92."), "step NEWOBJ_EX"),
    "step PERSID": (raw(b"P0\n."), "step PERSID"),
    "step GET": (raw(b"Np0\ng0\n."), "step PUT"),
    # references
    "another reference": (stored("module", torch.FloatStorage, "0", "cpu", 4), "unkno"),
    "a short reference": (stored("storage", torch.FloatStorage, "0"), "unknown refer"),
    "a reference to a function": (
        stored("storage", OrderedDict, "0", "cpu", 4),
        "unknown reference",
    ),
    "a number as key": (stored("storage", torch.FloatStorage, 0, "cpu", 4), "unknown"),
    "a key that is not there": (
        stored("storage", torch.FloatStorage, "7", "cpu", 4),
        "no entry 'net/data/7'",
    ),
    "a key outside": (
        stored("storage", torch.FloatStorage, "../../../etc/passwd", "cpu", 4),
        "no entry",
    ),
    "more elements than bytes": (
        stored("storage", torch.FloatStorage, "0", "cpu", 5),
        "has 16 bytes, 5 elements",
    ),
    "fewer elements than bytes": (
        stored("storage", torch.FloatStorage, "0", "cpu", 3),
        "has 16 bytes, 3 elements",
    ),
    "wider elements": (
        stored("storage", torch.DoubleStorage, "0", "cpu", 4),
        "has 16 bytes, 4 elements of torch.float64",
    ),
    "minus four elements": (
        stored("storage", torch.FloatStorage, "0", "cpu", -4),
        "has 16 bytes, -4 elements",
    ),
    "2**100 elements": (
        stored("storage", torch.FloatStorage, "0", "cpu", 2**100),
        "has 16 bytes",
    ),
    "no storage": (state(tensor("0")), "a tensor over a str"),
    # shapes
    "a negative stride": (state(tensor(stride=(2, -1))), r"strides \(2, -1\)"),
    "a negative size": (state(tensor(shape=(2, -2))), r"shape \(2, -2\)"),
    "a negative offset": (state(tensor(offset=-1)), "offset -1"),
    "an offset outside": (state(tensor(offset=1)), "exceeds its storage of 4"),
    "an empty one outside": (
        state(tensor(offset=5, shape=(0,), stride=(1,))),
        "exceeds its storage",
    ),
    "a stride outside": (state(tensor(stride=(3, 1))), "exceeds its storage"),
    "a stride of zero": (state(tensor(shape=(2**40,), stride=(0,))), "exceeds its sto"),
    "rows that overlap": (state(tensor(shape=(3, 2), stride=(1, 1))), "exceeds its st"),
    "2**60 elements": (state(tensor(shape=(2**60, 1))), "of shape"),
    "none, of 2**94 otherwise": (
        state(tensor(shape=(0, 2**47, 2**47), stride=(0, 0, 0))),
        "a tensor of shape",
    ),
    "fewer strides": (state(tensor(stride=(1,))), "2 axes, 1 strides"),
    "a thousand axes": (
        state(tensor(shape=(1,) * 1000, stride=(1,) * 1000)),
        "a tensor of shape",
    ),
    "a fraction of a size": (state(tensor(shape=(2.0, 2))), r"shape \(2\.0, 2\)"),
    "true as size": (state(tensor(shape=(True, 2))), r"shape \(True, 2\)"),
    "a list as shape": (state(tensor(shape=[2, 2])), r"shape \[2, 2\]"),
    # memory and time
    "a compressed pickle": (compressed, "'net/data.pkl' is compressed or encrypted"),
    "a compressed storage": (half_compressed, "is compressed or encrypted"),
    "a pickle of 2 GB": (wide_pickle, "an index of 2147483648 bytes"),
    "a directory of 3 GB": (wide_directory, "damaged or truncated archive"),
    "a million steps": (raw(b"N" * 1_000_001 + b"."), "more than 1000000 steps"),
    "a memo of 32 GB": (raw(b"Nr\xff\xff\xff\xff."), "no state dict but a NoneType"),
    "bytes of 2**60": (raw(b"\x8e" + struct.pack("<Q", 1 << 60) + b"a."), "data.pkl: "),
    "text of 2**31": (raw(b"X\xff\xff\xff\x7fa."), "data.pkl: "),
    "a deep tuple": (raw(b"}X\x01\0\0\0a" + DEEP + b"s."), "a is a tuple, no tensor"),
    "a deep key": (raw(b"}" + DEEP + b"Ns."), "no state dict but a dict"),
    "a deep size": (
        lambda p: archive(p, pickled({"a": tensor()})[:-1] + DEEP + b"Q."),
        "unknown reference",
    ),
    "a deep name": (
        raw(b"X\x05\0\0\0torch" + DEEP + b"\x93."),
        "asks for a str and tuple",
    ),
    "a deep module": (raw(DEEP + b"X\x01\0\0\0a\x93."), "asks for a tuple and str"),
    "a name of 1 MB": (raw(b"c" + b"a" * MEGABYTE + b"\nb\n."), "asks for aaa"),
    "a name that clears the screen": (raw(b"c\x1b[2J\nb\n."), r"asks for \?\[2J"),
    "a key that takes forever to hash": (raw(b"}" + WIDE + b"Ns."), "no state dict"),
    "a number that takes long to hash": (
        raw(b"}" + LONG_NUMBER + b"q\0Ns(" + b"h\0N" * 50_000 + b"u."),
        "no state dict",
    ),
    "two names that take long to compare": (
        raw(b"}" + LONG_NAME + b"q\0Ns" + LONG_NAME + b"q\1Ns(" + AGAIN + b"u."),
        "no state dict",
    ),
    "a module of a million dots": (
        raw(LONG_MODULE + b"q\0" + b"h\0h\0\x93" * 50_000 + b"."),
        "no state dict but a foreign object",
    ),
    "itself": (recursive, "state_dict is a dict, no tensor"),
    # damaged pickles
    "no end": (raw(b"N"), "data.pkl: "),
    "an empty pickle": (lambda p: archive(p, b""), "data.pkl: "),
    "an empty stack": (raw(b"."), "damaged"),
    "no mark": (raw(b"Nt."), "damaged"),
    "an unknown memo": (raw(b"h\x07."), "damaged"),
    "half an item": (raw(b"}(Nu."), "data.pkl: "),
    "an item of a number": (raw(b"K\x01(NNu."), "step SETITEMS on a int"),
    "a name that is no text": (raw(b"NN\x93."), "asks for a NoneType and NoneType"),
    "text that is none": (raw(b"X\x01\0\0\0\xff."), "data.pkl: "),
    "a negative length": (raw(b"\x8b\xff\xff\xff\xff."), "data.pkl: "),
    "an unknown step": (raw(b"\xff."), "data.pkl: "),
    # what is no state dict
    "a list": (top([1, 2]), "holds no state dict but a list"),
    "a tensor": (top(tensor()), "holds no state dict but a tensor"),
    "numbers as names": (top({3: tensor()}), "holds no state dict but a dict"),
    "text as tensor": (state("none"), "a is a str, no tensor"),
    "an object as tensor": (
        raw(b"}X\x01\0\0\0acomegaconf\nDictConfig\n)Rs."),
        "a is a foreign object, no tensor",
    ),
    # damaged archives
    "cut to nothing": (given(b""), "neither an archive"),
    "cut early": (cut(0.1), "damaged or truncated"),
    "cut in the middle": (cut(0.5), "damaged or truncated"),
    "cut at the end": (edited(lambda data: data[:-1]), "damaged or truncated"),
    "an encrypted entry": (edited(set_flag), "compressed or encrypted"),
    "entries that overlap": (edited(overlap), "overlap"),
    "an entry longer than the file": (
        edited(
            lambda data: struct.pack_into(
                "<LL", data, directory(data, b"net/data/0") + 20, 1 << 30, 1 << 30
            )
        ),
        "'net/data/0' is longer than the file",
    ),
    "an entry of two sizes": (set_long(24, 8), "claims two sizes"),
    "an entry elsewhere": (set_long(42, 5), "is not where the directory says"),
    "an entry behind the end": (set_long(42, 1 << 30), "is not where the directory"),
    "an entry before the file": (
        set_end(16, 1 << 20),
        "is not where the directory says",
    ),
    "an entry 2**64 away": (edited(far_away), "is not where the directory says"),
    "a directory elsewhere": (set_end(12, 1 << 31), "damaged or truncated archive"),
    "a spoilt header": (edited(spoil_header), "is not where the directory says"),
    "an entry twice": (twice, "two entries 'net/data/0'"),
    "two pickles": (two_folders, r"2 entries \*/data\.pkl"),
    "big-endian numbers": (state(tensor(), {"byteorder": b"big"}), "byte order b'big'"),
    # other kinds of file
    "an old pickle": (given(pickle.dumps({"a": 1}, 2)), "a bare pickle, .*convert it"),
    "a page": (given(b"<!DOCTYPE html><title>404"), "neither an archive"),
    "a pointer to a file": (given(b"version https://git-lfs.github.com"), "neither an"),
    "a tar": (tarred, "neither an archive"),
    "a gz": (given(gzip.compress(b"net")), "neither an archive"),
    "another zip": (
        lambda p: zipfile.ZipFile(p, "w").writestr("net/readme", "none"),
        "damaged or truncated|not a checkpoint",
    ),
    # safetensors
    "a header of 2**62": (tensors_file("{}", length=1 << 62), "not a readable safeten"),
    "a header of 90 MB": (
        tensors_file("{}", length=90 << 20),
        "not a readable safetensors",
    ),
    "a header that is no JSON": (tensors_file("{nope}"), "not a readable safetensors"),
    "fewer bytes than told": (tensors_file(ONE % 4, bytes(3)), "not a readable safete"),
    "more bytes than told": (tensors_file(ONE % 4, bytes(9)), "not a readable safeten"),
    "bytes that do not fit the shape": (
        tensors_file(ONE % 8, bytes(8)),
        "not a readable safetensors",
    ),
    "deep JSON": (
        tensors_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "not a readable safetensors",
    ),
}


def test_there_are_hostile_files_of_many_kinds():
    assert len(HOSTILE) > 90


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path, monkeypatch, case):
    """By name and reason, in little memory, and nothing of it is executed."""
    monkeypatch.chdir(tmp_path)
    write, reason = HOSTILE[case]
    path = tmp_path / "net.pt"
    write(path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=reason) as caught:
            dict(read_tensors(path))
        assert tracemalloc.get_traced_memory()[1] < 100 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()
    assert os.listdir(tmp_path) == ["net.pt"]


def test_the_canary_would_sing(tmp_path):
    path = tmp_path / "net.pt"
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickled({"a": Call(*mkdir(path))}))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_is_read_or_refused(tmp_path, seed):
    """Whatever its bytes, there are tensors of small size or there is a ValueError."""
    path = tmp_path / "net.pt"
    saved = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half()}
    torch.save({"state_dict": saved, "epoch": 1}, path)
    good = path.read_bytes()
    draw, refused = random.Random(seed), 0
    for _ in range(40):
        data = bytearray(good)
        for _ in range(draw.choice((1, 1, 2, 8))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            read = dict(read_tensors(path))
        except ValueError as error:
            assert str(error).startswith(str(path))
            refused += 1
        else:
            assert sum(value.numel() for value in read.values()) <= 9 + 9
    assert 0 < refused < 40
