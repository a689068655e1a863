"""A test that fails while the machine stands still says nothing, and is run again.

On a shared machine everything may stand still for a second: longer than a tier's deadline or a short lease, so that caches
rightly load twice and clocks are rightly late. What the library does then has tests that bring it about themselves. So a
test that failed gets another try, with fresh fixtures, only where a watch saw the whole process stand still meanwhile, and
the end of the run names it. Any other failure stands.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

TICK = 0.02
LEAST = 0.25  # seconds without the processor that may explain a failure: half a tier's deadline
TRIES = 3
AGAIN = "ran again"
failed = pytest.StashKey[bool]()


class Watch:
    """Notes when this process got nothing done; its own computing is no stall."""

    def __init__(self) -> None:
        self._stalls: list[tuple[float, float]] = []  # until when, and for how long
        self._last = time.monotonic(), time.process_time()
        threading.Thread(target=self._run, name="stalls", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(TICK)
            stood = self._stood()
            self._last = time.monotonic(), time.process_time()
            if stood >= LEAST:
                self._stalls.append((self._last[0], stood))

    def _stood(self) -> float:
        wall, computed = self._last
        return time.monotonic() - wall - TICK - (time.process_time() - computed)

    def longest(self, since: float) -> float:
        """Seconds of the longest stall since then; 0 where there was none."""
        now = self._stood()  # the watch itself may not have come to it yet
        seen = [stood for until, stood in self._stalls if until >= since]
        return max([*seen, now if now >= LEAST else 0.0])


WATCH = Watch()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """As pytest's own, again where the machine stood still."""
    place: dict[str, Any] = {"nodeid": item.nodeid, "location": item.location}
    item.ihook.pytest_runtest_logstart(**place)
    stalls: list[str] = []
    while True:
        began = time.monotonic()
        item.stash[failed] = False
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        stalled = WATCH.longest(began)
        if not (item.stash[failed] and stalled and len(stalls) + 1 < TRIES):
            break
        stalls.append(f"{stalled:.2f} s")
    for report in reports:
        if stalls and report.when == "teardown":
            report.user_properties.append((AGAIN, ", ".join(stalls)))
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(**place)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps for the test's own fixtures whether it failed."""
    report = yield
    item.stash[failed] = item.stash.get(failed, False) or report.failed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names what ran again."""
    for reports in list(terminalreporter.stats.values()):
        for report in reports:
            said = dict(getattr(report, "user_properties", ()))
            if AGAIN in said:
                line = f"{report.nodeid}: failed while the machine stood still ({said[AGAIN]}); {AGAIN}"
                terminalreporter.write_line(line, yellow=True)
