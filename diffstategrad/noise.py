"""Where random numbers come from: explicit sources, never global state.

A source belongs to a batch of chains and hands out standard normals draw by draw, in
the order of the algorithm.  `CounterNoise` is the default: the number of a draw is a
function of (seed, image, sample, draw, element) alone, so an image of a batch sees the
noise it would see alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from diffstategrad import _core
from diffstategrad._options import is_int

__all__ = [
    "MEASUREMENT",
    "CounterNoise",
    "NoiseSource",
    "ReplayNoise",
    "TorchNoise",
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
    return [zlib.crc32(image.float().numpy().tobytes()) for image in x]


class NoiseSource(Protocol):
    """Standard normals for a batch, in draw order."""

    def normal(self, like: Tensor) -> Tensor:
        """The next draw, of the shape, dtype and device of `like` (B, ...)."""
        ...

    def native(self, draws: int) -> NativeKey | None:
        """The key from which the core makes the next `draws` draws itself, which then
        count as taken; None when the numbers do not come from a counter."""
        ...


class CounterNoise:
    """Counter-based normals (Philox4x32-10).

    Parameters
    ----------
    seed : int, 0 <= seed < 2**64
    images, samples : int for each entry of the batch, 0 <= int < 2**32
        Which image it is and which of its samples.
    """

    def __init__(self, seed: int, images: Iterable[int], samples: Iterable[int]):
        if not is_int(seed, -math.inf):
            raise TypeError(f"seed must be an int, got {type(seed).__name__}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in 0..2**64-1, got {seed}")
        self.seed = int(seed)
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
        return draw.to(like)
