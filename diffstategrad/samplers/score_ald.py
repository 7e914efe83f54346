r"""ScoreALD: annealed Langevin dynamics with the score of the measurement.

For noise levels :math:`\sigma_1 > \dots > \sigma_L`, K times each,

.. math:: x \leftarrow x + \eta_i \Big( \frac{D(x; \sigma_i) - x}{\sigma_i^2}
          - P(g) \Big) + \sqrt{2 \eta_i}\, n, \qquad
          g = \frac{J^\top (A(x) - y)}{\sigma_y^2 + \gamma_i^2},

:math:`\eta_i = r \sigma_i^2`, :math:`\gamma_i = c\, \sigma_i`; at the end
:math:`D(x; \sigma_L)`.  Stable while :math:`r (1 + \lVert A \rVert^2 \sigma_i^2 /
(\sigma_y^2 + \gamma_i^2)) < 2`.  With a projector P projects onto the dominant subspace
of x.

Forms: "ald" is this; "normalised" gives g the length of w = `weight` times the score's,
as the released code does (stable while r (1 + w) < 2); "vp" adds
:math:`-\kappa_t P(g)` at :math:`x_t / \sqrt{\bar\alpha_t}` to the ancestral step, the
closest working form of the published poster; "poster" takes its formula with the sign
put right and a step of one's own.

References
----------
Jalal, Arvinte, Daras, Price, Dimakis, Tamir, "Robust compressed sensing MRI with deep
generative priors", NeurIPS 2021, equation 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad.projection import StateProjector
from diffstategrad.samplers.base import (
    LIMIT,
    Guide,
    Level,
    Needs,
    Problem,
    Sampler,
    Survivors,
    square_norm,
)
from diffstategrad.samplers.dps import Variance, ancestral_step, check_variance
from diffstategrad.schedules import ddpm_tables, sigma_of

__all__ = ["ScoreALD"]


class ScoreALD(Sampler):
    """Annealed Langevin dynamics with the score of the measurement."""

    name: ClassVar[str] = "score_ald"
    projection: ClassVar[StateProjector | None] = StateProjector(energy=0.99)
    step_option: ClassVar[str | None] = "r"
    needs: ClassVar[Needs] = {
        **dict.fromkeys(
            ("inner", "r", "sigma_max", "sigma_min"),
            ({"form": ("ald", "normalised")},),
        ),
        "c": ({"form": ("ald", "vp", "poster")},),
        "weight": ({"form": ("normalised",)},),
        "zeta": ({"form": ("poster",)},),
        "variance": ({"form": ("vp", "poster")},),
    }

    form: Literal["ald", "normalised", "vp", "poster"] = Field(
        "ald", description="see the head of score_ald.py"
    )
    steps: int | None = Field(
        None,
        ge=2,
        le=10000,
        description="noise levels L, default 200; of vp and poster steps of the grid, "
        "default 1000",
    )
    inner: int = Field(3, ge=1, description="Langevin steps a level, K")
    r: float = Field(0.2, gt=0, description="step size eta_i over sigma_i^2")
    c: float = Field(1.0, ge=0, description="gamma_i over sigma_i")
    sigma_max: float = Field(10.0, gt=0, description="sigma_1, first noise level")
    sigma_min: float = Field(0.01, gt=0, description="sigma_L, last noise level")
    weight: float = Field(
        5.0, gt=0, description="normalised: length of the data term over the score's"
    )
    zeta: Annotated[float, Field(gt=0)] | Literal["beta/2"] = Field(
        "beta/2", description="poster: the step size; 1, as printed, diverges"
    )
    variance: Variance = Field("auto", description="vp, poster: as in dps")

    @model_validator(mode="after")
    def _ranges(self) -> ScoreALD:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min must be below sigma_max, got {self.sigma_min}, "
                f"{self.sigma_max}"
            )
        if self._ancestral and self.levels > 1000:
            raise ValueError(f"the grid has at most 1000 steps, got {self.steps}")
        return self

    @property
    def _ancestral(self) -> bool:
        return self.form in ("vp", "poster")

    @property
    def step_to_lower(self) -> str | None:
        return {"vp": None, "poster": "zeta"}.get(self.form, "r")

    @property
    def levels(self) -> int:
        return self.steps or (1000 if self._ancestral else 200)

    @property
    def calls(self) -> int:
        return self.levels if self._ancestral else self.levels * self.inner + 1

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        if self._ancestral:
            return self._ancestral_run(problem, report)
        sigmas = np.geomspace(self.sigma_max, self.sigma_min, self.levels)
        guide, alive = Guide(problem.projector), Survivors(len(problem.start))
        x = self.sigma_max * problem.noise.normal(problem.start)

        for level, sigma in enumerate(map(float, sigmas)):
            eta = self.r * sigma**2
            state = x.clone()
            prior_failed = torch.zeros_like(alive.diverged)
            for step in range(self.inner):
                denoised = problem.network.denoise(x, sigma)
                prior_failed |= alive.check(denoised)
                gradient, sqnorm = problem.operator.residual_gradient(x, problem.y)
                alive.check(gradient)
                weight = 1 / (problem.sigma**2 + (self.c * sigma) ** 2)
                if self.form == "normalised":
                    gradient = self._normalised(gradient, denoised - x, sigma)
                    weight = 1.0
                gradient = guide(gradient, x, level * self.inner + step)
                noise = problem.noise.normal(x)
                backend(x.device).ald_step(
                    x, denoised, gradient, sigma, weight, eta, noise
                )
                alive.check(x, limit=LIMIT)
            report(
                Level(
                    index=level,
                    sigma=sigma,
                    xt=state,
                    x0hat=denoised,
                    x0y=denoised,
                    sqnorm=alive.mark(sqnorm),
                    ranks=guide.ranks,
                    kept=guide.kept,
                    prior_failed=prior_failed,
                )
            )
        x = problem.network.denoise(x, self.sigma_min)
        alive.check(x)
        return alive.mark(x)

    def _normalised(self, gradient: Tensor, step: Tensor, sigma: float) -> Tensor:
        """The gradient with the length weight * ||score||, of every image."""
        length = square_norm(gradient).sqrt()
        score = square_norm(step).sqrt() / sigma**2
        factor = self.weight * score / torch.where(length > 0, length, 1)
        return factor.to(gradient)[:, None, None, None] * gradient

    def _ancestral_run(
        self, problem: Problem, report: Callable[[Level], None]
    ) -> Tensor:
        check_variance(self.name, self.variance, problem.network.prior)
        tables = ddpm_tables(self.levels)
        guide, alive = Guide(problem.projector), Survivors(len(problem.start))
        x = problem.noise.normal(problem.start)

        for k, i in enumerate(reversed(range(self.levels))):
            alpha_bar, beta = float(tables.abar[i]), float(tables.beta[i])
            x0, code = problem.network.estimate(x, alpha_bar)
            x0 = x0.clamp(-1, 1)
            prior_failed = alive.check(x0)
            at = x / alpha_bar**0.5 if self.form == "vp" else x
            gradient, sqnorm = problem.operator.residual_gradient(at, problem.y)
            alive.check(gradient)
            gradient = guide(gradient, x, k)
            gamma2 = (self.c * sigma_of(alpha_bar)) ** 2
            if self.form == "vp":
                step = beta / math.sqrt((1 - beta) * alpha_bar)
            else:  # the gradient of the whole squared norm
                step = 2 * (beta / 2 if isinstance(self.zeta, str) else self.zeta)
            scale = torch.full(
                (len(x),),
                step / (problem.sigma**2 + gamma2),
                dtype=torch.float64,
                device=x.device,
            )
            state = x.clone()
            noise = problem.noise.normal(x)
            ancestral_step(
                *(x, x0, code, tables, i, noise, self.variance),
                gradient=gradient,
                scale=scale,
            )
            alive.check(x, limit=LIMIT)
            report(
                Level(
                    index=k,
                    sigma=sigma_of(alpha_bar),
                    xt=state,
                    x0hat=x0,
                    x0y=x0,
                    sqnorm=alive.mark(sqnorm),
                    ranks=guide.ranks,
                    kept=guide.kept,
                    prior_failed=prior_failed,
                )
            )
        return alive.mark(x)
