r"""What a prior is: a denoiser at every noise level.

:math:`D(x; \sigma) = E[x_0 \mid x]` for :math:`x = x_0 + \sigma n`, images nominally in
[-1, 1].  The noise prediction of a variance-preserving network follows from it:
:math:`\epsilon = (x - D(x; \sigma)) / \sigma` at :math:`x = z \sqrt{1 + \sigma^2}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffstategrad.noise import CounterNoise
from diffstategrad.priors.spectrum import Profile, Spectrum
from diffstategrad.schedules import VPSchedule, poly_grid, sigma_of

__all__ = ["CallablePrior", "NoPrior", "Prior"]


class Prior(ABC):
    """Base of all priors.

    Attributes
    ----------
    channels : int or None
        Of the images it knows; None for any.
    stride : int
        Height and width must be divisible by it.
    schedule : VPSchedule
        Links sigma and the network time t.
    profile : Profile or None
        Second moments of its images; None: measured where a method asks for them.
    learned_variance : bool or None
        Whether `predict` gives the code of one; None: a call will show.
    spectrum_calls : int
        Calls of `denoise`, with one image each, that measuring `power_spectrum` took.
    """

    channels: int | None = None
    stride: int = 1
    schedule: VPSchedule = VPSchedule()
    profile: Profile | None = None
    learned_variance: bool | None = None
    spectrum_calls: int = 0

    @abstractmethod
    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x0 + sigma n = x], of the shape of x (B, C, H, W); sigma > 0.
        Differentiable in x for methods that ask for it."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """What it is, as JSON values."""

    def predict(self, z: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor | None]:
        """Noise prediction at signal variance `alpha_bar`, 0 < alpha_bar < 1.

        Parameters
        ----------
        z : Tensor, shape (B, C, H, W)
            sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) n.

        Returns
        -------
        eps : Tensor, shape of z
        code : Tensor, shape of z, or None
            In [-1, 1]: where a learned variance lies between its ends; None for a prior
            without one.
        """
        sigma = sigma_of(alpha_bar)
        x = z / alpha_bar**0.5
        return (x - self.denoise(x, sigma)) / sigma, None

    def estimate(self, z: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor | None]:
        """E[x0 | z], of the shape of z, and the code as in `predict`.

        Directly, where the prior predicts the image: by way of the noise, rounding is
        magnified by sigma.
        """
        return self.denoise(z / alpha_bar**0.5, sigma_of(alpha_bar)), None

    def power_spectrum(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> Spectrum:
        """Second moments of its images of `shape` (C, H, W).

        From `profile` where it has one.  Else measured, once for a shape, on 4 images
        that the probability-flow ODE makes of fixed noise: 24 calls of `denoise`.
        """
        if self.profile is not None:
            return self.profile.spectrum(shape)
        measured: dict[tuple[int, ...], Profile]
        measured = self.__dict__.setdefault("_measured", {})
        if shape not in measured:
            images, self.spectrum_calls = _images(self, shape, dtype)
            if not images.isfinite().all():
                raise ValueError("the prior gave images with NaN or infinite values")
            measured[shape] = Profile.of(images)
        return measured[shape].spectrum(shape)

    def eps(self, z: Tensor, t: float) -> Tensor:
        """Noise prediction at network time t (0..999)."""
        return self.predict(z, self.alpha_bar(t))[0]

    def alpha_bar(self, t: float) -> float:
        """Signal variance left at network time t."""
        return float(self.schedule.alpha_bar(t))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """ValueError when an image (C, H, W) does not fit this prior."""
        c, h, w = shape
        if self.channels is not None and c != self.channels:
            raise ValueError(
                f"the prior knows images of {self.channels} channels, the "
                f"operator's image has {c}"
            )
        if h % self.stride or w % self.stride:
            raise ValueError(
                f"the prior needs height and width divisible by {self.stride}, "
                f"the operator's image is {h} x {w}"
            )


class CallablePrior(Prior):
    """Any function `(x, sigma) -> x0`, whatever runs behind it.

    It gets a batch (B, C, H, W) and a float and returns an array of the same shape;
    anything with `__dlpack__` is taken (JAX, NumPy, CuPy).
    """

    learned_variance = False

    def __init__(self, function: Callable[[Tensor, float], Any]):
        self.function = function

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        out = self.function(x, sigma)
        if not isinstance(out, Tensor):
            if not hasattr(out, "__dlpack__"):
                raise TypeError(
                    "the prior must return an array with __dlpack__, "
                    f"got {type(out).__name__}"
                )
            out = torch.from_dlpack(out)
        if out.shape != x.shape:
            raise ValueError(
                f"the prior must keep the shape {tuple(x.shape)}, "
                f"got {tuple(out.shape)}"
            )
        if x.requires_grad and torch.is_grad_enabled() and not out.requires_grad:
            raise TypeError(
                "the method differentiates through the prior, whose function returned "
                "an array without a gradient: compute it by torch from what it is given"
            )
        return out.to(x)

    def spec(self) -> dict[str, Any]:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return {"name": "callable", "function": name}


class NoPrior(Prior):
    """Stands where a method needs no network."""

    learned_variance = False

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        raise RuntimeError("this method was said to need no prior")

    def spec(self) -> dict[str, Any]:
        return {"name": "none"}


@torch.no_grad()
def _images(
    prior: Prior, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, int]:
    """Images of the prior, (4, *shape), and the calls they took."""
    n = 4
    sigmas = [*map(float, poly_grid(40.0, 0.02, 24)), 0.0]
    source = CounterNoise(0, range(n), [0] * n)
    x = sigmas[0] * source.normal(torch.empty((n, *shape), dtype=dtype))
    for sigma, after in pairwise(sigmas):
        denoised = torch.cat([prior.denoise(image[None], sigma) for image in x])
        x = denoised + after / sigma * (x - denoised)
    return x, n * (len(sigmas) - 1)
