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
from dataclasses import asdict, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffstategrad._options import nearest
from diffstategrad.priors.base import Prior
from diffstategrad.priors.border import Border
from diffstategrad.schedules import Schedule, VPSchedule, sigma_of

__all__ = ["NetworkPrior"]

_PREDICTIONS = ("epsilon", "v", "start_x")


class NetworkPrior(Prior):
    """A network `(z, t) -> prediction`.

    Parameters
    ----------
    network : callable
        Gets z (B, C, H, W) and t (B,), network times in 0..999, fractional.  The first
        C channels of what it returns are the prediction, the next C, if any, the code
        of a learned variance.  An `nn.Module` gets z in the dtype of its weights, and t
        in at least single precision; freeze its parameters (``requires_grad_(False)``):
        a method that differentiates would keep what their gradients need.
    prediction : "epsilon", "v" or "start_x"
    schedule : Schedule
        Default `VPSchedule()`.  A DDPM network of the published linear table has
        ``TableSchedule(1e-4, 0.02, sqrt=False)``: by it the levels of DPS, MCG, SDEdit
        and the like are at the whole times that it was trained at.  Levels beyond the
        schedule's last time are given that time.
    channels, stride : int
        Of the images it takes.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        prediction: Literal["epsilon", "v", "start_x"] = "epsilon",
        *,
        schedule: Schedule | None = None,
        channels: int | None = None,
        stride: int = 1,
        name: str | None = None,
    ):
        if prediction not in _PREDICTIONS:
            raise ValueError(
                f"unknown prediction {prediction!r}{nearest(prediction, _PREDICTIONS)}"
            )
        self.network, self.prediction = network, prediction
        self.border = Border(network)
        if schedule is None:
            schedule = VPSchedule()
        if isinstance(schedule, type) or not isinstance(schedule, Schedule):
            raise TypeError(
                "schedule must have last, alpha_bar, sigma_of_t and t_of_sigma, got "
                f"{schedule!r}"
            )
        self.schedule = schedule
        self.channels, self.stride = channels, stride
        self.name = name or getattr(network, "__qualname__", type(network).__qualname__)

    @property
    def borders(self) -> tuple[Border, ...]:
        return (self.border,)

    def _call(self, z: Tensor, time: float) -> Tensor:
        precision = torch.promote_types(self.border.dtype or z.dtype, torch.float32)
        t = torch.full((len(z),), time, dtype=precision, device=z.device)
        return self.border(self.network, z, t)

    def _time(self, sigma: float) -> float:
        return min(float(self.schedule.t_of_sigma(sigma)), self.schedule.last)

    def _outputs(self, z: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor | None]:
        """The prediction, and the code of a learned variance where there is one."""
        time = self._time(sigma_of(alpha_bar))
        out, *code = self._call(z, time).split(z.shape[1], dim=1)
        return out, code[0] if code else None

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        c_in = (1 + sigma * sigma) ** -0.5  # sqrt(alpha_bar)
        out = self._call(c_in * x, self._time(sigma))[:, : x.shape[1]]
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
        schedule = self.schedule
        fields: dict[str, Any] = asdict(schedule) if is_dataclass(schedule) else {}
        return {
            "name": self.name,
            "prediction": self.prediction,
            "schedule": {"type": type(schedule).__name__, **fields},
            **self.border.spec(),
        }
