"""The demo runs, and the bundled prior restores photographs."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import diffstategrad as dsg
from diffstategrad import demo


def test_the_quick_demo_prints_its_table_and_writes_its_picture(tmp_path, capsys):
    rows = demo.run(tmp_path, quick=True)
    assert {(row.task, row.projector) for row in rows} == {
        (task, projector) for task in demo.TASKS for projector in ("none", "state")
    }
    printed = capsys.readouterr().out
    assert all(f"{row.psnr:6.2f}" in printed for row in rows)
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 1000 and len(picture.getcolors(2**24)) > 10_000


@pytest.mark.parametrize("name", ["coffee", "rocket"])
def test_a_blurred_photograph_gets_sharper_and_agrees_with_its_measurement(name):
    x_true = demo.photograph(name, 128)
    A = dsg.operators.GaussianBlur(31, std=3.0)
    y = A.measure(x_true, sigma=0.05, seed=0)
    r = dsg.solve(y, A, "leaves64", sigma=0.05, steps=10, ode_steps=3)
    gain = r.score(x_true)["psnr"] - dsg.metrics.psnr(y, x_true)
    assert gain > 1.0, gain  # dB
    # tau 0.01 below sigma 0.05: the data are followed a little too closely
    assert 0.7 < r.residual.item() < 1.1


def test_an_unknown_photograph_is_named():
    with pytest.raises(ValueError, match="no photograph named 'nobody'"):
        demo.photograph("nobody")


def test_a_photograph_has_the_asked_size_and_range():
    x = demo.photograph("chelsea", 48)
    assert x.shape == (1, 3, 48, 48) and x.dtype == torch.float32
    assert x.min() >= -1 and x.max() <= 1 and x.std() > 0.1
