r"""DiffPIR: half-quadratic splitting inside the diffusion sampler.

On a quadratic grid of times :math:`t_0 > \dots > t_{K-1} = 0`:

1. :math:`x_0 = ` clamped estimate of the prior at :math:`(x, t_j)`;
2. :math:`x_0 \leftarrow x_0 + \mathrm{guid}\,(P_\rho(x_0) - x_0)`,
   :math:`\rho = \lambda \sigma_y^2 / \sigma_{t_j}^2`, the exact data step;
3. :math:`e = (x - \sqrt{\bar\alpha_{t_j}} x_0) / \sqrt{1 - \bar\alpha_{t_j}}`,
   :math:`x = \sqrt{\bar\alpha'} x_0 + \sqrt{1 - \bar\alpha'}
   (\sqrt{1 - \zeta}\, e + \sqrt\zeta\, n)`.

After the last estimate only step 2 follows.  All noise levels are in units of images in
[-1, 1].  The released code mixes units: its lambda is four times this one.  Its start,
the scaled measurement with noise, is here a first guess (`data_step.py`) with noise; at
the first level it makes up 0.6 % of the state.

With the defaults :math:`\lambda = \zeta = 1` the mean of samples is the posterior's for
a Gaussian prior (`tests/test_posteriors.py`).  The published :math:`\zeta = 0.1` of
deblurring keeps what the first data steps, of tiny :math:`\rho`, magnify: there it is
one posterior standard deviation off.

References
----------
Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool, "Denoising diffusion models for
plug-and-play image restoration", CVPR Workshops 2023, Algorithm 1.
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
from diffstategrad.samplers.base import (
    Level,
    Problem,
    Sampler,
    Survivors,
    square_norm,
)
from diffstategrad.samplers.data_step import (
    data_step,
    first_guess,
    known_pixels,
    noise_level,
)
from diffstategrad.schedules import ddpm_tables, sigma_of

__all__ = ["DiffPIR"]


class DiffPIR(Sampler):
    """Plug-and-play restoration by diffusion; published constants: give `task`."""

    name: ClassVar[str] = "diffpir"
    no_projection: ClassVar[str] = "takes its data step exactly, not along a gradient"

    steps: int = Field(100, ge=2, le=1000, description="network calls, K")
    lam: float = Field(1.0, gt=0, description="weight lambda of the prior")
    zeta: float = Field(1.0, ge=0, le=1, description="share of fresh noise")
    guidance: float = Field(1.0, gt=0, le=1, description="share of the data step")
    keep_known: bool = Field(
        False, description="inpainting: end with y on the seen pixels; for sigma near 0"
    )
    last: Literal["estimate", "state"] = Field(
        "estimate",
        description="what is returned: the estimate after the last data step, or as in "
        "the published code the state at time 0, in which noise of 0.01 is left",
    )

    @property
    def levels(self) -> int:
        return self.steps - (self.last == "state")

    def _times(self) -> list[int]:
        """Descending network times, quadratically spaced, 999 to 0."""
        seq = np.sqrt(np.linspace(0, 1000.0**2, self.steps)).astype(int)
        seq[-1] -= 1
        return [999 - int(s) for s in seq]

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        operator, core = problem.operator, backend(problem.start.device)
        keep = (
            known_pixels(self.name, operator, problem.start)
            if self.keep_known
            else None
        )
        abar = ddpm_tables(1000).abar
        alive = Survivors(len(problem.start))
        times = self._times()
        s = noise_level(problem)
        image = tuple(problem.start.shape[1:])

        x = first_guess(operator, problem.y, s, image)
        top = float(abar[times[0]])
        core.renoise(x, top**0.5, (1 - top) ** 0.5, problem.noise.normal(x))
        for j in range(self.levels):
            alpha_bar = float(abar[times[j]])
            sigma = sigma_of(alpha_bar)
            x0hat = problem.network.estimate(x, alpha_bar)[0].clamp(-1, 1)
            prior_failed = alive.check(x0hat)
            target = data_step(operator, x0hat, problem.y, self.lam * (s / sigma) ** 2)
            x0 = x0hat + self.guidance * (target - x0hat)
            alive.check(x0)
            sqnorm = square_norm(operator(x0) - problem.y)
            report(
                Level(
                    index=j,
                    sigma=sigma,
                    xt=x,
                    x0hat=x0hat,
                    x0y=x0,
                    sqnorm=alive.mark(sqnorm),
                    prior_failed=prior_failed,
                )
            )
            if j + 1 == self.steps:
                x = x0
                break
            alpha_bar_next = float(abar[times[j + 1]])
            std = math.sqrt(self.zeta * (1 - alpha_bar_next))
            x = x.clone()
            noise = problem.noise.normal(x)
            core.ddim_step(x, x0, alpha_bar, alpha_bar_next, std, noise)

        if keep is not None:
            x = torch.where(keep, problem.y, x)
        return alive.mark(x)
