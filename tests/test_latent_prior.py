"""A prior of latents with its autoencoder, and who may use it."""

import pytest
import torch

import diffstategrad as dsg
from diffstategrad.models import Autoencoder
from diffstategrad.priors import LatentPrior, NetworkPrior
from diffstategrad.samplers import Network


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
    assert not torch.equal(network.decode(z, quantise=False), network.decode(z))
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
