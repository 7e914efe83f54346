r"""Blur: padding and correlation with one kernel in every channel.

:math:`A(x)_{ij} = \sum_{ab} k_{ab}\, \bar x_{i+a-r, j+b-s}`, :math:`\bar x` the padded
image and (r, s) the centre of the kernel.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from diffstategrad._options import is_int, is_real, legacy_rng, nearest
from diffstategrad._tensor import as_array
from diffstategrad.operators.base import NativeOperator, Shape
from diffstategrad.operators.motion import motion_kernel

__all__ = ["Blur", "GaussianBlur", "Geometry", "MotionBlur", "Placed", "geometry"]


#: Border -> its number in the core.
BORDERS = {"reflect": 0, "circular": 1, "zero": 2, "replicate": 3}


class Geometry(NamedTuple):
    """How a kernel lies on the image, in the core's terms."""

    centre: tuple[int, int]
    grow: tuple[int, int]
    border: int


def geometry(size: tuple[int, int], boundary: str, even: str) -> Geometry:
    """The geometry of a kernel of `size`; ValueError for an unknown option, TypeError
    for one that is no str."""
    for name, option in (("boundary", boundary), ("even", even)):
        if not isinstance(option, str):
            raise TypeError(f"{name} must be a str, got {option!r}")
    if boundary not in BORDERS:
        raise ValueError(f"unknown boundary {boundary!r}{nearest(boundary, BORDERS)}")
    kh, kw = size
    grow = (0, 0)
    if even in ("same", "grow"):
        centre = (kh // 2, kw // 2)
        if even == "grow":
            grow = (1 - kh % 2, 1 - kw % 2)
    elif even == "torch":
        centre = ((kh - 1) // 2, (kw - 1) // 2)
    else:
        raise ValueError(
            f"unknown placement of even kernels {even!r}"
            f"{nearest(even, ('same', 'grow', 'torch'))}"
        )
    return Geometry(centre, grow, BORDERS[boundary])


class Placed:
    """Shapes of an operator whose kernel of `_size` lies as `geometry` says."""

    _size: tuple[int, int]
    geometry: Geometry

    def out_shape(self, shape: Shape) -> Shape:
        c, h, w = shape
        check_reach(type(self).__name__, self._size, self.geometry, (h, w))
        return c, h + self.geometry.grow[0], w + self.geometry.grow[1]

    def image_shape(self, shape: Shape) -> Shape:
        c, h, w = shape
        return c, h - self.geometry.grow[0], w - self.geometry.grow[1]


class Blur(Placed, NativeOperator):
    """Correlation with a given kernel; the measurement has the size of the image.

    A kernel within 1e-6 (float32 images) or 2.5e-7 (float64) of a column times a row,
    relative to its Frobenius norm, is replaced by that product.

    Parameters
    ----------
    kernel : array or Tensor, shape (h, w)
        Of another device, it is copied to the CPU.
    boundary : "reflect", "circular", "zero" or "replicate"
        What lies outside: the image mirrored at its edge pixel (the published codes),
        repeated, nothing, or the edge pixel.
    even : "same", "grow" or "torch"
        For a kernel with an even side.  "same": its centre is entry side // 2; "grow":
        the same, and the measurement is one pixel larger along that side (DPS, DMILO);
        "torch": its centre is (side - 1) // 2, as with torch's padding="same" (DMPlug).

    Raises
    ------
    TypeError
        If the kernel is complex or in half precision, or an option no str.
    ValueError
        If the kernel has other axes, NaN or Inf, or an option is unknown; later, if
        under "reflect" it reaches over an image smaller than its half.
    """

    linear = True

    def __init__(
        self,
        kernel: np.ndarray | Tensor,
        *,
        boundary: Literal["reflect", "circular", "zero", "replicate"] = "reflect",
        even: Literal["same", "grow", "torch"] = "same",
    ):
        k = as_array(kernel, f"{type(self).__name__}: kernel")
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
        self.boundary, self.even = boundary, even
        self._size = k.shape  # torch.compile need not look at the array
        try:
            self.geometry = geometry(self._size, boundary, even)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{type(self).__name__}: {error}") from None

    def _create(self, module: ModuleType, dtype: str, shape: Shape) -> Any:
        return module.blur(dtype, shape, self.kernel, *self.geometry)

    def _placement(self) -> dict[str, Any]:
        """The options that differ from their defaults, for `spec`."""
        options = {"boundary": (self.boundary, "reflect"), "even": (self.even, "same")}
        return {k: value for k, (value, default) in options.items() if value != default}

    def spec(self) -> dict[str, Any]:
        return {"name": "blur", "kernel": self.kernel, **self._placement()}


def check_reach(
    name: str, kernel: tuple[int, ...], placed: Geometry, image: tuple[int, int]
) -> None:
    """ValueError when reflection of the image cannot give what the kernel reaches."""
    for side, centre, grow, n in zip(
        kernel, placed.centre, placed.grow, image, strict=True
    ):
        reach = max(centre, side - 1 - centre + grow)
        if placed.border == BORDERS["reflect"] and reach >= n:
            raise ValueError(
                f"{name}: a kernel of {tuple(kernel)} reaches {reach} pixels, more "
                f"than reflection of an image of {tuple(image)} can give"
            )


class GaussianBlur(Blur):
    """Gaussian blur of the published codes.

    The kernel is a delta filtered by SciPy's `gaussian_filter` (cut at 4 standard
    deviations, normalised) and rounded to float32.

    Parameters
    ----------
    kernel_size : int >= 1, in pixels
    std : float > 0, in pixels
    boundary, even
        As in `Blur`.
    """

    def __init__(
        self,
        kernel_size: int = 61,
        std: float = 3.0,
        *,
        boundary: Literal["reflect", "circular", "zero", "replicate"] = "reflect",
        even: Literal["same", "grow", "torch"] = "same",
    ):
        if not is_int(kernel_size, 1):
            raise ValueError(
                f"GaussianBlur: kernel_size must be an int >= 1, got {kernel_size!r}"
            )
        if not (is_real(std) and np.isfinite(std) and std > 0):
            raise ValueError(f"GaussianBlur: std must be > 0, got {std!r}")
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
        super().__init__(
            np.outer(row, row).astype(np.float32), boundary=boundary, even=even
        )

    def spec(self) -> dict[str, Any]:
        return {
            "name": "gaussian_blur",
            "kernel_size": self.kernel_size,
            "std": self.std,
            **self._placement(),
        }


class MotionBlur(Blur):
    """Motion blur along a random path.

    Parameters
    ----------
    kernel_size : int, in pixels
    intensity : float in [0, 1]
        0 is a straight line, 1 a wild shake.
    seed : int in 0..2**32-1
        The published operator draws two kernels from NumPy's legacy generator and keeps
        the second; so does this one.
    boundary, even
        As in `Blur`.

    See Also
    --------
    diffstategrad.operators.motion.motion_kernel : the generator.
    """

    def __init__(
        self,
        kernel_size: int = 61,
        intensity: float = 0.5,
        *,
        seed: int = 0,
        boundary: Literal["reflect", "circular", "zero", "replicate"] = "reflect",
        even: Literal["same", "grow", "torch"] = "same",
    ):
        if isinstance(seed, np.random.RandomState):
            raise TypeError(
                "MotionBlur: seed must be an int, which a record can hold; a kernel of "
                "a generator is Blur(motion_kernel(size, intensity, generator).kernel)"
            )
        rng = legacy_rng(seed)
        motion_kernel(kernel_size, intensity, rng)
        super().__init__(
            motion_kernel(kernel_size, intensity, rng).kernel,
            boundary=boundary,
            even=even,
        )
        self.kernel_size, self.intensity = int(kernel_size), float(intensity)
        self.seed = int(seed)

    def spec(self) -> dict[str, Any]:
        return {
            "name": "motion_blur",
            "kernel_size": self.kernel_size,
            "intensity": self.intensity,
            "seed": self.seed,
            **self._placement(),
        }
