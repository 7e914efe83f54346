"""Every notebook runs from its first cell to its last."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: What a notebook needs beside the notebook extra; not imported here, its kernel does.
NEEDS = {"galaxies": "galaxygrad"}

nbformat = pytest.importorskip("nbformat", reason="notebooks need the notebook extra")
nbclient = pytest.importorskip("nbclient", reason="notebooks need the notebook extra")


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_without_a_failing_cell(path, monkeypatch):
    needed = NEEDS.get(path.stem)
    if needed and find_spec(needed) is None:
        pytest.skip(f"{path.name} needs {needed}: the {path.stem} extra")
    # One thread, as the suite may share its cores; the kernel inherits it.
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    # The kernel of this environment, not one that the user has installed elsewhere.
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()  # raises CellExecutionError with the cell and its traceback
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            assert cell.execution_count is not None
        draws = "show(" in cell.source or "plt.subplots(" in cell.source
        if draws or cell.source.rstrip().endswith((".plot()", ".plot_trace()")):
            assert any("image/png" in out.get("data", {}) for out in cell.outputs)
