"""ReSample against its formulas: resampling, AdamW and when it ends, time travel."""

from __future__ import annotations

import math

import pytest
import torch
from published import TOY, ToyAutoencoder

import diffstategrad as dsg
from diffstategrad import GaussianPrior, StateProjector
from diffstategrad.noise import CounterNoise, ReplayNoise
from diffstategrad.operators import GaussianBlur, Inpainting
from diffstategrad.priors import LatentPrior, Prior
from diffstategrad.samplers import Network, Problem, ReSample
from diffstategrad.samplers.ddim import steps_of
from diffstategrad.samplers.resample import _Fit, resampling
from diffstategrad.schedules import TableSchedule, latent_grid

SIZE = 8
SIGMA = 0.1
EPS = 2.0**-52
LATENTS = GaussianPrior((3, SIZE // 2, SIZE // 2))
PRIOR = LatentPrior(LATENTS, ToyAutoencoder(TOY, 2))
BLUR = GaussianBlur(3, 1.0)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def problem(y, operator=BLUR, projector=None, prior=PRIOR, noise=None, batch=1):
    return Problem(
        y=y,
        operator=operator,
        network=Network(prior, batch),
        sigma=SIGMA,
        noise=noise or CounterNoise(0, range(len(y)), [0] * len(y)),
        start=y.new_empty((len(y), *LATENTS.shape)),
        projector=projector,
    )


# ---- resampling ----


@pytest.mark.parametrize(
    ("i", "t", "a", "p", "of_zy", "of_zs", "std"),
    [
        (
            330,
            661,
            0.0246641348,
            0.0252219297,
            0.0755340863,
            0.5243868817,
            0.6808944395,
        ),
        (
            170,
            341,
            0.3306428616,
            0.3342074957,
            0.2250393801,
            0.6107304529,
            0.5090901163,
        ),
        (
            160,
            321,
            0.3670951872,
            0.3708355068,
            0.2370666628,
            0.6107040991,
            0.4949052013,
        ),
        (10, 21, 0.9657320291, 0.9689553694, 0.7827695141, 0.2047896639, 0.1571210080),
    ],
)
def test_weights_of_resampling_at_the_released_steps(i, t, a, p, of_zy, of_zs, std):
    grid = latent_grid(500)
    assert grid.timesteps[i] == t
    # the grid's are rounded to single precision, the numbers here to ten digits, of
    # which 1 - a / p loses two
    assert (grid.a[i], grid.p[i]) == pytest.approx((a, p), rel=2.0**-24)
    assert resampling(a, p, 40.0) == pytest.approx((of_zy, of_zs, std), abs=2e-8)


def test_resampling_draws_from_the_product_of_two_gaussians():
    a, p, gamma = 0.3, 0.34, 7.0
    v = gamma * (1 - p) / (1 - a) * (1 - a / p)
    precision = 1 / (1 - p) + 1 / v
    of_zy, of_zs, std = resampling(a, p, gamma)
    assert std**2 == pytest.approx(1 / precision, rel=8 * EPS)
    assert of_zy == pytest.approx(math.sqrt(p) / (1 - p) / precision, rel=8 * EPS)
    assert of_zs == pytest.approx(1 / v / precision, rel=8 * EPS)


# ---- optimisation ----


def by_torch(operator, y, start, *, lr, steps, decay, state, projector, window=None):
    """The same with torch's optimiser on one image: the variable after its last step,
    and how many there were."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([x], lr=lr, weight_decay=decay)
    if projector is not None:
        projector.wrap(optimizer, state=state)
    losses = []
    for k in range(steps):
        optimizer.zero_grad()
        loss = (y - operator(x)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < ReSample().tolerance ** 2:
            break
        if window is not None and k >= window and losses[-1] > losses[k - window]:
            break
    return x.detach(), len(losses)


@pytest.mark.parametrize(
    "projector", [None, StateProjector(0.7), StateProjector(0.7, period=3)], ids=str
)
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("what", ["pixels", "latents"])
def test_an_optimisation_is_that_of_torchs_adamw(what, decay, projector):
    options = ReSample(
        **{"weight_decay": decay, "pixel_steps": 40, "latent_steps": 40},
        project_pixels=True,
    )
    y, by = BLUR(normal(3, 3, SIZE, SIZE)), normal(3, *LATENTS.shape, seed=1)
    fit = _Fit(options, problem(y, projector=projector))
    decode = PRIOR.decode
    if what == "pixels":
        start, state, operator, lr = normal(*y.shape, seed=2), decode(by), BLUR, 1e-2
        found, sqnorm = fit.pixels(start, by)
    else:
        start, state, lr = normal(*by.shape, seed=2), by, 5e-3
        operator = lambda z: BLUR(decode(z))  # noqa: E731
        found, sqnorm = fit.latents(start, by)
    for i in range(3):
        image = slice(i, i + 1)
        expected, steps = by_torch(
            *(operator, y[image], start[image]),
            **{"lr": lr, "steps": 40, "decay": decay},
            **{"state": state[image], "projector": projector},
        )
        assert steps == fit.iterations[what][0][i] == 40
        # rounding of gradients, which AdamW divides by their size, over 40 steps
        torch.testing.assert_close(found[image], expected, rtol=0, atol=1e4 * EPS)
    assert (sqnorm > 0).all()
    assert (fit.ranks is None) == (projector is None)


@pytest.mark.parametrize("projector", [None, StateProjector(0.9)], ids=["plain", "dsg"])
def test_every_image_ends_where_it_would_alone(projector):
    options = ReSample(latent_steps=50, window=7, latent_lr=0.2)
    targets = normal(4, *LATENTS.shape, seed=3)
    y = BLUR(PRIOR.decode(targets))
    y[1] += 0.5
    start = targets + 0.5 * torch.arange(4)[:, None, None, None]
    fit = _Fit(options, problem(y, projector=projector))
    found, _ = fit.latents(start, targets)
    for i in range(4):
        image = slice(i, i + 1)
        alone = _Fit(options, problem(y[image], projector=projector))
        same, _ = alone.latents(start[image], targets[image])
        assert torch.equal(found[image], same)
        expected, steps = by_torch(
            *(lambda z: BLUR(PRIOR.decode(z)), y[image], start[image]),
            **{"lr": 0.2, "steps": 50, "decay": 0.0, "window": 7},
            **{"state": targets[image], "projector": projector},
        )
        assert alone.iterations["latents"] == [[steps]]
        torch.testing.assert_close(same, expected, rtol=0, atol=1e6 * EPS)
    (steps,) = fit.iterations["latents"]
    # the first has reached the tolerance at once, others are worse than before
    assert steps[0] == 1 and any(7 < n < 50 for n in steps) and len(set(steps)) > 2


def test_an_image_that_is_lost_does_not_keep_the_others():
    y = BLUR(normal(2, 3, SIZE, SIZE))
    start = normal(2, 3, SIZE, SIZE, seed=1)
    start[0, 0, 0, 0] = torch.inf
    options = ReSample(pixel_steps=20, project_pixels=True)
    projector = StateProjector(0.9, subspace="gradient")
    by = normal(2, *LATENTS.shape)
    fit = _Fit(options, problem(y, projector=projector))
    found, sqnorm = fit.pixels(start, by)
    assert found[0].isnan().all() and not sqnorm[0].isfinite()
    assert fit.iterations["pixels"] == [[1, 20]]
    alone = _Fit(options, problem(y[1:], projector=projector))
    assert torch.equal(found[1:], alone.pixels(start[1:], by[1:])[0])

    # its state alone
    start, by[0] = normal(*y.shape, seed=1), torch.nan
    fit = _Fit(options, problem(y, projector=StateProjector(0.9)))
    found, _ = fit.pixels(start, by)
    alone = _Fit(options, problem(y[1:], projector=StateProjector(0.9)))
    assert found[0].isnan().all()
    assert torch.equal(found[1:], alone.pixels(start[1:], by[1:])[0])


# ---- time travel ----


class Point(Prior):
    """Knows one latent and sees how noisy it is told that a state is."""

    channels, schedule = 3, TableSchedule()

    def __init__(self, z0):
        self.z0, self.levels = z0, []

    def denoise(self, x, sigma):
        self.levels.append(1 / (1 + sigma**2))
        return self.z0.expand_as(x)

    def spec(self):
        return {"name": "point"}


@pytest.mark.parametrize("grid", ["even", "official"])
def test_time_travel_goes_on_with_the_noise_that_the_state_has(grid):
    z0, n = normal(2, *LATENTS.shape)
    prior = Point(z0)
    options = ReSample(steps=50, grid=grid)
    steps = steps_of(grid, 50, 0.0, prior.schedule)
    for k in (10, 39, 44):
        step = steps[k]
        state = (math.sqrt(step.p) * z0 + math.sqrt(1 - step.p) * n)[None]
        noise = ReplayNoise([state] * 5)  # of standard deviation 0
        prior.levels.clear()
        y = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64)
        latent = LatentPrior(prior, ToyAutoencoder(TOY, 2))
        further, guess = options._travelled(
            problem(y, prior=latent, noise=noise), state, steps[k:]
        )
        p = steps[k + 5].p
        expected = (math.sqrt(p) * z0 + math.sqrt(1 - p) * n)[None]
        # 1e-7: in the released grid the levels are rounded to single precision
        torch.testing.assert_close(further, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(guess, z0[None], rtol=0, atol=1e-6)
        told = [s.a for s in steps[k + 1 : k + 6]]
        assert prior.levels == pytest.approx(told, rel=1e-6)
        assert told[0] == step.p


def test_the_released_time_travel_takes_a_state_for_noisier_than_it_is():
    z0, n = normal(2, *LATENTS.shape)
    steps = steps_of("official", 50, 0.0, TableSchedule())
    state = (math.sqrt(steps[20].p) * z0 + math.sqrt(1 - steps[20].p) * n)[None]
    y = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64)
    prior = LatentPrior(Point(z0), ToyAutoencoder(TOY, 2))
    errors = []
    for levels in ("exact", "official"):
        options = ReSample(steps=50, grid="official", travel_levels=levels)
        given = problem(y, prior=prior, noise=ReplayNoise([state] * 5))
        _, guess = options._travelled(given, state, steps[20:])
        errors.append((guess - z0).abs().max().item())
    assert errors[0] < 1e-6 < 0.01 < errors[1]


def test_the_released_estimate_has_1_minus_a_for_its_root():
    step = steps_of("official", 50, 0.0, TableSchedule())[20]
    z, eps = normal(2, 1, *LATENTS.shape)
    z0 = (z - math.sqrt(1 - step.a) * eps) / math.sqrt(step.a)
    expected = (z - (1 - step.a) * eps) / math.sqrt(step.a)
    found = ReSample(x0_estimate="official")._decoded(z, z0, step)
    atol = 16 * EPS * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    assert ReSample()._decoded(z, z0, step) is z0


# ---- the run ----


def test_which_steps_resample_and_how_often_the_network_is_called():
    released = ReSample(grid="official")
    left = [i for i in range(released.levels) if released._resamples(i)]
    assert left == list(range(10, 331, 10))
    assert sum(i >= 166 for i in left) == 17 and sum(i < 166 for i in left) == 16
    assert released.calls == 500 + 33 * 5
    assert (released.pixel_steps, released.latent_steps) == (2000, 500)
    assert (released.gamma, released.window) == (40.0, 200)
    assert (released.scale, released.scale_rule) == (0.5, "alpha_bar")
    short = ReSample(steps=40, every=5, travel=3)
    y = torch.zeros(1, 3, SIZE, SIZE)
    options = {"steps": 40, "every": 5, "travel": 3, "pixel_steps": 1}
    result = dsg.solve(
        *(y, BLUR, PRIOR, "resample"),
        **{**options, "latent_steps": 1, "sigma": SIGMA, "progress": False},
    )
    assert result.nfe == short.calls == 40 + 3 * 5
    counts = result.details["iterations"]
    assert counts == {"pixels": [[1]] * 3, "latents": [[1]] * 3}


def test_what_is_projected_is_said_by_the_options(monkeypatch):
    projected = []
    call = dsg.projection.Projection.__init__

    def seen(self, projector, state, *, draw=0):
        projected.append(tuple(state.shape[1:]))
        call(self, projector, state, draw=draw)

    monkeypatch.setattr(dsg.projection.Projection, "__init__", seen)
    y = BLUR(normal(1, 3, SIZE, SIZE)).float()
    image, latent = (3, SIZE, SIZE), LATENTS.shape
    for options, expected in (
        ({}, [latent, latent]),
        ({"project_final": False}, [latent]),
        ({"project_pixels": True}, [image] * 3 + [latent] * 2),
    ):
        projected.clear()
        dsg.solve(
            *(y, BLUR, PRIOR, "resample"),
            **{"steps": 6, "every": 1, "travel": 1, "pixel_steps": 2},
            **{"latent_steps": 2, "sigma": SIGMA, "project": True, "progress": False},
            **options,
        )
        assert projected == expected


def test_the_state_that_projects_is_the_one_before_time_travel_or_after_it(monkeypatch):
    states = {"state": [], "travelled": []}
    latents = _Fit.latents
    for by, seen in states.items():

        def fit(self, start, state, seen=seen):
            seen.append((start.clone(), state.clone()))
            return latents(self, start, state)

        monkeypatch.setattr(_Fit, "latents", fit)
        # of a square state P keeps all: the runs differ in nothing else
        dsg.solve(
            *(torch.zeros(1, 3, SIZE, SIZE), BLUR, PRIOR, "resample"),
            **{
                "steps": 6,
                "every": 1,
                "travel": 1,
                "pixel_steps": 1,
                "progress": False,
                "project": StateProjector(energy=1.0),
            },
            **{"latent_steps": 1, "sigma": SIGMA, "project_by": by},
        )
    (guess, before), (_, last) = states["state"]
    (same, after), (z, last_too) = states["travelled"]
    assert torch.equal(guess, same) and torch.equal(z, last_too)
    assert not torch.equal(before, after) and torch.equal(last, last_too)


def test_a_draw_of_a_stochastic_encoder_is_asked_for():
    class Stochastic(ToyAutoencoder):
        stochastic = True
        given = None

        def encode(self, x, noise=None):
            self.given = noise
            return super().encode(x)

    y = torch.zeros(1, 3, SIZE, SIZE)
    for encode in ("mean", "draw"):
        autoencoder = Stochastic(TOY, 2)
        dsg.solve(
            *(y, BLUR, LatentPrior(LATENTS, autoencoder), "resample"),
            **{"steps": 6, "every": 1, "travel": 1, "pixel_steps": 1},
            **{"latent_steps": 1, "sigma": SIGMA, "encode": encode, "progress": False},
        )
        assert (autoencoder.given is not None) == (encode == "draw")


def test_the_result_agrees_with_the_measurement():
    A = Inpainting.random(SIZE, missing=0.3)
    truth = PRIOR.decode(LATENTS.sample(2, seed=1))
    y = A.measure(truth, 0.01, seed=2)
    options = {"steps": 30, "every": 5, "latent_steps": 200, "tolerance": 0.02}
    result = dsg.solve(y, A, PRIOR, "resample", sigma=0.01, progress=False, **options)
    # 0.02 in y's units, of which 0.01 is what the true image has
    assert (result.residual <= 2.5).all()
    assert (result.x - truth).square().mean().sqrt() < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 13}, "steps=13 end before the first .* it needs steps >= 14"),
        ({"every": 3, "travel": 4}, "travel must be <= every=3, got 4"),
        ({"travel_levels": "official"}, "travel_levels has no effect with grid='even'"),
        ({"likelihood": "poisson", "norm": "gradient"}, "likelihood has no effect"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReSample(**options)
