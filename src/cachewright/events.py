"""What happens behind the caller's back, as typed events; a hub that hands them out; the log lines beside them."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable

import msgspec

from cachewright.errors import CacheError
from cachewright.keys import shorten

__all__ = [
    "BackgroundFailed",
    "BreakerChanged",
    "ClaimLost",
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
_ERRNO = re.compile(r"\[Errno -?\d+\] ")


def _said(error: BaseException, *places: str) -> str:
    """What the error says, without the places that the sentence has named already."""
    text = _ERRNO.sub("", " ".join(str(error).split()))  # one line, whatever a loader's error holds
    for place in places:
        text = text.removeprefix(f"{place}: ")
        inside = place.partition("(")[2].rstrip(")")  # redis(localhost:6379) speaks of localhost:6379
        text = text.removeprefix(f"{inside}: ") if inside else text
    # Ours speak for themselves; what a loader or saver raised is told by its class too: str(KeyError(1)) is "1".
    if isinstance(error, CacheError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _key(key: str) -> str:
    return shorten(key, 200)


class Event(msgspec.Struct, frozen=True):
    """Base of all events. ``str()`` of one is a sentence for people, ``repr()`` has its attributes."""


class Loaded(Event, frozen=True):
    """A loader returned; ``stored`` says whether the cache took the value."""

    key: str
    seconds: float
    stored: bool

    def __str__(self) -> str:
        return (
            f"{_key(self.key)}: loaded in {self.seconds:.3f} s, {'stored' if self.stored else 'not stored'}"
        )


class LoadFailed(Event, frozen=True):
    """A loader raised; the caller got this error, or a stale value."""

    key: str
    error: BaseException

    def __str__(self) -> str:
        return f"{_key(self.key)}: the load failed: {_said(self.error)}"


class StaleServed(Event, frozen=True):
    """A stale value was served; ``why`` is ``"revalidate"``, ``"error"`` or ``"timeout"``."""

    key: str
    why: str

    def __str__(self) -> str:
        return f"{_key(self.key)}: a stale value was served ({self.why})"


class LeaseLost(Event, frozen=True):
    """A load ended and its lease was gone: the value went to the caller and not into the cache."""

    key: str

    def __str__(self) -> str:
        return f"{_key(self.key)}: changed during its load; the loaded value was not stored"


class DecodeFailed(Event, frozen=True):
    """A stored payload could not be read; it counted as a miss."""

    key: str
    tier: str
    error: BaseException

    def __str__(self) -> str:
        return f"{self.tier}: {_key(self.key)} could not be decoded: {_said(self.error)}"


class TierFailed(Event, frozen=True):
    """One operation on a tier failed."""

    tier: str
    operation: str
    error: BaseException

    def __str__(self) -> str:
        return f"{self.tier}: {self.operation} failed: {_said(self.error, self.tier)}"


class BreakerChanged(Event, frozen=True):
    """A tier's circuit breaker opened or closed."""

    tier: str
    open: bool

    def __str__(self) -> str:
        return (
            f"{self.tier}: the breaker opened; going on without it"
            if self.open
            else f"{self.tier}: the breaker closed; in use again"
        )


class RefreshFailed(Event, frozen=True):
    """A scheduled or background refresh failed; the last good value stays."""

    key: str
    error: BaseException

    def __str__(self) -> str:
        return f"{_key(self.key)}: the refresh failed: {_said(self.error)}; the last good value stays"


class SaveFailed(Event, frozen=True):
    """A flusher's save failed and will be tried again at ``retry_in`` seconds from now."""

    repository: str
    key: str
    error: BaseException
    attempt: int
    retry_in: float

    def __str__(self) -> str:
        return (
            f"{self.repository}: save of {_key(self.key)} failed (attempt {self.attempt}): {_said(self.error)}; "
            f"again in {self.retry_in:.1f} s"
        )


class DeadLetter(Event, frozen=True):
    """A record was given up after ``max_attempts``; it stays in the buffer until replayed or discarded."""

    repository: str
    key: str
    error: str
    attempts: int

    def __str__(self) -> str:
        return (
            f"{self.repository}: {_key(self.key)} is a dead letter after {self.attempts} attempts: {self.error}; "
            "it stays in the buffer"
        )


class ClaimLost(Event, frozen=True):
    """A flusher's save ended and its claim was gone: another one may have saved a newer state before this save landed.

    ``again``: the newest state is still in the buffer and is saved once more, after this save.
    """

    repository: str
    key: str
    again: bool

    def __str__(self) -> str:
        then = (
            "its newest state is saved once more"
            if self.again
            else "a newer state that was saved meanwhile may be overwritten: look at the origin"
        )
        return (
            f"{self.repository}: the save of {_key(self.key)} took longer than its claim lived (its process stood still, or "
            f"the buffer was away); {then}. A saver that refuses older sequences (ordered_saver=True) rules this out, a "
            f"longer claim makes it rarer"
        )


class BackgroundFailed(Event, frozen=True):
    """Background work of ours raised; ``where`` names it."""

    where: str
    error: BaseException

    def __str__(self) -> str:
        return f"{self.where} failed: {_said(self.error)}"


Subscriber = Callable[[Event], None]
_WARN = (TierFailed, BreakerChanged, RefreshFailed, SaveFailed, ClaimLost, DecodeFailed)
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
