"""One table of speed ratios, measured in one run: `make bench`.

Each row times ours, the expression of the published codes and that of a careful torch
user on the same numbers, one thread each (`expressions.py` has both).  The three take
turns in blocks, so that a drifting clock meets all of them; `ratio` is published over
ours, in medians.  Before anything is timed the results are compared.  Rows of operators
that do nothing but move memory compare bytes a second with torch's `copy_` instead.

Measure on an idle machine: other work on the cores moves every figure.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from expressions import (
    apply_factors,
    autograd_gradient,
    blur_matrix,
    careful_circular_prox,
    careful_factors,
    careful_fourier_blur,
    careful_langevin_step,
    careful_mask_prox,
    careful_phase_gradient,
    careful_resize_gradient,
    careful_separable_blur,
    careful_separable_prox,
    careful_ssim,
    conjugate_gradients,
    published_blur,
    published_factors,
    published_langevin_step,
    published_phase,
    published_resize,
    rank_of,
    resize_matrix,
)
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

import diffstategrad as dsg
from diffstategrad import _core
from diffstategrad.demo import photograph
from diffstategrad.noise import CounterNoise
from diffstategrad.operators import (
    Downsample,
    GaussianBlur,
    HighDynamicRange,
    Inpainting,
    MotionBlur,
    NativeOperator,
    PhaseRetrieval,
)

pytestmark = pytest.mark.bench

RUNS = 20
BLOCKS = 5
SLOW = 0.1  # seconds; a call that takes longer is run once a block,
TEDIOUS = 2.0  # and one that takes longer than this once in all
ENERGY = 0.99
EPS = torch.finfo(torch.float32).eps

Call = Callable[[], object]
Forward = Callable[[Tensor], Tensor]
Prox = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over all blocks."""

    seconds: list[float]

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return (
            f"{1e3 * self.least:9.3f} {1e3 * self.median:9.3f} {len(self.seconds):4d}"
        )


def measure(*calls: Call) -> list[Timing]:
    """Times calls in turn, block by block, after one call each that does not count.

    At least RUNS runs of each, more of a short one, BLOCKS of one slower than SLOW; the
    first call of one slower than TEDIOUS is the only one.
    """
    runs = []
    seconds: list[list[float]] = [[] for _ in calls]
    for call, out in zip(calls, seconds, strict=True):
        started = time.perf_counter()
        call()
        once = time.perf_counter() - started
        if once > TEDIOUS:
            out.append(once)
            runs.append(0)
            continue
        started = time.perf_counter()
        call()
        once = time.perf_counter() - started
        wanted = BLOCKS if once > SLOW else max(RUNS, min(200, int(0.2 / once)))
        runs.append(-(-wanted // BLOCKS))
    for _ in range(BLOCKS):
        for call, n, out in zip(calls, runs, seconds, strict=True):
            if n > 1:
                call()  # brings back the caches that the others have used
            for _ in range(n):
                started = time.perf_counter()
                call()
                out.append(time.perf_counter() - started)
    return [Timing(s) for s in seconds]


class Table:
    """Prints rows as they come, `ours` scaled where one call does the work of many."""

    def __init__(self) -> None:
        core = _core.info()
        print(
            f"\n\nmachine   {_processor()}, {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f}, kernels for {', '.join(core['isa'])}\n"
            f"versions  diffstategrad {dsg.__version__} ({core['compiler']}, "
            f"{core['blas']}), torch {torch.__version__}, numpy {np.__version__}, "
            f"scikit-image {skimage.__version__}, Python {platform.python_version()}\n"
            "float32, one thread each; milliseconds: least, median, runs; ratio = "
            "theirs / ours in medians\n\n"
            f"{'work':44} {'ours':>24} {'published':>24} {'ratio':>7} {'asked':>6} "
            f"{'careful torch':>24} {'ratio':>7}"
        )

    def row(
        self,
        work: str,
        ours: Call,
        published: Call,
        careful: Call,
        *,
        at_least: float | None,
        per_call: int = 1,
    ) -> None:
        mine, theirs, best = measure(ours, published, careful)
        mine = Timing([s / per_call for s in mine.seconds])
        ratio = theirs.median / mine.median
        asked = "-" if at_least is None else f"{at_least:g}x"
        print(
            f"{work:44} {mine} {theirs} {ratio:6.1f}x {asked:>6} {best} "
            f"{best.median / mine.median:6.1f}x",
            flush=True,
        )
        if at_least is not None:
            assert ratio >= at_least, f"{work}: {ratio:.1f}x, asked {at_least:g}x"

    def bandwidth(
        self, work: str, ours: Call, size: int, copy: Call, copied: int, at_least: float
    ) -> None:
        """Bytes a second: ours, which reads and writes `size` bytes, and a copy."""
        mine, theirs = measure(ours, copy)
        speed, limit = 1e-9 * size / mine.median, 1e-9 * copied / theirs.median
        print(
            f"{work:44} {mine} {speed:6.1f} GB/s, torch copy_ {limit:6.1f} GB/s, share "
            f"{speed / limit:.2f}, asked {at_least:g}",
            flush=True,
        )
        assert speed >= at_least * limit, f"{work}: {speed / limit:.2f} of a copy"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    threads, own = torch.get_num_threads(), _core.info()["threads"]
    torch.set_num_threads(1)
    dsg.set_num_threads(1)
    yield Table()
    torch.set_num_threads(threads)
    dsg.set_num_threads(own)


@pytest.fixture(scope="module")
def image() -> Tensor:
    """(1, 3, 256, 256)"""
    return photograph("astronaut")


def gradient(operator: NativeOperator, x: Tensor, y: Tensor) -> Tensor:
    return operator.residual_gradient(x, y)[0]


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Relative to the largest entry."""
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error <= tolerance, f"the two sides differ by {error:.1e}"


# ---- gradients ----


def test_gaussian_blur_gradient(table: Table, image: Tensor) -> None:
    A = GaussianBlur(61, std=3.0)
    y = A.measure(image, 0.05)
    x = image + 0.1
    kernel = torch.from_numpy(A.kernel.copy()).float()
    published = published_blur(kernel, 3)
    careful = careful_separable_blur(kernel[30] / kernel[30].sum(), 3)
    # Sums of 61^2 products on either side, twice; rounding grows like its root.
    for theirs in (published, careful):
        assert_close(gradient(A, x, y), autograd_gradient(theirs, x, y), 2 * 61 * EPS)
    table.row(
        "Gaussian blur 61x61, gradient, 3x256^2",
        lambda: gradient(A, x, y),
        lambda: autograd_gradient(published, x, y),
        lambda: autograd_gradient(careful, x, y),
        at_least=200,
    )


def motion_rows() -> list[tuple[str, int, float | None]]:
    """(label, seed, ratio asked).  Among the first 30 seeds of the published generator
    at its published intensity: the kernel whose number of taps is nearest 160, and the
    densest.  Seed 0 is the operator's default."""
    taps = {
        seed: np.count_nonzero(MotionBlur(61, 0.5, seed=seed).kernel)
        for seed in range(30)
    }
    middle = min(taps, key=lambda seed: abs(taps[seed] - 160))
    densest = max(taps, key=lambda seed: taps[seed])
    rows: list[tuple[str, int, float | None]] = [
        (f"motion 61x61 seed {middle}, {taps[middle]} taps", middle, 60.0)
    ]
    for seed in dict.fromkeys((0, densest)):
        if seed != middle:
            rows.append((f"motion 61x61 seed {seed}, {taps[seed]} taps", seed, None))
    return rows


@pytest.mark.parametrize(("label", "seed", "asked"), motion_rows())
def test_motion_blur_gradient(
    table: Table, image: Tensor, label: str, seed: int, asked: float | None
) -> None:
    A = MotionBlur(61, 0.5, seed=seed)
    y = A.measure(image, 0.05)
    x = image + 0.1
    kernel = torch.from_numpy(A.kernel.copy()).float()
    published = published_blur(kernel, 3)
    careful = careful_fourier_blur(kernel, 256, 256)
    for theirs in (published, careful):
        assert_close(gradient(A, x, y), autograd_gradient(theirs, x, y), 2 * 61 * EPS)
    table.row(
        f"{label}, gradient, 3x256^2",
        lambda: gradient(A, x, y),
        lambda: autograd_gradient(published, x, y),
        lambda: autograd_gradient(careful, x, y),
        at_least=asked,
    )


def test_bicubic_gradient(table: Table, image: Tensor) -> None:
    A = Downsample(4)
    y = A.measure(image, 0.05)
    x = image + 0.1
    published = published_resize(256, 4)
    matrix = resize_matrix(256, 4)
    # 16 + 16 products forward and 4 + 4 back, negative weights among them.
    for theirs in (
        autograd_gradient(published, x, y),
        careful_resize_gradient(matrix, x, y),
    ):
        assert_close(gradient(A, x, y), theirs, 40 * EPS)
    table.row(
        "bicubic x4, gradient, 3x256^2",
        lambda: gradient(A, x, y),
        lambda: autograd_gradient(published, x, y),
        lambda: careful_resize_gradient(matrix, x, y),
        at_least=40,
    )


def test_bicubic_forward(table: Table, image: Tensor) -> None:
    A = Downsample(4)
    published, matrix = published_resize(256, 4), resize_matrix(256, 4)
    # 16 + 16 products, negative weights among them
    for theirs in (published(image), matrix @ image @ matrix.T):
        assert_close(A(image), theirs, 32 * EPS)
    table.row(
        "bicubic x4, forward, 3x256^2",
        lambda: A(image),
        lambda: published(image),
        lambda: matrix @ image @ matrix.T,
        at_least=15,
    )


def test_phase_retrieval_gradient(table: Table, image: Tensor) -> None:
    A = PhaseRetrieval(2.0)
    pad = 64
    y = A.measure(image, 0.05)
    x = image + 0.1
    published, careful = published_phase(pad), careful_phase_gradient(y, pad)
    # Two transforms of 384^2: rounding of eps for each of their 17 stages, and what the
    # quotient z / |z| makes of it where |z| is small against the largest.
    for theirs in (autograd_gradient(published, x, y), careful(x)):
        assert_close(gradient(A, x, y), theirs, 64 * EPS)
    table.row(
        "phase retrieval, gradient, 3x256^2",
        lambda: gradient(A, x, y),
        lambda: autograd_gradient(published, x, y),
        lambda: careful(x),
        at_least=8,
    )


# ---- memory bandwidth ----


@pytest.mark.parametrize("kind", ["high dynamic range", "mask"])
def test_operators_that_move_memory(table: Table, kind: str) -> None:
    """Into tensors that exist: fresh pages cost more than all of the work.  Counted are
    x and y, or x, y and the gradient; a mask of one plane is not."""
    shape = (8, 3, 1024, 1024)
    A: NativeOperator
    if kind == "mask":
        A = Inpainting.random(1024)
    else:
        A = HighDynamicRange()
    handle = A.native(shape[1:], torch.float32)
    assert handle is not None
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5
    y, out, sqnorm = x.clone(), torch.empty_like(x), torch.zeros(8).double()
    image = x.numel() * x.element_size()

    def copy() -> None:
        y.copy_(x)

    table.bandwidth(
        f"{kind}, forward, 8x3x1024^2",
        lambda: handle.forward(out, x),
        2 * image,
        copy,
        2 * image,
        at_least=0.5,
    )
    table.bandwidth(
        f"{kind}, gradient, 8x3x1024^2",
        lambda: handle.residual_gradient(out, sqnorm, x, y),
        3 * image,
        copy,
        2 * image,
        at_least=0.5,
    )


# ---- data steps ----

RHO = 0.01  # noise 0.05 against a prior of standard deviation 0.5
TOLERANCE = 1e-5  # relative residual of conjugate gradients, ours and theirs


def prox_case(kind: str) -> tuple[NativeOperator, Forward, Prox]:
    """Ours, the published expression, and the careful data step of (v, y)."""
    if kind == "mask 70 %":
        A: NativeOperator = Inpainting.random(256)
        mask = torch.from_numpy(A.mask.copy()).float()
        return A, lambda x: x * mask, careful_mask_prox(mask, RHO)
    if kind == "bicubic x4":
        return (
            Downsample(4),
            published_resize(256, 4),
            careful_separable_prox(resize_matrix(256, 4), RHO),
        )
    if kind == "motion 61x61 reflect":
        A = MotionBlur(61, 0.5)
        kernel = torch.from_numpy(A.kernel.copy()).float()
        fourier = careful_fourier_blur(kernel, 256, 256)
        return (
            A,
            published_blur(kernel, 3),
            lambda v, y: conjugate_gradients(fourier, v, y, RHO, TOLERANCE),
        )
    if kind == "motion 61x61 circular":
        A = MotionBlur(61, 0.5, boundary="circular")
        kernel = torch.from_numpy(A.kernel.copy()).float()
        return (
            A,
            published_blur(kernel, 3, "circular"),
            careful_circular_prox(kernel, 256, 256, RHO),
        )
    A = GaussianBlur(61, 3.0)
    kernel = torch.from_numpy(A.kernel.copy()).float()
    matrix = blur_matrix(kernel[30] / kernel[30].sum(), 256)
    return A, published_blur(kernel, 3), careful_separable_prox(matrix, RHO)


@pytest.mark.parametrize(
    "kind",
    [
        "mask 70 %",
        "motion 61x61 circular",
        "Gaussian 61x61 reflect",
        "bicubic x4",
        "motion 61x61 reflect",
    ],
)
def test_prox(table: Table, image: Tensor, kind: str) -> None:
    """What is computed once for an operator is in nobody's time: our data step, torch's
    eigenvalues and singular vectors."""
    A, published, careful = prox_case(kind)
    y = A.measure(image, 0.05)
    v = image + 0.5 * torch.randn(
        image.shape, generator=torch.Generator().manual_seed(0)
    )

    def residual(x: Tensor) -> float:
        """||b - M x|| / ||b|| in float64."""
        wide, goal, start = x.double(), y.double(), v.double()
        b = A.adjoint(goal, image.shape[1:]) + RHO * start
        normal = A.adjoint(A(wide), image.shape[1:]) + RHO * wide
        return ((b - normal).norm() / b.norm()).item()

    calls = {
        "ours": lambda: A.prox(v, y, RHO, tolerance=TOLERANCE),
        "published": lambda: conjugate_gradients(published, v, y, RHO, TOLERANCE),
        "careful": lambda: careful(v, y),
    }
    residuals = {name: residual(call()) for name, call in calls.items()}
    # theirs is carried, not computed anew: a little drift is theirs to keep
    assert residuals["ours"] <= TOLERANCE
    assert max(residuals.values()) <= 2 * TOLERANCE
    table.row(f"prox, {kind}, 3x256^2", *calls.values(), at_least=10)
    told = ", ".join(f"{name} {value:.1e}" for name, value in residuals.items())
    print(f"    relative residuals: {told}")


# ---- projector ----


def float64_projection(state: Tensor, grad: Tensor) -> tuple[Tensor, list[int]]:
    """P(grad) from a float64 SVD, and the ranks; state and grad (C, H, W)."""
    u, s, vh = torch.linalg.svd(state.double(), full_matrices=False)
    ranks = rank_of(s, ENERGY).tolist()
    left = [a[:, :r] for a, r in zip(u, ranks, strict=True)]
    right = [a[:r] for a, r in zip(vh, ranks, strict=True)]
    return apply_factors((left, right), grad.double()), ranks


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("size", [64, 256])
def test_projector(table: Table, image: Tensor, size: int, noise: float) -> None:
    rng = torch.Generator().manual_seed(0)
    clean = torch.nn.functional.avg_pool2d(image, 256 // size)
    state = clean + noise * torch.randn(clean.shape, generator=rng)
    grad = torch.randn(clean.shape, generator=rng)

    projector = dsg.StateProjector(energy=ENERGY)
    subspace = projector.factors(state)
    exact, ranks = float64_projection(state[0], grad[0])
    assert list(subspace.ranks[0]) == ranks

    def error(got: Tensor) -> float:
        return ((got.double() - exact).norm() / exact.norm()).item()

    ours = error(subspace.apply(grad)[0])
    theirs = error(apply_factors(published_factors(state[0], ENERGY), grad[0]))
    # Float64 factors rounded once to float32, then four float32 products, each adding
    # rounding of about eps an entry, a little more in long sums; a float32 SVD gives
    # several times that.
    assert ours <= min(8 * EPS, theirs), f"projection error {ours:.1e}"

    # What the sampler does for each level: checks, room for the factors, factors, rank.
    kind = "photograph" if noise == 0 else f"the same + noise {noise:g}"
    table.row(
        f"projector factors, 3x{size}^2, {kind}",
        lambda: projector.factors(state),
        lambda: published_factors(state[0], ENERGY),
        lambda: careful_factors(state[0], ENERGY),
        at_least=2,
    )
    print(
        f"    ranks {ranks}; error against a float64 SVD: ours {ours:.1e}, float32 SVD "
        f"{theirs:.1e}"
    )


# ---- a step of the solver ----


def test_langevin_step_with_projection(table: Table, image: Tensor) -> None:
    A = GaussianBlur(61, std=3.0)
    sigma, tau, eta = 1.0, 0.01, 1e-5
    y = A.measure(image, 0.05)
    x0hat = A(image)
    subspace = dsg.StateProjector(energy=ENERGY).factors(x0hat)
    factors = published_factors(x0hat[0], ENERGY)
    kernel = torch.from_numpy(A.kernel.copy()).float()
    published = published_blur(kernel, 3)
    careful = careful_separable_blur(kernel[30] / kernel[30].sum(), 3)
    handle = A.native((3, 256, 256), torch.float32)
    sqnorm = torch.empty(1, dtype=torch.float64)
    weights = (eta, 1 / tau**2, 1 / sigma**2)

    # The same draw on both sides: one step with the noise handed over.
    draw = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    ours = x0hat.clone()
    _core.langevin(ours, sqnorm, x0hat, y, handle, subspace.native, draw, 1, *weights)
    grad = autograd_gradient(published, x0hat, y) / tau**2
    theirs = x0hat - eta * apply_factors(factors, grad[0])[None]
    # eta / tau^2 = 0.1 of the gradient's rounding adds little to that of x.
    assert_close(ours, theirs + (2 * eta) ** 0.5 * draw, 16 * EPS)

    steps = 20
    noise = CounterNoise(0, [0], [0])

    def level() -> None:
        x = x0hat.clone()
        key = noise.native(steps)
        _core.langevin(
            x, sqnorm, x0hat, y, handle, subspace.native, key, steps, *weights
        )

    settings = {"sigma": sigma, "tau": tau, "eta": eta}
    table.row(
        "Langevin step, Gaussian blur, projected",
        level,
        lambda: published_langevin_step(
            published, factors, x0hat, y, x0hat, **settings
        ),
        lambda: careful_langevin_step(careful, factors, x0hat, y, x0hat, **settings),
        at_least=80,
        per_call=steps,
    )
    print(f"    ranks {list(subspace.ranks[0])}; the decomposition is not in it")


# ---- metrics ----


def test_ssim(table: Table, image: Tensor) -> None:
    x = (image + 0.1 * torch.randn(image.shape)).clamp(-1, 1)
    a, b = (x + 1) / 2, (image + 1) / 2
    pictures = a[0].numpy(), b[0].numpy()

    def skimage_ssim() -> float:
        return structural_similarity(
            *pictures,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )

    ours = dsg.metrics.ssim(a, b, value_range=(0.0, 1.0)).item()
    # Second moments in float32, where x^2 - mean^2 cancels: errors of eps over C2.
    tolerance = 4 * EPS / 0.03**2
    assert abs(ours - skimage_ssim()) <= tolerance
    assert abs(ours - careful_ssim(a, b).item()) <= tolerance
    table.row(
        "SSIM, Gaussian 11x11, 3x256^2 (scikit-image)",
        lambda: dsg.metrics.ssim(a, b, value_range=(0.0, 1.0)),
        skimage_ssim,
        lambda: careful_ssim(a, b),
        at_least=15,
    )


def test_psnr(table: Table, image: Tensor) -> None:
    """No ratio is asked: a pass over both pictures is all there is to win or lose, and
    ours makes a second one, for values that are not finite or out of range."""
    x = (image + 0.1 * torch.randn(image.shape)).clamp(-1, 1)
    a, b = (x + 1) / 2, (image + 1) / 2
    pictures = b[0].numpy(), a[0].numpy()

    def careful() -> Tensor:
        return -10 * torch.log10((a - b).square().mean((1, 2, 3)))

    ours = dsg.metrics.psnr(a, b, value_range=(0.0, 1.0)).item()
    theirs = peak_signal_noise_ratio(*pictures, data_range=1.0)
    # 10 / ln 10 dB for each unit of relative error of the mean, which float32 knows to
    # a few eps
    tolerance = 16 * EPS * 10 / np.log(10)
    assert abs(ours - theirs) <= tolerance
    assert abs(ours - careful().item()) <= tolerance
    table.row(
        "PSNR, 3x256^2 (scikit-image)",
        lambda: dsg.metrics.psnr(a, b, value_range=(0.0, 1.0)),
        lambda: peak_signal_noise_ratio(*pictures, data_range=1.0),
        careful,
        at_least=None,
    )


# ---- memory ----


@pytest.mark.parametrize("operator", ["gaussian_blur", "motion_blur", "downsample"])
def test_memory_of_a_solve(table: Table, operator: str) -> None:
    size = 1024
    script = Path(__file__).parent / "memory_of_solve.py"

    def images(threshold: dict[str, str]) -> float:
        done = subprocess.run(
            [sys.executable, str(script), operator, str(size), "project"],
            env={**os.environ, "OMP_NUM_THREADS": "1", **threshold},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        return json.loads(done.stdout)["images"]

    # A fixed threshold gives every array its own pages, which go back when it is freed:
    # what is resident is what is in use.  By default glibc keeps freed blocks of up to
    # 32 MiB in its heap for the next ones.
    in_use = images({"MALLOC_MMAP_THRESHOLD_": str(2**16)})
    kept = images({})
    print(
        f"memory of a DAPS solve, projected, {operator}, 3x{size}^2: "
        f"{in_use:.1f} images in use at the peak (asked <= 12), {kept:.1f} resident "
        "with what glibc keeps",
        flush=True,
    )
    assert in_use <= 12
