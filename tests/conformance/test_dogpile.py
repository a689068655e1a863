"""dogpile.cache's own suites for backends, locks and serializers, run against ours over every kind of tier.

They come from the installed dogpile.cache. Below them: what they leave out.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from dogpile.testing import fixtures as theirs

from cachewright import (
    Cache,
    ConfigurationError,
    EncodeError,
    InvalidKeyError,
    TierUnavailable,
)
from cachewright.core.slot import Lease, Slot, StoredEntry
from cachewright.integrations.dogpile import CachewrightBackend
from cachewright.integrations.lease_lock import LeaseLock
from cachewright.runtime.base import drive
from cachewright.runtime.process import wait_until
from cachewright.testing.servers import RedisServer

STORES = ["memory", "sqlite", "redis", "memcached"]
DIFFERENCES = {
    "test_argument_dictionary_unmodified": (
        ConfigurationError,
        "it passes arguments that no backend knows, and ours refuses them; the dict is looked at in a test of our own",
    ),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a tier."""
    if request.param == "memory":
        return "memory://"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/cache.db"
    url: str = request.getfixturevalue(f"{request.param}_server").url
    return url


class Ours:
    """What their suites ask of who uses them; and every cache that a test makes is closed."""

    backend = "cachewright"
    _made: list[Cache]

    @classmethod
    def setup_class(cls) -> None:
        """Theirs makes a backend to see whether it is installed; its address is not known yet."""

    @pytest.fixture(autouse=True)
    def _arguments(self, store: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
        made = self._made = []

        class Recorded(Cache):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                made.append(self)

        monkeypatch.setattr("cachewright.integrations.dogpile.Cache", Recorded)
        self.config_args = {"arguments": {"tiers": [store], "namespace": namespace}}

    def teardown_method(self, method: Any) -> None:
        """Theirs deletes what was stored, when all fixtures have ended already."""
        super().teardown_method(method)  # type: ignore[misc]
        for cache in self._made:
            cache.close()


class TestBackend(Ours, theirs._GenericBackendTestSuite):
    pass


class TestBackendWithSerializer(Ours, theirs._GenericSerializerTestSuite, theirs._GenericBackendTestSuite):
    pass


class TestMutex(Ours, theirs._GenericMutexTestSuite):
    pass


def test_dogpile_finds_the_backend_by_its_name() -> None:
    region = make_region().configure("cachewright", arguments={"cache": Cache()})
    assert type(region.backend) is CachewrightBackend


def test_every_difference_is_one_of_their_tests() -> None:
    assert {name for name in DIFFERENCES if not hasattr(theirs._GenericBackendTestSuite, name)} == set()


# ------------------------------------------------------------------------------- what their tests leave out


@pytest.fixture
def caches(namespace: str) -> Iterator[Callable[..., Cache]]:
    """Make caches of one namespace, each as a process of its own would have it; closed at the end."""
    with ExitStack() as stack:
        yield lambda *tiers, **options: stack.enter_context(
            Cache(*tiers, **{"namespace": namespace, "lease": 1, **options})
        )


def region_over(cache: Cache, **arguments: Any) -> Any:
    return make_region().configure(
        "cachewright", expiration_time=3600, arguments={"cache": cache, **arguments}
    )


def test_the_callers_arguments_stay_as_they_are(store: str, namespace: str) -> None:
    given = {"tiers": [store], "namespace": namespace, "ttl": 60, "lease": 1}
    before = dict(given)
    region = make_region().configure("cachewright", arguments=given)
    with region.backend.cache as cache:
        region.set("key", 1)
        assert given == before
        assert (cache.namespace, cache.engine.options.lease) == (namespace, 1)
        assert (cache.inspect("key").tiers[-1].fresh_for or 0) <= 60


def test_a_configuration_file_names_tiers_in_one_line(namespace: str, redis_server: RedisServer) -> None:
    settings = {
        "cache.backend": "cachewright",
        "cache.expiration_time": "60",
        "cache.arguments.tiers": f"memory://?max_entries=10 {redis_server.url}",
        "cache.arguments.namespace": namespace,
        "cache.arguments.ttl": "3600",
    }
    region = make_region().configure_from_config(settings, "cache.")
    with region.backend.cache as cache:
        region.set("key", "value")
        assert (region.get("key"), len(cache.inspect("key").tiers)) == ("value", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither 'cache' nor 'tiers'"),
        ({"tiers": "memory://", "cache": Cache()}, "both 'cache' and 'tiers'"),
        ({"cache": "memory://"}, r"cache='memory://': expected a cachewright\.Cache"),
        ({"cache": Cache(), "namespace": "x"}, "namespace: a given cache has its own"),
        (
            {"tiers": "memory://", "namspace": "x"},
            "no 'namspace' .did you mean 'namespace'.*known: cache, tiers, ttl",
        ),
        ({"tiers": "memory://", "url": "x"}, "there is no 'url'"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_region().configure("cachewright", arguments=arguments)


def test_how_long_and_under_which_tags_values_are_kept(store: str, caches: Callable[..., Cache]) -> None:
    cache = caches(store, ttl=50, jitter=0)

    def life(key: str) -> Any:
        return cache.inspect(key).tiers[-1].fresh_for

    region_over(cache).set("own", 1)
    region_over(cache, ttl=1000, jitter=0.0, tags=["regions"]).set_multi({"told": 1, "too": 2})
    region_over(cache, ttl=None).set("ever", 1)
    assert life("own") <= 50 < life("told") <= 1000
    assert life("ever") is None
    cache.invalidate_tags("regions")
    assert region_over(cache).get_multi(["own", "told", "too", "ever"]) == [1, NO_VALUE, NO_VALUE, 1]


def test_what_a_cache_made_here_holds_has_no_end_of_its_own(store: str, namespace: str) -> None:
    region = make_region().configure("cachewright", arguments={"tiers": store, "namespace": namespace})
    with region.backend.cache as cache:
        region.set("key", 1)
        assert [(view.state, view.fresh_for) for view in cache.inspect("key").tiers] == [("fresh", None)]


class Bomb:
    went_off = False

    def __reduce__(self) -> Any:
        return Bomb.explode, ()

    @staticmethod
    def explode() -> str:
        Bomb.went_off = True
        return "boom"


def test_no_pickle_is_written_or_read(store: str, caches: Callable[..., Cache]) -> None:
    cache = caches(store)
    region = region_over(cache)
    assert (region.serializer, region.deserializer) == (None, None)
    cache.set("planted", pickle.dumps(Bomb()))
    cache.set("with metadata", b'{"ct": 9999999999.0, "v": 2}|' + pickle.dumps(Bomb()))
    assert region.get_multi(["planted", "with metadata"]) == [NO_VALUE, NO_VALUE]
    assert region.get_or_create("planted", lambda: "built") == "built"
    if store == "memory://":  # holds the object itself
        bomb = Bomb()
        region.set("bomb", bomb)
        assert region.get("bomb") is bomb
    else:
        with pytest.raises(EncodeError, match="Bomb"):
            region.set("bomb", Bomb())
    assert not Bomb.went_off


def test_what_a_region_did_not_put_there_is_a_miss(store: str, caches: Callable[..., Cache]) -> None:
    cache = caches(store)
    plain = region_over(cache)
    text = make_region(serializer=str.encode, deserializer=bytes.decode)
    text.configure("cachewright", arguments={"cache": cache})
    plain.set("plain", "value")
    text.set("text", "value")
    cache.set_many({"pair": (1, 2), "dict": (1, {}), "none": None, "str": "x"})
    keys = ["plain", "text", "pair", "dict", "none", "str", "absent"]
    assert plain.get_multi(keys) == ["value", *[NO_VALUE] * 6]
    assert text.get_multi(keys) == [NO_VALUE, "value", *[NO_VALUE] * 5]
    assert [plain.get(key) for key in keys] == plain.get_multi(keys)
    assert [text.get(key) for key in keys] == text.get_multi(keys)


def test_values_come_back_as_they_were(store: str, caches: Callable[..., Cache]) -> None:
    region = region_over(caches(store))
    values: list[Any] = [None, False, 0, "", b"\x00|", [1, (2, {3})], {"a": {1: 2.5}}, 10**30]
    region.set_multi({f"key {place}": value for place, value in enumerate(values)})
    found = region.get_multi([f"key {place}" for place in range(len(values))])
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


# The lock


def lock(cache: Cache) -> LeaseLock:
    return LeaseLock(cache, "lock")


def test_a_lock_is_one_for_all_processes_and_any_thread_may_release_it(
    store: str, caches: Callable[..., Cache]
) -> None:
    cache = caches(store)
    first, second = lock(cache), lock(cache if store == "memory://" else caches(store))
    assert (first.locked(), second.locked()) == (False, False)
    assert first.acquire()
    assert not second.acquire(False)
    assert (first.locked(), second.locked()) == (True, True)
    waiting = threading.Thread(target=second.acquire)
    waiting.start()
    thread = threading.Thread(target=first.release)
    thread.start()
    thread.join()
    waiting.join(60)
    assert not waiting.is_alive()
    assert (first.acquire(False), second.locked()) == (False, True)
    second.release()
    assert (first.locked(), second.locked()) == (False, False)
    with pytest.raises(RuntimeError):
        first.release()


def test_a_lock_and_the_key_of_its_name_are_two_things(store: str, caches: Callable[..., Cache]) -> None:
    cache = caches(store)
    held = lock(cache)
    assert held.acquire()
    assert cache.get("lock") is None
    cache.set("lock", "value")
    cache.delete("lock")
    assert not lock(cache).acquire(False)
    held.release()
    with pytest.raises(InvalidKeyError):
        cache.get("\0lock:lock")
    with pytest.raises(InvalidKeyError):
        LeaseLock(cache, "")


HOLDER = """
import sys, threading
from cachewright import Cache
from cachewright.integrations.lease_lock import LeaseLock

cache = Cache(sys.argv[1], namespace=sys.argv[2], lease=1)
held = LeaseLock(cache, "lock")
assert held.acquire()
print("held", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("store", STORES[1:], indirect=True)
def test_a_killed_process_gives_its_lock_back(
    store: str, caches: Callable[..., Cache], namespace: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, store, namespace],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        other = lock(caches(store))
        assert not other.acquire(False)
        process.send_signal(signal.SIGKILL)
    assert other.acquire()
    other.release()


def slot_of(held: LeaseLock) -> Any:
    chain = held._state.chain
    return drive(chain.authority.read(held._rt, (held._key,)))[0].get(held._key)


def test_a_holder_that_lives_keeps_its_lock_past_the_lease(store: str, caches: Callable[..., Cache]) -> None:
    cache = caches(store)
    held = lock(cache)
    assert held.acquire()
    first = slot_of(held).lease
    assert wait_until(lambda: slot_of(held).lease.deadline > first.deadline + first.life, 60), "never renewed"
    assert not lock(cache if store == "memory://" else caches(store)).acquire(False)
    held.release()
    assert slot_of(held) is None


def test_a_dead_lease_that_the_store_still_holds_is_taken_over(
    store: str, caches: Callable[..., Cache]
) -> None:
    mutex = lock(caches(store))
    now = int(mutex._rt.now() * 1000)
    later = now + 60_000
    entry = StoredEntry(b"", now, later, later, later)  # keeps the slot
    dead = Slot(mutex._rt.new_id(), entry, Lease(mutex._rt.new_id(), now - 600_000, 1000))
    assert drive(mutex._state.chain.authority.swap_one(mutex._rt, mutex._key, None, dead)).done
    assert not mutex.locked()
    assert mutex.acquire(False)
    assert mutex.locked()
    mutex.release()


def test_a_lock_whose_holder_is_forgotten_becomes_free(store: str, caches: Callable[..., Cache]) -> None:
    cache = caches(store)
    forgotten = lock(cache)
    assert forgotten.acquire()
    assert not lock(cache).acquire(False)
    del forgotten
    gc.collect()
    assert lock(cache).acquire()


def test_who_lost_the_lock_does_not_give_back_another_ones(store: str, caches: Callable[..., Cache]) -> None:
    cache = caches(store)
    lost, found = lock(cache), lock(cache)
    assert lost.acquire()
    cache.clear()
    if slot_of(lost) is not None:  # Memcached cannot be cleared of what has no tag
        drive(lost._state.chain.authority.drop(lost._rt, [lost._key]))
    assert found.acquire(False)
    lost.release()
    assert not lock(cache).acquire(False)
    found.release()
    assert lock(cache).acquire(False)


def test_a_forked_child_does_not_hold_its_parents_lock(
    caches: Callable[..., Cache], redis_server: RedisServer
):
    held = lock(caches(redis_server.url))
    assert held.acquire()
    told, tell = os.pipe()
    go, let_go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            held.release()  # the parent's: nothing
            first = held.acquire(False)
            os.write(tell, b"refused" if not first else b"taken")
            os.read(go, 1)
            os.write(tell, b"acquired" if held.acquire() else b"refused")
        finally:
            os._exit(0)

    def answer() -> bytes:
        ready, _, _ = select.select([told], [], [], 30)
        return os.read(told, 100) if ready else b"silent"

    try:
        assert answer() == b"refused"
        assert slot_of(held) is not None
        held.release()
        os.write(let_go, b"x")
        assert answer() == b"acquired"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in (told, tell, go, let_go):
            os.close(end)


def test_two_processes_build_a_value_once(store: str, caches: Callable[..., Cache]) -> None:
    cache = caches(store)
    regions = [region_over(cache), region_over(cache if store == "memory://" else caches(store))]
    built: list[int] = []
    go_on = threading.Event()

    def create() -> str:
        built.append(1)
        assert go_on.wait(30)
        return "value"

    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda region=region: found.append(region.get_or_create("key", create)))
        for region in regions * 3
    ]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(built) > 0, 30), "nobody builds"
    assert [region.key_is_locked("key") for region in regions] == [True, True]
    go_on.set()
    for thread in threads:
        thread.join()
    assert (found, len(built)) == (["value"] * 6, 1)
    assert [region.key_is_locked("key") for region in regions] == [False, False]


def test_without_redis_regions_go_on(
    own_redis: Callable[..., RedisServer], caches: Callable[..., Cache]
) -> None:
    server = own_redis()
    regions = region_over(caches(server.url)), region_over(caches(server.url, on_outage="raise"))
    held = lock(regions[0].backend.cache)
    assert held.acquire()
    server.stop()
    held.release()
    assert regions[0].get_or_create("key", lambda: "built") == "built"
    assert regions[0].get_or_create_multi(["a", "b"], lambda *keys: list(keys)) == ["a", "b"]
    assert (held.locked(), held.acquire(), held.acquire(False), held.locked()) == (False, True, False, True)
    held.release()
    strict = lock(regions[1].backend.cache)
    for refused in (strict.acquire, strict.locked, lambda: regions[1].get_or_create("key", lambda: "built")):
        with pytest.raises(TierUnavailable):
            refused()
    assert not strict._local.locked()
