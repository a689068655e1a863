"""What a worker of a run imports, ``celery -A tests.crash.working`` as well as ``cachewright worker tests.crash.working:cache``.

Its savers can be made to strike the process that they run in. A file in ``CRASH_FOLDER`` is taken by one save:
``kill-before`` and ``kill-after`` end the process by SIGKILL at that side of the commit, ``stop-begin`` stops it before
the save has begun.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from tests.crash.shop import Order, Shop

__all__ = ["cache", "shop"]

FOLDER = Path(os.environ["CRASH_FOLDER"])


def at(point: str) -> None:
    """Called by the origin in every save."""
    for what, signal_ in (("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)):
        try:
            (FOLDER / f"{what}-{point}").unlink()
        except FileNotFoundError:
            continue
        # At this thread: sent to the process, it may be another one's to take, and this one goes on into its transaction.
        signal.pthread_kill(threading.get_ident(), signal_)


order = Order.parse(os.environ["CRASH_ORDER"])
if order.flusher == "celery":
    from tests.crash.hints import app

    __all__ += ["app"]

shop = Shop(order, at)
cache = shop.cache
