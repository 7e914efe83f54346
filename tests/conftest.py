"""What all tests share."""

from __future__ import annotations

import os

import pytest

REFERENCE = os.environ.get("DSG_BACKEND") == "reference"


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "core_only: about the compiled core itself",
        "once: about the Python above the backends, the same whatever computes",
    ):
        config.addinivalue_line("markers", f"{marker}; skipped under the reference")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not REFERENCE:
        return
    for item in items:
        for marker in ("core_only", "once"):
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=marker))
