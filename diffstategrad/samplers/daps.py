r"""DAPS: decoupled annealing posterior sampling, with DiffStateGrad.

For noise levels :math:`\sigma_0 > \dots > \sigma_N = 0`, from :math:`x_t = \sigma_0 n`,

1. :math:`\hat x_0` = end of the probability-flow ODE from :math:`x_t`, Euler steps, or
   the denoiser's mean;
2. :math:`x \sim p(y \mid x)\, N(x; \hat x_0, \sigma_j^2 I)` by Langevin steps,

   .. math:: g = \tfrac{1}{\tau^2} A'^\top (A(x) - y)
                 + \tfrac{1}{\sigma_j^2} (x - \hat x_0), \qquad
             x \leftarrow x - \eta_j P(g) + \sqrt{2 \eta_j}\, n,

   or by those of `dynamics.py`, or drawn exactly as in `exact.py`;
3. :math:`x_t = x + \sigma_{j+1} n`.

With a projector, P projects onto the dominant subspace of :math:`\hat x_0`, decomposed
once a level; the noise is not projected unless `project_noise` asks for it.  Without
one P is the identity.

Two generations of the published code exist.  "2024" is what the DiffStateGrad paper
builds on.  "2025" doubles the likelihood term (the gradient of the un-halved norm; not
in MH), never uses sigma_min itself and stops the ODE at its last level instead of 0.

The end of the ODE is distributed like a draw from :math:`p(x_0 \mid x_t)`, so that step
2 counts the spread twice and overstates the variance, whatever the number of levels;
with the denoiser's mean as centre the result tends to the posterior.

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
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad.projection import StateProjector, Subspace
from diffstategrad.samplers.base import Level, Needs, Problem, Sampler, Survivors
from diffstategrad.samplers.dynamics import Chain, hmc, langevin, metropolis
from diffstategrad.samplers.exact import Covariance, ExactDraw
from diffstategrad.schedules import daps_annealing, daps_ode

__all__ = ["DAPS", "Annealing"]

# Options whose defaults depend on the space.
Version = Annotated[
    Literal["2024", "2025"],
    BeforeValidator(str),
    Field(description="generation of the published code"),
]
Levels = Annotated[int, Field(ge=1, description="annealing levels N")]
EulerSteps = Annotated[
    int,
    Field(
        ge=1,
        description="Euler steps n of the probability-flow ODE, one network call each; "
        "1 in the 2024 form is the denoiser's mean",
    ),
]
First = Annotated[float, Field(gt=0, description="first noise level")]
LastOfODE = Annotated[float, Field(gt=0, description="last noise level of the ODE")]


class Annealing(Sampler):
    """Decoupled annealing of whatever state a subclass gives it."""

    projection: ClassVar[StateProjector | None] = StateProjector(energy=0.99)
    step_option: ClassVar[str | None] = "lr"
    needs: ClassVar[Needs] = {
        "momentum": ({"dynamics": ("hmc",)},),
        "project_noise": ({"dynamics": ("langevin", "hmc")},),
    }

    version: Version
    steps: Levels
    centre: str
    ode_steps: EulerSteps
    sigma_max: First
    sigma_min: float = Field(0.1, gt=0, description="last noise level")
    ode_sigma_min: LastOfODE
    dynamics: str
    langevin_steps: int = Field(
        100, ge=1, description="steps of Langevin, hmc or mh a level"
    )
    lr: float = Field(1e-4, gt=0, description="their step size eta at the first level")
    lr_min_ratio: float = Field(
        0.01,
        gt=0,
        le=1,
        description="step size at the last level over that at the first",
    )
    momentum: float = Field(
        0.9, ge=0, le=1, description="hmc: share m of the velocity that a step keeps"
    )
    tau: float = Field(
        0.01,
        gt=0,
        description="noise level of the likelihood; published: 0.01 whatever y has",
    )
    prior_score: Literal["gaussian", "score-min", "score-t", "exact"] = Field(
        "gaussian",
        description="centre of the prior term: the level's estimate, or Tweedie's with "
        "the score at (x0hat, ode_sigma_min), at (xt, sigma), or at every x",
    )
    project_noise: bool = Field(
        False, description="project the noise of the steps too, hmc's velocity with it"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        ode = 0.0 if "ode_sigma_min" in self.idle else self.ode_sigma_min
        if not ode <= self.sigma_min < self.sigma_max:
            raise ValueError(
                "levels must satisfy ode_sigma_min <= sigma_min < sigma_max, got "
                f"{self.ode_sigma_min}, {self.sigma_min}, {self.sigma_max}"
            )
        if self.prior_score == "exact" and self.dynamics == "mh":
            raise ValueError("prior_score='exact' needs langevin or hmc steps")
        return self

    @property
    def levels(self) -> int:
        return self.steps

    @property
    def calls(self) -> int:
        level = 1 if self._by_mean else self.ode_steps
        level += {"gaussian": 0, "exact": self.langevin_steps}.get(self.prior_score, 1)
        return self.steps * level

    @property
    def _by_mean(self) -> bool:
        """Whether a level's estimate is the denoiser's mean."""
        return self.centre == "mean"

    def idle_for(self, problem: Problem) -> dict[str, str]:
        return {} if problem.projector else {"project_noise": "project=None"}

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        if problem.projector and self.dynamics in ("mh", "exact"):
            raise ValueError(
                f"{self.name} with dynamics={self.dynamics!r} takes no projector: it "
                "has no measurement gradient"
            )
        sigmas = daps_annealing(
            self.version, self.steps, self.sigma_max, self.sigma_min
        )
        draw = self._exact(problem)
        alive = Survivors(len(problem.start))
        xt = float(sigmas[0]) * problem.noise.normal(problem.start)

        for j, (sigma, sigma_next) in enumerate(pairwise(map(float, sigmas))):
            x0hat = self._estimate(problem, xt, sigma)
            prior_failed = alive.check(x0hat)
            subspace = self._subspace(problem, x0hat, j)
            if draw is not None:
                x0y, sqnorm = draw(x0hat, xt, sigma)
            else:
                x0y, sqnorm = self._chain(problem, xt, x0hat, subspace, j, sigma)
            x0y[sqnorm.isnan()] = torch.nan
            alive.check(x0y)
            report(
                Level(
                    index=j,
                    sigma=sigma,
                    xt=xt,
                    x0hat=x0hat,
                    x0y=x0y,
                    sqnorm=alive.mark(sqnorm),
                    ranks=subspace.ranks if subspace else None,
                    kept=subspace.kept if subspace else None,
                    prior_failed=prior_failed,
                )
            )
            xt = (sigma_next * problem.noise.normal(x0y)).add_(x0y)

        return alive.mark(xt)

    def _exact(self, problem: Problem) -> ExactDraw | None:
        """What draws a level at once, instead of the steps."""
        return None

    def _denoise(self, problem: Problem, x: Tensor, sigma: float) -> Tensor:
        return problem.network.denoise(x, sigma)

    def _estimate(self, problem: Problem, xt: Tensor, sigma: float) -> Tensor:
        """x0hat: the probability-flow ODE from (xt, sigma), Euler steps; or D."""
        if self._by_mean:
            return self._denoise(problem, xt, sigma)
        x = xt.clone()
        grid = daps_ode(self.version, sigma, self.ode_steps, self.ode_sigma_min)
        for s, s_next in pairwise(map(float, grid)):
            backend(x.device).euler_step(x, self._denoise(problem, x, s), s, s_next)
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
            return self._denoise(problem, xt, sigma)
        if self.prior_score == "score-min":
            return xt + (sigma / s) ** 2 * (self._denoise(problem, x0hat, s) - x0hat)
        if self.prior_score == "exact":
            return xt + (sigma / s) ** 2 * (self._denoise(problem, x, s) - x)
        return x0hat

    def _chain(
        self,
        problem: Problem,
        xt: Tensor,
        x0hat: Tensor,
        subspace: Subspace | None,
        level: int,
        sigma: float,
    ) -> tuple[Tensor, Tensor]:
        """The level's steps: (x0y, squared residual norms, NaN = diverged)."""
        ratio = level / (self.steps if self.version == "2024" else self.steps + 1)
        halved = self.version == "2024" or self.dynamics == "mh"
        chain = Chain(
            problem=problem,
            start=x0hat,
            centre=lambda x: self._centre(problem, x, xt, x0hat, sigma),
            moving=self.prior_score == "exact",
            subspace=subspace,
            project_noise=self.project_noise,
            steps=self.langevin_steps,
            eta=self.lr * (1 + ratio * (self.lr_min_ratio - 1)),
            likelihood=(1 if halved else 2) / self.tau**2,
            prior=1 / sigma**2,
        )
        if self.dynamics == "hmc":
            return hmc(chain, self.momentum)
        if self.dynamics == "mh":
            x0y, sqnorm, taken = metropolis(chain)
            rates = problem.outcome.details.setdefault("acceptance", [])
            rates.append(taken.tolist())
            return x0y, sqnorm
        return langevin(chain)


_CHAIN = {"dynamics": ("langevin", "hmc", "mh")}
_ODE = ({"centre": ("ode",)}, {"centre": ("auto",), **_CHAIN})


class DAPS(Annealing):
    """Decoupled annealing; defaults as published for Gaussian deblurring."""

    name: ClassVar[str] = "daps"
    needs: ClassVar[Needs] = {
        **Annealing.needs,
        "ode_steps": _ODE,
        "ode_sigma_min": (*_ODE, {**_CHAIN, "prior_score": ("score-min", "exact")}),
        **dict.fromkeys(
            ("langevin_steps", "lr", "lr_min_ratio", "tau", "prior_score"), (_CHAIN,)
        ),
        "covariance": ({"dynamics": ("exact",)},),
        "signal_std": ({"dynamics": ("exact",), "covariance": ("capped",)},),
    }

    version: Version = "2024"
    steps: Levels = 200
    centre: Literal["auto", "ode", "mean"] = Field(
        "auto",
        description="the estimate of a level: end of the ODE, or the denoiser's mean, "
        "one network call; auto is the mean for exact draws, else the ODE",
    )
    ode_steps: EulerSteps = 5
    sigma_max: First = 100.0
    ode_sigma_min: LastOfODE = 0.01
    dynamics: Literal["langevin", "hmc", "mh", "exact"] = Field(
        "langevin",
        description="how a level is drawn: Langevin, damped Hamiltonian or "
        "Metropolis-Hastings steps, or exactly",
    )
    covariance: Covariance = Field(
        "spectral",
        description="exact: spread of the image about the estimate, see exact.py",
    )
    signal_std: float | None = Field(
        None, gt=0, description="capped: s; measured on the prior where not given"
    )

    @property
    def step_to_lower(self) -> str | None:
        return None if self.dynamics == "exact" else "lr"

    @property
    def calls(self) -> int:
        vjps = self.dynamics == "exact" and self.covariance == "tweedie"
        return super().calls + (self.steps if vjps else 0)

    @property
    def _by_mean(self) -> bool:
        auto = "mean" if self.dynamics == "exact" else "ode"
        return (auto if self.centre == "auto" else self.centre) == "mean"

    def _exact(self, problem: Problem) -> ExactDraw | None:
        if self.dynamics != "exact":
            return None
        draw = ExactDraw(problem, self.covariance, self.signal_std)
        details = problem.outcome.details
        if self.covariance == "capped":
            details["signal_std"] = draw.std
        details["cg_iterations"] = draw.iterations
        details["cg_residuals"] = draw.residuals
        details["calls_for_spectrum"] = draw.spectrum_calls
        if self.covariance == "tweedie":
            details["vjps"] = draw.vjps
        return draw
