"""Eight writers, two hundred shared keys, one buffer, two flushers, and one of these stands still past its claim."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachewright.behind.buffers import open_buffer
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.testing.servers import RedisServer
from tests.crash.harness import PATIENCE, ROOT, Run
from tests.crash.shop import NAMESPACE, REPOSITORY, Order

pytestmark = pytest.mark.slow

BEHIND = {"claim": 1.0, "batch_size": 20, "max_attempts": 1000, "backoff": 0.01, "backoff_max": 0.1}


class Worker:
    """A ``cachewright worker`` that stops itself by SIGSTOP when it is told to."""

    def __init__(self, run: Run, name: str) -> None:
        self.folder = run.folder / name
        self.folder.mkdir()
        self._log = self.folder / "log"
        words = [sys.executable, "-m", "cachewright", "worker", "tests.crash.working:cache", "--drain", "60"]
        environment = {
            **run.environment,
            "CRASH_FOLDER": str(self.folder),
            "CRASH_ORDER": run.order.dump(),
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                words, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )

    def stand_still(self) -> None:
        """Returns when it has claimed records, is about to save them, and was stopped."""
        (self.folder / "stop-begin").touch()
        ends = time.monotonic() + PATIENCE
        what = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
        while (state := os.waitid(os.P_PID, self.process.pid, what)) is None:
            assert time.monotonic() < ends, "it never saved anything"
            time.sleep(0.005)
        assert state.si_status == signal.SIGSTOP, self.log()

    def go_on(self) -> None:
        """Past its claim."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """SIGTERM: it saves what is dirty, and has nothing left to tell of."""
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0, self.log()

    def log(self) -> str:
        """The end of what it said."""
        return self._log.read_text(errors="replace")[-3000:]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start_workers() -> Iterator[Callable[[Run], list[Worker]]]:
    """Make the two of a run."""
    workers: list[Worker] = []

    def make(run: Run) -> list[Worker]:
        for name in ("one", "other"):
            workers.append(Worker(run, name))
        return workers

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture(params=["sqlite", "redis"])
def buffer(request: pytest.FixtureRequest, tmp_path: Path, own_redis: Callable[..., RedisServer]) -> str:
    """URL of a buffer."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/buffer.db"
    return own_redis(options={"appendonly": "yes"}).url


@pytest.mark.parametrize("stops", [3, pytest.param(40, marks=pytest.mark.soak)])
def test_the_last_acknowledged_write_stands(
    tmp_path: Path,
    buffer: str,
    start_run: Callable[..., Run],
    start_workers: Callable[[Run], list[Worker]],
    figures: Callable[[str], None],
    stops: int,
) -> None:
    """What the stopped one saves when it goes on is older than what the other has saved; the saver refuses it."""
    order = Order(
        origin=f"sqlite:///{tmp_path}/origin.db", buffer=buffer, tiers=[f"sqlite:///{tmp_path}/tier.db"],
        form="ordered", many=True, flusher="worker", keys=200, behind=BEHIND, pause=0.01,
    )  # fmt: skip
    run = start_run(order)
    workers = start_workers(run)
    chance = run.chance("writers")
    writers = [run.child(order.but(name=f"w{n}", seed=chance.randrange(2**32))) for n in range(8)]
    for writer in writers:
        assert writer.wait_for("begun"), writer.log()
        writer.follow()
    records = open_buffer(buffer, f"{NAMESPACE}/{REPOSITORY}")

    def held_by(worker: Worker) -> int:
        found = drive(records.records(THREADS))
        return sum(str(worker.process.pid) in (r.holder or "").split("/") for r in found)

    def refused_of(worker: Worker) -> int:
        return sum(not entry.kept for entry in run.origin.journal() if entry.pid == worker.process.pid)

    for _ in range(stops):
        stopped = chance.choice(workers)
        before = refused_of(stopped)
        stopped.stand_still()
        assert held_by(stopped)
        wait_while(lambda: held_by(stopped) > 0, "the other never took its claims over")  # noqa: B023
        stopped.go_on()
        wait_while(lambda: refused_of(stopped) == before, "what it had in hand never landed")  # noqa: B023
    for writer in writers:
        writer.ask_to_end()
    assert [writer.rest() for writer in writers] == [0] * len(writers)
    line = run.finish()  # it waits for the workers
    for worker in workers:
        worker.end()
    records.close()
    figures(f"{stops} stops; " + line)


def wait_while(so: Callable[[], bool], otherwise: str) -> None:
    """Asks until it is not so any more."""
    ends = time.monotonic() + PATIENCE
    while so():
        assert time.monotonic() < ends, otherwise
        time.sleep(0.01)
