"""The Redis tier when the server hangs, dies, restarts or dribbles, when callers give up, and when processes fork."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cachewright.errors import TierTimeout, TierUnavailable
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS
from cachewright.testing.servers import RedisServer
from cachewright.tiers.base import Swap
from cachewright.tiers.redis import RedisTier
from cachewright.tiers.redis_process import RedisProcess
from tests.slots import lease as leased
from tests.slots import run
from tests.slots import slot as stored

# A deadline must hold, but the machine may be busy: what is excluded is a second deadline on top of the first.
LATEST = 0.95


@pytest.fixture(params=["redis", "valkey"])
def own_server(request: pytest.FixtureRequest) -> RedisProcess:
    server: RedisProcess = request.getfixturevalue(f"own_{request.param}")()
    return server


@pytest.fixture(params=[THREADS, AIO], ids=["threads", "asyncio"])
def rt(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def tier(own_server: RedisProcess, namespace: str) -> Iterator[RedisTier]:
    tier = RedisTier(port=own_server.port, password=own_server.password, namespace=namespace)
    yield tier
    tier.close()


def test_no_call_outlasts_its_deadline_on_a_hung_server(
    own_server: RedisProcess, namespace: str, rt: Any
) -> None:
    tier = RedisTier(port=own_server.port, password=own_server.password, namespace=namespace, timeout=0.3)
    many = {f"k{n}": stored(b"x" * 1000) for n in range(500)}
    large = stored(b"x" * 5_000_000)
    calls: list[Callable[[], Any]] = [
        lambda: tier.read(rt, ["k"]),
        lambda: tier.read(rt, list(many), ["a"]),
        lambda: tier.swap(rt, [Swap(key, None, slot) for key, slot in many.items()]),
        lambda: tier.swap(rt, [Swap("large", None, large)]),
        lambda: tier.drop(rt, list(many)),
        lambda: tier.store(rt, {"large": large, **many}),
        lambda: tier.set_generations(rt, {"a": b"A" * 8}, only_missing=True),
        lambda: tier.clear(rt),
        lambda: tier.connect(rt),
    ]

    async def each() -> None:
        await tier.connect(rt)
        own_server.pause()
        for call in calls:
            start = time.monotonic()
            with pytest.raises(TierTimeout, match=r"within 0\.3 s"):
                await call()
            # A plain client hangs for ever here; the bound is wide because other programs use this machine too.
            assert 0.25 < time.monotonic() - start < 5
        assert tier.describe()["connections"] == 0
        own_server.resume()
        tier.timeout = 5
        await tier.read(rt, ["k"])

    run(rt, each())
    tier.close()


def test_the_deadline_is_one_for_all_parts_of_an_answer(rt: Any) -> None:
    """A timeout for each ``recv`` alone would let a server that dribbles keep a caller for ever."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def dribble() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b":1\r\n")  # CLIENT ID
                connection.recv(1000)
                connection.sendall(b"$1000\r\n")
                try:
                    while not stop.wait(0.05):
                        connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=dribble)
        thread.start()
        tier = RedisTier(port=listener.getsockname()[1], namespace="n", timeout=0.4)
        start = time.monotonic()
        with pytest.raises(TierTimeout):
            run(rt, tier.read(rt, ["k"]))
        assert time.monotonic() - start < LATEST
        stop.set()
        thread.join()
        tier.close()


@pytest.mark.parametrize("storing", [THREADS, AIO], ids=["stored by thread", "stored by task"])
def test_a_late_store_never_undoes_an_acknowledged_delete(
    tier: RedisTier, own_server: RedisProcess, rt: Any, storing: Any
) -> None:
    """The store lies unread in the hung server's socket. It must be gone once a delete has been acknowledged."""

    async def store() -> None:
        await tier.store(
            storing, {"k": stored()}
        )  # connection and script stand: only the store itself can hang
        own_server.pause()
        with pytest.raises(TierTimeout):
            await tier.store(storing, {"k": stored(b"late")})

    run(storing, store())
    threading.Timer(0.1, own_server.resume).start()
    assert wait_until(lambda: _delete(tier, rt), 5)
    for _ in range(20):
        assert own_server.ask("GET", f"{tier.namespace}:k:k") is None
        time.sleep(0.01)


def _delete(tier: RedisTier, rt: Any) -> bool:
    try:
        run(rt, tier.drop(rt, ["k"]))
        return True
    except TierUnavailable:
        return False


def test_the_connection_of_a_late_store_is_killed_before_anything_else_is_sent(
    own_redis: Callable[..., RedisServer], namespace: str, rt: Any
) -> None:
    """A frozen network in place of a hung server: it holds the store back while the server serves everyone else."""
    server = own_redis()
    with _Proxy(server.port) as proxy:
        tier = RedisTier(port=proxy.port, namespace=namespace, timeout=0.3)
        other = threading.Thread(target=lambda: drive(tier.connect(THREADS)))

        async def store() -> None:
            await tier.store(rt, {"k": stored()})
            proxy.freeze()
            with pytest.raises(TierTimeout):
                await tier.store(rt, {"k": stored(b"late")})

        run(rt, store())
        other.start()
        other.join()
        assert run(rt, tier.drop(rt, ["k"])) == [True]
        proxy.thaw()
        for _ in range(20):
            assert server.ask("GET", f"{namespace}:k:k") is None
            time.sleep(0.01)
        assert tier._server.late.ids == ()
        tier.close()


class _Proxy:
    """Passes bytes on; `freeze` holds back what comes over the connections that stand, not over new ones."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._gates: list[threading.Event] = []
        self._frozen: list[threading.Event] = []
        self._start(self._accept)

    def __enter__(self) -> _Proxy:
        return self

    def freeze(self) -> None:
        self._frozen = list(self._gates)
        for gate in self._frozen:
            gate.clear()

    def thaw(self) -> None:
        for gate in self._frozen:
            gate.set()

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            gate = threading.Event()
            gate.set()
            self._gates.append(gate)
            self._sockets += [near, far]
            self._start(self._copy, near, far, gate)
            self._start(self._copy, far, near, gate)

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                gate.wait()
                sink.sendall(data)
        except OSError:
            return
        gate.wait()
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(5)
        for sock in self._sockets:
            sock.close()


def test_where_the_kill_is_not_allowed_the_tier_stays_unavailable(
    own_redis: Callable[..., RedisServer], namespace: str, rt: Any
) -> None:
    server = own_redis()
    server.ask("ACL", "SETUSER", "app", "on", ">app-secret", "~*", "+@all", "-client|kill")
    tier = RedisTier(port=server.port, username="app", password="app-secret", namespace=namespace)

    async def main() -> None:
        await tier.connect(rt)
        server.pause()
        with pytest.raises(TierTimeout):
            await tier.store(rt, {"k": stored()})
        server.resume()
        for _ in range(2):
            with pytest.raises(TierUnavailable, match=r"\+client\|kill") as caught:
                await tier.read(rt, ["k"])
            assert "app-secret" not in str(caught.value)
        server.ask("ACL", "SETUSER", "app", "+client|kill")
        await tier.read(rt, ["k"])

    run(rt, main())
    tier.close()


def test_a_restarted_server_is_used_again_at_once(tier: RedisTier, own_server: RedisProcess, rt: Any) -> None:
    async def main() -> None:
        calls: list[Callable[[], Any]] = [
            lambda: tier.read(rt, ["k"]),
            lambda: tier.drop(rt, ["k"]),
            lambda: tier.swap(rt, [Swap("k", None, leased())]),
            lambda: tier.store(rt, {"k": stored(b"x" * 100_000)}),
            lambda: tier.swap(rt, [Swap("large", None, stored(b"x" * 100_000))]),
        ]
        for call in calls:
            await tier.connect(rt)
            own_server.kill()
            with pytest.raises(TierUnavailable):
                await tier.store(rt, {"k": stored()})
            own_server.start()
            await tier.connect(rt)
            own_server.restart()
            await call()

    run(rt, main())


def test_errors_of_the_server_reach_the_caller(tier: RedisTier, own_server: RedisProcess, rt: Any) -> None:
    own_server.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(TierUnavailable, match="OOM"):
        run(rt, tier.store(rt, {"k": stored()}))
    own_server.ask("CONFIG", "SET", "maxmemory", "0")
    assert run(rt, tier.store(rt, {"k": stored()})) == [True]


def test_a_cancelled_caller_disturbs_nobody(tier: RedisTier) -> None:
    async def main() -> None:
        slots = {f"k{n}": stored(b"%d" % n) for n in range(100)}
        await tier.store(AIO, slots)
        tasks = {key: asyncio.ensure_future(tier.read(AIO, [key])) for key in slots}
        await asyncio.sleep(0)
        for task in list(tasks.values())[::3]:
            task.cancel()
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        for n, (key, result) in enumerate(zip(tasks, results, strict=True)):
            if n % 3 == 0:
                assert isinstance(result, asyncio.CancelledError)
            else:
                assert result == ({key: slots[key]}, {})
        assert tier.describe()["connections"] == 1

    asyncio.run(main())


def test_a_cancelled_store_is_over_when_its_caller_goes(
    own_redis: Callable[..., RedisServer], namespace: str
) -> None:
    server = own_redis()

    async def main() -> None:
        await tier.store(AIO, {"k": stored()})
        proxy.freeze()
        task = asyncio.ensure_future(tier.store(AIO, {"k": stored(b"late")}))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()
        start = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start < LATEST
        assert await asyncio.to_thread(lambda: drive(tier.drop(THREADS, ["k"]))) == [True]
        proxy.thaw()
        for _ in range(20):
            assert server.ask("GET", f"{namespace}:k:k") is None
            await asyncio.sleep(0.01)

    with _Proxy(server.port) as proxy:
        tier = RedisTier(port=proxy.port, namespace=namespace, timeout=0.3)
        asyncio.run(main())
        tier.close()


def test_a_cancelled_large_swap_leaves_nothing_watched(tier: RedisTier, own_server: RedisProcess) -> None:
    large = stored(b"x" * 100_000)

    async def main() -> None:
        await tier.swap(AIO, [Swap("k", None, large)])
        own_server.pause()
        task = asyncio.ensure_future(tier.swap(AIO, [Swap("k", large, stored(b"y" * 100_000))]))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        own_server.resume()
        standing = (await tier.read(AIO, ["k"]))[0]["k"]
        assert (await tier.swap(AIO, [Swap("k", standing, stored(b"z" * 100_000))]))[0].done

    asyncio.run(main())


def test_loops_come_and_go_and_leave_nothing_open(tier: RedisTier, own_server: RedisProcess) -> None:
    def clients() -> int:
        return int(own_server.info("clients")["connected_clients"]) - 1  # the one that asks

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            asyncio.run(_use(tier))
            assert tier.describe()["connections"] <= 2  # a loop that is gone is tidied up by the next
        tier.close()
        tier.close()
        gc.collect()
        assert tier.describe()["connections"] == 0
        assert wait_until(lambda: clients() == 0, 5)
        asyncio.run(_use(tier))
        assert tier.describe()["connections"] == 2
        tier.close()
        assert wait_until(lambda: clients() == 0, 5)


async def _use(tier: RedisTier) -> None:
    await asyncio.gather(*(tier.read(AIO, [f"k{n}"]) for n in range(10)))
    await tier.swap(AIO, [Swap("k", None, stored(b"x" * 100_000))])


def test_close_from_another_thread_reaches_a_running_loop(tier: RedisTier, own_server: RedisProcess) -> None:
    async def main() -> None:
        await tier.connect(AIO)
        own_server.pause()
        task = asyncio.ensure_future(tier.read(AIO, ["k"]))
        await asyncio.sleep(0.05)
        threading.Thread(target=tier.close).start()
        with pytest.raises(TierUnavailable, match="the tier was closed"):
            await task
        own_server.resume()
        await tier.read(AIO, ["k"])

    asyncio.run(main())


def test_close_reaches_a_thread_that_waits(tier: RedisTier, own_server: RedisProcess) -> None:
    drive(tier.connect(THREADS))
    own_server.pause()
    closing = threading.Timer(0.1, tier.close)
    closing.start()
    start = time.monotonic()
    with pytest.raises(TierUnavailable) as caught:
        drive(tier.read(THREADS, ["k"]))
    assert time.monotonic() - start < 0.45
    assert not isinstance(caught.value, TierTimeout)
    closing.join()
    own_server.resume()
    drive(tier.read(THREADS, ["k"]))


def test_threads_that_end_leave_no_connection(tier: RedisTier) -> None:
    threads = [threading.Thread(target=lambda: drive(tier.connect(THREADS))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threads.clear()
    gc.collect()
    assert tier.describe()["connections"] == 0


def test_a_bound_on_connections(own_server: RedisProcess, namespace: str) -> None:
    tier = RedisTier(
        port=own_server.port, password=own_server.password, namespace=namespace, max_connections=2
    )
    wrong: list[object] = []

    def work(n: int) -> None:
        for i in range(30):
            slot = stored(b"%d-%d" % (n, i))
            drive(tier.store(THREADS, {f"k{n}": slot}))
            if drive(tier.read(THREADS, [f"k{n}"]))[0][f"k{n}"] != slot:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 1 <= tier.describe()["connections"] <= 2
    own_server.pause()
    failures: list[str] = []

    def fail() -> None:
        try:
            drive(tier.read(THREADS, ["k"]))
        except TierTimeout as error:
            failures.append(str(error))

    threads = [threading.Thread(target=fail) for _ in range(6)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < LATEST
    assert len(failures) == 6
    own_server.resume()
    drive(tier.read(THREADS, ["k"]))
    tier.close()


def test_a_reply_left_unread_answers_no_other_command(tier: RedisTier) -> None:
    """An exception out of a signal handler can come between sending and receiving."""
    drive(tier.store(THREADS, {"mine": stored(b"mine"), "other": stored(b"other")}))
    driver = tier._server.blocking
    driver.start([("GET", f"{tier.namespace}:k:other")], time.monotonic() + 1)
    assert drive(tier.read(THREADS, ["mine"]))[0]["mine"].payload == b"mine"


def test_both_faces_at_once(tier: RedisTier) -> None:
    stop = time.monotonic() + 0.5
    wrong: list[object] = []
    expected = {f"k{n}": stored(b"%d" % n * 50) for n in range(20)}
    drive(tier.store(THREADS, expected))

    def by_thread() -> None:
        while time.monotonic() < stop:
            for key, slot in expected.items():
                if drive(tier.read(THREADS, [key]))[0] != {key: slot}:
                    wrong.append(key)

    async def by_tasks() -> None:
        while time.monotonic() < stop:
            found = await asyncio.gather(*(tier.read(AIO, [key]) for key in expected))
            wrong.extend(
                1 for one, (key, slot) in zip(found, expected.items(), strict=True) if one[0] != {key: slot}
            )

    threads = [threading.Thread(target=by_thread) for _ in range(4)]
    threads += [threading.Thread(target=lambda: asyncio.run(by_tasks())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("bound", [None, 3])
def test_a_forked_child_leaves_the_parents_connections_alone(
    own_server: RedisProcess, namespace: str, bound: int | None
) -> None:
    tier = RedisTier(
        port=own_server.port, password=own_server.password, namespace=namespace, max_connections=bound
    )

    async def main() -> None:
        drive(tier.store(THREADS, {"k": stored()}))
        await tier.connect(AIO)
        mine = _ids(own_server)
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child's own process
            code = 1
            try:
                asyncio._set_running_loop(None)
                tier.after_fork()
                found = drive(tier.read(THREADS, ["k"]))[0]
                both = asyncio.run(tier.read(AIO, ["k"]))[0]
                tier.close()
                code = 0 if "k" in found and "k" in both else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        drive(tier.read(THREADS, ["k"]))
        await tier.read(AIO, ["k"])
        assert mine <= _ids(own_server)
        assert tier.describe()["connections"] == 2

    asyncio.run(main())
    tier.close()


def _ids(server: RedisProcess) -> set[str]:
    listed = server.ask("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    lines = [line for line in listed.decode().splitlines() if "cmd=client|list" not in line]
    return {line.split()[0] for line in lines}
