"""Replays of the published DMPlug, DMILO and DMILO-PGD: `dmplug_*`, `dmilo_*`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from published import Recording, ToyNetwork
from torch import Tensor

import diffstategrad as dsg
from diffstategrad import operators
from diffstategrad.noise import ReplayNoise
from diffstategrad.priors import NetworkPrior
from diffstategrad.samplers import DMILO, DMILOPGD
from diffstategrad.schedules import DDIMGrid, TableSchedule, layer_grid


def recorded_table(n: int = 1000) -> np.ndarray:
    """Signal variances as the published codes keep them, in single precision, with the
    roundings of the torch that was recorded: blocks of eight, from the nearer end."""
    start, end, one = map(np.float32, (1e-4, 0.02, 1))
    step, i = (end - start) / np.float32(n - 1), np.arange(n)
    first = i // 8 * 8
    up = start + step * first.astype(np.float32)
    down = end - step * (n - 1 - first).astype(np.float32)
    betas = np.where(i < n // 2, up, down) + step * (i - first).astype(np.float32)
    table = np.cumprod((one - betas).astype(np.float64)).astype(np.float32)
    return table.astype(np.float64)


TABLE = recorded_table()


class Published(TableSchedule):
    """Network times are the integers of that table."""

    _log = -np.log(TABLE)


def published_grid(layers: int, *, shifted: bool = False) -> DDIMGrid:
    betas = 1 - TABLE / np.append(1, TABLE[:-1])
    return layer_grid(layers, shifted=shifted, betas=betas)


def published_scales(alpha_bar: float) -> tuple[float, float]:
    """Roots in single precision, which only a run in double precision sees."""
    a = np.float32(alpha_bar)
    return float(np.sqrt(a)), float(np.sqrt(1 - a))


#: A displacement, in pixels, that is seen in single precision and below 0.
BESIDE = -6.5e-8


@contextmanager
def published_arithmetic() -> Iterator[None]:
    with (
        patch("diffstategrad.samplers.dmplug.layer_grid", published_grid),
        patch("diffstategrad.samplers.dmilo.layer_grid", published_grid),
        patch("diffstategrad.samplers.generator.scales", published_scales),
    ):
        yield


#: Where the published blurs put an even kernel.
PLACED = {
    "dmplug": {"boundary": "zero", "even": "torch"},
    "dmilo": {"boundary": "reflect", "even": "grow"},
}


def operator_of(z: Recording, code: str) -> operators.Operator:
    """What made the measurement."""
    task = z.meta["task"]
    operator = task["measurement"]["operator"]
    name = operator["name"]
    if name == "inpainting":
        return operators.Inpainting(z["mask"])
    if name == "super_resolution":
        return operators.Downsample(operator["scale_factor"])
    if task["kernel"] == "gaussian":
        # the width is 3 whatever the intensity, except for turbulence
        width = task["intensity"] if name == "turbulence" else 3.0
        drawn = operators.GaussianBlur(task["kernel_size"], width).kernel
        z.close("kernel", drawn, atol=2e-6)
    if name == "turbulence":
        return operators.Turbulence(z["tilt_true"][0], z["kernel"])
    assert name == "blind_blur", name
    return operators.Blur(z["kernel"], **PLACED[code])


def prior_of(z: Recording) -> NetworkPrior:
    return NetworkPrior(ToyNetwork(z.meta["toy"]), schedule=Published(), channels=3)


def measured(z: Recording, operator: operators.Operator, noise: Tensor) -> Tensor:
    """y, after A(x) and y were compared."""
    y = z.tensor("y")
    image = torch.from_numpy(z["image8"]).permute(2, 0, 1)[None].to(y.dtype)
    clean = operator(image / 255 * 2 - 1)
    z.close("y_clean", clean, atol=2e-6)
    z.close("y", clean + z.meta["sigma_y"] * noise, atol=2e-6)
    return y


def replay_dmplug(z: Recording) -> None:
    meta, draws = z.meta, z.draws()
    operator = operator_of(z, "dmplug")
    y = measured(z, operator, next(draws))
    if "bid" in meta["source"][0]["file"]:
        operator = operators.BlindBlur(meta["task"]["kernel_size"])
    elif "tilt_true" in z:
        operator = operators.BlindTurbulence(meta["task"]["kernel_size"])

    start = list(draws)
    got = run_dmplug(z, y, operator, start)
    if "tilt_after_000" in z:
        # The derivative jumps where the displacement is a whole number, and there the
        # rounding of the published code's coordinates chooses a side.  Where it is the
        # other one: start on that side, by less than the tolerance.
        tilt, scale = start[-1], 0.01
        moved = z.tensor("tilt_after_000") - scale * tilt
        ours = got["tilt_after_000"] - scale * tilt
        other = (tilt == 0) & (moved * ours < 0)
        assert 2 * other.sum() <= (tilt == 0).sum()
        start[-1] = torch.where(other, BESIDE / scale, tilt)
        got = run_dmplug(z, y, operator, start)

    if "evaluations" in z:
        z.equal("evaluations", got["evaluations"])
    z.equal("timesteps", layer_grid(len(z["timesteps"])).timesteps)
    for array, bounds in meta["measured"].items():
        z.close(array, got[array], atol=bounds["atol"])


#: Learning rates of what is not known.
RATES = (("lr_K", "lr_kernel"), ("lrt", "lr_displacement"))


def run_dmplug(
    z: Recording, y: Tensor, operator: operators.Operator, start: list[Tensor]
) -> dict[str, Any]:
    """Images of all evaluations, variables after all steps."""
    parameters, got = z.meta["parameters"], {}
    evaluated: list[Tensor] = []

    def keep(level: dsg.samplers.Level) -> None:
        if level.index == parameters["E"] - 1:
            got["evaluations"] = len(evaluated)
        if level.index:
            got[f"Z_after_{level.index - 1:03d}"] = level.xt.clone()

    name = "apply" if operator.blind else "__call__"
    original = getattr(type(operator), name)

    def recorded(self: operators.Operator, x: Tensor, *unknowns: Any) -> Tensor:
        if x.requires_grad:  # not the residual of the result
            k = len(evaluated)
            evaluated.append(x.detach().clone())
            for short, long in (("K", "kernel"), ("tilt", "displacement")):
                if k and unknowns and long in unknowns[0]:
                    got[f"{short}_after_{k - 1:03d}"] = unknowns[0][long].detach()
        return original(self, x, *unknowns)

    replay = ReplayNoise(start)
    with published_arithmetic(), patch.object(type(operator), name, recorded):
        dsg.solve(
            y,
            operator,
            prior_of(z),
            method="dmplug",
            sigma=z.meta["sigma_y"],
            seed=replay,
            callback=keep,
            progress=False,
            # what a step leads to is seen in the next one
            steps=parameters["E"] + 1,
            optimizer="lbfgs" if "L-BFGS" in z.meta["solver"] else "adam",
            lr=parameters["lr_Z"],
            **{ours: parameters[name] for name, ours in RATES if name in parameters},
            stop="last",
        )
    with pytest.raises(ValueError, match="run out"):  # all draws were used
        replay.normal(y)
    return got | {f"x_{k:03d}": x for k, x in enumerate(evaluated)}


def watched(cls: type[DMILO]) -> tuple[type[DMILO], dict[str, np.ndarray]]:
    """The method, and what its hooks see."""
    seen: dict[str, np.ndarray] = {}

    class Watched(cls):  # type: ignore[valid-type, misc]
        def _after_step(self, outer, which, step, z, nu):  # type: ignore[no-untyped-def]
            key = f"o{outer}_l{which}_k{step:02d}"
            seen[f"z_{key}"], seen[f"nu_{key}"] = z.numpy().copy(), nu.numpy().copy()

        def _before(self, outer, image):  # type: ignore[no-untyped-def]
            seen[f"candidate_{outer}_before"] = image.numpy().copy()

    return Watched, seen


def replay_dmilo(z: Recording) -> None:
    meta, draws = z.meta, z.draws()
    parameters = meta["parameters"]
    projected = parameters["lr_x"] is not None
    operator = operator_of(z, "dmilo")
    y = measured(z, operator, next(draws))
    layers = len(z["timesteps"])
    # one for every state is drawn, all but the first are overwritten
    seed, *unused = (next(draws) for _ in range(layers + 1))
    assert next(draws, None) is None and {t.shape for t in unused} == {seed.shape}

    options: dict[str, Any] = {
        "steps": parameters["Tn"],
        "inner": parameters["J"],
        "layers": layers,
        "lr": parameters["lr_z"],
        "lr_deviation": parameters["lr_nu"],
    }
    if projected:
        options["lr_image"] = parameters["lr_x"]
        if "D" in parameters:
            options |= {"data_step": "norm", "data_steps": parameters["D"]}
    method, got = watched(DMILOPGD if projected else DMILO)

    def keep(level: dsg.samplers.Level) -> None:
        name = f"candidate_{level.index}" + ("_after" if projected else "")
        got[name] = level.x0hat.numpy().copy()

    with published_arithmetic():
        dsg.solve(
            y,
            operator,
            prior_of(z),
            method=method(**options),
            sigma=meta["sigma_y"],
            seed=ReplayNoise([seed]),
            callback=keep,
            progress=False,
        )
    z.equal("timesteps", layer_grid(layers, shifted=True).timesteps)
    for array, bounds in meta["measured"].items():
        z.close(array, got[array], atol=bounds["atol"])


SEED_INPUTS = ("image8", "mask", "kernel", "tilt_true", "noise_*")
