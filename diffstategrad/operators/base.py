r"""What an operator is.

An operator maps an image batch :math:`x` of shape (B, C, H, W), nominally in [-1, 1],
to a measurement :math:`A(x)` of shape (B, *out_shape).  To add one, write a subclass in
a file of its own and name it in the list of ``operators/__init__.py``; the tests take
it from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffstategrad import _core
from diffstategrad._tensor import (
    as_tensor,
    check_finite,
    check_images,
    dtype_name,
    prepare,
)
from diffstategrad.noise import MEASUREMENT, CounterNoise

__all__ = ["NativeOperator", "Operator", "Shape"]

#: (C, H, W).
Shape = tuple[int, ...]


class Operator(ABC):
    """A measurement operator on batches of images."""

    #: True when A(a x + b z) = a A(x) + b A(z).
    linear: bool = False

    @abstractmethod
    def out_shape(self, shape: Shape) -> Shape:
        """Shape (C, H, W) of the measurement of an image of `shape`; ValueError when
        such an image does not fit."""

    def image_shape(self, shape: Shape) -> Shape:
        """Shape (C, H, W) of the image whose measurement has `shape`."""
        return shape

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A(x), differentiable.  x is (B, C, H, W), float32 or float64; a NumPy array
        gives a NumPy array."""

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Vector-Jacobian product J(x)^T v, of the shape of x; here by autograd."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self(x), x, v)[0]

    def residual_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(J(x)^T (A(x) - y), ||A(x) - y||^2 of every image in float64) in one call;
        here by autograd."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            residual = self(x) - y
            gradient = torch.autograd.grad(residual, x, residual.detach())[0]
        return gradient, residual.detach().double().square().flatten(1).sum(1)

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """All that is needed to build the operator again, as JSON values and arrays."""

    def native(self, shape: Shape, dtype: torch.dtype) -> _core.Op | None:
        """The core's handle for images of `shape`, or None where there is none."""
        return None

    def measure(self, x: Tensor, sigma: float, *, seed: int = 0) -> Tensor:
        """A noisy measurement y = A(x) + sigma n of clean images.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W), in [-1, 1]
        sigma : float >= 0
            Standard deviation of the noise, in units of A(x); every entry gets noise,
            masked ones too.
        seed : int
            Image i of a batch gets the noise it would get alone at the same index.

        Raises
        ------
        ValueError
            If sigma is negative or not finite, or x does not fit the operator.
        """
        if not (np.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"measure: sigma must be >= 0, got {sigma}")
        check_finite(as_tensor(x, "x"), "x")
        with torch.no_grad():
            if isinstance(x, np.ndarray):
                return self.measure(as_tensor(x, "x"), sigma, seed=seed).numpy()
            y = self(x)
            source = CounterNoise(seed, range(len(y)), [MEASUREMENT] * len(y))
            return y + sigma * source.normal(y)

    def __repr__(self) -> str:
        options = ", ".join(
            f"{k}={v!r}" if not isinstance(v, np.ndarray) else f"{k}={v.shape}"
            for k, v in self.spec().items()
            if k != "name"
        )
        return f"{type(self).__name__}({options})"


class NativeOperator(Operator):
    """A linear operator of the C core.  Subclasses say how to create its handle."""

    linear = True

    def __init__(self) -> None:
        self._handles: dict[tuple[Shape, str], _core.Op] = {}

    @abstractmethod
    def _create(self, dtype: str, shape: Shape) -> _core.Op:
        """The handle for images of `shape`; sizes have been checked by out_shape."""

    def native(self, shape: Shape, dtype: torch.dtype) -> _core.Op:
        key = (tuple(shape), dtype_name(dtype))
        if key not in self._handles:
            self.out_shape(shape)
            self._handles[key] = self._create(key[1], shape)
        return self._handles[key]

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(x, np.ndarray):
            return self(prepare(x, "x")).numpy()
        return _Apply.apply(as_tensor(x, "x"), self)

    def adjoint(self, v: Tensor, shape: Shape | None = None) -> Tensor:
        """A^T v, differentiable.

        Parameters
        ----------
        v : Tensor, shape (B, *out_shape)
        shape : (C, H, W), optional
            Of the image; default `image_shape` of v's.
        """
        if isinstance(v, np.ndarray):
            return self.adjoint(prepare(v, "v"), shape).numpy()
        check_images(as_tensor(v, "v"), "v")
        image = self.image_shape(tuple(v.shape[1:])) if shape is None else shape
        return _Adjoint.apply(v, self, tuple(image))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.adjoint(v, tuple(x.shape[1:]))

    def residual_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = prepare(x, "x"), prepare(y, "y")
        gradient = torch.empty_like(x)
        sqnorm = torch.empty(len(x), dtype=torch.float64)
        handle = self.native(tuple(x.shape[1:]), x.dtype)
        handle.residual_gradient(gradient, sqnorm, x, y)
        return gradient, sqnorm

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}  # handles belong to one process


class _Apply(torch.autograd.Function):
    """A(x); its derivative is the adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: NativeOperator) -> Tensor:
        ctx.operator, ctx.shape = operator, tuple(x.shape[1:])
        x = prepare(x, "x")
        handle = operator.native(ctx.shape, x.dtype)
        y = x.new_empty((len(x), *handle.out_shape))
        handle.forward(y, x)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return _Adjoint.apply(v, ctx.operator, ctx.shape), None


class _Adjoint(torch.autograd.Function):
    """A^T v; its derivative is the operator."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, operator: NativeOperator, shape: Shape) -> Tensor:
        ctx.operator = operator
        v = prepare(v, "v")
        handle = operator.native(shape, v.dtype)
        g = v.new_empty((len(v), *shape))
        handle.vjp(g, None, v)
        return g

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor, None, None]:
        return _Apply.apply(x, ctx.operator), None, None
