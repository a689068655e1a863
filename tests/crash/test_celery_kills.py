"""SIGKILL of writer, pool child, worker parent and broker in turn, where Celery's tasks flush a buffer in a SQLite file."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from cachewright.runtime.process import wait_until
from cachewright.testing.servers import RabbitMQServer
from tests.crash.harness import PATIENCE, ROOT, Child, Run, run_seed
from tests.crash.shop import Order

pytestmark = pytest.mark.slow

TARGETS = ("writer", "pool child", "worker parent", "broker")
BEHIND = {"settle": 0.05, "claim": 2.0, "max_attempts": 1000, "backoff": 0.01, "backoff_max": 0.1}


class CeleryRun(Run):
    """A run whose saves happen in Celery workers."""

    def __init__(self, folder: Path, seed: int, order: Order, broker: RabbitMQServer) -> None:
        super().__init__(folder, seed, order)
        self.broker = broker
        self.environment |= {
            "CRASH_BROKER": broker.url,
            "CRASH_QUEUE": f"hints-{uuid.uuid4().hex[:8]}",
            "CRASH_QUEUE_TYPE": self.chance("queue").choice(["classic", "quorum"]),
            "CRASH_SWEEP": "0.5",
            "CRASH_FOLDER": str(folder),
            "CRASH_ORDER": order.dump(),
        }
        self.workers = 0
        self.worker: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        """A worker with a pool of two, ready to work."""
        self.workers += 1
        path = self.folder / f"worker{self.workers}.log"
        with path.open("wb") as log:
            self.worker = self._start_celery(f"worker{self.workers}@localhost", log)
        if not wait_until(lambda: b"ready." in path.read_bytes(), PATIENCE):
            pytest.fail(f"the worker did not start:\n{path.read_text()[-3000:]}")

    def _start_celery(self, name: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "celery", "-A", "tests.crash.working", "worker"]
        words += ["-P", "prefork", "-c", "2", "-n", name, "-l", "INFO"]
        words += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return subprocess.Popen(words, env=self.environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def end_worker(self, linger: float = 0.0) -> None:
        """SIGKILL for the parent, and ``linger`` seconds later for what is left of its pool."""
        if self.worker is None:
            return
        pool = self.pool()
        self.worker.kill()
        self.worker.wait()
        self.worker = None
        time.sleep(linger)
        for child in pool:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(pool, 5)

    def pool(self) -> list[psutil.Process]:
        """The worker's children."""
        assert self.worker is not None
        return psutil.Process(self.worker.pid).children(recursive=True)

    def live(self, kills: int) -> None:
        """So many kills of all targets together."""
        self.start_worker()
        writer = self._writer(0)
        after = ""
        for number, target in enumerate(self._turns(kills)):
            chance = self.chance(f"kill {number}")
            # After a broker's return the worker stays away for seconds more: half of the next kills do not wait for it.
            if after != "broker" or chance.random() < 0.5:
                self._wait_for_saves(writer, chance.randrange(1, 15))
            after = target
            time.sleep(chance.random() * 0.05)
            if target == "writer":
                writer.kill()
                writer.rest()
                writer = self._writer(number + 1)
            elif target == "pool child":
                self._kill_pool_child(writer, chance)
            elif target == "worker parent":
                self.end_worker(linger=chance.random() * 0.2)
                self.start_worker()
            else:
                self.broker.kill()
                self.broker.start()
            self.count(target)
        self._wait_for_saves(writer, 1)
        writer.kill()
        writer.rest()

    def _turns(self, kills: int) -> list[str]:
        """Every target equally often, in an order of the seed."""
        chance, turns = self.chance("turns"), list[str]()
        while len(turns) < kills:
            turns += chance.sample(TARGETS, len(TARGETS))
        return turns[:kills]

    def _wait_for_saves(self, writer: Child, count: int) -> None:
        """The worker is at work (after the broker's return that may take it seconds), and so is the writer."""
        until = self.origin.saves() + count
        self._while_it_writes(writer, lambda: self.origin.saves() >= until, "save")

    def _while_it_writes(self, writer: Child, ready: Callable[[], bool], what: str) -> None:
        ends = time.monotonic() + PATIENCE
        while not ready():
            assert time.monotonic() < ends, f"no {what}"
            assert writer.wait_for("ack"), writer.log()

    def _writer(self, number: int) -> Child:
        chance = self.chance(f"writer {number}")
        child = self.child(
            self.order.but(
                name=f"w{number}",
                seed=chance.randrange(2**32),
                face=chance.choice(["threads", "asyncio"]),
                callers=chance.choice([1, 4]),
            )
        )
        assert child.wait_for("begun"), child.log()
        return child

    def _kill_pool_child(self, writer: Child, chance: random.Random) -> None:
        """Any of them at any time, or the one that has just begun or committed a save."""
        point = chance.choice(["", "before", "after"])
        if not point:
            chance.choice(self.pool()).kill()
            return
        order = self.folder / f"kill-{point}"
        order.touch()
        self._while_it_writes(writer, lambda: not order.exists(), "save took the kill")

    def close(self) -> None:
        self.end_worker()
        super().close()


@pytest.fixture
def celery_run(
    tmp_path: Path, own_rabbitmq: Callable[[], RabbitMQServer]
) -> Iterator[Callable[[Order], CeleryRun]]:
    """Make a run with a broker of its own."""
    runs: list[CeleryRun] = []

    def make(order: Order) -> CeleryRun:
        runs.append(CeleryRun(tmp_path, run_seed(), order, own_rabbitmq()))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


@pytest.mark.parametrize(
    "turns", [pytest.param(3, marks=pytest.mark.timeout(300)), pytest.param(50, marks=pytest.mark.soak)]
)
def test_kills_around_celery_lose_nothing(
    tmp_path: Path, celery_run: Callable[[Order], CeleryRun], figures: Callable[[str], Any], turns: int
) -> None:
    """The writers' buffer and origin outlive everybody; nobody else flushes, so what a lost hint told of is swept up."""
    order = Order(
        origin=f"sqlite:///{tmp_path}/origin.db",
        buffer=f"sqlite:///{tmp_path}/buffer.db",
        tiers=["memory://", f"sqlite:///{tmp_path}/tier.db"],
        flusher="celery",
        behind=BEHIND,
        pause=0.005,
        keys=500,
    )
    run = celery_run(order)
    run.live(turns * len(TARGETS))
    # This process does not flush, it waits for the worker that does.
    figures(run.finish(flusher="worker"))
