"""Where random numbers come from: explicit sources, never global state; and what a
measurement's noise is.

A source belongs to a batch of chains and hands out standard normals draw by draw, in
the order of the algorithm.  `CounterNoise` is the default: the number of a draw is a
function of (seed, image, sample, draw, element) alone, so an image of a batch sees the
noise it would see alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from diffstategrad import _core
from diffstategrad._options import check_seed, is_real

__all__ = [
    "MEASUREMENT",
    "CounterNoise",
    "GaussianNoise",
    "Noise",
    "NoiseSource",
    "PoissonNoise",
    "ReplayNoise",
    "TorchNoise",
    "as_noise",
    "content_keys",
]

#: Sample index of measurement noise: the solver's samples count from 0 and never meet
#: it, so measuring and solving with one seed uses independent numbers.
MEASUREMENT = 2**32 - 1

NativeKey = tuple[int, Sequence[int], Sequence[int], int]


def content_keys(x: Tensor) -> list[int]:
    """One number for each entry of a batch, from its values in single precision.

    As `images` of a `CounterNoise` they give an image the same noise wherever it stands
    in a batch, in either precision; equal images get equal noise.
    """
    return [zlib.crc32(image.cpu().float().numpy().tobytes()) for image in x]


class NoiseSource(Protocol):
    """Standard normals for a batch, in draw order."""

    def normal(self, like: Tensor) -> Tensor:
        """The next draw, of the shape, dtype and device of `like` (B, ...)."""
        ...

    def uniform(self, like: Tensor) -> Tensor:
        """The same for numbers in [0, 1]."""
        ...

    def native(self, draws: int) -> NativeKey | None:
        """The key from which the core makes the next `draws` draws itself, which then
        count as taken; None when the numbers do not come from a counter."""
        ...


class CounterNoise:
    """Counter-based normals (Philox4x32-10), drawn on the CPU and copied to where they
    are wanted.

    Parameters
    ----------
    seed : int, 0 <= seed < 2**64
    images, samples : int for each entry of the batch, 0 <= int < 2**32
        Which image it is and which of its samples.
    """

    def __init__(self, seed: int, images: Iterable[int], samples: Iterable[int]):
        self.seed = check_seed(seed)
        self.images, self.samples = list(images), list(samples)
        self.draw = 0

    def native(self, draws: int) -> NativeKey:
        key = (self.seed, self.images, self.samples, self.draw)
        self.draw += draws
        return key

    def normal(self, like: Tensor) -> Tensor:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        out = torch.empty((len(like), like.shape[1:].numel()), dtype=dtype)
        _core.normal(out, self.native(1))
        return out.reshape(like.shape).to(like)

    def uniform(self, like: Tensor) -> Tensor:
        if like.ndim == 1:  # one an image: the core's own
            out = torch.empty(len(like), dtype=torch.float64)
            _core.uniform(out, self.native(1))
            return out.to(like)
        return torch.special.ndtr(self.normal(like))


def as_noise(
    seed: int | torch.Generator | NoiseSource,
    images: Iterable[int],
    samples: Iterable[int],
) -> NoiseSource:
    """The source itself, a generator's, or the counter's for these images and samples;
    TypeError for anything else."""
    if isinstance(seed, torch.Generator):
        return TorchNoise(seed)
    if hasattr(seed, "normal") and hasattr(seed, "native"):
        return cast(NoiseSource, seed)
    return CounterNoise(cast(int, seed), images, samples)


class TorchNoise:
    """Normals of a `torch.Generator`, for people who keep one."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def native(self, draws: int) -> None:
        return None

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(
            like.shape,
            generator=self.generator,
            dtype=like.dtype,
            device=self.generator.device,
        ).to(like.device)

    def uniform(self, like: Tensor) -> Tensor:
        return torch.rand(
            like.shape,
            generator=self.generator,
            dtype=like.dtype,
            device=self.generator.device,
        ).to(like.device)


class ReplayNoise:
    """Recorded draws, one after the other; for comparing with another code's run."""

    def __init__(self, draws: Iterable[Tensor]):
        self._draws = iter(draws)

    def native(self, draws: int) -> None:
        return None

    def normal(self, like: Tensor) -> Tensor:
        draw = next(self._draws, None)
        if draw is None:
            raise ValueError("the recorded noise has run out of draws")
        if draw.shape != like.shape:
            raise ValueError(
                f"the recorded draw has shape {tuple(draw.shape)}, "
                f"the run needs {tuple(like.shape)}"
            )
        return draw.to(like, copy=True)  # methods work in place

    uniform = normal


class Noise(Protocol):
    """What happens to a clean measurement (B, C, H, W)."""

    def __call__(self, clean: Tensor, seed: int | np.random.RandomState) -> Tensor:
        """The noisy measurement, of the dtype and device of `clean`."""
        ...


@dataclass(frozen=True)
class GaussianNoise:
    """y = clean + sigma n on every entry, not clipped; sigma = 0 is no noise.

    Parameters
    ----------
    sigma : float >= 0, in units of the measurement
    """

    sigma: float

    def __post_init__(self) -> None:
        if not (is_real(self.sigma) and np.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"noise: sigma must be >= 0, got {self.sigma!r}")

    def __call__(self, clean: Tensor, seed: int | np.random.RandomState) -> Tensor:
        if isinstance(seed, np.random.RandomState):
            raise TypeError("Gaussian noise takes an int as its seed")
        source = CounterNoise(seed, range(len(clean)), [MEASUREMENT] * len(clean))
        return clean + self.sigma * source.normal(clean)


@dataclass(frozen=True)
class PoissonNoise:
    """Photon counts: y = 2 u - 1, u = Poisson(255 rate v) / (255 rate) clamped to
    [0, 1], v = (clean + 1) / 2 clamped to [0, 1].

    Parameters
    ----------
    rate : float in 1e-6..1e6
        Photons a grey level of 255; less is noisier.

    Notes
    -----
    The published codes draw from NumPy's legacy generator, from the intensities in
    single precision: a `numpy.random.RandomState` as the seed does the same.  With an
    int, each image has a generator of its own.  All draws are made on the CPU.

    References
    ----------
    Chung, Kim, Mccann, Klasky, Ye, "Diffusion posterior sampling for general noisy
    inverse problems", ICLR 2023.
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        if not (is_real(self.rate) and 1e-6 <= self.rate <= 1e6):
            raise ValueError(f"noise: rate must lie in 1e-6..1e6, got {self.rate!r}")

    def __call__(self, clean: Tensor, seed: int | np.random.RandomState) -> Tensor:
        images = ((clean.detach().cpu().float() + 1) / 2).clamp(0, 1).numpy()
        photons = images * np.float32(255 * self.rate)
        counts = np.empty(photons.shape)
        if isinstance(seed, np.random.RandomState):
            counts[:] = seed.poisson(photons)
        else:
            key = check_seed(seed)
            for i, image in enumerate(photons):
                source = np.random.Philox(key=np.array([key, i], np.uint64))
                counts[i] = np.random.Generator(source).poisson(image)
        u = counts / 255.0 / self.rate
        return torch.from_numpy(np.clip(2 * u - 1, -1, 1)).to(clean)
