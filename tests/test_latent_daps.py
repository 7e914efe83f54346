"""LatentDAPS: DAPS where the autoencoder does nothing; gradient, clamp and times."""

from __future__ import annotations

import pytest
import torch
from published import TOY, ToyAutoencoder

import diffstategrad as dsg
from diffstategrad import GaussianPrior, StateProjector
from diffstategrad.operators import Downsample, GaussianBlur, HighDynamicRange
from diffstategrad.priors import LatentPrior, NetworkPrior
from diffstategrad.samplers import Network
from diffstategrad.samplers.decoded import Decoded
from diffstategrad.schedules import TableSchedule

SIZE = 8
SIGMA = 0.1
FIELD = GaussianPrior((3, SIZE, SIZE))
OPERATORS = {
    "blur": GaussianBlur(3, 1.0),
    "downsample": Downsample(2),
    "hdr": HighDynamicRange(),
}


class Nothing:
    """An autoencoder whose latents are the images."""

    image_channels = latent_channels = 3
    stride, stochastic = 1, False

    def encode(self, x, noise=None):
        return x

    def decode(self, z, quantise=True):
        return z


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("project", [None, StateProjector(0.6)], ids=["plain", "dsg"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"version": "2024", "centre": "mean"},
        {"dynamics": "hmc", "momentum": 0.6},
        {"prior_score": "exact"},
        {"dynamics": "mh"},
    ],
    ids=["langevin", "2024", "hmc", "exact", "mh"],
)
def test_without_an_autoencoder_it_is_daps_bit_for_bit(
    options, project, operator, dtype, monkeypatch
):
    if project and options.get("dynamics") == "mh":
        pytest.skip("takes no projector")
    A = OPERATORS[operator]
    # there the core makes all steps of a level in one call, which rounds differently
    monkeypatch.setattr(type(A), "native", lambda self, shape, dtype: None)
    y = A.measure(FIELD.sample(2, seed=1).to(dtype), SIGMA, seed=2)
    same = {
        **{"version": "2025", "steps": 5, "ode_steps": 2, "langevin_steps": 6},
        **{"sigma_max": 10.0, "ode_sigma_min": 1e-3, "lr": 1e-4, "tau": 0.05},
        **{"sigma": SIGMA, "project": project, "progress": False, **options},
    }
    if options.get("centre") == "mean":
        del same["ode_steps"], same["ode_sigma_min"]
    levels = []
    prior = LatentPrior(FIELD, Nothing())
    latent = dsg.solve(y, A, prior, "latent_daps", callback=levels.append, **same)
    pixel = dsg.solve(y, A, FIELD, "daps", **same)
    assert torch.equal(latent.x, pixel.x)
    assert latent.trace == pixel.trace and latent.nfe == pixel.nfe
    assert not torch.equal(levels[-1].x0y, levels[-1].x0hat)


def test_the_gradient_is_that_of_the_halved_square_through_the_decoder():
    A, autoencoder = OPERATORS["blur"], ToyAutoencoder(TOY, 2)
    network = Network(LatentPrior(FIELD, autoencoder), batch=1)
    z = noise(3, 3, 4, 4)
    y = noise(3, 3, 8, 8, seed=1)
    gradient, sqnorm = Decoded(A, network).residual_gradient(z, y)
    leaf = z.clone().requires_grad_()
    square = (A(autoencoder.decode(leaf)) - y).square().sum((1, 2, 3))
    (expected,) = torch.autograd.grad(square.sum() / 2, leaf)
    # sums of some hundred products
    atol = 1000 * 2.0**-52 * expected.abs().max().item()
    torch.testing.assert_close(gradient, expected, rtol=0, atol=atol)
    torch.testing.assert_close(sqnorm, square.detach(), rtol=1e-14, atol=0)
    assert network.calls == 0  # it is no call of the prior

    clamped, same = Decoded(A, network, clamp=0.5).residual_gradient(z, y)
    assert torch.equal(2 * clamped, (2 * gradient).clamp(-1, 1))
    assert torch.equal(same, sqnorm)
    assert (clamped != gradient).any() and (clamped == gradient).any()


@pytest.mark.parametrize(
    ("sigma", "native", "official"),
    [(10, 736.8, 675.4), (3, 517.0, 475.6), (1, 254.0, 258.7), (0.3, 49.6, 88.1)],
)
def test_networks_are_called_at_their_own_times_or_the_released_ones(
    sigma, native, official
):
    times = []

    def network(z, t):
        times.append(t.item())
        return torch.zeros_like(z)

    prior = LatentPrior(NetworkPrior(network, schedule=TableSchedule()), Nothing())
    y = torch.zeros(1, 3, SIZE, SIZE)
    for schedule, expected in (("native", native), ("official", official)):
        times.clear()
        dsg.solve(
            *(y, OPERATORS["blur"], prior, "latent_daps"),
            **{"sigma": SIGMA, "steps": 1, "centre": "mean", "langevin_steps": 1},
            **{"sigma_max": sigma, "lr": 1e-6, "progress": False, "schedule": schedule},
        )
        assert times == [pytest.approx(expected, abs=0.05)]


def test_the_clamp_bounds_the_force_of_the_data_on_every_entry():
    A, tau, eta = OPERATORS["blur"], 0.05, 1e-4
    y = noise(1, 3, SIZE, SIZE)
    free, bounded = [], []
    for clamp, levels in ((False, free), (True, bounded)):
        dsg.solve(
            *(y, A, LatentPrior(FIELD, Nothing()), "latent_daps"),
            **{"sigma": SIGMA, "steps": 1, "langevin_steps": 1, "progress": False},
            **{"lr": eta, "tau": tau, "clamp": clamp, "callback": levels.append},
        )
    (free,), (bounded,) = free, bounded
    gradient = 2 * A.residual_gradient(free.x0hat, y)[0]
    assert gradient.abs().max() > 1 > gradient.abs().min()
    # the first step starts at the estimate, where the prior has no force
    kept = eta / tau**2 * (gradient - gradient.clamp(-1, 1))
    atol = 16 * 2.0**-52 * free.x0y.abs().max().item()
    torch.testing.assert_close(bounded.x0y - free.x0y, kept, rtol=0, atol=atol)


def test_a_prior_of_latents_of_another_size_is_refused():
    prior = LatentPrior(FIELD, ToyAutoencoder(TOY, 2))
    y = torch.zeros(1, 3, SIZE, SIZE)
    with pytest.raises(
        ValueError, match=r"latents of shape \(3, 4, 4\): .*\(3, 8, 8\)"
    ):
        dsg.solve(y, OPERATORS["blur"], prior, "latent_daps", sigma=SIGMA)


def test_the_default_levels_are_the_released_ones():
    class Noting(GaussianPrior):
        def denoise(self, x, sigma):
            sigmas.append(sigma)
            return super().denoise(x, sigma)

    sigmas = []
    result = dsg.solve(
        *(torch.zeros(1, 3, SIZE, SIZE), OPERATORS["blur"]),
        *(LatentPrior(Noting(FIELD.shape), Nothing()), "latent_daps"),
        **{"sigma": SIGMA, "langevin_steps": 1, "progress": False},
    )
    levels = [level["sigma"] for level in result.trace]
    assert len(levels) == 50
    assert levels[:2] == pytest.approx([10, 9.3443352846], rel=1e-10)
    assert levels[-1] == pytest.approx(0.1137803724, rel=1e-9)
    # the ODE's two steps go to the level 0.001, which no call is made at
    assert sigmas[:2] == pytest.approx([10, 0.41235480546], rel=1e-10)
    assert len(sigmas) == 2 * 50
