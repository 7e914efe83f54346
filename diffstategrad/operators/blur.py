r"""Blur: reflection padding and correlation with one kernel in every channel.

:math:`A(x)_{ij} = \sum_{ab} k_{ab}\, \bar x_{i+a, j+b}`, :math:`\bar x` the image
padded by reflection without repeating the border pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from diffstategrad import _core
from diffstategrad._options import is_int
from diffstategrad._tensor import as_array
from diffstategrad.operators.base import NativeOperator, Shape
from diffstategrad.operators.motion import motion_kernel

__all__ = ["Blur", "GaussianBlur", "MotionBlur"]


class Blur(NativeOperator):
    """Correlation with a given kernel; the measurement has the size of the image.

    A kernel within 1e-6 (float32 images) or 2.5e-7 (float64) of a column times a row,
    relative to its Frobenius norm, is replaced by that product.

    Parameters
    ----------
    kernel : array or Tensor, shape (h, w)
        Even sizes are allowed: the centre is entry (h // 2, w // 2).

    Raises
    ------
    ValueError
        If the kernel has other axes, NaN or Inf; later, if it reaches over an image
        smaller than its half.
    """

    def __init__(self, kernel: np.ndarray | Tensor):
        super().__init__()
        k = as_array(kernel)
        if k.ndim != 2 or k.size == 0 or k.dtype.kind not in "fiu":
            raise ValueError(
                f"{type(self).__name__}: kernel must be a real array (h, w), "
                f"got {k.dtype} of shape {k.shape}"
            )
        if not np.isfinite(k).all():
            raise ValueError(
                f"{type(self).__name__}: kernel has NaN or infinite entries"
            )
        self.kernel = np.array(k, dtype=np.float64, order="C")
        self.kernel.flags.writeable = False  # handles keep what they were made of

    def out_shape(self, shape: Shape) -> Shape:
        reach = tuple(size // 2 for size in self.kernel.shape)
        if reach[0] >= shape[1] or reach[1] >= shape[2]:
            raise ValueError(
                f"{type(self).__name__}: a kernel of {self.kernel.shape} reaches "
                f"{reach} pixels, more than reflection of an image of "
                f"{tuple(shape[1:])} can give"
            )
        return shape

    def _create(self, dtype: str, shape: Shape) -> _core.Op:
        return _core.blur(dtype, shape, self.kernel)

    def spec(self) -> dict[str, Any]:
        return {"name": "blur", "kernel": self.kernel}


class GaussianBlur(Blur):
    """Gaussian blur of the published codes.

    The kernel is a delta filtered by SciPy's `gaussian_filter` (cut at 4 standard
    deviations, normalised) and rounded to float32.

    Parameters
    ----------
    kernel_size : int >= 1, in pixels
    std : float > 0, in pixels
    """

    def __init__(self, kernel_size: int = 61, std: float = 3.0):
        if not is_int(kernel_size, 1):
            raise ValueError(
                f"GaussianBlur: kernel_size must be an int >= 1, got {kernel_size!r}"
            )
        if not (np.isfinite(std) and std > 0):
            raise ValueError(f"GaussianBlur: std must be > 0, got {std}")
        self.kernel_size, self.std = int(kernel_size), float(std)
        radius = int(4 * std + 0.5)
        offsets = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (offsets / std) ** 2)
        weights /= weights.sum()
        # SciPy reflects what leaves the array (d c b a | a b c d | d c b a)
        row = np.zeros(kernel_size)
        for offset, weight in zip(offsets, weights, strict=True):
            at = (kernel_size // 2 + offset) % (2 * kernel_size)
            row[min(at, 2 * kernel_size - 1 - at)] += weight
        super().__init__(np.outer(row, row).astype(np.float32))

    def spec(self) -> dict[str, Any]:
        return {
            "name": "gaussian_blur",
            "kernel_size": self.kernel_size,
            "std": self.std,
        }


class MotionBlur(Blur):
    """Motion blur along a random path.

    Parameters
    ----------
    kernel_size : int, in pixels
    intensity : float in [0, 1]
        0 is a straight line, 1 a wild shake.
    seed : int
        The published operator draws two kernels from NumPy's legacy generator and keeps
        the second; so does this one.

    See Also
    --------
    diffstategrad.operators.motion.motion_kernel : the generator.
    """

    def __init__(self, kernel_size: int = 61, intensity: float = 0.5, *, seed: int = 0):
        rng = np.random.RandomState(seed)
        motion_kernel(kernel_size, intensity, rng)
        super().__init__(motion_kernel(kernel_size, intensity, rng).kernel)
        self.kernel_size, self.intensity = kernel_size, float(intensity)
        self.seed = seed

    def spec(self) -> dict[str, Any]:
        return {
            "name": "motion_blur",
            "kernel_size": self.kernel_size,
            "intensity": self.intensity,
            "seed": self.seed,
        }
