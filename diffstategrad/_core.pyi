"""Signatures of the compiled module; a test compares them with it."""

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor

__version__: str

#: (C, H, W).
_Shape = tuple[int, ...]
#: (seed, images, samples, draw).
_NoiseKey = tuple[int, Sequence[int], Sequence[int], int]
#: Anything with __dlpack__: a tensor or a NumPy array.
_Array = Any

class _Info(TypedDict):
    version: str
    compiler: str
    isa: list[str]
    threads: int
    blas: str
    fft: str

class NumericalError(ArithmeticError): ...

class Op:
    @property
    def in_shape(self) -> tuple[int, int, int]: ...
    @property
    def out_shape(self) -> tuple[int, int, int]: ...
    def forward(self, out: Tensor, x: _Array, /) -> None: ...
    def vjp(self, out: Tensor, x: _Array | None, v: _Array, /) -> None: ...
    def residual_gradient(
        self, out: Tensor, sqnorm: Tensor, x: _Array, y: _Array, /
    ) -> None: ...
    def jvp(self, out: Tensor, x: _Array | None, w: _Array, /) -> None: ...
    def curvature(
        self, out: Tensor, x: _Array | None, v: _Array, w: _Array, /
    ) -> None: ...

class DataStep:
    def __init__(self, op: Op, /) -> None: ...
    @property
    def closed_form(self) -> bool: ...
    def norm(self) -> float: ...
    def prox(
        self,
        out: Tensor,
        v: _Array,
        y: _Array,
        rho: float,
        tolerance: float,
        iterations: int,
        /,
    ) -> list[tuple[float, int]]: ...
    def pinv(
        self,
        out: Tensor,
        y: _Array,
        cutoff: float,
        tolerance: float,
        iterations: int,
        /,
    ) -> list[tuple[float, int]]: ...

class Projector:
    def __init__(self, dtype: str, batch: int, shape: _Shape, /) -> None: ...
    @property
    def ranks(self) -> tuple[tuple[int, ...], ...] | None: ...
    @property
    def kept(self) -> tuple[tuple[float, ...], ...] | None: ...
    def prepare(
        self,
        state: _Array,
        energy: float,
        rule: int,
        fixed_rank: int,
        sides: int,
        /,
    ) -> None: ...
    def apply(self, grad: Tensor, /) -> None: ...

def set_num_threads(n: int, /) -> None: ...
def info() -> _Info: ...
def mask(dtype: str, shape: _Shape, mask: _Array, /) -> Op: ...
def blur(
    dtype: str,
    shape: _Shape,
    kernel: _Array,
    centre: tuple[int, int],
    grow: tuple[int, int],
    border: int,
    form: int = 0,
    /,
) -> Op: ...
def resize(dtype: str, shape: _Shape, factor: int, /) -> Op: ...
def phase(dtype: str, shape: _Shape, pad: int, scale: float, shift: float, /) -> Op: ...
def pointwise(dtype: str, shape: _Shape, kind: int, a: float, /) -> Op: ...
def matrix(dtype: str, shape: _Shape, out_shape: _Shape, matrix: _Array, /) -> Op: ...
def compose(outer: Op, inner: Op, /) -> Op: ...
def warp(dtype: str, shape: _Shape, displacement: _Array, /) -> Op: ...
def blur_kernel_gradient(
    out: Tensor,
    x: _Array,
    v: _Array,
    centre: tuple[int, int],
    grow: tuple[int, int],
    border: int,
    /,
) -> None: ...
def warp_displacement_gradient(
    out: Tensor, op: Op, x: _Array, v: _Array, /
) -> None: ...
def normal(out: Tensor, noise: _NoiseKey, /) -> None: ...
def uniform(out: Tensor, noise: _NoiseKey, /) -> None: ...
def euler_step(
    x: Tensor, denoised: _Array, sigma: float, sigma_next: float, /
) -> None: ...
def langevin(
    x: Tensor,
    sqnorm: Tensor,
    x0hat: _Array,
    y: _Array,
    op: Op,
    projector: Projector | None,
    noise: _NoiseKey | _Array,
    steps: int,
    eta: float,
    likelihood: float,
    prior: float,
    /,
) -> None: ...
def hmc(
    x: Tensor,
    velocity: Tensor,
    sqnorm: Tensor,
    x0hat: _Array,
    y: _Array,
    op: Op,
    projector: Projector | None,
    noise: _NoiseKey | _Array,
    steps: int,
    eta: float,
    likelihood: float,
    prior: float,
    momentum: float,
    /,
) -> None: ...
def mh(
    x: Tensor,
    sqnorm: Tensor,
    accepted: Tensor,
    x0hat: _Array,
    y: _Array,
    op: Op,
    noise: _NoiseKey | _Array,
    uniforms: _Array | None,
    steps: int,
    eta: float,
    likelihood: float,
    prior: float,
    /,
) -> None: ...
def ddpm_step(
    x: Tensor,
    x0: _Array,
    c1: float,
    c2: float,
    code: _Array | None,
    minlog: float,
    maxlog: float,
    noise: _NoiseKey | _Array | None,
    gradient: _Array | None,
    scale: _Array | None,
    /,
) -> None: ...
def ddim_step(
    x: Tensor,
    x0: _Array,
    alpha_bar: float,
    alpha_bar_next: float,
    std: float,
    noise: _NoiseKey | _Array | None,
    /,
) -> None: ...
def renoise(
    x: Tensor, scale: float, sigma: float, noise: _NoiseKey | _Array | None, /
) -> None: ...
def ald_step(
    x: Tensor,
    denoised: _Array,
    gradient: _Array,
    sigma: float,
    weight: float,
    eta: float,
    noise: _NoiseKey | _Array | None,
    /,
) -> None: ...
def adam_step(
    x: Tensor,
    m: Tensor,
    v: Tensor,
    gradient: _Array,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    /,
) -> None: ...
def tv_prox(
    out: Tensor,
    v: _Array,
    weight: float,
    iterations: int,
    dual: Tensor,
    coupled: bool,
    /,
) -> None: ...
def tv_norm(out: Tensor, x: _Array, coupled: bool, /) -> None: ...
def psnr(
    out: Tensor, x: _Array, ref: _Array, range: float, floor: float, /
) -> None: ...
def nmse(out: Tensor, x: _Array, ref: _Array, /) -> None: ...
def ssim(out: Tensor, x: _Array, ref: _Array, range: float, window: int, /) -> None: ...
