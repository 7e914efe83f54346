r"""A network as prior.

The network sees :math:`z = x / \sqrt{1 + \sigma^2}` and the fractional time
:math:`t(\sigma)`, and predicts either

- the noise: :math:`D(x; \sigma) = x - \sigma\, \epsilon(z, t)` (Karras et al.,
  NeurIPS 2022, Table 1, the VP column; so do DAPS's published priors), or
- :math:`v = \sqrt{\bar\alpha}\,\epsilon - \sqrt{1 - \bar\alpha}\, x_0`:
  :math:`D(x; \sigma) = \sqrt{\bar\alpha}\, z - \sqrt{1 - \bar\alpha}\, v`
  (Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models",
  ICLR 2022, Appendix D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffstategrad._options import nearest
from diffstategrad.models import load_network
from diffstategrad.priors.base import Prior
from diffstategrad.schedules import VPSchedule

__all__ = ["NetworkPrior", "load_prior"]

_PREDICTIONS = ("epsilon", "v")


class NetworkPrior(Prior):
    """A network `(z, t) -> prediction`.

    Parameters
    ----------
    network : callable
        Gets z (B, C, H, W) and t (B,), network times in 0..999, fractional.  The first
        C channels of what it returns are the prediction; others (a learned variance)
        are ignored.
    prediction : "epsilon" or "v"
    schedule : VPSchedule
    channels, stride : int
        Of the images it takes.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        prediction: Literal["epsilon", "v"] = "epsilon",
        *,
        schedule: VPSchedule | None = None,
        channels: int | None = None,
        stride: int = 1,
        name: str | None = None,
    ):
        if prediction not in _PREDICTIONS:
            raise ValueError(
                f"unknown prediction {prediction!r}{nearest(prediction, _PREDICTIONS)}"
            )
        self.network, self.prediction = network, prediction
        self.schedule = schedule or VPSchedule()
        self.channels, self.stride = channels, stride
        self.name = name or getattr(network, "__qualname__", type(network).__qualname__)

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        c_in = (1 + sigma * sigma) ** -0.5  # sqrt(alpha_bar)
        time = float(self.schedule.t_of_sigma(sigma))
        t = torch.full((len(x),), time, dtype=x.dtype, device=x.device)
        out = self.network(c_in * x, t)[:, : x.shape[1]]
        if self.prediction == "epsilon":
            return x - sigma * out
        return (c_in * c_in) * x - (sigma * c_in) * out

    @torch.no_grad()
    def eps(self, z: Tensor, t: float) -> Tensor:
        time = torch.full((len(z),), float(t), dtype=z.dtype, device=z.device)
        out = self.network(z, time)[:, : z.shape[1]]
        if self.prediction == "epsilon":
            return out
        alpha_bar = self.alpha_bar(t)
        return alpha_bar**0.5 * out + (1 - alpha_bar) ** 0.5 * z

    def spec(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "prediction": self.prediction,
            "schedule": asdict(self.schedule),
        }


def load_prior(path: str | Path, *, name: str | None = None) -> NetworkPrior:
    """The prior stored in a .safetensors file by `diffstategrad train`.

    Nothing in the file is executed.

    Raises
    ------
    ValueError
        If the file is no such network, truncated, or has NaN weights.
    """
    network, header = load_network(path)
    schedule = header.get("schedule", {})
    if schedule.get("type") != "VP" or header.get("prediction") not in _PREDICTIONS:
        raise ValueError(
            f"{path}: unknown schedule {schedule.get('type')!r} or prediction "
            f"{header.get('prediction')!r}"
        )

    def in_single_precision(z: Tensor, t: Tensor) -> Tensor:
        return network(z.float(), t.float()).to(z.dtype)

    return NetworkPrior(
        in_single_precision,
        header["prediction"],
        schedule=VPSchedule(schedule["beta_min"], schedule["beta_d"]),
        channels=network.architecture["image_channels"],
        stride=network.stride,
        name=name or str(path),
    )
