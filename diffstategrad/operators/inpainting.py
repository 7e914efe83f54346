r"""Inpainting: :math:`A = \operatorname{diag}(m)`, m = 1 where the pixel is seen."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from diffstategrad._options import as_pair, is_real, legacy_rng
from diffstategrad._tensor import as_array
from diffstategrad.operators.base import NativeOperator, Shape

__all__ = ["Inpainting"]


class Inpainting(NativeOperator):
    """Pixels outside a mask are lost; y has the size of x and is 0 there, plus noise.

    Parameters
    ----------
    mask : array or Tensor of 0 and 1 (bool, integer or float), shape (H, W), (1, H, W)
        or (C, H, W)
        1 = observed.  One plane is shared by all channels.  Of another device, it is
        copied to the CPU.

    Raises
    ------
    TypeError
        For a complex mask or one in half precision.
    ValueError
        For entries other than 0 and 1 or another number of axes.

    See Also
    --------
    box, random : the masks of the published codes.
    """

    linear = True

    def __init__(self, mask: np.ndarray | Tensor):
        m = as_array(mask, "Inpainting: mask")
        if m.ndim == 2:
            m = m[None]
        if m.ndim == 4 and len(m) == 1:
            m = m[0]
        if m.ndim != 3 or 0 in m.shape:
            raise ValueError(
                f"Inpainting: mask must be (H, W) or (C, H, W), got {np.shape(mask)}"
            )
        if not np.isin(m, (0, 1)).all():
            raise ValueError("Inpainting: mask must hold only 0 and 1")
        self.mask = np.array(m, dtype=np.uint8, order="C")
        self.mask.flags.writeable = False  # handles keep what they were made of
        self._shape = self.mask.shape  # torch.compile need not look at the array

    @classmethod
    def box(
        cls,
        size: int | tuple[int, int],
        *,
        length: int | tuple[int, int] = 128,
        margin: int | tuple[int, int] = 16,
        seed: int | np.random.RandomState = 0,
    ) -> Inpainting:
        """A rectangle is lost.

        Parameters
        ----------
        size : int or (H, W)
        length : int or (low, high)
            Side of the box; a pair draws height and width uniformly from low..high-1.
        margin : int or (rows, columns)
            Distance to the border is at least this.  16 in DPS, PSLD, ReSample and
            DiffStateGrad, 32 in DAPS.
        seed : int or numpy.random.RandomState
            Draws follow the published order (height, width, top, left), so that NumPy's
            legacy generator in the same state gives the same mask.
        """
        height, width = as_pair(size, "box: size", 1)
        low, high = as_pair(length, "box: length", 1)
        high += low == high
        rows, columns = as_pair(margin, "box: margin", 0)
        if low > high:
            raise ValueError(
                f"box: length must be (low, high) with low < high, got {length}"
            )
        if high - 1 + 2 * rows >= height or high - 1 + 2 * columns >= width:
            raise ValueError(
                f"box: a box of {high - 1} with margins {(rows, columns)} does not fit "
                f"into an image of {(height, width)}"
            )
        rng = legacy_rng(seed)
        h, w = rng.randint(low, high), rng.randint(low, high)
        top = rng.randint(rows, height - rows - h)
        left = rng.randint(columns, width - columns - w)
        mask = np.ones((height, width), np.uint8)
        mask[top : top + h, left : left + w] = 0
        return cls(mask)

    @classmethod
    def random(
        cls,
        size: int | tuple[int, int],
        *,
        missing: float | tuple[float, float] = 0.7,
        seed: int | np.random.RandomState = 0,
    ) -> Inpainting:
        """Pixels are lost at random, all channels of a pixel together.

        Parameters
        ----------
        size : int or (H, W)
        missing : float or (low, high), in [0, 1]
            Share of lost pixels; a pair draws it uniformly.
        seed : int or numpy.random.RandomState
            As in `box`; the draws are the share, then the pixels.
        """
        height, width = as_pair(size, "random: size", 1)
        pair = missing if isinstance(missing, tuple | list) else (missing, missing)
        if len(pair) != 2:
            raise ValueError(f"random: missing must be one share or two, got {missing}")
        low, high = pair
        if not (is_real(low) and is_real(high) and 0 <= low <= high <= 1):
            raise ValueError(f"random: missing must lie in [0, 1], got {missing!r}")
        rng = legacy_rng(seed)
        count = int(height * width * rng.uniform(low, high))
        lost = rng.choice(height * width, count, replace=False)
        mask = np.ones(height * width, np.uint8)
        mask[lost] = 0
        return cls(mask.reshape(height, width))

    def out_shape(self, shape: Shape) -> Shape:
        c, h, w = self._shape
        if (h, w) != tuple(shape[1:]) or c not in (1, shape[0]):
            raise ValueError(
                f"Inpainting: an image of shape {tuple(shape)} does not fit a mask of "
                f"shape {self._shape}"
            )
        return shape

    def _create(self, module: ModuleType, dtype: str, shape: Shape) -> Any:
        return module.mask(dtype, shape, self.mask)

    def spec(self) -> dict[str, Any]:
        return {"name": "inpainting", "mask": self.mask}
