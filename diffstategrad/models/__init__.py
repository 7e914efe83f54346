"""Networks: their definition, saving and loading."""

from __future__ import annotations

from diffstategrad.models.archive import read_tensors
from diffstategrad.models.autoencoder import (
    Autoencoder,
    load_autoencoder,
    save_autoencoder,
)
from diffstategrad.models.checkpoints import open_checkpoint
from diffstategrad.models.unet import PixelUNet, load_network, save_network

__all__ = [
    "Autoencoder",
    "PixelUNet",
    "load_autoencoder",
    "load_network",
    "open_checkpoint",
    "read_tensors",
    "save_autoencoder",
    "save_network",
]
