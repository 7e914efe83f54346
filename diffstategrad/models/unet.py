r"""A small fully convolutional U-Net and its file format.

The network sees the variance-preserving image :math:`z = x / \sqrt{1 + \sigma^2}` at
time `t` of a :class:`~diffstategrad.schedules.VPSchedule` and predicts

.. math:: v = \sqrt{\bar\alpha}\, \epsilon - \sqrt{1 - \bar\alpha}\, x_0,

so that :math:`x_0 = \sqrt{\bar\alpha}\, z - \sqrt{1 - \bar\alpha}\, v`. Pixels are
unshuffled into channels first, which makes a full-resolution call cheap.

A file is safetensors with half-precision tensors and one JSON header: architecture,
schedule, prediction type and provenance. Loading never runs code from the file: the
header is read as data and only the keys listed here reach a constructor.

References
----------
Salimans, Ho, "Progressive Distillation for Fast Sampling of Diffusion Models",
ICLR 2022 (v-prediction).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from diffstategrad._files import replacing

__all__ = ["PixelUNet", "load_network", "replace_file", "save_network"]

_FORMAT = "diffstategrad-pixel-unet-1"
_MAX_PARAMETERS = 50_000_000
_Network = TypeVar("_Network", bound=nn.Module)


class PixelUNet(nn.Module):
    """Pixel-unshuffled `diffusers.UNet2DModel` without attention.

    Parameters
    ----------
    channels : sequence of int
        Width of each level, finest first; each a multiple of `groups`.
    layers : int
        Residual blocks a level.
    factor : int
        Pixel-unshuffle factor; a `factor` x `factor` patch becomes channels. 1 suits
        latents, which are small already.
    image_channels : int
        Of the image or latent.
    groups : int
        Groups of each group normalisation.

    Attributes
    ----------
    stride : int
        Height and width of an input are multiples of this number.
    architecture : dict
        The arguments above; `PixelUNet(**architecture)` builds the same network.

    Raises
    ------
    ValueError
        If a size is out of range.
    """

    def __init__(
        self,
        channels: tuple[int, ...] | list[int] = (32, 64, 128),
        layers: int = 1,
        factor: int = 2,
        image_channels: int = 3,
        groups: int = 8,
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "channels": check_sizes("channels", channels, 1, 1024, 8),
            "layers": check_size("layers", layers, 1, 8),
            "factor": check_size("factor", factor, 1, 8),
            "image_channels": check_size("image_channels", image_channels, 1, 16),
            "groups": check_size("groups", groups, 1, 64),
        }
        for width in self.architecture["channels"]:
            if width % groups or width % 2:
                raise ValueError(
                    f"channels: each must be even and a multiple of groups = {groups}, "
                    f"got {width}"
                )
        from diffusers import UNet2DModel  # seconds to import, needed only here

        levels = len(channels)
        self.factor = factor
        self.stride = factor * 2 ** (levels - 1)
        self.unet: Any = UNet2DModel(
            in_channels=image_channels * factor**2,
            out_channels=image_channels * factor**2,
            layers_per_block=layers,
            block_out_channels=tuple(channels),
            norm_num_groups=groups,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            add_attention=False,
        )
        make_pointwise(self)

    def forward(self, z: Tensor, t: Tensor | float) -> Tensor:
        """Predict v.

        Parameters
        ----------
        z : Tensor, shape (B, C, H, W), floating; variance-preserving units
            H and W are multiples of `stride`.
        t : float or Tensor, shape () or (B,), time in 0..999, fractions allowed

        Returns
        -------
        Tensor, shape (B, C, H, W)
        """
        h, w = z.shape[-2:]
        if h % self.stride or w % self.stride or not h or not w:
            raise ValueError(
                f"PixelUNet: height and width must be multiples of {self.stride}, "
                f"got {h} x {w}"
            )
        t = torch.as_tensor(t, device=z.device, dtype=torch.float32).expand(z.shape[0])
        patches = functional.pixel_unshuffle(z, self.factor)
        return functional.pixel_shuffle(self.unet(patches, t).sample, self.factor)


def make_pointwise(net: nn.Module) -> None:
    """Make the result of 1x1 convolutions independent of the number of threads."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1):
                setattr(parent, name, _PointwiseConv(child))


class _PointwiseConv(nn.Module):
    """A 1x1 convolution as one matrix product, over the parameters of `conv`.

    oneDNN (seen with 3.12) splits the sum over many input channels by the number of
    threads, and an image's result would depend on that in its last bits.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None  # as diffusers builds them
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        out = self.weight.flatten(1) @ x.flatten(2)
        return out.unflatten(2, x.shape[2:]) + self.bias[:, None, None]


def save_network(
    path: str | os.PathLike[str], net: PixelUNet, metadata: dict[str, Any]
) -> None:
    """Write a network in half precision, all or nothing.

    Parameters
    ----------
    path : path of the .safetensors file
    net : PixelUNet, finite weights
    metadata : dict of JSON values
        Schedule, prediction type, provenance; stored beside the architecture.

    Raises
    ------
    ValueError
        If a weight is not finite in half precision.
    OSError
        If the file cannot be written; an older file at `path` is then untouched.
    """
    write_network(path, net, {"format": _FORMAT, **metadata})


def write_network(
    path: str | os.PathLike[str], net: nn.Module, header: dict[str, Any]
) -> None:
    """Write a network with the attribute `architecture`; `header` names its format."""
    tensors = {}
    for key, value in net.state_dict().items():
        half = value.detach().to("cpu", torch.float16).contiguous()
        if not bool(torch.isfinite(half).all()):
            raise ValueError(f"cannot save: {key} is not finite in half precision")
        tensors[key] = half
    header = {**header, "architecture": net.architecture}
    replace_file(path, tensors, {"diffstategrad": json.dumps(header)})


def load_network(path: str | os.PathLike[str]) -> tuple[PixelUNet, dict[str, Any]]:
    """Read a network written by :func:`save_network`.

    Returns
    -------
    net : PixelUNet, float32, in evaluation mode, gradients off
    metadata : dict, the JSON header

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, of another kind, or holds other tensors than its
        architecture needs, or NaN or infinite weights. The message names the file.
    """
    return read_network(path, _FORMAT, _build, "load_network")


def read_network(
    path: str | os.PathLike[str],
    format: str,
    build: Callable[[dict[str, Any]], _Network],
    caller: str,
) -> tuple[_Network, dict[str, Any]]:
    """The network that `build` makes of the header, filled with the file's tensors."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{caller}: no such file: {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = _read_header(file.metadata(), format)
            net = build(header)
            _fill(net, file)
    except (SafetensorError, ValueError, RecursionError) as err:
        raise ValueError(f"{caller}: {path}: {err}") from err
    return net.eval().requires_grad_(False), header


def _read_header(metadata: dict[str, str] | None, format: str) -> dict[str, Any]:
    text = (metadata or {}).get("diffstategrad")
    if text is None:
        raise ValueError("not a diffstategrad network: no header")
    header = json.loads(text)
    if not isinstance(header, dict) or header.get("format") != format:
        raise ValueError(f"not a diffstategrad network: format is not {format!r}")
    return header


def _build(header: dict[str, Any]) -> PixelUNet:
    architecture = header.get("architecture")
    known = {"channels", "layers", "factor", "image_channels", "groups"}
    if not isinstance(architecture, dict) or set(architecture) != known:
        raise ValueError(f"architecture must have exactly the keys {sorted(known)}")
    channels = check_sizes("channels", architecture["channels"], 1, 1024, 8)
    layers = check_size("layers", architecture["layers"], 1, 8)
    # About what the convolutions of both halves need, before anything is allocated.
    if sum(36 * layers * c * c for c in channels) > _MAX_PARAMETERS:
        raise ValueError("architecture is larger than any network of this library")
    with torch.random.fork_rng(devices=[]):  # initial values are drawn, then replaced
        return PixelUNet(**architecture)


def _fill(net: nn.Module, file: Any) -> None:
    state = net.state_dict()
    names = set(file.keys())
    if missing := sorted(set(state) - names):
        raise ValueError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if extra := sorted(names - set(state)):
        raise ValueError(f"unexpected tensor {extra[0]!r} ({len(extra)} in all)")
    for key, target in state.items():
        shape = list(file.get_slice(key).get_shape())
        if shape != list(target.shape):
            raise ValueError(f"{key} has shape {shape}, needs {list(target.shape)}")
        value = file.get_tensor(key)
        if not value.is_floating_point():
            raise ValueError(f"{key} has dtype {value.dtype}, needs a floating one")
        value = value.to(torch.float32)
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key} has NaN or infinite entries")
        target.copy_(value)


def check_size(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, got {value}")
    return value


def check_sizes(name: str, values: object, low: int, high: int, most: int) -> list[int]:
    if not isinstance(values, (list, tuple)) or not 1 <= len(values) <= most:
        raise ValueError(f"{name} must list 1..{most} integers, got {values!r}")
    return [check_size(name, v, low, high) for v in values]


def replace_file(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write a safetensors file, all or nothing; OSError as in `replacing`."""
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)
        os.chmod(temporary, 0o644)  # save_file makes it private
