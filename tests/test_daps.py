"""DAPS against closed forms, and what may not change its result."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import diffstategrad as dsg
from diffstategrad import DAPS, GaussianPrior, StateProjector, _core
from diffstategrad.noise import CounterNoise, ReplayNoise, content_keys
from diffstategrad.operators import Downsample, GaussianBlur, Inpainting
from diffstategrad.priors import as_prior
from diffstategrad.schedules import daps_annealing

EPS = 2.0**-52
SIGMA = 0.1
PRIOR = GaussianPrior((1, 8, 8), power=4.0, std=0.55, correlation_length=4.0)
BLUR = GaussianBlur(5, 1.0)
#: A run of some milliseconds.
SHORT = {
    "steps": 4,
    "ode_steps": 2,
    "langevin_steps": 5,
    "sigma_max": 10.0,
    "lr": 1e-4,
    "tau": SIGMA,
}


def solve(y, operator=BLUR, prior=PRIOR, **options):
    options = {"sigma": SIGMA, "progress": False, **SHORT, **options}
    return dsg.solve(y, operator, prior, **options)


def measured(b=1, operator=BLUR, prior=PRIOR, dtype=torch.float64):
    return operator.measure(prior.sample(b, seed=3).to(dtype), SIGMA, seed=4)


@pytest.fixture
def threads():
    """Sets the number of the core's threads, and the old one afterwards."""
    before = _core.info()["threads"]
    yield dsg.set_num_threads
    dsg.set_num_threads(before)


@pytest.fixture(scope="module")
def network():
    return as_prior("leaves64")


# ---- the posterior of a Gaussian field ----

CHAINS = 300


@cache
def posterior():
    """(y, mean, covariance) of the field."""
    y = measured()
    mean, covariance = PRIOR.posterior(BLUR, y, SIGMA)
    return y, mean.flatten(), covariance


def monte_carlo():
    """Standard deviations of both statistics of `against_posterior` for exact draws.

    With the posterior's correlation matrix R of p pixels, n draws behave like
    p_eff = p^2 / tr(R^2) independent pixels: a mean of squares of p_eff standard
    normals over n, and a mean of p_eff chi-squares over n - 1.
    """
    _, _, covariance = posterior()
    std = covariance.diagonal().sqrt()
    R = covariance / std / std[:, None]
    p_eff = len(std) ** 2 / R.square().sum().item()
    return (2 / p_eff) ** 0.5 / CHAINS, (2 / p_eff / (CHAINS - 1)) ** 0.5


def against_posterior(samples):
    """(squared bias of the mean in posterior standard deviations, mean over pixels and
    free of the 1 / n that a finite number of draws adds; variance ratio - 1)."""
    _, mean, covariance = posterior()
    samples, variance = samples.flatten(1), covariance.diagonal()
    bias = (samples.mean(0) - mean).square() / variance
    ratio = samples.var(0) / variance
    return bias.mean().item() - 1 / len(samples), ratio.mean().item() - 1


@cache
def of_daps(**options):
    y, _, _ = posterior()
    result = solve(
        y,
        n_samples=CHAINS,
        batch=CHAINS,
        **{
            "sigma_min": 0.02,
            "langevin_steps": 100,
            "lr": 2e-3,
            "lr_min_ratio": 0.1,
            **options,
        },
    )
    assert not result.warnings
    return against_posterior(result.samples[:, 0])


def test_the_statistics_are_zero_for_exact_draws():
    _, mean, covariance = posterior()
    white = CounterNoise(1, range(CHAINS), [0] * CHAINS).normal(
        torch.empty(CHAINS, len(mean), dtype=torch.float64)
    )
    bias, excess = against_posterior(mean + white @ torch.linalg.cholesky(covariance).T)
    noise_of_bias, noise_of_excess = monte_carlo()
    assert abs(bias) < 4 * noise_of_bias
    assert abs(excess) < 4 * noise_of_excess


def test_with_the_denoisers_mean_daps_tends_to_the_posterior_with_more_levels():
    # The bias of the mean is that of finitely many levels, about 2 / steps standard
    # deviations; its square and the excess of the variance shrink accordingly.
    coarse = of_daps(ode_steps=1, steps=25)
    fine = of_daps(ode_steps=1, steps=100)
    noise_of_bias, noise_of_excess = monte_carlo()
    assert fine[0] < 0.02**2 + 4 * noise_of_bias
    assert fine[1] < 0.05 + 4 * noise_of_excess
    assert coarse[0] < 0.08**2 + 4 * noise_of_bias
    assert coarse[0] > 2 * max(fine[0], 0.02**2)
    assert 0.10 < coarse[1] < 0.14 + 4 * noise_of_excess
    assert coarse[1] > 1.5 * fine[1]


def test_with_the_published_ode_daps_overstates_the_variance():
    # The end of the ODE is a sample and not the mean: 0.6 too much variance, and more
    # bias than the mean at the same number of levels.  This is the method's own.
    bias, excess = of_daps(ode_steps=5, steps=50)
    noise_of_bias, noise_of_excess = monte_carlo()
    assert abs(excess - 0.62) < 0.05 + 4 * noise_of_excess
    assert 0.05**2 < bias < 0.1**2 + 4 * noise_of_bias


# ---- reproducible ----


def test_the_same_seed_gives_the_same_result():
    y = measured(2)
    first = solve(y, seed=5, project=True, n_samples=2)
    again = solve(y, seed=5, project=True, n_samples=2)
    other = solve(y, seed=6, project=True, n_samples=2)
    assert torch.equal(first.samples, again.samples)
    assert first.trace == again.trace
    assert not torch.equal(first.samples, other.samples)
    assert not torch.equal(first.samples[0], first.samples[1])


def test_global_random_state_is_neither_read_nor_written():
    y = measured()
    torch.manual_seed(1)
    first = solve(y).x
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(solve(y).x, first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


PROJECTS = {
    "plain": None,
    "projected": True,
    "mean-rank": StateProjector(0.9, rank="mean", sides="left"),
    "period": StateProjector(0.9, period=2),
    "gradient": StateProjector(0.9, subspace="gradient"),
    "random": StateProjector(0.9, subspace="random"),
}
projects = pytest.mark.parametrize("project", PROJECTS.values(), ids=PROJECTS)


def assert_batch_is_loop(y, threads, **options):
    """Every image alone, with the same seed, against the batch."""
    threads(1)
    alone = [solve(y[i : i + 1], seed=7, **options).x[0] for i in range(len(y))]
    for b in range(1, len(y) + 1):
        for count in (1, 2):
            threads(count)
            together = solve(y[:b], seed=7, **options).x
            for i in range(b):
                assert torch.equal(together[i], alone[i])


@projects
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_a_batch_is_a_loop_bit_for_bit_whatever_the_threads(project, dtype, threads):
    assert_batch_is_loop(measured(3, dtype=dtype), threads, project=project)


@pytest.mark.parametrize("project", [None, True], ids=["plain", "projected"])
def test_with_the_bundled_network_too_a_batch_is_a_loop(project, threads, network):
    A = Downsample(2)
    x = GaussianPrior((3, 32, 32)).sample(3).clamp(-1, 1).float()
    y = A.measure(x, SIGMA)
    options = {"operator": A, "prior": network, "project": project}
    assert_batch_is_loop(y, threads, **options, steps=2, langevin_steps=3)


def test_the_number_of_samples_does_not_change_the_first_ones():
    y = measured(2)
    two, three = solve(y, n_samples=2), solve(y, n_samples=3)
    assert torch.equal(two.samples, three.samples[:2])


def test_the_size_of_network_batches_changes_at_most_rounding():
    y = measured(3)
    x = solve(y, batch=1).x
    # a run of 4 levels of contracting steps passes rounding on about as it is
    torch.testing.assert_close(solve(y, batch=3).x, x, rtol=0, atol=1e4 * EPS)


@pytest.mark.parametrize("rule", ["per_channel", "mean", "official"])
def test_keeping_all_energy_is_not_projecting_bit_for_bit(rule):
    y = measured(2)
    all_kept = solve(y, project=StateProjector(1.0, rank=rule))
    assert torch.equal(all_kept.x, solve(y).x)
    assert [level["rank"] for level in all_kept.trace] == [8] * 4


def test_projecting_changes_the_result():
    y = measured()
    assert not torch.equal(solve(y, project=StateProjector(0.5)).x, solve(y).x)


@pytest.mark.parametrize("size", [32, 48])
def test_torchs_threads_do_not_change_a_networks_result(network, size):
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(network.denoise(x, 1.0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


# ---- the loop in Python against the loop in C ----


class Foreign(GaussianBlur):
    """The same operator without a handle."""

    def native(self, shape, dtype):
        return None

    def residual_gradient(self, x, y):
        r = BLUR(x) - y
        return BLUR.adjoint(r), r.double().square().flatten(1).sum(1)

    def __call__(self, x):
        return BLUR(x)


FOREIGN = Foreign(5, 1.0)
# 4 levels of 5 contracting steps, a handful of roundings each on numbers of up to
# sigma_max = 10
LOOPS = 4 * 5 * 10 * 10 * EPS


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"project": True},
        {"project": StateProjector(0.9, sides="right", rank=3)},
        {"project": StateProjector(0.9, rank=3, subspace="random")},
        {"prior_score": "score-t"},
        {"prior_score": "score-min", "sigma_min": 0.5, "ode_sigma_min": 0.4},
        {"version": "2025", "project": True},
    ],
    ids=str,
)
def test_an_operator_without_a_handle_gives_the_result_of_one_with(options):
    y = measured(2)
    expected, got = solve(y, **options), solve(y, FOREIGN, **options)
    # projecting adds the rounding of the subspaces over the gap of singular values
    atol = LOOPS * (1e3 if "project" in options else 10)
    torch.testing.assert_close(got.x, expected.x, rtol=0, atol=atol)
    assert got.nfe == expected.nfe


@pytest.mark.parametrize(
    "project",
    [StateProjector(1.0, period=2), StateProjector(1.0, subspace="gradient")],
    ids=["period", "gradient"],
)
def test_the_python_loop_with_all_energy_is_the_python_loop_without_projector(project):
    y = measured(2)
    assert torch.equal(solve(y, project=project).x, solve(y, FOREIGN).x)


def test_a_period_beyond_the_steps_projects_the_first_step_of_a_level_only():
    y = measured()
    once = solve(y, project=StateProjector(0.5, period=100), langevin_steps=1)
    every = solve(y, project=StateProjector(0.5), langevin_steps=1)
    torch.testing.assert_close(once.x, every.x, rtol=0, atol=1e3 * LOOPS)


def test_the_exact_score_with_one_step_is_the_score_at_the_start():
    y, levels = measured(), {"sigma_min": 0.5, "ode_sigma_min": 0.4}
    exact = solve(y, prior_score="exact", langevin_steps=1, **levels)
    start = solve(y, prior_score="score-min", langevin_steps=1, **levels)
    torch.testing.assert_close(exact.x, start.x, rtol=0, atol=1e3 * LOOPS)
    # one call a Langevin step beside those of the ODE
    assert exact.nfe == start.nfe == 4 * (2 + 1)
    assert solve(y, prior_score="exact", langevin_steps=3, **levels).nfe == 4 * (2 + 3)


def test_recorded_noise_gives_the_result_of_the_seed_it_was_recorded_from():
    for dtype in (torch.float32, torch.float64):
        y = measured(2, dtype=dtype)
        source = CounterNoise(7, content_keys(y), [0, 0])
        draws = [source.normal(torch.empty_like(y)) for _ in range(1 + 4 * (5 + 1))]
        replayed = solve(y, seed=ReplayNoise(draws), project=True)
        assert torch.equal(replayed.x, solve(y, seed=7, project=True).x)


def test_a_generator_of_torch_may_supply_the_noise():
    y = measured(2)
    first, again = (solve(y, seed=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, solve(y).x)


# ---- precision, versions, sizes ----


def test_float32_follows_float64():
    y = measured(2)
    single, double = solve(y.float()).x, solve(y).x
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert torch.equal(solve(y, dtype=torch.float32).x, single)
    # as LOOPS, in float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2000 * 2.0**-23)


@pytest.mark.parametrize("version", ["2024", "2025"])
def test_levels_are_those_of_the_schedule(version):
    result = solve(measured(), version=version, sigma_min=0.2)
    expected = daps_annealing(version, 4, 10.0, 0.2)
    assert [level["sigma"] for level in result.trace] == list(map(float, expected[:4]))
    assert result.nfe == 4 * 2


def test_the_two_versions_differ():
    y = measured()
    assert not torch.equal(solve(y, version="2024").x, solve(y, version="2025").x)


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (Downsample(3), (2, 6, 9)),
        (Inpainting([[1, 0, 1]]), (5, 1, 3)),
        (GaussianBlur(3, 1.0), (1, 2, 9)),
    ],
)
def test_any_size_and_number_of_channels_works(operator, shape):
    prior = GaussianPrior(shape)
    y = operator.measure(prior.sample(2), SIGMA)
    result = solve(y, operator, prior, project=True)
    assert result.x.shape == (2, *shape) and result.x.isfinite().all()


def test_the_residual_gets_near_one_and_the_image_near_the_truth():
    x = PRIOR.sample(4, seed=3)
    y = BLUR.measure(x, SIGMA, seed=4)
    result = solve(y, steps=30, ode_steps=1, langevin_steps=50, lr=2e-3, sigma_min=0.02)
    assert not result.warnings
    assert (result.residual - 1).abs().max() < 0.5
    mean, covariance = PRIOR.posterior(BLUR, y, SIGMA)
    # a draw is a posterior standard deviation away, here with a variance 1.1 times that
    distance = (result.x - mean).flatten(1).square().mean(1)
    assert (distance < 2 * covariance.diagonal().mean()).all()


# ---- divergence ----


@pytest.mark.parametrize("operator", [BLUR, FOREIGN], ids=["C", "Python"])
@pytest.mark.parametrize("project", [None, True], ids=["plain", "projected"])
def test_divergence_is_reported_with_its_level_and_what_to_lower(operator, project):
    y = measured(2, dtype=torch.float32)
    result = solve(y, operator, lr=1e3, langevin_steps=30, project=project)
    (warning,) = result.warnings
    assert warning.startswith("2 of 2 runs diverged at level 1 (sigma 10): lower `lr`")
    assert result.x.isnan().all() and result.residual.isnan().all()
    assert result.trace == []
    assert "residual inf, inf" in repr(result)


@pytest.mark.parametrize("operator", [BLUR, FOREIGN], ids=["C", "Python"])
@projects
def test_only_the_image_that_diverged_is_nan(operator, project):
    y = measured(3, dtype=torch.float32)
    expected = solve(y, operator, project=project)
    y[1] = 1e38  # its first gradient overflows
    result = solve(y, operator, project=project)
    assert result.x[1].isnan().all() and result.residual[:, 1].isnan().all()
    for i in (0, 2):
        assert torch.equal(result.x[i], expected.x[i])
    assert result.warnings[0].startswith("1 of 3 runs diverged at level 1 (sigma 10)")
    assert "lower `lr`" in result.warnings[0]
    assert len(result.trace) == 4


def test_of_several_samples_the_finite_ones_are_kept():
    bad = iter([False, True, False, True, *[False] * 100])

    def prior(x, sigma):
        return x * (torch.nan if next(bad) else 0.5)

    # calls go image by image: of 2 samples of 2 images the second of each is lost
    result = solve(measured(2), prior=prior, n_samples=2, steps=2, ode_steps=1)
    lost = result.samples.isnan().flatten(2).all(2)
    assert lost.tolist() == [[False, True], [False, True]]
    assert result.x[0].isfinite().all() and result.x[1].isnan().all()
    assert torch.isfinite(result.mean[0]).all()


def test_options_are_checked_when_the_method_is_made():
    with pytest.raises(ValueError, match="ode_sigma_min <= sigma_min < sigma_max"):
        DAPS(sigma_min=200.0)
    with pytest.raises(ValueError, match="did you mean 'langevin_steps'"):
        DAPS(langevin_step=3)
    with pytest.raises(ValueError, match="steps must not be True"):
        DAPS(steps=True)
