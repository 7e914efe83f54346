r"""SDEdit: a rough reconstruction is noised half way and denoised by the prior.

From a guide g, K times: :math:`x = \sqrt{\bar\alpha_{T_0 - 1}}\, g +
\sqrt{1 - \bar\alpha_{T_0 - 1}}\, e`, then the unconditional reverse steps down to 0;
the result is the next guide.  With ``keep_known`` seen pixels of an inpainting are put
back after every step: g and the same e, at the level of the state.

The measurement enters through the guide alone: nothing holds the result to it.  The
published code puts kept pixels back at the level that the step came from, and has
neither clipping nor a learned variance.

References
----------
Meng, He, Song, Song, Wu, Zhu, Ermon, "SDEdit: guided image synthesis and editing with
stochastic differential equations", ICLR 2022, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad.samplers.base import (
    LIMIT,
    Level,
    Needs,
    Problem,
    Sampler,
    Survivors,
    square_norm,
)
from diffstategrad.samplers.data_step import data_step, first_guess, known_pixels
from diffstategrad.samplers.dps import Variance, ancestral_step
from diffstategrad.schedules import ddpm_tables, sigma_of

__all__ = ["SDEdit"]


class SDEdit(Sampler):
    """A guide from the measurement, noised and denoised."""

    name: ClassVar[str] = "sdedit"
    needs: ClassVar[Needs] = {"keep_level": ({"keep_known": (True,)},)}

    steps: int = Field(1000, ge=2, le=1000, description="steps of the whole grid")
    start: float = Field(
        0.5, gt=0, le=1, description="share t0 of the steps that is run"
    )
    repeats: int = Field(3, ge=1, description="how often, K")
    keep_known: bool = Field(
        False,
        description="put seen pixels of an inpainting back; for noise below 0.02",
    )
    keep_level: Literal["state", "official"] = Field(
        "state",
        description="noise of pixels put back: the state's, or one level more as in "
        "the published code",
    )
    variance: Variance = Field("auto", description="of the reverse step, as in dps")
    clip: bool = Field(True, description="clamp the estimate to [-1, 1]")
    consistent: bool = Field(
        False, description="end with an exact data step, rho = sigma^2 / 0.01"
    )

    @property
    def _count(self) -> int:
        return max(1, round(self.start * self.steps))

    @property
    def levels(self) -> int:
        return self.repeats * self._count

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        operator, noise = problem.operator, problem.noise
        keep = (
            known_pixels(self.name, operator, problem.start)
            if self.keep_known
            else None
        )
        tables = ddpm_tables(self.steps)
        alive = Survivors(len(problem.start))
        image = tuple(problem.start.shape[1:])
        guess = first_guess(operator, problem.y, problem.sigma, image)

        for repeat in range(self.repeats):
            top = float(tables.abar[self._count - 1])
            x, e = guess.clone(), noise.normal(guess)
            backend(x.device).renoise(x, top**0.5, (1 - top) ** 0.5, e)
            for k, i in enumerate(reversed(range(self._count))):
                alpha_bar = float(tables.abar[i])
                x0, code = problem.network.estimate(x, alpha_bar)
                if self.clip:
                    x0 = x0.clamp(-1, 1)
                prior_failed = alive.check(x0)
                state = x.clone()
                ancestral_step(x, x0, code, tables, i, noise.normal(x), self.variance)
                if keep is not None:
                    same = self.keep_level == "official"
                    a = float((tables.abar if same else tables.abar_prev)[i])
                    x = torch.where(keep, a**0.5 * guess + (1 - a) ** 0.5 * e, x)
                alive.check(x, limit=LIMIT)
                sqnorm = square_norm(operator(x0) - problem.y)
                report(
                    Level(
                        index=repeat * self._count + k,
                        sigma=sigma_of(alpha_bar),
                        xt=state,
                        x0hat=x0,
                        x0y=x0,
                        sqnorm=alive.mark(sqnorm),
                        prior_failed=prior_failed,
                    )
                )
            guess = x if keep is None else torch.where(keep, guess, x)

        if self.consistent:
            guess = data_step(operator, guess, problem.y, problem.sigma**2 / 0.01)
            alive.check(guess)
        return alive.mark(guess)
