"""What a method is: options that check themselves, and a loop to be read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor

from diffstategrad._options import nearest
from diffstategrad.noise import NoiseSource
from diffstategrad.operators.base import Operator
from diffstategrad.projection import StateProjector
from diffstategrad.samplers.network import Network

__all__ = [
    "LIMIT",
    "Above",
    "Guide",
    "Level",
    "Needs",
    "Outcome",
    "PartGuide",
    "Problem",
    "Sampler",
    "Survivors",
    "finite",
    "square_norm",
]


@dataclass
class Outcome:
    """What a sampler has to say beside the images.

    Attributes
    ----------
    details : dict
        JSON values and arrays, for `Result.details`.
    apply : callable or None
        A(x) with what a blind method has found; None where the operator says it.
    warnings : list of str
        For `Result.warnings`.
    """

    details: dict[str, Any] = field(default_factory=dict)
    apply: Callable[[Tensor], Tensor] | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Problem:
    """What a sampler is given; everything in it has been checked.

    Attributes
    ----------
    y : Tensor, shape (B, *out_shape)
    operator : Operator
    network : Network
        The prior.
    sigma : float
    noise : NoiseSource
    start : Tensor, shape (B, C, H, W)
        An empty batch of the images' shape, dtype and device; of the latents', for a
        method that works there.
    projector : StateProjector or None
    outcome : Outcome
        For the sampler to fill.
    """

    y: Tensor
    operator: Operator
    network: Network
    sigma: float
    noise: NoiseSource
    start: Tensor
    projector: StateProjector | None
    outcome: Outcome = field(default_factory=Outcome)


@dataclass(frozen=True)
class Level:
    """One level or iteration as a callback sees it.

    The tensors are the solver's own, (B, C, H, W): clone what you keep, change nothing.

    Attributes
    ----------
    index : int, from 0
    sigma : float or None
        Noise level of the state; None for a method that has none.
    xt : the state entering the level; a latent for a method that works there
    x0hat : the prior's estimate of the image
    x0y : the estimate after the data step: what an interrupted run returns
    sqnorm : ||A(x) - y||^2 of every image over all of y, float64, as the last data step
        saw it; NaN for an image that diverged
    ranks, kept : the projector's, per image and channel; None without one
    prior_failed : bool of every image, or None
        True where the prior's own estimate is not finite.
    held : bool of every image, or None
        True where a rule has chosen x0y, which stands whatever becomes of the image.
    """

    index: int
    sigma: float | None
    xt: Tensor
    x0hat: Tensor
    x0y: Tensor
    sqnorm: Tensor
    ranks: tuple[tuple[int, ...], ...] | None = None
    kept: tuple[tuple[float, ...], ...] | None = None
    prior_failed: Tensor | None = None
    held: Tensor | None = None


#: A state with an entry beyond this has diverged, finite as it may be: clamped
#: estimates would keep it so for ever.
LIMIT = 1e6


class Guide:
    """The projection of measurement gradients in a method's loop.

    Attributes
    ----------
    ranks, kept
        Of the last decomposition, as in `Level`; None before and without a projector.
    """

    ranks: tuple[tuple[int, ...], ...] | None = None
    kept: tuple[tuple[float, ...], ...] | None = None

    def __init__(self, projector: StateProjector | None):
        self.projector = projector

    def __call__(self, gradient: Tensor, state: Tensor, iteration: int) -> Tensor:
        """P(gradient), with the subspace of `state`; the gradient itself without a
        projector and between its periods."""
        projector = self.projector
        if projector is None or iteration % projector.period:
            return gradient
        source = gradient if projector.subspace == "gradient" else state
        factors = projector.factors(source, draw=iteration)
        self.ranks, self.kept = factors.ranks, factors.kept
        return factors.apply(gradient)


class PartGuide:
    """The same for a method that has some images of the batch at a time.

    Attributes
    ----------
    ranks, kept
        Of the last decomposition of every image, as in `Level`.
    """

    def __init__(self, projector: StateProjector | None, n: int):
        self.guide = Guide(projector)
        self._found: list[Any] = [None] * n

    def __call__(
        self, gradient: Tensor, state: Tensor, iteration: int, images: slice
    ) -> Tensor:
        """P(gradient) of these images; NaN where gradient or state are not finite."""
        ok = (finite(gradient) & finite(state))[:, None, None, None]
        self.guide.ranks = self.guide.kept = None
        # the projector refuses what is not finite
        gradient = self.guide(gradient.where(ok, 0), state.where(ok, 0), iteration)
        ranks, kept = self.guide.ranks, self.guide.kept
        if ranks is not None and kept is not None:
            self._found[images] = zip(ranks, kept, strict=True)
        return gradient.where(ok, torch.nan)

    @property
    def ranks(self) -> tuple[tuple[int, ...], ...] | None:
        return None if None in self._found else tuple(r for r, _ in self._found)

    @property
    def kept(self) -> tuple[tuple[float, ...], ...] | None:
        return None if None in self._found else tuple(k for _, k in self._found)


def finite(x: Tensor) -> Tensor:
    """(B,) True where every entry of an image is finite."""
    return x.isfinite().flatten(1).all(1)


def square_norm(x: Tensor) -> Tensor:
    """(B,) ||x||^2 of every image, float64.

    Row by row: a single sum over a large image would round differently alone than in a
    batch, and with another number of torch's threads.
    """
    return x.double().square().sum(-1).flatten(1).sum(1)


class Survivors:
    """Images that stop being finite: they stay 0, out of the way, and end as NaN."""

    def __init__(self, n: int):
        self.diverged = torch.zeros(n, dtype=torch.bool)

    def check(self, x: Tensor, *, limit: float = math.inf) -> Tensor:
        """Notes the images of x that are not finite, or have an entry beyond `limit`,
        and puts 0 there, in place; True for those that are new."""
        bad = ~(finite(x) & (x.abs() <= limit).flatten(1).all(1)).cpu()
        new = bad & ~self.diverged
        self.diverged |= bad
        x[self.diverged] = 0
        return new

    def mark(self, values: Tensor) -> Tensor:
        """The values, (B, ...), with NaN for those images, in place."""
        values[self.diverged] = torch.nan
        return values


@dataclass(frozen=True)
class Above:
    """The numbers beyond a bound."""

    bound: float

    def __contains__(self, value: float) -> bool:
        return value > self.bound


#: Option -> the ways for it to have an effect, each the values that other options have.
Needs = Mapping[str, tuple[Mapping[str, tuple[Any, ...] | Above], ...]]


def _need(option: str, values: tuple[Any, ...] | Above) -> str:
    if isinstance(values, Above):
        return f"{option} > {values.bound:g}"
    return f"{option}={' or '.join(map(repr, values))}"


class Sampler(BaseModel, ABC):
    """Base of all methods: a frozen set of options with a `run`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    #: Name in `solve(method=...)`.
    name: ClassVar[str]
    #: The projector's setting in the paper, or the natural one where it has none; None
    #: for a method without a measurement gradient.
    projection: ClassVar[StateProjector | None] = None
    #: Why there is none, for the error of `solve(project=...)`.
    no_projection: ClassVar[str] = "has no measurement gradient"
    #: False for a method that takes prior=None.
    needs_prior: ClassVar[bool] = True
    #: True for a method that works on the latents of a `LatentPrior`.
    latent: ClassVar[bool] = False
    #: True for a method that finds the unknowns of a `BlindOperator`.
    blind: ClassVar[bool] = False
    #: The option that sets the step size, for the warning of a run that diverges.
    step_option: ClassVar[str | None] = None
    #: What other options must be for an option to have an effect; an option that is not
    #: listed always has one.
    needs: ClassVar[Needs] = {}

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
            if not first["loc"]:  # of several options together
                raise ValueError(f"{self.name}: {first['ctx']['error']}") from None
            raise ValueError(
                f"{self.name}: {first['loc'][0]}: {first['msg']}, got "
                f"{first['input']!r}"
            ) from None

    @model_validator(mode="after")
    def _have_an_effect(self) -> Self:
        """ValueError for an option that was given and does nothing."""
        idle = self.idle & self.model_fields_set
        for option, ways in self.needs.items():
            if option not in idle or getattr(self, option) is None:
                continue
            others = dict.fromkeys(other for way in ways for other in way)
            now = ", ".join(f"{other}={getattr(self, other)!r}" for other in others)
            needed = "; or ".join(
                " and ".join(_need(other, values) for other, values in way.items())
                for way in ways
            )
            raise ValueError(f"{option} has no effect with {now}: it needs {needed}")
        return self

    @property
    def idle(self) -> set[str]:
        """Options that do nothing under the others."""
        return {
            option
            for option, ways in self.needs.items()
            if not any(
                all(getattr(self, other) in values for other, values in way.items())
                for way in ways
            )
        }

    @property
    def step_to_lower(self) -> str | None:
        """`step_option`, where the other options leave it any effect."""
        return self.step_option

    @property
    @abstractmethod
    def levels(self) -> int:
        """How often `run` reports."""

    @property
    def calls(self) -> int:
        """Network calls of a run for each image, at most."""
        return self.levels

    @property
    def decodes(self) -> int:
        """Passes through the decoder of a run for each image, at most, where they are
        most of its work; else 0."""
        return 0

    @abstractmethod
    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        """The restored images (B, C, H, W); calls `report` after every level."""

    def idle_for(self, problem: Problem) -> dict[str, str]:
        """Options that this problem leaves without effect, and what of it does."""
        return {}

    def spec_for(self, problem: Problem) -> dict[str, Any]:
        """The `spec` without those that are not the default: it runs the problem again.

        Raises
        ------
        ValueError
            For one of them that was typed.
        """
        spec = self.spec()
        for option, reason in self.idle_for(problem).items():
            if getattr(self, option) == type(self).model_fields[option].default:
                continue
            if option in self.model_fields_set:
                raise ValueError(f"{self.name}: {option} has no effect with {reason}")
            spec.pop(option, None)
        return spec

    def spec(self) -> dict[str, Any]:
        """Name and options as JSON values; those without effect are left out."""
        return {"name": self.name, **self.model_dump(exclude=self.idle)}
