r"""Measurement operators and their derivatives.

    mask        y = M x, entries selected, not multiplied
    separable   y = R x T^T, R (p, h), T (q, w): resize, and a blur whose kernel is a
                column times a row
    blur        y[i, j] = sum_ab k[a, b] xpad[i + a, j + b], xpad the image continued
                over its border; A^T v is the transposed correlation, folded back
    phase       y = |z|, z = fftshift(F u), u = scale x + shift between zeros
    pointwise   y = f(x)
    matrix      y = M x, flattened
    warp        y[i, j] = x(i + d[1, i, j], j + d[0, i, j]), bilinear
    compose     y = outer(inner(x))

Three functions of torch are not used: its convolutions, which on CUDA round to 10 bits
(TF32) by default; matrix products but `product`, which `torch.autocast` would round;
and `Tensor.conj`, which only marks the tensor: inside a ``torch.library`` operator that
is called from a compiled graph, the mark is not heeded (torch 2.13).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffstategrad.reference._common import (
    Constants,
    Shape,
    array,
    check,
    expect,
    parse_dtype,
    parse_shape,
    parts,
    product,
)

__all__ = [
    "Blur",
    "Mask",
    "Matrix",
    "Op",
    "Separable",
    "blur",
    "blur_kernel_gradient",
    "compose",
    "mask",
    "matrix",
    "phase",
    "pointwise",
    "resize",
    "warp",
    "warp_displacement_gradient",
]


class Op(ABC):
    """An operator for images of one size and dtype.  Batches are (B, C, H, W), on any
    device; results go into `out`.

    Subclasses define the functions with an underscore, which return what they compute
    and may not read x where the operator is linear."""

    linear = True

    def __init__(self, dtype: torch.dtype, in_shape: Shape, out_shape: Shape):
        self.dtype = dtype
        self.in_shape = in_shape
        self.out_shape = out_shape

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor: ...

    def _jvp(self, x: Tensor | None, w: Tensor) -> Tensor:
        return self._forward(w)

    def _curvature(self, x: Tensor | None, v: Tensor, w: Tensor) -> Tensor:
        return torch.zeros_like(w)

    def forward(self, out: Tensor, x: Any, /) -> None:
        """out = A(x)."""
        x, out = check(
            "forward", self.dtype, x=(x, self.in_shape), out=(out, self.out_shape)
        )
        for oi, xi in parts(out, x):
            oi.copy_(self._forward(xi))

    def vjp(self, out: Tensor, x: Any | None, v: Any, /) -> None:
        """out = J(x)^T v; x may be None for a linear operator."""
        v, out = check(
            "vjp", self.dtype, v=(v, self.out_shape), out=(out, self.in_shape)
        )
        x = self._point("vjp", x, v)
        for oi, xi, vi in parts(out, x, v):
            oi.copy_(self._vjp(xi, vi))

    def residual_gradient(self, out: Tensor, sqnorm: Tensor, x: Any, y: Any, /) -> None:
        """out = J(x)^T (A(x) - y), sqnorm (B,) float64 = ||A(x) - y||^2."""
        x, y, out = check(
            "residual_gradient",
            self.dtype,
            x=(x, self.in_shape),
            y=(y, self.out_shape),
            out=(out, self.in_shape),
        )
        expect("residual_gradient", "sqnorm", sqnorm, (len(x),), x)
        for oi, si, xi, yi in parts(out, sqnorm, x, y):
            residual = self._forward(xi) - yi
            si.copy_(residual.double().square().sum((1, 2, 3)))
            oi.copy_(self._vjp(xi, residual))

    def jvp(self, out: Tensor, x: Any | None, w: Any, /) -> None:
        """out = J(x) w; x may be None for a linear operator."""
        w, out = check(
            "jvp", self.dtype, w=(w, self.in_shape), out=(out, self.out_shape)
        )
        x = self._point("jvp", x, w)
        for oi, xi, wi in parts(out, x, w):
            oi.copy_(self._jvp(xi, wi))

    def curvature(self, out: Tensor, x: Any | None, v: Any, w: Any, /) -> None:
        """out = the gradient of <J(x)^T v, w> with respect to x; 0 and x not read for
        a linear operator."""
        w, v, out = check(
            "curvature",
            self.dtype,
            w=(w, self.in_shape),
            v=(v, self.out_shape),
            out=(out, self.in_shape),
        )
        x = self._point("curvature", x, w)
        for oi, xi, vi, wi in parts(out, x, v, w):
            oi.copy_(self._curvature(xi, vi, wi))

    def _point(self, function: str, x: Any | None, like: Tensor) -> Tensor | None:
        """Where the derivative is taken."""
        if x is not None:
            (x,) = check(function, self.dtype, x=(x, self.in_shape))
            expect(function, "x", x, (len(like), *self.in_shape), like)
        elif not self.linear:
            raise ValueError(f"{function}: an operator that is not linear needs x")
        return x


# ---- mask ------------------------------------------------------------------------


class Mask(Op):
    def __init__(self, dtype: torch.dtype, shape: Shape, observed: np.ndarray):
        super().__init__(dtype, shape, shape)
        self.constants = Constants(torch.from_numpy(observed))

    def _forward(self, x: Tensor) -> Tensor:
        (observed,) = self.constants.on(x.device)
        return torch.where(observed, x, 0)

    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor:
        return self._forward(v)


def mask(dtype: str, shape: Shape, mask: Any, /) -> Op:
    """Inpainting; mask (1 or c, h, w) of 0 and 1, 1 = observed."""
    precision, (c, h, w) = parse_dtype("mask", dtype), parse_shape("mask", shape)
    values = array("mask", "mask", mask, np.uint8, 3)
    if values.shape not in ((1, h, w), (c, h, w)):
        raise ValueError(
            f"mask: mask must have shape {(c, h, w)}, or one plane, got {values.shape}"
        )
    if values.max() > 1:
        raise ValueError("mask: mask must hold only 0 and 1")
    return Mask(precision, (c, h, w), values.astype(bool))


# ---- separable -------------------------------------------------------------------


class Separable(Op):
    """y = R x T^T in every channel."""

    def __init__(
        self, dtype: torch.dtype, shape: Shape, rows: np.ndarray, columns: np.ndarray
    ):
        super().__init__(dtype, shape, (shape[0], len(rows), len(columns)))
        self.constants = Constants(
            *(torch.from_numpy(m).to(dtype) for m in (rows, columns))
        )

    def _forward(self, x: Tensor) -> Tensor:
        rows, columns = self.constants.on(x.device)
        return product(rows, x, columns.mT)

    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor:
        rows, columns = self.constants.on(v.device)
        return product(rows.mT, v, columns)


def resize(dtype: str, shape: Shape, factor: int, /) -> Op:
    """Bicubic antialiased downsampling by an integer factor."""
    precision, image = parse_dtype("resize", dtype), parse_shape("resize", shape)
    if factor < 1:
        raise ValueError(f"resize: factor must be at least 1, got {factor}")
    if factor > 16 * max(image[1:]):
        raise ValueError("resize: the sizes do not fit")
    return Separable(precision, image, *(_bicubic(n, factor) for n in image[1:]))


def _bicubic(n: int, factor: int) -> np.ndarray:
    """(ceil(n / factor), n): Keys' cubic, a = -1/2, stretched by the factor, weights
    of an output summing to 1; the edge pixel is repeated, b a | a b c .. y z | z y."""
    outputs = -(-n // factor)
    # 0-based; the last term centres sizes that the factor does not divide
    positions = np.arange(1, outputs + 1) * factor - 1
    position = positions + (1 - factor) / 2 + (n - factor * outputs) / 2
    taps = np.floor(position - 2 * factor)[:, None] + np.arange(4 * factor + 3)
    t = np.abs(position[:, None] - taps) / factor
    weights = np.where(
        t <= 1, (1.5 * t - 2.5) * t**2 + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    )
    weights[t > 2] = 0
    weights /= weights.sum(1, keepdims=True)

    q = taps.astype(int) % (2 * n)
    result = np.zeros((outputs, n))
    at = np.arange(outputs)[:, None], np.minimum(q, 2 * n - 1 - q)
    np.add.at(result, at, weights)
    return result


# ---- blur ------------------------------------------------------------------------

_REFLECT, _CIRCULAR, _ZERO, _REPLICATE = range(4)
_AUTO, _SEPARABLE, _SPARSE, _FFT, _EXACT = range(5)
#: Distance to a column times a row, in Frobenius norms of the kernel, that counts as
#: none.
_RANK_ONE = {torch.float32: 1e-6, torch.float64: 2.5e-7}
#: Most taps that are added one after the other: a third of a millisecond on one core
#: for 3 x 256 x 256, the FFTs one.
_MOST_TAPS = 32


class _Border:
    """How an image goes on beyond its edges, and back.

    Axis n with a kernel of size k: place i of the extended axis, i < n + grow + k - 1,
    shows source[i] of the image, n where there is nothing but 0."""

    def __init__(
        self,
        function: str,
        size: Sequence[int],
        kernel: Sequence[int],
        centre: Sequence[int],
        grow: Sequence[int],
        border: int,
    ):
        if border not in (_REFLECT, _CIRCULAR, _ZERO, _REPLICATE):
            raise ValueError(f"{function}: border must be in 0..3, got {border}")
        self.size = tuple(size)
        self.out_size = tuple(n + g for n, g in zip(self.size, grow, strict=True))
        self.circular = border == _CIRCULAR and self.out_size == self.size
        self.sources = []
        for n, k, c, g in zip(self.size, kernel, centre, grow, strict=True):
            before, after = c, g + k - 1 - c
            if not 0 <= c < k:
                raise ValueError(f"{function}: centre must lie in the kernel")
            if not 0 <= g <= k:
                raise ValueError(f"{function}: grow must be in 0..{k}, got {g}")
            if border == _REFLECT and max(before, after) >= n:
                raise ValueError(
                    f"{function}: a pad of {max(before, after)} is more than "
                    f"reflection of {n} pixels can give"
                )
            self.sources.append(_source(n, before, after, border))
        self.padded = tuple(len(s) for s in self.sources)
        self.constants = Constants(*map(torch.from_numpy, self.sources))

    def pad(self, x: Tensor) -> Tensor:
        rows, columns = self.constants.on(x.device)
        x = F.pad(x, (0, 1, 0, 1))  # the 0 outside
        return x.index_select(-2, rows).index_select(-1, columns)

    def fold(self, u: Tensor) -> Tensor:
        """The adjoint of pad."""
        rows, columns = self.constants.on(u.device)
        h, w = self.size
        g = u.new_zeros((*u.shape[:-2], h + 1, u.shape[-1]))
        g.index_add_(-2, rows, u)
        result = u.new_zeros((*u.shape[:-2], h, w + 1))
        return result.index_add_(-1, columns, g[..., :h, :])[..., :w]


def _source(n: int, before: int, after: int, border: int) -> np.ndarray:
    q = np.arange(-before, n + after)
    if border == _REFLECT:
        return n - 1 - np.abs(n - 1 - np.abs(q))
    if border == _CIRCULAR:
        return q % n
    if border == _REPLICATE:
        return q.clip(0, n - 1)
    return np.where((0 <= q) & (q < n), q, n)


class Blur(Op):
    """A blur by its extended image; subclasses correlate that."""

    def __init__(self, dtype: torch.dtype, image: Shape, border: _Border):
        super().__init__(dtype, image, (image[0], *border.out_size))
        self.border = border

    def _forward(self, x: Tensor) -> Tensor:
        return self._correlate(self.border.pad(x))

    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor:
        return self.border.fold(self._spread(v))

    @abstractmethod
    def _correlate(self, extended: Tensor) -> Tensor: ...

    @abstractmethod
    def _spread(self, v: Tensor) -> Tensor:
        """The adjoint of `_correlate`."""


class _SparseBlur(Blur):
    """Tap by tap."""

    def __init__(
        self, dtype: torch.dtype, image: Shape, border: _Border, kernel: np.ndarray
    ):
        super().__init__(dtype, image, border)
        p, q = border.out_size
        self.taps = [
            (slice(a, a + p), slice(b, b + q), float(kernel[a, b]))
            for a, b in np.argwhere(kernel).tolist()
        ]

    def _correlate(self, extended: Tensor) -> Tensor:
        y = extended.new_zeros((*extended.shape[:-2], *self.border.out_size))
        for rows, columns, weight in self.taps:
            y.add_(extended[..., rows, columns], alpha=weight)
        return y

    def _spread(self, v: Tensor) -> Tensor:
        u = v.new_zeros((*v.shape[:-2], *self.border.padded))
        for rows, columns, weight in self.taps:
            u[..., rows, columns].add_(v, alpha=weight)
        return u


class _FourierBlur(Blur):
    """On a grid no smaller than the extended image, so that nothing wraps around into
    the outputs."""

    def __init__(
        self, dtype: torch.dtype, image: Shape, border: _Border, kernel: np.ndarray
    ):
        super().__init__(dtype, image, border)
        self.grid = _grid(border)
        transformed = torch.fft.rfft2(torch.from_numpy(kernel), s=self.grid)
        self.constants = Constants(transformed.to(dtype.to_complex()))

    def _correlate(self, extended: Tensor) -> Tensor:
        (kernel,) = self.constants.on(extended.device)
        z = torch.fft.rfft2(extended, s=self.grid) * torch.conj_physical(kernel)
        p, q = self.border.out_size
        return torch.fft.irfft2(z, s=self.grid)[..., :p, :q]

    def _spread(self, v: Tensor) -> Tensor:
        (kernel,) = self.constants.on(v.device)
        z = torch.fft.rfft2(v, s=self.grid) * kernel
        p, q = self.border.padded
        return torch.fft.irfft2(z, s=self.grid)[..., :p, :q]


def _grid(border: _Border) -> tuple[int, int]:
    """Sides with no prime factor above 5: others cost the FFT four times as much."""

    def fast(n: int) -> int:
        while 30**64 % n:
            n += 1
        return n

    h, w = border.padded
    return fast(h), fast(w)


def blur(
    dtype: str,
    shape: Shape,
    kernel: Any,
    centre: tuple[int, int],
    grow: tuple[int, int],
    border: int,
    form: int = _AUTO,
    /,
) -> Op:
    """Correlation with one kernel in every channel; borders 0 reflect, 1 circular,
    2 zero, 3 replicate; forms 0 automatic, 1 separable, 2 tap by tap, 3 FFT,
    4 tap by tap or FFT."""
    precision, image = parse_dtype("blur", dtype), parse_shape("blur", shape)
    k = array("blur", "kernel", kernel, np.float64, 2)
    if form not in range(_EXACT + 1):
        raise ValueError(f"blur: form must be in the range 0..{_EXACT}, got {form}")
    edge = _Border("blur", image[1:], k.shape, centre, grow, border)

    # The row and the column through the largest entry span the only rank-one kernel
    # it can be.
    i, j = np.unravel_index(np.abs(k).argmax(), k.shape)
    column, row = k[:, j], k[i] / (k[i, j] or 1.0)
    error = np.linalg.norm(k - np.outer(column, row))
    separable = error <= _RANK_ONE[precision] * np.linalg.norm(k)
    if form == _SEPARABLE and not separable:
        raise ValueError("blur: the kernel is not a column times a row")
    if form == _SEPARABLE or (form == _AUTO and separable):
        factors = (
            _correlation(source, weights, n)
            for source, weights, n in zip(
                edge.sources, (column, row), image[1:], strict=True
            )
        )
        return Separable(precision, image, *factors)
    few = np.count_nonzero(k) <= _MOST_TAPS
    if form == _SPARSE or (form != _FFT and few):
        return _SparseBlur(precision, image, edge, k)
    return _FourierBlur(precision, image, edge, k)


def _correlation(source: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """The matrix of one axis."""
    outputs = len(source) - len(weights) + 1
    result = np.zeros((outputs, n + 1))
    at = np.arange(outputs)[:, None]
    np.add.at(result, (at, source[at + np.arange(len(weights))]), weights)
    return result[:, :n].copy()


def blur_kernel_gradient(
    out: Tensor,
    x: Any,
    v: Any,
    centre: tuple[int, int],
    grow: tuple[int, int],
    border: int,
    /,
) -> None:
    """out (kh, kw) = the gradient of <A(x), v> with respect to the kernel, summed over
    the channels of one image x (c, h, w) and v (c, h + grow, w + grow)."""
    function = "blur_kernel_gradient"
    x, v = (torch.as_tensor(t)[None] for t in (x, v))
    kh, kw = out.shape
    (x,) = check(function, out.dtype, x=(x, None))
    c, *size = x.shape[1:]
    edge = _Border(function, size, (kh, kw), centre, grow, border)
    x, v = check(function, out.dtype, x=(x, None), v=(v, (c, *edge.out_size)))
    expect(function, "out", out, (kh, kw), x)

    # in float64, as every sum over an image
    grid = _grid(edge)
    z = torch.conj_physical(torch.fft.rfft2(v.double(), s=grid))
    z = (z * torch.fft.rfft2(edge.pad(x.double()), s=grid)).sum((0, 1))
    out.copy_(torch.fft.irfft2(z, s=grid)[:kh, :kw])


# ---- phase retrieval -------------------------------------------------------------


class _Phase(Op):
    """The image lies in a corner of the zeros instead of their middle: |z| is the
    same, as is every derivative."""

    linear = False

    def __init__(
        self, dtype: torch.dtype, image: Shape, pad: int, scale: float, shift: float
    ):
        c, h, w = image
        super().__init__(dtype, image, (c, h + 2 * pad, w + 2 * pad))
        self.scale, self.shift = scale, shift

    def _transform(self, u: Tensor) -> Tensor:
        return torch.fft.fft2(u, s=self.out_shape[1:], norm="ortho")

    def _back(self, z: Tensor) -> Tensor:
        """scale Re crop(F^H z)."""
        h, w = self.in_shape[1:]
        return self.scale * torch.fft.ifft2(z, norm="ortho").real[..., :h, :w]

    def _z(self, x: Tensor | None) -> Tensor:
        assert x is not None
        return self._transform(self.scale * x + self.shift)

    def _forward(self, x: Tensor) -> Tensor:
        return torch.fft.fftshift(self._z(x).abs(), (-2, -1))

    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor:
        # sgn(z) = z / |z|, 0 at 0
        return self._back(_unshift(v) * torch.sgn(self._z(x)))

    def _jvp(self, x: Tensor | None, w: Tensor) -> Tensor:
        a = self._transform(self.scale * w)
        along = (torch.conj_physical(torch.sgn(self._z(x))) * a).real
        return torch.fft.fftshift(along, (-2, -1))

    def _curvature(self, x: Tensor | None, v: Tensor, w: Tensor) -> Tensor:
        # p = z / |z| turns by dp = i p Im(conj(p) dz) / |z|
        z, a = self._z(x), self._transform(self.scale * w)
        p, size = torch.sgn(z), z.abs()
        turn = torch.where(size > 0, (torch.conj_physical(p) * a).imag / size, 0)
        return self._back(_unshift(v) * turn * 1j * p)


def _unshift(v: Tensor) -> Tensor:
    return torch.fft.ifftshift(v, (-2, -1))


def phase(dtype: str, shape: Shape, pad: int, scale: float, shift: float, /) -> Op:
    """Magnitude of the Fourier transform of scale x + shift between zeros."""
    precision, image = parse_dtype("phase", dtype), parse_shape("phase", shape)
    if pad < 0:
        raise ValueError(f"phase: pad must not be negative, got {pad}")
    if not (math.isfinite(scale) and math.isfinite(shift)):
        raise ValueError(
            f"phase: scale and shift must be finite, got {scale} and {shift}"
        )
    return _Phase(precision, image, pad, scale, shift)


# ---- pointwise -------------------------------------------------------------------


class _Pointwise(Op):
    linear = False

    def __init__(self, dtype: torch.dtype, shape: Shape, a: float):
        super().__init__(dtype, shape, shape)
        self.a = a

    @abstractmethod
    def _slope(self, x: Tensor) -> Tensor:
        """f'(x)."""

    def _bend(self, x: Tensor) -> Tensor:
        """f''(x)."""
        return torch.zeros_like(x)

    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor:
        assert x is not None
        return self._slope(x) * v

    def _jvp(self, x: Tensor | None, w: Tensor) -> Tensor:
        return self._vjp(x, w)

    def _curvature(self, x: Tensor | None, v: Tensor, w: Tensor) -> Tensor:
        assert x is not None
        return self._bend(x) * v * w


class _Clip(_Pointwise):
    def _forward(self, x: Tensor) -> Tensor:
        return (self.a * x).clamp(-1, 1)

    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor:
        assert x is not None
        return torch.where((self.a * x).abs() <= 1, self.a * v, 0)

    def _slope(self, x: Tensor) -> Tensor:
        return self._vjp(x, torch.ones_like(x))


class _Power(_Pointwise):
    """f(x) = 2 g(u) - 1, u = (x + 1) / 2, g(u) = sign(u) |u|^p, and slope u for
    |u| < least."""

    def __init__(
        self, dtype: torch.dtype, shape: Shape, p: float, least: float, slope: float
    ):
        super().__init__(dtype, shape, p)
        self.least, self.slope = least, slope

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u, where it lies on the line, and |u| with 1 there."""
        u = 0.5 * x + 0.5
        line = u.abs() < self.least
        return u, line, torch.where(line, 1, u.abs())

    def _forward(self, x: Tensor) -> Tensor:
        u, line, size = self._split(x)
        return 2 * torch.where(line, self.slope * u, u.sgn() * size**self.a) - 1

    def _slope(self, x: Tensor) -> Tensor:
        _, line, size = self._split(x)
        return torch.where(line, self.slope, self.a * size ** (self.a - 1))

    def _bend(self, x: Tensor) -> Tensor:
        u, line, size = self._split(x)
        second = 0.5 * self.a * (self.a - 1) * u.sgn() * size ** (self.a - 2)
        return torch.where(line, 0, second)


def pointwise(dtype: str, shape: Shape, kind: int, a: float, /) -> Op:
    """0 clip: min(max(a x, -1), 1); 1 encode: linear light to a camera's response with
    gamma a; 2 decode: its inverse."""
    precision, image = parse_dtype("pointwise", dtype), parse_shape("pointwise", shape)
    if kind not in (0, 1, 2):
        raise ValueError(f"pointwise: kind must be in the range 0..2, got {kind}")
    if not (math.isfinite(a) and a > 0):
        raise ValueError(f"pointwise: a must be finite and > 0, got {a}")
    if kind == 0:
        return _Clip(precision, image, a)
    dark = 1e-4  # below it, a line
    slope = dark ** (1 / a - 1)
    if kind == 1:
        return _Power(precision, image, 1 / a, dark, slope)
    return _Power(precision, image, a, dark ** (1 / a), 1 / slope)


# ---- matrix ----------------------------------------------------------------------


class Matrix(Op):
    def __init__(
        self, dtype: torch.dtype, in_shape: Shape, out_shape: Shape, m: np.ndarray
    ):
        super().__init__(dtype, in_shape, out_shape)
        self.constants = Constants(torch.from_numpy(m).to(dtype))

    def _forward(self, x: Tensor) -> Tensor:
        (m,) = self.constants.on(x.device)
        return product(x.flatten(1), m.mT).unflatten(1, self.out_shape)

    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor:
        (m,) = self.constants.on(v.device)
        return product(v.flatten(1), m).unflatten(1, self.in_shape)


def matrix(dtype: str, shape: Shape, out_shape: Shape, matrix: Any, /) -> Op:
    """y = M x with M (numel(out_shape), numel(shape))."""
    precision = parse_dtype("matrix", dtype)
    image, out = parse_shape("matrix", shape), parse_shape("matrix", out_shape)
    m = array("matrix", "matrix", matrix, np.float64, 2)
    expected = math.prod(out), math.prod(image)
    if m.shape != expected:
        raise ValueError(f"matrix: matrix must have shape {expected}, got {m.shape}")
    return Matrix(precision, image, out, m)


# ---- warp ------------------------------------------------------------------------


class _Warp(Op):
    """Four corners of every place, as indices into a plane followed by one 0 for all
    that lies outside."""

    def __init__(self, dtype: torch.dtype, shape: Shape, displacement: np.ndarray):
        super().__init__(dtype, shape, shape)
        _, h, w = shape
        d = torch.from_numpy(displacement).to(dtype).double()
        # places further away are as dark as these, and have no index
        i = (torch.arange(h)[:, None] + d[1]).clamp(-2, h + 1)
        j = (torch.arange(w) + d[0]).clamp(-2, w + 1)
        top, left = i.floor(), j.floor()
        down, right = i - top, j - left

        indices, weights = [], []
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            row, column = (top + a).long(), (left + b).long()
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            indices.append(torch.where(inside, row * w + column, h * w).flatten())
            weight = (down if a else 1 - down) * (right if b else 1 - right)
            weights.append(weight.flatten().to(dtype))
        self.constants = Constants(*indices, *weights, down.to(dtype), right.to(dtype))

    def _corners(self, x: Tensor) -> list[Tensor]:
        plane = F.pad(x.flatten(-2), (0, 1))
        indices = self.constants.on(x.device)[:4]
        return [plane.index_select(-1, index) for index in indices]

    def _forward(self, x: Tensor) -> Tensor:
        weights = self.constants.on(x.device)[4:8]
        terms = (
            weight * corner
            for weight, corner in zip(weights, self._corners(x), strict=True)
        )
        return torch.stack(list(terms)).sum(0).unflatten(-1, self.in_shape[1:])

    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor:
        constants = self.constants.on(v.device)
        v = v.flatten(-2)
        g = v.new_zeros((*v.shape[:-1], v.shape[-1] + 1))
        for index, weight in zip(constants[:4], constants[4:8], strict=True):
            g.index_add_(-1, index, weight * v)
        return g[..., :-1].unflatten(-1, self.in_shape[1:])

    def displacement_gradient(self, x: Tensor, v: Tensor) -> Tensor:
        """Of <y, v>, (2, h, w), for one image."""
        down, right = self.constants.on(x.device)[8:]
        x00, x01, x10, x11 = (corner.view_as(x) for corner in self._corners(x))
        across = (1 - down) * (x01 - x00) + down * (x11 - x10)
        along = (1 - right) * (x10 - x00) + right * (x11 - x01)
        return torch.stack([(across * v).sum(0), (along * v).sum(0)])


def warp(dtype: str, shape: Shape, displacement: Any, /) -> Op:
    """Bilinear sampling at places displaced by (2, h, w) pixels, right and down."""
    precision, image = parse_dtype("warp", dtype), parse_shape("warp", shape)
    d = array("warp", "displacement", displacement, np.float64, 3)
    if d.shape != (2, *image[1:]):
        raise ValueError(
            f"warp: displacement must have shape {(2, *image[1:])}, got {d.shape}"
        )
    return _Warp(precision, image, d)


def warp_displacement_gradient(out: Tensor, op: Op, x: Any, v: Any, /) -> None:
    """out (2, h, w) = the gradient of <y, v> with respect to the displacement of a
    warp, for one image x and one v, (c, h, w) both."""
    function = "warp_displacement_gradient"
    if not isinstance(op, _Warp):
        raise TypeError(f"{function}: the operator must be a warp")
    x, v = check(
        function,
        op.dtype,
        x=(torch.as_tensor(x)[None], op.in_shape),
        v=(torch.as_tensor(v)[None], op.in_shape),
    )
    expect(function, "out", out, (2, *op.in_shape[1:]), x)
    out.copy_(op.displacement_gradient(x[0], v[0]))


# ---- compose ---------------------------------------------------------------------


class _Compose(Op):
    def __init__(self, outer: Op, inner: Op):
        super().__init__(outer.dtype, inner.in_shape, outer.out_shape)
        self.outer, self.inner = outer, inner
        self.linear = outer.linear and inner.linear

    def _middle(self, x: Tensor | None) -> Tensor | None:
        """inner(x), where the outer derivative depends on it."""
        if self.outer.linear:
            return None
        assert x is not None
        return self.inner._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        return self.outer._forward(self.inner._forward(x))

    def _vjp(self, x: Tensor | None, v: Tensor) -> Tensor:
        return self.inner._vjp(x, self.outer._vjp(self._middle(x), v))

    def _jvp(self, x: Tensor | None, w: Tensor) -> Tensor:
        return self.outer._jvp(self._middle(x), self.inner._jvp(x, w))

    def _curvature(self, x: Tensor | None, v: Tensor, w: Tensor) -> Tensor:
        # <J_inner^T J_outer^T v, w> changes with J_inner and, through inner(x), with
        # J_outer
        middle = self._middle(x)
        by_inner = self.inner._curvature(x, self.outer._vjp(middle, v), w)
        by_outer = self.outer._curvature(middle, v, self.inner._jvp(x, w))
        return by_inner + self.inner._vjp(x, by_outer)


def compose(outer: Op, inner: Op, /) -> Op:
    """outer(inner(x))."""
    if outer.dtype != inner.dtype:
        raise TypeError("compose: the operators must have one dtype")
    if outer.in_shape != inner.out_shape:
        raise ValueError(
            f"compose: outer takes {outer.in_shape}, inner gives {inner.out_shape}"
        )
    return _Compose(outer, inner)
