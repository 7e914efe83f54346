from __future__ import annotations

import numpy as np
import pytest
import torch

from diffstategrad import GaussianNoise, PoissonNoise, _core
from diffstategrad.noise import MEASUREMENT, CounterNoise, ReplayNoise, TorchNoise
from diffstategrad.operators import Downsample, Identity


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


# ---- noise of measurements ----

NOISES = [GaussianNoise(0.3), PoissonNoise(0.05)]
noises = pytest.mark.parametrize("noise", NOISES, ids=["gaussian", "poisson"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def clean(batch=3, dtype=torch.float64, seed=0):
    """Measurements in [-1, 1]."""
    source = torch.Generator().manual_seed(seed)
    shape = (batch, 2, 5, 6)
    return 2 * torch.rand(shape, generator=source, dtype=torch.float64).to(dtype) - 1


@noises
@dtypes
def test_a_noisy_measurement_has_the_dtype_and_shape_of_the_clean_one(noise, dtype):
    y = clean(dtype=dtype)
    before = y.clone()
    noisy = noise(y, 1)
    assert noisy.dtype == dtype and noisy.shape == y.shape
    assert torch.equal(y, before) and not torch.equal(noisy, y)


@noises
def test_noise_comes_from_the_seed_alone(noise):
    y = clean()
    assert torch.equal(noise(y, 1), noise(y, 1))
    assert torch.equal(noise(y, np.int64(1)), noise(y, 1))
    assert not torch.equal(noise(y, 2), noise(y, 1))
    assert noise(y, 2**64 - 1).isfinite().all()


@noises
def test_an_image_has_the_noise_of_its_place_whatever_follows(noise):
    y = clean(3)
    together = noise(y, 7)
    for n in range(3):
        assert torch.equal(noise(y[:n], 7), together[:n])
    # equal images at two places have two noises
    same = noise(y[:1].expand(2, -1, -1, -1), 7)
    assert not torch.equal(same[0], same[1])


def test_gaussian_noise_is_the_counters():
    y = clean()
    source = CounterNoise(5, range(3), [MEASUREMENT] * 3)
    assert torch.equal(GaussianNoise(0.2)(y, 5), y + 0.2 * source.normal(y))


@dtypes
def test_no_gaussian_noise_is_the_measurement(dtype):
    y = clean(dtype=dtype)
    assert torch.equal(GaussianNoise(0.0)(y, 5), y)


def test_gaussian_noise_has_its_mean_and_standard_deviation():
    y = torch.full((2, 1, 200, 250), 0.9, dtype=torch.float64)
    error = (GaussianNoise(0.3)(y, 0) - y) / 0.3
    n = error.numel()
    # five standard errors; nothing is clipped
    assert abs(error.mean()) < 5 / n**0.5
    assert abs(error.std() - 1) < 5 / (2 * n) ** 0.5


@pytest.mark.parametrize("value", [-0.8, 0.0, 0.2])
@pytest.mark.parametrize("rate", [0.5, 4.0])
def test_poisson_noise_has_the_mean_and_variance_of_its_counts(value, rate):
    y = PoissonNoise(rate)(torch.full((2, 1, 200, 250), value, dtype=torch.float64), 0)
    photons = 255 * rate * (value + 1) / 2
    counts = (y + 1) / 2 * 255 * rate
    # whole numbers, to rounding of numbers up to 255 rate
    assert (counts - counts.round()).abs().max() < 10 * 255 * rate * 2.0**-52
    n = counts.numel()
    # fourth central moment of a count: m (1 + 3 m); clipping at 1 is 5.8 deviations off
    assert abs(counts.mean() - photons) < 5 * (photons / n) ** 0.5
    spread = (photons * (1 + 3 * photons) - photons**2) / n
    assert abs(counts.var() - photons) < 5 * spread**0.5


def test_poisson_noise_is_clipped_and_takes_what_is_outside_for_black_and_white():
    y = torch.tensor([[[[-3.0, -1.0, 1.0, 5.0]]]], dtype=torch.float64)
    noisy = PoissonNoise(0.1)(y.expand(64, 1, 1, 4), 0)
    assert (noisy[..., :2] == -1).all()
    assert noisy.max() == 1 and noisy.min() == -1
    # the last two columns are both white, but each with its own noise
    assert not torch.equal(noisy[..., 2], noisy[..., 3])


@dtypes
def test_a_random_state_gives_the_published_stream(dtype):
    """NumPy's legacy generator on intensities in single precision, batch as one."""
    y, rate = clean(dtype=dtype), 0.7
    v = ((y.float() + 1) / 2).clamp(0, 1).numpy()
    counts = np.random.RandomState(11).poisson(v * 255.0 * np.float32(rate))
    source = np.random.RandomState(11)
    noisy = PoissonNoise(rate)(y, source)
    assert noisy.dtype == dtype
    expected = torch.from_numpy(np.clip(2 * (counts / 255.0 / rate) - 1, -1, 1))
    # the product 255 rate rounds to float32 in another order, which moves no count here
    torch.testing.assert_close(noisy, expected.to(dtype), rtol=0, atol=0)
    # the state has moved on
    assert not torch.equal(PoissonNoise(rate)(y, source), noisy)
    again = PoissonNoise(rate)(y, np.random.RandomState(11))
    assert torch.equal(again, noisy)


def test_noise_uses_no_global_generator():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    for noise in NOISES:
        noise(clean(), 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf"), True, "1", None])
def test_a_wrong_sigma_is_named(sigma):
    with pytest.raises(ValueError, match=f"noise: sigma must be >= 0, got {sigma!r}"):
        GaussianNoise(sigma)


@pytest.mark.parametrize(
    "rate", [0, -1.0, 1e-7, 1e7, float("nan"), float("inf"), True, "1", None]
)
def test_a_wrong_rate_is_named(rate):
    with pytest.raises(ValueError, match=f"rate must lie in 1e-6..1e6, got {rate!r}"):
        PoissonNoise(rate)


@noises
@pytest.mark.parametrize("seed", [1.5, True, "1", None])
def test_a_seed_of_noise_that_is_no_int_is_named(noise, seed):
    with pytest.raises(TypeError, match=f"got {type(seed).__name__}"):
        noise(clean(), seed)


@noises
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_of_noise_out_of_range_is_named(noise, seed):
    with pytest.raises(ValueError, match=rf"in 0\.\.2\*\*64-1, got {seed}"):
        noise(clean(), seed)


def test_gaussian_noise_of_a_random_state_is_refused():
    with pytest.raises(TypeError, match="takes an int"):
        GaussianNoise(0.1)(clean(), np.random.RandomState(0))


@noises
def test_measuring_with_noise_is_noise_on_the_clean_measurement(noise):
    A, x = Downsample(2, ceil=True), clean()
    y = A.measure(x, noise=noise, seed=4)
    assert torch.equal(y, noise(A(x), 4))
    array = A.measure(x.numpy(), noise=noise, seed=4)
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, y.numpy())
    assert not A.measure(x.clone().requires_grad_(), noise=noise).requires_grad


def test_measuring_with_sigma_is_measuring_with_gaussian_noise():
    A, x = Identity(), clean()
    assert torch.equal(A.measure(x, 0.2), A.measure(x, noise=GaussianNoise(0.2)))


def test_measuring_with_a_random_state_is_the_published_stream():
    A, x = Identity(), clean()
    y = A.measure(x, noise=PoissonNoise(1.0), seed=np.random.RandomState(2))
    assert torch.equal(y, PoissonNoise(1.0)(x, np.random.RandomState(2)))


@pytest.mark.parametrize("options", [{}, {"sigma": 0.1, "noise": GaussianNoise(0.1)}])
def test_measuring_needs_sigma_or_noise(options):
    with pytest.raises(ValueError, match="measure: give either sigma or noise"):
        Identity().measure(clean(), **options)


def test_any_function_may_be_the_noise():
    x = clean()
    y = Identity().measure(x, noise=lambda clean, seed: clean + seed, seed=3)
    assert torch.equal(y, x + 3)


def test_images_that_are_not_finite_are_not_measured():
    x = clean()
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="x has 1 entries that are NaN or infinite"):
        Identity().measure(x, noise=PoissonNoise())


def test_noises_are_values():
    assert GaussianNoise(0.1) == GaussianNoise(0.1) != GaussianNoise(0.2)
    assert repr(PoissonNoise(2.0)) == "PoissonNoise(rate=2.0)"
    assert PoissonNoise() == PoissonNoise(1.0)
