"""Priors from files: those trained here and published checkpoints.

To add a bundled one: its weights in ``weights/``, and its line in `BUNDLED`.
"""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffstategrad._options import is_real, nearest
from diffstategrad.models.checkpoints import Checkpoint, Denoiser, open_checkpoint
from diffstategrad.models.text import empty_prompt
from diffstategrad.priors.latent import LatentPrior
from diffstategrad.priors.network import NetworkPrior
from diffstategrad.priors.spectrum import PROFILES
from diffstategrad.priors.trained import (
    describe_trained,
    is_trained,
    load_trained,
    refuse_run,
)
from diffstategrad.schedules import Schedule

__all__ = ["BUNDLED", "describe_prior", "load_prior"]

#: Name -> file in the package's weights folder.
BUNDLED = {
    "leaves64": "leaves64.safetensors",
    "leaves_latent": "leaves_latent.safetensors",
}


def load_prior(
    path: str | Path,
    *,
    name: str | None = None,
    weights: Literal["raw", "ema"] = "raw",
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    compile: bool = False,
    autoencoder: str | Path | None = None,
    head_width: int | None = None,
    qkv_order: Literal["legacy", "new"] = "legacy",
    schedule: Schedule | None = None,
    prompt: Tensor | None = None,
    guidance: float = 1.0,
) -> NetworkPrior | LatentPrior:
    """The bundled prior of a name, or the prior in a file or folder; nothing in it is
    executed.

    Parameters
    ----------
    path : str or path
        A name in `BUNDLED`, a file of `diffstategrad train`, of guided diffusion (ADM)
        or of latent diffusion (LDM), or a folder of `diffusers`; see
        `models.checkpoints`.
    name : str, optional
        For the record of a result; default the bundled name or the path.
    weights, head_width, qkv_order
        For published files, which do not tell; see `open_checkpoint`.
    schedule : Schedule, optional
        Of a published network, whatever its file or folder tells; default what that
        tells, or else the published one.
    dtype : torch.dtype, optional
        Of the network's weights, whatever the file's; default float32.
    channels_last, compile : bool
        As in `Prior.to`, which changes them, and the dtype, later, and says what they
        cost.
    autoencoder : path, optional
        For a network of `diffstategrad train` on latents: the file of the autoencoder
        that it was trained with.  Default: the one beside it, of the name it gives.
    prompt : Tensor, shape (1, tokens, width), optional
        For Stable Diffusion: the text encoder's states of a text.  Default: of no text,
        from `empty_prompt`.
    guidance : float
        Weight w of the `prompt` against no text, w eps(prompt) + (1 - w) eps(no text);
        other than 1 it takes two calls of the network.  Finite.

    Returns
    -------
    NetworkPrior, or LatentPrior for a network on latents

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    TypeError
        If the prompt is no tensor.
    ValueError
        If it is no prior, damaged, incomplete, or has NaN weights; if an option does
        not apply to it.  The message names the file.
    """
    bundled = str(path) if path in BUNDLED else None
    path, dtype = _find(path), dtype or torch.float32
    run: dict[str, Any] = {"channels_last": channels_last, "compile": compile}
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating one, got {dtype}")
    if not is_real(guidance) or not abs(guidance) < math.inf:
        raise ValueError(f"guidance must be a finite number, got {guidance!r}")
    no_text = f"{path}: takes no text, so no prompt and no guidance"
    has_text = prompt is not None or guidance != 1
    if is_trained(path):
        if has_text:
            raise ValueError(no_text)
        given = (weights, head_width, qkv_order)
        if given != ("raw", None, "legacy") or schedule is not None:
            raise ValueError(
                f"{path}: weights, head_width, qkv_order and schedule are for "
                "published checkpoints"
            )
        trained = load_trained(path, name or bundled, dtype, autoencoder)
        if bundled:
            trained.profile = PROFILES.get(bundled)
        return trained.to(**run)
    refuse_run(path)
    if autoencoder is not None:
        raise ValueError(f"{path}: autoencoder is for files of diffstategrad train")
    checkpoint = open_checkpoint(
        path, weights=weights, head_width=head_width, qkv_order=qkv_order
    )
    if checkpoint.network is None:
        raise ValueError(f"{path}: a {checkpoint.kind} is no prior")
    if has_text and not checkpoint.takes_text:
        raise ValueError(no_text)
    schedule = checkpoint.schedule if schedule is None else schedule
    if schedule is None:
        raise ValueError(
            f"{path}: its noise schedule is not read: {checkpoint.unread}; "
            "load_prior(path, schedule=...) takes one"
        )
    text, against = _texts(checkpoint, prompt, guidance)
    if name is None:
        name = str(path) if weights == "raw" else f"{path} ({weights})"
    network = NetworkPrior(
        Denoiser(checkpoint.network.build(dtype), text, against, guidance),
        checkpoint.prediction,
        schedule=schedule,
        channels=checkpoint.network.config["in_channels"],
        stride=checkpoint.network.stride,
        name=name,
    )
    network.learned_variance = checkpoint.learned_variance
    if checkpoint.first_stage is None:
        return network.to(**run)
    return LatentPrior(network, checkpoint.load_first_stage(dtype)).to(**run)


def describe_prior(path: str | Path) -> dict[str, str]:
    """What a bundled prior, a file or a folder is, as lines of text by name; no network
    is run.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_prior`; an autoencoder alone is described too.
    """
    path = _find(path)
    if is_trained(path):
        return describe_trained(path)
    refuse_run(path)
    return open_checkpoint(path).describe()


def _find(path: str | Path) -> Path:
    """The file or folder of a bundled name, or at the path."""
    if path in BUNDLED:
        return Path(str(files("diffstategrad.weights") / BUNDLED[str(path)]))
    if not Path(path).exists():
        raise FileNotFoundError(
            f"no prior and no file named {str(path)!r}{nearest(path, BUNDLED)}"
        )
    return Path(path)


def _texts(
    checkpoint: Checkpoint, prompt: Tensor | None, guidance: float
) -> tuple[Tensor | None, Tensor | None]:
    """States of the text that the network is given and, with guidance, of the one that
    it is guided away from."""
    if not checkpoint.takes_text:
        return None, None
    if prompt is not None:
        prompt = _states(checkpoint, "prompt", prompt)
        if guidance == 1:
            return prompt, None
    elif guidance != 1:
        raise ValueError(f"guidance {guidance} needs a prompt to guide to")
    nothing = _states(checkpoint, "the empty prompt", empty_prompt(checkpoint.path))
    return (nothing, None) if prompt is None else (prompt, nothing)


def _states(checkpoint: Checkpoint, name: str, states: Any) -> Tensor:
    """The states of a text, in float32; TypeError or ValueError unless they are."""
    assert checkpoint.network is not None
    width = checkpoint.network.config["cross_attention_dim"]
    need = f"{name} must be the text encoder's states, a tensor (1, tokens, {width})"
    if not isinstance(states, Tensor):
        raise TypeError(f"{checkpoint.path}: {need}, got a {type(states).__name__}")
    if states.ndim != 3 or states.shape[::2] != (1, width) or not states.shape[1]:
        raise ValueError(f"{checkpoint.path}: {need}, got {tuple(states.shape)}")
    if not states.is_floating_point() or not bool(states.isfinite().all()):
        raise ValueError(f"{checkpoint.path}: {need}, floating and finite")
    return states.detach().float()
