"""Conjugate gradients on images, for products that the core does not know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Product", "column", "conjugate_gradients", "dot"]

#: Images (B, C, H, W) -> images or measurements, linear.
Product = Callable[[Tensor], Tensor]


def conjugate_gradients(
    product: Product,
    b: Tensor,
    *,
    tolerance: float,
    iterations: int,
    precondition: Product = lambda v: v,
) -> tuple[Tensor, int, float]:
    """M z = b, every image apart; the number of iterations of the longest, and the
    largest residual, in the preconditioner's norm, relative to that of b.

    An image stops where its residual reaches the tolerance, or where M shows that it is
    not positive; the residual may have grown by then, and the best iterate counts.
    """
    z, r = torch.zeros_like(b), b
    p = precondition(r)
    square = dot(r, p)
    active = square > 0
    first, goal = square.where(active, 1), tolerance**2 * square
    best, least = z, square
    count = 0
    while active.any() and count < iterations:
        count += 1
        q = product(p)
        curvature = dot(p, q)
        active = active & (curvature > 0)
        step = column(torch.where(active, square / curvature, 0)).to(b)
        z = z + step * p
        r = r - step * q
        s = precondition(r)
        new = dot(r, s)
        p = s + column(torch.where(active, new / square, 0)).to(b) * p
        square = torch.where(active, new, square)
        better = square < least
        best = torch.where(column(better), z, best)
        least = torch.where(better, square, least)
        active = active & (new > goal)
    worst = (least / first).nan_to_num(0).clamp_min(0).amax()
    return best, count, worst.item() ** 0.5


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) inner products in float64, row by row as in `square_norm`."""
    return (a.double() * b.double()).sum(-1).flatten(1).sum(1)


def column(t: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return t[:, None, None, None]
