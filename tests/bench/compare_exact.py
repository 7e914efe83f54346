"""The covariances of exact draws with the bundled prior, on two photographs.

    OMP_NUM_THREADS=1 python tests/bench/compare_exact.py

Per task the mean over two crops (64 x 64 of scikit-image's astronaut and coffee, scaled
to 128), noise 0.05: network calls, PSNR of a draw and of the mean of 2, and the
residual of the draws.
"""

from __future__ import annotations

import time

import torch
from results import crop

import diffstategrad as dsg
from diffstategrad.metrics import psnr
from diffstategrad.operators import Downsample, GaussianBlur, Inpainting
from diffstategrad.priors import as_prior
from diffstategrad.samplers import method_options

SIGMA = 0.05
TASKS = {
    "gaussian_deblur": GaussianBlur(61, 3.0),
    "super_resolution": Downsample(4),
    "inpaint_random": Inpainting.random((64, 64), missing=0.7, seed=0),
}
EXACT = {"dynamics": "exact", "sigma_max": 40.0, "sigma_min": 0.02}
METHODS = {
    **{
        f"exact, {covariance}, {steps}": {
            **EXACT,
            "steps": steps,
            "covariance": covariance,
        }
        for covariance in ("isotropic", "capped", "spectral")
        for steps in (25, 50)
    },
    "langevin, mean, 50": {"steps": 50, "centre": "mean"},
    "langevin, ode, 50": {"steps": 50},
}


def main() -> None:
    x = torch.cat([crop(name) for name in ("astronaut", "coffee")])
    prior = as_prior("leaves64")
    for task, A in TASKS.items():
        y = A.measure(x, SIGMA, seed=0)
        for name, options in METHODS.items():
            if "langevin" in name:
                options = {**method_options("daps", task), **options}
            started = time.perf_counter()
            result = dsg.solve(
                y, A, prior, sigma=SIGMA, n_samples=2, progress=False, **options
            )
            draws = torch.stack([psnr(s, x) for s in result.samples]).mean()
            mean = psnr(result.samples.mean(0), x).mean()
            seconds = time.perf_counter() - started
            print(
                f"| {task} | {name} | {result.nfe} | {draws:.2f} | {mean:.2f} | "
                f"{result.residual.mean():.2f} | {seconds:.0f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
