"""Operators with unknowns, against the torch expressions that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffstategrad import operators
from diffstategrad.noise import CounterNoise, ReplayNoise
from diffstategrad.operators import (
    BlindBlur,
    BlindOperator,
    BlindTurbulence,
    Blur,
    GaussianBlur,
    Turbulence,
    Warp,
    blind_blur,
    warp,
)
from diffstategrad.operators.blind import (
    _blur_image_op,
    _blur_kernel_op,
    _blur_op,
    _warp_displacement_op,
    _warp_image_op,
    _warp_op,
)

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
dtypes = pytest.mark.parametrize("dtype", EPS, ids=["float32", "float64"])

BORDERS = ("reflect", "circular", "zero", "replicate")
#: (kernel, image); a kernel larger than its image where the border allows it.
SIZES = {"odd": ((3, 5), (2, 6, 7)), "even": ((4, 2), (3, 6, 5))}
LARGE = {"large": ((9, 12), (1, 4, 5)), "1-pixel": ((3, 4), (2, 1, 1))}
sizes_of = {name: SIZES if name == "reflect" else SIZES | LARGE for name in BORDERS}
GEOMETRIES = [
    pytest.param(boundary, even, *sizes, id=f"{boundary}-{even}-{name}")
    for boundary in BORDERS
    for name, sizes in sizes_of[boundary].items()
    for even in (("same",) if name == "odd" else ("same", "grow", "torch"))
]
geometries = pytest.mark.parametrize(("boundary", "even", "size", "shape"), GEOMETRIES)


def randn(*shape, seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def kernels(*shape, seed=1, dtype=torch.float64):
    """Like those of a search, signed; sums around 1."""
    return randn(*shape, seed=seed, dtype=dtype) / (shape[-1] * shape[-2]) ** 0.5


def close(got, expected, atol):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def tolerance(dtype, *sizes):
    """Three terms of every pixel and every tap that an entry adds up, times eps, on
    entries of size up to 4."""
    return 4 * 3 * sum(map(np.prod, sizes)) * EPS[dtype]


def naive_blur(x, k, boundary, even):
    """Every image with its kernel: continued by index, then F.conv2d."""
    k = k.expand(len(x), *k.shape[-2:])
    sides = []
    for side in k.shape[1:]:
        before = (side - 1) // 2 if even == "torch" else side // 2
        sides.append((before, side - 1 - before + (even == "grow" and side % 2 == 0)))
    if boundary == "zero":
        x = F.pad(x, (*sides[1], *sides[0]))
    else:
        mode = {"reflect": "reflect", "circular": "wrap", "replicate": "edge"}[boundary]
        for axis, pads in zip((2, 3), sides, strict=True):
            index = np.pad(np.arange(x.shape[axis]), pads, mode=mode)
            x = x.index_select(axis, torch.from_numpy(index))
    b, c = x.shape[:2]
    weights = k[:, None].repeat_interleave(c, 0)
    y = F.conv2d(x.reshape(1, b * c, *x.shape[2:]), weights, groups=b * c)
    return y.reshape(b, c, *y.shape[2:])


def naive_warp(x, d):
    """F.grid_sample at displaced places, zeros outside."""
    h, w = x.shape[2:]
    d = d.expand(len(x), 2, h, w)
    i = torch.arange(h, dtype=x.dtype)[:, None] + d[:, 1]
    j = torch.arange(w, dtype=x.dtype) + d[:, 0]
    grid = torch.stack([2 * j / (w - 1) - 1, 2 * i / (h - 1) - 1], -1)
    return F.grid_sample(
        x, grid, mode="bilinear", padding_mode="zeros", align_corners=True
    )


# ---- blind_blur ----


@geometries
@dtypes
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-image"])
def test_blind_blur_is_the_naive_correlation(
    boundary, even, size, shape, dtype, shared
):
    x = randn(3, *shape, dtype=dtype)
    k = kernels(*(size if shared else (3, *size)), dtype=dtype)
    y = blind_blur(x, k, boundary=boundary, even=even)
    assert y.dtype == dtype
    close(y, naive_blur(x, k, boundary, even), tolerance(dtype, size, shape[1:]))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning")
def test_zeros_and_torchs_placement_are_conv2d_with_same_padding():
    x, k = randn(2, 1, 7, 6), kernels(4, 6)
    expected = F.conv2d(x, k[None, None], padding="same")
    got = blind_blur(x, k, boundary="zero", even="torch")
    close(got, expected, tolerance(torch.float64, (4, 6)))


@geometries
@dtypes
def test_gradients_of_blind_blur_are_those_of_the_naive_correlation(
    boundary, even, size, shape, dtype
):
    x, k = randn(2, *shape, dtype=dtype), kernels(2, *size, dtype=dtype)

    def gradients(blur):
        leaves = x.clone().requires_grad_(), k.clone().requires_grad_()
        y = blur(*leaves)
        v = randn(*y.shape, seed=2, dtype=dtype)
        return torch.autograd.grad(y, leaves, v)

    got = gradients(lambda x, k: blind_blur(x, k, boundary=boundary, even=even))
    expected = gradients(lambda x, k: naive_blur(x, k, boundary, even))
    # a tap's derivative adds up all pixels of all channels
    atol = tolerance(dtype, size, shape) * max(shape[0], 1)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        close(one, other, atol)


def test_a_shared_kernels_gradient_is_the_sum_over_the_batch():
    x, k = randn(3, 2, 5, 6), kernels(3, 3)
    shared = k.clone().requires_grad_()
    each = k.expand(3, 3, 3).clone().requires_grad_()
    v = randn(3, 2, 5, 6, seed=2)
    (g,) = torch.autograd.grad(blind_blur(x, shared), shared, v)
    (gs,) = torch.autograd.grad(blind_blur(x, each), each, v)
    close(g, gs.sum(0), tolerance(torch.float64, (5, 6), (3, 3)))


@geometries
def test_blind_blur_passes_gradcheck_and_gradgradcheck(boundary, even, size, shape):
    x, k = randn(2, *shape).requires_grad_(), kernels(2, *size).requires_grad_()
    blur = lambda x, k: blind_blur(x, k, boundary=boundary, even=even)  # noqa: E731
    assert torch.autograd.gradcheck(blur, (x, k), fast_mode=True)
    assert torch.autograd.gradgradcheck(blur, (x, k), fast_mode=True)


@geometries
@dtypes
def test_blind_blur_with_a_known_kernel_is_blur(boundary, even, size, shape, dtype):
    x, k = randn(2, *shape, dtype=dtype), kernels(*size, dtype=dtype)
    expected = Blur(k, boundary=boundary, even=even)(x)
    assert torch.equal(blind_blur(x, k, boundary=boundary, even=even), expected)


@dtypes
def test_a_batch_of_blind_blurs_is_a_loop_bit_for_bit(dtype):
    x, k = randn(3, 2, 6, 5, dtype=dtype), kernels(3, 3, 4, dtype=dtype)
    x.requires_grad_()
    k.requires_grad_()
    y = blind_blur(x, k)
    v = randn(*y.shape, seed=2, dtype=dtype)
    gradients = torch.autograd.grad(y, (x, k), v)
    for i in range(3):
        alone = blind_blur(x[i : i + 1], k[i : i + 1])
        assert torch.equal(alone[0], y[i])
        for one, all_ in zip(
            torch.autograd.grad(alone, (x, k), v[i : i + 1]), gradients, strict=True
        ):
            assert torch.equal(one[i], all_[i])


def test_layouts_do_not_matter_to_blind_blur():
    x, k = randn(2, 3, 6, 7), kernels(2, 3, 4)
    expected = blind_blur(x, k)
    for layout in (
        lambda t: t.mT.contiguous().mT,
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: torch._neg_view(-t),
        lambda t: t.clone().requires_grad_(),
    ):
        assert torch.equal(blind_blur(layout(x), layout(k)).detach(), expected)
    one = k[:1].expand(2, 3, 4)
    assert torch.equal(blind_blur(x, one), blind_blur(x, k[0]))


def test_an_empty_batch_of_blind_blurs_is_empty():
    x = torch.empty(0, 3, 6, 7, requires_grad=True)
    k = torch.ones(3, 3, requires_grad=True)
    y = blind_blur(x, k)
    assert y.shape == x.shape
    gx, gk = torch.autograd.grad(y, (x, k), torch.empty_like(y))
    assert gx.shape == x.shape and torch.equal(gk, torch.zeros(3, 3))


def test_blind_blur_and_warp_leave_their_inputs_alone():
    x, k, d = randn(2, 1, 5, 6), kernels(2, 3, 3), randn(2, 2, 5, 6)
    before = x.clone(), k.clone(), d.clone()
    leaves = [t.detach().requires_grad_() for t in (x, k, d)]
    warp(blind_blur(leaves[0], leaves[1]), leaves[2]).sum().backward()
    for now, then in zip((x, k, d), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (torch.ones(3, 3), TypeError, "one dtype, got torch.float64 and torch.float32"),
        (torch.ones(3, 3, dtype=torch.complex128), TypeError, "got .*complex128"),
        (
            torch.ones(3, 3, dtype=torch.float64, device="meta"),
            ValueError,
            "one device, got cpu and meta",
        ),
        (
            torch.ones(3, dtype=torch.float64),
            ValueError,
            r"kernel must be \(h, w\) or \(2, h, w\), got \(3,\)",
        ),
        (torch.ones(3, 3, 3, dtype=torch.float64), ValueError, r"got \(3, 3, 3\)"),
        (torch.ones(1, 3, 3, dtype=torch.float64), ValueError, r"got \(1, 3, 3\)"),
        (torch.ones(0, 3, dtype=torch.float64), ValueError, r"\(2, 0, 3\)|\(0, 3\)"),
        (torch.ones(13, 3, dtype=torch.float64), ValueError, "reaches 6 pixels"),
        ([[1.0]], TypeError, "kernel must be a tensor, got list"),
        (np.ones((3, 3)), TypeError, "kernel must be a tensor, got ndarray"),
    ],
)
def test_a_wrong_kernel_of_blind_blur_is_named(kernel, error, message):
    with pytest.raises(error, match=message):
        blind_blur(randn(2, 1, 6, 6), kernel)


@pytest.mark.parametrize("function", [blind_blur, warp])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.zeros(2, 6, 6),
            ValueError,
            r"x must have 4 axes .* got shape \(2, 6, 6\)",
        ),
        (torch.zeros(2, 1, 6, 6, dtype=torch.float16), TypeError, "got .*float16"),
        (torch.zeros(2, 1, 6, 6, dtype=torch.int64), TypeError, "got .*int64"),
        (torch.zeros(2, 1, 6, 6, dtype=torch.complex64), TypeError, "got .*complex64"),
        (np.zeros((2, 1, 6, 6)), TypeError, "x must be a tensor, got ndarray"),
    ],
)
def test_wrong_images_of_blind_functions_are_named(function, x, error, message):
    unknown = torch.zeros(3, 3) if function is blind_blur else torch.zeros(2, 6, 6)
    with pytest.raises(error, match=message):
        function(x, unknown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boundary": "mirror"}, "unknown boundary 'mirror'"),
        ({"boundary": "reflct"}, "did you mean 'reflect'"),
        ({"even": "left"}, "unknown placement of even kernels 'left'"),
    ],
)
def test_wrong_options_of_blind_blur_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        blind_blur(randn(1, 1, 6, 6), kernels(3, 3), **options)


# ---- warp ----


@dtypes
@pytest.mark.parametrize("size", [0.7, 3.0, 30.0], ids=["near", "far", "outside"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-image"])
def test_warp_is_grid_sample(dtype, size, shared):
    x = randn(3, 2, 6, 7, dtype=dtype)
    d = size * randn(*((2, 6, 7) if shared else (3, 2, 6, 7)), seed=1, dtype=dtype)
    y = warp(x, d)
    assert y.dtype == dtype
    # grid_sample has places in units of the image, where they round to eps of its side
    # and of the displacement
    close(y, naive_warp(x, d), 20 * (7 + size) * EPS[dtype])


@dtypes
def test_gradients_of_warp_are_those_of_grid_sample(dtype):
    x, d = randn(2, 3, 6, 7, dtype=dtype), 1.5 * randn(2, 2, 6, 7, seed=1, dtype=dtype)
    v = randn(2, 3, 6, 7, seed=2, dtype=dtype)

    def gradients(function):
        leaves = x.clone().requires_grad_(), d.clone().requires_grad_()
        return torch.autograd.grad(function(*leaves), leaves, v)

    for one, other in zip(gradients(warp), gradients(naive_warp), strict=True):
        # sums of up to 3 channels' and a few neighbours' terms, as above
        close(one, other, 20 * (7 + 10) * EPS[dtype] * 6)


def test_warp_passes_gradcheck_and_its_image_gradgradcheck():
    # a step of 1e-6 across a whole number of pixels would meet a kink
    x = randn(1, 2, 5, 6).requires_grad_()
    d = (0.8 * randn(1, 2, 5, 6, seed=1)).requires_grad_()
    assert ((d - d.round()).abs() > 1e-4).all()
    assert torch.autograd.gradcheck(warp, (x, d), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: warp(x, d.detach()), (x,))


def test_the_second_derivative_in_the_displacement_says_that_it_is_missing():
    x, d = randn(1, 1, 4, 5), (0.8 * randn(1, 2, 4, 5, seed=1)).requires_grad_()
    (g,) = torch.autograd.grad(warp(x, d).square().sum(), d, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated once more"):
        torch.autograd.grad(g.sum(), d)


@dtypes
def test_warp_with_a_known_displacement_is_the_operator(dtype):
    x, d = randn(2, 3, 5, 6, dtype=dtype), 1.5 * randn(2, 5, 6, seed=1, dtype=dtype)
    assert torch.equal(warp(x, d), Warp(d)(x))


def test_a_warp_of_whole_pixels_moves_the_image():
    x = randn(1, 1, 4, 5)
    d = torch.zeros(2, 4, 5, dtype=x.dtype)
    d[0], d[1] = 2, -1  # from two columns to the right, one row up
    y = warp(x, d)
    assert torch.equal(y[..., 1:, :3], x[..., :3, 2:])
    assert not y[..., 0, :].any() and not y[..., 3:].any()


@dtypes
def test_a_batch_of_warps_is_a_loop_bit_for_bit(dtype):
    x, d = randn(3, 2, 5, 6, dtype=dtype), 1.5 * randn(3, 2, 5, 6, seed=1, dtype=dtype)
    x.requires_grad_()
    d.requires_grad_()
    y = warp(x, d)
    v = randn(*y.shape, seed=2, dtype=dtype)
    gradients = torch.autograd.grad(y, (x, d), v)
    for i in range(3):
        alone = warp(x[i : i + 1], d[i : i + 1])
        assert torch.equal(alone[0], y[i])
        for one, all_ in zip(
            torch.autograd.grad(alone, (x, d), v[i : i + 1]), gradients, strict=True
        ):
            assert torch.equal(one[i], all_[i])


@pytest.mark.parametrize(
    ("displacement", "error", "message"),
    [
        (
            torch.zeros(2, 6, 6),
            TypeError,
            "one dtype, got torch.float64 and torch.float32",
        ),
        (
            torch.zeros(2, 6, 6, dtype=torch.float64, device="meta"),
            ValueError,
            "one device, got cpu and meta",
        ),
        (
            torch.zeros(2, 6, 5, dtype=torch.float64),
            ValueError,
            r"must be \(2, 6, 6\) or \(2, 2, 6, 6\), got \(2, 2, 6, 5\)|\(2, 6, 5\)",
        ),
        (
            torch.zeros(3, 2, 6, 6, dtype=torch.float64),
            ValueError,
            r"got \(3, 2, 6, 6\)",
        ),
        (torch.zeros(6, 6, dtype=torch.float64), ValueError, r"got \(6, 6\)"),
        (np.zeros((2, 6, 6)), TypeError, "displacement must be a tensor, got ndarray"),
    ],
)
def test_a_wrong_displacement_is_named(displacement, error, message):
    with pytest.raises(error, match=message):
        warp(randn(2, 1, 6, 6), displacement)


@pytest.mark.parametrize(
    ("displacement", "message"),
    [
        (
            np.zeros((1, 4, 4)),
            r"must be a real array \(2, H, W\), got float64 of shape",
        ),
        (np.zeros((2, 4)), "must be a real array"),
        (np.zeros((2, 4, 4), bool), "got bool"),
        (np.full((2, 4, 4), np.nan), "NaN or infinite"),
    ],
)
def test_a_wrong_displacement_of_the_operator_is_named(displacement, message):
    with pytest.raises(ValueError, match=f"Warp: displacement .*{message}"):
        Warp(displacement)


@pytest.mark.parametrize(
    "kernel",
    [
        torch.ones(5, 5, dtype=torch.float64),
        torch.from_numpy(100 * operators.GaussianBlur(5, 1.0).kernel),
        torch.zeros(3, 4, dtype=torch.float64),
    ],
    ids=["ones", "gaussian", "zeros"],
)
def test_a_kernel_that_is_almost_a_product_has_the_derivatives_of_what_is_computed(
    kernel,
):
    x, k = randn(1, 1, 6, 7).requires_grad_(), kernel.clone().requires_grad_()
    assert torch.autograd.gradcheck(blind_blur, (x, k))
    assert torch.autograd.gradgradcheck(blind_blur, (x, k))


# ---- torch.func, torch.library ----


# torch's own use of torch.jit, where forward mode is first used
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_blind_functions_have_a_forward_mode():
    x, k, d = randn(2, 1, 5, 6), kernels(2, 3, 4), randn(2, 2, 5, 6, seed=1)
    dx, dk, v = randn(2, 1, 5, 6, seed=2), kernels(2, 3, 4, seed=3), randn(2, 1, 5, 6)
    _, t = torch.func.jvp(blind_blur, (x, k), (dx, dk))
    close(t, blind_blur(dx, k) + blind_blur(x, dk), 1e-14)
    _, t = torch.func.jvp(lambda x: warp(x, d), (x,), (dx,))
    assert torch.equal(t, warp(dx, d))

    def pulled(x, k):
        return torch.func.vjp(blind_blur, x, k)[1](v)

    # the derivatives of <v, x * k> are linear, each in the other
    _, (to_x, to_k) = torch.func.jvp(pulled, (x, k), (dx, dk))
    close(to_x, pulled(x, dk)[0], 1e-13)
    close(to_k, pulled(dx, k)[1], 1e-13)
    with pytest.raises(NotImplementedError, match="has no forward mode"):
        torch.func.jvp(lambda d: warp(x, d), (d,), (d,))


def test_vmap_of_blind_functions_is_a_loop():
    x, k, d = randn(2, 1, 5, 6), kernels(3, 3, 4), randn(3, 2, 5, 6, seed=1)
    for function, unknowns in ((blind_blur, k), (warp, d)):
        got = torch.vmap(function, in_dims=(None, 0))(x, unknowns)
        for i in range(3):
            assert torch.equal(got[i], function(x, unknowns[i]))
        both = torch.vmap(function, in_dims=(1, 0))(
            torch.stack([x, 2 * x, 3 * x], 1), unknowns
        )
        assert torch.equal(both[0], got[0])


def test_functional_gradients_of_blind_functions_are_those_of_autograd():
    x, k, d = randn(2, 1, 5, 6), kernels(3, 4), 1.5 * randn(2, 5, 6, seed=1)
    for function, unknown in ((blind_blur, k), (warp, d)):
        loss = lambda x, u, f=function: f(x, u).square().sum()  # noqa: E731
        got = torch.func.grad(loss, argnums=(0, 1))(x, unknown)
        leaves = x.clone().requires_grad_(), unknown.clone().requires_grad_()
        expected = torch.autograd.grad(loss(*leaves), leaves)
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)


def test_registered_blind_functions_pass_opcheck():
    check = torch.library.opcheck
    x = randn(2, 1, 5, 6, dtype=torch.float32).requires_grad_()
    k = kernels(2, 3, 4, dtype=torch.float32).requires_grad_()
    v = randn(2, 1, 5, 7, seed=2, dtype=torch.float32).requires_grad_()
    d = randn(2, 2, 5, 6, seed=1, dtype=torch.float32).requires_grad_()
    placed = ([1, 2], [0, 1], 2)
    check(_blur_op, (x, k, *placed))
    check(_blur_image_op, (v, k, *placed))
    check(_blur_kernel_op, (x, v, [3, 4], *placed))
    check(_warp_op, (x, d))
    check(_warp_image_op, (x, d))
    check(_warp_displacement_op, (x.detach(), x.detach(), d.detach()))


def test_meta_tensors_give_the_shapes_of_blind_functions():
    x = torch.empty(2, 3, 5, 6, device="meta", requires_grad=True)
    k = torch.empty(4, 3, device="meta", requires_grad=True)
    d = torch.empty(2, 5, 6, device="meta", requires_grad=True)
    y = blind_blur(x, k, even="grow")
    assert y.shape == (2, 3, 6, 6) and y.is_meta
    for leaf, g in zip((x, k), torch.autograd.grad(y.sum(), (x, k)), strict=True):
        assert g.shape == leaf.shape
    z = warp(x, d)
    assert z.shape == x.shape
    assert torch.autograd.grad(z.sum(), d)[0].shape == d.shape


# ---- Turbulence ----

KERNEL = GaussianBlur(8, 1.0).kernel


def test_turbulence_is_a_warp_then_a_blur_between_zeros():
    x, d = randn(2, 3, 9, 8), 1.5 * randn(2, 9, 8, seed=1)
    k = kernels(4, 3)
    expected = blind_blur(warp(x, d), k, boundary="zero", even="torch")
    assert torch.equal(Turbulence(d, k)(x), expected)


def test_a_random_turbulence_comes_from_the_seed_alone():
    first = Turbulence.random(
        20, KERNEL, patches=30, patch=8, seed=1
    ).inner.displacement
    again = Turbulence.random(
        20, KERNEL, patches=30, patch=8, seed=1
    ).inner.displacement
    other = Turbulence.random(
        20, KERNEL, patches=30, patch=8, seed=2
    ).inner.displacement
    source = np.random.RandomState(1)
    given = Turbulence.random(20, KERNEL, patches=30, patch=8, seed=source)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, given.inner.displacement)
    assert (first != other).any()
    # the generator moves on, the global one does not
    more = Turbulence.random(20, KERNEL, patches=30, patch=8, seed=source)
    assert (more.inner.displacement != first).any()


def test_a_random_turbulence_uses_no_global_generator():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    Turbulence.random(12, KERNEL, patches=3, patch=4)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("size", "shape"), [(16, (16, 16)), ((12, 17), (12, 17)), ((1, 3), (1, 3))]
)
def test_a_random_turbulence_has_the_size_of_the_image(size, shape):
    A = Turbulence.random(size, KERNEL, patches=5, patch=64)
    assert A.inner.displacement.shape == (2, *shape)
    assert A(torch.zeros(1, 3, *shape)).shape == (1, 3, *shape)


def test_a_random_displacement_is_clipped_to_two_and_a_half_pixels():
    calm = Turbulence.random(24, KERNEL, patches=20, patch=12).inner.displacement
    assert 0 < np.abs(calm).max() < 2.5
    wild = Turbulence.random(24, KERNEL, patches=2000, patch=24).inner.displacement
    assert np.abs(wild).max() == 2.5
    assert (np.abs(wild) == 2.5).mean() < 0.9


def test_one_patch_is_smoothed_noise_of_the_drawn_strength():
    """The draws in order: place, noise, strength."""
    size, patch = 12, 8
    rng = np.random.RandomState(5)
    top, left = rng.randint(size - patch + 1), rng.randint(size - patch + 1)
    noise = torch.from_numpy(rng.standard_normal((2, 1, patch, patch)))
    weights = torch.exp(-0.5 * torch.arange(-3, 4, dtype=torch.float64) ** 2)
    weights /= weights.sum()
    smooth = F.conv2d(noise, (weights[:, None] * weights)[None, None], padding=3)
    expected = np.zeros((2, size, size))
    expected[:, top : top + patch, left : left + patch] = (
        rng.uniform(0.1, 0.4) * smooth[:, 0].numpy()
    )
    A = Turbulence.random(size, KERNEL, patches=1, patch=patch, seed=5)
    # 14 terms of size 1
    np.testing.assert_allclose(
        A.inner.displacement, expected, atol=50 * 2.0**-52, rtol=0
    )


@pytest.mark.parametrize(
    "options", [{"patches": 0}, {"patch": 0}, {"patches": 1.5}, {"patch": True}]
)
def test_wrong_options_of_a_random_turbulence_are_named(options):
    with pytest.raises(ValueError, match=r"patches and patch must be ints >= 1, got"):
        Turbulence.random(8, KERNEL, **options)


def test_the_repr_of_turbulence_is_short():
    A = Turbulence.random(8, KERNEL, patches=2)
    assert repr(A) == "Turbulence(displacement=(2, 8, 8), kernel=(8, 8))"


# ---- operators whose unknowns a method finds ----

BLIND = [
    pytest.param(BlindBlur(4), id="blur"),
    pytest.param(BlindBlur(5, boundary="reflect", even="grow"), id="blur-reflect"),
    pytest.param(BlindTurbulence(4), id="turbulence"),
]
blind = pytest.mark.parametrize("A", BLIND)


def test_every_blind_operator_is_in_the_list():
    kinds = {cls for cls in operators.OPERATORS.values() if isinstance(cls, type)}
    kinds = {cls for cls in kinds if issubclass(cls, BlindOperator)}
    assert kinds <= {type(p.values[0]) for p in BLIND}


@blind
@dtypes
def test_a_start_applies_to_its_images(A, dtype):
    x = randn(2, 3, 7, 8, dtype=dtype)
    unknowns = A.start(x, CounterNoise(0, [0, 1], [0, 0]))
    assert all(u.dtype == dtype and len(u) == 2 for u in unknowns.values())
    y = A.apply(x, unknowns)
    assert y.dtype == dtype and y.shape[1:] == A.out_shape((3, 7, 8))
    assert A.out_shape(A.image_shape(A.out_shape((3, 7, 8)))) == A.out_shape((3, 7, 8))


@blind
def test_a_start_is_per_image(A):
    x = randn(2, 1, 7, 8)
    both = A.start(x, CounterNoise(3, [4, 5], [0, 0]))
    alone = A.start(x[1:], CounterNoise(3, [5], [0]))
    for name, value in both.items():
        assert torch.equal(value[1:], alone[name])


def test_a_blind_blur_has_a_kernel_of_sum_1_and_blurs_with_it():
    A, x = BlindBlur(3), randn(2, 1, 7, 8)
    unknowns = {"kernel": randn(2, 9, seed=3)}
    k = A.describe(unknowns)["kernel"]
    assert k.shape == (2, 3, 3) and (k > 0).all()
    np.testing.assert_allclose(k.sum((1, 2)), 1, rtol=20 * 2.0**-52)
    for i in range(2):
        expected = Blur(k[i], boundary="zero", even="torch")(x[i : i + 1])
        assert torch.equal(A.apply(x, unknowns)[i : i + 1], expected)


def test_a_blind_turbulence_warps_then_blurs():
    A, x = BlindTurbulence(3), randn(1, 1, 7, 8)
    unknowns = A.start(x, ReplayNoise([randn(1, 9, seed=3), randn(1, 2, 7, 8, seed=4)]))
    close(unknowns["displacement"], 0.01 * randn(1, 2, 7, 8, seed=4), 0)
    shown = A.describe(unknowns)
    expected = Turbulence(shown["displacement"][0], shown["kernel"][0])(x)
    assert torch.equal(A.apply(x, unknowns), expected)


@blind
def test_blind_operators_are_differentiable_in_image_and_unknowns(A):
    x = randn(1, 1, 6, 7).requires_grad_()
    unknowns = A.start(x, CounterNoise(0, [0], [0]))
    names = list(unknowns)
    # the field of a start lies within 0.1 of whole pixels; clear of the kinks there
    leaves = [(u + 0.3 * (n == "displacement")).detach() for n, u in unknowns.items()]
    apply = lambda x, *u: A.apply(x, dict(zip(names, u, strict=True)))  # noqa: E731
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(apply, (x, *leaves), fast_mode=True)


@blind
def test_a_blind_operator_is_rebuilt_and_refuses_to_be_called(A):
    again = operators.build(A.spec())
    assert type(again) is type(A) and again.spec() == A.spec()
    with pytest.raises(TypeError, match=f"{type(A).__name__} has unknowns"):
        A(randn(1, 1, 7, 8))


@pytest.mark.parametrize("size", [0, 2.0, True, None])
def test_a_wrong_size_of_a_blind_kernel_is_named(size):
    with pytest.raises(
        ValueError, match=f"kernel_size must be an int >= 1, got {size}"
    ):
        BlindBlur(size)
