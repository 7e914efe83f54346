"""The prior as samplers call it: some images at a time, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffstategrad._tensor import in_full
from diffstategrad.priors import LatentPrior, Prior

__all__ = ["Network"]


class Network:
    """The prior behind a run.

    Every image is treated as it would be alone when `batch` is 1: batched convolutions
    may round differently.

    Attributes
    ----------
    calls : int
        Network calls so far for each image.
    on_call : callable
        Called with that number at each.
    """

    def __init__(self, prior: Prior, batch: int):
        self.prior, self.batch = prior, batch
        self.calls = 0
        self.on_call: Callable[[int], object] = lambda calls: None

    def _count(self, calls: int = 1) -> None:
        self.calls += calls
        self.on_call(self.calls)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; sigma), without derivatives."""
        return self._map(lambda part: (self.prior.denoise(part, sigma),), x)[0]

    def predict(self, z: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor | None]:
        """The noise in z = sqrt(ab) x0 + sqrt(1 - ab) n and the code of its learned
        variance, without derivatives."""
        return self._pair(self.prior.predict, z, alpha_bar)

    def estimate(self, z: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor | None]:
        """E[x0 | z] and that code, without derivatives."""
        return self._pair(self.prior.estimate, z, alpha_bar)

    def eps(self, z: Tensor, t: float) -> Tensor:
        """The noise in z as the network predicts it at its time t, without
        derivatives."""
        return self._map(lambda part: (self.prior.eps(part, t),), z)[0]

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of a latent prior, without derivatives; no network call."""
        return self._each(
            lambda part: self.latent.encode(
                x[part], None if noise is None else noise[part]
            ),
            len(x),
        )

    def decode(self, z: Tensor) -> Tensor:
        """Images of a latent prior, without derivatives; no network call."""
        return self._each(lambda part: self.latent.decode(z[part]), len(z))

    @property
    def latent(self) -> LatentPrior:
        """The prior of a method that works on latents."""
        assert isinstance(self.prior, LatentPrior)  # `solve` has seen to it
        return self.prior

    @torch.no_grad()
    def _each(self, function: Callable[[slice], Tensor], n: int) -> Tensor:
        return torch.cat([self._guarded(function, part) for part in self._parts(n)])

    def through(
        self,
        function: Callable[[Tensor], tuple[Tensor, ...]],
        x: Tensor,
        cotangent: Callable[[Tensor, slice], Tensor],
        *,
        calls: int = 1,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Values and a gradient through the network.

        Parameters
        ----------
        function : x (b, C, H, W) -> values
            Calls the prior (`self.prior`, not this object) `calls` times.
        x : Tensor, shape (B, C, H, W)
        cotangent : (first value, which images) -> v
            What is pulled back through the first value's Jacobian.

        Returns
        -------
        values, J(x)^T v; all without a graph.
        """
        return self._through(lambda leaf, _: function(leaf), x, cotangent, calls)

    def gradient(
        self, loss: Callable[[Tensor, slice], tuple[Tensor, ...]], x: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Values and the gradient of the first of them, through the network.

        Parameters
        ----------
        loss : x (b, C, H, W), which images -> values
            The first is (b,), of every image its own; calls the prior once.
        x : Tensor, shape (B, C, H, W)

        Returns
        -------
        values, gradient; all without a graph.
        """
        return self._through(loss, x, lambda value, _: torch.ones_like(value), 1)

    def _through(
        self,
        function: Callable[[Tensor, slice], tuple[Tensor, ...]],
        x: Tensor,
        cotangent: Callable[[Tensor, slice], Tensor],
        calls: int,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        self._count(calls)
        values: list[tuple[Tensor, ...]] = []
        gradient = torch.empty_like(x)
        for part in self._parts(len(x)):
            with torch.enable_grad():
                leaf = x[part].detach().clone().requires_grad_()
                out = self._guarded(function, leaf, part)
            values.append(tuple(t.detach() for t in out))
            v = cotangent(values[-1][0], part)
            gradient[part] = self._pulled(out[0], leaf, v)
        return tuple(
            torch.cat(column) for column in zip(*values, strict=True)
        ), gradient

    def _pair(
        self,
        function: Callable[[Tensor, float], tuple[Tensor, Tensor | None]],
        z: Tensor,
        alpha_bar: float,
    ) -> tuple[Tensor, Tensor | None]:
        first, *code = self._map(
            lambda part: [t for t in function(part, alpha_bar) if t is not None], z
        )
        return first, code[0] if code else None

    def linearised(
        self, x: Tensor, sigma: float
    ) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
        """Some images at a time, v -> J^T v with J = dD/dx at (x, sigma)."""
        self._count()
        for part in self._parts(len(x)):
            with torch.enable_grad():
                leaf = x[part].detach().clone().requires_grad_()
                out = self._guarded(self.prior.denoise, leaf, sigma)

            def vjp(v: Tensor, out: Tensor = out, leaf: Tensor = leaf) -> Tensor:
                return self._pulled(out, leaf, v, keep=True)

            yield part, vjp

    def _pulled(
        self, out: Tensor, leaf: Tensor, v: Tensor, *, keep: bool = False
    ) -> Tensor:
        """J^T v of what was made of the leaf."""
        with in_full(leaf.device):
            return self._guarded(torch.autograd.grad, out, leaf, v, keep)[0]

    def _parts(self, n: int) -> Iterator[slice]:
        for i in range(0, n, self.batch):
            yield slice(i, min(i + self.batch, n))

    @torch.no_grad()
    def _map(
        self, function: Callable[[Tensor], tuple[Tensor, ...] | list[Tensor]], x: Tensor
    ) -> tuple[Tensor, ...]:
        self._count()
        outs: tuple[Tensor, ...] = ()
        for part in self._parts(len(x)):
            given = x[part].clone()  # a prior may work in place
            for i, value in enumerate(self._guarded(function, given)):
                if value.shape != given.shape:
                    raise ValueError(
                        f"the prior must keep the shape {tuple(given.shape)}, "
                        f"got {tuple(value.shape)}"
                    )
                if len(outs) <= i:
                    outs = (*outs, torch.empty_like(x))
                outs[i][part] = value
        return outs

    def _guarded(self, function: Callable, *args: Any):  # type: ignore[no-untyped-def]
        """The call; running out of memory says what to do."""
        try:
            return function(*args)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            known = isinstance(error, torch.OutOfMemoryError | MemoryError)
            if known or "memory" in str(error).lower():
                smaller = self.batch // 2
                advice = (
                    f"use batch={smaller}"
                    if smaller
                    else "use smaller images, or fewer layers at a time"
                )
                raise MemoryError(
                    f"the network ran out of memory with batch={self.batch}: {advice}"
                ) from error
            raise
