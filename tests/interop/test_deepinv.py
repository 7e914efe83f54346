"""Operators of deepinv as ours and ours as deepinv's, run by both libraries."""
# ruff: noqa: E402 (what is imported below may be missing)

from __future__ import annotations

import pytest
import torch

REASON = "`make test-interop` runs these: they need deepinv and torchvision"
deepinv = pytest.importorskip("deepinv", reason=REASON)

from deepinv.optim import HQS, PGD
from deepinv.optim.data_fidelity import L2
from deepinv.optim.prior import TVPrior
from deepinv.physics import LinearPhysics, Physics

import diffstategrad as dsg
from diffstategrad import GaussianPrior, metrics
from diffstategrad.operators import (
    Downsample,
    GaussianBlur,
    HighDynamicRange,
    Identity,
    Inpainting,
    MotionBlur,
    from_callable,
    from_deepinv,
    to_deepinv,
)

SHAPE = (3, 16, 12)
#: What deepinv's conjugate gradients reach, whatever the tolerance.
CG = 1e-5
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


def kernel():
    weights = torch.rand(1, 1, 5, 3, generator=torch.Generator().manual_seed(0))
    return weights / weights.sum()


def mask():
    return (torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) > 0.4).float()


LINEAR = {
    "denoising": lambda: deepinv.physics.Denoising(),
    "valid blur": lambda: deepinv.physics.Blur(kernel(), padding="valid"),
    "reflected blur": lambda: deepinv.physics.Blur(kernel(), padding="reflect"),
    "circular blur": lambda: deepinv.physics.BlurFFT(SHAPE, kernel()),
    "downsampling": lambda: deepinv.physics.Downsampling(
        SHAPE, filter="gaussian", factor=2
    ),
    "inpainting": lambda: deepinv.physics.Inpainting(SHAPE, mask=mask()),
    "grey": lambda: deepinv.physics.Decolorize(),
    "own, adjoint by autograd": lambda: LinearPhysics(
        lambda x, **kwargs: x.flip(-1)[..., 1:], img_size=SHAPE
    ),
}


def cube():
    return Physics(lambda x, **kwargs: x**3)


OURS = {
    "blur": lambda: GaussianBlur(5, 1.2),
    "motion": lambda: MotionBlur(7, seed=1),
    "inpainting": lambda: Inpainting.random((16, 12), missing=0.5, seed=2),
    "downsample": lambda: Downsample(4),
    "identity": Identity,
    "callable": lambda: from_callable(lambda x: x.roll(1, -1) - x, linear=True),
}


def images(b=2, dtype=torch.float64, seed=0, shape=SHAPE):
    source = torch.Generator().manual_seed(seed)
    return torch.rand(b, *shape, generator=source, dtype=dtype) * 2 - 1


def close(got, expected, size=1.0):
    """To the rounding of sums over a hundred terms or so."""
    tolerance = 100 * EPS[expected.dtype] * size
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# deepinv's as ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_physics_keeps_its_values_shapes_and_adjoint(name, dtype):
    physics = LINEAR[name]()
    physics.set_noise_model(deepinv.physics.GaussianNoise(0.5))
    operator = from_deepinv(physics)
    x = images(dtype=dtype)
    y = operator(x)
    assert operator.linear and y.dtype == dtype
    assert operator.out_shape(SHAPE) == tuple(y.shape[1:])
    assert operator.image_shape(tuple(y.shape[1:])) == SHAPE
    if dtype == torch.float32:  # no noise
        assert torch.equal(y, physics.A(x))
    else:
        torch.testing.assert_close(y.float(), physics.A(x.float()))
    v = torch.randn(y.shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    w = operator.adjoint(v)
    assert w.shape == x.shape and w.dtype == dtype
    size = float(y.abs().sum())
    close((y * v).sum(), (x * w).sum(), size)
    close(operator.vjp(x, v), w)


@pytest.mark.parametrize("name", ["valid blur", "inpainting", "downsampling"])
def test_the_residual_gradient_of_a_linear_physics_is_that_of_autograd(name):
    operator = from_deepinv(LINEAR[name]())
    x, y = images(), operator(images(seed=1))
    gradient, sqnorm = operator.residual_gradient(x, y)
    residual = operator(x) - y
    close(gradient, operator.adjoint(residual))
    close(sqnorm, residual.square().flatten(1).sum(1))


@pytest.mark.parametrize("name", ["circular blur", "downsampling", "inpainting"])
def test_norm_and_data_step_of_a_linear_physics_are_those_of_deepinv(name):
    physics = LINEAR[name]().double()
    operator = from_deepinv(physics)
    x = images()
    y = operator(x) + 0.1
    z = images(seed=4)
    got = operator.prox(z, y, 1 / 5.0)
    slope = 5.0 * physics.A_adjoint(physics.A(got) - y) + got - z
    assert float(slope.abs().max()) < 1e-8
    # by its conjugate gradients: the closed form of its Downsampling (0.5.0) leaves a
    # slope of 1e-2 here
    expected = LinearPhysics.prox_l2(
        physics, z, y, 5.0, solver="CG", max_iter=500, tol=1e-12
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=CG)
    sqnorm = physics.compute_sqnorm(x, max_iter=5000, tol=1e-10, verbose=False)
    assert operator.norm(SHAPE) == pytest.approx(float(sqnorm) ** 0.5, rel=1e-3)


def test_double_precision_leaves_the_physics_as_it_is():
    physics = LINEAR["valid blur"]()
    from_deepinv(physics)(images())
    assert {t.dtype for t in physics.buffers()} == {torch.float32}


def test_a_physics_with_a_generator_can_be_copied():
    source = torch.Generator().manual_seed(0)
    physics = LINEAR["valid blur"]()
    physics.set_noise_model(deepinv.physics.GaussianNoise(0.1, rng=source))
    assert from_deepinv(physics)(images()).dtype == torch.float64


def test_a_nonlinear_physics_is_differentiated():
    operator = from_deepinv(cube())
    x = images()
    v = torch.ones_like(x)
    assert not operator.linear
    close(operator(x), x**3)
    close(operator.vjp(x, v), 3 * x**2)
    with pytest.raises(NotImplementedError, match="not linear"):
        operator.adjoint(v)


@pytest.mark.parametrize("make", [LINEAR["grey"], cube])
def test_a_physics_of_unit_images_gets_them_from_ours(make):
    physics = make()
    operator = from_deepinv(physics, value_range=(0, 1))
    unit = (images(dtype=torch.float32) + 1) / 2
    close(operator(2 * unit - 1), physics.A(unit))
    assert not operator.linear
    assert "grey" not in operator.spec() and operator.spec()["name"] == "from_callable"


@pytest.mark.parametrize("name", LINEAR)
def test_a_measurement_of_unit_images_can_be_brought_to_ours(name):
    """2 y - A(1), as `from_deepinv` recommends."""
    physics = LINEAR[name]()
    unit = (images(dtype=torch.float32) + 1) / 2
    ours = 2 * physics.A(unit) - physics.A(torch.ones_like(unit))
    close(ours, from_deepinv(physics)(2 * unit - 1), 4.0)


def test_what_is_no_physics_or_gives_no_image_is_refused():
    with pytest.raises(
        TypeError, match=r"must be a deepinv\.physics\.Physics, got int"
    ):
        from_deepinv(3)
    with pytest.raises(ValueError, match="value_range"):
        from_deepinv(cube(), value_range=(1, 0))
    stacked = LINEAR["denoising"]().stack(LINEAR["valid blur"]())
    with pytest.raises(ValueError, match=r"must give a tensor .* got TensorList"):
        from_deepinv(stacked).out_shape(SHAPE)
    sensing = deepinv.physics.CompressedSensing(m=10, img_size=SHAPE)
    with pytest.raises(ValueError, match=r"must give a tensor .* got \(1, 10\)"):
        from_deepinv(sensing).out_shape(SHAPE)


def test_solve_restores_through_a_physics_as_through_our_operator():
    field = GaussianPrior(SHAPE)
    x = field.sample(2, seed=5).float()
    physics = LINEAR["inpainting"]()
    physics.set_noise_model(
        deepinv.physics.GaussianNoise(0.1, rng=torch.Generator().manual_seed(6))
    )
    y = physics(x)

    def solved(operator):
        return dsg.solve(
            y,
            operator,
            lambda x, sigma: field.denoise(x, sigma),
            sigma=0.1,
            seed=7,
            progress=False,
            steps=20,
            project=True,
        )

    got, expected = solved(from_deepinv(physics)), solved(Inpainting(mask()))
    # rounding, over twenty levels of many steps each
    torch.testing.assert_close(got.x, expected.x, rtol=0, atol=1e-3)
    assert (got.residual < 1.3).all() and (got.residual > 0.7).all()


# ours as deepinv's


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OURS)
def test_our_linear_operators_pass_the_adjointness_test_of_deepinv(name, dtype):
    operator = OURS[name]()
    physics = to_deepinv(operator, image_shape=SHAPE)
    error = physics.adjointness_test(img_size=SHAPE, num_samples=5, dtype=dtype)
    assert isinstance(physics, LinearPhysics)
    assert float(error) < 100 * EPS[dtype]
    x = images(dtype=dtype)
    assert torch.equal(physics(x), operator(x))
    assert torch.equal(
        physics.A_adjoint(operator(x)), operator.adjoint(operator(x), SHAPE)
    )


@pytest.mark.parametrize("name", OURS)
def test_our_data_step_solves_the_problem_of_prox_l2(name):
    physics = to_deepinv(OURS[name](), image_shape=SHAPE)
    z, y = images(seed=1), physics(images(seed=2)) + 0.1
    got = physics.prox_l2(z, y, 3.0)
    slope = 3.0 * physics.A_adjoint(physics.A(got) - y) + got - z
    assert float(slope.abs().max()) < 1e-8
    expected = LinearPhysics.prox_l2(
        physics, z, y, 3.0, solver="CG", max_iter=500, tol=1e-12
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=CG)
    # each image may have its own weight, and z be left out
    gammas = torch.tensor([3.0, 0.5]).view(2, 1, 1, 1)
    each = physics.prox_l2(z, y, gammas)
    torch.testing.assert_close(each[:1], got[:1])
    torch.testing.assert_close(each[1:], physics.prox_l2(z[1:], y[1:], 0.5))
    zero = torch.zeros_like(z)
    assert torch.equal(physics.prox_l2(None, y, 2.0), physics.prox_l2(zero, y, 2.0))


@pytest.mark.parametrize("name", ["inpainting", "downsample", "identity"])
def test_our_pseudo_inverse_is_the_a_dagger(name):
    operator = OURS[name]()
    physics = to_deepinv(operator, image_shape=SHAPE)
    y = physics(images())
    assert torch.equal(physics.A_dagger(y), operator.pinv(y, SHAPE))
    torch.testing.assert_close(physics(physics.A_dagger(y)), y, rtol=0, atol=1e-6)


def test_noise_is_added_by_calling_the_physics_alone():
    physics = to_deepinv(Identity(), sigma=0.3)
    x = torch.zeros(4, 3, 64, 64)
    assert torch.equal(physics.A(x), x)
    assert float(physics(x).std()) == pytest.approx(0.3, rel=0.05)
    with pytest.raises(ValueError, match="sigma must be >= 0"):
        to_deepinv(Identity(), sigma=-1)
    with pytest.raises(TypeError, match="must be an Operator, got Identity"):
        to_deepinv(torch.nn.Identity())


def test_a_nonlinear_operator_becomes_a_physics_with_our_derivatives():
    operator = HighDynamicRange()
    physics = to_deepinv(operator)
    x, v = images(), images(seed=1)
    assert isinstance(physics, Physics) and not isinstance(physics, LinearPhysics)
    assert torch.equal(physics(x), operator(x))
    assert torch.equal(physics.A_vjp(x, v), operator.vjp(x, v))
    assert torch.equal(physics.A_jvp(x, v), operator.jvp(x, v))
    fidelity = L2().grad(x, operator(x) + 0.1, physics)
    close(fidelity, operator.residual_gradient(x, operator(x) + 0.1)[0])


@pytest.mark.parametrize("name", ["blur", "downsample"])
def test_there_and_back_is_the_operator(name):
    operator = OURS[name]()
    back = from_deepinv(to_deepinv(operator, image_shape=SHAPE))
    x = images()
    assert back.linear
    assert torch.equal(back(x), operator(x))
    y = operator(x)
    assert torch.equal(back.adjoint(y), operator.adjoint(y, SHAPE))


def blocks(size=32):
    """A picture of flat pieces in [0, 1], as deepinv has them."""
    x = torch.full((1, 3, size, size), 0.2)
    x[..., 6:20, 4:18] = torch.tensor([0.9, 0.5, 0.3]).view(3, 1, 1)
    x[..., 14:28, 15:29] = torch.tensor([0.1, 0.6, 0.8]).view(3, 1, 1)
    return x


@pytest.mark.parametrize("algorithm", [PGD, HQS])
@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianBlur(9, 1.5),
        lambda: Inpainting.random((32, 32), missing=0.4, seed=3),
    ],
    ids=["blur", "inpainting"],
)
def test_an_algorithm_of_deepinv_reconstructs_through_our_operator(make, algorithm):
    """Total variation; PGD asks for A and its adjoint, HQS for our data step."""
    sigma, x = 0.02, blocks()
    operator = make()
    torch.manual_seed(0)  # deepinv's noise is of the global generator
    physics = to_deepinv(operator, sigma=sigma)
    y = physics(x)
    model = algorithm(
        data_fidelity=L2(),
        prior=TVPrior(n_it_max=50),
        lambda_reg=0.005,
        stepsize=1.0 if algorithm is PGD else 4.0,
        max_iter=100,
    )
    with torch.no_grad():
        got = model(y, physics)
    before = float(metrics.psnr(y, x, value_range=(0, 1)))
    after = float(metrics.psnr(got, x, value_range=(0, 1)))
    residual = float((operator(got) - y).square().mean().sqrt()) / sigma
    assert after > before + 3, (before, after)
    assert 0.5 < residual < 1.5


@pytest.mark.parametrize(
    "gamma", [0.0, -1.0, float("nan"), torch.ones(3), torch.ones(0)]
)
def test_a_wrong_gamma_is_refused(gamma):
    physics, y = to_deepinv(Identity()), torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="gamma must be > 0, one number or 2, got"):
        physics.prox_l2(y, y, gamma)


@pytest.mark.parametrize("operator", [Identity(), HighDynamicRange()])
def test_parameters_that_an_operator_has_not_are_refused(operator):
    physics, x = to_deepinv(operator), torch.zeros(2, 1, 4, 4)
    with pytest.raises(TypeError, match="takes no mask"):
        physics.A(x, mask=x)
    if operator.linear:
        with pytest.raises(TypeError, match="takes no mask"):
            physics.A_adjoint(x, mask=x)


def test_asking_for_a_shape_takes_the_precision_of_the_physics():
    physics = deepinv.physics.Downsampling(
        img_size=(1, 8, 8), factor=2, filter="gaussian"
    ).double()
    assert from_deepinv(physics).image_shape((1, 4, 4)) == (1, 8, 8)
