"""The cluster tier: routing, redirections, slots on their way, hung and dying shards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cachewright.core.slot import Intent, Slot
from cachewright.errors import ConfigurationError, TierProtocolError, TierTimeout, TierUnavailable
from cachewright.runtime.aio import AIO
from cachewright.runtime.base import drive
from cachewright.runtime.process import wait_until
from cachewright.runtime.threads import THREADS
from cachewright.testing.servers import RedisCluster, RedisServer
from cachewright.tiers.base import Swap
from cachewright.tiers.embedded_cluster import ClusterProcesses
from cachewright.tiers.redis_cluster import RedisClusterTier
from cachewright.tiers.redis_cluster_map import key_slot, parse_slots, redirection
from cachewright.tiers.redis_driver import ReplyError
from cachewright.tiers.redis_process import RedisProcess
from tests.slots import lease as leased
from tests.slots import run
from tests.slots import slot as stored

KEYS = [f"k{n}" for n in range(300)]
LATEST = 0.95


def tier_of(cluster: ClusterProcesses, namespace: str, *, first_node_only: bool = False) -> RedisClusterTier:
    nodes = [("127.0.0.1", node.port) for node in cluster.nodes if node.running]
    return RedisClusterTier(
        nodes=nodes[:1] if first_node_only else nodes, password=cluster.nodes[0].password, namespace=namespace
    )


@pytest.fixture(params=["redis", "valkey"])
def cluster(request: pytest.FixtureRequest) -> ClusterProcesses:
    found: ClusterProcesses = request.getfixturevalue(f"{request.param}_cluster")
    return found


@pytest.fixture(params=[THREADS, AIO], ids=["threads", "asyncio"])
def rt(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def tier(cluster: ClusterProcesses, namespace: str) -> Iterator[RedisClusterTier]:
    tier = tier_of(cluster, namespace, first_node_only=True)
    tier.timeout = 5
    yield tier
    tier.close()


def test_every_operation_over_all_shards(tier: RedisClusterTier, rt: Any) -> None:
    async def main() -> None:
        slots = {key: stored(b"x" * (100_000 if key.endswith("7") else 10)) for key in KEYS}
        assert await tier.store(rt, slots) == [True] * len(KEYS)
        assert await tier.read(rt, [*KEYS, "absent"]) == (slots, {})
        new = {key: stored(b"y" * (100_000 if key.endswith("3") else 10)) for key in KEYS}
        swaps = [Swap(key, slots[key], new[key]) for key in KEYS]
        assert all(result.done for result in await tier.swap(rt, swaps))
        refused = await tier.swap(rt, swaps)
        assert [result.current for result in refused] == list(new.values())
        tags = {f"t{n}": os.urandom(8) for n in range(50)}
        marks = await tier.set_generations(rt, tags, only_missing=True)
        assert {tag: mark.mark for tag, mark in marks.items()} == tags
        assert await tier.read(rt, KEYS[:5], [*tags, "none"]) == ({key: new[key] for key in KEYS[:5]}, marks)
        assert await tier.drop(rt, [*KEYS[:5], "absent"]) == [True] * 5 + [False]
        intent = Slot(os.urandom(8), intents=(Intent(os.urandom(8), int(time.time() * 1000) + 9000),))
        assert (await tier.swap(rt, [Swap(KEYS[0], None, intent)]))[0].done
        await tier.clear(rt)
        assert list((await tier.read(rt, KEYS))[0]) == [KEYS[0]]
        assert len((await tier.read(rt, [], list(tags)))[1]) == 50
        assert (await tier.read(rt, []), await tier.drop(rt, []), await tier.swap(rt, [])) == (
            ({}, {}),
            [],
            [],
        )
        assert len(tier.describe()["primaries"]) == 3

    run(rt, main())


def test_a_wrong_map_is_put_right_by_redirections(tier: RedisClusterTier, rt: Any) -> None:
    async def main() -> None:
        await tier.connect(rt)
        owners = tier._map._owners
        assert owners is not None
        for turn in (6000, 11000):
            tier._map._owners = owners[turn:] + owners[:turn]
            slots = {key: stored(b"x" * (100_000 if key.endswith("7") else 10)) for key in KEYS}
            assert all(await tier.store(rt, slots))
            tier._map._owners = owners[turn:] + owners[:turn]
            swaps = [
                Swap(key, slots[key], stored(b"z" * (50_000 if key.endswith("3") else 1))) for key in KEYS
            ]
            assert all(result.done for result in await tier.swap(rt, swaps))
            tier._map._owners = owners[turn:] + owners[:turn]
            assert len((await tier.read(rt, KEYS))[0]) == len(KEYS)

    run(rt, main())


def test_a_slot_on_its_way_is_followed(
    own_cluster: Callable[..., RedisCluster], namespace: str, rt: Any
) -> None:
    cluster = own_cluster(2, 0)
    tier = tier_of(cluster, namespace)
    large = b"x" * 100_000

    async def main() -> None:
        await tier.store(rt, {"k": stored()})
        name = f"{namespace}:k:k"
        slot = key_slot(name.encode())
        source = cluster.primary_of(name)
        target = next(node for node in cluster.nodes if node is not source)
        ids = {node: bytes(node.ask("CLUSTER", "MYID")).decode() for node in cluster.nodes}  # type: ignore[arg-type]
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        source.ask("MIGRATE", "127.0.0.1", target.port, name, 0, 1000)
        for node in cluster.nodes:
            node.ask("SCRIPT", "FLUSH")
        found = (await tier.read(rt, ["k"]))[0]["k"]
        assert (await tier.swap(rt, [Swap("k", found, stored(large))]))[0].done
        assert (await tier.read(rt, ["k"]))[0]["k"].payload == large
        assert await tier.drop(rt, ["k"]) == [True]
        assert await tier.store(rt, {"k": stored()}) == [True]
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        assert await tier.drop(rt, ["k"]) == [True]

    run(rt, main())
    tier.close()


def test_unknown_scripts_on_every_node(cluster: ClusterProcesses, tier: RedisClusterTier, rt: Any) -> None:
    for node in cluster.nodes:
        node.ask("SCRIPT", "FLUSH")
    results = run(rt, tier.swap(rt, [Swap(key, None, leased()) for key in KEYS]))
    assert all(result.done for result in results)


def test_a_dead_shard_leaves_the_others_alone_and_comes_back_by_itself(
    own_cluster: Callable[..., RedisCluster], namespace: str, rt: Any
) -> None:
    cluster = own_cluster()
    tier = tier_of(cluster, namespace)

    async def main() -> None:
        await tier.store(rt, {key: stored() for key in KEYS})
        assert wait_until(lambda: _replicated(cluster), 10)
        victim = cluster.kill_primary(f"{namespace}:k:k0")
        start = time.monotonic()
        partly = (await tier.read(rt, KEYS))[0]
        assert 0 < len(partly) < len(KEYS)
        assert time.monotonic() - start < LATEST
        alive = next(iter(partly))
        with pytest.raises(TierUnavailable):
            await tier.swap(rt, [Swap("k0", None, leased())])
        with pytest.raises(TierUnavailable):
            await tier.drop(rt, ["k0", alive])
        assert await tier.drop(rt, [alive]) == [False]  # what could be carried out was
        longest = 0.0
        while (await _recovered(tier, rt)) is False:
            before = time.monotonic()
            assert before - start < 15
            await tier.store(rt, {alive: stored()})
            longest = max(longest, time.monotonic() - before)
            await rt.sleep(0.02)
        assert longest < LATEST
        assert len((await tier.read(rt, KEYS))[0]) >= len(KEYS) - 1
        victim.start()
        assert len((await tier.read(rt, KEYS))[0]) >= len(KEYS) - 1

    run(rt, main())
    tier.close()


def _replicated(cluster: ClusterProcesses) -> bool:
    offsets = [node.info("replication") for node in cluster.nodes]
    return all(
        info["role"] == "master" or info["master_repl_offset"] == info["slave_repl_offset"]
        for info in offsets
    )


async def _recovered(tier: RedisClusterTier, rt: Any) -> bool:
    try:
        await tier.drop(rt, ["k0"])
        return True
    except TierUnavailable:
        return False


@pytest.mark.parametrize("known", [True, False], ids=["connected", "first use"])
def test_a_hung_shard_costs_one_deadline_and_then_nothing(
    own_cluster: Callable[..., RedisCluster], namespace: str, rt: Any, known: bool
) -> None:
    cluster = own_cluster(3, 0)
    writer = tier_of(cluster, namespace)
    tier = writer if known else tier_of(cluster, namespace)

    async def main() -> None:
        await writer.store(rt, {key: stored() for key in KEYS})
        hung = cluster.primary_of(f"{namespace}:k:k0")
        hung.pause()
        start = time.monotonic()
        partly = (await tier.read(rt, KEYS))[0]
        assert time.monotonic() - start < LATEST
        assert 100 < len(partly) < len(KEYS)
        assert "k0" not in partly
        start = time.monotonic()
        assert (await tier.read(rt, KEYS))[0] == partly
        with pytest.raises(TierUnavailable, match="a moment ago"):
            await tier.read(rt, ["k0"])
        assert time.monotonic() - start < 0.3
        hung.resume()
        start = time.monotonic()
        while "k0" not in (await tier.read(rt, KEYS))[0]:
            assert time.monotonic() - start < 5
            await rt.sleep(0.02)

    run(rt, main())
    tier.close()
    writer.close()


def test_a_late_store_is_killed_on_its_node(
    own_cluster: Callable[..., RedisCluster], namespace: str, rt: Any
) -> None:
    cluster = own_cluster(2, 0)
    tier = tier_of(cluster, namespace)
    name = f"{namespace}:k:k0"

    async def main() -> None:
        await tier.store(rt, {"k0": stored()})
        hung = cluster.primary_of(name)
        hung.pause()
        with pytest.raises(TierTimeout):
            await tier.store(rt, {"k0": stored(b"late")})
        hung.resume()
        start = time.monotonic()
        while not await _recovered(tier, rt):
            assert time.monotonic() - start < 5
            await rt.sleep(0.02)
        for _ in range(20):
            assert hung.ask("GET", name) is None
            await rt.sleep(0.01)

    run(rt, main())
    tier.close()


def test_no_node_at_all_and_no_cluster(redis_server: RedisServer, namespace: str, rt: Any) -> None:
    with pytest.raises(ConfigurationError, match="at least one node"):
        RedisClusterTier(nodes=[], namespace=namespace)
    single = RedisClusterTier(nodes=[("127.0.0.1", redis_server.port)], namespace=namespace)
    with pytest.raises(TierProtocolError, match="redis://"):
        run(rt, single.connect(rt))
    nowhere = RedisClusterTier(
        nodes=[("127.0.0.1", 1), ("127.0.0.1", 2)], password="the-secret", namespace=namespace
    )
    with pytest.raises(TierUnavailable) as caught:
        run(rt, nowhere.read(rt, ["k"]))
    assert "the-secret" not in f"{caught.value} {nowhere!r} {nowhere.describe()}"
    single.close()
    nowhere.close()


def test_close_and_fork(cluster: ClusterProcesses, tier: RedisClusterTier) -> None:
    drive(tier.store(THREADS, {key: stored() for key in KEYS}))
    assert tier.describe()["connections"] >= 3
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child's own process
        code = 1
        try:
            tier.after_fork()
            code = 0 if len(drive(tier.read(THREADS, KEYS))[0]) == len(KEYS) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(drive(tier.read(THREADS, KEYS))[0]) == len(KEYS)
    tier.close()
    tier.close()
    assert tier.describe()["connections"] == 0
    assert len(drive(tier.read(THREADS, KEYS))[0]) == len(KEYS)


def test_hash_slots_as_the_server_computes_them(redis_cluster: RedisCluster) -> None:
    node: RedisProcess = redis_cluster.nodes[0]
    for key in (
        "a",
        "ns:k:user:1",
        "{a}b",
        "x{a}b",
        "x{}b",
        "x{a",
        "}{a}",
        "{{a}}",
        "ä{ö}",
        "ns:k:{",
        "x{a}{b}",
    ):
        assert node.ask("CLUSTER", "KEYSLOT", key.encode()) == key_slot(key.encode())


def test_redirections_and_maps_without_hosts() -> None:
    asked = ("10.0.0.1", 7000)
    assert redirection(ReplyError("MOVED 3999 127.0.0.1:6381"), asked) == (3999, ("127.0.0.1", 6381))
    assert redirection(ReplyError("ASK 5 :6381"), asked) == (5, ("10.0.0.1", 6381))
    assert redirection(ReplyError("MOVED 5 ::1:6381"), asked) == (5, ("::1", 6381))
    owners, nodes = parse_slots(
        [[0, 1, [b"", 7000, b"id"], [b"10.0.0.2", 7001, b"id"]], [3, 3, [None, 7002, b"id"]]], asked
    )
    assert owners[:4] == [asked, asked, None, ("10.0.0.1", 7002)]
    assert nodes == {asked, ("10.0.0.2", 7001), ("10.0.0.1", 7002)}
