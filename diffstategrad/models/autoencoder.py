r"""A small vector-quantised autoencoder and its file format.

With the encoder :math:`E`, the decoder :math:`G` and a codebook :math:`\{e_j\}`,

.. math:: \operatorname{encode}(x) = s\, E(x), \qquad
          \operatorname{decode}(z) = G(Q(z / s)), \qquad
          Q(h) = e_{j^*}, \; j^* = \operatorname{argmin}_j \|h - e_j\|^2,

as in latent diffusion: what is encoded is **not** quantised, what is decoded is. The
factor :math:`s`, one number, gives latents unit variance. :math:`Q` passes gradients
straight through, :math:`\partial Q / \partial h = I`, so that the gradient of a
function of the image with respect to `z` is that of the decoder at the quantised point.

:math:`E` and :math:`G` are each the sum of a linear map of patches, which training
starts as their principal components, and of half a `diffusers.VQModel`.

A file is safetensors with half-precision tensors and one JSON header, as in
:mod:`diffstategrad.models.unet`; loading never runs code from it.

References
----------
van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning",
NeurIPS 2017, eq. 1-3.
Rombach, Blattmann, Lorenz, Esser, Ommer, "High-Resolution Image Synthesis with Latent
Diffusion Models", CVPR 2022, section 3.1 and appendix G.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffstategrad.models.unet import (
    check_size,
    check_sizes,
    make_pointwise,
    read_network,
    write_network,
)

__all__ = [
    "FORMAT",
    "Autoencoder",
    "load_autoencoder",
    "nearest_code",
    "quantise_straight",
    "save_autoencoder",
]

FORMAT = "diffstategrad-vq-autoencoder-1"
_MAX_PARAMETERS = 50_000_000
_BLOCK = 1 << 17  # distances held at a time: 512 KiB in float32, which a cache holds


class Autoencoder(nn.Module):
    """Linear maps of patches plus a pixel-unshuffled `diffusers.VQModel`.

    There is no attention: any size that `stride` divides will do.

    Parameters
    ----------
    channels : sequence of int
        Width of each level, finest first; each a multiple of `groups`.
    layers : int
        Residual blocks a level in the encoder; the decoder has one more.
    factor : int
        Pixel-unshuffle factor; a `factor` x `factor` patch becomes channels.
    latent_channels : int
    codes : int
        Size of the codebook.
    image_channels : int
    groups : int
        Groups of each group normalisation.

    Attributes
    ----------
    stride : int
        Height and width of an image are multiples of this number; those of its
        latent are smaller by it.
    image_channels, latent_channels : int
    stochastic : bool, False
        The encoder gives no distribution.
    scale : float
        Latents are the encoder's output times this factor; 1 until it is set.
    architecture : dict
        The arguments above; `Autoencoder(**architecture)` builds the same network.

    Raises
    ------
    ValueError
        If a size is out of range.
    """

    stochastic = False

    def __init__(
        self,
        channels: tuple[int, ...] | list[int] = (128,),
        layers: int = 1,
        factor: int = 4,
        latent_channels: int = 4,
        codes: int = 8192,
        image_channels: int = 3,
        groups: int = 8,
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "channels": check_sizes("channels", channels, 1, 1024, 8),
            "layers": check_size("layers", layers, 1, 8),
            "factor": check_size("factor", factor, 1, 8),
            "latent_channels": check_size("latent_channels", latent_channels, 1, 64),
            "codes": check_size("codes", codes, 2, 1 << 18),
            "image_channels": check_size("image_channels", image_channels, 1, 16),
            "groups": check_size("groups", groups, 1, 64),
        }
        for width in channels:
            if width % groups:
                raise ValueError(
                    f"channels: each must be a multiple of groups = {groups}, "
                    f"got {width}"
                )
        from diffusers import VQModel  # seconds to import, needed only here

        levels = len(channels)
        self.factor = factor
        self.stride = factor * 2 ** (levels - 1)
        self.image_channels, self.latent_channels = image_channels, latent_channels
        self.scale = 1.0
        self.vq: Any = VQModel(
            in_channels=image_channels * factor**2,
            out_channels=image_channels * factor**2,
            layers_per_block=layers,
            block_out_channels=tuple(channels),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            latent_channels=latent_channels,
            num_vq_embeddings=codes,
            norm_num_groups=groups,
            scaling_factor=1.0,
            mid_block_add_attention=False,
        )
        values = image_channels * self.stride**2
        self.analysis: Any = nn.Conv2d(values, latent_channels, 1)
        self.synthesis: Any = nn.Conv2d(latent_channels, values, 1)
        make_pointwise(self)

    @property
    def codebook(self) -> nn.Parameter:
        """The codes before scaling, shape (codes, latent_channels)."""
        return self.vq.quantize.embedding.weight

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latent of an image, not quantised.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W), floating, in [-1, 1]
            H and W are multiples of `stride`.
        noise : optional
            Unused: there is nothing to draw.

        Returns
        -------
        Tensor, shape (B, latent_channels, H / stride, W / stride), variance about 1
        """
        h, w = x.shape[-2:]
        if h % self.stride or w % self.stride or not h or not w:
            raise ValueError(
                f"Autoencoder: height and width must be multiples of {self.stride}, "
                f"got {h} x {w}"
            )
        linear = self.analysis(functional.pixel_unshuffle(x, self.stride))
        patches = functional.pixel_unshuffle(x, self.factor)
        return self.scale * (linear + self.vq.encode(patches).latents)

    def decode(self, z: Tensor, quantise: bool = True) -> Tensor:
        """Image of a latent of any height and width; not clipped.

        Parameters
        ----------
        z : Tensor, shape (B, latent_channels, h, w), floating
        quantise : bool
            Replace each vector by its nearest code first.

        Returns
        -------
        Tensor, shape (B, C, h * stride, w * stride), about [-1, 1]
        """
        h = z / self.scale
        if quantise:
            h = quantise_straight(h, self.codebook)
        linear = functional.pixel_shuffle(self.synthesis(h), self.stride)
        patches = self.vq.decode(h, force_not_quantize=True).sample
        return linear + functional.pixel_shuffle(patches, self.factor)

    def forward(self, x: Tensor) -> Tensor:
        """decode(encode(x))."""
        return self.decode(self.encode(x))


def quantise_straight(h: Tensor, codes: Tensor) -> Tensor:
    """h (B, d, H, W) with each vector replaced by its nearest row of `codes` (n, d),
    which gets no gradient; that of h passes straight through."""
    codes = codes.detach()
    q = functional.embedding(nearest_code(h.detach(), codes), codes)
    return h + (q.movedim(-1, 1).to(h.dtype) - h).detach()


@torch.no_grad()
def nearest_code(h: Tensor, codes: Tensor) -> Tensor:
    """Index of the nearest row of `codes`, the first of several; blockwise.

    At most 512 KiB of distances exist at a time, where all of them are 128 MiB for an
    image of 256 x 256 and 8192 codes.

    Parameters
    ----------
    h : Tensor, shape (B, d, H, W)
    codes : Tensor, shape (n, d)

    Returns
    -------
    Tensor, shape (B, H, W), int64
    """
    b, d, height, width = h.shape
    rows = h.movedim(1, -1).reshape(-1, d).to(codes.dtype)
    out = torch.empty(len(rows), dtype=torch.int64, device=h.device)
    # argmin_j |h - e_j|^2 = argmin_j (|e_j|^2 - 2 h.e_j)
    norms, minus_two = codes.square().sum(1), -2 * codes.T
    step = max(1, _BLOCK // len(codes))
    for i in range(0, len(rows), step):
        distance = torch.addmm(norms, rows[i : i + step], minus_two)
        torch.argmin(distance, dim=1, out=out[i : i + step])
    return out.view(b, height, width)


def save_autoencoder(
    path: str | os.PathLike[str], net: Autoencoder, metadata: dict[str, Any]
) -> None:
    """Write an autoencoder in half precision, all or nothing.

    Raises
    ------
    ValueError
        If a weight is not finite in half precision.
    OSError
        If the file cannot be written; an older file at `path` is then untouched.
    """
    write_network(path, net, {"format": FORMAT, "scale": net.scale, **metadata})


def load_autoencoder(
    path: str | os.PathLike[str],
) -> tuple[Autoencoder, dict[str, Any]]:
    """Read an autoencoder written by :func:`save_autoencoder`.

    Returns
    -------
    net : Autoencoder, float32, in evaluation mode, gradients off
    metadata : dict, the JSON header

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, of another kind, or holds other tensors than its
        architecture needs, or NaN or infinite weights. The message names the file.
    """
    net, header = read_network(path, FORMAT, _build, "load_autoencoder")
    return net, header


def _build(header: dict[str, Any]) -> Autoencoder:
    architecture = header.get("architecture")
    known = {
        "channels",
        "layers",
        "factor",
        "latent_channels",
        "codes",
        "image_channels",
        "groups",
    }
    if not isinstance(architecture, dict) or set(architecture) != known:
        raise ValueError(f"architecture must have exactly the keys {sorted(known)}")
    channels = check_sizes("channels", architecture["channels"], 1, 1024, 8)
    layers = check_size("layers", architecture["layers"], 1, 8)
    latent_channels = check_size(
        "latent_channels", architecture["latent_channels"], 1, 64
    )
    codes = check_size("codes", architecture["codes"], 2, 1 << 18)
    factor = check_size("factor", architecture["factor"], 1, 8)
    image_channels = check_size("image_channels", architecture["image_channels"], 1, 16)
    # About what everything needs, before anything is allocated.
    values = image_channels * (factor * 2 ** (len(channels) - 1)) ** 2
    parameters = (2 * values + codes) * latent_channels
    parameters += sum(36 * (layers + 2) * c * c for c in channels)
    if parameters > _MAX_PARAMETERS:
        raise ValueError("architecture is larger than any network of this library")
    scale = header.get("scale")
    if not isinstance(scale, float) or not 1e-6 < scale < 1e6:
        raise ValueError(f"scale must be a number in 1e-6..1e6, got {scale!r}")
    with torch.random.fork_rng(devices=[]):  # initial values are drawn, then replaced
        net = Autoencoder(**architecture)
    net.scale = scale
    return net
