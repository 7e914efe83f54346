"""Networks in another precision, memory layout or compiled, and under autocast."""

from __future__ import annotations

import shutil
from importlib.resources import files

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_methods import (
    BLUR,
    LATENT,
    QUICK,
    SIGMA,
    VARIANTS,
    measured,
    solve,
)
from torch import nn

import diffstategrad as dsg
from diffstategrad import reference
from diffstategrad.models import Autoencoder
from diffstategrad.operators import from_callable
from diffstategrad.priors import (
    GaussianPrior,
    LatentPrior,
    NetworkPrior,
    as_prior,
    load_prior,
)
from diffstategrad.training.leaves import scene

pytestmark = pytest.mark.once

HALVES = [torch.bfloat16, torch.float16]
#: How `Prior.to` is called: everything but `compile`, which takes seconds.
OPTIONS = {
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "float64": {"dtype": torch.float64},
    "channels-last": {"channels_last": True},
    "both": {"dtype": torch.bfloat16, "channels_last": True},
}
SIGMAS = [0.01, 0.1, 1.0, 10.0, 80.0]
#: Layers with weights in the bundled network.
LAYERS = 63


class Small(nn.Module):
    """Two layers; notes the dtypes that it sees, and whether it was compiled."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        for value in self.state_dict().values():
            value.copy_(torch.linspace(-0.2, 0.2, value.numel()).view_as(value))
        self.eval().requires_grad_(False)
        self.seen, self.compiled = [], False

    def forward(self, z, t):
        self.compiled = torch.compiler.is_compiling()
        h = self.first(z)
        out = self.second(F.silu(h) * torch.cos(t.view(-1, 1, 1, 1)).to(h))
        self.seen.append((z.dtype, t.dtype, h.dtype, out.dtype))
        return out


def prior(network=None, **options):
    return NetworkPrior(network or Small(), channels=3).to(**options)


def leaves(**options):
    return as_prior("leaves64").to(**options)


def states(sigma, n=1, size=32, dtype=torch.float32):
    source = torch.Generator().manual_seed(0)
    x0 = torch.from_numpy(np.stack([scene(77, i, size) for i in range(n)])).to(dtype)
    return x0 + sigma * torch.randn(x0.shape, generator=source).to(dtype)


def rms(x):
    return x.double().square().mean().sqrt().item()


def allowed(dtype, x, v, sigma):
    """Of a denoised image: the state is rounded, and in every layer what comes in, the
    weights and what goes out, which adds up like independent errors."""
    u = torch.finfo(dtype).eps / 2
    return u * (rms(x) + (3 * LAYERS) ** 0.5 * sigma / (1 + sigma**2) ** 0.5 * rms(v))


# ---- the network's own precision and layout ----


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_bundled_prior_denoises_as_in_single_precision(name, sigma):
    options = OPTIONS[name]
    x = states(sigma, size=16 if name == "float16" else 32)
    plain, other = leaves(), leaves(**options)
    expected, got = plain.denoise(x, sigma), other.denoise(x, sigma)
    assert got.dtype == torch.float32 and got.is_contiguous()
    c_in = (1 + sigma**2) ** -0.5
    v = (c_in**2 * x - expected) / (sigma * c_in)
    dtype = options.get("dtype", torch.float32)
    # single precision is what the others are compared with
    coarser = torch.float32 if dtype == torch.float64 else dtype
    assert rms(got - expected) <= allowed(coarser, x, v, sigma)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_gradient_through_the_network_is_that_of_single_precision(name):
    x, dtype = states(0.5, size=16), OPTIONS[name].get("dtype", torch.float32)

    def gradient(prior):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(prior.denoise(leaf, 0.5).square().sum(), leaf)[0]

    got, expected = gradient(leaves(**OPTIONS[name])), gradient(leaves())
    assert got.dtype == torch.float32
    # forth and back through every layer
    u = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) / 2
    assert rms(got - expected) <= u * (6 * LAYERS) ** 0.5 * rms(expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_is_a_loop_in_every_precision_and_layout(name):
    A, y = BLUR, measured(2)
    options = {"sigma": SIGMA, "progress": False, **QUICK["dps"]}
    network = prior(**OPTIONS[name])
    together = dsg.solve(y, A, network, "dps", **options)
    assert together.x.dtype == torch.float32 and together.x.isfinite().all()
    for i in range(2):
        alone = dsg.solve(y[i : i + 1], A, network, "dps", **options)
        assert torch.equal(alone.x[0], together.x[i])


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_a_network_sees_its_dtype_and_times_at_least_in_single_precision(dtype, given):
    network = Small()
    denoised = prior(network, dtype=dtype).denoise(states(0.3, dtype=given), 0.3)
    ((z, t, hidden, out),) = network.seen
    assert z == hidden == out == dtype and denoised.dtype == given
    assert t == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_layout_and_precision_are_in_the_record_and_are_taken_back():
    network = Small()
    network_prior = prior(network)
    assert "dtype" not in network_prior.spec()
    same = network_prior.to(dtype=torch.bfloat16, channels_last=True, compile=True)
    assert same is network_prior
    extra = {"dtype": "bfloat16", "channels_last": True, "compile": True}
    assert network_prior.spec().items() >= extra.items()
    layout = {"memory_format": torch.channels_last}
    assert network.first.weight.is_contiguous(**layout)
    network_prior.to(dtype=torch.float32, channels_last=False, compile=False)
    assert not set(extra) & set(network_prior.spec())
    assert network.first.weight.is_contiguous()


def test_a_file_is_read_with_these_options():
    path = files("diffstategrad.weights") / "leaves64.safetensors"
    options = {"dtype": torch.bfloat16, "channels_last": True, "compile": True}
    read, named = load_prior(str(path), name="leaves64", **options), leaves(**options)
    assert read.spec() == named.spec() and read.border.dtype == torch.bfloat16
    pairs = zip(read.network.parameters(), named.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_autoencoder_is_converted_with_the_network_behind_it():
    net = Autoencoder((8,), factor=2, latent_channels=3, codes=16).requires_grad_(False)
    both = LatentPrior(prior(), net).to(dtype=torch.bfloat16, channels_last=True)
    assert both.latent.border.dtype == both.border.dtype == torch.bfloat16
    for given in (torch.float32, torch.float64):
        x = states(0.1, size=16, dtype=given)
        z = both.encode(x)
        assert z.dtype == both.denoise(z, 0.3).dtype == both.decode(z).dtype == given


def test_what_is_no_module_is_not_converted():
    network = r"torch\.nn\.Module, got function"
    for option in ("dtype", "channels_last", "compile"):
        options = {option: torch.float32 if option == "dtype" else True}
        with pytest.raises(TypeError, match=network):
            NetworkPrior(lambda z, t: z).to(**options)
        with pytest.raises(TypeError, match="GaussianPrior has no network to convert"):
            GaussianPrior((3, 8, 8)).to(**options)
    for dtype in (torch.int8, torch.complex64, "bfloat16"):
        with pytest.raises(ValueError, match=r"dtype must be one of torch\.float32"):
            prior(dtype=dtype)


# torch's own
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_network_computes_the_same():
    plain, compiled = prior(), prior(compile=True)
    x = states(0.3, size=8)
    u = torch.finfo(torch.float32).eps / 2
    for sigma in (0.3, 0.5):  # compiled once
        expected = plain.denoise(x, sigma)
        error = rms(compiled.denoise(x, sigma) - expected)
        assert error <= 27 * u * rms(x)  # sums of 27 terms in another order

    def gradient(prior):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(prior.denoise(leaf, 0.3).square().sum(), leaf)[0]

    expected = gradient(plain)
    assert rms(gradient(compiled) - expected) <= 54 * u * rms(expected)
    assert compiled.network.compiled and not plain.network.compiled


# ---- autocast ----


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_changes_nothing_but_networks(variant, dtype):
    y = measured(2)
    expected = solve(variant, y)
    with torch.autocast("cpu", dtype):
        got = solve(variant, y)
    assert got.x.dtype == torch.float32
    if VARIANTS[variant][0] in LATENT:  # whose toy autoencoder has a convolution
        assert got.x.isfinite().all()
    else:
        assert torch.equal(got.x, expected.x) and got.trace == expected.trace


@pytest.mark.parametrize("method", ["dps", "daps", "dmplug", "dmilo"])
def test_autocast_acts_on_the_network_of_a_run(method):
    y, network = measured(1), Small()
    options = {"sigma": SIGMA, "progress": False, **QUICK[method]}
    expected = dsg.solve(y, BLUR, prior(), method, **options)
    levels = []
    with torch.autocast("cpu", torch.bfloat16):
        result = dsg.solve(
            y, BLUR, prior(network), method, **options, callback=levels.append
        )
    for z, t, hidden, out in network.seen:
        assert z == t == torch.float32 and hidden == out == torch.bfloat16
    assert network.seen and result.x.dtype == torch.float32
    assert all(level.x0hat.dtype == torch.float32 for level in levels)
    assert not torch.equal(result.x, expected.x)
    torch.testing.assert_close(result.x, expected.x, rtol=0, atol=0.1)


def test_operators_of_functions_keep_their_precision_under_autocast():
    kernel = torch.full((3, 1, 3, 3), 1 / 9)

    def smooth(x):
        return F.conv2d(x, kernel.to(x), padding=1, groups=3)

    A = from_callable(smooth, linear=True)
    B = from_callable(smooth, linear=True, adjoint=smooth)
    x, y = states(0.1, n=2, size=8), states(0.2, n=2, size=8)
    for operator in (A, B, A @ BLUR):

        def values(operator=operator):
            leaf = x.clone().requires_grad_()
            (g,) = torch.autograd.grad(operator(leaf).square().sum(), leaf)
            return (
                g,
                *operator.residual_gradient(x, y),
                operator.adjoint(y),
                operator.prox(x, y, 1.0),
            )

        expected = values()
        with torch.autocast("cpu", torch.bfloat16):
            got = values()
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", HALVES)
def test_formulas_of_the_reference_keep_their_precision_under_autocast(dtype):
    x, g = states(0.1, n=2, size=8), states(0.2, n=2, size=8)

    def values():
        op = reference.resize("float32", (3, 8, 8), 2)
        matrix = reference.matrix("float32", (3, 8, 8), (1, 2, 96), np.eye(192))
        for o in (op, matrix):
            y = torch.empty(2, *o.out_shape)
            o.forward(y, x)
            back = torch.empty_like(x)
            o.vjp(back, None, y)
            out = torch.empty_like(x)
            reference.DataStep(o).prox(out, x, 2 * y, 0.5, 1e-5, 10)
            yield from (y, back, out)
        projector = reference.Projector("float32", 2, (3, 8, 8))
        projector.prepare(x, 0.9, 0, 0, 3)
        projected = g.clone()
        projector.apply(projected)
        yield projected

    expected = list(values())
    with torch.autocast("cpu", dtype):
        got = list(values())
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
