"""Batches of noisy crops as a function of the seed and the step alone.

Scenes 0, 1, 2, ... are rendered in order. Step `k` cuts its crops from a window of
scenes that moves by one scene every `steps_per_scene` steps. Nothing but `k` has to be
remembered to continue a stream: the same step gives the same batch, however often the
training was interrupted and however many processes render.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import numpy as np
import torch
from torch import Tensor

from diffstategrad.schedules import TableSchedule, VPSchedule
from diffstategrad.training.config import NoiseConfig, StreamConfig
from diffstategrad.training.leaves import scene

__all__ = ["SceneWindow", "batch_generator", "draw_sigma", "noisy_batch", "serve"]

Schedule = VPSchedule | TableSchedule

_SCENES, _BATCHES = 0, 1  # independent random streams below one seed


class SceneWindow:
    """The scenes from which a step may cut.

    Parameters
    ----------
    seed : int
    config : StreamConfig
    step : int
        First step that will be asked for; steps then only grow.
    workers : int
        Rendering processes; 0 renders in this one.
    encode : callable, optional
        Makes of every scene, (3, size, size), what is kept and cut instead, (c, n, n).
        Its crops are neither flipped nor transposed: that does not commute with
        encoding.
    """

    def __init__(
        self,
        seed: int,
        config: StreamConfig,
        step: int,
        workers: int,
        encode: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self._seed = seed
        self._encode = encode
        self._config = config
        self._start = self._first(step)
        self._scenes: deque[np.ndarray] = deque()
        self._taken = 0
        self._workers = [
            _Worker(seed, config.size, self._start + i, workers) for i in range(workers)
        ]

    def _first(self, step: int) -> int:
        return step // self._config.steps_per_scene

    def _next(self) -> np.ndarray:
        index = self._start + len(self._scenes)
        if self._workers:
            # Worker i renders every n-th scene of the whole run, starting with its own.
            image = self._workers[self._taken % len(self._workers)].get()
        else:
            image = _quantised(self._seed, index, self._config.size)
        return image if self._encode is None else self._encode(image)

    def fill(self, step: int) -> Iterator[None]:
        """Make the window that of `step`, a scene at a time."""
        while self._start < self._first(step) and self._scenes:
            self._scenes.popleft()
            self._start += 1
        while len(self._scenes) < self._config.scenes:
            self._scenes.append(self._next())
            self._taken += 1
            yield

    def crops(self, step: int, size: int, count: int) -> Tensor:
        """Randomly placed, flipped and transposed crops for `step`.

        Returns
        -------
        Tensor, shape (count, 3, size, size), float32 in [-1, 1]; (count, c, size,
        size) of what `encode` returned
        """
        for _ in self.fill(step):
            pass
        rng = np.random.default_rng([self._seed, _BATCHES, step])
        channels, side, _ = self._scenes[0].shape
        out = np.empty((count, channels, size, size), np.float32)
        for crop in out:
            image = self._scenes[rng.integers(len(self._scenes))]
            y, x = rng.integers(0, side - size + 1, 2)
            patch = image[:, y : y + size, x : x + size]
            if self._encode is not None:
                crop[:] = patch
                continue
            flip_y, flip_x, swap = rng.integers(0, 2, 3)
            patch = patch[:, :: 1 - 2 * flip_y, :: 1 - 2 * flip_x]
            crop[:] = patch.transpose(0, 2, 1) if swap else patch
        return torch.from_numpy(out)

    def close(self) -> None:
        """Stop the rendering processes."""
        for worker in self._workers:
            worker.close()


def draw_sigma(
    rng: np.random.Generator, count: int, noise: NoiseConfig, schedule: Schedule
) -> np.ndarray:
    """Noise levels: lognormal, a share of them uniform in network time instead."""
    sigma = np.exp(rng.normal(noise.log_mean, noise.log_std, count))
    uniform = schedule.sigma_of_t(rng.uniform(0, 999, count))
    sigma = np.where(rng.random(count) < noise.uniform_share, uniform, sigma)
    return np.clip(sigma, noise.minimum, noise.maximum)


def batch_generator(seed: int, step: int) -> torch.Generator:
    """The random stream of `step` beside that of its crops."""
    rng = np.random.default_rng([seed, _BATCHES, step, 1])
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


def noisy_batch(
    x0: Tensor, seed: int, step: int, noise: NoiseConfig, schedule: Schedule
) -> tuple[Tensor, Tensor, Tensor]:
    """Network input, time and v target for clean crops `x0` at `step`."""
    rng = np.random.default_rng([seed, _BATCHES, step, 1])
    sigma = draw_sigma(rng, len(x0), noise, schedule)
    t = torch.from_numpy(schedule.t_of_sigma(sigma)).float()
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    eps = torch.randn(x0.shape, generator=generator)
    signal = torch.from_numpy(1 / np.sqrt(1 + sigma**2)).float()[:, None, None, None]
    spread = torch.from_numpy(sigma / np.sqrt(1 + sigma**2)).float()
    spread = spread[:, None, None, None]
    return signal * x0 + spread * eps, t, signal * eps - spread * x0


def _quantised(seed: int, index: int, size: int) -> np.ndarray:
    return scene((seed << 1) | _SCENES, index, size).astype(np.float16)


def serve(seed: int, size: int, first: int, stride: int) -> None:
    """Write scenes `first`, `first + stride`, ... to standard output for ever."""
    index = first
    try:
        while True:
            sys.stdout.buffer.write(_quantised(seed, index, size).tobytes())
            sys.stdout.buffer.flush()
            index += stride
    except BrokenPipeError:
        os._exit(0)  # the reader is gone; nothing is left to flush


class _Worker:
    """A rendering process, read ahead by a thread; it ends with this process."""

    def __init__(self, seed: int, size: int, first: int, stride: int) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        code = (
            "from diffstategrad.training.stream import serve; "
            f"serve({seed}, {size}, {first}, {stride})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            process_group=0,  # out of reach of a terminal's Ctrl-C
        )
        self._shape = (3, size, size)
        self._ahead: Queue[np.ndarray | None] = Queue(maxsize=8)
        self._closing = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        n = 2 * int(np.prod(self._shape))
        while not self._closing:
            data = self._process.stdout.read(n)
            if len(data) < n:
                break
            self._ahead.put(np.frombuffer(data, np.float16).reshape(self._shape))
        self._ahead.put(None)

    def get(self) -> np.ndarray:
        image = self._ahead.get()
        if image is None:
            code = self._process.wait()
            if code in (-signal.SIGINT, -signal.SIGTERM):
                raise KeyboardInterrupt
            raise RuntimeError(f"the rendering process ended with status {code}")
        return image

    def close(self) -> None:
        self._closing = True
        self._process.kill()
        while self._thread.is_alive():  # it may be waiting for room in the queue
            while not self._ahead.empty():
                self._ahead.get_nowait()
            self._thread.join(0.05)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
