"""The training command: resuming, logging, errors."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from diffstategrad.cli import main
from diffstategrad.models import (
    Autoencoder,
    load_autoencoder,
    load_network,
    save_autoencoder,
)
from diffstategrad.models.autoencoder import nearest_code
from diffstategrad.priors import describe_prior, load_prior
from diffstategrad.schedules import VPSchedule
from diffstategrad.training import tasks, train
from diffstategrad.training.config import (
    LatentConfig,
    NoiseConfig,
    OptimiserConfig,
    PhaseConfig,
    StreamConfig,
    TrainingConfig,
    load_config,
)
from diffstategrad.training.evaluate import (
    LEVELS,
    evaluate,
    latent_errors,
    network_estimate,
    photograph,
    reconstruction,
    total_variation,
)
from diffstategrad.training.evaluate import main as evaluate_main
from diffstategrad.training.leaves import scene
from diffstategrad.training.stream import SceneWindow, draw_sigma, noisy_batch
from diffstategrad.training.tasks import lloyd
from diffstategrad.training.trainer import learning_rate

ROOT = Path(__file__).resolve().parents[1]

TINY = """
name: tiny
seed: 7
stream: {size: 32, scenes: 4, steps_per_scene: 2}
network: {channels: [8, 16], groups: 4}
optimiser: {lr: 1.0e-3, warmup_steps: 3, decay_steps: 4}
phases:
  - {steps: 6, crop: 16, batch: 2}
  - {steps: 6, crop: 24, batch: 1, lr_scale: 0.5}
log_every: 2
"""

TINY_VQ = """
name: tiny
seed: 7
stream: {size: 32, scenes: 4, steps_per_scene: 2}
autoencoder: {channels: [4, 8], factor: 2, groups: 4, codes: 32}
optimiser: {lr: 1.0e-3, warmup_steps: 3, decay_steps: 4}
phases:
  - {steps: 4, crop: 16, batch: 2, quantise: false}
  - {steps: 8, crop: 16, batch: 2}
log_every: 2
"""

TINY_LATENT = """
name: tiny
seed: 7
stream: {size: 32, scenes: 4, steps_per_scene: 2}
network: {channels: [8, 16], groups: 4, factor: 1}
latent: {autoencoder: AUTOENCODER}
optimiser: {lr: 1.0e-3, warmup_steps: 3, decay_steps: 4}
phases:
  - {steps: 6, crop: 4, batch: 2}
  - {steps: 6, crop: 8, batch: 1, lr_scale: 0.5}
log_every: 2
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def first_stage(tmp_path):
    torch.manual_seed(0)
    net = Autoencoder((4, 8), factor=2, groups=4, codes=16)
    net.scale = 3.0
    path = tmp_path / "first_stage.safetensors"
    save_autoencoder(path, net, {"name": "first_stage"})
    return path


@pytest.fixture
def latent_config(tmp_path, first_stage):
    path = tmp_path / "latent.yaml"
    path.write_text(TINY_LATENT.replace("AUTOENCODER", str(first_stage)))
    return path


@pytest.fixture(params=["pixel", "autoencoder", "latent"])
def any_config(request, config):
    """One recipe of every kind, all named `tiny` and of 12 steps."""
    if request.param == "latent":
        return request.getfixturevalue("latent_config")
    if request.param == "autoencoder":
        config.write_text(TINY_VQ)
    return config


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: more threads only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _small_sheet(monkeypatch):
    """The sheet of the real size costs seconds and has a test of its own."""
    from diffstategrad.training import samples, tasks

    monkeypatch.setattr(
        tasks,
        "write_samples",
        lambda *a, **k: samples.write_samples(*a, **k, size=16, steps=2),
    )
    monkeypatch.setattr(
        tasks,
        "write_reconstructions",
        lambda *a: samples.write_reconstructions(*a, size=16),
    )


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _same_tensors(a, b):
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def test_training_writes_network_log_samples_and_checkpoint(any_config, tmp_path):
    out = tmp_path / "run"
    exported = train(any_config, out, progress=False, workers=0)
    assert exported == out / "tiny.safetensors"
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint.safetensors",
        "log.csv",
        "samples.png",
        "tiny.safetensors",
    ]
    rows = _rows(out / "log.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6", "8", "10", "12"]
    assert all(float(row["loss"]) > 0 for row in rows)
    elapsed = [float(row["elapsed"]) for row in rows]
    assert elapsed == sorted(elapsed)


def test_exported_pixel_prior_says_how_it_is_used(config, tmp_path):
    exported = train(config, tmp_path / "run", steps=2, progress=False, workers=0)
    _, metadata = load_network(exported)
    assert metadata["training"]["steps"] == 2
    assert metadata["prediction"] == "v"
    assert metadata["schedule"] == {"type": "VP", "beta_min": 0.1, "beta_d": 19.9}


def test_exported_latent_prior_names_its_autoencoder(
    latent_config, first_stage, tmp_path
):
    exported = train(latent_config, tmp_path / "run", progress=False, workers=0)
    net, metadata = load_network(exported)
    assert net.architecture["image_channels"] == 4
    assert metadata["schedule"] == {
        "type": "table",
        "start": 0.0015,
        "end": 0.0195,
        "n": 1000,
        "sqrt": True,
    }
    assert metadata["latent"] == {
        "autoencoder": "first_stage",
        "sha256": hashlib.sha256(first_stage.read_bytes()).hexdigest(),
        "channels": 4,
        "stride": 4,
    }


def test_exported_autoencoder_has_latents_of_unit_variance(config, tmp_path):
    config.write_text(TINY_VQ)
    net, _ = load_autoencoder(
        train(config, tmp_path / "run", progress=False, workers=0)
    )
    scenes = [scene(7 + tasks._HELD_OUT, i, 32) for i in range(4)]
    latents = net.encode(torch.from_numpy(np.stack(scenes)))
    # The factor was computed before the weights were rounded to half precision.
    assert latents.std().item() == pytest.approx(1, abs=0.01)


def test_codebook_is_fitted_when_quantisation_begins(config, tmp_path, monkeypatch):
    """Once, from the latents: most codes are in use, and a resumed run keeps them."""
    config.write_text(TINY_VQ)
    fits = []
    monkeypatch.setattr(
        tasks, "lloyd", lambda *a, **k: fits.append(lloyd(*a, **k)) or fits[-1]
    )
    train(config, tmp_path / "run", steps=3, progress=False, workers=0)
    path = tmp_path / "run" / "checkpoint.safetensors"
    assert not load_file(path)["net.vq.quantize.embedding.weight"].any()
    train(config, tmp_path / "run", steps=5, progress=False, workers=0)
    assert len(fits) == 1
    codes = load_file(path)["net.vq.quantize.embedding.weight"]
    # One step of AdamW moves an entry by the learning rate and a little decay.
    torch.testing.assert_close(codes, fits[0], rtol=0, atol=2e-3)
    train(config, tmp_path / "run", steps=6, progress=False, workers=0)
    assert len(fits) == 1


def test_linear_part_starts_as_principal_components():
    """Untrained, the network is the best linear map of patches, which nothing beats."""
    config = TrainingConfig.model_validate(yaml.safe_load(TINY_VQ))
    net = tasks.make_task(config).build()
    x = torch.from_numpy(np.stack([scene(0, i, 32) for i in range(8)]))
    tasks.fit_linear(net, x)
    with torch.no_grad():
        z = net.encode(x)
        again = net.decode(z, quantise=False)
    patches = torch.nn.functional.pixel_unshuffle(x, 4).movedim(1, -1).flatten(0, 2)
    patches = (patches - patches.mean(0)).double()
    rest = torch.linalg.svdvals(patches)[4:].square().sum() / x.numel()
    # float32 weights: some 1e-7 of values of order one in the root of the error.
    error = (again - x).double().square().mean().item()
    assert error == pytest.approx(rest.item(), rel=1e-5)
    assert z.mean((0, 2, 3)).abs().max() < 1e-5
    assert z.var((0, 2, 3)).mean().item() == pytest.approx(1, rel=1e-4)


def test_lloyd_finds_well_separated_clusters():
    """Every code starts at a member, so every cluster keeps a code near or far."""
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    generator = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(3, 200, 2, generator=generator)
    latents = (centres[:, None] + noise).movedim(-1, 0).reshape(1, 2, 30, 20)
    codes = lloyd(latents, 12, generator, iterations=10)
    far = torch.cdist(latents[0].flatten(1).T, codes).min(1).values
    assert far.max() < 0.5
    assert len(nearest_code(latents, codes).unique()) == 12


def test_autoencoder_of_another_training_is_refused(
    latent_config, first_stage, tmp_path
):
    train(latent_config, tmp_path / "run", steps=1, progress=False, workers=0)
    save_autoencoder(first_stage, Autoencoder((4, 8), factor=2, groups=4, codes=16), {})
    with pytest.raises(ValueError, match=r"cannot resume .*autoencoder file"):
        train(latent_config, tmp_path / "run", progress=False, workers=0)


def test_missing_autoencoder_is_named_before_anything_is_written(
    latent_config, first_stage, tmp_path
):
    first_stage.unlink()
    with pytest.raises(FileNotFoundError, match=r"no such file: .*first_stage"):
        train(latent_config, tmp_path / "run", progress=False, workers=0)
    assert not (tmp_path / "run").exists()


def test_latent_crop_that_does_not_fit_the_latents_is_refused(latent_config, tmp_path):
    text = latent_config.read_text()
    latent_config.write_text(text.replace("crop: 8", "crop: 16"))
    with pytest.raises(ValueError, match="crop 16 exceeds the latents of scenes of 32"):
        train(latent_config, tmp_path / "run", progress=False, workers=0)


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    any_config, tmp_path, monkeypatch
):
    """Stopped by an exception in step 8, after a checkpoint at step 5."""
    from diffstategrad.training import trainer

    train(any_config, tmp_path / "whole", progress=False, workers=0)

    advance = trainer._Run.advance

    def dies(run, window):
        if run.step == 5:
            run.save(tmp_path / "halves" / "checkpoint.safetensors")
        if run.step == 8:
            raise MemoryError
        return advance(run, window)

    monkeypatch.setattr(trainer._Run, "advance", dies)
    with pytest.raises(MemoryError):
        train(any_config, tmp_path / "halves", progress=False, workers=0)
    monkeypatch.setattr(trainer._Run, "advance", advance)
    train(any_config, tmp_path / "halves", progress=False, workers=1)

    for name in ("checkpoint.safetensors", "tiny.safetensors"):
        assert _same_tensors(tmp_path / "whole" / name, tmp_path / "halves" / name)
    steps = [int(row["step"]) for row in _rows(tmp_path / "halves" / "log.csv")]
    assert steps == [2, 4, 6, 8, 10, 12]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_process_resumes_to_the_same_weights(any_config, tmp_path):
    _resumed_after(signal.SIGKILL, any_config, tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interrupted_process_says_how_to_resume_to_the_same_weights(config, tmp_path):
    errors = _resumed_after(signal.SIGINT, config, tmp_path)
    assert "to resume: diffstategrad train" in errors


def _resumed_after(number, config, tmp_path):
    """Sends the signal to a training after four steps and compares what it comes to
    with one that is left alone; the standard error of the first."""
    train(config, tmp_path / "whole", steps=12, progress=False, workers=0)

    code = (
        "import sys, time; from diffstategrad.training import trainer\n"
        "advance = trainer._Run.advance\n"
        "def slow(run, window):\n"
        "    print(run.step, flush=True); time.sleep(0.05)\n"
        "    result = advance(run, window)\n"
        "    run.save(trainer.Path(sys.argv[2]) / 'checkpoint.safetensors')\n"
        "    return result\n"
        "trainer._Run.advance = slow\n"
        "trainer.train(sys.argv[1], sys.argv[2], progress=False, workers=0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, config, tmp_path / "killed"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    for line in process.stdout:
        if line.strip() == "4":
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (tmp_path / "killed" / "tiny.safetensors").exists()

    train(config, tmp_path / "killed", progress=False, workers=0)
    assert _same_tensors(
        tmp_path / "whole" / "checkpoint.safetensors",
        tmp_path / "killed" / "checkpoint.safetensors",
    )
    return errors


def test_run_can_be_prolonged_before_its_decay(config, tmp_path):
    train(config, tmp_path / "run", steps=2, progress=False, workers=0)
    train(config, tmp_path / "run", steps=4, progress=False, workers=0)
    _, metadata = load_network(tmp_path / "run" / "tiny.safetensors")
    assert metadata["training"]["steps"] == 4


def test_without_resume_a_run_starts_again(config, tmp_path):
    out = tmp_path / "run"
    train(config, out, steps=4, progress=False, workers=0)
    first = load_file(out / "checkpoint.safetensors")
    train(config, out, steps=4, resume=False, progress=False, workers=0)
    assert len(_rows(out / "log.csv")) == 2
    again = load_file(out / "checkpoint.safetensors")
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_checkpoint_of_another_network_is_refused(config, tmp_path):
    train(config, tmp_path / "run", steps=1, progress=False, workers=0)
    config.write_text(TINY.replace("[8, 16]", "[8, 8]"))
    with pytest.raises(ValueError, match=r"checkpoint.*network = .*another folder"):
        train(config, tmp_path / "run", progress=False, workers=0)


@pytest.mark.parametrize("keep", [0, 1000])
def test_broken_checkpoint_is_named(config, tmp_path, keep):
    out = tmp_path / "run"
    train(config, out, steps=1, progress=False, workers=0)
    checkpoint = out / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint"):
        train(config, out, progress=False, workers=0)


def test_output_that_is_a_file_is_named(config, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match=r"cannot create .*run"):
        train(config, tmp_path / "run", progress=False, workers=0)


def test_full_disk_is_reported_before_training_and_leaves_nothing(
    any_config, tmp_path, monkeypatch
):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffstategrad.models.unet.save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint.*No space"):
        train(any_config, tmp_path / "run", progress=False, workers=0)
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_disk_that_fills_up_keeps_the_last_checkpoint(any_config, tmp_path):
    """The limit of a file's size breaks a write halfway, as a full disk does."""
    out = tmp_path / "run"
    train(any_config, out, steps=1, progress=False, workers=0)
    (out / "tiny.safetensors").unlink()
    before = (out / "checkpoint.safetensors").read_bytes()
    code = (
        "import resource, sys\n"
        "from diffstategrad.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2)\n"
        "sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, any_config, "--out", out, "--steps", "2"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert run.returncode not in (0, -signal.SIGXFSZ)
    assert "cannot write" in run.stderr and "checkpoint.safetensors" in run.stderr
    assert "Traceback" not in run.stderr
    assert (out / "checkpoint.safetensors").read_bytes() == before
    names = {path.name for path in out.iterdir()}
    assert names == {"checkpoint.safetensors", "log.csv", "samples.png"}


def test_read_only_folder_is_reported_before_training(
    any_config, tmp_path, monkeypatch
):
    def refuse(tensors, path, metadata):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("diffstategrad.models.unet.save_file", refuse)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint.*Permission denied"):
        train(any_config, tmp_path / "run", progress=False, workers=0)
    assert not list((tmp_path / "run").iterdir())


def test_log_drops_a_row_that_was_cut_short_and_names_itself(tmp_path):
    from diffstategrad.training.trainer import _Log

    path = tmp_path / "log.csv"
    log = _Log(path, 0)
    log.add(2, 0.5, 1e-3, 10, 1)
    path.write_text(path.read_text() + "4,0.4")
    log = _Log(path, 6)
    assert [row["step"] for row in _rows(path)] == ["2"]
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"^cannot write .*log\.csv: "):
        log.add(6, 0.5, 1e-3, 10, 1)


def test_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config.write_text(TINY.replace("lr: 1.0e-3", "lr: 1.0e+30"))
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d"):
        train(config, tmp_path / "run", progress=False, workers=0)
    tensors = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_steps_must_be_positive(config, tmp_path):
    with pytest.raises(ValueError, match=r"^steps must be at least 1, got 0"):
        train(config, tmp_path / "run", steps=0)


def test_fewer_steps_than_were_done_are_refused(config, tmp_path):
    network = train(config, tmp_path, steps=2, progress=False, workers=0)
    before = network.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint.* is of step 2, beyond steps=1"):
        train(config, tmp_path, steps=1, progress=False, workers=0)
    assert network.read_bytes() == before


# ---- What the command says -----------------------------------------------------------


def test_command_says_what_it_resumes_and_what_it_wrote(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    written = f"wrote {Path('runs/tiny/tiny.safetensors')}\n"
    for steps, said in (
        (2, ""),
        (3, "resumed at step 2 of 3\n"),
        (3, "resumed at step 3 of 3\n"),
    ):
        assert main(["train", str(config), "--steps", str(steps)]) == 0
        assert capsys.readouterr() == (said + written, "")


def test_help_names_the_folder_that_is_the_default(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "default runs/NAME" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("which", [".", "checkpoint.safetensors"])
def test_a_run_is_no_prior_but_says_where_it_is(any_config, tmp_path, which):
    out = tmp_path / "run"
    network = train(any_config, out, steps=1, progress=False, workers=0)
    for read in (load_prior, describe_prior):
        with pytest.raises(ValueError, match=rf"give its network, {network}$"):
            read(out / which)
    network.unlink()
    for read in (load_prior, describe_prior):
        with pytest.raises(ValueError, match=rf"not ended; .* and writes {network} "):
            read(out / which)


@pytest.mark.parametrize(
    "state",
    [
        "[",
        "[" * 100_000,
        "[]",
        "{}",
        '{"config": {"name": 3}}',
        '{"config": {"name": "../a"}}',
    ],
)
def test_a_checkpoint_that_is_not_understood_is_no_known_network(tmp_path, state):
    path = tmp_path / "checkpoint.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"state": state})
    with pytest.raises(ValueError, match="tensors of no known network"):
        load_prior(path)
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_prior(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_while_rendering_begins_says_how_to_resume(config, tmp_path):
    """Sent to the process group, as a terminal does, while the rendering process waits
    in the start of its interpreter."""
    begun = tmp_path / "begun"
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, sys, time\n"
        "if 'serve' in sys.orig_argv[-1]:\n"
        f"    begun = pathlib.Path({str(begun)!r})\n"
        "    begun.touch()\n"
        "    while begun.exists():\n"
        "        time.sleep(0.01)\n"
    )
    call = [sys.executable, "-m", "diffstategrad", "train", config, "-o"]
    process = subprocess.Popen(
        [*call, tmp_path / "run"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    begun.unlink()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.startswith("diffstategrad train: stopped at step 0 of 12; to resume:")


def test_ctrl_c_ends_the_wait_for_the_first_scenes(config, tmp_path, monkeypatch):
    rendered = []

    def interrupt(seed, index, size):
        rendered.append(index)
        if len(rendered) == 2:
            signal.raise_signal(signal.SIGINT)
        return scene(seed, index, size)

    monkeypatch.setattr("diffstategrad.training.stream.scene", interrupt)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 0 of 12; to resume"):
        train(config, tmp_path / "run", progress=False, workers=0)
    assert len(rendered) == 2


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("number", "raised"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, KeyboardInterrupt),
        (signal.SIGABRT, RuntimeError),
    ],
)
def test_rendering_process_that_is_interrupted_interrupts(
    tmp_path, monkeypatch, number, raised
):
    dies = tmp_path / "python"
    dies.write_text(
        f"#!{sys.executable}\nimport os, signal\n"
        f"signal.signal({number:d}, signal.SIG_DFL)\n"
        f"os.kill(os.getpid(), {number:d})\n"
    )
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    window = SceneWindow(0, StreamConfig(size=16), 0, 1)
    try:
        with pytest.raises(raised):
            window.crops(0, 8, 1)
    finally:
        window.close()


# ---- Evaluation ----------------------------------------------------------------------


def test_evaluation_of_the_noisy_image_is_the_noise_level():
    """Clipping to [-1, 1] can only help, and helps little at sigma = 0.05."""
    pytest.importorskip("skimage")
    table = evaluate(lambda noisy, clean, sigma: noisy, ("coffee",), (0.05,), 64)
    # sigma^2 is estimated from 12288 values: 0.06 dB standard error.
    assert table[0, 0] == pytest.approx(20 * np.log10(2 / 0.05), abs=0.5)


def test_bundled_prior_beats_total_variation_at_every_level():
    pytest.importorskip("skimage")
    weights = ROOT / "diffstategrad" / "weights" / "leaves64.safetensors"
    assert weights.stat().st_size <= 12 * 2**20
    names = ("chelsea", "coffee")
    network = evaluate(network_estimate(weights), names)
    for i, sigma in enumerate(LEVELS):
        reference = evaluate(total_variation, names, (sigma,))
        assert network[:, i].mean() > reference.mean()


def test_latent_predictors_have_the_errors_they_must(
    latent_config, first_stage, tmp_path, capsys
):
    pytest.importorskip("skimage")
    weights = train(latent_config, tmp_path / "run", steps=1, progress=False, workers=0)
    net, _ = load_autoencoder(first_stage)
    errors = latent_errors(weights, net, ("coffee",), (0.5, 200.0), size=64)
    # The noise is 1024 values: 2 % standard error; the same values at both levels.
    assert errors["noisy"][0] == pytest.approx([0.5, 200], rel=0.1)
    assert errors["noisy"][0, 1] / errors["noisy"][0, 0] == pytest.approx(400, rel=1e-4)
    # No information is left at sigma = 200: the filter falls back on the mean.
    assert errors["Wiener"][0, 1] == pytest.approx(errors["mean"][0, 1], rel=0.01)
    assert errors["Wiener"][0, 0] < errors["noisy"][0, 0]
    assert all(np.isfinite(table).all() for table in errors.values())

    arguments = [str(weights), "--photographs", "coffee"]
    assert evaluate_main([*arguments, "--autoencoder", str(first_stage)]) == 1
    assert "RMS error, network" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate_main(arguments)


def test_reconstruction_is_measured_with_and_without_quantisation(first_stage, capsys):
    pytest.importorskip("skimage")
    net, _ = load_autoencoder(first_stage)
    table, used = reconstruction(net, ("coffee",), size=64)
    image = photograph("coffee", 64)
    decoded = net.decode(net.encode(torch.from_numpy(image)[None]), quantise=False)
    error = np.clip(decoded[0].numpy(), -1, 1) - image
    assert table[0, 1] == pytest.approx(-10 * np.log10((error**2).mean() / 4), abs=1e-3)
    assert table[0, 0] != table[0, 1]
    assert 1 <= used <= 16
    assert evaluate_main([str(first_stage), "--photographs", "coffee"]) == 0
    assert "quantised" in capsys.readouterr().out


# ---- Configuration -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 7", "sed: 7", r"tiny\.yaml: unknown key 'sed', did you mean 'seed'"),
        ("lr: 1.0e-3", "rate: 1", r"unknown key 'optimiser\.rate'; known: .*lr"),
        ("crop: 16", "corp: 16", r"unknown key 'phases\.0\.corp', .*'crop'"),
        ("seed: 7", "seed: -1", r"tiny\.yaml: seed: "),
        (
            "crop: 16",
            "crop: 15",
            r"tiny\.yaml: phases: crop 15 is no multiple of the stride 4",
        ),
        ("crop: 16", "crop: 64", "crop 64 exceeds stream.size 32"),
        ("seed: 7", "autoencoder: {factor: 16}", "no multiple of the stride 16"),
        ("seed: 7", "latent: {autoencoder: x}\nautoencoder: {}", "exclude each other"),
        (
            "seed: 7",
            "latent: {autoencoder: x}\nschedule: {beta_d: 10}",
            "schedule: latent.beta_start and",
        ),
        ("seed: 7", "latent: {file: x}", r"unknown key 'latent\.file'; known: auto"),
        ("seed: 7", "autoencoder: {code: 9}", r"'autoencoder\.code', .*'codes'"),
        ("name: tiny", "name: ../x", r"tiny\.yaml: name: "),
        ("log_every: 2", "log_every: [", "not valid YAML"),
    ],
)
def test_faulty_configuration_is_explained(config, old, new, message):
    config.write_text(TINY.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_config(config)


def test_autoencoder_is_named_by_path_or_by_bundled_name():
    path = LatentConfig(autoencoder="runs/a/a.safetensors").path
    assert path == Path("runs/a/a.safetensors")
    path = LatentConfig(autoencoder="leaves_vq4").path
    assert path == ROOT / "diffstategrad" / "weights" / "leaves_vq4.safetensors"


def test_configuration_must_be_a_mapping(config):
    config.write_text("- 1\n")
    with pytest.raises(ValueError, match="expected a mapping, got list"):
        load_config(config)


def test_missing_configuration_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs/training").glob("*.yaml")))
def test_shipped_configurations_load(path):
    assert load_config(path).name == path.stem


# ---- Parts ---------------------------------------------------------------------------


def test_learning_rate_warms_up_stays_and_decays_to_zero():
    optimiser = OptimiserConfig(lr=1e-3, warmup_steps=10, decay_steps=20)
    phase = PhaseConfig(steps=100)
    rates = [learning_rate(k, 100, optimiser, phase) for k in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[10:80] == [1e-3] * 70
    assert rates[90] == pytest.approx(5e-4)
    assert rates[100] == 0
    assert learning_rate(50, 100, optimiser, PhaseConfig(steps=1, lr_scale=0.5)) == 5e-4


def test_noise_levels_follow_the_configured_law():
    noise = NoiseConfig(log_mean=-1, log_std=1.3, uniform_share=0)
    sigma = draw_sigma(np.random.default_rng(0), 20_000, noise, VPSchedule())
    # Standard error of the mean 0.009; of the deviation 0.007. Clipping moves both
    # by less than 0.001.
    assert np.log(sigma).mean() == pytest.approx(-1, abs=0.04)
    assert np.log(sigma).std() == pytest.approx(1.3, abs=0.03)
    noise = NoiseConfig(uniform_share=1, minimum=0.05)
    sigma = draw_sigma(np.random.default_rng(0), 20_000, noise, VPSchedule())
    assert sigma.min() == 0.05
    assert VPSchedule().t_of_sigma(sigma).mean() == pytest.approx(499.5, abs=10)


def test_v_target_gives_back_the_clean_image():
    x0 = torch.rand(5, 3, 8, 8) * 2 - 1
    schedule = VPSchedule()
    z, t, v = noisy_batch(x0, 0, 3, NoiseConfig(maximum=5), schedule)
    ab = torch.from_numpy(schedule.alpha_bar(t.double().numpy()))[:, None, None, None]
    recovered = ab.sqrt() * z - (1 - ab).sqrt() * v
    # float32 rounding of z, t and v, times at most sqrt(1 + 5^2).
    torch.testing.assert_close(recovered.float(), x0, rtol=0, atol=1e-4)


def test_crops_do_not_depend_on_who_renders_or_where_one_starts():
    config = StreamConfig(size=32, scenes=3, steps_per_scene=2)
    expected = {}
    alone = SceneWindow(4, config, 0, 0)
    for step in range(8):
        expected[step] = alone.crops(step, 16, 2)
    late = SceneWindow(4, config, 5, workers=2)
    try:
        for step in (5, 6, 7):
            assert torch.equal(late.crops(step, 16, 2), expected[step])
    finally:
        late.close()
    assert not torch.equal(expected[0], expected[1])


def test_encoded_scenes_are_cut_as_they_are():
    config = StreamConfig(size=16, scenes=1)
    window = SceneWindow(4, config, 0, 0, lambda image: image[:, ::2, ::2])
    crops = window.crops(0, 6, 20)
    assert crops.shape == (20, 3, 6, 6)
    image = torch.from_numpy(window._scenes[0].astype(np.float32))
    places = image.unfold(1, 6, 1).unfold(2, 6, 1).movedim(0, 2).flatten(0, 1)
    for crop in crops:
        assert (places == crop).flatten(1).all(1).any()


def test_rendering_process_ends_with_its_reader():
    window = SceneWindow(0, StreamConfig(size=16, scenes=1), 0, 1)
    window.crops(0, 8, 1)
    process = window._workers[0]._process
    window.close()
    assert process.poll() is not None
