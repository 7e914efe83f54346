r"""Image metrics: one number for every image of a batch.

Images are clipped to their range and mapped to [0, 1] in their own precision; sums are
taken in float64.  With :math:`\mathrm{mse}` the mean over channels and pixels,

.. math:: \mathrm{PSNR} = -10 \log_{10}(\mathrm{mse} + \varepsilon), \qquad
          \mathrm{NMSE} = \frac1C \sum_c
          \frac{\overline{(r_c - x_c)^2}}{\overline{r_c^2} + 10^{-6}},

and SSIM the mean over channels and over all windows wholly inside the image of

.. math:: \frac{(2 \mu_x \mu_r + C_1)(2 \sigma_{xr} + C_2)}
          {(\mu_x^2 + \mu_r^2 + C_1)(\sigma_x^2 + \sigma_r^2 + C_2)},
          \qquad C_1 = 0.01^2,\ C_2 = 0.03^2.

The published codes measure in two ways, and their numbers differ; say which was used.
`lpips` and `fid`, which need networks, are in `diffstategrad.perceptual`.

References
----------
Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to
structural similarity", IEEE TIP 13(4), 2004.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffstategrad._backend import backend
from diffstategrad._options import nearest
from diffstategrad._range import Images, unit_pair
from diffstategrad.perceptual import fid, lpips

__all__ = ["fid", "lpips", "nmse", "psnr", "ssim"]

_FLOORS = {"skimage": 0.0, "piq": 1e-8}
#: Side of the Gaussian window of SSIM, in pixels.
SSIM_WINDOW = 11
_WINDOWS = {"gaussian": (0, SSIM_WINDOW), "uniform": (1, 7)}


def psnr(
    x: Images,
    ref: Images,
    *,
    convention: Literal["skimage", "piq"] = "skimage",
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Images:
    r"""Peak signal-to-noise ratio in dB.

    Parameters
    ----------
    x, ref : Tensor or array, shape (B, C, H, W), float32 or float64
        Reconstruction and ground truth, in `value_range`; what is outside is clipped.
    convention : "skimage" or "piq"
        :math:`\varepsilon` is 0 (equal images have +Inf) or 1e-8 (at most 80 dB).
    value_range : (low, high)

    Returns
    -------
    Tensor, shape (B,), float64; an array for arrays.

    Raises
    ------
    TypeError
        For another dtype, or two different ones.
    ValueError
        If shapes differ, values are NaN or infinite, or an option is unknown.
    """
    if convention not in _FLOORS:
        raise ValueError(
            f"psnr: unknown convention {convention!r}{nearest(convention, _FLOORS)}"
        )
    floor = _FLOORS[convention]
    u, v = unit_pair(x, ref, value_range)
    return _per_image(lambda out: backend(u.device).psnr(out, u, v, 1.0, floor), x, u)


def nmse(
    x: Images, ref: Images, *, value_range: tuple[float, float] = (-1.0, 1.0)
) -> Images:
    """Mean squared error relative to the energy of `ref`, mean over channels.

    Parameters, results and errors as in `psnr`.
    """
    u, v = unit_pair(x, ref, value_range)
    return _per_image(lambda out: backend(u.device).nmse(out, u, v), x, u)


def ssim(
    x: Images,
    ref: Images,
    *,
    window: Literal["gaussian", "uniform"] = "gaussian",
    downsample: bool = True,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Images:
    """Structural similarity, at most 1.

    Parameters
    ----------
    x, ref, value_range
        As in `psnr`.
    window : "gaussian" or "uniform"
        11 x 11 of standard deviation 1.5 with population moments (piq), or 7 x 7 with
        unbiased moments (scikit-image's default).
    downsample : bool
        Gaussian window only: average over squares of round(min(H, W) / 256) pixels
        first, as piq does; changes nothing below 384 pixels.

    Raises
    ------
    TypeError
        As in `psnr`.
    ValueError
        As in `psnr`, and for an image smaller than the window.
    """
    if window not in _WINDOWS:
        raise ValueError(f"ssim: unknown window {window!r}{nearest(window, _WINDOWS)}")
    code, size = _WINDOWS[window]
    u, v = unit_pair(x, ref, value_range)
    factor = round(min(u.shape[2:]) / 256)
    if window == "gaussian" and downsample and factor > 1:
        u, v = F.avg_pool2d(u, factor), F.avg_pool2d(v, factor)
    if min(u.shape[2:]) < size:
        raise ValueError(
            f"ssim: the {window} window needs images of at least {size} x {size}, "
            f"got {u.shape[2]} x {u.shape[3]}"
        )
    return _per_image(lambda out: backend(u.device).ssim(out, u, v, 1.0, code), x, u)


def _per_image(measure: Callable[[Tensor], None], x: Images, u: Tensor) -> Images:
    """What `measure` writes, as a tensor, or as an array when the user gave one."""
    out = torch.empty(len(u), dtype=torch.float64, device=u.device)
    if len(u):
        measure(out)
    return cast(Images, out.numpy() if isinstance(x, np.ndarray) else out)
