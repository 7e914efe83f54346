r"""What a published checkpoint is, told from names, shapes and configuration files.

============================= ==================================== =====================
file or folder                tensors                              schedule
============================= ==================================== =====================
guided diffusion (ADM) file   bare names                           linear, 1e-4 to 0.02
latent diffusion (LDM) file   ``model.diffusion_model.*``, their   that of its `betas`
                              mean ``model_ema.*``,
                              ``first_stage_model.*``
VQGAN file                    the first stage alone
folder of `diffusers`         ``unet/`` and for latents            that of its scheduler
                              ``vqvae/`` or ``vae/``
============================= ==================================== =====================

Nothing in a file is executed and nothing is downloaded.  A network is first built
without memory, and names and shapes have to agree with it exactly; then its tensors are
read one after the other.

References
----------
Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021.
Rombach, Blattmann, Lorenz, Esser, Ommer, "High-Resolution Image Synthesis with Latent
Diffusion Models", CVPR 2022.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from diffstategrad._options import is_real, nearest
from diffstategrad.models.archive import Tensors, read_tensors
from diffstategrad.models.first_stage import KLFirstStage, VQFirstStage
from diffstategrad.models.keys import (
    MAX_BLOCKS,
    MAX_LEVELS,
    Row,
    check_keys,
    fill,
    unet_config,
    unet_rows,
    vq_config,
    vq_rows,
)
from diffstategrad.models.unet import check_size, check_sizes, make_pointwise
from diffstategrad.schedules import TableSchedule, beta_table

__all__ = ["Checkpoint", "Denoiser", "empty_prompt", "open_checkpoint"]

Prediction = Literal["epsilon", "v", "start_x"]

_UNET, _EMA, _FIRST = "model.diffusion_model.", "model_ema.", "first_stage_model."
_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "start_x",
}
_PARALLEL = "module."  # in the names of a DistributedDataParallel
_EMPTY_PROMPT = "empty_prompt.safetensors"
_LDM_SCHEDULE = TableSchedule()
_ADM_SCHEDULE = TableSchedule(1e-4, 0.02, sqrt=False)
_MAX_TIMES = 1 << 16
_ASSUMED = " (assumed, the file does not tell)"
_TOKENS, _BEGIN, _END = 77, 49406, 49407  # of CLIP's text encoder


class Part:
    """One network of a checkpoint.

    Parameters
    ----------
    kind : str
        Name of its class in `diffusers`.
    config : mapping
        Arguments of the class.
    tensors : Tensors
    rows : list of Row
        What each of them becomes.

    Attributes
    ----------
    config : mapping
        All arguments.
    parameters : int
    stride : int
        Height and width of an input are multiples of this number.

    Raises
    ------
    ValueError
        If the arguments make no network, or the tensors are not those that it needs.
    """

    def __init__(
        self, kind: str, config: Mapping[str, Any], tensors: Tensors, rows: list[Row]
    ):
        self.kind, self.config = kind, config
        self._tensors, self._rows = tensors, rows
        self._head = config.get("attention_head_dim") or 1
        empty = self._empty()
        with _naming(tensors.path):
            check_keys(empty, tensors.shapes, rows, self._head)
        self.config = empty.config
        self.parameters = sum(value.numel() for value in empty.parameters())
        self.stride = 2 ** (len(self.config["block_out_channels"]) - 1)

    def _empty(self) -> Any:
        """The network without memory."""
        import diffusers  # seconds to import, needed only here

        try:
            with torch.device("meta"):
                return getattr(diffusers, self.kind).from_config(dict(self.config))
        except Exception as error:  # a configuration may say anything
            raise ValueError(
                f"{self._tensors.path}: its configuration makes no {self.kind}: {error}"
            ) from error

    def build(self, dtype: torch.dtype) -> Any:
        """The network with its weights, which are read now."""
        net = self._empty()
        make_pointwise(net)
        with _naming(self._tensors.path):
            fill(net, self._tensors, self._rows, self._head, dtype)
        return net


@dataclass(frozen=True)
class Checkpoint:
    """What a file or folder holds; no weights have been read.

    Attributes
    ----------
    path : Path
    kind : str
        In words.
    network : Part or None
        The U-Net; None for a first stage alone.
    first_stage : Part or None
        None for a network on pixels.
    schedule : TableSchedule
    tells_schedule : bool
        Whether it is the file's; else it is that of the method's publication.
    prediction : "epsilon", "v" or "start_x"
    weights : str
        "raw" or "ema": which weights of the network these are.
    offered : tuple of str
        Those that there are.
    scale : float
        Latents are the first stage's times this factor.

    Raises
    ------
    ValueError
        If the weights asked for are not there or the parts do not fit together.
    """

    path: Path
    kind: str
    network: Part | None = None
    first_stage: Part | None = None
    schedule: TableSchedule = _LDM_SCHEDULE
    tells_schedule: bool = True
    prediction: Prediction = "epsilon"
    weights: str = "raw"
    offered: tuple[str, ...] = ("raw",)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.weights not in self.offered:
            raise ValueError(
                f"{self.path}: has no weights {self.weights!r}; one of "
                f"{', '.join(self.offered)}"
            )
        if not is_real(self.scale) or not 0 < self.scale < math.inf:
            raise ValueError(
                f"{self.path}: the factor of its latents must be > 0, got "
                f"{self.scale!r}"
            )
        if self.network is None:
            return
        config = self.network.config
        c, out = config["in_channels"], config["out_channels"]
        latent = c if self.first_stage is None else _latent_channels(self.first_stage)
        if c != latent or out not in (c, 2 * c):
            raise ValueError(
                f"{self.path}: a network from {c} to {out} channels is no denoiser of "
                f"{latent}"
            )

    @property
    def learned_variance(self) -> bool:
        assert self.network is not None
        return self.network.config["out_channels"] > self.network.config["in_channels"]

    @property
    def takes_text(self) -> bool:
        return self.network is not None and self.network.kind == "UNet2DConditionModel"

    def load_first_stage(self, dtype: torch.dtype) -> VQFirstStage | KLFirstStage:
        """The autoencoder."""
        assert self.first_stage is not None
        kind = VQFirstStage if self.first_stage.kind == "VQModel" else KLFirstStage
        return kind(self.first_stage.build(dtype), self.scale)

    def describe(self) -> dict[str, str]:
        """What there is to know without running it, as lines of text by name."""
        lines = {"kind": self.kind}
        net, stage = self.network, self.first_stage
        if net is not None:
            lines["network"] = f"{net.parameters:,} parameters"
            width = net.config["attention_head_dim"]
            if width and not self.takes_text:  # of which it is no width
                lines["attention"] = f"heads of {width} channels"
                if self.path.is_file():
                    lines["attention"] += _ASSUMED
            code = " and the code of a variance" if self.learned_variance else ""
            lines["predicts"] = self.prediction + code
        if stage is not None:
            lines["first stage"] = f"{stage.parameters:,} parameters"
        parts = [part for part in (stage, net) if part is not None]
        stride = math.prod(part.stride for part in parts)
        channels = parts[0].config["in_channels"]
        lines["images"] = f"{channels} channels, sides multiples of {stride}"
        side = None if net is None else net.config["sample_size"]
        if isinstance(side, int):
            side *= 1 if stage is None else stage.stride
            lines["images"] += f", trained at {side} x {side}"
        if stage is not None:
            lines["latent"] = (
                f"{_latent_channels(stage)} channels, sides / {stage.stride}, "
                f"scaled by {self.scale:g}"
            )
        if net is not None:
            s = self.schedule
            rule = "linear in the root" if s.sqrt else "linear"
            lines["schedule"] = (
                f"beta {s.start:g} to {s.end:g}, {rule}, {s.n} times: "
                f"sigma {s.sigma_of_t(0):.3g} to {s.sigma_of_t(s.n - 1):.3g}"
            )
            if not self.tells_schedule:
                lines["schedule"] += _ASSUMED
            if len(self.offered) > 1:
                lines["weights"] = f"{self.weights} (of {', '.join(self.offered)})"
        return lines


class Denoiser(nn.Module):
    """A U-Net of `diffusers` as function `(z, t) -> prediction`.

    Parameters
    ----------
    network : diffusers.UNet2DModel or diffusers.UNet2DConditionModel
    states : Tensor, shape (1, tokens, width), optional
        Of the text for a network that takes one.
    against : Tensor of the same shape, optional
        States of the text to be guided away from, with two calls of the network (Ho
        and Salimans, "Classifier-Free Diffusion Guidance", 2022).
    guidance : float
        Weight of the first prediction; the second has one minus this.
    """

    states: Tensor | None
    against: Tensor | None

    def __init__(
        self,
        network: Any,
        states: Tensor | None = None,
        against: Tensor | None = None,
        guidance: float = 1.0,
    ):
        super().__init__()
        self.network, self.guidance = network, guidance
        self.training = network.training
        self.register_buffer("states", states, persistent=False)
        self.register_buffer("against", against, persistent=False)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        out = self._call(z, t, self.states)
        if self.against is not None:
            base = self._call(z, t, self.against)
            out = base + self.guidance * (out - base)
        return out

    def _call(self, z: Tensor, t: Tensor, states: Tensor | None) -> Tensor:
        text = [] if states is None else [states.to(z.dtype).expand(len(z), -1, -1)]
        return self.network(z, t, *text).sample


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    weights: Literal["raw", "ema"] = "raw",
    head_width: int | None = None,
    qkv_order: Literal["legacy", "new"] = "legacy",
) -> Checkpoint:
    """Find out what a file or folder is.

    Parameters
    ----------
    path : path of a file for `read_tensors` or of a folder as `diffusers` saves one
    weights : "raw" or "ema"
        Of a latent diffusion file: the weights as trained (ReSample, DiffStateGrad and
        DAPS use them) or their running mean (PSLD does).
    head_width : int, optional
        Channels of a head of the attention, which a file does not tell; see
        `keys.unet_config` for what is assumed.  A folder tells.
    qkv_order : "legacy" or "new"
        Order of the rows of a `qkv` (see `models.keys`), which a file does not tell:
        "new" for networks trained with `use_new_attention_order`, such as OpenAI's for
        64 x 64.

    Raises
    ------
    FileNotFoundError, ValueError
        If it is nothing of the above, or what it holds is not complete.  The message
        names the file.
    """
    for name, value, valid in (
        ("weights", weights, ("raw", "ema")),
        ("qkv_order", qkv_order, ("legacy", "new")),
    ):
        if value not in valid:
            raise ValueError(f"unknown {name} {value!r}{nearest(value, valid)}")
    if head_width is not None:
        check_size("head_width", head_width, 1, 8192)
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, weights)
    tensors = read_tensors(path)
    if all(name.startswith(_PARALLEL) for name in tensors):
        tensors = tensors.below(_PARALLEL)
    names = tensors.shapes
    unet = (head_width, qkv_order)
    if any(name.startswith((_UNET, _FIRST)) for name in names):
        return _open_ldm(tensors, weights, *unet)
    if "input_blocks.0.0.weight" in names:
        return Checkpoint(
            path,
            "guided diffusion (ADM) network on pixels",
            network=_unet_part(tensors, *unet),
            schedule=_ADM_SCHEDULE,
            tells_schedule=False,
            weights=weights,
        )
    if "quantize.embedding.weight" in names:
        return Checkpoint(
            path,
            "vector-quantised autoencoder (VQGAN)",
            first_stage=_vq_part(tensors.below("", without=("loss.",))),
            weights=weights,
        )
    if "conv_in.weight" in names or "encoder.conv_in.weight" in names:
        raise ValueError(f"{path}: give the folder with this file and its config.json")
    some = ", ".join(map(repr, list(names)[:3]))
    raise ValueError(f"{path}: tensors of no known network: {some}, ...")


def empty_prompt(folder: str | os.PathLike[str]) -> Tensor:
    """The text encoder's states of no text, (1, 77, width), float32.

    They are read from ``empty_prompt.safetensors`` in the folder, which holds them as
    its only tensor, else computed from ``text_encoder/``, which takes the package
    `transformers`.  Save what this returns under that name, and neither is needed.

    Raises
    ------
    ValueError
        If neither is possible.
    """
    folder = Path(folder)
    if (cached := folder / _EMPTY_PROMPT).is_file():
        tensors = read_tensors(cached)
        if len(tensors) != 1:
            raise ValueError(f"{cached}: holds {len(tensors)} tensors, must be one")
        (states,) = tensors.values()
        states = states.float()
        if states.ndim != 3 or len(states) != 1 or not bool(states.isfinite().all()):
            raise ValueError(
                f"{cached}: must be finite, of shape (1, tokens, width), got "
                f"{tuple(states.shape)}"
            )
        return states
    try:
        from transformers import CLIPTextModel
    except ImportError:
        CLIPTextModel = None
    if CLIPTextModel is None or not (folder / "text_encoder").is_dir():
        raise ValueError(
            f"{folder}: needs {_EMPTY_PROMPT}, the states of the empty prompt, or "
            "text_encoder/ and the package transformers"
        )
    encoder = CLIPTextModel.from_pretrained(
        folder / "text_encoder", local_files_only=True, use_safetensors=True
    )
    tokens = torch.full((1, _TOKENS), _END)
    tokens[0, 0] = _BEGIN
    with torch.no_grad():
        return encoder.eval()(tokens).last_hidden_state.float()


# ---- files ----


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _unet_part(tensors: Tensors, head_width: int | None, order: str) -> Part:
    with _naming(tensors.path):
        config = unet_config(tensors.shapes, head_width)
        rows = unet_rows(tensors.shapes, order)
    return Part("UNet2DModel", config, tensors, rows)


def _vq_part(tensors: Tensors) -> Part:
    with _naming(tensors.path):
        config, rows = vq_config(tensors.shapes), vq_rows(tensors.shapes)
    return Part("VQModel", config, tensors, rows)


def _latent_channels(stage: Part) -> int:
    return stage.config.get("vq_embed_dim") or stage.config["latent_channels"]


def _open_ldm(
    tensors: Tensors, weights: str, head_width: int | None, order: str
) -> Checkpoint:
    network, average = tensors.below(_UNET), _averaged(tensors)
    if weights == "ema" and average is not None:
        network = average
    scale = 1.0
    if tensors.shapes.get("scale_factor") == ():
        scale = float(tensors["scale_factor"])
    return Checkpoint(
        tensors.path,
        "latent diffusion (LDM) network with its first stage",
        network=_unet_part(network, head_width, order),
        first_stage=_vq_part(tensors.below(_FIRST, without=(f"{_FIRST}loss.",))),
        schedule=_schedule_of(tensors),
        tells_schedule="betas" in tensors.shapes,
        weights=weights,
        offered=("raw",) if average is None else ("raw", "ema"),
        scale=scale,
    )


def _averaged(tensors: Tensors) -> Tensors | None:
    """The running mean of the network's weights; its names have lost their dots."""
    names = {
        name.removeprefix(_UNET): _EMA + name.removeprefix("model.").replace(".", "")
        for name in tensors
        if name.startswith(_UNET)
    }
    found = sum(average in tensors.shapes for average in names.values())
    if not found:
        return None
    if found < len(names):
        raise ValueError(
            f"{tensors.path}: has averages ({_EMA}*) of {found} of {len(names)} tensors"
        )
    return tensors.renamed(names)


def _schedule_of(tensors: Tensors) -> TableSchedule:
    """The table that the file holds, or, where it holds none, that of the method."""
    if "betas" not in tensors.shapes:
        return _LDM_SCHEDULE
    n = math.prod(tensors.shapes["betas"])
    if 2 <= n <= _MAX_TIMES:
        betas = tensors["betas"].double().numpy().ravel()
        # the numbers that were rounded to float32
        start, end = (float(f"{betas[i]:.6g}") for i in (0, -1))
        for sqrt in (True, False):
            if not 0 < start <= end < 1:
                break
            if np.allclose(
                beta_table(start, end, n=n, sqrt=sqrt), betas, rtol=1e-5, atol=0
            ):
                return TableSchedule(start, end, n, sqrt)
    raise ValueError(f"{tensors.path}: betas follow no rule that is known here")


# ---- folders ----


def _open_folder(folder: Path, weights: str) -> Checkpoint:
    config = _json(_component(folder, "unet") / "config.json")
    kind = config.get("_class_name")
    if kind not in ("UNet2DModel", "UNet2DConditionModel"):
        raise ValueError(f"{folder}: holds a {kind}, no U-Net of images")
    for option in ("class_embed_type", "num_class_embeds", "addition_embed_type"):
        if config.get(option) is not None:
            raise ValueError(f"{folder}: a network with {option} takes more than times")
    schedule, prediction = _scheduler(_component(folder, "scheduler"))
    network = _folder_part(kind, config, _component(folder, "unet"))
    stages = [name for name in ("vqvae", "vae") if (folder / name).is_dir()]
    stage, scale = None, 1.0
    if stages:
        place = folder / stages[0]
        options = _json(place / "config.json")
        stage_kind = options.get("_class_name")
        if stage_kind not in ("VQModel", "AutoencoderKL"):
            raise ValueError(
                f"{place}: holds a {stage_kind}, no autoencoder known here"
            )
        stage = _folder_part(stage_kind, options, place)
        plain = stage.config.get("norm_type", "group") == "group"
        if not plain or stage.config.get("shift_factor"):
            raise ValueError(f"{place}: norm_type and shift_factor are not read")
        # VQModel's default factor is nobody's; what a file says counts
        known = options if stage_kind == "VQModel" else stage.config
        scale = known.get("scaling_factor", 1.0)
    elif kind == "UNet2DConditionModel":
        raise ValueError(f"{folder}: has no vae/")
    name = "diffusers pipeline on " + ("pixels" if stage is None else "latents")
    return Checkpoint(
        folder,
        "Stable Diffusion" if kind == "UNet2DConditionModel" else name,
        network=network,
        first_stage=stage,
        schedule=schedule,
        prediction=prediction,
        weights=weights,
        scale=scale,
    )


def _component(folder: Path, name: str) -> Path:
    """Where a part of a pipeline is; some have it all in one folder."""
    return folder / name if (folder / name).is_dir() else folder


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 1 << 20:
            raise ValueError("too long")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent}: no folder of diffusers: it has no {path.name}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no configuration: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no configuration")
    return content


def _folder_part(kind: str, config: dict[str, Any], place: Path) -> Part:
    with _naming(place):  # what could make a network without end
        channels = config.get("block_out_channels")
        check_sizes("block_out_channels", channels, 1, 8192, MAX_LEVELS)
        layers = "transformer_layers_per_block"
        for name in ("layers_per_block", layers, f"reverse_{layers}"):
            value = config.get(name)
            for number in [] if value is None else np.ravel(value).tolist():
                check_size(name, number, 1, MAX_BLOCKS)
    names = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")
    files = [place / f"{name}.safetensors" for name in names]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ValueError(
            f"{place}: has no {files[0].name}; a folder's pickles are not read"
        )
    tensors = read_tensors(file)
    rows = [Row(name, "copy", _new_name(name)) for name in tensors]
    return Part(kind, config, tensors, rows)


def _new_name(name: str) -> str:
    """Attention had other names before diffusers 0.15."""
    match = re.fullmatch(
        r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\..*)", name
    )
    if match is None:
        return name
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return match[1] + new[match[2]] + match[3]


def _scheduler(place: Path) -> tuple[TableSchedule, Prediction]:
    path = place / "scheduler_config.json"
    if not path.is_file():
        raise ValueError(
            f"{place}: it has no {path.name}, which tells the noise schedule: save the "
            "whole pipeline, or put that of the training there"
        )
    config = _json(path)
    rule = config.get("beta_schedule")
    prediction = config.get("prediction_type", "epsilon")
    if (
        rule not in ("linear", "scaled_linear")
        or config.get("trained_betas") is not None
        or config.get("rescale_betas_zero_snr")
        or prediction not in list(_PREDICTIONS)  # it may be unhashable
    ):
        raise ValueError(
            f"{path}: beta_schedule {rule!r} with prediction_type {prediction!r} is "
            "not read, or the betas are changed"
        )
    try:
        start, end = float(config["beta_start"]), float(config["beta_end"])
        n = check_size(
            "num_train_timesteps", config["num_train_timesteps"], 2, _MAX_TIMES
        )
        sqrt = rule == "scaled_linear"
        beta_table(start, end, n=n, sqrt=sqrt)  # checks them
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: no schedule: {error!r}") from error
    return TableSchedule(start, end, n, sqrt), _PREDICTIONS[prediction]
