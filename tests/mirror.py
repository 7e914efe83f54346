"""A device that is not the CPU, on the CPU.

Tensors of the device ``mirror`` hold one of the CPU that nobody else can reach.  They
take part in all that torch dispatches, autograd on its thread for the device included,
and do not mix with tensors of the CPU: what forgets its ``device=`` fails, as it would
on an accelerator.  `waits` tells where a program would wait for its accelerator.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

import diffstategrad

__all__ = ["DEVICE", "Mirrored", "waits"]

#: Operations between devices.
_COPIES = {"copy_", "_to_copy", "_copy_from"}
#: Operations that take indices of the CPU.
_INDEXED = {"index", "index_put_", "_index_put_impl_"}
#: Operations whose result the program needs before it goes on.
_WAITING = {"_local_scalar_dense", "equal", "nonzero", "masked_select"}

_SOURCES = Path(diffstategrad.__file__).parent
_waits: Counter[str] = Counter()


class Mirrored(torch.Tensor):
    """A tensor of the device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Mirrored:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="mirror:0",
        )
        self.held = held
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"Mirrored({self.held!r})"

    def tolist(self) -> Any:  # which torch refuses to subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation, with what is held."""
    name = func._schema.name.partition("::")[2]
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if torch.is_tensor(t)]
    ours = [t for t in tensors if isinstance(t, Mirrored)]
    # numbers may come from anywhere
    foreign = [t for t in tensors if not isinstance(t, Mirrored) and t.ndim]
    crossing = name in _COPIES or (name in _INDEXED and args[0] is ours[0])
    if ours and foreign and not crossing:
        raise RuntimeError(f"{name}: tensors of the CPU and of the mirror")

    there = bool(ours)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == "mirror"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name in _COPIES:
        there = there and (name == "_to_copy" or isinstance(args[0], Mirrored))
    if name in _WAITING or (ours and name in _COPIES and not there):
        _waits[f"{_where()} {name}"] += 1

    kwargs.pop("pin_memory", None)
    out = func(*_held(args), **_held(kwargs))
    if not there:
        return args[0] if name == "copy_" else out
    known = {id(t.held): t for t in ours}  # what was changed in place

    def mirrored(t: torch.Tensor) -> torch.Tensor:
        return known[id(t)] if id(t) in known else Mirrored(t)

    return pytree.tree_map_only(torch.Tensor, mirrored, out)


def _held(given: Any) -> Any:
    return pytree.tree_map_only(Mirrored, lambda t: t.held, given)


def _where() -> str:
    """The innermost line of the package."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if _SOURCES in path.parents:
            return f"{path.relative_to(_SOURCES)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """What waited inside: line of the package and operation -> how often."""
    _waits.clear()
    found: Counter[str] = Counter()
    yield found
    found.update(_waits)


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of ``torch.mirror``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    @contextmanager
    def device(self, index: Any) -> Iterator[None]:
        yield


backend_registration._setup_privateuseone_for_python_backend("mirror", _Module())
_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")


def _copy_from(source: torch.Tensor, target: Mirrored, non_blocking: bool = False):
    """What ``torch.tensor(..., device=)`` ends with."""
    target.held.copy_(source)
    return target


_aten = torch.library.Library("aten", "IMPL")
_aten.impl("_copy_from", _copy_from, "PrivateUse1")

DEVICE = torch.device("mirror", 0)
