"""Hamiltonian and Metropolis-Hastings levels of DAPS, and projected noise."""

from __future__ import annotations

import pytest
import torch
from test_daps import (
    BLUR,
    FOREIGN,
    LOOPS,
    PRIOR,
    SHORT,
    SIGMA,
    measured,
    solve,
    threads,
)

import diffstategrad as dsg
from diffstategrad import DAPS, StateProjector
from diffstategrad.noise import CounterNoise, ReplayNoise, content_keys
from diffstategrad.operators import Downsample
from diffstategrad.priors import CallablePrior

__all__ = ["threads"]  # a fixture

HMC = {"dynamics": "hmc", "momentum": 0.7}
MH = {"dynamics": "mh", "lr": 3e-4}
both = pytest.mark.parametrize("options", [HMC, MH], ids=["hmc", "mh"])


# ---- the distribution of a level ----

CHAINS, PIXELS = 400, 9


@pytest.mark.parametrize(
    ("options", "excess"),
    # the first two move in steps of finite size: the variance of a direction with
    # curvature c is 1 / (1 - eta c / 2) times too large, here at most 1 / 0.95; HMC's
    # excess is of the same order
    [
        ({"dynamics": "langevin", "langevin_steps": 300}, 0.05),
        ({"dynamics": "hmc", "momentum": 0.5, "langevin_steps": 300}, 0.05),
        ({"dynamics": "mh", "langevin_steps": 1500}, 0.0),
    ],
    ids=["langevin", "hmc", "mh"],
)
def test_a_level_has_the_distribution_it_should(options, excess):
    """One level from a fixed estimate m: (x - mean) whitened is standard normal."""
    sigma, tau, m = 0.5, 0.3, 0.2
    A = Downsample(1)
    prior = CallablePrior(lambda x, s: torch.full_like(x, m))
    y = torch.linspace(-1, 1, PIXELS, dtype=torch.float64).reshape(1, 1, 3, 3)
    result = dsg.solve(
        y,
        A,
        prior,
        sigma=SIGMA,
        n_samples=CHAINS,
        batch=CHAINS,
        progress=False,
        steps=1,
        sigma_max=sigma,
        tau=tau,
        lr=0.1 * tau**2 * sigma**2 / (tau**2 + sigma**2),
        centre="mean",
        **options,
    )
    variance = 1 / (1 / tau**2 + 1 / sigma**2)
    mean = variance * (y / tau**2 + m / sigma**2)
    z = (result.samples[:, 0] - mean[0]) / variance**0.5
    n = z.numel()
    assert z.mean().abs() < 4 / n**0.5
    assert -4 * (2 / n) ** 0.5 < z.var() - 1 < excess + 4 * (2 / n) ** 0.5


def test_acceptance_is_told_for_every_level_and_image():
    rates = solve(measured(2), **MH).details["acceptance"]
    assert len(rates) == 4 and all(len(level) == 2 for level in rates)
    assert all(0 <= rate <= 1 for level in rates for rate in level)
    # tiny steps are nearly always taken, huge ones never
    easy = solve(measured(2), dynamics="mh", lr=1e-12).details["acceptance"]
    assert min(map(min, easy)) == 1
    hard = solve(measured(2), dynamics="mh", lr=1e3)
    assert max(map(max, hard.details["acceptance"])) == 0


# ---- reproducible ----


@both
@pytest.mark.parametrize("operator", [BLUR, FOREIGN], ids=["C", "Python"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_a_batch_is_a_loop_bit_for_bit(options, operator, dtype, threads):
    y = measured(3, dtype=dtype)
    threads(1)
    alone = [solve(y[i : i + 1], operator, seed=7, **options).x[0] for i in range(3)]
    for count in (1, 2):
        threads(count)
        together = solve(y, operator, seed=7, **options).x
        for i in range(3):
            assert torch.equal(together[i], alone[i])


@both
@pytest.mark.parametrize("operator", [BLUR, FOREIGN], ids=["C", "Python"])
def test_recorded_noise_gives_the_result_of_the_seed(options, operator):
    y = measured(2)
    source, draws = CounterNoise(7, content_keys(y), [0, 0]), []
    mh = options["dynamics"] == "mh"
    draws.append(source.normal(y))
    for _ in range(4):
        if not mh:
            draws.append(source.normal(y))  # velocity
        for _ in range(5):
            draws.append(source.normal(y))
            if mh:
                draws.append(source.uniform(torch.empty(2, dtype=torch.float64)))
        draws.append(source.normal(y))
    replayed = solve(y, operator, seed=ReplayNoise(draws), **options)
    seeded = solve(y, operator, seed=7, **options)
    assert torch.equal(replayed.x, seeded.x)
    assert replayed.details == seeded.details


@pytest.mark.parametrize(
    "options",
    [
        HMC,
        MH,
        {**HMC, "project": StateProjector(0.9, rank=3)},
        {**HMC, "project": StateProjector(0.9, rank=3), "project_noise": True},
        {"project": StateProjector(0.9, rank=3), "project_noise": True},
        {**HMC, "version": "2025", "momentum": 0.0},
        {**MH, "version": "2025", "prior_score": "score-t"},
    ],
    ids=str,
)
def test_an_operator_without_a_handle_gives_the_result_of_one_with(options):
    y = measured(2)
    expected, got = solve(y, **options), solve(y, FOREIGN, **options)
    atol = LOOPS * (1e3 if "project" in options else 10)
    torch.testing.assert_close(got.x, expected.x, rtol=0, atol=atol)
    if "acceptance" in expected.details:
        assert got.details == expected.details


# ---- projection ----


@pytest.mark.parametrize("dynamics", ["langevin", "hmc"])
@pytest.mark.parametrize("noise", [False, True], ids=["gradient", "noise"])
@pytest.mark.parametrize("operator", [BLUR, FOREIGN], ids=["C", "Python"])
def test_keeping_all_energy_is_not_projecting(dynamics, noise, operator):
    y, options = measured(2), {"dynamics": dynamics, "operator": operator}
    projected = solve(y, project=StateProjector(1.0), project_noise=noise, **options)
    assert torch.equal(projected.x, solve(y, **options).x)


@pytest.mark.parametrize("dynamics", ["langevin", "hmc"])
@pytest.mark.parametrize("operator", [BLUR, FOREIGN], ids=["C", "Python"])
@pytest.mark.parametrize("subspace", ["state", "random"])
def test_with_projected_noise_a_level_stays_in_the_subspace(
    dynamics, operator, subspace
):
    projector = StateProjector(rank=3, subspace=subspace)
    moves = []

    def keep(level):
        if level.index == 0:
            moves.append((level.x0y - level.x0hat, level.x0hat.clone()))

    for noise in (False, True):
        solve(
            measured(2),
            operator,
            dynamics=dynamics,
            project=projector,
            project_noise=noise,
            callback=keep,
        )
    for (move, x0hat), inside in zip(moves, (False, True), strict=True):
        outside = (projector.factors(x0hat).apply(move) - move).norm() / move.norm()
        # a product of orthonormal factors a step
        assert (outside < 1e-12) == inside


def test_projected_noise_follows_the_subspace_of_the_gradient_and_its_period():
    y = measured()
    for projector in (StateProjector(rank=3, subspace="gradient"), StateProjector(0.5)):
        for dynamics in ("langevin", "hmc"):
            options = {"project": projector, "dynamics": dynamics}
            plain, noise = solve(y, **options), solve(y, project_noise=True, **options)
            assert not torch.equal(plain.x, noise.x)
    # with one step a level there is no step between
    every, second = (
        solve(
            y,
            project=StateProjector(0.5, period=period),
            project_noise=True,
            langevin_steps=1,
        )
        for period in (1, 2)
    )
    torch.testing.assert_close(every.x, second.x, rtol=0, atol=1e3 * LOOPS)


# ---- divergence ----


@pytest.mark.parametrize("operator", [BLUR, FOREIGN], ids=["C", "Python"])
@both
def test_only_the_image_that_diverged_is_nan(operator, options):
    y = measured(3, dtype=torch.float32)
    expected = solve(y, operator, **options)
    y[1] = 1e38
    result = solve(y, operator, **options)
    if options is HMC:  # MH takes its sums in double and no proposal that overflows
        assert result.x[1].isnan().all()
        assert result.warnings[0].startswith("1 of 3 runs diverged at level 1")
    for i in (0, 2):
        assert torch.equal(result.x[i], expected.x[i])


def test_hmc_that_diverges_says_what_to_lower():
    result = solve(measured(2), lr=1e3, langevin_steps=60, **HMC)
    assert result.x.isnan().all()
    assert result.warnings[0].endswith("lower `lr`")


# ---- the centre ----


@pytest.mark.parametrize("dynamics", ["langevin", "hmc", "mh"])
def test_the_mean_as_centre_is_one_step_of_the_ode_of_2024(dynamics):
    y = measured(2)
    few = {name: value for name, value in SHORT.items() if name != "ode_steps"}
    options = {"centre": "mean", "dynamics": dynamics, "progress": False, **few}
    mean = dsg.solve(y, BLUR, PRIOR, sigma=SIGMA, **options)
    ode = solve(y, centre="ode", ode_steps=1, dynamics=dynamics)
    assert mean.nfe == ode.nfe == 4
    torch.testing.assert_close(mean.x, ode.x, rtol=0, atol=10 * LOOPS)


def test_the_momentum_is_a_share():
    for momentum in (-0.1, 1.1):
        with pytest.raises(ValueError, match="momentum"):
            DAPS(momentum=momentum)
