"""Helpers for options that people type: what counts as a number, the nearest name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np

__all__ = [
    "as_pair",
    "as_shape",
    "check_seed",
    "is_int",
    "is_real",
    "legacy_rng",
    "nearest",
]


def is_int(value: Any, low: float) -> bool:
    """An integer of Python or NumPy, at least `low`; bool is none."""
    return (
        isinstance(value, Integral)
        and not isinstance(value, bool)
        and int(value) >= low
    )


def is_real(value: Any) -> bool:
    """A number of Python or NumPy; bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def as_shape(shape: Any, name: str) -> tuple[int, int, int]:
    """(C, H, W); ValueError unless these are three ints >= 1."""
    try:
        c, h, w = shape
    except (TypeError, ValueError):
        c = h = w = None
    if not all(is_int(n, 1) for n in (c, h, w)):
        raise ValueError(f"{name} must be (C, H, W), three ints >= 1, got {shape!r}")
    return int(c), int(h), int(w)


def as_pair(value: Any, name: str, low: int) -> tuple[int, int]:
    """An int twice, or the pair that was given; ValueError unless ints >= `low`."""
    a: Any
    b: Any
    try:
        a, b = (value, value) if isinstance(value, Integral) else value
    except (TypeError, ValueError):
        a = b = None
    if not (is_int(a, low) and is_int(b, low)):
        raise ValueError(f"{name} must be an int >= {low} or two, got {value!r}")
    return int(a), int(b)


def check_seed(seed: Any, bits: int = 64) -> int:
    """The seed; TypeError unless an int, ValueError unless it has `bits` bits."""
    if not is_int(seed, -math.inf):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**bits:
        raise ValueError(f"seed must be in 0..2**{bits}-1, got {seed}")
    return int(seed)


def legacy_rng(seed: int | np.random.RandomState) -> np.random.RandomState:
    """NumPy's legacy generator, which the published codes draw from; given one, its
    state moves on."""
    if isinstance(seed, np.random.RandomState):
        return seed
    return np.random.RandomState(check_seed(seed, 32))


def nearest(given: object, valid: Iterable[str]) -> str:
    """'; did you mean X?' or, when nothing is close, '; one of A, B, C'."""
    names = list(valid)
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; one of {', '.join(sorted(names))}"
