r"""The exact data step of a linear operator, its pseudo-inverse and its norm.

    prox    x = argmin ||A x - y||^2 + rho ||x - v||^2,
            (A^T A + rho) x = A^T y + rho v                              rho > 0
    pinv    x = A^+ y, singular values at most cutoff * norm counted as 0
    norm    the largest singular value of A

In closed form where A is diagonal in a basis that is at hand: a mask in pixels, a
circular blur after an FFT, an operator on rows and columns apart, y = R x T^T, in the
singular vectors of both.  Everything else by conjugate gradients; pinv is then
(A^T A + delta)^-1 A^T y with delta = (cutoff norm)^2, and the norm comes from a Lanczos
iteration to 1e-6 (float32: 1e-4) relative.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffstategrad._core import NumericalError
from diffstategrad.reference._common import Constants, check, parts, product
from diffstategrad.reference.operators import Blur, Mask, Matrix, Op, Separable

__all__ = ["DataStep"]

#: Longest shorter side of a matrix that is decomposed.
_MOST_ROWS = 2048
#: Iterations after which conjugate gradients compute the true residual anew.
_REFRESH = 50
#: Most steps of the Lanczos iteration.
_MOST_STEPS = 2000


class DataStep:
    """The data step of a linear operator; ValueError for another."""

    def __init__(self, op: Op, /):
        if not op.linear:
            raise ValueError("DataStep: the operator must be linear")
        self._op = op
        self._form = _closed_form(op)
        self._norms: dict[torch.device, float] = {}

    @property
    def closed_form(self) -> bool:
        return self._form is not None

    def norm(self) -> float:
        """The largest singular value of A."""
        return self._norm_on(torch.device("cpu"))

    def prox(
        self,
        out: Tensor,
        v: Any,
        y: Any,
        rho: float,
        tolerance: float,
        iterations: int,
        /,
    ) -> list[tuple[float, int]]:
        """out = argmin ||A x - y||^2 + rho ||x - v||^2, conjugate gradients starting
        from v.  Returns (||b - M x|| / ||b||, iterations) of every image, (0.0, 0) in
        closed form."""
        _check_options("prox", rho=rho, tolerance=tolerance, iterations=iterations)
        op = self._op
        v, y, out = check(
            "prox",
            op.dtype,
            v=(v, op.in_shape),
            y=(y, op.out_shape),
            out=(out, op.in_shape),
        )
        info: list[tuple[float, int]] = []
        for oi, vi, yi in parts(out, v, y):
            if self._form is not None:
                oi.copy_(self._form.prox(vi, yi, rho))
                info += [(0.0, 0)] * len(vi)
            else:
                x, how = _conjugate_gradients(op, vi, yi, rho, tolerance, iterations)
                oi.copy_(x)
                info += how
        return info

    def pinv(
        self,
        out: Tensor,
        y: Any,
        cutoff: float,
        tolerance: float,
        iterations: int,
        /,
    ) -> list[tuple[float, int]]:
        """out = A^+ y; returns what prox returns."""
        if not 0 < cutoff < 1:
            raise ValueError(f"pinv: cutoff must be in the range (0, 1), got {cutoff}")
        _check_options("pinv", tolerance=tolerance, iterations=iterations)
        op = self._op
        y, out = check("pinv", op.dtype, y=(y, op.out_shape), out=(out, op.in_shape))
        info: list[tuple[float, int]] = []
        for oi, yi in parts(out, y):
            if self._form is not None:
                oi.copy_(self._form.pinv(yi, cutoff))
                info += [(0.0, 0)] * len(yi)
            else:
                delta = (cutoff * self._norm_on(yi.device)) ** 2
                zero = torch.zeros_like(oi)
                x, how = _conjugate_gradients(
                    op, zero, yi, delta, tolerance, iterations
                )
                oi.copy_(x)
                info += how
        return info

    def _norm_on(self, device: torch.device) -> float:
        if self._form is not None:
            return self._form.norm
        if device not in self._norms:
            self._norms[device] = _lanczos_norm(self._op, device)
        return self._norms[device]


def _check_options(function: str, **options: float) -> None:
    for name, value in options.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{function}: {name} must be finite and > 0, got {value}")


# ---- closed forms ----------------------------------------------------------------


class _ClosedForm(ABC):
    norm: float

    @abstractmethod
    def prox(self, v: Tensor, y: Tensor, rho: float) -> Tensor: ...

    @abstractmethod
    def pinv(self, y: Tensor, cutoff: float) -> Tensor: ...


def _closed_form(op: Op) -> _ClosedForm | None:
    if isinstance(op, Mask):
        return _Diagonal(op)
    if isinstance(op, Separable):
        rows, columns = op.constants.on(torch.device("cpu"))
        return _Singular(op, rows, columns, op.in_shape, op.out_shape)
    if isinstance(op, Matrix):
        (m,) = op.constants.on(torch.device("cpu"))
        if min(m.shape) <= _MOST_ROWS:
            # images as columns: T = (1)
            x_shape, y_shape = (1, m.shape[1], 1), (1, m.shape[0], 1)
            return _Singular(op, m, torch.ones(1, 1), x_shape, y_shape)
    if isinstance(op, Blur) and op.border.circular:
        return _Circular(op)
    return None


class _Diagonal(_ClosedForm):
    """A mask, in pixels."""

    def __init__(self, op: Mask):
        self.constants = op.constants
        (observed,) = op.constants.on(torch.device("cpu"))
        self.norm = float(observed.any())

    def prox(self, v: Tensor, y: Tensor, rho: float) -> Tensor:
        (observed,) = self.constants.on(v.device)
        return torch.where(observed, (y + rho * v) / (1 + rho), v)

    def pinv(self, y: Tensor, cutoff: float) -> Tensor:
        (observed,) = self.constants.on(y.device)
        return torch.where(observed, y, 0)


class _Singular(_ClosedForm):
    """y = R x T^T in the singular vectors of R = U_R diag(s) V_R^T and
    T = U_T diag(t) V_T^T, where it multiplies by d[i, j] = s[i] t[j]:

        x = v + V_R [(U_R^T (y - A v) U_T) / (d + rho / d)] V_T^T
    """

    def __init__(
        self,
        op: Op,
        rows: Tensor,
        columns: Tensor,
        x_shape: tuple[int, ...],
        y_shape: tuple[int, ...],
    ):
        self.op = op
        self.x_shape, self.y_shape = x_shape, y_shape
        U_R, s, Vt_R = torch.linalg.svd(rows.double(), full_matrices=False)
        U_T, t, Vt_T = torch.linalg.svd(columns.double(), full_matrices=False)
        d = s[:, None] * t
        self.norm = float(d[0, 0])
        self.constants = Constants(*(m.to(op.dtype) for m in (U_R, Vt_R, U_T, Vt_T, d)))

    def prox(self, v: Tensor, y: Tensor, rho: float) -> Tensor:
        return v + self._solve(y - self.op._forward(v), rho, 0.0)

    def pinv(self, y: Tensor, cutoff: float) -> Tensor:
        return self._solve(y, 0.0, cutoff * self.norm)

    def _solve(self, y: Tensor, rho: float, limit: float) -> Tensor:
        U_R, Vt_R, U_T, Vt_T, d = self.constants.on(y.device)
        z = product(U_R.mT, y.reshape(-1, *self.y_shape), U_T)
        # not d / (d^2 + rho): the square of a small d may be 0
        z = torch.where(d > limit, z / (d + rho / d), 0)
        return product(Vt_R.mT, z, Vt_T).reshape(-1, *self.op.in_shape)


class _Circular(_ClosedForm):
    """An operator that commutes with cyclic shifts: after an FFT it multiplies by
    B, the transform of its answer to the pixel at (0, 0)."""

    def __init__(self, op: Blur):
        pixel = torch.zeros(1, *op.in_shape, dtype=op.dtype)
        pixel[..., 0, 0] = 1
        B = torch.fft.rfft2(op._forward(pixel)[0, 0])
        self.size = op.in_shape[1:]
        self.norm = float(B.abs().max())
        self.constants = Constants(B, B.abs().square())

    def prox(self, v: Tensor, y: Tensor, rho: float) -> Tensor:
        B, power = self.constants.on(v.device)
        z = torch.conj_physical(B) * torch.fft.rfft2(y) + rho * torch.fft.rfft2(v)
        return torch.fft.irfft2(z / (power + rho), s=self.size)

    def pinv(self, y: Tensor, cutoff: float) -> Tensor:
        B, _ = self.constants.on(y.device)
        z = torch.where(B.abs() > cutoff * self.norm, torch.fft.rfft2(y) / B, 0)
        return torch.fft.irfft2(z, s=self.size)


# ---- iterations ------------------------------------------------------------------


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of every image, in float64."""
    return (a.double() * b.double()).sum((1, 2, 3))


def _times(a: Tensor, x: Tensor) -> Tensor:
    """Every image times its number."""
    return a.to(x.dtype)[:, None, None, None] * x


def _conjugate_gradients(
    op: Op, v: Tensor, y: Tensor, rho: float, tolerance: float, iterations: int
) -> tuple[Tensor, list[tuple[float, int]]]:
    """Solves M x = b, M = A^T A + rho, b = A^T y + rho v, from x = v; also returns
    (||b - M x|| / ||b||, iterations) of every image.

    The residual is carried in two parts, s = y - A x and r = A^T s + rho (v - x): M is
    never formed with its rounding (CGLS; Hestenes and Stiefel, 1952).  Images share the
    calls of the operator and nothing else; one that has arrived is left alone."""

    def true_residual(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = y - op._forward(x)
        r = op._vjp(None, s) + rho * (v - x)
        return s, r, _dot(r, r)

    b = op._vjp(None, y) + rho * v
    size = _dot(b, b)
    goal = tolerance**2 * size
    x = _times(torch.where(size == 0, 0, size / size), v)  # NaN where b is not finite
    s, r, rr = true_residual(x)
    p = r
    active = rr > goal  # false for NaN
    count = torch.zeros_like(rr, dtype=torch.int64)
    for i in range(1, iterations + 1):
        if not active.any():
            break
        q = op._forward(p)
        # <p, r> is ||r||^2 but for rounding, which would add up where the tolerance is
        # below what the precision can reach
        step = _dot(p, r) / (_dot(q, q) + rho * _dot(p, p))
        # p may have no length left that the precision can tell from 0
        stuck = active & ~step.to(op.dtype).isfinite()
        active = active & ~stuck
        step = torch.where(active, step, 0)
        x = x + _times(step, p)
        s = s - _times(step, q)
        r = op._vjp(None, s) + rho * (v - x)
        before, rr = rr, _dot(r, r)
        beta = rr / before
        arrived = active & (rr <= goal)
        count += active
        if i % _REFRESH == 0 or i == iterations or (stuck | arrived).any():
            carried = rr
            s, r, rr = true_residual(x)
            active = active & (rr > goal)
            # where the recurrence has lost touch with the truth, from anew
            beta = torch.where(rr <= 4 * carried, rr / before, 0)
        p = r + _times(torch.where(active, beta, 0), p)
    residual = torch.where(size == 0, 0, (rr / size).sqrt())
    return x, list(zip(residual.tolist(), count.tolist(), strict=True))


def _lanczos_norm(op: Op, device: torch.device) -> float:
    """||A|| from the largest eigenvalue of the tridiagonal matrix that A^T A is on the
    space of its powers of a random image.

    The estimate grows with the steps.  Where the singular values pile up below it, the
    error falls like 1 / steps^2, so that the growth over the second half of the steps
    is three times the error left; where there is a gap, the error is smaller still."""
    tolerance = 5e-7 if op.dtype == torch.float64 else 5e-5
    source = torch.Generator().manual_seed(0)
    q = torch.randn(1, *op.in_shape, generator=source, dtype=torch.float64)
    q = (q / q.norm()).to(device, op.dtype)
    before, beta = torch.zeros_like(q), 0.0
    diagonal: list[float] = []
    beside: list[float] = []

    def estimate(steps: int) -> float:
        off = beside[: steps - 1]
        T = np.diag(diagonal[:steps]) + np.diag(off, 1) + np.diag(off, -1)
        return math.sqrt(max(np.linalg.eigvalsh(T)[-1], 0.0))

    check_at = 8
    for steps in range(1, _MOST_STEPS + 1):
        w = op._vjp(None, op._forward(q)) - beta * before
        alpha = float(_dot(w, q))
        w = w - alpha * q
        beta = math.sqrt(float(_dot(w, w)))
        diagonal.append(alpha)
        if not math.isfinite(beta):
            break
        if beta <= torch.finfo(op.dtype).eps * max(diagonal):
            return estimate(steps)  # an invariant subspace
        if steps == check_at:
            largest = estimate(steps)
            if largest - estimate(steps // 2) <= tolerance * largest:
                return largest
            check_at += check_at // 2
        beside.append(beta)
        before, q = q, w / beta
    raise NumericalError("norm: an iterative routine did not converge")
