"""Runs every probe in a process of its own, a few at a time; a probe that takes too long is killed, which is a result."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.conformance.model import CANNOT, FAIL, OPEN, Cannot, Library, Outcome, Scenario

Matrix = dict[str, dict[str, Outcome]]  # scenario, library


def run(
    rows: list[Scenario], columns: list[Library], jobs: int, progress: Callable[[int, int, str], None]
) -> Matrix:
    cells = [(scenario, library) for scenario in rows for library in columns]
    done = 0

    def one(cell: tuple[Scenario, Library]) -> Outcome:
        nonlocal done
        outcome = settled(*cell) or probed(*cell)
        done += 1
        progress(done, len(cells), f"{cell[0].name} · {cell[1].name}")
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(one, cells))
    for number, ((scenario, library), outcome) in enumerate(zip(cells, outcomes, strict=True)):
        if scenario.timed and outcome.verdict == FAIL:
            progress(len(cells), len(cells), f"{scenario.name} · {library.name}, once more")
            outcomes[number] = probed(scenario, library)
    matrix: Matrix = {scenario.name: {} for scenario in rows}
    for (scenario, library), outcome in zip(cells, outcomes, strict=True):
        matrix[scenario.name][library.name] = outcome
    return matrix


def settled(scenario: Scenario, library: Library) -> Outcome | None:
    """What needs no probe."""
    if scenario.name in library.open:
        return Outcome(OPEN, library.open[scenario.name])
    try:
        library.versions()
    except importlib.metadata.PackageNotFoundError:
        return Outcome(CANNOT, "does not install on this Python or machine")
    try:
        scenario.variants(library)
    except Cannot as lack:
        return Outcome(CANNOT, str(lack))
    return None


def probed(scenario: Scenario, library: Library) -> Outcome:
    command = [sys.executable, "-m", "benchmarks.conformance.child", scenario.name, library.name]
    started = time.monotonic()
    # Servers put their folders there, and a killed probe cannot remove them. Memcached's user has to reach its own.
    with tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o711)
        child = subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = child.communicate(timeout=scenario.limit)
        except subprocess.TimeoutExpired:
            return Outcome(FAIL, f"hung: nothing after {scenario.limit:.0f} s", time.monotonic() - started)
        finally:
            _end(child)
    try:
        return Outcome(**json.loads(out.strip().splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        reason = (err.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return Outcome(FAIL, f"the process died: {reason[:100]}", time.monotonic() - started)


def _end(child: subprocess.Popen[str]) -> None:
    """Ends the probe and what it started; its servers die with it, wherever it was killed."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, and so has everything that it started
        pass
    child.communicate()
