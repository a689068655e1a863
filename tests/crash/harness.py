"""Runs of real writers that are killed at random moments, one life after the other, and the account at the end.

Everything random comes from one seed; ``CRASH_SEED=N`` plays a run again (its plan: what the machine makes of a delay of
milliseconds is its own affair).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.crash.ledger import Ledger
from tests.crash.origin import Journaled, Origin
from tests.crash.shop import Order, Shop

__all__ = ["PATIENCE", "ROOT", "Child", "Run", "run_seed"]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
SILENCE = 90.0  # a writer says something all the time, and its parent may be away for a while


def run_seed() -> int:
    """``CRASH_SEED``, or a new one; printed, so a failure shows it."""
    seed = int(os.environ.get("CRASH_SEED") or random.randrange(2**32))
    print(f"CRASH_SEED={seed} plays this again")
    return seed


def environment() -> dict[str, str]:
    """Of every child: the sources and these tests can be imported."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}


class Child:
    """A writer process and the lines that it wrote.

    Args:
        order: what it is to do.
        ledger: where its lines go.
        folder: for what it writes to standard error.
        environment: its own.
    """

    def __init__(self, order: Order, ledger: Ledger, folder: Path, environment: Mapping[str, str]) -> None:
        self.order, self.ledger = order, ledger
        self.overdue = False
        self._reader: threading.Thread | None = None
        self._log = folder / f"{order.name}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.writer", order.dump()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=ROOT,
            )
        self._heard = time.monotonic()
        self._watch_on(SILENCE)

    def _watch_on(self, seconds: float) -> None:
        """Whoever hangs is ended, so that no read below waits for ever."""
        self._watch = threading.Timer(seconds, self._give_up)
        self._watch.daemon = True
        self._watch.start()

    def _give_up(self) -> None:
        left = self._heard + SILENCE - time.monotonic()
        if left > 0:
            self._watch_on(left)
            return
        self.overdue = True
        self.process.kill()

    def lines(self) -> Iterable[str]:
        """The first word of each line as it comes; what it says is in the ledger by then."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._heard = time.monotonic()
            yield self.ledger.line(line.decode())

    def wait_for(self, what: str, count: int = 1) -> bool:
        """Reads on until the ``count``-th line of that kind; False if the process ended first."""
        left, ends = count, time.monotonic() + PATIENCE
        for word in self.lines():
            left -= word == what
            assert time.monotonic() < ends, (
                f"{self.order.name} still lacks {left} of {count} {what!r}: {self.log()}"
            )
            if left <= 0:
                return True
        return False

    def follow(self) -> None:
        """Reads on in a thread: where several writers live at once."""
        self._reader = threading.Thread(target=lambda: deque(self.lines(), maxlen=0), daemon=True)
        self._reader.start()

    def ask_to_end(self) -> None:
        """It stops writing, drains and leaves."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        """SIGKILL; nothing where it has ended already."""
        self.process.kill()

    def rest(self) -> int:
        """Reads what there is, until it has ended; the exit code. A life that fails by itself fails the test."""
        if self._reader is None:
            self.follow()
        assert self._reader is not None
        self._reader.join(PATIENCE)
        code = self.process.wait(PATIENCE)
        self.ledger.died(self.order.name, time.monotonic())
        self.close()
        assert not self.overdue, f"{self.order.name} hung: {self.log()}"
        assert code in (0, -9), f"{self.order.name} ended with {code}: {self.log()}"
        return code

    def log(self) -> str:
        """The end of its standard error."""
        return self._log.read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """Ends it."""
        self._watch.cancel()
        self._watch.join(5)
        self.process.kill()
        self.process.wait()
        if self._reader is not None:
            self._reader.join(5)  # it uses the pipe
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Run:
    """Lives of writers over one buffer and one origin.

    Args:
        folder: for logs.
        seed: of everything.
        order: what all lives have in common.
        strike: kills and restarts the server behind the buffer, where there is one.
    """

    def __init__(
        self, folder: Path, seed: int, order: Order, strike: Callable[[], None] | None = None
    ) -> None:
        self.folder, self.seed, self.order, self._strike = folder, seed, order, strike
        self.ledger = Ledger()
        self.environment = environment()
        self.kills: dict[str, int] = {}
        self.children: list[Child] = []
        self._lives = 0
        self._started = time.monotonic()
        self.origin = Origin(order.origin)
        self.origin.create()

    def chance(self, what: str) -> random.Random:
        """Of one part of the run: alike for one seed, whatever the other parts drew."""
        return random.Random(f"{self.seed}:{what}")

    def child(self, order: Order) -> Child:
        """A writer; ended with the run."""
        self.children.append(Child(order, self.ledger, self.folder, self.environment))
        return self.children[-1]

    def count(self, what: str) -> None:
        """One more kill of that kind."""
        self.kills[what] = self.kills.get(what, 0) + 1

    def live(self, kills: int) -> None:
        """Lives one after the other, until so many have been killed (the server's kills are not counted here)."""
        while sum(count for what, count in self.kills.items() if what != "server") < kills:
            self._life(self._lives)
            self._lives += 1

    def _life(self, number: int) -> None:
        chance = self.chance(f"life {number}")
        how = chance.choices(["any time", "acked", "before", "after", "draining"], [25, 25, 20, 20, 10])[0]
        changes: dict[str, Any] = {
            "name": f"w{number}",
            "seed": chance.randrange(2**32),
            "face": chance.choice(["threads", "asyncio"]),
            "many": chance.random() < 0.5,
            "callers": chance.choice([1, 1, 4]),
        }
        acks, delay = chance.randrange(1, 40), chance.random() * 0.02
        if how in ("before", "after", "acked"):
            changes["kill"] = [how, chance.randrange(1, 40 if how == "acked" else 12)]
        if how == "draining":
            changes |= {"puts": acks, "callers": 1}
        child = self.child(self.order.but(**changes))
        alive = child.wait_for("begun")
        if alive and self._strike is not None and chance.random() < 0.4:
            alive = child.wait_for("ack", chance.randrange(1, 20))
            if alive:
                time.sleep(chance.random() * 0.01)
                self._strike()
                self.count("server")
        if alive and how in ("any time", "draining"):
            child.wait_for("ack", acks)
            time.sleep(delay)
            child.kill()
        if child.rest() == -9:
            self.count(f"writer, {how}")

    # -- the account -----------------------------------------------------------------------------------------------

    def finish(self, **changes: Any) -> str:
        """A clean start, a flush, and the account; raises `AssertionError` where it is wrong. The figures in words."""
        shop = Shop(self.order.but(face="threads", **changes))
        try:
            shop.items.flush(PATIENCE)
            stats = shop.items.behind_stats().buffer
            cached = shop.items.get_many(self.order.ids)
        finally:
            shop.close()
        assert (stats.dirty, stats.dead) == (0, 0)
        self.origin.close()  # the database may have been restarted since
        mine = set(self.order.ids)  # others may save to the same database
        rows = {id: value for id, value in self.origin.rows().items() if id in mine}
        self.ledger.check_rows(rows, self.order.ids)
        assert {id: value for id, value in cached.items() if value is not None} == rows
        self.ledger.check_reads()
        journal = [entry for entry in self.origin.journal() if entry.id in mine]
        refused = self.check_journal(journal)
        self._check_end(rows, journal)
        return self.figures(len(journal), refused)

    def check_journal(self, journal: list[Journaled]) -> int:
        """The order of the saves; how many were refused."""
        return self.ledger.check_journal(journal)

    def _check_end(self, rows: dict[str, str], journal: list[Journaled]) -> None:
        last = {entry.id: entry.value for entry in journal if entry.kept}
        assert rows == {id: value for id, value in last.items() if value is not None}, (
            "saved past the journal"
        )

    def figures(self, saves: int, refused: int) -> str:
        """What the run did."""
        kills = ", ".join(f"{count} {what}" for what, count in sorted(self.kills.items()))
        errors = ", ".join(f"{count} {what}" for what, count in sorted(self.ledger.errors.items())) or "none"
        return (
            f"kills {sum(self.kills.values())} ({kills}); writes {len(self.ledger.ops)}, acknowledged "
            f"{self.ledger.acks}, lost 0; saves {saves}, refused {refused}; reads {len(self.ledger.reads)}; "
            f"unknown: {errors}; {time.monotonic() - self._started:.1f} s; seed {self.seed}"
        )

    def close(self) -> None:
        """Ends what still runs."""
        for child in self.children:
            if child.process.poll() is None:
                child.close()
        self.origin.close()
