r"""DDIM steps: plain sampling, and the loop of the methods that guide it in latents.

From :math:`z \sim N(0, I)`, with :math:`a` the signal variance of a level and :math:`p`
that of the next one:

1. :math:`\hat z_0 = (z - \sqrt{1 - a}\,\epsilon) / \sqrt a`;
2. :math:`z \leftarrow \sqrt p\, \hat z_0 + \sqrt{1 - p - s^2}\,\epsilon + s\, n`,
   :math:`s = \eta \sqrt{(1 - p) / (1 - a)\, (1 - a / p)}`;
3. with guidance :math:`z \leftarrow z - P(g)`, where g is a gradient with respect to
   the state entering the step and P projects onto the dominant subspace of that state
   (without a projector: the identity).

The image is :math:`D(z)`.

References
----------
Song, Meng, Ermon, "Denoising Diffusion Implicit Models", ICLR 2021, eq. 12 and 16.
Rombach, Blattmann, Lorenz, Esser, Ommer, "High-Resolution Image Synthesis with Latent
Diffusion Models", CVPR 2022, for the grid and the latents.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad._options import as_shape, is_int, is_real, nearest
from diffstategrad._tensor import dtype_name, placed
from diffstategrad.noise import NoiseSource, as_noise
from diffstategrad.priors import LatentPrior, Prior, as_prior
from diffstategrad.projection import StateProjector
from diffstategrad.samplers.base import (
    LIMIT,
    Guide,
    Level,
    Problem,
    Sampler,
    Survivors,
)
from diffstategrad.samplers.network import Network
from diffstategrad.schedules import (
    Schedule,
    ddim_grid,
    latent_grid,
    latent_times,
    sigma_of,
)

__all__ = [
    "Encode",
    "Guidance",
    "GuidedDDIM",
    "Step",
    "encoder_noise",
    "estimate",
    "idle_encode",
    "sample",
    "steps_of",
]

Grid = Literal["even", "official"]
#: An option of the methods that encode.
Encode = Annotated[
    Literal["mean", "draw"],
    Field(
        description="what is taken of an encoder that gives a distribution, as Stable "
        "Diffusion's"
    ),
]


def idle_encode(problem: Problem) -> dict[str, str]:
    """`Sampler.idle_for` of that option."""
    if problem.network.latent.autoencoder.stochastic:
        return {}
    return {"encode": "an autoencoder whose encoder gives no distribution"}


def encoder_noise(encode: Encode, problem: Problem) -> Tensor | None:
    """What that option draws for the latents of a batch."""
    if encode == "mean" or not problem.network.latent.autoencoder.stochastic:
        return None
    return problem.noise.normal(problem.start)


@dataclass(frozen=True)
class Step:
    """One step from signal variance a to p.

    Attributes
    ----------
    a, p, std : float
        `std` is that of the noise it adds.
    time : float or None
        At which the network is called; None: that of the level.
    draws : bool
        Whether a draw of noise belongs to it.
    """

    a: float
    p: float
    std: float
    time: float | None
    draws: bool

    def draw(self, z: Tensor, noise: NoiseSource) -> Tensor | None:
        """Its noise, of the shape of z."""
        return noise.normal(z) if self.draws else None

    def __call__(self, z: Tensor, z0: Tensor, n: Tensor | None) -> None:
        """The state after the step, in place; `n` is what was drawn."""
        backend(z.device).ddim_step(z, z0, self.a, self.p, self.std, n)


def steps_of(grid: Grid, steps: int, eta: float, schedule: Schedule) -> list[Step]:
    """The steps of a named grid, in order of execution.

    "even" has `steps` evenly spaced network times and ends in a clean state.
    "official" is that of the released latent samplers (`schedules.latent_grid`), which
    draw noise even of standard deviation 0.
    """
    official = grid == "official"
    make = latent_grid if official else ddim_grid
    table = make(steps, eta=eta, schedule=schedule)
    columns = (table.a, table.p, table.sigma, table.timesteps)
    return [
        Step(a, p, std, time if official else None, official or std > 0)
        for a, p, std, time in zip(
            *(map(float, column[::-1]) for column in columns), strict=True
        )
    ]


def estimate(model: Prior | Network, z: Tensor, step: Step) -> Tensor:
    """z0 by the prior (differentiable) or a counting network."""
    if step.time is None:
        return model.estimate(z, step.a)[0]
    return (z - (1 - step.a) ** 0.5 * model.eps(z, step.time)) / step.a**0.5


@torch.no_grad()
def sample(
    prior: Any,
    shape: tuple[int, int, int],
    n: int = 1,
    *,
    steps: int = 100,
    eta: float = 0.0,
    grid: Grid = "even",
    seed: int | torch.Generator | NoiseSource = 0,
    batch: int = 1,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Images that the prior makes of nothing but noise, by DDIM.

    Parameters
    ----------
    prior
        As in `solve`: of pixels, or a `LatentPrior`, whose latents are decoded.
    shape : (C, H, W)
        Of an image.
    n : int >= 1
        Number of images; image i gets the noise it would get alone at the same index.
    steps : int in 1..1000
        Of the grid, each with one network call.
    eta : float in [0, 1]
        0 is deterministic from the first noise on, 1 is as noisy as DDPM.
    grid : "even" or "official"
        Evenly spaced network times and a clean end, or the grid of the released latent
        samplers (`schedules.latent_grid`).
    seed : int, torch.Generator or NoiseSource
    batch : int >= 1
        Images in one network call.
    device
        Where to run; the prior's network is moved there.
    dtype : float32 or float64

    Returns
    -------
    Tensor, shape (n, C, H, W), nominally in [-1, 1], not clipped

    Raises
    ------
    TypeError
        For another dtype.
    ValueError
        For a number out of range, a device that cannot be used, an image that does not
        fit the prior, and a prior that gives NaN.

    Examples
    --------
    Four pictures of the bundled prior::

        dsg.sample("leaves64", (3, 64, 64), 4, steps=50)
    """
    prior, shape = as_prior(prior), as_shape(shape, "shape")
    prior.check_shape(shape)
    for name, value in (("n", n), ("batch", batch)):
        if not is_int(value, 1):
            raise ValueError(f"{name} must be an int >= 1, got {value!r}")
    if not (is_int(steps, 1) and steps <= 1000):
        raise ValueError(f"steps must be an int in 1..1000, got {steps!r}")
    if not (is_real(eta) and 0 <= eta <= 1):
        raise ValueError(f"eta must lie in [0, 1], got {eta!r}")
    if grid not in get_args(Grid):
        raise ValueError(f"unknown grid {grid!r}{nearest(grid, get_args(Grid))}")

    dtype_name(dtype)
    network, noise = Network(prior, batch), as_noise(seed, range(n), [0] * n)
    state = prior.latent_shape(shape) if isinstance(prior, LatentPrior) else shape
    z = noise.normal(placed(torch.empty((n, *state), dtype=dtype), device))
    prior.to(z.device)
    for step in steps_of(grid, steps, eta, prior.schedule):
        step(z, estimate(network, z, step), step.draw(z, noise))
    x = network.decode(z) if isinstance(prior, LatentPrior) else z
    if not x.isfinite().all():
        raise ValueError("the prior gave images with NaN or infinite values")
    return x


class Guidance(NamedTuple):
    """What guides a step.

    Attributes
    ----------
    z0, x0 : the estimate and its image
    gradient : with respect to the state, step size included
    sqnorm : ||A(x0) - y||^2 of every image, float64
    """

    z0: Tensor
    x0: Tensor
    gradient: Tensor
    sqnorm: Tensor


class GuidedDDIM(Sampler):
    """Base of the methods that guide DDIM steps in latents by a gradient."""

    latent: ClassVar[bool] = True
    projection: ClassVar[StateProjector | None] = StateProjector(energy=0.99)

    steps: int = Field(500, ge=1, le=1000, description="steps of the grid, S")
    eta: float = Field(0.0, ge=0, le=1, description="noise of the DDIM step")
    grid: Grid = Field(
        "even",
        description="of network times: evenly spaced, the last step to a clean latent, "
        "or as released: ends at the first level of the table, noise of 0.04, and with "
        "1000 steps calls the network one time late",
    )

    @model_validator(mode="after")
    def _has_grid(self) -> Self:
        if self.grid == "official":
            latent_times(self.steps)
        return self

    @property
    def levels(self) -> int:
        return self.steps if self.grid == "even" else len(latent_times(self.steps))

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        self._check(problem)
        guide = Guide(problem.projector)
        alive = Survivors(len(problem.start))
        schedule = problem.network.prior.schedule
        steps = steps_of(self.grid, self.steps, self.eta, schedule)
        z = problem.noise.normal(problem.start)

        for k, step in enumerate(steps):
            state, n = z.clone(), step.draw(z, problem.noise)
            z0, x0, gradient, sqnorm = self._guidance(problem, state, step)
            prior_failed = alive.check(z0) | alive.check(x0)
            alive.check(gradient)
            step(z, z0, n)
            z -= guide(gradient, state, k)
            alive.check(z, limit=LIMIT)
            report(
                Level(
                    index=k,
                    sigma=sigma_of(step.a),
                    xt=state,
                    x0hat=x0,
                    x0y=x0,
                    sqnorm=alive.mark(sqnorm),
                    ranks=guide.ranks,
                    kept=guide.kept,
                    prior_failed=prior_failed,
                )
            )
        return alive.mark(problem.network.decode(z))

    def _check(self, problem: Problem) -> None:
        """ValueError for a problem that these options cannot solve."""

    @abstractmethod
    def _guidance(self, problem: Problem, z: Tensor, step: Step) -> Guidance:
        """Estimate, image and gradient at the state z."""
