r"""High dynamic range: :math:`A(x) = \mathrm{clip}(a x, -1, 1)`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from diffstategrad._options import is_real
from diffstategrad.operators.base import NativeOperator, Shape

__all__ = ["HighDynamicRange"]


class HighDynamicRange(NativeOperator):
    """An exposure too long: values beyond the sensor's range are clipped.

    The derivative is `scale` where the value is not clipped, limits included, and 0
    elsewhere.

    Parameters
    ----------
    scale : float > 0
        2 in the published codes.
    """

    def __init__(self, scale: float = 2.0):
        if not (is_real(scale) and np.isfinite(scale) and scale > 0):
            raise ValueError(f"HighDynamicRange: scale must be > 0, got {scale!r}")
        self.scale = float(scale)

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def _create(self, module: ModuleType, dtype: str, shape: Shape) -> Any:
        return module.pointwise(dtype, shape, 0, self.scale)

    def spec(self) -> dict[str, Any]:
        return {"name": "high_dynamic_range", "scale": self.scale}
