"""`cached(refresh_every=…)` and `warm` of decorated functions."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cachewright import Cache
from cachewright.errors import ConfigurationError


@pytest.fixture
def cache(namespace: str) -> Iterator[Cache]:
    with Cache(namespace=namespace) as made:
        yield made


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


async def auntil(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


def schedulers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "APScheduler"]


# Schedules of functions


def test_a_function_without_arguments_is_kept_fresh_from_its_first_call_on(cache: Cache):
    loads: list[int] = []

    @cache.cached(refresh_every=0.1)
    def rates() -> int:
        loads.append(1)
        return len(loads)

    assert not schedulers(), "nothing starts with the decoration"
    assert rates() >= 1
    until(lambda: rates() >= 4)
    refresh = rates.keep_fresh()
    assert refresh is rates.keep_fresh()
    assert refresh.runs >= 2
    view = rates.inspect()
    assert view.tiers[0].fresh_for is None, "what is kept fresh never expires"
    assert view.refresh is not None


def test_chosen_arguments_are_kept_fresh_and_others_are_not(cache: Cache):
    loads: Counter[tuple[str, str]] = Counter()

    @cache.cached(
        key="rate:{base}:{to}",
        ttl=300,
        tags="rates",
        refresh_every={"every": 0.1, "spread": 0.01},
        refresh_for=[("EUR", "USD"), {"base": "GBP", "to": "USD"}],
    )
    def rate(base: str, to: str = "USD") -> int:
        loads[base, to] += 1
        return loads[base, to]

    assert rate("JPY") == 1
    until(lambda: rate("EUR", "USD") >= 3 and cache.get("rate:GBP:USD", 0) >= 3)
    assert rate("JPY") == 1
    assert set(loads) == {("JPY", "USD"), ("EUR", "USD"), ("GBP", "USD")}
    assert rate.inspect("EUR").tiers[0].fresh_for is not None, "a ttl that is given holds"
    assert rate.inspect("JPY").refresh is None
    more = rate.keep_fresh("JPY")
    until(lambda: more.runs >= 2 and rate("JPY") >= 3)
    more.cancel()
    assert rate.keep_fresh("JPY") is not more


def test_tags_and_clearing_reach_what_a_schedule_stored(cache: Cache):
    @cache.cached(refresh_every=3600, tags="money")
    def rates() -> str:
        return "rates"

    refresh = rates.keep_fresh()
    until(lambda: refresh.runs == 1 and not refresh.running)
    assert rates.inspect().state == "fresh"
    rates.cache_clear()
    assert rates.inspect().state != "fresh"
    refresh.run_now()
    assert rates.inspect().state == "fresh"
    cache.invalidate_tags("money")
    assert rates.inspect().state != "fresh"


def test_what_a_call_loads_before_the_first_run_does_not_expire_either(cache: Cache):
    @cache.cached(refresh_every={"every": 3600, "now": False})
    def rates() -> str:
        return "rates"

    rates()
    assert rates.inspect().tiers[0].fresh_for is None


def test_a_cancelled_schedule_is_not_begun_again_by_a_call(cache: Cache):
    @cache.cached(refresh_every=3600)
    def rates() -> int:
        return 1

    rates()
    rates.keep_fresh().cancel()
    rates()
    assert all(refresh.cancelled for refresh in rates.keep_fresh.__self__.keeping._handles.values())  # type: ignore[attr-defined]


def test_after_close_the_next_call_begins_anew(cache: Cache):
    @cache.cached(refresh_every=3600)
    def rates() -> int:
        return 1

    rates()
    old = rates.keep_fresh()
    cache.close()
    assert old.cancelled
    assert not schedulers()
    rates()
    assert len(schedulers()) == 1
    assert not rates.keep_fresh().cancelled


def test_methods_keep_fresh_by_object(cache: Cache):
    class Shop:
        @cache.cached(key="price:{id}", refresh_every="* * * * *")
        def price(self, id: int) -> int:
            return id * 10

    shop = Shop()
    assert shop.price(1) == 10
    assert not schedulers(), "nobody has chosen anything"
    refresh = shop.price.keep_fresh(2)
    until(lambda: cache.get("price:2") == 20)
    assert refresh.key == "price:2"

    with pytest.raises(ConfigurationError, match="keep_fresh"):

        class Wrong:
            @cache.cached(ignore=("self",), refresh_every=5, refresh_for=[1])
            def price(self, id: int) -> int:
                return id


def test_on_an_event_loop_and_on_the_next_one(namespace: str):
    cache = Cache(namespace=namespace)
    loops: list[Any] = []

    @cache.cached(refresh_every=0.1, refresh_for=[1])
    async def rates(number: int) -> int:
        loops.append(asyncio.get_running_loop())
        return len(loops)

    with pytest.raises(ConfigurationError, match="akeep_fresh"):
        rates.keep_fresh(1)

    async def main() -> None:
        before = len(loops)
        await rates(1)
        await auntil(lambda: len(loops) >= before + 3)
        refresh = await rates.akeep_fresh(1)
        assert refresh.runs >= 1
        assert set(loops[before:]) == {asyncio.get_running_loop()}
        assert await rates.akeep_fresh(1) is refresh
        refresh.pause()
        await auntil(lambda: not refresh.running)
        await rates(1)  # from here on memory has what the last run stored, for ever

    asyncio.run(main())
    first = len(loops)
    asyncio.run(main())
    assert len(loops) > first, "the second loop has its own schedule"
    cache.close()


def test_a_forked_child_takes_it_up_with_its_first_call(tmp_path: Path, namespace: str):
    cache = Cache(f"sqlite:///{tmp_path / 'c.db'}", namespace=namespace)
    pids: list[int] = []

    @cache.cached(refresh_every=0.1)
    def rates() -> int:
        pids.append(os.getpid())
        return len(pids)

    rates()
    handle = rates.keep_fresh()
    until(lambda: handle.runs >= 2)
    child = os.fork()
    if child == 0:  # pragma: no cover
        code = 1
        try:
            assert not schedulers()
            before = handle.runs + handle.skipped
            rates()
            until(lambda: handle.runs + handle.skipped >= before + 3)
            assert rates.keep_fresh() is handle
            cache.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.close()


def test_a_crontab_with_its_time_zone(cache: Cache):
    @cache.cached(refresh_every={"cron": "0 6 * * *", "timezone": "Europe/Oslo", "now": False})
    def report() -> str:
        return "…"

    moment = report.keep_fresh().next_run
    assert moment is not None
    assert moment.hour in (4, 5)
    assert timedelta(0) < moment - datetime.now(UTC) <= timedelta(days=1, hours=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refresh_every": 0}, "every=0"),
        ({"refresh_every": "daily"}, "five fields"),
        ({"refresh_every": {"evry": 3}}, "every"),
        ({"refresh_every": {}}, "neither"),
        ({"refresh_for": [1]}, "needs refresh_every"),
        ({"refresh_every": 5, "refresh_for": [(1, 2)]}, "does not take"),
    ],
)
def test_wrong_schedules_are_named(cache: Cache, options: Any, message: str):
    with pytest.raises(ConfigurationError, match=message):

        @cache.cached(**options)
        def rate(base: str) -> str:
            return base


def test_without_a_schedule_there_is_nothing_to_keep(cache: Cache):
    @cache.cached
    def rate(base: str) -> str:
        return base

    with pytest.raises(ConfigurationError, match="refresh_every="):
        rate.keep_fresh("EUR")


# Warming functions


@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_a_function_is_warmed_for_chosen_arguments(cache: Cache, face: str):
    loads: list[Any] = []

    @cache.cached(key="page:{number}:{size}", tags="page:{number}")
    def page(number: int, size: int = 10) -> str:
        if number == 4:
            raise LookupError(number)
        loads.append((number, size))
        return f"page {number}"

    arguments: list[Any] = [1, (2,), (3, 20), {"number": 5, "size": 30}, 4, (1, 2, 3)]
    report = page.warm(arguments) if face == "threads" else asyncio.run(page.awarm(arguments))
    assert (report.loaded, report.skipped) == (4, 0)
    assert set(report.failed) == {"page:4:10", (1, 2, 3)}
    assert sorted(loads) == [(1, 10), (2, 10), (3, 20), (5, 30)]
    before = len(loads)
    assert page(3, 20) == "page 3"
    assert page.warm(arguments[:3]).skipped == 3
    assert len(loads) == before
    cache.invalidate_tags("page:2")
    assert page.warm(arguments[:3]).loaded == 1
    page.cache_clear()
    assert page.warm(arguments[:3]).loaded == 3


def test_an_async_function_is_warmed_by_awarm(cache: Cache):
    @cache.cached
    async def square(number: int) -> int:
        await asyncio.sleep(0)
        return number * number

    async def main() -> None:
        with pytest.raises(ConfigurationError, match="awarm"):
            square.warm([1])
        assert (await square.awarm(range(20), concurrency=3)).loaded == 20
        assert await square(7) == 49
        assert square.cache_info().misses == 0

    asyncio.run(main())


def test_a_method_is_warmed_on_its_object(cache: Cache):
    class Shop:
        @cache.cached(ignore=("self",))
        def price(self, id: int) -> int:
            return id * 10

    shop = Shop()
    assert shop.price.warm([1, 2, 3]).loaded == 3
    assert shop.price.inspect(2).state == "fresh"


def test_close_ends_the_warming_of_a_function(namespace: str):
    cache, go = Cache(namespace=namespace), threading.Event()
    begun: list[int] = []
    reports = []

    @cache.cached
    def slow(number: int) -> int:
        begun.append(number)
        assert go.wait(20)
        return number

    worker = threading.Thread(target=lambda: reports.append(slow.warm(range(20), concurrency=2)))
    worker.start()
    until(lambda: len(begun) == 2)
    (warming,) = cache._parts
    closer = threading.Thread(target=cache.close)
    closer.start()
    until(lambda: warming._stopping)  # type: ignore[attr-defined]
    go.set()
    closer.join(20)
    worker.join(20)
    assert reports[0].stopped
    assert reports[0].loaded == 2
