"""Several tiers: a fill takes the entry's own remaining life along, and every end is one end."""

from __future__ import annotations

from typing import Any

import pytest

from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS

LEVELS = [
    f"{chain} | {face}"
    for chain in ("memory > redis", "redis > memcached", "memory > redis > memcached")
    for face in ("threads", "asyncio")
]
pytestmark = pytest.mark.parametrize("yard", LEVELS, indirect=True)


def never() -> Any:
    raise AssertionError("it is cached: nothing is to be loaded")


def forget(cache: Any, key: str, keep: int = -1) -> None:
    """As if evicted: from every tier but the one at ``keep``."""
    chain = cache.engine.state.chain
    kept = chain.levels[keep]
    for level in chain.levels:
        if level is not kept:
            drive(level.tier.drop(THREADS, [key]))
    if chain.local is not None:
        chain.local.kill([key])


@pytest.mark.parametrize("read", ["get", "get_or_set", "get_many", "get_or_set_many"])
def test_a_fill_keeps_the_remaining_life(yard: Any, read: str) -> None:
    clock = yard.HandClock()
    cache = yard.make(clock=clock, local_ttl=1000)
    options = {"ttl": 60, "stale_if_error": 30}
    assert yard.do("get_or_set", "k", yard.loader(lambda: "v"), on=cache, **options) == "v"
    clock.move(25)
    forget(cache, "k")
    if read == "get":
        assert yard.do("get", "k", on=cache) == "v"
    elif read == "get_many":
        assert yard.do("get_many", ["k", "x"], on=cache) == {"k": "v"}
    elif read == "get_or_set":
        assert yard.do("get_or_set", "k", yard.loader(never), on=cache, **options) == "v"
    else:
        assert yard.do("get_or_set_many", ["k"], yard.loader(never), on=cache, **options) == {"k": "v"}
    yard.do("get", "k", on=cache)
    views = yard.do("inspect", "k", on=cache).tiers
    assert [view.state for view in views] == ["fresh"] * len(views), "every tier has it again"
    for view in views:
        assert view.fresh_for == pytest.approx(35, abs=0.05), view
        assert view.usable_for == pytest.approx(65, abs=0.05), view
        assert view.age == pytest.approx(25, abs=0.05), view
    clock.move(34.9)
    assert yard.do("get", "k", on=cache) == "v"
    clock.move(0.2)
    assert yard.do("get", "k", on=cache) is None, "no tier gave it a second life"
    assert yard.do("get_or_set", "k", yard.loader(lambda: "new"), on=cache, ttl=60) == "new"


def test_memory_above_a_shared_tier_ends_with_local_ttl(yard: Any) -> None:
    if not yard.has_local:
        return
    clock = yard.HandClock()
    cache = yard.make(clock=clock, local_ttl=5)
    yard.do("set", "k", "v", on=cache, ttl=60)
    assert yard.do("get", "k", on=cache) == "v"
    yard.do("set", "k", "changed by another process", on=yard.other(), ttl=60)
    clock.move(4.9)
    assert yard.do("get", "k", on=cache) == "v"
    clock.move(0.2)
    assert yard.do("get", "k", on=cache) == "changed by another process"


def test_one_load_fills_every_tier_and_one_drop_empties_them(yard: Any) -> None:
    assert yard.do("get_or_set", "k", yard.loader(lambda: "v"), ttl=60) == "v"
    yard.do("get", "k")
    assert len(yard.standing("k")) == len(yard.urls)
    assert yard.do("delete", "k")
    assert yard.standing("k") == {}
    assert not yard.do("delete", "k")
    yard.do("get_or_set", "k", yard.loader(lambda: "v"), tags=["t"])
    yard.do("invalidate_tags", "t")
    assert yard.standing("k") == {}
    yard.do("get_or_set", "k", yard.loader(lambda: "v"))
    yard.do("clear")
    assert yard.standing("k") == {}
    assert yard.do("get", "k") is None


def test_what_was_deleted_does_not_come_back_from_below(yard: Any) -> None:
    """A drop must reach the tiers below: the authority's entry may go by itself, by eviction or expiry."""
    for change in ("delete", "set", "put"):
        yard.do("get_or_set", change, yard.loader(lambda: "old"))
        if change == "delete":
            yard.do("delete", change)
        elif change == "set":
            yard.do("set", change, "new")
        else:
            users = yard.cache.repository("u", load=lambda _: "new", save=lambda _id, _value: None)
            yard.do("set", users.key_for(1), "old")
            yard.do("put", 1, "new", on=users)
            change = users.key_for(1)
        forget(yard.cache, change)
        if change != "delete":
            drive(yard.cache.engine.state.chain.authority.tier.drop(THREADS, [change]))
        assert yard.do("get", change) in (None, "new")


def test_a_refresh_takes_nothing_from_below_and_fills_it(yard: Any) -> None:
    values = iter(["first", "second"])
    users = yard.cache.repository("u", load=lambda _: next(values), save=lambda _id, _value: None)
    assert yard.do("get", 1, on=users) == "first"
    assert yard.do("refresh", 1, on=users) == "second"
    yard.do("get", 1, on=users)
    assert set(yard.standing("u:1").values()) == {"second"}
    assert len(yard.standing("u:1")) == len(yard.urls)


def test_stale_values_are_kept_below_as_well(yard: Any) -> None:
    """``stale_if_error`` over every tier: the physical life is the longest window."""
    clock = yard.HandClock()
    cache = yard.make(clock=clock)

    def fail() -> Any:
        raise ConnectionError("the origin is down")

    yard.do("get_or_set", "k", yard.loader(lambda: "v"), on=cache, ttl=10, stale_if_error=50)
    clock.move(11)
    assert yard.do("get", "k", on=cache) is None, "get returns fresh values only"
    assert yard.do("get_or_set", "k", yard.loader(fail), on=cache, ttl=10, stale_if_error=50) == "v"
    clock.move(60)
    with pytest.raises(ConnectionError):
        yard.do("get_or_set", "k", yard.loader(fail), on=cache, ttl=10, stale_if_error=50)
