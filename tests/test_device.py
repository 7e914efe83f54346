"""Other devices: nothing assumes the CPU, and the numbers are the same.

The C core here, the torch formulas on the mirror, both in double precision.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import backend_registration

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch has no devices made of Python", allow_module_level=True)

from mirror import DEVICE, Mirrored, waits
from test_methods import (
    BLUR,
    FIELD,
    LINEAR,
    OPERATORS,
    QUICK,
    SIGMA,
    SIZE,
    UNPROJECTED,
    VARIANTS,
    measured,
    solve,
    without_formula,
)
from test_operators import CASES

import diffstategrad as dsg
from diffstategrad import Result, StateProjector, metrics
from diffstategrad.models import Autoencoder
from diffstategrad.operators import BlindBlur, BlindTurbulence, Downsample
from diffstategrad.priors import GaussianPrior, LatentPrior, NetworkPrior, as_prior

pytestmark = pytest.mark.once

EPS = 2.0**-52
#: Conjugate gradients and L-BFGS stop within 1e-10, and some methods' steps have
#: factors of some ten; those of exact draws stop within 1e-8.
CLOSE, CLOSE_EXACT = 1e-8, 1e-6


def close(there, here, tolerance=CLOSE):
    assert isinstance(there, Mirrored) and not isinstance(here, Mirrored)
    kwargs = {"rtol": 0, "atol": tolerance, "equal_nan": True}
    torch.testing.assert_close(there.detach().cpu(), here.detach(), **kwargs)


def agree(method, y, operator=BLUR, **options):
    """Runs here and there; the result there."""
    here = solve(method, y, operator, **options)
    there = solve(method, y, operator, device=DEVICE, **options)
    close(there.x, here.x, CLOSE_EXACT if method == "daps-exact" else CLOSE)
    assert there.nfe == here.nfe
    return there


# ---- the device itself ----


def test_the_mirror_refuses_what_an_accelerator_refuses():
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="of the CPU and of the mirror"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="numpy"):
        np.asarray(x)
    assert (x + torch.tensor(1.0)).tolist() == [2.0] * 3
    with waits() as found:
        x.sum().item()
        x.cpu()
    assert sum(found.values()) == 2


# ---- methods ----


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_on_another_device_gives_the_same_images(variant):
    project, levels = variant not in UNPROJECTED, []
    y = measured(2, dtype=torch.float64)
    result = agree(variant, y, project=project, callback=levels.append)
    assert isinstance(result.samples, Mirrored) and isinstance(result.y, Mirrored)
    assert isinstance(levels[-1].x0y, Mirrored)


@pytest.mark.parametrize("operator", ["inpainting", "downsample", "hdr"])
@pytest.mark.parametrize("method", QUICK)
def test_so_it_does_with_other_operators(method, operator):
    A = OPERATORS[operator]
    if without_formula(*VARIANTS[method], A):
        pytest.skip("needs a linear operator")
    agree(method, measured(1, A, torch.float64), A)


OPTIONS = {
    "samples": ("daps", {"n_samples": 2}),
    "generator": ("daps", {}),
    "random-subspace": ("dps", {"project": StateProjector(0.5, subspace="random")}),
    "own-subspace": ("daps", {"project": StateProjector(0.5, subspace="gradient")}),
    "official-rank": ("dps", {"project": StateProjector(rank="official")}),
    "mean-rank": ("dps", {"project": StateProjector(0.5, rank="mean", sides="left")}),
    "exact-spectral": ("daps-exact", {"covariance": "spectral"}),
    "exact-tweedie": ("daps-exact", {"covariance": "tweedie"}),
    "exact-isotropic": ("daps-exact", {"covariance": "isotropic"}),
    "prior-score": ("daps", {"prior_score": "exact"}),
    "projected-noise": ("daps-hmc", {"project": True, "project_noise": True}),
    "holdout": ("dmplug", {"stop": "holdout"}),
    "es-wmv": ("dmplug", {"stop": "es_wmv"}),
    "dmilo-holdout": ("dmilo", {"stop": "holdout"}),
    "kept-iterates": ("dmplug", {"keep": 2}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_do_so_too(name):
    variant, options = OPTIONS[name]
    y = measured(2, dtype=torch.float64)
    if name == "generator":
        here, there = (
            solve(variant, y, seed=torch.Generator().manual_seed(1), **where)
            for where in ({}, {"device": DEVICE})
        )
        close(there.x, here.x)
        return
    agree(variant, y, **options)


@pytest.mark.parametrize("method", ["sdedit", "diffpir"])
def test_seen_pixels_are_kept_there(method):
    A = LINEAR["inpainting"]
    agree(method, measured(2, A, torch.float64), A, keep_known=True)


@pytest.mark.parametrize("A", [BlindBlur(3), BlindTurbulence(3)], ids=["blur", "air"])
def test_unknowns_are_found_there(A):
    result = agree("dmplug", measured(2, dtype=torch.float64), A)
    assert set(result.details["unknowns"]) >= {"kernel"}


def test_a_measured_spectrum_is_that_of_the_cpu():
    prior = GaussianPrior((3, SIZE, SIZE))
    prior.power_spectrum = super(GaussianPrior, prior).power_spectrum  # not its own
    agree("daps-exact", measured(1, dtype=torch.float64), prior=prior)


@pytest.mark.parametrize("method", ["daps", "dps"])
def test_an_image_that_diverges_is_told_there_too(method):
    y = measured(2)
    huge = {"daps": {"lr": 1e6}, "dps": {"scale": 1e30}}[method]
    here = solve(method, y, steps=50, **huge)
    there = solve(method, y, steps=50, device=DEVICE, **huge)
    assert there.x.isnan().all() and there.warnings == here.warnings


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_sample_of_a_prior_is_that_of_the_cpu(eta):
    options = {"steps": 3, "eta": eta, "dtype": torch.float64}
    here, there = (
        dsg.sample(FIELD, FIELD.shape, 2, **options, **where)
        for where in ({}, {"device": DEVICE})
    )
    close(there, here)


# ---- where things are ----


def test_the_device_is_that_of_the_measurement_unless_it_is_given():
    y = measured(1)
    there = y.to(DEVICE)
    assert isinstance(solve("hqs", there).x, Mirrored)
    assert not isinstance(solve("hqs", there, device="cpu").x, Mirrored)
    assert isinstance(solve("hqs", y.numpy(), device="mirror").x, Mirrored)
    assert torch.equal(solve("hqs", there, device="cpu").x, solve("hqs", y).x)


def test_a_result_there_is_scored_saved_and_shown(tmp_path):
    y, truth = measured(2, Downsample(2)), FIELD.sample(2, seed=3).float()
    options = {"operator": Downsample(2), "n_samples": 2, "project": True}
    here = solve("daps", y, **options)
    there = solve("daps", y, device=DEVICE, **options)
    for of in (truth, truth.to(DEVICE)):
        for name, value in here.score(truth).items():
            got = there.score(of)[name]
            torch.testing.assert_close(got, value, rtol=1e-3, atol=0, equal_nan=True)
    there.save(tmp_path / "r.safetensors")
    again = Result.load(tmp_path / "r.safetensors")
    for name in ("x", "samples", "y", "residual", "std"):
        got, saved = getattr(there, name), getattr(again, name)
        assert torch.equal(got.cpu(), saved) and not isinstance(saved, Mirrored)
    assert not isinstance(there.residual, Mirrored)
    assert again.spec["method"] == here.spec["method"]
    head = "Result(daps with projector: 2 image(s)"
    assert repr(there).startswith(head) and there._repr_html_()
    assert len(there.plot().axes) == 3
    there.plot_trace()


def convolution():
    net = nn.Conv2d(3, 3, 3, padding=1)
    with torch.no_grad():
        net.weight.copy_(
            torch.linspace(-0.1, 0.1, net.weight.numel()).view_as(net.weight)
        )
        net.bias.zero_()
    return net.requires_grad_(False)


class Timed(nn.Module):
    """Noise as a network predicts it."""

    def __init__(self):
        super().__init__()
        self.inner = convolution()

    def forward(self, z, t):
        return self.inner(z) * (t / 999).view(-1, 1, 1, 1)


@pytest.mark.parametrize("kind", ["network", "callable", "latent"])
def test_networks_are_moved_there_and_back(kind):
    if kind == "network":
        prior = NetworkPrior(Timed(), channels=3)
    elif kind == "callable":

        class Denoiser(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = convolution()

            def forward(self, x, sigma):
                return self.inner(x) / (1 + sigma)

        prior = as_prior(Denoiser())
    else:
        net = Autoencoder((8,), factor=2, latent_channels=3, codes=16)
        for value in net.state_dict().values():
            value.copy_(torch.linspace(-0.3, 0.3, value.numel()).view_as(value))
        net.eval().requires_grad_(False)
        prior = LatentPrior(NetworkPrior(Timed(), channels=3), net)
    method = "latent_dps" if kind == "latent" else "dps"
    y = measured(1)
    options = {"sigma": SIGMA, "progress": False, **QUICK[method]}

    def run(**where):
        return dsg.solve(y, BLUR, prior, method, **options, **where)

    here, there, back = run(), run(device=DEVICE), run()
    assert torch.equal(back.x, here.x)
    close(there.x, here.x, 1e-4)  # in single precision; quantised to the same codes


def test_the_bundled_prior_runs_there():
    A, x = Downsample(4), 0.5 * torch.ones(1, 3, 16, 16)
    y = A.measure(x, 0.05)
    options = {"sigma": 0.05, "steps": 2, "ode_steps": 1, "langevin_steps": 2}
    here, there = (
        dsg.solve(y, A, "leaves64", progress=False, **options, **where)
        for where in ({}, {"device": DEVICE})
    )
    close(there.x, here.x, 1e-3)


def test_waits_do_not_grow_with_the_steps_of_a_chain():
    found = []
    for steps in (2, 12):
        with waits() as counted:
            solve(
                "daps", measured(1), device=DEVICE, project=True, langevin_steps=steps
            )
        found.append(counted)
    assert found[0] == found[1]


# ---- what methods are made of ----

#: One of every kind: many blurs differ in their borders alone.
KINDS = [
    c
    for c in CASES
    if c.operator.dtype is None and not c.name.endswith(("-same", "-grow", "-torch"))
]


@pytest.mark.parametrize("c", KINDS, ids=lambda c: c.name)
def test_operators_compute_the_same_there(c):
    A = c.operator
    source = torch.Generator().manual_seed(0)
    x, w = (
        torch.randn(2, *c.shape, generator=source, dtype=torch.float64) for _ in "xw"
    )
    y = A(x) + 0.1
    v = y.detach()
    at = {"x": x, "w": w, "y": y, "v": v}

    def values(at):
        x, y, v, w = (at[name] for name in "xyvw")
        yield A(x)
        yield A.vjp(x, v)
        yield A.jvp(x, w)
        yield from A.residual_gradient(x, y)
        yield A.measure(x, 0.1, seed=3)
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(A(leaf).square().sum(), leaf, create_graph=True)
        yield g
        (h,) = torch.autograd.grad((g * w).sum(), leaf)
        yield h
        if A.linear:
            yield A.adjoint(v, c.shape)
            yield A.prox(x, y, 1.0)
            yield A.pinv(y, c.shape, cutoff=0.5)
            yield A.posterior_sample(x, y, 1.0, 0.1, 5)

    there = {name: t.to(DEVICE) for name, t in at.items()}
    for got, expected in zip(values(there), values(at), strict=True):
        scale = 1 + expected.detach().abs().max().item()
        close(got, expected, max(CLOSE, 2 * c.slack) * c.stiff * scale)
    if A.linear:
        assert A.norm(c.shape, device=DEVICE) == pytest.approx(
            A.norm(c.shape), rel=1e-5
        )


@pytest.mark.parametrize("name", ["psnr", "ssim", "nmse"])
def test_metrics_are_the_same_there(name):
    source = torch.Generator().manual_seed(0)
    x, ref = (torch.rand(2, 3, 24, 20, generator=source) for _ in range(2))
    metric = getattr(metrics, name)
    close(metric(x.to(DEVICE), ref.to(DEVICE)), metric(x, ref), 1e-6)


def test_optimisers_and_gradients_are_projected_there():
    projector, step = StateProjector(0.9), 0.1
    source = torch.Generator().manual_seed(0)
    z0, g = (torch.randn(1, 3, 8, 8, generator=source).double() for _ in range(2))
    expected = z0 - step * projector(g, state=z0)

    z = z0.to(DEVICE).requires_grad_()
    optimizer = projector.wrap(torch.optim.SGD([z], lr=step), state=z0.to(DEVICE))
    (z * g.to(DEVICE)).sum().backward()
    optimizer.step()
    close(z, expected, 1e3 * EPS)
    with pytest.raises(ValueError, match="one device, got mirror:0 and cpu"):
        projector(g.to(DEVICE), state=z0)
