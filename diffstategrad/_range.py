"""Images of any range brought to [0, 1], as every metric takes them."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

from diffstategrad._tensor import check_alike, check_finite, prepare

__all__ = ["Images", "unit_pair", "unit_range"]

Images = TypeVar("Images", Tensor, np.ndarray)


def unit_pair(
    x: Images, ref: Images, value_range: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Two batches of one shape and dtype, clipped and mapped to [0, 1]."""
    low, high = _checked(value_range)
    u, v = prepare(x, "x"), prepare(ref, "ref")
    if u.shape != v.shape:
        raise ValueError(
            f"x and ref must have one shape, got {tuple(u.shape)} and {tuple(v.shape)}"
        )
    check_alike(x=u, ref=v)
    return _mapped(u, "x", low, high), _mapped(v, "ref", low, high)


def unit_range(x: Images, name: str, value_range: tuple[float, float]) -> Tensor:
    """One batch clipped and mapped to [0, 1]."""
    low, high = _checked(value_range)
    return _mapped(prepare(x, name), name, low, high)


def _checked(value_range: tuple[float, float]) -> tuple[float, float]:
    low, high = value_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"value_range must be (low, high), got {value_range}")
    return low, high


def _mapped(t: Tensor, name: str, low: float, high: float) -> Tensor:
    if t[:1].numel() == 0 and len(t):
        raise ValueError(f"images must not be empty, got shape {tuple(t.shape)}")
    t = _clipped(t, name, low, high)
    return t if (low, high) == (0, 1) else t.sub(low).div_(high - low)


def _clipped(t: Tensor, name: str, low: float, high: float) -> Tensor:
    """t within [low, high]; t itself where it is already."""
    if t.numel() == 0:
        return t
    least, most = t.aminmax()
    if low <= least and most <= high:  # false for NaN
        return t
    check_finite(t, name)
    return t.clamp(low, high)
