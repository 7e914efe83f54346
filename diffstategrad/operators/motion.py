"""Motion blur kernels of the published codes.

A random walk with bounded turns is drawn as a white poly-line, blurred, scaled down and
normalised.  Recipe and order of the random draws are those of the `motionblur` package
of L. Borodenko, which DPS, PSLD, ReSample, DiffStateGrad and DAPS use.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from diffstategrad._options import is_int, is_real

__all__ = ["MotionKernel", "motion_kernel"]


class MotionKernel(NamedTuple):
    """A kernel and how it came about.

    grey: (size, size) uint8, the picture.  path: (n, 2) points (x, y) on the canvas of
    twice the size.  length: aimed at by the path, in pixels of the canvas; max_angle:
    bound of a turn in radians; jitter: probability of turning back.
    """

    grey: np.ndarray
    path: np.ndarray
    length: float
    max_angle: float
    jitter: float

    @property
    def kernel(self) -> np.ndarray:
        """(size, size) float32, sum 1; ValueError when the path left the picture."""
        grey = self.grey.astype(np.float32)
        if not grey.any():
            raise ValueError("motion blur: the path left the picture; use another seed")
        return grey / grey.sum()


def motion_kernel(
    size: int, intensity: float, rng: np.random.RandomState
) -> MotionKernel:
    """Draws one kernel; `rng` moves on.

    Parameters
    ----------
    size : int >= 2, in pixels
    intensity : float in [0, 1]
    rng : numpy.random.RandomState
        Bit for bit the published kernels need the same Pillow too.
    """
    if not is_int(size, 2):
        raise ValueError(f"motion blur: kernel_size must be an int >= 2, got {size!r}")
    if not (is_real(intensity) and 0 <= intensity <= 1):
        raise ValueError(
            f"motion blur: intensity must lie in [0, 1], got {intensity!r}"
        )

    diagonal = np.sqrt(2) * 2 * size
    length = 0.75 * diagonal * (rng.uniform() + rng.uniform(0, intensity**2))
    steps: list[float] = []
    while sum(steps) < length:
        step = rng.beta(1, 30) * (1 - intensity + 0.1) * diagonal
        if step < length:
            steps.append(step)

    max_angle = rng.uniform(0, intensity * np.pi)
    jitter = rng.beta(2, 20)
    angles = [rng.uniform(low=-max_angle, high=max_angle)]
    while len(angles) < len(steps):
        angle = rng.triangular(0, intensity * max_angle, max_angle + 0.1)
        turn_back = rng.uniform() < jitter
        angles.append(
            angle * (-np.sign(angles[-1]) if turn_back else np.sign(angles[-1]))
        )

    points = np.cumsum(np.array(steps) * np.exp(1j * np.array(angles)))
    points = points - points.sum() / len(points)
    points = points * np.exp(1j * rng.uniform(0, np.pi)) + size * (1 + 1j)
    path = np.stack([points.real, points.imag], 1)

    canvas = Image.new("RGB", (2 * size, 2 * size))
    width = max(1, int(diagonal / 150))  # Pillow 9 drew width 0 as 1, 13 not at all
    points_xy = [tuple(p) for p in path]
    ImageDraw.Draw(canvas).line(points_xy, fill=(255, 255, 255), width=width)
    canvas = canvas.filter(ImageFilter.GaussianBlur(radius=int(diagonal * 0.01)))
    grey = np.asarray(
        canvas.resize((size, size), Image.Resampling.LANCZOS).convert("L")
    )
    return MotionKernel(grey, path, length, max_angle, jitter)
