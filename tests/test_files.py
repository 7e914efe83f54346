"""Full disks and other places where nothing can be written."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
import torch

import diffstategrad as dsg
from diffstategrad import GaussianPrior, cli, demo
from diffstategrad._files import replacing
from diffstategrad.images import save_image
from diffstategrad.models import PixelUNet, save_network
from diffstategrad.operators import GaussianBlur

resource = pytest.importorskip("resource")  # POSIX alone limits a process

pytestmark = pytest.mark.once

FIELD = GaussianPrior((3, 32, 32))


@contextmanager
def full_disk(size=200):
    """Writing breaks off after `size` bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def result():
    A = GaussianBlur(3, 1.0)
    y = A.measure(FIELD.sample(1, seed=3).float(), 0.1)
    options = {"steps": 2, "n_samples": 2, "progress": False}
    return dsg.solve(y, A, FIELD, "hqs", sigma=0.1, **options)


def picture_of_the_demo(path, result):
    demo._picture(path, result.x, [("task", result, result, result)])


WRITERS = {
    "result.safetensors": lambda path, result: result.save(path),
    "image.png": lambda path, result: save_image(path, result.x),
    "image.jpg": lambda path, result: save_image(path, result.x),
    "network.safetensors": lambda path, result: save_network(
        path, PixelUNet((8, 16)), {}
    ),
    "demo.png": picture_of_the_demo,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_leaves_what_was_there(name, result, tmp_path):
    path = tmp_path / name
    for older in (False, True):
        if older:
            path.write_text("old")
        with full_disk(), pytest.raises(OSError, match=f"cannot write .*{name}: "):
            WRITERS[name](path, result)
        assert os.listdir(tmp_path) == [name] * older
    assert path.read_text() == "old"
    WRITERS[name](path, result)
    assert path.stat().st_size > 200


@pytest.mark.parametrize("name", WRITERS)
def test_so_is_a_place_that_takes_no_files(name, result, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "missing"):
        path = tmp_path / folder / name
        with pytest.raises(OSError, match=f"cannot write .*{name}: No|Not a dir"):
            WRITERS[name](path, result)
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_no_file_is_not_replaced(result, tmp_path):
    pipe, folder = tmp_path / "pipe.safetensors", tmp_path / "folder.safetensors"
    os.mkfifo(pipe)  # in place of a device: wrong code would destroy a real one
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(OSError, match=r"cannot write .*: it is there, and"):
            result.save(path)
    assert pipe.is_fifo() and folder.is_dir()
    assert sorted(os.listdir(tmp_path)) == [folder.name, pipe.name]


def test_a_link_still_points_to_what_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "new"


def test_an_exception_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_the_command_ends_with_one_line(tmp_path, capsys):
    save_image(tmp_path / "in.png", 0.5 * torch.ones(3, 32, 32))
    call = ["solve", tmp_path / "in.png", "--task", "gaussian_deblur"]
    call += ["--method", "hqs", "--steps", "1", "-o", tmp_path / "out.png"]
    with full_disk(50):
        assert cli.main(list(map(str, call))) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert (
        line.startswith("diffstategrad solve: ") and "out.png: File too large" in line
    )
    assert os.listdir(tmp_path) == ["in.png"]
