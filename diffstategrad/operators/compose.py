r"""One operator after another: :math:`A(x) = A_2(A_1(x))`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffstategrad import _core
from diffstategrad._tensor import prepare
from diffstategrad.operators.base import (
    Operator,
    Shape,
    fixed,
    fused_residual_gradient,
    takes_arrays,
)

__all__ = ["Compose"]


class Compose(Operator):
    """x -> outer(inner(x)), also written `outer @ inner`; of operators of any kind.

    Parameters
    ----------
    outer, inner : Operator
    """

    def __init__(self, outer: Operator, inner: Operator):
        for name, part in (("outer", outer), ("inner", inner)):
            if not isinstance(part, Operator):
                raise TypeError(
                    f"Compose: {name} must be an Operator, got {type(part).__name__}"
                )
            if part.blind:
                raise TypeError(
                    f"Compose: {name} must be a known operator, "
                    f"{type(part).__name__} has unknowns"
                )
        self.outer, self.inner = outer, inner
        self.linear = outer.linear and inner.linear

    __setattr__ = fixed

    def out_shape(self, shape: Shape) -> Shape:
        return self.outer.out_shape(self.inner.out_shape(shape))

    def image_shape(self, shape: Shape) -> Shape:
        return self.inner.image_shape(self.outer.image_shape(shape))

    def _out_shape_like(self, shape: Shape, like: Tensor) -> Shape:
        middle = self.inner._out_shape_like(shape, like)
        return self.outer._out_shape_like(middle, like)

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def _adjoint(self, v: Tensor, image: Shape) -> Tensor:
        middle = self.outer._adjoint(v, self.inner._out_shape_like(image, v))
        return self.inner._adjoint(middle, image)

    @takes_arrays
    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        x, v = self._pair(x, v, "v")
        return self.inner.vjp(x, self.outer.vjp(self.inner(x), v))

    @takes_arrays
    def jvp(self, x: Tensor, w: Tensor) -> Tensor:
        x, w = self._point(x, w)
        return self.outer.jvp(self.inner(x), self.inner.jvp(x, w))

    @takes_arrays
    def residual_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self._pair(prepare(x, "x"), prepare(y, "y"), "y")
        handle = self.handle(tuple(x.shape[1:]), x.dtype, x.device)
        if isinstance(handle, _core.Op):
            return fused_residual_gradient(handle, x, y)
        return super().residual_gradient(x, y)

    def native(self, shape: Shape, dtype: torch.dtype) -> _core.Op | None:
        def make() -> _core.Op | None:
            inner = self.inner.native(shape, dtype)
            if inner is None:
                return None
            outer = self.outer.native(inner.out_shape, dtype)
            return None if outer is None else _core.compose(outer, inner)

        return self._keep((tuple(shape), dtype), make)

    def handle(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
        native = self.native(shape, dtype) if device.type == "cpu" else None
        return super().handle(shape, dtype, device) if native is None else native

    def spec(self) -> dict[str, Any]:
        return {
            "name": "compose",
            "outer": self.outer.spec(),
            "inner": self.inner.spec(),
        }

    def __repr__(self) -> str:
        return f"{self.outer!r} @ {self.inner!r}"
