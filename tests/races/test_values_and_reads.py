"""What comes back is what was put; how reads, batches, ``add``, ``touch`` and ``incr`` behave on every chain."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from cachewright import Entry, MissingKeyError
from cachewright.errors import EncodeError

FALSY: list[Any] = [None, 0, "", [], False, 0.0, b"", {}, ()]
PLAIN = [
    datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    date(2026, 1, 2),
    timedelta(days=-1, microseconds=3),
    Decimal("1.10"),
    UUID("12345678-1234-5678-1234-567812345678"),
    (1, "two", (3.0, None)),
    {1, 2, 3},
    frozenset({"a"}),
    b"\0\xff",
    {"nested": [{"of": (1, {"sets"})}], "é": None},
    2**63,
    -(2**70),
    True,
    1.5,
]


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    when: datetime
    tags: set[str] = field(default_factory=set)


class Struct(msgspec.Struct):
    name: str
    point: Point


class Model(pydantic.BaseModel):
    price: Decimal
    items: list[Point]


@attrs.define
class Thing:
    id: UUID
    colour: Colour


class Row(TypedDict):
    id: int
    at: datetime


POINT = Point(1, datetime(2026, 1, 2, tzinfo=UTC), {"a"})
TYPED: list[tuple[Any, Any]] = [
    (Point, POINT),
    (Struct, Struct("s", POINT)),
    (Model, Model(price=Decimal("1.10"), items=[POINT])),
    (Thing, Thing(UUID(int=1), Colour.RED)),
    (Row, {"id": 1, "at": datetime(2026, 1, 2, tzinfo=UTC)}),
    (Colour, Colour.RED),
    (list[Point], [POINT, POINT]),
    (dict[str, Decimal], {"a": Decimal("1.0")}),
    (tuple[int, date], (1, date(2026, 1, 2))),
    (Point | None, None),
    (bytes, b"\0raw"),
    (set[UUID], {UUID(int=2)}),
]


def never() -> Any:
    raise AssertionError("it is cached: nothing is to be loaded")


def test_empty_and_false_values_are_values(yard: Any) -> None:
    for n, value in enumerate(FALSY):
        yard.do("set", f"s{n}", value)
        assert yard.do("get_or_set", f"l{n}", yard.loader(lambda value=value: value)) == value
    for cache in (yard.cache, yard.other()):
        for n, value in enumerate(FALSY):
            for key in (f"s{n}", f"l{n}"):
                found = yard.do("get", key, "default", on=cache)
                assert found == value
                assert type(found) is type(value)
                assert yard.do("get_many", [key], on=cache) == {key: value}
                assert yard.do("get_or_set", key, yard.loader(never), on=cache) == value
                assert not yard.do("add", key, "other", on=cache)


def test_plain_values_come_back_as_they_are(yard: Any) -> None:
    yard.do("set_many", {f"k{n}": value for n, value in enumerate(PLAIN)})
    for cache in (yard.cache, yard.other()):
        found = yard.do("get_many", [f"k{n}" for n in range(len(PLAIN))], on=cache)
        for value, got in zip(PLAIN, found.values(), strict=True):
            assert got == value
            assert type(got) is type(value)


def test_typed_values_come_back_as_their_type(yard: Any) -> None:
    for n, (type_, value) in enumerate(TYPED):

        def load(n: int, value: Any = value) -> Any:
            return value

        load.__annotations__["return"] = type_
        load.__qualname__ = f"load{n}"
        assert yard.cached(load, key=f"c{n}:{{n}}")(n) == value
        assert yard.do("get_or_set", f"k{n}", yard.loader(lambda value=value: value), type=type_) == value
        for cache in (yard.cache, yard.other()):
            for key in (f"c{n}:{n}", f"k{n}"):
                got = yard.do("get", key, type=type_, on=cache)
                assert got == value
                assert type(got) is type(value)
                assert yard.do("get_or_set", key, yard.loader(never), type=type_, on=cache) == value


def test_what_cannot_be_stored_says_so(yard: Any) -> None:
    if yard.alone:
        yard.do("set", "k", object())
        return
    with pytest.raises(EncodeError):
        yard.do("set", "k", object())
    assert yard.standing("k") == {}


# Reading without a loader, and many keys


def test_get_never_waits_for_a_load(yard: Any) -> None:
    slow = yard.Gated("loaded")
    load = yard.start("get_or_set", "k", yard.loader(slow))
    slow.has_begun()
    for cache in (yard.cache, yard.other()):
        assert yard.do("get", "k", "default", on=cache) == "default"
        assert yard.do("get_many", ["k", "other"], on=cache) == {}
    slow.go.set()
    assert load.result(20) == "loaded"
    assert yard.do("get", "k") == "loaded", "looking did not take the lease away"


def test_get_leaves_no_lease_behind(yard: Any) -> None:
    assert yard.do("get_many", ["a", "b"]) == {}
    assert not any(view.leased for view in yard.do("inspect", "a").tiers)
    loads = yard.Gated(1)
    loads.go.set()
    assert yard.do("get_or_set", "a", yard.loader(loads)) == 1


@pytest.mark.parametrize("yard", ["redis | threads", "redis | asyncio"], indirect=True)
def test_many_keys_are_one_round_trip(yard: Any, own_redis: Callable[..., Any]) -> None:
    server = own_redis()
    cache = yard.make(server.url + "?timeout=10")
    yard.do("set_many", {f"k{n}": n for n in range(200)}, on=cache)
    yard.do("invalidate_tags", "t", on=cache)

    def calls() -> int:
        lines = server.info("commandstats")
        ours = ("get", "mget", "evalsha", "eval")
        return sum(
            int(line.split("calls=")[1].split(",")[0])
            for name, line in lines.items()
            if name.removeprefix("cmdstat_") in ours
        )

    before = calls()
    assert len(yard.do("get_many", [f"k{n}" for n in range(250)], on=cache)) == 200
    # One MGET; or, pipelined in one write, one GET a key would be 250 here.
    assert calls() - before == 1


@pytest.mark.parametrize("yard", ["redis | threads", "redis | asyncio"], indirect=True)
def test_a_thousand_keys_half_of_them_cached(yard: Any, own_redis: Callable[..., Any]) -> None:
    """One look, one call of the loader, and for each missing key one swap for its lease and one for its value."""
    server = own_redis()
    keys = [f"k{n}" for n in range(1000)]
    filler = yard.make("memory://", server.url + "?timeout=10")
    yard.do("set_many", {key: key for key in keys[:500]}, on=filler)
    cache = yard.make("memory://", server.url + "?timeout=10")  # its memory is empty
    yard.do("get_or_set", "other", lambda: 1, on=cache)  # the server knows the script now
    asked: list[int] = []

    def load(missing: list[str]) -> dict[str, Any]:
        asked.append(len(missing))
        return {key: key for key in missing}

    def counts() -> dict[str, int]:
        lines = server.info("commandstats").items()
        return {
            name.removeprefix("cmdstat_"): int(line.split("calls=")[1].split(",")[0]) for name, line in lines
        }

    before, reads = counts(), int(server.info("stats")["total_reads_processed"])
    assert yard.do("get_or_set_many", keys, yard.loader(load), on=cache) == {key: key for key in keys}
    after, read = counts(), int(server.info("stats")["total_reads_processed"]) - reads
    made = {name: after[name] - before.get(name, 0) for name in after}
    assert asked == [500]
    assert made["mget"] == 1
    assert made.get("get", 0) == 0
    assert made["evalsha"] + made.get("eval", 0) <= 2 * 500 + 2, (
        made
    )  # a script that is new is sent a second time
    assert read < 60, "they travel in few pieces, not each by itself"
    assert yard.do("get_or_set_many", keys, yard.loader(never), on=cache) == {key: key for key in keys}


def test_a_loader_of_many_is_called_once_for_what_is_missing(yard: Any) -> None:
    asked = []

    def load(keys: list[str]) -> dict[str, Any]:
        asked.append(sorted(keys))
        return {key: f"v{key}" for key in keys if key != "absent"}

    yard.do("set", "a", "set")
    assert yard.do("get_or_set_many", ["a", "b", "c", "b", "absent"], yard.loader(load)) == {
        "a": "set",
        "b": "vb",
        "c": "vc",
    }
    assert asked == [["absent", "b", "c"]] or asked[0] == ["absent", "b", "c"]
    assert yard.standing("absent") == {}, "a key that was left out is not stored"
    for cache in (yard.cache, yard.other()):
        assert yard.do("get_or_set_many", ["a", "b", "c"], yard.loader(never), on=cache) == {
            "a": "set",
            "b": "vb",
            "c": "vc",
        }
    assert not any(view.leased for view in yard.do("inspect", "absent").tiers), "nor does it stay leased"
    assert len(asked) == 1


def test_a_key_that_fails_in_a_batch_fails_alone(yard: Any) -> None:
    def load(keys: list[str]) -> dict[str, Any]:
        return {key: LookupError(key) if key == "bad" else Entry(key.upper(), ttl=30) for key in keys}

    with pytest.raises(LookupError):
        yard.do("get_or_set_many", ["a", "bad", "b"], yard.loader(load))
    assert yard.do("get_many", ["a", "bad", "b"]) == {"a": "A", "b": "B"}
    assert not any(view.leased for view in yard.do("inspect", "bad").tiers)
    assert 25 < yard.authority("a").fresh_for <= 30


def test_a_batch_that_fails_leaves_no_lease(yard: Any) -> None:
    def load(keys: list[str]) -> dict[str, Any]:
        raise LookupError("all")

    with pytest.raises(LookupError):
        yard.do("get_or_set_many", ["a", "b"], yard.loader(load))
    for key in ("a", "b"):
        assert not any(view.leased for view in yard.do("inspect", key).tiers)
    assert yard.do("get_or_set_many", ["a"], yard.loader(lambda keys: dict.fromkeys(keys, 1))) == {"a": 1}


def test_batches_that_overlap_load_each_key_once(yard: Any) -> None:
    lock, asked = threading.Lock(), []
    gate = threading.Event()

    def load(keys: list[str]) -> dict[str, str]:
        with lock:
            asked.extend(keys)
        assert gate.wait(20)
        return {key: key for key in keys}

    first = yard.start("get_or_set_many", ["a", "b", "c"], yard.loader(load))
    yard.until(lambda: len(asked) == 3)
    second = yard.start("get_or_set_many", ["b", "c", "d"], yard.loader(load))
    single = yard.start("get_or_set", "a", yard.loader(never))
    yard.until(lambda: len(asked) == 4)
    yard.until(lambda: yard.waiting("a"))
    gate.set()
    assert first.result(20) == {"a": "a", "b": "b", "c": "c"}
    assert second.result(20) == {"b": "b", "c": "c", "d": "d"}
    assert single.result(20) == "a"
    assert sorted(asked) == ["a", "b", "c", "d"]


# add, touch, incr


def test_add_stores_only_where_nothing_fresh_stands(yard: Any) -> None:
    assert yard.do("add", "k", 1, ttl=50)
    assert not yard.do("add", "k", 2)
    assert yard.do("get", "k") == 1
    yard.do("delete", "k")
    works = [yard.start("add", "k", n) for n in range(8)]
    added = [n for n, work in enumerate(works) if work.result(20)]
    assert len(added) == 1
    assert yard.do("get", "k") == added[0]


def test_touch_gives_a_new_life(yard: Any) -> None:
    assert not yard.do("touch", "k", 60)
    yard.do("set", "k", "v", ttl=10, stale_if_error=5)
    assert yard.do("get", "k") == "v"
    assert yard.do("touch", "k", 100)
    view = yard.authority("k")
    assert 95 < view.fresh_for <= 100
    assert view.usable_for - view.fresh_for == pytest.approx(5, abs=0.01)
    assert yard.do("get", "k") == "v"
    assert yard.do("touch", "k", None)
    assert yard.authority("k").fresh_for is None


def test_incr_loses_none(yard: Any) -> None:
    with pytest.raises(MissingKeyError):
        yard.do("incr", "n")
    yard.do("set", "n", 0, ttl=100)
    other = yard.other()

    each = 100 if yard.chain in ("memory", "redis") else 25

    def count(who: Any) -> Callable[[], None]:
        def run() -> None:
            for _ in range(each):
                yard.do("incr", "n", on=who)

        return run

    threads = [threading.Thread(target=count(yard.cache if n % 2 else other)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert yard.do("incr", "n", 0) == 8 * each
    assert yard.do("incr", "n", -0.5) == 8 * each - 0.5
    assert 90 < yard.authority("n").fresh_for <= 100, "its life stays"
    yard.do("set", "text", "x")
    with pytest.raises(EncodeError):
        yard.do("incr", "text")
