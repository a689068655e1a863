"""The buffer in Redis or Valkey, one server or a cluster: shared by all hosts, as durable as the server is made.

Records are spread over partitions, each in one hash slot, so that a cluster shares the work; one Lua script changes one
partition at once. Due times and claims go by the server's clock, so hosts whose clocks differ agree. See `base` for the
rules.

What holds within a partition only: an `append` is taken all or none (over several, `BufferUnconfirmed` says what is
known of a part), and the bounds (each partition has its share, and some slack, since keys do not spread evenly).
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from cachewright.behind.buffers import redis_scripts as scripts
from cachewright.behind.buffers.base import (
    RETRY_NEWER,
    Ack,
    Buffer,
    BufferStats,
    Ended,
    Failure,
    NewRecord,
    Record,
)
from cachewright.behind.buffers.holder import is_dead, this_process
from cachewright.behind.buffers.redis_claims import Claims
from cachewright.behind.buffers.redis_partitions import Outcome, Partitions, failures
from cachewright.behind.buffers.redis_records import as_record, as_words, micros
from cachewright.errors import BufferError, BufferFull, BufferUnconfirmed, NotDirtyError
from cachewright.runtime.base import Runtime

__all__ = ["RedisBuffer"]

_DEAD, _LOST_GONE, _LOST_KEPT = 1, 2, 3  # as scripts say it of a key; see `redis_scripts`
_LOST = (_LOST_GONE, _LOST_KEPT)


class RedisBuffer(Buffer):
    """One repository's records.

    Args:
        partitions: where they are.
        max_dirty: most records.
        max_dirty_bytes: most bytes.
    """

    _me, _is_dead = staticmethod(this_process), staticmethod(is_dead)

    def __init__(
        self, partitions: Partitions, *, max_dirty: int = 100_000, max_dirty_bytes: int = 256 * 1024 * 1024
    ) -> None:
        self._at = partitions
        self.scope, self.url, self.parts = partitions.scope, partitions.label, partitions.count
        self.max_dirty, self.max_dirty_bytes = max_dirty, max_dirty_bytes
        self._claims = Claims(partitions, self._me, self._is_dead)
        _opened.add(self)

    @property
    def exists(self) -> bool:
        """True: only the server knows."""
        return True

    def close(self) -> None:
        self._at.nodes.close()

    def after_fork(self) -> None:
        """In a forked child: lets the parent's connections go."""
        self._claims.renew_lock()
        self._at.nodes.after_fork()

    # -- putting in ---------------------------------------------------------------------------------------------

    async def append(
        self, rt: Runtime, records: Sequence[NewRecord], *, delay: float = 0.0, overflow: bool = False
    ) -> list[int]:
        if not records:
            return []
        groups: dict[int, list[NewRecord]] = {}
        for new in records:
            groups.setdefault(self._at.of(new.key), []).append(new)
        if len(groups) > 1:  # looked at first: what one partition refuses, the others should not have taken
            dry = await self._append(rt, groups, delay, overflow, dry=True)
            if any(isinstance(outcome, BufferError) or outcome[0] != b"ok" for outcome in dry.values()):
                self._refuse(groups, dry)
        outcomes = await self._append(rt, groups, delay, overflow, dry=False)
        if any(isinstance(outcome, BufferError) or outcome[0] != b"ok" for outcome in outcomes.values()):
            self._refuse(groups, outcomes)
        given = {
            new.key: sequence
            for number, group in groups.items()
            for new, sequence in zip(group, _reply(outcomes[number])[2:], strict=True)
        }
        return [given[new.key] for new in records]

    async def _append(
        self, rt: Runtime, groups: dict[int, list[NewRecord]], delay: float, overflow: bool, *, dry: bool
    ) -> dict[int, Outcome]:
        bounds = self._bounds()
        head: list[Any] = [micros(delay), int(overflow), *bounds, micros(RETRY_NEWER), int(dry)]
        arguments = {
            number: head + [word for new in group for word in as_words(new)]
            for number, group in groups.items()
        }
        return await self._at.run(
            rt, scripts.APPEND, arguments, change=not dry, intake=not dry, confirm=not dry
        )

    def _bounds(self) -> tuple[int, int, int]:
        """Most records and bytes of a partition, and most bytes of one that is empty.

        Keys spread evenly only on the whole: the share of records has four standard deviations of slack, that of bytes
        a quarter. A record may be larger than any share; it goes into an empty partition.
        """
        count, most, most_bytes = self._at.count, self.max_dirty, self.max_dirty_bytes
        if count == 1:
            return most, most_bytes, most_bytes
        share = most / count
        return (
            min(most, math.ceil(share + 4 * math.sqrt(share))),
            math.ceil(most_bytes / count * 1.25),
            most_bytes,
        )

    def _refuse(self, groups: dict[int, list[NewRecord]], outcomes: dict[int, Outcome]) -> None:
        """Raises what outcomes mean of which some are no success."""
        errors = failures(outcomes)
        full = [o for o in outcomes.values() if not isinstance(o, BufferError) and o[0] == b"full"]
        taken = [
            new.key
            for number, outcome in outcomes.items()
            if not isinstance(outcome, BufferError) and outcome[0] == b"ok" and len(outcome) > 2
            for new in groups[number]
        ]
        if taken:
            raise BufferUnconfirmed(
                f"the buffer of {self.scope!r} in {self.url} took {len(taken)} of {sum(map(len, groups.values()))} "
                f"records, the first: {taken[0]!r}; of the others: {errors[0] if errors else 'there is no room'}"
            ) from (errors[0] if errors else None)
        if errors:
            raise errors[0]
        _, _, records, size, more = full[0]
        most, most_bytes, _ = self._bounds()
        share = (
            ""
            if self._at.count == 1
            else f" (a partition's share of {self.max_dirty} and {self.max_dirty_bytes})"
        )
        raise BufferFull(
            f"the buffer {self.url} of {self.scope!r} is full: {records} records of at most {most}, {size} bytes of at "
            f"most {most_bytes}{share}, and {more} more to come; wait for the flusher, look at its dead letters, or "
            f"raise max_dirty or max_dirty_bytes"
        )

    async def hold(self, rt: Runtime, key: str, token: bytes, life: float) -> int | None:
        number = self._at.of(key)
        arguments = {number: [key.encode(), token.hex(), micros(life), self._me()]}
        outcome = (await self._at.run(rt, scripts.HOLD, arguments, intake=True))[number]
        if isinstance(outcome, BufferUnconfirmed):
            self._claims.lost(number, token)
        sequence: int | None = _reply(outcome)[2]
        if sequence is not None:
            self._claims.note(token, [number])
        return sequence

    # -- reading ------------------------------------------------------------------------------------------------

    async def read(self, rt: Runtime, keys: Sequence[str]) -> dict[str, Record]:
        groups = self._at.grouped(keys)
        arguments = {number: [key.encode() for key in group] for number, group in groups.items()}
        outcomes = await self._at.run(rt, scripts.READ, arguments, change=False)
        return {record.key: record for record in self._records(rt, map(_reply, outcomes.values()))}

    async def next_due(self, rt: Runtime, *, hurry: bool = False) -> float | None:
        """See `Buffer.next_due`. Partitions that cannot be reached are left out, unless nothing is due elsewhere."""
        outcomes = await self._at.run(rt, scripts.NEXT_DUE, self._everywhere(int(hurry)), change=False)
        times = []
        for outcome in outcomes.values():
            if not isinstance(outcome, BufferError):
                if outcome[2] is not None:
                    times.append(outcome[2] / 1e6 + self._at.shift(rt, outcome))
                times += [0.0] if outcome[3] else []
        if not times and (errors := failures(outcomes)):
            raise errors[0]
        return min(times, default=None)

    async def stats(self, rt: Runtime) -> BufferStats:
        outcomes = await self._at.run(rt, scripts.STATS, self._everywhere(), change=False)
        replies = [_reply(outcome) for outcome in outcomes.values()]
        oldest = [reply[6] / 1e6 + self._at.shift(rt, reply) for reply in replies if reply[6] is not None]
        dirty, settling, dead, size = (sum(reply[at] for reply in replies) for at in range(2, 6))
        return BufferStats(dirty, settling, dead, size, min(oldest, default=None))

    async def records(self, rt: Runtime, limit: int = 1000, *, dead: bool = False) -> list[Record]:
        wanted = self._everywhere(limit, int(dead), 0)
        if (
            self._at.count > 1
        ):  # since when, first: the payloads of sixteen times as many would come for nothing
            looks = await self._at.run(
                rt, scripts.RECORDS, self._everywhere(limit, int(dead), 1), change=False
            )
            since = sorted((at, number) for number, look in looks.items() for at in _reply(look)[2:])[:limit]
            counts: dict[int, int] = {}
            for _, number in since:
                counts[number] = counts.get(number, 0) + 1
            wanted = {number: [count, int(dead), 0] for number, count in counts.items()}
        outcomes = await self._at.run(rt, scripts.RECORDS, wanted, change=False)
        found = self._records(rt, map(_reply, outcomes.values()))
        return sorted(found, key=lambda record: record.first_dirty)[:limit]

    def _records(self, rt: Runtime, replies: Iterable[list[Any]]) -> list[Record]:
        return [as_record(row, self._at.shift(rt, reply)) for reply in replies for row in reply[2:]]

    def _everywhere(self, *arguments: Any) -> dict[int, Sequence[Any]]:
        return dict.fromkeys(range(self._at.count), arguments)

    # -- saving -------------------------------------------------------------------------------------------------

    async def claim(
        self,
        rt: Runtime,
        limit: int,
        token: bytes,
        life: float,
        *,
        keys: Sequence[str] | None = None,
        hurry: bool = False,
    ) -> list[Record]:
        """See `Buffer.claim`. Partitions that cannot be reached are left out, unless none can."""
        return await self._claims.claim(rt, limit, token, life, keys, hurry)

    async def renew(self, rt: Runtime, token: bytes, life: float) -> int:
        wanted = dict.fromkeys(self._claims.where(token), (token.hex(), micros(life)))
        outcomes = await self._at.run(rt, scripts.RENEW, wanted, repeat=True)
        return sum(reply[2] for reply in self._all(outcomes))

    async def acknowledge(self, rt: Runtime, token: bytes, acks: Sequence[Ack], *, settle: float) -> Ended:
        wanted: dict[int, list[Any]] = {}
        for ack in acks:
            arguments = wanted.setdefault(self._at.of(ack.key), [token.hex(), micros(settle)])
            arguments += (ack.key.encode(), ack.sequence, int(ack.unsure))
        outcomes = await self._at.run(rt, scripts.ACKNOWLEDGE, wanted, repeat=True)
        removed = sum(reply[2] for reply in self._all(outcomes))
        words = self._words(outcomes, [ack.key for ack in acks], 3)
        return Ended(removed, lost={key: word == _LOST_KEPT for key, word in words if word in _LOST})

    async def fail(self, rt: Runtime, token: bytes, failures: Sequence[Failure], *, settle: float) -> Ended:
        now = self._at.now(rt)
        wanted: dict[int, list[Any]] = {}
        for one in failures:
            head = [token.hex(), micros(settle), micros(RETRY_NEWER)]
            wanted.setdefault(self._at.of(one.key), head).extend(
                (
                    one.key.encode(), one.sequence, one.error.encode(errors="backslashreplace"),
                    micros(one.not_before - now), int(one.dead), int(one.unknown), int(one.counts),
                )
            )  # fmt: skip
        outcomes = await self._at.run(rt, scripts.FAIL, wanted, repeat=True)
        self._all(outcomes)
        words = self._words(outcomes, [one.key for one in failures], 2)
        lost = {key: word == _LOST_KEPT for key, word in words if word in _LOST}
        return Ended(dead=tuple(key for key, word in words if word == _DEAD), lost=lost)

    def _words(self, outcomes: dict[int, Outcome], keys: Sequence[str], at: int) -> list[tuple[str, int]]:
        """What the replies say of each key, from that place on."""
        replies = {number: iter(_reply(outcome)[at:]) for number, outcome in outcomes.items()}
        return [(key, next(replies[self._at.of(key)])) for key in keys]

    async def release(self, rt: Runtime, token: bytes) -> None:
        wanted = dict.fromkeys(self._claims.where(token), (token.hex(),))
        self._all(await self._at.run(rt, scripts.RELEASE, wanted, repeat=True))

    def _all(self, outcomes: dict[int, Outcome]) -> list[list[Any]]:
        """The replies, if all are there; the other partitions have done their part all the same."""
        errors = failures(outcomes)
        if errors:
            raise errors[0]
        return [_reply(outcome) for outcome in outcomes.values()]

    # -- dead letters -------------------------------------------------------------------------------------------

    async def replay(self, rt: Runtime, key: str) -> None:
        number = self._at.of(key)
        outcomes = await self._at.run(rt, scripts.REPLAY, {number: [key.encode()]})
        if not _reply(outcomes[number])[2]:
            raise NotDirtyError(f"no dead letter of the key {key!r} in {self.url} ({self.scope})")

    async def discard(self, rt: Runtime, key: str, *, dead_only: bool = True) -> Record:
        number = self._at.of(key)
        outcomes = await self._at.run(rt, scripts.DISCARD, {number: [key.encode(), int(dead_only)]})
        found = self._records(rt, [_reply(outcomes[number])])
        if not found:
            kind = "dead letter" if dead_only else "record without a claim"
            raise NotDirtyError(f"no {kind} of the key {key!r} in {self.url} ({self.scope})")
        return found[0]


def _reply(outcome: Outcome) -> list[Any]:
    if isinstance(outcome, BufferError):
        raise outcome
    return outcome


_opened: weakref.WeakSet[RedisBuffer] = weakref.WeakSet()


def _after_fork() -> None:
    for buffer in list(_opened):
        buffer.after_fork()


os.register_at_fork(after_in_child=_after_fork)
