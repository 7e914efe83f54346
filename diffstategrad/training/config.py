"""Training settings, read from YAML."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

__all__ = [
    "AutoencoderConfig",
    "LatentConfig",
    "NetworkConfig",
    "NoiseConfig",
    "OptimiserConfig",
    "PhaseConfig",
    "ReconstructionConfig",
    "ScheduleConfig",
    "StreamConfig",
    "TrainingConfig",
    "load_config",
]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StreamConfig(_Section):
    """Rendered scenes: side in pixels, how many are at hand, how long each stays."""

    size: Annotated[int, Field(ge=8)] = 256
    scenes: Count = 384
    steps_per_scene: Count = 8


class NetworkConfig(_Section):
    """Arguments of :class:`diffstategrad.models.PixelUNet`."""

    channels: Annotated[list[Count], Field(min_length=1, max_length=8)] = [32, 64, 128]
    layers: Count = 1
    factor: Count = 2
    groups: Count = 8


class AutoencoderConfig(_Section):
    """Arguments of :class:`diffstategrad.models.Autoencoder`."""

    channels: Annotated[list[Count], Field(min_length=1, max_length=8)] = [128]
    layers: Count = 1
    factor: Count = 4
    latent_channels: Count = 4
    codes: Annotated[int, Field(ge=2)] = 8192
    groups: Count = 8


class ReconstructionConfig(_Section):
    """Weights of an autoencoder's loss beside the absolute error of the image."""

    gradient: Weight = 0.1
    commitment: Weight = 0.25
    moments: Weight = 0.02
    noise: Weight = 0.1


class LatentConfig(_Section):
    """Train on latents: of which autoencoder, and with which table of betas.

    `autoencoder` is a path, or the name of a file of the package's `weights` folder.
    The betas are evenly spaced in the square root, 1000 of them.
    """

    autoencoder: Annotated[str, Field(min_length=1)]
    beta_start: Share = 0.0015
    beta_end: Share = 0.0195

    @property
    def path(self) -> Path:
        """The file of the autoencoder."""
        path = Path(self.autoencoder)
        if path.suffix != ".safetensors":
            path = Path(__file__).parents[1] / "weights" / f"{path.name}.safetensors"
        return path


class ScheduleConfig(_Section):
    """Arguments of :class:`diffstategrad.schedules.VPSchedule`."""

    beta_min: Positive = 0.1
    beta_d: Positive = 19.9


class NoiseConfig(_Section):
    """Law of the training noise level; images are in [-1, 1]."""

    log_mean: float = -1.0
    log_std: Positive = 1.3
    uniform_share: Share = 0.15
    minimum: Positive = 0.005
    maximum: Positive = 150.0


class OptimiserConfig(_Section):
    """AdamW, its learning rate by step, and the average of the weights."""

    lr: Positive = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    decay_steps: Annotated[int, Field(ge=0)] = 5000
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.99
    clip: Positive = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999


class PhaseConfig(_Section):
    """A stretch of the training with one crop size and batch size.

    Crops are counted in pixels of what the network sees: of latents with `latent`.
    `quantise` is read by autoencoders alone.
    """

    steps: Count
    crop: Count = 64
    batch: Count = 8
    lr_scale: Positive = 1.0
    quantise: bool = True


class TrainingConfig(_Section):
    """Everything that decides the weights, and how often to report.

    With `autoencoder`, that network is trained and `network` to `noise` are not read;
    with `latent`, the schedule is the one described there.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    stream: StreamConfig = StreamConfig()
    network: NetworkConfig = NetworkConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    noise: NoiseConfig = NoiseConfig()
    autoencoder: AutoencoderConfig | None = None
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    latent: LatentConfig | None = None
    optimiser: OptimiserConfig = OptimiserConfig()
    phases: Annotated[list[PhaseConfig], Field(min_length=1)]
    log_every: Count = 100
    checkpoint_minutes: Positive = 4.0

    @model_validator(mode="after")
    def _sizes_fit(self) -> TrainingConfig:
        if self.autoencoder is not None and self.latent is not None:
            raise ValueError("autoencoder and latent exclude each other")
        if self.latent is not None and "schedule" in self.model_fields_set:
            raise ValueError("schedule: latent.beta_start and beta_end take its place")
        network = self.autoencoder or self.network
        stride = network.factor * 2 ** (len(network.channels) - 1)
        for phase in self.phases:
            if phase.crop % stride:
                raise ValueError(
                    f"phases: crop {phase.crop} is no multiple of the stride {stride}"
                )
            if phase.crop > self.stream.size:
                raise ValueError(
                    f"phases: crop {phase.crop} exceeds stream.size {self.stream.size}"
                )
        return self

    @property
    def steps(self) -> int:
        """Length of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> PhaseConfig:
        """The phase of a step; the last one goes on for ever."""
        end = 0
        for phase in self.phases:
            end += phase.steps
            if step < end:
                return phase
        return self.phases[-1]


def load_config(path: str | os.PathLike[str]) -> TrainingConfig:
    """Read and check a YAML file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no YAML mapping or a key is unknown or out of range; the message
        names the file, the key and, for an unknown key, the nearest known one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such training file: {path}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ValueError(f"{path}: not valid YAML: {err}") from err
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(data).__name__}")
    try:
        return TrainingConfig.model_validate(data)
    except ValidationError as err:
        lines = [_explain(dict(e)) for e in err.errors(include_url=False)]
        raise ValueError(f"{path}: " + "; ".join(lines)) from None


def _explain(error: dict[str, object]) -> str:
    location = error["loc"]
    assert isinstance(location, tuple)
    key = ".".join(str(part) for part in location)
    if error["type"] != "extra_forbidden":
        message = str(error["msg"]).removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    known = _fields_at(location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
    return f"unknown key {key!r}{hint}"


def _fields_at(location: tuple[object, ...]) -> list[str]:
    section: type[BaseModel] = TrainingConfig
    for part in location:
        if part == "phases":
            section = PhaseConfig
        elif isinstance(part, str):
            annotation = section.model_fields[part].annotation
            of = get_args(annotation) or (annotation,)  # optional ones are `A | None`
            section = next(t for t in of if issubclass(t, BaseModel))
    return list(section.model_fields)
