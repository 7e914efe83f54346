"""Priors: what images look like.

To add a bundled one: its weights in ``weights/``, and its line in `BUNDLED`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from diffstategrad._options import nearest
from diffstategrad.priors.base import CallablePrior, NoPrior, Prior
from diffstategrad.priors.gaussian import GaussianPrior
from diffstategrad.priors.latent import LatentPrior
from diffstategrad.priors.network import NetworkPrior
from diffstategrad.priors.pretrained import describe_prior, load_prior
from diffstategrad.priors.spectrum import PROFILES

__all__ = [
    "BUNDLED",
    "CallablePrior",
    "GaussianPrior",
    "LatentPrior",
    "NetworkPrior",
    "NoPrior",
    "Prior",
    "as_prior",
    "describe_prior",
    "load_prior",
]

#: Name -> file in the package's weights folder.
BUNDLED = {
    "leaves64": "leaves64.safetensors",
    "leaves_latent": "leaves_latent.safetensors",
}


def as_prior(prior: Any) -> Prior:
    """A Prior from a bundled name, a path (as `load_prior` takes), a Prior or a
    callable; its `to` sets precision, memory layout and compilation of the network.

    Raises
    ------
    ValueError
        For an unknown name or an unreadable file.
    TypeError
        For anything else that is not callable.
    """
    if isinstance(prior, Prior):
        return prior
    if isinstance(prior, str) and prior in BUNDLED:
        weights = Path(str(files("diffstategrad.weights") / BUNDLED[prior]))
        bundled = load_prior(weights, name=prior)
        bundled.profile = PROFILES.get(prior)
        return bundled
    if isinstance(prior, str | Path):
        if Path(prior).exists():
            return load_prior(prior)
        raise ValueError(
            f"no prior and no file named {str(prior)!r}{nearest(prior, BUNDLED)}"
        )
    if callable(prior):
        return CallablePrior(prior)
    raise TypeError(
        "prior must be a name, a path, a Prior or a callable (x, sigma) -> x0, "
        f"got {type(prior).__name__}"
    )
