"""Helpers for options that people type: what counts as a number, the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

__all__ = ["is_int", "is_real", "nearest"]


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


def nearest(given: object, valid: Iterable[str]) -> str:
    """'; did you mean X?' or, when nothing is close, '; one of A, B, C'."""
    names = list(valid)
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; one of {', '.join(sorted(names))}"
