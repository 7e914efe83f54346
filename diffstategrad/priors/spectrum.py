r"""Second moments of a prior's images.

A stationary field has independent coefficients, of variance C(f), in the basis that
suits its borders: the FFT where they are periodic, the cosine transform (DCT-II) where
they are mirrored, as those of photographs may be taken to be.  Channels are mixed by an
orthonormal matrix first, which makes them independent too.

`Profile` is what is known without a size: C over the radial frequency f in cycles a
pixel, and the channels' covariance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["PROFILES", "Profile", "Spectrum"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Variances of the coefficients of images of one shape.

    Attributes
    ----------
    variance : Tensor, shape (C, H, W), float64
        Of the orthonormal transform's coefficients, about the images' mean.
    mixing : Tensor, shape (C, C), float64, or None
        Orthonormal; its rows make the channels that `variance` belongs to.
    basis : "dct" or "fft"
    """

    variance: Tensor
    mixing: Tensor | None = None
    basis: Literal["dct", "fft"] = "dct"

    @property
    def std(self) -> float:
        """Standard deviation of a pixel."""
        return self.variance.mean().item() ** 0.5

    def to(self, device: torch.device) -> Spectrum:
        """The same with its tensors there."""
        mixing = None if self.mixing is None else self.mixing.to(device)
        return replace(self, variance=self.variance.to(device), mixing=mixing)

    def coefficients(self, x: Tensor) -> Tensor:
        """Of images (B, C, H, W), the same shape; complex in the FFT's basis."""
        if self.mixing is not None:
            x = _mix(self.mixing.to(x), x)
        if self.basis == "fft":
            return torch.fft.fft2(x, norm="ortho")
        rows, columns = (_dct(n, x.device).to(x) for n in x.shape[2:])
        return _sandwich(rows, x, columns.T)

    def images(self, c: Tensor) -> Tensor:
        """The images that have these coefficients."""
        if self.basis == "fft":
            x = torch.fft.ifft2(c, norm="ortho").real
        else:
            rows, columns = (_dct(n, c.device).to(c) for n in c.shape[2:])
            x = _sandwich(rows.T, c, columns)
        return x if self.mixing is None else _mix(self.mixing.T.to(x), x)

    def filter(self, x: Tensor, gain: Tensor) -> Tensor:
        """x, (B, C, H, W), with its coefficients multiplied by `gain`, (C, H, W)."""
        return self.images(self.coefficients(x) * gain.to(x))


@dataclass(frozen=True)
class Profile:
    """C(f) of one channel on average, and how the channels go together.

    Attributes
    ----------
    frequency : ascending, in cycles a pixel, > 0
    variance : C at these; log-log in between, like f^-2 below, constant above
    channels : covariance of the channels, its trace the number of channels
    """

    frequency: tuple[float, ...]
    variance: tuple[float, ...]
    channels: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, images: Tensor) -> Profile:
        """Measured from images (n, C, H, W)."""
        x = images.cpu().double()
        c, h, w = x.shape[1:]
        x = _sandwich(_dct(h, x.device), x - x.mean(), _dct(w, x.device).T)
        power = x.square().mean((0, 1))
        f = _radius(h, w)
        band = torch.floor(2 * torch.log2(f)).where(f > 0, -torch.inf)
        bands = [band == value for value in band.unique() if value.isfinite()]
        while len(bands) > 1 and bands[0].sum() < 4:  # too few to go by
            bands[:2] = [bands[0] | bands[1]]
        frequency = tuple(f[b].log().mean().exp().item() for b in bands)
        variance = tuple(power[b].mean().item() for b in bands)
        level = cls(frequency, variance, ()).at(f)
        white = (x / level.sqrt())[:, :, f > 0]
        covariance = torch.einsum("nik,njk->ij", white, white)
        covariance *= c / covariance.trace()
        return cls(frequency, variance, tuple(map(tuple, covariance.tolist())))

    def at(self, f: Tensor) -> Tensor:
        """C at the frequencies f >= 0; the mean's, f = 0, is taken at 0.4 of the
        lowest other."""
        low = self.frequency[0]
        smallest = f[f > 0].min() if (f > 0).any() else torch.tensor(low)
        f = f.where(f > 0, 0.4 * smallest)
        inside = np.interp(f.log(), np.log(self.frequency), np.log(self.variance))
        return torch.from_numpy(np.exp(inside)) * (low / f).clamp_min(1).square()

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        """For images of `shape` (C, H, W)."""
        _, h, w = shape
        share, vectors = torch.linalg.eigh(
            torch.tensor(self.channels, dtype=torch.float64)
        )
        variance = self.at(_radius(h, w)).clamp_min(1e-6)
        share = share.clamp_min(1e-3)[:, None, None]
        return Spectrum(share * variance, vectors.T.contiguous())


def _radius(h: int, w: int) -> Tensor:
    """Radial frequency of the DCT's coefficients, (h, w), in cycles a pixel."""
    rows, columns = (torch.arange(n, dtype=torch.float64) / (2 * n) for n in (h, w))
    return torch.hypot(rows[:, None], columns[None, :])


@cache
def _dct(n: int, device: torch.device) -> Tensor:
    """The orthonormal DCT-II as a matrix, (n, n), float64."""
    k = torch.arange(n, dtype=torch.float64, device=device)
    matrix = torch.cos(torch.pi / n * (k + 0.5) * k[:, None]) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def _sandwich(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
    """left x right of every channel, each a product of its own size: a batch rounds as
    its images do alone."""
    planes = x.reshape(-1, *x.shape[2:])
    n = len(planes)
    half = torch.bmm(left.expand(n, *left.shape), planes)
    return torch.bmm(half, right.expand(n, *right.shape)).reshape(x.shape)


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    """The channels' linear combinations."""
    flat = x.flatten(2)
    return torch.bmm(matrix.expand(len(x), *matrix.shape), flat).reshape(x.shape)


#: Of the bundled priors, by name: `Profile.of` 540 crops of 96 x 96 from the training
#: generator, `leaves.scene(77, i, 256)` for i < 60, corners at 0, 80 and 160.
PROFILES = {
    "leaves64": Profile(
        frequency=(
            *(0.007366, 0.0126, 0.01849, 0.02648, 0.03724, 0.05275, 0.07471),
            *(0.1063, 0.1509, 0.2138, 0.3027, 0.4285, 0.5601),
        ),
        variance=(
            *(86.47, 33.77, 21.2, 9.614, 4.681, 2.094, 0.8772),
            *(0.3437, 0.1364, 0.05965, 0.01892, 0.007048, 0.003686),
        ),
        channels=(
            (0.9781, 0.8664, 0.8012),
            (0.8664, 0.9681, 0.9039),
            (0.8012, 0.9039, 1.0538),
        ),
    )
}
