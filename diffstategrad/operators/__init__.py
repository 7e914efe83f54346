"""Measurement operators.

To add one: a file here with the class, and its line in `OPERATORS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from diffstategrad._options import nearest
from diffstategrad.operators.base import NativeOperator, Operator, Shape
from diffstategrad.operators.blur import Blur, GaussianBlur, MotionBlur
from diffstategrad.operators.downsample import Downsample
from diffstategrad.operators.inpainting import Inpainting

__all__ = [
    "OPERATORS",
    "Blur",
    "Downsample",
    "GaussianBlur",
    "Inpainting",
    "MotionBlur",
    "NativeOperator",
    "Operator",
    "Shape",
    "build",
]

#: Name in a task file or in `Operator.spec` -> what builds it.
OPERATORS: dict[str, Callable[..., Operator]] = {
    "inpainting": Inpainting,
    "box_inpainting": Inpainting.box,
    "random_inpainting": Inpainting.random,
    "blur": Blur,
    "gaussian_blur": GaussianBlur,
    "motion_blur": MotionBlur,
    "downsample": Downsample,
}


def build(spec: dict[str, Any]) -> Operator:
    """The operator that `Operator.spec` or a task file describes.

    Raises
    ------
    ValueError
        For an unknown name or option.
    """
    options = dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in OPERATORS:
        raise ValueError(f"unknown operator {name!r}{nearest(name, OPERATORS)}")
    known = inspect.signature(OPERATORS[name]).parameters
    for option in options:
        if option not in known:
            raise ValueError(
                f"operator {name} has no option {option!r}{nearest(option, known)}"
            )
    try:
        inspect.signature(OPERATORS[name]).bind(**options)
    except TypeError as error:
        raise ValueError(f"operator {name}: {error}") from None
    return OPERATORS[name](**options)
