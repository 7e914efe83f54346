"""`make results`: cells are stored once, the tables say what is in them."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import results
import step_size
import torch
import yaml

SPEC = {
    "size": 32,
    "sigma": 0.05,
    "photographs": ["coffee", "rocket"],
    "linear": ["inpaint_box"],
    "nonlinear": ["high_dynamic_range"],
    "rows": {
        "tv": {"method": "hqs_tv", "prior": None, "options": {"steps": 5}},
        "daps": {
            "method": "daps",
            "options": {"steps": 2, "ode_steps": 1, "langevin_steps": 2},
            "nonlinear": True,
        },
    },
    "means": {"samples": 2, "rows": ["daps"]},
}


@pytest.fixture
def spec(tmp_path):
    """Writes SPEC with changed rows."""

    def write(**rows):
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump({**SPEC, "rows": {**SPEC["rows"], **rows}}))
        return path

    return write


@pytest.fixture
def here(monkeypatch):
    """Cells run in a thread, which needs no imports."""
    monkeypatch.setattr(
        results, "ProcessPoolExecutor", lambda jobs, *_: ThreadPoolExecutor(jobs)
    )


def make(spec, tmp_path, *arguments):
    """Exit status and the cells there are then: name -> (time, record)."""
    status = results.main([*arguments, "--spec", f"{spec}", "--out", f"{tmp_path}"])
    found = {
        path.stem: (path.stat().st_mtime_ns, json.loads(path.read_text()))
        for path in (tmp_path / "cells").iterdir()
    }
    return status, found


def test_one_photograph_runs_in_processes_and_a_second_call_adds_the_other(
    spec, tmp_path
):
    status, first = make(spec(), tmp_path, "--photographs", "1", "--jobs", "2")
    # tv; daps on two tasks with and without projector; mean of two samples
    assert status == 0 and len(first) == 1 + 4 + 1
    assert not list((tmp_path / "cells").glob("*[!n]")), "a temporary file is left"
    lost = next(path for path in (tmp_path / "cells").glob("tv.*"))
    lost.unlink()
    status, second = make(spec(), tmp_path)
    assert status == 0 and len(second) == 2 * len(first)
    assert all(second[name] == first[name] for name in first if name != lost.stem)


def test_the_table_has_the_means_of_the_cells(spec, tmp_path, here):
    _, cells = make(spec(), tmp_path)
    records = [record for name, (_, record) in cells.items() if name.startswith("tv.")]
    psnr = sum(record["psnr"] for record in records) / 2
    ssim = sum(record["ssim"] for record in records) / 2
    residual = sum(record["residual"] for record in records) / 2
    table = (tmp_path / "table.md").read_text()
    entry = f"{psnr:.2f} / {ssim:.3f} / {residual:.2f}"
    assert f"| `tv` |  | {entry} | 0 |" in table
    assert "| `daps` | yes |" in table and "langevin_steps 2" in table
    several = [record for _, record in cells.values() if record["cell"]["samples"] == 2]
    mean = sum(record["mean_psnr"] for record in several) / 2
    assert f"| inpaint_box | `daps` | {mean:.2f} |" in table


def test_other_settings_are_other_cells(spec, tmp_path, here):
    _, before = make(spec(), tmp_path, "--only", "tv")
    longer = {**SPEC["rows"]["tv"], "options": {"steps": 6}}
    _, after = make(spec(tv=longer), tmp_path, "--only", "tv")
    assert len(after) == 2 * len(before)
    assert "steps 6" in (tmp_path / "table.md").read_text()


def test_an_error_in_a_cell_is_told_and_the_others_are_made(
    spec, tmp_path, here, capsys
):
    bad = {**SPEC["rows"]["tv"], "options": {"stps": 5}}
    status, cells = make(spec(bad=bad), tmp_path, "--only", "bad", "--only", "tv")
    assert status == 1 and len(cells) == 2
    assert "bad.inpaint_box.coffee" in (error := capsys.readouterr().err)
    assert "no option 'stps'" in error


def test_a_diverged_run_is_a_failure_and_not_in_the_mean(spec, tmp_path, here):
    make(spec(), tmp_path, "--only", "tv")
    paths = sorted((tmp_path / "cells").iterdir())
    lost, kept = (json.loads(path.read_text()) for path in paths)
    paths[0].write_text(json.dumps({**lost, "psnr": torch.nan, "residual": torch.nan}))
    make(spec(), tmp_path, "--only", "tv")
    table = (tmp_path / "table.md").read_text()
    assert f"| {kept['psnr']:.2f} /" in table and "| 1 of 2 |" in table


def test_tuning_takes_the_best_of_the_grid_on_procedural_images(spec, tmp_path, here):
    row = {**SPEC["rows"]["tv"], "grid": {"lam": [0.01, 10.0]}}
    path = spec(tv=row)
    status, cells = make(path, tmp_path, "tune", "--only", "tv")
    assert status == 0
    assert {r["cell"]["image"] for _, r in cells.values()} == set(results.LEAVES)
    quality = {}
    for _, record in cells.values():
        quality.setdefault(record["cell"]["options"]["lam"], []).append(record["psnr"])
    best = max(quality, key=lambda lam: sum(quality[lam]))
    assert results.read_tuned(path) == {"tv": {"inpaint_box": {"lam": best}}}
    _, cells = make(path, tmp_path, "--only", "tv")
    assert f"lam tuned: {best}" in (tmp_path / "table.md").read_text()


def test_the_spec_names_methods_tasks_and_rows_that_exist():
    spec = results.Spec(**yaml.safe_load(results.SPEC.read_text()))
    assert set(spec.means.rows) <= spec.rows.keys()
    for name, row in spec.rows.items():
        for task in spec.tasks(name):
            results.build(task, spec.size)
        assert results.sampler_class(row.method).name == row.method


# ---- Quality against the step size ---------------------------------------------------

SWEEP = {
    "size": 32,
    "sigma": 0.05,
    "photographs": ["coffee", "rocket"],
    "tasks": ["inpaint_box", "super_resolution"],
    "method": "daps",
    "prior": "leaves64",
    "options": {"steps": 2, "ode_steps": 1, "langevin_steps": 2},
    "step": "lr",
    "values": [1.0e-5, 1.0e-4],
    "projections": {"plain": False, "one direction": {"rank": 1}},
}


def test_a_step_size_sweep_draws_the_means_of_its_cells(tmp_path, here):
    path = tmp_path / "steps.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    arguments = ["--spec", f"{path}", "--out", f"{tmp_path}"]
    assert step_size.main(arguments) == 0
    sweep = step_size.Sweep(**SWEEP)

    def psnrs(projection, value):
        cells = sweep.cells("inpaint_box", projection, value)
        return [cell.result(tmp_path)["psnr"] for cell in cells]

    plain, projected = psnrs("plain", 1e-5), psnrs("one direction", 1e-5)
    assert plain != projected
    text = (tmp_path / "steps.md").read_text()
    assert f"| inpaint_box | plain | {sum(plain) / 2:.2f} |" in text
    assert f"| inpaint_box | one direction | {sum(projected) / 2:.2f} |" in text
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")

    figure = step_size.draw(sweep, step_size.curves(sweep, tmp_path))
    assert [axis.get_title() for axis in figure.axes] == SWEEP["tasks"]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines.keys() == SWEEP["projections"].keys()
    assert lines["plain"].get_ydata()[0] == pytest.approx(sum(plain) / 2)

    def first_of_plain():
        return step_size.curves(sweep, tmp_path)["inpaint_box"]["plain"][0]

    # a run that is lost counts as 0 dB, one that is missing leaves a gap
    lost = sweep.cells("inpaint_box", "plain", 1e-5)[0].path(tmp_path)
    for psnr in (torch.nan, -3.0):
        lost.write_text(json.dumps({**json.loads(lost.read_text()), "psnr": psnr}))
        assert first_of_plain() == pytest.approx(plain[1] / 2)
    lost.unlink()
    assert math.isnan(first_of_plain())


def test_the_sweep_of_psld_names_what_exists():
    path = results.SPEC.with_name("psld_step_size.yaml")
    sweep = step_size.Sweep(**yaml.safe_load(path.read_text()))
    assert results.prior(sweep.prior).latent is not None
    fields = results.sampler_class(sweep.method).model_fields
    assert {sweep.step, *sweep.options} <= fields.keys()
    for task in sweep.tasks:
        results.build(task, sweep.size)
