r"""DMPlug: the seed of a few DDIM layers is fitted to the measurement.

.. math:: \min_Z \frac1m \lVert A(G(Z)) - y \rVert^2, \qquad
          G(Z) = \mathrm{clamp}(g_{N-1} \circ \dots \circ g_0(Z)),

by Adam or L-BFGS from :math:`Z \sim N(0, I)`.  An operator with unknowns of its own
(`BlindBlur`, `BlindTurbulence`) has them fitted beside Z.  With a projector, the
measurement gradient :math:`\tfrac2m J_A^\top (A(x) - y)` is projected onto the dominant
subspace of the image x = G(Z) before it is pulled back through the layers.

The published code returns the iterate with the best PSNR against the truth; see
`selection.py` for the rules here.

References
----------
Wang, Zhang, Li, Wan, Chen, Sun, "DMPlug: a plug-in method for solving inverse problems
with diffusion models", NeurIPS 2024, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad._tensor import in_full
from diffstategrad.noise import CounterNoise
from diffstategrad.operators import BlindOperator
from diffstategrad.projection import StateProjector
from diffstategrad.samplers.base import (
    LIMIT,
    Level,
    Needs,
    PartGuide,
    Problem,
    Sampler,
    Survivors,
    finite,
    square_norm,
)
from diffstategrad.samplers.generator import generator
from diffstategrad.samplers.selection import Iterates, Rule, Selection, held_out
from diffstategrad.schedules import layer_grid

__all__ = ["DMPlug"]


class DMPlug(Sampler):
    """Fits the seed of a generator of DDIM layers to the measurement."""

    name: ClassVar[str] = "dmplug"
    projection: ClassVar[StateProjector | None] = StateProjector(energy=0.99)
    step_option: ClassVar[str | None] = "lr"
    blind: ClassVar[bool] = True
    needs: ClassVar[Needs] = {
        "lr_kernel": ({"optimizer": ("adam",)},),
        "lr_displacement": ({"optimizer": ("adam",)},),
        "tau": ({"stop": ("discrepancy",)},),
        "patience": ({"stop": ("es_wmv",)},),
    }

    steps: int = Field(5000, ge=1, description="iterations E (L-BFGS: outer ones)")
    layers: int = Field(3, ge=1, le=1000, description="DDIM steps N")
    optimizer: Literal["adam", "lbfgs"] = Field(
        "adam", description="lbfgs: torch's defaults, up to 20 evaluations an iteration"
    )
    lr: float = Field(0.01, gt=0, description="learning rate of the seed")
    lr_kernel: float = Field(
        0.1, gt=0, description="of an unknown kernel; Adam only, L-BFGS has one rate"
    )
    lr_displacement: float = Field(
        1e-7, gt=0, description="of an unknown displacement; Adam only"
    )
    recompute: bool = Field(
        True,
        description="recompute activations layer by layer: memory of one layer for a "
        "second forward pass, which is not counted as network calls",
    )
    stop: Rule = Field("discrepancy", description="which iterate is returned")
    tau: float = Field(1.0, gt=0, description="residual at which discrepancy stops")
    patience: int = Field(1000, ge=1, description="of es_wmv, in iterations")
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
        evaluations = 1 if self.optimizer == "adam" else 20
        return self.steps * evaluations * self.layers

    def idle_for(self, problem: Problem) -> dict[str, str]:
        operator = problem.operator
        unknowns: dict[str, Tensor] = {}
        if isinstance(operator, BlindOperator):  # asked with noise of its own
            unknowns = operator.start(problem.start[:1], CounterNoise(0, [0], [0]))
        return {
            f"lr_{name}": f"{type(operator).__name__}, which has no unknown {name}"
            for name in ("kernel", "displacement")
            if name not in unknowns
        }

    def run(self, problem: Problem, report: Callable[[Level], None]) -> Tensor:
        fit = _Fit(self, problem)
        selection = Selection(
            *(self.stop, problem.operator, problem.y, problem.sigma),
            steps=self.steps,
            tau=self.tau,
            every=10 if self.optimizer == "adam" else 1,
            patience=self.patience,
            holdout=fit.holdout,
        )
        problem.outcome.details["selection"] = selection.details
        iterates = Iterates(self.keep, problem.outcome.details)
        step = fit.adam_step if self.optimizer == "adam" else fit.lbfgs_step

        for k in range(self.steps):
            seed = fit.variables["seed"].clone()
            # of a seed beyond it the step is to blame, not the prior
            plausible = (seed.abs() <= LIMIT).flatten(1).all(1)
            iterate = step(k)
            iterates.add(iterate.x)
            taken = selection.update(k, iterate.x, iterate.predicted)
            fit.keep_unknowns(taken, iterate)
            selection.lose(fit.alive.diverged)
            report(
                Level(
                    index=k,
                    sigma=None,
                    xt=seed,
                    x0hat=iterate.x,
                    x0y=selection.best,
                    sqnorm=selection.sqnorm.clone(),
                    ranks=fit.guide.ranks,
                    kept=fit.guide.kept,
                    prior_failed=(plausible & ~finite(iterate.x)).cpu(),
                    held=selection.held,
                )
            )
            if selection.finished:
                break
        return selection.best


@dataclass
class _Iterate:
    """G(Z) at one Z, before any step from there.

    ``sqnorm`` is ||A(x) - y||^2 and ``loss`` the same without what is held out, over
    the number of all entries, both float64; ``unknowns`` are those that A was applied
    with.
    """

    x: Tensor
    predicted: Tensor
    sqnorm: Tensor
    loss: Tensor
    unknowns: dict[str, Tensor]


class _Fit:
    """The variables of a run, their gradients and steps."""

    def __init__(self, options: DMPlug, problem: Problem):
        self.options, self.problem = options, problem
        operator, start, noise = problem.operator, problem.start, problem.noise
        self.guide = PartGuide(problem.projector, len(start))
        self.alive = Survivors(len(start))
        self.holdout = (
            held_out(operator, problem.y) if options.stop == "holdout" else None
        )
        self.generate = generator(
            problem.network.prior.predict,
            layer_grid(options.layers),
            recompute=options.recompute,
        )

        # copies, for they are changed in place
        self.variables = {"seed": noise.normal(start).clone()}
        self.rates = {
            "seed": options.lr,
            "kernel": options.lr_kernel,
            "displacement": options.lr_displacement,
        }
        self.found: dict[str, Tensor] = {}
        if isinstance(operator, BlindOperator):
            unknowns = operator.start(start, noise)
            self.variables |= {name: value.clone() for name, value in unknowns.items()}
            self.found = {name: value.clone() for name, value in unknowns.items()}
            problem.outcome.apply = lambda x: operator.apply(x, self.found)
        self.moments = {
            name: (torch.zeros_like(value), torch.zeros_like(value))
            for name, value in self.variables.items()
        }
        # of every image apart, over its part of the variables
        self.leaves = [
            {name: value[i : i + 1] for name, value in self.variables.items()}
            for i in range(len(start))
        ]
        self.optimizers = [
            torch.optim.LBFGS(list(leaf.values()), lr=options.lr)
            for leaf in self.leaves
        ]

    def evaluate(self, k: int, images: slice) -> tuple[_Iterate, dict[str, Tensor]]:
        """The iterate of some images, and the gradient of the loss in the variables; 0
        for images that are lost."""
        variables = {name: value[images] for name, value in self.variables.items()}
        seed, y = variables.pop("seed"), self.problem.y[images]
        held = None if self.holdout is None else self.holdout[images]
        predicted = torch.empty_like(y)
        gradients = {name: torch.empty_like(value) for name, value in variables.items()}

        def cotangent(x: Tensor, part: slice) -> Tensor:
            unknowns = {name: value[part] for name, value in variables.items()}
            predicted[part], to_x, to_unknowns = self._loss_gradient(
                x, unknowns, y[part], None if held is None else held[part]
            )
            for name, gradient in to_unknowns.items():
                gradients[name][part] = gradient
            start = images.start + part.start
            return self.guide(to_x, x, k, slice(start, start + len(x)))

        (x,), gradients["seed"] = self.problem.network.through(
            lambda part: (self.generate(part),),
            seed,
            cotangent,
            calls=self.options.layers,
        )
        error = predicted - y
        sqnorm = square_norm(error)
        loss = sqnorm
        if held is not None:
            loss = square_norm(error.masked_fill(held, 0))
        for values in (x, sqnorm[:, None], *gradients.values()):
            self.alive.diverged[images] |= ~finite(values).cpu()
        for gradient in gradients.values():
            gradient[self.alive.diverged[images]] = 0
        unknowns = {name: value.clone() for name, value in variables.items()}
        return _Iterate(x, predicted, sqnorm, loss / y[0].numel(), unknowns), gradients

    def _loss_gradient(
        self, x: Tensor, unknowns: dict[str, Tensor], y: Tensor, held: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """A(x), and the gradient of the loss in x and in the unknowns."""
        operator = self.problem.operator
        with torch.inference_mode(False), torch.enable_grad(), in_full(x.device):
            leaf = x.clone().requires_grad_()
            leaves = {name: v.clone().requires_grad_() for name, v in unknowns.items()}
            if isinstance(operator, BlindOperator):
                value = operator.apply(leaf, leaves)
            else:
                value = operator(leaf)
            # 2 (A(x) - y) / m
            residual = (value.detach() - y) * (2 / y[0].numel())
            if held is not None:
                residual = residual.masked_fill(held, 0)
            to_x, *others = torch.autograd.grad(
                value, [leaf, *leaves.values()], residual
            )
        return value.detach(), to_x, dict(zip(leaves, others, strict=True))

    def adam_step(self, k: int) -> _Iterate:
        """One step of all variables; returns the iterate before it."""
        iterate, gradients = self.evaluate(k, slice(0, len(self.problem.y)))
        for name, variable in self.variables.items():
            flat = (len(variable), 1, 1, -1)
            tensors = (variable, *self.moments[name], gradients[name])
            backend(variable.device).adam_step(
                *(t.view(flat) for t in tensors),
                *(k + 1, self.rates[name], 0.9, 0.999, 1e-8),
            )
        return iterate

    def lbfgs_step(self, k: int) -> _Iterate:
        """One iteration for every image apart; returns the last iterates evaluated."""
        network = self.problem.network
        calls, most = network.calls, 0
        last: list[_Iterate] = []
        for i, optimizer in enumerate(self.optimizers):
            network.calls = calls
            seen: list[_Iterate] = []

            def closure(i: int = i, seen: list[_Iterate] = seen) -> float:
                iterate, gradients = self.evaluate(k, slice(i, i + 1))
                for name, leaf in self.leaves[i].items():
                    leaf.grad = gradients[name]
                seen[:] = [iterate]
                return iterate.loss.item()

            optimizer.step(closure)
            last += seen
            most = max(most, network.calls)
        network.calls = most  # of the image that took most
        return _Iterate(
            x=torch.cat([iterate.x for iterate in last]),
            predicted=torch.cat([iterate.predicted for iterate in last]),
            sqnorm=torch.cat([iterate.sqnorm for iterate in last]),
            loss=torch.cat([iterate.loss for iterate in last]),
            unknowns={
                name: torch.cat([iterate.unknowns[name] for iterate in last])
                for name in self.found
            },
        )

    def keep_unknowns(self, taken: Tensor, iterate: _Iterate) -> None:
        """Those of the images that now return this iterate."""
        operator = self.problem.operator
        if isinstance(operator, BlindOperator) and taken.any():
            for name, value in iterate.unknowns.items():
                self.found[name][taken] = value[taken]
            self.problem.outcome.details["unknowns"] = operator.describe(self.found)
