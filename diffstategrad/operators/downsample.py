r"""Bicubic antialiased downsampling, :math:`A(X) = B_h X B_w^\top` in every channel."""

from __future__ import annotations

from typing import Any

from diffstategrad import _core
from diffstategrad._options import is_int
from diffstategrad.operators.base import NativeOperator, Shape

__all__ = ["Downsample"]


class Downsample(NativeOperator):
    """Super-resolution's operator: H x W -> ceil(H / factor) x ceil(W / factor).

    Keys' cubic (a = -0.5) stretched by the factor, centre-aligned, edge pixels
    repeated: the Resizer of the published DPS, DAPS and DiffStateGrad codes.

    Parameters
    ----------
    factor : int >= 1

    Raises
    ------
    ValueError
        If the factor is below 1; later, if it is more than 16 times the longer side of
        an image.

    References
    ----------
    Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """

    def __init__(self, factor: int = 4):
        super().__init__()
        if not is_int(factor, 1):
            raise ValueError(f"Downsample: factor must be an int >= 1, got {factor!r}")
        self.factor = int(factor)

    def out_shape(self, shape: Shape) -> Shape:
        c, h, w = shape
        return c, -(-h // self.factor), -(-w // self.factor)

    def image_shape(self, shape: Shape) -> Shape:
        c, h, w = shape
        return c, h * self.factor, w * self.factor

    def _create(self, dtype: str, shape: Shape) -> _core.Op:
        return _core.resize(dtype, shape, self.factor)

    def spec(self) -> dict[str, Any]:
        return {"name": "downsample", "factor": self.factor}
