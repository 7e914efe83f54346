from __future__ import annotations

import pytest
import torch

from diffstategrad import _core
from diffstategrad.noise import MEASUREMENT, CounterNoise, ReplayNoise, TorchNoise


def counter(images=(0,), samples=None, seed=7):
    return CounterNoise(seed, images, [0] * len(images) if samples is None else samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_of_a_batch_gets_the_noise_it_gets_alone(dtype):
    like = torch.empty(3, 2, 5, 7, dtype=dtype)
    together = counter((4, 5, 6)).normal(like)
    assert together.dtype == dtype and together.shape == like.shape
    for i, image in enumerate((4, 5, 6)):
        assert torch.equal(counter((image,)).normal(like[:1])[0], together[i])


def test_the_same_seed_gives_the_same_noise_and_another_seed_other_noise():
    like = torch.empty(1, 1, 8, 8)
    first = counter().normal(like)
    assert torch.equal(counter().normal(like), first)
    assert not torch.equal(counter(seed=8).normal(like), first)


def test_draws_images_and_samples_are_all_different():
    like = torch.empty(4, 1, 8, 8)
    source = counter((0, 0, 1, 1), (0, 1, 0, MEASUREMENT))
    draws = torch.cat([source.normal(like), source.normal(like)])
    assert len(torch.unique(draws.flatten(1), dim=0)) == 8


def test_numbers_are_standard_normal():
    x = counter((0, 1)).normal(torch.empty(2, 1, 200, 250, dtype=torch.float64))
    n = x.numel()
    # standard errors of the first four moments, times five
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5


def test_native_draws_count_as_taken():
    like = torch.empty(2, 1, 4, 4)
    one_by_one, jumping = counter((0, 1)), counter((0, 1))
    draws = [one_by_one.normal(like) for _ in range(4)]
    assert jumping.native(3) == (7, [0, 1], [0, 0], 0)
    assert torch.equal(jumping.normal(like), draws[3])
    assert jumping.native(1)[3] == 4


def test_the_key_of_native_makes_the_same_numbers():
    like = torch.empty(2, 1, 4, 4)
    out = torch.empty(2, 16)
    _core.normal(out, counter((3, 9)).native(1))
    assert torch.equal(out.reshape(like.shape), counter((3, 9)).normal(like))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"in 0\.\.2\*\*64-1, got {seed}"):
        counter(seed=seed)


@pytest.mark.parametrize("seed", [1.0, "1", True, None])
def test_a_seed_that_is_no_int_is_refused(seed):
    with pytest.raises(TypeError, match=f"got {type(seed).__name__}"):
        counter(seed=seed)


def test_the_largest_seed_works():
    assert counter(seed=2**64 - 1).normal(torch.empty(1, 1, 2, 2)).isfinite().all()


def test_torch_noise_is_the_generators_own():
    like = torch.empty(2, 3, 4, 4, dtype=torch.float64)
    source = TorchNoise(torch.Generator().manual_seed(3))
    expected = torch.Generator().manual_seed(3)
    for _ in range(2):
        draw = torch.randn(like.shape, generator=expected, dtype=like.dtype)
        assert torch.equal(source.normal(like), draw)
    assert source.native(5) is None


def test_replayed_draws_come_in_order_and_in_the_asked_dtype():
    recorded = [torch.full((1, 1, 2, 2), float(i)) for i in range(2)]
    source = ReplayNoise(recorded)
    like = torch.empty(1, 1, 2, 2, dtype=torch.float64)
    assert source.native(1) is None
    for draw in recorded:
        got = source.normal(like)
        assert got.dtype == torch.float64 and torch.equal(got, draw.double())


def test_replay_says_when_it_has_run_out():
    source = ReplayNoise([])
    with pytest.raises(ValueError, match="run out of draws"):
        source.normal(torch.empty(1, 1, 2, 2))


def test_replay_refuses_a_draw_of_another_shape():
    source = ReplayNoise([torch.zeros(1, 1, 2, 3)])
    with pytest.raises(
        ValueError, match=r"\(1, 1, 2, 3\), the run needs \(1, 1, 2, 2\)"
    ):
        source.normal(torch.empty(1, 1, 2, 2))
