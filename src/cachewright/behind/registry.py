"""The flushers of this process by name: a Celery worker or a command finds a repository's flusher here.

A flusher is here once the user's module that calls ``cache.repository(…)`` was imported, and as long as it lives.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .flusher import Flusher

__all__ = ["find", "known", "register"]

_flushers: weakref.WeakValueDictionary[tuple[str, str], Flusher] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def register(flusher: Flusher) -> None:
    """Makes it known; a later one of the same name takes its place."""
    with _lock:
        _flushers[flusher.namespace, flusher.repository] = flusher


def find(namespace: str, repository: str) -> Flusher | None:
    """The flusher of that repository, if this process made it."""
    with _lock:
        return _flushers.get((namespace, repository))


def known() -> list[Flusher]:
    """All flushers of this process."""
    with _lock:
        return list(_flushers.values())
