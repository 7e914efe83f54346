"""Options of methods: none does nothing unless it says so."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from test_methods import (
    BLUR,
    FIELD,
    QUICK,
    SAMPLERS,
    UNPROJECTED,
    VARIANTS,
    field,
    measured,
    options_of,
    solve,
)

import diffstategrad as dsg
from diffstategrad import DAPS
from diffstategrad.operators import BlindBlur
from diffstategrad.priors import LatentPrior, Prior
from diffstategrad.samplers import as_sampler, method_options

ROWS = [(name, option) for name, cls in SAMPLERS.items() for option in cls.needs]


def choices(annotation):
    """All the values of a named choice; some of any other type."""
    if annotation is bool:
        return [False, True]
    parts = get_args(annotation)
    if not parts:
        return {int: [1, 2], float: [0.3, 0.6, 0.0]}.get(annotation, [annotation])
    if hasattr(annotation, "__metadata__"):
        return choices(parts[0])
    return [value for part in parts for value in choices(part)]


def combinations(cls, names):
    """The method with all the values of these options that go together."""
    for values in product(
        *(choices(cls.model_fields[name].annotation) for name in names)
    ):
        options = {
            name: v
            for name, v in zip(names, values, strict=True)
            if v is not type(None)
        }
        try:
            yield cls(**options)
        except ValueError:
            continue


@pytest.mark.parametrize(("method", "option"), ROWS)
def test_an_option_without_effect_is_refused_with_what_it_needs(method, option):
    cls = SAMPLERS[method]
    others = dict.fromkeys(other for way in cls.needs[option] for other in way)
    refused = taken = 0
    for sampler in combinations(cls, [o for o in others if o != option]):
        given = {name: getattr(sampler, name) for name in sampler.model_fields_set}
        field = cls.model_fields[option]
        value = field.default
        if value is None:
            value = choices(field.annotation)[0]
        if option in sampler.idle:
            refused += 1
            with pytest.raises(ValueError, match=f"^{method}: {option} has no") as e:
                cls(**given, **{option: value})
            assert any(f"{o}={v!r}" in str(e.value) for o, v in given.items())
            assert option not in sampler.spec()
        else:
            taken += 1
            assert option in cls(**given, **{option: value}).spec()
    assert refused and taken


def others(field, value):
    """Other values for an option."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, 1]
    if isinstance(value, float) and value:
        return [0.7 * value, 1.3 * value, 1e6 * value]
    return [v for v in choices(field.annotation) if v not in (value, type(None))]


class Uneven(Prior):
    """Not the same in all directions, and beyond [-1, 1] at times."""

    channels = 3

    def denoise(self, x, sigma):
        return 2 * field(x).denoise(x, sigma) + 0.1 * torch.tanh(x.roll(1, 3))

    def spec(self):
        return {"name": "uneven"}


UNEVEN = Uneven()

#: recompute changes memory alone, window does nothing in as few iterations as here;
#: encode is refused where the encoder gives no distribution, glue where gamma is 0.
SILENT = {"recompute", "encode", "glue", "window"}


def outcome(result):
    return result.x, result.trace, result.nfe, result.details


def same(a, b):
    (x, *rest), (other, *others) = outcome(a), outcome(b)
    return torch.equal(x, other) and rest == others


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_option_changes_the_result_or_is_refused(variant):
    name, options = options_of(variant)
    cls = SAMPLERS[name]
    more = {"steps": 2} if name == "dmplug" else {}  # of one iterate none is chosen
    sampler = cls(**{**options, **more})
    y, project = 3 * measured(), None if variant in UNPROJECTED else True

    def run(**changes):
        return solve(variant, y, prior=UNEVEN, project=project, **{**more, **changes})

    expected = run()

    def does_nothing(option, value):
        try:
            return same(expected, run(**{option: value}))
        except ValueError:
            return False

    silent = [
        option
        for option, field in cls.model_fields.items()
        if all(
            does_nothing(option, value)
            for value in others(field, getattr(sampler, option))
        )
    ]
    assert set(silent) <= SILENT


# ---- constants ----


def test_constants_without_effect_give_way_to_what_was_typed():
    task = {"task": "inpaint_box"}
    published = as_sampler("daps", task)
    assert published.lr == 5e-5 and published.spec()["lr"] == 5e-5
    # the task's lr is of no use to exact draws, and comes back with the dynamics
    for options in ({"preset": "exact"}, {"dynamics": "exact"}):
        exact = as_sampler("daps", {**task, **options})
        assert exact.dynamics == "exact" and exact.lr == DAPS().lr
        assert "lr" not in exact.spec()
        with pytest.raises(ValueError, match="lr has no effect with dynamics='exact'"):
            as_sampler("daps", {**task, **options, "lr": 1e-3})
    again = as_sampler("daps", {**task, "preset": "exact", "dynamics": "langevin"})
    assert again.lr == 5e-5 and again.steps == 50
    hmc = as_sampler("daps", {**task, "preset": "hmc"})
    assert hmc.momentum == 0.003
    assert "momentum" not in as_sampler(
        "daps", {**task, "preset": "hmc", "dynamics": "mh"}
    ).model_dump(exclude_unset=True)


def test_constants_by_name_are_those_that_go_together():
    assert "lr" not in method_options("daps", "inpaint_box", preset="exact")
    assert "keep_level" not in method_options("sdedit", preset="official")
    kept = as_sampler("sdedit", {"preset": "official", "keep_known": True})
    assert kept.keep_level == "official"


def test_the_constants_of_a_task_of_ones_own_are_those_of_no_task():
    assert as_sampler("diffpir", {"task": "mine.yaml"}).lam == 0.25
    result = solve("diffpir", task="mine.yaml")
    assert (
        "no constants of diffpir are known for task='mine.yaml'" in result.warnings[0]
    )


def test_an_option_that_is_none_was_not_given():
    assert DAPS(signal_std=None) == DAPS()


def test_options_that_do_not_fit_each_other_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"^daps: levels must satisfy .* 0\.05$"):
        DAPS(sigma_max=0.05)
    # there is no ODE whose last level it could be below
    assert DAPS(dynamics="exact", sigma_min=0.001).sigma_min == 0.001
    with pytest.raises(ValueError, match="prior_score='exact' needs langevin or hmc"):
        DAPS(dynamics="mh", prior_score="exact")


def test_noise_is_projected_by_a_projector_alone():
    with pytest.raises(ValueError, match="project_noise has no effect with project="):
        solve("daps", project_noise=True)
    assert solve("daps", project_noise=True, project=True).x.isfinite().all()


@pytest.mark.parametrize(
    ("method", "option", "reason"),
    [
        ("resample", {"project_pixels": True}, "project=None"),
        ("resample", {"project_final": False}, "project=None"),
        ("resample", {"project_by": "travelled"}, "project=None"),
        ("resample", {"encode": "draw"}, "an autoencoder whose encoder"),
        ("psld", {"encode": "draw"}, "an autoencoder whose encoder"),
    ],
)
def test_what_a_problem_leaves_without_effect_is_refused(method, option, reason):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} has no effect with {reason}"):
        solve(method, **option)
    # typed as it is without, it does no harm
    default = SAMPLERS[method].model_fields[name].default
    assert solve(method, **{name: default}).x.isfinite().all()


def test_constants_by_name_may_have_no_effect_on_a_problem():
    preset = {"preset": "dsg_official", "every": 2, "travel": 2, "steps": 8}
    result = solve("resample", **preset)
    method = dict(result.spec["method"])
    assert not {"encode", "project_pixels", "project_by"} & set(method)
    assert torch.equal(solve(method.pop("name"), **method).x, result.x)
    with pytest.raises(ValueError, match="project_by has no effect with project=None"):
        solve("resample", **preset, project_by="travelled")


@pytest.mark.parametrize(
    ("operator", "given", "missing"),
    [
        (BLUR, "lr_kernel", "GaussianBlur, which has no unknown kernel"),
        (BlindBlur(3), "lr_displacement", "BlindBlur, which has no unknown displ"),
    ],
)
def test_a_rate_of_what_is_known_is_refused(operator, given, missing):
    with pytest.raises(ValueError, match=f"{given} has no effect with {missing}"):
        solve("dmplug", measured(), operator, **{given: 0.2})
    # the constants of a task are its defaults
    task = as_sampler("dmplug", {"task": "turbulence"})
    assert (task.lr_kernel, task.lr_displacement) == (0.1, 1e-7)
    assert solve("dmplug", measured(), operator, task="turbulence").x.isfinite().all()


# ---- network calls ----


@pytest.mark.parametrize("variant", VARIANTS)
def test_network_calls_are_foretold(variant):
    name, options = options_of(variant)
    most = SAMPLERS[name](**options).calls
    nfe = solve(variant).nfe
    assert nfe <= most if name == "dmplug" else nfe == most


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.startswith(("resample", "latent_daps"))]
)
def test_passes_through_the_decoder_are_foretold(variant, monkeypatch):
    name, options = options_of(variant)
    decode, passes = LatentPrior.decode, []
    monkeypatch.setattr(
        LatentPrior, "decode", lambda *args: passes.append(0) or decode(*args)
    )
    most = {"tolerance": 0.0} if name == "resample" else {}
    project = None if variant in UNPROJECTED else True
    solve(variant, project=project, **most)
    assert len(passes) == SAMPLERS[name](**options).decodes
    most = SAMPLERS[name]().decodes
    assert f"plus up to {most} passes through the decoder)" in dsg.describe(name)
    assert "decoder)" not in dsg.describe("psld")


def test_where_decoding_is_most_of_the_work_the_bar_counts_levels(capsys):
    assert SAMPLERS["latent_daps"](**QUICK["latent_daps"]).calls == 6
    solve("latent_daps", progress=True)
    shown = capsys.readouterr().err
    assert "3/3 [" in shown and "level" in shown and "/6 [" not in shown


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({"prior_score": "score-min"}, 3 * (2 + 1)),
        ({"prior_score": "exact"}, 3 * (2 + 3)),
        ({"centre": "mean", "ode_steps": None}, 3),
    ],
)
def test_network_calls_of_daps_are_foretold(options, calls):
    options = {**QUICK["daps"], **options}
    options = {name: value for name, value in options.items() if value is not None}
    sampler = DAPS(**options)
    result = dsg.solve(*(measured(), BLUR, FIELD, sampler), sigma=0.1, progress=False)
    assert result.nfe == calls == sampler.calls


@pytest.mark.parametrize("method", QUICK)
def test_describing_a_method_tells_its_network_calls(method):
    calls = SAMPLERS[method]().calls
    assert f"  ({calls} network calls" in dsg.describe(method)
