"""The buffer in Redis over replicas and clusters; damage, partitions, bounds, URLs, and a repository on top."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from cachewright import Cache, WriteBehind
from cachewright.behind.buffers import open_buffer
from cachewright.behind.buffers.base import NewRecord
from cachewright.errors import (
    BufferFull,
    BufferUnavailable,
    BufferUnconfirmed,
    ConfigurationError,
    FlushTimeout,
    TierProtocolError,
)
from cachewright.runtime.process import wait_until
from cachewright.testing.servers import RedisCluster, RedisServer
from cachewright.tiers.redis_cluster_map import key_slot
from cachewright.tiers.redis_process import RedisProcess
from tests.faults.lossy import TOKEN, Face

OTHER = b"flusher2"
KEYS = [f"k{n}" for n in range(40)]


@pytest.fixture(params=["threads", "asyncio"])
def face_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def opened(face_name: str, namespace: str) -> Iterator[Callable[..., Face]]:
    made: list[Face] = []

    def make(url: str, **options: Any) -> Face:
        made.append(Face(face_name, url, f"{namespace}/user", **options))
        return made[-1]

    yield make
    for face in made:
        face.close()


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


# Partitions, bounds


@pytest.mark.parametrize("other", [1, 16])
def test_another_number_of_partitions_is_refused(
    other: int, opened: Callable[..., Face], redis_server: RedisServer
) -> None:
    four = opened(f"{redis_server.url}?partitions=4")
    four.put(*KEYS)
    wrong = opened(f"{redis_server.url}?partitions={other}")
    for ask in (lambda: wrong.put("a"), wrong.take, wrong.stats):
        with pytest.raises(ConfigurationError, match=f"partitions=4 and is opened with partitions={other}"):
            ask()
    assert four.stats().dirty == len(KEYS)


def test_bounds_over_partitions(opened: Callable[..., Face], redis_server: RedisServer) -> None:
    face = opened(f"{redis_server.url}?partitions=8", max_dirty=400, max_dirty_bytes=80_000)
    face.put(*(f"n{n}" for n in range(400)))  # the whole bound fits, however unevenly the keys fall
    more = [f"m{n}" for n in range(400)]
    with pytest.raises(BufferFull, match="a partition's share"):
        face.put(*more)
    assert face.read(more) == {}, "none was taken"
    face.put("n0", value=b"newer")
    empty = opened(f"{redis_server.url}?partitions=8", max_dirty_bytes=80_000)
    while records := empty.take():
        empty.ack(*records)
    empty.put("large", value=b"x" * 70_000)
    with pytest.raises(BufferFull, match="bytes"):
        empty.put("large", value=b"x" * 90_000)


def test_what_only_some_partitions_took_is_unconfirmed(
    opened: Callable[..., Face], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer fills one partition after all have been looked at."""
    bounds = {"max_dirty": 8, "max_dirty_bytes": 80_000}
    face = opened(f"{redis_server.url}?partitions=8", **bounds)
    first, second = next([a, b] for a, b in pairwise(KEYS) if face.buffer._at.of(a) != face.buffer._at.of(b))
    same = [key for key in KEYS if face.buffer._at.of(key) == face.buffer._at.of(second) and key != second]
    assert len(same) > 2
    real = face.buffer._append

    async def overtaken(rt: Any, groups: Any, *rest: Any, dry: bool) -> Any:
        if not dry and len(groups) > 1:
            monkeypatch.undo()
            with pytest.raises(BufferFull):
                for key in [*same, *(f"{key}x" for key in KEYS)]:
                    if face.buffer._at.of(key) == face.buffer._at.of(second):
                        await face.buffer.append(rt, [NewRecord(key, b"", b"")])
        return await real(rt, groups, *rest, dry=dry)

    monkeypatch.setattr(face.buffer, "_append", overtaken)
    with pytest.raises(BufferUnconfirmed, match=f"took 1 of 2 records, the first: '{first}'.*no room"):
        face.put(first, second)
    assert set(face.read([first, second])) == {first}


# Damage


def test_a_damaged_record_is_named_and_hides_no_others(
    opened: Callable[..., Face], redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    face = opened(redis_server.url)
    face.put("bad", "empty", "good", value=b"12345")
    rec, pay = (face.buffer._at._names[0][n] for n in (1, 2))
    sound = redis_server.ask("HGET", rec, "bad")
    assert isinstance(sound, bytes)
    redis_server.ask("HSET", rec, "bad", b"\xc1junk")
    redis_server.ask("HDEL", pay, "empty")
    for key in ("bad", "empty"):
        with pytest.raises(BufferUnavailable, match=f"key {key}'.*HDEL"):
            face.read([key])
        with pytest.raises(BufferUnavailable, match=key):
            face.put(key)
    assert set(face.read(["good"])) == {"good"}
    assert [record.key for record in face.take()] == ["good"]
    assert sum("damaged record" in line for line in caplog.messages) == 2
    for ask in (face.next_due, face.stats, face.records):
        with pytest.raises(BufferUnavailable, match="damaged"):
            ask()
    assert face.take(OTHER) == []
    redis_server.ask("HSET", rec, "bad", sound)
    redis_server.ask("HDEL", rec, "empty")
    assert face.stats().dirty == 2
    assert face.stats().bytes == len("badgood") * 2 + 2 * 5
    assert [record.key for record in face.take(OTHER)] == ["bad"]


@pytest.mark.parametrize("at", range(11))
def test_a_key_of_another_type_is_named_and_changes_nothing(
    at: int, opened: Callable[..., Face], redis_server: RedisServer
) -> None:
    face = opened(redis_server.url)
    face.put("a")
    name = face.buffer._at._names[0][at]
    kept = redis_server.ask("DUMP", name)
    redis_server.ask("SET", name, "theirs")
    for ask in (lambda: face.put("a", "b"), lambda: face.read(["a"]), face.take, face.stats, face.next_due):
        with pytest.raises(BufferUnavailable, match=name.decode().partition("}")[2]):
            ask()
    assert redis_server.ask("GET", name) == b"theirs"
    redis_server.ask("DEL", name)
    if kept is not None:
        assert isinstance(kept, bytes)
        redis_server.ask("RESTORE", name, 0, kept)
    assert face.stats().dirty == 1


# Use


def test_a_forked_child_has_connections_of_its_own(redis_server: RedisServer, namespace: str) -> None:
    face = Face("threads", redis_server.url, f"{namespace}/user")
    face.put("a")
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a child that hangs must not outlive the test
        face.put("child")
        os._exit(0)
    for n in range(50):
        face.put("a", value=b"%d" % n)
        assert face.read(["a"])["a"].payload == b"%d" % n
    assert os.waitpid(pid, 0)[1] == 0
    assert set(face.read(["a", "child"])) == {"a", "child"}
    face.close()


def test_a_repository_writes_behind_through_redis(
    own_valkey: Callable[..., RedisServer], namespace: str
) -> None:
    server = own_valkey(password=True)
    rows: dict[int, str] = {}
    online = False

    def save(id: int, name: str) -> None:
        if not online:
            raise ConnectionError("away")
        rows[id] = name

    def make() -> Cache:
        return Cache("memory://", namespace=namespace)

    how = WriteBehind(buffer=f"{server.url}?timeout=20", flusher="none", backoff=0.01, settle=0.01)
    cache = make()
    users = cache.repository("user", rows.get, save, writes=how)
    users.put(1, "Ada")
    users.put(1, "Ada Lovelace")
    with make() as elsewhere:
        other = elsewhere.repository("user", rows.get, save, writes=how)
        assert other.get(1) == "Ada Lovelace", "another process reads it from the buffer"
        with pytest.raises(FlushTimeout):
            users.flush(timeout=0.05)
        online = True
    users.flush(timeout=20)
    assert rows == {1: "Ada Lovelace"}
    cache.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h:1,h:2", "redis.cluster://"),
        ("redis://h/x", "'x' is no database number"),
        ("redis://h?partition=3", "did you mean 'partitions'"),
        ("redis://h?partitions=0", "above 0"),
        ("redis://h?partitions=5000", "1 to 1024"),
        ("redis://h?durability=wait", "wait:1"),
        ("redis://h?durability=wait:0", "wait:1"),
        ("redis://h?wait_timeout=0", "above 0"),
        ("redis+cluster://", "names no server"),
        ("redis+unix://", "names no socket"),
        ("redi://h", "did you mean 'redis'"),
        ("redis://:hunter#2@h", "must be quoted"),
    ],
)
def test_wrong_urls(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        open_buffer(url, "s")
    assert "hunter" not in str(caught.value)


def test_no_message_shows_a_password(own_valkey: Callable[..., RedisServer]) -> None:
    server = own_valkey(password=True)
    assert server.password
    buffer = open_buffer(server.url, "s")
    face = Face("threads", server.url.replace(server.password, "wrong-hunter"), "s")
    with pytest.raises(BufferUnavailable) as caught:
        face.put("a")
    for text in (buffer.url, repr(buffer), str(caught.value), face.buffer.url):
        assert server.password not in text
        assert "hunter" not in text
    face.close()


def test_keys_of_scopes_do_not_meet(opened: Callable[..., Face], redis_server: RedisServer) -> None:
    one = Face("threads", redis_server.url, "a/b}{c")
    other = Face("threads", redis_server.url, "a/b")
    assert not set(one.buffer._at._names[0]) & set(other.buffer._at._names[0])
    one.append([NewRecord("k", b"\xff\x00", b"\x00\xff" * 10, 3, 4)])
    found = one.read(["k"])["k"]
    assert (found.id, found.payload, found.codec, found.codec_flags) == (b"\xff\x00", b"\x00\xff" * 10, 3, 4)
    one.discard("k", dead_only=False)
    one.close()
    other.close()
