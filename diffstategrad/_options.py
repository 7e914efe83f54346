"""Helpers for options that people type: the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(given: object, valid: Iterable[str]) -> str:
    """'; did you mean X?' or, when nothing is close, '; one of A, B, C'."""
    names = list(valid)
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; one of {', '.join(sorted(names))}"
