"""Denoising PSNR of a pixel prior on photographs, beside total variation.

    python -m diffstategrad.training.evaluate WEIGHTS

Six photographs that scikit-image ships, centre square, resized to 128 x 128, in
[-1, 1]; seeded Gaussian noise, not clipped; estimates clipped; PSNR with peak 2. Total
variation (Chambolle) gets, for every photograph and level, the weight that is best
against the truth, which no practical method could know.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffstategrad.models.unet import load_network
from diffstategrad.schedules import VPSchedule
from diffstategrad.training.samples import denoise

__all__ = [
    "LEVELS",
    "PHOTOGRAPHS",
    "evaluate",
    "network_estimate",
    "photograph",
    "total_variation",
]

LEVELS = (0.1, 0.2, 0.5, 1.0)
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


def _print_table(title: str, names: tuple[str, ...], table: np.ndarray) -> None:
    print(f"{title:<12}" + "".join(f"{level:>8g}" for level in LEVELS))
    for name, row in zip(names, table, strict=True):
        print(f"  {name:<10}" + "".join(f"{value:8.2f}" for value in row))
    print(f"  {'mean':<10}" + "".join(f"{value:8.2f}" for value in table.mean(0)))


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; returns 1 if the network loses to total variation anywhere."""
    parser = argparse.ArgumentParser(description="Denoising PSNR on photographs.")
    parser.add_argument("weights", help="safetensors file of a pixel prior")
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
    table = evaluate(network_estimate(options.weights), names)
    _print_table("network", names, table)
    if options.no_tv:
        return 0
    reference = evaluate(total_variation, names)
    _print_table("oracle TV", names, reference)
    return int(bool((table.mean(0) < reference.mean(0)).any()))


if __name__ == "__main__":
    sys.exit(main())
