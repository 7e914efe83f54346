"""Every operator, against the expression that defines it.

`CASES` is the one list: an operator gets all the tests by a line there, with a naive
torch expression of what it computes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import diffstategrad as dsg
from diffstategrad import _core, operators
from diffstategrad.operators import (
    OPERATORS,
    Blur,
    Downsample,
    GaussianBlur,
    Inpainting,
    MotionBlur,
)

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
# Kernels within this share of their norm of an outer product are taken for one.
SEPARABLE = 1e-6


class Case(NamedTuple):
    name: str
    operator: operators.Operator
    shape: tuple[int, int, int]
    naive: Callable
    #: Relative difference to the naive expression that the operator may have by design.
    slack: float = 0.0


def masked(A):
    return lambda x: x * torch.from_numpy(A.mask.copy()).to(x.dtype)


def correlated(A):
    """Reflection padding, then torch's correlation."""
    kh, kw = A.kernel.shape
    # an even kernel reaches one pixel further up and left
    pad = (kw // 2, kw - 1 - kw // 2, kh // 2, kh - 1 - kh // 2)

    def naive(x):
        k = torch.from_numpy(A.kernel.copy()).to(x.dtype)[None, None]
        planes = x.reshape(-1, 1, *x.shape[2:])
        padded = F.pad(planes, pad, mode="reflect") if any(pad) else planes
        return F.conv2d(padded, k).reshape(x.shape)

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


def kernel(h, w, seed=0):
    k = np.random.default_rng(seed).uniform(size=(h, w))
    return k / k.sum()


def sparse(n):
    k = np.zeros((n, n))
    k[0, 1], k[n // 2, n - 1], k[n - 1, 0] = 0.5, 0.3, 0.2
    return k


def mask(*shape):
    return np.random.default_rng(1).integers(0, 2, shape)


def case(name, operator, shape, naive, slack=0.0):
    return Case(name, operator, shape, naive(operator), slack)


CASES = [
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
    case("blur-even", Blur(kernel(4, 4)), (3, 7, 8), correlated),
    case("blur-2x2", Blur(kernel(2, 2)), (1, 2, 2), correlated),
    case("blur-rectangular", Blur(kernel(2, 7)), (1, 5, 8), correlated),
    case("blur-column", Blur(kernel(5, 1)), (2, 6, 1), correlated, SEPARABLE),
    case("blur-signed", Blur(kernel(5, 5) - 0.04), (2, 7, 6), correlated),
    case("gaussian", GaussianBlur(7, 1.0), (3, 8, 9), correlated, SEPARABLE),
    case("gaussian-even", GaussianBlur(6, 1.5), (1, 9, 8), correlated, SEPARABLE),
    case("gaussian-61", GaussianBlur(61, 3.0), (1, 33, 32), correlated, SEPARABLE),
    case("motion", MotionBlur(9, 0.5, seed=3), (3, 10, 11), correlated),
    case("downsample-1", Downsample(1), (3, 4, 5), resized),
    case("downsample-2", Downsample(2), (3, 8, 6), resized),
    case("downsample-3", Downsample(3), (1, 9, 6), resized),
    case("downsample-4", Downsample(4), (3, 16, 12), resized),
    case("downsample-4-of-7-and-10", Downsample(4), (7, 7, 10), resized),
    case("downsample-3-of-1-pixel", Downsample(3), (1, 1, 1), resized),
    case("downsample-5-of-odd", Downsample(5), (2, 13, 4), resized),
]

every = pytest.mark.parametrize("c", CASES, ids=[c.name for c in CASES])
dtypes = pytest.mark.parametrize("dtype", EPS, ids=["float32", "float64"])


def randn(*shape, seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def images(c, batch=2, seed=0, dtype=torch.float64):
    return randn(batch, *c.shape, seed=seed, dtype=dtype)


def measurements(c, batch=2, seed=1, dtype=torch.float64):
    return randn(batch, *c.operator.out_shape(c.shape), seed=seed, dtype=dtype)


def tolerance(c, dtype, scale=1.0):
    """Of an entry of A(x), A^T(v) or of sums of them.

    Three terms of every entry's length (pixels an entry reaches, with the FFT's log n
    below it) times eps, on entries of size about `scale`; and what the operator leaves
    out by design.
    """
    reach = c.shape[1] * c.shape[2]
    return scale * (3 * reach * EPS[dtype] + 10 * c.slack)


def close(got, expected, atol):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.fixture
def threads():
    """Sets the number of threads, and the old one afterwards."""
    before = _core.info()["threads"]
    yield dsg.set_num_threads
    dsg.set_num_threads(before)


def test_every_kind_of_operator_is_in_the_list():
    listed = {type(c.operator) for c in CASES}
    assert {cls for cls in OPERATORS.values() if isinstance(cls, type)} <= listed


# ---- what it computes ----


@every
@dtypes
def test_forward_is_the_naive_expression(c, dtype):
    x = images(c, dtype=dtype)
    y = c.operator(x)
    assert y.dtype == dtype
    assert y.shape[1:] == c.operator.out_shape(c.shape)
    close(y, c.naive(x), tolerance(c, dtype, scale=4))


@every
@dtypes
def test_the_adjoint_satisfies_the_inner_product(c, dtype):
    x, v = images(c, dtype=dtype), measurements(c, dtype=dtype)
    left = (c.operator(x).double() * v.double()).sum()
    g = c.operator.adjoint(v, c.shape)
    assert g.dtype == dtype and g.shape == x.shape
    right = (x.double() * g.double()).sum()
    # rounding of n entries of size 1 adds up like its root
    close(left, right, tolerance(c, dtype) * max(x.numel(), v.numel()) ** 0.5)


@every
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


@every
def test_zero_gives_exactly_zero(c):
    assert not c.operator(torch.zeros(1, *c.shape)).any()


@every
@dtypes
def test_residual_gradient_is_forward_subtract_adjoint(c, dtype):
    x, y = images(c, dtype=dtype), measurements(c, dtype=dtype)
    gradient, sqnorm = c.operator.residual_gradient(x, y)
    r = c.operator(x) - y
    close(
        gradient,
        c.operator.adjoint(r, c.shape),
        tolerance(c._replace(slack=0), dtype, scale=10),
    )
    expected = r.double().square().flatten(1).sum(1)
    assert sqnorm.dtype == torch.float64
    # a squared residual of relative rounding 2 eps each, sizes as above
    rtol = 2 * tolerance(c._replace(slack=0), dtype, scale=2)
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


@every
def test_derivatives_pass_gradcheck_and_gradgradcheck(c):
    x = images(c, batch=1).requires_grad_()
    v = measurements(c, batch=1).requires_grad_()
    adjoint = lambda v: c.operator.adjoint(v, c.shape)  # noqa: E731
    for function, argument in ((c.operator, x), (adjoint, v)):
        assert torch.autograd.gradcheck(function, argument, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, argument, fast_mode=True)


@every
def test_backward_is_the_adjoint_and_vjp_too(c):
    x, v = images(c).requires_grad_(), measurements(c)
    (g,) = torch.autograd.grad(c.operator(x), x, v)
    assert torch.equal(g, c.operator.adjoint(v, c.shape))
    assert torch.equal(g, c.operator.vjp(x, v))


@every
def test_double_backward_of_a_square_is_the_normal_operator(c):
    x, w = images(c).requires_grad_(), images(c, seed=3)
    (g,) = torch.autograd.grad(0.5 * c.operator(x).square().sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g, x, w)
    assert torch.equal(h, c.operator.adjoint(c.operator(w), c.shape))


# ---- what may not matter: batch, threads, layout ----


@every
@dtypes
def test_a_batch_is_a_loop_bit_for_bit_whatever_the_threads(c, dtype, threads):
    x, y = images(c, 3, dtype=dtype), measurements(c, 3, dtype=dtype)

    def run(part):
        forward, adjoint = (
            c.operator(x[part]),
            c.operator.adjoint(y[part], c.shape),
        )
        return forward, adjoint, *c.operator.residual_gradient(x[part], y[part])

    threads(1)
    together = run(slice(None))
    for i in range(3):
        for one, all_ in zip(run(slice(i, i + 1)), together, strict=True):
            assert torch.equal(one[0], all_[i])
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


@every
@pytest.mark.parametrize(
    "layout",
    [
        non_contiguous,
        strided,
        negative_bit,
        lambda x: x.clone().requires_grad_(),
        numpy_reversed,
    ],
    ids=["transposed", "strided", "negative-bit", "requires-grad", "numpy-reversed"],
)
def test_the_layout_of_the_input_does_not_matter(c, layout):
    x, y = images(c), measurements(c)
    tensor = torch.as_tensor
    assert torch.equal(tensor(c.operator(layout(x))), c.operator(x))
    adjoint = c.operator.adjoint
    assert torch.equal(tensor(adjoint(layout(y), c.shape)), adjoint(y, c.shape))
    for got, expected in zip(
        c.operator.residual_gradient(layout(x), layout(y)),
        c.operator.residual_gradient(x, y),
        strict=True,
    ):
        assert torch.equal(got, expected)


@every
def test_expanded_inputs_are_read_right(c):
    x = randn(1, 1, *c.shape[1:])
    got = c.operator(x.expand(2, *c.shape))
    assert torch.equal(got, c.operator(x.repeat(2, c.shape[0], 1, 1)))


@every
def test_inputs_are_left_alone(c):
    x, y = images(c), measurements(c)
    before = x.clone(), y.clone()
    c.operator(x)
    c.operator.adjoint(y, c.shape)
    c.operator.residual_gradient(x, y)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


@every
def test_results_are_new_memory(c):
    x = images(c)
    assert c.operator(x).data_ptr() != x.data_ptr()


@every
@dtypes
def test_numpy_in_gives_numpy_out(c, dtype):
    x, y = images(c, dtype=dtype), measurements(c, dtype=dtype)
    got, adjoint = c.operator(x.numpy()), c.operator.adjoint(y.numpy(), c.shape)
    assert isinstance(got, np.ndarray) and isinstance(adjoint, np.ndarray)
    np.testing.assert_array_equal(got, c.operator(x).numpy())
    np.testing.assert_array_equal(adjoint, c.operator.adjoint(y, c.shape).numpy())


@every
def test_a_read_only_array_is_taken(c):
    x = images(c).numpy()
    x.flags.writeable = False
    np.testing.assert_array_equal(c.operator(x), c.operator(x.copy()))


@every
def test_an_empty_batch_gives_an_empty_batch(c):
    out = c.operator.out_shape(c.shape)
    x, y = torch.empty(0, *c.shape), torch.empty(0, *out)
    assert c.operator(x).shape == (0, *out)
    assert c.operator.adjoint(y, c.shape).shape == (0, *c.shape)
    gradient, sqnorm = c.operator.residual_gradient(x, y)
    assert gradient.shape == (0, *c.shape) and sqnorm.shape == (0,)
    assert c.operator.measure(x, 0.1).shape == (0, *out)


# ---- measuring ----


@every
@dtypes
def test_measuring_without_noise_is_the_operator(c, dtype):
    x = images(c, dtype=dtype)
    assert torch.equal(c.operator.measure(x, 0.0), c.operator(x))


@every
def test_measurement_noise_comes_from_the_seed_alone(c):
    x = images(c, 3)
    y = c.operator.measure(x, 0.1, seed=5)
    assert torch.equal(c.operator.measure(x, 0.1, seed=5), y)
    assert not torch.equal(c.operator.measure(x, 0.1, seed=6), y)
    # the first image of a batch is the image alone; noise of others differs
    assert torch.equal(c.operator.measure(x[:1], 0.1, seed=5)[0], y[0])
    noise = y - c.operator(x)
    assert not torch.equal(noise[0], noise[1])
    assert not y.requires_grad


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


@every
def test_the_spec_builds_the_same_operator_again(c):
    again = operators.build(c.operator.spec())
    assert type(again) is type(c.operator)
    x = images(c)
    assert torch.equal(again(x), c.operator(x))
    assert again.spec().keys() == c.operator.spec().keys()


@every
def test_pickling_keeps_the_operator(c):
    x = images(c)
    expected = c.operator(x)  # makes a handle, which must stay behind
    assert torch.equal(pickle.loads(pickle.dumps(c.operator))(x), expected)


@every
def test_the_repr_names_the_class(c):
    assert repr(c.operator).startswith(type(c.operator).__name__ + "(")
    assert len(repr(c.operator)) < 200


@every
def test_an_operator_is_linear_and_native(c):
    assert c.operator.linear
    handle = c.operator.native(c.shape, torch.float64)
    assert handle.in_shape == c.shape
    assert handle.out_shape == c.operator.out_shape(c.shape)
    assert c.operator.native(c.shape, torch.float64) is handle


@every
def test_the_image_shape_of_a_measurement_measures_to_it(c):
    out = c.operator.out_shape(c.shape)
    assert c.operator.out_shape(c.operator.image_shape(out)) == out


# ---- errors ----


@every
def test_wrong_inputs_are_refused_with_type_and_message(c):
    A, x = c.operator, images(c)
    y = measurements(c)
    for apply, good in ((A, x), (lambda v: A.adjoint(v, c.shape), y)):
        with pytest.raises(ValueError, match="4 axes"):
            apply(good[0])
        for dtype in (torch.float16, torch.int64, torch.complex64, torch.bool):
            with pytest.raises(TypeError, match="must be float32 or float64"):
                apply(good.to(dtype))
        with pytest.raises(ValueError, match="must be on the CPU, got meta"):
            apply(good.to("meta"))
        with pytest.raises(TypeError, match="a tensor or an array, got list"):
            apply(good.tolist())
        with pytest.raises(TypeError, match="must be float32 or float64, got int64"):
            apply(good.numpy().astype(np.int64))
    with pytest.raises(ValueError, match="y must have shape"):
        A.residual_gradient(x, y[:1])
    with pytest.raises(TypeError, match="y must be float64, got float32"):
        A.residual_gradient(x, y.float())
    with pytest.raises(ValueError, match="v must have shape"):
        A.adjoint(torch.cat([y, y], 3), c.shape)


@every
def test_a_wrong_number_of_axes_of_the_adjoint_is_named(c):
    with pytest.raises(ValueError, match="v must have 4 axes"):
        c.operator.adjoint(measurements(c)[0])


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.ones(3), r"kernel must be a real array \(h, w\), got float64 of shape"),
        (np.ones((0, 3)), "must be a real array"),
        (np.ones((2, 2), complex), "got complex128"),
        (np.ones((2, 2), bool), "got bool"),
        ([[1.0, float("nan")]], "NaN or infinite"),
        (torch.full((2, 2), torch.inf), "NaN or infinite"),
    ],
)
def test_a_wrong_kernel_is_refused(kernel, message):
    with pytest.raises(ValueError, match=f"Blur: .*{message}"):
        Blur(kernel)


def test_a_kernel_may_be_any_real_tensor():
    k = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    for given in (k, k.detach().long(), torch._neg_view(-k.detach()), k.tolist()):
        np.testing.assert_array_equal(Blur(given).kernel, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("size", "image"), [((3, 3), (1, 1)), ((1, 9), (9, 4)), ((4, 4), (2, 5))]
)
def test_a_kernel_that_reaches_over_the_image_is_refused(size, image):
    with pytest.raises(ValueError, match=r"reaches .* more than reflection"):
        Blur(np.ones(size))(torch.zeros(1, 1, *image))


@dtypes
@pytest.mark.parametrize("form", [1, 2, 3], ids=["separable", "sparse", "FFT"])
@pytest.mark.parametrize("size", [(5, 5), (4, 6), (1, 7)])
def test_every_form_of_a_blur_computes_the_same(form, size, dtype):
    name = "float64" if dtype == torch.float64 else "float32"
    A = Blur(np.outer(kernel(size[0], 1), kernel(1, size[1], seed=1)))
    c = case("", A, (2, 9, 8), correlated, SEPARABLE)
    x, v = images(c, dtype=dtype), measurements(c, dtype=dtype)
    handle = _core.blur(name, c.shape, A.kernel, form)
    y, g = torch.empty_like(x), torch.empty_like(v)
    handle.forward(y, x)
    handle.vjp(g, None, v)
    close(y, c.naive(x), tolerance(c, dtype))
    x64 = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(c.naive(x64), x64, v.double())
    close(g.double(), expected, tolerance(c, dtype, scale=4))


def test_a_factor_far_beyond_the_image_is_refused():
    assert Downsample(64)(torch.ones(1, 1, 4, 3)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="resize"):
        Downsample(65)(torch.ones(1, 1, 4, 3))


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
        lambda: MotionBlur(1),
        lambda: MotionBlur(True),
        lambda: MotionBlur(9, 1.5),
        lambda: MotionBlur(9, float("nan")),
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
        lambda: Inpainting.random(8, missing=1.2),
        lambda: Inpainting.random(8, missing=(0.5, 0.2)),
        lambda: Inpainting.random(8, missing=float("nan")),
    ],
)
def test_wrong_options_are_refused(call):
    with pytest.raises(ValueError, match=r"must|does not fit"):
        call()


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
