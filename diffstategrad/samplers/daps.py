r"""DAPS: decoupled annealing posterior sampling, Langevin form, with DiffStateGrad.

For noise levels :math:`\sigma_0 > \dots > \sigma_N = 0`, from :math:`x_t = \sigma_0 n`,

1. :math:`\hat x_0` = end of the probability-flow ODE from :math:`x_t`, Euler steps;
2. :math:`x \sim p(y \mid x)\, N(x; \hat x_0, \sigma_j^2 I)` by Langevin steps,

   .. math:: g = \tfrac{1}{\tau^2} A'^\top (A(x) - y)
                 + \tfrac{1}{\sigma_j^2} (x - \hat x_0), \qquad
             x \leftarrow x - \eta_j P(g) + \sqrt{2 \eta_j}\, n;

3. :math:`x_t = x + \sigma_{j+1} n`.

With a projector, P projects onto the dominant subspace of :math:`\hat x_0`, decomposed
once a level; the noise is not projected.  Without one P is the identity.

Two generations of the published code exist.  "2024" is what the DiffStateGrad paper
builds on.  "2025" doubles the likelihood term (the gradient of the un-halved norm),
never uses sigma_min itself and stops the ODE at its last level instead of 0.

References
----------
Zhang, Chu, Berner, Meng, Anandkumar, Song, "Improving Diffusion Inverse Problem Solving
with Decoupled Noise Annealing", CVPR 2025, Algorithm 1.
Zirvi, Tolooshams, Anandkumar, "Diffusion State-Guided Projected Gradient for Inverse
Problems", ICLR 2025, Appendix C.5.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from diffstategrad import _core
from diffstategrad.projection import StateProjector, Subspace
from diffstategrad.samplers.base import Level, Problem, Sampler
from diffstategrad.schedules import daps_annealing, daps_ode

__all__ = ["DAPS"]


class DAPS(Sampler):
    """Options of DAPS; the defaults are the published ones for Gaussian deblurring."""

    name: ClassVar[str] = "daps"
    projection: ClassVar[StateProjector | None] = StateProjector(energy=0.99)

    version: Annotated[Literal["2024", "2025"], BeforeValidator(str)] = Field(
        "2024", description="generation of the published code"
    )
    steps: int = Field(200, ge=1, description="annealing levels N")
    ode_steps: int = Field(
        5,
        ge=1,
        description="Euler steps n of the probability-flow ODE, one network call each; "
        "1 in the 2024 form is the denoiser's mean",
    )
    sigma_max: float = Field(100.0, gt=0, description="first noise level")
    sigma_min: float = Field(0.1, gt=0, description="last noise level")
    ode_sigma_min: float = Field(0.01, gt=0, description="last noise level of the ODE")
    langevin_steps: int = Field(100, ge=1, description="Langevin steps a level")
    lr: float = Field(
        1e-4, gt=0, description="Langevin step size eta at the first level"
    )
    lr_min_ratio: float = Field(
        0.01,
        gt=0,
        le=1,
        description="step size at the last level over that at the first",
    )
    tau: float = Field(
        0.01,
        gt=0,
        description="noise level of the likelihood; published: 0.01 whatever y has",
    )
    prior_score: Literal["gaussian", "score-min", "score-t", "exact"] = Field(
        "gaussian",
        description="centre of the prior term: the ODE's end point, or Tweedie's with "
        "the score at (x0hat, ode_sigma_min), at (xt, sigma), or at every x",
    )

    @model_validator(mode="after")
    def _ordered_levels(self) -> DAPS:
        if not self.ode_sigma_min <= self.sigma_min < self.sigma_max:
            raise ValueError(
                "levels must satisfy ode_sigma_min <= sigma_min < sigma_max, got "
                f"{self.ode_sigma_min}, {self.sigma_min}, {self.sigma_max}"
            )
        return self

    @property
    def levels(self) -> int:
        return self.steps

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        sigmas = daps_annealing(
            self.version, self.steps, self.sigma_max, self.sigma_min
        )
        diverged = torch.zeros(len(problem.start), dtype=torch.bool)
        xt = float(sigmas[0]) * problem.noise.normal(problem.start)

        for j, (sigma, sigma_next) in enumerate(pairwise(map(float, sigmas))):
            x0hat = self._ode(problem, xt, sigma)
            # An image that stops being finite stays 0, out of the way, and ends as NaN.
            diverged |= ~_finite(x0hat)
            x0hat[diverged] = 0
            subspace = self._subspace(problem, x0hat, j)
            x0y, sqnorm = self._langevin(problem, xt, x0hat, subspace, j, sigma)
            diverged |= sqnorm.isnan()
            x0y[diverged] = 0
            sqnorm[diverged] = torch.nan
            report(
                Level(
                    index=j,
                    sigma=sigma,
                    xt=xt,
                    x0hat=x0hat,
                    x0y=x0y,
                    sqnorm=sqnorm,
                    ranks=subspace.ranks if subspace else None,
                    kept=subspace.kept if subspace else None,
                )
            )
            xt = (sigma_next * problem.noise.normal(x0y)).add_(x0y)

        xt[diverged] = torch.nan
        return xt

    def _ode(self, problem: Problem, xt: Tensor, sigma: float) -> Tensor:
        """x0hat: the probability-flow ODE from (xt, sigma), Euler steps."""
        x = xt.clone()
        grid = daps_ode(self.version, sigma, self.ode_steps, self.ode_sigma_min)
        for s, s_next in pairwise(map(float, grid)):
            _core.euler_step(x, problem.denoise(x, s), s, s_next)
        return x

    def _subspace(self, problem: Problem, x0hat: Tensor, level: int) -> Subspace | None:
        """The level's factors; none where every gradient brings its own."""
        projector = problem.projector
        if projector is None or projector.subspace == "gradient":
            return None
        return projector.factors(x0hat, draw=level)

    def _centre(
        self, problem: Problem, x: Tensor, xt: Tensor, x0hat: Tensor, sigma: float
    ) -> Tensor:
        """m in the prior term (x - m) / sigma^2.

        The published -(xt - x) / sigma^2 - score is that with m = xt + sigma^2 score.
        """
        s = self.ode_sigma_min
        if self.prior_score == "score-t":
            return problem.denoise(xt, sigma)
        if self.prior_score == "score-min":
            return xt + (sigma / s) ** 2 * (problem.denoise(x0hat, s) - x0hat)
        if self.prior_score == "exact":
            return xt + (sigma / s) ** 2 * (problem.denoise(x, s) - x)
        return x0hat

    def _langevin(
        self,
        problem: Problem,
        xt: Tensor,
        x0hat: Tensor,
        subspace: Subspace | None,
        level: int,
        sigma: float,
    ) -> tuple[Tensor, Tensor]:
        """The level's Langevin steps: (x0y, squared residual norms, NaN = diverged)."""
        ratio = level / (self.steps if self.version == "2024" else self.steps + 1)
        eta = self.lr * (1 + ratio * (self.lr_min_ratio - 1))
        likelihood = (1 if self.version == "2024" else 2) / self.tau**2
        prior = 1 / sigma**2

        x = x0hat.clone()
        centre = self._centre(problem, x, xt, x0hat, sigma)
        native = problem.operator.native(tuple(x.shape[1:]), x.dtype)
        projector = problem.projector
        every_step_alike = self.prior_score != "exact" and (
            projector is None
            or (projector.period == 1 and projector.subspace != "gradient")
        )
        if native is not None and every_step_alike:
            return self._steps_in_core(
                problem, x, centre, native, subspace, (eta, likelihood, prior)
            )

        failed = torch.zeros(len(x), dtype=torch.bool)
        for step in range(self.langevin_steps):
            if self.prior_score == "exact" and step > 0:
                centre = self._centre(problem, x, xt, x0hat, sigma)
            gradient, sqnorm = problem.operator.residual_gradient(x, problem.y)
            gradient = likelihood * gradient + prior * (x - centre)
            failed |= ~_finite(gradient)
            gradient[failed] = 0
            if projector and step % projector.period == 0:
                factors = subspace or projector.factors(gradient)
                gradient = factors.apply(gradient)
            x = x - eta * gradient + (2 * eta) ** 0.5 * problem.noise.normal(x)
        return x, torch.where(failed | ~_finite(x), torch.nan, sqnorm)

    def _steps_in_core(
        self,
        problem: Problem,
        x: Tensor,
        centre: Tensor,
        native: _core.Op,
        subspace: Subspace | None,
        weights: tuple[float, float, float],
    ) -> tuple[Tensor, Tensor]:
        """All steps of a level in one call, or one a call where the noise comes from
        outside."""
        sqnorm = torch.empty(len(x), dtype=torch.float64)
        factors = subspace.native if subspace else None
        arrays = (x, sqnorm, centre, problem.y, native, factors)
        key = problem.noise.native(self.langevin_steps)
        if key is not None:
            _core.langevin(*arrays, key, self.langevin_steps, *weights)
            return x, sqnorm
        failed = torch.zeros(len(x), dtype=torch.bool)
        for _ in range(self.langevin_steps):
            _core.langevin(*arrays, problem.noise.normal(x), 1, *weights)
            failed |= sqnorm.isnan()
        return x, torch.where(failed, torch.nan, sqnorm)


def _finite(x: Tensor) -> Tensor:
    """(B,) True where every entry of an image is finite."""
    return x.isfinite().flatten(1).all(1)
