"""What the machines have found, as the steps that found it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from cachewright.core.slot import Lease, Slot, StoredEntry
from cachewright.runtime.base import drive
from cachewright.runtime.threads import ThreadRuntime
from cachewright.tiers.base import Swap
from cachewright.urls import make_tier
from tests.model.reference import Options, Outcome
from tests.model.sides import HandClock
from tests.model.strategies_machine import StrategiesMachine

WINDOWS = Options(ttl=100, swr=100, sie=300, error_ttl=100)
DOWN = Outcome(error="down")


def endless(machine: StrategiesMachine) -> None:
    """An entry that had never expired was served stale for ever after a touch had given it an end."""
    machine.set("k1", 1, Options(ttl=None))
    machine.touch("k1", 100)
    machine.wait(100)
    machine.get_or_set("k1", Outcome(2), Options())


def served_twice(machine: StrategiesMachine) -> None:
    """A refresh behind a stale value that failed counted as another read of it."""
    machine.get_or_set("k1", Outcome(1), WINDOWS)
    machine.wait(100)
    machine.get_or_set("k1", DOWN, WINDOWS)


def hammered(machine: StrategiesMachine) -> None:
    """With a tier below, a plain look at a stale entry forgot that its loader had just failed."""
    options = Options(ttl=100, sie=300, error_ttl=100)
    machine.get_or_set("k1", Outcome(1), options)
    machine.wait(100)
    machine.get_or_set("k1", DOWN, options)
    machine.get("k1", None)
    machine.get_or_set("k1", DOWN, options)


def stored_nothing(machine: StrategiesMachine) -> None:
    """A value that was not stored, since a write was under way, counted as stored."""
    machine.put_ends_unknown("through", 0, 1, lands=True)


@pytest.mark.parametrize("chain", ["memory", "sqlite", "memory > redis", "redis > memcached"])
@pytest.mark.parametrize("steps", [endless, served_twice, hammered, stored_nothing])
def test_it_is_mended(
    chain: str,
    steps: Callable[[StrategiesMachine], None],
    make_side: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "cachewright")
    machine: Any = type("Machine", (StrategiesMachine,), {"make_side": staticmethod(make_side)})()
    machine.begin()
    try:
        steps(machine)
        machine.counters_agree()
        machine.no_tier_holds_what_is_not_the_models()
    finally:
        machine.teardown()


def test_a_lease_that_was_over_does_not_come_back(namespace: str) -> None:
    """An entry and a lease whose times were over: memory's sweep gave the lease its whole life once more."""
    clock = HandClock()
    runtime: Any = ThreadRuntime(clock)
    tier = make_tier("memory://", namespace, clock)
    now = int(clock.now() * 1000)
    old = Slot(
        b"nonce  1", StoredEntry(b"v", now, now + 1, now + 1, now + 1), Lease(b"token  1", now + 1, 9000)
    )
    new = Slot(b"nonce  2", StoredEntry(b"v", now, now + 9000, now + 9000, now + 9000))
    drive(tier.swap(runtime, [Swap("old", None, old)]))
    clock.time += 4
    drive(tier.store(runtime, {"new": new}))
    assert drive(tier.read(runtime, ["old", "new"]))[0].keys() == {"new"}
