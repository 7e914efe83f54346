"""Tasks and published constants, read from YAML and checked.

A task file names an operator and a noise level; a method file names the published
constants of a method for every task.  Both live in ``configs/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffstategrad._options import nearest
from diffstategrad.operators import Operator, build

__all__ = ["Task", "constants", "load_task", "published", "tasks"]


class Task(BaseModel):
    """A measurement: operator and Gaussian noise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    operator: dict[str, Any]
    sigma: float = Field(
        gt=0, allow_inf_nan=False, description="standard deviation of the noise"
    )

    def build(self, size: tuple[int, ...] | None = None) -> Operator:
        """The operator, for images of `size` (H, W) where it needs to know it."""
        spec = dict(self.operator)
        if spec.get("size") == "image":
            if size is None:
                raise ValueError("this task's operator needs the size of the image")
            spec["size"] = tuple(size)
        return build(spec)


def _folder(name: str) -> Path:
    """configs/NAME: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return (inside if inside.is_dir() else package.parent / "configs") / name


def _named(folder: str, name: str) -> Path:
    """The file of a name, or a path that the user gave."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    path = _folder(folder) / f"{name}.yaml"
    if not path.is_file():
        known = [p.stem for p in _folder(folder).glob("*.yaml")]
        raise ValueError(f"no file {name!r} in configs/{folder}{nearest(name, known)}")
    return path


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None


def tasks() -> list[str]:
    """Names of the bundled tasks."""
    return sorted(path.stem for path in _folder("tasks").glob("*.yaml"))


def load_task(name: str) -> Task:
    """A bundled task, or the one in a .yaml file.

    Raises
    ------
    ValueError
        If there is no such task; if a key or value is wrong: names key and file.
    """
    path = _named("tasks", name)
    values = _read(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys and values")
    for key in values:
        if key not in Task.model_fields:
            raise ValueError(
                f"{path}: unknown key {key!r}{nearest(key, Task.model_fields)}"
            )
    try:
        return Task(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {where}: {first['msg']}") from None


def published(method: str) -> tuple[list[str], list[str]]:
    """Names of the tasks and of the presets that a method's file has constants for."""
    values = _method_file(method)
    presets = values.get("presets", {})
    parts = [values, *presets.values()]
    return sorted({t for p in parts for t in p.get("tasks", {})}), sorted(presets)


def _method_file(method: str) -> dict[str, Any]:
    path = _folder("methods") / f"{method}.yaml"
    values = _read(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys and values")
    for part, known in (
        (values, ("default", "tasks", "presets")),
        *(
            (preset, ("default", "tasks"))
            for preset in values.get("presets", {}).values()
        ),
    ):
        for key in part:
            if key not in known:
                raise ValueError(f"{path}: unknown key {key!r}{nearest(key, known)}")
    return values


def constants(
    method: str, task: str | None = None, *, preset: str | None = None
) -> dict[str, Any]:
    """What a method's file says for a task (one it does not know has the defaults) and
    a preset; ValueError for an unknown preset."""
    values = _method_file(method)
    presets = values.get("presets", {})
    if preset is not None and preset not in presets:
        raise ValueError(f"{method} has no preset {preset!r}{nearest(preset, presets)}")
    options: dict[str, Any] = {}
    for part in (values, presets.get(preset, {})):
        options |= part.get("default", {})
        options |= part.get("tasks", {}).get(task, {})
    return options
