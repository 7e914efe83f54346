r"""Recordings of published codes: reading, replaying, comparing.

A recording is a ``.npz`` of arrays with a JSON text ``meta``.  Random draws are stored
as int8 multiples of 1/32 in draw order.  The networks behind the recorded runs are the
toys below, given by formula:

- S smooths 3 x 3 (weights 1 2 1 / 4 in each axis, zeros outside), M mixes channels in a
  circle;
- :math:`\epsilon(x) = \frac{\sqrt w}{q (1 - w) + w} x - c \sqrt{1 - w} \tanh(M S x)`
  with :math:`w = 1 - \bar\alpha(t)`: the optimal denoiser of a Gaussian of variance q
  plus a bounded term;
- a decoder :math:`D(z) = d \tanh(M S\, up(z))` and an encoder
  :math:`E(x) = e_1 M p + e_2 \tanh p` with p the mean of x over blocks.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: Numbers for the toys of other tests, by the names in `meta["toy"]`.
TOY = {"m": (0.6, 0.3, 0.1), "q": 0.25, "c": 0.3, "dg": 1.1, "e1": 0.9, "e2": 0.2}


class Recording:
    """Arrays of one file and a ledger of those that have been compared."""

    def __init__(self, path: Path):
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.meta: dict[str, Any] = json.loads(str(self.arrays.pop("meta")))
        self.compared: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name].copy())

    def names(self, pattern: str) -> list[str]:
        return [name for name in self.arrays if fnmatchcase(name, pattern)]

    def close(self, name: str, got: Any, *, atol: Any = 0.0, rtol: float = 0.0) -> None:
        """|got - recorded| <= atol + rtol |recorded|, infinities equal."""
        want = np.asarray(self.arrays[name], dtype=np.float64)
        got = np.asarray(got, dtype=np.float64)
        assert got.shape == want.shape, f"{name}: {got.shape}, recorded {want.shape}"
        same = got == want
        with np.errstate(invalid="ignore"):
            error = np.where(same, 0.0, np.abs(got - want))
            bound = atol + rtol * np.abs(want)
        ok = same | (error <= bound)
        assert ok.all(), (
            f"{name}: {np.count_nonzero(~ok)} of {ok.size} entries differ, by up to "
            f"{np.nanmax(error):.3g} where {np.max(bound):.3g} is allowed"
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(error == 0, 0.0, error / bound)
        self.compared[name] = float(share.max(initial=0.0))

    def close_norm(self, name: str, got: Any, *, rtol: float) -> None:
        """||got - recorded|| <= rtol ||recorded||, Euclidean over all entries."""
        want = np.asarray(self.arrays[name], dtype=np.float64)
        got = np.asarray(got, dtype=np.float64)
        assert got.shape == want.shape, f"{name}: {got.shape}, recorded {want.shape}"
        error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        assert error <= rtol, f"{name}: relative error {error:.3g}, {rtol:.3g} allowed"
        self.compared[name] = error / rtol

    def equal(self, name: str, got: Any) -> None:
        np.testing.assert_array_equal(np.asarray(got), self.arrays[name], err_msg=name)
        self.compared[name] = 0.0

    def check_complete(self, inputs: tuple[str, ...]) -> None:
        """Every array was compared or is one of the known inputs; some were."""
        assert self.compared, "nothing was compared"
        left = [
            name
            for name in self.arrays
            if name not in self.compared
            and not any(fnmatchcase(name, pattern) for pattern in inputs)
        ]
        assert not left, f"arrays neither compared nor known as inputs: {left}"

    def draws(self) -> Iterator[Tensor]:
        """The recorded draws in order, of both kinds: normal (0) and uniform (1)."""
        shapes = [tuple(s[s > 0]) for s in self["noise_shape"]]
        kinds = self.arrays.get("noise_kind", np.zeros(len(shapes), np.uint8))
        numbers = [self["noise_q"].astype(np.float32) / 32]
        numbers.append(self.arrays.get("noise_u", np.zeros(0, np.float32)))
        taken = [0, 0]
        for kind, shape in zip(kinds, shapes, strict=True):
            start, taken[kind] = taken[kind], taken[kind] + int(np.prod(shape))
            piece = numbers[kind][start : taken[kind]]
            yield torch.from_numpy(piece.reshape(shape))
        assert taken == [len(part) for part in numbers]


def hash_unit(n: int, seed: int) -> np.ndarray:
    """n numbers in [-1, 1) from 32-bit integer hashing, exact in float32."""
    x = ((np.arange(n, dtype=np.uint64) * 0x9E3779B1) & 0xFFFFFFFF).astype(np.uint32)
    x ^= np.uint32(seed)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return ((x >> np.uint32(8)) / 2**23 - 1).astype(np.float32)


def formula_weight(
    key: str, shape: tuple[int, ...], gain: float, salt: int
) -> np.ndarray:
    """The tensor that a recorded network has under this key of its state dict."""
    seed = (zlib.crc32(key.encode()) + salt) & 0xFFFFFFFF
    v = hash_unit(int(np.prod(shape)), seed).reshape(shape)
    if key.endswith("embedding.weight"):  # a codebook
        return v
    if len(shape) >= 2:
        fan = int(np.prod(shape[1:]))
        return v * np.float32(gain * (3.0 / fan) ** 0.5)
    if key.endswith("weight"):  # scales of a normalisation
        return np.float32(1) + np.float32(0.1) * v
    return np.float32(0.1) * v


def fill_by_formula(
    net: torch.nn.Module, *, gain: float = 1.0, salt: int = 0
) -> torch.nn.Module:
    """The network with every tensor replaced by its formula."""
    for key, value in net.state_dict().items():
        weight = formula_weight(key, tuple(value.shape), gain, salt)
        value.copy_(torch.from_numpy(weight))
    return net


class ToyNetwork:
    """The pixel network of the recordings: noise in the first half of its channels, a
    variance code in the second."""

    def __init__(self, toy: dict[str, Any]):
        self.mix, self.q, self.c = toy["m"], toy["q"], toy["c"]

    @staticmethod
    def smooth(x: Tensor) -> Tensor:
        row = x.new_tensor([0.25, 0.5, 0.25])
        kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1])

    def mixed(self, x: Tensor) -> Tensor:
        a, b, c = self.mix
        return a * x + b * x.roll(-1, 1) + c * x.roll(-2, 1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        u = t.reshape(-1, 1, 1, 1).to(x.dtype) / 999
        w = -torch.expm1(-(9.95 * u * u + 0.1 * u))
        return torch.cat([self.noise(x, w), torch.tanh(self.smooth(x))], 1)

    def noise(self, x: Tensor, w: Tensor) -> Tensor:
        """epsilon of x at w = 1 - alpha_bar."""
        gain = w.sqrt() / (self.q * (1 - w) + w)
        bounded = torch.tanh(self.mixed(self.smooth(x)))
        return gain * x - self.c * (1 - w).sqrt() * bounded


class ToyLatentNetwork(ToyNetwork):
    """The latent network of the recordings: noise alone, by latent diffusion's
    schedule."""

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        u = t.reshape(-1, 1, 1, 1).to(z.dtype) / 999
        a = 0.0015**0.5
        d = 0.0195**0.5 - a
        w = -torch.expm1(-1000 * ((a + u * d) ** 3 - a**3) / (3 * d))
        return self.noise(z, w)


class ToyAutoencoder:
    """The decoder and encoder of the recordings, for latents of 3 or 4 channels."""

    image_channels = 3
    stochastic = False

    def __init__(self, toy: dict[str, Any], stride: int, latent_channels: int = 3):
        self.toy, self.stride, self.latent_channels = toy, stride, latent_channels
        self.mixed, self.smooth = ToyNetwork(toy).mixed, ToyNetwork.smooth

    def decode(self, z: Tensor, quantise: bool = True) -> Tensor:
        up = z.repeat_interleave(self.stride, 2).repeat_interleave(self.stride, 3)
        return self.toy["dg"] * torch.tanh(self.mixed(self.smooth(up)))[:, :3]

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        blocks = F.avg_pool2d(x, self.stride)
        z = self.toy["e1"] * self.mixed(blocks) + self.toy["e2"] * torch.tanh(blocks)
        if self.latent_channels == 4:
            z = torch.cat([z, 0.5 * z[:, :1] - 0.5 * z[:, 1:2]], 1)
        return z
