r"""Blur by a network: an encoded kernel instead of an array of taps.

:math:`A(x) = \operatorname{clamp}(2 \operatorname{blur}(h, k) - 1, -1, 1)` with
:math:`h = (x + 1) / 2` and the blur of :mod:`diffstategrad.models.kernel_wizard`.  The
code :math:`k` is constant: the published codes of DPS draw another for every call, so
that the measurement and its predictions have different blurs; those of ReSample,
DiffStateGrad and DAPS draw the one that is the default here.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffstategrad._options import is_int
from diffstategrad._tensor import as_array, as_tensor, check_images, in_full
from diffstategrad.models.kernel_wizard import KernelWizard, load_kernel_wizard
from diffstategrad.operators.base import Operator, Shape, takes_arrays

__all__ = ["NonlinearBlur"]


class NonlinearBlur(Operator):
    """The non-linear deblurring task; the measurement has the size of the image.

    Images have 3 channels and sides that are multiples of 128 (256 x 256 in the
    published tasks).  They go through the network one by one, so that a batch has the
    results of its images, bit for bit.

    Parameters
    ----------
    weights : path or KernelWizard
        A file for `load_kernel_wizard`, such as the published GOPRO_wVAE.pth, or a
        network, of which the operator keeps a copy.
    code : array or Tensor, shape (1, channels, H / 128, W / 128), optional
        Encoded kernel, kept as float32 on the CPU; it fixes the size of the images.
    seed : int
        Without a code: it is 1.2 times the standard normals that NumPy's legacy
        generator of this seed draws for the size of the image.  No global generator is
        used or set.

    Attributes
    ----------
    network : KernelWizard
        Evaluation mode, gradients off.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        If the weights cannot be loaded, the code has other axes, NaN or infinite
        entries or the seed is none; later, if images do not fit.

    Notes
    -----
    Gradients reach x through the network and both affine maps and, where it is not
    active, the clamp; the weights get none.  `spec` holds the path of the weights: an
    operator made of a network object cannot be built again from its record.

    References
    ----------
    Tran, Tran, Phung, Hoai, "Explore Image Deblurring via Encoded Blur Kernel Space",
    CVPR 2021.  Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse
    Problems", ICLR 2023, appendix (the task).
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | KernelWizard,
        *,
        code: np.ndarray | Tensor | None = None,
        seed: int = 0,
    ):
        if not isinstance(weights, str | os.PathLike | KernelWizard):
            raise TypeError(
                "NonlinearBlur: weights must be a path or a KernelWizard, "
                f"got {type(weights).__name__}"
            )
        if not is_int(seed, 0) or seed >= 2**32:
            raise ValueError(
                f"NonlinearBlur: seed must be an int in 0..2**32 - 1, got {seed!r}"
            )
        self.seed = int(seed)
        self.weights: str | None = None
        if isinstance(weights, KernelWizard):
            self.network = copy.deepcopy(weights).eval().requires_grad_(False)
        else:
            self.weights = os.fspath(weights)
            self.network = load_kernel_wizard(weights)
        self.code = (
            None
            if code is None
            else self._check_code(as_array(code, "NonlinearBlur: code"))
        )
        self._networks: dict[tuple[torch.device, torch.dtype], KernelWizard] = {}

    def _check_code(self, code: np.ndarray) -> np.ndarray:
        channels = self.network.kernel_channels
        if (
            code.ndim != 4
            or code.shape[:2] != (1, channels)
            or code.size == 0
            or code.dtype.kind not in "fiu"
        ):
            raise ValueError(
                f"NonlinearBlur: code must be a real array (1, {channels}, H / 128, "
                f"W / 128), got {code.dtype} of shape {code.shape}"
            )
        code = np.array(code, dtype=np.float32, order="C")
        if not np.isfinite(code).all():
            raise ValueError("NonlinearBlur: code has NaN or infinite entries")
        code.flags.writeable = False
        return code

    def out_shape(self, shape: Shape) -> Shape:
        stride = self.network.stride
        c, *sides = shape
        if self.code is not None:
            height, width = (stride * n for n in self.code.shape[2:])
            if (c, *sides) != (3, height, width):
                raise ValueError(
                    f"NonlinearBlur: a code of shape {self.code.shape} is for images "
                    f"of {(3, height, width)}, got {tuple(shape)}"
                )
        elif c != 3 or any(n < 1 or n % stride for n in sides):
            raise ValueError(
                "NonlinearBlur: images must have 3 channels and height and width that "
                f"are multiples of {stride}, got {tuple(shape)}"
            )
        return shape

    def code_for(self, shape: Shape) -> np.ndarray:
        """The code of images of `shape`: (1, channels, H / 128, W / 128), float32."""
        _, height, width = self.out_shape(shape)
        if self.code is not None:
            return self.code
        stride = self.network.stride
        sides = (height // stride, width // stride)
        normal = np.random.RandomState(self.seed).randn(
            1, self.network.kernel_channels, *sides
        )
        return (1.2 * normal).astype(np.float32)

    @takes_arrays
    def __call__(self, x: Tensor) -> Tensor:
        x = as_tensor(x, "x")
        check_images(x, "x")
        code = torch.from_numpy(self.code_for(tuple(x.shape[1:])).copy()).to(x)
        network = self._network_for(x)
        out = [self._blur(network, x[i : i + 1], code) for i in range(len(x))]
        return torch.cat(out) if out else x.clone()

    @staticmethod
    def _blur(network: KernelWizard, x: Tensor, code: Tensor) -> Tensor:
        with in_full(x.device):
            blurred = network((x.contiguous() + 1) / 2, code)
        return (2 * blurred - 1).clamp(-1, 1)

    def _network_for(self, x: Tensor) -> KernelWizard:
        """The network in the precision and on the device of x."""
        key = (x.device, x.dtype)
        if key not in self._networks:
            own = next(self.network.parameters())
            same = (own.device, own.dtype) == key
            network = self.network if same else copy.deepcopy(self.network).to(x)
            self._networks[key] = network
        return self._networks[key]

    def spec(self) -> dict[str, Any]:
        record: dict[str, Any] = {"name": "nonlinear_blur", "weights": self.weights}
        if self.code is not None:
            return {**record, "code": self.code}
        return {**record, "seed": self.seed}

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_networks": {},
        }  # copies, made again where needed
