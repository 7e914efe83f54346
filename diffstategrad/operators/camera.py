r"""Blur under a camera's response: :math:`A(x) = f(K f^{-1}(x))`.

Light is blurred before the sensor responds to it: the image is decoded to linear light,
blurred and encoded again, :math:`f(u) = u^{1/\gamma}` on [0, 1].  Edges between dark
and bright are not blurred as `Blur` would.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal

import numpy as np
from torch import Tensor

from diffstategrad._options import is_real
from diffstategrad.operators.base import NativeOperator, Shape
from diffstategrad.operators.blur import Blur

__all__ = ["CameraBlur"]

_ENCODE, _DECODE = 1, 2  # the core's numbers


class CameraBlur(NativeOperator):
    """Blur in linear light; a nonlinear blur that needs no weights.

    The response is a straight line below 1e-4 of the full light, where the power is too
    steep; values below black are mirrored.

    Parameters
    ----------
    kernel : array or Tensor, shape (h, w)
        Of another device, it is copied to the CPU.
    gamma : float > 0
        Of the response; 1 is a linear camera.
    boundary, even
        As in `Blur`.
    """

    def __init__(
        self,
        kernel: np.ndarray | Tensor,
        gamma: float = 2.2,
        *,
        boundary: Literal["reflect", "circular", "zero", "replicate"] = "reflect",
        even: Literal["same", "grow", "torch"] = "same",
    ):
        if not (is_real(gamma) and np.isfinite(gamma) and gamma > 0):
            raise ValueError(f"CameraBlur: gamma must be > 0, got {gamma!r}")
        self.gamma = float(gamma)
        self.blur = Blur(kernel, boundary=boundary, even=even)

    def out_shape(self, shape: Shape) -> Shape:
        return self.blur.out_shape(shape)

    def image_shape(self, shape: Shape) -> Shape:
        return self.blur.image_shape(shape)

    def _create(self, module: ModuleType, dtype: str, shape: Shape) -> Any:
        decode = module.pointwise(dtype, shape, _DECODE, self.gamma)
        blur = self.blur._create(module, dtype, shape)
        encode = module.pointwise(dtype, self.out_shape(shape), _ENCODE, self.gamma)
        return module.compose(encode, module.compose(blur, decode))

    def spec(self) -> dict[str, Any]:
        return {**self.blur.spec(), "name": "camera_blur", "gamma": self.gamma}
