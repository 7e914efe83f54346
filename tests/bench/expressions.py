"""What a torch user writes for the same work, in two forms.

`published_*` follow the expressions of the published DPS, DAPS and DiffStateGrad codes:
a dense grouped convolution after padding, a gather for the bicubic resize, a complex
FFT of the padded image between two shifts, a full SVD, and autograd of the squared norm
for every gradient.  `careful_*` are what somebody who knows torch writes once it
matters: separable or Fourier convolutions, matrix products, real FFTs, closed forms, an
explicit adjoint where it is a line.

All gradients are those of half the squared norm of A(x) - y.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Forward = Callable[[Tensor], Tensor]


def autograd_gradient(forward: Forward, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of half the squared residual norm, as autograd finds it."""
    x = x.detach().requires_grad_(True)
    loss = 0.5 * (forward(x) - y).square().sum()
    return torch.autograd.grad(loss, x)[0]


# ---- blur ----


def published_blur(kernel: Tensor, channels: int, mode: str = "reflect") -> Forward:
    """Padding, then the whole kernel as a grouped convolution."""
    weight = kernel.expand(channels, 1, *kernel.shape).contiguous()
    pad = kernel.shape[-1] // 2

    def forward(x: Tensor) -> Tensor:
        padded = F.pad(x, (pad,) * 4, mode=mode)
        return F.conv2d(padded, weight, groups=channels)

    return forward


def careful_separable_blur(row: Tensor, channels: int) -> Forward:
    """Two one-dimensional convolutions with the taps that are not zero."""
    used = torch.nonzero(row).flatten()
    row = row[used[0] : used[-1] + 1]
    pad = len(row) // 2
    across = row.expand(channels, 1, 1, -1).contiguous()
    down = row[:, None].expand(channels, 1, -1, 1).contiguous()

    def forward(x: Tensor) -> Tensor:
        padded = F.pad(x, (pad,) * 4, mode="reflect")
        return F.conv2d(
            F.conv2d(padded, across, groups=channels), down, groups=channels
        )

    return forward


def careful_fourier_blur(kernel: Tensor, height: int, width: int) -> Forward:
    """The correlation as a product of real FFTs of the padded image."""
    pad = kernel.shape[-1] // 2
    size = (fast_size(height + 2 * pad), fast_size(width + 2 * pad))
    spectrum = torch.fft.rfft2(kernel, size).conj()

    def forward(x: Tensor) -> Tensor:
        padded = F.pad(x, (pad,) * 4, mode="reflect")
        product = torch.fft.rfft2(padded, size) * spectrum
        return torch.fft.irfft2(product, size)[..., :height, :width]

    return forward


def fast_size(n: int) -> int:
    """The next size with no prime factor over 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


# ---- bicubic downsampling ----


def bicubic_taps(size: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights (taps, size / factor) of the antialiased cubic, a = -1/2.

    Mirrored with the edge pixel repeated; every column of weights sums to 1.
    """
    centre = (np.arange(size // factor) + 0.5) * factor - 0.5
    first = np.floor(centre - 2 * factor).astype(int) + 1
    index = first + np.arange(4 * factor)[:, None]
    t = np.abs(index - centre) / factor
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weight = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    weight /= weight.sum(0)
    index %= 2 * size
    return np.where(index < size, index, 2 * size - 1 - index), weight


def published_resize(size: int, factor: int) -> Forward:
    """For each axis: gather, weight, sum, with the axis in front."""
    index, weight = bicubic_taps(size, factor)
    taps = torch.from_numpy(index)
    weights = torch.from_numpy(weight).float()[:, :, None, None, None]

    def forward(x: Tensor) -> Tensor:
        for axis in (2, 3):
            front = x.transpose(axis, 0)
            x = (front[taps] * weights).sum(0).transpose(axis, 0)
        return x

    return forward


def resize_matrix(size: int, factor: int) -> Tensor:
    """B with A(X) = B X B^T, (size / factor, size)."""
    index, weight = bicubic_taps(size, factor)
    matrix = np.zeros((size // factor, size))
    for taps, weights in zip(index, weight, strict=True):
        np.add.at(matrix, (np.arange(size // factor), taps), weights)
    return torch.from_numpy(matrix).float()


def careful_resize_gradient(matrix: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """B^T (B X B^T - Y) B."""
    return matrix.T @ (matrix @ x @ matrix.T - y) @ matrix


# ---- phase retrieval ----


def published_phase(pad: int) -> Forward:
    """Magnitude of the shifted orthonormal FFT of (x + 1) / 2 within zeros."""
    axes = (-2, -1)

    def forward(x: Tensor) -> Tensor:
        padded = F.pad(x * 0.5 + 0.5, (pad,) * 4).type(torch.complex64)
        spectrum = torch.fft.fft2(torch.fft.ifftshift(padded, axes), norm="ortho")
        return torch.fft.fftshift(spectrum, axes).abs()

    return forward


def careful_phase_gradient(y: Tensor, pad: int) -> Forward:
    """The gradient at x, half the plane at a time: Re crop F^H [(|z| - y) z / |z|] / 2.

    |z| is even, so that only the even part of y matters, which is found here once.
    """
    axes, size = (-2, -1), y.shape[-2:]
    corner = torch.fft.ifftshift(y, axes)
    even = 0.5 * (corner + corner.flip(axes).roll((1, 1), axes))
    even = even[..., : size[1] // 2 + 1].contiguous()
    height, width = (n - 2 * pad for n in size)

    def gradient(x: Tensor) -> Tensor:
        z = torch.fft.rfft2(x * 0.5 + 0.5, size, norm="ortho")
        magnitude = z.abs()
        z *= (magnitude - even) / magnitude.clamp_min(1e-30)
        return 0.5 * torch.fft.irfft2(z, size, norm="ortho")[..., :height, :width]

    return gradient


# ---- data steps: argmin ||A x - y||^2 + rho ||x - v||^2 ----


def conjugate_gradients(
    forward: Forward, v: Tensor, y: Tensor, rho: float, tolerance: float
) -> Tensor:
    """(A^T A + rho) x = A^T y + rho v from x = v, until the carried residual is below
    `tolerance` times the right-hand side; A^T A p is a gradient of autograd's."""
    zero = torch.zeros_like(y)
    b = rho * v - autograd_gradient(forward, torch.zeros_like(v), y)
    limit = tolerance * b.norm()
    x = v.clone()
    r = b - autograd_gradient(forward, x, zero) - rho * x
    p, rr = r.clone(), r.square().sum()
    for _ in range(1000):
        if rr.sqrt() <= limit:
            break
        q = autograd_gradient(forward, p, zero).add_(p, alpha=rho)
        step = rr / (p * q).sum()
        x += step * p
        r -= step * q
        before, rr = rr, r.square().sum()
        p = r + rr / before * p
    return x


def careful_mask_prox(mask: Tensor, rho: float) -> Callable[[Tensor, Tensor], Tensor]:
    """(y + rho v) / (1 + rho) where the pixel is seen, v elsewhere."""
    seen = mask.bool()

    def prox(v: Tensor, y: Tensor) -> Tensor:
        return torch.where(seen, (y + rho * v) / (1 + rho), v)

    return prox


def careful_circular_prox(
    kernel: Tensor, height: int, width: int, rho: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Diagonal after a real FFT."""
    size, (kh, kw) = (height, width), kernel.shape
    padded = F.pad(kernel, (0, width - kw, 0, height - kh))
    padded = padded.roll((-(kh // 2), -(kw // 2)), (0, 1))
    transfer = torch.fft.rfft2(padded).conj()
    gain = 1 / (transfer.abs().square() + rho)

    def prox(v: Tensor, y: Tensor) -> Tensor:
        b = transfer.conj() * torch.fft.rfft2(y) + rho * torch.fft.rfft2(v)
        return torch.fft.irfft2(b * gain, size)

    return prox


def careful_separable_prox(
    matrix: Tensor, rho: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """A(X) = R X R^T in every channel, diagonal in the singular vectors of R (m, n):
    six products with thin factors."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    d = torch.outer(s, s)
    to_y = (d / (d.square() + rho)).float()
    to_v = (rho / (d.square() + rho) - 1).float()
    u, vt = u.float(), vt.float()

    def prox(v: Tensor, y: Tensor) -> Tensor:
        middle = to_y * (u.T @ y @ u) + to_v * (vt @ v @ vt.T)
        return v + vt.T @ middle @ vt

    return prox


def blur_matrix(row: Tensor, size: int) -> Tensor:
    """(size, size): one axis of a separable blur with reflected borders."""
    pad = len(row) // 2
    padded = F.pad(torch.eye(size)[:, None], (pad, pad), mode="reflect")
    return F.conv1d(padded, row.view(1, 1, -1))[:, 0].T.contiguous()


# ---- projector ----


def rank_of(s: Tensor, energy: float) -> Tensor:
    """Smallest r per channel whose first r singular values keep `energy`."""
    kept = s.square().cumsum(-1)
    kept /= kept[..., -1:].clone()
    return (kept < energy).sum(-1) + 1


def published_factors(
    state: Tensor, energy: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Full SVD in the state's precision; U_r and V_r^T of every channel."""
    u, s, vh = torch.linalg.svd(state, full_matrices=False)
    ranks = rank_of(s, energy).tolist()
    left = [a[:, :r] for a, r in zip(u, ranks, strict=True)]
    right = [a[:r] for a, r in zip(vh, ranks, strict=True)]
    return left, right


def careful_factors(state: Tensor, energy: float) -> tuple[list[Tensor], list[Tensor]]:
    """Eigenvectors of A A^T in float64, the other side from V = A^T U / s."""
    a = state.double()
    values, vectors = torch.linalg.eigh(a @ a.mT)
    s = values.flip(-1).clamp_min(0).sqrt()
    u = vectors.flip(-1)
    ranks = rank_of(s, energy).tolist()
    left = [u[c, :, :r] for c, r in enumerate(ranks)]
    right = [(left[c].T @ a[c] / s[c, :r, None]).float() for c, r in enumerate(ranks)]
    return [matrix.float() for matrix in left], right


def apply_factors(factors: tuple[list[Tensor], list[Tensor]], grad: Tensor) -> Tensor:
    """U_r (U_r^T G V_r) V_r^T channel by channel, grad (C, H, W)."""
    return torch.stack(
        [u @ (u.T @ g @ vh.T) @ vh for u, vh, g in zip(*factors, grad, strict=True)]
    )


# ---- one Langevin step ----


def published_langevin_step(
    forward: Forward,
    factors: tuple[list[Tensor], list[Tensor]],
    x: Tensor,
    y: Tensor,
    x0hat: Tensor,
    *,
    sigma: float,
    tau: float,
    eta: float,
) -> Tensor:
    """Autograd of both terms, the projection, the step, the noise, the NaN test."""
    x = x.detach().requires_grad_(True)
    loss = (forward(x) - y).square().sum() / (2 * tau**2)
    loss = loss + (x - x0hat).square().sum() / (2 * sigma**2)
    (grad,) = torch.autograd.grad(loss, x)
    with torch.no_grad():
        x = x - eta * apply_factors(factors, grad[0])[None]
        x = x + (2 * eta) ** 0.5 * torch.randn_like(x)
        if torch.isnan(x).any():
            return torch.zeros_like(x)
    return x


def careful_langevin_step(
    forward: Forward,
    factors: tuple[list[Tensor], list[Tensor]],
    x: Tensor,
    y: Tensor,
    x0hat: Tensor,
    *,
    sigma: float,
    tau: float,
    eta: float,
) -> Tensor:
    """Autograd of the likelihood alone, everything else in place."""
    grad = autograd_gradient(forward, x, y).div_(tau**2)
    grad.add_(x - x0hat, alpha=1 / sigma**2)
    x = x - eta * apply_factors(factors, grad[0])[None]
    return x.add_(torch.randn_like(x), alpha=(2 * eta) ** 0.5)


# ---- SSIM ----


def careful_ssim(x: Tensor, ref: Tensor) -> Tensor:
    """Gaussian 11 x 11 windows of std 1.5, separable, x and ref (B, C, H, W) in
    [0, 1]."""
    offset = torch.arange(-5, 6, dtype=x.dtype)
    row = torch.exp(-0.5 * (offset / 1.5) ** 2)
    row /= row.sum()
    stack = torch.cat([x, ref, x * x, ref * ref, x * ref], 1)
    channels = stack.shape[1]
    across = row.expand(channels, 1, 1, -1).contiguous()
    down = row[:, None].expand(channels, 1, -1, 1).contiguous()
    means = F.conv2d(F.conv2d(stack, across, groups=channels), down, groups=channels)
    mx, mr, xx, rr, xr = means.chunk(5, 1)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mx * mr + c1) / (mx * mx + mr * mr + c1)
    structure = (2 * (xr - mx * mr) + c2) / (xx - mx * mx + rr - mr * mr + c2)
    return (luminance * structure).mean((1, 2, 3))
