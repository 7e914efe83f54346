"""Replays of the published PSLD code and of its plain latent sampler: `psld_*` and
`ldm_ddim_*`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from published import Recording, ToyAutoencoder, ToyLatentNetwork
from replays_dps import measurement_of, operator_of
from torch import Tensor

import diffstategrad as dsg
from diffstategrad.noise import ReplayNoise
from diffstategrad.priors import LatentPrior, NetworkPrior
from diffstategrad.samplers import ddim, psld
from diffstategrad.samplers.ddim import estimate
from diffstategrad.schedules import TableSchedule, latent_grid

LATENT_INPUTS = ("x_true", "mask", "noise_*")


class GuidedNetwork(ToyLatentNetwork):
    """Classifier-free guidance of strength s: e_u + s (e_c - e_u)."""

    def __init__(self, toy: dict[str, Any], strength: float):
        super().__init__(toy)
        self.strength = strength

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        unconditional = super().__call__(z, t)
        conditional = unconditional + 0.1 * torch.tanh(z)
        return unconditional + self.strength * (conditional - unconditional)


class GaussianAutoencoder(ToyAutoencoder):
    """Encodes to a Gaussian and has a scale, as Stable Diffusion's does."""

    stochastic = True
    scale = 0.5

    def decode(self, z: Tensor, quantise: bool = True) -> Tensor:
        return super().decode(z / self.scale, quantise)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        z = super().encode(x)
        if noise is not None:
            z = z + torch.exp((-4 + 0.5 * z) / 2) * noise
        return self.scale * z


def prior_of(meta: dict[str, Any]) -> LatentPrior:
    toy, channels = meta["toy"], meta["latent_shape"][0]
    network, kind = ToyLatentNetwork(toy), ToyAutoencoder
    if meta.get("guidance", 1) != 1:
        network, kind = GuidedNetwork(toy, meta["guidance"]), GaussianAutoencoder
    return LatentPrior(
        NetworkPrior(network, schedule=TableSchedule(), channels=channels),
        kind(toy, meta["decoder_factor"], channels),
    )


class Run:
    """A run's states entering its steps, the estimates made of them, what is decoded at
    the end, and the image."""

    def __init__(self, prior: LatentPrior, run: Callable[[], Tensor]):
        self.states: list[Tensor] = []
        self.estimates: list[Tensor] = []
        decode = patch.object(
            prior.autoencoder, "decode", wraps=prior.autoencoder.decode
        )
        ours = [
            patch.object(module, "estimate", self._estimate) for module in (ddim, psld)
        ]
        with decode as calls, ours[0], ours[1]:
            self.x = run()
        self.last = calls.call_args.args[0]

    def _estimate(self, model: Any, z: Tensor, step: ddim.Step) -> Tensor:
        z0 = estimate(model, z, step)
        self.states.append(z.detach().clone())
        self.estimates.append(z0.detach().clone())
        return z0

    def compare(self, z: Recording) -> None:
        grid = latent_grid(z.meta["S"], eta=z.meta["eta"])
        z.equal("timesteps", grid.timesteps[::-1])
        for name, column in (("a", grid.a), ("a_prev", grid.p), ("sigma", grid.sigma)):
            z.close(name, column[::-1], rtol=1e-6)
        after = {f"z_after_{k - 1:04d}": s for k, s in enumerate(self.states)}
        found = {f"z0_{k:04d}": z0 for k, z0 in enumerate(self.estimates)}
        arrays = {**after, **found, "z_final": self.last, "x_final": self.x}
        for name, measured in z.meta["measured"].items():
            z.close(name, arrays[name], atol=measured["atol"])


def replay_psld(z: Recording) -> None:
    meta, operator, draws = z.meta, operator_of(z), z.draws()
    y, sigma = measurement_of(z, operator, draws)
    options = {name: meta[name] for name in ("omega", "gamma", "eta")}
    if meta["noise"][0] == "poisson":
        options |= {"renoise": "poisson"}
        del options["omega"]  # the measurement term does not act

    prior = prior_of(meta)
    run = Run(
        prior,
        lambda: (
            dsg.solve(
                y.to(torch.float32),
                operator,
                prior,
                "psld",
                sigma=sigma,
                seed=ReplayNoise(draws),
                progress=False,
                preset="official",
                steps=meta["S"],
                **options,
            ).x
        ),
    )
    assert next(draws, None) is None, "recorded draws are left over"
    run.compare(z)


def replay_ldm_ddim(z: Recording) -> None:
    meta, draws = z.meta, z.draws()
    prior = prior_of(meta)
    h, w = (meta["decoder_factor"] * n for n in meta["latent_shape"][1:])
    run = Run(
        prior,
        lambda: dsg.sample(
            prior,
            (3, h, w),
            steps=meta["S"],
            eta=meta["eta"],
            grid="official",
            seed=ReplayNoise(draws),
        ),
    )
    assert next(draws, None) is None, "recorded draws are left over"
    run.compare(z)
