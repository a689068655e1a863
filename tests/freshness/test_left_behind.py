"""What a killed process, a stopped loop or a cancelled caller leaves behind keeps nobody waiting, and no key stale."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from cachewright import Cache
from cachewright.core import slot as slots
from cachewright.core.state import now_ms
from cachewright.errors import TierUnavailable
from tests.freshness.test_batches import Origin, in_virtual_time
from tests.freshness.virtual import VirtualLoop

Ask = Callable[[Cache, Origin], Any]


async def one(cache: Cache, origin: Origin) -> str:
    async def load() -> str:
        return (await origin(["a"]))["a"]

    return str(await cache.aget_or_set("a", load))


async def many(cache: Cache, origin: Origin) -> str:
    return str((await cache.aget_or_set_many(["a", "b"], origin))["a"])


async def plant_lease(cache: Cache, key: str, seconds: float) -> None:
    """As a process leaves it that is killed in the middle of a load."""
    rt, level = cache._aio, cache.engine.state.chain.authority
    slot = (await level.read(rt, (key,)))[0].get(key)
    taken = slots.begin_load(
        slot, now=now_ms(rt), lease_life=int(seconds * 1000), nonce=rt.new_id(), token=rt.new_id()
    )
    assert isinstance(taken, slots.Take)
    assert (await level.swap_one(rt, key, slot, taken.slot)).done


@pytest.mark.parametrize("ask", [one, many])
def test_a_stale_value_whose_refresher_was_killed_is_refreshed_once_its_lease_is_over(ask: Ask) -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin = Origin()
        await ask(cache, origin)
        await asyncio.sleep(2)
        await plant_lease(cache, "a", 5)
        origin.version = 2
        for _ in range(8):
            await asyncio.sleep(1)
            await ask(cache, origin)
        assert await ask(cache, origin) == "a2"

    in_virtual_time(work, ttl=1, stale_while_revalidate=3600)


@pytest.mark.parametrize("ask", [one, many])
def test_a_cold_key_whose_loader_was_killed_is_loaded_once_its_lease_is_over(ask: Ask) -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        await plant_lease(cache, "a", 5)
        began = loop.time()
        assert await ask(cache, Origin()) == "a1"
        assert loop.time() - began < 6

    in_virtual_time(work)


@pytest.mark.parametrize("ask", [one, many])
def test_who_is_cancelled_while_his_lease_is_being_placed_takes_it_back(ask: Ask) -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        level, origin = cache.engine.state.chain.authority, Origin()
        real, real_one = level.swap, level.swap_one
        patched: Any = level

        async def swap(*args: Any) -> Any:
            done = await real(*args)
            patched.swap = real
            await asyncio.sleep(3600)  # the answer never comes
            return done

        async def swap_one(*args: Any) -> Any:
            done = await real_one(*args)
            patched.swap_one = real_one
            await asyncio.sleep(3600)
            return done

        patched.swap, patched.swap_one = swap, swap_one
        caller = asyncio.create_task(ask(cache, origin))
        await asyncio.sleep(1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        began = loop.time()
        assert await ask(cache, origin) == "a1"
        assert loop.time() == began, "nobody waits for a lease that nobody holds"

    in_virtual_time(work)


@pytest.mark.parametrize("ask", [one, many])
@pytest.mark.parametrize("lost", ["placing", "commit", "give-back"])
def test_nobody_waits_for_a_lease_whose_reply_was_lost(lost: str, ask: Ask) -> None:
    """This process takes it over where it meets it; for the others it is given back once its tier answers again."""

    async def work(loop: VirtualLoop, cache: Cache) -> None:
        origin = Origin()
        if lost == "give-back":
            origin.error = LookupError("gone")
        lose_reply(cache, {"placing": 1}.get(lost, 2), before=lost != "placing", failing=2)
        with contextlib.suppress(LookupError):
            await ask(cache, origin)
        origin.error, began = None, loop.time()
        assert await ask(cache, origin) == "a1"
        assert loop.time() == began, "nobody waits for a lease that nobody holds"

        await cache.adelete_many(["a", "b"])
        lose_reply(cache, 1, failing=3)
        assert await ask(cache, origin) == "a1"
        rt, level = cache._aio, cache.engine.state.chain.authority
        left = (await level.read(rt, ("a",)))[0]["a"]
        assert left.lease is not None
        assert left.lease.token in cache.engine.state.orphans
        await asyncio.sleep(2)
        assert (await level.read(rt, ("a",)))[0].get("a") is None, "its life is 5 s: given back"
        loops_jobs = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert loops_jobs == []

    in_virtual_time(work)


@pytest.mark.parametrize("ask", [one, many])
def test_a_lease_outlives_a_tier_that_stands_still_for_half_of_it(ask: Ask) -> None:
    async def work(loop: VirtualLoop, cache: Cache) -> None:
        rt, level = cache._aio, cache.engine.state.chain.authority
        tier, origin = level.tier, Origin(3)
        real, patched, began = tier.swap, cast(Any, tier), loop.time()

        async def swap(rt: Any, swaps: Any) -> Any:
            if not 0.3 < loop.time() - began < 0.8:
                return await real(rt, swaps)
            await asyncio.sleep(0.5)
            raise TierUnavailable(tier.name, "it stands still")

        patched.swap = swap
        caller = asyncio.create_task(ask(cache, origin))
        for _ in range(25):
            await asyncio.sleep(0.1)
            slot = (await level.read(rt, ("a",)))[0]["a"]
            assert slot.lease is not None
            assert now_ms(rt) < slot.lease.deadline, f"over {loop.time() - began:.1f} s after it was placed"
        assert await caller == "a1"

    in_virtual_time(work, lease=1)


def lose_reply(cache: Cache, number: int, *, before: bool = False, failing: int = 1) -> None:
    """From this swap on, ``failing`` are not answered: the first of them takes effect unless it fails ``before``."""
    tier, count = cache.engine.state.chain.authority.tier, 0
    real, patched = tier.swap, cast(Any, tier)

    async def swap(rt: Any, swaps: Any) -> Any:
        nonlocal count
        count += 1
        if count < number:
            return await real(rt, swaps)
        if count == number and not before:
            await real(rt, swaps)
        if count + 1 >= number + failing:
            patched.swap = real
        raise TierUnavailable(tier.name, "the reply was lost")

    patched.swap = swap


@contextlib.contextmanager
def a_loop_that_stands_still() -> Iterator[asyncio.AbstractEventLoop]:
    """Stopped, not closed, with what it was at unfinished: as scripts and notebooks leave it."""
    loop = asyncio.new_event_loop()
    yield loop
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.parametrize("batch", [False, True], ids=["one key", "many keys"])
def test_a_refresh_that_a_stopped_loop_was_at_is_done_by_others(batch: bool) -> None:
    with (
        Cache(lease=0.2, jitter=0, stale_while_revalidate=3600, ttl=0.05) as cache,
        a_loop_that_stands_still() as loop,
    ):
        cache.set_many({"a": "old", "b": "old"})

        async def hang(keys: Any = ()) -> Any:
            await asyncio.sleep(3600)

        async def ask() -> Any:
            await asyncio.sleep(0.1)
            found = await (
                cache.aget_or_set_many(["a", "b"], hang) if batch else cache.aget_or_set("a", hang)
            )
            await asyncio.sleep(0.01)  # the refresh has begun
            return found

        assert loop.run_until_complete(ask()) in ("old", {"a": "old", "b": "old"})

        def read() -> Any:
            if batch:
                return cache.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, "new"), ttl=60)["a"]
            return cache.get_or_set("a", lambda: "new", ttl=60)

        pause = threading.Event()
        for _ in range(400):
            if read() == "new":
                return
            pause.wait(0.05)
        raise AssertionError("nobody refreshed it")


def test_a_load_that_a_stopped_loop_has_not_begun_is_done_by_who_waits_for_it() -> None:
    with Cache() as cache, a_loop_that_stands_still() as loop:

        async def load() -> str:
            return "awaited"

        async def ask() -> None:
            loop.stop()
            await cache.aget_or_set("k", load, load_timeout=60)

        task = loop.create_task(ask())
        loop.run_forever()
        assert not task.done()
        assert cache.get_or_set("k", lambda: "blocking") == "blocking"
