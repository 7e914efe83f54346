"""Latent-DPS, PSLD and plain DDIM sampling against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from published import TOY, ToyAutoencoder, ToyLatentNetwork
from replays_latent import GaussianAutoencoder

import diffstategrad as dsg
from diffstategrad import GaussianPrior
from diffstategrad.noise import CounterNoise, ReplayNoise
from diffstategrad.operators import (
    Downsample,
    GaussianBlur,
    Inpainting,
    from_callable,
)
from diffstategrad.priors import LatentPrior, NetworkPrior, Prior
from diffstategrad.samplers import PSLD
from diffstategrad.samplers.ddim import steps_of
from diffstategrad.schedules import (
    SqrtVPSchedule,
    TableSchedule,
    VPSchedule,
    ddim_grid,
)
from diffstategrad.training.evaluate import photograph

SIZE = 8
LATENT = (3, SIZE // 2, SIZE // 2)
NETWORK = ToyLatentNetwork(TOY)
TABLE = TableSchedule()
SIGMA = 0.1
EPS = float(np.finfo(np.float64).eps)

OPERATORS = {
    "inpainting": Inpainting.random(SIZE, missing=0.5),
    "blur": GaussianBlur(5, 1.0),
    "downsample": Downsample(2),
}


def prior_of(kind=ToyAutoencoder):
    return LatentPrior(NetworkPrior(NETWORK, schedule=TABLE), kind(TOY, 2))


def measured(operator, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return operator.measure(2 * x - 1, SIGMA, seed=seed)


def draws(*shapes, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def run(y, operator, method, prior=None, seed=0, **options):
    """The states entering the steps and the result."""
    states = []
    result = dsg.solve(
        y,
        operator,
        prior or prior_of(),
        method,
        sigma=SIGMA,
        seed=seed,
        progress=False,
        callback=lambda level: states.append(level.xt.clone()),
        **options,
    )
    return states, result


# ---- gradients ----


def dense(operator):
    unit = torch.eye(3 * SIZE * SIZE, dtype=torch.float64)
    return operator(unit.reshape(-1, 3, SIZE, SIZE)).flatten(1).T


@pytest.mark.parametrize("kind", [ToyAutoencoder, GaussianAutoencoder])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("official", [False, True])
def test_a_psld_step_follows_the_written_gradient(kind, operator, official):
    """z' - grad(omega ||A x - y|| + gamma ||E(x + A^T (y - A x)) - z0||), by autograd
    of the formula with dense matrices."""
    A, omega, gamma = OPERATORS[operator], 0.3, 0.2
    prior, y, state = prior_of(kind), measured(A), (1, *LATENT)
    stochastic = prior.autoencoder.stochastic
    count = 4 if official else 3  # 3 steps evenly: integer times
    # of every step n_a, n_b and, for a distribution, n_c
    shapes = [state, y.shape, *[state] * stochastic] * official
    start, *noise = draws(state, *shapes * count)
    states, _ = run(
        *(y, A, "psld", prior, ReplayNoise([start, *noise])),
        **({"preset": "official"} if official else {}),
        **{"omega": omega, "gamma": gamma, "mg_scale": 1.5, "steps": count},
    )
    matrix = dense(A)
    steps = steps_of("official" if official else "even", count, 0.0, TABLE)
    for k, time in enumerate([751, 501, 251] if official else [999, 500]):
        step, leaf = steps[k], states[k].clone().requires_grad_()
        drawn = noise[k * len(shapes) : (k + 1) * len(shapes)]
        e = NETWORK(leaf, torch.tensor([float(time)], dtype=torch.float64))
        z0 = (leaf - (1 - step.a) ** 0.5 * e) / step.a**0.5
        x = prior.decode(z0)
        seen = matrix @ x.flatten()
        lifted = (y.flatten() - seen).reshape(y.shape)
        if not official:
            lifted = (matrix.T @ lifted.flatten()).reshape(x.shape)
        elif operator == "downsample":
            lifted = torch.nn.functional.interpolate(lifted, scale_factor=2)
        again = prior.encode(x + lifted, drawn[2] if len(drawn) > 2 else None)
        error = seen - y.flatten()
        if official:
            error = error + SIGMA * drawn[1].flatten()
        loss = omega * error.norm() + gamma * (again - z0).norm()
        (g,) = torch.autograd.grad(1.5 * loss, leaf)
        assert g.norm() > 0.01
        expected = step.p**0.5 * z0 + (1 - step.p) ** 0.5 * e - g
        # rounding of the estimate is by 1 / sqrt(a) <= 84 larger than that of the state
        bound = 84 * 100 * EPS
        torch.testing.assert_close(states[k + 1], expected.detach(), rtol=0, atol=bound)


class Replicating:
    """Latents are averages of 2 x 2 pixels, twice as large: the decoder's columns are
    orthonormal and the encoder is its transpose."""

    image_channels = latent_channels = 3
    stride = 2
    stochastic = False

    def decode(self, z, quantise=True):
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3) / 2

    def encode(self, x, noise=None):
        return 2 * torch.nn.functional.avg_pool2d(x, 2)


def test_in_an_orthonormal_basis_latent_dps_is_dps():
    """x = U z with U^T U = 1: DPS with the prior U D(U^T x) takes the same steps."""
    latents, basis = GaussianPrior(LATENT), Replicating()

    class InTheSpan(Prior):
        learned_variance = False

        def denoise(self, x, sigma):
            return basis.decode(latents.denoise(basis.encode(x), sigma))

        def spec(self):
            return {"name": "in the span"}

    # the grid of the even steps is then that of DPS
    latents.schedule = TableSchedule(1e-4, 0.02, sqrt=False)
    A, options = OPERATORS["blur"], {"steps": 20, "scale": 0.3}
    y = measured(A)
    (start,) = draws((1, *LATENT))
    prior = LatentPrior(latents, basis)
    states, ours = run(y, A, "latent_dps", prior, ReplayNoise([start]), **options)
    rest = draws(*[(1, 3, SIZE, SIZE), y.shape] * options["steps"])
    pixels, theirs = run(
        *(y, A, "dps", InTheSpan(), ReplayNoise([basis.decode(start), *rest])),
        **{**options, "sampler": "ddim", "clip": False},
    )
    # roundings of the first estimate are by sigma = 158 larger than those of the state
    for z, x in zip(states, pixels, strict=True):
        torch.testing.assert_close(basis.encode(x), z, rtol=0, atol=158 * 100 * EPS)
    torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=158 * 100 * EPS)
    assert ours.nfe == theirs.nfe


def test_latent_dps_is_psld_without_gluing():
    A = OPERATORS["downsample"]
    y = measured(A)
    ours = run(y, A, "latent_dps", steps=5, scale=0.4)[1]
    theirs = run(y, A, "psld", steps=5, omega=0.4, gamma=0.0)[1]
    torch.testing.assert_close(ours.x, theirs.x, rtol=0, atol=84 * 100 * EPS)


def test_without_the_network_the_gradient_is_that_of_the_decoder():
    """grad = U^T A^T (A x - y) / (||A x - y|| sqrt(a)), times 0.5 a."""
    A, basis, graphs = OPERATORS["blur"], Replicating(), []

    def network(z, t):
        graphs.append(torch.is_grad_enabled())
        return NETWORK(z, t)

    prior = LatentPrior(NetworkPrior(network, schedule=TABLE), basis)
    y = measured(A)
    (z, after, *_), _ = run(y, A, "latent_dps", prior, preset="resample", steps=4)
    step = steps_of("official", 4, 0.0, TABLE)[0]
    e = NETWORK(z, torch.tensor([step.time], dtype=torch.float64))
    z0 = (z - (1 - step.a) ** 0.5 * e) / step.a**0.5
    residual = A(basis.decode(z0)) - y
    gradient = basis.encode(A.adjoint(residual)) / residual.norm() / step.a**0.5
    expected = step.p**0.5 * z0 + (1 - step.p) ** 0.5 * e - 0.5 * step.a * gradient
    torch.testing.assert_close(after, expected, rtol=0, atol=84 * 100 * EPS)
    assert graphs == [False] * 4  # else parameters would keep what theirs need


def test_the_losses_differ_by_the_length_of_the_step():
    """||r||, r^2 along a unit vector, r^2, and ||r|| times the mean of 1 / |y|."""
    A, prior = OPERATORS["blur"], prior_of()
    y, step = measured(A), steps_of("even", 2, 0.0, TABLE)[0]
    (start,) = draws((1, *LATENT))
    e = NETWORK(start, torch.tensor([999.0], dtype=torch.float64))
    z0 = (start - (1 - step.a) ** 0.5 * e) / step.a**0.5
    unguided = step.p**0.5 * z0 + (1 - step.p) ** 0.5 * e

    def stepped(**options):
        noise, options = ReplayNoise([start]), {"steps": 2, "scale": 0.5, **options}
        return unguided - run(y, A, "latent_dps", prior, noise, **options)[0][1]

    length, g = (A(prior.decode(z0)) - y).norm(), stepped()
    for options, expected in (
        ({"norm": "none"}, 2 * length * g),
        ({"norm": "gradient"}, 0.5 * g / g.norm()),
        ({"likelihood": "poisson"}, (1 / y.abs()).mean() * g),
    ):
        # roundings of the estimate are by 1 / sqrt(a) = 84 larger than the state's
        atol = 84 * 100 * EPS * (1 + expected.abs().max().item() / g.abs().max().item())
        torch.testing.assert_close(stepped(**options), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("glue", ["adjoint", "official"])
def test_only_the_official_gluing_sees_the_noise_of_lost_pixels(glue):
    A = OPERATORS["inpainting"]
    y = measured(A)
    lost = torch.from_numpy(A.mask == 0).expand(y.shape[1:])
    other = torch.where(lost, y + 1, y)
    (noise,) = draws((1, *LATENT))
    options = {"renoise": "poisson", "glue": glue, "steps": 3}  # the gluing alone
    a, b = (
        run(v, A, "psld", seed=ReplayNoise([noise]), **options)[1].x for v in (y, other)
    )
    assert torch.equal(a, b) == (glue == "adjoint")


def test_the_official_gluing_refuses_measurements_of_other_channels():
    """Which would be broadcast."""
    image = (3, SIZE, SIZE)
    A = from_callable(lambda x: x.mean(1, True), linear=True, image_shape=image)
    y = torch.zeros(1, 1, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"no formula .* \(1, 8, 8\) of images"):
        run(y, A, "psld", glue="official", steps=2)
    assert run(y, A, "psld", steps=2)[1].x.isfinite().all()


def test_nothing_is_drawn_that_is_not_used():
    A = OPERATORS["downsample"]
    y, state = measured(A), (1, *LATENT)
    prior = prior_of(GaussianAutoencoder)
    n_y, n_z = y.shape, state
    for options, shapes in (
        ({}, [n_z]),
        ({"encode": "draw"}, [n_z] + [n_z] * 3),
        ({"grid": "official", "steps": 4, "gamma": 0.0}, [n_z] + [n_z] * 4),
        ({"renoise": "gaussian"}, [n_z] + [n_y] * 3),
        ({"renoise": "gaussian", "omega": 0.0}, [n_z]),
        ({"eta": 0.5}, [n_z] + [n_z] * 2),  # the last step adds none
        ({"preset": "official", "steps": 4}, [n_z] + [n_z, n_y, n_z] * 4),
    ):
        noise = iter(draws(*shapes))
        run(y, A, "psld", prior, ReplayNoise(noise), **{"steps": 3, **options})
        assert next(noise, None) is None, options


# ---- grids ----


@pytest.mark.parametrize("schedule", [TABLE, VPSchedule(), SqrtVPSchedule()])
def test_an_even_grid_calls_the_network_at_the_level_of_the_state(schedule):
    times = []

    def network(z, t):
        times.append(float(t[0]))
        return z

    prior = NetworkPrior(network, schedule=schedule)
    dsg.sample(prior, (1, 2, 2), steps=7)
    # which it gets in single precision
    expected = ddim_grid(7, schedule=schedule).timesteps[::-1]
    np.testing.assert_allclose(times, expected, rtol=2.0**-23)


def test_the_released_grid_of_1000_steps_calls_the_network_one_time_late():
    steps = steps_of("official", 1000, 0.0, TABLE)
    assert [step.time for step in steps[::333]] == [1000, 667, 334, 1]
    for step in steps[::333]:
        level = TABLE.alpha_bar(step.time - 1)
        assert step.a == pytest.approx(level, rel=1e-7)  # in single precision
    assert steps[-1].a == steps[-1].p < 1
    assert PSLD(grid="official").levels == len(steps)
    assert PSLD(grid="official", steps=75).levels == 77


# ---- plain sampling ----


@pytest.mark.parametrize("steps", [3, 300])
def test_samples_of_white_noise_follow_the_product_of_gains(steps):
    """D(x) = s^2 / (s^2 + sigma^2) x: every step multiplies the state by a number."""
    std, seed = 0.5, 3
    prior = GaussianPrior((1, 4, 4), power=0.0, std=std)
    x = dsg.sample(prior, (1, 4, 4), 2, steps=steps, seed=seed, dtype=torch.float64)
    gain = 1.0
    for step in steps_of("even", steps, 0.0, prior.schedule):
        a, p = step.a, step.p
        c = a**0.5 * std**2 / (a * std**2 + 1 - a)
        gain *= p**0.5 * c + (1 - p) ** 0.5 * (1 - a**0.5 * c) / (1 - a) ** 0.5
    source = CounterNoise(seed, range(2), [0, 0])
    start = source.normal(torch.empty(2, 1, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(x, gain * start, rtol=0, atol=158 * 100 * EPS)
    if steps == 300:  # near the flow itself, which ends in the field's own variance
        assert gain == pytest.approx(std, rel=0.02)


def test_more_samples_leave_the_first_ones_as_they_are():
    prior = prior_of()
    three = dsg.sample(prior, (3, 8, 8), 3, steps=4, eta=0.7, seed=2)
    assert three.shape == (3, 3, 8, 8) and three.dtype == torch.float32
    for n, batch in ((1, 1), (2, 1), (3, 1)):
        part = dsg.sample(prior, (3, 8, 8), n, steps=4, eta=0.7, seed=2, batch=batch)
        assert torch.equal(part, three[:n])
    assert not torch.equal(three[0], three[1])
    other = dsg.sample(prior, (3, 8, 8), 3, steps=4, eta=0.7, seed=1)
    assert not torch.equal(other, three)
    deterministic = dsg.sample(prior, (3, 8, 8), 3, steps=4, seed=2)
    assert not torch.equal(deterministic, three)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": 0}, "n must be an int >= 1, got 0"),
        ({"steps": 0}, r"^steps must be an int in 1\.\.1000, got 0"),
        ({"steps": 1001}, "must be an int in 1..1000, got 1001"),
        ({"steps": True}, "must be an int in 1..1000, got True"),
        ({"steps": 3, "grid": "official"}, "use 2 or 4 steps, or grid='even'"),
        ({"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        ({"batch": 0}, "batch must be an int >= 1"),
        ({"grid": "offical"}, "'offical'; did you mean 'official'"),
        ({"device": "nowhere"}, "device nowhere cannot be used"),
        ({"shape": (8, 8)}, r"shape must be \(C, H, W\)"),
        ({"shape": (1, 8, 8)}, "3 channels"),
        ({"shape": (3, 9, 8)}, "divisible by 2"),
    ],
)
def test_wrong_requests_for_samples_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dsg.sample(prior_of(), **{"shape": (3, 8, 8), **options})


def test_samples_have_single_or_double_precision():
    with pytest.raises(TypeError, match="float32 or float64, got"):
        dsg.sample(prior_of(), (3, 8, 8), dtype=torch.float16)


def test_a_prior_that_gives_nan_gives_no_samples():
    prior = NetworkPrior(lambda z, t: z * torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        dsg.sample(prior, (3, 8, 8), steps=2)


# ---- the spaces ----


def test_a_method_and_a_prior_of_different_spaces_are_refused():
    A = OPERATORS["blur"]
    y = measured(A)
    pixels = NetworkPrior(NETWORK, name="pixels")
    with pytest.raises(ValueError, match=r"such as 'leaves_latent', got 'pixels'"):
        run(y, A, "psld", pixels)
    with pytest.raises(ValueError, match=r"dps works on pixels.*latent_dps, psld"):
        run(y, A, "dps", prior_of())


# ---- The bundled prior ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["latent_dps", "psld"])
def test_the_preset_of_the_bundled_prior_fits_it_better_than_published(method):
    x = torch.from_numpy(photograph("coffee", 32))[None]
    A = GaussianBlur(13, std=2.0)
    y = A.measure(x, 0.05, seed=0)
    given = {"sigma": 0.05, "task": "gaussian_deblur", "steps": 60, "progress": False}
    published = dsg.solve(y, A, "leaves_latent", method, **given)
    ours = dsg.solve(y, A, "leaves_latent", method, preset="leaves_latent", **given)
    assert ours.residual.item() < 0.8 * published.residual.item()
    assert ours.score(x)["psnr"] > published.score(x)["psnr"] + 0.5
