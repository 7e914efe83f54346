r"""What a prior is: a denoiser at every noise level.

:math:`D(x; \sigma) = E[x_0 \mid x]` for :math:`x = x_0 + \sigma n`, images nominally in
[-1, 1].  The noise prediction of a variance-preserving network follows from it:
:math:`\epsilon = (x - D(x; \sigma)) / \sigma` at :math:`x = z \sqrt{1 + \sigma^2}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffstategrad.schedules import VPSchedule

__all__ = ["CallablePrior", "Prior"]


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
    """

    channels: int | None = None
    stride: int = 1
    schedule: VPSchedule = VPSchedule()

    @abstractmethod
    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x0 + sigma n = x], of the shape of x (B, C, H, W); sigma > 0."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """What it is, as JSON values."""

    def eps(self, z: Tensor, t: float) -> Tensor:
        """Noise prediction at time t (0..999) for z = sqrt(ab) x0 + sqrt(1-ab) n."""
        sigma = float(self.schedule.sigma_of_t(t))
        if sigma == 0:
            raise ValueError(f"eps needs a time above 0, got {t}")
        x = z * (1 + sigma * sigma) ** 0.5
        return (x - self.denoise(x, sigma)) / sigma

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
        return out.to(x)

    def spec(self) -> dict[str, Any]:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return {"name": "callable", "function": name}
