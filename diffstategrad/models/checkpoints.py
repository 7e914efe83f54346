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

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from diffstategrad._options import is_real, nearest
from diffstategrad.models.archive import Tensors, read_tensors
from diffstategrad.models.first_stage import KLFirstStage, VQFirstStage
from diffstategrad.models.folder import naming, read_config, read_weights
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
from diffstategrad.schedules import CosineSchedule, TableSchedule, beta_table

__all__ = ["Checkpoint", "Denoiser", "open_checkpoint"]

_Discrete = TableSchedule | CosineSchedule
Prediction = Literal["epsilon", "v", "start_x"]

_UNET, _EMA, _FIRST = "model.diffusion_model.", "model_ema.", "first_stage_model."
_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "start_x",
}
_STAGES = ("vqvae", "vae")
_PARALLEL = "module."  # in the names of a DistributedDataParallel
_LDM_SCHEDULE = TableSchedule()
_ADM_SCHEDULE = TableSchedule(1e-4, 0.02, sqrt=False)
_MAX_TIMES = 1 << 16
_ASSUMED = " (assumed, the file does not tell)"


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
        with naming(tensors.path):
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
        with naming(self._tensors.path):
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
    schedule : TableSchedule, CosineSchedule or None
        None where it is another than these.
    unread : str
        Why it is None.
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
    schedule: _Discrete | None = _LDM_SCHEDULE
    unread: str = ""
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
            lines["schedule"] = self._told_schedule()
            if len(self.offered) > 1:
                lines["weights"] = f"{self.weights} (of {', '.join(self.offered)})"
        return lines

    def _told_schedule(self) -> str:
        s = self.schedule
        if s is None:
            return f"not read: {self.unread}"
        if isinstance(s, TableSchedule):
            rule = "linear in the root" if s.sqrt else "linear"
            rule = f"beta {s.start:g} to {s.end:g}, {rule}"
        else:
            rule = f"squared cosine, beta at most {s.largest:g}"
        ends = f"sigma {s.sigma_of_t(0):.3g} to {s.sigma_of_t(s.last):.3g}"
        told = "" if self.tells_schedule else _ASSUMED
        return f"{rule}, {s.n} times: {ends}{told}"


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
        if (head_width, qkv_order) != (None, "legacy"):
            raise ValueError(f"{path}: tells its head_width and qkv_order itself")
        return _open_folder(path, weights)
    tensors = read_tensors(path)
    if all(name.startswith(_PARALLEL) for name in tensors):
        tensors = tensors.below(_PARALLEL)
    names = tensors.shapes
    unet = (head_width, qkv_order)
    if any(name.startswith((_UNET, _EMA)) for name in names):
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
    prefix = _FIRST if any(name.startswith(_FIRST) for name in names) else ""
    if prefix or "quantize.embedding.weight" in names:
        return Checkpoint(
            path,
            "vector-quantised autoencoder (VQGAN)",
            first_stage=_vq_part(tensors, prefix),
            weights=weights,
        )
    if "conv_in.weight" in names or "encoder.conv_in.weight" in names:
        raise ValueError(f"{path}: give the folder with this file and its config.json")
    some = ", ".join(map(repr, list(names)[:3]))
    raise ValueError(f"{path}: tensors of no known network: {some}, ...")


# ---- files ----


def _unet_part(tensors: Tensors, head_width: int | None, order: str) -> Part:
    with naming(tensors.path):
        config = unet_config(tensors.shapes, head_width)
        rows = unet_rows(tensors.shapes, order)
    return Part("UNet2DModel", config, tensors, rows)


def _vq_part(tensors: Tensors, prefix: str) -> Part:
    tensors = tensors.below(prefix, without=(f"{prefix}loss.",))
    with naming(tensors.path):
        config, rows = vq_config(tensors.shapes), vq_rows(tensors.shapes)
    return Part("VQModel", config, tensors, rows)


def _latent_channels(stage: Part) -> int:
    return stage.config.get("vq_embed_dim") or stage.config["latent_channels"]


def _open_ldm(
    tensors: Tensors, weights: str, head_width: int | None, order: str
) -> Checkpoint:
    for prefix, part in ((_UNET, "network"), (_FIRST, "first stage")):
        if not any(name.startswith(prefix) for name in tensors):
            raise ValueError(f"{tensors.path}: has no {part} ({prefix}*)")
    network, average = tensors.below(_UNET), _averaged(tensors)
    schedule, unread = _schedule_of(tensors)
    if weights == "ema" and average is not None:
        network = average
    scale = 1.0
    if tensors.shapes.get("scale_factor") == ():
        scale = float(tensors["scale_factor"])
    return Checkpoint(
        tensors.path,
        "latent diffusion (LDM) network with its first stage",
        network=_unet_part(network, head_width, order),
        first_stage=_vq_part(tensors, _FIRST),
        schedule=schedule,
        unread=unread,
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


def _schedule_of(tensors: Tensors) -> tuple[TableSchedule | None, str]:
    """The table that the file holds, or, where it holds none, that of the method; else
    None and why."""
    if "betas" not in tensors.shapes:
        return _LDM_SCHEDULE, ""
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
                return TableSchedule(start, end, n, sqrt), ""
    return None, "its betas follow no rule that is known here"


# ---- folders ----


def _open_folder(folder: Path, weights: str) -> Checkpoint:
    _check_index(folder)
    config = read_config(_component(folder, "unet") / "config.json")
    kind = config.get("_class_name")
    if kind not in ("UNet2DModel", "UNet2DConditionModel"):
        raise ValueError(f"{folder}: holds a {kind}, no U-Net of images")
    for option in ("class_embed_type", "num_class_embeds", "addition_embed_type"):
        if config.get(option) is not None:
            raise ValueError(f"{folder}: a network with {option} takes more than times")
    schedule, unread, prediction = _scheduler(_component(folder, "scheduler"))
    network = _folder_part(kind, config, _component(folder, "unet"))
    stages = [name for name in _STAGES if (folder / name).is_dir()]
    stage, scale = None, 1.0
    if stages:
        place = folder / stages[0]
        options = read_config(place / "config.json")
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
        unread=unread,
        prediction=prediction,
        weights=weights,
        scale=scale,
    )


def _check_index(folder: Path) -> None:
    """ValueError if a part is not there that the pipeline's index lists."""
    if not (index := folder / "model_index.json").is_file():
        return
    listed = read_config(index)
    for name in ("unet", *_STAGES):
        here = (folder / name).is_dir()
        if name == "unet":
            here |= (folder / "config.json").is_file()
        if not here and listed.get(name) not in (None, [None, None]):
            raise ValueError(f"{folder}: has no {name}/, which {index.name} lists")


def _component(folder: Path, name: str) -> Path:
    """Where a part of a pipeline is; some have it all in one folder."""
    return folder / name if (folder / name).is_dir() else folder


def _folder_part(kind: str, config: dict[str, Any], place: Path) -> Part:
    with naming(place):  # what could make a network without end
        widths = config.get("block_out_channels")
        levels = len(check_sizes("block_out_channels", widths, 1, 8192, MAX_LEVELS))
        layers = "transformer_layers_per_block"
        most = 1
        for name in ("layers_per_block", layers, f"reverse_{layers}"):
            numbers = _numbers(config.get(name))
            for number in numbers:
                check_size(name, number, 1, MAX_BLOCKS)
            if not name.startswith("reverse_"):
                most *= max(numbers, default=1)
        # or that could not be run
        for name in ("attention_head_dim", "num_attention_heads"):
            for number in _numbers(config.get(name)):
                check_size(name, number, 1, 8192)
        for name in ("norm_eps", "mid_block_scale_factor"):
            value = config.get(name, 1)
            if not is_real(value) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number > 0, got {value!r}")
        check_size("downsample_padding", config.get("downsample_padding", 1), 0, 1)
    tensors = read_weights(place, "diffusion_pytorch_model")
    if most * levels > len(tensors):  # a layer has several
        raise ValueError(
            f"{place}: has more layers than {tensors.path.name} has tensors"
        )
    rows = [Row(name, "copy", _new_name(name)) for name in tensors]
    return Part(kind, config, tensors, rows)


def _numbers(value: Any) -> list[Any]:
    """Of an option that may be a number, one for each level, or left out."""
    return [] if value is None else np.ravel(value).tolist()


def _new_name(name: str) -> str:
    """Attention had other names before diffusers 0.15."""
    match = re.fullmatch(
        r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\..*)", name
    )
    if match is None:
        return name
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return match[1] + new[match[2]] + match[3]


def _scheduler(place: Path) -> tuple[_Discrete | None, str, Prediction]:
    """The schedule, else None and why, and what the network predicts."""
    path = place / "scheduler_config.json"
    if not path.is_file():
        tells = "it, and whether the network predicts epsilon, as assumed"
        return None, f"{path} is missing, which tells {tells}", "epsilon"
    config = read_config(path)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in list(_PREDICTIONS):  # it may be unhashable
        raise ValueError(
            f"{path}: prediction_type {prediction!r} is not read; only "
            f"{', '.join(_PREDICTIONS)}"
        )
    schedule, unread = None, ""
    try:
        schedule = _beta_schedule(config)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else error
        unread = f"{path}: {reason}"
    return schedule, unread, _PREDICTIONS[prediction]


def _beta_schedule(config: dict[str, Any]) -> _Discrete:
    """That of a scheduler's configuration; an error of several kinds says what in it is
    not read."""
    for option in ("trained_betas", "rescale_betas_zero_snr"):
        if config.get(option) not in (None, False):
            raise ValueError(f"{option} is not read")
    rule = config["beta_schedule"]
    n = check_size("num_train_timesteps", config["num_train_timesteps"], 2, _MAX_TIMES)
    if rule == "squaredcos_cap_v2":
        return CosineSchedule(n)
    if rule not in ("linear", "scaled_linear"):
        raise ValueError(f"beta_schedule {rule!r} is not read")
    start, end = float(config["beta_start"]), float(config["beta_end"])
    sqrt = rule == "scaled_linear"
    beta_table(start, end, n=n, sqrt=sqrt)  # checks them
    return TableSchedule(start, end, n, sqrt)
