r"""Projection of a measurement gradient onto the dominant subspace of the state.

For every channel, with the diffusion state :math:`Z = U \operatorname{diag}(s) V^\top`
and a gradient :math:`G`,

.. math:: P(G) = U_r U_r^\top G V_r V_r^\top, \qquad
          r = \min\{j : s_1^2 + \dots + s_j^2 \ge \tau \lVert Z\rVert_F^2\},

:math:`\tau` being the variance retention threshold, here called `energy` (DAPS has
another tau).

References
----------
Zirvi, Tolooshams, Anandkumar, "Diffusion State-Guided Projected Gradient for Inverse
Problems", ICLR 2025, sections 3 and 4, Appendix C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from diffstategrad._backend import backend
from diffstategrad._options import is_int, is_real, nearest
from diffstategrad._tensor import check_alike, check_finite, dtype_name, prepare
from diffstategrad.noise import CounterNoise, content_keys

__all__ = ["Projection", "StateProjector", "Subspace"]

_RULES = {"per_channel": 0, "mean": 1, "official": 2}
_FIXED = 3
_SIDES = {"left": 1, "right": 2, "both": 3}
_SUBSPACES = ("state", "gradient", "random")
# Sample index of the random subspace's numbers, apart from all other streams.
_RANDOM_SUBSPACE = 2**32 - 2

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)
# The hooks of `wrap`, one an optimiser.
_hooks: WeakKeyDictionary[Optimizer, Any] = WeakKeyDictionary()


@dataclass(frozen=True)
class StateProjector:
    """How a gradient is projected; the subspace itself comes from a state.

    Parameters
    ----------
    energy : float in (0, 1]
        Share of the state's energy (squared singular values) that is kept; 0.99 in the
        paper.  1 keeps all: the identity on square images.
    rank : "per_channel", "mean", "official" or int >= 1
        How the channels' ranks combine: each its own (the paper), their mean rounded
        down, as the published code computes it, or one given number, whatever the
        energy.
    sides : "both", "left" or "right"
    period : int >= 1
        Projects on iterations 0, period, 2 period, ...; 1 for PSLD and DAPS, 5 for
        ReSample in the paper.
    subspace : "state", "gradient" or "random"
        What supplies the singular vectors: the state (the method), the gradient itself,
        or a random matrix drawn anew for every decomposition (the paper's ablation),
        its numbers a function of the seed, the state and the draw.
    seed : int
        Of the random subspace.

    Examples
    --------
    It needs a line or two in anybody's loop.  In PSLD::

        project = StateProjector(energy=0.99)
        for a, p, t in steps:
            z = z.detach().requires_grad_()
            noise = network(z, t)
            z0 = (z - (1 - a) ** 0.5 * noise) / a**0.5
            x0 = decode(z0)
            glued = encode(x0 + A.adjoint(y - A(x0)))
            error = omega * (A(x0) - y).norm() + gamma * (glued - z0).norm()
            (g,) = torch.autograd.grad(error, z)
            z = p**0.5 * z0 + (1 - p) ** 0.5 * noise - project(g, state=z)

    In ReSample's optimisation of a latent, where the optimiser does it::

        project = StateProjector(energy=0.99, period=5)
        z = z0.clone().requires_grad_()
        optimizer = project.wrap(torch.optim.AdamW([z], lr=5e-3), state=z_t)
        for _ in range(500):
            optimizer.zero_grad()
            loss = (A(decode(z)) - y).square().mean()
            loss.backward()
            optimizer.step()  # projects z.grad
            if loss < 1e-6:
                break

    In a level of DAPS, with one decomposition for all its steps::

        subspace = StateProjector(energy=0.99).factors(x0hat)
        x = x0hat.clone()
        for _ in range(100):
            g = A.vjp(x, A(x) - y) / tau**2 + (x - x0hat) / sigma**2
            x = x - eta * subspace.apply(g) + (2 * eta) ** 0.5 * torch.randn_like(x)
    """

    energy: float = 0.99
    rank: Literal["per_channel", "mean", "official"] | int = "per_channel"
    sides: Literal["both", "left", "right"] = "both"
    period: int = 1
    subspace: Literal["state", "gradient", "random"] = "state"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (is_real(self.energy) and 0 < self.energy <= 1):
            raise ValueError(
                f"StateProjector: energy must lie in (0, 1], got {self.energy!r}"
            )
        if isinstance(self.rank, str):
            if self.rank not in _RULES:
                raise ValueError(
                    f"StateProjector: unknown rank rule {self.rank!r}"
                    f"{nearest(self.rank, _RULES)}"
                )
        elif not is_int(self.rank, 1):
            raise ValueError(
                f"StateProjector: rank must be a rule or an int >= 1, got {self.rank!r}"
            )
        if self.sides not in _SIDES:
            raise ValueError(
                f"StateProjector: unknown sides {self.sides!r}"
                f"{nearest(self.sides, _SIDES)}"
            )
        if not is_int(self.period, 1):
            raise ValueError(
                f"StateProjector: period must be an int >= 1, got {self.period!r}"
            )
        if self.subspace not in _SUBSPACES:
            raise ValueError(
                f"StateProjector: unknown subspace {self.subspace!r}"
                f"{nearest(self.subspace, _SUBSPACES)}"
            )
        if not (is_int(self.seed, 0) and self.seed < 2**64):
            raise ValueError(
                f"StateProjector: seed must be in 0..2**64-1, got {self.seed!r}"
            )

    def __call__(self, grad: Tensor, *, state: Tensor, iteration: int = 0) -> Tensor:
        """The projected gradient, a new tensor.

        Parameters
        ----------
        grad : Tensor, shape (B, C, H, W), float32 or float64
        state : Tensor, same shape, dtype and device
            Diffusion state in [-1, 1] convention or raw latent units (the projection is
            invariant to its scale, not to an offset).
        iteration : int
            Compared with `period`; counts the draws of a random subspace.

        Raises
        ------
        TypeError
            If dtypes differ.
        ValueError
            If shapes or devices differ or an entry is NaN or infinite.
        """
        grad, state = prepare(grad, "grad"), prepare(state, "state")
        if grad.shape != state.shape:
            raise ValueError(
                f"grad and state must have one shape, got {tuple(grad.shape)} and "
                f"{tuple(state.shape)}"
            )
        check_alike(grad=grad, state=state)
        check_finite(grad, "grad")
        if iteration % self.period:
            return grad.clone()
        source = grad if self.subspace == "gradient" else state
        return self.factors(source, draw=iteration).apply(grad)

    def factors(self, state: Tensor, *, draw: int = 0) -> Subspace:
        """Decomposes `state` once, for many gradients of its shape and dtype; `draw`
        counts the decompositions with a random subspace."""
        state = prepare(state, "state")
        check_finite(state, "state")
        if self.subspace == "random":
            source = CounterNoise(
                self.seed, content_keys(state), [_RANDOM_SUBSPACE] * len(state)
            )
            source.draw = draw
            state = source.normal(state)
        subspace = Subspace(tuple(state.shape), state.dtype, state.device)
        subspace.prepare(state, self)
        return subspace

    def wrap(
        self, optimizer: AnyOptimizer, *, state: Tensor | Callable[[], Tensor]
    ) -> AnyOptimizer:
        """Makes an optimiser project: from now on its `step` overwrites the `grad` of
        every parameter by the projection, on steps 0, `period`, 2 `period`, ...

        It is the same optimiser, with whatever else hangs on it.  A closure's gradients
        are projected too.  Wrapping it again puts a new state in the place of the old
        one and counts from 0.  A deep or an unpickled copy does not project, for torch
        copies no hooks: wrap it again.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Of parameters that have the shape and dtype of the state.
        state : Tensor, shape (B, C, H, W), or callable without arguments
            A tensor is decomposed here, once; what a callable returns, at every
            projection.

        Raises
        ------
        TypeError
            If `optimizer` is none, or dtypes differ.
        ValueError
            If shapes or devices differ or an entry is NaN or infinite; here, or in
            `step` what is only known there.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                "optimizer must be a torch.optim.Optimizer, "
                f"got {type(optimizer).__name__}"
            )
        fixed = None if callable(state) else Projection(self, state)
        if isinstance(state, Tensor):
            for p in _parameters(optimizer):
                if p.shape != state.shape:
                    raise ValueError(
                        f"the optimizer has a parameter of shape {tuple(p.shape)}, "
                        f"state has {tuple(state.shape)}"
                    )
                check_alike(parameter=p, state=state)
        steps = count()

        def project(optimizer: Optimizer, k: int) -> None:
            if k % self.period:
                return
            now = state() if callable(state) else state
            for p in _parameters(optimizer):
                if p.grad is None:
                    continue
                if fixed is None:
                    p.grad.copy_(self(p.grad, state=now, iteration=k))
                else:
                    check_finite(p.grad, "grad")
                    p.grad.copy_(fixed(p.grad, k))

        def before(
            optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            k = next(steps)
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if closure is None:
                project(optimizer, k)
                return None

            def projected() -> Any:
                loss = closure()
                project(optimizer, k)
                return loss

            return args[:1], {**kwargs, "closure": projected}

        if optimizer in _hooks:
            _hooks[optimizer].remove()
        _hooks[optimizer] = optimizer.register_step_pre_hook(before)
        return optimizer

    def replace(self, **changes: Any) -> StateProjector:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def spec(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


class Projection:
    """P of one state for many gradients, as an optimiser's loop has them.

    Attributes
    ----------
    subspace : Subspace or None
        That of the state; where every gradient brings its own, the last one's.
    """

    subspace: Subspace | None = None

    def __init__(self, projector: StateProjector, state: Tensor, *, draw: int = 0):
        self.projector = projector
        if projector.subspace != "gradient":
            self.subspace = projector.factors(state, draw=draw)

    def __call__(self, gradient: Tensor, iteration: int) -> Tensor:
        """P(gradient); the gradient itself between the projector's periods."""
        if iteration % self.projector.period:
            return gradient
        if self.projector.subspace == "gradient":
            self.subspace = self.projector.factors(gradient)
        assert self.subspace is not None
        return self.subspace.apply(gradient)


class Subspace:
    """Singular subspaces of one batch of states, ready to be applied."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ):
        module = backend(device)
        self.device = device
        self.native = module.Projector(dtype_name(dtype), shape[0], tuple(shape[1:]))

    def prepare(self, state: Tensor, projector: StateProjector) -> None:
        """Replaces the factors by those of another state of the same shape."""
        if isinstance(projector.rank, str):
            rule, fixed = _RULES[projector.rank], 0
        else:
            rule, fixed = _FIXED, projector.rank
        self.native.prepare(
            state, projector.energy, rule, fixed, _SIDES[projector.sides]
        )

    def apply(self, grad: Tensor) -> Tensor:
        """P(grad), a new tensor."""
        out = prepare(grad, "grad").clone()
        if out.device != self.device:
            raise ValueError(f"grad must be on {self.device}, got {out.device}")
        self.native.apply(out)
        return out

    @property
    def ranks(self) -> tuple[tuple[int, ...], ...] | None:
        """Rank of every channel, a tuple per image; None unless prepared."""
        return self.native.ranks

    @property
    def kept(self) -> tuple[tuple[float, ...], ...] | None:
        """Share of the state's energy kept in every channel, a tuple per image; None
        unless prepared."""
        return self.native.kept
