"""A sheet of pictures that shows what a prior has learned."""

from __future__ import annotations

import itertools
import os

import numpy as np
import torch
from torch import Tensor

from diffstategrad.images import save_image
from diffstategrad.models.autoencoder import Autoencoder
from diffstategrad.models.unet import PixelUNet
from diffstategrad.training.leaves import scene
from diffstategrad.training.stream import Schedule

__all__ = ["denoise", "sample", "write_reconstructions", "write_samples"]


@torch.no_grad()
def denoise(net: PixelUNet, schedule: Schedule, x: Tensor, sigma: float) -> Tensor:
    """Posterior mean of the image given `x` = image + `sigma` * noise.

    Parameters
    ----------
    x : Tensor, shape (B, 3, H, W), image in [-1, 1] plus noise
    sigma : float > 0, in units of the image

    Returns
    -------
    Tensor, shape (B, 3, H, W), not clipped
    """
    t = float(schedule.t_of_sigma(sigma))
    scale = 1 / np.sqrt(1 + sigma**2)
    z = scale * x
    return scale * z - sigma * scale * net(z, t)


def sample(
    net: PixelUNet,
    schedule: Schedule,
    shape: tuple[int, ...],
    seed: int,
    steps: int = 40,
    limit: float = 1.0,
) -> Tensor:
    """Unconditional samples by Euler steps of the probability-flow ODE.

    Levels fall from 80 to 0.02 on the grid of Karras et al. (2022), eq. 5, rho = 7;
    estimates are clipped to [-limit, limit].
    """
    root = np.linspace(80 ** (1 / 7), 0.02 ** (1 / 7), steps)
    sigmas = [*(root**7), 0.0]
    generator = torch.Generator().manual_seed(seed)
    x = sigmas[0] * torch.randn(shape, generator=generator)
    for sigma, following in itertools.pairwise(sigmas):
        mean = denoise(net, schedule, x, float(sigma)).clamp(-limit, limit)
        x = mean + float(following / sigma) * (x - mean)
    return x


def write_samples(
    path: str | os.PathLike[str],
    net: PixelUNet,
    schedule: Schedule,
    seed: int,
    size: int = 128,
    steps: int = 40,
    autoencoder: Autoencoder | None = None,
) -> None:
    """Write a PNG: samples in the first row, then noisy and denoised scenes in pairs.

    Columns of the pairs are noise levels 0.1, 0.2, 0.5 and 1. With `autoencoder` all
    this happens in latents of `size` / stride and is decoded.
    """
    stride = net.stride * (1 if autoencoder is None else autoencoder.stride)
    size = max(size - size % stride, stride)
    levels = (0.1, 0.2, 0.5, 1.0)
    clean = [
        torch.from_numpy(scene(seed + 1_000_003, i, max(size, 8)))[None]
        for i in range(2)
    ]
    if autoencoder is not None:
        with torch.no_grad():
            clean = [autoencoder.encode(x) for x in clean]
    shape = (len(levels), *clean[0].shape[1:])
    limit = 1.0 if autoencoder is None else 5.0
    rows = [sample(net, schedule, shape, seed, steps, limit)]
    generator = torch.Generator().manual_seed(seed)
    for x0 in clean:
        noisy = [x0 + s * torch.randn(x0.shape, generator=generator) for s in levels]
        pairs = zip(noisy, levels, strict=True)
        rows.append(torch.cat(noisy))
        rows.append(torch.cat([denoise(net, schedule, x, s) for x, s in pairs]))
    if autoencoder is not None:
        with torch.no_grad():
            rows = [autoencoder.decode(row) for row in rows]
    _write_sheet(path, rows)


@torch.no_grad()
def write_reconstructions(
    path: str | os.PathLike[str], net: Autoencoder, seed: int, size: int = 128
) -> None:
    """Write a PNG: scenes in the first row, decoded from quantised latents below."""
    size = max(size - size % net.stride, 8)
    scenes = torch.stack([torch.from_numpy(scene(seed, i, size)) for i in range(6)])
    _write_sheet(path, [scenes, net(scenes)])


def _write_sheet(path: str | os.PathLike[str], rows: list[Tensor]) -> None:
    save_image(path, torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1))
