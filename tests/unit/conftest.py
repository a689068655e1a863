"""What the tests of the flusher share: one of it, driven by hand."""

from __future__ import annotations

import pytest

from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from tests.unit.flusher_bench import Bench


@pytest.fixture
def bench(tmp_path):
    made = []

    def make(**options):
        made.append(Bench(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        drive(one.flusher._stop(THREADS))
