"""`make demo`: photographs restored with and without the state projector."""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffstategrad._files import write_file
from diffstategrad.config import load_task
from diffstategrad.images import from_uint8, to_uint8
from diffstategrad.priors import as_prior
from diffstategrad.projection import StateProjector
from diffstategrad.result import Result
from diffstategrad.samplers import method_options
from diffstategrad.solve import solve

__all__ = ["PHOTOGRAPHS", "TASKS", "photograph", "run"]

#: Files that scikit-image carries; none of them was used in training.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
TASKS = ("gaussian_deblur", "super_resolution", "inpaint_box")
SIZE = 256
Rank = Literal["per_channel", "mean", "official"]
#: Fewer levels and network calls than published (200 x 5) so that the demo ends in
#: minutes on two cores; everything else is the published setting of the task.
LEVELS = 20
ODE_STEPS = 3


class Row(NamedTuple):
    """One line of the table: a run on one photograph."""

    photograph: str
    task: str
    projector: str
    psnr: float
    ssim: float
    residual: float
    calls: int
    seconds: float


def photograph(name: str, size: int = SIZE) -> Tensor:
    """One of scikit-image's photographs, (1, 3, size, size) in [-1, 1].

    Raises
    ------
    ValueError
        If scikit-image is not installed or does not carry it.
    """
    try:
        folder = files("skimage.data")
    except ModuleNotFoundError:
        raise ValueError(
            "the photographs come with scikit-image: pip install scikit-image"
        ) from None
    found = [p for p in folder.iterdir() if p.name.rpartition(".")[0] == name]
    if not found:
        raise ValueError(f"scikit-image carries no photograph named {name!r}")
    with Image.open(str(found[0])) as image:
        return from_uint8(np.asarray(image.convert("RGB")), size)


def run(out: Path, *, quick: bool = False, rank: Rank = "per_channel") -> list[Row]:
    """Prints the table, writes ``demo.png`` into the folder `out`, returns the rows.

    With `quick`, one photograph and few levels, to see that everything works; `rank` is
    the projector's rule.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = PHOTOGRAPHS[:1] if quick else PHOTOGRAPHS
    truth = torch.cat([photograph(name) for name in names])
    prior = as_prior("leaves64")
    rows: list[Row] = []
    shown: list[tuple[str, Result, Result, Result]] = []

    print(
        f"{'task':17} {'photograph':16} {'projector':9} {'PSNR':>6} {'SSIM':>6} "
        f"{'resid.':>6} {'calls':>5} {'s':>6}"
    )
    for name in TASKS:
        task = load_task(name)
        operator = task.build((SIZE, SIZE))
        y = operator.measure(truth, task.sigma, seed=0)
        options = method_options("daps", name)
        options |= {"steps": LEVELS, "ode_steps": ODE_STEPS}
        if quick:
            options |= {"steps": 2, "ode_steps": 1}
        results: list[Result] = []
        for project in (None, StateProjector(rank=rank)):
            result = solve(
                y, operator, prior, "daps", sigma=task.sigma, project=project, **options
            )
            new = _rows(name, names, "state" if project else "none", result, truth)
            for row in new:
                print(
                    f"{row.task:17} {row.photograph:16} {row.projector:9} "
                    f"{row.psnr:6.2f} {row.ssim:6.3f} {row.residual:6.2f} "
                    f"{row.calls:5d} {row.seconds:6.1f}",
                    flush=True,
                )
            rows += new
            results.append(result)
        samples = solve(
            y[:1], operator, prior, "daps", sigma=task.sigma, n_samples=3, **options
        )
        shown.append((name, results[0], results[1], samples))
    _means(rows)
    _picture(out / "demo.png", truth, shown)
    print(f"wrote {out / 'demo.png'}")
    return rows


def _rows(
    task: str, names: tuple[str, ...], projector: str, result: Result, truth: Tensor
) -> list[Row]:
    score = result.score(truth)
    return [
        Row(
            name,
            task,
            projector,
            score["psnr"][i].item(),
            score["ssim"][i].item(),
            result.residual[0, i].item(),
            result.nfe,
            result.seconds / len(names),
        )
        for i, name in enumerate(names)
    ]


def _means(rows: list[Row]) -> None:
    for task in TASKS:
        for projector in ("none", "state"):
            some = [r for r in rows if (r.task, r.projector) == (task, projector)]
            psnr = sum(r.psnr for r in some) / len(some)
            ssim = sum(r.ssim for r in some) / len(some)
            print(f"{task:17} {'mean':16} {projector:9} {psnr:6.2f} {ssim:6.3f}")


def _picture(
    path: Path, truth: Tensor, shown: list[tuple[str, Result, Result, Result]]
) -> None:
    """One row a task: truth, measurement, both restorations, spread of samples."""
    from diffstategrad._figure import Figure

    titles = ("truth", "measurement", "DAPS", "DiffStateGrad-DAPS", "std of DAPS")
    figure = Figure(figsize=(3 * len(titles), 3.2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), len(titles), squeeze=False)
    for row, (task, plain, projected, samples) in zip(axes, shown, strict=True):
        pictures = (
            to_uint8(truth[0]),
            to_uint8(plain.y[0]),
            to_uint8(plain.x[0]),
            to_uint8(projected.x[0]),
            samples.panels()["std"],
        )
        for axis, title, picture in zip(row, titles, pictures, strict=True):
            axis.imshow(picture)
            axis.set_title(f"{task}\n{title}" if axis is row[0] else title)
            axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    write_file(path, buffer.getvalue())
