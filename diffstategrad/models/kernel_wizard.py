r"""The encoded-kernel blur network: a sharp image and a code of a blur give its blur.

With features :math:`F`, a U-Net :math:`G` whose bottleneck takes the code :math:`k`,
and a reconstruction trunk :math:`R`,

.. math:: \operatorname{blur}(h, k) = h + R(G(F(h), k)), \qquad h \in [0, 1].

`F` divides height and width by 4 and `G` halves them five times, so an image of
128 m x 128 n has a code of m x n.  `R` multiplies them by 4 again.

Parameters carry the names of the published network, and its file is read as it is.
Loading never runs code from a file.

References
----------
Tran, Tran, Phung, Hoai, "Explore Image Deblurring via Encoded Blur Kernel Space",
CVPR 2021, section 3.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diffstategrad.models.archive import read_tensors
from diffstategrad.models.keys import Shapes, axis_of, fill, same_keys
from diffstategrad.models.unet import check_size

__all__ = ["KernelWizard", "load_kernel_wizard"]

_HEAD = 64  # channels at the two finest resolutions, whatever the width
_IGNORED = ("kernel_extractor.",)  # finds the code of a pair of images
_INNERMOST = "adapter.model." + 4 * "submodule." + "up.1.weight"


class KernelWizard(nn.Module):
    """The published network without its kernel extractor.

    Parameters
    ----------
    width : int
        Channels of the features.
    front_blocks, back_blocks : int
        Residual blocks of the feature extractor and of the reconstruction trunk.
    kernel_channels : int
        Channels of a code.  The defaults are those of the published weights.

    Attributes
    ----------
    stride : int
        Height and width of an image are multiples of this number, and of its code
        that many times smaller.
    architecture : dict
        The arguments above; `KernelWizard(**architecture)` builds the same network.

    Raises
    ------
    ValueError
        If a size is out of range.
    """

    stride = 128

    def __init__(
        self,
        width: int = 64,
        front_blocks: int = 10,
        back_blocks: int = 20,
        kernel_channels: int = 512,
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "width": check_size("width", width, 1, 512),
            "front_blocks": check_size("front_blocks", front_blocks, 0, 128),
            "back_blocks": check_size("back_blocks", back_blocks, 0, 128),
            "kernel_channels": check_size("kernel_channels", kernel_channels, 1, 8192),
        }
        self.kernel_channels = kernel_channels
        self.feature_extractor = nn.Sequential(
            *(nn.Conv2d(3, width, 3, 1, 1), nn.LeakyReLU(0.1)),
            *(nn.Conv2d(width, width, 3, 2, 1), nn.LeakyReLU(0.1)),
            *(nn.Conv2d(width, width, 3, 2, 1), nn.LeakyReLU(0.1)),
            *(_Residual(width) for _ in range(front_blocks)),
        )
        self.adapter = _Adapter(width, kernel_channels)
        self.recon_trunk = nn.Sequential(
            *(_Residual(width) for _ in range(back_blocks)),
            *(nn.Conv2d(width, 4 * width, 3, 1, 1), nn.PixelShuffle(2)),
            nn.LeakyReLU(0.1),
            *(nn.Conv2d(width, 4 * _HEAD, 3, 1, 1), nn.PixelShuffle(2)),
            nn.LeakyReLU(0.1),
            *(nn.Conv2d(_HEAD, _HEAD, 3, 1, 1), nn.LeakyReLU(0.1)),
            nn.Conv2d(_HEAD, 3, 3, 1, 1),
        )

    def forward(self, image01: Tensor, code: Tensor) -> Tensor:
        """The blurred image.

        Parameters
        ----------
        image01 : Tensor, shape (B, 3, H, W), floating, in [0, 1]
            H and W are multiples of `stride`.
        code : Tensor, shape (B or 1, kernel_channels, H / stride, W / stride)
            One for each image or one for all, about standard normal.

        Returns
        -------
        Tensor, shape (B, 3, H, W), about [0, 1], not clipped
        """
        b, _, h, w = image01.shape
        if h % self.stride or w % self.stride or not h or not w:
            raise ValueError(
                f"KernelWizard: height and width must be multiples of {self.stride}, "
                f"got {h} x {w}"
            )
        expected = (self.kernel_channels, h // self.stride, w // self.stride)
        if code.shape[1:] != expected or len(code) not in (1, b):
            raise ValueError(
                f"KernelWizard: code of {b} image(s) {h} x {w} must have the shape "
                f"{(b, *expected)} or {(1, *expected)}, got {tuple(code.shape)}"
            )
        features = self.feature_extractor(image01)
        return image01 + self.recon_trunk(
            self.adapter(features, code.expand(b, *expected))
        )


class _Residual(nn.Module):
    """h + conv2(relu(conv1(h)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(self.conv1(h).relu())


class _Adapter(nn.Module):
    """The U-Net, as levels that hold the next coarser one."""

    def __init__(self, width: int, kernel_channels: int) -> None:
        super().__init__()
        level = _Level(8 * width, 8 * width, below=8 * width + kernel_channels)
        for outer, inner in ((4, 8), (2, 4), (1, 2)):
            level = _Level(outer * width, inner * width, below=level)
        self.model = _Outermost(width, level)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        return self.model(features, code)


class _Level(nn.Module):
    """cat(up(.), a) over a = leaky_relu(d).

    The skip is the activated a, as the published activation works in place; the ReLU
    that follows makes the same of d.

    `below` is the coarser level or, at the innermost one, the channels of what is
    there: the features and the code.
    """

    def __init__(self, outer: int, inner: int, below: _Level | int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1, bias=False)
        )
        self.submodule = None if isinstance(below, int) else below
        channels = below if isinstance(below, int) else 2 * inner
        self.up = nn.Sequential(
            nn.ReLU(), nn.ConvTranspose2d(channels, outer, 4, 2, 1, bias=False)
        )

    def forward(self, d: Tensor, code: Tensor) -> Tensor:
        a = self.down[0](d)
        d = self.down[1](a)
        if self.submodule is None:
            u = torch.cat([d, code], 1)
        else:
            u = self.submodule(d, code)
        return torch.cat([self.up(u), a], 1)


class _Outermost(nn.Module):
    """tanh(up(.)) over the first convolution, no skip."""

    def __init__(self, width: int, submodule: _Level) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(width, width, 4, 2, 1, bias=False))
        self.submodule = submodule
        self.up = nn.Sequential(
            nn.ReLU(), nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.Tanh()
        )

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        return self.up(self.submodule(self.down(features), code))


def load_kernel_wizard(path: str | os.PathLike[str]) -> KernelWizard:
    """Read the published file, GOPRO_wVAE.pth, or one of the same tensors.

    The sizes of the network follow from the shapes; ``kernel_extractor.*`` is ignored.

    Parameters
    ----------
    path : path of a file for `archive.read_tensors`

    Returns
    -------
    KernelWizard, float32, in evaluation mode, gradients off

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, holds more than tensors in plain containers (nothing of
        it is executed), misses a tensor, has an unexpected one, one of another shape,
        or NaN or infinite weights.  The message names the file.
    """
    tensors = read_tensors(path).below("", without=_IGNORED)
    try:
        with torch.device("meta"):
            net = KernelWizard(**_architecture(tensors.shapes))
        fill(net, tensors, same_keys(tensors.shapes))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return net


def _architecture(shapes: Shapes) -> dict[str, int]:
    """The arguments of KernelWizard that give tensors of these names and shapes."""
    width = axis_of(shapes, "feature_extractor.0.weight", axes=4)
    return {
        "width": width,
        "front_blocks": _blocks(shapes, "feature_extractor", start=6),
        "back_blocks": _blocks(shapes, "recon_trunk", start=0),
        "kernel_channels": axis_of(shapes, _INNERMOST, axes=4) - 8 * width,
    }


def _blocks(names: Iterable[str], part: str, start: int) -> int:
    """Number of residual blocks: up to the last that the names tell of."""
    pattern = re.compile(rf"{part}\.(\d{{1,6}})\.conv[12]\.(?:weight|bias)")
    found = [int(match[1]) for name in names if (match := pattern.fullmatch(name))]
    return max(found, default=start - 1) + 1 - start
