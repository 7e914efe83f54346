r"""Denoising: :math:`A(x) = x`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from diffstategrad.operators.base import NativeOperator, Shape

__all__ = ["Identity"]


class Identity(NativeOperator):
    """The measurement is the image, plus noise; it is never the same memory."""

    linear = True

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def _create(self, module: ModuleType, dtype: str, shape: Shape) -> Any:
        return module.mask(dtype, shape, np.ones((1, *shape[1:]), np.uint8))

    def spec(self) -> dict[str, Any]:
        return {"name": "identity"}
