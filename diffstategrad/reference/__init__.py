r"""The formulas of the compiled core in plain torch, for tensors on any device.

What `diffstategrad._core` offers is here under the same names and with the same
signatures: on the CPU the oracle that the core is compared with, on other devices what
is run.  Results are written into tensors that the caller allocated.  Derivatives are
explicit formulas, not autograd, so that they can serve below it.

With an image x (C, H, W), a measurement y, a cotangent v of y and a direction w of x,

.. math::
    J = \frac{\partial A}{\partial x}, \qquad
    \mathrm{vjp} = J^\top v, \qquad \mathrm{jvp} = J w, \qquad
    \mathrm{curvature} = \nabla_x \langle J(x)^\top v, w \rangle,

the last being 0 for a linear operator.

    operators   `mask`, `blur`, `resize`, `phase`, `pointwise`, `matrix`, `compose`,
                `warp`, each an `Op`; `blur_kernel_gradient`,
                `warp_displacement_gradient`
    data step   `DataStep`: argmin ||A x - y||^2 + rho ||x - v||^2, A^+ y and ||A||
    projector   `Projector`: P(G) = U_r U_r^T G V_r V_r^T
    updates     between two network calls: `euler_step`, `ddpm_step`, `ddim_step`,
                `renoise`, `ald_step`, `adam_step`; a level of DAPS: `langevin`, `hmc`,
                `mh`; `tv_prox`, `tv_norm`; random numbers: `normal`, `uniform`
    metrics     `psnr`, `nmse`, `ssim`

On the CPU images are worked on one by one, so that an image of a batch has the result
it has alone, bit for bit.  Elsewhere the batch is worked on as a whole: equal up to
rounding, and in CUDA the adjoints of borders and of `warp` add in no fixed order
(`Tensor.index_add_`) unless `torch.use_deterministic_algorithms` asks for one.  Sums
over an image are taken in float64 everywhere, so the device must have it.
"""

from __future__ import annotations

from diffstategrad.reference.data_step import DataStep
from diffstategrad.reference.metrics import nmse, psnr, ssim
from diffstategrad.reference.operators import (
    Op,
    blur,
    blur_kernel_gradient,
    compose,
    mask,
    matrix,
    phase,
    pointwise,
    resize,
    warp,
    warp_displacement_gradient,
)
from diffstategrad.reference.projector import Projector
from diffstategrad.reference.updates import (
    adam_step,
    ald_step,
    ddim_step,
    ddpm_step,
    euler_step,
    hmc,
    langevin,
    mh,
    normal,
    renoise,
    tv_norm,
    tv_prox,
    uniform,
)

__all__ = [
    "DataStep",
    "Op",
    "Projector",
    "adam_step",
    "ald_step",
    "blur",
    "blur_kernel_gradient",
    "compose",
    "ddim_step",
    "ddpm_step",
    "euler_step",
    "hmc",
    "langevin",
    "mask",
    "matrix",
    "mh",
    "nmse",
    "normal",
    "phase",
    "pointwise",
    "psnr",
    "renoise",
    "resize",
    "ssim",
    "tv_norm",
    "tv_prox",
    "uniform",
    "warp",
    "warp_displacement_gradient",
]
