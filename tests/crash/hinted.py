"""What a Celery worker of a run imports: the repository, whose savers can be made to kill the pool child they run in.

A file ``kill-before`` or ``kill-after`` in the folder of the run is taken by one save, which then ends its process by
SIGKILL at that side of its commit.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.crash.hints import app
from tests.crash.shop import Order, Shop

__all__ = ["app", "shop"]

FOLDER = Path(os.environ["CRASH_FOLDER"])


def at(point: str) -> None:
    """Called by the origin in every save."""
    try:
        (FOLDER / f"kill-{point}").unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


shop = Shop(Order.parse(os.environ["CRASH_ORDER"]), at)
