r"""DPS: diffusion posterior sampling, and MCG, with DiffStateGrad.

On the discrete DDPM grid, from :math:`x_T \sim N(0, I)` down to :math:`x_0`:

1. :math:`\hat x_0 = (x_i - \sqrt{1 - \bar\alpha_i}\,\epsilon) / \sqrt{\bar\alpha_i}`,
   clamped to [-1, 1];
2. :math:`x' = ` a DDPM (or DDIM) step from :math:`x_i` to :math:`x_{i-1}`;
3. :math:`x_{i-1} = x' - \zeta\, P(\nabla_{x_i} L)`, through the network, with
   :math:`L = \lVert A(\hat x_0) - y \rVert`.

With a projector, P projects onto the dominant subspace of the state :math:`x_i`.
MCG then moves :math:`x_{i-1}` onto the measurement
:math:`y_i = \sqrt{\bar\alpha_i}\, y + \sqrt{1 - \bar\alpha_i}\, n`.

The published code differentiates the norm itself; the paper's step size belongs to the
squared norm over the norm and is half of this `scale`.

References
----------
Chung, Kim, Mccann, Klasky, Ye, "Diffusion posterior sampling for general noisy inverse
problems", ICLR 2023, Algorithms 1 and 2.
Chung, Sim, Ryu, Ye, "Improving diffusion models for inverse problems using manifold
constraints", NeurIPS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad.operators import Operator
from diffstategrad.priors import Prior
from diffstategrad.projection import StateProjector
from diffstategrad.samplers.base import (
    LIMIT,
    Guide,
    Level,
    Needs,
    Problem,
    Sampler,
    Survivors,
)
from diffstategrad.samplers.norms import (
    LIKELIHOOD,
    NEEDS,
    NORM,
    Likelihood,
    Norm,
    check_likelihood,
    norm_gradient,
    unit_length,
)
from diffstategrad.schedules import DDPMTables, ddpm_tables, sigma_of

__all__ = ["DPS", "MCG", "ancestral_step"]

Variance = Literal["auto", "learned_range", "learned", "fixed_small", "fixed_large"]


def ancestral_step(
    x: Tensor,
    x0: Tensor,
    code: Tensor | None,
    tables: DDPMTables,
    i: int,
    noise: Tensor,
    variance: Variance = "auto",
    *,
    gradient: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    """The DDPM step from x_i to x_{i-1}, in place; none of the noise at i = 0.

    Parameters
    ----------
    x, x0 : Tensor, shape (B, C, H, W)
        State and estimate.
    code : Tensor or None
        The network's, for a learned variance.
    gradient, scale : optional
        What is subtracted: scale (B,) float64 times gradient (B, C, H, W).
    """
    low, high = float(tables.minlog[i]), float(tables.maxlog[i])
    if variance == "auto":
        variance = "fixed_small" if code is None else "learned_range"
    if variance == "fixed_small":
        code = None
    elif variance == "fixed_large":
        code, low = None, float(np.log(np.append(tables.btilde[1], tables.beta[1:])[i]))
    elif code is None:
        raise ValueError(
            f"variance={variance!r} needs a network with a learned variance"
        )
    elif variance == "learned":
        low, high = -1.0, 1.0  # the code is the logarithm itself
    backend(x.device).ddpm_step(
        x,
        x0,
        float(tables.c1[i]),
        float(tables.c2[i]),
        code,
        low,
        high,
        noise if i else None,
        gradient,
        scale,
    )


def check_variance(name: str, variance: Variance, prior: Prior) -> None:
    """ValueError for a learned variance of a prior that is known to have none."""
    if variance.startswith("learned") and prior.learned_variance is False:
        raise ValueError(
            f"{name}: variance={variance!r} needs a network with a learned variance"
        )


class DPS(Sampler):
    """Diffusion posterior sampling; the defaults are those of super-resolution."""

    name: ClassVar[str] = "dps"
    projection: ClassVar[StateProjector | None] = StateProjector(energy=0.99)
    step_option: ClassVar[str | None] = "scale"
    needs: ClassVar[Needs] = {
        **NEEDS,
        "eta": ({"sampler": ("ddim",)},),
        "variance": ({"sampler": ("ddpm",)},),
    }

    steps: int = Field(1000, ge=2, le=1000, description="steps of the grid, T")
    scale: float = Field(0.3, gt=0, description="step size zeta")
    norm: Norm = NORM
    likelihood: Likelihood = LIKELIHOOD
    perturbations: int = Field(
        0,
        ge=0,
        description="number of estimates x0 + 0.05 u, u uniform, whose norms are "
        "averaged (published `ps+`: 5); 0 takes x0 itself",
    )
    sampler: Literal["ddpm", "ddim"] = Field("ddpm", description="unconditional step")
    eta: float = Field(0.0, ge=0, le=1, description="noise of the DDIM step")
    variance: Variance = Field(
        "auto",
        description="of the DDPM step; auto is learned_range where the network has a "
        "learned variance, else fixed_small",
    )
    clip: bool = Field(True, description="clamp the estimate to [-1, 1]")

    @property
    def levels(self) -> int:
        return self.steps

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        self._check(problem)
        tables = ddpm_tables(self.steps)
        guide = Guide(problem.projector)
        alive = Survivors(len(problem.start))
        x = problem.noise.normal(problem.start)

        for k, i in enumerate(reversed(range(self.steps))):
            alpha_bar = float(tables.abar[i])
            # the published order of draws; the last step draws too
            n1, n2 = problem.noise.normal(x), problem.noise.normal(problem.y)
            x0, code, gradient, sqnorm = self._gradient(problem, x, alpha_bar)
            prior_failed = alive.check(x0)
            alive.check(gradient)
            gradient = guide(gradient, x, k)
            state = x.clone()
            self._step(x, x0, code, gradient, tables, i, n1)
            self._onto_measurement(problem, x, alpha_bar, n2)
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

    def _check(self, problem: Problem) -> None:
        """ValueError for a problem that these options cannot solve."""
        if self.sampler == "ddpm":
            check_variance(self.name, self.variance, problem.network.prior)
        check_likelihood(self.name, self.likelihood, problem.y)

    def _gradient(
        self, problem: Problem, x: Tensor, alpha_bar: float
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """x0hat, code of the variance, gradient with respect to x, ||A(x0) - y||^2."""
        sqnorm = torch.empty(len(x), dtype=torch.float64, device=x.device)
        around = [
            0.05 * problem.noise.uniform(x) for _ in range(self.perturbations)
        ] or [torch.zeros_like(x)]

        def estimate(state: Tensor) -> tuple[Tensor, ...]:
            x0, code = problem.network.prior.estimate(state, alpha_bar)
            if self.clip:
                x0 = x0.clamp(-1, 1)
            return (x0,) if code is None else (x0, code)

        def cotangent(x0: Tensor, part: slice) -> Tensor:
            total = torch.zeros_like(x0)
            sqnorm[part] = 0
            for offset in around:
                y = problem.y[part]
                g, square = problem.operator.residual_gradient(x0 + offset[part], y)
                total += norm_gradient(g, square, y, self.norm, self.likelihood)
                sqnorm[part] += square / len(around)
            return total / len(around)

        (x0, *code), gradient = problem.network.through(estimate, x, cotangent)
        if self.norm == "gradient":
            gradient = unit_length(gradient)
        return x0, code[0] if code else None, gradient, sqnorm

    def _step(
        self,
        x: Tensor,
        x0: Tensor,
        code: Tensor | None,
        gradient: Tensor,
        tables: DDPMTables,
        i: int,
        noise: Tensor,
    ) -> None:
        """x <- x' - scale P(gradient), in place."""
        if self.sampler == "ddim":
            a, p = float(tables.abar[i]), float(tables.abar_prev[i])
            std = self.eta * math.sqrt((1 - p) / (1 - a) * (1 - a / p))
            backend(x.device).ddim_step(x, x0, a, p, std, noise if i else None)
            x -= self.scale * gradient
            return
        scale = torch.full((len(x),), self.scale, dtype=torch.float64, device=x.device)
        ancestral_step(
            x, x0, code, tables, i, noise, self.variance, gradient=gradient, scale=scale
        )

    def _onto_measurement(
        self, problem: Problem, x: Tensor, alpha_bar: float, noise: Tensor
    ) -> None:
        """Nothing in DPS: its published code draws the noise of y_i for nothing."""


class MCG(DPS):
    """Manifold-constrained gradients: DPS, then a step onto the measurement."""

    name: ClassVar[str] = "mcg"
    needs: ClassVar[Needs] = {**DPS.needs, "cutoff": ({"onto": ("pinv",)},)}

    scale: float = Field(1.0, gt=0, description="step size of the gradient, alpha")
    onto: Literal["pinv", "adjoint", "official"] = Field(
        "pinv",
        description="x + A^+ (y_i - A x), the same with the adjoint, or the published "
        "formulas with their mixed-up roles",
    )
    cutoff: float = Field(0.1, gt=0, lt=1, description="of the singular values in A^+")

    def _check(self, problem: Problem) -> None:
        super()._check(problem)
        if self.onto != "official":
            if not problem.operator.linear:
                raise ValueError(
                    f"mcg: onto={self.onto!r} needs a linear operator, got "
                    f"{type(problem.operator).__name__}"
                )
        else:
            image = tuple(problem.start.shape[1:])
            check_replicable("mcg: onto='official'", problem.y, image)

    def _onto_measurement(
        self, problem: Problem, x: Tensor, alpha_bar: float, noise: Tensor
    ) -> None:
        operator = problem.operator
        y_i = alpha_bar**0.5 * problem.y + (1 - alpha_bar) ** 0.5 * noise
        if self.onto == "official":
            x.copy_(_published(operator, x, y_i))
            return
        image = tuple(x.shape[1:])
        residual = y_i - operator(x)
        if self.onto == "pinv":
            x += operator.pinv(residual, image, cutoff=self.cutoff)
        else:
            x += operator.adjoint(residual, image)


def check_replicable(what: str, y: Tensor, image: tuple[int, ...]) -> None:
    """ValueError unless pixels of y can be replicated to an image (C, H, W)."""
    (c, h, w), (k, m, n) = image, y.shape[1:]
    if c != k or h % m or w % n or h // m != w // n:
        raise ValueError(
            f"{what} has no formula for measurements of shape {tuple(y.shape[1:])} of "
            f"images {tuple(image)}"
        )


def replicate(t: Tensor, image: tuple[int, ...]) -> Tensor:
    """Every pixel repeated, to the size of an image (C, H, W): what the released codes
    have for an adjoint."""
    factor = image[1] // t.shape[2]
    return t.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _published(operator: Operator, x: Tensor, y: Tensor) -> Tensor:
    """The released `project`: right for super-resolution, where pixels are replicated;
    elsewhere (y - A y) - A x, and x + y - A(x) for operators that are not linear."""
    if not operator.linear:
        return x + y - operator(x)
    if y.shape == x.shape:
        return (y - operator(y)) - operator(x)
    image = tuple(x.shape[1:])
    return x - replicate(operator(x), image) + replicate(y, image)
