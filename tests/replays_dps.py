"""Replays of the published DPS code: `dps_*`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from published import Recording, ToyNetwork
from torch import Tensor

import diffstategrad as dsg
from diffstategrad import operators
from diffstategrad._options import legacy_rng
from diffstategrad.noise import PoissonNoise, ReplayNoise
from diffstategrad.schedules import TableSchedule, ddpm_tables

#: With this schedule network times are the integers of the published table.
DDPM = TableSchedule(1e-4, 0.02, 1000, sqrt=False)


def operator_of(z: Recording) -> operators.Operator:
    name, options = z.meta["operator"], z.meta["operator_params"]
    if name == "inpainting":
        return operators.Inpainting(z["mask"])
    if name == "gaussian_blur":
        return operators.GaussianBlur(options["kernel_size"], options["intensity"])
    if name == "motion_blur":
        return operators.Blur(z["kernel"])
    if name == "super_resolution":
        return operators.Downsample(options["scale_factor"])
    assert name == "phase_retrieval", name
    # pads as for an image of 256 whatever it is given
    return operators.PhaseRetrieval(
        options["oversample"], rescale=False, resolution=256
    )


def measurement_of(
    z: Recording, operator: operators.Operator, draws: Iterator[Tensor]
) -> tuple[Tensor, float]:
    """y and sigma, after A(x) and y were compared."""
    kind, parameters = z.meta["noise"]
    clean, y = operator(z.tensor("x_true")), z.tensor("y")
    z.close("y_clean", clean, atol=2e-6)
    if kind == "gaussian":
        sigma = parameters["sigma"]
        z.close("y", clean + sigma * next(draws), atol=2e-6)
        return y, sigma
    noise = PoissonNoise(parameters["rate"])
    z.close("y", noise(clean.double(), legacy_rng(z.meta["numpy_seed"])), atol=2e-6)
    return y, 1.0  # the Poisson form has none


def network_of(z: Recording) -> tuple[Callable[[Tensor, Tensor], Tensor], str]:
    """The network and what it predicts."""
    toy = ToyNetwork(z.meta["toy"])
    if z.meta["mean_type"] == "epsilon":
        return toy, "epsilon"
    assert z.meta["mean_type"] == "start_x", z.meta["mean_type"]

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([torch.tanh(toy.smooth(x)), toy(x, t)[:, x.shape[1] :]], 1)

    return estimate, "start_x"


def options_of(meta: dict[str, Any]) -> dict[str, Any]:
    """Ours for the recorded ones, on top of the preset of the published code."""
    options: dict[str, Any] = {"preset": "official", "steps": meta["respacing"]}
    options["scale"] = meta["scale"]
    if meta["method"] == "ps+":
        options["perturbations"] = 5
    if meta["noise"][0] == "poisson":
        options["likelihood"] = "poisson"
    if meta["sampler"] == "ddim":
        options |= {"sampler": "ddim"}
    if meta["var_type"] != "learned_range":
        options["variance"] = meta["var_type"]
    return options


def replay_dps(z: Recording) -> None:
    meta, operator, draws = z.meta, operator_of(z), z.draws()
    y, sigma = measurement_of(z, operator, draws)
    weight = (1 / y.abs()).mean().item() if meta["noise"][0] == "poisson" else 1.0

    distances, states = [], {}

    def keep(level: dsg.samplers.Level) -> None:
        if level.index:
            states[f"x_after_{level.index - 1:04d}"] = level.xt.clone()

    residual_gradient = operator.residual_gradient

    def recorded(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        gradient, square = residual_gradient(x, y)
        distances.append(weight * square.sqrt().item())
        return gradient, square

    network, prediction = network_of(z)
    options = options_of(meta)
    with patch.object(operator, "residual_gradient", recorded):
        result = dsg.solve(
            y.to(torch.float32),
            operator,
            dsg.priors.NetworkPrior(network, prediction, schedule=DDPM, channels=3),
            method={"mcg": "mcg"}.get(meta["method"], "dps"),
            sigma=sigma,
            seed=ReplayNoise(draws),
            callback=keep,
            progress=False,
            **options,
        )
    assert next(draws, None) is None, "recorded draws are left over"
    z.equal("timesteps", ddpm_tables(options["steps"]).timesteps[::-1])
    # of several perturbed estimates the mean is recorded
    each = torch.tensor(distances).reshape(options["steps"], -1).mean(1)
    states |= {"x_final": result.x, "distance": each}
    for name, measured in meta["measured"].items():
        z.close(name, states[name], atol=measured["atol"])
