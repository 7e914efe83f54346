"""The command, run in this process, and pictures in and out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffstategrad import Result, StateProjector, _core, priors
from diffstategrad.cli import main
from diffstategrad.images import (
    check_format,
    from_uint8,
    load_image,
    save_image,
    to_uint8,
)

SHORT = ["--size", "48", "--steps", "2", "-O", "langevin_steps=3", "-O", "ode_steps=1"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    rows, columns = np.mgrid[:60, :70]
    array = np.stack([3 * rows, 3 * columns, rows + columns], -1).astype(np.uint8)
    Image.fromarray(array).save(path)
    return str(path)


def solve(picture, out, *more, task="super_resolution"):
    return main(["solve", picture, "--task", task, "--out", str(out), *SHORT, *more])


# ---- solve ----


def test_the_noise_of_a_measurement_is_that_of_the_task_or_what_is_given(
    picture, tmp_path
):
    out, saved = tmp_path / "x.png", tmp_path / "x.safetensors"
    for more, sigma in (([], 0.05), (["--sigma", "0.2"], 0.2)):
        assert solve(picture, out, "--save", str(saved), *more) == 0
        assert Result.load(saved).spec["sigma"] == sigma


def test_a_noise_below_zero_is_refused(picture, tmp_path, capsys):
    assert solve(picture, tmp_path / "x.png", "--sigma", "-0.1") == 2
    assert "sigma" in (error := capsys.readouterr().err) and "-0.1" in error


def test_solve_restores_a_picture(picture, tmp_path, capsys):
    out, saved = tmp_path / "x.png", tmp_path / "x.safetensors"
    assert solve(picture, out, "--save", str(saved), "--project") == 0
    printed, scores = capsys.readouterr().out.rsplit("\n", 2)[:2]
    head = "Result(daps with projector: 1 image(s) 3x48x48, 1 sample(s)"
    assert printed.startswith(head)
    assert json.loads(scores).keys() == {"psnr", "ssim", "nmse"}
    result = Result.load(saved)
    assert result.spec["method"]["langevin_steps"] == 3
    assert result.spec["method"]["steps"] == 2
    assert result.spec["project"]["energy"] == 0.99
    assert result.spec["operator"] == {"name": "downsample", "factor": 4}
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image), to_uint8(result.x[0]))


def test_solve_takes_the_published_constants_of_the_task(picture, tmp_path):
    saved = tmp_path / "x.safetensors"
    solve(picture, tmp_path / "x.png", "--save", str(saved), task="inpaint_random")
    method = Result.load(saved).spec["method"]
    assert method["lr"] == 1e-4 and method["tau"] == 0.01


@pytest.mark.parametrize("own", [False, True], ids=["bundled", "own"])
def test_constants_of_a_task_give_way_to_options(picture, tmp_path, own):
    task, saved = "inpaint_random", tmp_path / "x.safetensors"
    if own:
        path = Path(__file__).parent.parent / "configs" / "tasks" / f"{task}.yaml"
        task = str(tmp_path / "mine.yaml")
        Path(task).write_text(path.read_text())
    out = str(tmp_path / "x.png")
    arguments = ["solve", picture, "--task", task, "--out", out, "--save", str(saved)]
    exact = ["--size", "16", "--steps", "2", "-O", "dynamics=exact"]
    assert main([*arguments, *exact]) == 0
    method = Result.load(saved).spec["method"]
    assert method["dynamics"] == "exact" and "lr" not in method


@pytest.mark.parametrize(
    ("more", "project"),
    [
        ([], None),
        (["--project"], StateProjector()),
        (["--rank", "mean"], StateProjector(rank="mean")),
        (["--project", "--rank", "official"], StateProjector(rank="official")),
    ],
)
def test_a_rank_rule_is_a_projector(picture, tmp_path, more, project):
    saved = tmp_path / "x.safetensors"
    assert solve(picture, tmp_path / "x.png", "--save", str(saved), *more) == 0
    expected = None if project is None else project.spec()
    assert Result.load(saved).spec["project"] == expected


def test_solve_takes_a_measurement(picture, tmp_path, capsys):
    small = tmp_path / "y.png"
    with Image.open(picture) as image:
        image.resize((12, 12)).save(small)
    out = tmp_path / "x.png"
    arguments = ["--measured", "--n-samples", "2", "--size", "12"]
    assert solve(str(small), out, *arguments) == 0
    assert load_image(out).shape == (1, 3, 48, 48)
    assert "psnr" not in capsys.readouterr().out


def test_the_same_command_writes_the_same_picture(picture, tmp_path):
    for name in "ab":
        solve(picture, tmp_path / f"{name}.png", "--seed", "4")
    solve(picture, tmp_path / "c.png", "--seed", "5")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


# ---- wrong input: status 2 and one line ----


def failed(capsys, status):
    assert status == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("diffstategrad solve: ")
    return line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prior", "leafs64"], "did you mean 'leaves64'"),
        (["--method", "dap"], "did you mean 'daps'"),
        (["-O", "langevin_step=3"], "did you mean 'langevin_steps'"),
        (["-O", "langevin_steps"], "--option takes NAME=VALUE"),
        (["-O", "langevin_steps=abc"], "langevin_steps"),
        (["-O", "lr=[1, 2"], "--option lr: cannot read '[1, 2'"),
        (["-O", "lr=.nan"], "lr"),
        (["-O", "lr=yes"], "lr must not be True"),
        (["-O", "sigma=3"], "sigma"),
        (["--steps", "0"], "steps"),
        (["--size", "0"], "size must be at least 1, got 0"),
        (["--size", "-5"], "got -5"),
        (["--size", "52"], "divisible by 16"),
        (["--n-samples", "0"], "n_samples"),
        (["--seed", "-1"], "seed"),
        (["--device", "gpu"], "device gpu cannot be used: "),
        (["--save", "/no/such/folder/x"], "no folder to write"),
        (["--save", "x.pt"], "saved as .safetensors, got the file x.pt"),
    ],
)
def test_a_wrong_option_ends_with_one_line(picture, tmp_path, capsys, more, message):
    assert message in failed(capsys, solve(picture, tmp_path / "x.png", *more))
    assert not list(tmp_path.iterdir())


def test_an_unreadable_picture_ends_with_one_line(tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "missing.png", "."):
        line = failed(capsys, solve(str(tmp_path / name), tmp_path / "x.png"))
        assert "cannot read the picture" in line


def test_a_truncated_picture_ends_with_one_line(picture, tmp_path, capsys):
    half = tmp_path / "half.png"
    data = Path(picture).read_bytes()
    half.write_bytes(data[: len(data) // 2])
    line = failed(capsys, solve(str(half), tmp_path / "x.png"))
    assert "cannot read the picture" in line


def test_an_unknown_task_ends_with_one_line(picture, tmp_path, capsys):
    line = failed(capsys, solve(picture, tmp_path / "x.png", task="gausian_deblur"))
    assert "did you mean 'gaussian_deblur'" in line


def test_a_broken_task_file_ends_with_one_line(picture, tmp_path, capsys):
    (tmp_path / "t.yaml").write_text("a: [1,\nb: 2\n")
    task = str(tmp_path / "t.yaml")
    line = failed(capsys, solve(picture, tmp_path / "x.png", task=task))
    assert "t.yaml is no YAML" in line


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("missing/x.png", "no folder to write"),
        ("x.xyz", "ends in '.xyz'"),
        ("x", "ends in ''"),
        (".", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_any_work(
    picture, tmp_path, capsys, monkeypatch, out, message
):
    monkeypatch.setattr(priors, "as_prior", None)  # calling it would be an error
    assert message in failed(capsys, solve(picture, tmp_path / out))


@pytest.mark.parametrize(
    "arguments", [[], ["solv"], ["solve"], ["solve", "x.png", "--steps", "two"]]
)
def test_a_command_that_does_not_parse_ends_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: diffstategrad" in capsys.readouterr().err


def test_ctrl_c_ends_with_status_130(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(_core, "info", interrupt)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "diffstategrad info: interrupted\n"


def test_what_ctrl_c_left_is_written_and_the_status_is_130(
    picture, tmp_path, monkeypatch
):
    denoise, calls = priors.NetworkPrior.denoise, []

    def interrupt(self, x, sigma):
        calls.append(sigma)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return denoise(self, x, sigma)

    monkeypatch.setattr(priors.NetworkPrior, "denoise", interrupt)
    saved = tmp_path / "x.safetensors"
    assert solve(picture, tmp_path / "x.png", "--save", str(saved)) == 130
    assert (tmp_path / "x.png").is_file()
    result = Result.load(saved)
    assert result.interrupted
    assert "interrupted after level 1 of 2" in result.warnings


# ---- info ----


def test_info_names_versions_and_libraries(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for name in ("diffstategrad", "python", "torch", "numpy", "BLAS", "FFT", "threads"):
        assert any(line.startswith(name) for line in printed.splitlines()), name
    assert "leaves64" in printed
    backend = os.environ.get("DSG_BACKEND") or "core"
    assert f"backend        {backend}" in printed.splitlines()


def test_info_describes_a_bundled_prior(capsys):
    assert main(["info", "leaves_latent"]) == 0
    assert "network on latents of leaves_vq4" in capsys.readouterr().out
    assert main(["info", "leaves_laten"]) == 2
    assert "did you mean 'leaves_latent'" in capsys.readouterr().err


def test_the_package_runs_as_the_command():
    call = [sys.executable, "-m", "diffstategrad", "info", "leaves64"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0 and "network on pixels" in done.stdout


def test_the_command_is_installed():
    (entry,) = entry_points(group="console_scripts", name="diffstategrad")
    assert entry.load() is main


# ---- pictures ----


def test_saving_and_loading_keeps_every_grey_level(tmp_path):
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = np.stack([array, array.T, 255 - array], -1)
    x = from_uint8(picture)
    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32
    assert x.min() == -1 and x.max() == 1
    np.testing.assert_array_equal(to_uint8(x[0]), picture)
    save_image(tmp_path / "x.png", x)
    assert torch.equal(load_image(tmp_path / "x.png"), x)


def test_a_grey_picture_has_three_equal_channels(tmp_path):
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(
        tmp_path / "g.png"
    )
    x = load_image(tmp_path / "g.png")
    assert x.shape == (1, 3, 3, 4)
    assert torch.equal(x[0, 0], x[0, 1]) and torch.equal(x[0, 0], x[0, 2])


def test_an_alpha_channel_is_left_out(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    Image.fromarray(array, "RGBA").save(tmp_path / "a.png")
    assert torch.equal(load_image(tmp_path / "a.png"), from_uint8(array[..., :3]))


def test_a_palette_becomes_colours(tmp_path):
    array = np.zeros((4, 4, 3), np.uint8)
    array[:2] = (255, 0, 51)
    Image.fromarray(array).quantize(2).save(tmp_path / "p.png")
    assert torch.equal(load_image(tmp_path / "p.png"), from_uint8(array))


def test_a_picture_of_16_bits_keeps_its_range(tmp_path):
    array = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(array).save(tmp_path / "d.png")
    x = load_image(tmp_path / "d.png")
    expected = torch.from_numpy(array.astype(np.float32)) / 32767.5 - 1
    # rounded to 8 bits of a range of 2
    assert (x[0, 0] - expected).abs().max() <= 1.01 / 255


def test_a_size_cuts_the_centred_square(tmp_path):
    array = np.zeros((4, 10, 3), np.uint8)
    array[:, 3:7] = 255
    x = from_uint8(array, 4)
    assert x.shape == (1, 3, 4, 4) and (x == 1).all()
    assert from_uint8(array, 7).shape == (1, 3, 7, 7)


def test_values_outside_the_range_are_clipped_and_nan_is_black():
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 7.0, torch.nan, torch.inf, -torch.inf])
    picture = to_uint8(x[None, None])
    assert picture[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0, 255, 0]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_every_number_of_channels_becomes_a_picture(channels):
    x = torch.rand(channels, 3, 5) * 2 - 1
    picture = to_uint8(x)
    assert picture.shape == (3, 5, 3)
    if channels < 3:
        assert (picture[..., 0] == picture[..., 2]).all()


def test_several_images_are_not_one_picture(tmp_path):
    for shape in ((2, 3, 4, 4), (4, 4)):
        with pytest.raises(ValueError, match="takes one image"):
            save_image(tmp_path / "x.png", torch.zeros(shape))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.png", "x.PNG", "a.b.jpg", "x.tiff"])
def test_formats_that_pillow_writes_are_taken(name):
    check_format(name)


@pytest.mark.parametrize("name", ["x", "x.", "png", "x.xyz", "x.safetensors"])
def test_other_formats_are_refused(name):
    with pytest.raises(ValueError, match="no picture format to write ends in"):
        check_format(name)


def test_a_picture_that_the_operator_cannot_give_back_is_refused_at_once(
    tmp_path, capsys
):
    Image.fromarray(np.zeros((46, 62, 3), np.uint8)).save(tmp_path / "odd.png")
    arguments = ["solve", str(tmp_path / "odd.png"), "--task", "super_resolution"]
    assert main([*arguments, "-o", str(tmp_path / "out.png")]) == 2
    assert "does not fit a picture of 62 x 46" in capsys.readouterr().err


def test_a_photograph_lying_on_its_side_is_put_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    picture = Image.fromarray(np.zeros((32, 64, 3), np.uint8))
    picture.save(tmp_path / "phone.jpg", exif=exif)
    assert load_image(tmp_path / "phone.jpg").shape == (1, 3, 64, 32)
