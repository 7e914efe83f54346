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
def blur(dtype: str, shape: _Shape, kernel: _Array, form: int = 0, /) -> Op: ...
def resize(dtype: str, shape: _Shape, factor: int, /) -> Op: ...
def normal(out: Tensor, noise: _NoiseKey, /) -> None: ...
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
def psnr(
    out: Tensor, x: _Array, ref: _Array, range: float, floor: float, /
) -> None: ...
def nmse(out: Tensor, x: _Array, ref: _Array, /) -> None: ...
def ssim(out: Tensor, x: _Array, ref: _Array, range: float, window: int, /) -> None: ...
