"""The buffer in Redis over replicas and clusters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from cachewright.errors import (
    BufferUnavailable,
    BufferUnconfirmed,
    TierProtocolError,
)
from cachewright.runtime.process import wait_until
from cachewright.testing.servers import RedisCluster, RedisServer
from cachewright.tiers.redis_cluster_map import key_slot
from cachewright.tiers.redis_process import RedisProcess
from tests.faults.lossy import TOKEN, Face

OTHER = b"flusher2"
KEYS = [f"k{n}" for n in range(40)]


# Replicas


def test_a_write_counts_when_replicas_have_it(
    opened: Callable[..., Face], own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis(options={"repl-diskless-sync-delay": "0"})
    replica = own_redis(options={"replicaof": f"127.0.0.1 {server.port}"})
    assert wait_until(lambda: replica.info("replication")["master_link_status"] == "up", 20)
    enough = opened(f"{server.url}?durability=wait:1&wait_timeout=20")
    (first,) = enough.put("a", value=b"1")
    assert replica.ask("HEXISTS", enough.buffer._at._names[0][1], "a") == 1
    server.ask("SCRIPT", "FLUSH")
    enough.put("a", value=b"2")

    too_few = opened(f"{server.url}?durability=wait:2&wait_timeout=0.1")
    with pytest.raises(BufferUnconfirmed, match="1 of the 2 replicas"):
        too_few.put("a", value=b"3")
    found = too_few.read(["a"])["a"]
    assert (found.payload, found.sequence > first) == (b"3", True), "it stands, and nothing of it is lost"
    assert too_few.ack(*too_few.take()) == 1, "only writes wait"

    replica.pause()
    late = opened(f"{server.url}?durability=wait:1&wait_timeout=0.1")
    with pytest.raises(BufferUnconfirmed, match="0 of the 1 replicas"):
        late.put("b")
    replica.resume()


def test_every_node_of_a_cluster_is_waited_for(
    opened: Callable[..., Face], redis_cluster: RedisCluster
) -> None:
    face = opened(f"{redis_cluster.url}?durability=wait:1&wait_timeout=20&timeout=20")
    assert len(face.put(*KEYS)) == len(KEYS)
    too_few = opened(f"{redis_cluster.url}?durability=wait:2&wait_timeout=0.1&timeout=20")
    with pytest.raises(BufferUnconfirmed, match="of the 2 replicas"):
        too_few.put("k0")


# Clusters


def test_a_cluster_shares_the_records(opened: Callable[..., Face], redis_cluster: RedisCluster) -> None:
    face = opened(f"{redis_cluster.url}?timeout=20")
    face.put(*KEYS)
    face.put("oldest")
    names = [names[1] for names in face.buffer._at._names]
    assert len({key_slot(name) for name in names}) == 16
    nodes = redis_cluster.nodes[: redis_cluster.primaries]
    used = [node for node in nodes if any(_has(node, name) for name in names)]
    assert len(used) > 1
    assert [r.key for r in face.records(limit=3)] == KEYS[:3] or len(face.records(limit=3)) == 3
    assert {r.key for r in face.records()} == {*KEYS, "oldest"}
    taken = face.take(limit=7)
    assert len(taken) == 7, "never more than was asked for, however many partitions are asked"
    assert face.renew(TOKEN, 60) == 7
    assert face.ack(*taken) == 7
    rest = face.take(OTHER, limit=100)
    assert len(rest) == len(KEYS) + 1 - 7
    assert rest == sorted(rest, key=lambda record: record.not_before)
    face.release(OTHER)
    assert face.stats().dirty == len(rest)


def _has(node: RedisProcess, name: bytes) -> bool:
    try:
        return bool(node.ask("EXISTS", name))
    except TierProtocolError:  # MOVED
        return False


def test_an_orphan_of_any_partition_comes_alone(
    opened: Callable[..., Face], redis_cluster: RedisCluster
) -> None:
    clock = [1_000_000.0]
    face = opened(f"{redis_cluster.url}?timeout=20", clock=lambda rt: clock[0])
    face.put(*KEYS[:3])
    assert len(face.take(b"dead one", life=1.0)) == 3
    clock[0] += 2
    face.put(*KEYS[3:10])
    sizes = [[record.suspect for record in face.take(b"%08d" % n)] for n in range(4)]
    assert sizes == [[True], [True], [True], [False] * 7]


def test_an_orphan_that_shows_up_between_look_and_claim_waits_for_the_next(
    opened: Callable[..., Face], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1_000_000.0]
    face = opened(f"{redis_server.url}?partitions=2", clock=lambda rt: clock[0])
    face.put(*KEYS)
    assert len(face.take(b"dead one", life=1.0, limit=20)) == 20
    real = face.buffer._at.run

    async def slow(rt: Any, script: str, arguments: Any, **more: Any) -> Any:
        clock[0] += 2 if any("free" in words for words in arguments.values()) else 0
        return await real(rt, script, arguments, **more)

    monkeypatch.setattr(face.buffer._at, "run", slow)
    found = face.take(limit=40)
    assert [record.suspect for record in found] == [False] * 20
    assert [record.suspect for record in face.take(OTHER)] == [True]


def test_a_partition_on_its_way_to_another_node_is_refused_as_a_whole(
    opened: Callable[..., Face], own_cluster: Callable[..., RedisCluster]
) -> None:
    cluster = own_cluster(primaries=3, replicas=0)
    face = opened(f"{cluster.url}?timeout=0.2&partitions=1")
    face.put("a", "b", value=b"1")
    names = face.buffer._at._names[0]
    source = cluster.primary_of(names[0])
    target = next(node for node in cluster.nodes if node is not source)
    slot, here, there = (
        key_slot(names[0]), source.ask("CLUSTER", "MYID"), target.ask("CLUSTER", "MYID"),
    )  # fmt: skip
    assert isinstance(here, bytes)
    assert isinstance(there, bytes)
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
    for some in ([], names[:5], names[5:]):
        for name in some:
            source.ask("MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
        with pytest.raises(BufferUnavailable, match="TRYAGAIN"):
            face.put("a", "c", value=b"2")
    patient = opened(f"{cluster.url}?timeout=20&partitions=1")

    def refusals() -> str:
        return target.info("errorstats").get("errorstat_TRYAGAIN", "")

    def arrive() -> None:
        before = refusals()
        wait_until(lambda: refusals() != before, 20)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", there)

    mover = threading.Thread(target=arrive)
    mover.start()
    assert set(patient.read(["a", "b", "c"])) == {"a", "b"}, "asked for again until it had arrived"
    mover.join(30)
    assert [record.payload for record in patient.read(["a", "b", "c"]).values()] == [b"1", b"1"]
    patient.put("c", value=b"3")
    assert {record.key for record in patient.take()} == {"a", "b", "c"}
    assert patient.stats().bytes == 9


def test_a_shard_that_is_down_fails_only_what_touches_it(
    opened: Callable[..., Face], own_cluster: Callable[..., RedisCluster]
) -> None:
    cluster = own_cluster(primaries=3, replicas=0)
    face = opened(f"{cluster.url}?timeout=3")
    face.put(*KEYS)
    victim = cluster.primary_of(face.buffer._at._names[0][0])
    nodes = [cluster.primary_of(names[0]) for names in face.buffer._at._names]
    down = {key for key in KEYS if nodes[face.buffer._at.of(key)] is victim}
    up = [key for key in KEYS if key not in down]
    assert down
    assert up
    victim.kill()
    found = face.take()
    assert {record.key for record in found} == set(up)
    assert face.next_due() is not None
    assert face.ack(*found) == len(up)
    for ask in (face.stats, face.records, face.next_due, lambda: face.read(KEYS)):
        with pytest.raises(BufferUnavailable):  # nobody says "nothing is dirty" of what he cannot see
            ask()
    with pytest.raises(BufferUnavailable):
        face.take(OTHER, keys=sorted(down))
    with pytest.raises(BufferUnavailable):
        face.put(*KEYS)
    assert face.read(up) == {}, "none was taken"
    face.put(*up)
    victim.start()
    assert wait_until(lambda: victim.info("cluster").get("cluster_enabled") == "1", 20)
