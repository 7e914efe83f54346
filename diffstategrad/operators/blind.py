r"""Operators with an unknown of their own: a blur kernel, a displacement field.

.. math:: y_{ij} = \sum_{ab} k_{ab}\, \bar x_{i+a-r, j+b-s}, \qquad
          y_{ij} = x(i + d^1_{ij},\; j + d^0_{ij}).

`blind_blur` and `warp` are differentiable in the image and in the unknown; for a given
kernel or displacement they are the linear operators `Blur` and `Warp`.  Turbulence is a
warp, then a blur.

References
----------
Li et al., "DMPlug: a plug-in method for solving inverse problems with diffusion
models", NeurIPS 2024 (blind deblurring, turbulence).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad._ops import add, differentiable, keep_tensors, no_tangent
from diffstategrad._options import as_pair, is_int, legacy_rng
from diffstategrad._tensor import as_array, check_alike, check_images, dtype_name
from diffstategrad.noise import NoiseSource
from diffstategrad.operators.base import NativeOperator, Operator, Shape
from diffstategrad.operators.blur import Blur, Geometry, Placed, check_reach, geometry
from diffstategrad.operators.compose import Compose

__all__ = [
    "BlindBlur",
    "BlindOperator",
    "BlindTurbulence",
    "Turbulence",
    "Warp",
    "blind_blur",
    "warp",
]


def blind_blur(
    x: Tensor,
    kernel: Tensor,
    *,
    boundary: Literal["reflect", "circular", "zero", "replicate"] = "reflect",
    even: Literal["same", "grow", "torch"] = "same",
) -> Tensor:
    """Correlation of x with a kernel, differentiable in both, twice.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W), float32 or float64
    kernel : Tensor, shape (h, w), shared, or (B, h, w), of the same dtype and device
    boundary, even
        As in `Blur`.  DMPlug: "zero", "torch"; DMILO: "reflect", "grow".

    Raises
    ------
    TypeError
        For other dtypes, or two different ones.
    ValueError
        For other shapes, two devices or an unknown option.
    """
    _must_be_tensors(x=x, kernel=kernel)
    check_images(x, "x")
    check_alike(x=x, kernel=kernel)
    if kernel.ndim == 2:
        kernel = kernel.expand(len(x), *kernel.shape)
    if kernel.ndim != 3 or len(kernel) != len(x) or 0 in kernel.shape[1:]:
        raise ValueError(
            f"kernel must be (h, w) or ({len(x)}, h, w), got {tuple(kernel.shape)}"
        )
    size = (kernel.shape[1], kernel.shape[2])
    placed = geometry(size, boundary, even)
    check_reach("blind_blur", size, placed, (x.shape[2], x.shape[3]))
    return _blur(x, kernel, *_flat(placed))


def warp(x: Tensor, displacement: Tensor) -> Tensor:
    """x sampled bilinearly at displaced places, differentiable in both.

    Outside the image lies 0.  The second derivative in the displacement is missing.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W), float32 or float64
    displacement : Tensor, shape (2, H, W), shared, or (B, 2, H, W), in pixels
        To the right, then down; of the dtype and device of x.

    Raises
    ------
    TypeError
        For other dtypes, or two different ones.
    ValueError
        For other shapes or two devices.
    """
    _must_be_tensors(x=x, displacement=displacement)
    check_images(x, "x")
    check_alike(x=x, displacement=displacement)
    expected = (len(x), 2, *x.shape[2:])
    if displacement.ndim == 3:
        displacement = displacement.expand(len(x), *displacement.shape)
    if displacement.shape != expected:
        raise ValueError(
            f"displacement must be {expected[1:]} or {expected}, got "
            f"{tuple(displacement.shape)}"
        )
    return _warp(x, displacement)


def _must_be_tensors(**given: Any) -> None:
    """TypeError for arrays: what is differentiated is a tensor."""
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


class Warp(NativeOperator):
    """A known displacement: linear in the image.

    Parameters
    ----------
    displacement : array or Tensor, shape (2, H, W), in pixels
        To the right, then down.  Of another device, it is copied to the CPU.
    """

    linear = True

    def __init__(self, displacement: np.ndarray | Tensor):
        d = as_array(displacement, "Warp: displacement")
        if d.ndim != 3 or len(d) != 2 or d.size == 0 or d.dtype.kind not in "fiu":
            raise ValueError(
                f"Warp: displacement must be a real array (2, H, W), got {d.dtype} of "
                f"shape {d.shape}"
            )
        if not np.isfinite(d).all():
            raise ValueError("Warp: displacement has NaN or infinite entries")
        self.displacement = np.array(d, dtype=np.float64, order="C")
        self.displacement.flags.writeable = False
        self._shape = d.shape  # torch.compile need not look at the array

    def out_shape(self, shape: Shape) -> Shape:
        if tuple(shape[1:]) != self._shape[1:]:
            raise ValueError(
                f"Warp: an image of shape {tuple(shape)} does not fit a displacement "
                f"of shape {self._shape}"
            )
        return shape

    def _create(self, module: ModuleType, dtype: str, shape: Shape) -> Any:
        return module.warp(dtype, shape, self.displacement.astype(dtype))

    def spec(self) -> dict[str, Any]:
        return {"name": "warp", "displacement": self.displacement}


class Turbulence(Compose):
    """Atmospheric turbulence of DMPlug: a warp, then a blur with zeros outside.

    Parameters
    ----------
    displacement : array or Tensor, shape (2, H, W), in pixels
    kernel : array or Tensor, shape (h, w)
        The published one is `GaussianBlur(64, 3.0).kernel`.
    """

    def __init__(self, displacement: np.ndarray | Tensor, kernel: np.ndarray | Tensor):
        super().__init__(
            Blur(kernel, boundary="zero", even="torch"), Warp(displacement)
        )

    @classmethod
    def random(
        cls,
        size: int | tuple[int, int],
        kernel: np.ndarray | Tensor,
        *,
        patches: int = 500,
        patch: int = 64,
        seed: int | np.random.RandomState = 0,
    ) -> Turbulence:
        """A displacement as DMPlug draws it.

        `patches` patches of smooth noise (7 x 7 Gaussian of standard deviation 1),
        each times U(0.1, 0.4), are added at random places; the sum is clipped to 2.5
        pixels.

        Parameters
        ----------
        size : int or (H, W)
        kernel : array or Tensor, shape (h, w)
        patches, patch : int >= 1
            How many and their side; a side above the image's counts as the image's.
        seed : int or numpy.random.RandomState
        """
        height, width = as_pair(size, "Turbulence: size", 1)
        if not (is_int(patches, 1) and is_int(patch, 1)):
            raise ValueError(
                f"Turbulence: patches and patch must be ints >= 1, got {patches!r}, "
                f"{patch!r}"
            )
        rng = legacy_rng(seed)
        ph, pw = min(patch, height), min(patch, width)
        weights = np.exp(-0.5 * np.arange(-3, 4) ** 2)
        weights /= weights.sum()
        field = np.zeros((2, height, width))
        for _ in range(patches):
            top, left = rng.randint(height - ph + 1), rng.randint(width - pw + 1)
            noise = rng.standard_normal((2, ph, pw))
            for axis in (1, 2):
                noise = np.apply_along_axis(_smooth, axis, noise, weights)
            strength = rng.uniform(0.1, 0.4)
            field[:, top : top + ph, left : left + pw] += strength * noise
        return cls(field.clip(-2.5, 2.5), kernel)

    def spec(self) -> dict[str, Any]:
        return {
            "name": "turbulence",
            "displacement": self.inner.displacement,  # type: ignore[attr-defined]
            "kernel": self.outer.kernel,  # type: ignore[attr-defined]
        }

    __repr__ = Operator.__repr__


class BlindOperator(Operator):
    """An operator with unknowns that a method finds beside the image (`dmplug`)."""

    blind = True

    @abstractmethod
    def start(self, like: Tensor, noise: NoiseSource) -> dict[str, Tensor]:
        """First values of the unknowns for a batch of images, in draw order."""

    @abstractmethod
    def apply(self, x: Tensor, unknowns: dict[str, Tensor]) -> Tensor:
        """A(x) with these unknowns, differentiable in both."""

    @abstractmethod
    def describe(self, unknowns: dict[str, Tensor]) -> dict[str, Any]:
        """The unknowns as arrays to look at."""

    def __call__(self, x: Tensor) -> Tensor:
        raise TypeError(
            f"{type(self).__name__} has unknowns: a method for blind problems finds "
            "them (dmplug), and `apply` takes them"
        )


class BlindBlur(Placed, BlindOperator):
    """A blur whose kernel is to be found: softmax of (B, side^2) numbers.

    Parameters
    ----------
    kernel_size : int >= 1, in pixels
    boundary, even
        As in `Blur`; the defaults are DMPlug's.
    """

    def __init__(
        self,
        kernel_size: int = 64,
        *,
        boundary: Literal["reflect", "circular", "zero", "replicate"] = "zero",
        even: Literal["same", "grow", "torch"] = "torch",
    ):
        if not is_int(kernel_size, 1):
            raise ValueError(
                f"{type(self).__name__}: kernel_size must be an int >= 1, got "
                f"{kernel_size!r}"
            )
        self.kernel_size = int(kernel_size)
        self.boundary, self.even = boundary, even
        self._size = (self.kernel_size, self.kernel_size)
        self.geometry = geometry(self._size, boundary, even)

    def start(self, like: Tensor, noise: NoiseSource) -> dict[str, Tensor]:
        return {"kernel": noise.normal(like.new_empty(len(like), self.kernel_size**2))}

    def apply(self, x: Tensor, unknowns: dict[str, Tensor]) -> Tensor:
        kernel = self._kernel(unknowns)
        return blind_blur(x, kernel, boundary=self.boundary, even=self.even)

    def _kernel(self, unknowns: dict[str, Tensor]) -> Tensor:
        size = (-1, self.kernel_size, self.kernel_size)
        return unknowns["kernel"].softmax(1).reshape(size)

    def describe(self, unknowns: dict[str, Tensor]) -> dict[str, Any]:
        return {"kernel": self._kernel(unknowns).detach().cpu().numpy()}

    def spec(self) -> dict[str, Any]:
        return {
            "name": "blind_blur",
            "kernel_size": self.kernel_size,
            "boundary": self.boundary,
            "even": self.even,
        }


class BlindTurbulence(BlindBlur):
    """A warp and a blur, displacement (B, 2, H, W) and kernel both to be found."""

    def start(self, like: Tensor, noise: NoiseSource) -> dict[str, Tensor]:
        kernel = super().start(like, noise)
        field = noise.normal(like.new_empty(len(like), 2, *like.shape[2:]))
        return {**kernel, "displacement": 0.01 * field}

    def apply(self, x: Tensor, unknowns: dict[str, Tensor]) -> Tensor:
        return super().apply(warp(x, unknowns["displacement"]), unknowns)

    def describe(self, unknowns: dict[str, Tensor]) -> dict[str, Any]:
        field = unknowns["displacement"].detach().cpu().numpy()
        return {**super().describe(unknowns), "displacement": field}

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "name": "blind_turbulence"}


def _smooth(row: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Convolution with zeros outside, of the row's length."""
    reach = len(weights) // 2
    return np.convolve(row, weights)[reach : reach + len(row)]


# ---- registered with torch: each function's derivatives are the others ----


def _flat(placed: Geometry) -> tuple[list[int], list[int], int]:
    return list(placed.centre), list(placed.grow), placed.border


#: The core's number of a blur that takes every entry of the kernel as it is: `Blur`
#: replaces a kernel that is almost a product, and has no derivative in it there.
_EXACT = 4


def _geometry(centre: list[int], grow: list[int], border: int) -> Geometry:
    return Geometry((centre[0], centre[1]), (grow[0], grow[1]), border)


def _blurs(
    shape: Shape, kernel: Tensor, centre: list[int], grow: list[int], border: int
) -> list[Any]:
    """A handle for each image, one and the same where the kernel is shared."""
    module, dtype = backend(kernel.device), dtype_name(kernel.dtype)
    placed = _geometry(centre, grow, border)
    shared = kernel.stride(0) == 0
    handles = [
        module.blur(dtype, shape, k.double().contiguous(), *placed, _EXACT)
        for k in (kernel[:1] if shared else kernel).detach()
    ]
    return handles * len(kernel) if shared else handles


@torch.library.custom_op("diffstategrad::blind_blur", mutates_args=())
def _blur_op(
    x: Tensor, kernel: Tensor, centre: list[int], grow: list[int], border: int
) -> Tensor:
    x = x.detach().contiguous()
    b, c, h, w = x.shape
    y = x.new_empty((b, c, h + grow[0], w + grow[1]))
    for i, op in enumerate(_blurs((c, h, w), kernel, centre, grow, border)):
        op.forward(y[i : i + 1], x[i : i + 1])
    return y


@torch.library.custom_op("diffstategrad::blind_blur_image", mutates_args=())
def _blur_image_op(
    v: Tensor, kernel: Tensor, centre: list[int], grow: list[int], border: int
) -> Tensor:
    """The derivative in x, applied to v."""
    v = v.detach().contiguous()
    b, c, h, w = v.shape
    shape = (c, h - grow[0], w - grow[1])
    g = v.new_empty((b, *shape))
    for i, op in enumerate(_blurs(shape, kernel, centre, grow, border)):
        op.vjp(g[i : i + 1], None, v[i : i + 1])
    return g


@torch.library.custom_op("diffstategrad::blind_blur_kernel", mutates_args=())
def _blur_kernel_op(
    x: Tensor,
    v: Tensor,
    size: list[int],
    centre: list[int],
    grow: list[int],
    border: int,
) -> Tensor:
    """The derivative in the kernel, applied to v."""
    x, v = x.detach().contiguous(), v.detach().contiguous()
    g = x.new_empty((len(x), *size))
    placed = _geometry(centre, grow, border)
    for i in range(len(x)):
        backend(x.device).blur_kernel_gradient(g[i], x[i], v[i], *placed)
    return g


@_blur_op.register_fake
def _(
    x: Tensor, kernel: Tensor, centre: list[int], grow: list[int], border: int
) -> Tensor:
    b, c, h, w = x.shape
    return x.new_empty((b, c, h + grow[0], w + grow[1]))


@_blur_image_op.register_fake
def _(
    v: Tensor, kernel: Tensor, centre: list[int], grow: list[int], border: int
) -> Tensor:
    b, c, h, w = v.shape
    return v.new_empty((b, c, h - grow[0], w - grow[1]))


@_blur_kernel_op.register_fake
def _(
    x: Tensor,
    v: Tensor,
    size: list[int],
    centre: list[int],
    grow: list[int],
    border: int,
) -> Tensor:
    return x.new_empty((x.shape[0], *size))


def _bilinear_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    one, other, *ctx.options = inputs
    keep_tensors(ctx, one, other)


def _bilinear_tangent(
    function: Callable[..., Tensor], ctx: Any, d: Tensor | None, e: Tensor | None
) -> Tensor:
    """Of a function that is linear in each of its first two arguments."""
    one, other = ctx.saved_tensors
    return add(
        None if d is None else function(d, other, *ctx.options),
        None if e is None else function(one, e, *ctx.options),
    )


def _blur_tangent(ctx: Any, d: Tensor | None, e: Tensor | None, *_: None) -> Tensor:
    return _bilinear_tangent(_blur, ctx, d, e)


def _blur_image_tangent(
    ctx: Any, d: Tensor | None, e: Tensor | None, *_: None
) -> Tensor:
    return _bilinear_tangent(_blur_image, ctx, d, e)


def _blur_kernel_tangent(
    ctx: Any, d: Tensor | None, e: Tensor | None, *_: None
) -> Tensor:
    return _bilinear_tangent(_blur_kernel, ctx, d, e)


def _blur_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    x, kernel = ctx.saved_tensors
    need_x, need_kernel = ctx.needs_input_grad[:2]
    size = list(kernel.shape[1:])
    to_x = _blur_image(v, kernel, *ctx.options) if need_x else None
    to_kernel = _blur_kernel(x, v, size, *ctx.options) if need_kernel else None
    return to_x, to_kernel, None, None, None


def _blur_image_backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
    v, kernel = ctx.saved_tensors
    need_v, need_kernel = ctx.needs_input_grad[:2]
    size = list(kernel.shape[1:])
    to_v = _blur(w, kernel, *ctx.options) if need_v else None
    to_kernel = _blur_kernel(w, v, size, *ctx.options) if need_kernel else None
    return to_v, to_kernel, None, None, None


def _blur_kernel_backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    x, v = ctx.saved_tensors
    need_x, need_v = ctx.needs_input_grad[:2]
    options = ctx.options[1:]
    to_x = _blur_image(v, u, *options) if need_x else None
    to_v = _blur(x, u, *options) if need_v else None
    return to_x, to_v, None, None, None, None


_blur = differentiable(_blur_op, _blur_backward, _bilinear_context, _blur_tangent)
_blur_image = differentiable(
    _blur_image_op, _blur_image_backward, _bilinear_context, _blur_image_tangent
)
_blur_kernel = differentiable(
    _blur_kernel_op, _blur_kernel_backward, _bilinear_context, _blur_kernel_tangent
)


def _warps(shape: Shape, displacement: Tensor) -> list[Any]:
    module, dtype = backend(displacement.device), dtype_name(displacement.dtype)
    return [module.warp(dtype, shape, d.contiguous()) for d in displacement.detach()]


@torch.library.custom_op("diffstategrad::warp", mutates_args=())
def _warp_op(x: Tensor, displacement: Tensor) -> Tensor:
    x = x.detach().contiguous()
    y = torch.empty_like(x)
    for i, op in enumerate(_warps(tuple(x.shape[1:]), displacement)):
        op.forward(y[i : i + 1], x[i : i + 1])
    return y


@torch.library.custom_op("diffstategrad::warp_image", mutates_args=())
def _warp_image_op(v: Tensor, displacement: Tensor) -> Tensor:
    """The derivative in x, applied to v."""
    v = v.detach().contiguous()
    g = torch.empty_like(v)
    for i, op in enumerate(_warps(tuple(v.shape[1:]), displacement)):
        op.vjp(g[i : i + 1], None, v[i : i + 1])
    return g


@torch.library.custom_op("diffstategrad::warp_displacement", mutates_args=())
def _warp_displacement_op(x: Tensor, v: Tensor, displacement: Tensor) -> Tensor:
    """The derivative in the displacement, applied to v."""
    x, v = x.detach().contiguous(), v.detach().contiguous()
    g = x.new_empty(displacement.shape)
    module = backend(x.device)
    for i, op in enumerate(_warps(tuple(x.shape[1:]), displacement)):
        module.warp_displacement_gradient(g[i], op, x[i], v[i])
    return g


@_warp_op.register_fake
def _(x: Tensor, displacement: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_warp_image_op.register_fake
def _(v: Tensor, displacement: Tensor) -> Tensor:
    return v.new_empty(v.shape)


@_warp_displacement_op.register_fake
def _(x: Tensor, v: Tensor, displacement: Tensor) -> Tensor:
    return x.new_empty(displacement.shape)


def _warp_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, displacement = ctx.saved_tensors
    need_x, need_displacement = ctx.needs_input_grad
    return (
        _warp_image(v, displacement) if need_x else None,
        _warp_displacement(x, v, displacement) if need_displacement else None,
    )


def _warp_image_backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, Tensor | None]:
    v, displacement = ctx.saved_tensors
    need_v, need_displacement = ctx.needs_input_grad
    return (
        _warp(w, displacement) if need_v else None,
        _warp_displacement(w, v, displacement) if need_displacement else None,
    )


def _warp_tangent(ctx: Any, d: Tensor | None, e: Tensor | None) -> Tensor:
    if d is None or e is not None:  # that in the displacement does not exist
        return no_tangent(ctx)
    return _warp(d, ctx.saved_tensors[1])


def _warp_image_tangent(ctx: Any, d: Tensor | None, e: Tensor | None) -> Tensor:
    if d is None or e is not None:
        return no_tangent(ctx)
    return _warp_image(d, ctx.saved_tensors[1])


_warp = differentiable(_warp_op, _warp_backward, _bilinear_context, _warp_tangent)
_warp_image = differentiable(
    _warp_image_op, _warp_image_backward, _bilinear_context, _warp_image_tangent
)
_warp_displacement = differentiable(_warp_displacement_op)
