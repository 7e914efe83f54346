"""What samplers do between two network calls: the core and the formulas in torch
against naive expressions, each other and torch's own.
"""

from __future__ import annotations

import math

import pytest
import torch

from diffstategrad import _core, reference

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
NAMES = {torch.float32: "float32", torch.float64: "float64"}
dtypes = pytest.mark.parametrize("dtype", EPS, ids=NAMES.values())
modules = pytest.mark.parametrize("m", [_core, reference], ids=["core", "reference"])
NAN, INF = float("nan"), float("inf")

#: Three images that are not a whole number of noise blocks.
SHAPE = (3, 19, 23)
B = 3
KEY = (7, [4, 0, 9], [0, 2, 1], 5)


def randn(*shape, seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def images(seed=0, dtype=torch.float64, shape=SHAPE):
    return randn(B, *shape, seed=seed, dtype=dtype)


def recorded(key, dtype, steps=1, draws=1, shape=SHAPE):
    """(steps * b, *shape): what a key stands for."""
    seed, ids, samples, first = key
    out = torch.empty(steps, len(ids), math.prod(shape), dtype=dtype)
    for step in range(steps):
        _core.normal(out[step], (seed, ids, samples, first + draws * step))
    return out.view(-1, *shape)


def each(t, b=B):
    """The parts of images 0, 1, .. in (steps * b, ..) or in a key."""
    if isinstance(t, tuple):
        seed, ids, samples, draw = t
        return [(seed, [i], [s], draw) for i, s in zip(ids, samples, strict=True)]
    if isinstance(t, torch.Tensor):
        return [t[i::b].contiguous() for i in range(b)]
    return [t] * b


def close(got, expected, k, dtype, scale=1.0):
    """Within k roundings of values of size `scale`."""
    atol = k * EPS[dtype] * scale
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=atol)


def along(t):
    return t[:, None, None, None]


# ---- the updates and what they compute ----
#
# name -> (module, tensors, noise) -> call, and the naive value in float64.  Tensors are
# x, three images and a number for every image.


def scale():
    return torch.tensor([0.3, 0.0, 1.5], dtype=torch.float64)


UPDATES = {
    "ddpm_learned": (
        lambda m, x, a, b, c, n: m.ddpm_step(
            x, a, 0.3, 0.7, b, -9.8, -4.2, n, c, scale()[: len(x)]
        ),
        lambda x, a, b, c, n: (
            0.3 * a
            + 0.7 * x
            + torch.exp((-4.2 * (b + 1) / 2 - 9.8 * (1 - b) / 2) / 2) * n
            - along(scale()) * c
        ),
    ),
    "ddpm_fixed": (
        lambda m, x, a, b, c, n: m.ddpm_step(
            x, a, 0.3, 0.7, None, -1.5, 0.0, n, None, None
        ),
        lambda x, a, b, c, n: 0.3 * a + 0.7 * x + math.exp(-0.75) * n,
    ),
    "ddim": (
        lambda m, x, a, b, c, n: m.ddim_step(x, a, 0.4, 0.7, 0.3, n),
        lambda x, a, b, c, n: (
            0.7**0.5 * a + 0.21**0.5 * (x - 0.4**0.5 * a) / 0.6**0.5 + 0.3 * n
        ),
    ),
    "renoise": (
        lambda m, x, a, b, c, n: m.renoise(x, 0.6, 2.5, n),
        lambda x, a, b, c, n: 0.6 * x + 2.5 * n,
    ),
    "ald": (
        lambda m, x, a, b, c, n: m.ald_step(x, a, b, 1.5, 0.8, 0.2, n),
        lambda x, a, b, c, n: x + 0.2 * ((a - x) / 2.25 - 0.8 * b) + 0.4**0.5 * n,
    ),
}
updates = pytest.mark.parametrize("name", UPDATES)


def run(name, m, tensors, noise):
    x = tensors[0].clone()
    assert UPDATES[name][0](m, x, *tensors[1:], noise) is None
    return x


def naive(name, tensors, noise):
    return UPDATES[name][1](*(t.double() for t in tensors), noise)


def inputs(dtype):
    return [images(seed, dtype) for seed in range(4)]


@updates
@modules
@dtypes
def test_an_update_is_the_naive_expression(name, m, dtype):
    tensors, noise = inputs(dtype), images(9, dtype)
    expected = naive(name, tensors, noise.double())
    # a dozen roundings of terms below 2.5 * 4.5 standard deviations
    close(run(name, m, tensors, noise), expected, 6, dtype, 12)


@updates
@modules
@dtypes
def test_an_update_without_noise_has_none(name, m, dtype):
    tensors = inputs(dtype)
    close(run(name, m, tensors, None), naive(name, tensors, 0.0), 6, dtype, 6)


@updates
@modules
@dtypes
def test_a_key_is_the_noise_that_it_stands_for_bit_for_bit(name, m, dtype):
    tensors = inputs(dtype)
    got = run(name, m, tensors, KEY)
    assert torch.equal(got, run(name, m, tensors, recorded(KEY, dtype)))


@updates
@modules
@dtypes
@pytest.mark.parametrize("noise", ["key", "recorded", None])
def test_an_update_of_a_batch_is_a_loop_bit_for_bit(name, m, dtype, noise, monkeypatch):
    tensors = inputs(dtype)
    noise = {"key": KEY, "recorded": images(9, dtype), None: None}[noise]
    whole = run(name, m, tensors, noise)
    single = zip(*(each(t) for t in tensors), each(noise), strict=True)
    for i, (*parts, n) in enumerate(single):
        one = scale()[i : i + 1]
        monkeypatch.setitem(globals(), "scale", lambda one=one: one)
        assert torch.equal(run(name, m, parts, n), whole[i : i + 1])
        monkeypatch.undo()


@modules
@dtypes
def test_the_gradient_of_ddpm_is_scaled_for_each_image(m, dtype):
    x, x0, _, g = inputs(dtype)
    with_it, without = x.clone(), x.clone()
    m.ddpm_step(with_it, x0, 0.3, 0.7, None, -9.0, -4.0, KEY, g, scale())
    m.ddpm_step(without, x0, 0.3, 0.7, None, -9.0, -4.0, KEY, None, None)
    close(without - with_it, along(scale()) * g, 2, dtype, 8)
    assert torch.equal(with_it[1], without[1])  # its scale is 0


@modules
def test_a_code_of_ddpm_spans_the_logarithms(m):
    x = torch.zeros(B, *SHAPE, dtype=torch.float64)
    n = images(9)
    for code, log in ((-1.0, -9.0), (0.0, -6.5), (1.0, -4.0), (3.0, 1.0)):
        out = x.clone()
        code = torch.full_like(x, code)
        m.ddpm_step(out, x, 1.0, 1.0, code, -9.0, -4.0, n, None, None)
        close(out, math.exp(log / 2) * n, 8, torch.float64, 8)


@modules
@dtypes
def test_ddim_to_no_noise_ends_at_the_estimate(m, dtype):
    x, x0, *_ = inputs(dtype)
    m.ddim_step(x, x0, 0.3, 1.0, 0.0, KEY)
    assert torch.equal(x, x0)


@modules
def test_all_the_noise_of_ddim_may_be_new(m):
    x0, n = images(1), images(9)
    for alpha_bar in torch.rand(200, dtype=torch.float64).tolist():
        std = math.sqrt(1 - alpha_bar)  # its square may round to more
        x = images()
        m.ddim_step(x, x0, 0.3, alpha_bar, std, n)
        # what rounding leaves for eps, sqrt(1e-15), counts with eps of up to 8
        expected = math.sqrt(alpha_bar) * x0 + std * n
        assert torch.allclose(x, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "betas", [(0.9, 0.999), (0.4, 0.5), (0.0, 0.0), (0.5, 0.9)], ids=str
)
@modules
@dtypes
def test_adam_is_that_of_torch(m, dtype, betas):
    x, lr, eps = images(0, dtype), 0.05, 1e-8
    leaf = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=lr, betas=betas, eps=eps, foreach=False)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, 41):
        leaf.grad = images(100 + step, dtype) * 10.0 ** (step % 3)
        optimizer.step()
        m.adam_step(x, first, second, leaf.grad, step, lr, *betas, eps)
        state = optimizer.state[leaf]
        # two units in the last place of every operand, from equal states
        rtol = 4 * EPS[dtype]
        torch.testing.assert_close(first, state["exp_avg"], rtol=rtol, atol=rtol * 100)
        torch.testing.assert_close(second, state["exp_avg_sq"], rtol=rtol, atol=0)
        torch.testing.assert_close(x, leaf.data, rtol=rtol, atol=rtol * lr * 4)
        for ours, theirs in (
            (x, leaf.data),
            (first, state["exp_avg"]),
            (second, state["exp_avg_sq"]),
        ):
            ours.copy_(theirs)


@modules
def test_adam_of_a_batch_is_a_loop_bit_for_bit(m):
    state = [images(s, torch.float32) for s in range(4)]
    state[2] = state[2].square()
    parts = [[t.clone() for t in one] for one in zip(*map(each, state), strict=True)]
    m.adam_step(*state, 3, 0.1, 0.9, 0.999, 1e-8)
    for i, one in enumerate(parts):
        m.adam_step(*one, 3, 0.1, 0.9, 0.999, 1e-8)
        for whole, part in zip(state[:3], one[:3], strict=True):
            assert torch.equal(whole[i : i + 1], part)


def test_an_image_that_is_not_finite_leaves_the_others_alone():
    for name in UPDATES:
        tensors = inputs(torch.float32)
        whole = run(name, _core, tensors, KEY)
        for t in tensors:
            t[1, 0, 3, 4] = NAN
        got = run(name, _core, tensors, KEY)
        assert torch.equal(got[::2], whole[::2])
        assert got[1].isnan().sum() == 1


# ---- total variation ----

SHAPES = [(1, 1, 1), (2, 1, 5), (1, 6, 1), (3, 2, 2), (2, 7, 16), (3, 13, 18)]


def differences(x):
    dx, dy = torch.zeros_like(x), torch.zeros_like(x)
    dx[..., :-1] = x[..., 1:] - x[..., :-1]
    dy[..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
    return torch.stack([dx, dy], 1)


def total_variation(x, coupled):
    squares = differences(x.double()).square().sum(1)
    return (squares.sum(1) if coupled else squares).sqrt().flatten(1).sum(1)


def prox(m, v, weight, iterations, coupled, dual=None):
    """(prox, dual)."""
    dual = v.new_zeros(len(v), 2, *v.shape[1:]) if dual is None else dual
    out = torch.full_like(v, NAN)
    assert m.tv_prox(out, v, weight, iterations, dual, coupled) is None
    return out, dual


def gap(x, v, weight, coupled):
    """1/2 |x - v|^2 + w TV(x) - (1/2 |v|^2 - 1/2 |x|^2), (b,)."""
    x, v = x.double(), v.double()

    def half(t):
        return t.square().flatten(1).sum(1) / 2

    return half(x - v) + weight * total_variation(x, coupled) - half(v) + half(x)


@modules
@dtypes
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_norm_is_the_naive_sum(m, dtype, shape, coupled):
    x = images(0, dtype, shape)
    out = torch.full((B,), NAN, dtype=torch.float64)
    assert m.tv_norm(out, x, coupled) is None
    expected = total_variation(x, coupled)
    n = math.prod(shape)
    assert torch.allclose(out, expected, rtol=n * EPS[torch.float64], atol=0)


@modules
@dtypes
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_duality_gap_goes_to_zero(m, dtype, shape, coupled):
    v, weight = images(0, dtype, shape), 0.3
    # rounding of sums of n squares, and of the dual, on which the gap depends linearly
    floor = 40 * EPS[dtype] * math.prod(shape)
    gaps = [
        gap(prox(m, v, weight, k, coupled)[0], v, weight, coupled)
        for k in (1, 10, 100, 1000)
    ]
    assert all((g > -floor).all() for g in gaps)
    assert (gaps[1] <= gaps[0] + floor).all()
    assert (gaps[2] <= 0.05 * gaps[0] + floor).all()
    assert (gaps[3] <= 1e-4 * gaps[0] + floor).all()


@modules
@dtypes
@pytest.mark.parametrize("coupled", [False, True])
def test_the_gap_is_that_of_primal_and_dual(m, dtype, coupled):
    v, weight = images(0, dtype), 0.3
    x, p = prox(m, v, weight, 20, coupled)
    x, p = x.double(), p.double()
    inner = (p * differences(x)).flatten(1).sum(1)
    expected = weight * (total_variation(x, coupled) - inner)
    # sums of n terms below 4
    floor = 16 * EPS[dtype] * math.prod(SHAPE)
    assert torch.allclose(gap(x, v, weight, coupled), expected, rtol=0, atol=floor)


@modules
@dtypes
@pytest.mark.parametrize("coupled", [False, True])
def test_the_dual_lies_in_the_unit_ball_and_zero_at_the_edge(m, dtype, coupled):
    dual = 3 * randn(B, 2, *SHAPE, dtype=dtype)
    _, p = prox(m, images(0, dtype), 0.1, 3, coupled, dual)
    squares = p.double().square().sum(1)
    lengths = (squares.sum(1) if coupled else squares).sqrt()
    assert lengths.max() <= 1 + 4 * EPS[dtype]
    assert not p[:, 0, ..., -1].any() and not p[:, 1, ..., -1, :].any()


@modules
def test_two_pixels_move_towards_each_other(m):
    weight, k = 0.2, 2000
    for shape in ((1, 1, 2), (1, 2, 1)):
        v = torch.tensor([[0.0, 1.0], [0.0, 0.3], [2.0, -1.0]]).double()
        x, _ = prox(m, v.view(3, *shape), weight, k, False)
        expected = torch.tensor([[0.2, 0.8], [0.15, 0.15], [1.8, -0.8]]).double()
        # |x - prox|^2 / 2 <= 2 (8 w^2) |p - p*|^2 / (k + 1)^2 with |p*| <= 1
        atol = 32**0.5 * weight / (k + 1)
        assert torch.allclose(x.view(3, 2), expected, rtol=0, atol=atol)


@modules
def test_a_constant_image_and_a_large_weight(m):
    v = images()
    flat = torch.full_like(v, 0.7)
    assert torch.equal(prox(m, flat, 0.3, 7, True)[0], flat)
    x, _ = prox(m, v, 1e3, 4000, False)
    assert torch.allclose(x, v.mean((2, 3), keepdim=True).expand_as(v), atol=1e-3)


@modules
def test_coupled_channels_that_are_equal_are_one_of_a_larger_weight(m):
    one = images(shape=(1, 9, 8))
    three = one.expand(B, 3, 9, 8).contiguous()
    x, _ = prox(m, three, 0.3, 400, True)
    y, _ = prox(m, one, 0.3 / 3**0.5, 400, False)
    assert torch.allclose(x, y.expand_as(x), rtol=0, atol=1e-6)


@modules
def test_iterations_go_on_where_the_dual_says(m):
    v = images()
    _, dual = prox(m, v, 0.3, 100, False)
    again, _ = prox(m, v, 0.3, 10, False, dual.clone())
    cold, _ = prox(m, v, 0.3, 10, False)
    assert (gap(again, v, 0.3, False) < 0.1 * gap(cold, v, 0.3, False)).all()


@dtypes
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_prox_of_the_core_is_that_of_the_formulas(dtype, shape, coupled):
    v = images(0, dtype, shape)
    start = randn(B, 2, *shape, seed=1, dtype=dtype)
    start[:, 0, ..., -1] = start[:, 1, ..., -1, :] = 0
    x, p = prox(_core, v, 0.3, 12, coupled, start.clone())
    y, q = prox(reference, v, 0.3, 12, coupled, start.clone())
    # roundings of 12 iterations, none of which expands
    close(x, y, 12 * 8, dtype, 2)
    close(p, q, 12 * 8, dtype, 2)


@modules
@pytest.mark.parametrize("coupled", [False, True])
def test_the_prox_of_a_batch_is_a_loop_bit_for_bit(m, coupled):
    v = images(0, torch.float32)
    x, p = prox(m, v, 0.3, 6, coupled)
    norms = torch.empty(B, dtype=torch.float64)
    m.tv_norm(norms, x, coupled)
    for i in range(B):
        y, q = prox(m, v[i : i + 1], 0.3, 6, coupled)
        assert torch.equal(x[i : i + 1], y) and torch.equal(p[i : i + 1], q)
        norm = torch.empty(1, dtype=torch.float64)
        m.tv_norm(norm, y, coupled)
        assert norm == norms[i]


# ---- the loops of a level ----

LEVEL = (3, 8, 10)
STEPS, ETA, LIKELIHOOD, PRIOR, MOMENTUM = 5, 0.01, 4.0, 0.5, 0.7
OPERATORS = {
    "resize": lambda m, dtype: m.resize(NAMES[dtype], LEVEL, 2),
    "phase": lambda m, dtype: m.phase(NAMES[dtype], LEVEL, 2, 0.5, 0.5),
}
operators = pytest.mark.parametrize("operator", OPERATORS)
KINDS = ["langevin", "hmc", "mh"]
kinds = pytest.mark.parametrize("kind", KINDS)


def level(m, kind, operator, dtype, noise=KEY, projected=False, part=slice(None), **o):
    """The results of a loop by name; `part` of the batch, whose noise is given."""
    op = OPERATORS[operator](m, dtype)
    x0hat = images(0, dtype, LEVEL)
    y = 0.5 * randn(B, *op.out_shape, seed=1, dtype=dtype)
    x = x0hat.clone() if (start := o.pop("start", None)) is None else start.clone()
    x0hat, y, x = x0hat[part].clone(), y[part].clone(), x[part].clone()
    projector = None
    if projected:
        projector = m.Projector(NAMES[dtype], len(x), LEVEL)
        projector.prepare(x0hat, 0.8, 0, 0, 3)
    results = {"x": x, "sqnorm": torch.full((len(x),), NAN, dtype=torch.float64)}
    numbers = {
        "steps": STEPS,
        "eta": ETA,
        "likelihood": LIKELIHOOD,
        "prior": PRIOR,
        **o,
    }
    uniforms = None
    if isinstance(noise, tuple) and isinstance(noise[0], torch.Tensor):
        noise, uniforms = noise
    if kind == "mh":
        results["accepted"] = torch.full((len(x),), NAN, dtype=torch.float64)
        m.mh(*results.values(), x0hat, y, op, noise, uniforms, *numbers.values())
        return results
    given = (x0hat, y, op, projector, noise, *numbers.values())
    if kind == "hmc":
        velocity = images(2, dtype, LEVEL)[part].clone()
        results = {"x": x, "velocity": velocity, "sqnorm": results["sqnorm"]}
        m.hmc(*results.values(), *given, MOMENTUM)
    else:
        m.langevin(*results.values(), *given)
    return results


def naive_level(kind, operator, dtype, projected):
    """The same written out in float64, and the least |ln U - log acceptance|."""
    op = OPERATORS[operator](_core, torch.float64)
    x0hat = images(0, dtype, LEVEL).double()
    y = (0.5 * randn(B, *op.out_shape, seed=1, dtype=dtype)).double()
    v = images(2, dtype, LEVEL).double()
    projector = _core.Projector("float64", B, LEVEL)
    projector.prepare(x0hat, 0.8, 0, 0, 3)
    draws = 2 if kind == "mh" else 1
    noise = recorded(KEY, torch.float64, STEPS, draws, LEVEL).view(STEPS, B, *LEVEL)
    x, accepted, margin = x0hat.clone(), torch.zeros(B).double(), INF
    sqnorm = torch.empty(B, dtype=torch.float64)

    def forward(x):
        out = torch.empty_like(y)
        op.forward(out, x)
        return out

    def square(t):
        return t.square().flatten(1).sum(1)

    for step in range(STEPS):
        if kind == "mh":
            proposal = x + ETA**0.5 * noise[step]
            gain = (
                LIKELIHOOD
                / 2
                * (square(forward(x) - y) - square(forward(proposal) - y))
            )
            gain += PRIOR / 2 * (square(x - x0hat) - square(proposal - x0hat))
            u = torch.empty(B, dtype=torch.float64)
            _core.uniform(u, (*KEY[:3], KEY[3] + 2 * step + 1))
            taken = u.log() < gain
            margin = min(margin, (u.log() - gain).abs().min().item())
            x = torch.where(along(taken), proposal, x)
            accepted += taken
            sqnorm = square(forward(x) - y)
            continue
        g = torch.empty_like(x)
        op.residual_gradient(g, sqnorm, x, y)
        g = LIKELIHOOD * g + PRIOR * (x - x0hat)
        if projected:
            projector.apply(g)
        if kind == "hmc":
            v = MOMENTUM * v - ETA**0.5 * g + (2 * (1 - MOMENTUM)) ** 0.5 * noise[step]
            x = x + ETA**0.5 * v
        else:
            x = x - ETA * g + (2 * ETA) ** 0.5 * noise[step]
    found = {"x": x, "sqnorm": sqnorm, "velocity": v, "accepted": accepted}
    return found, margin


@kinds
@operators
@modules
@dtypes
@pytest.mark.parametrize("projected", [False, True])
def test_a_level_is_the_loop_written_out(kind, operator, m, dtype, projected):
    if kind == "mh" and projected:
        return
    expected, margin = naive_level(kind, operator, dtype, projected)
    got = level(m, kind, operator, dtype, projected=projected)
    # a few dozen roundings a step of values below 8, amplified by the curvature of the
    # likelihood and by the transform's and the basis' own
    k = 200 * STEPS
    for name, value in got.items():
        size = 8 if name in ("x", "velocity") else expected[name].max().item()
        close(value, expected[name], 0 if name == "accepted" else k, dtype, size)
    assert margin > k * EPS[dtype] * 8
    if kind == "mh":
        assert 0 < got["accepted"].sum() < B * STEPS


@kinds
@operators
@modules
@dtypes
def test_a_key_of_a_level_is_the_noise_that_it_stands_for(kind, operator, m, dtype):
    draws = 2 if kind == "mh" else 1
    noise = recorded(KEY, dtype, STEPS, draws, LEVEL)
    if kind == "mh":
        uniforms = torch.empty(STEPS, B, dtype=torch.float64)
        for step in range(STEPS):
            _core.uniform(uniforms[step], (*KEY[:3], KEY[3] + 2 * step + 1))
        noise = (noise, uniforms.flatten())
    got, expected = (level(m, kind, operator, dtype, n) for n in (KEY, noise))
    for name in expected:
        assert torch.equal(got[name], expected[name])


@kinds
@operators
@modules
@dtypes
def test_a_level_of_a_batch_is_a_loop_bit_for_bit(kind, operator, m, dtype):
    projected = kind != "mh"
    whole = level(m, kind, operator, dtype, projected=projected)
    for i, key in enumerate(each(KEY)):
        part = slice(i, i + 1)
        one = level(m, kind, operator, dtype, key, projected, part)
        for name in whole:
            assert torch.equal(one[name], whole[name][part])


@kinds
def test_the_number_of_threads_does_not_change_a_level(kind):
    before = _core.info()["threads"]
    try:
        results = []
        for n in (1, 2, 5):
            _core.set_num_threads(n)
            results.append(level(_core, kind, "resize", torch.float32))
    finally:
        _core.set_num_threads(before)
    for name, value in results[0].items():
        assert all(torch.equal(value, r[name]) for r in results[1:])


@kinds
@modules
@pytest.mark.parametrize("bad", [NAN, INF, 1e300])
def test_an_image_that_diverges_is_marked_and_the_others_go_on(kind, m, bad):
    dtype = torch.float64
    start = images(0, dtype, LEVEL)
    expected = level(m, kind, "resize", dtype, start=start)
    start[1, 2, 3, 4] = bad
    got = level(m, kind, "resize", dtype, start=start)
    assert got["sqnorm"].isnan().tolist() == [False, True, False]
    for name in expected:
        assert torch.equal(got[name][::2], expected[name][::2])
    assert torch.equal(got["x"][1].nan_to_num(), start[1].nan_to_num())  # left there
    if kind == "mh":
        assert got["accepted"][1] == 0


@modules
def test_an_image_that_explodes_is_marked(m):
    for kind in ("langevin", "hmc"):
        got = level(m, kind, "resize", torch.float32, eta=1e9, steps=40)
        assert got["sqnorm"].isnan().all()
        assert (
            level(m, "mh", "resize", torch.float32, eta=1e9)["sqnorm"].isfinite().all()
        )


@modules
def test_a_proposal_that_is_not_finite_is_not_taken(m):
    noise = recorded(KEY, torch.float64, STEPS, 1, LEVEL)
    noise[1, 0, 0, 0] = NAN  # of image 1 at the first step
    noise[B + 2, 0, 0, 0] = INF  # of image 2 at the second
    # so near 0 that anything else is taken
    uniforms = torch.full((STEPS * B,), 1e-300, dtype=torch.float64)
    got = level(m, "mh", "resize", torch.float64, (noise, uniforms))
    assert got["accepted"].tolist() == [STEPS, STEPS - 1, STEPS - 1]
    assert got["sqnorm"].isfinite().all() and got["x"].isfinite().all()


def test_metropolis_hastings_samples_the_product_of_prior_and_likelihood():
    # one pixel a chain: N(x0hat, 1) times exp(-(x - y)^2 / (2 / 3)): N(_, 1 / 4)
    n, shape = 4000, (1, 1, 1)
    op = _core.mask("float64", shape, torch.ones(1, 1, 1, dtype=torch.uint8))
    x0hat, y = (torch.full((n, 1, 1, 1), c, dtype=torch.float64) for c in (-1.0, 1.0))
    x, sqnorm, accepted = (
        x0hat.clone(),
        torch.empty(n).double(),
        torch.empty(n).double(),
    )
    key = (3, range(n), [0] * n, 0)
    _core.mh(x, sqnorm, accepted, x0hat, y, op, key, None, 60, 0.5, 3.0, 1.0)
    # five standard errors of the mean and of the variance of a normal
    assert abs(x.mean() - 0.5) < 5 * 0.5 / n**0.5
    assert abs(x.var() - 0.25) < 5 * 0.25 * (2 / n) ** 0.5
    assert torch.allclose(sqnorm, (x - y).square().flatten())


def test_uniforms_are_uniform_and_a_function_of_their_key():
    n = 100_000
    u = torch.full((n,), NAN, dtype=torch.float64)
    _core.uniform(u, (1, range(n), [0] * n, 3))
    assert u.min() > 0 and u.max() < 1
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    # Kolmogorov-Smirnov: 2.2 / sqrt(n) is exceeded with probability 1e-4
    assert (u.sort().values - grid).abs().max() < 2.2 / n**0.5
    one = torch.empty(1, dtype=torch.float64)
    for i in (0, 1, n - 1):
        _core.uniform(one, (1, [i], [0], 3))
        assert one == u[i]
    others = torch.empty(3, dtype=torch.float64)
    for key in ((2, [0], [0], 3), (1, [0], [1], 3), (1, [0], [0], 4)):
        _core.uniform(others[:1], key)
        assert others[0] != u[0]
    out = torch.empty_like(others)
    reference.uniform(out, KEY)
    _core.uniform(others, KEY)
    assert torch.equal(out, others)


@dtypes
def test_normals_and_the_euler_step_of_the_formulas_are_those_of_the_core(dtype):
    a, b = torch.empty(B, 1500, dtype=dtype), torch.empty(B, 1500, dtype=dtype)
    for m, out in ((_core, a), (reference, b)):
        m.normal(out, KEY)
    assert torch.equal(a, b)
    x, y = images(0, dtype), images(0, dtype)
    _core.euler_step(x, images(1, dtype), 2.0, 0.5)
    reference.euler_step(y, images(1, dtype), 2.0, 0.5)
    close(x, y, 4, dtype, 8)


# ---- what is refused ----


def ddpm(m, **changed):
    arguments = {
        "x": images(),
        "x0": images(1),
        "c1": 0.5,
        "c2": 0.5,
        "code": images(2),
        "minlog": -9.0,
        "maxlog": -4.0,
        "noise": KEY,
        "gradient": images(3),
        "scale": scale(),
    }
    m.ddpm_step(*(arguments | changed).values())


def ddim(m, alpha_bar=0.5, alpha_bar_next=0.6, std=0.1):
    m.ddim_step(images(), images(1), alpha_bar, alpha_bar_next, std, KEY)


def ald(m, sigma=1.0, weight=1.0, eta=0.1):
    m.ald_step(images(), images(1), images(2), sigma, weight, eta, KEY)


def adam(m, step=1, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8):
    m.adam_step(*(images(s) for s in range(4)), step, lr, beta1, beta2, eps)


RANGE = r"in the range [\[(]0, 1[\])], got "
WRONG = [
    *(
        (lambda m, n=n, v=v: ddpm(m, **{n: v}), f"ddpm_step: {n} must be finite, got")
        for n in ("c1", "c2", "minlog", "maxlog")
        for v in (NAN, INF, -INF)
    ),
    *(
        (lambda m, a=a: ddim(m, a), f"alpha_bar must be {RANGE}")
        for a in (0.0, 1.0, NAN)
    ),
    *(
        (lambda m, a=a: ddim(m, 0.5, a), f"alpha_bar_next must be {RANGE}")
        for a in (0.0, 1.1, NAN)
    ),
    *(
        (lambda m, s=s: ddim(m, 0.5, 0.6, s), "std must be >= 0 and its square at most")
        for s in (-0.1, 0.64, NAN, INF)
    ),
    (lambda m: m.renoise(images(), NAN, 1.0, KEY), "renoise: scale must be finite"),
    (lambda m: m.renoise(images(), 1.0, INF, KEY), "renoise: sigma must be finite"),
    *((lambda m, s=s: ald(m, s), "sigma must be > 0") for s in (0.0, -1.0, NAN, INF)),
    (lambda m: ald(m, weight=NAN), "ald_step: weight must be finite, got nan"),
    *((lambda m, s=s: ald(m, eta=s), "eta must be >= 0") for s in (-1.0, NAN, INF)),
    (lambda m: adam(m, step=0), "adam_step: step must be at least 1, got 0"),
    *((lambda m, v=v: adam(m, lr=v), "lr must be >= 0") for v in (-1.0, NAN, INF)),
    *((lambda m, v=v: adam(m, eps=v), "eps must be >= 0") for v in (-1.0, NAN, INF)),
    *((lambda m, v=v: adam(m, beta1=v), f"beta1 must be {RANGE}") for v in (-1.0, 1.0)),
    *((lambda m, v=v: adam(m, beta2=v), f"beta2 must be {RANGE}") for v in (NAN, 1.0)),
    *(
        (lambda m, w=w: prox(m, images(), w, 1, False), "weight must be > 0")
        for w in (0.0, -1.0, NAN, INF)
    ),
    (
        lambda m: prox(m, images(), 1.0, 0, False),
        "iterations must be at least 1, got 0",
    ),
    (
        lambda m: prox(m, images(), 1.0, 1, False, torch.zeros(B, 3, *SHAPE).double()),
        r"tv_prox: dual must have shape \(3, 2, 3, 19, 23\), got \(3, 3, 3, 19, 23\)",
    ),
    *(
        (
            lambda m, k=k: level(m, k, "resize", torch.float64, steps=0),
            f"{k}: steps must",
        )
        for k in KINDS
    ),
    *(
        (
            lambda m, k=k, n=n: level(m, k, "resize", torch.float64, **{n: NAN}),
            f"{k}: {n} must be .*finite, got nan",
        )
        for k in KINDS
        for n in ("eta", "likelihood", "prior")
    ),
    (
        lambda m: level(m, "hmc", "resize", torch.float64, (*KEY[:3], 2**32 - 4)),
        r"hmc: noise draw must leave room for 5 steps below 2\^32, got",
    ),
    (
        lambda m: level(m, "mh", "resize", torch.float64, (*KEY[:3], 2**32 - 9)),
        r"mh: noise draw must leave room for 5 steps below 2\^32, got",
    ),
]


@modules
@pytest.mark.parametrize(("call", "message"), WRONG)
def test_numbers_out_of_range_are_named(call, message, m):
    with pytest.raises(ValueError, match=message):
        call(m)


@modules
def test_the_draws_of_metropolis_hastings_fit_32_bits(m):
    assert level(m, "mh", "resize", torch.float64, (*KEY[:3], 2**32 - 10))


@modules
@pytest.mark.parametrize("momentum", [-0.1, 1.1, NAN])
def test_a_momentum_out_of_range_is_named(m, momentum, monkeypatch):
    monkeypatch.setitem(globals(), "MOMENTUM", momentum)
    with pytest.raises(ValueError, match=f"^hmc: momentum must be {RANGE}"):
        level(m, "hmc", "resize", torch.float64)


@modules
def test_what_belongs_together_is_given_together(m):
    for changed in ({"gradient": None}, {"scale": None}):
        with pytest.raises(
            TypeError, match=r"^ddpm_step: gradient and scale must both"
        ):
            ddpm(m, **changed)
    uniforms = torch.rand(STEPS * B, dtype=torch.float64)
    op = m.mask("float64", SHAPE, torch.ones(1, 19, 23, dtype=torch.uint8))
    given = [images(), uniforms[:B].clone(), uniforms[:B].clone()]
    given += [images(1), images(2), op]
    with pytest.raises(TypeError, match=r"^mh: uniforms must be None with a noise key"):
        m.mh(*given, KEY, uniforms, STEPS, 0.1, 1.0, 1.0)
    noise = recorded(KEY, torch.float64, STEPS)
    with pytest.raises(TypeError, match=r"^mh: uniforms must be "):
        m.mh(*given, noise, None, STEPS, 0.1, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"^mh: uniforms must have shape \(15,\), got"):
        m.mh(*given, noise, uniforms[:B], STEPS, 0.1, 1.0, 1.0)


def test_results_share_no_memory_with_anything():
    x, other, third = images(), images(1), images(2)
    sharing = "must not share memory with"
    for call, message in (
        (lambda: ddpm(_core, x=x, x0=x), f"x {sharing} x0"),
        (lambda: ddpm(_core, x=x, code=x), f"x {sharing} code"),
        (lambda: ddpm(_core, x=x, noise=x), f"x {sharing} noise"),
        (lambda: ddpm(_core, x=x, gradient=x), f"x {sharing} gradient"),
        (
            lambda: ddpm(_core, x=x, scale=x.flatten()[:B]),
            f"x {sharing} scale",
        ),
        (lambda: _core.renoise(x, 1.0, 1.0, x), f"x {sharing} noise"),
        (
            lambda: _core.adam_step(x, other, other, third, 1, 0.1, 0.9, 0.9, 0.0),
            f"m {sharing} v",
        ),
        (
            lambda: _core.adam_step(x, other, third, third, 1, 0.1, 0.9, 0.9, 0.0),
            f"v {sharing} gradient",
        ),
        (
            lambda: _core.adam_step(x, x, other, third, 1, 0.1, 0.9, 0.9, 0.0),
            f"x {sharing} m",
        ),
        (
            lambda: _core.tv_prox(
                x, x, 0.1, 1, torch.zeros(B, 2, *SHAPE).double(), False
            ),
            f"out {sharing} v",
        ),
        (
            lambda: _core.tv_norm(x.flatten()[:B], x, False),
            f"out {sharing} x",
        ),
    ):
        with pytest.raises(ValueError, match=f": {message}$"):
            call()
    dual = torch.zeros(B, 2, *SHAPE).double()
    inside = dual.flatten()[: x.numel()].view_as(x)
    with pytest.raises(ValueError, match=f"out {sharing} dual"):
        _core.tv_prox(inside, x, 0.1, 1, dual, False)
    with pytest.raises(ValueError, match=f"dual {sharing} v"):
        _core.tv_prox(x, inside, 0.1, 1, dual, False)


@pytest.mark.parametrize("name", ["x", "sqnorm", "x0hat", "y", "noise"])
def test_velocity_and_counts_of_a_level_lie_apart_from_all_else(name):
    op = _core.mask("float64", SHAPE, torch.ones(1, 19, 23, dtype=torch.uint8))
    whole = torch.zeros(B * math.prod(SHAPE) + 8, dtype=torch.float64)
    at = {"x": images(), "sqnorm": whole[:B], "x0hat": images(1), "y": images(2)}
    at["noise"] = images(3)
    velocity = whole[:-8].view(B, *SHAPE) if name == "sqnorm" else at[name]
    at["sqnorm"] = whole[:B] if name == "sqnorm" else torch.zeros(B).double()
    numbers = (1, 0.1, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"^hmc: velocity must not share memory with"):
        _core.hmc(
            *(at["x"], velocity, at["sqnorm"], at["x0hat"], at["y"], op, None),
            *(at["noise"], *numbers, 0.5),
        )
    accepted = at[name].flatten()[:B]
    uniforms = torch.rand(B, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^mh: accepted must not share memory with"):
        _core.mh(
            *(at["x"], at["sqnorm"], accepted, at["x0hat"], at["y"], op),
            *(at["noise"], uniforms, *numbers),
        )
