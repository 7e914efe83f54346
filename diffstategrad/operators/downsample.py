r"""Bicubic antialiased downsampling, :math:`A(X) = B_h X B_w^\top` in every channel."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from diffstategrad._options import is_int
from diffstategrad.operators.base import NativeOperator, Shape

__all__ = ["Downsample"]


class Downsample(NativeOperator):
    """Super-resolution's operator: H x W -> H / factor x W / factor.

    Keys' cubic (a = -0.5) stretched by the factor, centre-aligned, edge pixels
    repeated: the Resizer of the published DPS, DAPS and DiffStateGrad codes.

    Parameters
    ----------
    factor : int >= 1
    ceil : bool
        Takes images whose sides the factor does not divide, as the Resizer does, to
        ceil(H / factor) x ceil(W / factor).  The size of the image then does not follow
        from that of the measurement.

    Raises
    ------
    ValueError
        If the factor is below 1; later, if it does not divide the sides of an image
        without `ceil`, or is more than 16 times the longer one with it.

    References
    ----------
    Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """

    linear = True

    def __init__(self, factor: int = 4, *, ceil: bool = False):
        if not is_int(factor, 1):
            raise ValueError(f"Downsample: factor must be an int >= 1, got {factor!r}")
        if not isinstance(ceil, bool):
            raise TypeError(f"Downsample: ceil must be a bool, got {ceil!r}")
        self.factor, self.ceil = int(factor), ceil

    def out_shape(self, shape: Shape) -> Shape:
        c, h, w = shape
        if not self.ceil and (h % self.factor or w % self.factor):
            raise ValueError(
                f"Downsample: an image of {h} x {w} is no multiple of the factor "
                f"{self.factor}; crop it, or say ceil=True"
            )
        return c, -(-h // self.factor), -(-w // self.factor)

    def image_shape(self, shape: Shape) -> Shape:
        c, h, w = shape
        if self.ceil and self.factor > 1:
            raise ValueError(
                f"Downsample: with ceil=True, images of several sizes have a "
                f"measurement of shape {tuple(shape)}: give the image's shape"
            )
        return c, h * self.factor, w * self.factor

    def _create(self, module: ModuleType, dtype: str, shape: Shape) -> Any:
        return module.resize(dtype, shape, self.factor)

    def spec(self) -> dict[str, Any]:
        record = {"name": "downsample", "factor": self.factor}
        return {**record, "ceil": True} if self.ceil else record
