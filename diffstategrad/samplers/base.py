"""What a method is: options that check themselves, and a loop to be read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from diffstategrad._options import nearest
from diffstategrad.noise import NoiseSource
from diffstategrad.operators.base import Operator
from diffstategrad.projection import StateProjector

__all__ = ["Level", "Problem", "Sampler"]


@dataclass(frozen=True)
class Problem:
    """What a sampler is given; everything in it has been checked.

    `denoise(x, sigma)` is the prior's, counted; `start` is an empty batch of the
    images' shape, dtype and device (B, C, H, W).
    """

    y: Tensor
    operator: Operator
    denoise: Callable[[Tensor, float], Tensor]
    sigma: float
    noise: NoiseSource
    start: Tensor
    projector: StateProjector | None


@dataclass(frozen=True)
class Level:
    """One annealing level as a callback sees it.

    The tensors are the solver's own, (B, C, H, W): clone what you keep, change nothing.

    Attributes
    ----------
    index : int, from 0
    sigma : float
    xt : the state entering the level
    x0hat : the prior's estimate of the image
    x0y : the estimate after the data step
    sqnorm : ||A(x) - y||^2 of every image, float64, as the last data step saw it; NaN
        for an image that diverged
    ranks, kept : the projector's, per image and channel; None without one
    """

    index: int
    sigma: float
    xt: Tensor
    x0hat: Tensor
    x0y: Tensor
    sqnorm: Tensor
    ranks: tuple[tuple[int, ...], ...] | None = None
    kept: tuple[tuple[float, ...], ...] | None = None


class Sampler(BaseModel, ABC):
    """Base of all methods: a frozen set of options with a `run`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    #: Name in `solve(method=...)`.
    name: ClassVar[str]
    #: The projector's setting in the paper, or the natural one where it has none; None
    #: for a method without a measurement gradient.
    projection: ClassVar[StateProjector | None] = None

    def __init__(self, **options: Any) -> None:
        for option, value in options.items():
            field = type(self).model_fields.get(option)
            if field is None:
                raise ValueError(
                    f"{self.name} has no option {option!r}"
                    f"{nearest(option, type(self).model_fields)}"
                )
            if isinstance(value, bool) and field.annotation is not bool:
                raise ValueError(f"{self.name}: {option} must not be {value}")
        try:
            super().__init__(**options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "options"
            raise ValueError(
                f"{self.name}: {where}: {first['msg']}, got {first['input']!r}"
            ) from None

    @property
    @abstractmethod
    def levels(self) -> int:
        """How often `run` reports."""

    @abstractmethod
    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        """The restored images (B, C, H, W); calls `report` after every level."""

    def spec(self) -> dict[str, Any]:
        """Name and options as JSON values."""
        return {"name": self.name, **self.model_dump()}
