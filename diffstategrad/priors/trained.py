"""Priors that `diffstategrad train` has made."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from diffstategrad.models import Autoencoder, load_autoencoder, load_network
from diffstategrad.models.autoencoder import FORMAT as AUTOENCODER
from diffstategrad.models.checkpoints import Prediction
from diffstategrad.priors.latent import LatentPrior
from diffstategrad.priors.network import NetworkPrior
from diffstategrad.schedules import Schedule, TableSchedule, VPSchedule

__all__ = ["CHECKPOINT", "describe_trained", "is_trained", "load_trained", "refuse_run"]

#: A run's file beside its network.
CHECKPOINT = "checkpoint.safetensors"

_SCHEDULES: dict[str, Any] = {"VP": VPSchedule, "table": TableSchedule}
_LARGEST = 1 << 16  # of a schedule's numbers, the length of its table among them


def is_trained(path: Path) -> bool:
    """Whether it is a file of `diffstategrad train`."""
    return path.is_file() and _header_text(path) is not None


def refuse_run(path: Path) -> None:
    """ValueError if it is the folder or the checkpoint of a run of `diffstategrad
    train`: says which file is the network."""
    checkpoint = path / CHECKPOINT if path.is_dir() else path
    if not checkpoint.is_file():
        return
    try:
        name = json.loads(_header_text(checkpoint, "state") or "{}")["config"]["name"]
        if Path(name).name != name or not name.isprintable():
            return
    except (LookupError, TypeError, ValueError, RecursionError):
        return
    network = checkpoint.with_name(f"{name}.safetensors")
    if network.is_file():
        raise ValueError(f"{path}: is a training run; give its network, {network}")
    raise ValueError(
        f"{path}: is a training run that has not ended; diffstategrad train resumes "
        f"it, and writes {network} at its end"
    )


def load_trained(
    path: Path,
    name: str | None,
    dtype: torch.dtype,
    autoencoder: str | Path | None,
) -> NetworkPrior | LatentPrior:
    """The prior in such a file; arguments and errors as those of `load_prior`."""
    network, header = load_network(path)
    latent, schedule = _latent(path, header), _schedule(path, header)
    if latent is None and autoencoder is not None:
        raise ValueError(f"{path}: a network on pixels takes no autoencoder")
    prior = NetworkPrior(
        network.to(dtype),
        _prediction(path, header),
        schedule=schedule,
        channels=network.architecture["image_channels"],
        stride=network.stride,
        name=name or str(path),
    )
    prior.learned_variance = False  # what is trained here has none
    if latent is None:
        return prior
    return LatentPrior(prior, _autoencoder(path, *latent, autoencoder).to(dtype))


def describe_trained(path: Path) -> dict[str, str]:
    """What such a file is, as lines of text by name; an autoencoder alone too."""
    if _is_autoencoder(path):
        net, _ = load_autoencoder(path)
        return {
            "kind": "vector-quantised autoencoder of diffstategrad train",
            "first stage": _size(net),
            "images": _sides(net.image_channels, net.stride),
            "latent": f"{net.latent_channels} channels, sides / {net.stride}",
        }
    network, header = load_network(path)
    latent = _latent(path, header)
    kind, what, stride = "network on pixels", "images", network.stride
    if latent is not None:
        kind, what = f"network on latents of {latent[0]}", "latents"
    return {
        "kind": f"{kind}, of diffstategrad train",
        "network": _size(network),
        "predicts": _prediction(path, header),
        what: _sides(network.architecture["image_channels"], stride),
        "schedule": f"{_schedule(path, header)}",
    }


def _header_text(path: Path, key: str = "diffstategrad") -> str | None:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(key)
    except SafetensorError:
        return None


def _is_autoencoder(path: Path) -> bool:
    try:
        header = json.loads(_header_text(path) or "{}")
    except (ValueError, RecursionError):
        return False  # `load_network` says what is wrong
    return isinstance(header, dict) and header.get("format") == AUTOENCODER


def _prediction(path: Path, header: dict[str, Any]) -> Prediction:
    prediction = header.get("prediction")
    if prediction not in list(get_args(Prediction)):  # it may be unhashable
        raise ValueError(f"{path}: unknown prediction {prediction!r}")
    return cast(Prediction, prediction)


def _schedule(path: Path, header: dict[str, Any]) -> Schedule:
    try:
        fields = dict(header["schedule"])
        schedule: Schedule = _SCHEDULES[fields.pop("type")](**fields)
        numbers = [value for value in fields.values() if value is not False]
        if not all(0 < value <= _LARGEST for value in numbers):
            raise ValueError(f"numbers must be in 0..{_LARGEST}")
        with np.errstate(over="ignore"):
            last = float(schedule.sigma_of_t(schedule.last))
        if not 0 < last < math.inf:
            raise ValueError(f"the last noise level is {last}")
        return schedule
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: unknown schedule {header.get('schedule')!r}"
        ) from error


def _latent(path: Path, header: dict[str, Any]) -> tuple[str, Any] | None:
    """Name and digest of the autoencoder of a network on latents."""
    latent = header.get("latent")
    if latent is None:
        return None
    name = latent.get("autoencoder") if isinstance(latent, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"{path}: names no autoencoder, but {latent!r}")
    return name, latent.get("sha256")


def _autoencoder(
    path: Path, name: str, digest: Any, given: str | Path | None
) -> Autoencoder:
    """The one that the network was trained with; the file beside it by default."""
    file = path.with_name(f"{name}.safetensors") if given is None else Path(given)
    if not file.is_file():
        raise FileNotFoundError(
            f"{path}: needs its autoencoder, and there is no {file}; "
            "load_prior(autoencoder=...) says where it is"
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{file}: is not the autoencoder that {path} was trained with")
    return load_autoencoder(file)[0]


def _size(net: nn.Module) -> str:
    return f"{sum(p.numel() for p in net.parameters()):,} parameters"


def _sides(channels: int, stride: int) -> str:
    return f"{channels} channels, sides multiples of {stride}"
