"""The formulas in plain torch: against naive expressions, autograd on these, dense
linear algebra, and the compiled core.

`CASES` is the one list of operators: a line there gives an operator all the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffstategrad import _core, reference
from diffstategrad.reference import data_step, operators, projector
from diffstategrad.reference import metrics as metrics_

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
NAMES = {torch.float32: "float32", torch.float64: "float64"}
dtypes = pytest.mark.parametrize("dtype", EPS, ids=["float32", "float64"])

REFLECT, CIRCULAR, ZERO, REPLICATE = range(4)
MODES = {CIRCULAR: "wrap", REPLICATE: "edge", REFLECT: "reflect"}
AUTO, SEPARABLE, SPARSE, FFT = range(4)


def randn(*shape, seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def close(got, expected, atol, rtol=0.0):
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


# ---- the operators and what they compute ----


class Case(NamedTuple):
    name: str
    #: (module, dtype name) -> the operator.
    make: Callable
    naive: Callable
    shape: tuple[int, int, int]
    linear: bool = True
    #: Of images: all values, or those around a kink or a zero.
    inputs: Callable = randn


def mask_case(name, mask, shape):
    return Case(
        name,
        lambda m, d: m.mask(d, shape, np.asarray(mask, np.uint8)),
        lambda x: x * torch.as_tensor(mask).to(x.dtype),
        shape,
    )


def extended(x, before, after, border):
    """NumPy's padding by an index image, so that autograd can follow."""
    h, w = x.shape[-2:]
    pads = list(zip(before, after, strict=True))
    places = np.arange(1, h * w + 1).reshape(h, w)
    mode = {"mode": "constant"} if border == ZERO else {"mode": MODES[border]}
    places = torch.from_numpy(np.pad(places, pads, **mode))
    return F.pad(x.flatten(-2), (1, 0))[..., places]


def blur_case(name, kernel, shape, centre=None, grow=(0, 0), border=REFLECT, form=AUTO):
    kernel = np.asarray(kernel, dtype=np.float64)
    centre = centre or tuple(n // 2 for n in kernel.shape)

    def naive(x):
        after = [
            k - 1 - c + g for k, c, g in zip(kernel.shape, centre, grow, strict=True)
        ]
        planes = extended(x, centre, after, border).flatten(0, 1)[:, None]
        y = F.conv2d(planes, torch.from_numpy(kernel).to(x.dtype)[None, None])
        return y[:, 0].unflatten(0, x.shape[:2])

    return Case(
        name,
        lambda m, d: m.blur(d, shape, kernel, centre, grow, border, form),
        naive,
        shape,
    )


def bicubic(n, factor):
    def cubic(t):
        t = abs(t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0

    m = -(-n // factor)
    rows = np.zeros((m, n))
    for o in range(m):
        centre = (o + 1) * factor + (1 - factor) / 2 + (n - factor * m) / 2
        for tap in range(int(centre - 2 * factor) - 1, int(centre + 2 * factor) + 3):
            at = (tap - 1) % (2 * n)
            rows[o, min(at, 2 * n - 1 - at)] += cubic((centre - tap) / factor)
    return torch.from_numpy(rows / rows.sum(1, keepdims=True))


def resize_case(factor, shape):
    def naive(x):
        rows, columns = (bicubic(n, factor).to(x.dtype) for n in shape[1:])
        return rows @ x @ columns.T

    return Case(
        f"resize-{factor}-of-{shape[1]}x{shape[2]}",
        lambda m, d: m.resize(d, shape, factor),
        naive,
        shape,
    )


def phase_case(name, shape, pad, scale, shift):
    def naive(x):
        padded = F.pad(scale * x + shift, (pad,) * 4)
        z = torch.fft.fft2(torch.fft.ifftshift(padded, (-2, -1)), norm="ortho")
        return torch.fft.fftshift(z.abs(), (-2, -1))

    return Case(
        name,
        lambda m, d: m.phase(d, shape, pad, scale, shift),
        naive,
        shape,
        linear=False,
    )


def power(u, p, dark, slope):
    return torch.where(u.abs() < dark, slope * u, u.sign() * u.abs() ** p)


def encode(a):
    def naive(x):
        u = (x + 1) / 2
        # away from 0 on the line: autograd of |u|^p is NaN there
        safe = torch.where(u.abs() < 1e-4, 1.0, u)
        steep = safe.sign() * safe.abs() ** (1 / a)
        return 2 * torch.where(u.abs() < 1e-4, u * 1e-4 ** (1 / a - 1), steep) - 1

    return naive


def decode(a):
    def naive(x):
        r = (x + 1) / 2
        dark = 1e-4 ** (1 / a)
        safe = torch.where(r.abs() < dark, 1.0, r)
        steep = safe.sign() * safe.abs() ** a
        return 2 * torch.where(r.abs() < dark, r * 1e-4 ** (1 - 1 / a), steep) - 1

    return naive


def around_the_kinks(*shape, seed=0, dtype=torch.float64):
    """Values on both sides of |2 x| = 1 and of u = 0, both ends of the clip, and on
    the dark line."""
    x = randn(*shape, seed=seed)
    special = torch.tensor([0.5, -0.5, -1.0, -1 + 1e-5, -1 - 1.5e-4, -0.999, 1.0])
    n = min(len(special), x[0].numel())
    x.view(len(x), -1)[:, :n] = special[:n].double()
    return x.to(dtype)


def pointwise_case(name, kind, a, shape, naive):
    return Case(
        name,
        lambda m, d: m.pointwise(d, shape, kind, a),
        naive,
        shape,
        linear=False,
        inputs=around_the_kinks,
    )


def matrix_case(shape, out_shape):
    m_ = randn(math.prod(out_shape), math.prod(shape), seed=5).numpy()
    return Case(
        f"matrix-{shape}-to-{out_shape}",
        lambda m, d: m.matrix(d, shape, out_shape, m_),
        lambda x: (x.flatten(1) @ torch.from_numpy(m_).to(x.dtype).T).unflatten(
            1, out_shape
        ),
        shape,
    )


def displacement(h, w, size, seed=6):
    """Multiples of 1/64: exact in float32, and some of them whole pixels."""
    return (size * 64 * randn(2, h, w, seed=seed)).round() / 64


def warped(d):
    def naive(x):
        h, w = x.shape[-2:]
        i = torch.arange(h)[:, None] + d[1]
        j = torch.arange(w) + d[0]
        # the four neighbours, weighted by a hat function
        y = 0
        for a in range(h):
            for b in range(w):
                hat = (1 - (i - a).abs()).clamp(min=0) * (1 - (j - b).abs()).clamp(
                    min=0
                )
                y = y + hat.to(x.dtype) * x[..., a, None, b, None]
        return y

    return naive


def warp_case(name, shape, d):
    return Case(
        name,
        lambda m, dtype: m.warp(dtype, shape, d.to(getattr(torch, dtype)).numpy()),
        warped(d),
        shape,
    )


def compose_case(name, outer, inner, inputs=randn):
    return Case(
        name,
        lambda m, d: m.compose(outer.make(m, d), inner.make(m, d)),
        lambda x: outer.naive(inner.naive(x)),
        inner.shape,
        outer.linear and inner.linear,
        inputs,
    )


def kernel(h, w, seed=0):
    k = np.random.default_rng(seed).uniform(size=(h, w))
    return k / k.sum()


def outer(h, w):
    return np.outer(kernel(h, 1), kernel(1, w, seed=1))


def few(n):
    k = np.zeros((n, n))
    k[0, 1], k[n // 2, n - 1], k[n - 1, 0] = 0.5, 0.3, -0.2
    return k


rng = np.random.default_rng(1)
BORDERS = [
    blur_case(f"blur-{name}-{form}", k, (2, 9, 8), border=border, form=code)
    for border, name in enumerate(["reflect", "circular", "zero", "replicate"])
    for form, code, k in [
        ("separable", SEPARABLE, outer(5, 4)),
        ("sparse", SPARSE, kernel(4, 5)),
        ("fft", FFT, kernel(5, 6)),
    ]
]
GAMMA = pointwise_case("encode", 1, 2.2, (2, 4, 5), encode(2.2))
BLUR = blur_case("", kernel(3, 3), (2, 4, 5))
WARP = warp_case("warp", (2, 4, 5), displacement(4, 5, 1.5))
CASES = [
    mask_case("mask", rng.integers(0, 2, (1, 5, 6)), (3, 5, 6)),
    mask_case("mask-per-channel", rng.integers(0, 2, (3, 4, 5)), (3, 4, 5)),
    mask_case("mask-nothing", np.zeros((1, 3, 4), int), (2, 3, 4)),
    *BORDERS,
    blur_case("blur-1-pixel", [[0.7]], (1, 1, 1)),
    blur_case("blur-even-dps", kernel(4, 4), (2, 7, 8), (2, 2), (1, 1)),
    blur_case("blur-even-dmplug", kernel(4, 4), (2, 7, 8), (1, 1), (0, 0), ZERO),
    blur_case("blur-grow-unlike", kernel(3, 5), (1, 6, 7), (0, 4), (3, 0)),
    blur_case("blur-grow-separable", outer(4, 3), (1, 6, 7), (3, 0), (1, 2), REPLICATE),
    blur_case("blur-grow-circular", kernel(3, 3), (1, 4, 5), (1, 1), (2, 1), CIRCULAR),
    blur_case("blur-wider-than-circular", kernel(7, 9), (2, 2, 3), border=CIRCULAR),
    blur_case("blur-wider-than-zero", kernel(7, 9), (2, 2, 3), border=ZERO),
    blur_case("blur-wider-than-edge", outer(9, 7), (2, 1, 3), border=REPLICATE),
    blur_case("blur-few-taps", few(7), (3, 9, 10)),
    blur_case("blur-all-zero", np.zeros((3, 3)), (1, 4, 4)),
    blur_case("blur-large", kernel(9, 9), (3, 17, 13)),
    resize_case(1, (3, 4, 5)),
    resize_case(2, (3, 8, 6)),
    resize_case(4, (2, 16, 12)),
    resize_case(4, (2, 7, 10)),
    resize_case(3, (1, 1, 1)),
    resize_case(5, (2, 13, 4)),
    phase_case("phase", (3, 8, 8), 2, 1.0, 0.0),
    phase_case("phase-rescaled", (2, 6, 8), 3, 0.5, 0.5),
    phase_case("phase-odd", (1, 5, 7), 1, 1.0, 0.0),
    phase_case("phase-no-pad", (1, 4, 3), 0, 2.0, -0.1),
    phase_case("phase-1-pixel", (1, 1, 1), 1, 1.0, 0.0),
    pointwise_case("clip", 0, 2.0, (3, 4, 5), lambda x: (2 * x).clamp(-1, 1)),
    GAMMA,
    pointwise_case("decode", 2, 2.2, (2, 4, 5), decode(2.2)),
    pointwise_case("encode-below-1", 1, 0.7, (1, 3, 5), encode(0.7)),
    matrix_case((2, 3, 4), (1, 5, 2)),
    matrix_case((1, 2, 2), (3, 3, 1)),
    matrix_case((1, 1, 1), (1, 1, 1)),
    WARP,
    warp_case("warp-still", (1, 3, 4), torch.zeros(2, 3, 4, dtype=torch.float64)),
    warp_case("warp-away", (1, 3, 4), torch.full((2, 3, 4), 1e9).double()),
    warp_case("warp-1-pixel", (1, 1, 1), displacement(1, 1, 0.5)),
    compose_case("blur-of-warp", BLUR, WARP),
    compose_case(
        "clip-of-blur",
        pointwise_case("", 0, 2.0, (2, 4, 5), lambda x: (2 * x).clamp(-1, 1)),
        BLUR,
    ),
    compose_case("blur-of-gamma", BLUR, GAMMA, around_the_kinks),
    compose_case(
        "phase-of-gamma",
        phase_case("", (2, 4, 5), 1, 0.5, 0.5),
        GAMMA,
        around_the_kinks,
    ),
]
every = pytest.mark.parametrize("c", CASES, ids=[c.name for c in CASES])
linear = pytest.mark.parametrize(
    "c", [c for c in CASES if c.linear], ids=[c.name for c in CASES if c.linear]
)


def build(c, dtype, module=reference):
    return c.make(module, NAMES[dtype])


def arguments(c, dtype, batch=2):
    """x, w of images and v of measurements."""
    x = c.inputs(batch, *c.shape, dtype=dtype)
    v = randn(*c.naive(x).shape, seed=1, dtype=dtype)
    return x, v, randn(*x.shape, seed=2, dtype=dtype)


def forward(op, x):
    y = x.new_full((len(x), *op.out_shape), torch.nan)
    op.forward(y, x)
    return y


def vjp(op, x, v):
    g = v.new_full((len(v), *op.in_shape), torch.nan)
    op.vjp(g, x, v)
    return g


def jvp(op, x, w):
    t = w.new_full((len(w), *op.out_shape), torch.nan)
    op.jvp(t, x, w)
    return t


def curvature(op, x, v, w):
    h = w.new_full(w.shape, torch.nan)
    op.curvature(h, x, v, w)
    return h


def residual_gradient(op, x, y):
    g, sqnorm = (
        x.new_full(x.shape, torch.nan),
        torch.full((len(x),), torch.nan).double(),
    )
    op.residual_gradient(g, sqnorm, x, y)
    return g, sqnorm


def tolerance(c, dtype, expected):
    """Rounding of sums over an image and of an FFT's logarithm, of entries as large as
    what they give; 1e-6 for kernels that are replaced by a column times a row, and
    float32 powers, whose derivatives are steep."""
    scale = float(expected.abs().max()) + 1 if expected.numel() else 1.0
    return scale * (20 + c.shape[1] * c.shape[2]) * EPS[dtype]


def derivatives_of_the_naive_expression(c, x, v, w):
    """(vjp, jvp, curvature) in float64 by autograd."""
    x, v, w = (t.double() for t in (x, v, w))
    x.requires_grad_()
    v.requires_grad_()
    (g,) = torch.autograd.grad(c.naive(x), x, v, create_graph=True)
    product = (g * w).sum()
    # <J^T v, w> = <v, J w>
    h, t = torch.autograd.grad(
        product, (x, v), allow_unused=True, materialize_grads=True
    )
    return g.detach(), t, h


@every
@dtypes
def test_forward_is_the_naive_expression(c, dtype):
    x, _, _ = arguments(c, dtype)
    y = forward(build(c, dtype), x)
    expected = c.naive(x.double())
    assert y.dtype == dtype
    close(y.double(), expected, tolerance(c, dtype, expected))


@every
@dtypes
def test_derivatives_are_those_of_autograd(c, dtype):
    op = build(c, dtype)
    x, v, w = arguments(c, dtype)
    expected = derivatives_of_the_naive_expression(c, x, v, w)
    got = vjp(op, x, v), jvp(op, x, w), curvature(op, x, v, w)
    for one, other in zip(got, expected, strict=True):
        # a magnitude near 0 loses digits in the second derivative, once more in powers
        loss = 1 if c.linear else 30
        close(one.double(), other, loss * tolerance(c, dtype, other))


@every
@dtypes
def test_residual_gradient_is_forward_subtract_vjp(c, dtype):
    op = build(c, dtype)
    x, y, _ = arguments(c, dtype)
    gradient, sqnorm = residual_gradient(op, x, y)
    residual = forward(op, x) - y
    assert torch.equal(gradient, vjp(op, x, residual))
    close(sqnorm, residual.double().square().sum((1, 2, 3)), 0, rtol=1e-14)


@linear
def test_a_linear_operator_reads_no_point_and_has_no_curvature(c):
    op = build(c, torch.float64)
    x, v, w = arguments(c, torch.float64)
    assert torch.equal(vjp(op, None, v), vjp(op, x, v))
    assert torch.equal(jvp(op, None, w), forward(op, w))
    assert not curvature(op, None, v, w).any()


@linear
@dtypes
def test_the_adjoint_satisfies_the_inner_product(c, dtype):
    op = build(c, dtype)
    x, v, _ = arguments(c, dtype)
    left = (forward(op, x).double() * v.double()).sum()
    right = (x.double() * vjp(op, None, v).double()).sum()
    close(left, right, tolerance(c, dtype, x) * math.sqrt(x.numel() + v.numel()))


@every
@dtypes
def test_a_batch_is_a_loop_bit_for_bit_wherever_it_lies(c, dtype):
    op = build(c, dtype)
    x, v, w = arguments(c, dtype, batch=3)

    def run(x, v, w):
        return [
            forward(op, x),
            vjp(op, x, v),
            jvp(op, x, w),
            curvature(op, x, v, w),
            *residual_gradient(op, x, v),
        ]

    together = run(x, v, w)
    for i in range(3):
        views = [t[i : i + 1] for t in (x, v, w)]
        for alone in run(*views), run(*(t.clone() for t in views)):
            for one, all_ in zip(alone, together, strict=True):
                assert torch.equal(one[0], all_[i])


@every
def test_an_empty_batch_gives_an_empty_batch(c):
    op = build(c, torch.float64)
    x, v, w = (t[:0] for t in arguments(c, torch.float64))
    assert forward(op, x).shape == v.shape
    assert vjp(op, x, v).shape == x.shape
    assert residual_gradient(op, x, v)[1].shape == (0,)
    assert curvature(op, x, v, w).shape == x.shape


@every
def test_shapes_and_dtypes_that_do_not_fit_are_refused(c):
    op = build(c, torch.float64)
    x, v, _ = arguments(c, torch.float64)
    with pytest.raises(ValueError, match=r"forward: x must have 4 axes, got 3"):
        op.forward(v, x[0])
    with pytest.raises(ValueError, match=r"forward: out must have shape"):
        op.forward(v[:1], x)
    with pytest.raises(ValueError, match=r"vjp: v must have shape"):
        op.vjp(x, x, torch.cat([v, v], 3))
    with pytest.raises(ValueError, match=r"y must have shape"):
        residual_gradient(op, x, v[:1])
    with pytest.raises(ValueError, match=r"sqnorm must have shape \(2,\), got \(1,\)"):
        op.residual_gradient(x, torch.zeros(1), x, v)
    with pytest.raises(TypeError, match=r"x must be float64, got float32"):
        forward(op, x.float())
    with pytest.raises(ValueError, match=r"forward: out must be on cpu, got meta"):
        op.forward(v.to("meta"), x)
    if not c.linear:
        with pytest.raises(ValueError, match="not linear needs x"):
            vjp(op, None, v)


def test_masked_values_are_selected_not_multiplied():
    op = reference.mask("float32", (1, 1, 3), np.array([[[1, 0, 0]]], np.uint8))
    x = torch.tensor([[[[2.0, math.nan, math.inf]]]])
    assert forward(op, x).tolist() == [[[[2, 0, 0]]]]
    gradient, sqnorm = residual_gradient(op, x, torch.zeros_like(x))
    assert gradient.tolist() == [[[[2, 0, 0]]]] and sqnorm.tolist() == [4]


@dtypes
def test_decoding_undoes_encoding(dtype):
    shape, name = (1, 4, 6), NAMES[dtype]
    x = around_the_kinks(1, *shape, dtype=dtype)
    encoded = forward(reference.pointwise(name, shape, 1, 2.2), x)
    decoded = forward(reference.pointwise(name, shape, 2, 2.2), encoded)
    # the slope of decoding, at most 2.2 x^1.2 with x < 3, times the rounding before it
    close(decoded, x, 30 * EPS[dtype])


def test_clip_has_its_slope_at_both_ends():
    op = reference.pointwise("float64", (1, 1, 4), 0, 2.0)
    x = torch.tensor([[[[-0.5, 0.5, 0.5 + 1e-15, -1.0]]]], dtype=torch.float64)
    assert vjp(op, x, torch.ones_like(x)).tolist() == [[[[2, 2, 0, 0]]]]


def test_phase_has_no_direction_where_there_is_no_light():
    op = reference.phase("float64", (1, 3, 3), 1, 1.0, 0.0)
    zero = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    v = randn(1, 1, 5, 5)
    for got in vjp(op, zero, v), jvp(op, zero, zero), curvature(op, zero, v, zero):
        assert not got.any()


def test_a_nearly_separable_kernel_is_taken_for_separable():
    k = outer(5, 5)
    k[0, 0] += 1e-7 * np.linalg.norm(k)
    reference.blur("float32", (1, 8, 8), k, (2, 2), (0, 0), REFLECT, SEPARABLE)
    k[0, 0] += 1e-5 * np.linalg.norm(k)
    with pytest.raises(ValueError, match="not a column times a row"):
        reference.blur("float32", (1, 8, 8), k, (2, 2), (0, 0), REFLECT, SEPARABLE)


@dtypes
@pytest.mark.parametrize("border", range(4))
@pytest.mark.parametrize(
    ("centre", "grow"), [((1, 2), (0, 0)), ((0, 3), (1, 1)), ((2, 0), (3, 0))]
)
def test_the_gradient_of_a_kernel_is_that_of_autograd(dtype, border, centre, grow):
    shape = (3, 6, 7)
    k = randn(3, 4, seed=3, dtype=dtype)
    x, v = (
        randn(3, 6 + g[0], 7 + g[1], seed=s, dtype=dtype)
        for s, g in ((0, (0, 0)), (1, grow))
    )
    after = [n - 1 - c + g for n, c, g in zip(k.shape, centre, grow, strict=True)]
    weights = k.double().requires_grad_()
    planes = extended(x.double(), centre, after, border)[:, None]
    y = F.conv2d(planes, weights[None, None])[:, 0]
    (expected,) = torch.autograd.grad(y, weights, v.double())
    out = torch.full_like(k, torch.nan)
    reference.blur_kernel_gradient(out, x, v, centre, grow, border)
    close(out.double(), expected, 100 * math.prod(shape) ** 0.5 * EPS[dtype])


@dtypes
def test_the_gradient_of_a_displacement_is_that_of_autograd(dtype):
    shape = (3, 5, 6)
    # between pixels, where it has one
    d = (displacement(5, 6, 2.0) + 1 / 128).requires_grad_()
    x, v = randn(*shape, dtype=dtype), randn(*shape, seed=1, dtype=dtype)
    (expected,) = torch.autograd.grad(warped(d)(x.double()), d, v.double())
    op = reference.warp(NAMES[dtype], shape, d.detach().numpy())
    out = torch.full((2, 5, 6), torch.nan, dtype=dtype)
    reference.warp_displacement_gradient(out, op, x, v)
    close(out.double(), expected, 50 * EPS[dtype])
    still = reference.mask(NAMES[dtype], shape, np.ones((1, 5, 6)))
    with pytest.raises(TypeError, match="must be a warp"):
        reference.warp_displacement_gradient(out, still, x, v)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.mask("float16", (1, 2, 2), np.ones((1, 2, 2))), "dtype must be"),
        (lambda r: r.mask("float32", (1, 2, 0), np.ones((1, 2, 2))), "positive"),
        (lambda r: r.mask("float32", (3, 2, 2), np.ones((2, 2, 2))), "must have shape"),
        (lambda r: r.mask("float32", (1, 1, 1), np.full((1, 1, 1), 2)), "0 and 1"),
        (lambda r: r.resize("float32", (1, 2, 2), 0), "at least 1"),
        (lambda r: r.resize("float32", (1, 2, 2), 33), "do not fit"),
        (lambda r: r.phase("float32", (1, 2, 2), -1, 1.0, 0.0), "pad"),
        (lambda r: r.phase("float32", (1, 2, 2), 1, math.inf, 0.0), "finite"),
        (lambda r: r.pointwise("float32", (1, 2, 2), 3, 1.0), "kind"),
        (lambda r: r.pointwise("float32", (1, 2, 2), 0, 0.0), "a must be"),
        (lambda r: r.matrix("float32", (1, 2, 2), (1, 1, 1), np.ones((1, 3))), "shape"),
        (lambda r: r.warp("float32", (1, 2, 2), np.ones((2, 2, 3))), "shape"),
        (lambda r: r.warp("float32", (1, 1, 1), np.full((2, 1, 1), np.nan)), "NaN"),
        (
            lambda r: r.compose(
                r.resize("float32", (1, 4, 4), 2), r.resize("float32", (1, 4, 4), 2)
            ),
            "compose",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(reference)


@pytest.mark.parametrize(
    ("size", "centre", "grow", "border"),
    [
        ((3, 3), (3, 0), (0, 0), ZERO),
        ((3, 3), (1, 1), (4, 0), ZERO),
        ((3, 3), (1, 1), (0, 0), 4),
        ((9, 1), (4, 0), (0, 0), REFLECT),
        ((3, 3), (1, 1), (3, 0), REFLECT),
    ],
)
def test_a_kernel_that_does_not_fit_is_refused(size, centre, grow, border):
    with pytest.raises(ValueError, match="blur"):
        reference.blur("float32", (1, 4, 4), np.ones(size), centre, grow, border)


# ---- the data step ----


def dense(op):
    """The operator's matrix in float64."""
    n = math.prod(op.in_shape)
    pixels = torch.eye(n, dtype=op.dtype).view(n, *op.in_shape)
    return forward(op, pixels).flatten(1).double().T


def prox(step, v, y, rho, tolerance=1e-12, iterations=500):
    out = torch.full_like(v, torch.nan)
    return out, step.prox(out, v, y, rho, tolerance, iterations)


def pinv(step, y, shape, cutoff=1e-3, tolerance=1e-12, iterations=500):
    out = y.new_full((len(y), *shape), torch.nan)
    return out, step.pinv(out, y, cutoff, tolerance, iterations)


CLOSED = ("mask", "resize", "matrix", "separable", "circular-", "all-zero", "1-pixel")


def has_closed_form(c):
    if c.name in ("warp-1-pixel", "blur-grow-circular"):
        return False
    return any(part in c.name for part in (*CLOSED, "wider-than-circular", "than-edge"))


@linear
def test_closed_forms_are_where_they_should_be(c):
    assert reference.DataStep(build(c, torch.float64)).closed_form == has_closed_form(c)


@linear
@dtypes
@pytest.mark.parametrize("rho", [1e-2, 1.0, 30.0])
def test_prox_solves_the_normal_equations(c, dtype, rho):
    op = build(c, dtype)
    v, y, _ = arguments(c, dtype)
    arrive = 20 * EPS[dtype]
    x, info = prox(reference.DataStep(op), v, y, rho, arrive)
    A = dense(op)
    M = A.T @ A + rho * torch.eye(A.shape[1], dtype=torch.float64)
    b = y.flatten(1).double() @ A + rho * v.flatten(1).double()
    expected = torch.linalg.solve(M, b.T).T
    # rounding of the operator, amplified by at most ||A|| / rho
    norm = float(torch.linalg.matrix_norm(A, 2))
    loss = 100 * (1 + (norm + norm**2) / rho) * math.sqrt(math.prod(c.shape))
    close(x.flatten(1).double(), expected, loss * EPS[dtype] * float(b.abs().max() + 1))
    for residual, iterations in info:
        if has_closed_form(c):
            assert (residual, iterations) == (0.0, 0)
        else:
            assert 0 <= residual <= arrive and 0 <= iterations <= 500


@linear
def test_pinv_is_that_of_the_dense_matrix(c):
    op = build(c, torch.float64)
    _, y, _ = arguments(c, torch.float64)
    A = dense(op)
    U, s, Vt = torch.linalg.svd(A, full_matrices=False)
    cutoff = 0.03
    limit = cutoff * s[0]
    if has_closed_form(c):
        gain = torch.where(s > limit, 1 / s, 0)
    else:
        gain = s / (s**2 + limit**2)
    # a singular value at the limit may fall on either side
    assert ((s / limit - 1).abs() > 1e-6).all() or not s.any()
    expected = (y.flatten(1) @ U * torch.nan_to_num(gain)) @ Vt
    x, _ = pinv(reference.DataStep(op), y, c.shape, cutoff)
    # conjugate gradients stop at 1e-12 of a system of condition 1e3; the norm in its
    # delta is known to 1e-6 relative, and counts double
    rtol = 1e-9 if has_closed_form(c) else 1e-5
    close(x.flatten(1), expected, rtol * float(expected.abs().max() + 1))


@linear
@dtypes
def test_the_norm_is_the_largest_singular_value(c, dtype):
    op = build(c, dtype)
    expected = float(torch.linalg.matrix_norm(dense(op), 2))
    got = reference.DataStep(op).norm()
    closed = 1e-5 if dtype == torch.float32 else 1e-12
    rtol = closed if has_closed_form(c) else 1e-4 if dtype == torch.float32 else 1e-6
    assert got == pytest.approx(expected, rel=rtol, abs=1e-12)


@linear
@dtypes
def test_data_steps_of_a_batch_are_a_loop_bit_for_bit(c, dtype):
    step = reference.DataStep(build(c, dtype))
    v, y, _ = arguments(c, dtype, batch=3)
    v[1] = 0
    y[1] = 0  # has arrived before it starts
    x, info = prox(step, v, y, 0.1, 1e-4)
    z, how = pinv(step, y, c.shape, 0.1, 1e-4)
    for i in range(3):
        part = slice(i, i + 1)
        one, one_info = prox(step, v[part], y[part], 0.1, 1e-4)
        other, other_how = pinv(step, y[part], c.shape, 0.1, 1e-4)
        assert torch.equal(one[0], x[i]) and one_info == info[part]
        assert torch.equal(other[0], z[i]) and other_how == how[part]
    assert not x[1].any() and info[1] == (0.0, 0)


def test_images_that_share_conjugate_gradients_keep_their_own_numbers():
    """On other devices a batch is solved together; on the CPU, here, by hand."""
    op = build(WARP, torch.float64)
    v, y = randn(3, 2, 4, 5), 10 * randn(3, 2, 4, 5, seed=1)
    v[1], y[1] = 0, 0
    y[2] = forward(op, v[2:])[0]  # v is the solution
    x, info = data_step._conjugate_gradients(op, v, y, 0.05, 1e-8, 300)
    for i in range(3):
        one, how = data_step._conjugate_gradients(
            op, v[i : i + 1], y[i : i + 1], 0.05, 1e-8, 300
        )
        close(one[0], x[i], 1e-9)
        assert abs(how[0][1] - info[i][1]) <= 1
    assert info[0][1] > info[2][1] == 0 and info[1] == (0.0, 0)


def test_conjugate_gradients_say_how_far_they_came():
    step = reference.DataStep(build(WARP, torch.float64))
    v, y = randn(2, 2, 4, 5), randn(2, 2, 4, 5, seed=1)
    _, short = prox(step, v, y, 1e-3, 1e-10, 3)
    _, long = prox(step, v, y, 1e-3, 1e-10, 300)
    for (rough, three), (fine, more) in zip(short, long, strict=True):
        assert three == 3 and rough > 1e-10 >= fine and more > 3


def test_a_tolerance_that_no_precision_reaches_does_no_harm():
    step = reference.DataStep(build(WARP, torch.float32))
    y = randn(2, 2, 4, 5, seed=1, dtype=torch.float32)
    x, info = pinv(step, y, (2, 4, 5), 0.1, 1e-30, 300)
    expected, _ = pinv(step, y, (2, 4, 5), 0.1, 20 * EPS[torch.float32])
    # a residual of k eps is an error of k eps / cutoff^2
    close(x, expected, 40 * EPS[torch.float32] / 0.1**2 * float(x.abs().max()))
    assert all(residual < 20 * EPS[torch.float32] for residual, _ in info)


def test_an_image_that_is_not_finite_stays_alone():
    step = reference.DataStep(build(WARP, torch.float64))
    v, y = randn(2, 2, 4, 5), randn(2, 2, 4, 5, seed=1)
    expected, _ = prox(step, v, y, 0.1)
    y[0, 0, 0, 0] = math.nan
    x, info = prox(step, v, y, 0.1)
    assert x[0].isnan().all() and math.isnan(info[0][0])
    assert torch.equal(x[1], expected[1])


def test_wrong_options_of_a_data_step_are_refused():
    step = reference.DataStep(reference.resize("float64", (1, 4, 4), 2))
    v, y = torch.zeros(1, 1, 4, 4).double(), torch.zeros(1, 1, 2, 2).double()
    for rho, tolerance, iterations in ((0.0, 1, 1), (1, math.nan, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match=r"prox: .* must be finite and > 0"):
            prox(step, v, y, rho, tolerance, iterations)
    with pytest.raises(ValueError, match=r"pinv: cutoff must be in the range \(0, 1\)"):
        pinv(step, y, (1, 4, 4), 1.0)
    with pytest.raises(ValueError, match="prox: y must have shape"):
        prox(step, v, v, 1.0)
    with pytest.raises(ValueError, match="linear"):
        reference.DataStep(reference.pointwise("float64", (1, 2, 2), 0, 2.0))


# ---- the projector ----

PER_CHANNEL, MEAN, OFFICIAL, FIXED = range(4)
RULES = pytest.mark.parametrize(
    ("rule", "fixed"),
    [(PER_CHANNEL, 0), (MEAN, 0), (OFFICIAL, 0), (FIXED, 1), (FIXED, 3), (FIXED, 99)],
)
SHAPES = [(3, 8, 8), (1, 5, 9), (4, 12, 7), (1, 1, 1), (2, 1, 6), (7, 4, 3)]


def project(module, state, grad, energy=0.9, rule=PER_CHANNEL, fixed=0, sides=3):
    p = module.Projector(NAMES[state.dtype], len(state), tuple(state.shape[1:]))
    p.prepare(state, energy, rule, fixed, sides)
    out = grad.clone()
    p.apply(out)
    return out, p


def naive_projection(state, grad, energy, sides):
    out, ranks = np.empty(grad.shape), []
    for i in np.ndindex(state.shape[:2]):
        Z, G = state[i].double().numpy(), grad[i].double().numpy()
        U, s, Vt = np.linalg.svd(Z, full_matrices=False)
        kept = np.cumsum(s**2)
        r = min(int(np.searchsorted(kept, energy * kept[-1]) + 1), len(s))
        G = U[:, :r] @ (U[:, :r].T @ G) if sides & 1 else G
        out[i] = G @ Vt[:r].T @ Vt[:r] if sides & 2 else G
        ranks.append(r)
    return torch.from_numpy(out), np.reshape(ranks, state.shape[:2]).tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sides", [1, 2, 3])
@pytest.mark.parametrize("energy", [0.5, 0.99])
@dtypes
def test_the_projection_is_that_of_numpys_svd(shape, sides, energy, dtype):
    state, grad = randn(2, *shape, dtype=dtype), randn(2, *shape, seed=1, dtype=dtype)
    got, p = project(reference, state, grad, energy, sides=sides)
    expected, ranks = naive_projection(state, grad, energy, sides)
    assert [list(r) for r in p.ranks] == ranks
    # factors of float64, stored in dtype; no gap of these states is below 1e-3
    close(got.double(), expected, 1e3 * EPS[torch.float64] + 100 * EPS[dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@RULES
@pytest.mark.parametrize("sides", [1, 2, 3])
@pytest.mark.parametrize("energy", [0.4, 0.95, 1.0])
@dtypes
def test_the_projection_is_the_cores(shape, rule, fixed, sides, energy, dtype):
    state, grad = randn(3, *shape, dtype=dtype), randn(3, *shape, seed=1, dtype=dtype)
    state[1, 0] = 0
    state[2] = 0
    if shape[0] > 1:
        state[0, 1] *= 1e-5
    got, ours = project(reference, state, grad, energy, rule, fixed, sides)
    expected, theirs = project(_core, state, grad, energy, rule, fixed, sides)
    assert ours.ranks == theirs.ranks
    np.testing.assert_allclose(ours.kept, theirs.kept, rtol=1e-12)
    close(got, expected, 1e3 * EPS[torch.float64] + 100 * EPS[dtype])
    same = [(got[i] == grad[i]).all() for i in np.ndindex(grad.shape[:2])]
    left_alone = [(expected[i] == grad[i]).all() for i in np.ndindex(grad.shape[:2])]
    assert same == left_alone  # the identity bit for bit


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_the_scale_of_the_state_does_not_matter(scale):
    state, grad = randn(1, 3, 5, 6), randn(1, 3, 5, 6, seed=1)
    for rule in (PER_CHANNEL, OFFICIAL):
        expected, one = project(reference, state, grad, rule=rule)
        got, other = project(reference, scale * state, grad, rule=rule)
        assert one.ranks == other.ranks
        close(got, expected, 1e-12)


@RULES
@dtypes
def test_projections_of_a_batch_are_a_loop_bit_for_bit(rule, fixed, dtype):
    state, grad = randn(3, 3, 6, 8, dtype=dtype), randn(3, 3, 6, 8, seed=1, dtype=dtype)
    together, p = project(reference, state, grad, 0.8, rule, fixed)
    for i in range(3):
        part = slice(i, i + 1)
        alone, q = project(reference, state[part], grad[part], 0.8, rule, fixed)
        assert torch.equal(alone[0], together[i]) and q.ranks[0] == p.ranks[i]


def test_rank_0_takes_everything_even_nan():
    state = torch.zeros(1, 3, 4, 4)
    grad = torch.full((1, 3, 4, 4), torch.nan)
    out, p = project(reference, state, grad, rule=OFFICIAL)
    assert p.ranks == ((0, 0, 0),) and not out.any()
    out, p = project(reference, state, grad)
    assert p.ranks == ((0, 0, 0),) and out.isnan().all()


def test_a_projector_holds_nothing_until_prepared():
    p = reference.Projector("float32", 1, (1, 2, 2))
    assert p.ranks is None and p.kept is None
    with pytest.raises(RuntimeError, match="before set-up"):
        p.apply(torch.zeros(1, 1, 2, 2))
    p.prepare(torch.ones(1, 1, 2, 2), 0.9, 0, 0, 3)
    assert p.ranks == ((1,),)
    with pytest.raises(ValueError, match="NaN or Inf"):
        p.prepare(torch.full((1, 1, 2, 2), torch.nan), 0.9, 0, 0, 3)
    assert p.ranks is None
    for bad, message in (
        ((torch.ones(2, 1, 2, 2), 0.9, 0, 0, 3), "state must have shape"),
        ((torch.ones(1, 1, 2, 2), 0.0, 0, 0, 3), "energy"),
        ((torch.ones(1, 1, 2, 2), 0.9, 4, 0, 3), "rule"),
        ((torch.ones(1, 1, 2, 2), 0.9, 3, 0, 3), "fixed_rank"),
        ((torch.ones(1, 1, 2, 2), 0.9, 0, 0, 0), "sides"),
    ):
        with pytest.raises(ValueError, match=message):
            p.prepare(*bad)


# ---- metrics ----

METRICS = {
    "psnr": lambda m, out, x, ref: m.psnr(out, x, ref, 1.0, 0.0),
    "psnr-piq": lambda m, out, x, ref: m.psnr(out, x, ref, 2.0, 1e-8),
    "nmse": lambda m, out, x, ref: m.nmse(out, x, ref),
    "ssim-gaussian": lambda m, out, x, ref: m.ssim(out, x, ref, 1.0, 0),
    "ssim-uniform": lambda m, out, x, ref: m.ssim(out, x, ref, 2.0, 1),
}
metrics = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def measure(metric, module, x, ref):
    out = torch.full((len(x),), torch.nan, dtype=torch.float64)
    metric(module, out, x, ref)
    return out


@metrics
@dtypes
@pytest.mark.parametrize("shape", [(3, 11, 11), (1, 13, 80), (2, 30, 12)], ids=str)
def test_metrics_are_the_cores(metric, dtype, shape):
    x, ref = randn(3, *shape, dtype=dtype), randn(3, *shape, seed=1, dtype=dtype)
    x[1] = ref[1]
    got, expected = (measure(metric, m, x, ref) for m in (reference, _core))
    # all sums in float64; SSIM subtracts squares of means
    close(got, expected, 1e-12, rtol=1e-12)


@metrics
def test_metrics_of_a_batch_are_a_loop_bit_for_bit(metric):
    x, ref = randn(3, 2, 13, 14), randn(3, 2, 13, 14, seed=1)
    together = measure(metric, reference, x, ref)
    for i in range(3):
        part = slice(i, i + 1)
        assert measure(metric, reference, x[part], ref[part])[0] == together[i]


def test_wrong_arguments_of_metrics_are_refused():
    x, out = torch.zeros(2, 1, 6, 6), torch.zeros(2).double()
    with pytest.raises(ValueError, match="do not fit"):
        reference.ssim(out, x, x, 1.0, 1)
    with pytest.raises(ValueError, match="window"):
        reference.ssim(out, x, x, 1.0, 2)
    with pytest.raises(ValueError, match="outside its range"):
        reference.psnr(out, x, x, 0.0, 0.0)
    with pytest.raises(ValueError, match="ref must have shape"):
        reference.nmse(out, x, x[:1])
    with pytest.raises(ValueError, match="out must have shape"):
        reference.nmse(out[:1], x, x)
    with pytest.raises(TypeError, match="ref must be float32, got float64"):
        reference.nmse(out, x, x.double())


# ---- as on other devices: whole batches, constants that follow ----


@pytest.fixture
def whole(monkeypatch):
    """Batches are worked on as a whole, as where the device is not the CPU."""
    for module in (operators, data_step, projector, metrics_):
        monkeypatch.setattr(module, "parts", lambda *batches: iter([batches]))


@every
@dtypes
def test_a_whole_batch_is_worked_on_like_its_images(c, dtype, request):
    op = build(c, dtype)
    x, v, w = arguments(c, dtype, batch=3)

    def run():
        yield from (forward(op, x), vjp(op, x, v), jvp(op, x, w))
        yield from (curvature(op, x, v, w), *residual_gradient(op, x, v))
        if c.linear:
            step, arrive = reference.DataStep(op), 20 * EPS[dtype]
            yield prox(step, x, v, 0.5, arrive)[0]
            yield pinv(step, v, c.shape, 0.1, arrive)[0]

    one_by_one = list(run())
    request.getfixturevalue("whole")
    for got, expected in zip(run(), one_by_one, strict=True):
        close(got, expected, 20 * tolerance(c, dtype, expected))


@RULES
@pytest.mark.parametrize("sides", [1, 2, 3])
def test_a_whole_batch_is_projected_like_its_images(rule, fixed, sides, request):
    state, grad = randn(4, 3, 6, 8), randn(4, 3, 6, 8, seed=1)
    state[1, 0] = 0
    state[2] = 0
    expected, one = project(reference, state, grad, 0.8, rule, fixed, sides)
    request.getfixturevalue("whole")
    got, other = project(reference, state, grad, 0.8, rule, fixed, sides)
    assert one.ranks == other.ranks
    np.testing.assert_allclose(other.kept, one.kept, rtol=1e-13)
    close(got, expected, 1e-12)


@metrics
def test_a_whole_batch_is_measured_like_its_images(metric, request):
    x, ref = randn(3, 2, 13, 14), randn(3, 2, 13, 14, seed=1)
    expected = measure(metric, reference, x, ref)
    request.getfixturevalue("whole")
    close(measure(metric, reference, x, ref), expected, 1e-13, rtol=1e-13)


@every
def test_constants_follow_the_images_to_their_device(c):
    op = build(c, torch.float32)
    x, v, w = (t.to("meta") for t in arguments(c, torch.float32))
    assert forward(op, x).device == vjp(op, x, v).device == x.device
    for out in jvp(op, x, w), curvature(op, x, v, w):
        assert out.device == x.device
    op.residual_gradient(x, torch.empty(2, dtype=torch.float64, device="meta"), x, v)
    if c.linear and has_closed_form(c):
        step = reference.DataStep(op)
        assert prox(step, x, v, 0.5)[0].device == x.device
        assert pinv(step, v, c.shape)[0].device == x.device


CALLS: dict[str, Callable] = {}


@torch.library.custom_op("diffstategrad_tests::call", mutates_args=())
def _call(x: torch.Tensor, name: str) -> torch.Tensor:
    return CALLS[name](x)


_call.register_fake(lambda x, name: torch.empty_like(x))


@pytest.mark.parametrize("name", ["blur-circular-fft", "phase-odd", "warp", "encode"])
def test_a_compiled_graph_computes_the_same(name):
    c = next(c for c in CASES if c.name == name)
    op = build(c, torch.float64)
    x, v, w = arguments(c, torch.float64)

    def calls(x):
        yield vjp(op, x, v)
        yield vjp(op, x, jvp(op, x, w))
        yield curvature(op, x, v, w)
        if c.linear:
            yield prox(reference.DataStep(op), x, v, 0.5)[0]

    CALLS[name] = lambda x: torch.stack(list(calls(x))).sum(0)
    compiled = torch.compile(lambda x: _call(x, name) + 0, backend="aot_eager")
    assert torch.equal(compiled(x), CALLS[name](x))


# ---- against the core ----


@every
@dtypes
def test_operators_are_the_cores(c, dtype):
    ours, theirs = build(c, dtype), build(c, dtype, _core)
    x, v, w = arguments(c, dtype)
    assert (ours.in_shape, ours.out_shape) == (theirs.in_shape, theirs.out_shape)
    for call in (
        lambda op: forward(op, x),
        lambda op: vjp(op, x, v),
        lambda op: jvp(op, x, w),
        lambda op: curvature(op, x, v, w),
        lambda op: residual_gradient(op, x, v)[0],
    ):
        got, expected = call(ours), call(theirs)
        loss = 1 if c.linear else 30
        close(got, expected, loss * tolerance(c, dtype, expected))
    got, expected = (residual_gradient(op, x, v)[1] for op in (ours, theirs))
    close(got, expected, 0, rtol=100 * EPS[dtype])


@linear
@dtypes
def test_data_steps_are_the_cores(c, dtype):
    ours = reference.DataStep(build(c, dtype))
    theirs = _core.DataStep(build(c, dtype, _core))
    v, y, _ = arguments(c, dtype)
    assert ours.closed_form == theirs.closed_form
    rtol = 1e-4 if dtype == torch.float32 else 1e-6
    assert ours.norm() == pytest.approx(theirs.norm(), rel=2 * rtol, abs=1e-12)
    arrive = 20 * EPS[dtype]
    got, expected = (prox(step, v, y, 0.5, arrive)[0] for step in (ours, theirs))
    close(got, expected, 20 * tolerance(c, dtype, expected))
    got, expected = (pinv(step, y, c.shape, 0.1, arrive)[0] for step in (ours, theirs))
    # the norms, known to rtol, are in the solution
    close(got, expected, 40 * rtol * float(expected.abs().max() + 1))


@dtypes
def test_gradients_of_kernels_and_displacements_are_the_cores(dtype):
    x, v = randn(3, 6, 7, dtype=dtype), randn(3, 7, 8, seed=1, dtype=dtype)
    for border in range(4):
        got, expected = torch.empty(4, 3, dtype=dtype), torch.empty(4, 3, dtype=dtype)
        for module, out in ((reference, got), (_core, expected)):
            module.blur_kernel_gradient(out, x, v, (2, 1), (1, 1), border)
        close(got, expected, 1000 * EPS[dtype])
    d = displacement(6, 7, 1.5).to(dtype).numpy()
    results = []
    for module in (reference, _core):
        out = torch.empty(2, 6, 7, dtype=dtype)
        op = module.warp(NAMES[dtype], (3, 6, 7), d)
        module.warp_displacement_gradient(out, op, x, v[:, :6, :7].contiguous())
        results.append(out)
    close(*results, 50 * EPS[dtype])
