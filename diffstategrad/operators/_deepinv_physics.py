"""deepinv's classes around an operator; imported by `to_deepinv` alone."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, Physics, ZeroNoise
from torch import Tensor

from diffstategrad.operators.base import Operator, Shape

__all__ = ["LinearOperatorPhysics", "OperatorPhysics"]


def _noise(sigma: float | None) -> Any:
    return ZeroNoise() if sigma is None else GaussianNoise(sigma)


class OperatorPhysics(Physics):
    """A nonlinear operator."""

    def __init__(self, operator: Operator, sigma: float | None, shape: Shape | None):
        super().__init__(noise_model=_noise(sigma))
        self.operator, self.img_size = operator, shape

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        _none(kwargs)
        return self.operator(x)

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.operator.vjp(x, v)

    def A_jvp(self, x: Tensor, w: Tensor) -> Tensor:
        return self.operator.jvp(x, w)


class LinearOperatorPhysics(LinearPhysics):
    """A linear operator."""

    def __init__(self, operator: Operator, sigma: float | None, shape: Shape | None):
        super().__init__(noise_model=_noise(sigma), img_size=shape)
        self.operator = operator

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        _none(kwargs)
        return self.operator(x)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        _none(kwargs)
        return self.operator.adjoint(y, self.img_size)

    def A_dagger(
        self,
        y: Tensor,
        solver: str | None = None,
        max_iter: int | None = None,
        tol: float | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """Our pseudo-inverse; `solver` and `verbose` mean nothing to it."""
        return self.operator.pinv(y, self.img_size, **_stop(max_iter, tol))

    def prox_l2(
        self,
        z: Tensor | float | None,
        y: Tensor,
        gamma: Tensor | float,
        solver: str | None = None,
        max_iter: int | None = None,
        tol: float | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """argmin gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2: our `prox` of 1 / gamma, one
        for all images or one for each."""
        if not isinstance(z, Tensor):
            z = torch.full_like(self.A_adjoint(y), 0.0 if z is None else float(z))
        gammas = torch.as_tensor(gamma, dtype=torch.float64).flatten().tolist()
        if len(gammas) not in (1, len(y)) or not all(g > 0 for g in gammas):
            raise ValueError(
                f"prox_l2: gamma must be > 0, one number or {len(y)}, got {gamma}"
            )
        stop = _stop(max_iter, tol)
        if len(set(gammas)) == 1:
            return self.operator.prox(z, y, 1 / gammas[0], **stop)
        return torch.cat(
            [
                self.operator.prox(z[i : i + 1], y[i : i + 1], 1 / g, **stop)
                for i, g in enumerate(gammas)
            ]
        )


def _none(options: dict[str, Any]) -> None:
    """TypeError for parameters of a physics, of which an operator has none."""
    if options:
        raise TypeError(f"an operator's physics takes no {', '.join(sorted(options))}")


def _stop(max_iter: int | None, tol: float | None) -> dict[str, Any]:
    """deepinv's names for where to stop, in ours."""
    given = {"iterations": max_iter, "tolerance": tol}
    return {name: value for name, value in given.items() if value is not None}
