r"""Phase retrieval: :math:`A(x) = |\mathrm{fftshift}(F\,\mathrm{pad}(u))|`.

F is the orthonormal two-dimensional Fourier transform, u the image in [0, 1] or as it
is, padded with zeros on all sides.  Sign, place and orientation of u do not show in the
measurement: run several samples.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from diffstategrad._options import is_int, is_real
from diffstategrad.operators.base import NativeOperator, Shape

__all__ = ["PhaseRetrieval"]


class PhaseRetrieval(NativeOperator):
    """Magnitudes of the Fourier transform of the padded image, (C, H + 2p, W + 2p).

    Parameters
    ----------
    oversample : float >= 0
        The pad is p = floor(oversample / 8 * resolution).
    rescale : bool
        u = (x + 1) / 2 (DAPS, DiffStateGrad), else u = x (DPS, ReSample).
    resolution : int, optional
        Default: the longer side of the image (DAPS, for square ones).  DPS and
        DiffStateGrad have 256 whatever the image.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(
        self,
        oversample: float = 2.0,
        *,
        rescale: bool = True,
        resolution: int | None = None,
    ):
        if not (is_real(oversample) and 0 <= oversample <= 1e6):
            raise ValueError(
                f"PhaseRetrieval: oversample must be >= 0, got {oversample!r}"
            )
        if not (resolution is None or is_int(resolution, 1)):
            raise ValueError(
                f"PhaseRetrieval: resolution must be an int >= 1, got {resolution!r}"
            )
        self.oversample, self.rescale = float(oversample), bool(rescale)
        self.resolution = None if resolution is None else int(resolution)

    def _pad(self, side: int) -> int:
        """Of images whose longer side is `side`."""
        return int(self.oversample / 8 * (self.resolution or side))

    def out_shape(self, shape: Shape) -> Shape:
        c, h, w = shape
        pad = self._pad(max(h, w))
        return c, h + 2 * pad, w + 2 * pad

    def image_shape(self, shape: Shape) -> Shape:
        c, h, w = shape
        # side + 2 pad(side) grows with the side, so at most one side fits
        for side in range(max(h, w), 0, -1):
            pad = self._pad(side)
            if side + 2 * pad == max(h, w) and min(h, w) > 2 * pad:
                return c, h - 2 * pad, w - 2 * pad
        raise ValueError(
            f"PhaseRetrieval: no image has a measurement of shape {tuple(shape)}"
        )

    def _create(self, module: ModuleType, dtype: str, shape: Shape) -> Any:
        scale, shift = (0.5, 0.5) if self.rescale else (1.0, 0.0)
        return module.phase(dtype, shape, self._pad(max(shape[1:])), scale, shift)

    def spec(self) -> dict[str, Any]:
        return {
            "name": "phase_retrieval",
            "oversample": self.oversample,
            "rescale": self.rescale,
            "resolution": self.resolution,
        }
