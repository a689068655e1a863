"""One load for all who ask: circles, cancelled callers and leaders, failing loaders, and values that are not stored."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cachewright import Entry, RecursiveLoadError


def never() -> Any:
    raise AssertionError("nothing is to be loaded")


def nested(yard: Any, key: str, loader: Any) -> Any:
    """A loader that asks the cache for another key, on its own face."""
    if yard.face == "threads":
        return lambda: yard.cache.get_or_set(key, loader)

    async def load() -> Any:
        return await yard.cache.aget_or_set(key, loader)

    return load


def test_all_who_ask_share_one_load(yard: Any) -> None:
    slow = yard.Gated("v")
    works = [yard.start("get_or_set", "k", yard.loader(slow)) for _ in range(30)]
    slow.has_begun()
    yard.until(lambda: yard.waiting("k") == 29)
    slow.go.set()
    assert {work.result(20) for work in works} == {"v"}
    assert slow.calls == 1


def test_two_processes_share_one_load(yard: Any) -> None:
    if yard.alone:
        return
    slow, other = yard.Gated("v"), yard.other()
    first = yard.start("get_or_set", "k", yard.loader(slow))
    slow.has_begun()
    second = [yard.start("get_or_set", "k", yard.loader(never), on=other) for _ in range(10)]
    yard.until(lambda: other.stats()["waits"])
    slow.go.set()
    assert first.result(20) == "v"
    assert {work.result(20) for work in second} == {"v"}


def test_both_faces_share_one_load(yard: Any) -> None:
    slow = yard.Gated("v")
    first = yard.start("get_or_set", "k", yard.loader(slow))
    slow.has_begun()
    if yard.face == "threads":

        async def ask() -> Any:
            task = asyncio.create_task(yard.cache.aget_or_set("k", never))
            while not yard.waiting("k"):
                await asyncio.sleep(0.001)
            slow.go.set()
            return await task

        assert asyncio.run(ask()) == "v"
    else:
        import threading

        threading.Thread(target=lambda: (yard.until(lambda: yard.waiting("k")), slow.go.set())).start()
        assert yard.cache.get_or_set("k", never) == "v"
    assert first.result(20) == "v"


def test_a_loader_that_asks_for_its_own_key(yard: Any) -> None:
    with pytest.raises(RecursiveLoadError, match="'k'"):
        yard.do("get_or_set", "k", nested(yard, "k", never))
    assert yard.do("get_or_set", "k", yard.loader(lambda: 1)) == 1, "nothing is left of it"


def test_a_circle_in_one_call(yard: Any) -> None:
    with pytest.raises(RecursiveLoadError):
        yard.do("get_or_set", "a", nested(yard, "b", nested(yard, "a", never)))
    assert yard.do("get_or_set", "a", nested(yard, "b", yard.loader(lambda: 1))) == 1


def test_a_circle_of_two_callers(yard: Any) -> None:
    """a's loader asks for b while b's asks for a: one of them is told, and then both end."""
    begun_a, begun_b = yard.Gated(), yard.Gated()
    inner_a, inner_b = nested(yard, "b", never), nested(yard, "a", never)
    gate_a, gate_b = yard.loader(begun_a), yard.loader(begun_b)

    def both(gate: Any, inner: Any) -> Any:
        if yard.face == "threads":
            return lambda: (gate(), inner())[1]

        async def load() -> Any:
            await gate()
            return await inner()

        return load

    first = yard.start("get_or_set", "a", both(gate_a, inner_a))
    second = yard.start("get_or_set", "b", both(gate_b, inner_b))
    begun_a.has_begun()
    begun_b.has_begun()
    begun_a.go.set()
    yard.until(lambda: yard.waiting("b"))
    begun_b.go.set()
    errors = [work.exception(20) for work in (first, second)]
    assert any(isinstance(error, RecursiveLoadError) for error in errors)


def test_a_loader_may_ask_for_other_keys(yard: Any) -> None:
    yard.do("set", "b", 1)
    assert yard.do("get_or_set", "a", nested(yard, "b", never)) == 1
    assert yard.do("get_or_set", "c", nested(yard, "d", yard.loader(lambda: 2))) == 2
    assert yard.do("get_many", ["a", "c", "d"]) == {"a": 1, "c": 2, "d": 2}


def test_an_error_reaches_all_who_wait_and_nobody_after(yard: Any) -> None:
    slow = yard.Gated(ZeroDivisionError("the origin's own"))
    works = [yard.start("get_or_set", "k", yard.loader(slow)) for _ in range(5)]
    yard.until(lambda: yard.waiting("k") == 4)
    slow.go.set()
    for work in works:
        assert isinstance(work.exception(20), ZeroDivisionError)
    assert slow.calls == 1
    assert not any(view.leased for view in yard.do("inspect", "k").tiers)
    assert yard.do("get_or_set", "k", yard.loader(lambda: 1)) == 1


def test_store_if_returns_without_storing(yard: Any) -> None:
    calls = []

    def load() -> Any:
        calls.append(1)
        return len(calls)

    for expected in (1, 2):
        assert yard.do("get_or_set", "k", yard.loader(load), store_if=lambda value: value > 2) == expected
        assert yard.standing("k") == {}
    for _ in range(2):
        assert yard.do("get_or_set", "k", yard.loader(load), store_if=lambda value: value > 2) == 3


def test_an_entry_says_how_long_it_is_good(yard: Any) -> None:
    assert yard.do("get_or_set", "k", yard.loader(lambda: Entry("v", ttl=7)), ttl=100) == "v"
    assert 5 < yard.authority("k").fresh_for <= 7
    assert yard.do("get_or_set", "f", yard.loader(lambda: Entry("v", ttl=None)), ttl=100) == "v"
    assert yard.authority("f").fresh_for is None


# Cancelling: only tasks can be


ASYNC = [
    f"{chain} | asyncio"
    for chain in (
        "memory",
        "sqlite",
        "redis",
        "cluster",
        "memcached",
        "memory > redis",
        "memory > redis > memcached",
    )
]


@pytest.mark.parametrize("yard", ASYNC, indirect=True)
def test_cancelling_one_who_waits_leaves_the_others_served(yard: Any) -> None:
    slow = yard.Gated("v")
    works = [yard.start("get_or_set", "k", yard.loader(slow)) for _ in range(5)]
    slow.has_begun()
    yard.until(lambda: yard.waiting("k") == 4)
    works[3].cancel()
    yard.until(lambda: yard.waiting("k") == 3)
    slow.go.set()
    assert [work.result(20) for work in works if not work.cancelled()] == ["v"] * 4
    assert slow.calls == 1


@pytest.mark.parametrize("yard", ASYNC, indirect=True)
def test_cancelling_the_leader_hands_the_flight_on(yard: Any) -> None:
    first, second = yard.Gated("first"), yard.Gated("second")
    second.go.set()
    leader = yard.start("get_or_set", "k", yard.loader(first))
    first.has_begun()
    others = [yard.start("get_or_set", "k", yard.loader(second)) for _ in range(4)]
    yard.until(lambda: yard.waiting("k") == 4)
    leader.cancel()
    assert {work.result(20) for work in others} == {"second"}
    assert second.calls == 1, "one of those who waited leads"
    first.go.set()
    assert yard.do("get", "k") == "second"


@pytest.mark.parametrize("yard", ASYNC, indirect=True)
def test_cancelling_a_writer_leaves_the_outcome_to_the_origin(yard: Any) -> None:
    rows = {1: "before"}
    slow = yard.Gated(lambda who, value: rows.__setitem__(who, value))
    users = yard.cache.repository("u", load=yard.loader(rows.get), save=slow)
    assert yard.do("get", 1, on=users) == "before"
    work = yard.start("put", 1, "after", on=users)
    slow.has_begun()
    work.cancel()
    yard.until(lambda: yard.standing("u:1") == {})
    assert yard.do("get", 1, on=users) == "before"
    slow.go.set()  # the save was under way in its thread, and lands after its caller is gone
    yard.until(lambda: rows[1] == "after")
    assert yard.do("get", 1, on=users) == "after"
    assert yard.standing("u:1") == {}, "while it may still land nothing is stored"
