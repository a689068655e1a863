"""Buffers in Redis, on both faces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.lossy import Face


@pytest.fixture(params=["threads", "asyncio"])
def opened(request: pytest.FixtureRequest, namespace: str) -> Iterator[Callable[..., Face]]:
    """Open the buffer of a URL, in the test's own scope."""
    made: list[Face] = []

    def make(url: str, **options: Any) -> Face:
        made.append(Face(request.param, url, f"{namespace}/user", **options))
        return made[-1]

    yield make
    for face in made:
        face.close()
