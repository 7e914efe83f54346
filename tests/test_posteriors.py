"""Methods against the exact posterior of a Gaussian prior, and against direct solves.

    python tests/test_posteriors.py [chains]

prints bias and variance of every method's samples; see `TABLE`.
"""

from __future__ import annotations

import sys
from functools import cache

import pytest
import torch

import diffstategrad as dsg
from diffstategrad import GaussianPrior, _core
from diffstategrad.operators import Downsample, GaussianBlur, Inpainting
from diffstategrad.reference.differences import differences, differences_adjoint
from diffstategrad.samplers import DiffPIR, total_variation
from diffstategrad.samplers.base import square_norm
from diffstategrad.samplers.conjugate_gradients import dot
from diffstategrad.samplers.data_step import data_step, harmonic_fill

EPS = 2.0**-52
SIGMA = 0.05
SIZE = 8
#: Four standard deviations are 1: clamped estimates stay what they are.
FIELD = GaussianPrior((1, SIZE, SIZE), power=4.0, std=0.25, correlation_length=4.0)
WHITE = GaussianPrior((1, SIZE, SIZE), power=0.0, std=0.25)
BLUR = GaussianBlur(5, 1.0)
FIELD_OF_3 = GaussianPrior((3, 4, 5), power=0.0)
HALF = Inpainting.random(SIZE, missing=0.5)
CASES = {"blur": (FIELD, BLUR), "inpainting": (WHITE, HALF)}

LANGEVIN = {"ode_steps": 1, "langevin_steps": 50, "lr": 1e-3, "lr_min_ratio": 0.1}
LEVELS = {"steps": 50, "sigma_max": 10.0, "sigma_min": 0.02, "tau": SIGMA}
#: Rows of the table: (method, options).
TABLE = [
    ("daps", {**LANGEVIN, **LEVELS}),
    ("dps", {"clip": False}),
    ("dps", {"clip": False, "scale": 1.0}),
    ("mcg", {"clip": False, "scale": 0.3}),
    ("score_ald", {}),
    ("score_ald", {"steps": 500, "sigma_max": 1.5}),
    ("score_ald", {"form": "vp"}),
    ("score_ald", {"form": "poster"}),
    ("score_ald", {"form": "normalised", "weight": 0.3}),
    ("sdedit", {"repeats": 1}),
    ("diffpir", {}),
    ("diffpir", {"zeta": 0.1, "lam": 0.25}),
    ("hqs", {}),
    ("admm", {}),
    ("admm", {"lam": 1.0, "sigma_first": SIGMA, "sigma_last": SIGMA, "steps": 100}),
]


@cache
def problem(case):
    """(prior, operator, y, posterior mean, posterior variance) of one image."""
    prior, A = CASES[case]
    y = A.measure(prior.sample(1, seed=3), SIGMA, seed=4)
    mean, covariance = prior.posterior(A, y, SIGMA)
    return prior, A, y, mean.flatten(), covariance.diagonal().clone()


@cache
def samples(case, method, chains, *options):
    """(chains, pixels)."""
    prior, A, y, _, _ = problem(case)
    result = dsg.solve(
        *(y, A, prior, method),
        sigma=SIGMA,
        n_samples=chains,
        batch=chains,
        progress=False,
        **dict(options),
    )
    assert not any("diverged" in warning for warning in result.warnings)
    return result.samples.flatten(1)


def draw(case, method, chains, **options):
    return samples(case, method, chains, *sorted(options.items()))


def bias_and_ratio(case, x):
    """(mean square bias in posterior standard deviations, free of what a finite number
    of chains adds, which may leave it negative; mean ratio of variances, NaN for a
    single answer)."""
    _, _, _, mean, variance = problem(case)
    square = ((x.mean(0) - mean).square() / variance).mean().item()
    if len(x) == 1:
        return square, float("nan")
    ratio = (x.var(0) / variance).mean().item()
    return square - ratio / len(x), ratio


def standard_errors(case, bias, ratio, chains):
    """Of the squared bias and of the variance ratio that so many chains show."""
    prior, A, y, _, variance = problem(case)
    covariance = prior.posterior(A, y, SIGMA)[1]
    R2 = covariance.square() / variance / variance[:, None]
    # pixels go together: so many of them are independent
    p = len(variance) ** 2 / R2.sum().item()
    floor = ratio / chains
    square = (2 * floor**2 + 4 * bias**2 * floor) / p
    return square**0.5, ratio * (2 / (chains - 1) / p) ** 0.5


# ---- samplers ----

CHAINS = 200

#: Case, method, options; bias and ratio of 4000 chains, as in `TABLE`.
FIGURES = [
    ("inpainting", "score_ald", {}, 0.028, 1.082),
    # the specification: within 6 % with these levels
    ("inpainting", "score_ald", {"steps": 500, "sigma_max": 1.5}, 0.015, 1.036),
    ("inpainting", "score_ald", {"form": "vp"}, 0.220, 0.848),
    # what 50 levels leave
    ("inpainting", "daps", {**LANGEVIN, **LEVELS}, 0.006, 1.065),
    # with lambda = 1 the data step is the posterior mean of x0 given the denoised image
    # with variance sigma_t^2: the mean is right, and it is no sampler of the posterior
    ("blur", "diffpir", {}, 0.060, 0.437),
    ("inpainting", "diffpir", {}, 0.006, 0.411),
]


@pytest.mark.parametrize(("case", "method", "options", "bias", "ratio"), FIGURES)
def test_bias_and_variance_are_those_of_many_chains(case, method, options, bias, ratio):
    x = draw(case, method, CHAINS, **options)
    square, got = bias_and_ratio(case, x)
    of_square, of_ratio = standard_errors(case, bias, ratio, CHAINS)
    assert abs(square - bias**2) < 4 * of_square
    assert abs(got - ratio) < 4 * of_ratio


def test_the_poster_s_formula_with_half_of_beta_is_the_vp_form():
    vp = draw("inpainting", "score_ald", CHAINS, form="vp")
    poster = draw("inpainting", "score_ald", CHAINS, form="poster")
    ratio = (poster.var(0) / vp.var(0)).mean().item()
    assert abs(ratio - 1) < 0.02
    assert (poster.mean(0) - vp.mean(0)).norm() < 0.02 * vp.mean(0).norm()


def test_sdedit_without_kept_pixels_samples_the_prior():
    x = draw("inpainting", "sdedit", CHAINS, repeats=1)
    ratio = x.var(0).mean().item() / WHITE.std**2
    # that of 4000 chains; white, so that all pixels count
    of_ratio = (2 / (CHAINS - 1) / SIZE**2) ** 0.5
    assert abs(ratio - 0.967) < 4 * of_ratio


def test_sdedit_keeps_known_pixels():
    prior, A, y, _, _ = problem("inpainting")
    guide = harmonic_fill(y, torch.from_numpy(A.mask.copy()).to(y))
    seen = torch.from_numpy(A.mask.copy()).bool()[0]
    for level in ("state", "official"):
        result = dsg.solve(
            *(y, A, prior, "sdedit"),
            sigma=SIGMA,
            progress=False,
            steps=20,
            keep_known=True,
            keep_level=level,
        )
        assert torch.equal(result.x[0, 0][seen], guide[0, 0][seen])


def test_the_last_state_of_diffpir_is_the_estimate_with_noise_left():
    prior, A, y, _, _ = problem("blur")
    common = {"sigma": SIGMA, "progress": False, "seed": 1}
    x = dsg.solve(y, A, prior, "diffpir", **common).x
    state = dsg.solve(y, A, prior, "diffpir", last="state", **common)
    assert len(state.trace) == 99
    # sqrt(1 - alpha_bar_0) = 0.01
    assert (state.x - x).square().mean().sqrt() < 0.05
    assert not torch.equal(state.x, x)


def test_the_times_of_diffpir_are_the_published_ones():
    times = DiffPIR()._times()
    assert times[:4] == [999, 899, 857, 825] and times[-3:] == [10, 5, 0]


# ---- DPS ----


def test_dps_along_the_norm_is_dps_along_its_square_with_the_other_step():
    prior, A, y, _, _ = problem("blur")

    def states(**options):
        levels = []

        def keep(level):
            levels.append((level.xt.clone(), level.sqnorm.sqrt().item()))

        dsg.solve(
            *(y, A, prior, "dps"),
            sigma=SIGMA,
            steps=2,
            callback=keep,
            progress=False,
            **options,
        )
        return levels

    (_, L), (expected, _) = states(norm="residual", scale=0.3)
    _, (got, _) = states(norm="none", scale=0.3 / (2 * L))
    # a step of size one, some roundings
    torch.testing.assert_close(got, expected, rtol=0, atol=100 * EPS)


def test_a_step_of_dps_along_the_unit_gradient_has_the_given_length():
    prior, A, y, _, _ = problem("blur")
    levels = {}
    for scale in (0.1, 0.3):
        levels[scale] = []
        dsg.solve(
            *(y, A, prior, "dps"),
            sigma=SIGMA,
            steps=2,
            norm="gradient",
            scale=scale,
            callback=lambda lv, scale=scale: levels[scale].append(lv.xt.clone()),
            progress=False,
        )
    distance = (levels[0.1][1] - levels[0.3][1]).norm().item()
    assert distance == pytest.approx(0.2, rel=1e3 * EPS)


def test_a_measurement_that_is_met_exactly_makes_no_step():
    y = torch.full((1, 1, SIZE, SIZE), 0.5, dtype=torch.float64)
    flat = dsg.priors.CallablePrior(lambda x, sigma: x * 0 + 0.5)
    for norm in ("residual", "gradient", "none"):
        result = dsg.solve(
            *(y, dsg.operators.Identity(), flat, "dps"),
            sigma=SIGMA,
            steps=3,
            norm=norm,
            progress=False,
        )
        torch.testing.assert_close(result.x, y, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("onto", ["pinv", "official"])
def test_mcg_ends_on_the_measurement(onto):
    # at the last step y_0 = sqrt(abar_0) y + 0.01 n
    prior, A = WHITE, Downsample(2)
    y = A.measure(prior.sample(1, seed=3), SIGMA)
    result = dsg.solve(
        *(y, A, prior, "mcg"),
        sigma=SIGMA,
        steps=20,
        onto=onto,
        progress=False,
    )
    misfit = (A(result.x) - y).square().mean().sqrt().item()
    # replicated pixels are no exact pseudo-inverse of the bicubic filter
    assert misfit < (0.02 if onto == "pinv" else 0.1)


# ---- splitting with a denoiser: fixed points ----


def direct(case, covariance, weight):
    """argmin ||A x - y||^2 / 2 s^2 + weight / 2 x^T covariance^-1 x."""
    _, A, y, _, _ = problem(case)
    n = SIZE * SIZE
    matrix = A(torch.eye(n, dtype=torch.float64).reshape(n, 1, SIZE, SIZE))
    matrix = matrix.reshape(n, -1).T
    hessian = matrix.T @ matrix / SIGMA**2 + weight * torch.linalg.inv(covariance)
    return torch.linalg.solve(hessian, matrix.T @ y.flatten() / SIGMA**2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("method", "lam"), [("hqs", 0.5), ("admm", 0.5), ("admm", 1)])
def test_with_a_fixed_noise_level_the_optimum_is_that_of_a_direct_solve(
    method, lam, case
):
    prior, _, _, mean, _ = problem(case)
    level = 0.1
    # in float64 to far below the tolerance
    z = draw(
        *(case, method, 1),
        lam=lam,
        sigma_first=level,
        sigma_last=level,
        steps=600,
    )[0]
    C, one = prior.covariance(), torch.eye(SIZE * SIZE, dtype=torch.float64)
    if method == "admm":
        expected = direct(case, C, lam)
    else:  # HQS solves for x with the covariance of the blurred prior; z = D(x)
        x = direct(case, C + level**2 * one, lam)
        expected = C @ torch.linalg.solve(C + level**2 * one, x)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-6)
    if (method, lam) == ("admm", 1):
        torch.testing.assert_close(z, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["hqs", "admm", "hqs_tv", "admm_tv"])
def test_units_do_not_matter(method):
    """Scaling image, measurement and noise with a denoiser to match only scales the
    result; inpainting's guess is scaled too, and small images are not clamped."""
    A, c = HALF, 0.25
    results = []
    for scale in (1.0, c):
        prior = GaussianPrior((1, SIZE, SIZE), power=2.0, std=0.2 * scale)
        x = GaussianPrior((1, SIZE, SIZE), power=2.0, std=0.2).sample(1, seed=3) * scale
        y = A.measure(x, SIGMA * scale, seed=4)
        options = {"steps": 10}
        if "tv" in method:
            options["lam"] = 4.0 / scale
            options |= {"tolerance": 1e-30} if method == "admm_tv" else {}
        else:
            options |= {"sigma_first": 0.3 * scale, "sigma_last": 0.05 * scale}
        result = dsg.solve(
            y, A, prior, method, sigma=SIGMA * scale, progress=False, **options
        )
        results.append(result.x / scale)
    torch.testing.assert_close(*results, rtol=0, atol=1e4 * EPS)


def test_turned_images_are_turned_back():
    prior, A, y, _, _ = problem("blur")
    common = {"sigma": SIGMA, "progress": False, "steps": 8}
    plain = dsg.solve(y, A, prior, "hqs", **common).x
    turned = dsg.solve(y, A, prior, "hqs", augment=True, **common).x
    # the field and its denoiser are the same in all directions
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e3 * EPS)
    wide = GaussianPrior((1, 6, 10))
    y = A.measure(wide.sample(1), SIGMA)
    a, b = (dsg.solve(y, A, wide, "hqs", augment=turn, **common).x for turn in (0, 1))
    torch.testing.assert_close(a, b, rtol=0, atol=1e3 * EPS)


# ---- total variation ----


def cartoon(h, w):
    x = torch.zeros(1, 2, h, w, dtype=torch.float64)
    x[:, :, h // 4 : h // 2, w // 5 : w // 2] = 0.8
    x[:, 1, h // 3 :, w // 2 :] = -0.6
    return x


def objective(A, y, x, lam, coupled):
    tv = torch.empty(1, dtype=torch.float64)
    _core.tv_norm(tv, x.contiguous(), coupled)
    return (square_norm(A(x) - y) / (2 * SIGMA**2) + lam * tv).item()


@pytest.mark.parametrize("coupled", [False, True], ids=["separate", "coupled"])
@pytest.mark.parametrize("name", ["mask", "blur", "downsample"])
def test_all_ways_of_minimising_total_variation_agree(name, coupled):
    x = cartoon(16, 12)
    A = {
        "mask": Inpainting.random((16, 12), missing=0.5),
        "blur": GaussianBlur(5, 1.0),
        "downsample": Downsample(2),
    }[name]
    y, lam = A.measure(x, SIGMA), 10.0
    found = {
        label: dsg.solve(
            *(y, A, None, method),
            sigma=SIGMA,
            lam=lam,
            coupled=coupled,
            progress=False,
            **options,
        ).x
        for label, method, options in (
            ("hqs", "hqs_tv", {}),
            ("admm", "admm_tv", {"splits": 1}),
            ("two splits", "admm_tv", {"splits": 2}),
            ("best", "admm_tv", {"splits": 1, "prox_steps": 300, "tolerance": 1e-6}),
        )
    }
    values = {k: objective(A, y, v, lam, coupled) for k, v in found.items()}
    # what the specification measured between the three
    for value in values.values():
        assert value == pytest.approx(values["best"], rel=3e-3)
    assert values["best"] < values["hqs"]
    assert values["admm"] == pytest.approx(values["two splits"], rel=1e-3)


def test_the_prox_of_total_variation_closes_its_duality_gap():
    v = cartoon(16, 12) + GaussianPrior((2, 16, 12), power=0.0, std=0.1).sample(1)
    weight, gaps = 0.2, []
    for steps in (5, 50, 2000):
        method = dsg.samplers.ADMMTV(prox_steps=steps)
        x = method.prox(v, weight, v.new_zeros((1, 2, *v.shape[1:])))
        tv = torch.empty(1, dtype=torch.float64)
        _core.tv_norm(tv, x, False)
        primal = square_norm(x - v) / 2 + weight * tv
        dual = (square_norm(v) - square_norm(x)) / 2
        gaps.append((primal - dual).item())
    assert gaps[0] > gaps[1] > gaps[2] > -1e-12
    assert gaps[2] < 1e-3 * gaps[0]


def test_the_screened_equation_is_solved():
    x = GaussianPrior((3, 7, 10), power=0.0).sample(2)
    b = x + differences_adjoint(differences(x))
    torch.testing.assert_close(total_variation.smooth(b), x, rtol=0, atol=100 * EPS)
    p = differences(x.flip(2))
    left = (differences(x) * p).sum()
    right = (x * differences_adjoint(p)).sum()
    torch.testing.assert_close(left, right, rtol=1e3 * EPS, atol=0)


@pytest.mark.parametrize("coupled", [False, True], ids=["separate", "coupled"])
def test_shrinking_takes_the_amount_off_every_length(coupled):
    p = 3 * differences(FIELD_OF_3.sample(1))
    axes = (1, 2) if coupled else (1,)
    before = p.square().sum(axes).sqrt()
    after = total_variation.shrink(p, 0.7, coupled=coupled).square().sum(axes).sqrt()
    expected = (before - 0.7).clamp_min(0)
    torch.testing.assert_close(after, expected, rtol=0, atol=10 * EPS)


@pytest.mark.parametrize("method", ["hqs_tv", "admm_tv"])
def test_the_weight_of_total_variation_meets_the_discrepancy(method):
    A = Inpainting.random((16, 12), missing=0.3)
    y = A.measure(cartoon(16, 12), SIGMA)
    result = dsg.solve(y, A, None, method, sigma=SIGMA, progress=False)
    seen = torch.from_numpy(A.mask.copy())
    r = ((A(result.x) - y).square() * seen).sum() / seen.expand_as(y).sum()
    assert 0.95 <= r.sqrt().item() / SIGMA <= 1.05
    (lam,) = result.details["lam"]
    again = dsg.solve(y, A, None, method, sigma=SIGMA, progress=False, lam=lam)
    # the search went on from the minimiser of the weight before
    torch.testing.assert_close(again.x, result.x, rtol=0, atol=0.02)


def test_a_search_that_ends_early_returns_the_nearest_weight_and_says_so():
    A = Inpainting.random((16, 12), missing=0.3)
    y = A.measure(cartoon(16, 12), SIGMA)

    def run(**options):
        return dsg.solve(y, A, None, "hqs_tv", sigma=SIGMA, progress=False, **options)

    enough = run()
    assert enough.details["found"] == [True]
    assert 0.95 <= enough.details["residual"][0] <= 1.05
    assert not any("searches" in warning for warning in enough.warnings)
    few = run(searches=1)
    assert few.details["found"] == [False] and "raise `searches`" in few.warnings[0]
    assert abs(few.details["residual"][0] - 1) > 0.05
    assert "found" not in run(lam=2.0).details

    # weights that are tried: residuals 0.5, 1.2, 2, ...; the second is the nearest
    residuals = iter([0.5, 1.2, 2.0, 3.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            total_variation._Search, "_residual", lambda self: next(residuals)
        )
        nearest = run(searches=4)
    assert nearest.details["residual"] == [pytest.approx(1.2)]
    assert nearest.details["lam"] == [pytest.approx(0.75 / SIGMA)]


# ---- data step and guess ----


def test_the_data_step_of_a_nonlinear_operator_lowers_its_objective_to_a_minimum():
    A = dsg.operators.PhaseRetrieval(2.0)
    x = GaussianPrior((2, 8, 8)).sample(2, seed=3).clamp(-1, 1)
    y = A.measure(x, SIGMA)
    v, rho = x + 0.1 * GaussianPrior((2, 8, 8)).sample(2, seed=5), 0.5
    z = data_step(A, v, y, rho, steps=20)
    gradient = A.residual_gradient(z, y)[0] + rho * (z - v)
    start = A.residual_gradient(v, y)[0]
    assert gradient.norm() < 1e-3 * start.norm()


def test_the_guess_of_an_inpainting_is_harmonic_in_the_holes():
    mask = torch.from_numpy(Inpainting.random((9, 12), missing=0.6).mask.copy())
    column = torch.linspace(-1, 1, 12, dtype=torch.float64).expand(2, 3, 9, 12)
    # a box in a ramp is filled with the ramp, up to the tolerance of the solver
    box = torch.ones(1, 9, 12, dtype=torch.float64)
    box[:, 3:6, 3:9] = 0
    filled = harmonic_fill(column * box, box)
    torch.testing.assert_close(filled, column, rtol=0, atol=1e-3)
    assert not harmonic_fill(column, 0 * box).any()
    noisy = GaussianPrior((3, 9, 12)).sample(2)
    kept = mask.bool().expand_as(noisy)
    assert torch.equal(harmonic_fill(noisy, mask.double())[kept], noisy[kept])


def test_a_data_step_that_does_not_converge_is_used_as_it_is():
    # tiny rho, a kernel without closed form
    A = dsg.operators.MotionBlur(9, 0.5, seed=0)
    x = GaussianPrior((1, 24, 24)).sample(1).float()
    y = A.measure(x, SIGMA)
    z = data_step(A, 0 * x, y, 1e-9)
    assert z.isfinite().all()
    assert (A(z) - y).square().mean().sqrt() < 2 * SIGMA


# ---- sums ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 9), (3, 128, 128)])
@pytest.mark.parametrize("square", [square_norm, lambda x: dot(x, x)])
def test_the_norm_of_an_image_depends_on_nothing_but_the_image(square, shape, dtype):
    x = GaussianPrior(shape, power=0.0).sample(3).to(dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(square(x))
            results.append(torch.cat([square(x[i : i + 1]) for i in range(3)]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def main(chains: int) -> None:
    print(f"{chains} chains, sigma {SIGMA}, {SIZE} x {SIZE} pixels")
    print("bias in posterior standard deviations, ratio of variances (nan: one answer)")
    print(f"{'':64}{'correlated, blur':>18}{'white, inpainting':>20}")
    for method, options in TABLE:
        cells = []
        for case in CASES:
            n = 1 if method in ("hqs", "admm") else chains
            square, ratio = bias_and_ratio(case, draw(case, method, n, **options))
            cells.append(f"{max(square, 0) ** 0.5:9.3f} {ratio:7.3f}")
        listed = ", ".join(
            f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in options.items()
        )
        print(f"{method:10} {listed[:53]:53}{'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
