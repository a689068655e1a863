"""What a cache does not do before it is used, who may not wait for whom, and loaders whose loop or thread has gone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from cachewright import Cache, ConfigurationError, RecursiveLoadError, Retry, WouldDeadlockError

ONE = pytest.mark.parametrize("rig", ["memory", "redis", "memory > redis"], indirect=True)


def test_nothing_happens_before_first_use(rig: Any, threads_of_ours: Callable[[], list[str]]) -> None:
    files = {path for url in rig.urls if url.startswith("sqlite") for path in [url.partition(":///")[2]]}
    before = set(threading.enumerate())
    cache = rig.make()

    @cache.cached(ttl=5, key="user:{user_id}", tags=["users"])
    def user(user_id: int) -> int:
        return user_id

    assert user.key_for(1) == "user:1"
    assert cache.stats()["hits"] == 0
    assert repr(cache)
    assert rig.open() == []
    assert set(threading.enumerate()) <= before
    assert not any(os.path.exists(path) for path in files)
    cache.close()  # never used: nothing to close, nothing opened for it
    assert rig.open() == []
    assert user(1) == 1
    if rig.chain not in ("memory", "sqlite"):
        assert rig.open()
    # The blocking face needs no thread of its own for a load that is over at once.
    assert [name for name in threads_of_ours() if "heartbeat" in name] == []
    cache.close()


@pytest.mark.parametrize("url", ["embedded://", "embedded+cluster://"])
def test_an_embedded_server_is_not_started_before_first_use(url: str, namespace: str) -> None:
    before = psutil.Process().children(recursive=True)
    with Cache(url, namespace=namespace) as cache:
        assert cache.stats()["hits"] == 0
    assert set(psutil.Process().children(recursive=True)) <= set(before)


@ONE
def test_a_blocking_call_that_would_wait_for_its_own_loop_is_refused(cache: Cache) -> None:
    async def main() -> None:
        loading, go_on = asyncio.Event(), asyncio.Event()

        async def load() -> str:
            loading.set()
            await go_on.wait()
            return "loaded"

        async with asyncio.TaskGroup() as group:
            led = group.create_task(cache.aget_or_set("k", load))
            await loading.wait()
            started = time.monotonic()
            with pytest.raises(WouldDeadlockError, match="await"):
                cache.get_or_set("k", lambda: "blocking")
            with pytest.raises(WouldDeadlockError, match="await"):
                cache.get_or_set_many(["k"], lambda keys: dict.fromkeys(keys, "blocking"))
            assert time.monotonic() - started < 5
            # Another thread may well wait for it, and so may whoever does not need it.
            waiting = group.create_task(asyncio.to_thread(cache.get_or_set, "k", lambda: "thread"))
            assert cache.get_or_set("other", lambda: 1) == 1
            assert cache.get("k") is None
            go_on.set()
            assert await led == await waiting == "loaded"
        assert cache.get_or_set("k", lambda: "again") == "loaded"

    asyncio.run(asyncio.wait_for(main(), 30))


@ONE
@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_a_loader_that_asks_for_its_own_key_is_refused(cache: Cache, face: str) -> None:
    def load() -> Any:
        return cache.get_or_set("outer", lambda: cache.get_or_set("inner", load))

    async def aload() -> Any:
        async def inner() -> Any:
            return await cache.aget_or_set("inner", aload)

        return await cache.aget_or_set("outer", inner)

    with pytest.raises(RecursiveLoadError, match="'inner'"):
        if face == "threads":
            cache.get_or_set("inner", load)
        else:
            asyncio.run(asyncio.wait_for(cache.aget_or_set("inner", aload), 30))
    assert cache.get_or_set("inner", lambda: "free again") == "free again"


@ONE
def test_a_cancelled_leader_hands_on(cache: Cache) -> None:
    calls: list[int] = []

    async def main() -> None:
        loading = asyncio.Event()

        async def load() -> int:
            calls.append(len(calls))
            loading.set()
            if len(calls) == 1:
                await asyncio.sleep(3600)
            return len(calls)

        leader = asyncio.create_task(cache.aget_or_set("k", load))
        await loading.wait()
        waiters = [asyncio.create_task(cache.aget_or_set("k", load)) for _ in range(5)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        leader.cancel()
        results = await asyncio.gather(leader, *waiters, return_exceptions=True)
        assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
        assert results[2:] == [2] * 4

    asyncio.run(asyncio.wait_for(main(), 30))
    assert len(calls) == 2


@ONE
@pytest.mark.parametrize("end", ["closed", "stopped"])
def test_a_leader_whose_loop_has_gone_is_replaced(cache: Cache, end: str) -> None:
    """A loop may be stopped for good with its tasks unfinished; who waits in a thread must not wait for ever."""
    loop = asyncio.new_event_loop()
    loading = threading.Event()

    async def load() -> str:
        loading.set()
        await asyncio.sleep(3600)
        return "never"

    task: list[asyncio.Task[str]] = []

    def lead() -> None:
        task.append(loop.create_task(cache.aget_or_set("k", load, lease=0.5)))
        loop.run_forever()

    leader = threading.Thread(target=lead)
    leader.start()
    assert loading.wait(30)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(cache.get_or_set, "k", lambda: "replaced", lease=0.5) for _ in range(3)]
        loop.call_soon_threadsafe(loop.stop)
        leader.join(30)
        try:
            if end == "closed":
                task[0].cancel()
                loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
                loop.close()
            assert [one.result(20) for one in waiting] == ["replaced"] * 3
            assert cache.get_or_set("k", lambda: "again") == "replaced"
        finally:
            if not loop.is_closed():
                for one in asyncio.all_tasks(loop):
                    one.cancel()
                loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
                loop.close()


@ONE
@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_a_failing_loader_is_tried_again(cache: Cache, face: str) -> None:
    calls: list[float] = []

    def load() -> str:
        calls.append(time.monotonic())
        if len(calls) < 3:
            raise ConnectionError(f"try {len(calls)}")
        return "third time"

    async def aload() -> str:
        return load()

    def ask(**options: Any) -> Any:
        calls.clear()
        cache.delete("k")
        if face == "threads":
            return cache.get_or_set("k", load, **options)
        return asyncio.run(cache.aget_or_set("k", aload, **options))

    assert ask(retries=Retry(2, wait=0.01, max_wait=0.02)) == "third time"
    assert len(calls) == 3
    assert ask(retries=5) == "third time"
    with pytest.raises(ConnectionError, match="try 2"):
        ask(retries=Retry(1, wait=0.01))
    assert len(calls) == 2
    with pytest.raises(ConnectionError, match="try 1"):
        ask(retries=Retry(5, wait=0.01, on=(TimeoutError,)))
    with pytest.raises(ConnectionError, match="try 1"):
        ask()
    with pytest.raises(ConfigurationError, match="retries"):
        ask(retries=-1)


def test_a_process_with_a_stuck_loader_ends(tmp_path: Path) -> None:
    """No thread of ours keeps the interpreter from ending, and a cache that nobody closed says nothing."""
    code = """
import asyncio, sys, threading, time
from cachewright import Cache
cache = Cache("memory://")
started = threading.Event()
def stuck():
    started.set()
    time.sleep(3600)
async def main():
    task = asyncio.create_task(cache.aget_or_set("k", stuck))
    while not started.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
asyncio.run(main())
try:
    cache.get_or_set("soft", lambda: time.sleep(3600), load_timeout=0.1)
except TimeoutError:
    print("ended")
"""
    source = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(source)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)
