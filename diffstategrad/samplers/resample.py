r"""ReSample: hard data consistency in latent diffusion, with DiffStateGrad.

DDIM steps (`ddim.py`) from signal variance a to p, guided as in `latent_dps.py`,

.. math:: z_s = z' - \tfrac12 a\, \nabla_z \lVert A(D(\hat z_0)) - y \rVert,

the predicted noise being a constant.  Every tenth step, the first third of them apart,
is followed by

1. time travel: five DDIM steps on from :math:`z_s`, without measurement, whose last
   estimate :math:`\hat z_0` starts
2. AdamW on :math:`\tfrac1m \lVert A(x) - y \rVert^2`: of pixels from
   :math:`x = D(\hat z_0)`, which are then encoded, or in the last third of the steps of
   the latent itself, through the decoder; the result is :math:`z_y`;
3. resampling: a draw from the product of :math:`N(\sqrt p\, z_y, (1 - p) I)` and
   :math:`N(z_s, v I)`,

   .. math:: z = \frac{v \sqrt p\, z_y + (1 - p)\, z_s}{v + 1 - p}
                 + \sqrt{\frac{v (1 - p)}{v + 1 - p}}\, n, \qquad
             v = \gamma\, \frac{1 - p}{1 - a} \Big(1 - \frac ap\Big).

After the last step AdamW works on z once more.

With a projector the gradients that AdamW gets are projected, in the optimisations of
latents (the paper) or in all, by the subspace of :math:`z_s`; its division by second
moments and its weight decay are not.  The gradient of the DDIM steps never is.

The released code, which is `preset="official"`, has :math:`1 - a` for its root in the
estimate that is decoded, takes a and p of time travel from the step before, decays
weights, and ends at a noise level of 0.04 which the last optimisation has to remove.
The code of DiffStateGrad, `preset="dsg_official"`, projects in all optimisations by the
state after time travel, with `StateProjector(rank="official")`.

References
----------
Song, Kwon, Zhang, Hu, Qu, Shen, "Solving inverse problems with latent diffusion models
via hard data consistency", ICLR 2024, Algorithm 1.
Zirvi, Tolooshams, Anandkumar, "Diffusion State-Guided Projected Gradient for Inverse
Problems", ICLR 2025, Appendix C.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad.operators import Operator
from diffstategrad.projection import Projection, StateProjector
from diffstategrad.samplers.base import (
    LIMIT,
    Level,
    Needs,
    Problem,
    Survivors,
    finite,
)
from diffstategrad.samplers.ddim import (
    Encode,
    Step,
    encoder_noise,
    estimate,
    idle_encode,
    steps_of,
)
from diffstategrad.samplers.decoded import Decoded
from diffstategrad.samplers.latent_dps import (
    BackpropUNet,
    LatentDPS,
    Scale,
    ScaleRule,
)
from diffstategrad.schedules import sigma_of

__all__ = ["ReSample", "resampling"]


def resampling(a: float, p: float, gamma: float) -> tuple[float, float, float]:
    """Of step 3: the weights of z_y and z_s, and the noise's standard deviation."""
    v = gamma * (1 - p) / (1 - a) * (1 - a / p)
    total = v + 1 - p
    return v * math.sqrt(p) / total, (1 - p) / total, math.sqrt(v * (1 - p) / total)


class ReSample(LatentDPS):
    """Latent-DPS with resampling about optimised images and latents."""

    name: ClassVar[str] = "resample"
    projection: ClassVar[StateProjector | None] = StateProjector(energy=0.99, period=5)
    needs: ClassVar[Needs] = {
        **LatentDPS.needs,
        "travel_levels": ({"grid": ("official",)},),
    }

    scale: Scale = 0.5
    scale_rule: ScaleRule = "alpha_bar"
    backprop_unet: BackpropUNet = False
    every: int = Field(10, ge=1, description="steps from one resampling to the next")
    travel: int = Field(5, ge=1, description="DDIM steps of time travel, <= every")
    stages: int = Field(
        3,
        ge=2,
        description="S // stages steps come before the first resampling; in the last "
        "S // stages those that resample optimise latents, not pixels",
    )
    gamma: float = Field(40.0, gt=0, description="factor of the variance v")
    pixel_lr: float = Field(1e-2, gt=0, description="learning rate of pixels")
    pixel_steps: int = Field(2000, ge=1, description="most iterations on pixels")
    latent_lr: float = Field(5e-3, gt=0, description="learning rate of latents")
    latent_steps: int = Field(500, ge=1, description="most iterations on latents")
    tolerance: float = Field(
        1e-3,
        ge=0,
        description="root mean square of A(x) - y below which an image's optimisation "
        "stops",
    )
    window: int = Field(
        200,
        ge=1,
        description="that of a latent stops too where its loss is above that of so "
        "many iterations before",
    )
    weight_decay: float = Field(0.0, ge=0, description="of AdamW; released: 0.01")
    encode: Encode = "mean"
    x0_estimate: Literal["tweedie", "official"] = Field(
        "tweedie",
        description="what is decoded: Tweedie's estimate, or as released with 1 - a in "
        "place of its root",
    )
    travel_levels: Literal["exact", "official"] = Field(
        "exact",
        description="a and p of time travel: those of the network's time, or as "
        "released of one step before",
    )
    project_pixels: bool = Field(
        False, description="project in the optimisations of pixels too"
    )
    project_final: bool = Field(True, description="project in the last one")
    project_by: Literal["state", "travelled"] = Field(
        "state",
        description="whose subspace it is: that of the latent before time travel, or "
        "after; in pixels, of its image",
    )

    @model_validator(mode="after")
    def _travels_within(self) -> Self:
        if self.travel > self.every:
            raise ValueError(f"travel must be <= every={self.every}, got {self.travel}")
        return self

    @model_validator(mode="after")
    def _comes_to_resample(self) -> Self:
        if not any(map(self._resamples, range(self.levels))):
            every, stages = self.every, self.stages
            enough = next(n for n in count(every) if n - n // stages >= every)
            raise ValueError(
                f"steps={self.steps} end before the first resampling: with "
                f"every={every} and stages={stages} it needs steps >= {enough}"
            )
        return self

    @property
    def calls(self) -> int:
        resamplings = sum(map(self._resamples, range(self.levels)))
        return self.levels + self.travel * resamplings

    @property
    def decodes(self) -> int:
        pixels, latents = 1 + self.project_pixels, self.latent_steps + 1
        last = self.levels // self.stages
        lefts = filter(self._resamples, range(self.levels))
        resampling = sum(pixels if left >= last else latents for left in lefts)
        return self.levels + resampling + latents

    def _resamples(self, left: int) -> bool:
        """Whether the step that `left` others follow ends in resampling."""
        first = self.levels - self.levels // self.stages
        return 0 < left <= first and left % self.every == 0

    def idle_for(self, problem: Problem) -> dict[str, str]:
        idle = idle_encode(problem)
        if problem.projector is None:
            options = ("project_pixels", "project_final", "project_by")
            idle |= dict.fromkeys(options, "project=None")
        return idle

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        self._check(problem)
        network, noise = problem.network, problem.noise
        schedule = network.prior.schedule
        steps = steps_of(self.grid, self.steps, self.eta, schedule)
        alive = Survivors(len(problem.start))
        fit = _Fit(self, problem)
        z = noise.normal(problem.start)

        for k, step in enumerate(steps):
            state, n = z.clone(), step.draw(z, noise)
            z0, x0hat, gradient, sqnorm = self._guidance(problem, state, step)
            prior_failed = alive.check(z0) | alive.check(x0hat)
            alive.check(gradient)
            step(z, z0, n)
            z -= gradient
            alive.check(z, limit=LIMIT)
            x0y = x0hat

            left = len(steps) - 1 - k
            if self._resamples(left):
                further, guess = self._travelled(problem, z, steps[k:])
                prior_failed |= alive.check(further) | alive.check(guess)
                by = z if self.project_by == "state" else further
                if left >= len(steps) // self.stages:
                    start = network.decode(guess)
                    prior_failed |= alive.check(start)
                    x0y, sqnorm = fit.pixels(start, by)
                    alive.check(x0y, limit=LIMIT)
                    zy = network.encode(x0y, encoder_noise(self.encode, problem))
                else:
                    zy, sqnorm = fit.latents(guess, by)
                    alive.check(zy, limit=LIMIT)
                    x0y = network.decode(zy)
                z = self._resampled(problem, zy, z, step)
                alive.check(z)
            if left == 0:
                z, sqnorm = fit.latents(z, z if self.project_final else None)
                alive.check(z, limit=LIMIT)
                x0y = network.decode(z)
            report(
                Level(
                    index=k,
                    sigma=sigma_of(step.a),
                    xt=state,
                    x0hat=x0hat,
                    x0y=x0y,
                    sqnorm=alive.mark(sqnorm),
                    ranks=fit.ranks,
                    kept=fit.kept,
                    prior_failed=prior_failed,
                )
            )
        return alive.mark(x0y)

    def _decoded(self, z: Tensor, z0: Tensor, step: Step) -> Tensor:
        if self.x0_estimate == "tweedie":
            return z0
        # (z - (1 - a) eps) / sqrt(a), eps that of z0
        root = (1 - step.a) ** 0.5
        return root * z0 + (1 - root) / step.a**0.5 * z

    def _travelled(
        self, problem: Problem, z: Tensor, steps: list[Step]
    ) -> tuple[Tensor, Tensor]:
        """The latent some steps on, and the last estimate on the way; steps[0] is the
        one that has led to z."""
        z = z.clone()
        for before, step in pairwise(steps[: self.travel + 1]):
            if self.travel_levels == "official":
                step = replace(before, time=step.time)
            z0 = estimate(problem.network, z, step)
            guess = self._decoded(z, z0, step)
            step(z, z0, step.draw(z, problem.noise))
        return z, guess

    def _resampled(
        self, problem: Problem, zy: Tensor, zs: Tensor, step: Step
    ) -> Tensor:
        of_zy, of_zs, std = resampling(step.a, step.p, self.gamma)
        return of_zy * zy + of_zs * zs + std * problem.noise.normal(zs)


class _Fit:
    """AdamW on mean((A(x) - y)^2), every image for as long as it needs.

    Attributes
    ----------
    ranks, kept
        Of the last decomposition, as in `Level`.
    """

    ranks: tuple[tuple[int, ...], ...] | None = None
    kept: tuple[tuple[float, ...], ...] | None = None

    def __init__(self, options: ReSample, problem: Problem):
        self.options, self.problem = options, problem
        self.decoded = Decoded(problem.operator, problem.network)
        self.iterations: dict[str, list[list[int]]] = {"pixels": [], "latents": []}
        problem.outcome.details["iterations"] = self.iterations

    def pixels(self, start: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
        """Images from `start`, and their ||A(x) - y||^2 at the last gradient; projected
        by the image of the latent `by`."""
        o = self.options
        projected = self.problem.projector is not None and o.project_pixels
        state = self.problem.network.decode(by) if projected else None
        if state is not None:  # the projector refuses what is not finite
            ok = finite(state)[:, None, None, None]
            state, start = state.where(ok, 0), start.where(ok, torch.nan)
        rules = (o.pixel_lr, o.pixel_steps, None)
        return self._run("pixels", self.problem.operator, start, state, *rules)

    def latents(self, start: Tensor, by: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same for latents, through the decoder; None: not projected."""
        o = self.options
        rules = (o.latent_lr, o.latent_steps, o.window)
        return self._run("latents", self.decoded, start, by, *rules)

    def _run(
        self,
        what: str,
        operator: Operator,
        start: Tensor,
        state: Tensor | None,
        lr: float,
        most: int,
        window: int | None,
    ) -> tuple[Tensor, Tensor]:
        projector, y, o = self.problem.projector, self.problem.y, self.options
        m, core = y[0].numel(), backend(start.device)
        draw = sum(map(len, self.iterations.values()))

        def projection() -> Projection | None:
            if projector is None or state is None:
                return None
            return Projection(projector, state, draw=draw)

        out, project = torch.empty_like(start), projection()
        sqnorm = torch.empty(len(out), dtype=torch.float64, device=out.device)
        iterations = [0] * len(out)
        self.iterations[what].append(iterations)
        # from here on of the images that go on
        images = torch.arange(len(out), device=out.device)
        x, mean, square = start.clone(), torch.zeros_like(out), torch.zeros_like(out)
        losses = sqnorm.new_full((window or 1, len(out)), torch.inf)

        for k in range(most):
            gradient, norms = operator.residual_gradient(x, y)
            gradient *= 2 / m
            lost = ~norms.isfinite()
            if lost.any():
                gradient[lost], x[lost] = 0, torch.nan
            if project is not None:
                gradient = project(gradient, k)
                if k == 0 and project.subspace is not None:
                    subspace = project.subspace
                    self.ranks, self.kept = subspace.ranks, subspace.kept
            if o.weight_decay:
                x *= 1 - lr * o.weight_decay
            core.adam_step(x, mean, square, gradient, k + 1, lr, 0.9, 0.999, 1e-8)

            loss = norms / m
            over = lost | (loss < o.tolerance**2)
            if window is not None:
                over |= loss > losses[k % window]
                losses[k % window] = loss
            if k + 1 == most:
                over[:] = True
            if not over.any():
                continue
            out[images[over]], sqnorm[images[over]] = x[over], norms[over]
            for image in images[over].tolist():
                iterations[image] = k + 1
            on = ~over
            if not on.any():
                break
            images, losses = images[on], losses[:, on]
            x, mean, square, y = x[on], mean[on], square[on], y[on]
            if state is not None:
                state = state[on]
            project = projection()
        return out, sqnorm
