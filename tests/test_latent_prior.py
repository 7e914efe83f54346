"""A prior of latents with its autoencoder, and who may use it."""

import math
from importlib.resources import files

import pytest
import torch
from safetensors.torch import save_file

import diffstategrad as dsg
from diffstategrad.models import (
    Autoencoder,
    PixelUNet,
    save_autoencoder,
    save_network,
)
from diffstategrad.noise import CounterNoise
from diffstategrad.priors import LatentPrior, NetworkPrior, describe_prior, load_prior
from diffstategrad.samplers import Network
from diffstategrad.training.evaluate import photograph


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    net = Autoencoder((8,), factor=2, latent_channels=4, codes=16)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prior(autoencoder):
    latent = NetworkPrior(lambda z, t: 0.1 * z, channels=4, stride=4)
    return LatentPrior(latent, autoencoder, name="toy")


def test_sizes_are_those_of_images(prior):
    assert (prior.channels, prior.stride) == (3, 8)
    assert prior.latent_shape((3, 16, 24)) == (4, 8, 12)
    with pytest.raises(ValueError, match="divisible by 8"):
        prior.latent_shape((3, 12, 16))
    with pytest.raises(ValueError, match="3 channels"):
        prior.check_shape((1, 16, 16))


def test_channels_of_prior_and_autoencoder_must_agree(autoencoder):
    latent = NetworkPrior(lambda z, t: z, channels=3)
    with pytest.raises(ValueError, match=r"latents of 3 channels.* have 4"):
        LatentPrior(latent, autoencoder)


def test_other_things_are_no_latent_prior(prior, autoencoder):
    for latent in (lambda x, sigma: x, "leaves64", prior):
        with pytest.raises(TypeError, match="latent must be a Prior of latents alone"):
            LatentPrior(latent, autoencoder)
    for other in (Autoencoder, torch.nn.Identity()):
        with pytest.raises(TypeError, match="autoencoder must have image_channels"):
            LatentPrior(prior.latent, other)


class Spoiled:
    """An autoencoder that gives something else."""

    image_channels, latent_channels, stride, stochastic = 3, 4, 2, False

    def __init__(self, net, spoil):
        self.net, self.spoil = net, spoil

    def encode(self, x, noise=None):
        return self.spoil(self.net.encode(x))

    def decode(self, z, quantise=True):
        return self.spoil(self.net.decode(z))


@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (lambda t: t[:, :1], ValueError, r"{} must give the shape \({}\), got \(1, 1"),
        (lambda t: t[..., 1:], ValueError, r"{} must give the shape \({}\)"),
        (lambda t: {"sample": t}, TypeError, "{} must return a tensor, got dict"),
        (lambda t: t.detach(), TypeError, "through the prior, and {} .* without a gr"),
    ],
)
def test_an_autoencoder_that_breaks_its_word_is_told(
    prior, autoencoder, spoil, error, message
):
    """What broadcasts or has no gradient would pass unseen."""
    spoiled = LatentPrior(prior.latent, Spoiled(autoencoder, spoil))
    x = torch.zeros(1, 3, 8, 16, requires_grad=True)
    z = torch.zeros(1, 4, 4, 8, requires_grad=True)
    with pytest.raises(error, match=message.format("encode", "1, 4, 4, 8")):
        spoiled.encode(x)
    with pytest.raises(error, match=message.format("decode", "1, 3, 8, 16")):
        spoiled.decode(z)


def test_the_diffusion_model_sees_latents(prior):
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(prior.denoise(z, 0.5), prior.latent.denoise(z, 0.5))
    assert torch.equal(prior.predict(z, 0.5)[0], prior.latent.predict(z, 0.5)[0])
    assert torch.equal(prior.estimate(z, 0.5)[0], prior.latent.estimate(z, 0.5)[0])
    assert torch.equal(prior.eps(z, 1000), 0.1 * z)


def test_batches_are_encoded_and_decoded_image_by_image(prior):
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    network = Network(prior, batch=1)
    z = network.encode(x)
    assert torch.equal(z[1:2], prior.encode(x[1:2]))
    assert torch.equal(network.decode(z)[2:], prior.decode(z[2:]))
    assert not torch.equal(prior.decode(z, quantise=False), prior.decode(z))
    assert network.calls == 0


def test_a_pixel_method_refuses_it(prior):
    y = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"daps works on pixels.*'toy'"):
        dsg.solve(y, dsg.operators.Identity(), prior, sigma=0.1)


def test_the_network_at_its_own_time():
    """Another time than the schedule's, the conversion by the schedule's level."""
    z = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    times = []

    def network(z, t):
        times.append(t.item())
        return 0.3 * z

    for prediction in ("epsilon", "v", "start_x"):
        prior = NetworkPrior(network, prediction)
        agreed = prior.predict(z, prior.alpha_bar(400.0))[0]
        assert torch.allclose(prior.eps(z, 400.0), agreed, rtol=1e-5)
    prior.eps(z, 1000)
    assert times[-1] == 1000


def bundled(name):
    return files("diffstategrad.weights") / f"{name}.safetensors"


def test_the_bundled_one_restores_what_its_autoencoder_can():
    """With little noise the estimate is the encoded photograph."""
    prior = dsg.priors.as_prior("leaves_latent")
    x = torch.from_numpy(photograph("coffee"))[None]
    with torch.no_grad():
        z = prior.encode(x)
        again = prior.decode(z)
        noise = CounterNoise(0, [0], [0]).normal(z)
        denoised = prior.denoise(z + 0.2 * noise, 0.2)
    assert dsg.metrics.psnr(again.clamp(-1, 1), x) > 24
    assert (denoised - z).square().mean() < 0.75 * (0.2 * noise).square().mean()
    assert prior.spec()["name"] == "leaves_latent"


def test_a_latent_network_needs_its_own_autoencoder(tmp_path):
    network, other = tmp_path / "net.safetensors", tmp_path / "other.safetensors"
    network.write_bytes(bundled("leaves_latent").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"leaves_vq4\.safetensors"):
        load_prior(network)
    prior = load_prior(network, autoencoder=str(bundled("leaves_vq4")))
    assert isinstance(prior, LatentPrior)
    save_autoencoder(other, Autoencoder((8,), codes=16), {})
    with pytest.raises(ValueError, match=r"other\.safetensors: is not the autoencoder"):
        load_prior(network, autoencoder=other)
    with pytest.raises(ValueError, match="takes no autoencoder"):
        load_prior(str(bundled("leaves64")), autoencoder=other)


def test_an_autoencoder_alone_is_described_but_no_prior():
    lines = describe_prior(str(bundled("leaves_vq4")))
    assert lines["latent"] == "4 channels, sides / 4"
    assert "leaves_vq4" in describe_prior(str(bundled("leaves_latent")))["kind"]
    with pytest.raises(ValueError, match="leaves_vq4"):
        load_prior(str(bundled("leaves_vq4")))


@pytest.mark.parametrize("header", ["x", "[1]", "null", "[" * 99_999])
def test_a_header_that_is_none_is_refused_with_the_file(tmp_path, header):
    path = tmp_path / "net.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"diffstategrad": header})
    for read in (describe_prior, load_prior):
        with pytest.raises(ValueError, match=r"net\.safetensors: "):
            read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": {"type": "other"}}, "unknown schedule {'type': 'other'}"),
        ({"schedule": None}, "unknown schedule None"),
        ({"schedule": {"type": "VP", "beta_min": "x"}}, "unknown schedule"),
        ({"schedule": {"type": "VP", "beta_d": math.nan}}, "unknown schedule"),
        ({"schedule": {"type": "VP", "beta_d": 10**400}}, "unknown schedule"),
        ({"schedule": {"type": "VP", "beta_min": 9999}}, "unknown schedule"),
        ({"schedule": {"type": "table", "n": 10**9}}, "unknown schedule"),
        ({"schedule": {"type": "table", "end": 2.0}}, "unknown schedule"),
        ({"prediction": "noise"}, "unknown prediction 'noise'"),
        ({"prediction": ["v"]}, "unknown prediction"),
        ({"latent": "leaves_vq4"}, "names no autoencoder, but 'leaves_vq4'"),
        ({"latent": {"autoencoder": "../vq4"}}, "names no autoencoder, but {.*vq4'}"),
    ],
)
def test_a_header_that_is_not_understood_is_quoted_with_the_file(
    tmp_path, change, message
):
    path = tmp_path / "net.safetensors"
    header = {"prediction": "v", "schedule": {"type": "VP"}}
    save_network(path, PixelUNet(channels=(8,)), {**header, **change})
    for read in (load_prior, describe_prior):
        with pytest.raises(ValueError, match=f"net.safetensors: {message}"):
            read(path)
