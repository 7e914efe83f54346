"""Differences of neighbouring pixels, as total variation takes them.

D x of shape (b, 2, c, h, w): to the pixel on the right, then to the one below; 0 in the
last column and in the last row.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["differences", "differences_adjoint"]


def differences(x: Tensor) -> Tensor:
    """D x, (b, 2, c, h, w)."""
    right, down = torch.zeros_like(x), torch.zeros_like(x)
    right[..., :-1] = x.diff(dim=3)
    down[..., :-1, :] = x.diff(dim=2)
    return torch.stack([right, down], 1)


def differences_adjoint(p: Tensor) -> Tensor:
    """D^T p, (b, c, h, w)."""
    right, down = p[:, 0, ..., :-1], p[:, 1, ..., :-1, :]
    x = torch.zeros_like(p[:, 0])
    x[..., 1:] += right
    x[..., :-1] -= right
    x[..., 1:, :] += down
    x[..., :-1, :] -= down
    return x
