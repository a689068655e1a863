"""Freshness on every chain, by a clock that is moved by hand: stale windows, timeouts, refreshes ahead, negative values."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import wait
from typing import Any

import pytest

from cachewright import Cache, LoadTimeout, current_load


class Source:
    """A loader that counts its calls and can be told to fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    def __call__(self) -> str:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return f"v{self.calls}"


class Aging:
    """A yard's cache under a clock."""

    def __init__(self, yard: Any) -> None:
        self.yard, self.clock = yard, yard.HandClock()
        self.cache = yard.make(clock=self.clock, local_ttl=10_000)
        self.source = Source()

    def get(self, loader: Any = None, **options: Any) -> Any:
        return self.yard.do(
            "get_or_set", "k", self.yard.loader(loader or self.source), on=self.cache, **options
        )

    def start(self, loader: Any, **options: Any) -> Any:
        return self.yard.start("get_or_set", "k", self.yard.loader(loader), on=self.cache, **options)

    def peek(self) -> Any:
        return self.yard.do("get", "k", on=self.cache)

    def move_until_done(self, work: Any, seconds: float) -> None:
        """Moves the clock: again where the caller had not yet looked at it for the first time."""
        for _ in range(10):
            self.clock.move(seconds)
            if work in wait([work], 1.5).done:
                return

    def refreshed(self) -> None:
        self.yard.until(lambda: not self.cache.engine.state.refreshing)


@pytest.fixture
def aging(yard: Any) -> Aging:
    return Aging(yard)


def test_an_entry_ends_with_its_ttl(aging: Aging) -> None:
    assert aging.get(ttl=10) == "v1"
    aging.clock.move(9.9)
    assert aging.get(ttl=10) == "v1"
    aging.clock.move(0.2)
    assert aging.peek() is None
    assert aging.get(ttl=10) == "v2"


def test_jitter_only_shortens(aging: Aging) -> None:
    lives = []
    for n in range(40):
        aging.yard.do("set", f"j{n}", n, ttl=100, jitter=0.5, on=aging.cache)
        view = aging.yard.do("inspect", f"j{n}", on=aging.cache).tiers[0]
        if view.fresh_for is None:
            view = aging.yard.do("inspect", f"j{n}", on=aging.cache).tiers[1]
        lives.append(view.fresh_for)
    assert all(49.9 <= life <= 100 for life in lives)
    assert max(lives) - min(lives) > 5, "what was filled together does not expire together"


def test_stale_while_revalidate(aging: Aging) -> None:
    options = {"ttl": 10, "stale_while_revalidate": 20}
    assert aging.get(**options) == "v1"
    aging.clock.move(15)
    assert aging.peek() is None, "get returns fresh values only"
    slow = aging.yard.Gated("refreshed")
    assert aging.get(slow, **options) == "v1"
    slow.has_begun()
    assert aging.get(slow, **options) == "v1", "while it is refreshed behind"
    slow.go.set()
    aging.refreshed()
    assert slow.calls == 1
    assert aging.get(**options) == "refreshed"
    aging.clock.move(40)
    assert aging.get(**options) == "v2", "past the window it is loaded before the answer"


def test_stale_if_error(aging: Aging) -> None:
    options = {"ttl": 10, "stale_if_error": 60, "error_ttl": 2}
    assert aging.get(**options) == "v1"
    aging.clock.move(11)
    aging.source.error = ConnectionError("down")
    assert aging.get(**options) == "v1"
    assert aging.source.calls == 2
    for _ in range(5):
        assert aging.get(**options) == "v1"
    assert aging.source.calls == 2, "for error_ttl the origin is left alone"
    aging.clock.move(2.1)
    assert aging.get(**options) == "v1"
    assert aging.source.calls == 3
    aging.source.error = None
    aging.clock.move(2.1)
    assert aging.get(**options) == "v4"
    aging.source.error = ConnectionError("down")
    aging.clock.move(71)
    with pytest.raises(ConnectionError):
        aging.get(**options)


def test_a_stale_value_whose_tag_changed_is_not_served(aging: Aging) -> None:
    options = {"ttl": 10, "stale_if_error": 60, "stale_while_revalidate": 60, "tags": ["t"]}
    assert aging.get(**options) == "v1"
    aging.clock.move(11)
    aging.yard.do("invalidate_tags", "t", on=aging.cache)
    aging.source.error = ConnectionError("down")
    with pytest.raises(ConnectionError):
        aging.get(**options)


def test_soft_timeout(aging: Aging) -> None:
    options = {"ttl": 10, "stale_if_error": 60, "soft_timeout": 0.02, "lease": 1000}
    assert aging.get(**options) == "v1"
    aging.clock.move(11)
    slow = aging.yard.Gated("late")
    work = aging.start(slow, **options)
    slow.has_begun()
    aging.move_until_done(work, 0.05)
    assert work.result(20) == "v1"
    slow.go.set()
    aging.yard.until(lambda: aging.peek() == "late")


def test_load_timeout(aging: Aging) -> None:
    slow = aging.yard.Gated("late")
    # Leases are renewed by the machine's time and end by the hand's: this one must outlive its moves.
    work = aging.start(slow, load_timeout=3, lease=1000)
    slow.has_begun()
    aging.move_until_done(work, 3.1)
    assert isinstance(work.exception(20), LoadTimeout)
    slow.go.set()
    aging.yard.until(lambda: aging.peek() == "late")


def test_load_timeout_serves_a_stale_value(aging: Aging) -> None:
    options = {"ttl": 10, "stale_if_error": 60, "load_timeout": 3, "lease": 1000}
    assert aging.get(**options) == "v1"
    aging.clock.move(11)
    slow = aging.yard.Gated("late")
    work = aging.start(slow, **options)
    slow.has_begun()
    aging.move_until_done(work, 3.1)
    assert work.result(20) == "v1"
    slow.go.set()


def test_who_forces_a_load_hears_that_it_took_too_long() -> None:
    """The old value would pass for its result: a schedule over a hung origin looked well, run after run."""
    hangs, go_on = threading.Event(), threading.Event()
    with Cache(stale_if_error=60, soft_timeout=0.01, load_timeout=0.05) as cache:

        @cache.cached(key="k")
        def load() -> str:
            if hangs.is_set():
                go_on.wait(20)
            return "old"

        assert load() == "old"
        hangs.set()
        try:
            with pytest.raises(LoadTimeout):
                load.refresh()
            assert load() == "old"
        finally:
            go_on.set()


def test_negative_ttl(aging: Aging) -> None:
    assert aging.get(lambda: None, ttl=100, negative_ttl=5) is None
    assert aging.get(lambda: "never asked", ttl=100) is None
    aging.clock.move(5.1)
    assert aging.get(lambda: "there now", ttl=100, negative_ttl=5) == "there now"
    aging.clock.move(50)
    assert aging.peek() == "there now"


def test_refresh_ahead_at_a_fraction_of_the_life(aging: Aging) -> None:
    options = {"ttl": 100, "refresh_ahead": 0.5}
    assert aging.get(**options) == "v1"
    aging.clock.move(49)
    assert aging.get(**options) == "v1"
    aging.refreshed()
    assert aging.source.calls == 1
    aging.clock.move(2)
    assert aging.get(**options) == "v1", "the read that starts it does not wait for it"
    aging.yard.until(lambda: aging.source.calls == 2)
    aging.refreshed()
    assert aging.get(**options) == "v2"
    assert aging.source.calls == 2


def test_refresh_ahead_of_a_call_counts_whatever_the_entry_was_stored_with(aging: Aging) -> None:
    aging.yard.do("set", "k", "old", on=aging.cache, ttl=100)
    assert aging.peek() == "old", "and now it is in memory, where there is one"
    options = {"ttl": 100, "refresh_ahead": 0.5}
    aging.clock.move(40)
    assert aging.get(**options) == "old"
    aging.refreshed()
    assert aging.source.calls == 0
    aging.clock.move(20)
    assert aging.get(ttl=100) == "old"
    aging.refreshed()
    assert aging.source.calls == 0, "this call did not ask for it"
    assert aging.get(**options) == "old"
    aging.yard.until(lambda: aging.source.calls == 1)
    aging.refreshed()
    assert aging.get(**options) == "v1"


def test_refresh_ahead_of_a_call_for_many_counts_whatever_they_were_stored_with(aging: Aging) -> None:
    asked: list[list[str]] = []

    def load(
        keys: Any,
    ) -> Any:  # (no type: what was set untyped in memory is no hit there for who asks for one)
        asked.append(sorted(keys))
        return dict.fromkeys(keys, "new")

    def get(**options: Any) -> Any:
        many = aging.yard.loader(load)
        return aging.yard.do("get_or_set_many", ["k", "l", "m"], many, on=aging.cache, ttl=100, **options)

    aging.yard.do("set_many", {"k": "old", "l": "old"}, on=aging.cache, ttl=100)
    aging.clock.move(60)
    aging.yard.do("set", "m", "young", on=aging.cache, ttl=100)
    assert get() == {"k": "old", "l": "old", "m": "young"}
    assert get(refresh_ahead=0.5) == {"k": "old", "l": "old", "m": "young"}
    aging.yard.until(lambda: asked)
    aging.refreshed()
    assert asked == [["k", "l"]]
    assert get(refresh_ahead=0.5) == {"k": "new", "l": "new", "m": "young"}


@pytest.mark.parametrize("refresh_ahead", [0.5, True])
def test_after_a_touch_refresh_ahead_goes_by_the_new_life(aging: Aging, refresh_ahead: Any) -> None:
    def load(_: int) -> str:
        aging.clock.move(1)  # what the load takes
        return aging.source()

    users = aging.cache.repository(
        "u", load=aging.yard.loader(load), ttl=100, jitter=0, refresh_ahead=refresh_ahead
    )
    get = functools.partial(aging.yard.do, "get", 1, on=users)
    assert get() == "v1"
    aging.clock.move(9)
    assert aging.yard.do("touch", users.key_for(1), 290, on=aging.cache)
    aging.clock.move(100)
    assert get() == "v1"
    aging.refreshed()
    assert aging.source.calls == 1, "too early"
    aging.clock.move(189.9)
    aging.yard.until(lambda: get() and aging.source.calls == 2)  # by XFetch a read does it nine times of ten
    aging.refreshed()
    assert get() == "v2"


def test_a_failed_refresh_keeps_the_last_good_value(aging: Aging) -> None:
    users = aging.cache.repository("u", load=aging.yard.loader(lambda _: aging.source()), ttl=100)
    assert aging.yard.do("get", 1, on=users) == "v1"
    aging.source.error = ConnectionError("down")
    with pytest.raises(ConnectionError):
        aging.yard.do("refresh", 1, on=users)
    assert aging.yard.do("get", 1, on=users) == "v1"
    aging.source.error = None
    assert aging.yard.do("refresh", 1, on=users) == "v3"
    assert aging.yard.do("get", 1, on=users) == "v3"


def test_retries(aging: Aging) -> None:
    from cachewright import Retry

    failing = iter([ConnectionError("1"), ConnectionError("2")])

    def load() -> str:
        error = next(failing, None)
        if error is not None:
            raise error
        return "third time"

    assert aging.get(load, retries=Retry(2, wait=0.001, max_wait=0.002)) == "third time"


def test_a_loader_knows_its_load(aging: Aging) -> None:
    seen = []

    def load() -> str:
        context = current_load()
        assert context is not None
        seen.append((context.key, context.options.ttl, context.stale))
        return f"v{len(seen)}"

    assert aging.get(load, ttl=10, stale_if_error=60) == "v1"
    aging.clock.move(11)
    assert aging.get(load, ttl=10, stale_if_error=60) == "v2"
    assert [(key, ttl) for key, ttl, _ in seen] == [("k", 10.0), ("k", 10.0)]
    assert not seen[0][2]
    assert seen[1][2] == "v1"
    assert current_load() is None
