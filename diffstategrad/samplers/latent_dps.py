r"""Latent-DPS: diffusion posterior sampling in the latents of an autoencoder, with
DiffStateGrad.

DDIM steps (`ddim.py`), guided by the gradient through decoder and network,

.. math:: z_{i-1} = z' - \zeta_i\, P(\nabla_{z_i} L), \qquad
          L = \lVert A(D(\hat z_0(z_i))) - y \rVert,

where P projects onto the dominant subspace of the state :math:`z_i`.  No code was
released for it alone; it is PSLD without gluing, and with `preset="resample"` the step
that ReSample takes at every level, with the correct :math:`\hat z_0`.

References
----------
Zirvi, Tolooshams, Anandkumar, "Diffusion State-Guided Projected Gradient for Inverse
Problems", ICLR 2025, eq. 5.
Song, Kwon, Zhang, Hu, Qu, Shen, "Solving inverse problems with latent diffusion models
via hard data consistency", ICLR 2024, Section 3.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffstategrad.samplers.base import Needs, Problem
from diffstategrad.samplers.ddim import Guidance, GuidedDDIM, Step, estimate
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

__all__ = ["LatentDPS"]

# Options that ReSample has too, with other defaults.
Scale = Annotated[float, Field(gt=0, description="step size zeta")]
ScaleRule = Annotated[
    Literal["constant", "alpha_bar"],
    Field(description="zeta as it is, or times the signal variance of the level"),
]
BackpropUNet = Annotated[
    bool,
    Field(
        description="differentiate through the network too; without, the noise it "
        "predicts counts as a constant"
    ),
]


class LatentDPS(GuidedDDIM):
    """DPS in latents; the default step size is PSLD's for deblurring."""

    name: ClassVar[str] = "latent_dps"
    step_option: ClassVar[str | None] = "scale"
    needs: ClassVar[Needs] = NEEDS

    scale: Scale = 0.1
    scale_rule: ScaleRule = "constant"
    norm: Norm = NORM
    likelihood: Likelihood = LIKELIHOOD
    backprop_unet: BackpropUNet = True

    def _check(self, problem: Problem) -> None:
        check_likelihood(self.name, self.likelihood, problem.y)

    def _guidance(self, problem: Problem, z: Tensor, step: Step) -> Guidance:
        prior, sqnorm = problem.network.latent, z.new_empty(len(z), dtype=torch.float64)

        def image(state: Tensor) -> tuple[Tensor, Tensor]:
            if self.backprop_unet:
                z0 = estimate(prior, state, step)
            else:  # its derivative is 1 / sqrt(a)
                with torch.no_grad():
                    z0 = estimate(prior, state.detach(), step)
                z0 = z0 + (state - state.detach()) / step.a**0.5
            return prior.decode(self._decoded(state, z0, step)), z0

        def cotangent(x0: Tensor, part: slice) -> Tensor:
            y = problem.y[part]
            gradient, sqnorm[part] = problem.operator.residual_gradient(x0, y)
            return norm_gradient(gradient, sqnorm[part], y, self.norm, self.likelihood)

        (x0, z0), gradient = problem.network.through(image, z, cotangent)
        if self.norm == "gradient":
            gradient = unit_length(gradient)
        scale = self.scale * (step.a if self.scale_rule == "alpha_bar" else 1.0)
        return Guidance(z0, x0, scale * gradient, sqnorm)

    def _decoded(self, z: Tensor, z0: Tensor, step: Step) -> Tensor:
        """What stands for the clean latent of the state z, whose estimate is z0."""
        return z0
