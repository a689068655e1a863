"""Two independent clients, pymemcache and meta-memcache, find and read what the Memcached tier stores, and the other
way round: the wire, the keys and the placement are as documented, not only as our own codec believes."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from meta_memcache.base.base_serializer import BaseSerializer, EncodedValue
from meta_memcache.cache_client import CacheClient
from meta_memcache.configuration import ServerAddress
from meta_memcache.connection.pool import ConnectionPool
from meta_memcache.interfaces.cache_api import CacheApi
from meta_memcache.protocol import Blob, Key
from pymemcache.client.base import Client

from cachewright.core.slot import NEVER, Slot, StoredEntry, parse
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.tiers.base import Swap
from cachewright.tiers.memcached import MemcachedTier

LONG = "é" * 300


class Plain(BaseSerializer):
    """Bytes as they are."""

    def serialize(self, key: Key, value: bytes) -> EncodedValue:
        return EncodedValue(value, 0)

    def unserialize(self, data: Blob, encoding_id: int) -> tuple[bytes, int]:
        return bytes(data), encoding_id


def by_pymemcache(port: int, key: str) -> bytes | None:
    client = Client(("127.0.0.1", port), timeout=5)
    try:
        value: bytes | None = client.get(key)
        return value
    finally:
        client.close()


def by_meta_memcache(port: int, key: str) -> bytes | None:
    with meta_memcache(port) as client:
        found = client.get(Key(key))
    if found is None:
        return None
    value, flags = found
    assert flags == 0
    return bytes(value)


@contextlib.contextmanager
def meta_memcache(port: int) -> Iterator[CacheApi]:
    """A client of one server. It never closes its sockets, so it is given ours."""
    with contextlib.ExitStack() as sockets:

        def connect() -> socket.socket:
            return sockets.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))

        def pool(address: ServerAddress) -> ConnectionPool:
            return ConnectionPool(str(address), connect, initial_pool_size=1, max_pool_size=1)

        yield CacheClient.cache_client_from_servers(
            [ServerAddress("127.0.0.1", port)], pool, serializer=Plain()
        )


READERS = pytest.mark.parametrize("read", [by_pymemcache, by_meta_memcache])


def slot(payload: bytes) -> Slot:
    now = int(time.time() * 1000)
    return Slot(THREADS.new_id(), entry=StoredEntry(payload, now, now + 60_000, NEVER, now))


def wire_key(namespace: str, key: str) -> str:
    """The documented form, spelled out anew."""
    physical = f"{namespace}:k:{key}"
    if len(physical.encode()) <= 250 and all(0x21 <= byte <= 0x7E for byte in physical.encode()):
        return physical
    return f"{namespace}:h:k{hashlib.sha256(physical.encode()).hexdigest()}"


def home(names: list[str], key: str) -> str:
    """The documented placement, spelled out anew."""
    return max(
        names, key=lambda name: hashlib.blake2b(name.encode() + b"\0" + key.encode(), digest_size=8).digest()
    )


@pytest.fixture
def tiers(memcached_servers, namespace) -> Iterator[Callable[..., MemcachedTier]]:
    made = []

    def make(count: int) -> MemcachedTier:
        servers = [("127.0.0.1", server.port) for server in memcached_servers[:count]]
        made.append(MemcachedTier(servers=servers, namespace=namespace, timeout=5))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


@READERS
@pytest.mark.parametrize(
    "key", ["user:1", 'user:"1"', "a b", "line\r\nbreak", LONG, "k" * 65_536], ids=lambda k: k[:9]
)
def test_what_we_store_is_found_and_read(tiers, memcached_server, namespace, read, key):
    tier, wanted = tiers(1), slot(bytes(range(256)) * 20)
    drive(tier.store(THREADS, {key: wanted}))
    stored = read(memcached_server.port, wire_key(namespace, key))
    assert stored == wanted.header + wanted.payload
    assert parse(stored) == wanted
    drive(tier.drop(THREADS, [key]))
    assert read(memcached_server.port, wire_key(namespace, key)) is None


@READERS
def test_every_key_lies_on_the_documented_node_and_there_alone(tiers, memcached_servers, namespace, read):
    tier = tiers(3)
    ports = {f"127.0.0.1:{server.port}": server.port for server in memcached_servers}
    slots = {f"user:{n}": slot(b"%d" % n) for n in range(20)} | {LONG: slot(b"long")}
    drive(tier.store(THREADS, slots))
    used = set()
    for key, wanted in slots.items():
        wire = wire_key(namespace, key)
        node = home(sorted(ports), wire)
        used.add(node)
        assert tier.locate(key) == (node, wire.encode())
        for name, port in ports.items():
            assert read(port, wire) == (wanted.header + wanted.payload if name == node else None)
    assert len(used) > 1


def test_generations_are_mark_and_milliseconds(tiers, memcached_server, namespace):
    tier = tiers(1)
    stood = drive(tier.set_generations(THREADS, {"users": b"12345678"}, only_missing=False))["users"]
    stored = by_pymemcache(memcached_server.port, f"{namespace}:t:users")
    assert stored == b"12345678" + stood.changed.to_bytes(8, "big")


def test_what_others_store_or_delete_is_seen(tiers, memcached_server, namespace):
    """A slot put there by another client is a slot; a foreign change makes a swap of before fail."""
    tier, theirs, ours = tiers(1), slot(b"theirs"), slot(b"ours")
    wire = wire_key(namespace, "a")
    client = Client(("127.0.0.1", memcached_server.port), timeout=5)
    try:
        client.set(wire, theirs.header + theirs.payload, noreply=False)
        seen = drive(tier.read(THREADS, ["a"]))[0]["a"]
        assert seen.header == theirs.header
        client.delete(wire, noreply=False)
        assert not drive(tier.swap(THREADS, [Swap("a", seen, ours)]))[0].done
        with meta_memcache(memcached_server.port) as other:
            other.set(Key(wire), theirs.header + theirs.payload, ttl=60)
        assert drive(tier.swap(THREADS, [Swap("a", theirs, ours)]))[0].done
        assert client.get(wire) == ours.header + ours.payload
    finally:
        client.close()
