r"""Image metrics, one float64 for every image.

psnr   10 log10(range^2 / (mse + floor)); floor 0 gives +Inf for equal images
nmse   mean over channels of mean((ref - x)^2) / (mean(ref^2) + 1e-6)
ssim   mean over channels and over the map of
       (2 mx my + C1)(2 cxy + C2) / ((mx^2 + my^2 + C1)(vx + vy + C2)),
       C1 = (0.01 range)^2, C2 = (0.03 range)^2, windows wholly inside the image:
         0 gaussian   11 x 11, sigma 1.5, population moments
         1 uniform    7 x 7, unbiased moments: factor 49/48
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffstategrad.reference._common import check, expect, parts

__all__ = ["nmse", "psnr", "ssim"]


def psnr(out: Tensor, x: Any, ref: Any, value_range: float, floor: float, /) -> None:
    """Peak signal-to-noise ratio in dB."""
    if not (0 < value_range < math.inf and 0 <= floor < math.inf):
        raise ValueError("psnr: an option is outside its range")

    def value(u: Tensor, v: Tensor) -> Tensor:
        mse = (u - v).square().mean((1, 2, 3))
        return 10 * torch.log10(value_range**2 / (mse + floor))

    _per_image("psnr", value, out, x, ref)


def nmse(out: Tensor, x: Any, ref: Any, /) -> None:
    """Normalised mean squared error."""

    def value(u: Tensor, v: Tensor) -> Tensor:
        error, energy = (t.square().mean((2, 3)) for t in (v - u, v))
        return (error / (energy + 1e-6)).mean(1)

    _per_image("nmse", value, out, x, ref)


def ssim(out: Tensor, x: Any, ref: Any, value_range: float, window: int, /) -> None:
    """Structural similarity; window 0 Gaussian 11 x 11, 1 uniform 7 x 7."""
    if window not in (0, 1):
        raise ValueError(f"ssim: window must be in the range 0..1, got {window}")
    if not 0 < value_range < math.inf:
        raise ValueError("ssim: an option is outside its range")
    if window == 0:
        weights, unbias = [math.exp(-(t**2) / 4.5) for t in range(-5, 6)], 1.0
    else:
        weights, unbias = [1.0] * 7, 49 / 48
    weights = [w / sum(weights) for w in weights]
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2

    def value(u: Tensor, v: Tensor) -> Tensor:
        if min(u.shape[2:]) < len(weights):
            raise ValueError("ssim: the sizes do not fit")
        mu, mv, squares, product = (
            _filter(_filter(t, weights, -1), weights, -2)
            for t in (u, v, u * u + v * v, u * v)
        )
        variances = unbias * (squares - (mu * mu + mv * mv))
        covariance = unbias * (product - mu * mv)
        similarity = (2 * mu * mv + c1) * (2 * covariance + c2)
        similarity /= (mu * mu + mv * mv + c1) * (variances + c2)
        return similarity.mean((1, 2, 3))

    _per_image("ssim", value, out, x, ref)


def _filter(t: Tensor, weights: list[float], axis: int) -> Tensor:
    """Correlation along one axis, windows wholly inside."""
    n = t.shape[axis] - len(weights) + 1
    result = weights[0] * t.narrow(axis, 0, n)
    for i, weight in enumerate(weights[1:], 1):
        result.add_(t.narrow(axis, i, n), alpha=weight)
    return result


def _per_image(
    function: str,
    value: Callable[[Tensor, Tensor], Tensor],
    out: Tensor,
    x: Any,
    ref: Any,
) -> None:
    x, ref = check(function, None, x=(x, None), ref=(ref, None))
    expect(function, "out", out, (len(x),), x)
    if x[:1].numel() == 0 and len(x):
        raise ValueError(f"{function}: images must not be empty")
    for oi, xi, ri in parts(out, x, ref):
        oi.copy_(value(xi.double(), ri.double()))
