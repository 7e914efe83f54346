"""The vector-quantised autoencoder: latents, straight-through gradient, file format."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffstategrad.models import (
    Autoencoder,
    PixelUNet,
    load_autoencoder,
    load_network,
    save_autoencoder,
    save_network,
)
from diffstategrad.models import autoencoder as module
from diffstategrad.models.autoencoder import nearest_code


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Autoencoder((8, 16), factor=2, groups=4, codes=32, latent_channels=3).eval()
    with torch.no_grad():
        net.codebook.copy_(torch.randn(32, 3) * 0.2)
    net.scale = 2.5
    return net.requires_grad_(False)


@pytest.fixture
def saved(net, tmp_path):
    path = tmp_path / "net.safetensors"
    save_autoencoder(path, net, {"name": "it"})
    return path


# ---- Encoding and decoding -----------------------------------------------------------


@pytest.mark.parametrize(("h", "w"), [(16, 16), (4, 24)])
def test_latent_is_smaller_by_the_stride_and_comes_back(net, h, w):
    assert net.stride == 4
    z = net.encode(torch.randn(2, 3, h, w))
    assert z.shape == (2, 3, h // 4, w // 4)
    assert net.decode(z).shape == (2, 3, h, w)


def test_encoding_is_scaled_and_not_quantised(net):
    x = torch.randn(1, 3, 16, 16)
    z = net.encode(x)
    net.scale = 5.0
    twice = net.encode(x)
    net.scale = 2.5
    torch.testing.assert_close(twice, 2 * z)
    h = z / net.scale
    codes = net.codebook[nearest_code(h, net.codebook)].movedim(-1, 1)
    assert (h - codes).abs().min() > 0


def test_decoding_depends_on_the_nearest_code_alone(net):
    codes = net.codebook[torch.tensor([[3, 5], [7, 3]])].movedim(-1, 0)[None]
    z = net.scale * codes
    moved = z + 1e-4 * torch.randn(z.shape)  # codes are some 0.1 apart
    exact = net.decode(z, quantise=False)
    # z / scale and h + (q - h) each round once.
    torch.testing.assert_close(net.decode(moved), exact, rtol=0, atol=1e-5)
    assert not torch.equal(net.decode(moved, quantise=False), exact)


def test_image_that_does_not_fit_is_refused(net):
    with pytest.raises(ValueError, match="multiples of 4, got 16 x 18"):
        net.encode(torch.zeros(1, 3, 16, 18))


def test_gradient_passes_straight_through_the_quantiser(net):
    """It is the decoder's gradient, taken at the quantised point."""
    z = net.encode(torch.randn(1, 3, 16, 16)).requires_grad_()
    weight = torch.randn(1, 3, 16, 16)
    (grad,) = torch.autograd.grad((weight * net.decode(z)).sum(), z)

    h = (z / net.scale).detach()
    q = net.codebook[nearest_code(h, net.codebook)].movedim(-1, 1)
    at = (net.scale * q).requires_grad_()
    loss = (weight * net.decode(at, quantise=False)).sum()
    (expected,) = torch.autograd.grad(loss, at)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)
    assert grad.abs().max() > 0


def test_decoder_and_encoder_gradients_match_finite_differences(net):
    double = Autoencoder(**net.architecture).double().eval().requires_grad_(False)
    double.load_state_dict(net.state_dict())
    torch.manual_seed(1)
    z = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: double.decode(z, quantise=False), z)
    assert torch.autograd.gradcheck(double.encode, x)


def test_loaded_network_computes_no_parameter_gradients(saved):
    net, _ = load_autoencoder(saved)
    z = net.encode(torch.randn(1, 3, 8, 8).requires_grad_())
    net.decode(z).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_nearest_code_is_that_of_the_distance_matrix(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    h, codes = torch.randn(2, 3, 5, 7), torch.randn(33, 3)
    index = nearest_code(h, codes)
    rows = h.movedim(1, -1).reshape(-1, 1, 3)
    expected = (rows - codes).square().sum(-1).argmin(1)
    assert torch.equal(index.flatten(), expected)
    assert index.shape == (2, 5, 7)


def test_nearest_code_takes_the_first_of_equals():
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), codes).item() == 0


def test_images_of_a_batch_are_treated_separately(net):
    x = torch.randn(3, 3, 16, 16)
    both = net.encode(x)
    # Sums in another order: about 1e-6 of values of order one.
    for i in range(3):
        torch.testing.assert_close(both[i : i + 1], net.encode(x[i : i + 1]))


# ---- Files ---------------------------------------------------------------------------


def _rewrite(path, change_tensors=None, change_header=None):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["diffstategrad"])
    tensors = load_file(path)
    if change_tensors:
        change_tensors(tensors)
    if change_header:
        change_header(header)
    save_file(tensors, path, {"diffstategrad": json.dumps(header)})


def test_saved_autoencoder_comes_back_in_half_precision(net, saved):
    again, metadata = load_autoencoder(saved)
    assert metadata["name"] == "it"
    assert again.scale == net.scale
    assert again.architecture == net.architecture
    assert not again.training
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float())


def test_files_of_the_other_kind_are_rejected(saved, tmp_path):
    with pytest.raises(ValueError, match="format is not 'diffstategrad-pixel-unet-1'"):
        load_network(saved)
    path = tmp_path / "unet.safetensors"
    save_network(path, PixelUNet(channels=(8,), groups=4), {})
    with pytest.raises(ValueError, match=r"unet\.safetensors: .*vq-autoencoder-1'"):
        load_autoencoder(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.safetensors"):
        load_autoencoder(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file_is_rejected(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"load_autoencoder: .*net\.safetensors"):
        load_autoencoder(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(scale=None), "scale must be a number"),
        (lambda h: h.update(scale=0.0), "scale must be a number"),
        (lambda h: h.update(scale=float("nan")), "scale must be a number"),
        (lambda h: h["architecture"].update(evil=1), "exactly the keys"),
        (lambda h: h["architecture"].update(codes=10**9), r"codes must be in 2\.\."),
        (lambda h: h["architecture"].update(channels=[1024] * 8), "larger than any"),
        (
            lambda h: h["architecture"].update(
                channels=[8] * 8, factor=8, latent_channels=64
            ),
            "larger than any",
        ),
        (lambda h: h["architecture"].update(codes=33), r"embedding.*has shape"),
        (lambda h: h["architecture"].update(layers=2), "is missing"),
    ],
)
def test_hostile_header_is_rejected(saved, change, message):
    _rewrite(saved, change_header=change)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("vq.quant_conv.bias"), r"quant_conv\.bias' is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected tensor 'extra'"),
        (
            lambda t: t["vq.quantize.embedding.weight"].fill_(float("nan")),
            "NaN or infinite",
        ),
    ],
)
def test_wrong_tensors_are_rejected(saved, change, message):
    _rewrite(saved, change_tensors=change)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(saved)


def test_weight_too_large_for_half_precision_is_refused(net, tmp_path):
    broken = Autoencoder(**net.architecture)
    with torch.no_grad():
        broken.codebook[0, 0] = 1e6
    with pytest.raises(ValueError, match="not finite in half precision"):
        save_autoencoder(tmp_path / "net.safetensors", broken, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ()}, "channels must list"),
        ({"channels": (8, 12)}, "multiple of groups"),
        ({"codes": 1}, r"codes must be in 2\.\."),
        ({"latent_channels": 0}, "latent_channels must be in"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder(**arguments)
