"""Priors: what images look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffstategrad.priors.base import CallablePrior, NoPrior, Prior
from diffstategrad.priors.gaussian import GaussianPrior
from diffstategrad.priors.latent import LatentPrior
from diffstategrad.priors.network import NetworkPrior
from diffstategrad.priors.pretrained import BUNDLED, describe_prior, load_prior

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


def as_prior(prior: Any) -> Prior:
    """A Prior from a bundled name or a path (by `load_prior`), a Prior or a callable;
    its `to` sets precision, memory layout and compilation of the network.

    Raises
    ------
    ValueError
        For an unknown name or an unreadable file.
    TypeError
        For an object of `diffusers` and for anything else that is not callable.
    """
    if isinstance(prior, Prior):
        return prior
    if isinstance(prior, str | Path):
        try:
            return load_prior(prior)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
    kind = type(prior)
    if kind.__module__.startswith("diffusers."):  # its calls are none of a prior
        raise TypeError(
            f"a {kind.__name__} of diffusers is no prior: give the folder that its "
            "pipeline was saved in, or wrap the network, NetworkPrior(lambda z, t: "
            "net(z, t).sample, schedule=..., channels=...)"
        )
    if callable(prior):
        return CallablePrior(prior)
    raise TypeError(
        f"prior must be a name ({', '.join(BUNDLED)}), a path, a Prior or a callable "
        f"(x, sigma) -> x0, got {type(prior).__name__}"
    )
