"""LPIPS and FID through their networks, with weights made by formula.

What trained weights would change is the numbers, none of the code that runs.
"""
# ruff: noqa: E402 (what is imported below may be missing)

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

REASON = "`make test-interop` runs these: they need torchvision"
torchvision = pytest.importorskip("torchvision", reason=REASON)
pytest.importorskip("torch_fidelity", reason=REASON)
torchmetrics = pytest.importorskip("torchmetrics", reason=REASON)

from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity as library_lpips,
)
from torchmetrics.image.fid import FrechetInceptionDistance

from diffstategrad import metrics, perceptual

EPS32 = 2.0**-23
NETS = ["vgg", "alex"]
CONVENTIONS = ["standard", "daps"]
BACKBONES = {"vgg": "vgg16", "alex": "alexnet"}


def images(n, seed, size=40, dtype=torch.float32, smooth=False):
    """Noise in [-1, 1], or blobs."""
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, size, size, generator=source, dtype=dtype) * 2 - 1
    return F.avg_pool2d(x, 5, stride=1, padding=2) * 2 if smooth else x


def fill(state, seed):
    """He's normal weights, so that every layer passes on what it gets."""
    source = torch.Generator().manual_seed(seed)
    out = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            out[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        elif tensor.ndim > 1:
            std = math.sqrt(2 / tensor[0].numel())
            out[name] = torch.randn(tensor.shape, generator=source) * std
        elif name.endswith(("running_var", "bn.weight")):
            out[name] = torch.ones(tensor.shape)
        else:
            out[name] = torch.randn(tensor.shape, generator=source) * 0.1
    return out


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of torch.hub with weights of all four networks."""
    folder = tmp_path_factory.mktemp("torch")
    checkpoints = folder / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for seed, net in enumerate(NETS):
        with torch.device("meta"):
            network = getattr(torchvision.models, BACKBONES[net])(weights=None)
        state = fill(network.features.state_dict(prefix="features."), seed)
        torch.save(state, checkpoints / perceptual._LPIPS_WEIGHTS[net].file)
    with torch.device("meta"):
        network = torchvision.models.inception_v3(weights=None, init_weights=False)
    file = perceptual._FID_WEIGHTS["daps"].file
    torch.save(fill(network.state_dict(), 3), checkpoints / file)
    with pytest.MonkeyPatch.context() as patch:  # its constructor would download
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(
            fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *a: None
        )
        network = fidelity.FeatureExtractorInceptionV3("made", ["2048"])
    file = perceptual._FID_WEIGHTS["standard"].file
    torch.save(fill(network.state_dict(), 4), checkpoints / file)
    return folder


@pytest.fixture(autouse=True)
def _at_home(home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(home))


def stored(home, file):
    return home / "hub" / "checkpoints" / file


# LPIPS


@pytest.mark.parametrize("net", NETS)
def test_lpips_of_equal_images_is_zero_and_else_positive(net):
    x = images(2, 0)
    assert metrics.lpips(x, x, net=net).tolist() == [0, 0]
    assert (metrics.lpips(x, images(2, 1), net=net) > 1e-3).all()


@pytest.mark.parametrize("net", NETS)
def test_lpips_is_the_number_of_torchmetrics(net, home, monkeypatch):
    """Its own function, which builds the network and loads weights in its own way."""
    x, ref = images(2, 0), images(2, 1)
    file = stored(home, perceptual._LPIPS_WEIGHTS[net].file)
    state = torch.load(file, weights_only=True)
    backbone = getattr(torchvision.models, BACKBONES[net])

    def pretrained(name, pretrained):
        features = backbone(weights=None).features
        features.load_state_dict({k.removeprefix("features."): state[k] for k in state})
        return features

    monkeypatch.setattr(
        "torchmetrics.functional.image.lpips._get_tv_model_features", pretrained
    )
    for convention, u, v in (
        ("correct", x, ref),
        ("diffstategrad", (x + 1) / 2, (ref + 1) / 2),
    ):
        got = metrics.lpips(x, ref, net=net, convention=convention)
        expected = library_lpips(u, v, net_type=net, reduction="none").double()
        # sums of up to 512 channels in single precision
        torch.testing.assert_close(got, expected, rtol=512 * EPS32, atol=0)


def test_lpips_of_vgg_is_its_definition(home):
    """From torchvision's network, layer by layer, and the learned weights."""
    x, ref = images(1, 0), images(1, 1)
    network = torchvision.models.vgg16(weights=None)
    file = stored(home, perceptual._LPIPS_WEIGHTS["vgg"].file)
    network.load_state_dict(torch.load(file, weights_only=True), strict=False)
    folder = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
    learned = torch.load(folder / "vgg.pth", map_location="cpu", weights_only=True)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    u, v = (((t + 1) / 2 - mean) / std for t in (x, ref))
    total, ends = 0.0, {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}
    with torch.no_grad():
        for index, layer in enumerate(network.features[:30]):
            u, v = layer(u), layer(v)
            if index in ends:
                w = learned[f"lin{ends[index]}.model.1.weight"]
                f, g = (F.normalize(t.double(), dim=1) for t in (u, v))
                total += float((w.double() * (f - g).square()).sum(1).mean())
    # the constants of the lpips package have three digits
    assert float(metrics.lpips(x, ref)) == pytest.approx(total, rel=2e-2)


@pytest.mark.parametrize("net", NETS)
def test_lpips_of_a_batch_is_that_of_its_images_bit_for_bit(net):
    x, ref = images(3, 0), images(3, 1)
    got = metrics.lpips(x, ref, net=net)
    alone = [metrics.lpips(x[i : i + 1], ref[i : i + 1], net=net) for i in range(3)]
    assert got.dtype == torch.float64 and got.shape == (3,)
    assert torch.equal(got, torch.cat(alone))


@pytest.mark.parametrize("net, side", [("vgg", 16), ("alex", 31)])
def test_lpips_takes_the_smallest_images_it_promises(net, side):
    x, ref = images(1, 0, side), images(1, 1, side)
    assert 0 < float(metrics.lpips(x, ref, net=net)) < math.inf


def test_lpips_knows_ranges_arrays_and_precisions():
    x, ref = images(2, 0), images(2, 1)
    got = metrics.lpips(x, ref)
    assert torch.equal(metrics.lpips(x * 1.0, ref.clamp(-1, 1)), got)
    clipped = metrics.lpips(3 * x, ref)
    assert torch.equal(clipped, metrics.lpips((3 * x).clamp(-1, 1), ref))
    close = {"rtol": 1e-4, "atol": 0}  # inputs rounded before some twenty layers
    unit = metrics.lpips((x + 1) / 2, (ref + 1) / 2, value_range=(0, 1))
    torch.testing.assert_close(unit, got, **close)
    torch.testing.assert_close(metrics.lpips(x.double(), ref.double()), got, **close)
    array = metrics.lpips(x.numpy(), ref.numpy())
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, got.numpy())
    assert metrics.lpips(x[:0], ref[:0]).shape == (0,)


def test_lpips_leaves_the_global_generator_alone():
    perceptual._lpips_network.cache_clear()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    metrics.lpips(images(1, 0), images(1, 1))
    assert torch.equal(torch.rand(3), expected)


def test_weights_are_taken_from_a_path_in_both_formats(home, tmp_path, monkeypatch):
    x, ref = images(1, 0), images(1, 1)
    expected = metrics.lpips(x, ref, net="alex")
    file = stored(home, perceptual._LPIPS_WEIGHTS["alex"].file)
    state = torch.load(file, weights_only=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    save_file(state, tmp_path / "alex.safetensors")
    torch.save({**state, "classifier.1.bias": torch.zeros(3)}, tmp_path / "alex.pth")
    for name in ("alex.safetensors", "alex.pth"):
        got = metrics.lpips(x, ref, net="alex", weights=tmp_path / name)
        assert torch.equal(got, expected)
    with pytest.raises(
        FileNotFoundError, match=r"no weights alexnet-owt-7be5be79\.pth"
    ):
        metrics.lpips(x, ref, net="alex")


class Evil:
    """Its pickle writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_no_weights_are_refused(home, tmp_path):
    x = images(2, 0)
    (tmp_path / "text.pth").write_text("not a network")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": Evil(tmp_path / "written")}, tmp_path / "evil.pth")
    other = stored(home, perceptual._LPIPS_WEIGHTS["alex"].file)
    for call in (
        metrics.lpips,
        metrics.fid,
        lambda *a, **k: metrics.fid(*a, **k, convention="daps"),
    ):
        for name in ("text", "evil"):
            with pytest.raises(ValueError, match=rf"cannot read .*{name}\.pth"):
                call(x, x, weights=tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match="holds no weights by name"):
            call(x, x, weights=tmp_path / "list.pth")
        with pytest.raises(ValueError, match="has weights of another network"):
            call(x, x, weights=other)
    assert not (tmp_path / "written").exists()


def test_the_file_names_are_those_of_the_libraries():
    enums = torchvision.models
    for known, url in (
        (perceptual._LPIPS_WEIGHTS["vgg"], enums.VGG16_Weights.IMAGENET1K_V1.url),
        (perceptual._LPIPS_WEIGHTS["alex"], enums.AlexNet_Weights.IMAGENET1K_V1.url),
        (perceptual._FID_WEIGHTS["daps"], enums.Inception_V3_Weights.IMAGENET1K_V1.url),
        (perceptual._FID_WEIGHTS["standard"], fidelity.URL_INCEPTION_V3),
    ):
        assert url.rpartition("/")[2] == known.file


# FID


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_fid_of_a_set_and_itself_is_nearly_zero_and_else_positive(convention):
    x, ref = images(3, 0), images(3, 1, smooth=True)
    unlike = metrics.fid(x, ref, convention=convention)
    assert unlike > 0
    if convention == "standard":  # the other one truncates one side only
        assert metrics.fid(x, x) < 1e-6 * unlike
    eight_bits = ((x + 1) / 2 * 255).floor() / 255
    itself = metrics.fid(
        eight_bits, eight_bits, convention=convention, value_range=(0, 1)
    )
    assert itself < 1e-2 * unlike


def test_fid_is_the_number_of_torchmetrics(home):
    x, ref = images(3, 0), images(4, 1, smooth=True)
    library = FrechetInceptionDistance(
        antialias=False,
        feature_extractor_weights_path=stored(
            home, perceptual._FID_WEIGHTS["standard"].file
        ),
    )
    for t, real in ((ref.clamp(-1, 1), True), (x, False)):
        library.update(((t + 1) / 2 * 255).round().to(torch.uint8), real=real)
    # theirs: roots of eigenvalues of a 2048 x 2048 product of rank 3, float32 result
    assert metrics.fid(x, ref) == pytest.approx(float(library.compute()), rel=1e-3)


def trace_of_root(s, t):
    """tr (S T)^(1/2) as tr (S^(1/2) T S^(1/2))^(1/2), which singular matrices have."""
    values, vectors = np.linalg.eigh(s)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    return np.sqrt(np.linalg.eigvalsh(root @ t @ root).clip(0)).sum()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_fid_is_its_definition_on_the_same_features(convention):
    x, ref = images(4, 0, 20), images(3, 1, 20, smooth=True).clamp(-1, 1)
    u, v = (x + 1) / 2, (ref + 1) / 2
    known = perceptual._FID_WEIGHTS[convention]
    if convention == "standard":
        network = perceptual._cached("fid", perceptual._fid_standard, "", known, None)
        u, v = ((255 * t).round().to(torch.uint8) for t in (u, v))
    else:
        network = perceptual._cached("fid", perceptual._fid_daps, "", known, None)
        u = (255 * u).floor() / 255
    with torch.no_grad():
        a, b = network(u).double().numpy(), network(v).double().numpy()
    shift = a.mean(0) - b.mean(0)
    # covariances in the space that the seven images span
    basis = np.linalg.svd(np.concatenate([a, b]), full_matrices=False)[2]
    s, t = (np.cov(f @ basis.T, rowvar=False) for f in (a, b))
    expected = shift @ shift + np.trace(s + t) - 2 * trace_of_root(s, t)
    got = metrics.fid(x, ref, convention=convention)
    # roots of eigenvalues that are zero but for rounding
    assert got == pytest.approx(expected, rel=1e-5)


def test_fid_of_daps_takes_features_of_torchvision(home):
    """2048 features of the pooled layer, input resized, then ImageNet's statistics."""
    known = perceptual._FID_WEIGHTS["daps"]
    network = perceptual._cached("fid", perceptual._fid_daps, "daps", known, None)
    u = (images(2, 0) + 1) / 2
    plain = torchvision.models.inception_v3(
        weights=None, init_weights=False, transform_input=False
    ).eval()
    plain.load_state_dict(torch.load(stored(home, known.file), weights_only=True))
    plain.fc = torch.nn.Identity()
    resized = F.interpolate(u, (299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():  # the statistics and transform_input undo each other
        expected, got = plain(2 * resized - 1), network(u)
    assert got.shape == (2, 2048)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(got.std()))
