"""The database is down under load and comes back: what was acknowledged is saved, callers got their answers meanwhile."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cachewright.behind.buffers import open_buffer
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.testing.servers import PostgresServer
from tests.crash.harness import PATIENCE, Child, Run
from tests.crash.shop import NAMESPACE, REPOSITORY, Order

pytestmark = pytest.mark.slow

MOST = 50  # records that the buffer takes, of 200 keys that are written
FULL_TIMEOUT = 0.2
BEHIND = {
    "max_dirty": MOST, "full_timeout": FULL_TIMEOUT, "settle": 0.1, "claim": 2.0, "max_attempts": 1_000_000,
    "backoff": 0.02, "backoff_max": 0.5,
}  # fmt: skip


@contextmanager
def closed(server: PostgresServer) -> Iterator[None]:
    """Nobody listens."""
    server.stop()
    yield
    server.start()


@contextmanager
def hung(server: PostgresServer) -> Iterator[None]:
    """Every connection stays open, and nobody answers on any."""
    assert server.pid is not None
    postmaster = psutil.Process(server.pid)
    server.pause()
    stopped = [postmaster, *postmaster.children(recursive=True)]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)


def watch(runs: Sequence[Run], children: Sequence[Child], seconds: float) -> None:
    """Stays until all callers were told again and again that there is no room; looks at the bounds all the time.

    A caller that waits for the database would never be told: it only comes back after this.
    """
    buffers = [open_buffer(run.order.buffer, f"{NAMESPACE}/{REPOSITORY}") for run in runs]
    processes = [psutil.Process(child.process.pid) for child in children]
    begun, before = time.monotonic(), [run.ledger.failed for run in runs]
    sizes: list[int] = []
    while True:
        for run, buffer in zip(runs, buffers, strict=True):
            # A key that a caller is just saving through has a place, however full the buffer is: its next write has it.
            through = run.order.behind["on_full"] == "through"
            assert drive(buffer.stats(THREADS)).dirty <= MOST + (run.order.callers if through else 0)
        told = min(run.ledger.failed - some for run, some in zip(runs, before, strict=True))
        sizes = sizes or ([process.memory_info().rss for process in processes] if told >= 20 else [])
        spent = time.monotonic() - begun
        if told >= 40 and spent >= seconds:
            break
        assert spent < seconds + PATIENCE, "callers hang with the database"
        time.sleep(0.05)
    for buffer in buffers:
        buffer.close()
    grown = [p.memory_info().rss - size for p, size in zip(processes, sizes, strict=True)]
    assert max(grown) < 64 * 1024 * 1024, f"bytes that the writers grew by: {grown}"


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("down", "form", "modes"),
    [(closed, "plain", ("block", "raise", "through")), (hung, "ordered", ("block", "raise"))],
    ids=["closed", "hung"],
)
def test_a_database_down_under_load_delays_and_loses_nothing(
    tmp_path: Path,
    start_run: Callable[..., Run],
    figures: Callable[[str], None],
    own_postgres: Callable[[], PostgresServer],
    down: Callable[[PostgresServer], Iterator[None]],
    form: str,
    modes: Sequence[str],
    seconds: float,
) -> None:
    """A writer for each ``on_full``. With "through" a caller waits for the saver itself, so not where that hangs."""
    server = own_postgres()
    runs, children = [], []
    for mode in modes:
        order = Order(
            origin=server.url, buffer=f"sqlite:///{tmp_path}/{mode}.db", form=form, prefix=mode, keys=200,
            callers=4, reads=False, pause=0.002, behind={**BEHIND, "on_full": mode}, name=mode,
        )  # fmt: skip
        runs.append(start_run(order))
        children.append(runs[-1].child(order))
    for child in children:
        assert child.wait_for("done", 3), child.log()  # it saves
        child.follow()
    with down(server):  # type: ignore[attr-defined]
        watch(runs, children, seconds)
    for child, run in zip(children, runs, strict=True):
        acks = run.ledger.acks
        while run.ledger.acks < acks + 20:
            assert child.process.poll() is None, child.log()
            time.sleep(0.01)
        child.ask_to_end()
    for child, run in zip(children, runs, strict=True):
        assert child.rest() == 0, "it drained and ended by itself"
        # The bound is what `watch` shows; this allows for a busy machine.
        if run.order.behind["on_full"] != "through":
            assert run.ledger.longest < FULL_TIMEOUT + 10
        figures(f"{child.order.name}: longest call {run.ledger.longest:.2f} s; " + run.finish())
