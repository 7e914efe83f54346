"""Every operator, against the expression that defines it.

`CASES` is the one list: an operator gets all the tests by a line there, with a naive
torch expression of what it computes.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import pickle
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

import diffstategrad as dsg
from diffstategrad import _core, _ops, operators
from diffstategrad.noise import CounterNoise, ReplayNoise
from diffstategrad.operators import (
    OPERATORS,
    BlindOperator,
    Blur,
    CameraBlur,
    Compose,
    Downsample,
    GaussianBlur,
    HighDynamicRange,
    Identity,
    Inpainting,
    Linear,
    MotionBlur,
    NonlinearBlur,
    PhaseRetrieval,
    Turbulence,
    Warp,
    from_callable,
)

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
# Kernels within this share of their norm of an outer product are taken for one.
SEPARABLE = 1e-6
CPU = torch.device("cpu")
# Where any value will do, one that takes few iterations.
RHO, CUTOFF = 1.0, 0.5


class Case(NamedTuple):
    name: str
    operator: operators.Operator
    shape: tuple[int, int, int]
    naive: Callable
    #: Relative difference to the naive expression that the operator may have by design.
    slack: float = 0.0
    #: By how much its derivatives magnify rounding at the images of the tests.
    stiff: float = 1.0
    #: The package's own all through; else a batch is a loop up to rounding only.
    native: bool = True
    #: Its spec says all about it.
    rebuilds: bool = True


# ---- naive expressions ----


def same(A):
    return lambda x: 1 * x


def masked(A):
    return lambda x: x * torch.from_numpy(A.mask.copy()).to(x.dtype)


def continued(x, axis, before, after, boundary):
    """The image beyond its edges, along one axis."""
    if boundary == "zero":
        pad = [0, 0, before, after] if axis == 2 else [before, after]
        return F.pad(x, pad)
    mode = {"reflect": "reflect", "circular": "wrap", "replicate": "edge"}[boundary]
    index = np.pad(np.arange(x.shape[axis]), (before, after), mode=mode)
    return x.index_select(axis, torch.from_numpy(index))


def correlated(A):
    """The continued image, then torch's correlation."""

    def naive(x):
        k = torch.from_numpy(A.kernel.copy()).to(x.dtype)
        padded = x.reshape(-1, 1, *x.shape[2:])
        for axis, side in zip((2, 3), k.shape, strict=True):
            before = (side - 1) // 2 if A.even == "torch" else side // 2
            after = side - 1 - before + (A.even == "grow" and side % 2 == 0)
            padded = continued(padded, axis, before, after, A.boundary)
        y = F.conv2d(padded, k[None, None])
        return y.reshape(*x.shape[:2], *y.shape[2:])

    return naive


def bicubic(n, factor):
    """Rows of weights of one axis: Keys' cubic stretched by the factor, edge pixels
    repeated."""

    def cubic(t):
        t = abs(t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0

    m = -(-n // factor)
    matrix = np.zeros((m, n))
    for o in range(m):
        centre = (o + 1) * factor + (1 - factor) / 2 + (n - factor * m) / 2
        for tap in range(int(centre - 2 * factor) - 1, int(centre + 2 * factor) + 3):
            at = (tap - 1) % (2 * n)
            matrix[o, min(at, 2 * n - 1 - at)] += cubic((centre - tap) / factor)
    return torch.from_numpy(matrix / matrix.sum(1, keepdims=True))


def resized(A):
    def naive(x):
        rows, columns = (bicubic(n, A.factor).to(x.dtype) for n in x.shape[2:])
        return rows @ x @ columns.T

    return naive


def transformed(A):
    def naive(x):
        h, w = x.shape[2:]
        pad = math.floor(A.oversample / 8 * (A.resolution or max(h, w)))
        u = F.pad((x + 1) / 2 if A.rescale else x, [pad] * 4)
        z = torch.fft.fft2(torch.fft.ifftshift(u, (-2, -1)), norm="ortho")
        return torch.fft.fftshift(z, (-2, -1)).abs()

    return naive


def clipped(A):
    return lambda x: (A.scale * x).clamp(-1, 1)


def exposed(A):
    """To linear light, blurred, and back."""

    def response(x, power, least, slope):
        u = (x + 1) / 2
        dark = u.abs() < least
        bright = u.sign() * torch.where(dark, 1, u.abs()) ** power
        return 2 * torch.where(dark, slope * u, bright) - 1

    def naive(x):
        slope = 1e-4 ** (1 / A.gamma - 1)
        light = response(x, A.gamma, 1e-4 ** (1 / A.gamma), 1 / slope)
        return response(correlated(A.blur)(light), 1 / A.gamma, 1e-4, slope)

    return naive


def multiplied(A):
    def naive(x):
        m = torch.from_numpy(A.matrix.copy()).to(x.dtype)
        return (x.flatten(1) @ m.T).reshape(-1, *A.out_shape(x.shape[1:]))

    return naive


def displaced(A):
    def naive(x):
        h, w = x.shape[2:]
        d = torch.from_numpy(A.displacement.copy()).to(x.dtype)
        i = torch.arange(h, dtype=x.dtype)[:, None] + d[1]
        j = torch.arange(w, dtype=x.dtype) + d[0]
        grid = torch.stack([2 * j / (w - 1) - 1, 2 * i / (h - 1) - 1], -1)
        return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=True)

    return naive


def composed(outer, inner):
    def naive_of(A):
        first, second = inner(A.inner), outer(A.outer)
        return lambda x: second(first(x))

    return naive_of


def called(A):
    return A.function


# ---- what they are made of ----


def kernel(h, w, seed=0):
    k = np.random.default_rng(seed).uniform(size=(h, w))
    return k / k.sum()


def sparse(n):
    k = np.zeros((n, n))
    k[0, 1], k[n // 2, n - 1], k[n - 1, 0] = 0.5, 0.3, 0.2
    return k


def mask(*shape):
    return np.random.default_rng(1).integers(0, 2, shape)


def matrix(m, n):
    """Of singular values around 1."""
    return np.random.default_rng(2).standard_normal((m, n)) / max(m, n) ** 0.5


def field(h, w, size=1.5):
    return size * np.random.default_rng(3).standard_normal((2, h, w))


def pooled(x):
    return F.avg_pool2d(x, 2)


def unpooled(v):
    return F.interpolate(v, scale_factor=2) / 4


def doubled(shape):
    return shape[0], 2 * shape[1], 2 * shape[2]


def differences(x):
    return torch.cat([x[..., 1:] - x[..., :-1], 0.5 * x[..., :1]], -1)


def wavy(x):
    return x + 0.3 * torch.sin(2 * x + x.roll(1, -1))


pool = from_callable(pooled, linear=True, image_shape=doubled)
foreign = {"native": False, "rebuilds": False}


def case(name, operator, shape, naive, slack=0.0, **more):
    return Case(name, operator, shape, naive(operator), slack, **more)


def blurs():
    """Every border, with kernels odd, even in every placement and, where the border
    allows it, larger than the image."""
    for boundary in ("reflect", "circular", "zero", "replicate"):
        sizes = [((5, 3), (2, 6, 7)), ((4, 6), (1, 7, 8))]
        if boundary != "reflect":
            sizes += [((9, 12), (2, 4, 5)), ((7, 8), (1, 1, 3))]
        for size, shape in sizes:
            odd = all(side % 2 for side in size)
            for even in ("same",) if odd else ("same", "grow", "torch"):
                A = Blur(kernel(*size), boundary=boundary, even=even)
                name = f"blur-{boundary}-{size[0]}x{size[1]}-{even}"
                yield case(name, A, shape, correlated)
        # a column times a row takes another way
        A = Blur(np.outer([0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4]), boundary=boundary)
        yield case(f"blur-{boundary}-rank-1", A, (3, 5, 6), correlated, SEPARABLE)


CASES = [
    case("identity", Identity(), (3, 4, 5), same),
    case("mask", Inpainting(mask(5, 6)), (3, 5, 6), masked),
    case("mask-per-channel", Inpainting(mask(3, 4, 5)), (3, 4, 5), masked),
    case("mask-1-pixel", Inpainting([[1]]), (1, 1, 1), masked),
    case("mask-all-lost", Inpainting(np.zeros((3, 4))), (2, 3, 4), masked),
    case("box", Inpainting.box((12, 14), length=(3, 5), margin=2), (3, 12, 14), masked),
    case("random", Inpainting.random(9, missing=(0.3, 0.8)), (7, 9, 9), masked),
    case("blur-1-tap", Blur([[0.7]]), (1, 1, 1), correlated, SEPARABLE),
    case(
        "blur-separable",
        Blur(np.outer([0.2, 0.5, 0.3], [0.1, 0.1, 0.4, 0.3, 0.1])),
        (3, 7, 9),
        correlated,
        SEPARABLE,
    ),
    case("blur-sparse", Blur(sparse(7)), (3, 9, 10), correlated),
    case("blur-dense", Blur(kernel(9, 9)), (3, 11, 13), correlated),
    case("blur-dense-7-channels", Blur(kernel(9, 9)), (7, 10, 10), correlated),
    case("blur-2x2", Blur(kernel(2, 2)), (1, 2, 2), correlated),
    case("blur-rectangular", Blur(kernel(2, 7)), (1, 5, 8), correlated),
    case("blur-column", Blur(kernel(5, 1)), (2, 6, 1), correlated, SEPARABLE),
    case("blur-signed", Blur(kernel(5, 5) - 0.04), (2, 7, 6), correlated),
    *blurs(),
    case("gaussian", GaussianBlur(7, 1.0), (3, 8, 9), correlated, SEPARABLE),
    case("gaussian-even", GaussianBlur(6, 1.5), (1, 9, 8), correlated, SEPARABLE),
    case("gaussian-61", GaussianBlur(61, 3.0), (1, 33, 32), correlated, SEPARABLE),
    case(
        "gaussian-circular-61",
        GaussianBlur(61, 1.5, boundary="circular"),
        (1, 8, 9),
        correlated,
        SEPARABLE,
    ),
    case("motion", MotionBlur(9, 0.5, seed=3), (3, 10, 11), correlated),
    case(
        "motion-even",
        MotionBlur(8, 0.5, seed=3, boundary="zero", even="torch"),
        (1, 6, 7),
        correlated,
    ),
    case("downsample-1", Downsample(1), (3, 4, 5), resized),
    case("downsample-2", Downsample(2), (3, 8, 6), resized),
    case("downsample-3", Downsample(3), (1, 9, 6), resized),
    case("downsample-4", Downsample(4), (3, 16, 12), resized),
    case("downsample-4-of-7-and-10", Downsample(4, ceil=True), (7, 7, 10), resized),
    case("downsample-3-of-1-pixel", Downsample(3, ceil=True), (1, 1, 1), resized),
    case("downsample-5-of-odd", Downsample(5, ceil=True), (2, 13, 4), resized),
    case("linear-square", Linear(matrix(20, 20), (1, 4, 5)), (1, 4, 5), multiplied),
    case("linear-wide", Linear(matrix(7, 24), (1, 4, 6)), (1, 4, 6), multiplied),
    case(
        "linear-tall",
        Linear(matrix(30, 12), (3, 2, 2), (2, 3, 5)),
        (3, 2, 2),
        multiplied,
    ),
    case("linear-1-pixel", Linear([[-2.5]], (1, 1, 1)), (1, 1, 1), multiplied),
    case("warp", Warp(field(6, 7)), (3, 6, 7), displaced),
    case("warp-far", Warp(field(6, 5, size=4)), (1, 6, 5), displaced),
    case("warp-away", Warp(field(3, 4) + 20), (1, 3, 4), displaced),
    case("warp-none", Warp(np.zeros((2, 3, 4))), (7, 3, 4), displaced),
    case(
        "turbulence",
        Turbulence(field(8, 7), kernel(4, 3)),
        (3, 8, 7),
        composed(correlated, displaced),
    ),
    case(
        "compose-downsample-blur",
        Downsample(2) @ Blur(kernel(3, 3), boundary="circular"),
        (3, 6, 8),
        composed(resized, correlated),
    ),
    case(
        "compose-nested",
        Linear(matrix(5, 12), (1, 3, 4)) @ (Downsample(2) @ Warp(field(6, 8))),
        (1, 6, 8),
        composed(multiplied, composed(resized, displaced)),
    ),
    case(
        "compose-of-a-function",
        pool @ Blur(kernel(3, 4)),
        (2, 6, 8),
        composed(called, correlated),
        **foreign,
    ),
    case("function", pool, (3, 4, 6), called, **foreign),
    case(
        "function-with-adjoint",
        from_callable(pooled, linear=True, adjoint=unpooled, image_shape=doubled),
        (3, 4, 6),
        called,
        **foreign,
    ),
    case(
        "function-of-equal-sizes",
        from_callable(differences, linear=True),
        (1, 5, 4),
        called,
        **foreign,
    ),
    # not linear
    case("phase", PhaseRetrieval(), (1, 8, 8), transformed, stiff=30),
    case("phase-odd", PhaseRetrieval(), (2, 7, 5), transformed, stiff=30),
    case("phase-wide", PhaseRetrieval(3.0), (7, 4, 9), transformed, stiff=30),
    case(
        "phase-as-it-is",
        PhaseRetrieval(rescale=False),
        (3, 6, 6),
        transformed,
        stiff=30,
    ),
    case(
        "phase-resolution",
        PhaseRetrieval(1.0, rescale=False, resolution=32),
        (1, 5, 6),
        transformed,
        stiff=30,
    ),
    case("phase-1-pixel", PhaseRetrieval(0), (1, 1, 1), transformed),
    case("phase-not-padded", PhaseRetrieval(0), (1, 5, 4), transformed, stiff=30),
    case("hdr", HighDynamicRange(), (3, 5, 6), clipped),
    case("hdr-1-pixel", HighDynamicRange(0.7), (1, 1, 1), clipped),
    case("hdr-7-channels", HighDynamicRange(5.0), (7, 2, 3), clipped),
    case("camera", CameraBlur(kernel(5, 5)), (3, 7, 6), exposed, stiff=10),
    case(
        "camera-zero-even",
        CameraBlur(kernel(4, 4), 1.5, boundary="zero", even="grow"),
        (1, 5, 6),
        exposed,
        stiff=10,
    ),
    case("camera-linear", CameraBlur(sparse(3), 1.0), (1, 4, 5), exposed),
    case(
        "compose-phase-mask",
        PhaseRetrieval() @ Inpainting(mask(5, 6)),
        (2, 5, 6),
        composed(transformed, masked),
        stiff=30,
    ),
    case(
        "compose-blur-hdr",
        Blur(kernel(3, 3)) @ HighDynamicRange(),
        (3, 4, 5),
        composed(correlated, clipped),
    ),
    case(
        "compose-camera-phase",
        CameraBlur(kernel(3, 3)) @ PhaseRetrieval(rescale=False),
        (1, 4, 5),
        composed(exposed, transformed),
        stiff=300,
    ),
    case(
        "compose-a-function-after-phase",
        from_callable(wavy) @ PhaseRetrieval(),
        (1, 4, 6),
        composed(called, transformed),
        stiff=30,
        **foreign,
    ),
    case("function-not-linear", from_callable(wavy), (3, 4, 5), called, **foreign),
]


def parametrise(cases):
    return pytest.mark.parametrize("c", cases, ids=[c.name for c in cases])


every = parametrise(CASES)
linear_ones = parametrise([c for c in CASES if c.operator.linear])
others = parametrise([c for c in CASES if not c.operator.linear])
native_ones = parametrise([c for c in CASES if c.native])
dtypes = pytest.mark.parametrize("dtype", EPS, ids=["float32", "float64"])


def randn(*shape, seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def images(c, batch=2, seed=0, dtype=torch.float64):
    """Of any size for a linear operator; else nominal, and off black and white, where
    a camera's response is steep."""
    x = randn(batch, *c.shape, seed=seed)
    return (x if c.operator.linear else 0.9 * x.tanh()).to(dtype)


def directions(c, batch=2, seed=2, dtype=torch.float64):
    return randn(batch, *c.shape, seed=seed, dtype=dtype)


def measurements(c, batch=2, seed=1, dtype=torch.float64):
    return randn(batch, *c.operator.out_shape(c.shape), seed=seed, dtype=dtype)


def tolerance(c, dtype, scale=1.0):
    """Of an entry of A(x), J^T v or of sums of them.

    Three terms of every entry's length (pixels an entry reaches, with the FFT's log n
    below it) times eps, on entries of size about `scale`; magnified by the operator's
    slopes; and what the operator leaves out by design.
    """
    out = c.operator.out_shape(c.shape)
    reach = max(c.shape[1] * c.shape[2], out[1] * out[2])
    return scale * (3 * reach * EPS[dtype] * c.stiff + 10 * c.slack)


def close(got, expected, atol):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def like_alone(c, got, expected):
    """Bit for bit, or for somebody's torch function up to rounding."""
    if c.native:
        assert torch.equal(got, expected)
    else:
        close(got, expected, tolerance(c, got.dtype, scale=10))


@pytest.fixture
def threads():
    """Sets the number of threads, and the old one afterwards."""
    before = _core.info()["threads"]
    yield dsg.set_num_threads
    dsg.set_num_threads(before)


def test_every_kind_of_operator_is_in_the_list():
    listed = {type(c.operator) for c in CASES}
    kinds = {cls for cls in OPERATORS.values() if isinstance(cls, type)}
    # its network takes a second an image: test_nonlinear_blur.py
    kinds -= {NonlinearBlur}
    # not functions of the image alone: test_blind.py
    kinds -= {cls for cls in kinds if issubclass(cls, BlindOperator)}
    assert {Compose, *kinds} <= listed


def test_names_in_the_list_are_unique():
    assert len({c.name for c in CASES}) == len(CASES)


# ---- what it computes ----


@every
@dtypes
def test_forward_is_the_naive_expression(c, dtype):
    x = images(c, dtype=dtype)
    y = c.operator(x)
    assert y.dtype == dtype
    assert y.shape[1:] == c.operator.out_shape(c.shape)
    close(y, c.naive(x), tolerance(c, dtype, scale=4))


def naive_vjp(c, x, v):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(c.naive(x), x, v)[0]


@every
@dtypes
def test_vjp_is_that_of_autograd_on_the_naive_expression(c, dtype):
    x, v = images(c, dtype=dtype), measurements(c, dtype=dtype)
    g = c.operator.vjp(x, v)
    assert g.dtype == dtype and g.shape == x.shape
    close(g, naive_vjp(c, x, v), tolerance(c, dtype, scale=10))


@every
@dtypes
def test_jvp_is_the_transpose_of_vjp(c, dtype):
    x, w = images(c, dtype=dtype), directions(c, dtype=dtype)
    v = measurements(c, dtype=dtype)
    t = c.operator.jvp(x, w)
    assert t.dtype == dtype and t.shape == v.shape
    left = (t.double() * v.double()).sum()
    right = (w.double() * c.operator.vjp(x, v).double()).sum()
    # rounding of n entries of size 1 adds up like its root
    exact = c._replace(slack=0)
    close(left, right, tolerance(exact, dtype, 4) * max(t.numel(), w.numel()) ** 0.5)


@others
def test_jvp_is_that_of_the_naive_expression(c):
    x, w = images(c), directions(c)
    _, expected = torch.autograd.functional.jvp(c.naive, x, w)
    close(c.operator.jvp(x, w), expected, tolerance(c, torch.float64, scale=10))


@linear_ones
@dtypes
def test_the_adjoint_satisfies_the_inner_product(c, dtype):
    x, v = images(c, dtype=dtype), measurements(c, dtype=dtype)
    left = (c.operator(x).double() * v.double()).sum()
    g = c.operator.adjoint(v, c.shape)
    assert g.dtype == dtype and g.shape == x.shape
    right = (x.double() * g.double()).sum()
    # rounding of n entries of size 1 adds up like its root
    exact = c._replace(slack=0)
    close(left, right, tolerance(exact, dtype) * max(x.numel(), v.numel()) ** 0.5)


@linear_ones
def test_forward_and_adjoint_are_linear(c):
    a, b = 1.7, -0.3
    for apply, one, other in (
        (c.operator, images(c, seed=0), images(c, seed=2)),
        (
            lambda v: c.operator.adjoint(v, c.shape),
            measurements(c, seed=0),
            measurements(c, seed=2),
        ),
    ):
        expected = a * apply(one) + b * apply(other)
        # the kernel that is applied is the same, so no slack here
        atol = tolerance(c._replace(slack=0), torch.float64, scale=10)
        close(apply(a * one + b * other), expected, atol)


@linear_ones
def test_zero_gives_exactly_zero(c):
    assert not c.operator(torch.zeros(1, *c.shape)).any()


@pytest.mark.once
@others
def test_what_is_not_linear_says_so(c):
    A, x, y = c.operator, images(c), measurements(c)
    noise = CounterNoise(0, range(2), [0, 0])
    for what, call in (
        ("adjoint", lambda: A.adjoint(y, c.shape)),
        ("norm", lambda: A.norm(c.shape)),
        ("pinv", lambda: A.pinv(y, c.shape)),
        ("prox", lambda: A.prox(x, y, 0.1)),
        ("posterior_sample", lambda: A.posterior_sample(x, y, 0.1, 0.1, noise)),
    ):
        message = f"{type(A).__name__} is not linear: it has no {what}"
        with pytest.raises(NotImplementedError, match=message):
            call()
    assert noise.draw == 0  # nothing was taken from the source


@every
@dtypes
def test_residual_gradient_is_forward_subtract_vjp(c, dtype):
    x, y = images(c, dtype=dtype), measurements(c, dtype=dtype)
    gradient, sqnorm = c.operator.residual_gradient(x, y)
    r = c.operator(x) - y
    exact = c._replace(slack=0)
    close(gradient, c.operator.vjp(x, r), tolerance(exact, dtype, scale=10))
    expected = r.double().square().flatten(1).sum(1)
    assert sqnorm.dtype == torch.float64
    # a squared residual of relative rounding 2 eps each, sizes as above
    rtol = 2 * tolerance(exact, dtype, scale=2)
    torch.testing.assert_close(sqnorm, expected, rtol=rtol, atol=0)


@every
def test_residual_gradient_is_that_of_autograd_on_the_naive_expression(c):
    x, y = images(c).requires_grad_(), measurements(c)
    sqnorm = (c.naive(x) - y).square().flatten(1).sum(1)
    (expected,) = torch.autograd.grad(0.5 * sqnorm.sum(), x)
    gradient, got = c.operator.residual_gradient(x, y)
    assert not gradient.requires_grad
    atol = tolerance(c, torch.float64, scale=10)
    close(gradient, expected, atol)
    close(got, sqnorm.detach(), atol * y[0].numel())


@every
def test_float32_and_float64_agree(c):
    x, y = images(c), measurements(c)
    atol = tolerance(c, torch.float32, scale=10)
    close(c.operator(x.float()).double(), c.operator(x), atol)
    for single, double in zip(
        c.operator.residual_gradient(x.float(), y.float()),
        c.operator.residual_gradient(x, y),
        strict=True,
    ):
        torch.testing.assert_close(single.double(), double, rtol=atol, atol=atol)


# ---- gradients ----

# Steps of 1e-6 on float64: what central differences get right.
differences_of = functools.partial(torch.autograd.gradcheck, fast_mode=True)
second_differences_of = functools.partial(torch.autograd.gradgradcheck, fast_mode=True)


@every
def test_derivatives_pass_gradcheck_and_gradgradcheck(c):
    x = images(c, batch=1).requires_grad_()
    assert differences_of(c.operator, x)
    assert second_differences_of(c.operator, x)


@linear_ones
def test_the_adjoint_passes_gradcheck_and_gradgradcheck(c):
    v = measurements(c, batch=1).requires_grad_()
    adjoint = lambda v: c.operator.adjoint(v, c.shape)  # noqa: E731
    assert differences_of(adjoint, v)
    assert second_differences_of(adjoint, v)


@native_ones
def test_vjp_and_jvp_are_differentiable_in_both_arguments(c):
    x = images(c, batch=1).requires_grad_()
    v = measurements(c, batch=1).requires_grad_()
    w = directions(c, batch=1).requires_grad_()
    # of a linear operator's, the derivative in x is 0 and not in the graph
    assert differences_of(lambda x, v: c.operator.vjp(x, v) + 0 * x, (x, v))
    assert differences_of(lambda x, w: c.operator.jvp(x, w) + 0 * x.sum(), (x, w))


@every
def test_backward_is_vjp(c):
    x, v = images(c).requires_grad_(), measurements(c)
    (g,) = torch.autograd.grad(c.operator(x), x, v)
    assert torch.equal(g, c.operator.vjp(x.detach(), v))
    if c.operator.linear:
        like_alone(c, g, c.operator.adjoint(v, c.shape))


@linear_ones
def test_double_backward_of_a_square_is_the_normal_operator(c):
    x, w = images(c).requires_grad_(), images(c, seed=3)
    (g,) = torch.autograd.grad(0.5 * c.operator(x).square().sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g, x, w)
    like_alone(c, h, c.operator.adjoint(c.operator(w), c.shape))


@others
def test_double_backward_of_a_square_is_that_of_the_naive_expression(c):
    x, w, y = images(c).requires_grad_(), directions(c), measurements(c)

    def curvature(forward):
        loss = 0.5 * (forward(x) - y).square().sum()
        (g,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(g, x, w)[0]

    # one more division by the size of an entry than a first derivative
    atol = tolerance(c, torch.float64, scale=10) * c.stiff
    close(curvature(c.operator), curvature(c.naive), atol)


@every
def test_without_autograd_results_are_the_same_and_carry_no_graph(c):
    A, x, v = c.operator, images(c), measurements(c)
    w = directions(c)
    calls = [
        lambda: A(x.clone().requires_grad_()),
        lambda: A.vjp(x.clone(), v.clone()),
        lambda: A.jvp(x.clone(), w.clone()),
        lambda: A.residual_gradient(x.clone(), v.clone())[0],
    ]
    if A.linear:
        calls.append(lambda: A.adjoint(v.clone().requires_grad_(), c.shape))
        calls.append(lambda: A.prox(x.clone().requires_grad_(), v.clone(), RHO))
    expected = [call().detach() for call in calls]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for call, one in zip(calls, expected, strict=True):
                got = call()
                assert not got.requires_grad
                assert torch.equal(got, one)


# torch's own use of torch.jit, where forward mode is first used
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@forward_mode
@every
def test_forward_mode_is_that_of_the_naive_expression(c):
    A, x, w = c.operator, images(c), directions(c)
    with forward_ad.dual_level():
        dual = A(forward_ad.make_dual(x, w))
        tangent = forward_ad.unpack_dual(dual).tangent
    _, functional = torch.func.jvp(A, (x,), (w,))
    like_alone(c, tangent, A.jvp(x, w))
    like_alone(c, functional, tangent)


@forward_mode
@native_ones
def test_derivatives_have_a_forward_mode(c):
    A, x, v = c.operator, images(c, batch=1), measurements(c, batch=1)
    w, u = directions(c, batch=1), measurements(c, batch=1, seed=3)
    inner = lambda one, other: (one * other).sum()  # noqa: E731

    def both(function, points, tangents, weight, iterated=0.0):
        """<J t, weight> in the two modes."""
        _, out = torch.func.jvp(function, points, tangents)
        leaves = [p.clone().requires_grad_() for p in points]
        grads = torch.autograd.grad(
            function(*leaves), leaves, weight, materialize_grads=True
        )
        expected = sum(inner(g, t) for g, t in zip(grads, tangents, strict=True))
        atol = tolerance(c, torch.float64, 100) * c.stiff * max(x.numel(), v.numel())
        sizes = sum(t.norm().item() for t in tangents) * weight.norm().item()
        atol += iterated * sizes
        close(inner(out, weight), expected, atol)

    both(lambda x, v: A.vjp(x, v) + 0 * x, (x, v), (w, u), directions(c, 1, seed=4))
    both(lambda w: A.jvp(x, w), (w,), (directions(c, 1, seed=5),), u)
    if A.linear:
        both(lambda v: A.adjoint(v, c.shape), (v,), (u,), w)
        rho = 0.3
        prox = lambda v, y: A.prox(v, y, rho)  # noqa: E731
        # both modes stop at that residual, of a right-hand side of this size
        left = 2 * residual_of_iterations(c, torch.float64) / rho
        left *= 1 + singular_values(c)[0].item()
        both(prox, (x, v), (w, u), directions(c, 1, seed=4), left)
        both(lambda y: prox(x, y), (v,), (u,), w, left)
        both(lambda x: prox(x, v), (x,), (w,), w, left)


@forward_mode
@parametrise([c for c in CASES if c.name in ("blur-dense", "blur-sparse", "phase-odd")])
def test_jacfwd_and_hessian_are_those_of_the_naive_expression(c):
    x, y = images(c, 1)[:, :1, :3, :2], measurements(c, 1)
    rest = images(c, 1, seed=6)

    def whole(part):
        return F.pad(part, (0, c.shape[2] - 2, 0, c.shape[1] - 3)).sum(1, True) + rest

    loss = lambda A: lambda part: 0.5 * (A(whole(part)) - y).square().sum()  # noqa: E731
    atol = tolerance(c, torch.float64, scale=10) * c.stiff * y.numel()
    for derivative, of in (
        (torch.func.jacfwd, lambda A: lambda part: A(whole(part))),
        (torch.func.hessian, loss),
    ):
        close(derivative(of(c.operator))(x), derivative(of(c.naive))(x), atol)
    again = torch.func.jacrev(torch.func.jacfwd(loss(c.operator)))(x)
    close(again, torch.func.hessian(loss(c.naive))(x), atol)


@forward_mode
def test_forward_mode_raises_where_a_derivative_does_not_exist():
    A, x = PhaseRetrieval(), randn(1, 1, 4, 4)
    w, v = randn(1, 1, 4, 4, seed=1), randn(1, 1, 6, 6)
    for function in (
        lambda x: A.jvp(x, w),
        lambda x: _ops.curvature(x, v, w, A.key),
    ):
        with pytest.raises(NotImplementedError, match="has no forward mode"):
            torch.func.jvp(function, (x,), (w,))


# ---- somebody's function ----


def test_derivatives_of_a_function_are_differentiable():
    A = from_callable(wavy)
    x, v, w = (randn(1, 1, 3, 4, seed=s).requires_grad_() for s in range(3))
    assert torch.autograd.gradcheck(A.vjp, (x, v))
    assert torch.autograd.gradcheck(A.jvp, (x, w))
    assert torch.autograd.gradcheck(lambda x: A.vjp(2 * x, v), (x,))
    # nobody asks: no graph
    assert not A.vjp(x.detach(), v.detach()).requires_grad
    assert not A.jvp(x.detach(), w.detach()).requires_grad


@pytest.mark.parametrize(
    "function",
    [lambda x: torch.ones_like(x), lambda x: x.detach() * torch.nn.Parameter(x[:1, 0])],
    ids=["constant", "detached"],
)
def test_a_function_without_a_derivative_says_so(function):
    A = from_callable(function, linear=True)
    x = randn(1, 1, 2, 3)
    for call in (
        lambda: A.vjp(x, x),
        lambda: A.jvp(x, x),
        lambda: A.residual_gradient(x, x),
        lambda: A.adjoint(x),
    ):
        with pytest.raises(ValueError, match="does not depend on x, or not by differ"):
            call()


def test_a_step_has_the_derivative_zero():
    A, x = from_callable(torch.sign), randn(1, 1, 2, 3)
    assert not A.vjp(x, x).any() and not A.jvp(x, x).any()


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (lambda x: x.numpy(), TypeError, "must give a tensor, got ndarray"),
        (lambda x: x[0], ValueError, r"must give a tensor \(2, C, H, W\) for .* got"),
        (lambda x: x[:1], ValueError, r"must give a tensor \(2, C, H, W\) for .* got"),
        (lambda x: x.float(), TypeError, "must give torch.float64 .* torch.float32"),
        (lambda x: x + 1j, TypeError, "must give torch.float64 .* torch.complex128"),
        (lambda x: x.to("meta"), ValueError, "must give a tensor on cpu, got meta"),
    ],
)
def test_what_a_function_returns_is_checked(function, kind, message):
    A = from_callable(function, name="mine")
    with pytest.raises(kind, match=f"^mine {message}"):
        A(randn(2, 1, 3, 4))


def test_a_function_must_keep_its_claimed_shape():
    A = from_callable(pooled, out_shape=(1, 3, 3), name="mine")
    with pytest.raises(ValueError, match=r"mine .* out_shape \(1, 3, 3\), got .*2, 2"):
        A(randn(2, 1, 4, 4))


class Counting(torch.nn.Module):
    """With a state, in double precision."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(1, dtype=torch.float64)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.norm(x)[..., ::2]


@pytest.mark.parametrize("of", [lambda m: m, lambda m: m.forward])
def test_asking_for_a_shape_leaves_a_module_as_it_was(of):
    module = Counting()
    module.norm.eval()
    before = copy.deepcopy(module.state_dict())
    assert from_callable(of(module)).out_shape((1, 3, 4)) == (1, 3, 2)
    assert module.training and not module.norm.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_shape_of_what_a_function_gave_is_remembered():
    M, seen = randn(4, 4), []

    def function(x):
        seen.append((x.dtype, tuple(x.shape)))
        return x @ M

    A = from_callable(function, linear=True)
    x = randn(2, 1, 3, 4)
    A.measure(x, 0.0)
    assert A.out_shape((1, 3, 4)) == (1, 3, 4)
    assert seen == [(torch.float64, (2, 1, 3, 4))]
    # and images of another size are of the dtype at hand
    assert A.vjp(x[:, :, :2], x[:, :, :2]).shape == (2, 1, 2, 4)
    assert {dtype for dtype, _ in seen} == {torch.float64}


# ---- torch.func, torch.vmap ----


@every
def test_vmap_is_a_loop(c):
    A, n = c.operator, 3
    x = randn(n, 2, *c.shape) if A.linear else 0.9 * randn(n, 2, *c.shape).tanh()
    got = torch.vmap(A)(x)
    assert got.shape == (n, 2, *A.out_shape(c.shape))
    for i in range(n):
        like_alone(c, got[i], A(x[i]))
    # the axis that is mapped over may be any, and there may be two
    like_alone(c, torch.vmap(A, in_dims=2)(x.movedim(0, 2)), got)
    like_alone(c, torch.vmap(torch.vmap(A))(x[None])[0], got)


@native_ones
def test_vmap_of_derivatives_is_a_loop(c):
    A, n = c.operator, 2
    functions = (
        (A.vjp, images(c, 2 * n), measurements(c, 2 * n)),
        (A.jvp, images(c, 2 * n), directions(c, 2 * n)),
    )
    both = ((0, 0), (None, 0), (0, None), (1, 3))
    for (function, one, other), in_dims in itertools.product(functions, both):
        pairs = [t.unflatten(0, (n, 2)) for t in (one, other)]
        given = [
            t[0] if dim is None else t.movedim(0, dim)
            for t, dim in zip(pairs, in_dims, strict=True)
        ]
        got = torch.vmap(function, in_dims=in_dims)(*given)
        for i in range(n):
            parts = [
                t[0 if dim is None else i]
                for t, dim in zip(pairs, in_dims, strict=True)
            ]
            assert torch.equal(got[i], function(*parts))


@linear_ones
def test_vmap_of_adjoint_and_prox_is_a_loop(c):
    A, n = c.operator, 2
    x, y = (t.unflatten(0, (n, 2)) for t in (images(c, 4), measurements(c, 4)))
    adjoint = torch.vmap(lambda v: A.adjoint(v, c.shape))(y)
    prox = torch.vmap(lambda y: A.prox(x[0], y, RHO))(y)
    both = torch.vmap(lambda v, y: A.prox(v, y, RHO), (0, 1))(x, y.movedim(0, 1))
    for i in range(n):
        like_alone(c, adjoint[i], A.adjoint(y[i], c.shape))
        like_alone(c, prox[i], A.prox(x[0], y[i], RHO))
        like_alone(c, both[i], A.prox(x[i], y[i], RHO))


@every
def test_functional_derivatives_are_those_of_autograd(c):
    A, x, y = c.operator, images(c), measurements(c)
    loss = lambda x: 0.5 * (A(x) - y).square().sum()  # noqa: E731
    gradient = torch.func.grad(loss)(x)
    expected, _ = A.residual_gradient(x, y)
    exact = c._replace(slack=0)
    close(gradient, expected, tolerance(exact, torch.float64, scale=10))
    _, pull = torch.func.vjp(A, x)
    like_alone(c, pull(y)[0], A.vjp(x, y))
    # of every image apart
    one = torch.func.grad(lambda x, y: 0.5 * (A(x[None])[0] - y).square().sum())
    like_alone(c, torch.vmap(one)(x, y), gradient)


# ---- what may not matter: batch, threads, layout ----


@every
@dtypes
def test_a_batch_is_a_loop_bit_for_bit_whatever_the_threads(c, dtype, threads):
    A = c.operator
    x, y = images(c, 3, dtype=dtype), measurements(c, 3, dtype=dtype)
    w = directions(c, 3, dtype=dtype)

    def run(part):
        x_, y_, w_ = x[part], y[part], w[part]
        results = [A(x_), A.vjp(x_, y_), A.jvp(x_, w_), *A.residual_gradient(x_, y_)]
        if A.linear:
            results += [A.adjoint(y_, c.shape), A.prox(x_, y_, RHO)]
        return results

    threads(1)
    together = run(slice(None))
    for i in range(3):
        for one, all_ in zip(run(slice(i, i + 1)), together, strict=True):
            if one.ndim == 1:  # squared norms: of sums of as many terms
                rtol = 0 if c.native else x[0].numel() * EPS[dtype]
                torch.testing.assert_close(one[0], all_[i], rtol=rtol, atol=0)
            else:
                like_alone(c, one[0], all_[i])
    threads(2)
    for one, two in zip(together, run(slice(None)), strict=True):
        assert torch.equal(one, two)


def non_contiguous(x):
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def strided(x):
    return torch.stack([x, x + 1], -1)[..., 0]


def negative_bit(x):
    return torch._neg_view(-x)


def numpy_reversed(x):
    return np.ascontiguousarray(x.numpy()[:, :, ::-1])[:, :, ::-1]


def with_gradient(x):
    return x.clone().requires_grad_()


@pytest.mark.once
@every
def test_the_layout_of_the_input_does_not_matter(c):
    A, x, y, w = c.operator, images(c), measurements(c), directions(c)

    def results(layout):
        x_, y_, w_ = layout(x), layout(y), layout(w)
        yield from (A(x_), A.vjp(x_, y_), A.jvp(x_, w_), *A.residual_gradient(x_, y_))
        if A.linear:
            yield A.adjoint(y_, c.shape)
            yield A.prox(x_, y_, RHO)
            yield A.pinv(y_, c.shape, cutoff=CUTOFF)

    expected = list(results(torch.clone))
    for layout in (
        non_contiguous,
        strided,
        negative_bit,
        with_gradient,
        numpy_reversed,
    ):
        for got, one in zip(results(layout), expected, strict=True):
            like_alone(c, torch.as_tensor(got).detach(), one)


@pytest.mark.once
@every
def test_expanded_inputs_are_read_right(c):
    x = randn(1, 1, *c.shape[1:])
    got = c.operator(x.expand(2, *c.shape))
    like_alone(c, got, c.operator(x.repeat(2, c.shape[0], 1, 1)))


@every
def test_inputs_are_left_alone(c):
    A, x, y, w = c.operator, images(c), measurements(c), directions(c)
    before = [t.clone() for t in (x, y, w)]
    A(x)
    A.vjp(x, y)
    A.jvp(x, w)
    A.residual_gradient(x, y)
    if A.linear:
        A.adjoint(y, c.shape)
        A.prox(x, y, RHO)
        A.pinv(y, c.shape, cutoff=CUTOFF)
        A.posterior_sample(x, y, 0.1, 0.1, CounterNoise(0, [0, 1], [0, 0]))
    for now, then in zip((x, y, w), before, strict=True):
        assert torch.equal(now, then) and not now.requires_grad


@pytest.mark.once
@every
def test_results_are_new_memory(c):
    x = images(c)
    assert c.operator(x).data_ptr() != x.data_ptr()


@pytest.mark.once
@every
@dtypes
def test_numpy_in_gives_numpy_out(c, dtype):
    A, x, y = c.operator, images(c, dtype=dtype), measurements(c, dtype=dtype)
    w = directions(c, dtype=dtype)
    x_, y_ = x.numpy(), y.numpy()
    results = [
        (A(x_), A(x)),
        (A.vjp(x_, y_), A.vjp(x, y)),
        (A.jvp(x=x_, w=w.numpy()), A.jvp(x, w)),
        *zip(A.residual_gradient(x_, y_), A.residual_gradient(x, y), strict=True),
    ]
    if A.linear:
        options = {"cutoff": CUTOFF}
        noise = [CounterNoise(0, range(2), [0, 0]) for _ in range(2)]
        results += [
            (A.adjoint(y_, c.shape), A.adjoint(y, c.shape)),
            (A.prox(x_, y_, RHO), A.prox(x, y, RHO)),
            (A.pinv(y_, c.shape, **options), A.pinv(y, c.shape, **options)),
            (
                A.posterior_sample(x_, y_, 0.1, 0.1, noise[0]),
                A.posterior_sample(x, y, 0.1, 0.1, noise[1]),
            ),
        ]
    for got, expected in results:
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, expected.numpy())


@pytest.mark.once
@every
def test_a_read_only_array_is_taken(c):
    x = images(c).numpy()
    x.flags.writeable = False
    np.testing.assert_array_equal(c.operator(x), c.operator(x.copy()))


@every
def test_an_empty_batch_gives_an_empty_batch(c):
    A, out = c.operator, c.operator.out_shape(c.shape)
    x, y = torch.empty(0, *c.shape), torch.empty(0, *out)
    assert A(x).shape == A.jvp(x, x).shape == (0, *out)
    assert A.vjp(x, y).shape == (0, *c.shape)
    gradient, sqnorm = A.residual_gradient(x, y)
    assert gradient.shape == (0, *c.shape) and sqnorm.shape == (0,)
    assert A.measure(x, 0.1).shape == (0, *out)
    if A.linear:
        noise = CounterNoise(0, [], [])
        for result in (
            A.adjoint(y, c.shape),
            A.prox(x, y, 0.1),
            A.pinv(y, c.shape),
            A.posterior_sample(x, y, 0.1, 0.1, noise),
        ):
            assert result.shape == (0, *c.shape)


@every
@dtypes
def test_meta_tensors_give_shapes(c, dtype):
    A, n = c.operator, 2
    x = torch.empty(n, *c.shape, dtype=dtype, device="meta")
    y = torch.empty(n, *A.out_shape(c.shape), dtype=dtype, device="meta")
    gradient, sqnorm = A.residual_gradient(x, y)
    results = [(A(x), y), (A.jvp(x, x), y), (A.vjp(x, y), x), (gradient, x)]
    if A.linear:
        results += [
            (A.adjoint(y, c.shape), x),
            (A.prox(x, y, 0.1), x),
            (A.pinv(y, c.shape), x),
        ]
    for got, expected in results:
        assert got.is_meta and got.dtype == dtype and got.shape == expected.shape
    assert sqnorm.is_meta and sqnorm.shape == (n,)
    z = x.clone().requires_grad_()
    assert torch.autograd.grad(A(z).sum(), z)[0].shape == x.shape


# ---- the exact data step, pseudo-inverse, norm ----


@functools.cache
def dense(c):
    """The matrix (m, n), from the operator itself."""
    n = math.prod(c.shape)
    pixels = torch.eye(n, dtype=torch.float64).reshape(n, *c.shape)
    return c.operator(pixels).flatten(1).mT.contiguous()


@functools.cache
def singular_values(c):
    return torch.linalg.svdvals(dense(c))


def closed_form(c, dtype):
    return c.operator._data_step(c.shape, dtype, CPU).closed_form


def residual_of_iterations(c, dtype):
    """Relative to the right-hand side: what conjugate gradients stop at by default."""
    if closed_form(c, dtype):
        return 0.0
    return 1e-5 if dtype == torch.float32 else 1e-10


def data_step_error(c, dtype, rho):
    """Of the solution, relative to the right-hand side: the matrix is A^T A + rho.

    Its smallest eigenvalue is rho or more.  The residual of the iterations; and
    rounding, three terms of n entries each as everywhere, in units of its largest
    eigenvalue; in closed form too, which leaves a residual of that size behind.
    """
    largest = singular_values(c)[0].item() ** 2 + rho
    n = max(math.prod(c.shape[1:]), math.prod(c.operator.out_shape(c.shape)[1:]))
    rounding = (3 * n * EPS[dtype] + 10 * c.slack) * largest
    return residual_of_iterations(c, dtype) / rho + rounding / rho


@linear_ones
@dtypes
def test_prox_solves_the_dense_normal_equations(c, dtype):
    M = dense(c)
    v, y = images(c, dtype=dtype), measurements(c, dtype=dtype)
    for rho in (1e-2, 1.0, 1e3):
        right = (y.double().flatten(1) @ M + rho * v.double().flatten(1)).mT
        normal = M.mT @ M + rho * torch.eye(M.shape[1], dtype=M.dtype)
        expected = torch.linalg.solve(normal, right).mT.reshape(v.shape)
        got = c.operator.prox(v, y, rho)
        assert got.dtype == dtype and not got.requires_grad
        error = (got.double() - expected).flatten(1).norm(dim=1).max().item()
        assert error <= data_step_error(c, dtype, rho) * right.norm(dim=0).max().item()


@linear_ones
@dtypes
def test_prox_leaves_no_gradient_of_its_objective(c, dtype):
    A, rho = c.operator, 0.1
    v, y = images(c, dtype=dtype), measurements(c, dtype=dtype)
    x = A.prox(v, y, rho)
    exact = c._replace(slack=0)
    right = A.adjoint(y, c.shape) + rho * v
    left = A.adjoint(A(x), c.shape) + rho * x
    error = (left - right).double().flatten(1).norm(dim=1)
    size = right.double().flatten(1).norm(dim=1)
    # rounding of n entries adds up like its root
    rounding = tolerance(exact, dtype, 10) * math.prod(c.shape) ** 0.5
    allowed = 1.01 * residual_of_iterations(c, dtype) * size + rounding
    assert (error <= allowed).all()


@linear_ones
def test_prox_is_differentiable_in_both_arguments(c):
    v = images(c, batch=1).requires_grad_()
    y = measurements(c, batch=1).requires_grad_()
    prox = lambda v, y: c.operator.prox(v, y, RHO)  # noqa: E731
    assert differences_of(prox, (v, y))
    assert second_differences_of(prox, (v, y))


@linear_ones
def test_a_very_large_rho_stays_at_v_and_a_small_one_fits_y(c):
    v, y = images(c), c.operator(images(c, seed=3))
    rho = 1e12
    # |x - v| <= |A^T (y - A v)| / rho
    most = singular_values(c)[0] * (y - c.operator(v)).norm() / rho
    assert (c.operator.prox(v, y, rho) - v).norm() <= most + 10 * EPS[
        v.dtype
    ] * v.norm()
    # y has an image: |A x - y|^2 <= rho |x* - v|^2
    rho = 1e-4
    x = c.operator.prox(v, y, rho)
    assert (c.operator(x) - y).norm() <= 1.01 * rho**0.5 * (
        images(c, seed=3) - v
    ).norm()


@linear_ones
@dtypes
def test_the_norm_is_the_largest_singular_value(c, dtype):
    expected = singular_values(c)[0].item()
    # an iteration's; closed forms are at rounding
    rtol = 1e-6 if dtype == torch.float64 else 1e-4
    atol = tolerance(c, dtype)
    assert (
        abs(c.operator.norm(c.shape, dtype=dtype) - expected) <= rtol * expected + atol
    )


@linear_ones
@dtypes
def test_pinv_is_the_dense_one(c, dtype):
    """Truncated in closed form, else regularised."""
    A, cutoff, M = c.operator, 0.05, dense(c)
    y = measurements(c, dtype=dtype)
    U, s, Vt = torch.linalg.svd(M, full_matrices=False)
    limit = cutoff * s[0]
    if closed_form(c, dtype):
        inverse = torch.where(s > limit, 1 / s, 0)
        # no value lies so near the limit that rounding decides
        assert not ((s - limit).abs() < 1e-5 * limit).logical_and(s > 0).any()
    else:
        inverse = torch.where(s > 0, s / (s**2 + limit**2), 0)
    expected = (y.double().flatten(1) @ U * inverse) @ Vt
    got = A.pinv(y, c.shape, cutoff=cutoff)
    assert got.dtype == dtype and got.shape == (2, *c.shape)
    error = (got.double().flatten(1) - expected).norm(dim=1).max().item()
    rho = max(limit.item() ** 2, 1e-300)
    size = (y.double().flatten(1) @ M).norm(dim=1).max().item()
    assert error <= data_step_error(c, dtype, rho) * size


@linear_ones
def test_measuring_the_pinv_of_a_measurement_gives_it_back(c):
    """A A^+ A = A, but for what lies below the cutoff."""
    A, x = c.operator, images(c)
    y, cutoff = A(x), 1e-2
    again = A(A.pinv(y, c.shape, cutoff=cutoff))
    s = singular_values(c)
    limit = cutoff * s[0].item()
    if closed_form(c, torch.float64):
        most = s[s <= limit].max().item() if (s <= limit).any() else 0.0
    else:
        # s - s^3 / (s^2 + d^2) = s d^2 / (s^2 + d^2) <= d / 2
        most = 0.5 * limit
    lost = (again - y).flatten(1).norm(dim=1)
    rounding = tolerance(c._replace(slack=0), torch.float64, 10) / cutoff
    iterations = residual_of_iterations(c, torch.float64) / cutoff
    allowed = (most + rounding + iterations) * x.flatten(1).norm(dim=1)
    assert (lost <= 1.01 * allowed + rounding).all()


@linear_ones
def test_a_posterior_draw_of_no_noise_is_the_data_step(c):
    v, y = images(c), measurements(c)
    noise = CounterNoise(0, [0, 1], [0, 0])
    got = c.operator.posterior_sample(v, y, 0.3, 0.0, noise)
    assert torch.equal(got, c.operator.prox(v, y, 0.3))


@linear_ones
def test_a_posterior_draw_replays_recorded_noise(c):
    A, rho, sigma = c.operator, 0.3, 0.2
    v, y = images(c), measurements(c)
    n1, n2 = images(c, seed=5), measurements(c, seed=6)
    got = A.posterior_sample(v, y, rho, sigma, ReplayNoise([n1, n2]))
    expected = A.prox(v + sigma / rho**0.5 * n1, y + sigma * n2, rho)
    assert torch.equal(got, expected)


SMALL = [
    case("mask", Inpainting(mask(2, 3)), (1, 2, 3), masked),
    case("circular", Blur(kernel(3, 3), boundary="circular"), (1, 2, 3), correlated),
    case("reflect", Blur(sparse(3)), (1, 3, 2), correlated),
    case("linear", Linear(matrix(3, 4), (1, 2, 2)), (1, 2, 2), multiplied),
    case("function", pool, (1, 2, 4), called, **foreign),
]


@parametrise(SMALL)
def test_posterior_draws_have_the_posteriors_mean_and_covariance(c):
    N, rho, sigma = 1000, 0.4, 0.3
    v, y = images(c, 1), measurements(c, 1)
    noise = CounterNoise(3, range(N), [0] * N)
    draws = c.operator.posterior_sample(
        v.expand(N, *c.shape), y.expand(N, *y.shape[1:]), rho, sigma, noise
    ).flatten(1)
    M = dense(c)
    normal = M.mT @ M + rho * torch.eye(M.shape[1], dtype=M.dtype)
    mean = torch.linalg.solve(normal, (y.flatten() @ M + rho * v.flatten()))
    covariance = sigma**2 * torch.linalg.inv(normal)
    # six standard errors of N draws; for Gaussians those of a covariance are known
    variances = covariance.diagonal()
    assert ((draws.mean(0) - mean).abs() <= 6 * (variances / N).sqrt()).all()
    error = ((variances[:, None] * variances + covariance**2) / N).sqrt()
    assert ((draws.mT.cov() - covariance).abs() <= 6 * error).all()


ITERATED = [c for c in CASES if c.operator.linear and not closed_form(c, torch.float64)]


def test_there_are_closed_forms_and_iterations_in_the_list():
    closed = {
        c.name
        for c in CASES
        if c.operator.linear and closed_form(c, torch.float64) and c.native
    }
    assert {"identity", "mask", "gaussian", "downsample-4", "linear-wide"} <= closed
    assert {"blur-dense", "warp", "turbulence"} <= {c.name for c in ITERATED}


def different_singular_values(c):
    s = singular_values(c)
    return len((s / max(s[0], 1e-300)).round(decimals=6).unique())


@parametrise([c for c in ITERATED if different_singular_values(c) > 10])
def test_too_few_iterations_are_an_error_that_says_where_they_got(c):
    v, y = images(c), measurements(c)
    v[0], y[0] = 0, 0  # that image is solved at once; the other is not
    A, name = c.operator, type(c.operator).__name__
    where = r"image 1 reached a relative residual of .*e.* in 1 iterations .* 1.0e-14"
    with pytest.raises(dsg.NumericalError, match=rf"{name}\.prox: {where}"):
        A.prox(v, y, 1e-4, tolerance=1e-14, iterations=1)
    with pytest.raises(dsg.NumericalError, match=rf"{name}\.pinv: {where}"):
        A.pinv(y, c.shape, tolerance=1e-14, iterations=1)
    with pytest.raises(dsg.NumericalError, match=rf"{name}\.prox: image 0"):
        A.posterior_sample(
            *(v, y, 1e-4, 0.1, CounterNoise(0, [0, 1], [0, 0])),
            **{"tolerance": 1e-14, "iterations": 1},
        )


@pytest.mark.once
@linear_ones
def test_wrong_options_of_prox_and_pinv_are_refused(c):
    x, y = images(c), measurements(c)
    for options, message in (
        ({"rho": 0.0}, "rho must be finite and > 0, got 0"),
        ({"rho": -1.0}, "rho must be finite and > 0, got -1"),
        ({"rho": float("nan")}, "rho must be finite and > 0, got nan"),
        ({"rho": float("inf")}, "rho must be finite and > 0, got inf"),
        ({"tolerance": 0.0}, "tolerance must be finite and > 0, got 0"),
        ({"iterations": 0}, "iterations must be .* got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            c.operator.prox(x, y, **({"rho": 0.1} | options))
    for cutoff in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="cutoff must be in the range"):
            c.operator.pinv(y, c.shape, cutoff=cutoff)


@parametrise(ITERATED)
def test_nan_in_a_data_step_is_named(c):
    v, y, name = images(c), measurements(c), type(c.operator).__name__
    bad = v.clone()
    bad[1, 0, 0, 0] = torch.nan
    message = rf"{name}\.prox: image 1: v or y has NaN or infinite"
    with pytest.raises(dsg.NumericalError, match=message):
        c.operator.prox(bad, y, 0.1)
    if not singular_values(c).any():
        return  # nothing of y is read
    y[1] = torch.nan
    message = rf"{name}\.pinv: image 1: y has NaN or infinite"
    with pytest.raises(dsg.NumericalError, match=message):
        c.operator.pinv(y, c.shape)


@pytest.mark.parametrize(
    ("rho", "sigma", "message"),
    [
        (0.1, -1.0, "sigma must be >= 0, got -1"),
        (0.1, float("nan"), "sigma must be >= 0, got nan"),
        (0.0, 0.1, "rho must be > 0, got 0"),
        (float("inf"), 0.1, "rho must be > 0, got inf"),
    ],
)
def test_wrong_options_of_a_posterior_draw_are_refused(rho, sigma, message):
    x, noise = torch.zeros(1, 1, 2, 2), CounterNoise(0, [0], [0])
    with pytest.raises(ValueError, match=f"posterior_sample: {message}"):
        Identity().posterior_sample(x, x, rho, sigma, noise)
    assert noise.draw == 0


# ---- measuring ----


@pytest.mark.once
@every
@dtypes
def test_measuring_without_noise_is_the_operator(c, dtype):
    x = images(c, dtype=dtype)
    assert torch.equal(c.operator.measure(x, 0.0), c.operator(x))


@pytest.mark.once
@every
def test_measurement_noise_comes_from_the_seed_alone(c):
    x = images(c, 3)
    y = c.operator.measure(x, 0.1, seed=5)
    assert torch.equal(c.operator.measure(x, 0.1, seed=5), y)
    assert not torch.equal(c.operator.measure(x, 0.1, seed=6), y)
    # the first image of a batch is the image alone; noise of others differs
    like_alone(c, c.operator.measure(x[:1], 0.1, seed=5)[0], y[0])
    noise = y - c.operator(x)
    assert not torch.equal(noise[0], noise[1])
    assert not y.requires_grad


@pytest.mark.once
@every
def test_measuring_an_array_gives_the_same_array(c):
    x = images(c)
    y = c.operator.measure(numpy_reversed(x), 0.1, seed=5)
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, c.operator.measure(x, 0.1, seed=5).numpy())


def test_measurement_noise_has_the_given_standard_deviation():
    A = Inpainting(np.zeros((100, 100)))
    y = A.measure(torch.zeros(1, 3, 100, 100), 0.3)
    # a standard deviation from n samples is known to 1 / sqrt(2 n); five of them
    assert abs(y.std().item() / 0.3 - 1) < 5 / (2 * y.numel()) ** 0.5


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_a_wrong_noise_level_is_refused(sigma):
    with pytest.raises(ValueError, match=f"sigma must be >= 0, got {sigma}"):
        Downsample(2).measure(torch.zeros(1, 1, 4, 4), sigma)


# ---- describing ----


@pytest.mark.once
@parametrise([c for c in CASES if c.rebuilds])
def test_the_spec_builds_the_same_operator_again(c):
    again = operators.build(c.operator.spec())
    assert type(again) is type(c.operator)
    x = images(c)
    assert torch.equal(again(x), c.operator(x))
    assert repr(again) == repr(c.operator)
    np.testing.assert_equal(again.spec(), c.operator.spec())


def test_the_spec_of_a_function_has_its_name_and_cannot_build_it():
    spec = pool.spec()
    assert spec == {"name": "from_callable", "function": "pooled", "linear": True}
    with pytest.raises(ValueError, match="unknown operator 'from_callable'"):
        operators.build(spec)


@pytest.mark.once
@every
def test_a_copy_works_by_itself(c):
    # handles and keys have been made, and must stay behind
    x, v = images(c).requires_grad_(), measurements(c)
    y = c.operator(x)
    (g,) = torch.autograd.grad(y, x, v)
    if c.operator.linear:
        expected = c.operator.prox(images(c), v, RHO)
    for copied in (lambda A: pickle.loads(pickle.dumps(A)), copy.deepcopy, copy.copy):
        again = copied(c.operator)
        assert again.key != c.operator.key
        assert torch.equal(again(x), y)
        assert torch.equal(torch.autograd.grad(again(x), x, v)[0], g)
        if c.operator.linear:
            assert torch.equal(again.prox(images(c), v, RHO), expected)


@pytest.mark.once
@every
def test_the_repr_names_the_class(c):
    A = c.operator
    while type(A) is Compose:
        A = A.outer
    assert repr(c.operator).startswith(type(A).__name__ + "(")
    assert len(repr(c.operator)) < 300


@pytest.mark.core_only
@every
def test_a_native_operator_has_one_handle(c):
    handle = c.operator.native(c.shape, torch.float64)
    assert (handle is not None) == c.native
    if c.native:
        assert handle.in_shape == c.shape
        assert handle.out_shape == c.operator.out_shape(c.shape)
        assert c.operator.native(c.shape, torch.float64) is handle


@pytest.mark.once
@every
def test_the_image_shape_of_a_measurement_measures_to_it(c):
    A, out = c.operator, c.operator.out_shape(c.shape)
    if getattr(A, "ceil", False):
        with pytest.raises(ValueError, match=r"images of several sizes .* give the im"):
            A.image_shape(out)
    else:
        assert A.out_shape(A.image_shape(out)) == out


# ---- errors ----


def functions_of(c):
    """(name, function of images or of measurements, a good argument)."""
    A, x, y = c.operator, images(c), measurements(c)
    yield "forward", A, x
    yield "vjp x", lambda t: A.vjp(t, y), x
    yield "vjp v", lambda t: A.vjp(x, t), y
    yield "jvp x", lambda t: A.jvp(t, x), x
    yield "jvp w", lambda t: A.jvp(x, t), x
    yield "residual x", lambda t: A.residual_gradient(t, y), x
    yield "residual y", lambda t: A.residual_gradient(x, t), y
    if A.linear:
        noise = CounterNoise(0, [0, 1], [0, 0])
        yield "adjoint", lambda v: A.adjoint(v, c.shape), y
        yield "pinv", lambda v: A.pinv(v, c.shape, cutoff=CUTOFF), y
        yield "prox v", lambda t: A.prox(t, y, RHO), x
        yield "prox y", lambda t: A.prox(x, t, RHO), y
        yield "draw v", lambda t: A.posterior_sample(t, y, RHO, 0.1, noise), x
        yield "draw y", lambda t: A.posterior_sample(x, t, RHO, 0.1, noise), y


ALONE = ("forward", "adjoint", "pinv")


@pytest.mark.once
@every
def test_wrong_inputs_are_refused_with_type_and_message(c):
    for name, apply, good in functions_of(c):
        with pytest.raises(TypeError, match="a tensor or an array, got list"):
            apply(good.tolist())
        with pytest.raises(TypeError, match="must be float32 or float64, got int64"):
            apply(good.numpy().astype(np.int64))
        for dtype in (torch.float16, torch.int64, torch.complex64, torch.bool):
            got = str(dtype)
            with pytest.raises(TypeError, match=f"got .*{got}"):
                apply(good.to(dtype))
        for axes in (good[0], good[None]):
            with pytest.raises(
                ValueError, match=r"4 axes|shape of the images"
            ) as error:
                apply(axes)
            assert str(tuple(axes.shape)) in str(error.value)
        if name not in ALONE:
            with pytest.raises(
                TypeError, match=r"have one dtype, got .*float(32|64) and .*float"
            ):
                apply(good.float())
            with pytest.raises(
                ValueError, match=r"on one device, got (cpu and meta|meta and cpu)"
            ):
                apply(good.to("meta"))
            with pytest.raises(
                ValueError, match=r"got|do not belong together"
            ) as error:
                apply(good[:1])
            assert str((1, *good.shape[1:])) in str(error.value)
            with pytest.raises(ValueError):
                apply(torch.cat([good] * 5, 3))
        elif name != "forward":
            with pytest.raises(ValueError, match=r"has a measurement of shape .* got"):
                apply(torch.cat([good] * 5, 3))


@pytest.mark.once
@every
def test_results_have_the_dtype_and_device_of_the_input(c):
    for dtype in EPS:
        for device in ("cpu", "meta"):
            for name, apply, good in functions_of(c):
                if name in ALONE:
                    got = apply(good.to(device, dtype))
                    assert (got.dtype, got.device.type) == (dtype, device)


@pytest.mark.once
@linear_ones
def test_a_precision_that_is_none_is_refused_by_norm(c):
    with pytest.raises(TypeError, match=r"must be float32 or float64, got .*float16"):
        c.operator.norm(c.shape, dtype=torch.float16)


@pytest.mark.parametrize(
    "A", [Warp(field(3, 4)), Linear(matrix(4, 12), (1, 3, 4)), pool]
)
def test_an_image_that_does_not_fit_is_refused(A):
    with pytest.raises(ValueError, match=r"\(1, 1, 1\)|\(1, 1, 1, 1\)"):
        A.out_shape((1, 1, 1))
    if A is not pool:  # a function has the say itself
        with pytest.raises(ValueError, match=r"\(1, 1, 1\)"):
            A(torch.zeros(2, 1, 1, 1))


# ---- lifetime ----


def test_an_operator_that_is_gone_is_named():
    A = Blur(kernel(3, 3))
    key, x = A.key, torch.zeros(1, 1, 4, 4)
    _ops.forward(x, key)
    del A
    for call in (
        lambda: _ops.forward(x, key),
        lambda: _ops.adjoint(x, key, [1, 4, 4]),
        lambda: _ops.vjp(x, x, key),
        lambda: _ops.jvp(x, x, key),
        lambda: _ops.curvature(x, x, x, key),
        lambda: _ops.prox(x, x, key, 0.1, 1e-6, 10),
    ):
        with pytest.raises(RuntimeError, match=f"{key} exists no more: keep it"):
            call()


@pytest.mark.parametrize(
    "make", [lambda: Blur(kernel(3, 3)), PhaseRetrieval], ids=["linear", "not-linear"]
)
def test_the_graph_keeps_the_operator(make):
    A = make()
    x = randn(1, 1, 4, 4).requires_grad_()
    (g,) = torch.autograd.grad(A(x).square().sum(), x, create_graph=True)
    expected = torch.autograd.grad(g.sum(), x)[0]
    y = make()(x)
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    del y
    assert torch.equal(torch.autograd.grad(g.sum(), x)[0], expected)


def test_the_graph_of_a_data_step_keeps_the_operator():
    v = randn(1, 1, 4, 4).requires_grad_()
    x = Blur(sparse(3)).prox(v, randn(1, 1, 4, 4), 0.1)
    assert torch.autograd.grad(x.sum(), v)[0].shape == v.shape


def test_keys_do_not_keep_operators():
    A = PhaseRetrieval()
    A(torch.zeros(1, 1, 4, 4))
    key = A.key
    del A
    assert key not in _ops._operators


# ---- torch.library, torch.compile ----

FOR_TORCH = [
    c for c in CASES if c.name in ("blur-dense", "blur-zero-4x6-grow", "phase-odd")
]


@parametrise(FOR_TORCH)
@pytest.mark.parametrize("dtype", [torch.float32], ids=["float32"])
def test_registered_functions_pass_opcheck(c, dtype):
    A, key = c.operator, c.operator.key
    x, w = (f(c, dtype=dtype).requires_grad_() for f in (images, directions))
    v = measurements(c, dtype=dtype).requires_grad_()
    check = torch.library.opcheck
    check(_ops._forward, (x, key))
    check(_ops._vjp, (x, v, key))
    check(_ops._jvp, (x, w, key))
    check(_ops._curvature, (x.detach(), v.detach(), w.detach(), key))
    if A.linear:
        check(_ops._adjoint, (v, key, list(c.shape)))
        check(_ops._prox, (x, v, key, 0.1, 1e-5, 100))


@pytest.fixture
def to_compile():
    """A loss, images, its value and gradient."""
    torch._dynamo.reset()
    A, P = Blur(kernel(3, 3)) @ Inpainting(mask(6, 6)), PhaseRetrieval()
    x, y = randn(2, 1, 6, 6), randn(2, 1, 8, 8)
    loss = lambda x: (P(A(x)) - y).square().sum()  # noqa: E731
    leaf = x.clone().requires_grad_()
    value = loss(leaf)
    return loss, x, value.detach(), torch.autograd.grad(value, leaf)[0]


# 128 squares, added up in another order
COMPILED = 128 * 2.0**-52


def gradient_is(loss, x, value, gradient):
    leaf = x.clone().requires_grad_()
    got = loss(leaf)
    got.backward()
    torch.testing.assert_close(got.detach(), value, rtol=COMPILED, atol=0)
    close(leaf.grad, gradient, COMPILED * gradient.abs().max().item())


def test_torch_compile_sees_one_graph(to_compile):
    loss, x, value, gradient = to_compile
    fast = torch.compile(loss, backend="aot_eager", fullgraph=True)
    gradient_is(fast, x, value, gradient)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(fast(x), value, rtol=COMPILED, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Blur(sparse(3)),
        lambda: Downsample(2) @ Blur(kernel(3, 3), boundary="circular"),
    ],
    ids=["blur", "compose"],
)
def test_torch_compile_sees_one_graph_of_a_data_step(make):
    torch._dynamo.reset()
    A, v = make(), randn(2, 1, 6, 6)
    y = A(v)
    step = torch.compile(
        lambda v, y: A.prox(v, y, 0.1), backend="aot_eager", fullgraph=True
    )
    assert torch.equal(step(v, 2 * y), A.prox(v, 2 * y, 0.1))


# torch's own use of torch.jit
@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_default_backend_of_torch_compile_works(to_compile):
    loss, x, value, gradient = to_compile
    gradient_is(torch.compile(loss, fullgraph=True), x, value, gradient)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.ones(3), r"kernel must be a real array \(h, w\), got float64 of shape"),
        (np.ones((0, 3)), "must be a real array"),
        (np.ones((2, 2), bool), "got bool"),
        ([[1.0, float("nan")]], "NaN or infinite"),
        (torch.full((2, 2), torch.inf), "NaN or infinite"),
    ],
)
def test_a_wrong_kernel_is_refused(kernel, message):
    with pytest.raises(ValueError, match=f"Blur: .*{message}"):
        Blur(kernel)


def test_a_kernel_may_be_any_real_tensor():
    k = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for given in (k, k.long(), torch._neg_view(-k), k.tolist()):
        np.testing.assert_array_equal(Blur(given).kernel, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("size", "image"), [((3, 3), (1, 1)), ((1, 9), (9, 4)), ((4, 4), (2, 5))]
)
def test_a_kernel_that_reaches_over_the_image_is_refused(size, image):
    with pytest.raises(ValueError, match=r"reaches .* more than reflection"):
        Blur(np.ones(size))(torch.zeros(1, 1, *image))


@pytest.mark.core_only
@dtypes
@pytest.mark.parametrize(
    "form", [1, 2, 3, 4], ids=["separable", "sparse", "FFT", "exact"]
)
@pytest.mark.parametrize("size", [(5, 5), (4, 6), (1, 7)])
def test_every_form_of_a_blur_computes_the_same(form, size, dtype):
    name = "float64" if dtype == torch.float64 else "float32"
    A = Blur(np.outer(kernel(size[0], 1), kernel(1, size[1], seed=1)))
    c = case("", A, (2, 9, 8), correlated, SEPARABLE)
    x, v = images(c, dtype=dtype), measurements(c, dtype=dtype)
    handle = _core.blur(name, c.shape, A.kernel, *A.geometry, form)
    y, g = torch.empty_like(x), torch.empty_like(v)
    handle.forward(y, x)
    handle.vjp(g, None, v)
    close(y, c.naive(x), tolerance(c, dtype))
    x64 = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(c.naive(x64), x64, v.double())
    close(g.double(), expected, tolerance(c, dtype, scale=4))


def test_a_factor_far_beyond_the_image_is_refused():
    assert Downsample(64, ceil=True)(torch.ones(1, 1, 4, 3)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="resize"):
        Downsample(65, ceil=True)(torch.ones(1, 1, 4, 3))


@dtypes
def test_the_limits_of_a_clipped_range_belong_to_it(dtype):
    x = torch.tensor([[[[-0.501, -0.5, 0.0, 0.5, 0.501]]]], dtype=dtype)
    A, one = HighDynamicRange(2.0), torch.ones(1, 1, 1, 5, dtype=dtype)
    assert A(x).flatten().tolist() == [-1, -1, 0, 1, 1]
    assert A.vjp(x, one).flatten().tolist() == [0, 2, 2, 2, 0]


def test_a_kernel_may_reach_to_the_last_pixel():
    assert Blur(np.ones((3, 3)))(torch.ones(1, 1, 2, 2)).tolist() == [
        [[[9.0, 9.0], [9.0, 9.0]]]
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda: GaussianBlur(0),
        lambda: GaussianBlur(-3),
        lambda: GaussianBlur(5.0),
        lambda: GaussianBlur(True),
        lambda: GaussianBlur(5, 0.0),
        lambda: GaussianBlur(5, float("nan")),
        lambda: GaussianBlur(5, "3"),
        lambda: GaussianBlur(5, None),
        lambda: MotionBlur(1),
        lambda: MotionBlur(True),
        lambda: MotionBlur(9, 1.5),
        lambda: MotionBlur(9, float("nan")),
        lambda: MotionBlur(9, "0.5"),
        lambda: MotionBlur(9, seed=-1),
        lambda: MotionBlur(9, seed=2**32),
        lambda: Downsample(0),
        lambda: Downsample(2.0),
        lambda: Downsample(True),
        lambda: Inpainting(np.ones(4)),
        lambda: Inpainting(np.ones((2, 3, 4, 4))),
        lambda: Inpainting(np.ones((0, 4))),
        lambda: Inpainting([[0, 2]]),
        lambda: Inpainting([[0.0, float("nan")]]),
        lambda: Inpainting.box(16, length=16, margin=0),
        lambda: Inpainting.box(16, length=(5, 5)),
        lambda: Inpainting.box(16, length=0),
        lambda: Inpainting.box(16, length=3.0, margin=1),
        lambda: Inpainting.box(16, length=(2, 3.0), margin=1),
        lambda: Inpainting.box(16, length=(2, 3, 4), margin=1),
        lambda: Inpainting.box(16, length=3, margin=-1),
        lambda: Inpainting.box(-16, length=3, margin=1),
        lambda: Inpainting.box((16.0, 16), length=3, margin=1),
        lambda: Inpainting.box(True),
        lambda: Inpainting.random(8, missing=1.2),
        lambda: Inpainting.random(8, missing=(0.5, 0.2)),
        lambda: Inpainting.random(8, missing=float("nan")),
        lambda: Inpainting.random(8, missing="0.7"),
        lambda: Inpainting.random(8, missing=None),
        lambda: Inpainting.random(8, missing=(0.1, 0.2, 0.3)),
        lambda: Inpainting.random(8.0),
        lambda: Inpainting.random((-8, 8)),
        lambda: Inpainting.random((8, 8, 8)),
        lambda: Turbulence.random(8.0, kernel(3, 3)),
        lambda: Turbulence.random((8, -8), kernel(3, 3)),
        lambda: Linear(np.ones((4, 4)), (1, -2, -2)),
        lambda: Linear(np.ones((4, 4)), (4, 1)),
        lambda: Linear(np.ones((4, 4)), (1, 2, 2), (-1, -2, 2)),
        lambda: Blur(kernel(3, 3)).norm((4, 4)),
        lambda: Blur(kernel(3, 3)).norm((1, 4, 0)),
        lambda: pool.norm((1, 4, 4.0)),
        lambda: pool.adjoint(torch.ones(1, 1, 2, 2), (4, 4)),
        lambda: pool.pinv(torch.ones(1, 1, 2, 2), (1, -4, 4)),
        lambda: Blur(kernel(3, 3)).handle((1, 4), torch.float32, CPU),
        lambda: pool.handle((0, 4, 4), torch.float32, CPU),
    ],
)
def test_wrong_options_are_refused(call):
    with pytest.raises(ValueError, match=r"must|does not fit"):
        call()


@pytest.mark.parametrize("seed", [None, True, 1.0, "1"])
@pytest.mark.parametrize(
    "make",
    [
        lambda seed: Inpainting.random(8, seed=seed),
        lambda seed: Inpainting.box(8, length=2, margin=1, seed=seed),
        lambda seed: MotionBlur(9, seed=seed),
        lambda seed: Turbulence.random(8, kernel(3, 3), patches=1, seed=seed),
    ],
    ids=["random", "box", "motion", "turbulence"],
)
def test_a_seed_that_is_no_int_is_refused(make, seed):
    with pytest.raises(TypeError, match="seed must be an int, got"):
        make(seed)


def test_motion_blur_takes_no_generator():
    with pytest.raises(TypeError, match="seed must be an int, which a record can hold"):
        MotionBlur(9, seed=np.random.RandomState(0))


def test_numbers_of_numpy_are_options_and_give_a_record_of_json():
    A = MotionBlur(np.int64(9), np.float32(0.5), seed=np.int64(3))
    assert json.loads(json.dumps(A.spec())) == MotionBlur(9, 0.5, seed=3).spec()
    share = Inpainting.random(np.int64(10), missing=np.float32(0.5))
    assert share.mask.sum() == 50
    assert GaussianBlur(np.int64(5), np.float32(1.0)).spec()["std"] == 1.0


@pytest.mark.parametrize("option", ["boundary", "even"])
@pytest.mark.parametrize("value", [None, 0, ["zero"], True])
def test_a_placement_that_is_no_str_is_refused(option, value):
    for make in (Blur, CameraBlur):
        with pytest.raises(TypeError, match=f"Blur: {option} must be a str, got"):
            make(kernel(3, 3), **{option: value})


@pytest.mark.parametrize(
    "given",
    [
        np.ones((2, 2), complex),
        np.ones((2, 2), np.float16),
        torch.ones(2, 2, dtype=torch.complex64),
        torch.ones(2, 2, dtype=torch.bfloat16),
        torch.ones(2, 2, dtype=torch.float16),
        torch.ones(2, 2, device="meta"),
    ],
    ids=["complex-array", "half-array", "complex", "bfloat16", "float16", "meta"],
)
def test_a_constant_that_is_not_real_or_has_no_values_is_named(given):
    for make, name in (
        (Blur, "Blur: kernel"),
        (Inpainting, "Inpainting: mask"),
        (lambda m: Linear(m, (1, 1, 2)), "Linear: matrix"),
        (Warp, "Warp: displacement"),
    ):
        with pytest.raises(TypeError, match=f"^{name} must (be real|have real values)"):
            make(given)


def test_a_factor_that_does_not_divide_is_refused():
    A = Downsample(4)
    message = "image of 6 x 8 is no multiple of the factor 4; crop it, or say ceil=True"
    for call in (
        lambda: A(torch.zeros(1, 1, 6, 8)),
        lambda: A.out_shape((1, 6, 8)),
        lambda: A.norm((1, 6, 8)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="ceil must be a bool, got 1"):
        Downsample(4, ceil=1)
    assert "ceil" not in A.spec() and Downsample(4, ceil=True).spec()["ceil"] is True
    assert Downsample(1, ceil=True).image_shape((1, 2, 3)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("A", "option"),
    [
        (Downsample(2), "factor"),
        (Blur(kernel(3, 3)), "kernel"),
        (GaussianBlur(3, 1.0), "std"),
        (Identity() @ Identity(), "inner"),
    ],
)
def test_options_are_fixed(A, option):
    with pytest.raises(AttributeError, match=f"{option} cannot be changed: make a new"):
        setattr(A, option, getattr(A, option))


@native_ones
def test_the_arrays_of_a_copy_are_read_only_too(c):
    for again in (pickle.loads(pickle.dumps(c.operator)), copy.deepcopy(c.operator)):
        for array in again.spec().values():
            if isinstance(array, np.ndarray):
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0


def test_what_is_kept_is_bounded_and_computed_once():
    A = from_callable(pooled, linear=True, image_shape=doubled)
    step = A._data_step((1, 4, 4), torch.float64, CPU)
    assert A._data_step((1, 4, 4), torch.float64, CPU) is step
    B = A @ Identity()
    step = B._data_step((1, 4, 4), torch.float64, CPU)
    assert B._data_step((1, 4, 4), torch.float64, CPU) is step
    calls = 0

    def counted(x):
        nonlocal calls
        calls += 1
        return 2 * x

    C = from_callable(counted, linear=True)
    assert C.norm((1, 4, 4)) == pytest.approx(2)
    before = calls
    C.norm((1, 4, 4))
    assert calls == before
    for operator in (A, B, Blur(kernel(3, 3))):
        for side in range(4, 100, 2):
            operator.norm((1, side, 4), dtype=torch.float64)
        assert len(operator._kept) == 16


@pytest.mark.parametrize("shape", [(1, 4, 5), (2, 4, 4), (3, 5, 4)])
def test_a_mask_of_another_size_or_number_of_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r"does not fit a mask of shape \(3, 4, 4\)"):
        Inpainting(np.ones((3, 4, 4)))(torch.zeros(1, *shape))


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (1, 3, 3), (3, 3)])
@pytest.mark.parametrize("kind", [bool, np.int64, np.float32])
def test_a_mask_may_have_any_shape_and_dtype_of_a_plane(shape, kind):
    plane = mask(3, 3)
    np.testing.assert_array_equal(
        Inpainting(plane.reshape(shape).astype(kind)).mask, plane[None]
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "gausian_blur"}, "did you mean 'gaussian_blur'"),
        ({}, "unknown operator None"),
        (
            {"name": "downsample", "faktor": 2},
            "no option 'faktor'; did you mean 'factor'",
        ),
        ({"name": "blur"}, "operator blur: .*'kernel'"),
    ],
)
def test_building_from_a_wrong_spec_names_what_is_wrong(spec, message):
    with pytest.raises(ValueError, match=message):
        operators.build(spec)


@pytest.mark.parametrize("make", [Inpainting.random, Inpainting.box])
def test_masks_come_from_the_seed_alone(make):
    options = {"length": (10, 30)} if make == Inpainting.box else {}
    first = make(64, seed=1, **options).mask
    np.testing.assert_array_equal(make(64, seed=1, **options).mask, first)
    assert (make(64, seed=2, **options).mask != first).any()


def test_a_box_keeps_its_length_and_margin():
    lost = 1 - Inpainting.box((40, 50), length=(10, 12), margin=(4, 9)).mask[0]
    rows, columns = np.nonzero(lost.any(1))[0], np.nonzero(lost.any(0))[0]
    assert len(rows) in (10, 11) and len(columns) in (10, 11)
    assert lost.sum() == len(rows) * len(columns)
    assert rows[0] >= 4 and rows[-1] < 36
    assert columns[0] >= 9 and columns[-1] < 41


def test_the_given_share_of_pixels_is_lost():
    assert Inpainting.random(10, missing=0.7).mask.sum() == 30
    assert Inpainting.random(10, missing=0.0).mask.all()
    assert not Inpainting.random(10, missing=1.0).mask.any()


# ---- what a user tries first ----


def test_a_constant_that_requires_grad_is_refused():
    kernel = torch.ones(3, 3, requires_grad=True)
    for make in (Blur, lambda k: Linear(k, (1, 1, 3))):
        with pytest.raises(TypeError, match=r"requires grad.*blind_blur"):
            make(kernel)


def test_a_number_as_noise_is_named():
    with pytest.raises(TypeError, match=r"GaussianNoise\(sigma\).*got 0.05"):
        Blur(kernel(3, 3)).measure(torch.zeros(1, 1, 4, 4), noise=0.05)


def test_a_posterior_sample_takes_a_seed_or_a_generator():
    A = Blur(kernel(3, 3), boundary="circular")
    v, y = randn(2, 1, 4, 5), randn(2, 1, 4, 5, seed=1)
    one = A.posterior_sample(v, y, 0.1, 0.2, 7)
    assert torch.equal(one, A.posterior_sample(v, y, 0.1, 0.2, 7))
    # image i of a batch is the image alone at the same index
    assert torch.equal(one[:1], A.posterior_sample(v[:1], y[:1], 0.1, 0.2, 7))
    generator = torch.Generator().manual_seed(0)
    drawn = A.posterior_sample(v, y, 0.1, 0.2, generator)
    assert not torch.equal(drawn, one)
