"""What happens behind the caller's back, as typed events; a hub that hands them out; the log lines beside them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

__all__ = [
    "BackgroundFailed",
    "BreakerChanged",
    "DeadLetter",
    "DecodeFailed",
    "Event",
    "Hub",
    "LeaseLost",
    "LoadFailed",
    "Loaded",
    "RefreshFailed",
    "SaveFailed",
    "StaleServed",
    "TierFailed",
]

log = logging.getLogger("cachewright")


class Event(msgspec.Struct, frozen=True):
    """Base of all events."""


class Loaded(Event, frozen=True):
    """A loader returned; ``stored`` says whether the cache took the value."""

    key: str
    seconds: float
    stored: bool


class LoadFailed(Event, frozen=True):
    """A loader raised; the caller got this error, or a stale value."""

    key: str
    error: BaseException


class StaleServed(Event, frozen=True):
    """A stale value was served; ``why`` is ``"revalidate"``, ``"error"`` or ``"timeout"``."""

    key: str
    why: str


class LeaseLost(Event, frozen=True):
    """A load ended and its lease was gone: the value went to the caller and not into the cache."""

    key: str


class DecodeFailed(Event, frozen=True):
    """A stored payload could not be read; it counted as a miss."""

    key: str
    tier: str
    error: BaseException


class TierFailed(Event, frozen=True):
    """One operation on a tier failed."""

    tier: str
    operation: str
    error: BaseException


class BreakerChanged(Event, frozen=True):
    """A tier's circuit breaker opened or closed."""

    tier: str
    open: bool


class RefreshFailed(Event, frozen=True):
    """A scheduled or background refresh failed; the last good value stays."""

    key: str
    error: BaseException


class SaveFailed(Event, frozen=True):
    """A flusher's save failed and will be tried again at ``retry_in`` seconds from now."""

    repository: str
    key: str
    error: BaseException
    attempt: int
    retry_in: float


class DeadLetter(Event, frozen=True):
    """A record was given up after ``max_attempts``; it stays in the buffer until replayed or discarded."""

    repository: str
    key: str
    error: str
    attempts: int


class BackgroundFailed(Event, frozen=True):
    """Background work of ours raised; ``where`` names it."""

    where: str
    error: BaseException


Subscriber = Callable[[Event], None]
_WARN = (TierFailed, BreakerChanged, RefreshFailed, SaveFailed, DecodeFailed)
_ERROR = (DeadLetter, BackgroundFailed)


class Hub:
    """Hands events to subscribers, in the thread where they happen. A subscriber's error is logged, never raised."""

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()
        self.counts: dict[str, int] = {}
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: the thread that held the lock at the fork is not there to let go of it."""
        self._lock = threading.Lock()

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Calls ``subscriber(event)`` for every event from now on; returns a function that ends it."""
        with self._lock:
            self._subscribers = (*self._subscribers, subscriber)

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Counts, logs and hands out one event."""
        name = type(event).__name__
        with self._lock:
            self.counts[name] = self.counts.get(name, 0) + 1
        if isinstance(event, _ERROR):
            log.error("%s", event)
        elif isinstance(event, _WARN):
            log.warning("%s", event)
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                log.exception("a subscriber of cachewright events raised on %s", name)
