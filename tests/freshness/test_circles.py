"""Who waits for whom: no circle hangs, none is seen where there is none, and nobody waits for what is not his."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cachewright import Cache, LoadTimeout, RecursiveLoadError, WouldDeadlockError
from tests.freshness.test_batches import in_virtual_time
from tests.freshness.test_left_behind import plant_lease
from tests.freshness.virtual import VirtualLoop


async def give_back(cache: Cache, key: str) -> None:
    """The process of `plant_lease` has loaded it."""
    await cache.aset(key, f"{key} from elsewhere")


def test_a_batch_keeps_no_flight_of_a_key_that_is_another_process_s() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        await plant_lease(cache, "k", 60)

        async def never() -> Any:
            raise AssertionError

        async def load(keys: list[str]) -> dict[str, Any]:
            assert keys == ["x"]
            return {"x": await cache.aget_or_set("k", never)}  # of its own batch, which does not load it

        batch = asyncio.create_task(cache.aget_or_set_many(["k", "x"], load))
        await asyncio.sleep(1)
        await give_back(cache, "k")
        async with asyncio.timeout(10):
            assert await batch == {"k": "k from elsewhere", "x": "k from elsewhere"}

    in_virtual_time(work)


def test_a_reader_does_not_wait_for_a_batch_that_loads_other_keys() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        await plant_lease(cache, "k", 60)

        async def slow(keys: list[str]) -> dict[str, str]:
            await asyncio.sleep(50)
            return dict.fromkeys(keys, "slow")

        async def never() -> Any:
            raise AssertionError

        batch = asyncio.create_task(cache.aget_or_set_many(["k", "x"], slow))
        await asyncio.sleep(1)
        reader = asyncio.create_task(cache.aget_or_set("k", never))
        await asyncio.sleep(1)
        await give_back(cache, "k")
        async with asyncio.timeout(5):
            assert await reader == "k from elsewhere"
        assert (await batch)["x"] == "slow"

    in_virtual_time(work)


def test_a_wait_that_is_given_up_takes_no_other_wait_along() -> None:
    """a's loader waits for x twice, and gives up once: x's, which asks for a, still closes a circle."""

    async def work(loop: VirtualLoop, cache: Cache) -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def load_x() -> Any:
            begun.set()
            await go.wait()
            return await cache.aget_or_set("a", load_a)

        async def load_many(keys: list[str]) -> dict[str, int]:
            return dict.fromkeys(keys, 1)

        async def load_a() -> Any:
            one = asyncio.create_task(cache.aget_or_set("x", load_x))
            await asyncio.sleep(0.1)
            with pytest.raises(LoadTimeout):
                await cache.aget_or_set_many(["x"], load_many, load_timeout=0.1)
            go.set()
            return await one

        x = asyncio.create_task(cache.aget_or_set("x", load_x))
        await begun.wait()
        a = asyncio.create_task(cache.aget_or_set("a", load_a))
        async with asyncio.timeout(10):
            ended = await asyncio.gather(x, a, return_exceptions=True)
        assert any(isinstance(error, RecursiveLoadError) for error in ended)

    in_virtual_time(work)


def test_who_waits_for_a_lease_no_more_closes_no_circle() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        refreshes, goes_on, reader_loads, c_goes_on = (asyncio.Event() for _ in range(4))
        runs = 0

        @cache.cached(key="k")
        async def k() -> str:
            nonlocal runs
            runs += 1
            if runs == 1:  # the refresh
                refreshes.set()
                await goes_on.wait()
                return await c()
            reader_loads.set()
            await asyncio.sleep(5)
            return "k"

        @cache.cached(key="c")
        async def c() -> str:
            await c_goes_on.wait()
            return "c" + await k()

        refresh = asyncio.create_task(k.arefresh())
        await refreshes.wait()
        of_c = asyncio.create_task(c())
        reader = asyncio.create_task(k())  # waits for the refresh's lease
        await asyncio.sleep(0.1)
        await k.ainvalidate()  # and then leads a load of its own
        await reader_loads.wait()
        goes_on.set()
        await asyncio.sleep(0.1)  # the refresh waits for c
        c_goes_on.set()  # which asks for k, whose load waits for nobody
        async with asyncio.timeout(30):
            assert {str(found) for found in await asyncio.gather(refresh, reader, of_c)} == {"ck", "k"}

    in_virtual_time(work)


def test_a_refresh_that_begins_in_a_loader_is_no_part_of_that_load() -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        async def load_a() -> str:
            found = await cache.aget_or_set("b", load_b, ttl=1, stale_while_revalidate=60)
            await asyncio.sleep(1)
            return f"a of {found}"

        async def load_b() -> str:
            return f"b of {await cache.aget_or_set('a', load_a)}"

        await cache.aset("b", "old", ttl=1, stale_while_revalidate=60)
        await asyncio.sleep(2)
        assert await cache.aget_or_set("a", load_a) == "a of old"  # b's refresh waits for a, and a not for it
        await asyncio.sleep(2)
        assert "RefreshFailed" not in cache.stats()["events"]

    in_virtual_time(work)


def test_a_blocking_call_on_the_loop_of_a_load_that_has_yet_to_begin_is_told() -> None:
    async def work() -> None:
        async def load() -> int:
            return 1

        with Cache() as cache:
            first = asyncio.create_task(cache.aget_or_set("k", load, load_timeout=30))
            await asyncio.sleep(0)  # it has started its load, whose first step is to come
            with pytest.raises(WouldDeadlockError):
                cache.get_or_set("k", lambda: 2)
            assert await first == 1

    asyncio.run(work())
