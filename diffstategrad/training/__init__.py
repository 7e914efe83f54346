"""Training of the bundled pixel prior on procedural images."""

from __future__ import annotations

from diffstategrad.training.trainer import train

__all__ = ["train"]
