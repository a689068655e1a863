"""A shared tier that is killed or hangs under traffic: callers get answers in time, what was deleted stays deleted."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from cachewright import Cache, TierTimeout, TierUnavailable
from cachewright.events import BreakerChanged, Event, TierFailed
from cachewright.runtime.process import wait_until

DEADLINE = 0.5
# A change may meet the outage twice (a `set` that cannot read a generation drops instead); a third deadline on top would
# be wrong, and a busy machine is given room.
LATEST = 2 * DEADLINE + 0.9
KEYS = [f"k{n}" for n in range(8)]
FACES = ["threads", "asyncio"]


@dataclass(frozen=True)
class Call:
    """One answered call."""

    key: str
    value: Any
    started: float
    seconds: float


class Traffic:
    """Callers that read keys over and over, of an origin that changes under them."""

    def __init__(self, cache: Cache, face: str, callers: int = 4) -> None:
        self.cache = cache
        self.origin = {key: f"{key} old" for key in KEYS}
        self.calls: list[Call] = []
        self.failed: list[BaseException] = []
        self.events: list[Event] = []
        self.stop = threading.Event()
        self._unsubscribe = cache.events.subscribe(self.events.append)
        work: list[Callable[[], None]] = [self._thread] * callers
        if face == "asyncio":
            work = [lambda: asyncio.run(self._loop(callers))]
        self._threads = [threading.Thread(target=one, daemon=True) for one in work]

    def _took(self, key: str, started: float, value: Any) -> None:
        self.calls.append(Call(key, value, started, time.monotonic() - started))

    def _thread(self) -> None:
        try:
            while not self.stop.wait(0.002):
                for key in KEYS:
                    started = time.monotonic()
                    self._took(
                        key,
                        started,
                        self.cache.get_or_set(key, functools.partial(self.origin.__getitem__, key)),
                    )
        except BaseException as error:  # looked at by the test
            self.failed.append(error)

    async def _loop(self, callers: int) -> None:
        async def caller() -> None:
            async def load(key: str) -> str:
                return self.origin[key]

            while not self.stop.is_set():
                for key in KEYS:
                    started = time.monotonic()
                    self._took(key, started, await self.cache.aget_or_set(key, functools.partial(load, key)))
                await asyncio.sleep(0.002)

        try:
            await asyncio.gather(*(caller() for _ in range(callers)))
        except BaseException as error:  # looked at by the test
            self.failed.append(error)

    def more(self, calls: int) -> None:
        """Waits until so many more calls were answered."""
        wanted = len(self.calls) + calls
        assert wait_until(lambda: len(self.calls) >= wanted or bool(self.failed), 20)
        assert not self.failed, self.failed

    def breaker(self, tier: str) -> list[bool]:
        return [
            event.open for event in self.events if isinstance(event, BreakerChanged) and event.tier == tier
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(30)
        self._unsubscribe()
        assert not any(thread.is_alive() for thread in self._threads)
        assert not self.failed, self.failed


@contextmanager
def opened(*urls: str, namespace: str, **options: Any) -> Iterator[Cache]:
    cache = Cache(*urls, namespace=namespace, **{"ttl": 60, **options})
    try:
        yield cache
    finally:
        cache.close()


@pytest.fixture
def server_of(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """A server of the test's own; Redis keeps its data over a kill."""

    def make(kind: str) -> Any:
        if kind == "redis":
            kept = {"appendonly": "yes", "appendfsync": "always"}
            return request.getfixturevalue("own_redis")(options=kept)
        return request.getfixturevalue("own_memcached")()

    return make


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("fault", ["killed", "hung"])
@pytest.mark.parametrize(
    "chain", ["redis", "memory > redis", "redis > memcached", "memcached", "memcached > redis"]
)
def test_traffic_over_an_outage(
    chain: str,
    fault: str,
    face: str,
    server_of: Callable[[str], Any],
    namespace: str,
    request: pytest.FixtureRequest,
) -> None:
    kinds = [kind for kind in chain.split(" > ") if kind != "memory"]
    victim = server_of(kinds[0])
    urls = [
        "memory://" if kind == "memory" else victim.url if kind == kinds[0] else server_of(kind).url
        for kind in chain.split(" > ")
    ]
    with opened(*urls, namespace=namespace, local_ttl=0.05) as cache, Traffic(cache, face) as traffic:
        name = cache.engine.state.chain.authority.tier.name
        traffic.more(200)
        before = len(traffic.calls)
        victim.kill() if fault == "killed" else victim.pause()
        assert wait_until(lambda: traffic.breaker(name) == [True], 15), "the breaker never opened"
        traffic.more(200)

        # Nobody can tell the server now; it must hear of it before it is asked again.
        traffic.origin["k0"] = "k0 new"
        started = time.monotonic()
        cache.delete("k0")
        deleted = time.monotonic()
        assert cache.stats()["tiers"][name]["behind"] >= 1
        traffic.more(200)

        victim.start() if fault == "killed" else victim.resume()
        assert wait_until(lambda: traffic.breaker(name)[-1] is False, 15), "the breaker never closed"
        assert wait_until(lambda: cache.stats()["tiers"][name]["behind"] == 0, 10)
        traffic.more(400)
        # It is used again: another process finds there what this one stores.
        with opened(*[url for url in urls if url != "memory://"], namespace=namespace) as other:
            assert wait_until(lambda: other.get("k0") == "k0 new" and other.get("k1") == "k1 old", 10)
    late = [call for call in traffic.calls if call.key == "k0" and call.started > deleted]
    slowest = max(call.seconds for call in traffic.calls)
    print(
        f"{chain} {fault}, {face}: {len(traffic.calls) - before} calls over the outage, the slowest took "
        f"{slowest:.2f} s, the delete {deleted - started:.2f} s"
    )
    assert {call.value for call in late} == {"k0 new"}
    assert {call.value for call in traffic.calls if call.key != "k0"} == {f"{key} old" for key in KEYS[1:]}
    assert slowest < LATEST
    assert deleted - started < LATEST
    assert traffic.breaker(name)[0] is True
    assert any(isinstance(event, TierFailed) and event.tier == name for event in traffic.events)


def run(face: str, cache: Cache, name: str, *args: Any, **options: Any) -> Any:
    """One method of one face."""
    if face == "threads":
        return getattr(cache, name)(*args, **options)

    async def main() -> Any:
        return await getattr(cache, f"a{name}")(*args, **options)

    return asyncio.run(main())


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_every_operation_ends_in_time_on_a_hung_server(
    kind: str, face: str, server_of: Callable[[str], Any], namespace: str
) -> None:
    server = server_of(kind)
    for name, args, wanted in [
        ("get", ("k",), None),
        ("get_many", (["k", "l"],), {}),
        ("get_or_set", ("k", lambda: "loaded"), "loaded"),
        ("get_or_set_many", (["k", "l"], lambda keys: dict.fromkeys(keys, 1)), {"k": 1, "l": 1}),
        ("set", ("k", "new"), None),
        ("delete", ("k",), False),
        ("invalidate_tags", ("t",), None),
        ("clear", (), None),
    ]:  # fmt: skip
        with opened(server.url, namespace=namespace) as cache:
            cache.set("k", "old", tags=["t"])
            server.pause()
            started = time.monotonic()
            try:
                assert run(face, cache, name, *args) == wanted
                seconds = time.monotonic() - started
            finally:
                server.resume()
            print(f"{kind}, {face}: {name} took {seconds:.2f} s")
            assert DEADLINE - 0.1 < seconds < LATEST
            # What changed the key meanwhile holds as soon as the server answers again.
            if name in ("set", "delete", "invalidate_tags", "clear"):
                assert cache.get("k") != "old"


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("lower", ["redis", "memcached"])
def test_a_read_meets_a_hung_tier_only_once(
    lower: str, face: str, server_of: Callable[[str], Any], namespace: str
) -> None:
    """What stands below may carry tags that only the hung tier could vouch for; asking it again is a second deadline."""
    server, below = server_of("redis"), server_of(lower)
    for name, args in [("get", ("k",)), ("get_or_set", ("k", lambda: "loaded"))]:
        with opened(server.url, below.url, namespace=namespace) as cache:
            assert cache.get_or_set("k", lambda: "old", tags=["t"]) == "old"
            failures: list[Event] = []
            cache.events.subscribe(failures.append)
            server.pause()
            try:
                assert run(face, cache, name, *args) in (None, "loaded")
            finally:
                server.resume()
            assert len([event for event in failures if isinstance(event, TierFailed)]) == 1
            cache.delete("k")


@pytest.mark.parametrize("face", FACES)
def test_with_raise_the_caller_is_told(face: str, server_of: Callable[[str], Any], namespace: str) -> None:
    server = server_of("redis")
    with opened(server.url, namespace=namespace, on_outage="raise") as cache:
        assert run(face, cache, "get_or_set", "k", lambda: "old") == "old"
        server.pause()
        calls: list[tuple[str, tuple[Any, ...]]] = [
            ("get", ("k",)),
            ("get_or_set", ("k", lambda: "loaded")),
            ("delete", ("k",)),
        ]
        for name, args in calls:
            with pytest.raises(TierTimeout, match="redis"):
                run(face, cache, name, *args)
        server.kill()
        for name, args in [*calls, ("set", ("k", 1)), ("invalidate_tags", ("t",)), ("clear", ())]:
            with pytest.raises(TierUnavailable, match="redis"):
                run(face, cache, name, *args)
        server.start()
        # The delete raised, and was kept all the same.
        assert wait_until(lambda: not _unavailable(lambda: run(face, cache, "get", "k")), 10)
        assert run(face, cache, "get", "k") is None
        assert run(face, cache, "get_or_set", "k", lambda: "new") == "new"


def _unavailable(call: Callable[[], Any]) -> bool:
    try:
        call()
    except TierUnavailable:
        return True
    return False


def test_nobody_reads_while_what_was_missed_is_being_replayed(
    server_of: Callable[[str], Any], namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the replay's beginning and its end the old entries still stand: whoever comes then must not see them."""
    server = server_of("redis")
    changes: list[tuple[str, Callable[[Cache], Any]]] = [
        ("drop", lambda cache: cache.delete("k")),
        ("set_generations", lambda cache: cache.invalidate_tags("t")),
        ("clear", lambda cache: cache.clear()),
    ]
    for name, change in changes:
        with opened(server.url, namespace=namespace) as cache:
            cache.set("k", "old", tags=["t"])
            assert cache.get("k") == "old"
            server.pause()
            change(cache)
            server.resume()
            tier = cache.engine.state.chain.authority.tier
            real, reached, go_on = getattr(tier, name), threading.Event(), threading.Event()

            async def slow(
                *args: Any, real: Any = real, reached: Any = reached, go_on: Any = go_on, **kw: Any
            ) -> Any:
                reached.set()
                assert go_on.wait(30)
                return await real(*args, **kw)

            with monkeypatch.context() as patch:
                patch.setattr(tier, name, slow)
                replaying = threading.Thread(target=cache.get, args=("other",))
                replaying.start()
                assert reached.wait(30)
                try:
                    seen = [cache.get("k"), cache.get_or_set("k", lambda: "new")]
                finally:
                    go_on.set()
                    replaying.join(30)
            assert seen == [None, "new"], name
            assert cache.get("k") != "old"


@pytest.mark.parametrize("face", FACES)
def test_a_close_tells_the_tier_what_it_missed(
    face: str, server_of: Callable[[str], Any], namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that deletes in an outage and ends right after it: what it remembered would end with it."""
    monkeypatch.setattr("cachewright.core.breaker.PROBE_SECONDS", 3600.0)  # nobody else tries
    server = server_of("redis")

    async def leave() -> None:
        cache = Cache(server.url, namespace=namespace)
        await cache.adelete("k")
        server.resume()
        await cache.aclose()

    with opened(server.url, namespace=namespace) as other:
        other.set("k", "old")
        server.pause()
        try:
            if face == "asyncio":
                asyncio.run(leave())
            else:
                cache = Cache(server.url, namespace=namespace)
                cache.delete("k")
                server.resume()
                cache.close()
        finally:
            server.resume()
        assert other.get("k") is None


def test_a_close_in_an_outage_says_what_was_not_told(
    server_of: Callable[[str], Any], namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_of("redis")
    server.pause()
    try:
        cache = Cache(server.url, namespace=namespace)
        cache.delete("k")
        cache.close()
    finally:
        server.resume()
    assert "has yet to hear of 1 change(s)" in caplog.text


@pytest.mark.parametrize("face", FACES)
def test_connect_tries_again_until_the_server_is_there(
    face: str, own_redis: Callable[..., Any], namespace: str
) -> None:
    server = own_redis()
    server.kill()
    with opened(server.url, namespace=namespace) as cache:
        started = time.monotonic()
        with pytest.raises(TierUnavailable):
            run(face, cache, "connect", attempts=3, wait=0.2)
        seconds = time.monotonic() - started
        print(f"{face}: three attempts 0.2 s apart took {seconds:.2f} s")
        assert 0.4 <= seconds < 3
        coming = threading.Timer(0.3, server.start)
        coming.start()
        try:
            run(face, cache, "connect", attempts=100, wait=0.1)
        finally:
            coming.join()
        cache.set("k", 1)
        assert cache.get("k") == 1
