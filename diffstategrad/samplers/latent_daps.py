r"""LatentDAPS: DAPS in the latent space of an autoencoder, with DiffStateGrad.

DAPS (`daps.py`) of the state z, with the likelihood :math:`p(y \mid D(z))`; its
gradient :math:`J_D^\top J_A^\top (A(D(z)) - y)` goes through the decoder.  With a
projector, P projects onto the dominant subspace of the latent :math:`\hat z_0`.

The published code clamps every entry of the gradient of :math:`\lVert A(D(z)) - y
\rVert^2` to [-1, 1], so that the chain has another target wherever the clamp acts; and
it calls networks that were trained with latent diffusion's schedule at the times of
`VPSchedule`: 675 in place of 737 at sigma 10, 27 in place of 5 at 0.1.

References
----------
Zhang, Chu, Berner, Meng, Anandkumar, Song, "Improving Diffusion Inverse Problem Solving
with Decoupled Noise Annealing", CVPR 2025, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffstategrad.samplers.base import Level, Needs, Problem, finite
from diffstategrad.samplers.daps import (
    Annealing,
    EulerSteps,
    First,
    LastOfODE,
    Levels,
    Version,
)
from diffstategrad.samplers.decoded import Decoded
from diffstategrad.schedules import VPSchedule

__all__ = ["LatentDAPS"]

_ODE = {"centre": ("ode",)}


class LatentDAPS(Annealing):
    """Decoupled annealing of latents."""

    name: ClassVar[str] = "latent_daps"
    latent: ClassVar[bool] = True
    needs: ClassVar[Needs] = {
        **Annealing.needs,
        "ode_steps": (_ODE,),
        "ode_sigma_min": (_ODE, {"prior_score": ("score-min", "exact")}),
        "clamp": ({"dynamics": ("langevin", "hmc")},),
    }

    version: Version = "2025"
    steps: Levels = 50
    centre: Literal["ode", "mean"] = Field(
        "ode",
        description="the estimate of a level: end of the ODE, or the denoiser's mean, "
        "one network call",
    )
    ode_steps: EulerSteps = 2
    sigma_max: First = 10.0
    ode_sigma_min: LastOfODE = 1e-3
    dynamics: Literal["langevin", "hmc", "mh"] = Field(
        "langevin",
        description="how a level is drawn: Langevin, damped Hamiltonian or "
        "Metropolis-Hastings steps",
    )
    clamp: bool = Field(
        False,
        description="clamp every entry of the gradient of ||A(D(z)) - y||^2 to [-1, 1] "
        "(published)",
    )
    schedule: Literal["native", "official"] = Field(
        "native",
        description="network time of a noise level: the network's own, or in the "
        "published code for latent diffusion that of VPSchedule",
    )

    @property
    def decodes(self) -> int:
        # of every step, mh's start, and the two estimates of a level; of the result
        chain = self.langevin_steps + (self.dynamics == "mh")
        return self.steps * (chain + 2) + 1

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        network = problem.network
        # J^T r is half of the gradient
        clamp = 0.5 if self.clamp else None
        seen = Decoded(problem.operator, network, clamp=clamp)

        def decoded(level: Level) -> None:
            x0hat, x0y = network.decode(level.x0hat), network.decode(level.x0y)
            report(replace(level, x0hat=x0hat, x0y=x0y))

        z = super().run(replace(problem, operator=seen), decoded)
        x = network.decode(z)
        x[~finite(z)] = torch.nan
        return x

    def _denoise(self, problem: Problem, x: Tensor, sigma: float) -> Tensor:
        if self.schedule == "native":
            return super()._denoise(problem, x, sigma)
        z = x * (1 + sigma * sigma) ** -0.5
        time = float(VPSchedule().t_of_sigma(sigma))
        return x - sigma * problem.network.eps(z, time)
