"""Inverse problems with diffusion priors and state-guided projected gradients."""

from __future__ import annotations

from importlib.metadata import version as _version

from diffstategrad import _core

__version__ = _version("diffstategrad")
if _core.__version__ != __version__:
    raise ImportError(
        f"diffstategrad {__version__} found a compiled module of version "
        f"{_core.__version__}: install again"
    )

from diffstategrad import images, metrics, operators, priors
from diffstategrad._core import NumericalError, set_num_threads
from diffstategrad.check import check
from diffstategrad.noise import GaussianNoise, PoissonNoise
from diffstategrad.priors import GaussianPrior, Prior, load_prior
from diffstategrad.projection import StateProjector
from diffstategrad.result import Result
from diffstategrad.samplers import DAPS, describe, methods
from diffstategrad.samplers.ddim import sample
from diffstategrad.solve import solve

__all__ = [
    "DAPS",
    "GaussianNoise",
    "GaussianPrior",
    "NumericalError",
    "PoissonNoise",
    "Prior",
    "Result",
    "StateProjector",
    "__version__",
    "check",
    "describe",
    "images",
    "load_prior",
    "methods",
    "metrics",
    "operators",
    "priors",
    "sample",
    "set_num_threads",
    "solve",
]
