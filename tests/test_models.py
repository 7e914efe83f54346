"""The pixel network and its file format."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffstategrad.models import PixelUNet, load_network, save_network


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return PixelUNet(channels=(8, 16), groups=4).eval()


@pytest.fixture
def saved(net, tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(path, net, {"prediction": "v", "schedule": {"beta_min": 0.1}})
    return path


def _rewrite(path, change_tensors=None, change_header=None):
    """Save the file again after an edit; as an attacker or a bug would."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["diffstategrad"])
    tensors = load_file(path)
    if change_tensors:
        change_tensors(tensors)
    if change_header:
        change_header(header)
    save_file(tensors, path, {"diffstategrad": json.dumps(header)})


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 4, 24)])
def test_network_keeps_the_shape(net, shape):
    z = torch.randn(shape)
    assert net(z, 12.5).shape == shape
    assert net(z, torch.full((shape[0],), 12.5)).shape == shape


def test_network_treats_the_items_of_a_batch_separately(net):
    z, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.5])
    both = net(z, t)
    alone = torch.cat([net(z[:1], t[0]), net(z[1:], t[1])])
    # Sums in another order: about 1e-6 of values of order one.
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


def test_network_depends_on_fractions_of_the_time(net):
    z = torch.randn(1, 3, 16, 16)
    assert not torch.equal(net(z, 10.0), net(z, 10.5))


def test_network_names_its_stride_when_a_size_does_not_fit(net):
    assert net.stride == 4
    with pytest.raises(ValueError, match="multiples of 4, got 16 x 18"):
        net(torch.zeros(1, 3, 16, 18), 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ()}, "channels must list"),
        ({"channels": (8, 12)}, "multiple of groups"),
        ({"layers": 0}, "layers must be in"),
        ({"factor": 2.0}, "factor must be an integer"),
    ],
)
def test_network_rejects_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelUNet(**arguments)


def test_saved_network_comes_back_in_half_precision(net, saved):
    again, metadata = load_network(saved)
    assert metadata["prediction"] == "v"
    assert metadata["schedule"] == {"beta_min": 0.1}
    assert again.architecture == net.architecture
    assert not again.training
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float())
    assert not any(p.requires_grad for p in again.parameters())


def test_loading_leaves_the_global_generator_alone(saved):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_network(saved)
    assert torch.equal(torch.rand(2), expected)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load_network(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file_is_rejected(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"net\.safetensors"):
        load_network(saved)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04pickle" * 20,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"{}",
    ],
)
def test_other_kinds_of_file_are_rejected(tmp_path, data):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"odd\.safetensors"):
        load_network(path)


def _set(key, value):
    return lambda header: header.__setitem__(key, value)


def _set_architecture(key, value):
    return lambda header: header["architecture"].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format", "else"), "not a diffstategrad network"),
        (_set("architecture", None), "architecture must have exactly"),
        (_set_architecture("class", "os.system"), "architecture must have exactly"),
        (_set_architecture("channels", [8, 10**9]), r"channels must be in 1\.\.1024"),
        (_set_architecture("channels", [1024] * 8), "larger than any network"),
        (_set_architecture("layers", "1"), "layers must be an integer"),
        (_set_architecture("channels", [16, 32]), "has shape"),
        (_set_architecture("layers", 2), "is missing"),
    ],
)
def test_hostile_header_is_rejected(saved, change, message):
    _rewrite(saved, change_header=change)
    with pytest.raises(ValueError, match=message) as caught:
        load_network(saved)
    assert str(saved) in str(caught.value)


def _first(tensors):
    return sorted(tensors)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop(_first(d)), "is missing"),
        (lambda d: d.update(extra=torch.zeros(1)), "unexpected tensor 'extra'"),
        (lambda d: d[_first(d)].view(-1)[0].fill_(torch.nan), "NaN or infinite"),
        (lambda d: d[_first(d)].view(-1)[0].fill_(-torch.inf), "NaN or infinite"),
        (lambda d: d.update({_first(d): torch.zeros(7)}), "has shape"),
        (lambda d: d.update({_first(d): d[_first(d)].int()}), "has dtype"),
    ],
)
def test_wrong_tensors_are_rejected(saved, change, message):
    _rewrite(saved, change_tensors=change)
    with pytest.raises(ValueError, match=message) as caught:
        load_network(saved)
    assert str(saved) in str(caught.value)


def test_weights_that_overflow_half_precision_are_not_saved(tmp_path):
    net = PixelUNet(channels=(8,), groups=4)
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = 1e6
    with pytest.raises(ValueError, match="not finite in half precision"):
        save_network(tmp_path / "net.safetensors", net, {})
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file_and_no_other(net, saved, monkeypatch):
    """A full disk, as the writer reports it."""
    before = saved.read_bytes()

    def full(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffstategrad.models.unet.save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*net\.safetensors.*No space"):
        save_network(saved, net, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_unwritable_folder_is_named(net, tmp_path):
    with pytest.raises(OSError, match=r"cannot write .*absent"):
        save_network(tmp_path / "absent" / "net.safetensors", net, {})
