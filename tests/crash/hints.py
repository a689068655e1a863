"""The Celery app of a run; writers and workers both take it from here.

A worker is started with ``celery -A tests.crash.working worker``, which makes the repository as well.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from cachewright.behind.celery import install

__all__ = ["app", "flushing"]

app = Celery("crash", broker=os.environ["CRASH_BROKER"], set_as_current=False)
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = False
kind: Any = os.environ["CRASH_QUEUE_TYPE"]
flushing = install(
    app, queue=os.environ["CRASH_QUEUE"], queue_type=kind, sweep=float(os.environ["CRASH_SWEEP"])
)
