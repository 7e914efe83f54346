"""The projector in other people's loops: the examples in its documentation run, and do
what the methods of this package do."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import replace

import pytest
import torch
from published import TOY, ToyAutoencoder, ToyLatentNetwork

import diffstategrad as dsg
from diffstategrad import StateProjector
from diffstategrad.noise import ReplayNoise
from diffstategrad.operators import GaussianBlur
from diffstategrad.priors import LatentPrior, NetworkPrior
from diffstategrad.samplers import DAPS, Network, Problem, ReSample
from diffstategrad.samplers.ddim import steps_of
from diffstategrad.samplers.dynamics import Chain, langevin
from diffstategrad.samplers.resample import _Fit
from diffstategrad.schedules import TableSchedule

SIZE = 8
AUTOENCODER, NETWORK = ToyAutoencoder(TOY, 2), ToyLatentNetwork(TOY)
PRIOR = LatentPrior(NetworkPrior(NETWORK, schedule=TableSchedule()), AUTOENCODER)
A = GaussianBlur(3, 1.0)
EPS = 2.0**-52


def examples():
    """Code that follows a line with `::`, by the method that this line names."""
    text = inspect.cleandoc(StateProjector.__doc__ or "").partition("Examples\n---")[2]
    blocks = re.findall(r"^(\S.*)::\n\n((?:(?:    .*)?\n?)+)", text, re.MULTILINE)
    return {
        next(name for name in ("PSLD", "ReSample", "DAPS") if name in title): code
        for title, code in blocks
    }


def run(method, **names):
    """What the example has defined in the end."""
    names |= {"torch": torch, "StateProjector": StateProjector, "A": A}
    names |= {"decode": AUTOENCODER.decode, "encode": AUTOENCODER.encode}
    exec(textwrap.dedent(examples()[method]), names)
    return names


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_there_is_an_example_of_at_most_ten_lines_for_each():
    found = examples()
    assert list(found) == ["PSLD", "ReSample", "DAPS"]
    assert all(len(code.strip().splitlines()) <= 10 for code in found.values())


@pytest.mark.parametrize("energy", [None, 0.99])
def test_in_psld(energy):
    y, z = normal(1, 3, SIZE, SIZE), normal(1, 3, 4, 4, seed=1)
    steps = steps_of("even", 5, 0.0, TableSchedule())
    sigmas = torch.tensor([[(1 / s.a - 1) ** 0.5] for s in steps], dtype=torch.float64)
    times = torch.from_numpy(TableSchedule().t_of_sigma(sigmas))
    found = run(
        "PSLD",
        steps=[
            (s.a, s.p, torch.tensor([t])) for s, t in zip(steps, times, strict=True)
        ],
        network=NETWORK,
        **{"z": z, "y": y, "omega": 0.3, "gamma": 0.2},
    )
    expected = dsg.solve(
        *(y, A, PRIOR, "psld"),
        **{"sigma": 0.1, "steps": 5, "omega": 0.3, "gamma": 0.2, "progress": False},
        project=energy and StateProjector(energy),
        seed=ReplayNoise([z]),
    ).x
    same = AUTOENCODER.decode(found["z"].detach())
    close = torch.allclose(same, expected, rtol=0, atol=1e6 * EPS)
    assert close == (energy is not None)


def test_in_resample():
    y, start, state = (normal(1, 3, n, n, seed=n) for n in (SIZE, 4, 4))
    found = run("ReSample", y=y, z0=start, z_t=state + 1)["z"].detach()
    given = Problem(
        y=y,
        operator=A,
        network=Network(PRIOR, batch=1),
        sigma=0.1,
        noise=ReplayNoise([]),
        start=torch.empty_like(start),
        projector=ReSample.projection,
    )
    options = ReSample(window=500, weight_decay=0.01)
    expected, _ = _Fit(options, given).latents(start, state + 1)
    # the rounding of 500 gradients, which AdamW divides by their size
    torch.testing.assert_close(found, expected, rtol=0, atol=1e6 * EPS)
    plain, _ = _Fit(options, replace(given, projector=None)).latents(start, state)
    assert (found - plain).abs().max() > 0.01


def test_in_daps():
    y, x0hat = normal(1, 3, SIZE, SIZE), normal(1, 3, SIZE, SIZE, seed=1)
    names = {"y": y, "x0hat": x0hat, "tau": 0.1, "sigma": 0.5, "eta": 1e-3}
    torch.manual_seed(0)
    found = run("DAPS", **names)["x"]
    torch.manual_seed(0)
    given = Problem(
        y=y,
        operator=A,
        network=Network(PRIOR, batch=1),
        sigma=0.1,
        noise=ReplayNoise([torch.randn_like(x0hat) for _ in range(100)]),
        start=torch.empty_like(x0hat),
        projector=DAPS.projection,
    )
    expected, _ = langevin(
        Chain(
            problem=given,
            start=x0hat,
            centre=lambda x: x0hat,
            moving=False,
            subspace=DAPS.projection.factors(x0hat),
            project_noise=False,
            steps=100,
            eta=1e-3,
            likelihood=1 / 0.1**2,
            prior=1 / 0.5**2,
        )
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e4 * EPS)
