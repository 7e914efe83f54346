r"""A network as prior.

The network sees :math:`z = x / \sqrt{1 + \sigma^2}` and the fractional time
:math:`t(\sigma)`, and predicts

- the noise: :math:`D(x; \sigma) = x - \sigma\, \epsilon(z, t)` (Karras et al.,
  NeurIPS 2022, Table 1, the VP column; so do DAPS's published priors), or
- :math:`v = \sqrt{\bar\alpha}\,\epsilon - \sqrt{1 - \bar\alpha}\, x_0`:
  :math:`D(x; \sigma) = \sqrt{\bar\alpha}\, z - \sqrt{1 - \bar\alpha}\, v`
  (Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models",
  ICLR 2022, Appendix D), or
- :math:`x_0` itself.
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
from diffstategrad.schedules import VPSchedule, sigma_of

__all__ = ["NetworkPrior", "load_prior"]

_PREDICTIONS = ("epsilon", "v", "start_x")


class NetworkPrior(Prior):
    """A network `(z, t) -> prediction`.

    Parameters
    ----------
    network : callable
        Gets z (B, C, H, W) and t (B,), network times in 0..999, fractional.  The first
        C channels of what it returns are the prediction, the next C, if any, the code
        of a learned variance.
    prediction : "epsilon", "v" or "start_x"
    schedule : VPSchedule
    channels, stride : int
        Of the images it takes.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        prediction: Literal["epsilon", "v", "start_x"] = "epsilon",
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

    def _call(self, z: Tensor, time: float) -> Tensor:
        t = torch.full((len(z),), time, dtype=z.dtype, device=z.device)
        return self.network(z, t)

    def _outputs(self, z: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor | None]:
        """The prediction, and the code of a learned variance where there is one."""
        time = float(self.schedule.t_of_sigma(sigma_of(alpha_bar)))
        out, *code = self._call(z, time).split(z.shape[1], dim=1)
        return out, code[0] if code else None

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        c_in = (1 + sigma * sigma) ** -0.5  # sqrt(alpha_bar)
        time = float(self.schedule.t_of_sigma(sigma))
        out = self._call(c_in * x, time)[:, : x.shape[1]]
        if self.prediction == "epsilon":
            return x - sigma * out
        if self.prediction == "start_x":
            return out
        return (c_in * c_in) * x - (sigma * c_in) * out

    def predict(self, z: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor | None]:
        out, code = self._outputs(z, alpha_bar)
        return self._as_noise(out, z, alpha_bar), code

    def eps(self, z: Tensor, t: float) -> Tensor:
        """Noise prediction of the network at its own time t, whatever the schedule
        says of z (and beyond its ends, as some published codes go)."""
        return self._as_noise(
            self._call(z, t)[:, : z.shape[1]], z, float(self.schedule.alpha_bar(t))
        )

    def _as_noise(self, out: Tensor, z: Tensor, alpha_bar: float) -> Tensor:
        """The noise in z that follows from the network's prediction."""
        if self.prediction == "v":
            return alpha_bar**0.5 * out + (1 - alpha_bar) ** 0.5 * z
        if self.prediction == "start_x":
            return (z - alpha_bar**0.5 * out) / (1 - alpha_bar) ** 0.5
        return out

    def estimate(self, z: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor | None]:
        out, code = self._outputs(z, alpha_bar)
        if self.prediction == "epsilon":
            out = z / alpha_bar**0.5 - (1 / alpha_bar - 1) ** 0.5 * out
        elif self.prediction == "v":
            out = alpha_bar**0.5 * z - (1 - alpha_bar) ** 0.5 * out
        return out, code

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

    prior = NetworkPrior(
        in_single_precision,
        header["prediction"],
        schedule=VPSchedule(schedule["beta_min"], schedule["beta_d"]),
        channels=network.architecture["image_channels"],
        stride=network.stride,
        name=name or str(path),
    )
    prior.learned_variance = False  # what is trained here has none
    return prior
