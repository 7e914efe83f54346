"""What the parts of the reference share: dtypes, checks, constants, batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffstategrad._tensor import in_full

__all__ = [
    "Constants",
    "Shape",
    "array",
    "check",
    "parse_dtype",
    "parse_shape",
    "parts",
    "product",
]

#: (C, H, W).
Shape = tuple[int, ...]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def parse_dtype(function: str, name: str) -> torch.dtype:
    """The dtype of a name; ValueError for others than the core's two."""
    if name not in _DTYPES:
        raise ValueError(f"{function}: dtype must be float32 or float64, got {name}")
    return _DTYPES[name]


def parse_shape(function: str, shape: Shape) -> Shape:
    """(c, h, w) as ints; ValueError unless all are positive."""
    c, h, w = map(int, shape)
    if min(c, h, w) <= 0:
        raise ValueError(f"{function}: sizes must be positive, got {(c, h, w)}")
    return c, h, w


def array(
    function: str, name: str, values: Any, dtype: type[Any], axes: int
) -> np.ndarray:
    """A kernel, mask, matrix or displacement as a NumPy array of its own."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().resolve_conj().resolve_neg().numpy()
    result = np.array(values, dtype=dtype, order="C")
    if result.ndim != axes or result.size == 0:
        raise ValueError(
            f"{function}: {name} must have {axes} axes, none empty, got {result.shape}"
        )
    if not np.isfinite(result).all():
        raise ValueError(f"{function}: {name} has NaN or infinite entries")
    return result


def check(
    function: str, dtype: torch.dtype | None, **tensors: tuple[Any, Shape | None]
) -> list[Tensor]:
    """The tensors of a call: (tensor, shape of one image), the first one giving the
    number of images, the device, and dtype and image shape where these are None."""
    checked: list[Tensor] = []
    for name, (given, shape) in tensors.items():
        t = given if isinstance(given, Tensor) else torch.as_tensor(given)
        first = checked[0] if checked else t
        expected = dtype or first.dtype
        if t.dtype != expected or expected not in _NAMES:
            wanted = _NAMES.get(expected, "float32 or float64")
            got = str(t.dtype).removeprefix("torch.")
            raise TypeError(f"{function}: {name} must be {wanted}, got {got}")
        if t.ndim != 4:
            raise ValueError(f"{function}: {name} must have 4 axes, got {t.ndim}")
        expect(function, name, t, (len(first), *(shape or first.shape[1:])), first)
        checked.append(t)
    return checked


def expect(
    function: str, name: str, t: Tensor, shape: tuple[int, ...], like: Tensor
) -> None:
    """ValueError unless t has the shape and is where `like` is."""
    if tuple(t.shape) != shape:
        raise ValueError(
            f"{function}: {name} must have shape {shape}, got {tuple(t.shape)}"
        )
    if t.device != like.device:
        raise ValueError(f"{function}: {name} must be on {like.device}, got {t.device}")


def parts(*batches: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Batches in the parts that are worked on: images one by one on the CPU, where
    torch's matrix products and sums round differently with the size of the batch; all
    at once on other devices."""
    first = next(t for t in batches if t is not None)
    size = 1 if first.device.type == "cpu" else max(len(first), 1)
    for i in range(0, len(first), size):
        yield tuple(None if t is None else t[i : i + size] for t in batches)


def product(*matrices: Tensor) -> Tensor:
    """Multiplied from left to right, in their own precision."""
    with in_full(matrices[0].device):
        return reduce(torch.matmul, matrices)


class Constants:
    """Tensors that follow the work to its device, once for each device."""

    def __init__(self, *tensors: Tensor):
        self._on = {torch.device("cpu"): tensors}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._on:
            cpu = self._on[torch.device("cpu")]
            self._on[device] = tuple(t.to(device) for t in cpu)
        return self._on[device]
