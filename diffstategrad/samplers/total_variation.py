r"""HQS and ADMM with total variation; they need no network.

.. math:: \min_x \frac{1}{2 \sigma_y^2} \lVert A(x) - y \rVert^2
          + \lambda \sum_p \lvert (D x)_p \rvert,

D the differences to the pixel below and to the right, 0 in the last row and column,
:math:`\lvert \cdot \rvert` the length at a pixel, channels separate or `coupled`.
:math:`P_\rho` is the data step of `data_step.py`.

* `hqs_tv`: :math:`x = P_{\sigma_y^2 \mu}(z)`, :math:`z = \mathrm{prox}_{\lambda
  \mathrm{TV} / \mu}(x)`, :math:`\mu` growing.
* `admm_tv`: :math:`x = P_{r \sigma_y^2}(z - u)`, :math:`z = \mathrm{prox}_{\lambda
  \mathrm{TV} / r}(x + u)`, :math:`u \leftarrow u + x - z`; or with two splits v = x,
  q = D x and no inner loop,

  .. math:: v &= P_{r \sigma_y^2}(x + d_1), \qquad
            q = \mathrm{shrink}(D x + d_2, \lambda / r), \\
            x &= (1 + D^\top D)^{-1} (v - d_1 + D^\top (q - d_2)), \\
            d_1 &\leftarrow d_1 + x - v, \qquad d_2 \leftarrow d_2 + D x - q,

  which is slower: a step costs as much as the prox in the core, and it needs more.

:math:`\lambda` is given, or found for every image by the discrepancy principle: the
residual is to be within 5 % of the noise.

References
----------
Rudin, Osher, Fatemi, "Nonlinear total variation based noise removal algorithms",
Physica D 1992.
Boyd, Parikh, Chu, Peleato, Eckstein, "Distributed optimization and statistical learning
via the alternating direction method of multipliers", 2011, section 3.4.1 for r.
Beck, Teboulle, "Fast gradient-based algorithms for constrained total variation image
denoising and deblurring problems", IEEE TIP 2009 (the prox of TV).
Afonso, Bioucas-Dias, Figueiredo, "An augmented Lagrangian approach to the constrained
optimization formulation of imaging inverse problems", IEEE TIP 2011 (two splits).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad.reference.differences import differences, differences_adjoint
from diffstategrad.samplers.base import (
    Level,
    Needs,
    Problem,
    Survivors,
    square_norm,
)
from diffstategrad.samplers.data_step import data_step, noise_level
from diffstategrad.samplers.residual import count, measured, relative
from diffstategrad.samplers.splitting import Splitting

__all__ = ["ADMMTV", "HQSTV", "shrink", "smooth"]

#: (v, penalty) -> argmin of the data term and penalty / 2 ||x - v||^2.
DataStep = Callable[[Tensor, float], Tensor]


class _TotalVariation(Splitting):
    """TV as prior, its weight found by the discrepancy principle."""

    needs_prior: ClassVar[bool] = False
    needs: ClassVar[Needs] = {"searches": ({"lam": ("discrepancy",)},)}

    lam: Annotated[float, Field(gt=0)] | Literal["discrepancy"] = Field(
        "discrepancy",
        description="weight lambda of TV; found so that the residual is within 5 % of "
        "the noise, or given",
    )
    prox_steps: int = Field(50, ge=1, description="iterations of the prox of TV")
    coupled: bool = Field(
        False, description="one gradient length for all channels of a pixel"
    )
    searches: int = Field(8, ge=1, description="most weights lambda that are tried")

    @property
    def levels(self) -> int:
        """One for every weight."""
        return self.searches if isinstance(self.lam, str) else 1

    @property
    def calls(self) -> int:
        return 0

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        alive = Survivors(len(problem.start))
        x, s = self._start(problem), noise_level(problem)
        searches = [
            _Search(self, problem, i, s, x[i : i + 1])
            for i in range(len(problem.start))
        ]
        for k in range(self.levels):
            before, x = x, torch.cat([search.step() for search in searches])
            details = problem.outcome.details
            details["lam"] = [search.used for search in searches]
            details["residual"] = [search.ratio for search in searches]
            if isinstance(self.lam, str):
                details["found"] = [search.found for search in searches]
            self._tell(problem, report, alive, k, None, before, x, x)
            if all(search.done for search in searches):
                break
        missed = sum(not (search.found or search.fixed) for search in searches)
        if missed:
            problem.outcome.warnings.append(
                f"{missed} of {len(searches)} runs found no weight lambda with a "
                "residual within 5 % of the noise and return the nearest: raise "
                "`searches`"
            )
        return alive.mark(x)

    @abstractmethod
    def minimise(self, step: DataStep, lam: float, s: float, state: _State) -> None:
        """Minimises for one image and one weight, from `state` and in it."""

    def prox(self, v: Tensor, weight: float, dual: Tensor) -> Tensor:
        """argmin_z 1/2 ||z - v||^2 + weight TV(z); `dual` goes on where it was."""
        out = torch.empty_like(v)
        backend(v.device).tv_prox(out, v, weight, self.prox_steps, dual, self.coupled)
        return out


class _State:
    """The iterate of one image, and the dual variable of TV's prox."""

    def __init__(self, x: Tensor):
        self.x = x.clone()
        self.dual = x.new_zeros((1, 2, *x.shape[1:]))


class _Search:
    """The weights that one image tries.

    ``x`` is the minimiser whose residual came nearest to the noise, ``ratio`` that
    residual over it, ``used`` its weight.
    """

    def __init__(
        self, method: _TotalVariation, problem: Problem, i: int, s: float, x: Tensor
    ):
        self.method, self.operator, self.s = method, problem.operator, s
        self.y = problem.y[i : i + 1]
        self.state = _State(x)
        self.fixed = not isinstance(method.lam, str)
        self.lam = 0.5 / s if isinstance(method.lam, str) else method.lam
        self.x, self.used, self.ratio = x, self.lam, math.nan
        self.factor, self.last, self.done = 1.5, 0, False

    @property
    def found(self) -> bool:
        return 0.95 <= self.ratio <= 1.05

    def step(self) -> Tensor:
        """The minimiser for this weight; chooses the next one."""
        if not self.done:
            self.method.minimise(self._data_step, self.lam, self.s, self.state)
            self._choose()
        return self.x

    def _data_step(self, v: Tensor, penalty: float) -> Tensor:
        return data_step(self.operator, v, self.y, penalty * self.s**2)

    def _choose(self) -> None:
        ratio = self._residual()
        if math.isnan(self.ratio) or abs(ratio - 1) < abs(self.ratio - 1):
            self.x, self.used, self.ratio = self.state.x, self.lam, ratio
        # NaN is neither below nor above
        direction = (ratio < 0.95) - (ratio > 1.05)
        self.done = self.fixed or direction == 0
        if direction == -self.last:
            self.factor **= 0.5  # passed it
        self.last = direction
        self.lam *= self.factor**direction

    def _residual(self) -> float:
        """That of the present minimiser."""
        weight = measured(self.operator, self.y)
        sqnorm = square_norm(weight * (self.operator(self.state.x) - self.y))
        return relative(sqnorm, count(weight), self.s).item()


class HQSTV(_TotalVariation):
    """Half-quadratic splitting with total variation; needs no prior."""

    name: ClassVar[str] = "hqs_tv"

    steps: int = Field(150, ge=1, description="iterations for a weight")
    growth: float = Field(1.05, gt=1, description="of the penalty mu, an iteration")

    def minimise(self, step: DataStep, lam: float, s: float, state: _State) -> None:
        mu = 0.05 / s**2
        for _ in range(self.steps):
            x = step(state.x, mu)
            state.x = self.prox(x, lam / mu, state.dual)
            mu *= self.growth


class ADMMTV(_TotalVariation):
    """Alternating directions with total variation; needs no prior."""

    name: ClassVar[str] = "admm_tv"
    needs: ClassVar[Needs] = {
        **_TotalVariation.needs,
        "prox_steps": ({"splits": (1,)},),
    }

    steps: int = Field(300, ge=1, description="most iterations for a weight")
    splits: Literal[1, 2] = Field(
        1, description="1 takes prox_steps of TV's prox, 2 has no inner loop"
    )
    penalty: float = Field(0.2, gt=0, description="r sigma^2 at the start")
    tolerance: float = Field(
        1e-4, gt=0, description="where primal and dual residual stop, over sqrt(n)"
    )

    def minimise(self, step: DataStep, lam: float, s: float, state: _State) -> None:
        minimise = self._two_splits if self.splits == 2 else self._one_split
        minimise(step, lam, self.penalty / s**2, state)

    def _one_split(self, step: DataStep, lam: float, r: float, state: _State) -> None:
        z, u = state.x, torch.zeros_like(state.x)
        for k in range(1, self.steps + 1):
            x = step(z - u, r)
            before, z = z, self.prox(x + u, lam / r, state.dual)
            u = u + x - z
            change = self._change(k, _norm(x - z), r * _norm(z - before), z.numel())
            if change is None:
                break
            r, u = r * change, u / change
        state.x = z

    def _two_splits(self, step: DataStep, lam: float, r: float, state: _State) -> None:
        x, dx = state.x, differences(state.x)
        d1, d2 = torch.zeros_like(x), torch.zeros_like(dx)
        for k in range(1, self.steps + 1):
            v = step(x + d1, r)
            q = shrink(dx + d2, lam / r, coupled=self.coupled)
            before, x = x, smooth(v - d1 + differences_adjoint(q - d2))
            dx = differences(x)
            d1, d2 = d1 + x - v, d2 + dx - q
            primal = math.hypot(_norm(x - v), _norm((dx - q)[0]))
            change = self._change(k, primal, r * _norm(x - before), x.numel())
            if change is None:
                break
            r, d1, d2 = r * change, d1 / change, d2 / change
        state.x = x

    def _change(self, k: int, primal: float, dual: float, n: int) -> float | None:
        """Factor for r after iteration k; None where both residuals are small."""
        if max(primal, dual) < self.tolerance * n**0.5:
            return None
        if k % 10 == 0 and primal > 10 * dual:
            return 2.0
        if k % 10 == 0 and dual > 10 * primal:
            return 0.5
        return 1.0


def _norm(x: Tensor) -> float:
    return math.sqrt(float(square_norm(x).sum()))


def shrink(p: Tensor, amount: float, *, coupled: bool) -> Tensor:
    """p (B, 2, C, H, W) with its length at every pixel, `coupled` that of all channels,
    made smaller by `amount`, at least 0."""
    square = p.square().sum(1, keepdim=True)
    length = (square.sum(2, keepdim=True) if coupled else square).sqrt()
    return p * (1 - amount / length.clamp_min(amount))


def smooth(b: Tensor) -> Tensor:
    """(1 + D^T D)^-1 b: the image mirrored at its border is periodic, and there D^T D
    is 4 - 2 cos(pi i / H) - 2 cos(pi j / W)."""
    h, w = b.shape[2:]
    mirrored = torch.cat([b, b.flip(2)], 2)
    mirrored = torch.cat([mirrored, mirrored.flip(3)], 3)
    i = torch.arange(2 * h, dtype=torch.float64, device=b.device)[:, None]
    j = torch.arange(w + 1, dtype=torch.float64, device=b.device)
    gain = 5 - 2 * torch.cos(torch.pi * i / h) - 2 * torch.cos(torch.pi * j / w)
    transformed = torch.fft.rfft2(mirrored) / gain.to(b)
    return torch.fft.irfft2(transformed, s=mirrored.shape[2:])[:, :, :h, :w]
