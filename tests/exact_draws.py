r"""DAPS against the posterior of a Gaussian field: bias and variance of every way to
draw a level.

    OMP_NUM_THREADS=1 python tests/exact_draws.py [chains]

The field is N(0, C) on 8 x 8 pixels, :math:`C_{ij} = 0.3 \exp(-d_{ij}^2 / 8)`, 0.01
more on the diagonal; y its 5-tap Gaussian blur (std 1, reflected) with noise 0.1; the
levels go from 10 to 0.02.
"""

from __future__ import annotations

import sys
import time
from functools import cache

import torch
from torch import Tensor

import diffstategrad as dsg
from diffstategrad.noise import CounterNoise
from diffstategrad.operators import GaussianBlur
from diffstategrad.priors import CallablePrior
from diffstategrad.priors.spectrum import Profile

N, SIGMA = 8, 0.1
BLUR = GaussianBlur(5, 1.0)


@cache
def covariance() -> Tensor:
    """C, (64, 64), float64."""
    at = torch.cartesian_prod(torch.arange(N), torch.arange(N)).double()
    return 0.3 * torch.exp(-torch.cdist(at, at).square() / 8) + 0.01 * torch.eye(N * N)


@cache
def prior() -> CallablePrior:
    """The exact denoiser, C (C + sigma^2)^-1 x."""
    values, vectors = torch.linalg.eigh(covariance())

    def denoise(x: Tensor, sigma: float) -> Tensor:
        gain = values / (values + sigma**2)
        return ((x.flatten(1) @ vectors) * gain @ vectors.T).reshape(x.shape)

    result = CallablePrior(denoise)
    result.profile = Profile.of(fields(2000, seed=1))
    return result


def fields(n: int, seed: int) -> Tensor:
    """Draws from the prior, (n, 1, 8, 8)."""
    white = torch.empty((n, N * N), dtype=torch.float64)
    white = CounterNoise(seed, range(n), [0] * n).normal(white)
    return (white @ torch.linalg.cholesky(covariance()).T).reshape(n, 1, N, N)


@cache
def posterior() -> tuple[Tensor, Tensor, Tensor]:
    """y, mean (64,), covariance (64, 64)."""
    y = BLUR.measure(fields(1, seed=0), SIGMA, seed=0)
    C, eye = covariance(), torch.eye(N * N, dtype=torch.float64)
    A = BLUR(eye.reshape(-1, 1, N, N)).reshape(N * N, N * N).T
    K = torch.linalg.solve(A @ C @ A.T + SIGMA**2 * eye, A @ C).T
    return y, K @ y.flatten(), C - K @ A @ C


@cache
def samples(chains: int, levels: int, centre: str, shape: str) -> Tensor:
    """DAPS's, (chains, 64)."""
    result = dsg.solve(
        posterior()[0],
        BLUR,
        prior(),
        sigma=SIGMA,
        n_samples=chains,
        batch=chains,
        progress=False,
        dynamics="exact",
        steps=levels,
        sigma_max=10.0,
        sigma_min=0.02,
        centre=centre,
        covariance=shape,
        # the exact DAPS of the table: an ODE solved to its end
        **({"ode_steps": 20, "ode_sigma_min": 0.002} if centre == "ode" else {}),
    )
    return result.samples[:, 0].flatten(1)


def bias_and_ratio(draws: Tensor) -> tuple[float, float]:
    """rms over pixels of (mean - posterior mean) / posterior std, which is
    1 / sqrt(chains) for exact draws; mean variance over the posterior's."""
    _, mean, cov = posterior()
    bias = (draws.mean(0) - mean) / cov.diagonal().sqrt()
    ratio = draws.var(0).mean() / cov.diagonal().mean()
    return bias.square().mean().sqrt().item(), ratio.item()


def main() -> None:
    chains = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{chains} chains, bias of exact draws {chains**-0.5:.3f}")
    for centre in ("ode", "mean"):
        for shape in ("isotropic", "capped", "spectral", "tweedie"):
            row = []
            started = time.perf_counter()
            for levels in (50, 100, 200):
                bias, ratio = bias_and_ratio(samples(chains, levels, centre, shape))
                row.append(f"{bias:.3f} {ratio:.3f} |")
            seconds = time.perf_counter() - started
            print("|", centre, "|", shape, "|", *row, f"{seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
