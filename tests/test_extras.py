"""What needs an extra says so, and nothing else imports it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diffstategrad.operators import Identity, from_deepinv, to_deepinv


def test_importing_the_package_imports_no_extra():
    extras = (
        "torchmetrics",
        "torchvision",
        "torch_fidelity",
        "deepinv",
        "transformers",
    )
    code = (
        "import sys, diffstategrad; "
        f"print([name for name in {extras!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("convert", [from_deepinv, to_deepinv])
def test_a_missing_deepinv_is_named_with_its_extra(convert, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepinv", None)
    message = rf"{convert.__name__} needs deepinv.*'diffstategrad\[deepinv\]'"
    with pytest.raises(ImportError, match=message):
        convert(Identity())
