r"""An explicit matrix: :math:`A(x) = M x`, x and y flattened in row-major order."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from diffstategrad._options import as_shape
from diffstategrad._tensor import as_array
from diffstategrad.operators.base import NativeOperator, Shape

__all__ = ["Linear"]


class Linear(NativeOperator):
    """The operator of a matrix, for images of one shape.

    Parameters
    ----------
    matrix : array or Tensor, shape (m, n)
        Of another device, it is copied to the CPU.
    image_shape : (C, H, W), of n values
    out_shape : (C, H, W), of m values, optional
        Default: that of the image when m = n, else (1, 1, m).

    Raises
    ------
    ValueError
        If the matrix has other axes, NaN or Inf, or the shapes do not fit it.
    """

    linear = True

    def __init__(
        self,
        matrix: np.ndarray | Tensor,
        image_shape: Shape,
        out_shape: Shape | None = None,
    ):
        m = as_array(matrix, "Linear: matrix")
        if m.ndim != 2 or m.size == 0 or m.dtype.kind not in "fiu":
            raise ValueError(
                f"Linear: matrix must be a real array (m, n), got {m.dtype} of shape "
                f"{m.shape}"
            )
        if not np.isfinite(m).all():
            raise ValueError("Linear: matrix has NaN or infinite entries")
        image = as_shape(image_shape, "Linear: image_shape")
        if out_shape is None:
            out_shape = image if m.shape[0] == m.shape[1] else (1, 1, m.shape[0])
        out = as_shape(out_shape, "Linear: out_shape")
        for name, shape, n in (("image", image, m.shape[1]), ("out", out, m.shape[0])):
            if math.prod(shape) != n:
                raise ValueError(
                    f"Linear: {name}_shape must be (C, H, W) of {n} values for a "
                    f"matrix of shape {m.shape}, got {shape}"
                )
        self.matrix = np.array(m, dtype=np.float64, order="C")
        self.matrix.flags.writeable = False  # handles keep what they were made of
        self._image, self._out = image, out

    def out_shape(self, shape: Shape) -> Shape:
        if tuple(shape) != self._image:
            raise ValueError(
                f"Linear: images must have shape {self._image}, got {tuple(shape)}"
            )
        return self._out

    def image_shape(self, shape: Shape) -> Shape:
        return self._image

    def _create(self, module: ModuleType, dtype: str, shape: Shape) -> Any:
        return module.matrix(dtype, shape, self._out, self.matrix)

    def spec(self) -> dict[str, Any]:
        return {
            "name": "linear",
            "matrix": self.matrix,
            "image_shape": list(self._image),
            "out_shape": list(self._out),
        }
