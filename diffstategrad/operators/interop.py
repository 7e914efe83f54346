"""Operators of deepinv as ours, and ours as deepinv's.

deepinv (``pip install 'diffstategrad[deepinv]'``) calls a measurement operator with its
noise a *physics*.  Its images are usually in [0, 1], ours in [-1, 1]; `from_deepinv`
says what follows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffstategrad.operators.base import Operator, Shape
from diffstategrad.operators.callable import FromCallable, like_parameters, undisturbed

if TYPE_CHECKING:
    from types import ModuleType

    from deepinv.physics import Physics

__all__ = ["from_deepinv", "to_deepinv"]


def from_deepinv(
    physics: Physics,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    image_shape: Shape | None = None,
) -> Operator:
    """A deepinv physics as an operator: its `A`, without noise and sensor.

    A `LinearPhysics` keeps its `A_adjoint`, and gets norm, pseudo-inverse and data step
    from it.

    Parameters
    ----------
    physics : deepinv.physics.Physics, on the CPU
        Gives one tensor (B, C', H', W').  For images of another precision than its own
        it is copied, once, and the copy sees no later change of its parameters.
    value_range : (low, high)
        What `physics` takes.  With the default it gets our images, in [-1, 1], as they
        are.  With (0, 1) it gets (x + 1) / 2, so that a measurement that deepinv made
        is used as it is, with its sigma; but then the operator is affine and has
        nothing that linear ones have.  To keep that, leave the default and give `solve`
        the measurement 2 y - A(1) with 2 sigma.
    image_shape : (C, H, W), optional
        Of the image; default the shape that `A_adjoint` gives, `physics.img_size`, or
        that of the measurement.

    Raises
    ------
    ImportError
        Without deepinv.
    TypeError
        If `physics` is none.
    """
    deepinv = _deepinv("from_deepinv")
    if not isinstance(physics, deepinv.physics.Physics):
        raise TypeError(
            "from_deepinv: physics must be a deepinv.physics.Physics, "
            f"got {type(physics).__name__}"
        )
    low, high = value_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(
            f"from_deepinv: value_range must be (low, high), got {value_range}"
        )
    scale, offset = (high - low) / 2, (high + low) / 2
    linear = isinstance(physics, deepinv.physics.LinearPhysics)
    plain = (scale, offset) == (1, 0)
    # deepinv's own adjoint by autograd is single precision: ours does it
    has_adjoint = linear and not (
        type(physics).A_adjoint is deepinv.physics.LinearPhysics.A_adjoint
        and physics.A_adj is None
    )
    of = _by_dtype(physics)

    def measured(x: Tensor) -> Tensor:
        return of(x.dtype).A(x if plain else scale * x + offset)

    def adjoint(v: Tensor) -> Tensor:
        return of(v.dtype).A_adjoint(v)

    def shape_of_image(shape: Shape) -> Shape:
        if has_adjoint:
            zero = like_parameters(physics).new_zeros((1, *shape))
            with undisturbed(physics), torch.no_grad():
                return tuple(physics.A_adjoint(zero).shape[1:])
        return tuple(getattr(physics, "img_size", None) or shape)

    return FromCallable(
        measured,
        linear=linear and plain,
        adjoint=adjoint if has_adjoint and plain else None,
        image_shape=shape_of_image if image_shape is None else image_shape,
        name=f"deepinv.{type(physics).__name__}",
    )


def to_deepinv(
    operator: Operator, *, sigma: float | None = None, image_shape: Shape | None = None
) -> Physics:
    """An operator as a deepinv physics, for deepinv's own algorithms.

    A linear operator becomes a `LinearPhysics` with our `A_adjoint`, `A_dagger` (our
    `pinv`, without derivatives) and `prox_l2` (our data step: closed form where there
    is one); any other a `Physics` with our `A_vjp` and `A_jvp`.

    Parameters
    ----------
    operator : Operator
        Gets deepinv's images as they are, whatever their range.
    sigma : float >= 0, optional
        Standard deviation of the Gaussian noise that calling the physics adds; default
        no noise.
    image_shape : (C, H, W), optional
        Of the images, where it does not follow from the measurement's shape.

    Raises
    ------
    ImportError
        Without deepinv.
    TypeError
        If `operator` is none.
    ValueError
        If sigma is negative or not finite.
    """
    _deepinv("to_deepinv")
    from diffstategrad.operators import _deepinv_physics as made

    if not isinstance(operator, Operator):
        raise TypeError(
            f"to_deepinv: operator must be an Operator, got {type(operator).__name__}"
        )
    if sigma is not None and not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"to_deepinv: sigma must be >= 0, got {sigma}")
    kind = made.LinearOperatorPhysics if operator.linear else made.OperatorPhysics
    return kind(operator, sigma, None if image_shape is None else tuple(image_shape))


def _deepinv(caller: str) -> ModuleType:
    try:
        import deepinv
    except (
        ImportError,
        RuntimeError,
    ) as error:  # Runtime: torchvision of another torch
        raise ImportError(
            f"{caller} needs deepinv: pip install 'diffstategrad[deepinv]' ({error})"
        ) from error
    return deepinv


def _by_dtype(physics: Any) -> Callable[[torch.dtype], Any]:
    """The physics itself for its own precision, a copy for the other."""
    copies: dict[torch.dtype, Any] = {}

    def of(dtype: torch.dtype) -> Any:
        tensors = chain(physics.parameters(), physics.buffers())
        if all(t.dtype == dtype for t in tensors if t.is_floating_point()):
            return physics
        if dtype not in copies:
            try:
                other = copy.deepcopy(physics)
            except TypeError:  # deepcopy has no way with generators, deepinv's own has
                other = physics.clone()
            # .to(dtype) would drop imaginary parts
            copies[dtype] = other.double() if dtype == torch.float64 else other.float()
        return copies[dtype]

    return of
