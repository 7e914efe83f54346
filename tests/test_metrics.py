from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffstategrad import metrics

EPS32 = 2.0**-23
ALL = [metrics.psnr, metrics.ssim, metrics.nmse]


def images(*shape, seed=0, dtype=torch.float64):
    """Uniform noise in [-1, 1] and noisy copies that leave the range."""
    source = torch.Generator().manual_seed(seed)
    ref = torch.rand(shape, generator=source, dtype=dtype) * 2 - 1
    noise = torch.randn(shape, generator=source, dtype=dtype)
    return ref + 0.3 * noise, ref


@pytest.mark.parametrize("offset", [0.2, 0.02, 0.5])
def test_psnr_of_a_constant_offset_is_its_decibels(offset):
    ref = torch.full((2, 3, 5, 4), -0.25, dtype=torch.float64)
    # half the offset after mapping [-1, 1] to [0, 1]
    expected = torch.full((2,), -20 * np.log10(offset / 2), dtype=torch.float64)
    torch.testing.assert_close(
        metrics.psnr(ref + offset, ref), expected, rtol=1e-13, atol=0
    )


def test_equal_images_have_the_best_values():
    _, ref = images(2, 3, 16, 16)
    assert metrics.psnr(ref, ref).tolist() == [np.inf] * 2
    assert metrics.nmse(ref, ref).tolist() == [0, 0]
    piq = metrics.psnr(ref, ref, convention="piq")
    torch.testing.assert_close(piq, torch.full_like(piq, 80), rtol=1e-14, atol=0)
    for window in ("gaussian", "uniform"):
        one = metrics.ssim(ref, ref, window=window)
        torch.testing.assert_close(one, torch.ones_like(one), rtol=1e-12, atol=0)


def test_nmse_of_a_scaled_image_is_known():
    ref = torch.ones(1, 2, 4, 4, dtype=torch.float64)  # 1 after mapping
    got = float(metrics.nmse(ref * 0.5, ref))  # 0.75 after mapping
    assert got == pytest.approx(0.25**2 / (1 + 1e-6), rel=1e-13)


def test_psnr_and_uniform_ssim_agree_with_scikit_image():
    x, ref = images(2, 3, 21, 34)
    u, v = (((t.clamp(-1, 1) + 1) / 2).numpy() for t in (x, ref))
    pairs = list(zip(v, u, strict=True))
    psnr = [peak_signal_noise_ratio(*pair, data_range=1) for pair in pairs]
    ssim = [
        structural_similarity(*pair, data_range=1, channel_axis=0) for pair in pairs
    ]
    np.testing.assert_allclose(metrics.psnr(x, ref), psnr, rtol=1e-12)
    np.testing.assert_allclose(
        metrics.ssim(x, ref, window="uniform"), ssim, rtol=0, atol=1e-11
    )


def test_gaussian_ssim_agrees_with_scikit_image_inside_the_border():
    x, ref = images(1, 1, 30, 25)
    u, v = (((t.clamp(-1, 1) + 1) / 2).numpy()[0, 0] for t in (x, ref))
    _, full = structural_similarity(
        v,
        u,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    expected = full[5:-5, 5:-5].mean()
    assert float(metrics.ssim(x, ref)) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("metric", ALL)
def test_an_image_of_a_batch_has_the_value_it_has_alone(metric):
    x, ref = images(3, 3, 17, 12)
    alone = torch.cat([metric(x[i : i + 1], ref[i : i + 1]) for i in range(3)])
    assert torch.equal(metric(x, ref), alone)


@pytest.mark.parametrize("metric", ALL)
def test_what_leaves_the_range_is_clipped(metric):
    x, ref = images(2, 3, 12, 12)
    assert torch.equal(metric(x, ref), metric(x.clamp(-1, 1), ref))


@pytest.mark.parametrize("metric", ALL)
def test_the_value_range_only_names_the_scale(metric):
    x, ref = images(2, 3, 12, 12)
    got = metric((x + 1) / 2, (ref + 1) / 2, value_range=(0.0, 1.0))
    torch.testing.assert_close(got, metric(x, ref), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", ALL)
def test_single_precision_images_have_nearly_the_same_value(metric):
    x, ref = images(2, 3, 12, 12)
    got = metric(x.float(), ref.float())
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, metric(x, ref), rtol=100 * EPS32, atol=100 * EPS32)


@pytest.mark.parametrize("metric", ALL)
def test_an_array_gives_an_array(metric):
    x, ref = images(2, 3, 12, 12)
    got = metric(x.numpy(), ref.numpy())
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, metric(x, ref).numpy())


@pytest.mark.parametrize("metric", ALL)
def test_an_empty_batch_gives_no_values(metric):
    x = torch.empty(0, 3, 12, 12)
    assert metric(x, x).shape == (0,)


def test_large_images_are_averaged_before_a_gaussian_window():
    x, ref = images(1, 1, 384, 390)
    u, v = (torch.nn.functional.avg_pool2d(t.clamp(-1, 1), 2) for t in (x, ref))
    got = metrics.ssim(x, ref)
    torch.testing.assert_close(got, metrics.ssim(u, v), rtol=1e-12, atol=0)
    assert abs(got - metrics.ssim(x, ref, downsample=False)) > 1e-4
    small_x, small_ref = x[..., :383, :], ref[..., :383, :]
    assert torch.equal(
        metrics.ssim(small_x, small_ref),
        metrics.ssim(small_x, small_ref, downsample=False),
    )


@pytest.mark.parametrize("window, size", [("gaussian", 11), ("uniform", 7)])
def test_ssim_refuses_an_image_smaller_than_its_window(window, size):
    x, ref = images(1, 1, size, size)
    assert metrics.ssim(x, ref, window=window).shape == (1,)
    with pytest.raises(ValueError, match=rf"at least {size} x {size}, got {size - 1}"):
        metrics.ssim(x[..., 1:, :], ref[..., 1:, :], window=window)


@pytest.mark.parametrize("metric", ALL)
def test_images_that_do_not_fit_each_other_are_refused(metric):
    x, ref = images(1, 3, 12, 12)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 3, 12, 12\) and"):
        metric(x, ref[:, :1])
    with pytest.raises(TypeError, match="one dtype"):
        metric(x, ref.float())
    with pytest.raises(TypeError, match="ref must be float32 or float64"):
        metric(x, ref.half())
    with pytest.raises(ValueError, match="4 axes"):
        metric(x[0], ref[0])


@pytest.mark.parametrize("metric", ALL)
def test_images_with_nan_are_refused_by_name(metric):
    x, ref = images(1, 3, 12, 12)
    bad = x.clone()
    bad[0, 0, 0, :2] = torch.nan
    with pytest.raises(ValueError, match="x has 2 entries"):
        metric(bad, ref)
    with pytest.raises(ValueError, match="ref has 2 entries"):
        metric(x, bad)


def test_unknown_options_are_named():
    x, ref = images(1, 1, 12, 12)
    with pytest.raises(ValueError, match="convention 'pik'; did you mean 'piq'"):
        metrics.psnr(x, ref, convention="pik")
    with pytest.raises(ValueError, match="unknown window 'gauss'"):
        metrics.ssim(x, ref, window="gauss")
    with pytest.raises(ValueError, match=r"value_range .* got \(1\.0, 0\.0\)"):
        metrics.nmse(x, ref, value_range=(1.0, 0.0))
