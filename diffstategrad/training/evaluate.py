r"""Figures of the model cards, on photographs that scikit-image ships.

    python -m diffstategrad.training.evaluate WEIGHTS
    python -m diffstategrad.training.evaluate WEIGHTS --autoencoder WEIGHTS

Centre squares, in [-1, 1], PSNR with peak 2. What is printed follows from the file:

- a pixel prior: denoising PSNR at 128 x 128, seeded Gaussian noise, not clipped,
  estimates clipped, beside total variation (Chambolle), which gets, for every
  photograph and level, the weight that is best against the truth, which no practical
  method could know;
- an autoencoder: PSNR of decoded latents at 256 x 256, clipped, with and without
  quantisation, and how many codes the photographs use;
- a latent prior: root mean square denoising error, in units of the latents, of
  256 x 256 photographs, beside predictors that are linear: the noisy latent, the mean,
  :math:`z / (1 + \sigma^2)`, and the stationary Wiener filter of the average spectrum
  of these very photographs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from diffstategrad.models.autoencoder import (
    Autoencoder,
    load_autoencoder,
    nearest_code,
)
from diffstategrad.models.unet import load_network
from diffstategrad.schedules import TableSchedule, VPSchedule
from diffstategrad.training.samples import denoise

__all__ = [
    "LATENT_LEVELS",
    "LEVELS",
    "PHOTOGRAPHS",
    "evaluate",
    "latent_errors",
    "network_estimate",
    "photograph",
    "reconstruction",
    "total_variation",
]

LEVELS = (0.1, 0.2, 0.5, 1.0)
LATENT_LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle", "camera")


def photograph(name: str, size: int = 128) -> np.ndarray:
    """A photograph from the scikit-image wheel; grey ones get three equal channels.

    Returns
    -------
    ndarray, shape (3, size, size), float32 in [-1, 1]
    """
    from skimage import data

    load: Callable[[], Any] = (
        (lambda: data.stereo_motorcycle()[0])
        if name == "motorcycle"
        else getattr(data, name)
    )
    pixels = np.asarray(load())
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    h, w = pixels.shape[:2]
    side = min(h, w)
    y, x = (h - side) // 2, (w - side) // 2
    square = Image.fromarray(pixels[y : y + side, x : x + side, :3])
    small = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32).transpose(2, 0, 1) / np.float32(127.5) - 1


def total_variation(noisy: np.ndarray, clean: np.ndarray, sigma: float) -> np.ndarray:
    """The best of 16 total-variation estimates, chosen by the truth."""
    from skimage.restoration import denoise_tv_chambolle

    candidates = [
        denoise_tv_chambolle(noisy, weight=w, channel_axis=0, max_num_iter=200)
        for w in sigma * np.geomspace(0.3, 3, 16)
    ]
    return max(candidates, key=lambda estimate: _psnr(estimate, clean))


def evaluate(
    estimate: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
    names: tuple[str, ...] = PHOTOGRAPHS,
    levels: tuple[float, ...] = LEVELS,
    size: int = 128,
) -> np.ndarray:
    """PSNR in dB of a denoiser, `estimate(noisy, clean, sigma)`.

    Returns
    -------
    ndarray, shape (len(names), len(levels))
    """
    table = np.empty((len(names), len(levels)))
    for row, name in zip(table, names, strict=True):
        clean = photograph(name, size)
        for i, sigma in enumerate(levels):
            noise = np.random.default_rng(0).standard_normal(clean.shape, np.float32)
            noisy = clean + np.float32(sigma) * noise
            row[i] = _psnr(estimate(noisy, clean, sigma), clean)
    return table


def _psnr(estimate: np.ndarray, clean: np.ndarray) -> float:
    error = np.clip(estimate, -1, 1).astype(np.float64) - clean
    return float(10 * np.log10(4 / np.mean(error**2)))


def network_estimate(
    path: str | os.PathLike[str],
) -> Callable[[np.ndarray, np.ndarray, float], np.ndarray]:
    """The denoiser in a weights file, in the form :func:`evaluate` takes."""
    net, metadata = load_network(path)
    schedule = VPSchedule(
        metadata["schedule"]["beta_min"], metadata["schedule"]["beta_d"]
    )

    def estimate(noisy: np.ndarray, clean: np.ndarray, sigma: float) -> np.ndarray:
        x = torch.from_numpy(noisy)[None]
        return denoise(net, schedule, x, sigma)[0].numpy()

    return estimate


@torch.no_grad()
def reconstruction(
    net: Autoencoder, names: tuple[str, ...] = PHOTOGRAPHS, size: int = 256
) -> tuple[np.ndarray, int]:
    """PSNR in dB of what an autoencoder makes of photographs.

    Returns
    -------
    table : ndarray, shape (len(names), 2), decoded with and without quantisation
    used : int, codes that occur
    """
    table = np.empty((len(names), 2))
    used: set[int] = set()
    for row, name in zip(table, names, strict=True):
        clean = photograph(name, size)
        z = net.encode(torch.from_numpy(clean)[None])
        used.update(nearest_code(z / net.scale, net.codebook).flatten().tolist())
        for i, quantise in enumerate((True, False)):
            row[i] = _psnr(net.decode(z, quantise)[0].numpy(), clean)
    return table, len(used)


@torch.no_grad()
def latent_errors(
    path: str | os.PathLike[str],
    autoencoder: Autoencoder,
    names: tuple[str, ...] = PHOTOGRAPHS,
    levels: tuple[float, ...] = LATENT_LEVELS,
    size: int = 256,
) -> dict[str, np.ndarray]:
    """Root mean square error of estimates of a latent from a noisy one.

    Returns
    -------
    dict from predictor to ndarray, shape (len(names), len(levels))
    """
    net, metadata = load_network(path)
    options = {k: v for k, v in metadata["schedule"].items() if k != "type"}
    schedule = TableSchedule(**options)
    photographs = [torch.from_numpy(photograph(name, size))[None] for name in names]
    clean = [autoencoder.encode(x) for x in photographs]
    mean = torch.stack([z.mean((0, 2, 3)) for z in clean]).mean(0)[:, None, None]
    spectrum = torch.stack(
        [torch.fft.fft2(z - mean, norm="ortho").abs().square()[0] for z in clean]
    ).mean(0)

    def wiener(z: Tensor, sigma: float) -> Tensor:
        gain = spectrum / (spectrum + sigma**2)
        return mean + torch.fft.ifft2(gain * torch.fft.fft2(z - mean)).real

    predictors: dict[str, Callable[[Tensor, float], Tensor]] = {
        "network": lambda z, sigma: denoise(net, schedule, z, sigma),
        "Wiener": wiener,
        "shrinkage": lambda z, sigma: z / (1 + sigma**2),
        "noisy": lambda z, sigma: z,
        "mean": lambda z, sigma: mean.expand_as(z),
    }
    errors = {name: np.empty((len(names), len(levels))) for name in predictors}
    for i, z0 in enumerate(clean):
        for j, sigma in enumerate(levels):
            noise = np.random.default_rng(0).standard_normal(z0.shape, np.float32)
            z = z0 + sigma * torch.from_numpy(noise)
            for name, predict in predictors.items():
                d = predict(z, sigma) - z0
                errors[name][i, j] = float(d.square().mean().sqrt())
    return errors


def _print_table(
    title: str, columns: tuple[Any, ...], names: tuple[str, ...], table: np.ndarray
) -> None:
    print(f"{title:<22}" + "".join(f"{column!s:>12}" for column in columns))
    for name, row in zip(names, table, strict=True):
        print(f"  {name:<20}" + "".join(f"{value:12.3f}" for value in row))
    print(f"  {'mean':<20}" + "".join(f"{value:12.3f}" for value in table.mean(0)))


def _evaluate_pixels(path: str, names: tuple[str, ...], total: bool) -> bool:
    table = evaluate(network_estimate(path), names)
    _print_table("PSNR, network", LEVELS, names, table)
    if not total:
        return True
    reference = evaluate(total_variation, names)
    _print_table("PSNR, oracle TV", LEVELS, names, reference)
    return bool((table.mean(0) > reference.mean(0)).all())


def _evaluate_autoencoder(path: str, names: tuple[str, ...]) -> bool:
    net, _ = load_autoencoder(path)
    table, used = reconstruction(net, names)
    _print_table("PSNR", ("quantised", "continuous"), names, table)
    print(f"{used} of {len(net.codebook)} codes used; scale {net.scale:.4f}")
    return True


def _evaluate_latents(path: str, autoencoder: str, names: tuple[str, ...]) -> bool:
    errors = latent_errors(path, load_autoencoder(autoencoder)[0], names)
    for name, table in errors.items():
        _print_table(f"RMS error, {name}", LATENT_LEVELS, names, table)
    means = {name: table.mean(0) for name, table in errors.items()}
    return all(
        bool((means["network"] < mean).all())
        for name, mean in means.items()
        if name != "network"
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; 1 if a prior loses to what stands beside it at any level."""
    parser = argparse.ArgumentParser(description="Figures on photographs.")
    parser.add_argument("weights", help="safetensors file of `diffstategrad train`")
    parser.add_argument("--autoencoder", help="file of a latent prior's autoencoder")
    parser.add_argument("--no-tv", action="store_true", help="skip total variation")
    parser.add_argument(
        "--photographs",
        nargs="+",
        default=PHOTOGRAPHS,
        metavar="NAME",
        help="functions of skimage.data",
    )
    options = parser.parse_args(arguments)
    names = tuple(options.photographs)
    with safe_open(options.weights, framework="pt") as file:
        header = json.loads((file.metadata() or {}).get("diffstategrad", "{}"))
    if "codes" in header.get("architecture", {}):
        good = _evaluate_autoencoder(options.weights, names)
    elif "latent" not in header:
        good = _evaluate_pixels(options.weights, names, not options.no_tv)
    elif options.autoencoder is None:
        parser.error("a latent prior needs --autoencoder")
    else:
        good = _evaluate_latents(options.weights, options.autoencoder, names)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
