"""What the measurement sees of a latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffstategrad.operators import Operator, Shape
from diffstategrad.samplers.network import Network

__all__ = ["Decoded"]


class Decoded(Operator):
    """z -> A(D(z)), D the decoder of a latent prior; some images at a time, as the
    network takes them.

    Values have no graph: differentiate by `residual_gradient`, in which A computes its
    part itself.

    Parameters
    ----------
    operator : Operator
        A.
    network : Network
        Of a `LatentPrior`.
    clamp : float, optional
        Bound on every entry of the gradient.
    """

    def __init__(
        self, operator: Operator, network: Network, *, clamp: float | None = None
    ):
        self.operator, self.network, self.clamp = operator, network, clamp

    def out_shape(self, shape: Shape) -> Shape:
        return self.operator.out_shape(self.network.latent.image_shape(shape))

    def __call__(self, x: Tensor) -> Tensor:
        return self.operator(self.network.decode(x))

    def residual_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        sqnorm = torch.empty(len(x), dtype=torch.float64, device=x.device)

        def cotangent(image: Tensor, part: slice) -> Tensor:
            gradient, sqnorm[part] = self.operator.residual_gradient(image, y[part])
            return gradient

        decode = self.network.latent.decode
        _, gradient = self.network.through(
            lambda part: (decode(part),), x, cotangent, calls=0
        )
        if self.clamp is not None:
            gradient.clamp_(-self.clamp, self.clamp)
        return gradient, sqnorm

    def spec(self) -> dict[str, Any]:
        return {"name": "decoded", "operator": self.operator.spec()}
