"""The state projector: what a projection is, ranks, subspaces, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import diffstategrad as dsg
from diffstategrad import StateProjector, _core
from diffstategrad.projection import Subspace

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
SHAPES = [(3, 8, 8), (1, 5, 9), (4, 12, 7), (1, 1, 1), (2, 1, 6), (3, 17, 2)]
dtypes = pytest.mark.parametrize("dtype", EPS, ids=["float32", "float64"])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
sides = pytest.mark.parametrize("sides", ["both", "left", "right"])


def randn(*shape, seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def state_of(b, c, h, w, seed=1, dtype=torch.float64):
    """Singular values 2^0, 2^-1, ...: no two alike, no rank near a threshold."""
    U = torch.linalg.qr(randn(b, c, h, h, seed=seed))[0]
    V = torch.linalg.qr(randn(b, c, w, w, seed=seed + 100))[0]
    k = min(h, w)
    s = 0.5 ** torch.arange(k, dtype=torch.float64)
    return (U[..., :k] * s @ V[..., :k].mT).to(dtype)


def reference(state, grad, energy=0.99, sides="both", rank=None):
    """NumPy's SVD in double, one channel after the other; also the ranks."""
    state, grad = state.double().numpy(), grad.double().numpy()
    out, ranks = np.empty_like(grad), []
    for i in np.ndindex(state.shape[:2]):
        U, s, Vt = np.linalg.svd(state[i], full_matrices=False)
        kept = np.cumsum(s**2)
        r = rank or int(np.searchsorted(kept, energy * kept[-1]) + 1)
        r = min(r, len(s))
        left, right = U[:, :r] @ U[:, :r].T, Vt[:r].T @ Vt[:r]
        g = left @ grad[i] if sides in ("both", "left") else grad[i]
        out[i] = g @ right if sides in ("both", "right") else g
        ranks.append(r)
    return torch.from_numpy(out), np.reshape(ranks, state.shape[:2]).tolist()


def tolerance(shape, dtype, gap=1.0):
    """Of an entry of P(G): the factors' rounding over the relative gap of the singular
    values, k eps sqrt(h w); the Gram matrix works on squares, so in float32 too the
    factors are those of double but are stored in float32."""
    return 30 * EPS[dtype] * math.sqrt(shape[-1] * shape[-2]) / gap


def close(got, expected, atol):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


# ---- it is a projection ----


@shapes
@dtypes
@sides
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_it_is_the_projection_of_numpys_svd(shape, dtype, sides, energy):
    state, grad = state_of(2, *shape, dtype=dtype), randn(2, *shape, dtype=dtype)
    projector = StateProjector(energy, sides=sides)
    got = projector(grad, state=state)
    expected, ranks = reference(state, grad, energy, sides)
    assert got.dtype == dtype
    # the smallest kept singular value over the largest enters through the gap: with
    # energy 0.99 at most 4 of 2^-j are kept
    close(got.double(), expected, tolerance(shape, dtype, gap=2.0**-5))
    assert [list(r) for r in projector.factors(state).ranks] == ranks


@shapes
def test_applying_it_is_linear(shape):
    factors = StateProjector(0.9).factors(state_of(2, *shape))
    a, b = randn(2, *shape), randn(2, *shape, seed=5)
    expected = 2.5 * factors.apply(a) - 0.3 * factors.apply(b)
    close(factors.apply(2.5 * a - 0.3 * b), expected, tolerance(shape, torch.float64))


@shapes
@sides
def test_applying_it_twice_is_applying_it_once(shape, sides):
    factors = StateProjector(0.9, sides=sides).factors(state_of(2, *shape))
    once = factors.apply(randn(2, *shape))
    close(factors.apply(once), once, tolerance(shape, torch.float64))


@shapes
@sides
def test_it_is_self_adjoint(shape, sides):
    factors = StateProjector(0.9, sides=sides).factors(state_of(2, *shape))
    a, b = randn(2, *shape), randn(2, *shape, seed=5)
    left, right = (factors.apply(a) * b).sum(), (a * factors.apply(b)).sum()
    close(left, right, tolerance(shape, torch.float64) * math.sqrt(a.numel()))


@shapes
@sides
def test_it_never_lengthens(shape, sides):
    grad = randn(2, *shape)
    got = StateProjector(0.7, sides=sides)(grad, state=state_of(2, *shape))
    before, after = grad.flatten(2).norm(dim=2), got.flatten(2).norm(dim=2)
    assert (after <= before * (1 + tolerance(shape, torch.float64))).all()


@shapes
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.99, 1.0])
def test_the_state_itself_keeps_the_asked_energy(shape, energy):
    state = state_of(2, *shape)
    factors = StateProjector(energy).factors(state)
    projected = factors.apply(state)
    share = projected.square().sum((2, 3)) / state.square().sum((2, 3))
    assert (share >= energy - tolerance(shape, torch.float64)).all()
    kept = torch.tensor(factors.kept, dtype=torch.float64)
    close(kept, share, tolerance(shape, torch.float64))


@shapes
def test_left_then_right_is_both(shape):
    state, grad = state_of(2, *shape), randn(2, *shape)
    left = StateProjector(0.9, sides="left")(grad, state=state)
    both = StateProjector(0.9)(grad, state=state)
    right_of_left = StateProjector(0.9, sides="right")(left, state=state)
    close(right_of_left, both, tolerance(shape, torch.float64))


@pytest.mark.parametrize("scale", [1e-6, 3.0, -1.0, 1e6])
@dtypes
def test_the_scale_of_the_state_does_not_matter(scale, dtype):
    shape = (3, 8, 8)
    state, grad = state_of(2, *shape, dtype=dtype), randn(2, *shape, dtype=dtype)
    expected = StateProjector(0.9)(grad, state=state)
    got = StateProjector(0.9)(grad, state=scale * state)
    close(got, expected, tolerance(shape, dtype))


def test_transposing_state_and_gradient_transposes_the_result():
    state, grad = state_of(2, 3, 9, 6), randn(2, 3, 9, 6)
    got = StateProjector(0.9)(grad.mT, state=state.mT)
    close(
        got,
        StateProjector(0.9)(grad, state=state).mT.contiguous(),
        tolerance((3, 9, 6), torch.float64),
    )


# ---- ranks ----


@dtypes
@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_energy_1_is_the_identity_bit_for_bit_on_square_images(dtype, n):
    state, grad = randn(2, 3, n, n, dtype=dtype), randn(2, 3, n, n, seed=4, dtype=dtype)
    assert torch.equal(StateProjector(1.0)(grad, state=state), grad)


@dtypes
@pytest.mark.parametrize("rank", [5, 6, 10**6])
def test_a_rank_of_the_whole_image_is_the_identity(dtype, rank):
    state, grad = randn(2, 3, 5, 5, dtype=dtype), randn(2, 3, 5, 5, seed=4, dtype=dtype)
    projector = StateProjector(rank=rank)
    assert torch.equal(projector(grad, state=state), grad)
    assert projector.factors(state).ranks == ((5,) * 3,) * 2


@shapes
@pytest.mark.parametrize("rank", [1, 2])
def test_a_given_rank_is_taken(shape, rank):
    state, grad = state_of(2, *shape), randn(2, *shape)
    expected, ranks = reference(state, grad, rank=rank)
    factors = StateProjector(rank=rank).factors(state)
    close(factors.apply(grad), expected, tolerance(shape, torch.float64, gap=0.25))
    assert [list(r) for r in factors.ranks] == ranks


def diagonal(*channels):
    """One image whose channels have these singular values."""
    return torch.stack(
        [torch.diag(torch.tensor(c, dtype=torch.float64)) for c in channels]
    )[None]


def test_the_mean_rule_rounds_the_mean_of_the_channels_down():
    # ranks 1, 1 and 3 for 99 %: a mean of 5/3
    state = diagonal([1.0, 0, 0], [1.0, 0, 0], [1.0, 1, 1])
    ranks = lambda rule: StateProjector(rank=rule).factors(state).ranks  # noqa: E731
    assert ranks("per_channel") == ((1, 1, 3),)
    assert ranks("mean") == ((1, 1, 1),)


def test_the_official_rule_is_one_running_sum_over_the_channels_over_three():
    # squares 1, 0, 0, 1, 0, 0, 1, 1, 1: 0.7 * 5 is reached by the 8th, 8 // 3 = 2
    state = diagonal([1.0, 0, 0], [1.0, 0, 0], [1.0, 1, 1])
    assert StateProjector(0.7, rank="official").factors(state).ranks == ((2, 2, 2),)
    assert StateProjector(0.7, rank="mean").factors(state).ranks == ((1, 1, 1),)


@pytest.mark.parametrize("rule", ["per_channel", "mean", "official", 2])
@dtypes
def test_images_of_a_batch_do_not_know_of_each_other(rule, dtype):
    state, grad = randn(3, 3, 6, 8, dtype=dtype), randn(3, 3, 6, 8, seed=2, dtype=dtype)
    projector = StateProjector(0.8, rank=rule)
    together = projector(grad, state=state)
    before = _core.info()["threads"]
    try:
        dsg.set_num_threads(2)
        assert torch.equal(projector(grad, state=state), together)
    finally:
        dsg.set_num_threads(before)
    for i in range(3):
        alone = projector(grad[i : i + 1], state=state[i : i + 1])
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("rule", ["per_channel", "mean", 1])
def test_a_zero_channel_leaves_its_gradient_alone(rule):
    state, grad = state_of(1, 3, 4, 4), randn(1, 3, 4, 4)
    state[:, 1] = 0
    factors = StateProjector(0.9, rank=rule).factors(state)
    got = factors.apply(grad)
    assert torch.equal(got[:, 1], grad[:, 1])
    assert not torch.equal(got[:, 0], grad[:, 0])
    assert factors.ranks[0][1] == 0 and factors.kept[0][1] == 1


def test_an_empty_batch_gives_an_empty_batch():
    empty = torch.empty(0, 3, 4, 4)
    projector = StateProjector()
    assert projector(empty, state=empty).shape == empty.shape
    assert projector.factors(empty).ranks == ()


def test_a_state_with_tiny_singular_values_is_projected_as_exactly():
    shape = (1, 8, 8)
    U, V = (torch.linalg.qr(randn(8, 8, seed=s))[0] for s in (1, 2))
    s = 10.0 ** -torch.arange(8, dtype=torch.float64)
    state, grad = (U * s @ V.T)[None, None], randn(1, *shape)
    got = StateProjector(rank=4)(grad, state=state)
    expected, _ = reference(state, grad, rank=4)
    # s[3] / s[0] = 1e-3 is the gap that rounding is measured against
    close(got, expected, tolerance(shape, torch.float64, gap=1e-3))


# ---- when and on what ----


@pytest.mark.parametrize("period", [1, 2, 5])
def test_it_projects_on_multiples_of_the_period(period):
    state, grad = state_of(1, 3, 6, 6), randn(1, 3, 6, 6)
    projector = StateProjector(0.9, period=period)
    expected = projector(grad, state=state)
    for iteration in range(11):
        got = projector(grad, state=state, iteration=iteration)
        assert torch.equal(got, grad if iteration % period else expected)
        assert got.data_ptr() != grad.data_ptr()


def test_the_subspace_of_the_gradient_keeps_most_of_the_gradient():
    grad = state_of(2, 3, 6, 7, seed=8)
    got = StateProjector(0.9, subspace="gradient")(grad, state=randn(2, 3, 6, 7))
    expected, _ = reference(grad, grad, 0.9)
    close(got, expected, tolerance((3, 6, 7), torch.float64, gap=0.25))
    assert (got.square().sum((2, 3)) >= 0.9 * grad.square().sum((2, 3)) - 1e-12).all()


def test_the_random_subspace_comes_from_seed_and_state_wherever_it_stands():
    grad, state = randn(2, 3, 6, 6), state_of(2, 3, 6, 6)
    projector = StateProjector(rank=2, subspace="random", seed=3)
    got = projector(grad, state=state)
    assert torch.equal(projector(grad, state=state), got)
    assert torch.equal(projector(grad[1:], state=state[1:]), got[1:])
    assert not torch.equal(projector.replace(seed=4)(grad, state=state), got)
    assert not torch.equal(got, projector.replace(subspace="state")(grad, state=state))


def test_the_random_subspace_is_drawn_anew_on_every_iteration():
    grad, state = randn(1, 3, 6, 6), state_of(1, 3, 6, 6)
    projector = StateProjector(rank=2, subspace="random")
    first, second = (projector(grad, state=state, iteration=i) for i in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(projector(grad, state=state, iteration=1), second)


def test_arguments_are_left_alone_and_layouts_do_not_matter():
    state, grad = state_of(2, 3, 6, 6), randn(2, 3, 6, 6)
    before = state.clone(), grad.clone()
    expected = StateProjector(0.9)(grad, state=state)
    assert torch.equal(state, before[0]) and torch.equal(grad, before[1])
    for layout in (
        lambda t: t.mT.contiguous().mT,
        lambda t: torch._neg_view(-t),
        lambda t: t.clone().requires_grad_(),
        lambda t: t.numpy(),
    ):
        got = StateProjector(0.9)(layout(grad), state=layout(state))
        assert torch.equal(got, expected) and not got.requires_grad


def test_factors_serve_many_gradients():
    state = state_of(2, 3, 6, 6)
    factors = StateProjector(0.9).factors(state)
    for seed in range(3):
        grad = randn(2, 3, 6, 6, seed=seed)
        expected = StateProjector(0.9)(grad, state=state)
        assert torch.equal(factors.apply(grad), expected)


def test_a_projector_is_a_value():
    projector = StateProjector(energy=0.9, period=5)
    assert projector.replace(energy=0.99) == StateProjector(period=5)
    assert StateProjector(**projector.spec()) == projector
    assert hash(projector) == hash(StateProjector(energy=0.9, period=5))
    with pytest.raises(AttributeError):
        projector.energy = 0.5


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.0}, r"energy must lie in \(0, 1\], got 0.0"),
        ({"energy": 1.01}, "got 1.01"),
        ({"energy": -0.5}, "got -0.5"),
        ({"energy": float("nan")}, "got nan"),
        ({"energy": "0.9"}, "got '0.9'"),
        ({"energy": True}, "got True"),
        ({"rank": 0}, "rank must be a rule or an int >= 1, got 0"),
        ({"rank": True}, "got True"),
        ({"rank": 2.0}, "got 2.0"),
        ({"rank": "oficial"}, "unknown rank rule 'oficial'; did you mean 'official'"),
        ({"sides": "lefft"}, "did you mean 'left'"),
        ({"sides": "all"}, "unknown sides 'all'"),
        ({"period": 0}, "period must be an int >= 1, got 0"),
        ({"period": True}, "got True"),
        ({"period": 1.0}, "got 1.0"),
        ({"subspace": "stat"}, "did you mean 'state'"),
    ],
)
def test_a_wrong_option_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=f"StateProjector: .*{message}"):
        StateProjector(**options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite_is_refused(value):
    state = randn(1, 3, 4, 4)
    state[0, 0, 0, :2] = value
    with pytest.raises(ValueError, match="state has 2 entries that are NaN"):
        StateProjector()(randn(1, 3, 4, 4), state=state)


@pytest.mark.parametrize(
    "state",
    [randn(1, 3, 4, 5), randn(2, 3, 4, 4)],
)
def test_a_state_unlike_the_gradient_is_refused(state):
    with pytest.raises(ValueError, match="grad and state must have one shape"):
        StateProjector()(randn(1, 3, 4, 4), state=state)


def test_a_state_of_another_dtype_is_refused():
    with pytest.raises(TypeError, match="grad and state must have one dtype"):
        StateProjector()(randn(1, 3, 4, 4), state=randn(1, 3, 4, 4).float())


def test_wrong_tensors_are_refused():
    good = randn(1, 3, 4, 4)
    for name, call in (
        ("grad", lambda bad: StateProjector()(bad, state=good)),
        ("state", lambda bad: StateProjector()(good, state=bad)),
        ("state", lambda bad: StateProjector().factors(bad)),
        ("grad", lambda bad: StateProjector().factors(good).apply(bad)),
    ):
        with pytest.raises(ValueError, match=f"{name} must have 4 axes"):
            call(good[0])
        with pytest.raises(TypeError, match=f"{name} must be float32 or float64"):
            call(good.half())
        with pytest.raises(TypeError, match=f"{name} must be a tensor or an array"):
            call([1.0])
    for grad, state in ((good, good.to("meta")), (good.to("meta"), good)):
        with pytest.raises(ValueError, match=r"on one device, got (cpu|meta) and"):
            StateProjector()(grad, state=state)
    with pytest.raises(ValueError, match="grad must be on cpu, got meta"):
        StateProjector().factors(good).apply(good.to("meta"))
    with pytest.raises(ValueError, match="grad must have shape"):
        StateProjector().factors(good).apply(randn(1, 3, 5, 4))
    with pytest.raises(TypeError, match="grad must be float64"):
        StateProjector().factors(good).apply(good.float())


def test_using_a_subspace_before_it_is_prepared_is_an_error():
    subspace = Subspace((1, 1, 2, 2), torch.float64, torch.device("cpu"))
    assert subspace.ranks is None and subspace.kept is None
    with pytest.raises(RuntimeError, match="before set-up"):
        subspace.apply(randn(1, 1, 2, 2))


# ---- an optimiser that projects ----

SHAPE = (2, 3, 8, 8)
TARGET, BY = randn(*SHAPE, seed=3), state_of(*SHAPE)


def variable():
    return torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)


def loss(x):
    return (x - TARGET).square().sum() / 2


def descend(optimizer, x, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
    return x.detach()


def by_hand(projector, steps, state=lambda k: BY, **options):
    """The same by AdamW with what the projector gives for every gradient."""
    x = variable()
    optimizer = torch.optim.AdamW([x], **options)
    for k in range(steps):
        x.grad = projector(x.detach() - TARGET, state=state(k), iteration=k)
        optimizer.step()
    return x.detach()


@pytest.mark.parametrize("subspace", ["state", "gradient", "random"])
@pytest.mark.parametrize("period", [1, 3])
def test_a_wrapped_optimizer_steps_along_projected_gradients(period, subspace):
    projector = StateProjector(0.8, period=period, subspace=subspace)
    x = variable()
    optimizer = torch.optim.AdamW([x], lr=0.1)
    assert projector.wrap(optimizer, state=BY) is optimizer
    got = descend(optimizer, x, 7)
    if subspace == "random":  # decomposed once: the draw of the first step
        factors = projector.factors(BY)
        projector = lambda g, state, iteration: (  # noqa: E731
            g.clone() if iteration % period else factors.apply(g)
        )
    assert torch.equal(got, by_hand(projector, 7, lr=0.1))


def test_a_fixed_state_is_decomposed_once_and_may_change_afterwards(monkeypatch):
    calls = []
    factors = StateProjector.factors
    monkeypatch.setattr(
        StateProjector,
        "factors",
        lambda self, state, **draw: calls.append(1) or factors(self, state, **draw),
    )
    x, state = variable(), BY.clone()
    optimizer = StateProjector(0.8).wrap(torch.optim.AdamW([x], lr=0.1), state=state)
    state.zero_()
    got = descend(optimizer, x, 4)
    assert len(calls) == 1
    assert torch.equal(got, by_hand(StateProjector(0.8), 4, lr=0.1))


def test_a_callable_gives_the_state_of_every_projection():
    states = [state_of(*SHAPE, seed=k) for k in range(10, 17)]
    given = iter(states[::3])  # at steps 0, 3 and 6
    x, projector = variable(), StateProjector(0.8, period=3)
    optimizer = torch.optim.AdamW([x], lr=0.1)
    projector.wrap(optimizer, state=lambda: next(given))
    got = descend(optimizer, x, 7)
    assert next(given, None) is None
    expected = by_hand(projector, 7, lambda k: states[k], lr=0.1)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("by_name", [False, True], ids=["positional", "keyword"])
def test_the_gradients_of_a_closure_are_projected(by_name):
    x, projector = variable(), StateProjector(0.8)
    optimizer = projector.wrap(torch.optim.LBFGS([x], lr=0.5, max_iter=6), state=BY)
    evaluated = []

    def closure():
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        evaluated.append(value.item())
        return value

    value = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert value.item() == evaluated[0] > evaluated[-1] and len(evaluated) > 1
    # every move is along a projected gradient, or a combination of such
    moved = x.detach()
    close(projector(moved, state=BY), moved, tolerance(SHAPE, torch.float64, 2.0**-5))
    assert moved.abs().max() > 0.1


def test_wrapping_again_replaces_the_state_and_counts_anew():
    x, projector = variable(), StateProjector(0.8, period=2)
    optimizer = torch.optim.AdamW([x], lr=0.1)
    other = state_of(*SHAPE, seed=9)
    projector.wrap(optimizer, state=other)
    descend(optimizer, x, 1)
    with torch.no_grad():
        x.zero_()
    optimizer.state.clear()
    projector.wrap(optimizer, state=BY)
    assert torch.equal(descend(optimizer, x, 4), by_hand(projector, 4, lr=0.1))


def test_schedulers_saved_states_and_parameters_without_gradients_are_as_ever():
    x, idle = variable(), variable()
    optimizer = torch.optim.AdamW([x, idle], lr=0.1)
    plain = torch.optim.AdamW([variable(), variable()], lr=0.1)
    StateProjector(0.8).wrap(optimizer, state=BY)
    assert optimizer.state_dict() == plain.state_dict()
    assert len(optimizer.param_groups) == 1
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    descend(optimizer, x, 2)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert idle.grad is None and not idle.any() and x.any()
    optimizer.zero_grad()
    assert x.grad is None


def test_what_cannot_be_wrapped_is_refused_with_the_reason():
    projector, x = StateProjector(), variable()
    adam = torch.optim.AdamW([x])
    with pytest.raises(TypeError, match=r"a torch\.optim\.Optimizer, got list"):
        projector.wrap([x], state=BY)
    with pytest.raises(TypeError, match="state must be a tensor or an array"):
        projector.wrap(adam, state=None)
    with pytest.raises(ValueError, match="state must have 4 axes"):
        projector.wrap(adam, state=BY[0])
    shapes = r"parameter of shape \(2, 3, 8, 8\), state has \(1, 3, 8, 8\)"
    with pytest.raises(ValueError, match=shapes):
        projector.wrap(adam, state=BY[:1])
    with pytest.raises(TypeError, match="parameter and state must have one dtype"):
        projector.wrap(adam, state=BY.float())
    with pytest.raises(ValueError, match="NaN or infinite"):
        projector.wrap(adam, state=BY * torch.nan)
    more = torch.optim.AdamW([x, torch.zeros(3, requires_grad=True)])
    with pytest.raises(ValueError, match=r"parameter of shape \(3,\), state has"):
        projector.wrap(more, state=BY)
    # nothing hangs on one that was refused
    assert torch.equal(descend(adam, x, 2), by_hand(lambda g, **_: g, 2))


@pytest.mark.parametrize("fixed", [True, False])
def test_a_gradient_that_cannot_be_projected_is_refused_in_the_step(fixed):
    x = variable()
    state = BY if fixed else lambda: BY
    optimizer = StateProjector().wrap(torch.optim.SGD([x], lr=1.0), state=state)
    x.grad = torch.full(SHAPE, torch.nan, dtype=torch.float64)
    with pytest.raises(ValueError, match="grad has 384 entries that are NaN"):
        optimizer.step()
    late = torch.zeros(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    optimizer.add_param_group({"params": late})
    x.grad, late.grad = None, torch.ones_like(late)
    with pytest.raises(ValueError, match=r"must have (one )?shape"):
        optimizer.step()
    assert not x.any() and not late.any()
