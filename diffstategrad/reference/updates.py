r"""What samplers do between two network calls, in place on x (B, C, H, W).

.. math::
    \text{Euler} \quad & x \leftarrow x + (\sigma' - \sigma) (x - D) / \sigma \\
    \text{DDPM} \quad & x \leftarrow c_1 x_0 + c_2 x + e^{l / 2} n - s_i\, g,
        \quad l = f\, l_\max + (1 - f)\, l_\min, \; f = (\mathrm{code} + 1) / 2 \\
    \text{DDIM} \quad & x \leftarrow \sqrt{a'} x_0 + \sqrt{1 - a' - s^2}\,
        (x - \sqrt a\, x_0) / \sqrt{1 - a} + s\, n \\
    \text{renoise} \quad & x \leftarrow s\, x + \sigma n \\
    \text{ALD} \quad & x \leftarrow x + \eta \bigl((D - x) / \sigma^2 - w g\bigr)
        + \sqrt{2 \eta}\, n

and Adam's step.  Of one level of DAPS, all steps in one call, with
:math:`g = P\bigl(\lambda J^\top (A(x) - y) + \pi (x - \hat x_0)\bigr)`,

.. math::
    \text{Langevin} \quad & x \leftarrow x - \eta g + \sqrt{2 \eta}\, n \\
    \text{HMC} \quad & v \leftarrow m v - \sqrt\eta\, g + \sqrt{2 (1 - m)}\, n,
        \quad x \leftarrow x + \sqrt\eta\, v \\
    \text{Metropolis-Hastings} \quad & x' = x + \sqrt\eta\, n, \text{ taken where }
        \ln U < \tfrac{\lambda}{2} \bigl(\lVert A(x) - y \rVert^2 -
        \lVert A(x') - y \rVert^2\bigr) + \tfrac{\pi}{2} \bigl(\lVert x - \hat x_0
        \rVert^2 - \lVert x' - \hat x_0 \rVert^2\bigr).

An image whose residual stops being finite is left where it is, with NaN as its
`sqnorm`; the others go on.

`noise` is a key (seed, images, samples, draw) of the core's counter, whose numbers are
made on the CPU; or recorded normals; or, for a single update, None.

Total variation: with D = (differences to the right, downwards), 0 in the last column
and row, TV is the sum of the lengths of D x over pixels, and over channels unless
coupled.  Its prox is v - weight D^T p, p in the unit ball of every pixel by the dual
fast projected gradient; what is missing is at most the duality gap
weight (TV(x) - <p, D x>).

References
----------
Beck, Teboulle, "Fast gradient-based algorithms for constrained total variation image
denoising and deblurring problems", IEEE TIP 2009.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffstategrad import _core
from diffstategrad.reference._common import check, expect, parts
from diffstategrad.reference.differences import differences, differences_adjoint
from diffstategrad.reference.operators import Op
from diffstategrad.reference.projector import Projector

__all__ = [
    "adam_step",
    "ald_step",
    "ddim_step",
    "ddpm_step",
    "euler_step",
    "hmc",
    "langevin",
    "mh",
    "normal",
    "renoise",
    "tv_norm",
    "tv_prox",
    "uniform",
]

_Key = tuple[int, Sequence[int], Sequence[int], int]


# ---- arguments -------------------------------------------------------------------


def _number(function: str, name: str, value: float, good: bool, expected: str) -> None:
    if not good:
        raise ValueError(f"{function}: {name} must be {expected}, got {value}")


def _finite(function: str, **values: float) -> None:
    for name, value in values.items():
        _number(function, name, value, math.isfinite(value), "finite")


def _positive(function: str, **values: float) -> None:
    for name, value in values.items():
        good = 0 < value < math.inf
        _number(function, name, value, good, "> 0 and finite")


def _not_negative(function: str, **values: float) -> None:
    for name, value in values.items():
        good = 0 <= value < math.inf
        _number(function, name, value, good, ">= 0 and finite")


def _count(function: str, name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{function}: {name} must be at least 1, got {value}")


def _per_image(function: str, name: str, t: Any, like: Tensor, n: int) -> Tensor:
    """(n,) float64."""
    t = torch.as_tensor(t)
    if t.dtype != torch.float64:
        got = str(t.dtype).removeprefix("torch.")
        raise TypeError(f"{function}: {name} must be float64, got {got}")
    expect(function, name, t, (n,), like)
    return t


# ---- random numbers --------------------------------------------------------------


def normal(out: Tensor, noise: _Key, /) -> None:
    """Standard normals into out (b, n)."""
    numbers = torch.empty(out.shape, dtype=out.dtype)
    _core.normal(numbers, noise)
    out.copy_(numbers)


def uniform(out: Tensor, noise: _Key, /) -> None:
    """One number in (0, 1) for every image into out (b,) float64."""
    numbers = torch.empty(out.shape, dtype=out.dtype)
    _core.uniform(numbers, noise)
    out.copy_(numbers)


def _draw(key: _Key, number: int) -> _Key:
    seed, images, samples, first = key
    return seed, images, samples, first + number


def _normals(
    function: str, noise: Any, x: Tensor, steps: int = 1, draws: int = 1
) -> Callable[[int], Tensor]:
    """Step -> its normals."""
    if isinstance(noise, tuple):
        key = noise
        if len(key) == 4 and steps * draws > 2**32 - key[3]:
            raise ValueError(
                f"{function}: noise draw must leave room for {steps} steps below "
                f"2^32, got {key[3]}"
            )

        def made(step: int) -> Tensor:
            numbers = x.new_empty((len(x), x[:1].numel()))
            normal(numbers, _draw(key, draws * step))
            return numbers.view_as(x)

        return made
    noise = torch.as_tensor(noise)
    if noise.dtype != x.dtype:
        raise TypeError(f"{function}: noise must be {x.dtype}, got {noise.dtype}")
    expect(function, "noise", noise, (steps * len(x), *x.shape[1:]), x)
    return lambda step: noise[step * len(x) : (step + 1) * len(x)]


def _add_noise(function: str, x: Tensor, noise: Any, std: float) -> None:
    if noise is not None:
        x.add_(std * _normals(function, noise, x)(0))


# ---- updates ---------------------------------------------------------------------


def euler_step(x: Tensor, denoised: Any, sigma: float, sigma_next: float, /) -> None:
    """x += (sigma_next - sigma) (x - denoised) / sigma."""
    x, denoised = check("euler_step", None, x=(x, None), denoised=(denoised, None))
    _positive("euler_step", sigma=sigma)
    _not_negative("euler_step", sigma_next=sigma_next)
    x.add_((sigma_next - sigma) / sigma * (x - denoised))


def ddpm_step(
    x: Tensor,
    x0: Any,
    c1: float,
    c2: float,
    code: Any | None,
    minlog: float,
    maxlog: float,
    noise: Any | None,
    gradient: Any | None,
    scale: Any | None,
    /,
) -> None:
    """x = c1 x0 + c2 x + exp(l / 2) n - scale[i] gradient; l = minlog without code."""
    name = "ddpm_step"
    x, x0 = check(name, None, x=(x, None), x0=(x0, None))
    _finite(name, c1=c1, c2=c2, minlog=minlog, maxlog=maxlog)
    if (gradient is None) != (scale is None):
        raise TypeError(
            f"{name}: gradient and scale must both be given or both be None"
        )
    _, *given = check(
        name,
        None,
        x=(x, None),
        **({} if code is None else {"code": (code, None)}),
        **({} if gradient is None else {"gradient": (gradient, None)}),
    )
    factor = None
    if scale is not None:
        factor = _per_image(name, "scale", scale, x, len(x)).to(x.dtype)
    normals = None if noise is None else _normals(name, noise, x)(0)

    x.copy_(c1 * x0 + c2 * x)
    if normals is not None and code is not None:
        f = (given[0] + 1) / 2
        logvar = f * maxlog + (1 - f) * minlog
        x.add_(torch.exp(logvar / 2) * normals)
    elif normals is not None:
        x.add_(math.exp(minlog / 2) * normals)
    if factor is not None:
        x.sub_(factor[:, None, None, None] * given[-1])


def ddim_step(
    x: Tensor,
    x0: Any,
    alpha_bar: float,
    alpha_bar_next: float,
    std: float,
    noise: Any | None,
    /,
) -> None:
    """x = sqrt(alpha_bar_next) x0 + sqrt(1 - alpha_bar_next - std^2) eps + std n."""
    name = "ddim_step"
    x, x0 = check(name, None, x=(x, None), x0=(x0, None))
    a, b = alpha_bar, alpha_bar_next
    _number(name, "alpha_bar", a, 0 < a < 1, "in the range (0, 1)")
    _number(name, "alpha_bar_next", b, 0 < b <= 1, "in the range (0, 1]")
    _number(
        name,
        "std",
        std,
        std >= 0 and std**2 <= (1 - b) * (1 + 1e-12),
        ">= 0 and its square at most 1 - alpha_bar_next",
    )
    eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
    direction = math.sqrt(max(1 - b - std**2, 0))
    following = math.sqrt(b) * x0 + direction * eps
    _add_noise(name, following, noise, std)
    x.copy_(following)


def renoise(x: Tensor, scale: float, sigma: float, noise: Any | None, /) -> None:
    """x = scale x + sigma n."""
    (x,) = check("renoise", None, x=(x, None))
    _finite("renoise", scale=scale, sigma=sigma)
    following = scale * x
    _add_noise("renoise", following, noise, sigma)
    x.copy_(following)


def ald_step(
    x: Tensor,
    denoised: Any,
    gradient: Any,
    sigma: float,
    weight: float,
    eta: float,
    noise: Any | None,
    /,
) -> None:
    """x += eta ((denoised - x) / sigma^2 - weight gradient) + sqrt(2 eta) n."""
    name = "ald_step"
    x, denoised, gradient = check(
        name, None, x=(x, None), denoised=(denoised, None), gradient=(gradient, None)
    )
    _positive(name, sigma=sigma)
    _finite(name, weight=weight)
    _not_negative(name, eta=eta)
    following = x + eta * ((denoised - x) / sigma**2 - weight * gradient)
    _add_noise(name, following, noise, math.sqrt(2 * eta))
    x.copy_(following)


def adam_step(
    x: Tensor,
    m: Tensor,
    v: Tensor,
    gradient: Any,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    /,
) -> None:
    """One step of `torch.optim.Adam` on x and its moments; step counts from 1."""
    name = "adam_step"
    x, m, v, gradient = check(
        name, None, x=(x, None), m=(m, None), v=(v, None), gradient=(gradient, None)
    )
    _count(name, "step", step)
    _not_negative(name, lr=lr, eps=eps)
    _number(name, "beta1", beta1, 0 <= beta1 < 1, "in the range [0, 1)")
    _number(name, "beta2", beta2, 0 <= beta2 < 1, "in the range [0, 1)")
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (v.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    x.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))


# ---- the loops of a level --------------------------------------------------------


def _level(
    function: str,
    x: Tensor,
    sqnorm: Tensor,
    x0hat: Any,
    y: Any,
    op: Op,
    steps: int,
    eta: float,
    likelihood: float,
    prior: float,
) -> tuple[Tensor, Tensor, Tensor]:
    x, x0hat, y = check(
        function,
        op.dtype,
        x=(x, op.in_shape),
        x0hat=(x0hat, op.in_shape),
        y=(y, op.out_shape),
    )
    _per_image(function, "sqnorm", sqnorm, x, len(x))
    _count(function, "steps", steps)
    _positive(function, eta=eta)
    _finite(function, likelihood=likelihood, prior=prior)
    return x, x0hat, y


def _gradient_steps(
    function: str,
    move: Callable[[Tensor, Tensor], tuple[tuple[Tensor, Tensor], ...]],
    x: Tensor,
    sqnorm: Tensor,
    x0hat: Any,
    y: Any,
    op: Op,
    projector: Projector | None,
    noise: Any,
    steps: int,
    eta: float,
    likelihood: float,
    prior: float,
) -> None:
    """The loop of Langevin and HMC.  move: gradient, normals -> (tensor, its next
    value) of everything that moves."""
    x, x0hat, y = _level(
        function, x, sqnorm, x0hat, y, op, steps, eta, likelihood, prior
    )
    normals = _normals(function, noise, x, steps)
    gradient = torch.empty_like(x)
    alive = torch.ones_like(sqnorm, dtype=torch.bool)
    for step in range(steps):
        op.residual_gradient(gradient, sqnorm, x, y)
        alive &= sqnorm.isfinite()
        gradient = likelihood * gradient + prior * (x - x0hat)
        if projector is not None:
            projector.apply(gradient)
        for moving, following in move(gradient, normals(step)):
            moving[alive] = following[alive]
    sqnorm[~(alive & x.isfinite().flatten(1).all(1))] = torch.nan


def langevin(
    x: Tensor,
    sqnorm: Tensor,
    x0hat: Any,
    y: Any,
    op: Op,
    projector: Projector | None,
    noise: Any,
    steps: int,
    eta: float,
    likelihood: float,
    prior: float,
    /,
) -> None:
    """All Langevin steps of a level."""

    def move(gradient: Tensor, n: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        return ((x, x - eta * gradient + math.sqrt(2 * eta) * n),)

    _gradient_steps(
        *("langevin", move, x, sqnorm, x0hat, y, op, projector, noise),
        *(steps, eta, likelihood, prior),
    )


def hmc(
    x: Tensor,
    velocity: Tensor,
    sqnorm: Tensor,
    x0hat: Any,
    y: Any,
    op: Op,
    projector: Projector | None,
    noise: Any,
    steps: int,
    eta: float,
    likelihood: float,
    prior: float,
    momentum: float,
    /,
) -> None:
    """All steps of damped HMC of a level."""
    m = momentum
    _number("hmc", "momentum", m, 0 <= m <= 1, "in the range [0, 1]")
    check("hmc", op.dtype, x=(x, op.in_shape), velocity=(velocity, op.in_shape))

    def move(gradient: Tensor, n: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        v = m * velocity - math.sqrt(eta) * gradient + math.sqrt(2 * (1 - m)) * n
        return (velocity, v), (x, x + math.sqrt(eta) * v)

    _gradient_steps(
        *("hmc", move, x, sqnorm, x0hat, y, op, projector, noise),
        *(steps, eta, likelihood, prior),
    )


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared, of every image, (b,) float64."""
    sums = [
        (u.double() - v.double()).square().flatten(1).sum(1) for u, v in parts(a, b)
    ]
    return torch.cat(sums) if sums else a.new_zeros(0, dtype=torch.float64)


def mh(
    x: Tensor,
    sqnorm: Tensor,
    accepted: Tensor,
    x0hat: Any,
    y: Any,
    op: Op,
    noise: Any,
    uniforms: Any | None,
    steps: int,
    eta: float,
    likelihood: float,
    prior: float,
    /,
) -> None:
    """All Metropolis-Hastings steps of a level; accepted (b,) float64 counts."""
    x, x0hat, y = _level("mh", x, sqnorm, x0hat, y, op, steps, eta, likelihood, prior)
    _per_image("mh", "accepted", accepted, x, len(x))
    normals = _normals("mh", noise, x, steps, draws=2)
    if not isinstance(noise, tuple):
        if uniforms is None:
            raise TypeError("mh: uniforms must be given with recorded normals")
        uniforms = _per_image("mh", "uniforms", uniforms, x, steps * len(x))
    elif uniforms is not None:
        raise TypeError("mh: uniforms must be None with a noise key")

    def misfit(state: Tensor) -> Tensor:
        measured = torch.empty_like(y)
        op.forward(measured, state)
        return _distance(measured, y)

    accepted.zero_()
    sqnorm.copy_(misfit(x))
    for step in range(steps):
        proposal = x + math.sqrt(eta) * normals(step)
        after = misfit(proposal)
        gain = likelihood / 2 * (sqnorm - after) + prior / 2 * (
            _distance(x, x0hat) - _distance(proposal, x0hat)
        )
        if uniforms is None:
            u = torch.empty_like(sqnorm)
            uniform(u, _draw(noise, 2 * step + 1))
        else:
            u = uniforms[step * len(x) : (step + 1) * len(x)]
        taken = (u.log() < gain) & sqnorm.isfinite()
        x[taken] = proposal[taken]
        sqnorm[taken] = after[taken]
        accepted += taken
    sqnorm[~(sqnorm.isfinite() & x.isfinite().flatten(1).all(1))] = torch.nan


# ---- total variation -------------------------------------------------------------


def _lengths(p: Tensor, coupled: bool) -> Tensor:
    """Of every pixel's vector, (b, 1, c or 1, h, w)."""
    square = p.square().sum(1, keepdim=True)
    return (square.sum(2, keepdim=True) if coupled else square).sqrt()


def tv_prox(
    out: Tensor,
    v: Any,
    weight: float,
    iterations: int,
    dual: Tensor,
    coupled: bool,
    /,
) -> None:
    """out = argmin 1/2 ||x - v||^2 + weight TV(x); dual (b, 2, c, h, w) in place."""
    name = "tv_prox"
    out, v = check(name, None, out=(out, None), v=(v, None))
    _positive(name, weight=weight)
    _count(name, "iterations", iterations)
    if dual.dtype != out.dtype:
        raise TypeError(f"{name}: dual must be {out.dtype}, got {dual.dtype}")
    expect(name, "dual", dual, (len(out), 2, *out.shape[1:]), out)

    dual[:, 0, ..., -1] = 0
    dual[:, 1, ..., -1, :] = 0
    q, t = dual.clone(), 1.0
    for _ in range(iterations):
        raised = q + differences(v - weight * differences_adjoint(q)) / (8 * weight)
        p = raised / _lengths(raised, coupled).clamp_min(1)
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        q, t = p + (t - 1) / t_next * (p - dual), t_next
        dual.copy_(p)
    out.copy_(v - weight * differences_adjoint(dual))


def tv_norm(out: Tensor, x: Any, coupled: bool, /) -> None:
    """TV of every image into out (b,) float64."""
    (x,) = check("tv_norm", None, x=(x, None))
    _per_image("tv_norm", "out", out, x, len(x))
    for i, (image,) in enumerate(parts(x)):
        sums = _lengths(differences(image.double()), coupled).flatten(1).sum(1)
        out[i * len(sums) : (i + 1) * len(sums)] = sums
