"""Names and shapes of published networks, from ``tests/data/manifests``."""

from __future__ import annotations

import math
import tarfile
from functools import cache
from pathlib import Path

import torch

_ARCHIVE = Path(__file__).parent / "data" / "manifests" / "manifests.tar.xz"

Shapes = dict[str, tuple[int, ...]]


@cache
def table(name: str) -> list[tuple[str, ...]]:
    """The lines of a table, in its columns."""
    with tarfile.open(_ARCHIVE) as archive:
        file = archive.extractfile(f"{name}.tsv")
        assert file is not None
        lines = file.read().decode().splitlines()
    return [tuple(line.split("\t")) for line in lines]


def shapes(name: str, prefix: str = "") -> Shapes:
    """Shapes by name, the prefix dropped."""
    return {
        key.removeprefix(prefix): ()
        if shape == "scalar"
        else tuple(map(int, shape.split("x")))
        for key, shape in table(name)
    }


def state(
    shapes: Shapes, seed: int = 0, scale: float = 0.05
) -> dict[str, torch.Tensor]:
    """Numbers of these shapes; all are parts of one memory, so that a file of them is
    as small as the largest."""
    largest = max(math.prod(shape) for shape in shapes.values())
    generator = torch.Generator().manual_seed(seed)
    numbers = scale * torch.randn(2 * largest, generator=generator)
    tensors = {}
    for i, (name, shape) in enumerate(shapes.items()):
        n = math.prod(shape)
        tensors[name] = numbers[i : i + n].view(shape)
    return tensors
