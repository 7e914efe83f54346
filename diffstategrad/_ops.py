r"""Operators of the core as ``torch.library`` operators.

The five functions of an operator are each other's derivatives.  With the Jacobian
:math:`J` of :math:`A` at x,

====================  ==========================  =================================
function              value                       its derivatives
====================  ==========================  =================================
forward(x)            :math:`A(x)`                adjoint(v), or vjp(x, v)
adjoint(v)            :math:`A^\top v`            forward
vjp(x, v)             :math:`J^\top v`            curvature(x, v, w), jvp(x, w)
jvp(x, w)             :math:`J w`                 curvature(x, v, w), vjp(x, v)
curvature(x, v, w)    :math:`\nabla_x w^\top J^\top v`  none
prox(v, y)            the exact data step         prox, forward
====================  ==========================  =================================

so autograd, double backward, `torch.func`, `torch.vmap` and `torch.compile` work on
all of them.  In forward mode the derivative of vjp in x is the curvature too, which is
symmetric; that of jvp in x does not exist, and raises.  An operator is handed over by
its key, a string: torch's schemas have no type for it.  The functions do not care which
backend computes.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from diffstategrad.operators.base import Operator

__all__ = [
    "add",
    "adjoint",
    "curvature",
    "differentiable",
    "forward",
    "jvp",
    "keep_tensors",
    "key_of",
    "no_tangent",
    "prox",
    "vjp",
]

_operators: weakref.WeakValueDictionary[str, Operator] = weakref.WeakValueDictionary()
_count = itertools.count()


def key_of(operator: Operator) -> str:
    """A new key, never used again; the operator stays its owner's."""
    key = f"{type(operator).__name__}-{next(_count)}"
    _operators[key] = operator
    return key


def _operator(key: str) -> Operator:
    operator = _operators.get(key)
    if operator is None:
        raise RuntimeError(f"the operator {key} exists no more: keep it while in use")
    return operator


def _handle(key: str, x: Tensor, shape: tuple[int, ...]) -> Any:
    return _operator(key).handle(shape, x.dtype, x.device)


def _image(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[1:])


def _out(x: Tensor, key: str) -> Tensor:
    """Room for the measurement of x."""
    return x.new_empty((len(x), *_operator(key).out_shape(_image(x))))


def _dense(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As the backends take them; autograd has been seen to outside."""
    return tuple(t.detach().resolve_conj().resolve_neg().contiguous() for t in tensors)


@torch.library.custom_op("diffstategrad::forward", mutates_args=())
def _forward(x: Tensor, operator: str) -> Tensor:
    (x,) = _dense(x)
    y = _out(x, operator)
    _handle(operator, x, _image(x)).forward(y, x)
    return y


@torch.library.custom_op("diffstategrad::adjoint", mutates_args=())
def _adjoint(v: Tensor, operator: str, shape: list[int]) -> Tensor:
    (v,) = _dense(v)
    g = v.new_empty((len(v), *shape))
    _handle(operator, v, tuple(shape)).vjp(g, None, v)
    return g


@torch.library.custom_op("diffstategrad::vjp", mutates_args=())
def _vjp(x: Tensor, v: Tensor, operator: str) -> Tensor:
    x, v = _dense(x, v)
    g = torch.empty_like(x)
    _handle(operator, x, _image(x)).vjp(g, x, v)
    return g


@torch.library.custom_op("diffstategrad::jvp", mutates_args=())
def _jvp(x: Tensor, w: Tensor, operator: str) -> Tensor:
    x, w = _dense(x, w)
    t = _out(x, operator)
    _handle(operator, x, _image(x)).jvp(t, x, w)
    return t


@torch.library.custom_op("diffstategrad::curvature", mutates_args=())
def _curvature(x: Tensor, v: Tensor, w: Tensor, operator: str) -> Tensor:
    x, v, w = _dense(x, v, w)
    h = torch.empty_like(x)
    _handle(operator, x, _image(x)).curvature(h, x, v, w)
    return h


@torch.library.custom_op("diffstategrad::prox", mutates_args=())
def _prox(
    v: Tensor,
    y: Tensor,
    operator: str,
    rho: float,
    tolerance: float,
    iterations: int,
) -> Tensor:
    v, y = _dense(v, y)
    return _operator(operator).data_step(v, y, rho, tolerance, iterations)


# ---- shapes ----


@_forward.register_fake
def _(x: Tensor, operator: str) -> Tensor:
    return _out(x, operator)


@_adjoint.register_fake
def _(v: Tensor, operator: str, shape: list[int]) -> Tensor:
    return v.new_empty((v.shape[0], *shape))


@_vjp.register_fake
def _(x: Tensor, v: Tensor, operator: str) -> Tensor:
    return x.new_empty(x.shape)


@_jvp.register_fake
def _(x: Tensor, w: Tensor, operator: str) -> Tensor:
    return _out(x, operator)


@_curvature.register_fake
def _(x: Tensor, v: Tensor, w: Tensor, operator: str) -> Tensor:
    return x.new_empty(x.shape)


@_prox.register_fake
def _(
    v: Tensor,
    y: Tensor,
    operator: str,
    rho: float,
    tolerance: float,
    iterations: int,
) -> Tensor:
    return v.new_empty(v.shape)


# ---- derivatives ----


def _keep(ctx: Any, key: str) -> None:
    """The graph keeps the operator alive."""
    ctx.key, ctx.operator = key, _operator(key)


def _forward_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, key = inputs
    _keep(ctx, key)
    ctx.shape = _image(x)
    if not ctx.operator.linear:
        keep_tensors(ctx, x)


def _forward_backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
    if ctx.operator.linear:
        return adjoint(v, ctx.key, list(ctx.shape)), None
    (x,) = ctx.saved_tensors
    return vjp(x, v, ctx.key), None


def _forward_tangent(ctx: Any, w: Tensor, *_: None) -> Tensor:
    if ctx.operator.linear:
        return forward(w, ctx.key)
    (x,) = ctx.saved_tensors
    return jvp(x, w, ctx.key)


def _adjoint_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _keep(ctx, inputs[1])
    ctx.shape = inputs[2]


def _adjoint_backward(ctx: Any, w: Tensor) -> tuple[Tensor, None, None]:
    return forward(w, ctx.key), None, None


def _adjoint_tangent(ctx: Any, v: Tensor, *_: None) -> Tensor:
    return adjoint(v, ctx.key, ctx.shape)


def _pair_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, other, key = inputs
    _keep(ctx, key)
    keep_tensors(ctx, x, other)


def _vjp_backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, v = ctx.saved_tensors
    need_x, need_v, _ = ctx.needs_input_grad
    return (
        curvature(x, v, w, ctx.key) if need_x else None,
        jvp(x, w, ctx.key) if need_v else None,
        None,
    )


def _vjp_tangent(ctx: Any, w: Tensor | None, u: Tensor | None, _: None) -> Tensor:
    x, v = ctx.saved_tensors
    return add(
        None if w is None else curvature(x, v, w, ctx.key),
        None if u is None else vjp(x, u, ctx.key),
    )


def _jvp_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, w = ctx.saved_tensors
    need_x, need_w, _ = ctx.needs_input_grad
    return (
        curvature(x, v, w, ctx.key) if need_x else None,
        vjp(x, v, ctx.key) if need_w else None,
        None,
    )


def _jvp_tangent(ctx: Any, u: Tensor | None, w: Tensor | None, _: None) -> Tensor:
    if u is not None or w is None:
        return no_tangent(ctx)
    x, _direction = ctx.saved_tensors
    return jvp(x, w, ctx.key)


def _prox_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    v, y, key, *options = inputs
    _keep(ctx, key)
    ctx.v_shape, ctx.y_shape, ctx.options = v.shape, y.shape, options


def _prox_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    # the matrix is symmetric: both derivatives are made of one data step
    to_v = prox(g, g.new_zeros(ctx.y_shape), ctx.key, *ctx.options)
    need_v, need_y = ctx.needs_input_grad[:2]
    to_y = forward(to_v, ctx.key) / ctx.options[0] if need_y else None
    return to_v if need_v else None, to_y, None, None, None, None


def _prox_tangent(ctx: Any, v: Tensor | None, y: Tensor | None, *_: None) -> Tensor:
    if v is None:
        assert y is not None
        v = y.new_zeros(ctx.v_shape)
    if y is None:
        y = v.new_zeros(ctx.y_shape)
    return prox(v, y, ctx.key, *ctx.options)


def _batched(op: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    """The rule of vmap: one more batch axis, folded into the batch."""

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        n = info.batch_size
        folded: list[Any] = []
        for arg, dim in zip(args, in_dims, strict=True):
            if isinstance(arg, Tensor):
                whole = (
                    arg.expand(n, *arg.shape) if dim is None else arg.movedim(dim, 0)
                )
                arg = whole.flatten(0, 1)
            folded.append(arg)
        out = op(*folded)
        return out.unflatten(0, (n, len(out) // max(n, 1))), 0

    return rule


def _no_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Nothing is kept."""


def _no_backward(ctx: Any, v: Tensor) -> tuple[None, ...]:
    raise NotImplementedError("this derivative cannot be differentiated once more")


def no_tangent(ctx: Any, *_: Any) -> Tensor:
    raise NotImplementedError("this derivative has no forward mode")


def keep_tensors(ctx: Any, *tensors: Tensor) -> None:
    """For both modes."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def add(one: Tensor | None, other: Tensor | None) -> Tensor:
    """The sum of tangents, of which one may be missing."""
    if one is None or other is None:
        rest = other if one is None else one
        assert rest is not None
        return rest
    return one + other


def differentiable(
    op: Any,
    backward: Callable = _no_backward,
    context: Callable = _no_context,
    tangent: Callable = no_tangent,
) -> Callable[..., Tensor]:
    """Registers derivatives and the rule of vmap; the function to call instead of the
    op.  `backward` and `tangent` are those of an `autograd.Function`; a tangent that
    is zero comes as None.

    What `register_autograd` makes does not work under the transforms of torch.func
    (https://github.com/pytorch/pytorch/issues/170834, torch 2.13), and has no forward
    mode: there, an `autograd.Function` stands in.
    """
    op.register_vmap(_batched(op))
    op.register_autograd(backward, setup_context=context)

    def setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        context(ctx, inputs, output)

    def pulled(ctx: Any, v: Tensor | None) -> Any:
        return (None,) * len(ctx.needs_input_grad) if v is None else backward(ctx, v)

    members = {
        "forward": staticmethod(lambda *args: op(*args)),
        "setup_context": staticmethod(setup),
        "backward": staticmethod(pulled),
        "jvp": staticmethod(lambda ctx, *tangents: tangent(ctx, *tangents)),
    }
    function: Any = type(op._name, (torch.autograd.Function,), members)
    # not the op: what is mapped may be differentiated outside
    function.vmap = staticmethod(_batched(function.apply))

    plain = op._init_fn

    def call(*args: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return op(*args)
        if _transforms_active() or forward_ad._current_level >= 0:
            return function.apply(*args)
        if _nobody_watches(args):
            return plain(*args)  # the dispatcher costs 20 microseconds
        return op(*args)

    return call


_transforms_active = torch._C._are_functorch_transforms_active


def _nobody_watches(args: tuple) -> bool:
    """True where the dispatcher would do nothing but call: plain tensors with values,
    no gradient wanted, no mode that looks on."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and all(
            type(arg) is Tensor
            and not arg.is_meta
            and not (arg.requires_grad and torch.is_grad_enabled())
            for arg in args
            if isinstance(arg, Tensor)
        )
    )


forward = differentiable(
    _forward, _forward_backward, _forward_context, _forward_tangent
)
adjoint = differentiable(
    _adjoint, _adjoint_backward, _adjoint_context, _adjoint_tangent
)
vjp = differentiable(_vjp, _vjp_backward, _pair_context, _vjp_tangent)
jvp = differentiable(_jvp, _jvp_backward, _pair_context, _jvp_tangent)
curvature = differentiable(_curvature)
prox = differentiable(_prox, _prox_backward, _prox_context, _prox_tangent)
