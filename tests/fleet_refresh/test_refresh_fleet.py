"""Four real processes schedule one key on a real Redis: each interval has one run, whoever is killed or paused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachewright import Cache
from cachewright.testing.servers import RedisServer

WORKER = Path(__file__).with_name("worker.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"
EVERY = 0.5
PATIENCE = 40.0


class Fleet:
    """Processes of `worker.py`, and what they wrote down."""

    def __init__(self, folder: Path, url: str, namespace: str, face: str, *, hold: bool = False) -> None:
        self.folder = folder
        (folder / "journal").touch()
        self.hold = folder / "hold"
        if hold:
            self.hold.touch()
        order = {"folder": str(folder), "url": url, "namespace": namespace, "face": face, "every": EVERY}
        words = [sys.executable, "-W", "error", str(WORKER), json.dumps(order)]
        env = {**os.environ, "PYTHONPATH": str(SOURCE)}
        self.processes = [
            subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def lines(self, kind: str) -> list[tuple[int, str]]:
        """Process and value (or due moment) of every line of a kind."""
        found = [line.split() for line in (self.folder / "journal").read_text().splitlines()]
        return [(int(pid), word) for name, pid, word in found if name == kind]

    def dues(self) -> list[int]:
        """The runs so far, as numbers of their intervals."""
        dues = [int(due) for _, due in self.lines("run")]
        return [round((due - dues[0]) / 1e6 / EVERY) for due in dues]

    def until(self, true: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, f"{what}: {(self.folder / 'journal').read_text()}"
            time.sleep(0.01)

    def first_loader(self) -> int:
        """Waits for the first load; its process."""
        self.until(lambda: self.lines("load"), "nobody began to load")
        return self.lines("load")[0][0]

    def run(self, intervals: int) -> None:
        """Waits for so many further runs."""
        seen = len(self.lines("run"))
        self.until(lambda: len(self.lines("run")) >= seen + intervals, "the runs stopped")

    def end(self) -> None:
        """All end by themselves, with exit code 0, but those that were killed."""
        for process in self.processes:
            if process.poll() is None:
                assert process.stdin is not None
                process.stdin.close()
        for process in self.processes:
            assert process.wait(20) in (0, -signal.SIGKILL)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


Make = Callable[..., Fleet]


@pytest.fixture
def fleet(tmp_path: Path, redis_server: RedisServer, namespace: str) -> Iterator[Make]:
    made: list[Fleet] = []

    def make(face: str, **options: bool) -> Fleet:
        made.append(Fleet(tmp_path, redis_server.url, namespace, face, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def stored(server: RedisServer, namespace: str) -> str:
    with Cache(server.url, namespace=namespace) as cache:
        value = cache.get("rates")
        assert isinstance(value, str)
        return value


@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_each_interval_has_one_run(fleet: Make, face: str, redis_server: RedisServer, namespace: str):
    four = fleet(face)
    four.run(8)
    four.end()
    dues = four.dues()
    assert dues == list(range(len(dues))), "one run in each interval, and none left out"
    assert len(four.lines("load")) == len(four.lines("done")) == len(dues)
    assert stored(redis_server, namespace) == four.lines("load")[-1][1]


@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_a_killed_leader_is_replaced(fleet: Make, face: str, redis_server: RedisServer, namespace: str):
    four = fleet(face, hold=True)
    leader = four.first_loader()
    victim = next(process for process in four.processes if process.pid == leader)
    victim.kill()
    victim.wait(10)
    four.hold.unlink()
    four.run(6)
    four.end()
    dues = four.dues()
    assert dues[1:] == list(range(dues[1], dues[1] + len(dues) - 1)), "from then on one run in each interval"
    assert len(four.lines("load")) == len(dues) + 1, "the kill cost one load"
    assert leader not in {pid for pid, _ in four.lines("run")}
    assert stored(redis_server, namespace) == four.lines("load")[-1][1]


@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_a_leader_paused_past_its_lease_stores_nothing(
    fleet: Make, face: str, redis_server: RedisServer, namespace: str
):
    four = fleet(face, hold=True)
    leader = four.first_loader()
    os.kill(leader, signal.SIGSTOP)
    try:
        four.hold.unlink()
        four.run(3)  # the others go on without it
        paused = four.lines("load")[0][1]
        assert stored(redis_server, namespace) != paused
    finally:
        os.kill(leader, signal.SIGCONT)
    four.until(lambda: (leader, paused) in four.lines("done"), "the paused loader never ended")
    four.until(lambda: leader in {pid for pid, _ in four.lines("run")}, "the paused run never ended")
    assert stored(redis_server, namespace) != paused
    four.run(6)
    four.end()
    runs = [line for line in four.lines("run") if line != (leader, str(first_due(four, leader)))]
    repeated = [due for due, times in Counter(due for _, due in runs).items() if times > 1]
    assert repeated == [], "the pause cost one run, its own"
    assert stored(redis_server, namespace) == four.lines("load")[-1][1]


def first_due(fleet: Fleet, pid: int) -> int:
    """Which run the process was paused in."""
    return next(int(due) for who, due in fleet.lines("run") if who == pid)
