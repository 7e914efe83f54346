r"""Which iterate to return, without the truth.

With the residual r of `residual.py`, every image on its own:

* "last": the last iterate;
* "discrepancy": the first with :math:`r \le \tau`, else the one with the smallest r
  (Morozov); looked at every `every` iterations and in the last one;
* "es_wmv": the iterate where the moving variance :math:`v \leftarrow (1 - a)(v + a
  \lVert d \rVert^2)`, :math:`d = x - e`, :math:`e \leftarrow e + a d`, a = 0.1, is
  smallest, the first 100 iterations aside; stops after `patience` iterations without a
  new minimum.  A run of at most 100 iterations returns its last;
* "holdout": 5 % of the measured pixels are left out of the loss; the iterate with the
  smallest error on them.

All of them are functions of the measurement, the operator and the iterates, decided on
the CPU.  The published codes choose by PSNR against the truth; their figures are those
of an oracle, for which `Iterates` keeps some for `Result.score`.

References
----------
Wang et al., "Early stopping for deep image prior", TMLR 2023 (ES-WMV).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from diffstategrad.noise import CounterNoise, content_keys
from diffstategrad.operators import Operator
from diffstategrad.samplers.base import square_norm
from diffstategrad.samplers.residual import count, measured, relative

__all__ = ["Iterates", "Rule", "Selection", "held_out"]

Rule = Literal["last", "discrepancy", "es_wmv", "holdout"]

#: Sample index of the held-out pixels' numbers, apart from all other streams.
_HOLDOUT = 2**32 - 3
_RATE = 0.1  # a of the moving variance
_IGNORED = 100  # iterations before it means anything


def held_out(operator: Operator, y: Tensor, share: float = 0.05) -> Tensor:
    """True for a random share of the measured pixels, with all their channels; at least
    one in every image.  A function of y alone."""
    known = measured(operator, y) > 0
    pixels = known.any(1, keepdim=True)
    source = CounterNoise(0, content_keys(y), [_HOLDOUT] * len(y))
    number = source.uniform(y[:, :1]).masked_fill(~pixels, torch.inf)
    count = (share * pixels.flatten(1).sum(1)).round().long().clamp_min(1)
    limit = number.flatten(1).sort(1).values.gather(1, count[:, None] - 1)
    return (number <= limit[:, :, None, None]) & known


class Selection:
    """Follows the iterates of a batch and keeps of each image the one to return.

    Parameters
    ----------
    rule : Rule
    operator, y, sigma
        Of the problem.
    steps : int
        How many iterates there will be, unless it is cut short.
    tau, every
        Of "discrepancy".
    patience
        Of "es_wmv".
    holdout : Tensor, optional
        What `held_out` gave, for "holdout".

    Attributes
    ----------
    best : Tensor, shape (B, C, H, W)
        The iterates to return if the run ended now; NaN where there is none.
    sqnorm : Tensor, shape (B,)
        ||A(x) - y||^2 of the last iterate of an image before it was done, float64; NaN
        for an image that diverged before it.
    done : bool of every image
        True where no later iterate will be taken.
    details : dict
        For `Result.details`, kept up to date: the rule and, of every image (of several
        samples: sample by sample), the index of the iterate and its r.
    """

    best: Tensor
    sqnorm: Tensor

    def __init__(
        self,
        rule: Rule,
        operator: Operator,
        y: Tensor,
        sigma: float,
        *,
        steps: int,
        tau: float = 1.0,
        every: int = 1,
        patience: int = 1000,
        holdout: Tensor | None = None,
    ):
        self.rule, self.y, self.sigma, self.steps = rule, y, sigma, steps
        self.tau, self.every, self.patience = tau, every, patience
        self.weight = measured(operator, y)
        self.m = count(self.weight)
        self.holdout = holdout
        n = len(y)
        self.done = torch.zeros(n, dtype=torch.bool)
        self.details: dict[str, Any] = {
            "rule": rule,
            "index": [None] * n,
            "residual": [None] * n,
        }
        self._index = torch.full((n,), -1)
        self._value = torch.full((n,), torch.inf, dtype=torch.float64)
        self._variance = torch.zeros(n, dtype=torch.float64)
        self._mean: Tensor | None = None

    @property
    def finished(self) -> bool:
        """True when no image can change any more."""
        return bool(self.done.all())

    @property
    def held(self) -> Tensor:
        """True for the images that have an iterate the rule compared with others."""
        return self._value.isfinite()

    def update(self, k: int, x: Tensor, predicted: Tensor) -> Tensor:
        """Looks at iterate k and its A(x); True for the images that now return it."""
        error = predicted - self.y
        sqnorm = square_norm(error).cpu()
        self.sqnorm = torch.where(self.done, self.sqnorm, sqnorm) if k else sqnorm
        residual = relative(square_norm(self.weight * error), self.m, self.sigma)
        take = self._better(k, x, error, residual) & ~self.done
        if k == 0:
            self.best = torch.full_like(x, torch.nan)
        self.best[take] = x[take]
        self._index[take] = k
        for i in take.nonzero().flatten().tolist():
            self.details["index"][i] = k
            self.details["residual"][i] = residual[i].item()

        if self.rule == "discrepancy":
            self.done |= take & (residual <= self.tau)
        elif self.rule == "es_wmv" and k >= _IGNORED:
            self.done |= k - self._index >= self.patience
        return take

    def lose(self, diverged: Tensor) -> None:
        """Ends the images that diverged before they were done.  They keep what is held;
        the last iterate of a run that went on is nothing to return."""
        lost = diverged & ~self.done
        self.done |= lost
        self.sqnorm[lost] = torch.nan
        for i in (lost & ~self.held).nonzero().flatten().tolist():
            self.best[i] = torch.nan
            self.details["index"][i] = self.details["residual"][i] = None

    def _better(self, k: int, x: Tensor, error: Tensor, residual: Tensor) -> Tensor:
        """True for the images that prefer iterate k to what they have."""
        finite = residual.isfinite()
        if self.rule == "last":
            return finite
        if self.rule == "discrepancy":
            if k % self.every and k < self.steps - 1:
                return torch.zeros_like(finite)
            value = residual
        elif self.rule == "holdout":
            assert self.holdout is not None
            value = square_norm(error.masked_fill(~self.holdout, 0)).cpu()
        else:
            value = self._moving_variance(x)
            if k < _IGNORED:
                return finite
        better = finite & (value < self._value)
        self._value = torch.where(better, value, self._value)
        return better

    def _moving_variance(self, x: Tensor) -> Tensor:
        """v after x."""
        if self._mean is None:
            self._mean = x.clone()
        d = x - self._mean
        self._mean += _RATE * d
        square = square_norm(d).cpu()
        self._variance = (1 - _RATE) * (self._variance + _RATE * square)
        return self._variance


class Iterates:
    """At most `most` of a run's iterates, evenly spaced whatever its length: when there
    are too many every other one goes.

    They are ``details["iterates"]``, shape (k, B, C, H, W), float16; nothing without
    any to keep.  An image that is done goes on while others of its batch do.
    """

    def __init__(self, most: int, details: dict[str, Any]):
        self.most, self.details = most, details
        self._seen, self._stride, self._n = 0, 1, 0
        self._kept: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """The next iterate, (B, C, H, W)."""
        if not self.most:
            return
        if self._kept is None:
            self._kept = torch.empty((self.most, *x.shape), dtype=torch.float16)
        if self._n == self.most and self._seen % self._stride == 0:
            half = self._kept[::2].clone()
            self._n, self._stride = len(half), 2 * self._stride
            self._kept[: self._n] = half
        if self._seen % self._stride == 0:
            self._kept[self._n] = x
            self._n += 1
        self._seen += 1
        self.details["iterates"] = self._kept[: self._n]
