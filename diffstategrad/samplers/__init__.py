"""Methods that solve inverse problems.

To add one: a file here with its options and its `run`, and its line in `SAMPLERS`.
"""

from __future__ import annotations

from typing import Any, get_args

from diffstategrad._options import nearest
from diffstategrad.samplers.base import Level, Problem, Sampler
from diffstategrad.samplers.daps import DAPS

__all__ = [
    "DAPS",
    "SAMPLERS",
    "Level",
    "Problem",
    "Sampler",
    "as_sampler",
    "describe",
    "methods",
    "sampler_class",
]

#: Name -> class.
SAMPLERS: dict[str, type[Sampler]] = {cls.name: cls for cls in (DAPS,)}


def methods() -> list[str]:
    """Names that `solve(method=...)` takes."""
    return sorted(SAMPLERS)


def describe(method: str) -> str:
    """A method's options, one a line: name, default, meaning."""
    cls = sampler_class(method)
    lines = [f"{cls.name}: {(cls.__doc__ or '').strip().splitlines()[0]}"]
    for name, field in cls.model_fields.items():
        choices = get_args(field.annotation)
        among = f" (one of {', '.join(map(str, choices))})" if choices else ""
        lines.append(f"  {name} = {field.default!r}: {field.description}{among}")
    project = (
        "takes project=StateProjector(...)"
        if cls.projection
        else "has no measurement gradient"
    )
    return "\n".join([*lines, f"  ({project})"])


def sampler_class(method: str) -> type[Sampler]:
    """The class of a named method; ValueError that names the nearest."""
    if method not in SAMPLERS:
        raise ValueError(f"unknown method {method!r}{nearest(method, SAMPLERS)}")
    return SAMPLERS[method]


def as_sampler(method: str | Sampler, options: dict[str, Any]) -> Sampler:
    """A configured method from a name and options, or from one already configured."""
    if isinstance(method, Sampler):
        if options:
            raise ValueError(
                f"the method is already configured; options {sorted(options)} belong "
                "to its constructor"
            )
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"method must be a name or a configured method, got {type(method).__name__}"
        )
    return sampler_class(method)(**options)
