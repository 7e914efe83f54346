"""Training of the bundled priors and their autoencoder on procedural images."""

from __future__ import annotations

from diffstategrad.training.trainer import train

__all__ = ["train"]
