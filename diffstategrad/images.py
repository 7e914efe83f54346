"""Pictures in and out: files and 8-bit arrays to tensors in [-1, 1] and back."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffstategrad._files import write_file

__all__ = ["check_format", "from_uint8", "load_image", "save_image", "to_uint8"]


def from_uint8(picture: np.ndarray, size: int | None = None) -> Tensor:
    """(H, W) or (H, W, 3) 8-bit picture -> (1, 3, H, W) float32 in [-1, 1].

    With `size`, the largest centred square is cut out and resized to size x size
    (antialiased bicubic).
    """
    image = Image.fromarray(picture).convert("RGB")
    if size is not None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def to_uint8(x: Tensor) -> np.ndarray:
    """(C, H, W) in [-1, 1], C = 1 or at least 3 -> (H, W, 3) 8-bit, clipped, rounded;
    channels after the third are left out, NaN is black."""
    x = x.detach().cpu().float().nan_to_num(-1.0)
    x = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
    scaled = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(1, 2, 0).contiguous().numpy()


def load_image(path: str | Path, size: int | None = None) -> Tensor:
    """A picture file as (1, 3, H, W) float32 in [-1, 1]; see `from_uint8`.

    Raises
    ------
    ValueError
        If the file cannot be read as a picture.
    """
    try:
        with Image.open(path) as image:
            picture = _eight_bit(image)
    except (
        UnidentifiedImageError,
        OSError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"cannot read the picture {path}: {error}") from None
    return from_uint8(picture, size)


def _eight_bit(image: Image.Image) -> np.ndarray:
    """(H, W, 3), upright; an alpha channel is left out, 16 bits are rounded to 8."""
    image = ImageOps.exif_transpose(image)
    if not image.mode.startswith(("I", "F")):
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"pixels of mode {image.mode} beyond 16 bits are not taken")
    grey = Image.fromarray((values / 257).round().astype(np.uint8))
    return np.asarray(grey.convert("RGB"))


def check_format(path: str | os.PathLike[str]) -> str:
    """Pillow's name of the format; ValueError when the name's ending is that of no
    picture that can be written."""
    ending = Path(path).suffix.lower()
    name = Image.registered_extensions().get(ending)
    if name not in Image.SAVE:
        raise ValueError(f"{path}: no picture format to write ends in {ending!r}")
    return name


def save_image(path: str | os.PathLike[str], x: Tensor) -> None:
    """Writes (C, H, W) or (1, C, H, W) in [-1, 1] as a picture file, whole or not at
    all; OSError where that fails."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"save_image takes a path, then a tensor, got {type(path).__name__} and "
            f"{type(x).__name__}"
        )
    if x.ndim == 4 and len(x) == 1:
        x = x[0]
    if x.ndim != 3:
        raise ValueError(f"save_image takes one image (C, H, W), got {tuple(x.shape)}")
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(x)).save(buffer, check_format(path))
    write_file(path, buffer.getvalue())
