r"""A Gaussian random field as prior: everything about it is known in closed form.

:math:`x_0 \sim N(\mu, C)`, C stationary with periodic boundary and power spectrum

.. math:: C(f) \propto (f^2 + f_0^2)^{-p/2}, \qquad f_0 = 1/\text{correlation length},

scaled to a given pixel variance; channels are independent.  The denoiser is Wiener's
filter, and the posterior for a linear operator is Gaussian.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffstategrad.noise import CounterNoise
from diffstategrad.operators.base import Operator
from diffstategrad.priors.base import Prior
from diffstategrad.priors.spectrum import Spectrum

__all__ = ["GaussianPrior"]


class GaussianPrior(Prior):
    """Power-law Gaussian field.

    Parameters
    ----------
    shape : (C, H, W)
    power : float >= 0
        p above: 2 is the spectrum of natural images' amplitudes squared, 0 white noise.
    std : float > 0
        Standard deviation of a pixel.
    mean : float
    correlation_length : float > 0, in pixels
    """

    learned_variance = False

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        power: float = 2.0,
        std: float = 0.5,
        mean: float = 0.0,
        correlation_length: float = 16.0,
    ):
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"GaussianPrior: shape must be (C, H, W), got {shape}")
        if not (
            power >= 0 and std > 0 and correlation_length > 0 and math.isfinite(mean)
        ):
            raise ValueError(
                "GaussianPrior: power must be >= 0, std and correlation_length > 0, "
                f"mean finite, got {power}, {std}, {correlation_length}, {mean}"
            )
        self.shape = tuple(shape)
        self.channels = shape[0]
        self.power, self.std, self.mean = float(power), float(std), float(mean)
        self.correlation_length = float(correlation_length)
        rows = torch.fft.fftfreq(shape[1], dtype=torch.float64)[:, None]
        columns = torch.fft.fftfreq(shape[2], dtype=torch.float64)[None, :]
        f2 = rows**2 + columns**2 + correlation_length**-2
        spectrum = f2 ** (-power / 2)
        #: Variance of every frequency of the orthonormal FFT, (H, W), float64.
        self.spectrum = spectrum * (std**2 / spectrum.mean())

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if tuple(shape) != self.shape:
            raise ValueError(
                f"the prior knows images of shape {self.shape}, the image has "
                f"{tuple(shape)}"
            )

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        transformed = torch.fft.fft2(x.double()) * gain.to(x.device)
        return torch.fft.ifft2(transformed).real.to(x)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        gain = self.spectrum / (self.spectrum + sigma**2)
        return self.mean + self._filter(x - self.mean, gain)

    def sample(self, n: int = 1, *, seed: int = 0) -> Tensor:
        """n independent fields, (n, C, H, W), float64."""
        source = CounterNoise(seed, range(n), [0] * n)
        white = source.normal(torch.empty((n, *self.shape), dtype=torch.float64))
        return self.mean + self._filter(white, self.spectrum.sqrt())

    def power_spectrum(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Spectrum:
        self.check_shape(shape)
        return Spectrum(self.spectrum.expand(self.shape), basis="fft")

    def covariance(self) -> Tensor:
        """Covariance of one channel, (H W, H W), float64; for small images."""
        _, h, w = self.shape
        unit = torch.eye(h * w, dtype=torch.float64).reshape(h * w, h, w)
        return self._filter(unit, self.spectrum).reshape(h * w, h * w)

    def posterior(
        self, operator: Operator, y: Tensor, sigma: float
    ) -> tuple[Tensor, Tensor]:
        r"""Exact posterior of the images measured as y = A(x) + sigma n.

        With :math:`K = C A^\top (A C A^\top + \sigma^2 I)^{-1}`, mean
        :math:`\mu + K (y - A\mu)` and covariance :math:`C - K A C`, by dense algebra:
        for small images.

        Parameters
        ----------
        operator : linear Operator
        y : Tensor, shape (B, *out_shape)
        sigma : float > 0

        Returns
        -------
        mean : Tensor, shape (B, C, H, W), float64
        covariance : Tensor, shape (C H W, C H W), float64

        Raises
        ------
        ValueError
            If the operator is not linear.
        """
        if not operator.linear:
            raise ValueError(f"posterior needs a linear operator, got {operator!r}")
        expected = tuple(operator.out_shape(self.shape))
        if y.ndim != 4 or tuple(y.shape[1:]) != expected:
            raise ValueError(
                f"y must have shape (B, *{expected}), got {tuple(y.shape)}"
            )
        n = self.shape[0] * self.shape[1] * self.shape[2]
        unit = torch.eye(n, dtype=torch.float64).reshape(n, *self.shape)
        A = operator(unit).reshape(n, -1).T
        C = torch.block_diag(*[self.covariance()] * self.shape[0])
        mu = torch.full((n,), self.mean, dtype=torch.float64)
        gram = A @ C @ A.T + sigma**2 * torch.eye(len(A), dtype=torch.float64)
        K = torch.linalg.solve(gram, A @ C).T
        residual = y.double().reshape(len(y), -1) - A @ mu
        mean = (mu + residual @ K.T).reshape(len(y), *self.shape)
        return mean, C - K @ A @ C

    def spec(self) -> dict[str, Any]:
        return {
            "name": "gaussian",
            "shape": list(self.shape),
            "power": self.power,
            "std": self.std,
            "mean": self.mean,
            "correlation_length": self.correlation_length,
        }
