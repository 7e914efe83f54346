r"""Markov chains for the level of DAPS, on the energy

.. math:: U(x) = \tfrac{w_\ell}{2} \lVert A(x) - y \rVert^2
                 + \tfrac{w_p}{2} \lVert x - m \rVert^2, \qquad
          g = w_\ell J^\top (A(x) - y) + w_p (x - m).

=========  ===========================================================================
Langevin   :math:`x \leftarrow x - \eta P(g) + \sqrt{2 \eta}\, n`
HMC        :math:`v \leftarrow \mu v - \sqrt\eta\, P(g) + \sqrt{2 (1 - \mu)}\, n`,
           :math:`x \leftarrow x + \sqrt\eta\, v`, from :math:`v \sim N(0, I)`
MH         :math:`x' = x + \sqrt\eta\, n`, taken where :math:`\ln u < U(x) - U(x')`
=========  ===========================================================================

Every step draws n; MH then u, uniform in (0, 1), one an image.  The steps run in the C
core where they are all alike and it knows the operator, else here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffstategrad import _core
from diffstategrad.projection import Subspace
from diffstategrad.samplers.base import Problem, finite, square_norm

__all__ = ["Chain", "hmc", "langevin", "metropolis"]


@dataclass
class Chain:
    """A level's chains, one an image.

    Attributes
    ----------
    problem : Problem
    start : Tensor, shape (B, C, H, W)
    centre : x -> m
        Called with the start, and where `moving` with every later state.
    moving : bool
    subspace : Subspace or None
        The level's; None without a projector and where every gradient brings its own.
    project_noise : bool
        P(n) for n.
    steps, eta, likelihood, prior
        Number and size of the steps, w_l and w_p.
    """

    problem: Problem
    start: Tensor
    centre: Callable[[Tensor], Tensor]
    moving: bool
    subspace: Subspace | None
    project_noise: bool
    steps: int
    eta: float
    likelihood: float
    prior: float

    def __post_init__(self) -> None:
        x = self.start
        self.m = self.centre(x)
        self.sqnorm = x.new_full((len(x),), torch.nan, dtype=torch.float64)
        self.failed = torch.zeros_like(self.sqnorm, dtype=torch.bool)
        self.factors = self.subspace

    @property
    def native(self) -> _core.Op | None:
        """The core's operator, where it can make all steps."""
        projector = self.problem.projector
        own = projector and (projector.period > 1 or projector.subspace == "gradient")
        x = self.start
        if self.moving or own or x.device.type != "cpu":
            return None
        return self.problem.operator.native(tuple(x.shape[1:]), x.dtype)

    def gradient(self, x: Tensor, step: int) -> Tensor:
        """P(g) at x; 0 from where an image's is not finite."""
        if self.moving and step > 0:
            self.m = self.centre(x)
        gradient, self.sqnorm = self.problem.operator.residual_gradient(
            x, self.problem.y
        )
        gradient = self.likelihood * gradient + self.prior * (x - self.m)
        self.failed |= ~finite(gradient)
        gradient[self.failed] = 0
        self.factors = None
        projector = self.problem.projector
        if projector and step % projector.period == 0:
            self.factors = self.subspace or projector.factors(gradient)
            gradient = self.factors.apply(gradient)
        return gradient

    def normal(self) -> Tensor:
        """The next n; projected, if so, as the last gradient was."""
        return self.projected(self.problem.noise.normal(self.start))

    def projected(self, n: Tensor) -> Tensor:
        if self.project_noise and self.factors is not None:
            return self.factors.apply(n)
        return n

    def end(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x and the squared residual norms before the last step, NaN = diverged."""
        bad = self.failed | ~finite(x)
        return x, torch.where(bad, torch.nan, self.sqnorm)

    def in_core(
        self, function: Callable[..., None], native: _core.Op, *state: Tensor, last: Any
    ) -> tuple[Tensor, Tensor]:
        """All steps in one call, or one a call where the noise comes from outside."""
        x = self.start.clone()
        factors = self.subspace.native if self.subspace else None
        weights = (self.eta, self.likelihood, self.prior, *last)
        arrays = (x, *state, self.sqnorm, self.m, self.problem.y, native, factors)
        steps = partial(function, *arrays)
        outside = self.project_noise and factors is not None
        key = None if outside else self.problem.noise.native(self.steps)
        if key is not None:
            steps(key, self.steps, *weights)
            return x, self.sqnorm
        for _ in range(self.steps):
            steps(self.normal(), 1, *weights)
            self.failed |= self.sqnorm.isnan()
        return self.end(x)


def langevin(chain: Chain) -> tuple[Tensor, Tensor]:
    """The last state and its squared residual norms, NaN = diverged."""
    native = chain.native
    if native is not None:
        return chain.in_core(_core.langevin, native, last=())
    x, eta = chain.start.clone(), chain.eta
    for step in range(chain.steps):
        gradient = chain.gradient(x, step)
        x = x - eta * gradient + (2 * eta) ** 0.5 * chain.normal()
    return chain.end(x)


def hmc(chain: Chain, momentum: float) -> tuple[Tensor, Tensor]:
    """The same by damped Hamiltonian steps."""
    velocity = chain.problem.noise.normal(chain.start)
    native = chain.native
    if native is not None:
        velocity = chain.projected(velocity)
        return chain.in_core(_core.hmc, native, velocity, last=(momentum,))
    x, root = chain.start.clone(), chain.eta**0.5
    for step in range(chain.steps):
        gradient = chain.gradient(x, step)
        if step == 0:
            velocity = chain.projected(velocity)
        amplitude = (2 * (1 - momentum)) ** 0.5
        velocity = momentum * velocity - root * gradient + amplitude * chain.normal()
        x = x + root * velocity
    return chain.end(x)


def metropolis(chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """The same by Metropolis-Hastings steps, and every image's share of proposals that
    were taken; the norms are those of the last state."""
    native = chain.native
    if native is not None:
        return _metropolis_in_core(chain, native)
    noise, x = chain.problem.noise, chain.start.clone()

    def energy(x: Tensor) -> tuple[Tensor, Tensor]:
        sqnorm = square_norm(chain.problem.operator(x) - chain.problem.y)
        distance = square_norm(x - chain.m)
        return (chain.likelihood * sqnorm + chain.prior * distance) / 2, sqnorm

    value, chain.sqnorm = energy(x)
    taken = torch.zeros_like(value)
    for _ in range(chain.steps):
        proposal = x + chain.eta**0.5 * noise.normal(x)
        new, sqnorm = energy(proposal)
        # false for a proposal that is not finite
        take = noise.uniform(taken).log() < value - new
        x = torch.where(take[:, None, None, None], proposal, x)
        value = torch.where(take, new, value)
        chain.sqnorm = torch.where(take, sqnorm, chain.sqnorm)
        taken += take
    chain.failed |= ~value.isfinite()
    return *chain.end(x), taken / chain.steps


def _metropolis_in_core(
    chain: Chain, native: _core.Op
) -> tuple[Tensor, Tensor, Tensor]:
    problem, x = chain.problem, chain.start.clone()
    accepted, taken = torch.empty_like(chain.sqnorm), torch.zeros_like(chain.sqnorm)
    arrays = (x, chain.sqnorm, accepted, chain.m, problem.y, native)
    weights = (chain.eta, chain.likelihood, chain.prior)
    key = problem.noise.native(2 * chain.steps)
    if key is not None:
        _core.mh(*arrays, key, None, chain.steps, *weights)
        return x, chain.sqnorm, accepted / chain.steps
    for _ in range(chain.steps):
        n, u = problem.noise.normal(x), problem.noise.uniform(taken)
        _core.mh(*arrays, n, u, 1, *weights)
        taken += accepted
        chain.failed |= chain.sqnorm.isnan()
    return *chain.end(x), taken / chain.steps
