"""A part of a pipeline as `diffusers` and `transformers` save one: a folder with a
configuration and tensors.  Pickles are not read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffstategrad.models.archive import Tensors, read_tensors

__all__ = ["naming", "read_config", "read_weights"]

_MAX_CONFIG = 1 << 20  # bytes
_SHARD = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """What a JSON file says; ValueError unless it is there and has an object of at most
    1 MiB."""
    if not path.is_file():  # a pipe or a device would have no end
        raise ValueError(
            f"{path.parent}: no folder of diffusers: it has no {path.name}"
        )
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ValueError(f"longer than {_MAX_CONFIG} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no configuration: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no configuration")
    return content


def read_weights(place: Path, name: str) -> Tensors:
    """The tensors of a part, of a file or of several with their index.

    Parameters
    ----------
    place : Path
        The folder.
    name : str
        Of the file without its suffix; those in half precision (``name.fp16``) are read
        where there are no others.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is damaged.
    """
    whole = f"{name}.safetensors"
    for half in ("", ".fp16"):
        if (file := place / f"{name}{half}.safetensors").is_file():
            return read_tensors(file)
        if (index := place / f"{whole}.index{half}.json").is_file():
            return _read_shards(index)
    if any(place.glob("*.bin")):
        raise ValueError(
            f"{place}: has no {whole}; a folder's pickles (.bin) are not read: save it "
            "again by save_pretrained(folder, safe_serialization=True)"
        )
    raise ValueError(f"{place}: has no {whole}")


def _read_shards(index: Path) -> Tensors:
    """The tensors of several files, each in the one that the index says."""
    where = read_config(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index}: has no weight_map")
    for file in where.values():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise ValueError(f"{index}: {file!r} is no safetensors file beside it")
    shards = {
        file: read_tensors(index.parent / file)
        for file in dict.fromkeys(where.values())
    }
    told = [(file, name) for name, file in where.items()]
    found = [(file, name) for file, shard in shards.items() for name in shard]
    if wrong := sorted(set(told) ^ set(found)):
        file, name = wrong[0]
        says = (
            f"has {name!r}, but not by" if wrong[0] in found else f"lacks {name!r} of"
        )
        raise ValueError(f"{index.parent / file}: {says} {index.name}")
    shapes = {name: shards[file].shapes[name] for file, name in told}
    return Tensors(index, shapes, lambda name: shards[where[name]][name])
