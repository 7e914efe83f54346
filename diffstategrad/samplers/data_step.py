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

from collections.abc import Callable

import torch
from torch import Tensor

from diffstategrad.operators import Inpainting, Operator
from diffstategrad.samplers.base import square_norm

__all__ = ["data_step", "first_guess", "harmonic_fill", "known_pixels"]

#: Signal variance of images in [-1, 1], for the Wiener guess.
_SIGNAL = 0.25

_ITERATIONS = 200


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

        d = _solve(product, rho * (v - x) - gradient, tolerance=1e-3, iterations=20)
        for halvings in range(10):
            candidate = x + 0.5**halvings * d
            if (new := objective(candidate)) < value:
                x, value = candidate, new
                break
        else:
            break  # it falls no more
    return x


def _solve(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    tolerance: float,
    iterations: int,
) -> Tensor:
    """Conjugate gradients from 0 for one image, to a relative residual."""
    x, r = torch.zeros_like(b), b
    p, square = b, float(square_norm(b))
    stop = tolerance**2 * square
    for _ in range(iterations):
        if not square > stop:
            break
        q = product(p)
        curvature = float((p.double() * q.double()).sum(-1).sum())
        if not curvature > 0:
            break
        x = x + square / curvature * p
        r = r - square / curvature * q
        square, before = float(square_norm(r)), square
        p = r + square / before * p
    return x


def first_guess(
    operator: Operator, y: Tensor, sigma: float, image: tuple[int, ...]
) -> Tensor:
    """An image (B, *image) in [-1, 1] that roughly agrees with y.

    Inpainting: the holes filled harmonically.  Other linear operators: Wiener's
    estimate with signal variance 0.25.  Others: Gauss-Newton steps from grey.
    """
    if isinstance(operator, Inpainting):
        mask = torch.from_numpy(operator.mask.copy()).to(y)
        guess = harmonic_fill(y, mask)
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
    mask = torch.from_numpy(operator.mask.copy()).bool()
    return mask.to(like.device).expand_as(like)


def harmonic_fill(y: Tensor, mask: Tensor) -> Tensor:
    """y where the mask is 1, in the holes the solution of Laplace's equation.

    Parameters
    ----------
    y : Tensor, shape (B, C, H, W)
    mask : Tensor, shape (1 or C, H, W), 0 and 1

    Returns
    -------
    Tensor, shape of y.  Where nothing is seen: 0.
    """
    hole = (1 - mask).expand_as(y[:1])

    def laplace(u: Tensor) -> Tensor:
        """Sum of the differences to the neighbours inside the image, hole by hole."""
        out = torch.zeros_like(u)
        rows, columns = u.diff(dim=2), u.diff(dim=3)
        out[:, :, :-1] -= rows
        out[:, :, 1:] += rows
        out[:, :, :, :-1] -= columns
        out[:, :, :, 1:] += columns
        return hole * out

    return torch.cat(
        [
            known
            + _solve(
                laplace,
                -laplace(known),
                tolerance=1e-4,
                iterations=4 * max(y.shape[2:]),
            )
            for known in (mask * y).split(1)
        ]
    )
