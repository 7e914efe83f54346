"""`solve`: the one call users make."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffstategrad._options import is_int, is_real
from diffstategrad._tensor import (
    as_tensor,
    check_finite,
    dtype_name,
    out_of_range,
    placed,
    prepare,
)
from diffstategrad.config import published
from diffstategrad.noise import NoiseSource, as_noise, content_keys
from diffstategrad.operators.base import Operator
from diffstategrad.operators.callable import FromCallable
from diffstategrad.priors import LatentPrior, NoPrior, Prior, as_prior
from diffstategrad.projection import StateProjector
from diffstategrad.result import Result, check_record
from diffstategrad.samplers import (
    SAMPLERS,
    Level,
    Network,
    Problem,
    Sampler,
    as_sampler,
)
from diffstategrad.samplers.base import finite, square_norm
from diffstategrad.samplers.residual import count, measured, relative

__all__ = ["solve"]

# Residuals outside this range are worth a warning.
_CONSISTENT = (0.5, 2.0)
# Linear measurements of images are seldom larger.
_LARGE = 10.0


@torch.inference_mode(False)  # which forbids methods to differentiate
def solve(
    y: Tensor,
    operator: Operator,
    prior: Any = None,
    method: str | Sampler = "daps",
    *,
    sigma: float,
    project: StateProjector | bool | None = None,
    n_samples: int = 1,
    steps: int | None = None,
    seed: int | torch.Generator | NoiseSource = 0,
    batch: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    callback: Callable[[Level], Any] | None = None,
    progress: bool | None = None,
    **method_options: Any,
) -> Result:
    """Restores images from y = A(x) + sigma n.

    An image of a batch gets the result it would get alone, bit for bit, whatever its
    place and the number of threads (with the default `batch` and the bundled prior;
    another network may round differently for another number of torch's threads).  So
    a measurement repeated in the batch is solved alike each time: for several answers
    ask for `n_samples`.

    Parameters
    ----------
    y : Tensor or array, shape (B, C, H, W), float32 or float64
        The measurement of images in [-1, 1].
    operator : Operator
    prior : str, path, Prior or callable (x, sigma) -> x0
        Name of a bundled prior, weights, or anything that denoises.  None for a method
        without a network.
    method : str or Sampler
        See `methods()` and `describe(method)`.
    sigma : float > 0
        Standard deviation of the measurement's noise, in units of y.
    project : None, True or StateProjector
        True takes the paper's setting for the method.
    n_samples : int >= 1
        Independent runs for each image.
    steps : int, optional
        The method's number of levels or iterations.
    seed : int, torch.Generator or NoiseSource
        A generator or a source goes on where it is: it gives the same result only from
        the same state.
    batch : int, optional
        Images in one network call; default 1.  More than one may change results in the
        last bits.
    device : optional
        Where to run; default that of y.  y and the prior's network are moved there, and
        the images of the result stay there.  The noise is that of the CPU everywhere;
        results agree up to rounding.
    dtype : optional
        float32 or float64; default that of y.
    callback : callable, optional
        Gets a `Level` after every level; the answer True stops the run.
    progress : bool, optional
        Show a progress bar, of the network calls or of the levels where other things
        take longer; default where somebody can see it.
    **method_options
        Options of the method.  `task="super_resolution"` takes the published constants
        of that task, `preset="official"` the published code's slips too (see
        `describe(method)`); options given beside them win.

    Returns
    -------
    Result
        Ctrl-C returns what has been reached, with a warning in it.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, before the first network call.
    """
    sampler = as_sampler(method, _with_steps(method_options, steps))
    projector = _as_projector(project, sampler)
    if not isinstance(operator, Operator):
        raise TypeError(f"operator must be an Operator, got {type(operator).__name__}")
    if operator.blind and not sampler.blind:
        raise ValueError(
            f"{sampler.name} needs to know the operator, and {type(operator).__name__} "
            "has unknowns: use method='dmplug', or the operator of a known kernel"
        )
    if not is_real(sigma):
        raise TypeError(f"sigma must be a number, got {type(sigma).__name__}")
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be > 0, got {sigma}")
    for name, value in (("n_samples", n_samples), ("batch", batch)):
        if value is not None and not is_int(value, 1):
            raise ValueError(f"{name} must be an int >= 1, got {value!r}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    if dtype is not None:
        dtype_name(dtype)
        y = as_tensor(y, "y").to(dtype)
    y = placed(prepare(y, "y"), device).clone()  # the Result keeps it
    if len(y) == 0:
        raise ValueError("y is an empty batch")
    check_finite(y, "y")

    shape = operator.image_shape(tuple(y.shape[1:]))
    expected = operator.out_shape(shape)
    if tuple(expected) != tuple(y.shape[1:]):
        raise ValueError(
            f"y has images of shape {tuple(y.shape[1:])}, the operator measures "
            f"{tuple(expected)}" + _image_shape_advice(operator)
        )
    if prior is None and not sampler.needs_prior:
        prior = NoPrior()
    prior = as_prior(prior)
    _check_space(sampler, prior)
    prior.check_shape(shape)
    prior.to(y.device)

    state = prior.latent_shape(shape) if isinstance(prior, LatentPrior) else shape

    b, chains = len(y), n_samples * len(y)
    images = content_keys(y) * n_samples
    samples = [s for s in range(n_samples) for _ in range(b)]
    network = Network(prior, batch or 1)
    problem = Problem(
        y=y if n_samples == 1 else y.repeat(n_samples, 1, 1, 1),
        operator=operator,
        network=network,
        sigma=float(sigma),
        noise=as_noise(seed, images, samples),
        start=y.new_empty((chains, *state)),
        projector=projector,
    )
    task = method_options.get("task")
    if task is not None and task not in published(sampler.name)[0]:
        problem.outcome.warnings.append(
            f"no constants of {sampler.name} are known for task={task!r}: it runs with "
            "those of no task"
        )
    spec = {
        "method": sampler.spec_for(problem),
        "prior": prior.spec(),
        "operator": operator.spec(),
        "project": projector.spec() if projector else None,
        "sigma": float(sigma),
        "n_samples": n_samples,
        "batch": network.batch,
        "seed": _seed_record(seed),
        "dtype": dtype_name(y.dtype),
    }
    check_record(spec)
    started = time.perf_counter()
    report = _Report(problem, sampler, callback, progress)
    x = report.run(sampler, problem)  # waits for the device: it looks for NaN in x
    seconds = time.perf_counter() - started

    stacked = x.reshape(n_samples, b, *shape)
    apply = problem.outcome.apply or operator
    with torch.no_grad():
        sqnorm = square_norm(report.weight * (apply(x) - problem.y))
    residual = report.relative(sqnorm).reshape(n_samples, b)
    best = residual.nan_to_num(torch.inf).argmin(0)
    return Result(
        x=stacked[best, torch.arange(b)],
        samples=stacked,
        y=y,
        residual=residual,
        nfe=network.calls,
        seconds=seconds,
        trace=report.trace,
        spec=spec,
        details=problem.outcome.details,
        interrupted=report.interrupted,
        warnings=[
            *report.warnings,
            *problem.outcome.warnings,
            *_residual_warnings(residual, y if operator.linear else None),
        ],
    )


class _Stop(Exception):
    """Raised by a report to end the run with what it has."""


class _Report:
    """Follows a run level by level: progress bar, callback, trace, divergence."""

    def __init__(
        self,
        problem: Problem,
        sampler: Sampler,
        callback: Callable[[Level], Any] | None,
        progress: bool | None,
    ):
        if progress is None:
            progress = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.callback, self.levels = callback, sampler.levels
        self.step_option = sampler.step_to_lower
        self.weight = measured(problem.operator, problem.y)
        self.m, self.sigma = count(self.weight), problem.sigma
        # what the lost entries add to the ||A(x) - y||^2 of every level
        self.lost = square_norm((1 - self.weight) * problem.y).cpu()
        self.interrupted = False
        self.trace: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.diverged: set[int] = set()
        self.held: set[int] = set()  # of them, those with something to return
        # Index and estimate only: what else a level holds may go.
        self.last: tuple[int, Tensor] | None = None
        # over the network calls, since a level may have thousands; over the levels
        # where the calls are none or little of the work
        self.by_level = not sampler.calls or sampler.decodes > 0
        self.bar = tqdm(
            total=sampler.levels if self.by_level else sampler.calls,
            unit="level" if self.by_level else "call",
            disable=not progress,
            leave=False,
        )
        if not self.by_level:
            problem.network.on_call = lambda calls: self.bar.update(calls - self.bar.n)

    def relative(self, sqnorm: Tensor) -> Tensor:
        """The residual of a squared norm over the measured entries."""
        return relative(sqnorm, self.m, self.sigma)

    def run(self, sampler: Sampler, problem: Problem) -> Tensor:
        """The sampler's result, or the last level's where the run was cut short."""
        try:
            return self._ended(sampler.run(problem, self))
        except (_Stop, KeyboardInterrupt) as reason:
            if self.last is None:
                raise
            if isinstance(reason, KeyboardInterrupt):
                self.interrupted = True
                self.warnings.append(
                    f"interrupted after level {self.last[0] + 1} of {self.levels}"
                )
        finally:
            self.bar.close()
        x = self.last[1].clone()
        x[sorted(self.diverged - self.held)] = torch.nan
        return x

    def _ended(self, x: Tensor) -> Tensor:
        """The result; a warning for images that were lost after the last level."""
        lost = set(torch.nonzero(~finite(x)).flatten().tolist()) - self.diverged
        if lost:
            self.warnings.append(
                f"{len(lost)} of {len(x)} runs ended with NaN or infinite values after "
                "the last level"
            )
            x[sorted(lost)] = torch.nan
        return x

    def __call__(self, level: Level) -> None:
        self.last = (level.index, level.x0y)
        sqnorm = level.sqnorm.cpu()  # another device is waited for here, once
        self._note_divergence(level, sqnorm)
        misfit = (sqnorm - self.lost).clamp_min(0).nanmean()
        residual = self.relative(misfit).item()
        entry: dict[str, Any] = {"sigma": level.sigma, "residual": residual}
        if level.ranks is not None and level.kept is not None:
            entry["rank"] = _mean(level.ranks)
            entry["kept"] = _mean(level.kept)
        self.trace.append(entry)
        if self.by_level:
            self.bar.update()
        shown = {} if level.sigma is None else {"sigma": f"{level.sigma:.3g}"}
        self.bar.set_postfix({**shown, "residual": f"{residual:.3g}"})
        if self.callback is not None and self.callback(level) is True:
            self.warnings.append(
                f"stopped by the callback after level {level.index + 1}"
            )
            raise _Stop

    def _note_divergence(self, level: Level, sqnorm: Tensor) -> None:
        bad = set(torch.nonzero(sqnorm.isnan()).flatten().tolist())
        new = sorted(bad - self.diverged)
        self.diverged |= bad
        where = f"level {level.index + 1}"
        if level.sigma is not None:
            where += f" (sigma {level.sigma:.3g})"
        by_prior = level.prior_failed
        blamed = [i for i in new if by_prior is not None and by_prior[i]]
        if blamed:
            self.warnings.append(
                f"{len(blamed)} of {len(sqnorm)} runs diverged at {where}: the "
                "prior gave images with NaN or infinite values"
            )
        if len(new) > len(blamed):
            advice = f"lower `{self.step_option}`" if self.step_option else "see sigma"
            self.warnings.append(
                f"{len(new) - len(blamed)} of {len(sqnorm)} runs diverged at "
                f"{where}: {advice}"
            )
        if level.held is not None:
            kept = [i for i in new if level.held[i]]
            self.held.update(kept)
            if kept:
                self.warnings.append(
                    f"{len(kept)} of {len(sqnorm)} runs return what they had "
                    f"chosen before they diverged at {where}"
                )
        if len(bad) == len(sqnorm):
            raise _Stop


def _mean(values: tuple[tuple[float, ...], ...]) -> float:
    flat = [value for image in values for value in image]
    return sum(flat) / len(flat)


def _with_steps(options: dict[str, Any], steps: int | None) -> dict[str, Any]:
    return options if steps is None else {**options, "steps": steps}


def _check_space(sampler: Sampler, prior: Prior) -> None:
    """ValueError where one of them works on latents and the other on pixels."""
    if sampler.latent == isinstance(prior, LatentPrior):
        return
    what = prior.spec()["name"]
    if sampler.latent:
        raise ValueError(
            f"{sampler.name} works on the latents of an autoencoder: prior must be a "
            f"LatentPrior such as 'leaves_latent', got {what!r}"
        )
    latent = [name for name, cls in SAMPLERS.items() if cls.latent]
    raise ValueError(
        f"{sampler.name} works on pixels, and the prior {what!r} knows latents; use "
        f"one of {', '.join(latent)}"
    )


def _as_projector(
    project: StateProjector | bool | None, sampler: Sampler
) -> StateProjector | None:
    if project is None or project is False:
        return None
    if sampler.projection is None:
        raise ValueError(
            f"{sampler.name} takes no projector: it {sampler.no_projection}"
        )
    if project is True:
        return sampler.projection
    if not isinstance(project, StateProjector):
        raise TypeError(
            f"project must be None, True or a StateProjector, got {project!r}"
        )
    return project


def _image_shape_advice(operator: Operator) -> str:
    if isinstance(operator, FromCallable):
        return "; from_callable(image_shape=...) says of which image"
    return ""


def _seed_record(seed: Any) -> int | str:
    """The number to run it again with, or the kind of source that was given."""
    return int(seed) if is_int(seed, 0) else type(seed).__name__


def _residual_warnings(residual: Tensor, y: Tensor | None) -> list[str]:
    """Of residuals far from 1; y where it is an image itself."""
    finite = residual[residual.isfinite()]
    low, high = _CONSISTENT
    found = []
    if (finite > high).any():
        found.append("do not agree with a measurement of this sigma")
    if (finite < low).any():
        found.append("follow the noise of the measurement")
    if not found:
        return []
    units = None if y is None else out_of_range(y, "y", _LARGE)
    ends = dict.fromkeys(f"{end:.2f}" for end in (finite.min(), finite.max()))
    return [
        f"residual {' to '.join(ends)}, far from 1: results "
        + " or ".join(found)
        + (f"; {units}" if units else "")
    ]
