"""The procedural image stream."""

from __future__ import annotations

import numpy as np
import pytest

from diffstategrad.training.leaves import power_law, render, scene


@pytest.mark.parametrize("size", [8, 37, 64])
def test_scene_has_the_documented_shape_type_and_range(size):
    image = render(3, size)
    assert image.shape == (3, size, size)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() >= -1 and image.max() <= 1


def test_scene_depends_on_seed_and_index_alone():
    first = scene(5, 2, 64)
    np.testing.assert_array_equal(first, scene(5, 2, 64))
    assert not np.array_equal(first, scene(5, 3, 64))
    assert not np.array_equal(first, scene(6, 2, 64))


def test_integer_seed_equals_its_generator():
    np.testing.assert_array_equal(render(9, 48), render(np.random.default_rng(9), 48))


def test_render_rejects_a_tiny_size():
    with pytest.raises(ValueError, match="size must be at least 8, got 7"):
        render(0, 7)


@pytest.mark.parametrize("alpha", [2.3, 3.0])
def test_radii_follow_the_power_law(alpha):
    n, low, high = 20_000, 2.0, 200.0
    radii = np.sort(power_law(np.random.default_rng(0), n, low, high, alpha))
    assert radii[0] >= low and radii[-1] <= high
    k = 1 - alpha
    cdf = (radii**k - low**k) / (high**k - low**k)
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand seeds.
    assert np.abs(cdf - (np.arange(n) + 0.5) / n).max() < 1.95 / np.sqrt(n)


def test_power_spectrum_falls_as_in_photographs():
    """Photographs have power close to 1/f^2; measured on six of them: 2.1 to 3.2."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    window = np.outer(np.hanning(128), np.hanning(128))
    slopes = []
    for index in range(12):
        grey = scene(1, index, 128).mean(0)
        power = np.abs(np.fft.fft2((grey - grey.mean()) * window))
        low = np.mean(power[(frequency > 0.03) & (frequency < 0.06)] ** 2)
        high = np.mean(power[(frequency > 0.2) & (frequency < 0.4)] ** 2)
        slopes.append(np.log(low / high) / np.log(0.3 / 0.045))
    assert 2.0 < np.median(slopes) < 3.5


def test_gradients_are_heavy_tailed():
    """Edges are rare and strong: a Gaussian field would have kurtosis 3."""
    kurtosis = []
    for index in range(12):
        step = np.diff(scene(2, index, 96).mean(0), axis=1)
        kurtosis.append(np.mean(step**4) / np.mean(step**2) ** 2)
    assert np.median(kurtosis) > 6
