r"""PSLD: posterior sampling with latent diffusion, with DiffStateGrad.

DDIM steps (`ddim.py`), guided by the gradient, through network, decoder, operator and
encoder, of a measurement and a gluing term,

.. math:: g = \nabla_{z_i} \big( \omega \lVert A(\hat x) - y \rVert
              + \gamma \lVert E(\hat x + A^\top (y - A(\hat x))) - \hat z_0 \rVert
              \big), \qquad \hat x = D(\hat z_0(z_i)),

:math:`z_{i-1} = z' - P(g)`, where P projects onto the dominant subspace of the state
:math:`z_i`.

The released code, which `preset="official"` follows, adds fresh noise to the prediction
:math:`A(\hat x)` of the first term; has for :math:`A^\top` the identity, or in
super-resolution the replication of pixels, so that in inpainting the noise of lost
pixels is glued in; and calls the network of its 1000 steps at times one late.  Its
norms run over the batch, here over every image alone.

References
----------
Rout, Raoof, Daras, Caramanis, Dimakis, Shakkottai, "Solving linear inverse problems
provably via posterior sampling with latent diffusion models", NeurIPS 2023, Alg. 2.
Zirvi, Tolooshams, Anandkumar, "Diffusion State-Guided Projected Gradient for Inverse
Problems", ICLR 2025, Appendix C.3.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from diffstategrad.samplers.base import Above, Needs, Problem, square_norm
from diffstategrad.samplers.ddim import (
    Encode,
    Guidance,
    GuidedDDIM,
    Step,
    encoder_noise,
    estimate,
    idle_encode,
)
from diffstategrad.samplers.dps import check_replicable, replicate

__all__ = ["PSLD"]


class PSLD(GuidedDDIM):
    """Posterior sampling with latent diffusion; published constants: give `task`."""

    name: ClassVar[str] = "psld"
    step_option: ClassVar[str | None] = "mg_scale"
    needs: ClassVar[Needs] = {
        "omega": ({"renoise": ("none", "gaussian")},),
        **dict.fromkeys(("glue", "encode"), ({"gamma": Above(0)},)),
    }

    steps: int = Field(1000, ge=1, le=1000, description="steps of the grid, S")
    omega: float = Field(1.0, ge=0, description="weight of the measurement term")
    gamma: float = Field(0.1, ge=0, description="weight of the gluing term")
    mg_scale: float = Field(
        1.0, gt=0, description="factor on the gradient of both; larger with a projector"
    )
    glue: Literal["adjoint", "official"] = Field(
        "adjoint",
        description="the A^T of the gluing: the operator's adjoint, or as released the "
        "identity and, in super-resolution, the replication of pixels",
    )
    renoise: Literal["none", "gaussian", "poisson"] = Field(
        "none",
        description="fresh noise that the released code adds to the prediction: its "
        "poisson cuts the measurement term off from the gradient",
    )
    encode: Encode = "mean"

    @model_validator(mode="after")
    def _has_a_term(self) -> Self:
        if not (self._measures or self.gamma):
            raise ValueError("gamma must be > 0 where no measurement term acts")
        return self

    @property
    def _measures(self) -> bool:
        """Whether the measurement term has a gradient."""
        return self.omega > 0 and self.renoise != "poisson"

    def idle_for(self, problem: Problem) -> dict[str, str]:
        return idle_encode(problem)

    def _check(self, problem: Problem) -> None:
        operator, y = problem.operator, problem.y
        if not self.gamma:
            return
        if self.glue == "official":
            image = operator.image_shape(tuple(y.shape[1:]))
            check_replicable("psld: glue='official'", y, image)
        elif not operator.linear:
            raise ValueError(
                "psld: glue='adjoint' needs a linear operator, got "
                f"{type(operator).__name__}; gamma=0 does without gluing"
            )

    def _guidance(self, problem: Problem, z: Tensor, step: Step) -> Guidance:
        prior, operator = problem.network.latent, problem.operator
        fresh = None
        if self._measures and self.renoise == "gaussian":
            fresh = problem.sigma * problem.noise.normal(problem.y)
        drawn = encoder_noise(self.encode, problem) if self.gamma else None

        def loss(state: Tensor, part: slice) -> tuple[Tensor, ...]:
            z0 = estimate(prior, state, step)
            x0 = prior.decode(z0)
            residual = operator(x0) - problem.y[part]
            total = torch.zeros(len(z0), dtype=torch.float64, device=z0.device)
            if self._measures:
                seen = residual if fresh is None else residual + fresh[part]
                total = total + self.omega * _norm(seen)
            if self.gamma:
                glued = x0 - self._transposed(problem, residual, x0)
                again = prior.encode(glued, None if drawn is None else drawn[part])
                total = total + self.gamma * _norm(again - z0)
            return self.mg_scale * total, z0, x0, square_norm(residual)

        (_, z0, x0, sqnorm), gradient = problem.network.gradient(loss, z)
        return Guidance(z0, x0, gradient, sqnorm)

    def _transposed(self, problem: Problem, residual: Tensor, x0: Tensor) -> Tensor:
        image = tuple(x0.shape[1:])
        if self.glue == "official":
            return replicate(residual, image)
        return problem.operator.adjoint(residual, image)


def _norm(x: Tensor) -> Tensor:
    """(B,) ||x|| of every image, float64; its gradient is 0 where it is 0."""
    square = square_norm(x)
    return torch.where(square > 0, square, 1).sqrt() * (square > 0)
