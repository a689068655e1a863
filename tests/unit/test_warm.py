"""``warm`` of caches and repositories, on both faces."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cachewright import Cache, Repository, Retry, WarmReport, WriteBehind
from cachewright.errors import ConfigurationError, InvalidKeyError, TierUnavailable
from cachewright.runtime.process import free_port
from cachewright.testing.servers import RedisServer

KEYS = [f"k{n}" for n in range(25)]


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at = time.time()

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


class Origin:
    """Loaders, of one and of many, that count. Keys in ``bad`` fail, those in ``none`` do not exist."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.calls: list[list[str]] = []
        self.bad: set[str] = set()
        self.none: set[str] = set()
        self.version = 1
        self.lock = threading.Lock()

    def load(self, key: str) -> str:
        with self.lock:
            self.loads.append(key)
        if key in self.bad:
            raise OSError(f"no {key}")
        return f"{key} v{self.version}"

    def load_many(self, keys: list[str]) -> dict[str, Any]:
        with self.lock:
            self.calls.append(list(keys))
            self.loads += keys
        found: dict[str, Any] = {key: f"{key} v{self.version}" for key in keys if key not in self.none}
        return found | {key: OSError(f"no {key}") for key in self.bad if key in found}


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture(params=["threads", "asyncio"])
def face(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "redis", "levels"])
def cache(request: pytest.FixtureRequest, namespace: str) -> Iterator[Cache]:
    urls = {
        "memory": list,
        "redis": lambda: ["memory://", request.getfixturevalue("redis_server").url],
        "levels": lambda: [request.getfixturevalue(f"{kind}_server").url for kind in ("redis", "memcached")],
    }[request.param]()
    with Cache(*urls, namespace=namespace) as made:
        yield made


def warm(on: Any, face: str, *args: Any, **options: Any) -> WarmReport[Any]:
    """By one face or the other; a plain loader serves both."""
    if face == "threads":
        report: WarmReport[Any] = on.warm(*args, **options)
        return report

    async def main() -> WarmReport[Any]:
        report: WarmReport[Any] = await on.awarm(*args, **options)
        return report

    return asyncio.run(main())


def counts(report: WarmReport[Any]) -> tuple[int, int, int, int, int]:
    return report.loaded, report.skipped, report.absent, report.unstored, len(report.failed)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.002)


# What is loaded


def test_what_is_not_fresh_is_loaded_and_a_second_call_loads_nothing(cache: Cache, face: str, origin: Origin):
    cache.set("k3", "mine")
    report = warm(cache, face, KEYS, origin.load)
    assert counts(report) == (24, 1, 0, 0, 0)
    assert report.ok
    assert sorted(origin.loads) == sorted(set(KEYS) - {"k3"})
    assert cache.get("k3") == "mine"
    assert all(cache.get(key) == f"{key} v1" for key in KEYS if key != "k3")
    again = warm(cache, face, KEYS, origin.load)
    assert counts(again) == (0, 25, 0, 0, 0)
    assert len(origin.loads) == 24


def test_one_keys_error_stops_nobody_and_a_second_call_goes_on(cache: Cache, face: str, origin: Origin):
    origin.bad = {"k1", "k20"}
    report = warm(cache, face, KEYS, origin.load)
    assert counts(report) == (23, 0, 0, 0, 2)
    assert not report.ok
    assert {key: str(error) for key, error in report.failed.items()} == {"k1": "no k1", "k20": "no k20"}
    origin.bad, origin.loads = set(), []
    assert counts(warm(cache, face, KEYS, origin.load)) == (2, 23, 0, 0, 0)
    assert sorted(origin.loads) == ["k1", "k20"]


def test_a_loader_of_many_is_given_batches(cache: Cache, face: str, origin: Origin):
    origin.none, origin.bad = {"k0", "k24"}, {"k1"}
    cache.set("k2", "mine")
    report = warm(cache, face, KEYS, load_many=origin.load_many, batch_size=10, concurrency=2)
    assert counts(report) == (21, 1, 2, 0, 1)
    assert sorted(map(len, origin.calls)) == [5, 9, 10]
    assert cache.get("k3") == "k3 v1"
    assert cache.get("k0") is None
    origin.calls = []
    assert counts(warm(cache, face, KEYS, load_many=origin.load_many, batch_size=100)) == (0, 22, 2, 0, 1)
    assert origin.calls == [["k0", "k1", "k24"]]


def test_a_batch_that_fails_as_a_whole_fails_its_keys_alone(cache: Cache, face: str, origin: Origin):
    def load_many(keys: list[str]) -> dict[str, Any]:
        if "k11" in keys:
            raise OSError("origin down")
        return origin.load_many(keys)

    report = warm(cache, face, KEYS, load_many=load_many, batch_size=10)
    assert counts(report) == (15, 0, 0, 0, 10)
    assert set(report.failed) == set(KEYS[10:20])


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("window", ["stale_while_revalidate", "stale_if_error"])
def test_what_is_stale_is_loaded_and_not_served(
    namespace: str, face: str, origin: Origin, many: bool, window: str, redis_server: RedisServer
):
    hand = Hand()
    options: dict[str, Any] = {"ttl": 10, "jitter": 0, window: 1000, "soft_timeout": 0.01}
    loader = {"load_many": origin.load_many} if many else {"loader": origin.load}
    with Cache(redis_server.url, namespace=namespace, clock=hand, **options) as cache:
        warm(cache, face, KEYS, **loader)
        hand.at += 20
        origin.version, origin.bad = 2, {"k7"}
        report = warm(cache, face, KEYS, **loader)
        assert counts(report) == (24, 0, 0, 0, 1), "a stale value is no success"
        assert cache.get("k5") == "k5 v2"
        assert cache.inspect("k7").state == "stale"


def test_a_soft_timeout_does_not_cut_a_load_short(namespace: str, face: str):
    hand, waited = Hand(), threading.Event()

    def load(key: str) -> str:
        hand.at += 1
        waited.wait(0.1)  # whoever would take the stale value takes it now
        return "new"

    with Cache(
        namespace=namespace, clock=hand, ttl=10, jitter=0, stale_if_error=100, soft_timeout=0.01
    ) as cache:
        cache.set("a", "old")
        hand.at += 20
        assert counts(warm(cache, face, ["a"], load)) == (1, 0, 0, 0, 0)
        assert cache.get("a") == "new"


def test_a_load_that_succeeds_at_the_second_try_is_a_success(namespace: str, face: str, origin: Origin):
    def load(key: str) -> str:
        origin.bad = {"a"} if not origin.loads else set()
        return origin.load(key)

    with Cache(namespace=namespace, retries=Retry(1, wait=0.001)) as cache:
        assert counts(warm(cache, face, ["a"], load)) == (1, 0, 0, 0, 0)
    assert origin.loads == ["a", "a"]


def test_a_stale_key_that_the_origin_no_longer_has_is_absent(namespace: str, origin: Origin):
    hand = Hand()
    with Cache(namespace=namespace, clock=hand, ttl=10, stale_if_error=100) as cache:
        cache.warm(["a", "b"], load_many=origin.load_many)
        hand.at += 20
        origin.none = {"a"}
        assert counts(cache.warm(["a", "b"], load_many=origin.load_many)) == (1, 0, 1, 0, 0)


def test_what_a_tag_has_made_invalid_is_loaded(cache: Cache, face: str, origin: Origin):
    warm(cache, face, KEYS, origin.load, tags="letters")
    cache.invalidate_tags("letters")
    assert warm(cache, face, KEYS, origin.load, tags="letters").loaded == 25


def test_keys_that_stand_twice_are_loaded_once(cache: Cache, face: str, origin: Origin):
    assert counts(warm(cache, face, ["a", "b", "a", "a"], origin.load)) == (2, 2, 0, 0, 0)
    assert sorted(origin.loads) == ["a", "b"]


def test_what_is_not_stored_is_told(cache: Cache, face: str, origin: Origin):
    def load(key: str) -> str:
        if key == "k4":
            cache.delete(key)
        return origin.load(key)

    report = warm(cache, face, KEYS[:10], load, store_if=lambda value: value != "k5 v1")
    assert counts(report) == (8, 0, 0, 2, 0)
    assert cache.get_many(["k4", "k5"]) == {}


def test_a_fleet_that_warms_together_shares_the_work(
    redis_server: RedisServer, namespace: str, origin: Origin
):
    gate = threading.Barrier(3)
    reports: list[WarmReport[str]] = []

    def process() -> None:
        with Cache(redis_server.url, namespace=namespace) as cache:
            gate.wait(20)
            reports.append(cache.warm(KEYS, origin.load, concurrency=4))

    threads = [threading.Thread(target=process) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(origin.loads) == sorted(KEYS)
    assert sum(report.loaded for report in reports) == 25
    assert sum(report.skipped for report in reports) == 50


# How


def test_so_many_run_at_once_and_no_more(namespace: str, face: str):
    together = threading.Barrier(3)
    under_way, most, lock = 0, 0, threading.Lock()

    def load(key: str) -> str:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait(20)
        with lock:
            under_way -= 1
        return key

    with Cache(namespace=namespace) as cache:
        assert warm(cache, face, KEYS[:24], load, concurrency=3).loaded == 24
    assert most == 3


def test_async_loaders(namespace: str, origin: Origin):
    most, under_way = 0, 0

    async def load(key: str) -> str:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return origin.load(key)

    async def load_many(keys: list[str]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return origin.load_many(keys)

    async def main() -> None:
        async with Cache(namespace=namespace) as cache:
            with pytest.raises(ConfigurationError, match="awarm"):
                cache.warm(KEYS, load)
            assert (await cache.awarm(KEYS, load, concurrency=5)).loaded == 25
            assert 1 < most <= 5
            assert (await cache.awarm(["x", "y"], load_many=load_many)).loaded == 2

    asyncio.run(main())


def test_progress_is_told_by_the_one_who_warms(namespace: str, face: str, origin: Origin):
    told: list[tuple[int, int | None, int]] = []
    threads = set()

    def progress(*figures: Any) -> None:
        threads.add(threading.get_ident())
        told.append(figures)

    origin.bad = {"k3"}
    with Cache(namespace=namespace) as cache:
        warm(cache, face, KEYS, origin.load, progress=progress)
        assert told[-1:] == [(25, 25, 1)]
        assert told == sorted(told)
        warm(cache, face, iter(KEYS), origin.load, progress=progress)
        assert told[-1:] == [(25, None, 1)]
    assert threads == {threading.get_ident()}


def test_progress_is_told_while_a_load_takes_long(namespace: str, face: str):
    go = threading.Event()
    told: list[int] = []

    def progress(done: int, total: int | None, failed: int) -> None:
        told.append(done)
        if len(told) >= 4:
            go.set()

    def load(key: str) -> bool:
        return go.wait(20)

    with Cache(namespace=namespace) as cache:
        assert warm(cache, face, ["a"], load, progress=progress).loaded == 1


def test_a_generator_is_read_as_it_is_needed(namespace: str, origin: Origin):
    def keys() -> Iterator[str]:
        for n in range(10_000):
            assert n <= len(origin.loads) + 110, "read far ahead of what is loaded"
            if n == 500:
                return
            yield f"k{n}"

    with Cache(namespace=namespace) as cache:
        assert cache.warm(keys(), origin.load).loaded == 500


# The end


def test_progress_that_returns_false_stops_it(namespace: str, face: str, origin: Origin):
    with Cache(namespace=namespace) as cache:
        report = warm(
            cache,
            face,
            KEYS,
            origin.load,
            concurrency=1,
            progress=lambda done, *_: None if done < 5 else False,
        )
        assert report.stopped
        assert not report.ok
        assert 5 <= report.loaded == len(origin.loads) < 25
        assert warm(cache, face, KEYS, origin.load).skipped == report.loaded


@pytest.mark.parametrize("kind", ["cache", "repository"])
def test_close_ends_it_and_waits_for_what_is_under_way(namespace: str, origin: Origin, kind: str):
    cache, begun, go = Cache(namespace=namespace), threading.Semaphore(0), threading.Event()
    reports: list[WarmReport[Any]] = []

    def load(key: str) -> str:
        begun.release()
        assert go.wait(20)
        return origin.load(key)

    users = cache.repository("user", load)

    def run() -> None:
        if kind == "cache":
            reports.append(cache.warm(KEYS, load, concurrency=2))
        else:
            reports.append(users.warm(KEYS, concurrency=2))

    worker = threading.Thread(target=run)
    worker.start()
    for _ in range(2):  # both of those that may run at once
        assert begun.acquire(timeout=20)
    closer = threading.Thread(target=cache.close)
    closer.start()
    until(lambda: [part for part in {*cache._parts, *users._warmings} if getattr(part, "_stopping", False)])
    go.set()
    closer.join(20)
    worker.join(20)
    assert reports[0].stopped
    assert reports[0].loaded == len(origin.loads) == 2, (
        "what was under way was stored before the tiers were closed"
    )


@pytest.mark.parametrize("kind", ["cache", "repository"])
def test_a_loader_that_closes_the_cache_does_not_wait_for_itself(namespace: str, kind: str):
    cache, reports = Cache(namespace=namespace), list[WarmReport[Any]]()

    def load(key: str) -> str:
        cache.close(timeout=600)
        return key

    users = cache.repository("user", load)
    warm = partial(cache.warm, KEYS, load) if kind == "cache" else partial(users.warm, KEYS)
    worker = threading.Thread(target=lambda: reports.append(warm(concurrency=1)), daemon=True)
    worker.start()
    worker.join(20)
    assert reports
    assert reports[0].stopped


def test_aclose_ends_it(namespace: str):
    async def main() -> None:
        begun, loads = asyncio.Event(), 0

        async def load(key: str) -> str:
            nonlocal loads
            loads += 1
            if loads == 2:  # both of those that may run at once
                begun.set()
            await asyncio.sleep(0.05)
            return key

        cache = Cache(namespace=namespace)
        task = asyncio.create_task(cache.awarm(KEYS, load, concurrency=2))
        await begun.wait()
        await cache.aclose()
        report = await task
        assert report.stopped
        assert report.loaded == loads == 2

    asyncio.run(main())


def test_an_interrupt_ends_it_and_leaves_no_lease(redis_server: RedisServer, namespace: str, origin: Origin):
    def progress(done: int, total: int | None, failed: int) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with Cache(redis_server.url, namespace=namespace) as cache:
        with pytest.raises(KeyboardInterrupt):
            cache.warm(KEYS, origin.load, concurrency=2, progress=progress)
        loads = len(origin.loads)
        assert 3 <= loads < 25
        assert not any(view.leased for key in KEYS for view in cache.inspect(key).tiers)
        assert cache.warm(KEYS, origin.load).skipped == loads == 25 - (len(origin.loads) - loads)


def test_a_cancelled_task_ends_it_and_leaves_no_lease(redis_server: RedisServer, namespace: str):
    async def main() -> None:
        begun, cancelled = asyncio.Event(), 0

        async def load(key: str) -> str:
            nonlocal cancelled
            begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1
                raise
            return key

        async with Cache(redis_server.url, namespace=namespace) as cache:
            task = asyncio.create_task(cache.awarm(KEYS, load, concurrency=3))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert cancelled > 0
            for key in KEYS:
                assert not (await cache.ainspect(key)).tiers[0].leased

    asyncio.run(main())


def test_a_system_exit_of_a_loader_reaches_the_caller(namespace: str, caplog: pytest.LogCaptureFixture):
    def load(key: str) -> str:
        raise SystemExit(3)

    with Cache(namespace=namespace) as cache, pytest.raises(SystemExit, match="3"):
        cache.warm(KEYS, load)


def test_an_authority_that_is_away_fails_the_keys_and_loads_nothing(
    namespace: str, face: str, origin: Origin
):
    with Cache(f"redis://127.0.0.1:{free_port()}/0", namespace=namespace) as cache:
        report = warm(cache, face, KEYS, origin.load)
        assert len(report.failed) == 25
        assert all(isinstance(error, TierUnavailable) for error in report.failed.values())
    assert origin.loads == []


# What cannot work


class Several:
    """What only ``async for`` goes through."""

    async def __aiter__(self) -> AsyncIterator[str]:
        yield "a"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((["a"],), {}, "neither"),
        ((["a"], str), {"load_many": dict}, "both"),
        ((["a"], "loader"), {}, "function of a key"),
        (("abc", str), {}, "warm\\('abc'\\): expected the keys in a list$"),
        ((b"abc", str), {}, "expected the keys in a list"),
        ((5, str), {}, "warm\\(5\\): expected the keys in a list"),
        ((None, str), {}, "warm\\(None\\): expected the keys"),
        ((Several(), str), {}, "async for one in"),
        ((["a"], str), {"concurrency": 0}, "concurrency=0: expected a whole number from 1 to 64"),
        ((["a"], str), {"concurrency": True}, "concurrency=True"),
        ((["a"], str), {"batch_size": 0}, "batch_size=0"),
        ((["a"], str), {"tttl": 3}, "ttl"),
    ],
)
def test_wrong_arguments_are_named(namespace: str, arguments: Any, options: Any, message: str):
    with Cache(namespace=namespace) as cache, pytest.raises(ConfigurationError, match=message):
        cache.warm(*arguments, **options)


def test_wrong_ids_and_calls_are_named(cache: Cache):
    users = cache.repository("user", str)

    @cache.cached
    def user(name: str) -> str:
        return name

    with pytest.raises(ConfigurationError, match=r"warm\(5\): expected the ids in a list"):
        users.warm(5)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigurationError, match=r"warm\('5'\): expected the arguments of each call in a list"
    ):
        user.warm("5")


def test_a_wrong_key_fails_alone(namespace: str, origin: Origin):
    with Cache(namespace=namespace) as cache:
        report = cache.warm(["a", "", 3, [4]], origin.load)  # type: ignore[list-item]
    assert report.loaded == 1
    assert {key: type(error) for key, error in report.failed.items()} == {
        "": InvalidKeyError,
        3: InvalidKeyError,
        "[4]": InvalidKeyError,
    }


def test_a_loader_of_many_that_returns_no_mapping_is_named(namespace: str):
    with Cache(namespace=namespace) as cache:
        report = cache.warm(["a", "b"], load_many=lambda keys: keys)  # type: ignore[arg-type,return-value]
    assert "expected a mapping" in str(report.failed["a"])
    assert len(report.failed) == 2


# Repositories


def test_a_repository_is_warmed_by_id(cache: Cache, face: str):
    loads: list[int] = []

    def load(id: int) -> str:
        loads.append(id)
        if id == 7:
            raise LookupError(id)
        return f"user {id}"

    users = cache.repository("user", load)
    report = warm(users, face, range(10))
    assert counts(report) == (9, 0, 0, 0, 1)
    assert list(report.failed) == [7]
    assert cache.get("user:3") == "user 3"
    assert warm(users, face, range(7)).skipped == 7
    users.clear()
    assert warm(users, face, range(7)).loaded == 7, "its entries carry the repository's tag"


def test_a_repository_of_many_is_warmed_in_batches(cache: Cache, face: str):
    calls: list[list[int]] = []

    def load_many(ids: list[int]) -> dict[int, str]:
        calls.append(sorted(ids))
        return {id: f"user {id}" for id in ids if id != 3}

    users = cache.repository("user", load_many=load_many)
    report = warm(users, face, range(10), batch_size=5)
    assert counts(report) == (9, 0, 1, 0, 0)
    assert sorted(calls) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert users.get(4) == "user 4"


def test_what_waits_in_a_buffer_is_what_is_warmed(namespace: str, tmp_path: Path):
    buffer = WriteBehind(buffer=f"sqlite:///{tmp_path / 'b.db'}", flusher="none")
    with Cache(namespace=namespace) as cache:
        users: Repository[int, str] = cache.repository(
            "user", lambda one: f"old {one}", lambda one, value: None, writes=buffer
        )
        users.put(1, "new 1")
        users.invalidate(1)
        assert users.warm([1, 2]).loaded == 2
        assert cache.get("user:1") == "new 1"
        assert cache.get("user:2") == "old 2"
        users.flush()


def test_an_async_repository_wants_the_other_face(namespace: str):
    async def load(id: int) -> str:
        return f"user {id}"

    with Cache(namespace=namespace) as cache:
        users = cache.repository("user", load)
        with pytest.raises(ConfigurationError, match="awarm"):
            users.warm([1])
        assert asyncio.run(users.awarm([1, 2])).loaded == 2
