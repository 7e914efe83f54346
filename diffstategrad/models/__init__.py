"""Networks: their definition, saving and loading."""

from __future__ import annotations

from diffstategrad.models.unet import PixelUNet, load_network, save_network

__all__ = ["PixelUNet", "load_network", "save_network"]
