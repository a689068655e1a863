"""SIGKILL at random moments: of the writer, with its flusher, and of the server behind the buffer.

What each form of saver is held to is said in `ledger.Ledger.check_journal`: every kill here takes the save's transaction
along, so of both, plain and ordered, no key may ever regress.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cachewright.testing.servers import PostgresServer, RedisServer
from tests.crash.harness import Run
from tests.crash.shop import Order

# A flusher that dies with a record counts as a try of it: nothing may be given up for that here.
BEHIND = {"settle": 0.05, "claim": 2.0, "max_attempts": 1000, "backoff": 0.01, "backoff_max": 0.1}

pytestmark = pytest.mark.slow


def order(folder: Path, form: str, origin: str | None = None, buffer: str | None = None) -> Order:
    """A memory tier over one that outlives the kills: a slot that a dead put did not drop must not be read for ever."""
    return Order(
        origin=origin or f"sqlite:///{folder}/origin.db",
        buffer=buffer or f"sqlite:///{folder}/buffer.db",
        tiers=["memory://", f"sqlite:///{folder}/tier.db"],
        form=form,
        behind=BEHIND,
    )


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.parametrize("form", ["plain", "ordered"])
def test_kills_over_sqlite_lose_nothing(
    tmp_path: Path, start_run: Callable[..., Run], figures: Callable[[str], None], form: str, kills: int
) -> None:
    run = start_run(order(tmp_path, form))
    run.live(kills)
    figures(run.finish())


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_kills_before_postgresql_lose_nothing(
    tmp_path: Path,
    start_run: Callable[..., Run],
    figures: Callable[[str], None],
    own_postgres: Callable[[], PostgresServer],
    kills: int,
) -> None:
    run = start_run(order(tmp_path, "ordered", origin=own_postgres().url))
    run.live(kills)
    figures(run.finish())


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.parametrize("form", ["plain", "ordered"])
def test_kills_over_redis_lose_nothing(
    tmp_path: Path,
    start_run: Callable[..., Run],
    figures: Callable[[str], None],
    own_redis: Callable[..., RedisServer],
    form: str,
    kills: int,
) -> None:
    """Some of the kills are the server's, while the writer lives on: what was in flight then may have been taken."""
    server = own_redis(options={"appendonly": "yes", "appendfsync": "always"})

    def strike() -> None:
        server.kill()
        server.start()

    run = start_run(order(tmp_path, form, buffer=f"{server.url}?durability=none"), strike=strike)
    run.live(kills)
    figures(run.finish())
