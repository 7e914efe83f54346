"""Methods that solve inverse problems.

To add one: a file here with its options, what they need of each other (`needs`), its
network calls and its `run`, and its line in `SAMPLERS`.
"""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from diffstategrad._options import nearest
from diffstategrad.config import constants, published, tasks
from diffstategrad.samplers.base import Guide, Level, Problem, Sampler
from diffstategrad.samplers.daps import DAPS
from diffstategrad.samplers.diffpir import DiffPIR
from diffstategrad.samplers.dmilo import DMILO, DMILOPGD
from diffstategrad.samplers.dmplug import DMPlug
from diffstategrad.samplers.dps import DPS, MCG
from diffstategrad.samplers.latent_daps import LatentDAPS
from diffstategrad.samplers.latent_dps import LatentDPS
from diffstategrad.samplers.network import Network
from diffstategrad.samplers.psld import PSLD
from diffstategrad.samplers.resample import ReSample
from diffstategrad.samplers.score_ald import ScoreALD
from diffstategrad.samplers.sdedit import SDEdit
from diffstategrad.samplers.splitting import ADMM, HQS
from diffstategrad.samplers.total_variation import ADMMTV, HQSTV

__all__ = [
    "ADMM",
    "ADMMTV",
    "DAPS",
    "DMILO",
    "DMILOPGD",
    "DPS",
    "HQS",
    "HQSTV",
    "MCG",
    "PSLD",
    "SAMPLERS",
    "DMPlug",
    "DiffPIR",
    "Guide",
    "LatentDAPS",
    "LatentDPS",
    "Level",
    "Network",
    "Problem",
    "ReSample",
    "SDEdit",
    "Sampler",
    "ScoreALD",
    "as_sampler",
    "describe",
    "method_options",
    "methods",
    "sampler_class",
]

#: Name -> class.
SAMPLERS: dict[str, type[Sampler]] = {
    cls.name: cls
    for cls in (
        *(DAPS, DPS, MCG, SDEdit, ScoreALD, DiffPIR),
        *(LatentDPS, PSLD, ReSample, LatentDAPS),
        *(HQS, ADMM, HQSTV, ADMMTV),
        *(DMPlug, DMILO, DMILOPGD),
    )
}


def methods() -> list[str]:
    """Names that `solve(method=...)` takes."""
    return sorted(SAMPLERS)


def describe(method: str) -> str:
    """A method's options, one a line: name, default, meaning; then the tasks and
    presets with published constants."""
    cls = sampler_class(method)
    lines = [f"{cls.name}: {(cls.__doc__ or '').strip().splitlines()[0]}"]
    for name, field in cls.model_fields.items():
        choices = _choices(field.annotation)
        among = f" (one of {', '.join(choices)})" if choices else ""
        lines.append(f"  {name} = {field.default!r}: {field.description}{among}")
    project = (
        "takes project=StateProjector(...)" if cls.projection else cls.no_projection
    )
    lines.append(f"  ({project})")
    default = cls()
    work = f"{default.calls} network calls for an image at the defaults, at most"
    if default.decodes:
        work += f", plus up to {default.decodes} passes through the decoder"
    lines.append(f"  ({work})")
    for kind, names in zip(("task", "preset"), published(method), strict=True):
        if names:
            lines.append(f"  constants for {kind}={', '.join(names)}")
    return "\n".join(lines)


def _choices(annotation: Any) -> list[str]:
    """What an option of named values may be; nothing where any number will do."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    named = [choice for part in parts for choice in _choices(part)]
    return [*named, "a number"] if named and float in map(_bare, parts) else named


def _bare(annotation: Any) -> Any:
    """The type that is annotated."""
    return (
        get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    )


def sampler_class(method: str) -> type[Sampler]:
    """The class of a named method; ValueError that names the nearest."""
    if method not in SAMPLERS:
        raise ValueError(f"unknown method {method!r}{nearest(method, SAMPLERS)}")
    return SAMPLERS[method]


def method_options(
    method: str, task: str | None = None, *, preset: str | None = None
) -> dict[str, Any]:
    """Published constants of a method, from ``configs/methods/``, that have an effect
    together.

    Parameters
    ----------
    method : str
    task : str, optional
        For this task; those of no task where none are known for it.
    preset : str, optional
        A named set beside the constants: "official" reproduces the published code with
        its slips.

    Raises
    ------
    ValueError
        For an unknown method or preset.
    """
    cls = sampler_class(method)
    return _beside(cls, task, preset, {})


def _beside(
    cls: type[Sampler],
    task: str | None,
    preset: str | None,
    given: dict[str, Any],
) -> dict[str, Any]:
    """The options given, and those of the published constants that then have an
    effect."""
    file = constants(cls.name, task, preset=preset)
    for option in file:
        if option not in cls.model_fields:
            raise ValueError(
                f"{cls.name}.yaml: {cls.name} has no option {option!r}"
                f"{nearest(option, cls.model_fields)}"
            )
    idle = cls.model_construct(**{**file, **given}).idle
    return {k: v for k, v in file.items() if k not in idle} | given


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
    cls = sampler_class(method)
    options = dict(options)
    task, preset = options.pop("task", None), options.pop("preset", None)
    # of a file of one's own no constants are known
    if task is not None and not str(task).endswith((".yaml", ".yml")):
        known = {*tasks(), *published(method)[0]}
        if task not in known:
            raise ValueError(f"unknown task {task!r}{nearest(task, known)}")
    if task is None and preset is None:
        return cls(**options)
    sampler = cls(**_beside(cls, task, preset, options))
    # only what was typed is refused where a problem leaves it without effect
    sampler.model_fields_set.intersection_update(options)
    return sampler
