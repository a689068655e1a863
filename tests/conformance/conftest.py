"""Suites that others wrote run as they are. What we mean to do differently stands in a list, with its reason.

A module of this folder may have ``DIFFERENCES``: name of one of their tests → the exception it must end with, and why
ours is not to pass it. Such a test runs all the same and is reported as expected, with its reason; when it starts to
pass, or fails otherwise, the run fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "time_intensive: dogpile.cache's mark on tests that wait for real time"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not isinstance(item, pytest.Function) or item.path.parent != _HERE:
            continue
        difference = _differences(item).get(item.originalname)
        if difference is not None:
            error, reason = difference
            item.add_marker(pytest.mark.xfail(reason=reason, raises=error, strict=True))
        if item.get_closest_marker("time_intensive") and _can_wait(item):
            item.add_marker(pytest.mark.soak)


def _differences(item: pytest.Item) -> Mapping[str, tuple[type[Exception], str]]:
    module: Any = item.getparent(pytest.Module)
    found: Mapping[str, tuple[type[Exception], str]] = getattr(module.obj, "DIFFERENCES", {})
    return found


def _can_wait(item: pytest.Function) -> bool:
    """Their long tests take 20 seconds a tier: one round of them is enough where people wait for the result."""
    stored = getattr(item, "callspec", None)
    elsewhere = stored is not None and stored.params.get("store") != "redis"
    again = item.cls is not None and item.cls.__name__ == "TestBackendWithSerializer"
    return again or (elsewhere and item.originalname.startswith("test_threaded"))
