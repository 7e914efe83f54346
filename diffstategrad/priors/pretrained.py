"""Priors from files: those trained here and published checkpoints.

To add a bundled one: its weights in ``weights/``, and its line in `BUNDLED`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffstategrad._options import nearest
from diffstategrad.models.checkpoints import (
    Checkpoint,
    Denoiser,
    empty_prompt,
    open_checkpoint,
)
from diffstategrad.priors.latent import LatentPrior
from diffstategrad.priors.network import NetworkPrior
from diffstategrad.priors.spectrum import PROFILES
from diffstategrad.priors.trained import describe_trained, is_trained, load_trained
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
        For a published file that does not tell that of its network (ADM; LDM without
        betas); default the published one.
    dtype : torch.dtype, optional
        Of the network's weights, whatever the file's; default float32.
    channels_last, compile : bool
        As in `Prior.to`, which changes them, and the dtype, later.
    autoencoder : path, optional
        For a network of `diffstategrad train` on latents: the file of the autoencoder
        that it was trained with.  Default: the one beside it, of the name it gives.
    prompt : Tensor, shape (1, tokens, width), optional
        For Stable Diffusion: the text encoder's states of a text.  Default: of no text,
        from `empty_prompt`.
    guidance : float
        Weight w of the `prompt` against no text, w eps(prompt) + (1 - w) eps(no text);
        other than 1 it takes two calls of the network.

    Returns
    -------
    NetworkPrior, or LatentPrior for a network on latents

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    ValueError
        If it is no prior, damaged, incomplete, or has NaN weights; if an option does
        not apply to it.  The message names the file.
    """
    bundled = str(path) if path in BUNDLED else None
    path, dtype = _find(path), dtype or torch.float32
    run: dict[str, Any] = {"channels_last": channels_last, "compile": compile}
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating one, got {dtype}")
    if prompt is None and guidance != 1:
        raise ValueError(f"guidance {guidance} needs a prompt to guide to")
    if is_trained(path):
        given = (weights, head_width, qkv_order, schedule, prompt)
        if given != ("raw", None, "legacy", None, None):
            raise ValueError(
                f"{path}: weights, head_width, qkv_order, schedule and prompt are for "
                "published checkpoints"
            )
        trained = load_trained(path, name or bundled, dtype, autoencoder)
        if bundled:
            trained.profile = PROFILES.get(bundled)
        return trained.to(**run)
    if autoencoder is not None:
        raise ValueError(f"{path}: autoencoder is for files of diffstategrad train")
    checkpoint = open_checkpoint(
        path, weights=weights, head_width=head_width, qkv_order=qkv_order
    )
    if checkpoint.network is None:
        raise ValueError(f"{path}: a {checkpoint.kind} is no prior")
    if prompt is not None and not checkpoint.takes_text:
        raise ValueError(f"{path}: takes no prompt")
    if schedule is not None and checkpoint.tells_schedule:
        raise ValueError(f"{path}: tells its schedule, and takes no other")
    text, against = _texts(checkpoint, prompt, guidance)
    if name is None:
        name = str(path) if weights == "raw" else f"{path} ({weights})"
    network = NetworkPrior(
        Denoiser(checkpoint.network.build(dtype), text, against, guidance),
        checkpoint.prediction,
        schedule=checkpoint.schedule if schedule is None else schedule,
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
    assert checkpoint.network is not None
    width = checkpoint.network.config["cross_attention_dim"]
    nothing = None
    if prompt is None or guidance != 1:
        nothing = empty_prompt(checkpoint.path)
    for states in (prompt, nothing):
        if states is None:
            continue
        if states.ndim != 3 or len(states) != 1 or states.shape[2] != width:
            raise ValueError(
                f"{checkpoint.path}: states of a text must have the shape (1, tokens, "
                f"{width}), got {tuple(states.shape)}"
            )
        if not bool(states.isfinite().all()):
            raise ValueError(f"{checkpoint.path}: states of a text must be finite")
    if prompt is None:
        return nothing, None
    return prompt.detach().float(), nothing
