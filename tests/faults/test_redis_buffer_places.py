"""The buffer in Redis in partitions and with damage; bounds, forks, URLs, and a repository on top."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
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
)
from cachewright.testing.servers import RedisServer
from tests.faults.lossy import TOKEN, Face

OTHER = b"flusher2"
KEYS = [f"k{n}" for n in range(40)]


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


def test_another_number_of_partitions_is_refused_wherever_the_records_are(
    opened: Callable[..., Face], redis_server: RedisServer
) -> None:
    four = opened(f"{redis_server.url}?partitions=4")
    four.put(next(key for key in KEYS if four.buffer._at.of(key) != 0))
    more = opened(f"{redis_server.url}?partitions=16")
    with pytest.raises(ConfigurationError, match="partitions=4"):
        more.put(next(key for key in KEYS if more.buffer._at.of(key) > 4))


def test_what_is_saved_leaves_nothing(
    opened: Callable[..., Face], redis_server: RedisServer, namespace: str
) -> None:
    face = opened(f"{redis_server.url}?partitions=2")
    for _ in range(2):
        face.put(*KEYS)
        first, *rest = face.take()
        face.give_up(first)
        face.discard(first.key)
        face.ack(*rest)
    face.put("a")
    face.take()
    face.release(TOKEN)
    face.discard("a", dead_only=False)
    face.hold("b", TOKEN, 5)
    face.release(TOKEN)
    left = redis_server.ask("KEYS", f"*{namespace}*")
    assert isinstance(left, list)
    assert {str(name).rpartition(":")[2] for name in left} == {"meta'"}


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
