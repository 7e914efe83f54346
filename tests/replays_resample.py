"""Replays of the published ReSample code and of DiffStateGrad's: `resample_*`,
`dsg_resample_*`."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from published import Recording
from replays_dps import measurement_of, operator_of
from replays_latent import prior_of
from torch import Tensor

import diffstategrad as dsg
from diffstategrad import operators
from diffstategrad.noise import ReplayNoise
from diffstategrad.samplers import ReSample, method_options, resample

#: The margin tells how far the recorded ranks were from turning out differently.
RESAMPLE_INPUTS = ("x_true", "mask", "noise_*", "rank_margin")


def recorded_operator(z: Recording) -> operators.Operator:
    name, options = z.meta["operator"], z.meta["operator_params"]
    if name == "high_dynamic_range":
        return operators.HighDynamicRange(options["scale"])
    if name == "phase_retrieval" and "DiffStateGrad" in z.meta["solver"]:
        return operators.PhaseRetrieval(options["oversample"], resolution=256)
    return operator_of(z)


def options_of(meta: dict[str, Any]) -> dict[str, Any]:
    """Ours for the recorded ones, on top of the preset of the published code."""
    official = "dsg_official" if meta["period"] else "official"  # 0: no projector
    most = meta["max_iters"]
    if isinstance(most, dict):
        assert most["final"] == most["latent"]
        most = {"pixel_steps": most["pixel"], "latent_steps": most["latent"]}
    else:
        most = {}
    return {
        **method_options("resample", preset=official),
        "encode": "mean",  # the recorded encoder gives no distribution
        **{"steps": meta["S"], "likelihood": meta["noise"][0], **most},
        **{"pixel_lr": meta["pixel_lr"], "latent_lr": meta["latent_lr"]},
    }


class Seen:
    """What a run goes through, under the names of the recordings."""

    def __init__(self, steps: int) -> None:
        self.arrays: dict[str, Any] = {}
        self.kinds: list[int] = []
        self.iterations: list[int] = []
        self.ranks: list[int] = []
        self.sides: list[int] = []
        self.index, self.resampled = steps, 0

    def updated(self, z: Tensor) -> None:
        """The latent after the update of the present index."""
        self.arrays.setdefault(f"z42_index_{self.index:03d}", z.clone())


def watched(
    seen: Seen, official: dsg.StateProjector
) -> tuple[type[ReSample], type[resample._Fit]]:
    class Sampler(ReSample):
        def _guidance(self, problem: Any, z: Tensor, step: Any) -> Any:
            seen.updated(z)
            seen.index -= 1
            return super()._guidance(problem, z, step)

        def _resampled(self, problem: Any, zy: Tensor, zs: Tensor, step: Any) -> Tensor:
            seen.updated(zs)
            z = super()._resampled(problem, zy, zs, step)
            seen.arrays[f"resampled_{seen.resampled:02d}"] = z.clone()
            seen.resampled += 1
            return z

    class Fit(resample._Fit):
        def pixels(self, start: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
            self.state = self.problem.network.decode(by)
            return super().pixels(start, by)

        def latents(self, start: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
            self.state = by
            return super().latents(start, by)

        def _run(self, what: str, operator: Any, start: Tensor, *rules: Any) -> Any:
            if seen.index == 0:
                seen.updated(start)
            values, sqnorm = super()._run(what, operator, start, *rules)
            kind = ("pixels", "latents").index(what)
            name = f"{what[:-1]}_opt_{seen.kinds.count(kind):02d}"
            seen.arrays[name] = seen.arrays["z_final"] = values.clone()
            seen.kinds.append(kind)
            seen.iterations += self.iterations[what][-1]
            # the published code decomposes where it does not project too
            (ranks,) = self.ranks or official.factors(self.state).ranks
            assert len(set(ranks)) == 1
            seen.ranks.append(ranks[0])
            seen.sides.append(min(start.shape[2:]))
            return values, sqnorm

    return Sampler, Fit


def replay_resample(z: Recording) -> None:
    meta, operator, draws = z.meta, recorded_operator(z), z.draws()
    y, sigma = measurement_of(z, operator, draws)
    projector = dsg.StateProjector(
        energy=meta["retention"] or 1.0, rank="official", period=meta["period"] or 1
    )
    seen = Seen(meta["S"])
    sampler, fit = watched(seen, projector)
    with patch.object(resample, "_Fit", fit):
        result = dsg.solve(
            y.to(torch.float32),
            operator,
            prior_of(meta),
            sampler(**options_of(meta)),
            sigma=sigma,
            project=projector if meta["period"] else None,  # 0: never
            seed=ReplayNoise(draws),
            progress=False,
        )
    assert next(draws, None) is None, "recorded draws are left over"
    z.equal("opt_kind", seen.kinds)
    z.equal("iterations", seen.iterations)
    if "ranks" in z:
        # a recorded rank may be above the side, and keeps all as the side does
        whole = np.equal(seen.ranks, seen.sides)
        z.equal("ranks", np.where(whole, z["ranks"].clip(seen.sides), seen.ranks))
    arrays = {**seen.arrays, "x_final": result.x}
    for name, measured in meta["measured"].items():
        if "atol" in measured:
            z.close(name, arrays[name], atol=measured["atol"])
