"""What the fuzzer drives, second part: tiers whose servers answer nonsense, rows of a buffer, slots under a cache.

The tiers are the real ones, with a stand-in below for what would carry bytes to a server: what comes back is the
input, parsed by the real parsers.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import hiredis
import msgspec

from cachewright.behind.buffers.base import Record
from cachewright.behind.buffers.sqlite_schema import as_record
from cachewright.codecs.base import make_context
from cachewright.codecs.msgpack import MsgpackCodec
from cachewright.codecs.pipeline import make_pipeline
from cachewright.core.slot import NEVER, Slot, StoredEntry, parse
from cachewright.errors import (
    BufferUnavailable,
    DecodeError,
    TierError,
    TierTimeout,
    TierUnavailable,
)
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.tiers.base import Generation, Swap, Swapped, Tier
from cachewright.tiers.memcached import MemcachedTier
from cachewright.tiers.memcached_codec import ReplyParser
from cachewright.tiers.memcached_driver import Answer, Turn
from cachewright.tiers.redis import RedisTier
from cachewright.tiers.redis_cluster import RedisClusterTier
from cachewright.tiers.redis_driver import NOTHING, Address, Faults, new_reader, parsed, raise_reply

__all__ = ["TARGETS"]


def _values() -> ModuleType:
    name = "cachewright_hostile_targets_values"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("targets_values.py"))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


values = _values()
mutated = values.mutated
NOW: int = values.NOW
SLOTS: list[bytes] = values.header_samples()

# ----------------------------------------------------------------------------------------------- what is asked

_SMALL = Slot(b"nonce--9", StoredEntry(b"\x01", NOW, NEVER, NEVER, NEVER, 0, 1))
_LARGE = Slot(b"nonce--8", StoredEntry(bytes(40_000), NOW, NEVER, NEVER, NEVER, 0, 1))
_SEEN = parse(SLOTS[0])


async def _operate(tier: Tier, which: int) -> Any:
    rt = THREADS
    if which == 0:
        return await tier.read(rt, ["x"])
    if which == 1:
        return await tier.read(rt, ["x", "y"], ["users"])
    if which == 2:
        return await tier.swap(rt, [Swap("x", _SEEN, _SMALL), Swap("y", None, _SMALL)])
    if which == 3:
        return await tier.swap(rt, [Swap("x", _SEEN, _LARGE)])
    if which == 4:
        return await tier.drop(rt, ["x", "y"])
    if which == 5:
        return await tier.store(rt, {"x": _SMALL})
    if which == 6:
        return await tier.store(rt, {"x": _LARGE})
    if which == 7:
        return await tier.set_generations(rt, {"users": b"GENERATN"}, only_missing=True)
    return await (tier.clear(rt) if which == 8 else tier.connect(rt))


_OPERATIONS = 10


def _judge(result: Any) -> str:
    """Only what a tier may return: slots, generations, and plain yes or no."""
    parts = result if isinstance(result, tuple) else (result,)
    for part in parts:
        members = part.values() if isinstance(part, dict) else part or ()
        for member in members:
            assert isinstance(member, (Slot, Generation, Swapped, bool)), f"a tier returned a {type(member)}"
    return "value" if any(parts) else "miss"


# -------------------------------------------------------------------------------------------------------- Redis


class CannedRedis:
    """In the place of a server's drivers: replies out of the input, and a timeout where it ends."""

    def __init__(self, data: bytes) -> None:
        self.tier = "canned"
        self.address = Address(host="h", port=1, password=values.SECRET)
        self.faults = Faults("canned", self.address, 1.0)
        self._reader = new_reader(self.address.password)
        self._reader.feed(data)
        self.blocking = SimpleNamespace(ready=True, start=self._start, finish=self._finish)

    def _replies(self, count: int) -> list[Any]:
        replies: list[Any] = []
        try:
            while len(replies) < count:
                reply = parsed(self._reader)
                if reply is NOTHING:
                    raise self.faults.timed_out()
                replies.append(reply)
        except (ValueError, hiredis.HiredisError) as error:
            raise self.faults.of(error) from error
        return replies

    async def execute(self, rt: Any, commands: Sequence[Any], deadline: float, **_: Any) -> list[Any]:
        return self._replies(len(commands))

    async def hold(self, rt: Any, deadline: float, work: Any, **_: Any) -> Any:
        async def send(commands: Sequence[Any]) -> list[Any]:
            return self._replies(len(commands))

        return await work(send)

    def _start(self, commands: Sequence[Any], deadline: float, **_: Any) -> int:
        return len(commands)

    def _finish(self, count: int, deadline: float) -> list[Any]:
        return self._replies(count)

    def refused(self, reply: Any) -> None:
        raise_reply(self.tier, reply)

    def close(self) -> None:
        """Nothing is open."""


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


_GENERATION = _bulk(b"GENERATN" + NOW.to_bytes(8, "big"))
_SLOT_BULKS = [_bulk(raw) for raw in SLOTS]
_STREAMS: list[bytes] = [
    *_SLOT_BULKS,
    b"*3\r\n" + _SLOT_BULKS[0] + b"$-1\r\n" + _GENERATION,
    b":1\r\n:0\r\n:1\r\n",
    b":1\r\n" + _SLOT_BULKS[1],
    b"$-1\r\n$-1\r\n$-1\r\n",
    b"-NOSCRIPT No matching script.\r\n:1\r\n:1\r\n:1\r\n",
    b"+OK\r\n" + _bulk(SLOTS[0][:104]) + b"+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n",
    b"+OK\r\n$0\r\n\r\n+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n",
    _GENERATION * 2,
    b"*2\r\n" + _bulk(b"7") + b"*1\r\n" + _bulk(b"shop:k:x") + b":1\r\n*2\r\n" + _bulk(b"0") + b"*0\r\n",
    b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n" * 3,
    b"-ERR unknown command 'AUTH', with args beginning with: '" + values.SECRET.encode() + b"'\r\n",
    b"%1\r\n*0\r\n:1\r\n~1\r\n:5\r\n,1.5\r\n#t\r\n(99999999999999999999\r\n=7\r\ntxt:abc\r\n",
]


def _without_secret(error: TierError) -> None:
    assert values.SECRET not in f"{error} {error.__cause__}", "a password is shown"


def _redis(data: bytes) -> str:
    tier = RedisTier(host="h", namespace="shop", timeout=60)
    tier._server = CannedRedis(data[1:])  # type: ignore[assignment]
    try:
        return _judge(drive(_operate(tier, (data[0] if data else 0) % _OPERATIONS)))
    except TierError as error:
        _without_secret(error)
        raise


_NODE = b"*3\r\n$9\r\n127.0.0.1\r\n:7000\r\n$3\r\nabc\r\n"
_MAPS = [
    b"*2\r\n*3\r\n:0\r\n:8191\r\n" + _NODE + b"*3\r\n:8192\r\n:16383\r\n" + _NODE.replace(b":7000", b":7001"),
    b"*1\r\n*4\r\n:0\r\n:16383\r\n" + _NODE * 2,
    b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$0\r\n\r\n:7000\r\n",
    b"*0\r\n",
    b"-ERR This instance has cluster support disabled\r\n",
]
_CLUSTER_STREAMS = [
    one + stream
    for one in _MAPS
    for stream in (
        *_STREAMS,
        b"-MOVED 3999 127.0.0.1:7001\r\n" * 2 + _SLOT_BULKS[0],
        b"-ASK 3999 h:7001\r\n+OK\r\n:1\r\n",
    )
]


def _cluster(data: bytes) -> str:
    tier = RedisClusterTier(nodes=[("127.0.0.1", 7000)], namespace="shop", timeout=60)
    canned: Any = CannedRedis(data[1:])
    tier._map._make = lambda place: canned
    try:
        return _judge(drive(_operate(tier, (data[0] if data else 0) % _OPERATIONS)))
    except TierError as error:
        _without_secret(error)
        raise


# ---------------------------------------------------------------------------------------------------- Memcached


class CannedMemcached:
    """In the place of a driver: every node says the next part of the input."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._parser = ReplyParser("canned")

    async def exchange(self, batches: Mapping[int, Sequence[Any]], deadline: float) -> dict[int, Any]:
        return {node: self._one(requests) for node, requests in batches.items()}

    def _one(self, requests: Sequence[Any]) -> Any:
        turn = Turn("canned", requests, 1)
        try:
            while not turn.complete:
                if not self._data:
                    return TierTimeout("canned", "no answer")
                end = self._data.find(b"\n") + 1 or len(self._data)
                line, self._data = self._data[:end], self._data[end:]
                for reply in self._parser.feed(line):
                    turn.take(reply)
        except TierError as error:
            return error
        except OSError as error:
            return TierUnavailable("canned", str(error))
        return Answer(1, turn.replies)

    def connections(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is open."""


def _hit(raw: bytes, key: bytes = b"shop:k:x", cas: int = 5) -> bytes:
    return b"VA %d k%b c%d\r\n%b\r\n" % (len(raw), key, cas, raw)


_META = [
    *(_hit(raw) for raw in SLOTS),
    b"EN\r\nEN\r\nEN\r\n",
    _hit(SLOTS[0]) + _hit(SLOTS[1], b"shop:k:y") + _hit(b"GENERATN" + bytes(8), b"shop:t:users"),
    b"HD kshop:k:x c7\r\nHD kshop:k:y c8\r\nHD kshop:k:x c9\r\n",
    _hit(SLOTS[0]) + _hit(SLOTS[1], b"shop:k:y") + b"HD kshop:k:x c7\r\nHD kshop:k:y c7\r\n",
    b"NS kshop:k:x\r\n" * 3 + _hit(SLOTS[3]),
    b"EN\r\nHD kshop:k:x c7\r\nHD kshop:k:x c8\r\n",
    b"STAT item_size_max 1048576\r\nEND\r\nHD kshop:k:x c7\r\n" * 2,
    b"STAT item_size_max 1000\r\nEND\r\nHD kshop:k:x c7\r\n",
    b"HD kshop:t:users c7\r\n",
    b"NS kshop:t:users\r\n" + _hit(b"GENERATN" + bytes(8), b"shop:t:users"),
    b"ERROR Too many open connections\r\n",
    b"SERVER_ERROR out of memory storing object\r\n" * 3,
    b"MN\r\n",
]


def _memcached(data: bytes) -> str:
    tier = MemcachedTier(servers=[("h1", 1)], namespace="shop", timeout=60)
    tier._blocking = CannedMemcached(data[1:])  # type: ignore[assignment]
    return _judge(drive(_operate(tier, (data[0] if data else 0) % _OPERATIONS)))


def _asked(streams: list[bytes]) -> Any:
    return lambda rng: bytes((rng.randrange(_OPERATIONS),)) + mutated(streams, rng)


# ------------------------------------------------------------------------------------------- rows of a buffer

_PIPE = make_pipeline()
_ID = MsgpackCodec()
_ROW = [
    "user:1", _ID.encode(1, b""), 0, _PIPE.encode({"a": 1}, b"")[2], 1, 0, 1_700_000_000_000_000, 1.5, 0, None, 1.5,
    b"token", 2.5, "host:1", 0, 0, 0,
]  # fmt: skip
_ODD_COLUMNS: list[Any] = [None, -1, 3, 2**63 - 1, 0.5, "text", "é", b"", b"\xc1", b"\x80\x05N.", True, [1]]


def _row(rng: Random) -> bytes:
    row = list(_ROW)
    for _ in range(rng.choice((0, 1, 1, 2))):
        row[rng.randrange(len(row))] = rng.choice(_ODD_COLUMNS)
    if rng.random() < 0.5:
        row[3] = mutated([_ROW[3]], rng)
        row[1] = mutated([_ROW[1]], rng)
    return msgspec.msgpack.encode(row)


def _read_row(data: bytes) -> str:
    row = msgspec.msgpack.decode(data)
    record: Record = as_record(row)
    assert record.state in ("value", "tombstone", "held")
    _ID.decode(record.id, b"")
    if record.payload is not None:
        _PIPE.decode(record.codec, record.codec_flags, record.payload, make_context("shop", record.key))
    return "value"


TARGETS: dict[str, Any] = {
    "redis": values.Target(_asked(_STREAMS), _redis, (TierError,), 16),
    "cluster": values.Target(_asked(_CLUSTER_STREAMS), _cluster, (TierError,), 8),
    "memcached": values.Target(_asked(_META), _memcached, (TierError,), 16),
    "rows": values.Target(_row, _read_row, (BufferUnavailable, DecodeError), 8),
}
