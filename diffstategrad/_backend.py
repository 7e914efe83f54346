"""Which module does the arithmetic for a device.

`_core`, the compiled one, on the CPU; `reference`, the same functions as torch
formulas, everywhere else, and on the CPU too when ``DSG_BACKEND=reference`` is set.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch

from diffstategrad import _core, reference
from diffstategrad._options import nearest

__all__ = ["NAME", "backend"]

_MODULES = {"core": _core, "reference": reference}

#: Of the CPU: "core" or "reference".
NAME = os.environ.get("DSG_BACKEND") or "core"
if NAME not in _MODULES:
    raise ValueError(f"DSG_BACKEND: unknown backend {NAME!r}{nearest(NAME, _MODULES)}")
_ON_CPU: ModuleType = _MODULES[NAME]


def backend(device: torch.device) -> ModuleType:
    """The module with the operators, the projector and the metrics for `device`."""
    return _ON_CPU if device.type == "cpu" else reference
