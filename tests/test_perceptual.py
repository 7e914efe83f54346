"""LPIPS and FID without their networks: what is refused, what is said, the formula.

The networks themselves run in `tests/interop` (``make test-interop``).
"""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import scipy.linalg
import torch

from diffstategrad import metrics
from diffstategrad.perceptual import frechet_distance

LIBRARIES = ("torchmetrics", "torchvision", "torch_fidelity")


def images(*shape, seed=0, dtype=torch.float32):
    source = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=source, dtype=dtype) * 2 - 1


def pair(*shape, **options):
    return images(*shape, seed=1, **options), images(*shape, seed=2, **options)


@pytest.fixture
def without_libraries(monkeypatch):
    """An import of any of them fails, as where the extra is not installed."""
    for name in LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def with_empty_libraries(monkeypatch, tmp_path):
    """They can be imported, which is all that happens before weights are looked for;
    torch.hub keeps nothing."""
    for name in LIBRARIES:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("name", ["lpips", "fid"])
def test_a_missing_library_is_named_with_its_extra(name, without_libraries):
    message = rf"{name} needs torchmetrics.*pip install 'diffstategrad\[metrics\]'"
    with pytest.raises(ImportError, match=message):
        getattr(metrics, name)(*pair(2, 3, 32, 32))


@pytest.mark.parametrize(
    "name, options, file",
    [
        ("lpips", {"net": "vgg"}, "vgg16-397923af.pth"),
        ("lpips", {"net": "alex"}, "alexnet-owt-7be5be79.pth"),
        ("fid", {}, "weights-inception-2015-12-05-6726825d.pth"),
        ("fid", {"convention": "daps"}, "inception_v3_google-0cc3c7bd.pth"),
    ],
)
def test_missing_weights_are_named_with_their_place_and_nothing_is_fetched(
    name, options, file, with_empty_libraries, monkeypatch
):
    def fetch(*args, **kwargs):
        raise AssertionError("tried to download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(FileNotFoundError) as error:
        getattr(metrics, name)(*pair(2, 3, 32, 32), **options)
    said = str(error.value)
    assert said.startswith(f"{name}: no weights {file} in {with_empty_libraries} ")
    assert "TORCH_HOME" in said and "weights=" in said and "://" not in said


@pytest.mark.parametrize("name", ["lpips", "fid"])
def test_a_wrong_path_to_weights_is_named(name, with_empty_libraries):
    with pytest.raises(FileNotFoundError, match=rf"{name}: no weights at nowhere\.pth"):
        getattr(metrics, name)(*pair(2, 3, 32, 32), weights="nowhere.pth")


@pytest.mark.parametrize("name", ["lpips", "fid"])
def test_images_that_do_not_fit_are_refused_before_anything_is_loaded(
    name, without_libraries
):
    metric = getattr(metrics, name)
    x, ref = pair(2, 3, 32, 32)
    with pytest.raises(ValueError, match="4 axes"):
        metric(x[0], ref[0])
    with pytest.raises(TypeError, match="ref must be float32 or float64"):
        metric(x, ref.half())
    with pytest.raises(ValueError, match="needs 3 channels, got 1; a grey image"):
        metric(x[:, :1], ref[:, :1])
    with pytest.raises(ValueError, match="value_range"):
        metric(x, ref, value_range=(1, 0))
    with pytest.raises(ValueError, match="unknown convention 'dap'"):
        metric(x, ref, convention="dap")
    bad = ref.clone()
    bad[1, 2, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="ref has 1 entries"):
        metric(x, bad)


def test_fid_refuses_two_dtypes_or_devices_before_anything_runs(without_libraries):
    x, ref = pair(2, 3, 32, 32)
    with pytest.raises(TypeError, match="x and ref must have one dtype"):
        metrics.fid(x, ref.double())
    with pytest.raises(ValueError, match="x and ref must be on one device"):
        metrics.fid(x, ref.to("meta"))


def test_lpips_refuses_pairs_and_nets_that_do_not_fit(without_libraries):
    x, ref = pair(2, 3, 32, 32)
    with pytest.raises(ValueError, match="one shape"):
        metrics.lpips(x, ref[:1])
    with pytest.raises(TypeError, match="one dtype"):
        metrics.lpips(x, ref.double())
    with pytest.raises(ValueError, match="unknown net 'alexnet'; did you mean 'alex'"):
        metrics.lpips(x, ref, net="alexnet")
    for net, side in (("vgg", 16), ("alex", 31)):
        small = x[..., : side - 1]
        with pytest.raises(ValueError, match=f"at least {side} x {side}, got 32 x"):
            metrics.lpips(small, small, net=net)


def test_fid_refuses_single_images(without_libraries):
    x, ref = pair(2, 3, 32, 32)
    with pytest.raises(ValueError, match="ref must have at least 2 images, got 1"):
        metrics.fid(x, ref[:1])


# The distance of two sets of features


def by_definition(a, b):
    """With the matrix root of SciPy."""
    a, b = a.numpy(), b.numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.asarray(scipy.linalg.sqrtm(s @ t)).real
    shift = a.mean(0) - b.mean(0)
    return shift @ shift + np.trace(s + t - 2 * root)


def features(n, d, seed):
    source = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=source, dtype=torch.float64)
    return torch.randn(n, d, generator=source, dtype=torch.float64) @ mix + seed


@pytest.mark.parametrize("n, m", [(40, 30), (9, 30), (8, 8)])
def test_the_frechet_distance_agrees_with_the_matrix_root(n, m):
    a, b = features(n, 7, 1), features(m, 7, 2)
    assert frechet_distance(a, b) == pytest.approx(by_definition(a, b), rel=1e-9)


def test_the_frechet_distance_of_known_gaussians_is_known():
    # two points each: variances 2 and 8 along one axis, means 3 apart along another
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    b = torch.tensor([[2.0, 3.0], [-2.0, 3.0]])
    expected = 9 + (2**0.5 - 8**0.5) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("n", [5, 50])
def test_the_frechet_distance_of_a_set_and_itself_is_zero(n):
    a = features(n, 12, 3)
    scale = float(a.var(0).sum())
    assert frechet_distance(a, a) <= 1e-13 * n * scale
    assert frechet_distance(a, a.flip(0)) <= 1e-13 * n * scale


def test_fewer_features_than_images_change_nothing():
    a, b = features(30, 6, 4), features(25, 6, 5)
    wide = [torch.nn.functional.pad(t, (0, 40)) for t in (a, b)]  # N < D, same distance
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(a, b), rel=1e-10)
