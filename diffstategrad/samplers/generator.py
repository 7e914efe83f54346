r"""DDIM steps as the layers of a generator.

A layer takes a state at signal variance a to one at p:

.. math:: x_0 = \mathrm{clamp}\big((x - \sqrt{1 - a}\, \epsilon) / \sqrt a\big), \qquad
          \epsilon' = (x - \sqrt a\, x_0) / \sqrt{1 - a}, \qquad
          g(x) = \sqrt p\, x_0 + \sqrt{1 - p}\, \epsilon'.

Since :math:`\epsilon'` is derived from the clamped estimate, gradients reach x even
where the clamp saturates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffstategrad.schedules import DDIMGrid

__all__ = ["Predict", "generator", "layer"]


#: What predicts the noise: a prior's `predict`, or a counting network's.
Predict = Callable[[Tensor, float], tuple[Tensor, Tensor | None]]


def scales(alpha_bar: float) -> tuple[float, float]:
    """Of image and noise in a state."""
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def layer(predict: Predict, x: Tensor, a: float, p: float) -> Tensor:
    """g(x), differentiable where `predict` is."""
    eps, _ = predict(x, a)
    signal, noise = scales(a)
    x0 = ((x - noise * eps) / signal).clamp(-1, 1)
    if p == 1:
        return x0
    eps = (x - signal * x0) / noise
    signal, noise = scales(p)
    return signal * x0 + noise * eps


def generator(
    predict: Predict, grid: DDIMGrid, *, recompute: bool
) -> Callable[[Tensor], Tensor]:
    """All layers of the grid, then a clamp to [-1, 1].

    Parameters
    ----------
    recompute : bool
        Keep no activations but the states between layers; the backward pass makes them
        again (one forward pass more, memory of one layer).
    """
    pairs = list(zip(map(float, grid.a), map(float, grid.p), strict=True))

    def run(z: Tensor) -> Tensor:
        x = z
        for a, p in pairs:
            if recompute and torch.is_grad_enabled():
                x = checkpoint(layer, predict, x, a, p, use_reentrant=False)
            else:
                x = layer(predict, x, a, p)
        return x.clamp(-1, 1)

    return run
