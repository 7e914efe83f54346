"""Anybody's function as an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffstategrad._tensor import as_tensor, check_images, in_full
from diffstategrad.operators.base import Operator, Shape, takes_arrays

__all__ = ["FromCallable", "from_callable", "undisturbed"]


class FromCallable(Operator):
    """What `from_callable` makes."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        linear: bool = False,
        adjoint: Callable[[Tensor], Tensor] | None = None,
        image_shape: Shape | Callable[[Shape], Shape] | None = None,
        out_shape: Shape | Callable[[Shape], Shape] | None = None,
        name: str | None = None,
    ):
        if not callable(function):
            raise TypeError(
                f"from_callable: function must be callable, got {function!r}"
            )
        if adjoint is not None and not linear:
            raise ValueError("from_callable: an adjoint belongs to linear=True")
        self.function, self.linear = function, bool(linear)
        self._given_adjoint = adjoint
        self._given_image, self._given_out = image_shape, out_shape
        self.name = name or getattr(function, "__name__", type(function).__name__)

    @property
    def dtype(self) -> torch.dtype | None:  # type: ignore[override]
        """That of a module's parameters."""
        function = self.function
        parameters = function.parameters() if isinstance(function, nn.Module) else ()
        return next((p.dtype for p in parameters if p.is_floating_point()), None)

    def out_shape(self, shape: Shape) -> Shape:
        return self._out_shape_like(shape, like_parameters(self.function))

    def _out_shape_like(self, shape: Shape, like: Tensor) -> Shape:
        shape = tuple(shape)
        if self._given_out is not None:
            return _shape(self._given_out, shape)
        return self._keep(("out", shape), lambda: self._dry_run(shape, like))

    def _dry_run(self, shape: Shape, like: Tensor) -> Shape:
        """The shape that one image of zeros gives."""
        x = like.new_zeros((1, *shape))
        try:
            with undisturbed(self.function), torch.no_grad(), in_full(x.device):
                y = self.function(x)
        except Exception as error:
            raise ValueError(
                f"{self.name} does not take an image of shape {shape}, {x.dtype}: "
                f"{error}"
            ) from error
        return tuple(self._checked(y, x).shape[1:])

    def _checked(self, y: Any, x: Tensor) -> Tensor:
        """What the function gave for x: TypeError or ValueError unless it is a batch
        of measurements."""
        if not isinstance(y, Tensor):
            raise TypeError(f"{self.name} must give a tensor, got {type(y).__name__}")
        if y.ndim != 4 or len(y) != len(x):
            raise ValueError(
                f"{self.name} must give a tensor ({len(x)}, C, H, W) for "
                f"{tuple(x.shape)}, got {tuple(y.shape)}"
            )
        if y.dtype != x.dtype:
            raise TypeError(f"{self.name} must give {x.dtype} for it, got {y.dtype}")
        if y.device != x.device:
            raise ValueError(
                f"{self.name} must give a tensor on {x.device}, got {y.device}"
            )
        return y

    def image_shape(self, shape: Shape) -> Shape:
        if self._given_image is None:
            return shape
        return _shape(self._given_image, tuple(shape))

    @takes_arrays
    def __call__(self, x: Tensor) -> Tensor:
        x = as_tensor(x, "x")
        check_images(x, "x")
        with in_full(x.device):
            y = self._checked(self.function(x), x)
        shape, got = tuple(x.shape[1:]), tuple(y.shape[1:])
        if self._given_out is not None:
            claimed = _shape(self._given_out, shape)
            if got != claimed:
                raise ValueError(
                    f"{self.name} must give measurements of the out_shape {claimed}, "
                    f"got {got}"
                )
        elif not torch.compiler.is_compiling():
            self._keep(("out", shape), lambda: got)
        return y

    def _adjoint(self, v: Tensor, image: Shape) -> Tensor:
        if self._given_adjoint is not None:
            with in_full(v.device):
                return self._given_adjoint(v)
        return super()._adjoint(v, image)

    def spec(self) -> dict[str, Any]:
        """The name alone: a function cannot be written down."""
        return {"name": "from_callable", "function": self.name, "linear": self.linear}


def _module(function: Any) -> nn.Module | None:
    """The module that is called: itself, or the one whose method it is."""
    owner = getattr(function, "__self__", function)
    return owner if isinstance(owner, nn.Module) else None


def like_parameters(function: Any) -> Tensor:
    """An empty tensor of the dtype and device of a module's first real parameter or
    buffer; for other functions in float32 on the CPU."""
    module = _module(function)
    if module is not None:
        for t in (*module.parameters(), *module.buffers()):
            if t.is_floating_point():
                return t.detach().new_empty(0)
    return torch.empty(0)


@contextmanager
def undisturbed(function: Any) -> Iterator[None]:
    """A module in evaluation mode; its modes and buffers are afterwards as before."""
    module = _module(function)
    if module is None:
        yield
        return
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(b, b.detach().clone()) for b in module.buffers()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for b, before in buffers:
            if not torch.equal(b, before):  # writing would spoil graphs that keep it
                with torch.no_grad():
                    b.copy_(before)


def _shape(given: Shape | Callable[[Shape], Shape], shape: Shape) -> Shape:
    return tuple(given(shape) if callable(given) else given)


def from_callable(
    function: Callable[[Tensor], Tensor],
    *,
    linear: bool = False,
    adjoint: Callable[[Tensor], Tensor] | None = None,
    image_shape: Shape | Callable[[Shape], Shape] | None = None,
    out_shape: Shape | Callable[[Shape], Shape] | None = None,
    name: str | None = None,
) -> Operator:
    """The operator of a differentiable torch function or `nn.Module`, which must not
    write into its input.

    Derivatives come from autograd.  `diffstategrad.check` finds out whether the
    function does what is said of it.

    Parameters
    ----------
    function : (B, C, H, W) -> (B, C', H', W')
        Treats the images of a batch apart.
    linear : bool
        Gives it adjoint, norm, pseudo-inverse and data step.
    adjoint : (B, C', H', W') -> (B, C, H, W), optional
        Default: by autograd, which costs a forward pass more.
    image_shape : (C, H, W), or a function of the measurement's shape, optional
        Of the image; needed by `solve` when the measurement has another shape.
    out_shape : (C, H, W), or a function of the image's shape, optional
        Default: that of what it has given, else found by measuring an image of zeros,
        a module in evaluation mode.
    name : str, optional
        In messages and results; default the function's.

    Raises
    ------
    TypeError
        For what cannot be called; later, when it gives no tensor or another dtype than
        that of the images.
    ValueError
        For an adjoint of what is not linear; later, when it gives no batch (B, C', H',
        W') of as many entries on the images' device, or another shape than `out_shape`.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> pool = from_callable(
    ...     lambda x: F.avg_pool2d(x, 2),
    ...     linear=True,
    ...     image_shape=lambda s: (s[0], 2 * s[1], 2 * s[2]),
    ... )
    """
    return FromCallable(
        function,
        linear=linear,
        adjoint=adjoint,
        image_shape=image_shape,
        out_shape=out_shape,
        name=name,
    )
