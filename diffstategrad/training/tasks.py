r"""What a training run learns: the network, its loss and what is exported.

- :class:`Denoising`, on images or on the latents of an autoencoder. For a crop
  :math:`x_0`, noise :math:`\epsilon` and a level :math:`\sigma` drawn from the
  configured law,

  .. math:: \| v_\theta(z, t) - v \|^2, \qquad
            v = \sqrt{\bar\alpha}\, \epsilon - \sqrt{1 - \bar\alpha}\, x_0.

  Latents are those of whole scenes, unit variance, not quantised.

- :class:`Autoencoding`. With :math:`h = E(x)`, :math:`d = G(\cdot) - x` and
  :math:`d_s` its average over :math:`2^s \times 2^s` pixels,

  .. math:: \|d\|_1 + w \sum_{s < 3} \|\nabla d_s\|_1
            + c\, (\|h - \bar q\|^2 + \|\bar h - q\|^2 / c)
            + \gamma\, (\operatorname{mean}(h)^2 + (\operatorname{std}(h) - 1)^2),

  norms being means over elements, bars stopping gradients, :math:`q` the nearest
  codes. The linear part starts as the principal components of patches, the networks
  at zero. Phases with `quantise: false` come first: they decode :math:`h` plus noise
  of the size that quantisation will have, and have no third term. The codebook is then
  fitted to latents by Lloyd's iteration, which leaves no code unused.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffstategrad.models.autoencoder import (
    Autoencoder,
    load_autoencoder,
    nearest_code,
    save_autoencoder,
)
from diffstategrad.models.unet import PixelUNet, save_network
from diffstategrad.schedules import TableSchedule, VPSchedule
from diffstategrad.training.config import TrainingConfig
from diffstategrad.training.leaves import scene
from diffstategrad.training.samples import write_reconstructions, write_samples
from diffstategrad.training.stream import SceneWindow, batch_generator, noisy_batch

__all__ = ["Autoencoding", "Denoising", "Task", "fit_linear", "lloyd", "make_task"]

_FIT_CROPS = 256
_HELD_OUT = 1_000_003  # added to the seed: scenes that no run trains on


class Task(Protocol):
    """What :mod:`diffstategrad.training.trainer` asks of a task."""

    def build(self) -> nn.Module:
        """A network with initial weights, drawn from torch's global generator."""

    def identity(self) -> dict[str, Any]:
        """What besides the configuration must be the same in a resumed run."""

    def window(self, step: int, workers: int) -> SceneWindow:
        """The stream from `step` on."""

    def prepare(
        self, net: nn.Module, average: nn.Module, window: SceneWindow, step: int
    ) -> None:
        """Change weights outside gradient descent, before `step`."""

    def loss(self, net: nn.Module, window: SceneWindow, step: int) -> Tensor:
        """The loss of one step, a function of `net`, the seed and the step."""

    def export(self, folder: Path, net: nn.Module, training: dict[str, Any]) -> Path:
        """Write the network and a sheet of pictures; the path of the former."""


def make_task(config: TrainingConfig) -> Task:
    """The task of a configuration."""
    return Denoising(config) if config.autoencoder is None else Autoencoding(config)


class Denoising:
    """Predict v from noisy images or latents."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.first_stage: Autoencoder | None = None
        self.schedule: VPSchedule | TableSchedule
        if config.latent is None:
            self.schedule = VPSchedule(**config.schedule.model_dump())
            return
        path = config.latent.path
        self.first_stage, header = load_autoencoder(path)
        self.schedule = TableSchedule(config.latent.beta_start, config.latent.beta_end)
        self._latent = {
            "autoencoder": header.get("name", path.stem),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "channels": self.first_stage.architecture["latent_channels"],
            "stride": self.first_stage.stride,
        }
        side, rest = divmod(config.stream.size, self.first_stage.stride)
        largest = max(phase.crop for phase in config.phases)
        if rest or largest > side:
            raise ValueError(
                f"phases: crop {largest} exceeds the latents of scenes of "
                f"{config.stream.size} pixels at stride {self.first_stage.stride}"
            )

    def build(self) -> PixelUNet:
        channels = 3
        if self.first_stage is not None:
            channels = self.first_stage.architecture["latent_channels"]
        return PixelUNet(**self.config.network.model_dump(), image_channels=channels)

    def identity(self) -> dict[str, Any]:
        if self.first_stage is None:
            return {}
        return {"autoencoder file": self._latent["sha256"]}

    def window(self, step: int, workers: int) -> SceneWindow:
        config = self.config
        encode = None if self.first_stage is None else self._encode
        return SceneWindow(config.seed, config.stream, step, workers, encode)

    @torch.no_grad()
    def _encode(self, image: np.ndarray) -> np.ndarray:
        assert self.first_stage is not None
        x = torch.from_numpy(image.astype(np.float32))[None]
        return self.first_stage.encode(x)[0].numpy().astype(np.float16)

    def prepare(
        self, net: nn.Module, average: nn.Module, window: SceneWindow, step: int
    ) -> None:
        pass

    def loss(self, net: nn.Module, window: SceneWindow, step: int) -> Tensor:
        config, phase = self.config, self.config.phase_at(step)
        x0 = window.crops(step, phase.crop, phase.batch)
        z, t, v = noisy_batch(x0, config.seed, step, config.noise, self.schedule)
        with _autocast(config):
            return (net(z, t).float() - v).square().mean()

    def export(self, folder: Path, net: nn.Module, training: dict[str, Any]) -> Path:
        assert isinstance(net, PixelUNet)
        name = self.config.name
        kind = "VP" if self.first_stage is None else "table"
        metadata: dict[str, Any] = {
            "name": name,
            "prediction": "v",
            "schedule": {"type": kind, **asdict(self.schedule)},
        }
        if self.first_stage is None:
            metadata["image_range"] = [-1, 1]
        else:
            metadata["latent"] = self._latent
        target = folder / f"{name}.safetensors"
        save_network(target, net, {**metadata, "training": training})
        write_samples(
            folder / "samples.png",
            net,
            self.schedule,
            self.config.seed,
            autoencoder=self.first_stage,
        )
        return target


class Autoencoding:
    """Reproduce images from few numbers."""

    def __init__(self, config: TrainingConfig) -> None:
        assert config.autoencoder is not None
        self.config = config

    def build(self) -> Autoencoder:
        assert self.config.autoencoder is not None
        net = Autoencoder(**self.config.autoencoder.model_dump())
        for zero in (net.vq.quant_conv, net.vq.decoder.conv_out, net.analysis):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        nn.init.zeros_(net.codebook)  # not fitted yet, as is the linear part
        return net

    def identity(self) -> dict[str, Any]:
        return {}

    def window(self, step: int, workers: int) -> SceneWindow:
        return SceneWindow(self.config.seed, self.config.stream, step, workers)

    @torch.no_grad()
    def prepare(
        self, net: nn.Module, average: nn.Module, window: SceneWindow, step: int
    ) -> None:
        """Fit the linear part and, when quantisation begins, the codebook.

        What is fitted shows in the weights, which a checkpoint holds.
        """
        assert isinstance(net, Autoencoder) and isinstance(average, Autoencoder)
        phase = self.config.phase_at(step)
        if not net.analysis.weight.any():
            crops = window.crops(step, phase.crop, _FIT_CROPS)
            fit_linear(net, crops)
            fit_linear(average, crops)
        if phase.quantise and not net.codebook.any():
            n = len(net.codebook)
            count = -(-16 * n // (phase.crop // net.stride) ** 2)
            crops = window.crops(step, phase.crop, count)
            latents = torch.cat([net.encode(x) for x in crops.split(32)])
            generator = batch_generator(self.config.seed, step)
            codes = lloyd(latents, n, generator, iterations=6)
            net.codebook.copy_(codes)
            average.codebook.copy_(codes)

    def loss(self, net: nn.Module, window: SceneWindow, step: int) -> Tensor:
        assert isinstance(net, Autoencoder)
        config, phase = self.config, self.config.phase_at(step)
        weights = config.reconstruction
        x = window.crops(step, phase.crop, phase.batch)
        with _autocast(config):
            h = net.encode(x).float()
        mean, std = h.mean((0, 2, 3)), h.var((0, 2, 3)).mean().sqrt()
        loss = weights.moments * (mean.square().mean() + (std - 1).square())
        if phase.quantise:
            index = nearest_code(h.detach(), net.codebook.detach())
            q = functional.embedding(index, net.codebook).movedim(-1, 1)
            loss = loss + weights.commitment * functional.mse_loss(h, q.detach())
            loss = loss + functional.mse_loss(q, h.detach())
            h = h + (q - h).detach()
        else:
            generator = batch_generator(config.seed, step)
            h = h + weights.noise * torch.randn(h.shape, generator=generator)
        with _autocast(config):
            y = net.decode(h, quantise=False).float()
        return loss + _reconstruction(y - x, weights.gradient)

    @torch.no_grad()
    def export(self, folder: Path, net: nn.Module, training: dict[str, Any]) -> Path:
        assert isinstance(net, Autoencoder)
        config = self.config
        net.scale = 1.0
        scenes = [
            torch.from_numpy(scene(config.seed + _HELD_OUT, i, config.stream.size))
            for i in range(min(64, config.stream.scenes))
        ]
        latents = torch.cat([net.encode(x[None]) for x in scenes])
        net.scale = float(1 / latents.std())
        metadata = {"name": config.name, "image_range": [-1, 1], "training": training}
        target = folder / f"{config.name}.safetensors"
        save_autoencoder(target, net, metadata)
        write_reconstructions(folder / "samples.png", net, config.seed + _HELD_OUT)
        return target


@torch.no_grad()
def fit_linear(net: Autoencoder, images: Tensor) -> None:
    r"""Make the linear part the principal components of the patches of `images`.

    A component of variance :math:`s` gets a latent of variance proportional to
    :math:`\sqrt s`, on average 1: between equal accuracy in the latent and equal
    accuracy in the image.
    """
    patches = functional.pixel_unshuffle(images, net.stride).movedim(1, -1)
    rows = patches.reshape(-1, patches.shape[-1]).double()
    mean = rows.mean(0)
    variance, vectors = torch.linalg.eigh((rows - mean).T.cov())
    c = net.architecture["latent_channels"]
    variance = variance[-c:].flip(0).clamp_min(1e-12)
    vectors = vectors[:, -c:].flip(1)
    gain = variance.sqrt().mean().sqrt() * variance.pow(0.25)  # image per latent
    net.analysis.weight.copy_((vectors / gain).T[:, :, None, None])
    net.analysis.bias.copy_(-(mean @ vectors) / gain)
    net.synthesis.weight.copy_((vectors * gain)[:, :, None, None])
    net.synthesis.bias.copy_(mean)


def lloyd(
    latents: Tensor, n: int, generator: torch.Generator, iterations: int
) -> Tensor:
    """`n` codes for `latents` (B, d, H, W): Lloyd's iteration from random members.

    A code that becomes the nearest of none stays where it is.
    """
    rows = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    codes = rows[torch.randperm(len(rows), generator=generator)[:n]].clone()
    for _ in range(iterations):
        index = nearest_code(latents, codes).flatten()
        count = torch.bincount(index, minlength=n).to(rows.dtype)
        total = torch.zeros_like(codes).index_add_(0, index, rows)
        used = count > 0
        codes[used] = total[used] / count[used, None]
    return codes


def _reconstruction(d: Tensor, gradient: float) -> Tensor:
    loss = d.abs().mean()
    for scale in range(3):
        if scale:
            d = functional.avg_pool2d(d, 2)
        loss = loss + gradient * (
            d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
        )
    return loss


def _autocast(config: TrainingConfig) -> torch.autocast:
    half = config.precision == "bfloat16"
    return torch.autocast("cpu", torch.bfloat16, enabled=half)
