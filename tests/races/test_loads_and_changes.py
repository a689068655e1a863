"""A load that began before a change never leaves its value behind, and who asks after the change never gets it."""

from __future__ import annotations

from typing import Any

import pytest

from cachewright import Entry

CHANGES = ["delete", "set", "put", "invalidate_tags", "clear"]
KEY = "u:1"


def change(yard: Any, how: str, who: Any) -> None:
    if how == "set":
        yard.do("set", KEY, "new", tags=["t"], on=who)
    elif how == "put":
        users = who.repository("u", load=lambda _: "new", save=lambda _id, _value: None)
        yard.do("put", 1, "new", on=users)
    elif how == "invalidate_tags":
        yard.do("invalidate_tags", "t", on=who)
    elif how == "clear":
        yard.do("clear", on=who)
    else:
        yard.do("delete", KEY, on=who)


@pytest.mark.parametrize("who", ["own process", "another process"])
@pytest.mark.parametrize("how", CHANGES)
def test_a_load_that_began_before_a_change(yard: Any, how: str, who: str) -> None:
    old, new = yard.Gated("old"), yard.Gated("new")
    new.go.set()
    other = yard.other()
    first = yard.start("get_or_set", KEY, yard.loader(old), tags=["t"])
    old.has_begun()
    change(yard, how, yard.cache if who == "own process" else other)
    late = yard.start("get_or_set", KEY, yard.loader(new), tags=["t"])
    yard.until(lambda: late.done() or yard.waiting(KEY))
    old.go.set()
    assert first.result(20) == "old", "the caller gets its value all the same"
    assert late.result(20) == "new"
    assert "old" not in yard.standing(KEY).values()
    for cache in (yard.cache, other, yard.other()):
        assert "old" not in (yard.do("get", KEY, on=cache), yard.do("get_many", [KEY], on=cache).get(KEY))
        assert yard.do("get_or_set", KEY, yard.loader(new), tags=["t"], on=cache) == "new"
    assert old.calls == 1


@pytest.mark.parametrize("how", CHANGES)
def test_a_load_of_many_that_began_before_a_change(yard: Any, how: str) -> None:
    old = yard.Gated(lambda keys: dict.fromkeys(keys, "old"))
    new = yard.Gated(lambda keys: dict.fromkeys(keys, "new"))
    new.go.set()
    first = yard.start("get_or_set_many", [KEY, "kept", "left"], yard.loader(old), tags=["t"])
    old.has_begun()
    change(yard, how, yard.cache)
    late = yard.start("get_or_set_many", [KEY], yard.loader(new), tags=["t"])
    yard.until(lambda: late.done() or yard.waiting(KEY))
    old.go.set()
    assert first.result(20) == {KEY: "old", "kept": "old", "left": "old"}
    assert late.result(20) == {KEY: "new"}
    assert "old" not in yard.standing(KEY).values()
    assert yard.do("get_or_set_many", [KEY], yard.loader(new), tags=["t"]) == {KEY: "new"}
    if how not in ("invalidate_tags", "clear"):
        assert yard.do("get_many", ["kept", "left"]) == {"kept": "old", "left": "old"}


@pytest.mark.parametrize("how", CHANGES)
def test_a_refresh_that_began_before_a_change(yard: Any, how: str) -> None:
    """A forced load runs over a fresh entry; what was said of loads holds for it too."""
    old = yard.Gated("old")
    first_load = iter(["first"])
    users = yard.cache.repository("u", load=lambda _: next(first_load, None) or old(), tags=["t"])
    assert yard.do("get", 1, on=users) == "first"
    refreshed = yard.start("refresh", 1, on=users)
    old.has_begun()
    assert yard.do("get", KEY) == "first", "readers need not wait for a refresh"
    change(yard, how, yard.cache)
    old.go.set()
    assert refreshed.result(20) == "old"
    assert not {"old", "first"} & set(yard.standing(KEY).values())
    assert yard.do("get", KEY) == ("new" if how in ("set", "put") else None)


@pytest.mark.parametrize("how", CHANGES)
def test_a_load_that_stores_nothing_hands_nothing_old_on(yard: Any, how: str) -> None:
    """``store_if`` leaves no entry to be checked: a late joiner must not take the value for that."""
    old, new = yard.Gated("old"), yard.Gated("new")
    new.go.set()
    options = {"tags": ["t"], "store_if": lambda value: value != "old"}
    first = yard.start("get_or_set", KEY, yard.loader(old), **options)
    old.has_begun()
    change(yard, how, yard.cache)
    late = yard.start("get_or_set", KEY, yard.loader(new), **options)
    yard.until(lambda: late.done() or yard.waiting(KEY))
    old.go.set()
    assert first.result(20) == "old"
    assert late.result(20) == "new"


def test_late_tags_that_change_under_the_load(yard: Any) -> None:
    """Tags that come with the value were not captured before it: changed meanwhile, the value is not stored."""
    old, new = yard.Gated(Entry("old", tags=["late"])), yard.Gated(Entry("new", tags=["late"]))
    new.go.set()
    yard.do("invalidate_tags", "late")
    first = yard.start("get_or_set", KEY, yard.loader(old))
    old.has_begun()
    yard.do("invalidate_tags", "late")
    late = yard.start("get_or_set", KEY, yard.loader(new))
    yard.until(lambda: late.done() or yard.waiting(KEY))
    old.go.set()
    assert first.result(20) == "old"
    assert late.result(20) == "new"
    assert "old" not in yard.standing(KEY).values()


def test_late_tags_that_stand_are_tags(yard: Any) -> None:
    new = yard.Gated(Entry("new", ttl=30, tags=["late"]))
    new.go.set()
    assert yard.do("get_or_set", KEY, yard.loader(new), tags=["early"]) == "new"
    stored = set(yard.standing(KEY).values())
    if yard.chain == "memcached":
        assert stored == set(), "its servers have no common time, so late tags cannot be checked"
        return
    assert stored == {"new"}
    assert set(yard.do("inspect", KEY).tiers[-1].tags) == {"early", "late"}
    yard.do("invalidate_tags", "late")
    assert yard.do("get", KEY) is None
    assert yard.standing(KEY) == {}


def test_a_tag_that_changes_between_two_reads_of_one_entry(yard: Any) -> None:
    yard.do("set_many", {"a": 1, "b": 2}, tags=["x"])
    yard.do("set_many", {"c": 3}, tags=["x", "y"])
    yard.do("set", "d", 4)
    assert yard.do("get_many", ["a", "b", "c", "d", "e"]) == {"a": 1, "b": 2, "c": 3, "d": 4}
    yard.do("invalidate_tags", "y")
    assert yard.do("get_many", ["a", "b", "c", "d"]) == {"a": 1, "b": 2, "d": 4}
    yard.do("invalidate_tags", "x", "z")
    assert yard.do("get_many", ["a", "b", "c", "d"]) == {"d": 4}
    assert yard.do("add", "a", 5, tags=["x"]), "an invalid entry is none"
    assert yard.do("get", "a") == 5


LEVELS = [
    f"{chain} | {face}"
    for chain in ("redis > memcached", "memory > redis > memcached")
    for face in ("threads", "asyncio")
]


@pytest.mark.parametrize("yard", LEVELS, indirect=True)
def test_a_lower_tier_is_not_filled_behind_a_set(yard: Any) -> None:
    """The set has passed the lower tier when a load puts its lease there; the authority takes the load's value just
    before the set reaches it; then the load fills the lower tier, with what outlives the authority's entry."""
    place = len(yard.urls) - 2
    setting, upper = yard.gated(place)
    loading, lower = yard.gated(place + 1)
    old, looks, stores, fills = yard.Gated("old"), yard.Gated(), yard.Gated(), yard.Gated()
    lower.before["read"], upper.before["store"] = looks, stores
    loaded = yard.start("get_or_set", KEY, yard.loader(old), on=loading)
    looks.has_begun()
    was_set = yard.start("set", KEY, "new", on=setting)
    stores.has_begun()
    looks.go.set()
    old.has_begun()
    lower.before["swap"] = fills
    old.go.set()
    fills.has_begun()
    assert "old" in yard.standing(KEY, shared=True).values()
    stores.go.set()
    was_set.result(20)
    fills.go.set()
    assert loaded.result(20) == "old"
    assert set(yard.standing(KEY, shared=True).values()) == {"new"}


@pytest.mark.parametrize("yard", LEVELS[2:], indirect=True)
@pytest.mark.parametrize("how", CHANGES)
def test_memory_is_not_filled_behind_a_change(yard: Any, how: str) -> None:
    """A read has the value in hand when the key changes: what it then puts into memory would outlive the change."""
    yard.do("set", KEY, "old", tags=["t"])
    cache, authority = yard.gated(1)
    authority.after["read"] = answered = yard.Gated()
    read = yard.start("get", KEY, on=cache)
    answered.has_begun()
    change(yard, how, cache)
    answered.go.set()
    assert read.result(20) in ("old", None)  # None: the tag was asked for after it changed
    assert yard.do("get", KEY, on=cache) == ("new" if how in ("set", "put") else None)
