"""Calls of a scope's partitions in Redis: names, the fence, first looks at a server, and what each outcome means.

A call ends in a reply, in `BufferUnavailable` (nothing happened), or in `BufferUnconfirmed` (nobody knows).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote
from zlib import crc32

from cachewright.behind.buffers.redis_layout import NAMES
from cachewright.behind.buffers.redis_nodes import Nodes
from cachewright.behind.buffers.redis_scripts import OPEN
from cachewright.errors import (
    BufferError,
    BufferUnavailable,
    BufferUnconfirmed,
    ConfigurationError,
    TierError,
)
from cachewright.keys import shorten
from cachewright.runtime.base import Runtime
from cachewright.tiers.redis_cluster_batch import Item
from cachewright.tiers.redis_cluster_map import key_slot
from cachewright.tiers.redis_driver import Reply, ReplyError

__all__ = ["Clock", "Outcome", "Partitions", "failures"]

log = logging.getLogger("cachewright")

Clock = Callable[[Runtime], float]
Outcome = list[Any] | BufferError

LOOK_AGAIN: Final = 5.0
"""Seconds after which a server's settings are looked at again, failures apart: a restart may go unnoticed, or they are
changed while it runs."""
_ATTEMPTS: Final = 3
_MOVING: Final = 0.05
"""Seconds until a partition that is on its way to another node is asked for again."""
# With one of these a server says that it has carried out nothing; ours are refused at a script's first write.
_REFUSALS: Final = frozenset(
    {
        "ASK", "BUSY", "CLUSTERDOWN", "CROSSSLOT", "LOADING", "MASTERDOWN", "MISCONF", "MOVED", "NOAUTH", "NOPERM",
        "NOREPLICAS", "NOSCRIPT", "OOM", "READONLY", "TRYAGAIN", "UNKILLABLE",
    }
)  # fmt: skip


def failures(outcomes: Mapping[int, Outcome]) -> list[BufferError]:
    """The errors among outcomes, those that leave it open what happened first."""
    found = [outcome for outcome in outcomes.values() if isinstance(outcome, BufferError)]
    return sorted(found, key=lambda error: not isinstance(error, BufferUnconfirmed))


class Partitions:
    """One scope's partitions.

    Args:
        nodes: how calls reach them.
        label: the server, for messages.
        scope: whose records.
        count: how many partitions.
        timeout: seconds within which every call ends.
        replicas: so many must have a write before it counts; 0 does not ask.
        wait_timeout: seconds that they are given for it.
        clock: None: the server's.
    """

    def __init__(
        self,
        nodes: Nodes,
        label: str,
        scope: str,
        *,
        count: int,
        timeout: float,
        replicas: int,
        wait_timeout: float,
        clock: Clock | None,
    ) -> None:
        self.nodes, self.label, self.scope, self.count = nodes, label, scope, count
        self._timeout, self._replicas, self._wait_timeout, self._clock = (
            timeout,
            replicas,
            wait_timeout,
            clock,
        )
        prefixes = [f"cachewright:b:{{{quote(scope, safe='/')}/{number}}}:" for number in range(count)]
        self._names = [[f"{prefix}{name}".encode() for name in NAMES] for prefix in prefixes]
        self._slots = [key_slot(names[0]) for names in self._names]
        # The server's clock minus this process's, in microseconds, taken when a reply was here: at most what it is.
        self._ahead: dict[int, float] = {}
        self._looked: dict[int, float] = {}
        self._warned = False

    def of(self, key: str) -> int:
        """The partition of a key."""
        return crc32(key.encode()) % self.count

    def grouped(self, keys: Iterable[str]) -> dict[int, list[str]]:
        """Keys by partition."""
        found: dict[int, list[str]] = {}
        for key in keys:
            found.setdefault(self.of(key), []).append(key)
        return found

    def now(self, rt: Runtime) -> float:
        """The caller's clock, in seconds."""
        return self._clock(rt) if self._clock is not None else rt.now()

    def shift(self, rt: Runtime, reply: Sequence[Any]) -> float:
        """Seconds to add to a time of that reply to have it on the caller's clock."""
        return 0.0 if self._clock is not None else rt.now() - reply[1] / 1e6

    async def run(
        self,
        rt: Runtime,
        script: str,
        arguments: Mapping[int, Sequence[Any]],
        *,
        change: bool = True,
        repeat: bool = False,
        intake: bool = False,
        confirm: bool = False,
    ) -> dict[int, Outcome]:
        """Calls a script in each of those partitions, at once; their outcomes.

        Args:
            rt: the caller's runtime.
            script: its SHA-1.
            arguments: by partition.
            change: it changes something, so a lost reply leaves open whether it did.
            repeat: it may be sent twice.
            intake: it takes a write in, and the server must be fit for that.
            confirm: replicas must have it, as many as were asked for.

        Raises:
            ConfigurationError: the partitions are not so many, or the server would evict records.
        """
        confirm = confirm and self._replicas > 0
        deadline = time.monotonic() + self._timeout + (self._wait_timeout if confirm else 0.0)
        outcomes = await self._open(rt, arguments, deadline, intake)
        todo = [number for number in arguments if number not in outcomes]
        lost: set[int] = set()
        for attempt in range(_ATTEMPTS):
            if not todo:
                break
            items = {
                number: Item(
                    self._slots[number],
                    self._command(rt, script, number, deadline, number in lost, arguments[number]),
                    ("WAIT", self._replicas, int(self._wait_timeout * 1000) or 1) if confirm else None,
                )
                for number in todo
            }
            await self._send(rt, list(items.values()), deadline, repeatable=not change)
            left = time.monotonic() < deadline and attempt + 1 < _ATTEMPTS
            todo = []
            for number, item in items.items():
                outcome = outcomes[number] = self._outcome(number, item, change)
                if isinstance(outcome, BufferUnavailable) and number in lost:
                    outcomes[number] = self._error(
                        True, f"an answer was lost; then: {outcome.__cause__ or outcome}", outcome
                    )
                elif isinstance(outcome, BufferUnconfirmed):
                    lost.add(number)
                    if repeat and left:
                        todo.append(number)
                elif not isinstance(outcome, BufferError) and outcome[0] == b"late":
                    if left:  # the reply has set our idea of its clock right
                        todo.append(number)
                    else:
                        outcomes[number] = self._error(
                            change and number in lost, "the server had the call too late"
                        )
        return outcomes

    async def _send(self, rt: Runtime, items: Sequence[Item], deadline: float, *, repeatable: bool) -> None:
        """`Nodes.run`; while a partition moves between two nodes it is refused as a whole, and asked for again."""
        while items:
            await self.nodes.run(rt, items, deadline, repeatable=repeatable)
            items = [
                item
                for item in items
                if isinstance(item.result, ReplyError) and item.result.code == "TRYAGAIN"
            ]
            if items:
                if time.monotonic() + _MOVING >= deadline:
                    return
                await rt.sleep(_MOVING)

    def _command(
        self, rt: Runtime, script: str, number: int, deadline: float, again: bool, arguments: Sequence[Any]
    ) -> tuple[Any, ...]:
        ahead = self._ahead.get(number)
        fence = b"" if ahead is None else int(deadline * 1e6 + ahead)
        now = b"" if self._clock is None else round(self._clock(rt) * 1e6)
        names = self._names[number]
        return (
            "EVALSHA",
            script,
            len(names),
            *names,
            self.count,
            fence,
            now,
            b"1" if again else b"",
            *arguments,
        )

    def _outcome(self, number: int, item: Item, change: bool) -> Outcome:
        reply: Reply = item.result
        if isinstance(reply, (TierError, ReplyError)):
            self._looked.pop(
                number, None
            )  # another server may be there next time, or this one after a restart
        if isinstance(reply, TierError):
            return self._error(change and not reply.unsent, str(reply), reply)
        if isinstance(reply, ReplyError):
            certain = reply.code in _REFUSALS or "max number of clients" in str(reply)
            hint = _HINTS.get(reply.code, "")
            return self._error(change and not certain, f"the server refused: {reply}{hint}", reply)
        if (
            type(reply) is not list
            or len(reply) < 2
            or type(reply[0]) is not bytes
            or type(reply[1]) is not int
        ):
            return self._error(
                change, f"the server answered with a {type(reply).__name__} in a reply's place"
            )
        self._ahead[number] = reply[1] - time.monotonic() * 1e6
        if reply[0] == b"damaged":
            name, what = (part.decode(errors="replace") for part in reply[2:4])
            return BufferUnavailable(
                f"the buffer of {self.scope!r} in {self.label} is damaged: {shorten(name, 200)} {shorten(what, 200)}; "
                f"mend it, or take it out with redis-cli (HDEL for a record, DEL for a key)"
            )
        if reply[0] == b"partitions":
            raise ConfigurationError(
                f"the buffer of {self.scope!r} in {self.label} was made with partitions={reply[2].decode()} and is "
                f"opened with partitions={self.count}, which would not find its records: give the same number "
                f"everywhere, or let it be drained first and delete its keys"
            )
        if item.follow is not None and reply[0] == b"ok":
            had = item.followed
            if type(had) is not int or had < self._replicas:
                return BufferUnconfirmed(
                    f"the buffer of {self.scope!r} in {self.label} has the write, but {had} of the {self._replicas} "
                    f"replicas that durability=wait:{self._replicas} asks for confirmed it within {self._wait_timeout:g} s"
                )
        return reply

    def _error(self, unknown: bool, why: str, cause: BaseException | None = None) -> BufferError:
        kind = BufferUnconfirmed if unknown else BufferUnavailable
        what = "nobody knows whether it did what it was asked" if unknown else "nothing was changed"
        error = kind(f"the buffer of {self.scope!r} in {self.label}: {why}; {what}")
        error.__cause__ = cause
        return error

    # -- first looks --------------------------------------------------------------------------------------------

    async def _open(
        self, rt: Runtime, numbers: Iterable[int], deadline: float, intake: bool
    ) -> dict[int, Outcome]:
        """Looks at partitions that were not looked at lately; the errors of those that cannot be used."""
        now = time.monotonic()
        fresh = [
            number
            for number in numbers
            if number not in self._ahead
            or (intake and not now - self._looked.get(number, now - LOOK_AGAIN) < LOOK_AGAIN)
        ]
        if not fresh:
            return {}
        # The first partition is where everybody looks how many there are.
        opens = {number: self._opening(rt, number, deadline, intake) for number in {0, *fresh}}
        looks = {
            number: [Item(self._slots[number], ("INFO", section)) for section in ("memory", "persistence")]
            for number in (fresh if intake else ())
        }
        items = [*opens.values(), *(item for pair in looks.values() for item in pair)]
        await self._send(rt, items, deadline, repeatable=True)
        outcomes: dict[int, Outcome] = {}
        for number, item in opens.items():
            outcome = self._outcome(number, item, change=False)
            if isinstance(outcome, BufferError) and number in fresh:
                outcomes[number] = outcome
        for number, pair in looks.items():
            if number not in outcomes:
                self._look_at(*(item.result for item in pair))
                self._looked[number] = now
        return outcomes

    def _opening(self, rt: Runtime, number: int, deadline: float, intake: bool) -> Item:
        write_down = b"1" if intake and number == 0 else b""
        return Item(self._slots[number], self._command(rt, OPEN, number, deadline, False, [write_down]))

    def _look_at(self, memory: Reply, persistence: Reply) -> None:
        """Refuses a server that would evict records; says once what one without persistence loses."""
        if isinstance(memory, TierError) or isinstance(persistence, TierError):
            return  # it was there a moment ago; what comes next will tell
        if not isinstance(memory, bytes) or not isinstance(persistence, bytes):
            if not self._warned:
                self._warned = True
                log.warning(
                    "the buffer of %r in %s: INFO is not allowed, so nobody looks whether the server evicts or "
                    "persists records",
                    self.scope,
                    self.label,
                )
            return
        facts = _facts(memory) | _facts(persistence)
        policy = facts.get("maxmemory_policy", "")
        if facts.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
            raise ConfigurationError(
                f"the buffer of {self.scope!r}: {self.label} has maxmemory-policy {policy}, so it would evict records, "
                f"which are writes that nobody has saved yet: set maxmemory-policy noeviction (or a volatile-* one), "
                f"or give the buffer a server of its own"
            )
        if facts.get("aof_enabled") == "0" and not self._warned:
            self._warned = True
            log.warning(
                "the buffer of %r: %s keeps no append-only file, so its restart loses what is dirty and not in its "
                "last snapshot: set appendonly yes",
                self.scope,
                self.label,
            )


_HINTS: Final = {
    "ASK": " (a cluster: use redis+cluster://)",
    "MOVED": " (a cluster: use redis+cluster://)",
    "OOM": " (its maxmemory is reached: raise it, or let the flusher drain the buffer)",
}


def _facts(text: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in pairs if colon}
