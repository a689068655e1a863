"""Events as log lines: each one plain sentence; ``repr`` keeps the attributes."""

from __future__ import annotations

import inspect
import logging

import pytest

from cachewright import Cache, events
from cachewright.errors import DecodeError, TierTimeout, TierUnavailable
from cachewright.events import (
    BackgroundFailed,
    BreakerChanged,
    ClaimLost,
    DeadLetter,
    DecodeFailed,
    Event,
    LeaseLost,
    Loaded,
    LoadFailed,
    RefreshFailed,
    SaveFailed,
    StaleServed,
    TierFailed,
)
from cachewright.runtime.process import free_port

REDIS = "redis(localhost:1)"
REFUSED = TierUnavailable(REDIS, "localhost:1: [Errno 111] Connection refused")
SENTENCES = [
    (Loaded("a", 0.25, True), "'a': loaded in 0.250 s, stored"),
    (Loaded("a", 0.25, False), "'a': loaded in 0.250 s, not stored"),
    (LoadFailed("a", ValueError("no rows")), "'a': the load failed: ValueError: no rows"),
    (LoadFailed("a", KeyError(1)), "'a': the load failed: KeyError: 1"),
    (StaleServed("a", "error"), "'a': a stale value was served (error)"),
    (LeaseLost("a"), "'a': changed during its load; the loaded value was not stored"),
    (DecodeFailed("a", REDIS, DecodeError("cut off")), f"{REDIS}: 'a' could not be decoded: cut off"),
    (TierFailed(REDIS, "read", REFUSED), f"{REDIS}: read failed: Connection refused"),
    (
        TierFailed("memcached", "read", TierTimeout("memcached", "no answer")),
        "memcached: read failed: no answer",
    ),
    (BreakerChanged(REDIS, True), f"{REDIS}: the breaker opened; going on without it"),
    (BreakerChanged(REDIS, False), f"{REDIS}: the breaker closed; in use again"),
    (RefreshFailed("a", OSError()), "'a': the refresh failed: OSError; the last good value stays"),
    (
        SaveFailed("user", "7", OSError("down\nfor long"), 2, 0.25),
        "user: save of '7' failed (attempt 2): OSError: down for long; again in 0.2 s",
    ),
    (
        DeadLetter("user", "7", "OSError('down')", 8),
        "user: '7' is a dead letter after 8 attempts: OSError('down'); it stays in the buffer",
    ),
    (
        ClaimLost("user", "7", True),
        (
            "user: the save of '7' took longer than its claim lived (its process stood still, or the buffer was away); its "
            "newest state is saved once more. A saver that refuses older sequences (ordered_saver=True) rules this out, a "
            "longer claim makes it rarer"
        ),
    ),
    (
        ClaimLost("user", "7", False),
        (
            "user: the save of '7' took longer than its claim lived (its process stood still, or the buffer was away); a "
            "newer state that was saved meanwhile may be overwritten: look at the origin. A saver that refuses older "
            "sequences (ordered_saver=True) rules this out, a longer claim makes it rarer"
        ),
    ),
    (BackgroundFailed("flusher of user", OSError("x")), "flusher of user failed: OSError: x"),
]


@pytest.mark.parametrize(("event", "sentence"), SENTENCES, ids=lambda one: type(one).__name__)
def test_each_event_is_a_sentence(event, sentence):
    assert str(event) == sentence
    assert repr(event).startswith(f"{type(event).__name__}(")


def test_no_event_without_its_sentence():
    kinds = {kind for kind in vars(events).values() if inspect.isclass(kind) and issubclass(kind, Event)}
    assert {type(event) for event, _ in SENTENCES} == kinds - {Event}


def test_a_server_that_is_not_there_is_named_once_in_the_log(caplog):
    port = free_port()
    with caplog.at_level(logging.WARNING, "cachewright"), Cache(f"redis://127.0.0.1:{port}") as cache:
        cache.get("a")
    lines = [record.getMessage() for record in caplog.records]
    assert f"redis(127.0.0.1:{port}): read failed: Connection refused" in lines
