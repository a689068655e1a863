"""A fleet: several processes that ask for one key at once, started, held at a barrier, killed and reaped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("worker.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"
PATIENCE = 60.0


@dataclass(frozen=True)
class Load:
    """One start of a loader."""

    pid: int
    at: float  # monotonic seconds


class Fleet:
    """Processes of `worker.py`.

    Args:
        urls: the chain that all of them open.
        face: ``"threads"`` or ``"asyncio"``.
        callers: how many callers each process has.
        seconds: how long the loader takes.
        lease: life of the lease in seconds.
        first_hangs: the first loader never ends.
    """

    def __init__(
        self,
        folder: Path,
        urls: Sequence[str],
        namespace: str,
        face: str,
        *,
        processes: int = 4,
        callers: int = 50,
        seconds: float = 1.0,
        lease: float = 5.0,
        first_hangs: bool = False,
    ) -> None:
        self.journal = folder / "journal"
        self.journal.touch()
        order = {
            "urls": list(urls), "namespace": namespace, "face": face, "callers": callers, "seconds": seconds,
            "lease": lease, "first_hangs": first_hangs, "journal": str(self.journal), "patience": PATIENCE,
        }  # fmt: skip
        words = [sys.executable, "-W", "error", str(WORKER), json.dumps(order)]
        env = {**os.environ, "PYTHONPATH": str(SOURCE)}
        self.callers = callers
        self.started = 0.0
        self.processes = [
            subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        # Whoever hangs is killed, so that no read below waits for ever.
        self._killer = threading.Timer(PATIENCE + 5, self.close)
        self._killer.daemon = True
        self._killer.start()

    def go(self) -> float:
        """Lets all callers of all processes start once all stand ready; the moment of it."""
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        self.started = time.monotonic()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return self.started

    def loads(self) -> list[Load]:
        """All starts of the loader so far."""
        lines = self.journal.read_text(encoding="ascii").splitlines()
        return [Load(int(pid), float(at)) for pid, at in (line.split() for line in lines)]

    def first_load(self) -> Load:
        """Waits for the first loader to start."""
        deadline = time.monotonic() + PATIENCE
        while not (loads := self.loads()):
            assert time.monotonic() < deadline, "nobody began to load"
            time.sleep(0.005)
        return loads[0]

    def kill(self, pid: int) -> float:
        """Ends one by SIGKILL; the moment of it."""
        victim = next(process for process in self.processes if process.pid == pid)
        victim.kill()
        moment = time.monotonic()
        victim.wait(10)
        return moment

    def results(self) -> list[tuple[Any, float]]:
        """What every caller of those that live got, and when."""
        found: list[tuple[Any, float]] = []
        for process in self.processes:
            if process.poll() is not None and process.returncode == -9:
                continue
            assert process.stdout is not None
            line = process.stdout.readline()
            assert process.wait(20) == 0
            mine = json.loads(line)
            assert len(mine) == self.callers
            found += [(value, at) for value, at in mine]
        return found

    def close(self) -> None:
        """Ends what still runs."""
        self._killer.cancel()
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:  # "go" was never read
                    pass


@pytest.fixture
def fleet(tmp_path: Path, namespace: str) -> Iterator[Callable[..., Fleet]]:
    """Make a fleet in a namespace of its own."""
    fleets: list[Fleet] = []

    def make(urls: Sequence[str], face: str, **options: Any) -> Fleet:
        fleets.append(Fleet(tmp_path, urls, namespace, face, **options))
        return fleets[-1]

    yield make
    for one in fleets:
        one.close()
