"""Every method on photographs, with the bundled prior: `make results`.

    python tests/bench/results.py [--jobs N] [--only ROW]
    python tests/bench/results.py tune [--only ROW]

What is run is data: `configs/sweeps/results.yaml`.  A cell is one method on one task
and one photograph, kept in OUT/cells under its settings, so that a second call runs
only what is missing (after a change of the code: remove them).  OUT/table.md holds what
is there.

`tune` chooses the options that have a `grid`, without projector, by the mean PSNR on
procedural images, and writes `configs/sweeps/results_tuned.yaml`.  It sees no
photograph.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from tqdm import tqdm

import diffstategrad as dsg
from diffstategrad.config import load_task
from diffstategrad.metrics import psnr, ssim
from diffstategrad.operators import Operator
from diffstategrad.priors import Prior, as_prior
from diffstategrad.samplers import sampler_class
from diffstategrad.samplers.base import finite
from diffstategrad.training.evaluate import photograph
from diffstategrad.training.leaves import scene

SPEC = Path(__file__).parents[2] / "configs" / "sweeps" / "results.yaml"

#: What `tune` sees: scenes of a stream that no training has had.
LEAVES, LEAVES_SEED = ("leaves-0", "leaves-1"), 1

#: A run has failed when it is not finite, or worse than one of these.
WORST_RESIDUAL, WORST_PSNR = 3.0, 15.0

DIGITS = {
    "psnr": 2,
    "mean_psnr": 2,
    "ssim": 3,
    "residual": 2,
    "calls": 0,
    "seconds": 1,
}

TUNED_HEAD = """\
# Written by `python tests/bench/results.py tune`: of the grids in {spec} what
# restored {n} procedural images best (mean PSNR, without projector).
"""

CAPTION = """\
{photographs}: the middle {size} x {size} pixels at twice the size, noise {sigma}.
Entries are means of PSNR in dB / SSIM / residual ‖A(x) − y‖ / (σ√m). Network calls and
seconds of one core are those of one image. Failed is what is not finite, has a residual
above {residual:g} or a PSNR below {psnr:g} dB. The box is half as wide as the image.
Settings are the constants of the task in `configs/methods` but for what is named. What
is "tuned" is so for the tasks from left to right, without projector, on procedural
images.
"""


class Settings(BaseModel):
    """What is read from a file of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(Settings):
    """A method and its settings."""

    method: str
    prior: str | None = "leaves64"
    preset: str | None = None
    options: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    nonlinear: bool = False
    projector: bool = True

    @property
    def projections(self) -> tuple[bool, ...]:
        """Without and, where there is a gradient to project, with the projector."""
        takes = self.projector and sampler_class(self.method).projection is not None
        return (False, True) if takes else (False,)

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """Every point of the grid."""
        points = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, point, strict=True)) for point in points]


class Means(Settings):
    """The table of sample means."""

    samples: int
    rows: list[str]


class Spec(Settings):
    """The file of settings."""

    size: int
    sigma: float
    photographs: list[str]
    linear: list[str]
    nonlinear: list[str]
    rows: dict[str, Row]
    means: Means

    def tasks(self, name: str) -> list[str]:
        return self.linear + (self.nonlinear if self.rows[name].nonlinear else [])

    def cell(
        self, name: str, task: str, image: str, tuned: dict[str, Any], **more: Any
    ) -> Cell:
        row = self.rows[name]
        preset = {"preset": row.preset} if row.preset else {}
        return Cell(
            row=name,
            task=task,
            image=image,
            size=self.size,
            sigma=self.sigma,
            method=row.method,
            prior=row.prior,
            options={"task": task, **preset, **row.options, **tuned},
            **more,
        )


class Cell(Settings):
    """One run."""

    row: str
    task: str
    image: str
    size: int
    sigma: float
    method: str
    prior: str | None
    options: dict[str, Any]
    project: bool | dict[str, Any] = False  # the options of a StateProjector
    samples: int = 1

    def path(self, out: Path) -> Path:
        settings = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
        return out / "cells" / f"{self.row}.{self.task}.{self.image}.{settings}.json"

    def result(self, out: Path) -> dict[str, Any] | None:
        """What `run` stored; None before."""
        path = self.path(out)
        return json.loads(path.read_text()) if path.exists() else None


#: Row -> task -> options.
Tuned = dict[str, dict[str, dict[str, Any]]]


# ---- One cell ------------------------------------------------------------------------


def crop(name: str, size: int = 64) -> Tensor:
    """The middle of a photograph scaled to twice the size, (1, 3, size, size)."""
    middle = slice(size // 2, size // 2 + size)
    return torch.from_numpy(photograph(name, 2 * size)[None, :, middle, middle].copy())


def picture(name: str, size: int) -> Tensor:
    """A photograph; of "leaves-N" the middle of procedural scene N."""
    if name not in LEAVES:
        return crop(name, size)
    whole = scene(LEAVES_SEED, LEAVES.index(name), 4 * size)
    middle = slice(3 * size // 2, 3 * size // 2 + size)
    return torch.from_numpy(whole[None, :, middle, middle].copy())


def build(task: str, size: int) -> Operator:
    """The operator of a bundled task; a box has the share of the image it has in 256
    pixels."""
    loaded = load_task(task)
    operator = dict(loaded.operator)
    for key in {"length", "margin"} & operator.keys():
        operator[key] = operator[key] * size // 256
    return loaded.model_copy(update={"operator": operator}).build((size, size))


@cache
def prior(name: str | None) -> Prior | None:
    return None if name is None else as_prior(name)


def run(cell: Cell, out: Path) -> None:
    """Runs and stores a cell."""
    x, A = picture(cell.image, cell.size), build(cell.task, cell.size)
    y = A.measure(x, cell.sigma, seed=0)
    loaded, project = prior(cell.prior), cell.project
    started = time.process_time()
    result = dsg.solve(
        y,
        A,
        loaded,
        cell.method,
        sigma=cell.sigma,
        project=dsg.StateProjector(**project) if isinstance(project, dict) else project,
        n_samples=cell.samples,
        batch=cell.samples,
        progress=False,
        **cell.options,
    )
    seconds = time.process_time() - started
    draws = result.samples[:, 0]
    draws = draws[finite(draws)]
    record: dict[str, Any] = dict.fromkeys(("psnr", "ssim", "mean_psnr"), math.nan)
    if len(draws):
        truth = x.expand_as(draws)
        record["psnr"] = psnr(draws, truth).mean().item()
        record["ssim"] = ssim(draws, truth).mean().item()
        record["mean_psnr"] = psnr(draws.mean(0, keepdim=True), x).item()
    record["residual"] = result.residual.nanmean().item()
    record |= {"calls": result.nfe, "seconds": seconds, "warnings": result.warnings}
    record["cell"] = cell.model_dump()
    path = cell.path(out)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=1))
    os.replace(temporary, path)


# ---- Many cells ----------------------------------------------------------------------


def run_all(cells: list[Cell], out: Path, jobs: int) -> int:
    """Runs what is not stored, in `jobs` processes; the number of errors.  Ctrl-C ends
    them with what they are at."""
    (out / "cells").mkdir(parents=True, exist_ok=True)
    todo = [cell for cell in cells if cell.result(out) is None]
    if not todo:
        return 0
    # each with one thread, of torch and of what reads this
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    spawn = multiprocessing.get_context("spawn")
    errors = 0
    with (
        tqdm(total=len(cells), initial=len(cells) - len(todo), unit="cell") as bar,
        ProcessPoolExecutor(jobs, spawn, _ignore_interrupts) as pool,
    ):
        futures = {pool.submit(run, cell, out): cell for cell in todo}
        try:
            for future in as_completed(futures):
                name = futures[future].path(out).stem
                if error := future.exception():
                    errors += 1
                    tqdm.write(f"{name}: {error!r}", sys.stderr)
                bar.set_postfix_str(name)
                bar.update()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return errors


def _ignore_interrupts() -> None:
    """A worker would store what `solve` returns of a run that was cut short."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def figures(cells: list[Cell], out: Path, what: str) -> list[float]:
    """One figure of every stored cell."""
    records = [cell.result(out) for cell in cells]
    return [record[what] for record in records if record]


# ---- Tuning --------------------------------------------------------------------------


def tune(spec: Spec, names: list[str], out: Path, jobs: int) -> tuple[Tuned, int]:
    """The best of every grid, and the number of errors; prints what was reached."""
    tried = {
        (name, task): [
            [spec.cell(name, task, image, options) for image in LEAVES]
            for options in spec.rows[name].candidates
        ]
        for name in names
        for task in spec.tasks(name)
        if spec.rows[name].grid
    }
    flat = [cell for some in tried.values() for cells in some for cell in cells]
    if errors := run_all(flat, out, jobs):
        return {}, errors
    tuned: Tuned = {}
    for (name, task), some in tried.items():
        options = spec.rows[name].candidates
        quality = [fmean(figures(cells, out, "psnr")) for cells in some]
        for q, candidate in zip(quality, options, strict=True):
            print(f"{name:10} {task:18} {q:6.2f} dB  {candidate}")
        order = [-math.inf if math.isnan(q) else q for q in quality]
        tuned.setdefault(name, {})[task] = options[order.index(max(order))]
    return tuned, 0


def tuned_path(spec: Path) -> Path:
    return spec.with_name(f"{spec.stem}_tuned.yaml")


def read_tuned(spec: Path) -> Tuned:
    path = tuned_path(spec)
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def write_tuned(spec: Path, tuned: Tuned) -> None:
    head = TUNED_HEAD.format(spec=spec.name, n=len(LEAVES))
    text = yaml.safe_dump(tuned, sort_keys=False, default_flow_style=None)
    tuned_path(spec).write_text(head + text)


# ---- Tables --------------------------------------------------------------------------


class Tables:
    """The cells of a spec on some photographs, and their means as Markdown."""

    def __init__(self, spec: Spec, tuned: Tuned, photographs: list[str], out: Path):
        self.spec, self.tuned, self.out = spec, tuned, out
        self.photographs = photographs

    def cells(
        self, name: str, task: str, project: bool = False, samples: int = 1
    ) -> list[Cell]:
        """One for every photograph."""
        tuned = self.tuned.get(name, {}).get(task, {})
        return [
            self.spec.cell(name, task, image, tuned, project=project, samples=samples)
            for image in self.photographs
        ]

    def all_cells(self, names: list[str]) -> list[Cell]:
        """Those of some rows, photograph by photograph, sample means last."""
        singles = [
            self.cells(name, task, project)
            for name in names
            for project in self.spec.rows[name].projections
            for task in self.spec.tasks(name)
        ]
        means = self.spec.means
        several = [
            self.cells(name, task, samples=means.samples)
            for name in means.rows
            for task in self.spec.linear
            if name in names
        ]
        return [
            cell
            for group in (singles, several)
            for together in zip(*group, strict=True)
            for cell in together
        ]

    def write(self) -> Path:
        spec = self.spec
        caption = CAPTION.format(
            photographs=", ".join(self.photographs),
            size=spec.size,
            sigma=spec.sigma,
            residual=WORST_RESIDUAL,
            psnr=WORST_PSNR,
        )
        parts = [caption, self.methods(spec.linear), self.methods(spec.nonlinear)]
        path = self.out / "table.md"
        path.write_text("\n".join([*parts, self.means()]))
        return path

    def methods(self, tasks: list[str]) -> str:
        """A row for every method that was run, a column for every task."""
        head = ["method", "projector", *tasks, "calls", "seconds", "failed", "settings"]
        rows = []
        for name, row in self.spec.rows.items():
            for project in row.projections:
                by_task = [self.cells(name, task, project) for task in tasks]
                cells = [cell for some in by_task for cell in some]
                if not figures(cells, self.out, "calls"):
                    continue
                entries = (
                    self.entry(some, "psnr", "ssim", "residual") for some in by_task
                )
                rows.append(
                    [
                        f"`{name}`",
                        "yes" if project else "",
                        *entries,
                        self.span(cells, "calls"),
                        self.span(cells, "seconds"),
                        self.failures(cells),
                        self.settings(name, tasks),
                    ]
                )
        return markdown(head, rows)

    def means(self) -> str:
        """Sample means beside single samples, a row for every task and method."""
        samples = self.spec.means.samples
        head = ["task", "method", f"mean of {samples} samples, dB", "a sample, dB"]
        head += ["residual of a sample", "calls for each", "seconds for all"]
        rows = []
        for task in self.spec.linear:
            for name in self.spec.means.rows:
                cells = self.cells(name, task, samples=samples)
                measures = ("mean_psnr", "psnr", "residual", "calls", "seconds")
                if figures(cells, self.out, "calls"):
                    entries = (self.entry(cells, measure) for measure in measures)
                    rows.append([task, f"`{name}`", *entries])
        return markdown(head, rows)

    def entry(self, cells: list[Cell], *measures: str) -> str:
        """Means of what is finite; a dash unless every photograph is there."""
        columns = [figures(cells, self.out, measure) for measure in measures]
        if len(columns[0]) < len(cells):
            return "–"
        return " / ".join(
            f"{mean(column):.{DIGITS[measure]}f}"
            for measure, column in zip(measures, columns, strict=True)
        )

    def span(self, cells: list[Cell], measure: str) -> str:
        """Smallest and largest of the stored cells."""
        numbers = figures(cells, self.out, measure)
        ends = (f"{end:.{DIGITS[measure]}f}" for end in (min(numbers), max(numbers)))
        return "–".join(dict.fromkeys(ends))

    def failures(self, cells: list[Cell]) -> str:
        psnrs, residuals = (
            figures(cells, self.out, measure) for measure in ("psnr", "residual")
        )
        failed = [
            not (p >= WORST_PSNR and r <= WORST_RESIDUAL)
            for p, r in zip(psnrs, residuals, strict=True)
        ]
        return f"{sum(failed)} of {len(failed)}"

    def settings(self, name: str, tasks: list[str]) -> str:
        row = self.spec.rows[name]
        said = [f"preset {row.preset}"] if row.preset else []
        said += [f"{option} {value}" for option, value in row.options.items()]
        tuned = [self.tuned.get(name, {}).get(task, {}) for task in tasks]
        for option in row.grid if any(tuned) else ():
            values = ", ".join(str(found.get(option, "–")) for found in tuned)
            said.append(f"{option} tuned: {values}")
        return "; ".join(said) or "default"


def mean(numbers: list[float]) -> float:
    """Of what is not NaN; NaN where all are."""
    return fmean([n for n in numbers if not math.isnan(n)] or [math.nan])


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# ---- Command -------------------------------------------------------------------------


def add_run_options(parser: argparse.ArgumentParser, spec: Path) -> None:
    """What every table and picture takes."""
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--photographs", type=int, metavar="N", help="the first N")
    parser.add_argument(
        "--spec", type=Path, default=spec, help="settings, a .yaml file"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="a folder")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("tables", "tune"), default="tables")
    parser.add_argument("--only", action="append", metavar="ROW", help="repeatable")
    add_run_options(parser, SPEC)
    args = parser.parse_args(arguments)
    spec = Spec(**yaml.safe_load(args.spec.read_text()))
    names = args.only or list(spec.rows)
    if unknown := set(names) - spec.rows.keys():
        parser.error(f"--only: no row {sorted(unknown)}, but {sorted(spec.rows)}")
    tuned = read_tuned(args.spec)
    try:
        if args.what == "tune":
            found, errors = tune(spec, names, args.out, args.jobs)
            write_tuned(args.spec, {**tuned, **found})
            return int(errors > 0)
        tables = Tables(spec, tuned, spec.photographs[: args.photographs], args.out)
        errors = run_all(tables.all_cells(names), args.out, args.jobs)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    path = tables.write()
    print(path.read_text() + f"wrote {path}")
    return int(errors > 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C
    sys.exit(main())
