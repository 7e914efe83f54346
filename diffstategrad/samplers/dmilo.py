r"""DMILO and DMILO-PGD: the layers of a DDIM generator are inverted one at a time.

States :math:`z_0` (the seed), ..., :math:`z_N` (the image) and deviations
:math:`\nu_i`, with :math:`z_{i+1} = g_i(z_i) + \nu_i`.  A sweep goes from the last
layer to the first and fits each by `inner` Adam steps to its target,

.. math:: L_i(z, \nu) = \mathrm{mean}\big((B_i(g_i(z) + \nu) - T_i)^2\big)
          + w_\nu\, \mathrm{mean} |\nu| + w_z\, \mathrm{mean}(z^2),

:math:`B` = A and :math:`T = y` for the last layer; for the others :math:`B` = 1 and
:math:`T` is what the layer above has found.  Then the states are composed anew from
:math:`z_0` and the deviations, and the image is clamped.  DMILO-PGD keeps an image X,
takes a gradient step on the data before every sweep, and fits the last layer to A(X).

Only one layer is differentiated at a time: memory does not grow with N.  With a
projector the measurement gradient of the last layer (PGD: of X) is projected onto the
dominant subspace of the image it is taken at.

The published codes return the round with the best PSNR against the truth; see
`selection.py` for the rules here.

References
----------
Zheng, Li, Liu, "Integrating intermediate layer optimization and projected gradient
descent for solving inverse problems with diffusion models", ICML 2025, Algorithms 1, 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad.projection import StateProjector
from diffstategrad.samplers.base import (
    Level,
    Needs,
    PartGuide,
    Problem,
    Sampler,
    Survivors,
    finite,
    square_norm,
)
from diffstategrad.samplers.generator import layer
from diffstategrad.samplers.selection import Iterates, Selection, held_out
from diffstategrad.schedules import layer_grid

__all__ = ["DMILO", "DMILOPGD"]


class DMILO(Sampler):
    """Intermediate layer optimisation; the defaults are those of inpainting."""

    name: ClassVar[str] = "dmilo"
    projection: ClassVar[StateProjector | None] = StateProjector(energy=0.99)
    step_option: ClassVar[str | None] = "lr"
    needs: ClassVar[Needs] = {"tau": ({"stop": ("discrepancy",)},)}

    steps: int = Field(5, ge=1, description="outer rounds T")
    inner: int = Field(200, ge=1, description="Adam steps a layer and round, J")
    layers: int = Field(3, ge=1, le=1000, description="DDIM steps N")
    lr: float = Field(0.02, gt=0, description="learning rate of the states z")
    lr_deviation: float = Field(1e-3, gt=0, description="of the deviations nu")
    w_deviation: float = Field(0.1, ge=0, description="weight of mean |nu|")
    w_state: float = Field(1e-4, ge=0, description="weight of mean z^2")
    stop: Literal["last", "discrepancy", "holdout"] = Field(
        "last", description="which round is returned"
    )
    tau: float = Field(1.05, gt=0, description="residual at which discrepancy stops")
    keep: int = Field(
        0,
        ge=0,
        description="iterates kept for the oracle of Result.score, evenly spaced",
    )

    @property
    def levels(self) -> int:
        return self.steps

    @property
    def calls(self) -> int:
        return self.layers * (1 + self.steps * (self.inner + 1))

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        sweep = _Sweep(self, problem)
        selection = self._selection(problem, sweep)
        for outer in range(self.steps):
            seed = sweep.states[0]
            sweep.run(outer, problem.y, measured=True)
            self._tell(problem, report, sweep, selection, outer, seed)
            if selection.finished:
                break
        return selection.best

    def _selection(self, problem: Problem, sweep: _Sweep) -> Selection:
        selection = Selection(
            *(self.stop, problem.operator, problem.y, problem.sigma),
            steps=self.steps,
            tau=self.tau,
            holdout=sweep.holdout,
        )
        problem.outcome.details["selection"] = selection.details
        return selection

    def _tell(
        self,
        problem: Problem,
        report: Callable[[Level], None],
        sweep: _Sweep,
        selection: Selection,
        outer: int,
        seed: Tensor,
    ) -> None:
        """A round has ended."""
        sweep.alive.check(sweep.image)
        sweep.iterates.add(sweep.image)
        predicted = sweep.alive.mark(problem.operator(sweep.image))
        selection.update(outer, sweep.image, predicted)
        selection.lose(sweep.alive.diverged)
        report(
            Level(
                index=outer,
                sigma=None,
                xt=seed,
                x0hat=sweep.image,
                x0y=selection.best,
                sqnorm=selection.sqnorm.clone(),
                ranks=sweep.guide.ranks,
                kept=sweep.guide.kept,
                prior_failed=sweep.prior_failed,
                held=selection.held,
            )
        )

    def _after_step(
        self, outer: int, which: int, step: int, z: Tensor, nu: Tensor
    ) -> None:
        """For whoever wants to watch the variables of layer `which`."""


class DMILOPGD(DMILO):
    """DMILO with a projected gradient step on the data before every sweep."""

    name: ClassVar[str] = "dmilo_pgd"

    lr_image: float = Field(0.5, gt=0, description="step size of the data step")
    data_step: Literal["square", "norm"] = Field(
        "square",
        description="along the gradient of the squared residual norm, or of the norm, "
        "which oscillates for noise below 2e-3 (there: square with lr_image 0.5)",
    )
    data_steps: int = Field(1, ge=1, description="how many; 1000 for blurs")

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        sweep = _Sweep(self, problem)
        selection = self._selection(problem, sweep)
        image = torch.zeros_like(problem.start)
        for outer in range(self.steps):
            seed = sweep.states[0]
            image = self._data(problem, sweep, image, outer)
            sweep.iterates.add(image)
            self._before(outer, image)
            sweep.run(outer, problem.operator(image), measured=False)
            self._tell(problem, report, sweep, selection, outer, seed)
            image = sweep.image
            if selection.finished:
                break
        return selection.best

    def _data(
        self, problem: Problem, sweep: _Sweep, image: Tensor, outer: int
    ) -> Tensor:
        """X after its gradient steps, clamped."""
        everyone = slice(0, len(image))
        x = image
        for step in range(self.data_steps):
            gradient, square = sweep.residual(x, problem.y, everyone)
            if self.data_step == "square":
                gradient = 2 * gradient
            else:  # the gradient of the norm is 0 where the norm is
                weight = torch.where(square > 0, square, torch.inf).rsqrt()
                gradient = weight.to(x)[:, None, None, None] * gradient
            sweep.alive.check(gradient)
            k = outer * self.data_steps + step
            gradient = sweep.guide(gradient, x, k, everyone)
            x = (x - self.lr_image * gradient).clamp(-1, 1)
        return x

    def _before(self, outer: int, image: Tensor) -> None:
        """For whoever wants to watch the image between data step and sweep."""


class _Sweep:
    """States and deviations, and how a round changes them."""

    def __init__(self, options: DMILO, problem: Problem):
        self.options, self.problem = options, problem
        self.guide = PartGuide(problem.projector, len(problem.start))
        self.alive = Survivors(len(problem.start))
        self.iterates = Iterates(options.keep, problem.outcome.details)
        self.prior_failed = torch.zeros(len(problem.start), dtype=torch.bool)
        grid = layer_grid(options.layers, shifted=True)
        self.pairs = list(zip(map(float, grid.a), map(float, grid.p), strict=True))
        self.holdout = (
            held_out(problem.operator, problem.y) if options.stop == "holdout" else None
        )
        seed = problem.noise.normal(problem.start)
        self.deviations = [torch.zeros_like(seed) for _ in self.pairs]
        self.states = [seed]
        self.compose()

    @property
    def image(self) -> Tensor:
        return self.states[-1]

    def compose(self) -> None:
        """All states from the seed and the deviations; the image is not clamped."""
        del self.states[1:]
        for (a, p), nu in zip(self.pairs, self.deviations, strict=True):
            below = layer(self.problem.network.predict, self.states[-1], a, p)
            self.states.append(below + nu)

    def residual(self, x: Tensor, y: Tensor, images: slice) -> tuple[Tensor, Tensor]:
        """J^T r and ||r||^2 with r = A(x) - y, 0 where y is held out."""
        operator = self.problem.operator
        if self.holdout is None:
            return operator.residual_gradient(x, y)
        r = (operator(x) - y).masked_fill(self.holdout[images], 0)
        return operator.vjp(x, r), square_norm(r)

    def run(self, outer: int, target: Tensor, *, measured: bool) -> None:
        """One sweep; `target` is that of the last layer, in the measurement's space.
        Only where it is the measurement itself are entries held out and its gradient
        projected."""
        last = len(self.pairs) - 1
        self.prior_failed = torch.zeros_like(self.prior_failed)
        for i in range(last, -1, -1):
            if i < last:
                cotangent = self._to_state(target)
            elif measured:
                cotangent = self._to_measurement(outer, target)
            else:
                cotangent = self._to_image(target)
            self._fit(outer, i, cotangent)
            target = self.states[i]
        self.compose()
        self.states[-1] = self.states[-1].clamp(-1, 1)

    # The gradient of mean((B(x) - T)^2) in x = g(z) + nu, of some images in one step.

    def _to_state(self, target: Tensor) -> _Gradient:
        n = target[0].numel()
        return lambda x, images, step: (x - target[images]) * (2 / n)

    def _to_image(self, target: Tensor) -> _Gradient:
        m, operator = target[0].numel(), self.problem.operator
        return lambda x, images, step: (
            operator.residual_gradient(x, target[images])[0] * (2 / m)
        )

    def _to_measurement(self, outer: int, y: Tensor) -> _Gradient:
        def gradient(x: Tensor, images: slice, step: int) -> Tensor:
            v = self.residual(x, y[images], images)[0] * (2 / y[0].numel())
            k = outer * self.options.inner + step
            return self.guide(v, x, k, images)

        return gradient

    def _fit(self, outer: int, i: int, data: _Gradient) -> None:
        """Adam on z and nu of layer i, from what they are."""
        options, network = self.options, self.problem.network
        (a, p), core = self.pairs[i], backend(self.problem.y.device)
        z, nu = self.states[i].clone(), self.deviations[i].clone()
        moments = [torch.zeros_like(z) for _ in range(4)]
        to_nu, n = torch.empty_like(nu), z[0].numel()

        for step in range(options.inner):

            def cotangent(below: Tensor, images: slice, step: int = step) -> Tensor:
                to_nu[images] = data(below + nu[images], images, step)
                return to_nu[images]

            (g,), to_z = network.through(
                lambda part: (layer(network.prior.predict, part, a, p),), z, cotangent
            )
            self.prior_failed |= (finite(z) & ~finite(g)).cpu()
            to_z.add_(z, alpha=2 * options.w_state / n)
            to_nu.add_(nu.sign(), alpha=options.w_deviation / n)
            for gradient in (to_z, to_nu):
                self.alive.check(gradient)
            for variable, gradient, (m, v), lr in (
                (nu, to_nu, moments[:2], options.lr_deviation),
                (z, to_z, moments[2:], options.lr),
            ):
                core.adam_step(variable, m, v, gradient, step + 1, lr, 0.9, 0.999, 1e-8)
            options._after_step(outer, i, step, z, nu)
        self.states[i], self.deviations[i] = z, nu


#: (x, which images, step) -> gradient in x.
_Gradient = Callable[[Tensor, slice, int], Tensor]
