from __future__ import annotations

import numpy as np
import pytest
import torch

from diffstategrad.priors import NetworkPrior
from diffstategrad.schedules import (
    CosineSchedule,
    SqrtVPSchedule,
    TableSchedule,
    VPSchedule,
    beta_table,
    daps_annealing,
    daps_ode,
    ddim_grid,
    ddpm_tables,
    latent_grid,
    layer_grid,
    poly_grid,
    sigma_of,
)

SCHEDULES = [VPSchedule(), SqrtVPSchedule()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_time_and_sigma_are_inverse_to_each_other(schedule):
    sigma = np.geomspace(1e-3, 100, 50)
    # VPSchedule subtracts beta_min from a root 1e-4 above it at the lowest level
    again = schedule.sigma_of_t(schedule.t_of_sigma(sigma))
    np.testing.assert_allclose(again, sigma, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_sigma_squared_plus_one_is_the_inverse_of_alpha_bar(schedule):
    t = np.linspace(0, 999, 30)
    product = (1 + schedule.sigma_of_t(t) ** 2) * schedule.alpha_bar(t)
    np.testing.assert_allclose(product, 1, rtol=1e-12)


def test_continuous_schedules_are_close_to_the_tables_they_stand_for():
    for schedule, betas in (
        (VPSchedule(), beta_table()),
        (SqrtVPSchedule(), beta_table(0.00085, 0.012, sqrt=True)),
    ):
        table = np.log(np.cumprod(1 - betas))[[99, 499, 999]]
        curve = np.log(schedule.alpha_bar(np.array([99, 499, 999])))
        np.testing.assert_allclose(curve, table, rtol=0.03)


def test_table_schedule_is_its_table_and_stops_at_its_ends():
    schedule = TableSchedule()
    abar = np.cumprod(1 - beta_table(0.0015, 0.0195, sqrt=True))
    np.testing.assert_allclose(schedule.alpha_bar(np.arange(1000)), abar, rtol=1e-12)
    t = np.array([0, 0.25, 499.5, 998.75, 999])
    np.testing.assert_allclose(
        schedule.t_of_sigma(schedule.sigma_of_t(t)), t, rtol=0, atol=1e-9
    )
    # spec of the published latent models: sigma 0.0388 and 83.82 at the ends
    ends = schedule.sigma_of_t([-5, 0, 999, 2000])
    np.testing.assert_allclose(ends, [0.0388, 0.0388, 83.82, 83.82], rtol=2e-3)
    np.testing.assert_array_equal(schedule.t_of_sigma([0, 1e3]), [0, 999])


def test_cosine_schedule_is_its_formula_until_it_is_capped():
    schedule, t = CosineSchedule(), np.arange(1000)
    curve = np.cos((t[:999] + 1 + 8) / 1008 * np.pi / 2) ** 2
    start = np.cos(8 / 1008 * np.pi / 2) ** 2
    # a sum of 999 logarithms of ratios rounded to eps
    rtol = 999 * np.finfo(float).eps
    got = schedule.alpha_bar(t)
    np.testing.assert_allclose(got[:999], curve / start, rtol=rtol)
    assert got[999] == pytest.approx(got[998] * 1e-3, rel=rtol / 1e-3)
    np.testing.assert_array_equal(schedule.t_of_sigma(schedule.sigma_of_t(t)), t)
    assert schedule.last == 999
    with pytest.raises(ValueError, match="CosineSchedule: n must be"):
        CosineSchedule(0).alpha_bar(0)


def test_table_schedule_has_the_native_times_of_the_latent_models():
    t = TableSchedule().t_of_sigma([10, 3, 1, 0.3, 0.1])
    np.testing.assert_allclose(t, [736.8, 517.0, 254.0, 49.6, 5.5], atol=0.06)


@pytest.mark.parametrize("steps", [7, 100, 1000])
def test_levels_of_the_published_table_are_at_its_whole_times(steps):
    schedule, tables = TableSchedule(1e-4, 0.02, sqrt=False), ddpm_tables(steps)
    t = [schedule.t_of_sigma(sigma_of(float(ab))) for ab in tables.abar]
    np.testing.assert_array_equal(t, tables.timesteps)
    # the continuous schedule goes past the last
    assert VPSchedule().t_of_sigma(sigma_of(float(tables.abar[-1]))) > 1002


class Linear:
    """A schedule of one's own: t is sigma."""

    last = 80.0

    def alpha_bar(self, t):
        return 1 / (1 + np.square(t))

    def sigma_of_t(self, t):
        return np.asarray(t)

    def t_of_sigma(self, sigma):
        return np.asarray(sigma)


@pytest.mark.parametrize(
    ("schedule", "spec"),
    [
        (None, {"type": "VPSchedule", "beta_min": 0.1, "beta_d": 19.9}),
        (SqrtVPSchedule(), {"type": "SqrtVPSchedule"}),
        (TableSchedule(n=500), {"type": "TableSchedule", "n": 500}),
        (Linear(), {"type": "Linear"}),
    ],
    ids=["default", "sqrt", "table", "own"],
)
def test_a_network_takes_any_schedule_and_is_called_up_to_its_last_time(schedule, spec):
    seen = []

    def network(z, t):
        seen.append(t.item())
        return 0 * z

    prior = NetworkPrior(network, schedule=schedule)
    assert spec.items() <= prior.spec()["schedule"].items()
    z = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    last = {"Linear": 80.0, "TableSchedule": 499.0}.get(spec["type"], 999.0)
    prior.denoise(z, 1e3)
    prior.predict(z, 1e-6)
    prior.estimate(z, 1e-6)
    assert seen == [last] * 3
    prior.denoise(z, 5.0)
    assert seen[-1] == float(prior.schedule.t_of_sigma(5.0)) < last
    assert prior.alpha_bar(seen[-1]) == pytest.approx(1 / 26, rel=1e-2)


@pytest.mark.parametrize("schedule", [1000, VPSchedule], ids=["number", "class"])
def test_what_is_no_schedule_is_refused(schedule):
    with pytest.raises(TypeError, match="schedule must have last, alpha_bar"):
        NetworkPrior(lambda z, t: z, schedule=schedule)


def test_t_of_sigma_has_the_values_of_the_published_preconditioning():
    t = VPSchedule().t_of_sigma([100, 10, 1, 0.1, 0.01])
    published = [956.149594, 675.368914, 258.701302, 26.967953, 0.915476]
    np.testing.assert_allclose(t, published, atol=5e-7)


def test_poly_grid_has_its_ends_and_is_even_in_the_root():
    grid = poly_grid(80, 0.002, 12, rho=5)
    np.testing.assert_allclose(grid[[0, -1]], [80, 0.002], rtol=1e-14)
    np.testing.assert_allclose(np.diff(grid**0.2, 2), 0, atol=1e-14)


def test_poly_grid_of_one_node_is_the_largest_level():
    np.testing.assert_allclose(poly_grid(3.0, 0.1, 1), [3.0], rtol=1e-15)


def test_daps_2024_grids_end_at_sigma_min_and_then_zero():
    grid = daps_annealing("2024", 200)
    assert grid.shape == (201,) and grid.dtype == np.float64
    expected = [100, 97.8143799044, 7.0625690574, 0.1, 0]
    np.testing.assert_allclose(grid[[0, 1, 100, 199, 200]], expected, rtol=1e-11)
    np.testing.assert_allclose(daps_ode("2024", 1.0, 5)[-2:], [0.01, 0], rtol=1e-14)


def test_daps_2025_annealing_never_uses_sigma_min_and_its_ode_stops_there():
    grid = daps_annealing("2025", 200)
    expected = [100, 97.8252052929, 0.1060401893, 0]
    np.testing.assert_allclose(grid[[0, 1, 199, 200]], expected, rtol=1e-9)
    ode = daps_ode("2025", 100.0, 5)
    np.testing.assert_allclose(ode[[0, 1, 5]], [100, 33.034889476, 0.01], rtol=1e-10)


@pytest.mark.parametrize("version, end", [("2024", 0.0), ("2025", 0.01)])
def test_one_ode_step_goes_to_the_end_at_once(version, end):
    np.testing.assert_allclose(daps_ode(version, 2.0, 1), [2.0, end], rtol=1e-14)


@pytest.mark.parametrize("version", ["2024", "2025"])
def test_one_annealing_level_is_sigma_max_and_zero(version):
    np.testing.assert_allclose(daps_annealing(version, 1), [100, 0], rtol=1e-14)


def test_ddpm_tables_have_the_published_values():
    t = ddpm_tables()
    np.testing.assert_allclose(
        t.abar[[0, 499, 999]], [0.9999, 0.07858724288, 4.035829765e-5], rtol=1e-9
    )
    np.testing.assert_allclose(t.c1[500], 0.003058057076, rtol=1e-9)
    np.testing.assert_allclose(t.minlog[:2], -9.816725135, rtol=1e-9)


@pytest.mark.parametrize("steps", [2, 7, 100, 1000])
def test_respacing_keeps_the_signal_left_at_the_kept_times(steps):
    t = ddpm_tables(steps)
    assert t.timesteps[0] == 0 and t.timesteps[-1] == 999
    full = ddpm_tables().abar
    np.testing.assert_allclose(t.abar, full[t.timesteps], rtol=1e-11)


def test_the_posterior_mean_of_a_noiseless_state_is_noiseless():
    t = ddpm_tables(50)
    mean = t.c1 + t.c2 * np.sqrt(t.abar)
    np.testing.assert_allclose(mean, np.sqrt(t.abar_prev), rtol=1e-11)


def test_latent_grid_has_more_steps_than_asked_for_unless_they_divide_the_table():
    assert len(latent_grid(75).a) == 77
    assert len(latent_grid(60).a) == 63
    assert len(latent_grid(50).a) == 50


def test_latent_grid_chains_its_levels_and_ends_at_the_first_entry():
    grid = latent_grid(50)
    np.testing.assert_array_equal(grid.p[1:], grid.a[:-1])
    assert grid.p[0] == np.float32(0.9985)
    assert not grid.sigma.any()


def test_the_full_latent_grid_calls_the_network_one_time_late():
    grid = latent_grid(1000, eta=1.0)
    np.testing.assert_array_equal(grid.timesteps, np.arange(1, 1001))
    assert grid.a[0] == grid.p[0] and grid.sigma[0] == 0


def test_a_latent_grid_is_that_of_the_schedule_it_is_given():
    grid = latent_grid(500, schedule=VPSchedule())  # which starts without noise
    assert grid.p[0] == 1 and grid.a[0] == np.float32(VPSchedule().alpha_bar(1))
    with pytest.raises(ValueError, match="1000 steps start at a level without noise"):
        latent_grid(1000, schedule=VPSchedule())


@pytest.mark.parametrize("schedule", [*SCHEDULES, TableSchedule()])
@pytest.mark.parametrize("steps", [1, 2, 75, 1000])
def test_an_even_grid_has_as_many_steps_as_asked_for_and_ends_clean(schedule, steps):
    grid = ddim_grid(steps, eta=0.5, schedule=schedule)
    table = isinstance(schedule, TableSchedule)
    times, first = grid.timesteps, 0 if table else 1  # the others start without noise
    assert len(times) == steps and times[-1] == 999
    if steps > 1:
        assert times[0] == first
        stride = (999 - first) / (steps - 1)
        np.testing.assert_allclose(np.diff(times), stride, atol=1)
    assert (times % 1 == 0).all() == (table or steps < 1000)
    np.testing.assert_array_equal(grid.a, schedule.alpha_bar(times))
    np.testing.assert_array_equal(grid.p, [1, *grid.a[:-1]])
    assert grid.sigma[0] == 0 and (grid.sigma[1:] > 0).all()
    assert (grid.sigma**2 <= 1 - grid.p).all()


def test_an_even_grid_stays_within_a_shorter_table():
    grid = ddim_grid(3, schedule=TableSchedule(n=101))
    np.testing.assert_array_equal(grid.timesteps, [0, 50, 100])


def test_layer_grids_end_clean_or_at_the_first_entry_when_shifted():
    plain, shifted = layer_grid(3), layer_grid(3, shifted=True)
    np.testing.assert_array_equal(plain.timesteps, [666, 333, 0])
    np.testing.assert_array_equal(shifted.timesteps, [999, 666, 333])
    assert plain.p[-1] == 1
    np.testing.assert_allclose(shifted.p[-1], 0.9999, rtol=1e-14)
    np.testing.assert_array_equal(layer_grid(4, shifted=True).timesteps[:2], [999, 750])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: poly_grid(1, 2, 3), "smin <= smax, got 2 and 1"),
        (lambda: poly_grid(1, 0, 3), "got 0 and 1"),
        (lambda: poly_grid(float("nan"), 0.1, 3), "got nan"),
        (lambda: poly_grid(1, 0.1, 0), "n must be an int >= 1, got 0"),
        (lambda: daps_annealing("2023", 5), "unknown DAPS version '2023'"),
        (lambda: daps_annealing("2024", 2.5), r"steps must be an int >= 1, got 2\.5"),
        (lambda: daps_ode("2025", 1.0, True), "steps must be an int >= 1, got True"),
        (lambda: beta_table(0.1, 2.0), r"got 0\.1, 2\.0"),
        (lambda: ddpm_tables(1), r"in 2\.\.1000, got 1"),
        (lambda: ddpm_tables(2, np.array([0.1, np.nan])), "betas must lie in"),
        (lambda: latent_grid(1001), r"in 1\.\.1000, got 1001"),
        (lambda: ddim_grid(1001), r"in 1\.\.1000, got 1001"),
        (lambda: ddim_grid(5, eta=-1), "eta must be >= 0, got -1"),
        (lambda: latent_grid(300), "300 steps end at .* use 250 or 334 steps, or"),
        (lambda: latent_grid(999), "999 steps end at .* use 500 or 1000 steps, or"),
        (lambda: latent_grid(50, eta=-1), "eta must be >= 0, got -1"),
        (lambda: layer_grid(0), r"in 1\.\.1000, got 0"),
    ],
)
def test_a_bad_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
