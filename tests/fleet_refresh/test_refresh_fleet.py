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
from typing import Any

import pytest

from cachewright import Cache
from cachewright.testing.servers import RedisServer

WORKER = Path(__file__).with_name("worker.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"
EVERY = 0.5
PATIENCE = 40.0


class Fleet:
    """Processes of `worker.py`, and what they wrote down."""

    def __init__(
        self, folder: Path, url: str, namespace: str, face: str, *, hold: bool = False, every: float = EVERY
    ) -> None:
        self.folder, self.every = folder, every
        (folder / "journal").touch()
        self.hold = folder / "hold"
        if hold:
            self.hold.touch()
        self.order = {"folder": str(folder), "url": url, "namespace": namespace, "every": every}
        faces = ["threads", "asyncio"] * 2 if face == "mixed" else [face] * 4
        self.processes = [self.start(face) for face in faces]
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def start(self, face: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-W", "error", str(WORKER), json.dumps({**self.order, "face": face})]
        env = {**os.environ, "PYTHONPATH": str(SOURCE)}
        return subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def lines(self, kind: str) -> list[tuple[int, str]]:
        """Process and value (or due moment) of every line of a kind."""
        found = [line.split() for line in (self.folder / "journal").read_text().splitlines()]
        return [(int(pid), word) for name, pid, word in found if name == kind]

    def dues(self) -> list[int]:
        """The runs so far, as numbers of their intervals."""
        dues = [int(due) for _, due in self.lines("run")]
        return [round((due - dues[0]) / 1e6 / self.every) for due in dues]

    def stored(self) -> dict[tuple[int, int], str]:
        """What stood in Redis at the end of each run, by process and due moment."""
        words = [(pid, word.partition("=")) for pid, word in self.lines("stored")]
        return {(pid, int(due)): value for pid, (due, _, value) in words}

    def caught(self) -> tuple[subprocess.Popen[str], str]:
        """A process that hangs in a load, and the value that it has in hand; `hold` stands from here on."""
        seen = len(self.lines("hangs"))
        self.hold.touch()

        def hanging() -> list[tuple[int, str]]:
            # by its own word: one that found no `hold` just before it was there is about to store its value
            return self.lines("hangs")[seen:]

        self.until(hanging, "nobody hangs in a load")
        pid, value = hanging()[0]
        return next(process for process in self.processes if process.pid == pid), value

    def until(self, true: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE * max(1.0, 2 * self.every)
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

    def make(face: str, **options: Any) -> Fleet:
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


def kill(four: Fleet) -> str:
    """Kills the process that runs, in its load; the value that is lost."""
    victim, value = four.caught()
    victim.kill()
    victim.wait(10)
    four.hold.unlink()
    return value


def pause(four: Fleet, intervals: int) -> str:
    """Stops the process that runs, in its load, for longer than its lease; the value that must not be stored."""
    victim, value = four.caught()
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        four.hold.unlink()
        four.run(intervals)  # the others take over, and go on
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    four.until(lambda: (victim.pid, value) in four.lines("done"), "the paused loader never ended")
    return value


def check(four: Fleet, lost: list[str], most_skipped: int) -> None:
    """One run and one stored value an interval, but for one run and ``most_skipped`` intervals a disaster."""
    dues = [int(due) for _, due in four.lines("run")]
    loads = [value for _, value in four.lines("load")]
    first, last = min(dues), max(dues)
    intervals = round((last - first) / 1e6 / four.every) + 1
    assert intervals >= 30
    assert len(set(dues)) >= intervals - most_skipped * len(lost), "an interval without a run"
    assert len(loads) <= len(set(dues)) + len(lost), "more than one extra run for a disaster"
    repeated = {due: times for due, times in Counter(dues).items() if times > 1}
    assert sum(times - 1 for times in repeated.values()) <= len(lost), repeated
    # What stood at the end of each run is what that run loaded; only a paused one found another's.
    kept = four.stored()
    strange = [(pid, due) for (pid, due), value in kept.items() if not value.startswith(f"{pid}:")]
    assert len(strange) <= len(lost), strange
    assert not set(kept.values()) & set(lost), "a value was stored that a dead or paused process had in hand"
    values = list(dict.fromkeys(kept.values()))
    assert len(values) >= len(set(dues)) - len(lost), "runs shared a value"
    assert values == [value for value in loads if value in set(values)], (
        "values stood in the order of their loads"
    )


def test_thirty_intervals_with_one_killed_and_one_paused(
    fleet: Make, redis_server: RedisServer, namespace: str
):
    four = fleet("mixed")
    four.run(5)
    lost = [kill(four)]
    four.run(5)
    lost.append(pause(four, 3))
    four.until(lambda: max(four.dues()) >= 31, "the runs stopped")
    four.end()
    # A lease lives a second here, twice the interval: those who stand by have to see it end.
    check(four, lost, most_skipped=4)
    assert stored(redis_server, namespace) == four.lines("load")[-1][1]


@pytest.mark.soak
@pytest.mark.parametrize("face", ["threads", "asyncio", "mixed"])
def test_long_refreshes_with_repeated_kills_and_pauses_skip_no_interval(
    fleet: Make, redis_server: RedisServer, namespace: str, face: str
):
    """Half an interval of two seconds is the lease: a takeover ends within the interval."""
    four = fleet(face, every=2.0)
    lost = []
    for turn in range(6):
        four.run(3)
        lost.append(pause(four, 3) if turn % 2 else kill(four))
        if turn % 2 == 0:
            four.processes.append(four.start("threads" if face == "threads" else "asyncio"))
    four.until(lambda: max(four.dues()) >= 45, "the runs stopped")
    four.end()
    check(four, lost, most_skipped=0)
    assert stored(redis_server, namespace) == four.lines("load")[-1][1]
