"""`solve` and `Result`: wrong calls, stopping early, samples, files, pictures."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from tqdm import tqdm

import diffstategrad as dsg
from diffstategrad import DAPS, GaussianPrior, Result, StateProjector
from diffstategrad.noise import CounterNoise, content_keys
from diffstategrad.operators import Blur, Downsample, GaussianBlur, Inpainting
from diffstategrad.priors import CallablePrior, Prior

SIGMA = 0.1
FIELD = GaussianPrior((3, 12, 12))
BLUR = GaussianBlur(3, 1.0)
SHORT = {"steps": 3, "ode_steps": 2, "langevin_steps": 2, "sigma_max": 5.0}


class Counting(Prior):
    """A field's denoiser that counts its calls; knows three channels and stride 4."""

    channels, stride = 3, 4

    def __init__(self, interrupt_at=None):
        self.calls, self.interrupt_at = 0, interrupt_at

    def denoise(self, x, sigma):
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        return FIELD.denoise(x, sigma)

    def spec(self):
        return {"name": "counting"}


def truth(b=1):
    return FIELD.sample(b, seed=3)


def measured(b=1, operator=BLUR):
    return operator.measure(truth(b), SIGMA, seed=4)


def solve(y=None, operator=BLUR, prior=FIELD, method="daps", **options):
    y = measured() if y is None else y
    options = {"sigma": SIGMA, "progress": False, **options}
    if method == "daps":
        options = {**SHORT, **options}
    return dsg.solve(y, operator, prior, method, **options)


@pytest.fixture(scope="module")
def result():
    return solve(
        measured(2, Downsample(2)), Downsample(2), n_samples=3, project=True, seed=5
    )


# ---- wrong calls ----


def with_nan():
    y = measured()
    y[0, 0, :2, 0] = torch.tensor([torch.nan, torch.inf])
    return y


def image(*shape):
    return torch.zeros(shape)


WRONG = {
    # the measurement
    "y-3-axes": ({"y": image(3, 12, 12)}, ValueError, "y must have 4 axes"),
    "y-int": ({"y": image(1, 3, 12, 12).int()}, TypeError, "y must be float32 or"),
    "y-half": ({"y": image(1, 3, 12, 12).half()}, TypeError, "got torch.float16"),
    "y-complex": ({"y": image(1, 3, 12, 12).cfloat()}, TypeError, "complex64"),
    "y-list": ({"y": [[1.0]]}, TypeError, "y must be a tensor or an array, got list"),
    "y-numpy-int": (
        {"y": np.zeros((1, 3, 12, 12), int)},
        TypeError,
        "y must be float32 or float64, got int64",
    ),
    "y-meta": (
        {"y": image(1, 3, 12, 12).to("meta")},
        ValueError,
        "device meta cannot be used: it holds no values",
    ),
    "y-empty": ({"y": image(0, 3, 12, 12)}, ValueError, "y is an empty batch"),
    "y-nan": ({"y": with_nan()}, ValueError, "y has 2 entries that are NaN"),
    "y-not-of-the-mask": (
        {"operator": Inpainting(np.ones((5, 5)))},
        ValueError,
        r"\(3, 12, 12\) does not fit a mask of shape \(1, 5, 5\)",
    ),
    "y-smaller-than-kernel": (
        {"operator": Blur(np.ones((25, 25)))},
        ValueError,
        "reaches .* more than reflection",
    ),
    # the operator
    "operator-function": ({"operator": lambda x: x}, TypeError, "got function"),
    "operator-name": ({"operator": "blur"}, TypeError, "must be an Operator, got str"),
    "operator-class": ({"operator": Downsample}, TypeError, "must be an Operator"),
    # the prior
    "prior-name": (
        {"prior": "leafs64"},
        ValueError,
        "no prior and no file named 'leafs64'; did you mean 'leaves64'",
    ),
    "prior-missing-file": ({"prior": "/no/such.safetensors"}, ValueError, "no file"),
    "prior-none": ({"prior": None}, TypeError, "a callable .* got NoneType"),
    "channels": ({"y": image(1, 1, 12, 12)}, ValueError, "3 channels, .* has 1"),
    "stride": (
        {"y": image(1, 3, 12, 14)},
        ValueError,
        "divisible by 4, .* is 12 x 14",
    ),
    # numbers
    "sigma-0": ({"sigma": 0}, ValueError, "sigma must be > 0, got 0"),
    "sigma-negative": ({"sigma": -0.1}, ValueError, "sigma must be > 0, got -0.1"),
    "sigma-nan": ({"sigma": float("nan")}, ValueError, "got nan"),
    "sigma-inf": ({"sigma": float("inf")}, ValueError, "got inf"),
    "sigma-bool": ({"sigma": True}, TypeError, "sigma must be a number, got bool"),
    "sigma-text": ({"sigma": "0.1"}, TypeError, "sigma must be a number, got str"),
    "samples-0": ({"n_samples": 0}, ValueError, "n_samples must be an int >= 1, got 0"),
    "samples-float": ({"n_samples": 2.0}, ValueError, "got 2.0"),
    "samples-bool": ({"n_samples": True}, ValueError, "got True"),
    "batch-0": ({"batch": 0}, ValueError, "batch must be an int >= 1, got 0"),
    "batch-negative": ({"batch": -1}, ValueError, "got -1"),
    "steps-0": ({"steps": 0}, ValueError, "daps: steps: .* got 0"),
    "steps-float": ({"steps": 2.5}, ValueError, "daps: steps: .* got 2.5"),
    "steps-bool": ({"steps": True}, ValueError, "steps must not be True"),
    "seed-negative": ({"seed": -1}, ValueError, "seed must be in 0.*got -1"),
    "seed-large": ({"seed": 2**64}, ValueError, "seed must be in 0"),
    "seed-float": ({"seed": 1.0}, TypeError, "seed must be an int, got float"),
    "seed-none": ({"seed": None}, TypeError, "seed must be an int, got NoneType"),
    "device-that-is-not-there": (
        {"device": "cuda:77"},
        ValueError,
        "device cuda:77 cannot be used: ",
    ),
    "device-object": (
        {"device": torch.device("meta")},
        ValueError,
        "device meta cannot be used: it holds no values",
    ),
    "device-not-built": ({"device": "hpu"}, ValueError, "torch is built without it"),
    "device-nonsense": ({"device": "gpu:7"}, ValueError, "device gpu:7 cannot be used"),
    "device-number": ({"device": 1.5}, ValueError, "device 1.5 cannot be used"),
    "dtype-half": ({"dtype": torch.float16}, TypeError, "got torch.float16"),
    "dtype-text": ({"dtype": "float32"}, TypeError, "dtype must be float32 or"),
    "callback": ({"callback": 3}, TypeError, "callback must be callable, got int"),
    # the projector
    "project-number": ({"project": 0.99}, TypeError, "None, True or a StateProjector"),
    "project-1": ({"project": 1}, TypeError, "None, True or a StateProjector, got 1"),
    "project-class": ({"project": StateProjector}, TypeError, "or a StateProjector"),
    # the method and its options
    "method": (
        {"method": "dapss"},
        ValueError,
        "unknown method 'dapss'; did you mean 'daps'",
    ),
    "method-unlike-any": ({"method": "xyz"}, ValueError, "'xyz'; one of admm, "),
    "method-class": ({"method": DAPS}, TypeError, "a configured method, got"),
    "method-none": ({"method": None}, TypeError, "got NoneType"),
    "option": (
        {"langevin_step": 3},
        ValueError,
        "daps has no option 'langevin_step'; did you mean 'langevin_steps'",
    ),
    "option-range": ({"lr": -1.0}, ValueError, "daps: lr: .* got -1.0"),
    "option-nan": ({"lr": float("nan")}, ValueError, "daps: lr: .* got nan"),
    "option-choice": ({"version": "2023"}, ValueError, "daps: version: .*'2023'"),
    "option-order": ({"sigma_min": 9.0}, ValueError, "sigma_min < sigma_max"),
    "option-of-a-configured-method": (
        {"method": DAPS(**SHORT), "lr": 1e-3},
        ValueError,
        r"already configured; options \['lr'\] belong to its constructor",
    ),
    "steps-of-a-configured-method": (
        {"method": DAPS(**SHORT), "steps": 3},
        ValueError,
        r"already configured; options \['steps'\]",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_call_is_refused_before_the_first_network_call(wrong):
    changes, error, message = WRONG[wrong]
    prior = Counting()
    with pytest.raises(error, match=message) as caught:
        solve(**{"prior": prior, **changes})
    assert type(caught.value) is error
    assert prior.calls == 0


def test_sigma_is_required():
    with pytest.raises(TypeError, match="sigma"):
        dsg.solve(measured(), BLUR, FIELD)


class Module(torch.nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("prior", "name"),
    [
        (lambda x: x, r"<lambda>\(x\): too many positional"),
        (lambda x, sigma, y: x, r"<lambda>\(x, sigma, y\): missing a required"),
        (Module(), r"Module\(x\): too many"),
        (GaussianPrior, "GaussianPrior"),
    ],
    ids=["one", "three", "module", "class"],
)
def test_a_prior_that_takes_something_else_is_told_what_a_prior_is(prior, name):
    message = r"a prior must be a function \(x, sigma\) -> x0 of .* got .*"
    with pytest.raises(TypeError, match=message + name):
        solve(prior=prior)


@pytest.mark.parametrize(
    "prior",
    [
        lambda *images: images[0] / 2,
        lambda x, sigma, scale=2: x / scale,
        torch.true_divide,  # says nothing of what it takes
    ],
)
def test_a_prior_may_take_more_or_not_say_what_it_takes(prior):
    assert solve(prior=prior).x.isfinite().all()


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda x: x[:, :1], ValueError, r"keep the shape \(1, 3, 12, 12\), got"),
        (lambda x: x[0], ValueError, "keep the shape"),
        (lambda x: torch.zeros(1), ValueError, "keep the shape"),
        (lambda x: None, TypeError, "with __dlpack__, got NoneType"),
        (lambda x: x.tolist(), TypeError, "with __dlpack__, got list"),
    ],
)
def test_a_prior_that_answers_wrongly_is_named(answer, error, message):
    with pytest.raises(error, match=message):
        solve(prior=lambda x, sigma: answer(x))


def test_an_answer_is_not_broadcast():
    class Flat(Counting):
        def denoise(self, x, sigma):
            return x[:, :1]

    with pytest.raises(
        ValueError, match=r"shape \(1, 3, 12, 12\), got \(1, 1, 12, 12\)"
    ):
        solve(prior=Flat())


def test_an_operator_of_another_image_than_the_fields_is_refused():
    with pytest.raises(ValueError, match=r"images of shape \(3, 12, 12\)"):
        solve(y=image(1, 3, 16, 16))


# ---- right calls ----


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: (0.5 * x).numpy(),
        lambda x: 0.5 * x.double(),
        lambda x: (0.5 * x).requires_grad_(),
        lambda x: (0.5 * x).mT.contiguous().mT,
    ],
    ids=["numpy", "double", "requires-grad", "transposed"],
)
def test_a_prior_may_be_any_function_that_returns_arrays(answer):
    expected = solve(prior=lambda x, sigma: 0.5 * x).x
    assert torch.equal(solve(prior=lambda x, sigma: answer(x)).x, expected)


def test_gradients_are_not_recorded():
    weight = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    y = measured().requires_grad_()
    result = solve(y, prior=lambda x, sigma: weight * x)
    assert not result.x.requires_grad and not result.y.requires_grad


def test_a_function_as_prior_is_named_in_the_spec():
    def shrink(x, sigma):
        return x / (1 + sigma**2)

    name = shrink.__qualname__
    assert CallablePrior(shrink).spec() == {"name": "callable", "function": name}


def test_y_may_be_a_numpy_array_and_is_left_alone():
    y = measured().numpy()
    y.flags.writeable = False
    before = y.copy()
    assert torch.equal(solve(y).x, solve(torch.from_numpy(before)).x)
    np.testing.assert_array_equal(y, before)


def test_layouts_of_y_do_not_matter():
    y = measured(2)
    expected = solve(y).x
    for layout in (lambda t: t.mT.contiguous().mT, lambda t: torch._neg_view(-t)):
        assert torch.equal(solve(layout(y)).x, expected)


def test_a_configured_method_is_the_named_one_with_its_options():
    assert torch.equal(solve(method=DAPS(**SHORT)).x, solve().x)


def test_the_device_may_be_named_in_every_way():
    expected = solve().x
    for device in ("cpu", "cpu:0", torch.device("cpu")):
        assert torch.equal(solve(device=device).x, expected)


def test_a_projector_may_be_switched_off_in_two_ways():
    assert torch.equal(solve(project=False).x, solve(project=None).x)


def test_describing_a_method_lists_every_option():
    text = dsg.describe("daps")
    assert all(f"  {name} = " in text for name in DAPS.model_fields)
    assert "daps" in dsg.methods()
    with pytest.raises(ValueError, match="did you mean 'daps'"):
        dsg.describe("dap")


# ---- following a run ----


def test_the_trace_has_every_level(result):
    plain = solve()
    assert [set(level) for level in plain.trace] == [{"sigma", "residual"}] * 3
    assert [set(level) for level in result.trace] == [
        {"sigma", "residual", "rank", "kept"}
    ] * 3
    sigmas = [level["sigma"] for level in result.trace]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[0] == pytest.approx(5.0, rel=10 * 2.0**-52)  # a few powers
    for level in result.trace:
        assert 1 <= level["rank"] <= 12 and 0.99 <= level["kept"] <= 1


def test_a_callback_sees_every_level_and_may_stop_the_run():
    seen = []
    whole = solve(callback=lambda level: seen.append((level, level.x0y.clone())))
    assert [level.index for level, _ in seen] == [0, 1, 2]
    assert whole.warnings == solve().warnings
    for level, x0y in seen:
        assert level.xt.shape == level.x0hat.shape == x0y.shape == (1, 3, 12, 12)
        assert level.sqnorm.shape == (1,) and level.ranks is None

    prior = Counting()
    stopped = solve(prior=prior, callback=lambda level: level.index == 1)
    assert "stopped by the callback after level 2" in stopped.warnings
    assert prior.calls == stopped.nfe == 4
    assert len(stopped.trace) == 2
    assert torch.equal(stopped.x, seen[1][1])


def test_an_error_of_the_callback_comes_through():
    def fail(level):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        solve(callback=fail)


@pytest.mark.parametrize("call", [3, 4, 5, 6])
def test_ctrl_c_returns_what_has_been_reached(call):
    levels = (call - 1) // 2
    result = solve(prior=Counting(interrupt_at=call))
    assert f"interrupted after level {levels} of 3" in result.warnings
    assert len(result.trace) == levels
    at = {}
    solve(callback=lambda level: at.update({level.index: level.x0y.clone()}))
    assert torch.equal(result.x, at[levels - 1])


@pytest.mark.parametrize("call", [1, 2])
def test_ctrl_c_before_the_end_of_the_first_level_is_raised(call):
    with pytest.raises(KeyboardInterrupt):
        solve(prior=Counting(interrupt_at=call))


def test_an_error_of_the_prior_comes_through():
    def fail(x, sigma):
        raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        solve(prior=fail)


def test_a_progress_bar_is_shown_when_asked_for(capsys):
    solve(progress=True)
    assert "residual" in capsys.readouterr().err
    solve(progress=False)
    assert capsys.readouterr().err == ""


def test_the_progress_bar_counts_network_calls_between_levels_too(capsys):
    seen = []

    def prior(x, sigma):
        seen.append(capsys.readouterr().err)
        return FIELD.denoise(x, sigma)

    with patch("diffstategrad.solve.tqdm", partial(tqdm, mininterval=0)):
        solve(prior=prior, progress=True, steps=1, ode_steps=9)
        assert "4/9 [" in "".join(seen[:5]) and "call" in seen[4]
        solve(prior=None, method="hqs_tv", progress=True, lam=1.0)
        assert "1/1 [" in capsys.readouterr().err


def test_calls_are_counted_for_each_sample_of_each_image():
    prior = Counting()
    result = solve(measured(2), prior=prior, n_samples=3)
    assert result.nfe == 3 * 2
    assert prior.calls == result.nfe * 2 * 3
    batched = Counting()
    solve(measured(2), prior=batched, n_samples=3, batch=4)
    assert batched.calls == 6 * 2  # 6 images in parts of 4 and 2


# ---- residual and samples ----


def test_the_residual_is_what_it_says(result):
    A = Downsample(2)
    for s in range(3):
        r = (A(result.samples[s]) - result.y).flatten(1).norm(dim=1)
        expected = r / (SIGMA * result.y[0].numel() ** 0.5)
        # a norm of m numbers, in float64
        torch.testing.assert_close(
            result.residual[s], expected, rtol=result.y[0].numel() * 2.0**-52, atol=0
        )


def test_the_truth_has_a_residual_of_about_one():
    x = truth(2)
    y = BLUR.measure(x, SIGMA, seed=4)
    residual = (BLUR(x) - y).flatten(1).norm(dim=1) / (SIGMA * y[0].numel() ** 0.5)
    # the norm of m standard normals over sqrt(m) is known to 1 / sqrt(2 m)
    assert (residual - 1).abs().max() < 5 / (2 * y[0].numel()) ** 0.5


@pytest.mark.parametrize("blurred", [False, True])
def test_lost_pixels_do_not_count_in_the_residual(blurred):
    mask = Inpainting.random(12, missing=0.5, seed=1)
    seen = torch.from_numpy(mask.mask.copy()).double()
    A = mask @ BLUR if blurred else mask
    y = measured(2, A)
    y = torch.where(seen > 0, y, 1e3 * y)
    sqnorms = []

    def keep(level):
        sqnorms.append((seen * (A(level.x0y) - y)).square().sum().item())

    options = {"sigma": SIGMA, "steps": 2, "progress": False}
    result = dsg.solve(y, A, FIELD, "hqs", callback=keep, **options)
    m = 3 * seen.sum().item()
    expected = (seen * (A(result.x) - y)).flatten(1).norm(dim=1) / (SIGMA * m**0.5)
    torch.testing.assert_close(result.residual[0], expected, rtol=1e-12, atol=0)
    # the squares of the lost pixels, 1e6 of the others, are added and taken off again
    got = [level["residual"] for level in result.trace]
    expected = [(square / (2 * m)) ** 0.5 / SIGMA for square in sqnorms]
    assert got == pytest.approx(expected, rel=1e8 * 2.0**-52)


def test_a_result_that_follows_the_noise_is_a_warning():
    A = Inpainting.random(12, missing=0.5)
    y = measured(1, A)
    close = solve(y, A, lambda x, sigma: y, sigma=1.0, lr=1e-6)
    # of one run there is one number
    assert re.match(r"residual \d\.\d\d, far from 1", close.warnings[0])
    assert (
        "far from 1: results follow the noise of the measurement" in close.warnings[0]
    )


def test_a_residual_far_from_one_is_a_warning():
    far = solve(measured(2), prior=lambda x, sigma: x * 0 + 5)
    assert any("far from 1" in w for w in far.warnings)
    assert "warning: residual" in repr(far)
    level = r"residual \d+\.\d\d to \d+\.\d\d, far from 1"
    assert re.match(level, far.warnings[-1])


def test_a_measurement_of_8_bit_images_is_told_from_one_that_fits_badly():
    y = measured()
    wrong = solve(255 * y / y.abs().max())
    assert wrong.warnings[-1].endswith("y has values up to 255: images are in [-1, 1]")
    far = solve(prior=lambda x, sigma: x * 0 + 5)
    assert "y has values" not in far.warnings[-1]


def test_the_best_sample_is_that_of_the_smallest_residual(result):
    best = result.residual.argmin(0)
    for i in range(2):
        assert torch.equal(result.x[i], result.samples[best[i], i])
    assert result.x.shape == (2, 3, 12, 12) and result.samples.shape == (
        3,
        2,
        3,
        12,
        12,
    )


def test_mean_and_std_are_those_of_the_samples(result):
    # three numbers of size 1
    close = {"rtol": 0, "atol": 20 * 2.0**-52}
    torch.testing.assert_close(result.mean, result.samples.mean(0), **close)
    torch.testing.assert_close(result.std, result.samples.std(0), **close)
    assert not solve().std.any()


def test_mean_and_std_leave_diverged_samples_out(result):
    samples = result.samples.clone()
    samples[1, 0] = torch.nan
    some = Result(**{**vars(result), "samples": samples})
    close = {"rtol": 0, "atol": 20 * 2.0**-52}
    kept = samples[[0, 2], 0]
    torch.testing.assert_close(some.mean[0], kept.mean(0), **close)
    torch.testing.assert_close(some.std[0], kept.std(0), **close)


def test_score_compares_with_the_truth(result):
    x = truth(2)
    score = result.score(x)
    assert set(score) == {"psnr", "ssim", "nmse", "mean_psnr", "oracle_psnr"}
    assert all(v.shape == (2,) and v.dtype == torch.float64 for v in score.values())
    assert torch.equal(score["psnr"], dsg.metrics.psnr(result.x, x))
    assert (score["oracle_psnr"] >= score["psnr"]).all()
    assert set(solve().score(truth())) == {"psnr", "ssim", "nmse"}
    single = result.score(x.float())
    torch.testing.assert_close(single["psnr"], score["psnr"], rtol=0, atol=1e-4)


def test_the_oracle_leaves_diverged_samples_out(result):
    samples = result.samples.clone()
    samples[1, 0] = torch.nan
    some = Result(**{**vars(result), "samples": samples})
    score = some.score(truth(2))
    assert score["oracle_psnr"].isfinite().all() and score["mean_psnr"].isfinite().all()


def test_the_score_of_a_diverged_image_is_nan(result):
    x, samples = result.x.clone(), result.samples.clone()
    x[0], samples[:, 0] = torch.nan, torch.nan
    score = Result(**{**vars(result), "x": x, "samples": samples}).score(truth(2))
    for name, value in result.score(truth(2)).items():
        assert score[name][0].isnan() and score[name][1] == value[1]


def test_score_takes_arrays_and_refuses_other_shapes(result):
    x = truth(2)
    assert torch.equal(result.score(x.numpy())["psnr"], result.score(x)["psnr"])
    with pytest.raises(ValueError, match=r"x_true must have shape \(2, 3, 12, 12\)"):
        result.score(x[:1])
    with pytest.raises(TypeError, match="x_true must be a tensor or an array"):
        result.score(x.tolist())
    with pytest.raises(ValueError, match=r"x_true has values up to 255: .* \[-1, 1\]"):
        result.score(torch.full_like(x, 255))


# ---- pictures ----


def test_a_notebook_shows_pictures_and_numbers(result):
    page = result._repr_html_()
    assert page.count("<img") == 3 and "data:image/png;base64," in page
    assert "Result(daps with projector: 2 image(s) 3x12x12, 3 sample(s)" in page
    assert solve()._repr_html_().count("<img") == 2


def test_warnings_are_escaped_in_the_page(result):
    evil = Result(**{**vars(result), "warnings": ["<script>"]})
    assert "<script>" not in evil._repr_html_()
    assert "&lt;script&gt;" in evil._repr_html_()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_every_number_of_channels_has_pictures(channels):
    prior = GaussianPrior((channels, 12, 12))
    result = solve(prior.sample(1), BLUR, prior, n_samples=2)
    for picture in result.panels().values():
        assert picture.shape == (12, 12, 3) and picture.dtype == np.uint8
    assert isinstance(result.plot(), Figure)


def test_plots_are_drawn(result, tmp_path):
    for name, figure in (
        ("a", result.plot(1)),
        ("b", result.plot_trace()),
        ("c", solve().plot_trace()),
    ):
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_a_diverged_result_can_be_looked_at(tmp_path):
    result = solve(prior=lambda x, sigma: x * torch.nan, n_samples=2)
    assert "diverged" in repr(result)
    result._repr_html_()
    result.plot().savefig(tmp_path / "a.png")
    result.plot_trace().savefig(tmp_path / "b.png")
    result.save(tmp_path / "r.safetensors")
    assert Result.load(tmp_path / "r.safetensors").x.isnan().all()


# ---- files ----


def test_saving_and_loading_keeps_everything(result, tmp_path):
    path = tmp_path / "result.safetensors"
    result.save(path)
    again = Result.load(path)
    for name in ("x", "samples", "y", "residual"):
        assert torch.equal(getattr(again, name), getattr(result, name))
    for name in ("nfe", "seconds", "trace", "warnings"):
        assert getattr(again, name) == getattr(result, name)
    assert again.spec == json.loads(json.dumps(result.spec))
    assert repr(again) == repr(result)
    assert os.listdir(tmp_path) == ["result.safetensors"]


@pytest.mark.parametrize(
    "operator",
    [Inpainting.random(12), Blur(np.random.default_rng(0).uniform(size=(2, 3)))],
    ids=["mask", "kernel"],
)
def test_a_saved_run_can_be_run_again_from_its_spec(operator, tmp_path):
    first = solve(measured(2, operator), operator, project=True, seed=5)
    first.save(tmp_path / "r.safetensors")
    loaded = Result.load(tmp_path / "r.safetensors")
    spec = loaded.spec
    prior = spec["prior"]
    assert prior.pop("name") == "gaussian"
    method = spec["method"]
    again = dsg.solve(
        loaded.y,
        dsg.operators.build(spec["operator"]),
        GaussianPrior(prior.pop("shape"), **prior),
        method.pop("name"),
        sigma=spec["sigma"],
        project=StateProjector(**spec["project"]),
        n_samples=spec["n_samples"],
        batch=spec["batch"],
        seed=spec["seed"],
        progress=False,
        **method,
    )
    assert torch.equal(again.x, first.x)


def test_saving_replaces_an_older_file(result, tmp_path):
    path = tmp_path / "r.safetensors"
    path.write_text("old")
    result.save(str(path))
    assert torch.equal(Result.load(str(path)).x, result.x)


def test_a_saved_file_is_as_readable_as_any_other(result, tmp_path):
    result.save(tmp_path / "r.safetensors")
    (tmp_path / "other").write_text("")
    mode = (tmp_path / "r.safetensors").stat().st_mode
    assert mode == (tmp_path / "other").stat().st_mode


def test_saving_into_a_missing_folder_is_an_error(result, tmp_path):
    with pytest.raises(FileNotFoundError):
        result.save(tmp_path / "missing" / "r.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_failed_save_leaves_no_half_written_file(result, tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(OSError):
        result.save(tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == ["a.safetensors"]
    (tmp_path / "b.safetensors").write_text("old")
    broken = Result(**{**vars(result), "spec": {"x": object()}})
    with pytest.raises(TypeError):
        broken.save(tmp_path / "b.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]
    assert (tmp_path / "b.safetensors").read_text() == "old"


@pytest.mark.parametrize("name", ["r", "r.png", "r.safetensors.gz", ".safetensors"])
def test_a_file_of_another_name_is_refused(result, tmp_path, name):
    with pytest.raises(ValueError, match=f"saved as .safetensors, got .*{name}$"):
        result.save(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_saving_where_one_may_not_write_is_an_error(result, tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError("read-only")

    # a read-only folder would not stop root
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        result.save(tmp_path / "r.safetensors")
    assert os.listdir(tmp_path) == []


def arrays():
    x = torch.zeros(1, 1, 2, 2)
    return {
        "x": x,
        "samples": x[None].clone(),
        "y": x.clone(),
        "residual": x[0, 0, :1, :1].clone(),
    }


def record(**changes):
    values = {"nfe": 1, "seconds": 1.0, "trace": [], "spec": {}, "warnings": []}
    values["details"] = {}
    return json.dumps({**values, **changes})


FORMAT = "diffstategrad.Result/1"
FOREIGN = {
    "no-metadata": (arrays(), None),
    "another-format": (arrays(), {"format": "x", "record": record()}),
    "no-record": (arrays(), {"format": FORMAT}),
    "broken-record": (arrays(), {"format": FORMAT, "record": "{"}),
    "list-record": (arrays(), {"format": FORMAT, "record": "[]"}),
    "number-record": (arrays(), {"format": FORMAT, "record": "3"}),
    "unknown-field": (arrays(), {"format": FORMAT, "record": record(evil=1)}),
    "no-spec": (arrays(), {"format": FORMAT, "record": '{"nfe": 1}'}),
    "deep-record": (
        arrays(),
        {"format": FORMAT, "record": "[" * 100_000 + "]" * 100_000},
    ),
    "missing-reference": (
        arrays(),
        {"format": FORMAT, "record": record(spec={"a": {"__array__": "gone"}})},
    ),
    "wrong-reference": (
        arrays(),
        {"format": FORMAT, "record": record(spec={"a": {"__array__": [1]}})},
    ),
    "no-x": (
        {k: v for k, v in arrays().items() if k != "x"},
        {"format": FORMAT, "record": record()},
    ),
    "wrong-axes": (
        {**arrays(), "x": torch.zeros(3)},
        {"format": FORMAT, "record": record()},
    ),
    "wrong-residual": (
        {**arrays(), "residual": torch.zeros(4, 1)},
        {"format": FORMAT, "record": record()},
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_safetensors_file_is_refused(kind, tmp_path):
    tensors, metadata = FOREIGN[kind]
    save_file(tensors, tmp_path / "r.safetensors", metadata)
    with pytest.raises(ValueError, match=r"r\.safetensors is no saved Result"):
        Result.load(tmp_path / "r.safetensors")


def test_the_smallest_saved_result_loads(tmp_path):
    save_file(
        arrays(), tmp_path / "r.safetensors", {"format": FORMAT, "record": record()}
    )
    assert Result.load(tmp_path / "r.safetensors").nfe == 1


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file_is_refused(result, share, tmp_path):
    result.save(tmp_path / "r.safetensors")
    data = (tmp_path / "r.safetensors").read_bytes()
    (tmp_path / "r.safetensors").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="no saved Result"):
        Result.load(tmp_path / "r.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x02}q\x00.",
        b"\xff" * 64,
        b"\0" * 64,
        (8).to_bytes(8, "little") + b'{"a":[]}',
        b"text",
    ],
)
def test_other_files_are_refused(data, tmp_path):
    (tmp_path / "r.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="no saved Result"):
        Result.load(tmp_path / "r.safetensors")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Result.load(tmp_path / "r.safetensors")


def test_a_folder_is_no_result(tmp_path):
    with pytest.raises((OSError, ValueError)):
        Result.load(tmp_path)


def test_a_noise_source_of_ones_own_is_taken():
    y = measured(2)
    own = CounterNoise(5, content_keys(y), [0, 0])
    result = solve(y, seed=own)
    assert torch.equal(result.x, solve(y, seed=5).x)
    assert "CounterNoise" in result.spec["seed"]


def test_a_seed_of_numpy_is_recorded_as_its_number():
    result = solve(seed=np.int64(5))
    assert torch.equal(result.x, solve(seed=5).x)
    assert result.spec["seed"] == 5 and type(result.spec["seed"]) is int
