"""The Memcached drivers' connections: one per thread or loop, cancelled callers, forks, closing."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from typing import Any

import pytest

from cachewright.errors import TierUnavailable
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS
from cachewright.tiers.memcached import MemcachedTier
from tests.slots import slot

# --------------------------------------------------------------------------------------------- connections


def test_large_batches_do_not_lock_up(tier: MemcachedTier, face: Any):
    """3,000 keys of 240 bytes asked for at once, 30 MB of answers: a sender that does not receive would stand still."""
    keys = [f"{n:04}{'k' * 200}" for n in range(3000)]
    for at in range(0, 3000, 500):
        assert all(face(tier.store, {key: slot(b"v" * 10_000) for key in keys[at : at + 500]}))
    got = face(tier.read, keys)[0]
    assert len(got) == 3000
    assert all(s.payload == b"v" * 10_000 for s in got.values())
    face(tier.drop, keys)


def test_one_connection_per_thread_and_it_goes_with_the_thread(tier: MemcachedTier):
    drive(tier.connect(THREADS))
    assert tier.describe()["connections"] == 1
    inside = threading.Barrier(5)

    def use() -> None:
        drive(tier.read(THREADS, ["a"]))
        drive(tier.read(THREADS, ["b"]))
        inside.wait(10)
        inside.wait(10)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    assert tier.describe()["connections"] == 5
    inside.wait(10)
    for thread in threads:
        thread.join()
    assert wait_until(lambda: tier.describe()["connections"] == 1, 5)
    tier.close()
    assert tier.describe()["connections"] == 0
    drive(tier.read(THREADS, ["a"]))
    assert tier.describe()["connections"] == 1


def test_close_lets_a_call_under_way_end_and_then_closes_its_connection(own_memcached, make_tier):
    server = own_memcached()
    tier = make_tier(server)
    drive(tier.store(THREADS, {"a": slot()}))
    server.pause()
    got: list[Any] = []
    over = threading.Event()

    def use() -> None:
        got.append(drive(tier.read(THREADS, ["a"]))[0])
        got.append(tier.describe()["connections"])
        over.wait(10)

    thread = threading.Thread(target=use)
    thread.start()
    assert wait_until(lambda: tier.describe()["connections"] == 2, 5)
    tier.close()
    server.resume()
    assert wait_until(lambda: len(got) == 2, 5)
    over.set()
    thread.join()
    assert got[0].keys() == {"a"}
    assert got[1] == 0


def test_a_tick_of_the_loop_is_one_connection_and_one_write(tier: MemcachedTier, monkeypatch):
    writes: list[int] = []
    from cachewright.tiers import memcached_driver_aio as aio

    class Spy(socket.socket):
        def send(self, data: Any, *args: Any) -> int:
            writes.append(len(data))
            return super().send(data, *args)

    def open_spy(family: int) -> socket.socket:
        sock = Spy(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock

    monkeypatch.setattr(aio, "open_socket", open_spy)

    async def main() -> None:
        await tier.connect(AIO)
        writes.clear()
        await asyncio.gather(*(tier.read(AIO, [f"k{n}"]) for n in range(100)))

    asyncio.run(main())
    assert len(writes) == 1
    tier.close()


def test_a_cancelled_caller_disturbs_nobody(own_memcached, make_tier):
    server = own_memcached()
    tier = make_tier(server)

    async def main() -> None:
        await tier.store(AIO, {f"k{n}": slot(b"%d" % n) for n in range(20)})
        server.pause()
        tasks = [asyncio.create_task(tier.read(AIO, [f"k{n}"])) for n in range(20)]
        await asyncio.sleep(0.05)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0)
        server.resume()
        for n, task in enumerate(tasks):
            if n % 2:
                assert (await task)[0][f"k{n}"].payload == b"%d" % n
            else:
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert tier.describe()["connections"] == 1

    asyncio.run(main())


def test_a_caller_cancelled_while_connecting_disturbs_nobody(tier: MemcachedTier):
    async def main() -> None:
        tasks = [asyncio.create_task(tier.read(AIO, ["a"])) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        assert await tasks[1] == ({}, {})
        assert await tasks[2] == ({}, {})

    asyncio.run(main())


def test_timeout_after_a_cancelled_caller_still_ends_the_connection(own_memcached, make_tier):
    server = own_memcached()
    tier = make_tier(server, timeout=0.3)

    async def main() -> None:
        await tier.connect(AIO)
        server.pause()
        task = asyncio.create_task(tier.read(AIO, ["a"]))
        await asyncio.sleep(0)
        task.cancel()
        deadline = time.monotonic() + 5
        while tier.describe()["connections"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    try:
        asyncio.run(main())
    finally:
        server.resume()


def test_second_run_and_close_after_the_loop_leave_nothing_open(tier: MemcachedTier, recwarn):
    for _ in range(3):
        asyncio.run(tier.read(AIO, ["a"]))
        assert tier.describe()["connections"] == 1
    closer = threading.Thread(target=tier.close)
    closer.start()
    closer.join()
    assert tier.describe()["connections"] == 0
    gc.collect()
    assert [w for w in recwarn if issubclass(w.category, ResourceWarning)] == []


def test_a_tier_that_is_forgotten_warns_nobody(make_tier, memcached_server, namespace, recwarn):
    tier = MemcachedTier(servers=[("127.0.0.1", memcached_server.port)], namespace=namespace)
    drive(tier.read(THREADS, ["a"]))
    asyncio.run(tier.read(AIO, ["a"]))
    del tier
    gc.collect()
    assert [w for w in recwarn if issubclass(w.category, ResourceWarning)] == []


def test_close_from_another_thread_while_the_loop_runs(tier: MemcachedTier):
    async def main() -> None:
        await tier.read(AIO, ["a"])
        await asyncio.to_thread(tier.close)
        await asyncio.sleep(0)
        assert tier.describe()["connections"] == 0
        assert await tier.read(AIO, ["a"]) == ({}, {})
        tier.close()
        assert tier.describe()["connections"] == 0

    asyncio.run(main())


def test_a_forked_child_has_connections_of_its_own(tier: MemcachedTier):
    drive(tier.store(THREADS, {"a": slot(b"parent")}))

    async def main() -> None:
        await tier.read(AIO, ["a"])
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                tier.after_fork()
                if tier.describe()["connections"] == 0:
                    drive(tier.store(THREADS, {"child": slot(b"child")}))
                    code = 0 if drive(tier.read(THREADS, ["a"]))[0]["a"].payload == b"parent" else 2
            finally:
                os._exit(code)
        assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
        got = (await tier.read(AIO, ["a", "child"]))[0]  # the parent's connections still stand
        assert {key: s.payload for key, s in got.items()} == {"a": b"parent", "child": b"child"}

    asyncio.run(main())
    assert drive(tier.read(THREADS, ["child"]))[0]["child"].payload == b"child"
    assert tier.describe()["connections"] == 2


def test_a_unix_socket(own_memcached, make_tier, face: Any, tmp_path, namespace):
    import subprocess

    path = str(tmp_path / "m.sock")
    process = subprocess.Popen(["memcached", "-s", path, "-u", "root" if os.geteuid() == 0 else "nobody"])
    try:
        assert wait_until(lambda: os.path.exists(path), 10)
        tier = make_tier(path)
        assert wait_until(lambda: face.stored(tier, ["a"]), 5)
        assert face(tier.read, ["a"])[0]["a"].payload == b"value"
        assert tier.describe()["servers"] == [path]
    finally:
        process.kill()
        process.wait()
    with pytest.raises(TierUnavailable):
        face(tier.read, ["a"])


def test_localhost_is_tried_on_all_its_addresses(make_tier, memcached_server, face: Any, monkeypatch):
    """The first address refuses, the second answers."""
    real = socket.getaddrinfo

    def both(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        found = real("127.0.0.1", port, *args, **kwargs)
        family, kind, proto, name, _ = found[0]
        return [(family, kind, proto, name, ("127.0.0.1", 1)), *found]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    tier = make_tier(("localhost", memcached_server.port))
    assert face(tier.read, ["a"]) == ({}, {})
