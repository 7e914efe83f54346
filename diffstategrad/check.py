"""Does an operator keep its promises?  One call, for any operator.

Linear or not, native or somebody's function: `check` measures adjoint, gradient,
linearity, norm, data step, batch, dtype and determinism on random images.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffstategrad._options import as_shape
from diffstategrad.noise import CounterNoise
from diffstategrad.operators.base import Operator, Shape

__all__ = ["CheckReport", "CheckRow", "check"]

_EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


@dataclass(frozen=True)
class CheckRow:
    """One promise.

    Attributes
    ----------
    name : what was checked
    ok : bool, or None where it does not apply
    error, allowed : float or None
        What was measured and its limit, both relative.
    note : str
    """

    name: str
    ok: bool | None
    error: float | None = None
    allowed: float | None = None
    note: str = ""


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`: truthy when every promise is kept; prints as a table."""

    operator: str
    rows: tuple[CheckRow, ...]

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the promises that are broken."""
        return tuple(row.name for row in self.rows if row.ok is False)

    def __bool__(self) -> bool:
        return self.ok

    def __getitem__(self, name: str) -> CheckRow:
        return {row.name: row for row in self.rows}[name]

    def _cells(self) -> list[tuple[str, ...]]:
        verdicts = {True: "ok", False: "FAILED", None: "-"}
        return [
            (
                row.name,
                verdicts[row.ok],
                "" if row.error is None else f"{row.error:.1e}",
                "" if row.allowed is None else f"{row.allowed:.1e}",
                row.note,
            )
            for row in self.rows
        ]

    def __str__(self) -> str:
        head = ("check", "", "error", "allowed", "")
        table = [head, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) for cell, w in zip(row, widths, strict=True)
            ).rstrip()
            for row in table
        ]
        return "\n".join([self.operator, *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + "</tr>"
            for cells in self._cells()
        )
        return (
            f"<b>{html.escape(self.operator)}</b><table><tr><th>check</th><th></th>"
            f"<th>error</th><th>allowed</th><th></th></tr>{rows}</table>"
        )


def check(
    operator: Operator,
    shape: Shape,
    *,
    dtype: torch.dtype | None = None,
    batch: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> CheckReport:
    r"""Verifies an operator on random images.

    Parameters
    ----------
    operator : Operator
    shape : (C, H, W) of an image; a small one will do
    dtype : float64 or float32, optional
        Default the operator's own where it has one (an `nn.Module`), else float64.
        Precision of the checks; errors are relative, limits follow from it.
    batch : int >= 2
    seed : int
    device : of the images

    Returns
    -------
    CheckReport
        Rows "shape", "finite", "input unchanged", "deterministic", "no hidden state",
        "batch", "other dtype", "gradient" (against central differences), "autograd"
        (the same, differentiating :math:`A(x)`), "adjoint"
        (:math:`\langle A x, v \rangle = \langle x, A^\top v \rangle`), "residual
        gradient", and for a linear operator "linear", "norm" (against a power
        iteration) and "prox" (its normal equations).

    Raises
    ------
    TypeError
        For something that is not an Operator, or another dtype.
    ValueError
        For a shape that is none or that the operator refuses, or a batch below 2.
    """
    if not isinstance(operator, Operator):
        raise TypeError(
            f"check: operator must be an Operator (from_callable makes one), "
            f"got {type(operator).__name__}"
        )
    if dtype is None:
        dtype = operator.dtype or torch.float64
    if dtype not in _EPS:
        raise TypeError(f"check: dtype must be float32 or float64, got {dtype}")
    if batch < 2:
        raise ValueError(f"check: batch must be at least 2, got {batch}")
    image = as_shape(shape, "check: shape")
    return CheckReport(
        repr(operator),
        tuple(_Check(operator, image, dtype, batch, seed, device).rows()),
    )


class _Check:
    """The checks of one operator on one set of images."""

    def __init__(
        self,
        operator: Operator,
        shape: Shape,
        dtype: torch.dtype,
        batch: int,
        seed: int,
        device: torch.device | str,
    ):
        self.A, self.shape, self.dtype = operator, shape, dtype
        like = torch.empty(0, dtype=dtype, device=device)
        self.out_shape = operator._out_shape_like(shape, like)
        self.source = CounterNoise(seed, range(batch), [0] * batch)
        self.device = device
        # rounding of a few hundred terms of an entry, of an FFT or of a convolution
        self.rounding = 500 * _EPS[dtype]
        # nominal images, in [-1, 1], away from the kinks of a clipping operator
        self.x = self.images().tanh()
        self.z = self.images().tanh()
        self.v = self.measurements()

    def images(self) -> Tensor:
        return self._normal(self.shape)

    def measurements(self) -> Tensor:
        return self._normal(self.out_shape)

    def _normal(self, shape: Shape) -> Tensor:
        like = torch.empty(
            (len(self.source.images), *shape), dtype=self.dtype, device=self.device
        )
        return self.source.normal(like)

    def rows(self) -> Iterator[CheckRow]:
        expected = (len(self.x), *self.out_shape)
        try:
            y = self.A(self.x.clone())
        except Exception as error:
            yield CheckRow("shape", False, note=f"{type(error).__name__}: {error}")
            return
        yield CheckRow(
            "shape",
            tuple(y.shape) == expected and y.dtype == self.dtype,
            note=f"{tuple(y.shape)} {y.dtype}, expected {expected} {self.dtype}",
        )
        if tuple(y.shape) != expected:
            return
        yield CheckRow("finite", bool(y.isfinite().all()))
        for name, test in (
            ("input unchanged", self.input_unchanged),
            ("deterministic", self.deterministic),
            ("no hidden state", self.no_hidden_state),
            ("batch", self.batch_is_loop),
            ("other dtype", self.other_dtype),
            ("gradient", self.gradient),
            ("autograd", self.autograd),
            ("adjoint", self.adjoint),
            ("residual gradient", self.residual_gradient),
            ("linear", self.linear),
            ("norm", self.norm),
            ("prox", self.prox),
        ):
            try:
                yield test(name)
            except Exception as error:  # a broken operator may raise anything
                yield CheckRow(name, False, note=f"{type(error).__name__}: {error}")

    def _row(self, name: str, error: float, allowed: float, note: str = "") -> CheckRow:
        return CheckRow(name, error <= allowed, error, allowed, note)

    def input_unchanged(self, name: str) -> CheckRow:
        x, v, w = self.x.clone(), self.v.clone(), self.z.clone()
        with torch.no_grad():
            self.A(x)
        if not torch.equal(x, self.x):
            return CheckRow(name, False, note="A(x) writes into x")
        self.A.vjp(x, v)
        self.A.jvp(x, w)
        self.A.residual_gradient(x, v)
        if self.A.linear:
            self.A.adjoint(v, self.shape)
        pairs = ((x, self.x), (v, self.v), (w, self.z))
        return CheckRow(name, all(torch.equal(now, then) for now, then in pairs))

    def deterministic(self, name: str) -> CheckRow:
        first, second = self.A(self.x.clone()), self.A(self.x.clone())
        return self._row(name, _relative(first, second), 0.0)

    def no_hidden_state(self, name: str) -> CheckRow:
        """Measuring and differentiating something else must not change a result, nor
        may the place in memory where an image lies."""
        x, z, v = self.x, self.z, self.v
        y, g = self.A(x.clone()), self.A.vjp(x.clone(), v.clone())
        for _ in range(3):
            self.A(z.clone())
        error = _relative(self.A.vjp(x.clone(), v.clone()), g)
        self.A.vjp(z.clone(), v.clone())
        error = max(error, _relative(self.A(x.clone()), y))
        place = x.clone()
        self.A(place)
        place.copy_(z)
        error = max(error, _relative(self.A(place), self.A(z.clone())))
        return self._row(name, error, 0.0)

    def batch_is_loop(self, name: str) -> CheckRow:
        def error(function: Callable[..., Tensor], *inputs: Tensor) -> float:
            together = function(*(t.clone() for t in inputs))
            alone = [
                function(*(t[i : i + 1].clone() for t in inputs))
                for i in range(len(self.x))
            ]
            return _relative(together, torch.cat(alone))

        worst = max(error(self.A, self.x), error(self.A.vjp, self.x, self.v))
        note = "bit for bit" if worst == 0 else "to rounding"
        return self._row(name, worst, self.rounding, note)

    def other_dtype(self, name: str) -> CheckRow:
        if self.A.dtype is not None:
            return CheckRow(name, None, note=f"takes {self.A.dtype} alone")
        other = torch.float32 if self.dtype == torch.float64 else torch.float64
        y = self.A(self.x.to(other))
        error = _relative(y.to(self.dtype), self.A(self.x.clone()))
        row = self._row(name, error, 500 * _EPS[torch.float32])
        if y.dtype != other:
            return CheckRow(name, False, note=f"{other} gives {y.dtype}")
        return row

    def gradient(self, name: str) -> CheckRow:
        return self._against_differences(name, self.A.vjp)

    def autograd(self, name: str) -> CheckRow:
        def backward(x: Tensor, v: Tensor) -> Tensor:
            x.requires_grad_()
            (g,) = torch.autograd.grad(self.A(x), x, v, materialize_grads=True)
            return g

        return self._against_differences(name, backward)

    def _against_differences(
        self, name: str, vjp: Callable[[Tensor, Tensor], Tensor]
    ) -> CheckRow:
        """<J^T v, w> against central differences of <A(x + h w), v>, of the batch as
        one, whatever it couples.

        Along the gradient itself, where an error of its length shows in full, and along
        two random directions; at two steps, as one may meet a kink.
        """
        dtype = self._widest()
        h = _EPS[dtype] ** (1 / 3)
        x = self.x.to(dtype)
        g = vjp(self.x.clone(), self.v.clone())
        directions = [self.images(), self.images()]
        if _norm(g) > 0:
            directions.append(g * (g.numel() ** 0.5 / _norm(g)))
        worst = 0.0
        for w in directions:
            scale = _norm(g) * _norm(w) + 1e-300
            errors = []
            for step in (h, h / 8):
                ahead, behind = self.A(x + step * w), self.A(x - step * w)
                numeric = _dot((ahead - behind) / (2 * step), self.v)
                errors.append(abs(numeric - _dot(g, w)) / scale)
            worst = max(worst, min(errors), key=_nan_first)
        return self._row(name, worst, 10 * h + self.rounding)

    def _widest(self) -> torch.dtype:
        """float64 unless A has none."""
        try:
            self.A(self.x.double())
        except Exception:
            return self.dtype
        return torch.float64

    def adjoint(self, name: str) -> CheckRow:
        """With random vectors, and with single pixels at the border of the image."""
        if self.A.linear:
            forward = self.A
            backward = lambda v: self.A.adjoint(v, self.shape)  # noqa: E731
        else:
            forward = lambda w: self.A.jvp(self.x.clone(), w)  # type: ignore[assignment]  # noqa: E731
            backward = lambda v: self.A.vjp(self.x.clone(), v)  # noqa: E731
        corner = torch.zeros_like(self.x)
        corner[..., 0, :] = corner[..., :, 0] = self.images()[..., 0, :1]
        corner[..., -1, :] = corner[..., :, -1] = self.images()[..., -1, :1]
        worst = 0.0
        for w in (self.images(), corner):
            y, g = forward(w.clone()), backward(self.v.clone())
            scale = _norm(y) * _norm(self.v) + _norm(w) * _norm(g) + 1e-300
            error = abs(_dot(y, self.v) - _dot(w, g)) / scale
            worst = max(worst, error, key=_nan_first)
        return self._row(name, worst, self.rounding)

    def residual_gradient(self, name: str) -> CheckRow:
        gradient, sqnorm = self.A.residual_gradient(self.x.clone(), self.v.clone())
        r = self.A(self.x.clone()) - self.v
        expected = self.A.vjp(self.x.clone(), r)
        error = max(
            _relative(gradient, expected), _relative(sqnorm, _norms(r).square())
        )
        return self._row(name, error, self.rounding)

    def linear(self, name: str) -> CheckRow:
        if not self.A.linear:
            return CheckRow(name, None, note="not claimed")
        expected = 1.7 * self.A(self.x.clone()) - 0.3 * self.A(self.z.clone())
        error = _relative(self.A(1.7 * self.x - 0.3 * self.z), expected)
        return self._row(name, error, self.rounding)

    def norm(self, name: str) -> CheckRow:
        """Against what A does to a vector after fifty power iterations, which is
        never more and not far below."""
        if not self.A.linear:
            return CheckRow(name, None, note="not linear")
        claimed = self.A.norm(self.shape, dtype=self.dtype, device=self.device)
        w = self.images()[:1]
        for _ in range(50):
            w = self.A.adjoint(self.A(w), self.shape)
            w = w / w.norm().clamp_min(1e-300)
        reached = self.A(w).norm().item()
        error = max(reached / claimed - 1, 0.0) if claimed else float(reached > 0)
        # the square of what k iterations reach is short by log(n) / (2 k) or less
        far = claimed > 1.05 * reached
        return CheckRow(
            name,
            error <= 1e-3 and not far,
            error,
            1e-3,
            f"{claimed:.6g}, a power iteration reaches {reached:.6g}",
        )

    def prox(self, name: str) -> CheckRow:
        if not self.A.linear:
            return CheckRow(name, None, note="not linear")
        rho = 0.1
        x = self.A.prox(self.x.clone(), self.v.clone(), rho)
        left = self.A.adjoint(self.A(x), self.shape) + rho * x
        right = self.A.adjoint(self.v.clone(), self.shape) + rho * self.x
        error = (_norms(left - right) / (_norms(right) + 1e-300)).max().item()
        allowed = 1e-4 if self.dtype == torch.float32 else 1e-9
        return self._row(name, error, allowed)


def _norms(t: Tensor) -> Tensor:
    return t.double().flatten(1).norm(dim=1)


def _norm(t: Tensor) -> float:
    return t.double().norm().item()


def _dot(a: Tensor, b: Tensor) -> float:
    return (a.double() * b.double()).sum().item()


def _nan_first(error: float) -> float:
    return error if error == error else float("inf")


def _relative(a: Any, b: Any) -> float:
    """Largest difference over the batch, relative to b's size; NaN counts as
    infinite."""
    a, b = a.detach().double(), b.detach().double()
    if a.shape != b.shape:
        return float("inf")
    scale = b.abs().max().item() if b.numel() else 0.0
    error = (a - b).abs().max().item() if a.numel() else 0.0
    if error != error:
        return float("inf")
    return error / scale if scale else error
