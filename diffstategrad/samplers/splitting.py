r"""Splitting methods: HQS and ADMM, here with a denoiser as prior.

.. math:: \min_x \frac{1}{2 \sigma_y^2} \lVert A(x) - y \rVert^2 + \lambda R(x).

With the data step :math:`P_\rho(v) = \arg\min_x \lVert A(x) - y \rVert^2 + \rho
\lVert x - v \rVert^2` and :math:`\mathrm{prox}` of the regulariser,

* HQS: :math:`x = P_{\sigma_y^2 \mu_k}(z)`,
  :math:`z = \mathrm{prox}_{\lambda R / \mu_k}(x)`, the penalty :math:`\mu_k` growing;
* ADMM: :math:`x = P_{\sigma_y^2 r}(z - u)`,
  :math:`z = \mathrm{prox}_{\lambda R / r}(x + u)`, :math:`u \leftarrow u + x - z`.

As plug-and-play (`hqs` is DPIR, `admm`) the prox is the prior's denoiser at
:math:`\sigma_k = \sqrt{\lambda / \mu_k}`, so that :math:`\rho_k = \lambda \sigma_y^2 /
\sigma_k^2`.  With total variation as R: `total_variation.py`.

References
----------
Zhang, Li, Zuo, Zhang, Van Gool, Timofte, "Plug-and-play image restoration with deep
denoiser prior", TPAMI 2022.
Boyd, Parikh, Chu, Peleato, Eckstein, "Distributed optimization and statistical learning
via the alternating direction method of multipliers", 2011.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from diffstategrad.samplers.base import (
    Level,
    Problem,
    Sampler,
    Survivors,
    square_norm,
)
from diffstategrad.samplers.data_step import data_step, first_guess, noise_level

__all__ = ["ADMM", "HQS", "Splitting"]


class Splitting(Sampler):
    """What splitting methods have in common: a data step, a start, a report."""

    no_projection: ClassVar[str] = "takes its data step exactly, not along a gradient"

    def _data_step(self, problem: Problem, v: Tensor, mu: float) -> Tensor:
        """P of penalty mu."""
        rho = mu * noise_level(problem) ** 2
        return data_step(problem.operator, v, problem.y, rho)

    def _start(self, problem: Problem) -> Tensor:
        image = tuple(problem.start.shape[1:])
        return first_guess(problem.operator, problem.y, noise_level(problem), image)

    def _tell(
        self,
        problem: Problem,
        report: Callable[[Level], None],
        alive: Survivors,
        index: int,
        sigma: float | None,
        before: Tensor,
        x: Tensor,
        z: Tensor,
    ) -> None:
        prior_failed = alive.check(z)
        sqnorm = square_norm(problem.operator(z) - problem.y)
        report(
            Level(
                index=index,
                sigma=sigma,
                xt=before,
                x0hat=x,
                x0y=z,
                sqnorm=alive.mark(sqnorm),
                prior_failed=prior_failed,
            )
        )


class _PlugAndPlay(Splitting):
    """The schedule of a denoiser as prior."""

    steps: int = Field(8, ge=1, description="iterations, one network call each, K")
    lam: float = Field(0.23, gt=0, description="weight lambda of the prior")
    sigma_first: float = Field(
        2 * 49 / 255, gt=0, description="sigma_1, noise level of the first denoising"
    )
    sigma_last: float | None = Field(
        None, description="sigma_K, of the last; default that of y, at least 0.01"
    )

    @property
    def levels(self) -> int:
        return self.steps

    def _sigmas(self, problem: Problem) -> list[float]:
        last = self.sigma_last or max(problem.sigma, 0.01)
        return np.geomspace(max(self.sigma_first, last), last, self.steps).tolist()


class HQS(_PlugAndPlay):
    """Half-quadratic splitting with a denoiser (DPIR)."""

    name: ClassVar[str] = "hqs"

    augment: bool = Field(
        False, description="denoise flipped and turned, another way each iteration"
    )

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        alive = Survivors(len(problem.start))
        z = self._start(problem)
        for k, sigma in enumerate(self._sigmas(problem)):
            before = z
            x = self._data_step(problem, z, self.lam / sigma**2)
            turned = _turn(x, k) if self.augment else x
            z = problem.network.denoise(turned, sigma)
            z = _turn_back(z, k) if self.augment else z
            self._tell(problem, report, alive, k, sigma, before, x, z)
        return alive.mark(z)


class ADMM(_PlugAndPlay):
    """Alternating directions with a denoiser."""

    name: ClassVar[str] = "admm"

    steps: int = Field(20, ge=1, description="iterations, one network call each, K")

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        alive = Survivors(len(problem.start))
        z = self._start(problem)
        u = torch.zeros_like(z)
        sigmas = self._sigmas(problem)
        for k, sigma in enumerate(sigmas):
            before = z
            if k:  # u / sigma^2 is the multiplier, which the penalty does not change
                u = u * (sigma / sigmas[k - 1]) ** 2
            x = self._data_step(problem, z - u, self.lam / sigma**2)
            z = problem.network.denoise(x + u, sigma)
            u = u + x - z
            self._tell(problem, report, alive, k, sigma, before, x, z)
        return alive.mark(z)


def _turn(x: Tensor, k: int) -> Tensor:
    """One of the eight flips and quarter turns; of the four without quarter turns
    where height and width differ."""
    square = x.shape[2] == x.shape[3]
    turned = torch.rot90(x, k if square else 2 * k, (2, 3))
    return turned.flip(3) if k % 8 >= 4 else turned


def _turn_back(x: Tensor, k: int) -> Tensor:
    square = x.shape[2] == x.shape[3]
    x = x.flip(3) if k % 8 >= 4 else x
    return torch.rot90(x, -k if square else -2 * k, (2, 3))
