"""Runs of writers, and their figures at the end of the session (without xdist: `make soak`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.harness import Run, run_seed
from tests.crash.shop import Order

_FIGURES: list[str] = []


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line for the end of the session."""

    def take(line: str) -> None:
        print(line)
        _FIGURES.append(f"{request.node.name}: {line}")

    return take


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Make a run; what it started is ended with the test."""
    runs: list[Run] = []

    def make(order: Order, **options: Any) -> Run:
        runs.append(Run(tmp_path, run_seed(), order, **options))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures of the runs that passed."""
    if _FIGURES:
        terminalreporter.section("crash runs")
        for line in _FIGURES:
            terminalreporter.write_line(line)
