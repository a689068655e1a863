"""Suites that others wrote run as they are. What we mean to do differently stands in a list, with its reason.

A module of this folder may have ``DIFFERENCES``: name of one of their tests → why ours is not to pass it. Such a test
runs all the same, must fail, and is reported as expected with its reason; when it starts to pass, the run fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != _HERE:
            continue
        reason = _differences(item).get(getattr(item, "originalname", item.name) or item.name)
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def _differences(item: pytest.Item) -> Mapping[str, str]:
    module: Any = item.getparent(pytest.Module)
    found: Mapping[str, str] = getattr(module.obj, "DIFFERENCES", {})
    return found
