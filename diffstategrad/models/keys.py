r"""From the names of published checkpoints to those of `diffusers`.

Two schemes are known.  The U-Net of guided diffusion (ADM) and of latent diffusion::

    time_embed.{0,2}   input_blocks.N.M   middle_block.M   output_blocks.N.M   out.{0,2}

and the autoencoder of latent diffusion and of VQGAN::

    {encoder.down,decoder.up}.i.{block,attn,downsample,upsample}   {encoder,decoder}.mid
    {encoder,decoder}.{conv_in,norm_out,conv_out}   quantize   quant_conv   ...

Names and shapes decide everything about the network but the width of a head of its
attention and the order of its queries, keys and values.  `qkv` holds them as rows, in
the *legacy* order head by head, (head, [q, k, v], row in head), in the *new* order
([q, k, v], head, row in head); nothing but the pictures tells one from the other.

References
----------
Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021.
Rombach, Blattmann, Lorenz, Esser, Ommer, "High-Resolution Image Synthesis with Latent
Diffusion Models", CVPR 2022.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffstategrad.models.archive import Tensors
from diffstategrad.models.unet import check_size

__all__ = [
    "MAX_BLOCKS",
    "MAX_LEVELS",
    "Row",
    "Shapes",
    "axis_of",
    "check_keys",
    "fill",
    "same_keys",
    "unet_config",
    "unet_rows",
    "vq_config",
    "vq_rows",
]

Shapes = Mapping[str, tuple[int, ...]]

_MAX_PARAMETERS = 1_000_000_000  # Stable Diffusion's network has 0.86e9
_MAX_CHANNELS = 1 << 18  # as many codes
#: Levels, and blocks in each: what numbers in names, or a configuration, may ask for.
MAX_LEVELS, MAX_BLOCKS = 16, 32
_LISTED = 3

#: Widths of the levels in units of the first -> side of the images of training.
_SIDES = {(1, 1, 2, 2, 4, 4): 256, (1, 1, 2, 3, 4): 128, (1, 2, 3, 4): 64}


class Row(NamedTuple):
    """A tensor of the network and where it comes from.

    `op` is ``copy``, ``squeeze_last`` or ``squeeze_last2`` (of three or four axes drop
    one or two of length 1), or ``legacy_q`` ... ``new_v`` (those rows of a `qkv`).
    """

    source: str
    op: str
    target: str


# ---- U-Net ----

_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_INNER = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",
    "conv": "conv",
    "norm": "group_norm",
    "proj_out": "to_out.0",
}
_MIDDLE = ("resnets.0", "attentions.0", "resnets.1")
_BLOCK = r"(?:(input|output)_blocks\.(\d{1,4})|middle_block)\.(\d)\.(.+)"
_OUTPUT = r"output_blocks\.(\d{1,4})\..*"
_UP = r"output_blocks\.\d{{1,4}}\.[12]\.{}\.weight"


def unet_config(shapes: Shapes, head_width: int | None = None) -> dict[str, Any]:
    """Arguments of the `diffusers.UNet2DModel` with tensors of these names and shapes.

    Parameters
    ----------
    shapes : mapping of name to shape
    head_width : int, optional
        Channels of a head of the attention.  No shape tells; by default 64 for a
        network whose blocks scale and shift (ADM), 32 for one whose blocks only shift
        (LDM), as the published ones have.

    Raises
    ------
    ValueError
        If the tensors are of no such network, or of one that takes a class or a text.
    """
    for name in shapes:
        if name.startswith("label_emb.") or ".transformer_blocks." in name:
            raise ValueError(
                f"takes a class or a text ({name}); of such networks only Stable "
                "Diffusion is read, from its folder of diffusers"
            )
    levels, blocks = _levels(shapes)
    first = [1 + level * (blocks + 1) for level in range(levels)]
    channels = [
        axis_of(shapes, f"input_blocks.{n}.0.out_layers.0.weight") for n in first
    ]
    attention = [f"input_blocks.{n}.1.qkv.weight" in shapes for n in first]
    rows = axis_of(shapes, "input_blocks.1.0.emb_layers.1.weight", axes=2)
    scale_shift = rows == 2 * channels[0]
    resnet = any(re.fullmatch(_UP.format("in_layers.0"), name) for name in shapes)

    if head_width is None:
        head_width = 64 if scale_shift else 32
    check_size("head_width", head_width, 1, _MAX_CHANNELS)
    for width, attended in zip(channels, [*attention[:-1], True], strict=True):
        if width % 32 or (attended and width % head_width):
            raise ValueError(
                f"a level of {width} channels is no multiple of 32 groups and, with "
                f"attention, heads of {head_width}"
            )
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    down, up = plain if resnet else ("DownBlock2D", "UpBlock2D")
    sampling = "resnet" if resnet else "conv"
    return {
        "sample_size": _SIDES.get(tuple(width // channels[0] for width in channels)),
        "in_channels": axis_of(shapes, "input_blocks.0.0.weight", axes=4, axis=1),
        "out_channels": axis_of(shapes, "out.2.weight", axes=4),
        "layers_per_block": blocks,
        "block_out_channels": tuple(channels),
        "down_block_types": tuple("AttnDownBlock2D" if a else down for a in attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else up for a in attention[::-1]),
        "downsample_type": sampling,
        "upsample_type": sampling,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "attention_head_dim": head_width,
        "norm_num_groups": 32,
        # without it the innermost attention of a network that scales and shifts has no
        # normalisation
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
    }


def unet_rows(shapes: Shapes, order: str = "legacy") -> list[Row]:
    """What each tensor of the file becomes, in the order of the file.

    Raises
    ------
    ValueError
        If a name is none of the scheme.
    """
    blocks = _levels(shapes)[1]
    return _rows(shapes, lambda name: _unet_row(name, blocks, order))


def _unet_row(name: str, blocks: int, order: str) -> Iterator[Row]:
    module, _, kind = name.rpartition(".")
    if module in _UNET_ENDS:
        yield Row(name, "copy", f"{_UNET_ENDS[module]}.{kind}")
        return
    if (match := re.fullmatch(_BLOCK, module)) is None:
        raise LookupError(name)
    side, n, child, inner = match.groups()
    if side is None:
        outer = f"mid_block.{_MIDDLE[int(child)]}"
    elif side == "input":  # the first is no block
        level, j = divmod(int(n) - 1, blocks + 1)
        outer = f"down_blocks.{level}."
        if j == blocks:
            outer += "downsamplers.0"
        else:
            outer += f"resnets.{j}" if child == "0" else f"attentions.{j}"
    else:
        level, j = divmod(int(n), blocks + 1)
        outer = f"up_blocks.{level}."
        if child == "0":
            outer += f"resnets.{j}"
        else:
            attention = inner in ("norm", "qkv", "proj_out")
            outer += f"attentions.{j}" if attention else "upsamplers.0"
    if inner == "qkv":
        for part in "qkv":
            yield Row(name, f"{order}_{part}", f"{outer}.to_{part}.{kind}")
    else:
        squeeze = inner == "proj_out" and kind == "weight"
        op = "squeeze_last" if squeeze else "copy"
        yield Row(name, op, f"{outer}.{_UNET_INNER[inner]}.{kind}")


def _levels(shapes: Shapes) -> tuple[int, int]:
    """Levels, and blocks in each: the last block of every level but one goes up."""
    found = {int(m[1]) for name in shapes if (m := re.fullmatch(_OUTPUT, name))}
    ups = {
        name.split(".")[1]
        for name in shapes
        if re.fullmatch(_UP.format("(conv|in_layers.0)"), name)
    }
    levels = len(ups) + 1
    if not found or found != set(range(len(found))) or len(found) % levels:
        raise ValueError(
            f"{len(found)} output blocks, {len(ups)} of which go up, make no U-Net"
        )
    blocks = len(found) // levels - 1
    if not blocks:
        raise ValueError("output blocks without input blocks")
    check_size("number of levels", levels, 1, MAX_LEVELS)
    check_size("number of blocks in a level", blocks, 1, MAX_BLOCKS)
    return levels, blocks


# ---- autoencoder ----

_VQ_LEVEL = r"encoder\.down\.(\d{1,3})\..*"
_VQ_BLOCK = r"encoder\.down\.0\.block\.(\d{1,3})\..*"
_VQ_INNER = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
    "block_1": "resnets.0",
    "block_2": "resnets.1",
    "attn_1": "attentions.0",
    "mid": "mid_block",
    "block": "resnets",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
}


def vq_config(shapes: Shapes) -> dict[str, Any]:
    """Arguments of the `diffusers.VQModel` with tensors of these names and shapes.

    Raises
    ------
    ValueError
        If the tensors are of no such autoencoder.
    """
    if "quantize.embedding.weight" not in shapes:
        raise ValueError("an autoencoder without a codebook; no such one is read")
    levels = check_size("number of levels", _count(shapes, _VQ_LEVEL), 1, MAX_LEVELS)
    layers = _count(shapes, _VQ_BLOCK)
    check_size("number of blocks in a level", layers, 1, MAX_BLOCKS)
    channels = tuple(
        axis_of(shapes, f"encoder.down.{level}.block.0.norm2.weight")
        for level in range(levels)
    )
    for width in channels:
        if width % 32:
            raise ValueError(f"a level of {width} channels is no multiple of 32 groups")
    return {
        "in_channels": axis_of(shapes, "encoder.conv_in.weight", axes=4, axis=1),
        "out_channels": axis_of(shapes, "decoder.conv_out.weight", axes=4),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": channels,
        "layers_per_block": layers,
        "latent_channels": axis_of(shapes, "encoder.conv_out.weight", axes=4),
        "num_vq_embeddings": axis_of(shapes, "quantize.embedding.weight", axes=2),
        "vq_embed_dim": axis_of(shapes, "quantize.embedding.weight", axes=2, axis=1),
        "norm_num_groups": 32,
        "scaling_factor": 1.0,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
    }


def vq_rows(shapes: Shapes) -> list[Row]:
    """As `unet_rows`."""
    levels = _count(shapes, _VQ_LEVEL)
    return _rows(shapes, lambda name: _vq_row(name, levels))


def _vq_row(name: str, levels: int) -> Iterator[Row]:
    part, *words, kind = name.split(".")
    if part not in ("encoder", "decoder"):
        known = ("quant_conv", "post_quant_conv", "quantize")
        if part not in known or words not in ([], ["embedding"]):
            raise KeyError(name)
        yield Row(name, "copy", name)
        return
    op = "copy"
    if words[0] in ("down", "up"):
        # in the file from the finest level, in diffusers from the coarsest
        level = int(words[1]) if words[0] == "down" else levels - 1 - int(words[1])
        words[:2] = [f"{words[0]}_blocks", str(level)]
    elif kind == "weight" and words[-1] in ("q", "k", "v", "proj_out"):
        op = "squeeze_last2"
    inner = (_VQ_INNER.get(word, word) for word in words)
    yield Row(name, op, ".".join((part, *inner, kind)))


# ---- both ----


def _rows(shapes: Shapes, convert: Callable[[str], Iterator[Row]]) -> list[Row]:
    rows: list[Row] = []
    unknown = []
    for name in shapes:
        try:
            rows += convert(name)
        except (LookupError, ValueError):
            unknown.append(name)
    if unknown:
        raise ValueError(_listed("unexpected tensor {}", unknown))
    return rows


def same_keys(shapes: Shapes) -> list[Row]:
    """Rows of a file that has the network's own names."""
    return [Row(name, "copy", name) for name in shapes]


def check_keys(net: nn.Module, shapes: Shapes, rows: list[Row], head: int = 1) -> None:
    """Every tensor of the network must come from exactly one of the file, of the right
    shape.

    Parameters
    ----------
    net : Module, may be on the device meta
    shapes : of the file
    rows : of all names in `shapes`
    head : int
        Channels of a head of the attention, for `legacy_q` and the like.

    Raises
    ------
    ValueError
        Naming the first tensors for which that is not so.
    """
    wanted = net.state_dict()
    if sum(value.numel() for value in wanted.values()) > _MAX_PARAMETERS:
        raise ValueError("larger than any network of this kind")
    targets = {row.target for row in rows}
    if missing := [name for name in wanted if name not in targets]:
        names = list(dict.fromkeys(_source(name, rows) for name in missing))
        raise ValueError(_listed("tensor {} is missing", names))
    if extra := [row.source for row in rows if row.target not in wanted]:
        raise ValueError(_listed("unexpected tensor {}", extra))
    if len(targets) < len(rows):
        raise ValueError("two tensors of the file are for the same one of the network")
    wrong = []
    for source, op, target in rows:
        shape, need = list(shapes[source]), list(wanted[target].shape)
        try:
            got = _apply(op, torch.empty(shape, device="meta"), head).shape
        except (RuntimeError, IndexError):  # IndexError: fewer than three rows
            got = torch.Size()
        if list(got) != need:
            into = "" if op == "copy" else f" to become {target}, of {need}"
            wrong.append(f"{source} has shape {shape}" + (into or f", needs {need}"))
    if wrong:
        more = f" ({len(wrong)} in all)" if len(wrong) > 1 else ""
        raise ValueError("; ".join(wrong[:_LISTED]) + more)


def _source(target: str, rows: list[Row]) -> str:
    """Name in the file of a tensor that is missing there, from that of the module's
    other one; without, as in the network."""
    module, _, kind = target.rpartition(".")
    for row in rows:
        if row.target.rpartition(".")[0] == module:
            return f"{row.source.rpartition('.')[0]}.{kind}"
    return target


def fill(
    net: nn.Module,
    tensors: Tensors,
    rows: list[Row],
    head: int = 1,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give the network the tensors of a file, one after the other, in `dtype`.

    The network may be on the device meta; its old tensors are dropped.  It is put in
    evaluation mode, gradients off.

    Raises
    ------
    ValueError
        As `check_keys`, and if a tensor is not floating or has NaN or infinite entries.
    """
    check_keys(net, tensors.shapes, rows, head)
    state = {}
    for source, group in groupby(rows, lambda row: row.source):
        stored = tensors[source]
        if not stored.is_floating_point():
            raise ValueError(f"{source} has dtype {stored.dtype}, needs a floating one")
        value = stored.to(dtype)
        # smallest and largest take no memory; where there is a NaN both are
        if value.numel() and not all(map(torch.isfinite, value.aminmax())):
            raise ValueError(f"{source} has NaN or infinite entries in {dtype}")
        for row in group:
            state[row.target] = _apply(row.op, value, head).contiguous()
    net.load_state_dict(state, assign=True)
    net.eval().requires_grad_(False)


def _apply(op: str, tensor: Tensor, head: int) -> Tensor:
    """RuntimeError if that cannot be done with the shape of the tensor."""
    if op == "copy":
        return tensor
    axes = {"squeeze_last": (3,), "squeeze_last2": (4,)}.get(op, (1, 3))
    if tensor.ndim not in axes:
        raise RuntimeError(f"{op} of {tensor.ndim} axes")
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor
    if op.startswith("squeeze"):
        return rows
    order, _, part = op.partition("_")
    index = "qkv".index(part)
    if order == "new":
        return rows.chunk(3)[index]
    return rows.unflatten(0, (-1, 3, head))[:, index].flatten(0, 1)


def _listed(message: str, names: list[str]) -> str:
    first = ", ".join(repr(name) for name in names[:_LISTED])
    return f"{message.format(first)} ({len(names)} in all)"


def axis_of(shapes: Shapes, name: str, axes: int = 1, axis: int = 0) -> int:
    """An axis of a tensor that must be there."""
    if name not in shapes:
        raise ValueError(f"tensor {name!r} is missing")
    if len(shapes[name]) != axes:
        raise ValueError(f"{name} has {len(shapes[name])} axes, needs {axes}")
    return check_size(f"axis {axis} of {name}", shapes[name][axis], 1, _MAX_CHANNELS)


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers the pattern finds; they must be 0, 1, ..."""
    found = {int(m[1]) for name in shapes if (m := re.fullmatch(pattern, name))}
    if not found or found != set(range(len(found))):
        raise ValueError(f"no tensors, or not all, {pattern}")
    return len(found)
