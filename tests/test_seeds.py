"""DMPlug, DMILO and DMILO-PGD: closed forms, what may not change a result, and which
iterate is returned."""

from __future__ import annotations

import itertools
import weakref
from unittest.mock import patch

import numpy as np
import pytest
import torch
from published import ToyNetwork
from torch.utils._python_dispatch import TorchDispatchMode

import diffstategrad as dsg
from diffstategrad import GaussianPrior, StateProjector, samplers
from diffstategrad.noise import ReplayNoise
from diffstategrad.operators import (
    BlindBlur,
    BlindTurbulence,
    Blur,
    Compose,
    Downsample,
    GaussianBlur,
    Identity,
    Inpainting,
    from_callable,
)
from diffstategrad.priors import NetworkPrior, Prior
from diffstategrad.samplers import DMILO, DMILOPGD
from diffstategrad.samplers.generator import generator, layer
from diffstategrad.samplers.residual import measured
from diffstategrad.samplers.selection import Iterates, Selection, held_out
from diffstategrad.schedules import layer_grid

EPS = 2.0**-52
SIGMA = 0.05
TOY = NetworkPrior(ToyNetwork({"m": (0.6, 0.3, 0.1), "q": 0.25, "c": 0.3}), channels=3)
MASK = Inpainting.random(8, missing=0.5)
OPERATORS = {"mask": MASK, "down": Downsample(2), "blur": GaussianBlur(3, 1.0)}
METHODS = {
    "adam": ("dmplug", {"steps": 12}),
    "lbfgs": ("dmplug", {"steps": 2, "optimizer": "lbfgs", "lr": 0.1, "layers": 2}),
    "dmilo": ("dmilo", {"steps": 2, "inner": 3}),
    "pgd": ("dmilo_pgd", {"steps": 2, "inner": 3}),
    "pgd-norm": (
        "dmilo_pgd",
        {"steps": 2, "inner": 3, "data_step": "norm", "data_steps": 3},
    ),
}
methods = pytest.mark.parametrize("kind", METHODS)


class Cheap(Prior):
    """Not linear, mixes pixels and channels."""

    def denoise(self, x, sigma):
        mixed = x.roll(1, 1) + x.roll(1, 3)
        return x / (1 + 4 * sigma**2) + 0.1 * torch.tanh(mixed)

    def spec(self):
        return {"name": "cheap"}


CHEAP = Cheap()


def truth(b=1, size=8):
    return GaussianPrior((3, size, size)).sample(b, seed=3).clamp(-1, 1)


def made(operator=MASK, b=1, size=8):
    return operator.measure(truth(b, size), SIGMA, seed=4)


def solve(y, operator=MASK, method="dmplug", prior=TOY, **options):
    options = {"sigma": SIGMA, "progress": False, "stop": "last", **options}
    if method == "dmplug":
        options = {"recompute": False, **options}
    return dsg.solve(y, operator, prior, method, **options)


def run(kind, y, operator=MASK, **options):
    method, given = METHODS[kind]
    return solve(y, operator, method, **{"prior": CHEAP, **given, **options})


# ---- layers ----


@pytest.mark.parametrize(
    ("shifted", "expected"),
    [
        (
            True,
            [
                (4.035831e-05, 0.01098423, 0.098488, 0.994513),
                (0.01098423, 0.3186248, 0.477477, 0.830026),
                (0.3186248, 0.9999, 0.993112, 0.012115),
            ],
        ),
        (
            False,
            [
                (0.01098423, 0.3186248, 0.477477, 0.830026),
                (0.3186248, 0.9999, 0.993112, 0.012115),
                (0.9999, 1.0, 1.0, 0.0),
            ],
        ),
    ],
    ids=["dmilo", "dmplug"],
)
def test_layers_have_the_published_coefficients_and_two_terms(shifted, expected):
    grid = layer_grid(3, shifted=shifted)
    x = 2 * truth()  # clamped in places
    for a, p, row in zip(map(float, grid.a), map(float, grid.p), expected, strict=True):
        c1 = ((1 - p) / (1 - a)) ** 0.5
        c0 = p**0.5 - c1 * a**0.5
        # printed with six or seven digits
        np.testing.assert_allclose((a, p, c0, c1), row, rtol=0, atol=1e-6)
        eps, _ = TOY.predict(x, a)
        x0 = ((x - (1 - a) ** 0.5 * eps) / a**0.5).clamp(-1, 1)
        # in the five-line form x0 is divided by sqrt(1 - a) and multiplied again
        atol = 16 * EPS / (1 - a) ** 0.5
        torch.testing.assert_close(
            layer(TOY.predict, x, a, p), c0 * x0 + c1 * x, rtol=0, atol=atol
        )


def test_a_gradient_passes_where_the_clamp_saturates():
    x = torch.full((1, 3, 4, 4), 5.0, dtype=torch.float64, requires_grad=True)
    layer(lambda z, a: (torch.zeros_like(z), None), x, 0.01, 0.3).sum().backward()
    c1 = (0.7 / 0.99) ** 0.5
    torch.testing.assert_close(x.grad, torch.full_like(x, c1), rtol=4 * EPS, atol=0)


def test_recomputing_layers_changes_nothing():
    y = made(b=2)
    kept, again = (solve(y, steps=3, recompute=r) for r in (False, True))
    assert torch.equal(kept.x, again.x) and kept.nfe == again.nfe == 3 * 3


# ---- closed forms ----


class Small(Prior):
    """N(0, q I), q = 0.01: the clamp is never reached, and every layer is linear."""

    q = 0.01

    def denoise(self, x, sigma):
        return x * (self.q / (self.q + sigma**2))

    def spec(self):
        return {"name": "small"}

    def gain(self, layers=3):
        """Of all layers together."""
        grid, total = layer_grid(layers), 1.0
        for a, p in zip(grid.a, grid.p, strict=True):
            c1 = ((1 - p) / (1 - a)) ** 0.5
            c0 = p**0.5 - c1 * a**0.5
            total *= c0 * a**0.5 * self.q / (self.q * a + 1 - a) + c1
        return total


def seed_of(y, operator, **options):
    """(First seed, seed before the last step)."""
    seeds = []
    solve(
        y,
        operator,
        prior=Small(),
        callback=lambda level: seeds.append(level.xt.clone()),
        **options,
    )
    return seeds[0], seeds[-1]


def test_the_generator_of_a_gaussian_is_the_product_of_its_gains():
    z = truth()
    x = generator(Small().predict, layer_grid(3), recompute=False)(z)
    # a dozen roundings a layer, of numbers up to 1 / sqrt(a) = 10 times as large
    torch.testing.assert_close(x, Small().gain() * z, rtol=0, atol=400 * EPS)


def test_dmplug_by_adam_converges_to_the_least_squares_seed():
    y = MASK(0.1 * truth())
    first, last = seed_of(y, MASK, steps=500, lr=0.1)
    seen = measured(MASK, y) > 0
    # lost pixels have no gradient and stay, bit for bit
    assert torch.equal(last[~seen], first[~seen])
    # alone, a pixel 6 away from its target is 1e-10 from it after 500 such steps of
    # Adam: the rest is rounding of x, magnified by 1 / gain = 60
    expected = torch.where(seen, y / Small().gain(), first)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-9)


def test_dmplug_by_lbfgs_converges_to_the_nearest_least_squares_seed():
    operator, gain = Downsample(2), Small().gain(layers=1)
    y, start = operator.measure(0.1 * truth(), 0.01), 0.5 * truth(2)[1:]
    _, last = seed_of(
        *(y, operator),
        **{"steps": 10, "optimizer": "lbfgs", "lr": 1.0, "layers": 1},
        seed=ReplayNoise([start]),
    )
    image = (3, 8, 8)
    expected = start + operator.pinv(y / gain - operator(start), image)
    # it rests where no entry of the gradient 2 gain A^T r / m is above 1e-7; A is well
    # conditioned, its smallest singular value more than half of its norm
    r = 1e-7 * y[0].numel() / (2 * gain * operator.norm(image) / 2)
    atol = r * start[0].numel() ** 0.5 / (gain * operator.norm(image) / 2)
    assert atol < 1e-2
    torch.testing.assert_close(last, expected, rtol=0, atol=atol)


def by_hand(z, nu, target, B, a, p, steps, lr, lr_nu, w_nu=0.1, w_z=1e-4):
    """Inner steps as the paper writes them, in torch."""
    z, nu = z.clone().requires_grad_(), nu.clone().requires_grad_()
    groups = [{"params": [nu], "lr": lr_nu}, {"params": [z], "lr": lr}]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.999), eps=1e-8)

    def loss(z, nu):
        eps = TOY.network(z, torch.tensor([time(a)], dtype=z.dtype))[:, :3]
        x0 = ((z - (1 - a) ** 0.5 * eps) / a**0.5).clamp(-1, 1)
        again = (z - a**0.5 * x0) / (1 - a) ** 0.5
        g = p**0.5 * x0 + (1 - p) ** 0.5 * again
        misfit = (B(g + nu) - target).square().mean()
        return misfit + w_nu * nu.abs().mean() + w_z * z.square().mean()

    for _ in range(steps):
        adam.zero_grad()
        loss(z, nu).backward()
        adam.step()
    # the gradient of the last step against finite differences, away from nu = 0
    direction = torch.randn(
        z.shape, generator=torch.Generator().manual_seed(1)
    ).double()
    h = 1e-6
    for v in (z, nu):
        gradient = torch.autograd.grad(loss(z, nu), v)[0]
        moved = [
            loss(*(w + s * h * direction if w is v else w for w in (z, nu))).item()
            for s in (1, -1)
        ]
        slope = (moved[0] - moved[1]) / (2 * h)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-5)
    return z.detach(), nu.detach()


def time(a):
    t = float(TOY.schedule.t_of_sigma(((1 - a) / a) ** 0.5))
    return min(t, 999.0)  # the last time that a network knows


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_inner_steps_are_those_of_adam_on_the_objective_of_a_layer(method):
    seen, images = {}, []

    class Watched(method):
        def _after_step(self, outer, which, step, z, nu):
            seen[outer, which, step] = z.clone(), nu.clone()

        def _before(self, outer, image):
            images.append(image.clone())

    operator, J, rates = Downsample(2), 4, (0.02, 1e-3)
    y, start = made(operator), truth()
    options = {"lr_image": 1.0} if method is DMILOPGD else {}
    configured = Watched(steps=2, inner=J, **options)
    last = []
    result = dsg.solve(
        y,
        operator,
        TOY,
        configured,
        sigma=SIGMA,
        seed=ReplayNoise([start]),
        progress=False,
        callback=lambda level: last.append(level.x0hat.clone()),
    )

    grid = layer_grid(3, shifted=True)
    pairs = list(zip(map(float, grid.a), map(float, grid.p), strict=True))
    states, nus = [start], [torch.zeros_like(start)] * 3

    def compose():
        del states[1:]
        for (a, p), nu in zip(pairs, nus, strict=True):
            states.append(layer(TOY.predict, states[-1], a, p) + nu)

    compose()
    # every step divides by the root of the gradient's mean square: relative rounding of
    # a few dozen operations, carried on through 2 rounds of 3 layers of J steps
    close = {"rtol": 0, "atol": 1e-9}
    for outer in range(2):
        target = operator(images[outer]) if images else y
        for i, B in ((2, operator), (1, Identity()), (0, Identity())):
            z, nu = by_hand(states[i], nus[i], target, B, *pairs[i], J, *rates)
            torch.testing.assert_close(seen[outer, i, J - 1][0], z, **close)
            torch.testing.assert_close(seen[outer, i, J - 1][1], nu, **close)
            states[i], nus[i], target = z, nu, z
        compose()
        torch.testing.assert_close(last[outer], states[3].clamp(-1, 1), **close)
    assert torch.equal(result.x, last[-1])
    assert result.nfe == 3 * 2 * J + 3 * (2 + 1)


def before(y, operator, rounds=1, **options):
    """X after the data steps of every round."""
    images = []

    class Watched(DMILOPGD):
        def _before(self, outer, image):
            images.append(image.clone())

    dsg.solve(
        y,
        operator,
        TOY,
        Watched(steps=rounds, inner=2, **options),
        sigma=SIGMA,
        progress=False,
    )
    return images


def test_the_data_step_of_inpainting_overwrites_what_is_observed():
    y = MASK.measure(0.5 * truth(), 0.01)
    first, second = before(y, MASK, rounds=2, lr_image=0.5)
    seen = measured(MASK, y) > 0
    assert torch.equal(first[seen], y[seen])
    torch.testing.assert_close(second[seen], y[seen], rtol=0, atol=2 * EPS)
    assert (first[~seen] == 0).all() and (second[~seen] != 0).all()


def test_the_data_step_of_superresolution_is_exact_for_a_constant_image():
    operator = Downsample(4)
    y = operator(torch.full((1, 3, 16, 16), 0.3, dtype=torch.float64))
    (image,) = before(y, operator, lr_image=8.0)
    # weights of 16 taps, twice
    torch.testing.assert_close(operator(image), y, rtol=0, atol=100 * EPS)


def test_the_data_step_along_the_norm_is_that_of_its_gradient():
    operator = GaussianBlur(3, 1.0)
    y = made(operator)
    (image,) = before(y, operator, lr_image=0.1, data_step="norm", data_steps=3)
    x = torch.zeros_like(image)
    for _ in range(3):
        x = x.detach().requires_grad_()
        (operator(x) - y).norm().backward()
        x = (x - 0.1 * x.grad).clamp(-1, 1)
    torch.testing.assert_close(image, x.detach(), rtol=0, atol=100 * EPS)


def test_the_gradient_of_a_norm_that_is_zero_is_zero():
    operator = GaussianBlur(3, 1.0)
    y = torch.zeros(1, 3, 8, 8)
    (image,) = before(y, operator, data_step="norm", data_steps=2)
    assert (image == 0).all()


# ---- which iterate is returned ----


def follow(rule, images, y=None, operator=None, sigma=1.0, **options):
    """A Selection that has seen (K, B, C, H, W) images."""
    operator = operator or Identity()
    y = torch.zeros_like(images[0]) if y is None else y
    selection = Selection(rule, operator, y, sigma, steps=len(images), **options)
    for k, x in enumerate(images):
        selection.update(k, x, operator(x))
        if selection.finished:
            break
    return selection, k


def levels(*rows):
    """Images (K, B, 1, 2, 2) of constant grey; a row for every image of the batch."""
    values = torch.tensor(rows, dtype=torch.float64).T[:, :, None, None, None]
    return values.expand(-1, -1, 1, 2, 2).clone()


def test_the_last_iterate_is_the_last():
    selection, _ = follow("last", levels([5, 1, 3], [1, 2, 9]))
    assert selection.details["index"] == [2, 2]
    assert selection.details["residual"] == [3.0, 9.0]
    assert selection.best[:, 0, 0, 0].tolist() == [3.0, 9.0]


def test_discrepancy_takes_the_first_below_tau_or_the_smallest_of_every_image():
    images = levels([5, 0.9, 0.1, 0.1], [7, 4, 2, 3])
    selection, seen = follow("discrepancy", images, tau=1.0)
    assert selection.details["index"] == [1, 2] and seen == 3
    assert selection.best[:, 0, 0, 0].tolist() == [0.9, 2.0]
    assert selection.done.tolist() == [True, False]
    # alone the first stops there
    selection, seen = follow("discrepancy", images[:, :1], tau=1.0)
    assert selection.details["index"] == [1] and seen == 1


def test_discrepancy_looks_every_so_often_and_at_the_end():
    images = levels([9, 1, 8, 7, 6, 0.5])
    selection, _ = follow("discrepancy", images, tau=0.1, every=2)
    assert selection.details["index"] == [5]
    selection, _ = follow("discrepancy", images[:-1], tau=0.1, every=2)
    assert selection.details["index"] == [4]


def test_what_was_not_measured_does_not_count():
    mask = torch.tensor([[1, 0], [0, 0]])
    y = torch.full((1, 1, 2, 2), 100.0, dtype=torch.float64)
    y[..., 0, 0] = 2
    operator = Inpainting(mask)
    for some in (operator, operator @ Identity()):
        selection, _ = follow("last", levels([5]), y, some, sigma=0.5)
        assert selection.details["residual"] == [6.0]
    assert (measured(Identity() @ operator, y) == 1).all()


def wavering(quiet_at, n=400, b=1):
    """Iterates that settle until `quiet_at` and waver more and more after it."""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n)[:n]
    width = (torch.arange(n) - quiet_at).abs() + 1e-3
    return (sign * width)[:, None, None, None, None].expand(n, b, 1, 2, 2).clone()


@pytest.mark.parametrize("quiet_at", [150, 260])
def test_es_wmv_returns_the_iterate_of_smallest_moving_variance(quiet_at):
    images = wavering(quiet_at)
    selection, seen = follow("es_wmv", images, patience=60)
    v, e, variances = 0.0, images[0, 0, 0, 0, 0].item(), []
    for x in images[:, 0, 0, 0, 0].tolist():
        d = x - e
        e, v = e + 0.1 * d, 0.9 * (v + 0.1 * 4 * d * d)
        variances.append(v)
    expected = 100 + int(np.argmin(variances[100:]))
    assert selection.details["index"] == [expected]
    # a memory of 1 / 0.1 iterations finds the minimum late by about as much
    assert quiet_at <= expected <= quiet_at + 20
    assert torch.equal(selection.best[0], images[expected, 0])
    assert seen == expected + 60


def test_es_wmv_ignores_the_first_hundred_and_its_patience_begins_after_them():
    images = wavering(40, 120)
    selection, seen = follow("es_wmv", images, patience=10)
    # it only gets worse from 40 on
    assert selection.details["index"] == [100] and seen == 110
    selection, seen = follow("es_wmv", images[:80], patience=10)
    assert selection.details["index"] == [79] == [seen]


def test_holdout_returns_the_smallest_error_on_what_was_held_out():
    y = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    holdout = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    holdout[0, 0, 0, 0] = holdout[1, 0, 1, 1] = True
    images = torch.full((3, 2, 1, 2, 2), 7.0, dtype=torch.float64)
    images[1, 0, 0, 0, 0], images[2, 1, 0, 1, 1] = 0.5, -0.5
    selection, _ = follow("holdout", images, y, holdout=holdout)
    assert selection.details["index"] == [1, 2]


@pytest.mark.parametrize("rule", ["last", "discrepancy", "es_wmv", "holdout"])
def test_an_iterate_that_is_not_finite_is_never_chosen(rule):
    images = levels([3, torch.nan, torch.nan], [3, 2, 1])
    holdout = torch.ones(2, 1, 2, 2, dtype=torch.bool)
    selection, _ = follow(rule, images, holdout=holdout)
    assert selection.details["index"] == [0, 2]


@pytest.mark.parametrize("rule", ["last", "discrepancy", "es_wmv", "holdout"])
def test_what_diverges_keeps_what_was_chosen_and_ends_there(rule):
    images = levels([3, 2, 1], [3, 2, 1])
    holdout = torch.ones(2, 1, 2, 2, dtype=torch.bool)
    selection, _ = follow(rule, images[:2], tau=0.1, holdout=holdout)
    selection.lose(torch.tensor([True, False]))
    selection.update(2, images[2], images[2])
    chosen = rule in ("discrepancy", "holdout")
    assert selection.held.tolist() == [chosen] * 2
    assert selection.done.tolist() == [True, False]
    assert selection.details["index"] == [1 if chosen else None, 2]
    assert selection.best[0].isfinite().all() == chosen
    assert selection.sqnorm[0].isnan() and selection.sqnorm[1] == 4.0


def test_a_twentieth_of_the_measured_pixels_is_held_out():
    y = made(Identity(), b=2, size=40)
    held = held_out(Identity(), y)
    assert held[:, 0].flatten(1).sum(1).tolist() == [80, 80]
    assert torch.equal(held.all(1), held.any(1))
    assert not torch.equal(held[0], held[1])
    # of an image wherever it stands
    assert torch.equal(held_out(Identity(), y[1:]), held[1:])

    mask = Inpainting.random(40, missing=0.7)
    y = made(mask, size=40)
    held, known = held_out(mask, y), measured(mask, y) > 0
    assert held[0, 0].sum() == round(0.05 * known[0, 0].sum().item())
    assert not (held & ~known).any()
    tiny = torch.zeros(1, 1, 2, 2)
    assert held_out(Identity(), tiny).sum() == 1


@pytest.mark.parametrize("kind", ["adam", "lbfgs", "dmilo", "pgd", "pgd-norm"])
@pytest.mark.parametrize("name", ["mask", "blur"])
def test_what_is_held_out_does_not_enter_the_loss(kind, name):
    operator = OPERATORS[name]
    y = made(operator)
    held = held_out(operator, y)
    other = torch.where(held, y + 3, y)
    images = []

    def keep(level):
        images.append(level.x0hat.clone())

    def of(y, stop, method=METHODS[kind][0]):
        images.clear()
        module = "dmplug" if method == "dmplug" else "dmilo"
        with patch(f"diffstategrad.samplers.{module}.held_out", lambda *_: held):
            run(
                kind, y, operator, stop=stop, seed=ReplayNoise([truth()]), callback=keep
            )
        return torch.stack(images)

    assert torch.equal(of(y, "holdout"), of(other, "holdout"))
    assert not torch.equal(of(y, "last"), of(other, "last"))


@methods
@pytest.mark.parametrize("stop", ["last", "discrepancy", "holdout"])
def test_the_details_name_the_rule_the_iterate_and_its_residual(kind, stop):
    y = made(OPERATORS["blur"], b=2)
    images = []
    result = run(
        kind,
        *(y, OPERATORS["blur"]),
        stop=stop,
        callback=lambda level: images.append(level.x0hat.clone()),
    )
    chosen = result.details["selection"]
    assert chosen["rule"] == stop and len(result.trace) == len(images)
    for i, k in enumerate(chosen["index"]):
        assert torch.equal(result.x[i], images[k][i])
        r = chosen["residual"][i]
        assert r == pytest.approx(result.residual[0, i].item(), rel=1e-12)
    if stop == "last":
        assert chosen["index"] == [len(images) - 1] * 2


def test_dmplug_stops_by_itself_at_the_noise():
    y = made(OPERATORS["blur"], b=2)
    options = {"sigma": 0.3, "stop": "discrepancy", "steps": 400, "lr": 0.1}
    options["prior"] = CHEAP
    result = solve(y, OPERATORS["blur"], **options)
    assert len(result.trace) < 400 and (result.residual <= 1).all()
    assert all(k % 10 == 0 for k in result.details["selection"]["index"])


def test_no_rule_needs_the_truth_and_es_wmv_not_even_the_noise():
    y = made(OPERATORS["blur"])
    quiet, loud = (
        solve(
            y,
            OPERATORS["blur"],
            prior=CHEAP,
            stop="es_wmv",
            patience=5,
            steps=110,
            sigma=s,
        )
        for s in (0.01, 1.0)
    )
    assert torch.equal(quiet.x, loud.x)
    assert quiet.details["selection"]["index"] == loud.details["selection"]["index"]


# ---- iterates for the oracle ----


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_the_iterates_kept_are_evenly_spaced_from_the_first(most, n):
    details = {}
    iterates = Iterates(most, details)
    for k in range(n):
        iterates.add(torch.full((2, 1, 1, 1), float(k)))
        kept = details["iterates"][:, 0, 0, 0, 0].tolist()
        stride = int(kept[1]) if len(kept) > 1 else k + 1
        assert kept == list(range(0, k + 1, stride))
        # no fewer than half, unless there are no more
        assert min(k + 1, (most + 1) // 2) <= len(kept) <= most
    nothing = {}
    Iterates(0, nothing).add(torch.zeros(1, 1, 1, 1))
    assert not nothing


@methods
def test_the_oracle_among_iterates_is_in_the_score_alone(kind, tmp_path):
    operator = OPERATORS["blur"]
    y, x = made(operator, b=2), truth(2)
    images = []

    def keep(level):
        images.append(level.x0hat.clone())

    plain = run(kind, y, operator, n_samples=2)
    assert "iterates" not in plain.details
    assert "oracle_iterate_psnr" not in plain.score(x)
    result = run(kind, y, operator, n_samples=2, keep=100, callback=keep)
    assert torch.equal(result.x, plain.x)
    kept = result.details["iterates"]
    # of DMILO-PGD before and after a sweep
    each = 2 if kind.startswith("pgd") else 1
    assert kept.shape == (each * len(images), 4, 3, 8, 8)
    assert kept.dtype == torch.float16
    torch.testing.assert_close(
        kept[each - 1 :: each].double(), torch.stack(images), rtol=2.0**-11, atol=1e-7
    )
    score = result.score(x)["oracle_iterate_psnr"]
    psnr = [dsg.metrics.psnr(s, x) for image in images for s in image.split(2)]
    # rounded to 11 bits
    assert (score > torch.stack(psnr).amax(0) - 1e-2).all()

    result.save(tmp_path / "r.safetensors")
    again = dsg.Result.load(tmp_path / "r.safetensors")
    assert torch.equal(again.score(x)["oracle_iterate_psnr"], score)
    few = run(kind, y, operator, n_samples=2, keep=2).details["iterates"]
    assert len(few) <= 2 and torch.equal(few[0], kept[0])


# ---- what may not change a result ----


@methods
@pytest.mark.parametrize("name", OPERATORS)
def test_the_same_seed_gives_the_same_result(kind, name):
    operator = OPERATORS[name]
    y = made(operator, b=2)
    first, again, other = (run(kind, y, operator, seed=s) for s in (5, 5, 6))
    assert torch.equal(first.x, again.x) and first.trace == again.trace
    assert first.nfe == again.nfe and not torch.equal(first.x, other.x)


PROJECTS = {
    "plain": None,
    "projected": True,
    "period": StateProjector(0.9, period=2),
    "random": StateProjector(0.9, subspace="random"),
}


@methods
@pytest.mark.parametrize("project", PROJECTS.values(), ids=PROJECTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_a_batch_is_a_loop_bit_for_bit(kind, project, dtype):
    operator = OPERATORS["down"]
    y = made(operator, b=3).to(dtype)
    options = {"project": project, "stop": "discrepancy", "seed": 7}
    together = run(kind, y, operator, **options)
    alone = [run(kind, y[i : i + 1], operator, **options) for i in range(3)]
    assert torch.equal(together.x, torch.cat([result.x for result in alone]))
    assert together.nfe == max(result.nfe for result in alone)
    for key, values in together.details["selection"].items():
        if key != "rule":
            assert values == [r.details["selection"][key][0] for r in alone]


@methods
def test_the_number_of_samples_does_not_change_the_first_ones(kind):
    y = made(b=2)
    two, three = (run(kind, y, n_samples=n) for n in (2, 3))
    assert torch.equal(two.samples, three.samples[:2])
    assert len(two.details["selection"]["index"]) == 4


@methods
def test_the_size_of_network_batches_changes_at_most_rounding(kind):
    y = made(OPERATORS["blur"], b=3)
    one, three = (run(kind, y, OPERATORS["blur"], batch=b) for b in (1, 3))
    # Adam's first steps have the gradient's sign: nothing magnifies but the secants of
    # L-BFGS
    torch.testing.assert_close(three.x, one.x, rtol=0, atol=1e6 * EPS)


@methods
def test_keeping_all_energy_is_not_projecting_bit_for_bit(kind):
    y = made(OPERATORS["blur"], b=2)
    kept = run(kind, y, OPERATORS["blur"], project=StateProjector(1.0))
    assert torch.equal(kept.x, run(kind, y, OPERATORS["blur"]).x)
    # the first image of PGD is 0 and has no subspace
    for level in kept.trace[kind.startswith("pgd") :]:
        assert level["rank"] == 8 and level["kept"] == pytest.approx(1)


@methods
def test_projecting_changes_the_result_and_every_image_has_ranks(kind):
    y, ranks = made(OPERATORS["blur"], b=3), []
    half = run(
        kind,
        *(y, OPERATORS["blur"]),
        project=StateProjector(0.5),
        callback=lambda level: ranks.append(level.ranks),
    )
    assert not torch.equal(half.x, run(kind, y, OPERATORS["blur"]).x)
    assert {len(level) for level in ranks} == {3}
    assert {len(image) for level in ranks for image in level} == {3}


def test_a_projection_now_and_then_keeps_the_ranks_of_the_last():
    y, ranks = made(b=2), []
    project = StateProjector(0.9, period=3)
    solve(y, steps=5, project=project, callback=lambda x: ranks.append(x.ranks))
    assert ranks[0] == ranks[1] == ranks[2] and ranks[3] == ranks[4]


def test_noise_that_was_given_is_not_written_to():
    draws = [truth(), torch.ones(1, 9, dtype=torch.float64)]
    before = [draw.clone() for draw in draws]
    solve(made(), BlindBlur(3), steps=2, seed=ReplayNoise(draws))
    run("dmilo", made(), seed=ReplayNoise(draws))
    assert all(map(torch.equal, draws, before))


@methods
def test_it_works_without_gradients_outside(kind):
    y = made()
    expected = run(kind, y).x
    for outside in (torch.no_grad, torch.inference_mode):
        with outside():
            assert torch.equal(run(kind, y).x, expected)


# ---- cut short, diverged ----


@methods
def test_a_run_that_is_stopped_returns_what_its_rule_would(kind):
    y = made(b=2)
    whole, cut = [], []

    def stop(level):
        cut.append(level.x0y.clone())
        return level.index == 1

    result = run(kind, y, stop="discrepancy", callback=stop)
    run(kind, y, stop="discrepancy", callback=lambda x: whole.append(x.x0y.clone()))
    assert result.warnings[0].startswith("stopped by the callback after level 2")
    assert torch.equal(result.x, whole[1]) and len(result.trace) == 2
    chosen = result.details["selection"]
    r = torch.tensor(chosen["residual"], dtype=torch.float64)
    seen = measured(MASK, y)
    norm = (seen * (MASK(result.x) - y)).flatten(1).norm(dim=1)
    expected = norm / (SIGMA * seen.flatten(1).sum(1).sqrt())
    torch.testing.assert_close(r, expected, rtol=1e-12, atol=0)


class Breaking(Prior):
    """The cheap one, and NaN for images far off or from a certain call on."""

    def __init__(self, calls, error=None):
        self.calls, self.error = calls, error

    def denoise(self, x, sigma):
        self.calls -= 1
        if self.error and self.calls < 0:
            raise self.error
        out = CHEAP.denoise(x, sigma)
        broken = (x[:, :1] > 1e3).any() | torch.tensor(self.calls < 0)
        return out * torch.where(broken, torch.nan, 1.0)

    def spec(self):
        return {"name": "breaking"}


@methods
def test_ctrl_c_returns_what_has_been_reached(kind):
    calls = {"lbfgs": 60, "adam": 30}.get(kind, 15)
    prior = Breaking(calls, KeyboardInterrupt())
    result = run(kind, made(), prior=prior)
    assert result.warnings[0].startswith("interrupted after level")
    assert result.x.isfinite().all() and result.details["selection"]["index"][0] >= 0


@methods
@pytest.mark.parametrize("project", [None, True], ids=["plain", "projected"])
def test_only_the_image_that_diverged_is_nan(kind, project):
    operator = OPERATORS["blur"]
    y, start = made(operator, b=3), truth(3)
    options = {"prior": Breaking(10**9), "project": project}
    expected = run(kind, y, operator, seed=ReplayNoise([start.clone()]), **options)
    start[1] *= 1e6
    result = run(kind, y, operator, seed=ReplayNoise([start]), **options)
    assert result.x[1].isnan().all() and result.residual[:, 1].isnan().all()
    for i in (0, 2):
        assert torch.equal(result.x[i], expected.x[i])
    assert result.warnings[0] == (
        "1 of 3 runs diverged at level 1: the prior gave images with NaN or infinite "
        "values"
    )
    assert result.details["selection"]["index"][1] is None


def test_a_sweep_blames_the_prior_for_its_own_failures_only():
    failed = []

    class Once(Breaking):
        """NaN in one call."""

        def denoise(self, x, sigma):
            self.calls -= 1
            out = CHEAP.denoise(x, sigma)
            return out * torch.nan if self.calls == -7 else out

    run(
        *("dmilo", made(b=2)),
        prior=Once(0),
        callback=lambda level: failed.append(level.prior_failed.tolist()),
    )
    assert any(failed[0] + failed[1]) and not any(failed[-1])


@methods
def test_a_prior_that_breaks_down_later_is_reported_with_its_level(kind):
    calls = {"lbfgs": 60, "adam": 30}.get(kind, 15)
    result = run(kind, made(), prior=Breaking(calls))
    assert result.x.isnan().all() and "1 of 1 runs diverged at" in result.warnings[0]
    assert "the prior gave images" in result.warnings[0]


def test_an_operator_without_a_derivative_at_one_image_loses_that_image_only():
    root = from_callable(lambda x: x.abs().sqrt())
    start = 0.1 * truth(2)
    start[1] = 0  # and so is its image
    options = {"prior": Small(), "steps": 3, "project": True}
    result = solve(root(truth(2)), root, seed=ReplayNoise([start]), **options)
    assert result.x[0].isfinite().all() and result.x[1].isnan().all()
    assert "1 of 2 runs diverged at level 1: lower `lr`" in result.warnings[0]


# ---- blind ----

BLIND = {"blur": BlindBlur(3), "turbulence": BlindTurbulence(3)}


def blurred(b=2):
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    return Blur(kernel, boundary="zero", even="torch").measure(truth(b), 0.01)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("kind", BLIND)
def test_a_blind_result_brings_the_unknowns_its_residual_was_made_with(kind, optimizer):
    y, operator = blurred(), BLIND[kind]
    steps = 15 if optimizer == "adam" else 1
    options = {"prior": CHEAP, "steps": steps, "optimizer": optimizer, "lr": 0.05}
    result = solve(y, operator, stop="discrepancy", sigma=0.01, **options)
    unknowns = result.details["unknowns"]
    kernel = torch.from_numpy(unknowns["kernel"])
    assert kernel.shape == (2, 3, 3) and (kernel > 0).all()
    torch.testing.assert_close(
        kernel.sum((1, 2)), torch.ones(2).double(), rtol=0, atol=9 * EPS
    )
    x = result.x
    if kind == "turbulence":
        x = dsg.operators.warp(x, torch.from_numpy(unknowns["displacement"]))
    again = dsg.operators.blind_blur(x, kernel, boundary="zero", even="torch")
    norm = (again - y).flatten(1).norm(dim=1) / (0.01 * y[0].numel() ** 0.5)
    torch.testing.assert_close(result.residual[0], norm, rtol=1e-12, atol=0)
    chosen = torch.tensor(result.details["selection"]["residual"]).double()
    torch.testing.assert_close(chosen, norm, rtol=1e-6, atol=0)


def test_a_blind_batch_is_a_loop_and_falls(tmp_path):
    y = blurred()
    options = {"steps": 20, "lr": 0.1, "sigma": 0.01, "seed": 3, "project": True}
    options["prior"] = CHEAP
    both = solve(y, BLIND["turbulence"], **options)
    alone = [solve(y[i : i + 1], BLIND["turbulence"], **options) for i in range(2)]
    assert torch.equal(both.x, torch.cat([result.x for result in alone]))
    for name, value in both.details["unknowns"].items():
        parts = [result.details["unknowns"][name] for result in alone]
        np.testing.assert_array_equal(value, np.concatenate(parts))
    assert both.trace[-1]["residual"] < 0.7 * both.trace[0]["residual"]
    both.save(tmp_path / "r.safetensors")
    loaded = dsg.Result.load(tmp_path / "r.safetensors").details["unknowns"]
    np.testing.assert_array_equal(loaded["kernel"], both.details["unknowns"]["kernel"])


@pytest.mark.parametrize("method", sorted(set(samplers.methods()) - {"dmplug"}))
def test_other_methods_refuse_a_blind_operator_before_any_network_call(method):
    calls = []
    with pytest.raises(ValueError, match=f"{method} needs to know the .*BlindBlur"):
        dsg.solve(
            blurred(1),
            BLIND["blur"],
            lambda x, sigma: calls.append(0),
            method,
            sigma=0.01,
        )
    assert not calls


def test_a_blind_operator_is_no_part_of_another():
    with pytest.raises(TypeError, match="inner must be a known operator, BlindBlur"):
        Compose(Downsample(2), BLIND["blur"])
    with pytest.raises(TypeError, match="BlindBlur has unknowns"):
        BLIND["blur"].measure(truth(), 0.1)


def test_a_blind_image_that_diverges_leaves_the_others_alone():
    y, options = blurred(2), {"prior": Breaking(10**9), "steps": 5}
    draws = [truth(2), torch.ones(2, 9, dtype=torch.float64)]
    expected = solve(y, BLIND["blur"], seed=ReplayNoise(draws), **options)
    far = torch.tensor([1e6, 1], dtype=torch.float64)[:, None, None, None]
    draws[0] = draws[0] * far
    result = solve(y, BLIND["blur"], seed=ReplayNoise(draws), **options)
    assert result.x[0].isnan().all() and torch.equal(result.x[1], expected.x[1])
    assert np.isfinite(result.details["unknowns"]["kernel"]).all()


# ---- memory ----


class Live(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor):
                self._note(t.untyped_storage())
        return out

    def _note(self, storage):
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size):
        self.now -= size


def wide(hidden=64, depth=3):
    """A network whose activations dwarf its images."""
    generator = torch.Generator().manual_seed(0)
    widths = [3, *[hidden] * depth, 3]
    weights = [
        torch.randn(n, m, 1, 1, generator=generator) / m**0.5
        for m, n in itertools.pairwise(widths)
    ]

    def network(x, t):
        for w in weights[:-1]:
            x = torch.tanh(torch.nn.functional.conv2d(x, w))
        return torch.nn.functional.conv2d(x, weights[-1])

    return NetworkPrior(network, channels=3)


def peak(method, layers, **options):
    y = made(OPERATORS["blur"], size=16).float()
    with Live() as live:
        solve(y, OPERATORS["blur"], method, wide(), layers=layers, **options)
    return live.peak


def test_dmilo_and_recomputing_dmplug_need_the_memory_of_one_layer():
    dmilo = {n: peak("dmilo", n, steps=1, inner=1) for n in (1, 6)}
    kept = {n: peak("dmplug", n, steps=1) for n in (1, 2, 6)}
    again = {n: peak("dmplug", n, steps=1, recompute=True) for n in (1, 6)}
    one = kept[2] - kept[1]
    assert one > 3 * 64 * 16 * 16 * 4  # the activations of a network
    assert kept[6] > kept[1] + 4.5 * one  # proportional to N
    # besides, images: a state and its deviation a layer, and what a step needs
    image = 3 * 16 * 16 * 4
    assert dmilo[6] - dmilo[1] < 5 * 4 * image
    assert again[6] - again[1] < 5 * 4 * image
    assert again[6] < 1.5 * kept[1]
