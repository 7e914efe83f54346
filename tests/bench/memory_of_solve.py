"""Prints the memory of one DAPS solve, in units of one float32 image, as JSON.

Run by the benchmark in a process of its own.  Counted is the growth of resident memory
over `solve` at its peak: everything `solve` allocates, torch's and the C core's, the
result included; also the one image that the trivial prior returns.  Not counted: what
is there before, that is the measurement, libraries and, after a solve of a tiny image,
thread pools and the like.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import diffstategrad as dsg


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def restore(operator: dsg.operators.Operator, y: torch.Tensor, project: bool) -> None:
    dsg.solve(
        y,
        operator,
        lambda x, sigma: x / (1 + sigma * sigma),
        sigma=0.05,
        steps=2,
        ode_steps=2,
        langevin_steps=2,
        project=project,
        progress=False,
    )


def main(name: str, size: int, project: bool) -> None:
    torch.set_num_threads(1)
    dsg.set_num_threads(1)
    operator = dsg.operators.build({"name": name})
    tiny = torch.zeros((1, 3, 64, 64))
    restore(operator, operator(tiny), project)

    ramp = torch.linspace(-1, 1, size)
    x = (ramp[:, None] * ramp + 0.3 * torch.sin(9 * ramp))[None, None]
    x = x.expand(1, 3, -1, -1).contiguous()
    y = operator(x)
    image = x.numel() * x.element_size()
    del x
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    restore(operator, y, project)
    print(json.dumps({"images": (resident("VmHWM") - before) / image}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "project")
