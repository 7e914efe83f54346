"""What `solve` returns."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffstategrad import metrics
from diffstategrad._files import write_file
from diffstategrad._tensor import as_tensor, out_of_range
from diffstategrad.images import to_uint8

if TYPE_CHECKING:
    from diffstategrad._figure import Figure

__all__ = ["Result", "check_name", "check_record"]

_FORMAT = "diffstategrad.Result/1"
_ARRAY = "__array__"
# No image is as far from [-1, 1].
_FAR = 2.0


@dataclass
class Result:
    """Restored images and how they came about.

    Images stay on the device of the run; numbers of images are on the CPU, and so is
    all that `load` reads.

    Attributes
    ----------
    x : Tensor, shape (B, C, H, W)
        Of every image the sample with the smallest residual.
    samples : Tensor, shape (n_samples, B, C, H, W)
        NaN where a run diverged.
    y : Tensor
        The measurement.
    residual : Tensor, shape (n_samples, B), float64
        ||A(x) - y|| / (sigma sqrt(m)) of every sample, over the m entries that were
        measured (not the lost pixels of an inpainting); about 1 when it is consistent
        with the noise.
    nfe : int
        Network calls for each sample of each image.
    seconds : float
    trace : list of dict
        Per level: sigma, residual, and with a projector rank and kept energy.
    spec : dict
        All that is needed to run it again, seeds, masks and kernels included.
    warnings : list of str
    details : dict
        What the method has to say beside the images: which iterate it chose by which
        rule, iterates it was told to keep, unknowns of the operator it found.
    interrupted : bool
        Whether Ctrl-C cut the run short.
    """

    x: Tensor
    samples: Tensor
    y: Tensor
    residual: Tensor
    nfe: int
    seconds: float
    trace: list[dict[str, Any]] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def mean(self) -> Tensor:
        """Mean over the samples that did not diverge, (B, C, H, W)."""
        return self.samples.nanmean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples that did not diverge, (B, C, H, W);
        zeros for a single one, NaN where there is none."""
        centred = self.samples - self.mean
        count = (~self.samples.isnan()).sum(0)
        std = (centred.square().nansum(0) / (count - 1).clamp_min(1)).sqrt()
        return torch.where(count > 0, std, torch.nan)

    def score(self, x_true: Tensor) -> dict[str, Tensor]:
        """Quality against the truth, which enters here and nowhere else.

        Parameters
        ----------
        x_true : Tensor or array, shape of x, in [-1, 1], of any device

        Returns
        -------
        dict of Tensor, shape (B,), float64, on the CPU
            psnr, ssim, nmse of `x`; for several samples also mean_psnr of their mean
            and oracle_psnr of the sample that the truth would choose.  With the
            iterates that a method was told to `keep`, also oracle_iterate_psnr of the
            one that the truth would choose, as the published DMPlug and DMILO do among
            all.  NaN for an image that diverged, and ssim of images smaller than its
            window.
        """
        x_true = as_tensor(x_true, "x_true").to(self.x)
        if x_true.shape != self.x.shape:
            raise ValueError(
                f"x_true must have shape {tuple(self.x.shape)}, "
                f"got {tuple(x_true.shape)}"
            )
        if found := out_of_range(x_true, "x_true", _FAR):
            raise ValueError(found)
        out = {
            "psnr": _score(metrics.psnr, self.x, x_true),
            "ssim": torch.full((len(x_true),), torch.nan, dtype=torch.float64),
            "nmse": _score(metrics.nmse, self.x, x_true),
        }
        if min(x_true.shape[2:]) >= metrics.SSIM_WINDOW:
            out["ssim"] = _score(metrics.ssim, self.x, x_true)
        if len(self.samples) > 1:
            out["mean_psnr"] = _score(metrics.psnr, self.mean, x_true)
            out["oracle_psnr"] = _oracle_psnr(self.samples, x_true)
        if "iterates" in self.details:
            kept = torch.as_tensor(self.details["iterates"]).to(x_true)
            kept = kept.reshape(-1, *x_true.shape)  # of every sample
            out["oracle_iterate_psnr"] = _oracle_psnr(kept, x_true)
        return out

    # ---- pictures ----

    def panels(self, image: int = 0) -> dict[str, np.ndarray]:
        """8-bit pictures (H, W, 3) of one image: y, x and, for several samples, std
        scaled to its maximum."""
        out = {"y": to_uint8(self.y[image]), "x": to_uint8(self.x[image])}
        if len(self.samples) > 1:
            std = self.std[image].mean(0, keepdim=True)
            out["std"] = to_uint8(2 * std / std.max().clamp_min(1e-12) - 1)
        return out

    def plot(self, image: int = 0) -> Figure:
        """A matplotlib figure: measurement, restoration, standard deviation."""
        from diffstategrad._figure import Figure

        panels = self.panels(image)
        figure = Figure(figsize=(3.2 * len(panels), 3.4), layout="constrained")
        for axis, (title, picture) in zip(
            figure.subplots(1, len(panels)), panels.items(), strict=True
        ):
            axis.imshow(picture)
            axis.set_title(title)
            axis.set_axis_off()
        return figure

    def plot_trace(self) -> Figure:
        """A matplotlib figure of residual and rank against the noise level."""
        from diffstategrad._figure import Figure

        sigma = [level["sigma"] for level in self.trace]
        if None in sigma:  # a method without noise levels
            return self._plot_iterations()
        ranks = [level["rank"] for level in self.trace if "rank" in level]
        figure = Figure(figsize=(9 if ranks else 5, 3.4), layout="constrained")
        axes = figure.subplots(1, 2 if ranks else 1, squeeze=False)[0]
        axes[0].loglog(sigma, [level["residual"] for level in self.trace])
        axes[0].set_ylabel("residual")
        if ranks:
            axes[1].semilogx(sigma, ranks)
            axes[1].set_ylabel("mean rank")
        for axis in axes:
            axis.set_xlabel("sigma")
            axis.invert_xaxis()
        return figure

    def _plot_iterations(self) -> Figure:
        from diffstategrad._figure import Figure

        figure = Figure(figsize=(5, 3.4), layout="constrained")
        axis = figure.subplots()
        axis.semilogy([level["residual"] for level in self.trace])
        axis.set_xlabel("iteration")
        axis.set_ylabel("residual")
        return figure

    def __repr__(self) -> str:
        n, b = self.residual.shape
        c, h, w = self.x.shape[1:]
        method = self.spec.get("method", {}).get("name", "?")
        if self.spec.get("project"):
            method += " with projector"
        best = self.residual.nan_to_num(torch.inf).amin(0)
        text = (
            f"Result({method}: {b} image(s) {c}x{h}x{w}, {n} sample(s), residual "
            f"{', '.join(f'{r:.2f}' for r in best.tolist())}, "
            f"{self.nfe} network calls, {self.seconds:.1f} s)"
        )
        return "\n".join([text, *(f"  warning: {w}" for w in self.warnings)])

    def _repr_html_(self) -> str:
        cells = []
        for title, picture in self.panels().items():
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            data = base64.b64encode(buffer.getvalue()).decode()
            cells.append(
                f'<figure style="display:inline-block;margin:4px">'
                f'<img src="data:image/png;base64,{data}" style="height:256px">'
                f"<figcaption>{title}</figcaption></figure>"
            )
        return "".join(cells) + f"<pre>{html.escape(repr(self))}</pre>"

    # ---- files ----

    def save(self, path: str | Path) -> None:
        """Writes everything to one .safetensors file, whole or not at all.

        Raises
        ------
        ValueError
            If the name of the file ends in anything else.
        OSError
            If that fails (full disk, no permission); an older file is untouched.
        """
        check_name(path)
        arrays: dict[str, Tensor] = {
            "x": self.x,
            "samples": self.samples,
            "y": self.y,
            "residual": self.residual,
        }
        record = {
            "nfe": self.nfe,
            "seconds": self.seconds,
            "trace": self.trace,
            "spec": _take_arrays(self.spec, arrays),
            "warnings": self.warnings,
            "details": _take_arrays(self.details, arrays),
            "interrupted": self.interrupted,
        }
        metadata = {"format": _FORMAT, "record": json.dumps(record)}
        tensors = {name: array.cpu().contiguous() for name, array in arrays.items()}
        # save_file would make it readable for nobody else
        write_file(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Reads what `save` wrote; ValueError for any other file."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError("another format")
                arrays = {name: file.get_tensor(name) for name in file.keys()}
                record = json.loads(metadata["record"])
                for part in ("spec", "details"):
                    record[part] = _give_arrays(record[part], arrays)
                names = ("x", "samples", "y", "residual")
                _check_axes(*(arrays[name] for name in names))
                return cls(**{name: arrays[name] for name in names}, **record)
        except (
            SafetensorError,
            KeyError,
            TypeError,
            RecursionError,
            ValueError,
        ) as error:
            raise ValueError(f"{path} is no saved Result: {error}") from None


def _score(
    metric: Callable[[Tensor, Tensor], Tensor], x: Tensor, x_true: Tensor
) -> Tensor:
    """The metric of every image, NaN for those that diverged."""
    finite = x.isfinite().flatten(1).all(1).cpu()
    out = torch.full((len(x),), torch.nan, dtype=torch.float64)
    out[finite] = metric(x[finite], x_true[finite]).cpu()
    return out


def _oracle_psnr(images: Tensor, x_true: Tensor) -> Tensor:
    """Of images (n, B, C, H, W) those that the truth would choose, (B,)."""
    each = torch.stack([_score(metrics.psnr, x, x_true) for x in images], dim=1)
    best = each.where(~each.isnan(), -torch.inf).argmax(1, keepdim=True)
    return each.gather(1, best)[:, 0]


def _check_axes(x: Tensor, samples: Tensor, y: Tensor, residual: Tensor) -> None:
    """ValueError unless the arrays of a file fit each other as those of a Result do."""
    if (
        x.ndim != 4
        or y.ndim != 4
        or samples.shape[1:] != x.shape
        or residual.shape != samples.shape[:2]
        or len(y) != len(x)
    ):
        raise ValueError("its arrays do not fit each other")


def check_name(path: str | Path) -> None:
    """ValueError unless the name of the file says what `save` would write there."""
    if Path(path).suffix.lower() != ".safetensors":
        raise ValueError(f"a result is saved as .safetensors, got the file {path}")


def check_record(spec: dict[str, Any]) -> None:
    """ValueError when a spec is more than JSON values and arrays: `save` would fail."""
    try:
        json.dumps(_take_arrays(spec, {}))
    except (TypeError, ValueError) as error:
        raise ValueError(
            "the spec of method, prior and operator must be JSON values and arrays: "
            f"{error}"
        ) from None


def _take_arrays(value: Any, arrays: dict[str, Tensor]) -> Any:
    """The value with every array moved to `arrays`, a reference in its place."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | Tensor):
        name = f"array.{len(arrays)}"
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value.copy())
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, dict):
        return {k: _take_arrays(v, arrays) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_take_arrays(v, arrays) for v in value]
    return value


def _give_arrays(value: Any, arrays: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return arrays[value[_ARRAY]].numpy()
        return {k: _give_arrays(v, arrays) for k, v in value.items()}
    if isinstance(value, list):
        return [_give_arrays(v, arrays) for v in value]
    return value
