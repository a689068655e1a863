"""One process of scene 10's fleet: it refreshes on a schedule, as the textbook does it or as we do, until it is ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cachewright import Cache
from cachewright.errors import MissingExtraError
from cachewright.tour.origin import Origin, User
from cachewright.tour.processes import report

EVERY = 1
IDS = [1, 2, 3]


def ours(cache: Cache, database: Origin) -> Any:
    """What a user writes."""

    def load_rates() -> dict[str, int]:
        return {user.name: user.credit for user in database.load_users(IDS).values()}

    refreshing = cache.refresh_every(EVERY, "rates", load_rates)
    return refreshing  # noqa: RET504  # shown without its last line


def textbook(redis: Any, key: str, database: Origin) -> Any:
    """The textbook's."""
    from apscheduler.schedulers.background import BackgroundScheduler

    def refresh() -> None:
        redis.delete(key)
        rates = {user.name: user.credit for user in database.load_users(IDS).values()}  # fails: it is gone
        redis.set(key, json.dumps(rates))

    scheduler = BackgroundScheduler()
    scheduler.add_job(refresh, "interval", seconds=EVERY)  # in every process
    scheduler.start()
    return scheduler


class _Counted(Origin):
    """Tells the tour of every query, and is down while a file says so."""

    def load_users(self, ids: Any) -> dict[int, User]:
        """Many users."""
        report("load")
        if Path(os.environ["TOUR_DOWN"]).exists():
            with self.down():
                return super().load_users(ids)
        return super().load_users(ids)


def _main(which: str) -> None:
    database = _Counted(os.environ["TOUR_DATABASE"], os.environ["TOUR_TABLE"])
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    if which == "ours":
        cache = Cache(os.environ["TOUR_REDIS"], namespace=os.environ["TOUR_NAMESPACE"])
        ours(cache, database)
        close: Callable[[], Any] = cache.close
    else:
        import redis

        try:
            scheduler = textbook(
                redis.Redis.from_url(os.environ["TOUR_REDIS"]), os.environ["TOUR_KEY"], database
            )
        except ImportError as error:
            raise MissingExtraError("the tour's time-based refresh", "scheduler") from error
        close = scheduler.shutdown
    report("started")
    over.wait()
    close()


if __name__ == "__main__":
    _main(sys.argv[1])
