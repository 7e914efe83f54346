r"""Metrics that look at images through a trained network: LPIPS and FID.

With :math:`\hat f_l` the features of layer :math:`l`, of unit length over channels,

.. math:: \mathrm{LPIPS}(x, r) = \sum_l \operatorname{mean}_{hw} \sum_c
          w_{lc} \, (\hat f_{lc}(x) - \hat f_{lc}(r))^2,

and with mean :math:`\mu` and covariance :math:`\Sigma` (of N - 1) of the features of
two sets of images,

.. math:: \mathrm{FID} = \|\mu_1 - \mu_2\|^2
          + \operatorname{tr} (\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2}).

The networks are those of torchmetrics, which is kept up and ships the learned
:math:`w` of the lpips package: ``pip install 'diffstategrad[metrics]'``.  Weights of
the networks themselves are files that are never fetched here; an error says which one
is missing and where it belongs.  Files are read as tensors only, no pickle is executed.

References
----------
Zhang, Isola, Efros, Shechtman, Wang, "The unreasonable effectiveness of deep features
as a perceptual metric", CVPR 2018.

Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, "GANs trained by a two time-scale
update rule converge to a local Nash equilibrium", NeurIPS 2017.
"""

from __future__ import annotations

import io
import os
import pickle
import textwrap
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffstategrad._options import nearest
from diffstategrad._range import Images, unit_pair, unit_range
from diffstategrad._tensor import as_tensor, check_alike, check_images

__all__ = ["fid", "frechet_distance", "lpips"]


class _Weights(NamedTuple):
    """A file in the folder of torch.hub, and the call that puts it there."""

    file: str
    fetch: str


_LPIPS_WEIGHTS = {
    "vgg": _Weights(
        "vgg16-397923af.pth",
        "import torchvision; torchvision.models.vgg16(weights='IMAGENET1K_V1')",
    ),
    "alex": _Weights(
        "alexnet-owt-7be5be79.pth",
        "import torchvision; torchvision.models.alexnet(weights='IMAGENET1K_V1')",
    ),
}
#: Images smaller than this have nothing left after the last pooling.
_LPIPS_SIDE = {"vgg": 16, "alex": 31}
_LPIPS_CONVENTIONS = ("correct", "diffstategrad")
_FID_WEIGHTS = {
    "standard": _Weights(
        "weights-inception-2015-12-05-6726825d.pth",
        "from torchmetrics.image.fid import FrechetInceptionDistance as F; F()",
    ),
    "daps": _Weights(
        "inception_v3_google-0cc3c7bd.pth",
        "import torchvision; torchvision.models.inception_v3(weights='IMAGENET1K_V1')",
    ),
}
_FID_CHUNK = 16
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def lpips(
    x: Images,
    ref: Images,
    *,
    net: Literal["vgg", "alex"] = "vgg",
    convention: Literal["correct", "diffstategrad"] = "correct",
    value_range: tuple[float, float] = (-1.0, 1.0),
    weights: str | os.PathLike[str] | None = None,
) -> Images:
    """Learned perceptual distance, at least 0; version 0.1 of the lpips package.

    Runs image by image, so that a batch has the values its images have alone.  Two
    things differ from other codes: features are divided by sqrt(1e-8 + norm^2), as in
    torchmetrics, where the lpips package adds 1e-10 to the norm; and pooling is the
    network's own (max), where piq, the measure of DAPS, takes averages.

    Parameters
    ----------
    x, ref : Tensor or array, shape (B, 3, H, W), float32 or float64
        Reconstruction and ground truth, in `value_range`; what is outside is clipped.
    net : "vgg" or "alex"
        Images of at least 16 or 31 pixels a side.
    convention : "correct" or "diffstategrad"
        The network gets [-1, 1], as it was trained; or [0, 1], as the evaluation
        script of DiffStateGrad feeds it: half the contrast, and other numbers.
    value_range : (low, high)
    weights : path, optional
        torchvision's file of the network (.pth, or the same tensors as .safetensors);
        default where torch.hub keeps it.

    Returns
    -------
    Tensor, shape (B,), float64; an array for arrays.

    Raises
    ------
    TypeError
        For another dtype, or two different ones.
    ValueError
        If shapes differ or do not fit the network, values are NaN or infinite, an
        option is unknown, or the file holds something else.
    ImportError
        Without torchmetrics, torchvision and torch-fidelity.
    FileNotFoundError
        Without weights; nothing is downloaded.
    """
    _known("lpips", "net", net, _LPIPS_WEIGHTS)
    _known("lpips", "convention", convention, _LPIPS_CONVENTIONS)
    u, v = unit_pair(x, ref, value_range)
    _check_rgb("lpips", u)
    side = _LPIPS_SIDE[net]
    if min(u.shape[2:]) < side:
        raise ValueError(
            f"lpips: net {net!r} needs images of at least {side} x {side}, "
            f"got {u.shape[2]} x {u.shape[3]}"
        )
    network = _cached("lpips", _lpips_network, net, _LPIPS_WEIGHTS[net], weights)
    network.to(u.device)
    u, v = u.float(), v.float()
    if convention == "correct":
        u, v = 2 * u - 1, 2 * v - 1
    out = torch.empty(len(u), dtype=torch.float64, device=u.device)
    with torch.no_grad():
        for i in range(len(u)):
            out[i] = network(u[i : i + 1], v[i : i + 1]).item()
    return cast(Images, out.numpy() if isinstance(x, np.ndarray) else out)


def fid(
    x: Images,
    ref: Images,
    *,
    convention: Literal["standard", "daps"] = "standard",
    value_range: tuple[float, float] = (-1.0, 1.0),
    weights: str | os.PathLike[str] | None = None,
) -> float:
    """Frechet Inception distance of two sets of images, at least 0.

    Numbers of different conventions, and of sets of different size, do not compare.

    Parameters
    ----------
    x, ref : Tensor or array, shapes (N, 3, H, W) and (M, 3, H', W'), N, M >= 2
        Reconstructions and reference images, in `value_range`; clipped.
    convention : "standard" or "daps"
        The Inception network of the original TensorFlow code with its resize, images
        rounded to 8 bits (torch-fidelity, pytorch-fid); or torchvision's inception_v3
        with bilinear resize to 299, `x` truncated to 8 bits, as DAPS measures.
    value_range : (low, high)
    weights : path, optional
        File of the network (.pth or .safetensors); default where torch.hub keeps it.

    Raises
    ------
    TypeError, ValueError, ImportError, FileNotFoundError
        As in `lpips`, and ValueError for fewer than two images.
    """
    _known("fid", "convention", convention, _FID_WEIGHTS)
    pair = {"x": as_tensor(x, "x"), "ref": as_tensor(ref, "ref")}
    for name, t in pair.items():
        check_images(t, name)
    check_alike(**pair)
    u, v = unit_range(x, "x", value_range), unit_range(ref, "ref", value_range)
    for name, t in (("x", u), ("ref", v)):
        _check_rgb("fid", t)
        if len(t) < 2:
            raise ValueError(f"fid: {name} must have at least 2 images, got {len(t)}")
    build = _fid_standard if convention == "standard" else _fid_daps
    network = _cached("fid", build, convention, _FID_WEIGHTS[convention], weights)
    if convention == "standard":
        u, v = ((255 * t).round().to(torch.uint8) for t in (u, v))
    else:
        u = (255 * u).floor() / 255
    return frechet_distance(_features(network, u), _features(network, v))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Frechet distance of the Gaussians that fit two sets of features.

    With centred features :math:`X_i`, :math:`\operatorname{tr} (\Sigma_1
    \Sigma_2)^{1/2}` is the sum of the singular values of :math:`X_1 X_2^\top` over
    :math:`\sqrt{(N - 1)(M - 1)}`: exact where N < D makes covariances singular, and no
    D x D root is taken.

    Parameters
    ----------
    a, b : Tensor, shapes (N, D) and (M, D)
        N, M >= 2; computed in float64.
    """
    a, b = a.double(), b.double()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    a, b = ((t - t.mean(0)) / (len(t) - 1) ** 0.5 for t in (a, b))
    spread = a.square().sum() + b.square().sum()
    # X^T X is R^T R: no more rows than columns
    a, b = (torch.linalg.qr(t, "r").R if len(t) > t.shape[1] else t for t in (a, b))
    common = torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(shift + spread - 2 * common))


# Networks ----------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _lpips_network(net: str, path: Path, stamp: int) -> nn.Module:
    """torchmetrics' LPIPS with the convolutions of `path`."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    with torch.random.fork_rng(devices=[]):  # its random start is overwritten
        network = _NoTrainLpips(net=net, pnet_rand=True)
    stored = _read("lpips", path)
    # 'slice2.5.weight' of the network is 'features.5.weight' of torchvision
    names = {k: "features." + k.partition(".")[2] for k in network.net.state_dict()}
    _load("lpips", network.net, {k: stored.get(v) for k, v in names.items()}, path)
    return network


@lru_cache(maxsize=1)
def _fid_standard(convention: str, path: Path, stamp: int) -> nn.Module:
    """The converted TensorFlow network: bytes to 2048 features."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    # torch-fidelity would unpickle the file: it gets the tensors alone
    safe = io.BytesIO()
    torch.save(_read("fid", path), safe)
    safe.seek(0)
    try:
        return NoTrainInceptionV3(
            "inception-v3-compat", ["2048"], safe, antialias=False
        )
    except RuntimeError as error:
        raise _misfit("fid", path, error) from None


@lru_cache(maxsize=1)
def _fid_daps(convention: str, path: Path, stamp: int) -> nn.Module:
    """torchvision's network without its last layer: [0, 1] to 2048 features."""
    import torchvision

    with torch.random.fork_rng(devices=[]):
        network = torchvision.models.inception_v3(
            weights=None, transform_input=True, init_weights=False
        )
    stored = _read("fid", path)
    names = network.state_dict()
    _load("fid", network, {name: stored.get(name) for name in names}, path)
    network.fc = nn.Identity()
    return _Normalised(network.eval())


class _Normalised(nn.Module):
    """Resizes to 299 and takes ImageNet's mean and deviation out, then the network."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(3, 1, 1))

    def forward(self, u: Tensor) -> Tensor:
        u = F.interpolate(
            u.float(), size=(299, 299), mode="bilinear", align_corners=False
        )
        return self.network((u - self.mean) / self.std)


def _features(network: nn.Module, u: Tensor) -> Tensor:
    network.to(u.device)
    with torch.no_grad():
        return torch.cat([network(chunk).double() for chunk in u.split(_FID_CHUNK)])


# What a call needs: options, the library, a file -------------------------------------


def _known(caller: str, option: str, given: object, valid: Any) -> None:
    if given not in valid:
        raise ValueError(f"{caller}: unknown {option} {given!r}{nearest(given, valid)}")


def _check_rgb(caller: str, u: Tensor) -> None:
    if u.shape[1] != 3:
        raise ValueError(
            f"{caller} needs 3 channels, got {u.shape[1]}; "
            "a grey image is x.expand(-1, 3, -1, -1)"
        )


def _cached(
    caller: str,
    build: Callable[[str, Path, int], nn.Module],
    kind: str,
    known: _Weights,
    weights: str | os.PathLike[str] | None,
) -> nn.Module:
    """The network, built once for a file as it is now."""
    try:
        import torch_fidelity  # noqa: F401
        import torchmetrics  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # Runtime: built for another torch
        raise ImportError(
            f"{caller} needs torchmetrics, torchvision and torch-fidelity: "
            f"pip install 'diffstategrad[metrics]' ({error})"
        ) from error
    if weights is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / known.file
        if not path.is_file():
            raise FileNotFoundError(
                f"{caller}: no weights {known.file} in {path.parent} (TORCH_HOME moves "
                f'this folder); with a network, python -c "{known.fetch}" puts them '
                "there, otherwise copy the file or give its path as weights=..."
            )
    else:
        path = Path(weights).resolve()
        if not path.is_file():
            raise FileNotFoundError(f"{caller}: no weights at {weights}")
    return build(kind, path, path.stat().st_mtime_ns)


def _read(caller: str, path: Path) -> dict[str, Tensor]:
    """Tensors of a file, none of its code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
    ) as error:
        raise ValueError(f"{caller}: cannot read {path} as weights: {error}") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{caller}: {path} holds no weights by name")
    return stored


def _load(
    caller: str, network: nn.Module, state: dict[str, Tensor | None], path: Path
) -> None:
    missing = [name for name, tensor in state.items() if tensor is None]
    if missing:
        raise _misfit(caller, path, f"{len(missing)} missing, such as {missing[0]}")
    try:
        network.load_state_dict(cast(dict[str, Tensor], state))
    except RuntimeError as error:
        raise _misfit(caller, path, error) from None


def _misfit(caller: str, path: Path, reason: object) -> ValueError:
    said = textwrap.shorten(str(reason), 200)  # torch lists every tensor
    return ValueError(f"{caller}: {path} has weights of another network: {said}")
