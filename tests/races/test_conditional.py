"""What a loader says of its value, on every chain: its life, its tags, its note; and "not modified" in place of a value."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cachewright import MISSING, Cache, ConfigurationError, EncodeError, Entry, current_load
from cachewright.core.context import LoadContext
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.testing.servers import RedisServer

KEPT = {"ttl": 10, "stale_if_error": 1000}


class Page:
    """An origin that can be asked conditionally, by ETag."""

    def __init__(self, body: Any = "first") -> None:
        self.body, self.etag = body, "e1"
        self.sent = self.confirmed = 0

    def change(self, body: Any) -> None:
        self.body, self.etag = body, f"e{int(self.etag[1:]) + 1}"

    def load(self) -> Any:
        load = loading()
        if load.stale is not MISSING and load.note == self.etag:
            self.confirmed += 1
            return load.not_modified()
        self.sent += 1
        return Entry(self.body, note=self.etag)


def loading() -> LoadContext:
    load = current_load()
    assert load is not None
    return load


class Place:
    """A yard's cache under a clock that is moved by hand."""

    def __init__(self, yard: Any) -> None:
        self.yard, self.clock = yard, yard.HandClock()
        self.cache = yard.make(clock=self.clock, local_ttl=10_000)

    def other(self) -> Cache:
        """Another process's cache under the same clock."""
        made: Cache = self.yard.make(clock=self.clock, local_ttl=10_000)
        return self.cache if self.yard.alone else made

    def get(self, loader: Any, on: Any = None, **options: Any) -> Any:
        target = on or self.cache
        return self.yard.do("get_or_set", "k", self.yard.loader(loader), on=target, **{**KEPT, **options})

    def peek(self) -> Any:
        return self.yard.do("get", "k", on=self.cache)

    def view(self) -> Any:
        name = self.cache.engine.state.chain.authority.tier.name
        return next(v for v in self.yard.do("inspect", "k", on=self.cache).tiers if v.tier == name)


@pytest.fixture
def place(yard: Any) -> Place:
    return Place(yard)


def test_not_modified_gives_the_value_a_new_life(place: Place) -> None:
    page = Page()
    assert place.get(page.load) == "first"
    for _ in range(3):
        place.clock.move(11)
        assert place.peek() is None
        assert place.get(page.load) == "first"
        assert place.peek() == "first"
        assert 9 < place.view().fresh_for <= 10
        assert 1000 < place.view().usable_for <= 1010
    assert (page.sent, page.confirmed) == (1, 3), "the note stays through all renewals"


def test_a_note_travels_with_its_entry(place: Place) -> None:
    page, other = Page(), place.other()
    assert place.get(page.load) == "first"
    place.clock.move(11)
    assert place.get(page.load, on=other) == "first"
    assert (page.sent, page.confirmed) == (1, 1)


def test_what_has_changed_is_stored_with_its_new_note(place: Place) -> None:
    page = Page()
    assert place.get(page.load) == "first"
    page.change("second")
    place.clock.move(11)
    assert place.get(page.load) == "second"
    place.clock.move(11)
    assert place.get(page.load) == "second"
    assert (page.sent, page.confirmed) == (2, 1)


def test_a_value_without_a_note_has_none(place: Place) -> None:
    seen = []

    def load() -> str:
        seen.append(loading().note)
        return "v"

    assert place.get(lambda: Entry("v", note={"etag": "x", "at": (1, b"2")})) == "v"
    for _ in range(2):
        place.clock.move(11)
        assert place.get(load) == "v"
    assert seen == [{"etag": "x", "at": (1, b"2")}, None], "a note speaks of its own value only"


def test_what_not_modified_says_is_kept(place: Place) -> None:
    page = Page()
    assert place.get(page.load) == "first"
    place.clock.move(11)
    assert place.get(lambda: loading().not_modified(ttl=50, note="e9")) == "first"
    assert 49 < place.view().fresh_for <= 50
    place.clock.move(51)
    assert place.get(lambda: loading().not_modified(note=loading().note + "!")) == "first"
    place.clock.move(51)
    seen: list[Any] = []
    place.get(lambda: seen.append(loading().note))
    assert seen == ["e9!"]


def test_a_refresh_of_a_fresh_entry_can_be_conditional(place: Place) -> None:
    page = Page()
    users = place.cache.repository("u", load=place.yard.loader(lambda _: page.load()), ttl=100, jitter=0)
    assert place.yard.do("get", 1, on=users) == "first"
    place.clock.move(60)
    assert place.yard.do("refresh", 1, on=users) == "first"
    assert (page.sent, page.confirmed) == (1, 1)
    place.clock.move(60)
    assert place.yard.do("get", 1, on=users) == "first"
    assert (page.sent, page.confirmed) == (1, 1), "its life began anew"


def test_a_decorated_function_can_ask_conditionally(yard: Any) -> None:
    page = Page()
    get = yard.cached(lambda number: page.load(), key="page:{number}", ttl=0.01, stale_if_error=100)
    assert get(1) == "first"
    yard.until(lambda: yard.do("get", "page:1") is None)
    assert get(1) == "first"
    assert (page.sent, page.confirmed) == (1, 1)


def test_what_was_dropped_meanwhile_is_not_renewed(place: Place) -> None:
    page = Page()
    assert place.get(page.load) == "first"
    place.clock.move(11)
    slow = place.yard.Gated()

    def load() -> Any:
        context = loading()
        slow()
        return context.not_modified()

    work = place.yard.start("get_or_set", "k", place.yard.loader(load), on=place.cache, **KEPT)
    slow.has_begun()
    place.yard.do("delete", "k", on=place.other())
    slow.go.set()
    assert work.result(20) == "first"
    assert place.peek() is None
    assert place.view().state == "absent"


def test_without_a_value_there_is_nothing_to_renew(place: Place) -> None:
    with pytest.raises(ConfigurationError, match="no value to renew"):
        place.get(lambda: loading().not_modified())
    assert place.get(lambda: "v") == "v"


def test_a_loader_says_more_of_its_value(place: Place) -> None:
    def load() -> Any:
        loading().set(ttl=20, note=1)
        loading().set(stale_while_revalidate=30)
        return Entry("v", ttl=40, stale_if_error=7)

    assert place.get(load) == "v"
    view = place.view()
    assert 39 < view.fresh_for <= 40, "what the Entry says wins"
    assert 69 < view.usable_for <= 70


def test_tags_that_a_loader_names_add_up(place: Place) -> None:
    if not place.cache.engine.state.chain.authority.tier.server_time:
        return  # nobody can tell there whether a tag changed since the load began: nothing is stored

    def load() -> Any:
        loading().set(tags="a")
        loading().set(tags=["b", "a"])
        return Entry("v", tags="c")

    assert place.get(load, tags="z") == "v"
    assert place.view().tags[:1] == ("z",)
    assert set(place.view().tags) == {"a", "b", "c", "z"}
    place.clock.move(11)
    assert place.get(lambda: loading().not_modified(tags="d")) == "v"
    assert set(place.view().tags) == {"a", "b", "c", "d", "z"}, "and what it had"
    place.yard.do("invalidate_tags", "d", on=place.cache)
    assert place.peek() is None


def test_what_is_renewed_keeps_the_tags_that_its_first_load_named(place: Place) -> None:
    """Who is told that nothing is new has nothing to name them by, and an invalidation must still find the entry."""
    cache = place.cache

    def change_in_between() -> Any:
        drive(cache.engine.invalidate_tags(THREADS, ["u"]))
        return loading().not_modified()

    for again, change in ((lambda: loading().not_modified(), True), (change_in_between, False)):
        place.get(lambda: "old", tags="u")
        place.clock.move(11)
        assert place.get(again) == "old"
        if change:
            place.yard.do("invalidate_tags", "u", on=cache)
        assert place.peek() is None


def test_who_comes_after_a_kept_tag_was_changed_is_not_handed_what_is_renewed(place: Place) -> None:
    yard = place.yard
    place.get(lambda: "old", tags="u")
    place.clock.move(11)
    old = yard.Gated(lambda: loading().not_modified())
    first = yard.start("get_or_set", "k", yard.loader(old), on=place.cache, **KEPT)
    old.has_begun()
    yard.do("invalidate_tags", "u", on=place.cache)
    late = yard.start("get_or_set", "k", yard.loader(lambda: "new"), on=place.cache, **KEPT)
    yard.until(lambda: late.done() or yard.waiting("k", place.cache))
    old.go.set()
    assert first.result(20) == "old", "the caller gets its value all the same"
    assert late.result(20) == "new"


def test_what_is_stale_at_once_is_there_to_be_renewed(place: Place) -> None:
    page = Page()
    assert place.get(lambda: Entry("first", ttl=0, note="e1")) == "first"
    place.clock.move(0.01)
    assert place.get(page.load) == "first"
    assert (page.sent, page.confirmed) == (0, 1)


def test_what_is_not_to_be_stored_is_not(place: Place) -> None:
    for said in ({"store": False}, {}):
        context_says = bool(said)

        def load(says: bool = context_says) -> Any:
            if says:
                loading().set(store=False)
                return "v"
            return Entry("v", store=False)

        assert place.get(load) == "v"
        assert place.peek() is None


def test_a_try_that_failed_has_said_nothing(place: Place) -> None:
    from cachewright import Retry

    tries: list[int] = []

    def load() -> str:
        tries.append(1)
        if len(tries) == 1:
            loading().set(ttl=1, store=False)
            raise ConnectionError
        return "v"

    assert place.get(load, retries=Retry(1, wait=0.001, max_wait=0.001)) == "v"
    assert 9 < place.view().fresh_for <= 10


def test_a_batch_says_it_for_each_key(place: Place) -> None:
    def load(keys: list[str]) -> dict[str, Any]:
        loading().set(ttl=50)
        return {
            "k": Entry("v", note="n", stale_if_error=9),
            "l": Entry("w", ttl=5),
            "m": Entry("x", store=False),
        }

    loader = place.yard.loader(load)
    found = place.yard.do("get_or_set_many", ["k", "l", "m"], loader, on=place.cache, **KEPT)
    assert found == {"k": "v", "l": "w", "m": "x"}
    assert 49 < place.view().fresh_for <= 50
    assert 58 < place.view().usable_for <= 59
    place.clock.move(6)
    assert place.yard.do("get_many", ["k", "l", "m"], on=place.cache) == {"k": "v"}
    place.clock.move(50)
    assert place.get(lambda: loading().not_modified() if loading().note == "n" else "?") == "v"


def test_a_batch_can_ask_conditionally_for_each_key(place: Place) -> None:
    calls: list[tuple[list[str], list[Any]]] = []

    def load(keys: list[str]) -> dict[str, Any]:
        parts = {key: loading().of(key) for key in keys}
        calls.append((keys, [part.note for part in parts.values()]))
        for part in parts.values():
            part.set(ttl=50)
        return {
            key: part.not_modified()
            if part.note == "same"
            else Entry(f"{key}{len(calls)}", note=part.note or "same")
            for key, part in parts.items()
        }

    def get(*keys: str) -> Any:
        loader = place.yard.loader(load)
        return place.yard.do("get_or_set_many", list(keys), loader, on=place.cache, **KEPT)

    assert get("k") == {"k": "k1"}
    assert place.view().fresh_for > 49
    place.clock.move(51)
    assert get("k", "l") == {"k": "k1", "l": "l2"}, "one is renewed, one is new"
    place.clock.move(51)
    assert get("k", "l") == {"k": "k1", "l": "l2"}
    assert calls == [(["k"], [None]), (["k", "l"], ["same", None]), (["k", "l"], ["same", "same"])]
    place.clock.move(51)
    options = {**KEPT, "stale_while_revalidate": 1000}
    place.get(lambda: loading().of("k").not_modified(stale_while_revalidate=1000))
    place.clock.move(11)
    found = place.yard.do("get_or_set_many", ["k"], place.yard.loader(load), on=place.cache, **options)
    assert found == {"k": "k1"}, "served at once; the refresh behind asks for this key alone"
    # (Not by `get`: it looks below under a lease of its own, which a refresh does not wait for.)
    place.yard.until(lambda: len(calls) == 4 and not place.cache.engine.state.refreshing)
    assert place.peek() == "k1"
    assert calls[-1] == (["k"], ["same"])


def test_a_part_that_is_not_in_the_batch(place: Place) -> None:
    with pytest.raises(ConfigurationError, match="this load is about"):
        place.get(lambda: loading().of("other"))


def test_a_number_that_was_added_to_has_no_note(place: Place) -> None:
    assert place.get(lambda: Entry(1, note="of one")) == 1
    place.yard.do("incr", "k", 1, on=place.cache)
    place.clock.move(11)
    seen: list[Any] = []
    place.get(lambda: seen.append((loading().stale, loading().note)))
    assert seen == [(2, None)]


def test_a_note_is_small(place: Place) -> None:
    with pytest.raises(EncodeError, match="a note is small"):
        place.get(lambda: Entry("v", note="x" * 5000))
    assert place.get(lambda: Entry("v", note="x" * 4000)) == "v"


def test_nothing_can_be_said_when_the_load_is_over() -> None:
    kept: list[LoadContext] = []
    with Cache() as cache:
        cache.get_or_set("k", lambda: kept.append(loading()))
        with pytest.raises(ConfigurationError, match="is over"):
            kept[0].set(ttl=1)


def test_an_outer_loads_not_modified_is_a_plain_value_to_an_inner_one() -> None:
    with Cache(ttl=10, stale_if_error=100, jitter=0) as cache:
        cache.set("outer", "old")
        cache.set("inner", "other")
        cache.touch("outer", 0.001)
        cache.delete("inner")

        def outer() -> Any:
            context = loading()
            return cache.get_or_set("inner", lambda: context.not_modified())

        while cache.get("outer") is not None:
            pass
        assert cache.get_or_set("outer", outer) == "old"
        assert cache.get("inner") == "old"


# Redis, byte by byte


def net_input(server: RedisServer) -> int:
    return int(server.info("stats")["total_net_input_bytes"])


@pytest.mark.parametrize("size", [200, 1_000_000])
def test_the_payload_does_not_travel_again(redis_server: RedisServer, namespace: str, size: int) -> None:
    page = Page(b"x" * size)
    with Cache(redis_server.url, namespace=namespace, jitter=0) as cache:
        for _ in range(2):
            assert cache.get_or_set("k", page.load, ttl=0.001, stale_if_error=100) == page.body
            while cache.get("k") is not None:
                pass
        assert cache.engine.state.stats.loads == 2
        before = net_input(redis_server)
        assert cache.get_or_set("k", page.load, ttl=60, stale_if_error=100) == page.body
        sent = net_input(redis_server) - before
        assert cache.get("k") == page.body
        assert 60 < redis_server_life(cache) <= 160.5, "the server's own expiry moves with the life"
    assert (page.sent, page.confirmed) == (1, 2)
    assert sent < 5_000, "two headers and the scripts' names"


def redis_server_life(cache: Cache) -> float:
    usable = cache.inspect("k").tiers[0].usable_for
    assert usable is not None
    return usable


def test_a_touch_sends_the_header_alone(redis_server: RedisServer, namespace: str) -> None:
    with Cache(redis_server.url, namespace=namespace) as cache:
        cache.set("k", b"x" * 1_000_000)
        before = net_input(redis_server)
        assert cache.touch("k", 50)
        assert net_input(redis_server) - before < 5_000
        assert cache.get("k") == b"x" * 1_000_000


def test_a_note_is_encrypted_as_the_value_is(redis_server: RedisServer, namespace: str) -> None:
    page = Page()
    page.etag = "e4711"
    options: dict[str, Any] = {"namespace": namespace, "encryption_keys": bytes(32), "jitter": 0}
    with Cache(redis_server.url, **options) as cache:
        assert cache.get_or_set("k", page.load, ttl=0.001, stale_if_error=100) == "first"
        slot = drive(cache.engine.state.chain.authority.tier.read(THREADS, ["k"]))[0]["k"]
        assert slot.entry is not None
        assert slot.entry.note
        assert b"e4711" not in slot.header
        while cache.get("k") is not None:
            pass
        assert cache.get_or_set("k", page.load, ttl=60, stale_if_error=100) == "first"
    assert (page.sent, page.confirmed) == (1, 1)


def test_a_note_that_cannot_be_read_is_none(redis_server: RedisServer, namespace: str) -> None:
    page = Page()
    with Cache(redis_server.url, namespace=namespace, jitter=0) as cache:
        assert cache.get_or_set("k", page.load, ttl=0.001, stale_if_error=100) == "first"
        tier = cache.engine.state.chain.authority.tier
        slot = drive(tier.read(THREADS, ["k"]))[0]["k"]
        assert slot.entry is not None
        damaged = msgspec.structs.replace(slot.entry, note=b"\x01\x00\xc1")
        drive(tier.store(THREADS, {"k": msgspec.structs.replace(slot, entry=damaged)}))
        while cache.get("k") is not None:
            pass
        assert cache.get_or_set("k", page.load, ttl=60, stale_if_error=100) == "first"
        assert cache.stats()["events"]["DecodeFailed"] == 1
    assert (page.sent, page.confirmed) == (2, 0)
