"""`diffstategrad.check`: passes every operator of the list, and finds broken ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_operators import CASES, every

import diffstategrad as dsg
from diffstategrad import check
from diffstategrad.check import CheckReport
from diffstategrad.operators import (
    Blur,
    Identity,
    Operator,
    PhaseRetrieval,
    from_callable,
)

SHAPE = (2, 6, 5)
WEIGHTS = torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.3, 0.0], [0.1, 0.1, 0.1]])
LINEAR_ROWS = ("linear", "norm", "prox")


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_operator_of_the_list_keeps_its_promises(c, dtype):
    report = check(c.operator, c.shape, dtype=dtype)
    assert report, str(report)
    assert report.failed == ()
    for name in LINEAR_ROWS:
        assert (report[name].ok is None) == (not c.operator.linear)
    assert (report["batch"].error == 0) or not c.native


def test_the_list_has_both_kinds():
    assert {c.operator.linear for c in CASES} == {True, False}


@pytest.mark.parametrize("seed", range(5))
def test_a_good_operator_passes_whatever_the_seed(seed):
    for A in (Blur(WEIGHTS), PhaseRetrieval(), Smooth()):
        report = check(A, SHAPE, seed=seed)
        assert report, str(report)


# ---- operators that are right, in Python ----


def correlate(x):
    """A blur between zeros."""
    planes = x.reshape(-1, 1, *x.shape[2:])
    return F.conv2d(planes, WEIGHTS.to(x)[None, None], padding=1).reshape(x.shape)


def spread(v):
    planes = v.reshape(-1, 1, *v.shape[2:])
    weights = WEIGHTS.to(v)[None, None]
    return F.conv_transpose2d(planes, weights, padding=1).reshape(v.shape)


class Smooth(Operator):
    """Right; the broken ones change one thing."""

    linear = True

    def out_shape(self, shape):
        return shape

    def __call__(self, x):
        return correlate(x)

    def spec(self):
        return {"name": "smooth"}


class Bent(Smooth):
    """Not linear."""

    linear = False

    def __call__(self, x):
        return torch.sin(correlate(x))


@pytest.mark.parametrize("A", [Smooth(), Bent()], ids=["linear", "not-linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_operator_in_python_that_is_right_passes(A, dtype):
    report = check(A, SHAPE, dtype=dtype)
    assert report, str(report)


def test_a_right_function_with_its_adjoint_passes():
    report = check(from_callable(correlate, linear=True, adjoint=spread), SHAPE)
    assert report, str(report)


def test_a_network_is_checked_in_the_precision_of_its_parameters():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3, padding=1), torch.nn.Tanh())
    net.requires_grad_(False)
    report = check(from_callable(net), SHAPE)
    assert report, str(report)
    assert report["other dtype"].note == "takes torch.float32 alone"


def test_a_function_that_writes_into_its_input_is_named():
    report = check(from_callable(lambda x: x.mul_(2), linear=True), SHAPE)
    assert report["input unchanged"].note == "A(x) writes into x"


# ---- broken operators ----


class WrongAdjointAtTheBorder(Smooth):
    def _adjoint(self, v, image):
        g = spread(v).clone()
        g[..., 0, :] *= 0.5
        return g


class CoupledBatch(Bent):
    def __call__(self, x):
        return correlate(x - 0.01 * x.mean(0))


class Normalised(Bent):
    """By the largest value of the batch."""

    def __call__(self, x):
        return x / x.abs().amax().detach()


class Counts(Bent):
    calls = 0

    def __call__(self, x):
        self.calls += 1
        return correlate(x) * (1 + 1e-9 * self.calls)


class DifferentiatesAtTheLastImage(Bent):
    """Its vjp takes what the last call left."""

    def __call__(self, x):
        self.last = x.detach().clone()
        return super().__call__(x)

    def vjp(self, x, v):
        if self.last.shape != x.shape:
            return super().vjp(x, v)
        return super().vjp(self.last, v)


class RemembersByAddress(Bent):
    """Returns the last result when an image lies where the last one lay."""

    last = None

    def __call__(self, x):
        key = (x.data_ptr(), tuple(x.shape), x.dtype, x.requires_grad)
        if self.last is None or self.last[0] != key or x.requires_grad:
            self.last = (key, super().__call__(x), x)
        return self.last[1]


class WritesIntoItsInput(Bent):
    def __call__(self, x):
        with torch.no_grad():
            x.clamp_(-0.5, 0.5)
        return super().__call__(x)


class WritesIntoTheCotangent(Bent):
    def vjp(self, x, v):
        return super().vjp(x, v.mul_(1 + 1e-6))


class GivesSinglePrecision(Bent):
    def __call__(self, x):
        return super().__call__(x).float()


class GivesDoublePrecision(Bent):
    def __call__(self, x):
        return super().__call__(x).double()


class RoundsToSinglePrecision(Bent):
    """Of the right dtype, but for half of its digits."""

    def __call__(self, x):
        return super().__call__(
            x.bfloat16().to(x.dtype) if x.dtype == torch.float32 else x
        )


class Affine(Smooth):
    def __call__(self, x):
        return correlate(x) + 0.1


class SlightlyBent(Smooth):
    def __call__(self, x):
        return correlate(x + 1e-3 * x**3)


class NormTooLarge(Smooth):
    def norm(self, shape, **options):
        return 1.2 * super().norm(shape, **options)


class NormTooSmall(Smooth):
    def norm(self, shape, **options):
        return 0.9 * super().norm(shape, **options)


class NormOfNothing(Smooth):
    def norm(self, shape, **options):
        return 0.0


class Random(Bent):
    def __call__(self, x):
        return super().__call__(x) + 1e-9 * torch.randn(x.shape, dtype=x.dtype)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, v):
        return 0.99 * v


class WrongGradient(Bent):
    def __call__(self, x):
        return super().__call__(Halved.apply(x))


class RightVjpButWrongAutograd(Bent):
    def __call__(self, x):
        return super().__call__(Halved.apply(x))

    def vjp(self, x, v):
        return Bent().vjp(x, v)


class CutsTheGraph(Bent):
    def __call__(self, x):
        return super().__call__(x.detach())


class WrongShape(Smooth):
    def out_shape(self, shape):
        return shape[0], shape[1], shape[2] - 1


class NaN(Bent):
    def __call__(self, x):
        return torch.where(x > x.amax((1, 2, 3), keepdim=True) - 1e-9, torch.nan, x)


class WrongResidualGradient(Bent):
    def residual_gradient(self, x, y):
        gradient, sqnorm = super().residual_gradient(x, y)
        return 2 * gradient, sqnorm


class ResidualNotSquared(Bent):
    def residual_gradient(self, x, y):
        gradient, sqnorm = super().residual_gradient(x, y)
        return gradient, sqnorm.sqrt()


class WrongJvp(Bent):
    def jvp(self, x, w):
        return correlate(w)


class WrongProx(Smooth):
    def prox(self, v, y, rho, **options):
        return super().prox(v, y, 2 * rho, **options)


class Raises(Bent):
    def __call__(self, x):
        raise KeyError("weights")


class RaisesForOneImage(Bent):
    def __call__(self, x):
        if len(x) == 1:
            raise KeyError("batch")
        return super().__call__(x)


BROKEN = [
    (WrongAdjointAtTheBorder, {"adjoint"}),
    (CoupledBatch, {"batch"}),
    (Normalised, {"batch"}),
    (Counts, {"deterministic", "no hidden state"}),
    (DifferentiatesAtTheLastImage, {"no hidden state"}),
    (RemembersByAddress, {"no hidden state"}),
    (WritesIntoItsInput, {"input unchanged"}),
    (WritesIntoTheCotangent, {"input unchanged"}),
    (GivesSinglePrecision, {"shape"}),
    (GivesDoublePrecision, {"other dtype"}),
    (RoundsToSinglePrecision, {"other dtype"}),
    (Affine, {"linear"}),
    (SlightlyBent, {"linear"}),
    (NormTooLarge, {"norm"}),
    (NormTooSmall, {"norm"}),
    (NormOfNothing, {"norm"}),
    (Random, {"deterministic"}),
    (WrongGradient, {"gradient", "autograd"}),
    (RightVjpButWrongAutograd, {"autograd"}),
    (CutsTheGraph, {"gradient", "autograd"}),
    (WrongShape, {"shape"}),
    (NaN, {"finite"}),
    (WrongResidualGradient, {"residual gradient"}),
    (ResidualNotSquared, {"residual gradient"}),
    (WrongJvp, {"adjoint"}),
    (WrongProx, {"prox"}),
    (Raises, {"shape"}),
    (RaisesForOneImage, {"batch"}),
]
#: Broken in one place that other promises rest on, so that more rows may fail.
ALONE = {
    WrongAdjointAtTheBorder: {"prox", "norm"},
    WritesIntoItsInput: None,
    WritesIntoTheCotangent: {"gradient", "residual gradient", "adjoint"},
    RemembersByAddress: None,
    Counts: None,
    Random: None,
    NaN: None,
    CoupledBatch: None,
    Normalised: None,
    Affine: {"adjoint", "prox", "norm", "gradient"},
    SlightlyBent: {"adjoint", "prox", "norm", "gradient"},
    GivesSinglePrecision: None,
    GivesDoublePrecision: {"gradient"},
    DifferentiatesAtTheLastImage: {"gradient", "adjoint", "batch", "residual gradient"},
    RaisesForOneImage: None,
    CutsTheGraph: None,
    RightVjpButWrongAutograd: {"residual gradient", "adjoint"},
}


@pytest.mark.parametrize(("kind", "rows"), BROKEN, ids=[k.__name__ for k, _ in BROKEN])
def test_a_broken_operator_fails_where_it_is_broken(kind, rows):
    report = check(kind(), SHAPE)
    assert not report and not report.ok
    failed = set(report.failed)
    assert rows <= failed, str(report)
    others = ALONE.get(kind, set())
    if others is not None:
        assert failed - rows <= others, str(report)
    for name in rows:
        assert report[name].ok is False


@pytest.mark.parametrize(
    "kind", [WrongGradient, WrongAdjointAtTheBorder, Affine, NormTooLarge, CoupledBatch]
)
def test_single_precision_finds_it_too(kind):
    rows = dict(BROKEN)[kind]
    assert rows <= set(check(kind(), SHAPE, dtype=torch.float32).failed)


def test_a_wrong_adjoint_of_a_function_is_found():
    A = from_callable(correlate, linear=True, adjoint=correlate)
    assert "adjoint" in check(A, SHAPE).failed


def test_a_function_that_does_not_treat_images_apart_is_found():
    report = check(from_callable(lambda x: x - x.mean()), SHAPE)
    assert report.failed == ("batch",), str(report)


# ---- the report ----


def test_the_report_of_a_good_operator():
    report = check(Blur(WEIGHTS), SHAPE)
    assert isinstance(report, CheckReport)
    assert report and report.ok and report.failed == ()
    lines = str(report).splitlines()
    assert lines[0] == repr(Blur(WEIGHTS))
    assert lines[1].split() == ["check", "error", "allowed"]
    assert len(lines) == 2 + len(report.rows)
    assert "FAILED" not in str(report)
    assert report["shape"].note.startswith("(3, 2, 6, 5) torch.float64")
    assert report["batch"].note == "bit for bit"
    for row in report.rows:
        assert row.ok is True
        assert (row.error is None) == (row.allowed is None)
        assert row.error is None or row.error <= row.allowed


def test_the_report_of_a_broken_operator():
    report = check(WrongGradient(), SHAPE)
    assert not report
    text = str(report)
    (line,) = (line for line in text.splitlines() if line.startswith("gradient"))
    assert "FAILED" in line
    # one per cent of the gradient is missing
    assert 0.009 < report["gradient"].error < 0.011
    html = report._repr_html_()
    assert html.count("<tr>") == 1 + len(report.rows)
    assert "<td>gradient</td><td>FAILED</td>" in html
    assert html.count("FAILED") == len(report.failed)


def test_what_does_not_apply_is_marked():
    report = check(Bent(), SHAPE)
    assert report["linear"].note == "not claimed"
    for name in LINEAR_ROWS:
        assert report[name].ok is None
    (line,) = (line for line in str(report).splitlines() if line.startswith("prox"))
    assert line.split() == ["prox", "-", "not", "linear"]


def test_an_exception_is_a_row_with_its_text():
    report = check(RaisesForOneImage(), SHAPE)
    assert report["batch"].note == "KeyError: 'batch'"
    assert check(Raises(), SHAPE).rows[-1].note == "KeyError: 'weights'"


def test_html_is_escaped():
    A = from_callable(lambda x: x * 1, name="<b>&")
    html = check(A, SHAPE)._repr_html_()
    assert "<b>&" not in html and "&lt;b&gt;&amp;" in html


def test_a_row_that_is_not_there_is_a_key_error():
    with pytest.raises(KeyError, match="speed"):
        check(Bent(), SHAPE)["speed"]


def test_a_report_comes_from_its_seed_alone():
    torch.manual_seed(0)
    first = check(Bent(), SHAPE, seed=3)
    before = torch.get_rng_state()
    assert check(Bent(), SHAPE, seed=3) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert check(Bent(), SHAPE, seed=4) != first


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: check(correlate, SHAPE),
            TypeError,
            "from_callable makes one.* function",
        ),
        (lambda: check(Bent(), SHAPE, dtype=torch.float16), TypeError, "got .*float16"),
        (lambda: check(Bent(), SHAPE, batch=1), ValueError, "at least 2, got 1"),
        (
            lambda: check(dsg.operators.Warp(np.zeros((2, 3, 3))), SHAPE),
            ValueError,
            "fit",
        ),
    ],
)
def test_wrong_calls_of_check_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "shape", [(4, 4), (1, 4, 4, 4), (1, 0, 4), (1, 4.0, 4), 4, None]
)
def test_a_shape_that_is_none_is_refused(shape):
    message = r"check: shape must be \(C, H, W\), three ints >= 1, got"
    with pytest.raises(ValueError, match=message):
        check(Identity(), shape)


def test_a_function_of_one_precision_is_measured_in_that():
    M = torch.eye(4, dtype=torch.float64)
    report = check(from_callable(lambda x: x @ M, linear=True), (1, 3, 4))
    assert report.failed == ("other dtype",)
