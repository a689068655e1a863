"""What the Redis tier says on the wire and leaves in the server; the promises of every tier are tested elsewhere."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from cachewright.core import slot as transitions
from cachewright.core.slot import NEVER, Intent, Lease, Slot, StoredEntry, begin_write
from cachewright.errors import TierProtocolError, TierUnavailable
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.testing.servers import RedisServer
from cachewright.tiers.base import Swap, Swapped
from cachewright.tiers.redis import RedisTier
from cachewright.tiers.redis_process import RedisProcess

SIZES = [10, 200_000]  # by script, and by WATCH


class Face:
    """A tier's methods without runtime and coroutine: ``face.read(["k"])``."""

    def __init__(self, tier: Any, rt: Any) -> None:
        self.tier, self.rt = tier, rt

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            coroutine = getattr(self.tier, name)(self.rt, *args, **kwargs)
            if self.rt is THREADS:
                return drive(coroutine)

            async def main() -> Any:
                return await coroutine

            return asyncio.run(main())  # a loop of its own each time: connections must survive that

        return call

    def slot(self, key: str) -> Slot | None:
        return self.read([key])[0].get(key)


def new_id() -> bytes:
    return os.urandom(8)


def now_ms() -> int:
    return int(time.time() * 1000)


def entry(payload: bytes = b"v", life: int = 60_000, tags: Any = ()) -> StoredEntry:
    now = now_ms()
    return StoredEntry(payload, now, now + life, 0, 0, tags=tags)


def stored(payload: bytes = b"v", **how: Any) -> Slot:
    return Slot(new_id(), entry=entry(payload, **how))


def leased() -> Slot:
    return Slot(new_id(), lease=Lease(new_id(), now_ms() + 5000, 5000))


def intended(*, count: int = 1, contended: bool = False) -> Slot:
    intents = tuple(Intent(new_id(), now_ms() + 30_000) for _ in range(count))
    return Slot(new_id(), intents=intents, contended=contended)


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> RedisProcess:
    found: RedisProcess = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture(params=["threads", "asyncio"])
def face(request: pytest.FixtureRequest, server: RedisProcess, namespace: str) -> Iterator[Face]:
    tier = RedisTier(port=server.port, password=server.password, namespace=namespace, timeout=5)
    yield Face(tier, THREADS if request.param == "threads" else AIO)
    tier.close()


def raw(server: RedisProcess, face: Face, key: str) -> Any:
    return server.ask("GET", f"{face.tier.namespace}:k:{key}")


@pytest.mark.parametrize("size", SIZES)
def test_swap_done_and_refused(face: Face, server: RedisProcess, size: int) -> None:
    first, second = stored(b"1" * size), stored(b"2" * size)
    assert face.swap([Swap("k", None, first)])[0].done
    assert raw(server, face, "k") == first.header + b"1" * size
    refused = face.swap([Swap("k", None, second)])[0]
    assert not refused.done
    assert refused.current == first
    assert face.swap([Swap("k", first, second)])[0].done
    refused = face.swap([Swap("k", first, stored(b"3" * size))])[0]
    assert refused.current == second
    assert face.swap([Swap("k", second, None)])[0].done
    assert raw(server, face, "k") is None
    assert face.swap([Swap("k", second, stored(b"3" * size))])[0] == Swapped(False, None)


def test_small_and_large_swaps_of_one_call_keep_their_order(face: Face) -> None:
    face.swap([Swap("k1", None, stored(b"there"))])
    slots = [stored(b"x" * size) for size in (10, 100_000, 10, 100_000)]
    results = face.swap([Swap(f"k{n}", None, slot) for n, slot in enumerate(slots)])
    assert [result.done for result in results] == [True, False, True, True]
    assert results[1].current.payload == b"there"


def test_a_change_of_the_header_alone_sends_no_payload_and_sets_the_life(
    face: Face, server: RedisProcess
) -> None:
    key = f"{face.tier.namespace}:k:k"
    face.store({"k": stored(b"p" * 100_000, life=60_000)})
    before = face.slot("k")
    assert before is not None
    renewed = msgspec.structs.replace(
        before, nonce=new_id(), lease=Lease(new_id(), now_ms() + 90_000, 90_000)
    )
    sent = int(server.info("stats")["total_net_input_bytes"])
    assert face.swap([Swap("k", before, renewed)])[0].done
    assert int(server.info("stats")["total_net_input_bytes"]) - sent < 10_000
    after = face.slot("k")
    assert after is not None
    assert (after.header, after.payload) == (renewed.header, b"p" * 100_000)
    assert 80_000 < int(server.ask("PTTL", key)) <= 90_000  # type: ignore[arg-type]
    shorter = msgspec.structs.replace(after, nonce=new_id(), lease=None)
    assert face.swap([Swap("k", after, shorter)])[0].done
    assert 50_000 < int(server.ask("PTTL", key)) <= 60_000  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
def test_an_entry_without_ttl_has_no_expiry(face: Face, server: RedisProcess, size: int) -> None:
    key = f"{face.tier.namespace}:k:k"
    face.swap([Swap("k", None, leased())])
    assert int(server.ask("PTTL", key)) > 0  # type: ignore[arg-type]
    for_ever = Slot(new_id(), entry=StoredEntry(b"x" * size, now_ms(), NEVER, 0, 0))
    assert face.swap([Swap("k", face.slot("k"), for_ever)])[0].done
    assert server.ask("PTTL", key) == -1
    before = face.slot("k")
    assert before is not None
    with_lease = msgspec.structs.replace(before, nonce=new_id(), lease=Lease(new_id(), now_ms() + 5000, 5000))
    assert face.swap([Swap("k", before, with_lease)])[0].done
    assert server.ask("PTTL", key) == -1
    assert face.store({"k": for_ever}) == [True]
    assert server.ask("PTTL", key) == -1


@pytest.mark.parametrize("size", SIZES)
def test_foreign_bytes_are_compared_whole(face: Face, server: RedisProcess, size: int) -> None:
    key = f"{face.tier.namespace}:k:k"
    server.ask("SET", key, b"\xff" * size)
    seen = face.slot("k")
    assert seen is not None
    assert seen.foreign == b"\xff" * size
    server.ask("SET", key, b"\xff" * (size + 1))
    assert not face.swap([Swap("k", seen, leased())])[0].done
    server.ask("SET", key, b"\xff" * size)
    assert face.swap([Swap("k", seen, leased())])[0].done


def test_another_type_and_an_empty_string_under_our_name_are_no_slot(
    face: Face, server: RedisProcess
) -> None:
    prefix = f"{face.tier.namespace}:k:"
    for size in SIZES:
        server.ask("RPUSH", prefix + "list", "x")
        server.ask("SET", prefix + "empty", "")
        assert face.read(["list"])[0] == face.read(["empty"])[0] == face.read(["list", "empty"])[0] == {}
        refused = face.swap([Swap("list", stored(), stored(b"1" * size))])[0]
        assert not refused.done
        assert refused.current is None
        slots = {key: stored(b"1" * size) for key in ("list", "empty")}
        assert all(
            result.done for result in face.swap([Swap(key, None, slot) for key, slot in slots.items()])
        )
        assert face.read(["list", "empty"])[0] == slots
        face.drop(["list", "empty"])
    server.ask("RPUSH", prefix + "list", "x")
    assert face.drop(["list"]) == [False]
    assert server.ask("EXISTS", prefix + "list") == 0
    server.ask("RPUSH", prefix + "list", "x")
    assert face.store({"list": stored()}) == [True]


@pytest.mark.parametrize("count", [1, 2, 255])
@pytest.mark.parametrize("size", SIZES)
def test_drop_and_store_spare_intents_byte_for_byte_as_the_transition_does(
    face: Face, count: int, size: int
) -> None:
    before = intended(count=count)
    face.swap([Swap("k", None, before)])
    assert face.drop(["k"]) == [False]
    after = face.slot("k")
    assert after is not None
    expected = transitions.drop(before, nonce=after.nonce)
    assert expected is not None
    assert after.nonce != before.nonce
    assert after.header == expected.header
    assert face.store({"k": stored(b"x" * size), "other": stored()}) == [False, True]
    last = face.slot("k")
    assert last is not None
    assert last.nonce != after.nonce
    assert (last.intents, last.contended, last.entry) == (before.intents, True, None)


def test_spared_intents_keep_their_life(face: Face, server: RedisProcess) -> None:
    face.swap([Swap("k", None, intended())])
    before = int(server.ask("PTTL", f"{face.tier.namespace}:k:k"))  # type: ignore[arg-type]
    face.drop(["k"])
    assert 0 < int(server.ask("PTTL", f"{face.tier.namespace}:k:k")) <= before  # type: ignore[arg-type]


def test_drop_tells_where_an_entry_went(face: Face) -> None:
    face.store({"entry": stored(), "large": stored(b"x" * 100_000)})
    face.swap([Swap("lease", None, leased()), Swap("intent", None, intended())])
    assert face.drop(["entry", "large", "lease", "intent", "absent"]) == [True, True, False, False, False]
    assert list(face.read(["entry", "large", "lease", "intent"])[0]) == ["intent"]


@pytest.mark.parametrize("damage", ["short", "length", "version"])
def test_what_only_looks_like_intents_is_dropped(face: Face, server: RedisProcess, damage: str) -> None:
    header = bytearray(intended(count=2).header)
    if damage == "short":
        header = header[:100]
    elif damage == "length":
        header[:4] = (90).to_bytes(4, "big")
    else:
        header[4] = 9
    server.ask("SET", f"{face.tier.namespace}:k:k", bytes(header))
    face.drop(["k"])
    assert raw(server, face, "k") is None


def test_tags_in_the_header_survive(face: Face) -> None:
    slot = stored(b"v", tags=(("täg", b"12345678"), ("b", b"abcdefgh")))
    write = begin_write(slot, Intent(new_id(), now_ms() + 30_000), now=now_ms(), nonce=new_id())
    face.store({"k": slot})
    assert face.slot("k") == slot
    assert face.swap([Swap("k", slot, write)])[0].done
    face.drop(["k"])
    after = face.slot("k")
    assert after is not None
    assert after.intents == write.intents


def test_generations_carry_the_servers_time(face: Face, server: RedisProcess) -> None:
    before = now_ms()
    first = face.set_generations({"a": b"A" * 8, "b": b"B" * 8}, only_missing=True)
    assert {tag: found.mark for tag, found in first.items()} == {"a": b"A" * 8, "b": b"B" * 8}
    assert before - 1000 <= first["a"].changed <= now_ms() + 1000
    assert face.set_generations({"a": b"C" * 8}, only_missing=True) == {"a": first["a"]}
    second = face.set_generations({"a": b"D" * 8}, only_missing=False)
    assert second["a"].mark == b"D" * 8
    assert face.read([], ["a", "b", "none"])[1] == {"a": second["a"], "b": first["b"]}
    assert server.ask("PTTL", f"{face.tier.namespace}:t:a") == -1
    server.ask("SET", f"{face.tier.namespace}:t:a", "damaged")
    assert face.read([], ["a"])[1] == {}
    assert face.set_generations({"a": b"E" * 8}, only_missing=True)["a"].mark == b"E" * 8


def test_slots_and_generations_come_in_one_trip(face: Face, server: RedisProcess) -> None:
    slots = {f"k{n}": stored() for n in range(10)}
    face.store(slots)
    face.set_generations({"a": b"A" * 8}, only_missing=False)
    before = int(server.info("stats")["total_commands_processed"])
    face.rt = THREADS  # the connection stands: no handshake in between
    face.read(["x"])
    start = int(server.info("stats")["total_commands_processed"])
    found, marks = face.read([*slots, "absent"], ["a", "none"])
    after = int(server.info("stats")["total_commands_processed"])
    assert before < start
    assert found == slots
    assert list(marks) == ["a"]
    # The password's AUTH and the INFO itself, and one MGET.
    assert after - start == (3 if server.password else 2)


def test_unknown_scripts_are_sent_again_each_by_itself(face: Face, server: RedisProcess) -> None:
    face.connect()
    server.ask("SCRIPT", "FLUSH")
    results = face.swap([Swap(f"k{n}", None, leased()) for n in range(50)])
    assert all(result.done for result in results)
    for call in (
        lambda: face.drop(["k1"]) == [False],
        lambda: face.store({"k1": stored()}) == [True],
        lambda: len(face.set_generations({"a": b"A" * 8}, only_missing=True)) == 1,
    ):
        server.ask("SCRIPT", "FLUSH")
        assert call()


def test_clear_takes_its_namespace_and_nothing_else(server: RedisProcess, namespace: str) -> None:
    ours, theirs = f"{namespace}*[a]?", f"{namespace}xaz"
    with_glob = RedisTier(port=server.port, password=server.password, namespace=ours)
    other = RedisTier(port=server.port, password=server.password, namespace=theirs)
    for rt in (THREADS, AIO):
        face, bystander = Face(with_glob, rt), Face(other, rt)
        face.store({f"k{n}": stored() for n in range(1200)})
        face.swap([Swap("writing", None, intended())])
        face.set_generations({"a": b"A" * 8}, only_missing=False)
        bystander.store({"k": stored()})
        face.clear()
        assert list(face.read([f"k{n}" for n in range(1200)] + ["writing"])[0]) == ["writing"]
        assert list(face.read([], ["a"])[1]) == ["a"]
        assert bystander.slot("k") is not None
        face.swap([Swap("writing", face.slot("writing"), None)])
    with_glob.close()
    other.close()


@pytest.mark.parametrize("size", SIZES)
def test_of_racing_swaps_one_wins(server: RedisProcess, namespace: str, size: int) -> None:
    tier = RedisTier(port=server.port, password=server.password, namespace=namespace, timeout=10)
    for round_ in range(20):
        barrier = threading.Barrier(8)
        results: list[bool] = []

        def race(key: str, barrier: threading.Barrier = barrier, results: list[bool] = results) -> None:
            mine = stored(new_id() * (size // 8))
            barrier.wait()
            if threading.current_thread().name.startswith("loop"):
                results.extend(r.done for r in Face(tier, AIO).swap([Swap(key, None, mine)]))
            else:
                results.extend(r.done for r in Face(tier, THREADS).swap([Swap(key, None, mine)]))

        threads = [
            threading.Thread(target=race, args=(f"k{round_}",), name=f"{'loop' if n % 2 else 'thread'}{n}")
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [False] * 7 + [True]
    tier.close()


def test_many_tasks_share_one_connection(server: RedisProcess, namespace: str) -> None:
    tier = RedisTier(port=server.port, password=server.password, namespace=namespace, timeout=5)

    async def main() -> None:
        slots = {f"k{n}": stored(b"%d" % n * 100) for n in range(200)}
        await tier.store(AIO, slots)
        found = await asyncio.gather(*(tier.read(AIO, [key]) for key in slots))
        assert [one[0] for one in found] == [{key: slot} for key, slot in slots.items()]
        assert tier.describe()["connections"] == 1

    asyncio.run(main())
    tier.close()


def test_small_and_large_stores_of_one_call(face: Face, server: RedisProcess) -> None:
    slots = {f"k{n}": stored(b"x" * (100_000 if n % 3 else 10)) for n in range(9)}
    server.ask("RPUSH", f"{face.tier.namespace}:k:k1", "x")
    face.swap([Swap("k2", None, stored()), Swap("k3", None, intended()), Swap("k4", None, intended())])
    assert face.store(slots) == [n not in {3, 4} for n in range(9)]
    assert {key: slot for key, slot in slots.items() if key not in {"k3", "k4"}}.items() <= face.read(
        list(slots)
    )[0].items()


def test_a_value_of_many_megabytes(face: Face) -> None:
    slot = stored(os.urandom(1 << 20) * 20)
    assert face.store({"k": slot}) == [True]
    assert face.slot("k") == slot
    assert face.swap([Swap("k", slot, leased())])[0].done


def test_database_unix_socket_and_wrong_password(
    own_valkey: Callable[..., RedisProcess], namespace: str
) -> None:
    server = own_valkey(options={"unixsocket": "server.sock"})
    path = next(server.folder.rglob("server.sock"))
    for rt in (THREADS, AIO):
        by_path = RedisTier(unix_path=str(path), password=server.password, db=3, namespace=namespace)
        by_port = RedisTier(
            port=server.port, username="default", password=server.password, db=3, namespace=namespace
        )
        elsewhere = RedisTier(port=server.port, password=server.password, namespace=namespace)
        Face(by_path, rt).store({"k": stored()})
        assert Face(by_port, rt).slot("k") is not None
        assert Face(elsewhere, rt).slot("k") is None
        intruder = RedisTier(port=server.port, password="not-the-secret", namespace=namespace)
        with pytest.raises(TierUnavailable, match="WRONGPASS") as caught:
            Face(intruder, rt).connect()
        said = f"{caught.value} {intruder!r} {intruder.describe()} {intruder._server.address!r}"
        assert "not-the-secret" not in said
        for tier in (by_path, by_port, elsewhere, intruder):
            tier.close()


def test_tls(own_redis: Callable[..., RedisServer], tmp_path: Any, namespace: str) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    from cachewright.runtime.process import free_port

    port = free_port()
    tls = {"tls-cert-file": str(certificate), "tls-key-file": str(key), "tls-auth-clients": "no"}
    own_redis(options={"tls-port": str(port), **tls})
    context = ssl.create_default_context(cafile=str(certificate))
    tier = RedisTier(port=port, ssl=context, namespace=namespace, timeout=5)
    untrusting = RedisTier(port=port, ssl=True, namespace=namespace, timeout=5)
    for rt in (THREADS, AIO):
        face = Face(tier, rt)
        slot = stored(os.urandom(3_000_000))
        assert face.store({"k": slot}) == [True]
        assert face.slot("k") == slot
        with pytest.raises(TierUnavailable, match=r"(?i)certificate"):
            Face(untrusting, rt).connect()
    tier.close()
    untrusting.close()


def test_a_server_that_speaks_something_else(face: Face) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        tier = RedisTier(port=listener.getsockname()[1], namespace="n", timeout=5)
        with pytest.raises(TierProtocolError, match="protocol"):
            Face(tier, face.rt).connect()
        thread.join()
        tier.close()
