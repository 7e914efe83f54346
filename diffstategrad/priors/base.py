r"""What a prior is: a denoiser at every noise level.

:math:`D(x; \sigma) = E[x_0 \mid x]` for :math:`x = x_0 + \sigma n`, images nominally in
[-1, 1].  The noise prediction of a variance-preserving network follows from it:
:math:`\epsilon = (x - D(x; \sigma)) / \sigma` at :math:`x = z \sqrt{1 + \sigma^2}`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from diffstategrad.noise import CounterNoise
from diffstategrad.priors.border import Border, check_differentiable
from diffstategrad.priors.spectrum import Profile, Spectrum
from diffstategrad.schedules import Schedule, VPSchedule, poly_grid, sigma_of

__all__ = ["CallablePrior", "NoPrior", "Prior"]


class Prior(ABC):
    """Base of all priors.

    Attributes
    ----------
    channels : int or None
        Of the images it knows; None for any.
    stride : int
        Height and width must be divisible by it.
    schedule : Schedule
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
    schedule: Schedule = VPSchedule()
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

    def __repr__(self) -> str:
        spec = self.spec()
        parts = [str(spec.get("function", spec.get("name")))]
        if spec.get("latent"):
            parts.append("on latents")
        if self.channels is not None:
            parts.append(f"{self.channels} channels")
        if self.stride > 1:
            parts.append(f"sides multiples of {self.stride}")
        return f"{type(self).__name__}({', '.join(parts)})"

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
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Spectrum:
        """Second moments of its images of `shape` (C, H, W); tensors of the CPU.

        From `profile` where it has one.  Else measured, once for a shape, on 4 images
        that the probability-flow ODE makes of fixed noise: 24 calls of `denoise`, of
        `dtype` and on `device`.
        """
        if self.profile is not None:
            return self.profile.spectrum(shape)
        measured: dict[tuple[int, ...], Profile]
        measured = self.__dict__.setdefault("_measured", {})
        if shape not in measured:
            empty = torch.empty((4, *shape), dtype=dtype, device=device)
            images, self.spectrum_calls = _images(self, empty)
            if not images.isfinite().all():
                raise ValueError("the prior gave images with NaN or infinite values")
            measured[shape] = Profile.of(images)
        return measured[shape].spectrum(shape)

    def eps(self, z: Tensor, t: float) -> Tensor:
        """Noise prediction at network time t (0..999)."""
        return self.predict(z, self.alpha_bar(t))[0]

    @property
    def borders(self) -> tuple[Border, ...]:
        """Those of its networks."""
        return ()

    def to(
        self,
        device: str | torch.device | None = None,
        *,
        dtype: torch.dtype | None = None,
        channels_last: bool | None = None,
        compile: bool | None = None,
    ) -> Self:
        """Moves and converts its network, if it has one, in place, and returns itself.

        States and results keep the dtype that they have, whatever the network's.

        Parameters
        ----------
        device : optional
            `solve` moves the network to where it runs.
        dtype : optional
            Of the network: float32, float64, bfloat16 or float16.  On a CPU float16 is
            slow (8.5 s measured where float32 took 0.4 s).
        channels_last : bool, optional
            Memory layout of the network's convolutions.
        compile : bool, optional
            Run it by torch.compile, which takes minutes at the first call (305 s
            measured for a toy latent network on busy cores) and, on the CPU, needs a
            C++ compiler.

        Raises
        ------
        TypeError
            For an option but `device` where there is no `torch.nn.Module`.
        """
        if not self.borders and not (dtype is channels_last is compile is None):
            raise TypeError(f"{type(self).__name__} has no network to convert")
        for border in self.borders:
            border.to(device, dtype=dtype, channels_last=channels_last, compile=compile)
        return self

    def alpha_bar(self, t: float) -> float:
        """Signal variance left at network time t."""
        return float(self.schedule.alpha_bar(t))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """ValueError when an image (C, H, W) does not fit this prior."""
        c, h, w = shape
        if self.channels is not None and c != self.channels:
            raise ValueError(
                f"the prior knows images of {self.channels} channels, the image has {c}"
            )
        if h % self.stride or w % self.stride:
            raise ValueError(
                f"the prior needs height and width divisible by {self.stride}, "
                f"the image is {h} x {w}"
            )


class CallablePrior(Prior):
    """Any function `(x, sigma) -> x0`, whatever runs behind it.

    It gets a batch (B, C, H, W) and a float and returns an array of the same shape;
    anything with `__dlpack__` is taken (JAX, NumPy, CuPy).  An `nn.Module` gets the
    batch in the dtype of its weights.
    """

    learned_variance = False

    def __init__(self, function: Callable[[Tensor, float], Any]):
        _check_arguments(function)
        self.function, self.border = function, Border(function)

    @property
    def borders(self) -> tuple[Border, ...]:
        return (self.border,)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        out = self.border.compiled(self.function)(self.border.cast(x), sigma)
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
        check_differentiable(out, x, _name(self.function))
        return out.to(x).contiguous()

    def spec(self) -> dict[str, Any]:
        name = _name(self.function)
        return {"name": "callable", "function": name, **self.border.spec()}


def _check_arguments(function: Callable[..., Any]) -> None:
    """TypeError unless the function can be called with an image and a noise level."""
    try:
        # a module's own call takes anything
        signature = inspect.signature(getattr(function, "forward", function))
    except (TypeError, ValueError):
        return  # some builtins do not say what they take
    try:
        signature.bind(None, 1.0)
    except TypeError as error:
        raise TypeError(
            "a prior must be a function (x, sigma) -> x0 of images (B, C, H, W) and a "
            f"noise level, got {_name(function)}{signature}: {error}"
        ) from None


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


class NoPrior(Prior):
    """Stands where a method needs no network."""

    learned_variance = False

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        raise RuntimeError("this method was said to need no prior")

    def spec(self) -> dict[str, Any]:
        return {"name": "none"}


@torch.no_grad()
def _images(prior: Prior, empty: Tensor) -> tuple[Tensor, int]:
    """Images of the prior, like the empty batch, and the calls they took."""
    n = len(empty)
    sigmas = [*map(float, poly_grid(40.0, 0.02, 24)), 0.0]
    x = sigmas[0] * CounterNoise(0, range(n), [0] * n).normal(empty)
    for sigma, after in pairwise(sigmas):
        denoised = torch.cat([prior.denoise(image[None], sigma) for image in x])
        x = denoised + after / sigma * (x - denoised)
    return x, n * (len(sigmas) - 1)
