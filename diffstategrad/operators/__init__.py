"""Measurement operators.

To add one: a file here with the class, and its line in `OPERATORS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from diffstategrad._options import nearest
from diffstategrad.operators.base import NativeOperator, Operator, Shape
from diffstategrad.operators.blind import (
    BlindBlur,
    BlindOperator,
    BlindTurbulence,
    Turbulence,
    Warp,
    blind_blur,
    warp,
)
from diffstategrad.operators.blur import Blur, GaussianBlur, MotionBlur
from diffstategrad.operators.callable import from_callable
from diffstategrad.operators.camera import CameraBlur
from diffstategrad.operators.compose import Compose
from diffstategrad.operators.downsample import Downsample
from diffstategrad.operators.hdr import HighDynamicRange
from diffstategrad.operators.identity import Identity
from diffstategrad.operators.inpainting import Inpainting
from diffstategrad.operators.interop import from_deepinv, to_deepinv
from diffstategrad.operators.linear import Linear
from diffstategrad.operators.nonlinear import NonlinearBlur
from diffstategrad.operators.phase import PhaseRetrieval

__all__ = [
    "OPERATORS",
    "BlindBlur",
    "BlindOperator",
    "BlindTurbulence",
    "Blur",
    "CameraBlur",
    "Compose",
    "Downsample",
    "GaussianBlur",
    "HighDynamicRange",
    "Identity",
    "Inpainting",
    "Linear",
    "MotionBlur",
    "NativeOperator",
    "NonlinearBlur",
    "Operator",
    "PhaseRetrieval",
    "Shape",
    "Turbulence",
    "Warp",
    "blind_blur",
    "build",
    "from_callable",
    "from_deepinv",
    "to_deepinv",
    "warp",
]


def _compose(outer: Any, inner: Any) -> Compose:
    """Parts may be operators or what describes them."""
    return Compose(
        *(
            part if isinstance(part, Operator) else build(part)
            for part in (outer, inner)
        )
    )


#: Name in a task file or in `Operator.spec` -> what builds it.
OPERATORS: dict[str, Callable[..., Operator]] = {
    "identity": Identity,
    "inpainting": Inpainting,
    "box_inpainting": Inpainting.box,
    "random_inpainting": Inpainting.random,
    "blur": Blur,
    "gaussian_blur": GaussianBlur,
    "motion_blur": MotionBlur,
    "camera_blur": CameraBlur,
    "nonlinear_blur": NonlinearBlur,
    "downsample": Downsample,
    "phase_retrieval": PhaseRetrieval,
    "high_dynamic_range": HighDynamicRange,
    "linear": Linear,
    "warp": Warp,
    "turbulence": Turbulence,
    "blind_blur": BlindBlur,
    "blind_turbulence": BlindTurbulence,
    "compose": _compose,
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
