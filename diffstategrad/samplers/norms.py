"""What guidance steps along: the gradient of a norm of the residual A(x0) - y."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffstategrad.samplers.base import Needs, square_norm

__all__ = [
    "LIKELIHOOD",
    "NEEDS",
    "NORM",
    "Likelihood",
    "Norm",
    "check_likelihood",
    "norm_gradient",
    "unit_length",
]

Norm = Literal["residual", "gradient", "none"]
Likelihood = Literal["gaussian", "poisson"]

#: The fields of a method that has them.
NORM: Any = Field(
    "residual",
    description="what is stepped along: the gradient of ||A(x0) - y|| (published), "
    "that of its square over its own length, or that of its square",
)
LIKELIHOOD: Any = Field(
    "gaussian",
    description="poisson weighs the norm with the mean of 1 / |y|",
)
NEEDS: Needs = {"likelihood": ({"norm": ("residual", "none")},)}


def check_likelihood(name: str, likelihood: Likelihood, y: Tensor) -> None:
    """ValueError where the Poisson form is not defined."""
    if likelihood == "poisson" and (y == 0).any():
        raise ValueError(
            f"{name}: likelihood='poisson' weighs with 1 / |y|, and y has entries that "
            "are 0"
        )


def norm_gradient(
    gradient: Tensor, square: Tensor, y: Tensor, norm: Norm, likelihood: Likelihood
) -> Tensor:
    """The gradient of the loss from J^T r and ||r||^2, as `residual_gradient` gives
    them; `unit_length` of it follows, after the network, for norm="gradient"."""
    if norm == "residual":
        # the gradient of the norm is 0 where the norm is
        weight = torch.where(square > 0, square, torch.inf).rsqrt()
    else:
        weight = torch.full_like(square, 2.0)
    if likelihood == "poisson":
        rows = (1 / y.double().abs()).mean(-1).flatten(1)
        weight = weight * rows.mean(1)
    return weight[:, None, None, None].to(gradient) * gradient


def unit_length(gradient: Tensor) -> Tensor:
    """Every image's gradient over its norm; 0 stays 0."""
    length = square_norm(gradient).sqrt()
    length = torch.where(length > 0, length, 1).to(gradient)
    return gradient / length[:, None, None, None]
