r"""What an operator is.

An operator maps an image batch :math:`x` of shape (B, C, H, W), nominally in [-1, 1],
to a measurement :math:`A(x)` of shape (B, *out_shape).  To add one, write a subclass in
a file of its own and name it in the list of ``operators/__init__.py``; the tests take
it from there.
"""

from __future__ import annotations

import functools
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from diffstategrad import _core, _ops, reference
from diffstategrad._backend import backend
from diffstategrad._options import as_shape
from diffstategrad._tensor import (
    as_tensor,
    check_alike,
    check_finite,
    check_images,
    dtype_name,
    in_full,
    prepare,
)
from diffstategrad.noise import GaussianNoise, Noise, NoiseSource, as_noise

if TYPE_CHECKING:
    from types import ModuleType

    from diffstategrad.operators.compose import Compose

__all__ = [
    "NativeOperator",
    "Operator",
    "Shape",
    "fixed",
    "fused_residual_gradient",
    "takes_arrays",
]

#: (C, H, W).
Shape = tuple[int, ...]

#: Of conjugate gradients, relative to the right-hand side.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
_ITERATIONS = 1000
#: Of a pseudo-inverse, relative to the largest singular value.
_CUTOFF = {torch.float32: 1e-2, torch.float64: 1e-3}
#: Most things an operator keeps: handles, data steps and norms of the last sizes.
_KEPT = 16
_keeping = threading.Lock()

F = TypeVar("F", bound=Callable[..., Any])


def takes_arrays(method: F) -> F:
    """NumPy in, NumPy out: when the first image or measurement is an array, so is what
    is returned."""
    parameters = list(inspect.signature(method).parameters)[1:]
    batches = {"x", "v", "w", "y"}.intersection(parameters)
    first = next(name for name in parameters if name in batches)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        given = (args or (options.get(first),))[0]
        if not isinstance(given, np.ndarray):
            return method(self, *args, **options)
        options.update(zip(parameters, args, strict=False))
        for name in batches & options.keys():
            options[name] = as_tensor(options[name], name)
        result = method(self, **options)
        if isinstance(result, tuple):
            return tuple(_as_array(t) for t in result)
        return _as_array(result)

    return cast(F, call)


def _as_array(t: Tensor) -> np.ndarray:
    return t.detach().cpu().resolve_neg().numpy()


def fixed(self: Any, name: str, value: Any) -> None:
    """A `__setattr__` that sets an attribute once: what was computed from an option is
    kept, and would not follow it."""
    if name in self.__dict__:
        raise AttributeError(
            f"{type(self).__name__}.{name} cannot be changed: make a new operator"
        )
    object.__setattr__(self, name, value)


class Operator(ABC):
    """A measurement operator on batches of images.

    A subclass has `out_shape`, `__call__` by differentiable torch functions and `spec`;
    derivatives and, for a linear operator, adjoint, norm, pseudo-inverse and data step
    follow from these.
    """

    #: True when A(a x + b z) = a A(x) + b A(z).
    linear: bool = False
    #: The one precision of images it takes; None for float32 and float64.
    dtype: torch.dtype | None = None
    #: True when it has unknowns (`BlindOperator`).
    blind: bool = False

    #: Stands for the operator in torch's registered functions; a copy has its own.
    key: str
    _kept: dict[Hashable, Any]

    def __new__(cls, *args: Any, **options: Any) -> Operator:
        self = super().__new__(cls)
        self.__dict__.update(key=_ops.key_of(self), _kept={})
        return self

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

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """All that is needed to build the operator again, as JSON values and arrays."""

    def __matmul__(self, inner: Operator) -> Compose:
        """`A @ B` is x -> A(B(x))."""
        from diffstategrad.operators.compose import Compose

        if not isinstance(inner, Operator):
            return NotImplemented
        return Compose(self, inner)

    # ---- derivatives ----

    @takes_arrays
    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Vector-Jacobian product J(x)^T v, of the shape of x; differentiable in x and
        v."""
        x, v = self._pair(x, v, "v")
        graph = _wanted(x, v)
        with _recording():
            x = _variable(x)
            return self._gradient(self(x), x, v, graph)

    @takes_arrays
    def jvp(self, x: Tensor, w: Tensor) -> Tensor:
        """Jacobian-vector product J(x) w, of the shape of A(x); differentiable in x and
        w."""
        x, w = self._point(x, w)
        graph = _wanted(x, w)
        with _recording():
            x = _variable(x)
            y = self(x)
            v = torch.zeros_like(y, requires_grad=True)
            g = self._gradient(y, x, v, True)
            if not g.requires_grad:  # steps have the slope 0 everywhere
                return torch.zeros_like(y).detach()
            return self._gradient(g, v, w, graph)

    @takes_arrays
    def residual_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(J(x)^T (A(x) - y), ||A(x) - y||^2 of every image in float64) in one call;
        not differentiable."""
        x, y = self._pair(prepare(x, "x"), prepare(y, "y"), "y")
        with _recording():
            x = _variable(x)
            residual = self(x) - y
            gradient = self._gradient(residual, x, residual.detach())
        return gradient, residual.detach().double().square().flatten(1).sum(1)

    def _gradient(self, y: Tensor, x: Tensor, v: Tensor, graph: bool = False) -> Tensor:
        """J^T v of y = A(x) by autograd; ValueError when x is not in y's graph."""
        if y.requires_grad:
            options = {"create_graph": graph, "allow_unused": True}
            with in_full(x.device):
                (g,) = torch.autograd.grad(y, x, v, **options)
            if g is not None:
                return g
        raise ValueError(
            f"{self!r}: the result does not depend on x, or not by differentiable "
            "torch functions, so it has no derivative"
        )

    # ---- linear operators ----

    @takes_arrays
    def adjoint(self, v: Tensor, shape: Shape | None = None) -> Tensor:
        """A^T v, differentiable; of a linear operator.

        Parameters
        ----------
        v : Tensor, shape (B, *out_shape)
        shape : (C, H, W), optional
            Of the image; default `image_shape` of v's.
        """
        self._must_be_linear("adjoint")
        v = as_tensor(v, "v")
        check_images(v, "v")
        return self._adjoint(v, self._image_of(v, shape))

    def _adjoint(self, v: Tensor, image: Shape) -> Tensor:
        """A^T v is the gradient of <A(x), v>, at any x."""
        graph = _wanted(v)
        with _recording():
            x = torch.zeros(
                (len(v), *image), dtype=v.dtype, device=v.device, requires_grad=True
            )
            return self._gradient(self(x), x, v, graph)

    def norm(
        self,
        shape: Shape,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> float:
        """The largest singular value of a linear operator, for images of `shape`; to
        1e-6 (float32: 1e-4) where no closed form exists.  It is computed once."""
        self._must_be_linear("norm")
        image, where = as_shape(shape, "norm: shape"), torch.device(device)
        return self._keep(
            ("norm", image, dtype, where),
            lambda: self._data_step(image, dtype, where).norm(),
        )

    @takes_arrays
    def pinv(
        self,
        y: Tensor,
        shape: Shape | None = None,
        *,
        cutoff: float | None = None,
        tolerance: float | None = None,
        iterations: int = _ITERATIONS,
    ) -> Tensor:
        r"""Pseudo-inverse :math:`A^+ y` of a linear operator.

        Noise in y is amplified by up to 1 / (cutoff norm): for noisy measurements raise
        `cutoff`, or use `prox`.
        Singular values below `cutoff` times the largest are left out.  Where there is
        no closed form: :math:`(A^\top A + \delta)^{-1} A^\top y` by conjugate gradients
        with :math:`\delta = (\mathrm{cutoff}\, \lVert A \rVert)^2`.  Not
        differentiable; NaN and infinite entries are an error of the iteration, and
        come back as NaN from a closed form.

        Parameters
        ----------
        y : Tensor, shape (B, *out_shape)
        shape : (C, H, W), optional
            Of the image; default `image_shape` of y's.
        cutoff : float in (0, 1), optional
            Default 1e-3, in float32 1e-2: there, conjugate gradients get no further.
        tolerance, iterations
            Of conjugate gradients, as in `prox`.
        """
        self._must_be_linear("pinv")
        y = prepare(y, "y")
        image = self._image_of(y, shape)
        cutoff = _CUTOFF[y.dtype] if cutoff is None else cutoff
        tolerance = _TOLERANCE[y.dtype] if tolerance is None else tolerance
        x = y.new_empty((len(y), *image))
        if x.is_meta:
            return x
        step = self._data_step(image, y.dtype, y.device)
        info = step.pinv(x, y, cutoff, tolerance, iterations)
        self._check_converged("pinv", info, tolerance)
        return x

    @takes_arrays
    def prox(
        self,
        v: Tensor,
        y: Tensor,
        rho: float,
        *,
        tolerance: float | None = None,
        iterations: int = _ITERATIONS,
    ) -> Tensor:
        r"""The exact data step of a linear operator,

        .. math:: \arg\min_x \lVert A x - y \rVert^2 + \rho \lVert x - v \rVert^2,

        differentiable in v and y.  In closed form for masks, circular blurs, separable
        blurs, downsampling and small matrices; else by conjugate gradients.  NaN and
        infinite entries are an error of these, and come back as NaN from a closed form.

        Parameters
        ----------
        v : Tensor, shape (B, C, H, W)
        y : Tensor, shape (B, *out_shape)
        rho : float > 0
        tolerance : float, optional
            Where conjugate gradients stop: residual of the normal equations relative to
            their right-hand side; default 1e-5 in float32, 1e-10 in float64.
        iterations : int
            At most.

        Raises
        ------
        NotImplementedError
            For an operator that is not linear.
        NumericalError
            When conjugate gradients do not get there.
        """
        self._must_be_linear("prox")
        v, y = as_tensor(v, "v"), as_tensor(y, "y")
        check_images(v, "v")
        self._check_pair(v, y, "v", "y")
        if tolerance is None:
            tolerance = _TOLERANCE[v.dtype]
        return _ops.prox(v, y, self.key, float(rho), tolerance, iterations)

    @takes_arrays
    def posterior_sample(
        self,
        v: Tensor,
        y: Tensor,
        rho: float,
        sigma: float,
        noise: int | torch.Generator | NoiseSource = 0,
        *,
        tolerance: float | None = None,
        iterations: int = _ITERATIONS,
    ) -> Tensor:
        r"""An exact draw from the Gaussian posterior of a linear operator,

        .. math:: p(x) \propto \exp\!\Big(-\frac{\lVert A x - y \rVert^2
                  + \rho \lVert x - v \rVert^2}{2 \sigma^2}\Big),

        noise of standard deviation :math:`\sigma` in y against a prior
        :math:`N(v, \sigma^2 / \rho)`.  Perturb and optimise: the data step of
        :math:`v + \sigma n_1 / \sqrt\rho` and :math:`y + \sigma n_2`.  Not
        differentiable.

        Parameters
        ----------
        v, y, rho, tolerance, iterations
            As in `prox`.
        sigma : float >= 0
            Standard deviation of the noise in y; 0 gives the mean.
        noise : int, torch.Generator or NoiseSource
            A seed (image i of a batch gets what it would get alone at the same index),
            or what gives :math:`n_1`, then :math:`n_2`.

        Examples
        --------
        One draw for every image of a batch, prior N(v, 0.25)::

            x = A.posterior_sample(v, y, rho=sigma**2 / 0.25, sigma=sigma, noise=1)

        References
        ----------
        Papandreou, Yuille, "Gaussian sampling by local perturbations", NeurIPS 2010.
        """
        self._must_be_linear("posterior_sample")
        if not (np.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"posterior_sample: sigma must be >= 0, got {sigma}")
        if not (np.isfinite(rho) and rho > 0):
            raise ValueError(f"posterior_sample: rho must be > 0, got {rho}")
        v, y = prepare(v, "v"), prepare(y, "y")
        self._check_pair(v, y, "v", "y")
        source = as_noise(noise, range(len(v)), [0] * len(v))
        v = v + sigma / rho**0.5 * source.normal(v)
        y = y + sigma * source.normal(y)
        return self.prox(v, y, rho, tolerance=tolerance, iterations=iterations)

    # ---- measuring ----

    @takes_arrays
    def measure(
        self,
        x: Tensor,
        sigma: float | None = None,
        *,
        noise: Noise | None = None,
        seed: int | np.random.RandomState = 0,
    ) -> Tensor:
        """A noisy measurement of clean images; not differentiable.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W), in [-1, 1]
        sigma : float >= 0
            y = A(x) + sigma n, in units of A(x); every entry gets noise, masked ones
            and Fourier magnitudes too.
        noise : Noise, instead of sigma
            `GaussianNoise(sigma)` or `PoissonNoise(rate)`.
        seed : int
            Image i of a batch gets the noise it would get alone at the same index.

        Raises
        ------
        ValueError
            If sigma is negative or not finite, both or neither of sigma and noise are
            given, or x does not fit the operator.
        """
        if (sigma is None) == (noise is None):
            raise ValueError("measure: give either sigma or noise")
        if noise is None:
            assert sigma is not None
            noise = GaussianNoise(sigma)
        if not callable(noise):
            raise TypeError(
                "measure: noise must be GaussianNoise(sigma) or PoissonNoise(rate), "
                f"got {noise!r}; a number is a sigma"
            )
        check_finite(as_tensor(x, "x"), "x")
        with torch.no_grad():
            return noise(self(x), seed)

    # ---- what computes ----

    def handle(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
        """An object with the functions of `_core.Op` for images of `shape`."""
        shape = as_shape(shape, f"{type(self).__name__}.handle: shape")
        return _Handle(self, shape, dtype, device)

    def native(self, shape: Shape, dtype: torch.dtype) -> _core.Op | None:
        """The core's handle for images of `shape`, or None where there is none."""
        return None

    def data_step(
        self,
        v: Tensor,
        y: Tensor,
        rho: float,
        tolerance: float,
        iterations: int,
        *,
        strict: bool = True,
    ) -> Tensor:
        """What `prox` computes, of dense tensors, without derivatives; not `strict`,
        with what conjugate gradients have reached."""
        x = torch.empty_like(v)
        step = self._data_step(tuple(v.shape[1:]), v.dtype, v.device)
        info = step.prox(x, v, y, rho, tolerance, iterations)
        if strict:
            self._check_converged("prox", info, tolerance)
        return x

    def _data_step(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
        def make() -> Any:
            dtype_name(dtype)
            handle = self.handle(tuple(shape), dtype, device)
            native = isinstance(handle, _core.Op)
            return (_core if native else reference).DataStep(handle)

        return self._keep(("data step", tuple(shape), dtype, backend(device)), make)

    def _keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once; of the last sizes only."""
        try:
            return self._kept[key]
        except KeyError:
            value = make()
        with _keeping:
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = value
        return value

    def _check_converged(
        self, name: str, info: list[tuple[float, int]], tolerance: float
    ) -> None:
        for image, (residual, iterations) in enumerate(info):
            if residual != residual:
                raise _core.NumericalError(
                    f"{type(self).__name__}.{name}: image {image}: "
                    f"{'y' if name == 'pinv' else 'v or y'} has NaN or infinite entries"
                )
            if not residual <= tolerance:
                raise _core.NumericalError(
                    f"{type(self).__name__}.{name}: image {image} reached a relative "
                    f"residual of {residual:.1e} in {iterations} iterations of "
                    f"conjugate gradients, asked was {tolerance:.1e}: raise "
                    "`tolerance`, `iterations` or the regularisation"
                )

    def _must_be_linear(self, what: str) -> None:
        if not self.linear:
            raise NotImplementedError(
                f"{type(self).__name__} is not linear: it has no {what}"
            )

    def _image_of(self, y: Tensor, shape: Shape | None) -> Shape:
        """The image's shape, given or from the measurement's; ValueError when they do
        not agree."""
        if y.ndim != 4:
            raise ValueError(
                f"{type(self).__name__}: a measurement must have 4 axes (batch, "
                f"channels, height, width), got shape {tuple(y.shape)}"
            )
        if shape is None:
            image = self.image_shape(tuple(y.shape[1:]))
        else:
            image = as_shape(shape, f"{type(self).__name__}: an image's shape")
        out = self._out_shape_like(image, y)
        if out != tuple(y.shape[1:]):
            raise ValueError(
                f"{type(self).__name__}: an image of shape {image} has a measurement "
                f"of shape {out}, got {tuple(y.shape[1:])}"
            )
        return image

    def _out_shape_like(self, shape: Shape, like: Tensor) -> Shape:
        """`out_shape`, for an operator that must measure to know it: images of the
        dtype and device of `like`."""
        return self.out_shape(shape)

    def _pair(self, x: Any, y: Any, name: str) -> tuple[Tensor, Tensor]:
        """Images and measurements, checked."""
        x, y = as_tensor(x, "x"), as_tensor(y, name)
        check_images(x, "x")
        self._check_pair(x, y, "x", name)
        return x, y

    def _point(self, x: Any, w: Any) -> tuple[Tensor, Tensor]:
        """Images and directions, checked."""
        x, w = as_tensor(x, "x"), as_tensor(w, "w")
        check_images(x, "x")
        self._out_shape_like(tuple(x.shape[1:]), x)
        check_alike(x=x, w=w)
        if w.shape != x.shape:
            raise ValueError(
                f"{type(self).__name__}: a direction must have the shape of the "
                f"images, {tuple(x.shape)}, got {tuple(w.shape)}"
            )
        return x, w

    def _check_pair(self, x: Tensor, y: Tensor, image: str, measurement: str) -> None:
        """ValueError or TypeError when x and y do not belong together."""
        check_alike(**{image: x, measurement: y})
        self._image_of(y, tuple(x.shape[1:]))
        if len(x) != len(y):
            raise ValueError(
                f"{type(self).__name__}: images {tuple(x.shape)} and measurements "
                f"{tuple(y.shape)} do not belong together"
            )

    def __getstate__(self) -> dict[str, Any]:
        # the key is the original's, and what is kept belongs to one process
        own = ("key", "_kept")
        return {k: value for k, value in self.__dict__.items() if k not in own}

    def __repr__(self) -> str:
        options = ", ".join(
            f"{k}={v!r}" if not isinstance(v, np.ndarray) else f"{k}={v.shape}"
            for k, v in self.spec().items()
            if k != "name"
        )
        return f"{type(self).__name__}({options})"


class NativeOperator(Operator):
    """An operator of the C core.  A subclass says how its handle is made; derivatives
    are registered with torch (`_ops.py`)."""

    __setattr__ = fixed

    @abstractmethod
    def _create(self, module: ModuleType, dtype: str, shape: Shape) -> Any:
        """The handle for images of `shape`, made by the functions of `module` (`_core`
        or `reference`); sizes have been checked by out_shape."""

    def handle(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
        module, name = backend(device), dtype_name(dtype)

        def make() -> Any:
            image = as_shape(shape, f"{type(self).__name__}.handle: shape")
            self.out_shape(image)
            return self._create(module, name, image)

        return self._keep((tuple(shape), name, module), make)

    def native(self, shape: Shape, dtype: torch.dtype) -> _core.Op | None:
        handle = self.handle(shape, dtype, torch.device("cpu"))
        return handle if isinstance(handle, _core.Op) else None

    @takes_arrays
    def __call__(self, x: Tensor) -> Tensor:
        return _ops.forward(self._checked(x), self.key)

    def _adjoint(self, v: Tensor, image: Shape) -> Tensor:
        dtype_name(v.dtype)
        return _ops.adjoint(v, self.key, list(image))

    @takes_arrays
    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        x, v = self._pair(x, v, "v")
        if self.linear:
            return _ops.adjoint(v, self.key, list(x.shape[1:]))
        return _ops.vjp(x, v, self.key)

    @takes_arrays
    def jvp(self, x: Tensor, w: Tensor) -> Tensor:
        x, w = self._point(x, w)
        if self.linear:
            return _ops.forward(w, self.key)
        return _ops.jvp(x, w, self.key)

    @takes_arrays
    def residual_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self._pair(prepare(x, "x"), prepare(y, "y"), "y")
        handle = self.handle(tuple(x.shape[1:]), x.dtype, x.device)
        return fused_residual_gradient(handle, x, y)

    def _checked(self, x: Tensor) -> Tensor:
        x = as_tensor(x, "x")
        check_images(x, "x")
        self.out_shape(tuple(x.shape[1:]))
        return x

    def __setstate__(self, state: dict[str, Any]) -> None:
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False  # pickle and deepcopy lose it
        self.__dict__.update(state)


def fused_residual_gradient(handle: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What `Operator.residual_gradient` returns, by a handle's one call."""
    gradient = torch.empty_like(x)
    sqnorm = torch.empty(len(x), dtype=torch.float64, device=x.device)
    handle.residual_gradient(gradient, sqnorm, x, y)
    return gradient, sqnorm


@contextmanager
def _recording() -> Iterator[None]:
    """Autograd on, whatever is outside."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _wanted(*tensors: Tensor) -> bool:
    """Whether somebody outside differentiates by one of them."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _variable(x: Tensor) -> Tensor:
    """x, or where nobody differentiates by it a leaf of its values."""
    if x.requires_grad:
        return x
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


class _Handle(reference.Op):
    """The functions of `_core.Op`, of any operator."""

    def __init__(
        self,
        operator: Operator,
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device,
    ):
        like = torch.empty(0, dtype=dtype, device=device)
        super().__init__(dtype, shape, operator._out_shape_like(shape, like))
        self.operator, self.linear = operator, operator.linear

    def _forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.operator(x)

    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor:
        if x is None or self.linear:
            with torch.no_grad():
                return self.operator._adjoint(v, self.in_shape)
        return self.operator.vjp(x, v)

    def _jvp(self, x: Tensor | None, w: Tensor) -> Tensor:
        if x is None or self.linear:
            return self._forward(w)
        return self.operator.jvp(x, w)
