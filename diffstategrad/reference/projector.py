r"""Projection onto the dominant singular subspace of the diffusion state.

For one channel with state Z (h, w) = U diag(s) V^T, k = min(h, w), and a gradient G,

    P(G) = U_r U_r^T G V_r V_r^T,   r = min { j : s_1^2 + .. + s_j^2 >= energy |Z|^2 },

the ranks of channels combined by a rule:

    0 per channel   every channel its own r
    1 mean          one r, the floor of the mean of the channels' r
    2 official      one r, as the published code computes it: the squared singular
                    values of all channels in one running sum, decided in float32,
                    position / 3
    3 fixed         one r, given

r is at most k; energy = 1 keeps everything.  A side of length r is the identity, so a
square state at r = k returns G bit for bit.  A zero channel has r = 0 and its gradient
is left as it is; but under the official rule it has the image's r, and when that is 0
its gradient becomes zero like the others'.

Factors are found in float64 and kept in the precision of the images.

Zirvi, Tolooshams, Anandkumar, "Diffusion State-Guided Projected Gradient for Inverse
Problems", ICLR 2025, section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffstategrad._core import NumericalError
from diffstategrad.reference._common import (
    Shape,
    check,
    parse_dtype,
    parse_shape,
    parts,
    product,
)

__all__ = ["Projector"]

_PER_CHANNEL, _MEAN, _OFFICIAL, _FIXED = range(4)
_LEFT, _RIGHT, _BOTH = 1, 2, 3


class Projector:
    """Subspaces of a batch of states of shape (c, h, w), ready to be applied."""

    def __init__(self, dtype: str, batch: int, shape: Shape, /):
        self._dtype = parse_dtype("Projector", dtype)
        self._shape = parse_shape("Projector", shape)
        if batch < 0:
            raise ValueError(f"Projector: batch must not be negative, got {batch}")
        self._batch = batch
        self._factors: list[_Factors] | None = None

    @property
    def ranks(self) -> tuple[tuple[int, ...], ...] | None:
        """Of every channel of every image; None unless prepared."""
        if self._factors is None:
            return None
        return tuple(tuple(r) for f in self._factors for r in f.ranks.tolist())

    @property
    def kept(self) -> tuple[tuple[float, ...], ...] | None:
        """Fraction of the state's energy kept, likewise."""
        if self._factors is None:
            return None
        return tuple(tuple(k) for f in self._factors for k in f.kept.tolist())

    def prepare(
        self,
        state: Any,
        energy: float,
        rule: int,
        fixed_rank: int,
        sides: int,
        /,
    ) -> None:
        """Factors of state (b, c, h, w); sides 1 left, 2 right, 3 both."""
        (state,) = check("prepare", self._dtype, state=(state, self._shape))
        self._check_batch("prepare", "state", state)
        for name, value, least, most in (
            ("rule", rule, _PER_CHANNEL, _FIXED),
            ("sides", sides, _LEFT, _BOTH),
        ):
            if not least <= value <= most:
                raise ValueError(
                    f"prepare: {name} must be in the range {least}..{most}, got {value}"
                )
        if rule == _FIXED and fixed_rank < 1:
            raise ValueError(
                f"prepare: fixed_rank must be at least 1, got {fixed_rank}"
            )
        if rule != _FIXED and not 0 < energy <= 1:
            raise ValueError(
                f"prepare: energy must be in the range (0, 1], got {energy}"
            )
        self._factors = None
        if not state.isfinite().all():
            raise ValueError("prepare: NaN or Inf where a finite number is needed")
        self._factors = [
            _Factors(part, energy, rule, fixed_rank, sides) for (part,) in parts(state)
        ]

    def apply(self, grad: Tensor, /) -> None:
        """grad (b, c, h, w) = P(grad)."""
        (grad,) = check("apply", self._dtype, grad=(grad, self._shape))
        self._check_batch("apply", "grad", grad)
        if self._factors is None:
            raise RuntimeError("apply: work was asked for before set-up")
        for factors, (part,) in zip(self._factors, parts(grad), strict=True):
            part.copy_(factors.project(part))

    def _check_batch(self, function: str, name: str, t: Tensor) -> None:
        if len(t) != self._batch:
            raise ValueError(
                f"{function}: {name} must have shape {(self._batch, *self._shape)}, "
                f"got {tuple(t.shape)}"
            )


class _Factors:
    """Bases of the images that are worked on together; ranks and kept (b, c)."""

    def __init__(
        self, state: Tensor, energy: float, rule: int, fixed_rank: int, sides: int
    ):
        # a power of two keeps squares from over- and underflowing, and changes nothing
        largest = state.abs().amax((2, 3), keepdim=True).double()
        scale = torch.frexp(largest).mantissa / largest  # NaN for a zero channel
        scale = torch.where(largest > 0, scale.clamp(max=2.0**1022), 1)
        U, s, Vt = _svd(scale * state.double())

        # what follows is decided on the host
        singular = s.cpu().numpy()
        zero = singular[..., 0] == 0
        official = rule == _OFFICIAL
        k = singular.shape[-1]
        if rule == _FIXED:
            self.ranks: np.ndarray = np.full(zero.shape, min(fixed_rank, k))
        elif energy == 1:
            self.ranks = np.full(zero.shape, k)
        elif official:
            # all channels on the scale of the largest
            scales = np.where(zero, np.inf, scale.cpu().numpy()[..., 0, 0])
            shared = scales.min(1, keepdims=True)
            factor = np.where(zero, 0, shared / np.where(zero, 1, scales))
            self.ranks = _official_ranks(factor[..., None] * singular, energy)
        else:
            self.ranks = _ranks_for_energy(singular**2, energy)
            self.ranks[zero] = 0
            if rule == _MEAN:
                mean = self.ranks.sum(1, keepdims=True) // self.ranks.shape[1]
                self.ranks = np.broadcast_to(mean, zero.shape).copy()
        if not official:
            self.ranks[zero] = 0
        self.kept = _kept_energy(singular**2, self.ranks)
        self.kept[zero | (self.ranks == k)] = 1.0

        #: Channels whose gradient is lost whole.
        nothing = (self.ranks == 0) & (~zero | official)
        alone = zero & ~nothing
        self.nothing = self._mask(nothing, state)
        most = int(self.ranks.max(initial=0))
        columns = np.arange(most) < self.ranks[..., None]
        inside = torch.from_numpy(columns[..., None, :]).to(state.device)
        self.sides: list[tuple[Tensor, Tensor] | None] = []
        for basis, wanted in ((U, sides & _LEFT), (Vt.mT, sides & _RIGHT)):
            identity = alone | (self.ranks >= basis.shape[-2]) | (not wanted)
            if not identity.all():
                kept = torch.where(inside, basis[..., :most], 0).to(state.dtype)
                self.sides.append((kept, self._mask(identity, state)))
            else:
                self.sides.append(None)

    @staticmethod
    def _mask(channels: np.ndarray, like: Tensor) -> Tensor:
        return torch.from_numpy(channels[..., None, None]).to(like.device)

    def project(self, grad: Tensor) -> Tensor:
        left, right = self.sides
        if left is not None:
            basis, identity = left
            grad = torch.where(identity, grad, product(basis, product(basis.mT, grad)))
        if right is not None:
            basis, identity = right
            grad = torch.where(identity, grad, product(grad, basis, basis.mT))
        return torch.where(self.nothing, 0, grad)


def _svd(Z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    try:
        return torch.linalg.svd(Z, full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise NumericalError(f"prepare: {error}") from None


def _ranks_for_energy(squares: np.ndarray, energy: float) -> np.ndarray:
    """Smallest r with squares_1 + .. + squares_r >= energy of their sum, (b, c).  A sum
    that misses by rounding has arrived: without the slack, equal singular values would
    be counted by chance."""
    k = squares.shape[-1]
    kept = squares.cumsum(-1)
    slack = 1 - 4 * np.finfo(np.float64).eps * k
    goal = energy * kept[..., -1:] * slack
    return np.minimum((kept < goal).sum(-1) + 1, k)


def _official_ranks(singular: np.ndarray, energy: float) -> np.ndarray:
    """The shared rank of the published code, (b, c).  Its list of arrays holds one
    array, so that the running sum crosses the channels; the position is divided by
    3."""
    b, c, k = singular.shape
    ranks = np.zeros((b, c), np.int64)
    for i, values in enumerate(singular.astype(np.float32)):
        squares = (values * values).ravel()
        total = squares.sum()
        if total > 0:
            ratios = (squares.cumsum() / total).astype(np.float64)
            arrived = np.flatnonzero(ratios >= energy)
            # none where rounding keeps the last ratio below energy
            position = arrived[0] + 1 if len(arrived) else len(squares)
            ranks[i] = min(position // 3, k)
    return ranks


def _kept_energy(squares: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Share of squares_1 + .. + squares_r in the sum, (b, c)."""
    inside = np.arange(squares.shape[-1]) < ranks[..., None]
    kept, total = np.where(inside, squares, 0).sum(-1), squares.sum(-1)
    return kept / np.where(total > 0, total, 1)
