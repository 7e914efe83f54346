"""Levels of DAPS drawn exactly: against dense algebra and a known posterior."""

from __future__ import annotations

import exact_draws
import numpy as np
import pytest
import torch

import diffstategrad as dsg
from diffstategrad import DAPS, GaussianPrior, _core
from diffstategrad.noise import CounterNoise, ReplayNoise
from diffstategrad.operators import (
    Downsample,
    GaussianBlur,
    Inpainting,
    from_callable,
)
from diffstategrad.priors import CallablePrior, as_prior
from diffstategrad.priors.spectrum import Profile, Spectrum
from diffstategrad.samplers import Network, Problem, exact
from diffstategrad.samplers.conjugate_gradients import conjugate_gradients
from diffstategrad.samplers.exact import ExactDraw

EPS = 2.0**-52
SIGMA = 0.1
PRIOR = GaussianPrior((1, 4, 4), std=0.5, correlation_length=3.0)
COVARIANCES = ["isotropic", "capped", "spectral", "tweedie"]
covariances = pytest.mark.parametrize("covariance", COVARIANCES)


def _reversed_difference(x):
    """No mask, no blur: an operator without a closed form."""
    return 0.5 * x.flip(3) + 0.3 * x.roll(1, 2)


OPERATORS = {
    "blur": GaussianBlur(3, 1.0),
    "half": Downsample(2),
    "mask": Inpainting([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]]),
    "callable": from_callable(_reversed_difference, linear=True),
}
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def problem(operator, y, noise, prior=PRIOR):
    return Problem(
        y=y,
        operator=operator,
        network=Network(prior, len(y)),
        sigma=SIGMA,
        noise=noise,
        start=y.new_empty((len(y), *prior.shape)),
        projector=None,
    )


def measured(b=1, operator=OPERATORS["blur"], prior=PRIOR):
    return operator.measure(prior.sample(b, seed=3), SIGMA, seed=4)


def solve(y, operator=OPERATORS["blur"], prior=PRIOR, **options):
    options = {"dynamics": "exact", "steps": 4, "sigma_max": 10.0, **options}
    return dsg.solve(y, operator, prior, sigma=SIGMA, progress=False, **options)


# ---- one draw ----


@operators
@covariances
@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
def test_a_draw_has_the_mean_and_covariance_of_its_target(operator, covariance, sigma):
    """A draw is an affine function of its noise: of no noise it is the mean, of unit
    vectors the columns of a root of the covariance."""
    n, C = 16, PRIOR.covariance()
    y = measured(operator=operator)
    m = y[0].numel()
    eye = torch.eye(n + m, dtype=torch.float64)
    zero = torch.zeros((1, n + m), dtype=torch.float64)
    unit = torch.cat([zero, eye])
    noise = ReplayNoise(
        [unit[:, :n].reshape(-1, 1, 4, 4), unit[:, n:].reshape(-1, *y.shape[1:])]
    )
    b = len(unit)
    p = problem(operator, y.expand(b, *y.shape[1:]).contiguous(), noise)
    draw = ExactDraw(p, covariance, 0.4)
    centre = PRIOR.sample(1, seed=9)
    x, sqnorm = draw(centre.repeat(b, 1, 1, 1), centre.repeat(b, 1, 1, 1), sigma)

    A = operator(torch.eye(n, dtype=torch.float64).reshape(n, 1, 4, 4))
    A = A.reshape(n, -1).T
    I = torch.eye(n, dtype=torch.float64)  # noqa: E741
    S = {
        "isotropic": sigma**2 * I,
        "capped": sigma**2 * 0.4**2 / (sigma**2 + 0.4**2) * I,
        "spectral": sigma**2 * C @ torch.linalg.inv(C + sigma**2 * I),
    }
    S["tweedie"] = S["spectral"]
    precision = A.T @ A / SIGMA**2 + torch.linalg.inv(S[covariance])
    target = torch.linalg.inv(precision)
    pull = A.T @ y.flatten() / SIGMA**2
    pull += torch.linalg.solve(S[covariance], centre.flatten())
    x = x.flatten(1)
    root = (x[1:] - x[0]).T
    # conjugate gradients to 1e-8, of right-hand sides up to 20 and matrices whose
    # condition is up to (20 / 0.1)^2; roots of Lanczos to some 1e-6
    atol = 1e-4 if sigma > 10 else 1e-6
    torch.testing.assert_close(x[0], target @ pull, rtol=0, atol=atol)
    if covariance == "tweedie":  # its root is another one for each vector
        return
    scale = target.diagonal().max().item()
    torch.testing.assert_close(root @ root.T, target, rtol=0, atol=atol * scale**0.5)
    misfit = operator(x.reshape(b, 1, 4, 4)) - y
    torch.testing.assert_close(sqnorm, misfit.square().flatten(1).sum(1))


def test_the_lanczos_root_is_the_root():
    from diffstategrad.samplers.exact import _lanczos_root

    C = PRIOR.covariance()
    values, vectors = torch.linalg.eigh(C)
    n = CounterNoise(0, [0, 1], [0, 0]).normal(torch.empty(2, 1, 4, 4).double())

    def product(v):
        return (v.flatten(1) @ C).reshape(v.shape)

    got = _lanczos_root(product, n)
    want = n.flatten(1) @ (vectors * values.sqrt() @ vectors.T)
    # 16 steps are all that 16 dimensions have
    torch.testing.assert_close(got.flatten(1), want, rtol=0, atol=1e6 * EPS)


# ---- the posterior of a Gaussian field ----

CHAINS = 300


def monte_carlo():
    """Standard deviations of squared bias and variance ratio of exact draws; see
    test_daps."""
    _, _, covariance = exact_draws.posterior()
    std = covariance.diagonal().sqrt()
    R = covariance / std / std[:, None]
    p_eff = len(std) ** 2 / R.square().sum().item()
    return (2 / p_eff) ** 0.5 / CHAINS, (2 / p_eff / (CHAINS - 1)) ** 0.5


@pytest.mark.parametrize(
    ("covariance", "levels", "excess"),
    # each makes 100 network calls; what 2000 chains showed is about half of `excess`
    [
        ("isotropic", 100, 0.10),
        ("capped", 100, 0.10),
        ("spectral", 100, 0.03),
        ("tweedie", 50, 0.03),
    ],
)
def test_exact_draws_about_the_mean_tend_to_the_posterior(covariance, levels, excess):
    samples = exact_draws.samples(CHAINS, levels, "mean", covariance)
    bias, ratio = exact_draws.bias_and_ratio(samples)
    noise_of_bias, noise_of_ratio = monte_carlo()
    assert bias**2 - 1 / CHAINS < 0.1**2 + 4 * noise_of_bias
    assert abs(ratio - 1) < excess + 3 * noise_of_ratio


def test_exact_draws_about_the_end_of_the_ode_overstate_the_variance():
    samples = exact_draws.samples(CHAINS, 25, "ode", "isotropic")
    _, ratio = exact_draws.bias_and_ratio(samples)
    assert ratio > 1.5


# ---- the loop ----


@covariances
@pytest.mark.parametrize("operator", ["blur", "mask", "callable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_a_batch_is_a_loop_bit_for_bit(covariance, operator, dtype):
    operator = OPERATORS[operator]
    y = measured(3, operator).to(dtype)
    together = solve(y, operator, covariance=covariance, seed=7)
    for i in range(3):
        alone = solve(y[i : i + 1], operator, covariance=covariance, seed=7)
        assert torch.equal(together.x[i], alone.x[0])


@pytest.mark.parametrize("covariance", ["capped", "spectral"])
def test_with_the_bundled_network_too_a_batch_is_a_loop(covariance):
    A = GaussianBlur(5, 1.0)
    x = GaussianPrior((3, 32, 48)).sample(3).clamp(-1, 1).float()
    y, prior = A.measure(x, SIGMA), as_prior("leaves64")
    together = solve(y, A, prior, covariance=covariance, steps=2)
    for i in range(3):
        alone = solve(y[i : i + 1], A, prior, covariance=covariance, steps=2)
        assert torch.equal(together.x[i], alone.x[0])


@covariances
def test_network_calls_and_details_are_told(covariance):
    result = solve(measured(), covariance=covariance)
    assert result.nfe == 4 * (2 if covariance == "tweedie" else 1)
    assert len(result.details["cg_iterations"]) == 4
    assert any(result.details["cg_iterations"]) == (
        covariance in ("spectral", "tweedie")
    )
    if covariance == "capped":
        assert result.details["signal_std"] == pytest.approx(0.5)
        given = solve(measured(), covariance="capped", signal_std=0.2)
        assert given.details["signal_std"] == 0.2
        assert not torch.equal(given.x, result.x)


def test_what_conjugate_gradients_leave_is_told(monkeypatch):
    y = measured(2)
    result = solve(y)
    left = result.details["cg_residuals"]
    assert len(left) == 4 and 0 < max(left) <= 1e-8 and not result.warnings
    assert solve(y, covariance="isotropic").details["cg_residuals"] == [0.0] * 4

    monkeypatch.setattr(exact, "_ITERATIONS", 1)
    result = solve(y)
    missed = [k for k, r in enumerate(result.details["cg_residuals"]) if r > 1e-8]
    (warning,) = [w for w in result.warnings if "conjugate gradients" in w]
    first = result.details["cg_residuals"][missed[0]]
    assert warning.startswith(f"level {missed[0] + 1} is not drawn exactly: ")
    assert f"relative residual of {first:.1e}, above 1e-08" in warning
    assert result.details["cg_iterations"] == [1] * 4


def test_the_residual_of_conjugate_gradients_is_that_of_the_worst_image():
    M = torch.diag(torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=torch.float64))

    def product(v):
        return (v.flatten(1) @ M).reshape(v.shape)

    b = torch.ones(3, 1, 2, 2, dtype=torch.float64)
    b[1], b[2, 0, 0, 0] = 0, 7
    options = {"tolerance": 1e-12, "iterations": 2}
    z, count, residual = conjugate_gradients(product, b, **options)
    r = (b - product(z)).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
    assert count == 2 and r[1].isnan()
    assert residual == pytest.approx(r[[0, 2]].max().item(), rel=1e-12)
    b[0, 0, 0, 0] = torch.nan  # diverged: not its fault
    *_, residual = conjugate_gradients(product, b, **options)
    assert residual == pytest.approx(r[2].item(), rel=1e-12)


def test_conjugate_gradients_that_break_down_give_their_best():
    # not symmetric: the residual of the last iterate is 460
    M = torch.tensor([[1.0, 9, 0, 0], [-9, 1, 9, 0], [0, -9, 1, 9], [0, 0, -9, -8]])
    M = M.double()

    def product(v):
        return (v.flatten(1) @ M.T).reshape(v.shape)

    b = torch.tensor([[[[1.0, 0], [0, 0]]]], dtype=torch.float64)
    options = {"tolerance": 1e-8, "iterations": 50}
    z, _, residual = conjugate_gradients(product, b, **options)
    assert residual <= 1
    assert residual == pytest.approx((b - product(z)).norm().item(), rel=1e-12)


@covariances
def test_only_the_image_whose_prior_fails_is_nan(covariance):
    def prior(x, sigma):
        return torch.where(x.mean((1, 2, 3), True) > 100, torch.nan, 0.5 * x)

    prior = CallablePrior(prior)
    prior.profile = Profile((0.1,), (0.3,), ((1.0,),))
    y = measured(3)
    expected = solve(y, prior=prior, covariance=covariance)
    y[1] = 1e5
    result = solve(y, prior=prior, covariance=covariance)
    assert result.x[1].isnan().all() and result.residual[:, 1].isnan().all()
    for i in (0, 2):
        assert torch.equal(result.x[i], expected.x[i])
    assert "the prior gave" in result.warnings[0]


def test_a_nonlinear_operator_takes_data_steps():
    A = from_callable(lambda x: torch.tanh(2 * x))
    y = A.measure(PRIOR.sample(2, seed=3), SIGMA, seed=4)
    result = solve(y, A, covariance="capped", steps=20, sigma_min=0.02)
    assert (result.residual - 1).abs().max() < 0.6
    with pytest.raises(ValueError, match="'spectral' needs a linear operator"):
        solve(y, A, covariance="spectral")


def test_a_prior_without_derivatives_is_refused_by_tweedie():
    prior = CallablePrior(lambda x, sigma: (0.5 * x).detach())
    with pytest.raises(TypeError, match="differentiates through the prior"):
        solve(measured(), prior=prior, covariance="tweedie")


@pytest.mark.parametrize("dynamics", ["exact", "mh"])
def test_a_projector_is_refused_where_there_is_no_gradient(dynamics):
    with pytest.raises(ValueError, match=f"dynamics='{dynamics}' takes no projector"):
        solve(measured(), dynamics=dynamics, project=True)


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="needs langevin or hmc"):
        DAPS(dynamics="mh", prior_score="exact")


# ---- spectra ----


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 8), (2, 1, 7)])
@pytest.mark.parametrize("basis", ["dct", "fft"])
def test_coefficients_are_orthonormal(shape, basis):
    c = shape[0]
    mixing = torch.linalg.qr(torch.arange(1.0, c * c + 1).double().reshape(c, c).cos())
    spectrum = Spectrum(torch.ones(shape).double(), mixing[0], basis)
    x = GaussianPrior(shape).sample(2)
    coefficients = spectrum.coefficients(x)
    n = x[0].numel()
    torch.testing.assert_close(
        coefficients.abs().square().sum(), x.square().sum(), rtol=10 * n * EPS, atol=0
    )
    torch.testing.assert_close(
        spectrum.images(coefficients), x, rtol=0, atol=10 * n * EPS
    )


def test_a_constant_image_is_one_coefficient():
    spectrum = Spectrum(torch.ones(1, 3, 5).double())
    c = spectrum.coefficients(torch.full((1, 1, 3, 5), 2.0, dtype=torch.float64))
    assert c[0, 0, 0, 0].item() == pytest.approx(2 * 15**0.5)
    assert c.flatten()[1:].abs().max() < 100 * EPS


def test_a_profile_finds_the_spectrum_and_the_channels_of_its_images():
    n = 400
    field = GaussianPrior((2, 32, 32), power=3.0, correlation_length=8.0)
    x = field.sample(n)
    mixed = torch.stack([x[:, 0] + x[:, 1], x[:, 0] - 0.5 * x[:, 1]], 1)
    profile = Profile.of(mixed)
    K = np.array([[2, 0.5], [0.5, 1.25]])
    np.testing.assert_allclose(profile.channels, 2 * K / np.trace(K), atol=0.05)
    spectrum = profile.spectrum((2, 32, 32))
    # the mean over the bands' coefficients, a step function against a slope
    assert spectrum.std == pytest.approx(mixed.std().item(), rel=0.1)
    # the field is periodic and the DCT's is not: borders leak into high frequencies
    variance = spectrum.coefficients(mixed).square().mean(0)
    ratio = spectrum.variance / variance
    assert ratio.log().abs().median() < 0.3
    assert ratio[:, 1:, 1:].log().abs().max() < 2


def test_a_prior_is_measured_once_for_a_shape():
    calls = []

    def denoise(x, sigma):
        calls.append(sigma)
        return x * 0.25 / (0.25 + sigma**2)

    prior = CallablePrior(denoise)
    spectrum = prior.power_spectrum((1, 8, 8))
    # white of standard deviation 0.5, a few hundred numbers; Euler's steps are coarse
    assert spectrum.std == pytest.approx(0.5, rel=0.3)
    assert len(calls) == 4 * 24
    prior.power_spectrum((1, 8, 8))
    assert len(calls) == 4 * 24


def test_a_prior_that_cannot_be_measured_says_so():
    prior = CallablePrior(lambda x, sigma: x * torch.nan)
    with pytest.raises(ValueError, match="the prior gave images with NaN"):
        prior.power_spectrum((1, 8, 8))


def test_the_bundled_prior_knows_its_spectrum():
    spectrum = as_prior("leaves64").power_spectrum((3, 64, 80))
    assert spectrum.variance.shape == (3, 64, 80)
    assert 0.45 < spectrum.std < 0.65  # of the scenes: 0.55


def test_the_uniforms_of_images_are_the_cores():
    got = CounterNoise(3, [4, 5], [0, 1]).uniform(torch.empty(2).double())
    want = torch.empty(2, dtype=torch.float64)
    _core.uniform(want, (3, [4, 5], [0, 1], 0))
    assert torch.equal(got, want)
