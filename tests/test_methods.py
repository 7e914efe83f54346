"""What every method must do, whatever its mathematics.

A new method gets these tests by its line in `QUICK`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published import TOY, ToyAutoencoder, ToyNetwork

import diffstategrad as dsg
from diffstategrad import GaussianPrior, Result, StateProjector, config
from diffstategrad.operators import (
    Downsample,
    GaussianBlur,
    HighDynamicRange,
    Inpainting,
    PhaseRetrieval,
)
from diffstategrad.priors import LatentPrior, NetworkPrior, Prior, as_prior
from diffstategrad.samplers import SAMPLERS, as_sampler, method_options
from diffstategrad.schedules import VPSchedule

SIGMA = 0.1
SIZE = 8
FIELD = GaussianPrior((3, SIZE, SIZE))
#: For the methods that work on latents, those of the same images.
LATENTS = GaussianPrior((3, SIZE // 2, SIZE // 2))
AUTOENCODER = ToyAutoencoder(TOY, 2)

#: Options that make a run of some milliseconds.
QUICK = {
    "daps": {"steps": 3, "ode_steps": 2, "langevin_steps": 3, "sigma_max": 5.0},
    "dps": {"steps": 4, "scale": 0.1},
    "mcg": {"steps": 4, "scale": 0.1},
    "sdedit": {"steps": 6, "start": 0.5, "repeats": 2},
    "score_ald": {"steps": 4, "inner": 2},
    "diffpir": {"steps": 4},
    "latent_dps": {"steps": 4},
    "psld": {"steps": 4, "omega": 0.1},
    "resample": {
        **{"steps": 6, "every": 1, "travel": 1},
        **{"pixel_steps": 3, "latent_steps": 3},
    },
    "latent_daps": {"steps": 3, "langevin_steps": 3, "sigma_max": 5.0},
    "hqs": {"steps": 3},
    "admm": {"steps": 3},
    "hqs_tv": {"steps": 5, "prox_steps": 5, "searches": 3},
    "admm_tv": {"steps": 5, "prox_steps": 5, "searches": 3},
    "dmplug": {"steps": 3, "layers": 2},
    "dmilo": {"steps": 2, "inner": 2, "layers": 2},
    "dmilo_pgd": {"steps": 2, "inner": 2, "layers": 2},
}

#: Other ways through a method's code: name -> (method, options).
VARIANTS = {
    **{method: (method, {}) for method in QUICK},
    "daps-2025": ("daps", {"version": "2025"}),
    "daps-hmc": ("daps", {"dynamics": "hmc"}),
    "daps-mh": ("daps", {"dynamics": "mh"}),
    "daps-exact": ("daps", {"dynamics": "exact", "covariance": "capped"}),
    "dps-ddim": ("dps", {"sampler": "ddim", "eta": 0.5}),
    "dps-gradient": ("dps", {"norm": "gradient"}),
    "dps-none": ("dps", {"norm": "none", "scale": 0.01}),
    "dps-poisson": ("dps", {"likelihood": "poisson", "perturbations": 2}),
    "dps-fixed-large": ("dps", {"variance": "fixed_large", "clip": False}),
    "mcg-adjoint": ("mcg", {"onto": "adjoint"}),
    "mcg-official": ("mcg", {"onto": "official"}),
    "sdedit-consistent": ("sdedit", {"consistent": True, "clip": False}),
    "score_ald-normalised": ("score_ald", {"form": "normalised"}),
    "score_ald-vp": ("score_ald", {"form": "vp"}),
    "score_ald-poster": ("score_ald", {"form": "poster", "zeta": 1e-3}),
    "diffpir-state": ("diffpir", {"last": "state", "guidance": 0.5}),
    "latent_dps-gradient": ("latent_dps", {"norm": "gradient"}),
    "latent_dps-poisson": ("latent_dps", {"likelihood": "poisson", "eta": 0.5}),
    "latent_dps-resample": (
        "latent_dps",
        {"grid": "official", "scale_rule": "alpha_bar", "backprop_unet": False},
    ),
    "psld-official": (
        "psld",
        method_options("psld", preset="official") | {"steps": 4, "encode": "mean"},
    ),
    "psld-poisson": ("psld", {"renoise": "poisson"}),
    "psld-no-glue": ("psld", {"gamma": 0.0}),
    "resample-official": (
        "resample",
        method_options("resample", preset="dsg_official")
        | {"steps": 8, "every": 1, "travel": 1, "window": 1, "encode": "mean"}
        | {"project_pixels": False, "project_by": "state"},
    ),
    "resample-own-ends": ("resample", {"tolerance": SIGMA, "pixel_steps": 100}),
    "resample-noisy": ("resample", {"eta": 0.5}),
    "latent_daps-2024": ("latent_daps", {"version": "2024", "centre": "mean"}),
    "latent_daps-hmc": ("latent_daps", {"dynamics": "hmc", "clamp": True}),
    "latent_daps-mh": ("latent_daps", {"dynamics": "mh", "schedule": "official"}),
    "hqs-augment": ("hqs", {"augment": True}),
    "hqs_tv-coupled": ("hqs_tv", {"coupled": True, "lam": 2.0}),
    "admm_tv-splits": ("admm_tv", {"splits": 2}),
    "dmplug-lbfgs": ("dmplug", {"optimizer": "lbfgs", "steps": 1, "layers": 1}),
}

LINEAR = {
    "blur": GaussianBlur(3, 1.0),
    "inpainting": Inpainting.random(SIZE, missing=0.5),
    "downsample": Downsample(2),
}
OTHERS = {
    "phase": PhaseRetrieval(2.0),
    "hdr": HighDynamicRange(),
}
OPERATORS = LINEAR | OTHERS
BLUR = LINEAR["blur"]

#: Methods without random numbers once the guess is made.
DETERMINISTIC = {"hqs", "admm", "hqs_tv", "admm_tv"}
LATENT = {name for name, cls in SAMPLERS.items() if cls.latent}
NO_PRIOR = {name for name, cls in SAMPLERS.items() if not cls.needs_prior}
PROJECTED = {name for name, cls in SAMPLERS.items() if cls.projection is not None}
#: Without a measurement gradient, unlike the method.
UNPROJECTED = {"daps-mh", "daps-exact", "latent_daps-mh"} | {
    variant for variant, (method, _) in VARIANTS.items() if method not in PROJECTED
}
WITH_PRIOR = sorted(set(QUICK) - NO_PRIOR)

methods = pytest.mark.parametrize("method", QUICK)
variants = pytest.mark.parametrize("variant", VARIANTS)


def field(x):
    """The field of images or of latents, by its size."""
    return FIELD if x.shape[-1] == SIZE else LATENTS


def prior_for(method, prior=FIELD):
    """The prior as the method takes it."""
    if prior is None or method not in LATENT:
        return prior
    return LatentPrior(LATENTS if prior is FIELD else as_prior(prior), AUTOENCODER)


def without_formula(name, options, operator):
    """Whether the method needs a linear operator, or has no formula for this one."""
    adjoint = {"mcg": "onto", "psld": "glue"}.get(name)
    if adjoint is None or operator.linear or options.get("gamma") == 0:
        return False
    return options.get(adjoint) != "official" or operator is OTHERS["phase"]


class Counting(Prior):
    """The field; counts its calls and may spoil one of them."""

    channels = 3
    learned_variance = False

    def __init__(self, spoil=lambda call, x: x):
        self.calls, self.spoil = 0, spoil

    def denoise(self, x, sigma):
        self.calls += 1
        return self.spoil(self.calls, field(x).denoise(x, sigma))

    def spec(self):
        return {"name": "counting"}


def measured(b=1, operator=BLUR, dtype=torch.float32):
    return operator.measure(FIELD.sample(b, seed=3).to(dtype), SIGMA, seed=4)


def options_of(variant):
    """The method's name and the variant's options, with those of QUICK that have an
    effect beside them."""
    name, more = VARIANTS[variant]
    quick = QUICK[name]
    idle = SAMPLERS[name].model_construct(**{**quick, **more}).idle
    return name, {k: v for k, v in quick.items() if k not in idle} | more


def solve(method, y=None, operator=BLUR, prior=FIELD, **options):
    y = measured(operator=operator) if y is None else y
    name, own = options_of(method)
    options = {"sigma": SIGMA, "progress": False, **own, **options}
    return dsg.solve(y, operator, prior_for(name, prior), name, **options)


def test_every_method_is_listed_here():
    assert set(QUICK) == set(SAMPLERS) == set(dsg.methods())


# ---- they run ----


@pytest.mark.parametrize("operator", OPERATORS)
@variants
def test_a_run_gives_finite_images_of_the_right_shape(variant, operator):
    name, options = options_of(variant)
    A = OPERATORS[operator]
    if without_formula(name, options, A):
        pytest.skip("has no formula for this operator")
    y = measured(2, A)
    before, levels = y.clone(), []
    result = solve(variant, y, A, callback=levels.append)
    assert result.x.shape == (2, 3, SIZE, SIZE) and result.x.dtype == y.dtype
    assert result.x.isfinite().all() and result.residual.isfinite().all()
    assert torch.equal(y, before) and torch.equal(result.y, y)
    assert [level.index for level in levels] == list(range(len(result.trace)))
    state = result.x.shape if name not in LATENT else (2, *LATENTS.shape)
    for level in levels:
        assert level.xt.shape == state
        assert level.x0hat.shape == level.x0y.shape == result.x.shape
        assert level.sqnorm.shape == (2,) and level.sqnorm.dtype == torch.float64
    assert 1 <= len(result.trace) <= SAMPLERS[name](**options).levels
    assert result.spec["method"]["name"] == name


@pytest.mark.parametrize("method", ["dps", "mcg", "psld"])
def test_the_official_preset_needs_no_learned_variance(method):
    assert solve(method, preset="official").x.isfinite().all()


@pytest.mark.parametrize("method", WITH_PRIOR)
def test_a_network_with_a_learned_variance_is_taken(method):
    result = solve(method, prior=NetworkPrior(ToyNetwork(TOY), channels=3))
    assert result.x.isfinite().all()


@pytest.mark.parametrize("prediction", ["v", "start_x"])
@pytest.mark.parametrize("method", WITH_PRIOR)
def test_a_network_of_another_prediction_is_the_same_prior(method, prediction):
    class Longer(VPSchedule):
        last = 1003.0  # the highest level is at 1002.4

    schedule = Longer()

    def network(kind):
        def predict(z, t):
            ab = float(schedule.alpha_bar(float(t[0])))
            x0 = field(z).estimate(z, ab)[0]
            eps = (z - ab**0.5 * x0) / (1 - ab) ** 0.5
            v = ab**0.5 * eps - (1 - ab) ** 0.5 * x0
            return {"epsilon": eps, "v": v, "start_x": x0}[kind]

        return NetworkPrior(predict, kind, schedule=schedule)

    y = measured(dtype=torch.float64)
    a, b = (solve(method, y, prior=network(k)).x for k in ("epsilon", prediction))
    # rounding, magnified by sigma = 158 at the first level of a state in the noise's
    # units, and squared where the estimate is differentiated
    torch.testing.assert_close(a, b, rtol=0, atol=158**2 * 1e3 * 2.0**-52)


@pytest.mark.parametrize("method", WITH_PRIOR)
def test_network_calls_are_counted(method):
    prior = Counting()
    result = solve(method, measured(2), prior=prior)
    if method == "dmplug":  # recomputing calls it again
        assert result.nfe * 2 <= prior.calls
    else:
        assert result.nfe * 2 == prior.calls
    assert result.nfe > 0


def test_calls_and_products_of_exact_draws_are_told():
    prior = Counting()
    result = solve("daps-exact", prior=prior)
    assert result.details["calls_for_spectrum"] == 96
    assert prior.calls == 96 + result.nfe
    assert solve("daps-exact").details["calls_for_spectrum"] == 0  # it knows its own
    tweedie = solve("daps-exact", covariance="tweedie")
    assert len(tweedie.details["vjps"]) == len(tweedie.trace)
    # those of the Lanczos iteration, one an iteration of CG, the last
    details = tweedie.details
    for count, cg in zip(details["vjps"], details["cg_iterations"], strict=True):
        assert count == 20 + cg + 1


@pytest.mark.parametrize("method", sorted(NO_PRIOR))
def test_a_method_without_a_network_needs_no_prior(method):
    result = solve(method, prior=None)
    assert result.nfe == 0
    assert torch.equal(result.x, solve(method).x)


@pytest.mark.parametrize("method", WITH_PRIOR)
def test_a_method_with_a_network_needs_a_prior(method):
    with pytest.raises(TypeError, match="prior must be"):
        solve(method, prior=None)


@methods
def test_inference_mode_outside_changes_nothing(method):
    y = measured()
    with torch.inference_mode():
        inside = solve(method, y).x
    assert torch.equal(inside, solve(method, y).x)


# ---- reproducible ----


@methods
def test_the_same_seed_gives_the_same_result_and_another_seed_another(method):
    y = measured()
    first, again, other = (solve(method, y, seed=s) for s in (5, 5, 6))
    assert torch.equal(first.x, again.x) and first.trace == again.trace
    assert torch.equal(first.x, other.x) == (method in DETERMINISTIC)


@methods
def test_global_random_state_is_neither_read_nor_written(method):
    y = measured()
    torch.manual_seed(1)
    first = solve(method, y).x
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(solve(method, y).x, first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("project", [None, True], ids=["plain", "projected"])
@variants
def test_a_batch_is_a_loop_bit_for_bit(variant, project):
    if project and variant in UNPROJECTED:
        pytest.skip("takes no projector")
    y = measured(3)
    together = solve(variant, y, seed=7, project=project)
    for i in range(3):
        alone = solve(variant, y[i : i + 1], seed=7, project=project)
        assert torch.equal(alone.x[0], together.x[i])


@pytest.mark.parametrize("operator", ["inpainting", "downsample", "hdr"])
@methods
def test_with_other_operators_too_a_batch_is_a_loop(method, operator):
    A = OPERATORS[operator]
    if without_formula(method, {}, A):
        pytest.skip("has no formula for this operator")
    y = measured(2, A)
    together = solve(method, y, A, seed=7)
    for i in range(2):
        assert torch.equal(solve(method, y[i : i + 1], A, seed=7).x[0], together.x[i])


@methods
def test_samples_are_independent_and_the_first_ones_stay(method):
    y = measured(2)
    two, three = (solve(method, y, n_samples=n) for n in (2, 3))
    assert three.samples.shape == (3, 2, 3, SIZE, SIZE)
    assert three.residual.shape == (3, 2)
    assert torch.equal(two.samples, three.samples[:2])
    same = torch.equal(two.samples[0], two.samples[1])
    assert same == (method in DETERMINISTIC)


# ---- projection ----


@methods
def test_a_projector_is_taken_or_refused_with_the_reason(method):
    if method not in PROJECTED:
        with pytest.raises(ValueError, match=f"{method} takes no projector: it "):
            solve(method, project=True)
        return
    result = solve(method, project=StateProjector(0.5))
    assert not torch.equal(result.x, solve(method).x)
    # rank 0 for a state that is 0; none before the first projection
    assert all(0 <= level.get("rank", 0) <= SIZE for level in result.trace)
    assert result.trace[-1]["rank"] >= 1
    assert result.spec["project"]["energy"] == 0.5


@variants
def test_keeping_all_energy_is_not_projecting_bit_for_bit(variant):
    if variant in UNPROJECTED:
        pytest.skip("takes no projector")
    y = measured(2)
    all_kept = solve(variant, y, project=StateProjector(1.0))
    assert torch.equal(all_kept.x, solve(variant, y).x)


# ---- stopping ----


def interrupt(level):
    raise KeyboardInterrupt


@methods
def test_ctrl_c_returns_what_has_been_reached(method):
    seen = []
    result = solve(method, callback=lambda lv: seen.append(lv.x0y) or interrupt(lv))
    (warning,) = [w for w in result.warnings if "interrupted" in w]
    assert warning.startswith("interrupted after level 1 of ")
    assert result.interrupted
    assert torch.equal(result.x, seen[0]) and result.x.isfinite().all()
    assert len(result.trace) == 1


@methods
def test_the_answer_true_of_a_callback_stops_the_run(method):
    result = solve(method, callback=lambda level: True)
    assert "stopped by the callback after level 1" in result.warnings
    assert len(result.trace) == 1 and result.x.isfinite().all()


# ---- divergence ----

#: Step sizes that cannot go well.
HUGE = {
    "daps": {"lr": 1e6, "langevin_steps": 30},
    "dps": {"scale": 1e30},
    "mcg": {"scale": 1e30},
    "latent_dps": {"scale": 1e30},
    "psld": {"mg_scale": 1e30},
    "score_ald": {"r": 1e30},
    "score_ald-normalised": {"r": 1e30},
    "score_ald-poster": {"zeta": 1e30},
    "resample": {"scale": 1e30},
    "latent_daps": {"lr": 1e6, "langevin_steps": 30},
    "dmplug": {"lr": 1e37, "layers": 10, "stop": "last"},
    "dmilo": {"lr": 1e37},
    "dmilo_pgd": {"lr": 1e37},
}


def test_every_method_with_a_step_size_is_driven_too_far():
    steps = {name for name, cls in SAMPLERS.items() if cls.step_option is not None}
    assert steps <= set(HUGE)


@pytest.mark.parametrize("method", HUGE)
def test_divergence_is_told_with_its_level_and_what_to_lower(method):
    result = solve(method, measured(2), steps=50, **HUGE[method])
    assert result.x.isnan().all() and result.residual.isnan().all()
    name, options = options_of(method)
    option = SAMPLERS[name](**options).step_to_lower
    assert option in HUGE[method]
    warning = result.warnings[0]
    assert warning.startswith("2 of 2 runs diverged at level ")
    assert warning.endswith(f": lower `{option}`")
    assert len(result.trace) < 50
    assert len(result.warnings) == 1


def test_no_step_size_is_named_where_none_counts():
    assert as_sampler("score_ald", {"form": "vp"}).step_to_lower is None
    assert as_sampler("daps", {"dynamics": "exact"}).step_to_lower is None


@pytest.mark.parametrize("method", WITH_PRIOR)
def test_a_prior_that_gives_nan_is_blamed(method):
    prior = Counting(lambda call, x: x * torch.nan if call > 2 else x)
    last = {"stop": "last"} if method == "dmplug" else {}
    result = solve(method, prior=prior, **last)
    assert result.x.isnan().all() and result.residual.isnan().all()
    assert any("the prior gave images with NaN" in w for w in result.warnings)


@pytest.mark.parametrize("method", WITH_PRIOR)
def test_only_the_image_that_was_lost_is_nan(method):
    y = measured(3)
    expected = solve(method, y).x

    class Spoiling(Counting):
        """NaN for one image of the batch, known by the order of calls."""

        def denoise(self, x, sigma):
            x0 = super().denoise(x, sigma)
            return x0 * torch.nan if self.calls % 3 == 2 else x0

    if method in ("dmplug", "dmilo", "dmilo_pgd"):
        pytest.skip("calls do not go round the images")
    result = solve(method, y, prior=Spoiling())
    assert result.x[1].isnan().all()
    for i in (0, 2):
        assert torch.equal(result.x[i], expected[i])
    assert result.warnings[0].startswith("1 of 3 runs")
    assert "at level 1 (sigma" in result.warnings[0]


def test_an_image_that_is_done_is_not_touched_by_what_comes_after():
    y = measured(2)
    options = {"steps": 20, "lr": 1e37, "layers": 10}
    (first, second) = solve("dmplug", y, steps=1, layers=10).details["selection"][
        "residual"
    ]
    if first > second:
        y, first, second = y.flip(0), second, first
    options["tau"] = (first + second) / 2  # one is done with its first iterate
    levels = []
    result = solve("dmplug", y, **options, callback=lambda lv: levels.append(lv.sqnorm))
    assert result.x.isfinite().all()
    assert levels[-1].isnan().tolist() == [False, True]
    assert all(torch.equal(sqnorm[0], levels[0][0]) for sqnorm in levels)
    assert result.warnings[:2] == [
        "1 of 2 runs diverged at level 2: lower `lr`",
        "1 of 2 runs return what they had chosen before they diverged at level 2",
    ]
    for i in range(2):
        alone = solve("dmplug", y[i : i + 1], **options)
        assert torch.equal(alone.x[0], result.x[i])
        assert any("diverged" in w for w in alone.warnings) == (i == 1)
        for key in ("index", "residual"):
            (value,) = alone.details["selection"][key]
            assert value == result.details["selection"][key][i] is not None


def test_a_run_to_the_last_iterate_that_diverges_has_chosen_nothing():
    result = solve("dmplug", lr=1e37, layers=10, stop="last")
    selection = result.details["selection"]
    assert result.x.isnan().all()
    assert selection["index"] == selection["residual"] == [None]


# ---- wrong calls ----


def refused(method, error, message, **changes):
    prior = Counting()
    with pytest.raises(error, match=message):
        solve(method, **{"prior": prior, **changes})
    assert prior.calls == 0


@methods
def test_an_unknown_option_is_refused_by_name(method):
    refused(method, ValueError, f"{method} has no option 'stepz'; did", stepz=3)


@methods
def test_an_option_of_another_method_is_refused(method):
    foreign = next(
        option
        for cls in SAMPLERS.values()
        for option in cls.model_fields
        if option not in SAMPLERS[method].model_fields
    )
    refused(method, ValueError, f"{method} has no option {foreign!r}", **{foreign: 1})


@methods
def test_numbers_out_of_range_are_refused(method):
    refused(method, ValueError, f"{method}: steps: .*got 0", steps=0)
    refused(method, ValueError, "steps must not be True", steps=True)
    for name, field in SAMPLERS[method].model_fields.items():
        if field.annotation is float:
            refused(method, ValueError, f"{method}: {name}: ", **{name: -1.0})
            refused(method, ValueError, f"{method}: {name}: ", **{name: float("nan")})


@pytest.mark.parametrize("method", WITH_PRIOR)
def test_an_image_of_other_channels_is_refused(method):
    y = torch.zeros(1, 1, SIZE, SIZE)
    refused(method, ValueError, "3 channels, .* has 1", y=y)


@methods
def test_a_measurement_that_does_not_fit_is_refused(method):
    y = torch.zeros(1, 3, SIZE + 1, SIZE)
    refused(method, ValueError, "does not fit", y=y, operator=LINEAR["inpainting"])
    refused(method, ValueError, "4 axes", y=y[0])


def test_what_a_method_cannot_solve_is_refused_before_the_first_call():
    phase = {"operator": OTHERS["phase"]}
    refused("mcg", ValueError, "needs a linear operator, got PhaseRetrieval", **phase)
    refused("mcg-official", ValueError, "no formula for measurements", **phase)
    refused("psld", ValueError, "a linear operator, got PhaseRetrieval; gamma", **phase)
    refused("psld-official", ValueError, "no formula for measurements", **phase)
    zeros = {"y": torch.zeros(1, 3, SIZE, SIZE)}
    for method in ("dps-poisson", "latent_dps-poisson"):
        refused(method, ValueError, "entries that are 0", **zeros)
    refused("psld-no-glue", ValueError, "gamma must be > 0", omega=0.0)
    for method in ("dps", "mcg", "score_ald-vp", "score_ald-poster"):
        for variance in ("learned", "learned_range"):
            refused(method, ValueError, "a learned variance", variance=variance)
    for method in ("sdedit", "diffpir"):
        refused(method, ValueError, "keep_known is for inpainting", keep_known=True)


@pytest.mark.parametrize(
    "method", ["dps", "mcg", "latent_dps", "psld", "dmplug", "dmilo", "dmilo_pgd"]
)
def test_a_prior_without_derivatives_is_refused_where_they_are_needed(method):
    def prior(x, sigma):
        return field(x).denoise(x.detach(), sigma).numpy()

    with pytest.raises(TypeError, match="differentiates through the prior"):
        solve(method, prior=prior)
    assert solve("hqs", prior=prior).x.isfinite().all()


@pytest.mark.parametrize("method", WITH_PRIOR)
def test_out_of_memory_says_which_batch_to_try(method):
    class Large(Counting):
        def denoise(self, x, sigma):
            if len(x) > self.most:
                raise torch.OutOfMemoryError("tried to allocate 1 TB")
            return super().denoise(x, sigma)

    prior = Large()
    y = measured(4)
    for prior.most, batch, advice in (
        (1, 4, "use batch=2"),
        (0, 1, "use smaller images"),
    ):
        with pytest.raises(MemoryError, match=f"with batch={batch}: {advice}"):
            solve(method, y, prior=prior, batch=batch)
    prior.most = 2
    assert solve(method, y, prior=prior, batch=2).x.isfinite().all()


# ---- what they say of themselves ----


@methods
def test_describing_a_method_lists_every_option_and_its_constants(method):
    text = dsg.describe(method)
    cls = SAMPLERS[method]
    assert all(f"  {name} = " in text for name in cls.model_fields)
    assert "None" not in [str(field.description) for field in cls.model_fields.values()]
    tasks, presets = config.published(method)
    assert all(name in text for name in [*tasks, *presets])
    assert ("takes project=" in text) == (method in PROJECTED)


FILES = sorted((Path(__file__).parent.parent / "configs" / "methods").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_method_file_holds_options_of_its_method(path):
    cls = SAMPLERS[path.stem]
    tasks, presets = config.published(path.stem)
    for task in (None, *tasks):
        for preset in (None, *presets):
            options = method_options(path.stem, task, preset=preset)
            sampler = cls(**options)
            assert options.items() <= sampler.model_dump().items()


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match="'gauss_deblur'; did you mean 'gaussian_deblur'"
    ):
        as_sampler("dps", {"task": "gauss_deblur"})


def test_a_task_without_constants_of_the_method_is_told():
    result = solve("score_ald", task="super_resolution")
    assert any("no constants of score_ald" in w for w in result.warnings)
    result = solve("dps", task="super_resolution")
    assert not any("no constants" in w for w in result.warnings)


def test_an_unknown_key_in_a_method_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "dps.yaml").write_text("task: {a: {}}")
    monkeypatch.setattr(config, "_folder", lambda name: tmp_path)
    with pytest.raises(ValueError, match="unknown key 'task'; did you mean 'tasks'"):
        method_options("dps")


@methods
def test_a_result_is_saved_with_its_details(method, tmp_path):
    result = solve(method, measured(2), LINEAR["inpainting"])
    result.save(tmp_path / "r.safetensors")
    again = Result.load(tmp_path / "r.safetensors")
    assert torch.equal(again.x, result.x) and again.trace == result.trace
    assert again.details == result.details
    assert again.spec["method"] == SAMPLERS[method](**QUICK[method]).spec()


@methods
def test_a_configured_method_is_the_named_one_with_its_options(method):
    sampler = SAMPLERS[method](**QUICK[method])
    y = measured()
    prior = prior_for(method)
    direct = dsg.solve(y, BLUR, prior, sampler, sigma=SIGMA, progress=False)
    assert torch.equal(direct.x, solve(method, y).x)
