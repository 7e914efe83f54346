"""Quality against the step size, with and without the projector: `make results`.

    python tests/bench/step_size.py [--jobs N] [--photographs N]

What is run is data: `configs/sweeps/psld_step_size.yaml`.  Its runs are cells of
`results.py`: a second call runs only what is missing.  OUT/NAME.md holds the figures
and OUT/NAME.png draws them, NAME being that of the file of settings.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from matplotlib.figure import Figure
from results import SPEC, Cell, Settings, add_run_options, figures, markdown, run_all

CAPTION = """\
`{method}` with {options}, mean of {photographs} ({size} x {size}, noise {sigma}): PSNR
in dB at every {step}. A run that is not finite, or below 0 dB, counts as 0 dB.
"""


class Sweep(Settings):
    """The file of settings."""

    size: int
    sigma: float
    photographs: list[str]
    tasks: list[str]
    method: str
    prior: str
    options: dict[str, Any]
    step: str
    values: list[float]
    projections: dict[str, bool | dict[str, Any]]

    def cells(self, task: str, projection: str, value: float) -> list[Cell]:
        """One for every photograph."""
        return [
            Cell(
                row=self.method,
                task=task,
                image=image,
                size=self.size,
                sigma=self.sigma,
                method=self.method,
                prior=self.prior,
                options={**self.options, self.step: value},
                project=self.projections[projection],
            )
            for image in self.photographs
        ]

    def all_cells(self) -> list[Cell]:
        """Photograph by photograph."""
        points = [
            self.cells(task, projection, value)
            for task in self.tasks
            for projection in self.projections
            for value in self.values
        ]
        return [cell for together in zip(*points, strict=True) for cell in together]


#: Task -> projection -> mean PSNR at every step size.
Curves = dict[str, dict[str, list[float]]]


def curves(sweep: Sweep, out: Path) -> Curves:
    def quality(task: str, projection: str, value: float) -> float:
        cells = sweep.cells(task, projection, value)
        psnrs = figures(cells, out, "psnr")
        if len(psnrs) < len(cells):
            return math.nan
        return fmean(max(p, 0.0) if math.isfinite(p) else 0.0 for p in psnrs)

    return {
        task: {
            projection: [quality(task, projection, value) for value in sweep.values]
            for projection in sweep.projections
        }
        for task in sweep.tasks
    }


def table(sweep: Sweep, found: Curves) -> str:
    caption = CAPTION.format(
        method=sweep.method,
        options=", ".join(f"{k} {v}" for k, v in sweep.options.items()),
        photographs=", ".join(sweep.photographs),
        size=sweep.size,
        sigma=sweep.sigma,
        step=sweep.step,
    )
    head = ["task", "projector", *(f"{value:g}" for value in sweep.values)]
    rows = [
        [task, projection, *(f"{psnr:.2f}" for psnr in curve)]
        for task, by_projection in found.items()
        for projection, curve in by_projection.items()
    ]
    return f"{caption}\n{markdown(head, rows)}"


def draw(sweep: Sweep, found: Curves) -> Figure:
    figure = Figure(figsize=(2.7 * len(found), 2.8), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axis, (task, by_projection) in zip(axes, found.items(), strict=True):
        for projection, curve in by_projection.items():
            axis.semilogx(sweep.values, curve, "o-", markersize=4, label=projection)
        axis.set(title=task, xlabel=sweep.step)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR, dB")
    axes[0].legend(fontsize="small")
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_run_options(parser, SPEC.with_name("psld_step_size.yaml"))
    args = parser.parse_args(arguments)
    sweep = Sweep(**yaml.safe_load(args.spec.read_text()))
    sweep = sweep.model_copy(
        update={"photographs": sweep.photographs[: args.photographs]}
    )
    try:
        errors = run_all(sweep.all_cells(), args.out, args.jobs)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    found = curves(sweep, args.out)
    text = table(sweep, found)
    path = args.out / f"{args.spec.stem}.md"
    path.write_text(text)
    draw(sweep, found).savefig(path.with_suffix(".png"), dpi=80)
    print(f"{text}wrote {path} and {path.with_suffix('.png').name}")
    return int(errors > 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C
    sys.exit(main())
