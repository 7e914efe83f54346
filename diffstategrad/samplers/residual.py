r"""How well an image agrees with its measurement:

.. math:: r = \lVert w (A(x) - y) \rVert / (\sigma \sqrt m),

over the m entries that were measured, w = 1 there and 0 at the lost pixels of an
inpainting, where A(x) is 0 and y is noise alone.  About 1 for the true image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffstategrad.operators import Compose, Inpainting, Operator

__all__ = ["count", "measured", "relative"]


def measured(operator: Operator, y: Tensor) -> Tensor:
    """w, of the shape of y; a view of less."""
    while isinstance(operator, Compose):
        operator = operator.outer
    if isinstance(operator, Inpainting):
        return torch.from_numpy(operator.mask.copy()).to(y).expand_as(y)
    return y.new_ones(()).expand_as(y)


def count(weight: Tensor) -> int:
    """m, which is the same for all images of a batch."""
    return int(weight[0].count_nonzero())


def relative(sqnorm: Tensor, m: int, sigma: float) -> Tensor:
    """r of ||w (A(x) - y)||^2; 0 where nothing was measured."""
    return (sqnorm / max(m, 1)).sqrt().cpu() / sigma
