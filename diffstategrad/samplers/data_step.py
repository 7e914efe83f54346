r"""The data step of methods that alternate between measurement and prior, and a first
guess of the image.

.. math:: P_\rho(v) = \arg\min_x \lVert A(x) - y \rVert^2 + \rho \lVert x - v \rVert^2.

For a linear operator in closed form, or by at most 200 conjugate gradient steps: the
first levels of some methods have so small a :math:`\rho` that more would only magnify
noise.  Otherwise Gauss-Newton steps: with :math:`J` at the
current x, conjugate gradients on

.. math:: (J^\top J + \rho)\, d = J^\top (y - A(x)) + \rho (v - x), \qquad
          x \leftarrow x + t d,

t halved until the objective falls.  Images are worked on one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffstategrad.operators import Inpainting, Operator
from diffstategrad.reference.differences import differences, differences_adjoint
from diffstategrad.samplers.base import Problem, square_norm
from diffstategrad.samplers.conjugate_gradients import conjugate_gradients
from diffstategrad.samplers.residual import measured

__all__ = ["data_step", "first_guess", "harmonic_fill", "known_pixels", "noise_level"]

#: Signal variance of images in [-1, 1], for the Wiener guess.
_SIGNAL = 0.25

_ITERATIONS = 200

#: Below this noise the data are taken as if they had it.
_LEAST_SIGMA = 0.002


def noise_level(problem: Problem) -> float:
    """sigma_y, bounded away from 0."""
    return max(problem.sigma, _LEAST_SIGMA)


def data_step(
    operator: Operator, v: Tensor, y: Tensor, rho: float, *, steps: int = 5
) -> Tensor:
    """P_rho(v), shape of v; `steps` Gauss-Newton steps where A is not linear."""
    if operator.linear:
        tolerance = 1e-10 if v.dtype == torch.float64 else 1e-5
        v, y = v.contiguous(), y.contiguous()
        return operator.data_step(v, y, rho, tolerance, _ITERATIONS, strict=False)
    parts = zip(v.split(1), y.split(1), strict=True)
    return torch.cat([_gauss_newton(operator, *part, rho, steps) for part in parts])


def _gauss_newton(
    operator: Operator, v: Tensor, y: Tensor, rho: float, steps: int
) -> Tensor:
    def objective(x: Tensor) -> float:
        return float(square_norm(operator(x) - y) + rho * square_norm(x - v))

    x, value = v, objective(v)
    for _ in range(steps):
        gradient, _ = operator.residual_gradient(x, y)

        def product(p: Tensor, x: Tensor = x) -> Tensor:
            return operator.vjp(x, operator.jvp(x, p)) + rho * p

        d, *_ = conjugate_gradients(
            product, rho * (v - x) - gradient, tolerance=1e-3, iterations=20
        )
        for halvings in range(10):
            candidate = x + 0.5**halvings * d
            if (new := objective(candidate)) < value:
                x, value = candidate, new
                break
        else:
            break  # it falls no more
    return x


def first_guess(
    operator: Operator, y: Tensor, sigma: float, image: tuple[int, ...]
) -> Tensor:
    """An image (B, *image) in [-1, 1] that roughly agrees with y.

    Inpainting: the holes filled harmonically.  Other linear operators: Wiener's
    estimate with signal variance 0.25.  Others: Gauss-Newton steps from grey.
    """
    if isinstance(operator, Inpainting):
        guess = harmonic_fill(y, measured(operator, y))
    else:
        grey = y.new_zeros((len(y), *image))
        guess = data_step(operator, grey, y, max(sigma**2, 1e-6) / _SIGNAL)
    return guess.clamp(-1, 1)


def known_pixels(method: str, operator: Operator, like: Tensor) -> Tensor:
    """True for the seen pixels of an inpainting, shape of `like`.

    Raises
    ------
    ValueError
        For another operator, in the name of the method's option `keep_known`.
    """
    if not isinstance(operator, Inpainting):
        raise ValueError(f"{method}: keep_known is for inpainting")
    return measured(operator, like) > 0


def harmonic_fill(y: Tensor, mask: Tensor) -> Tensor:
    """y where the mask is 1, in the holes the solution of Laplace's equation.

    Parameters
    ----------
    y : Tensor, shape (B, C, H, W)
    mask : Tensor, shape of y, or one that expands to it; 0 and 1

    Returns
    -------
    Tensor, shape of y.  Where nothing is seen: 0.
    """
    hole = (1 - mask).expand_as(y)

    def laplace(u: Tensor) -> Tensor:
        """Sum of the differences to the neighbours inside the image, hole by hole."""
        return hole * differences_adjoint(differences(u))

    known = mask * y
    filled, *_ = conjugate_gradients(
        laplace, -laplace(known), tolerance=1e-4, iterations=4 * max(y.shape[2:])
    )
    return known + filled
