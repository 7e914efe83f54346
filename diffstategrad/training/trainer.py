r"""The training loop, the same for every task of :mod:`diffstategrad.training.tasks`.

One step of AdamW on the task's loss, and an exponential moving average (EMA) of the
weights, which is what is exported. Batches and learning rate are functions of the step
alone, so a run that is stopped and resumed ends with the same weights, bit for bit, as
one that is not (same machine, same number of threads).
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from diffstategrad._files import replacing
from diffstategrad.models.unet import replace_file
from diffstategrad.priors.trained import CHECKPOINT
from diffstategrad.training.config import (
    OptimiserConfig,
    PhaseConfig,
    TrainingConfig,
    load_config,
)
from diffstategrad.training.stream import SceneWindow
from diffstategrad.training.tasks import make_task

__all__ = ["learning_rate", "train"]

_LOG_FIELDS = ("step", "loss", "lr", "crops_per_second", "elapsed")


def train(
    config_path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    resume: bool = True,
    progress: bool | None = None,
    workers: int | None = None,
) -> Path:
    """Train a network as a YAML file describes.

    Parameters
    ----------
    config_path : path of the YAML file
    out : path, optional
        Folder for `checkpoint.safetensors`, `log.csv`, `samples.png` and the exported
        network; `runs/NAME` by default.
    steps : int, optional
        Total number of steps instead of the sum of the phases. A stopped run may be
        resumed with another total as long as the final decay had not begun.
    resume : bool
        Continue from the checkpoint in `out` if there is one.
    progress : bool, optional
        Show a progress bar, and print the step that a run is resumed at; by default
        the bar only when standard error is a terminal.
    workers : int, optional
        Rendering processes, 1 by default; 0 renders between steps. Does not change
        the result.

    Returns
    -------
    Path of the exported network, `out/NAME.safetensors`.

    Raises
    ------
    ValueError
        For a faulty configuration, or a checkpoint of another configuration or of a
        later step than the last.
    OSError
        If `out` cannot be written.
    FloatingPointError
        If the loss is not finite; the last checkpoint is from before.
    KeyboardInterrupt
        After Ctrl-C; the state has been saved and the message says how to resume.
    """
    config = load_config(config_path)
    total = config.steps if steps is None else steps
    if total < 1:
        raise ValueError(f"steps must be at least 1, got {total}")
    run = _Run(config, total)
    folder = Path(out) if out is not None else Path("runs") / config.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OSError(f"cannot create {folder}: {err}") from err

    if resume and (folder / CHECKPOINT).exists():
        run.load(folder / CHECKPOINT)
        if run.step > total:
            raise ValueError(
                f"{folder / CHECKPOINT} is of step {run.step}, beyond steps={total}"
            )
        if progress is not False:
            print(f"resumed at step {run.step} of {total}", flush=True)
    if run.step == 0:
        run.save(folder / CHECKPOINT)  # a folder that cannot be written fails early
    log = _Log(folder / "log.csv", run.step)
    workers = 1 if workers is None else workers
    with (
        _stop_on_interrupt() as stopped,
        contextlib.closing(run.task.window(run.step, workers)) as window,
    ):
        _loop(run, window, log, folder, progress, stopped)
    if run.step < total:
        raise KeyboardInterrupt(
            f"stopped at step {run.step} of {total}; to resume: diffstategrad "
            f"train {config_path} --out {folder}"
            + (f" --steps {steps}" if steps is not None else "")
        )
    return run.task.export(folder, run.average, run.provenance())


def learning_rate(
    step: int, total: int, optimiser: OptimiserConfig, phase: PhaseConfig
) -> float:
    """Warm-up, constant, and a linear decay to zero over the last `decay_steps`."""
    warm = min(1.0, (step + 1) / max(1, optimiser.warmup_steps))
    decay = min(1.0, (total - step) / max(1, optimiser.decay_steps))
    return optimiser.lr * phase.lr_scale * warm * decay


class _Run:
    """Everything a step changes: weights, moments, average, step and clock."""

    def __init__(self, config: TrainingConfig, total: int) -> None:
        self.config = config
        self.total = total
        self.step = 0
        self.elapsed = 0.0
        self.task = make_task(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.net = self.task.build()
            self.average = self.task.build()
        self.average.load_state_dict(self.net.state_dict())
        self.average.eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(),
            lr=config.optimiser.lr,
            betas=(0.9, config.optimiser.beta2),
            weight_decay=config.optimiser.weight_decay,
            fused=True,
        )

    def advance(self, window: SceneWindow) -> tuple[float, float]:
        """One step; returns loss and learning rate."""
        config, k = self.config, self.step
        phase = config.phase_at(k)
        lr = learning_rate(k, self.total, config.optimiser, phase)
        for group in self.optimiser.param_groups:
            group["lr"] = lr

        self.task.prepare(self.net, self.average, window, k)
        loss = self.task.loss(self.net, window, k)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {k}")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.optimiser.clip)
        self.optimiser.step()

        keep = min(config.optimiser.ema, (1 + k) / (10 + k))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.net.parameters()), 1 - keep
            )
        self.step = k + 1
        return value, lr

    def provenance(self) -> dict[str, Any]:
        """What is written beside the exported weights."""
        return {
            "config": self.config.model_dump(mode="json"),
            "steps": self.step,
            "seconds": round(self.elapsed),
            "data": "procedural dead leaves, no photographs",
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
        }

    # ---- Checkpoints: tensors and one JSON header in a single file ------------------

    def _named(self) -> list[tuple[str, Tensor, Tensor]]:
        pairs = zip(self.net.named_parameters(), self.average.parameters(), strict=True)
        return [(name, p, mean) for (name, p), mean in pairs]

    def save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for name, p, mean in self._named():
            tensors[f"net.{name}"] = p.detach()
            tensors[f"average.{name}"] = mean
            # a weight that has had no gradient yet has no moments either
            for moment, value in self.optimiser.state.get(p, {}).items():
                tensors[f"{moment}.{name}"] = value
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "config": self.config.model_dump(mode="json"),
            "identity": self.task.identity(),
        }
        replace_file(path, tensors, {"state": json.dumps(state)})

    def load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                self._check(state)
                names = set(file.keys())
                with torch.no_grad():
                    for name, p, mean in self._named():
                        p.copy_(file.get_tensor(f"net.{name}"))
                        mean.copy_(file.get_tensor(f"average.{name}"))
                        if f"step.{name}" in names:
                            self.optimiser.state[p] = {
                                key: file.get_tensor(f"{key}.{name}")
                                for key in ("step", "exp_avg", "exp_avg_sq")
                            }
                self.step, self.elapsed = int(state["step"]), float(state["elapsed"])
        except (SafetensorError, KeyError, TypeError, ValueError) as err:
            raise ValueError(f"cannot resume from {path}: {err}") from err

    def _check(self, state: dict[str, Any]) -> None:
        """Refuse what cannot be continued; later phases and rates may change."""
        saved = {**state["config"], **state.get("identity", {})}
        now = {**self.config.model_dump(mode="json"), **self.task.identity()}
        fixed = ("seed", "precision", "stream", "network", "schedule", "autoencoder")
        for key in (*fixed, *self.task.identity()):
            if saved.get(key) != now[key]:
                raise ValueError(
                    f"it was made with {key} = {saved.get(key)}, the configuration "
                    f"says {now[key]}; use another folder or do not resume"
                )


class _Log:
    """log.csv; rows after the checkpoint that is resumed from are dropped, and one that
    was cut short."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        rows: list[dict[str, str]] = []
        if step and path.exists():
            with open(path, newline="") as file:
                rows = [
                    row
                    for row in csv.DictReader(file)
                    if None not in row.values()
                    and row["step"].isdigit()
                    and int(row["step"]) <= step
                ]
        with replacing(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, _LOG_FIELDS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def add(
        self, step: int, loss: float, lr: float, rate: float, seconds: float
    ) -> None:
        row = (step, f"{loss:.6f}", f"{lr:.3e}", f"{rate:.1f}", f"{seconds:.1f}")
        try:
            with open(self._path, "a", newline="") as file:
                csv.writer(file).writerow(row)
        except OSError as err:
            raise OSError(f"cannot write {self._path}: {err}") from err


def _loop(
    run: _Run,
    window: SceneWindow,
    log: _Log,
    folder: Path,
    progress: bool | None,
    stopped: Callable[[], bool],
) -> None:
    config = run.config
    before = run.elapsed
    start = saved = reported = time.monotonic()
    crops = count = 0
    loss_sum = 0.0
    bar = tqdm(
        total=run.total,
        initial=run.step,
        disable=None if progress is None else not progress,
        unit="step",
        smoothing=0.02,
    )
    try:
        if run.step < run.total:
            bar.set_postfix_str("rendering scenes")  # which may take minutes
            for _ in window.fill(run.step):
                if stopped():
                    break
            bar.set_postfix_str("")
        while run.step < run.total and not stopped():
            loss, lr = run.advance(window)
            loss_sum, count = loss_sum + loss, count + 1
            crops += config.phase_at(run.step - 1).batch
            bar.update()
            now = time.monotonic()
            run.elapsed = before + now - start
            if run.step % config.log_every == 0 or run.step == run.total:
                mean, rate = loss_sum / count, crops / max(now - reported, 1e-9)
                log.add(run.step, mean, lr, rate, run.elapsed)
                bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                reported, crops, count, loss_sum = now, 0, 0, 0.0
            if now - saved > 60 * config.checkpoint_minutes:
                run.save(folder / CHECKPOINT)
                saved = now
        run.save(folder / CHECKPOINT)
    finally:
        bar.close()


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C (or SIGTERM) ends the loop after its step; a second one kills.

    Signals reach the main thread alone; elsewhere nothing is installed.
    """
    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    old = {}
    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, handler)
    try:
        yield lambda: bool(seen)
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
