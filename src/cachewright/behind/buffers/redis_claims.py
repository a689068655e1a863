"""Claims over the partitions of the buffer in Redis: who is asked for how much, orphans alone, claims that got lost.

A claim whose reply was lost keeps its records until it ends; nothing of them was saved, but whoever takes them over
cannot know that and marks them suspect. So this process gives such claims back with its next one.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from cachewright.behind.buffers.base import Record
from cachewright.behind.buffers.redis_partitions import Outcome, Partitions, failures
from cachewright.behind.buffers.redis_records import as_record, micros
from cachewright.behind.buffers.redis_scripts import CLAIM
from cachewright.errors import BufferError, BufferUnavailable, BufferUnconfirmed
from cachewright.keys import shorten
from cachewright.runtime.base import Runtime

__all__ = ["Claims"]

log = logging.getLogger("cachewright")

_REMEMBERED: Final = 1000
"""Claims; one that is forgotten is looked for in every partition, or ends by itself."""


class Claims:
    """One buffer's claims, as far as this process knows of them."""

    def __init__(self, partitions: Partitions, me: Callable[[], str], is_dead: Callable[[str], bool]) -> None:
        self._at, self._me, self._is_dead = partitions, me, is_dead
        self._where: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._lost: OrderedDict[tuple[int, str], None] = OrderedDict()
        self._dead: dict[int, tuple[str, ...]] = {}
        self._told: set[str] = set()
        self.renew_lock()

    def renew_lock(self) -> None:
        """In a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def where(self, token: bytes) -> Sequence[int]:
        """The partitions in which that token has claims, or may have."""
        with self._lock:
            return self._where.get(token) or range(self._at.count)

    def note(self, token: bytes, numbers: Iterable[int]) -> None:
        """Remembers where a token has claims."""
        with self._lock:
            self._where[token] = (*self._where.pop(token, ()), *numbers)
            while len(self._where) > _REMEMBERED:
                self._where.popitem(last=False)

    def lost(self, number: int, token: bytes) -> None:
        """Remembers that a claim may stand of which nobody heard."""
        with self._lock:
            self._lost[number, token.hex()] = None
            while len(self._lost) > _REMEMBERED:
                self._lost.popitem(last=False)

    async def claim(
        self,
        rt: Runtime,
        limit: int,
        token: bytes,
        life: float,
        keys: Sequence[str] | None,
        hurry: bool,
    ) -> list[Record]:
        """See `Buffer.claim`."""
        one = _Claim(self, rt, token, life, None if keys is None else self._at.grouped(keys), hurry)
        if len(one.numbers) == 1:
            found = await one.ask(dict.fromkeys(one.numbers, limit), "any")
            if not found and one.heard_of_dead:
                found = await one.ask(dict.fromkeys(one.numbers, limit), "any")
        else:
            found = await one.share(limit)
        if found:
            self.note(token, sorted({self._at.of(record.key) for record in found}))
        return sorted(found, key=lambda record: record.not_before)

    def _learn(self, number: int, holders: Sequence[bytes]) -> bool:
        """Remembers which holders have died; whether there is one that was not known to be dead."""
        names = sorted({holder.decode(errors="replace") for holder in holders})
        dead, before = tuple(name for name in names if self._is_dead(name)), self._dead.get(number, ())
        self._dead[number] = dead
        return not set(dead) <= set(before)

    def _tell(self, damaged: Sequence[bytes]) -> list[str]:
        """Logs each damaged record once."""
        keys = [key.decode(errors="replace") for key in damaged]
        for key in keys:
            if key not in self._told and len(self._told) < _REMEMBERED:
                self._told.add(key)
                log.error(
                    "the buffer of %r in %s holds a damaged record of the key %s, which is not saved",
                    self._at.scope,
                    self._at.label,
                    shorten(key),
                )
        return keys


class _Claim:
    """One call of `Claims.claim`."""

    def __init__(
        self,
        claims: Claims,
        rt: Runtime,
        token: bytes,
        life: float,
        groups: dict[int, list[str]] | None,
        hurry: bool,
    ) -> None:
        self._claims, self._at, self._rt = claims, claims._at, rt
        self._token, self._life, self._groups, self._hurry = token, life, groups, hurry
        self.numbers = list(range(self._at.count) if groups is None else groups)
        self.heard_of_dead = False

    async def ask(self, limits: Mapping[int, int], which: str) -> list[Record]:
        """Claims so many in each of those partitions."""
        outcomes = await self._run(limits, which)
        records: list[Record] = []
        damaged: list[str] = []
        for outcome in outcomes.values():
            if not isinstance(outcome, BufferError):
                shift = self._at.shift(self._rt, outcome)
                records += [as_record(row, shift) for row in outcome[4]]
                damaged += self._claims._tell(outcome[3])
        self._check(outcomes, damaged, bool(records))
        return records

    async def share(self, limit: int) -> list[Record]:
        """Looks at all partitions first, so that the longest due come first, an orphan alone, and none too many."""
        looks = await self._run(dict.fromkeys(self.numbers, limit), "look")
        if self.heard_of_dead:
            looks = await self._run(dict.fromkeys(self.numbers, limit), "look")
        seen = {number: look for number, look in looks.items() if not isinstance(look, BufferError)}
        orphans = [(look[4], number) for number, look in seen.items() if look[4] is not None]
        if orphans:
            return await self.ask({min(orphans)[1]: 1}, "orphan")
        due = sorted((time, number) for number, look in seen.items() for time in look[5])[:limit]
        limits: dict[int, int] = {}
        for _, number in due:
            limits[number] = limits.get(number, 0) + 1
        self._check(looks, [key for look in seen.values() for key in self._claims._tell(look[3])], bool(due))
        return await self.ask(limits, "free") if limits else []

    def _check(self, outcomes: Mapping[int, Outcome], damaged: Sequence[str], found: bool) -> None:
        """Raises where nothing was found and nobody can say that there is nothing."""
        if found:
            return
        errors = failures(outcomes)
        if errors and (self._groups is not None or len(errors) == len(outcomes)):
            raise errors[0]
        if damaged:
            raise BufferUnavailable(
                f"the buffer of {self._at.scope!r} in {self._at.label} holds a damaged record of the key "
                f"{shorten(damaged[0])}: mend it, or take it out with redis-cli"
            )

    async def _run(self, limits: Mapping[int, int], which: str) -> dict[int, Outcome]:
        claims = self._claims
        with claims._lock:
            lost = list(claims._lost)
        arguments: dict[int, list[Any]] = {}
        for number, limit in limits.items():
            dead = claims._dead.get(number, ())
            mine = [token for where, token in lost if where == number]
            keys = None if self._groups is None else [key.encode() for key in self._groups[number]]
            arguments[number] = [
                limit, self._token.hex(), micros(self._life), claims._me(), int(self._hurry), which,
                int(keys is not None), len(dead), len(mine), *dead, *mine, *(keys or ()),
            ]  # fmt: skip
        outcomes = await self._at.run(self._rt, CLAIM, arguments, change=which != "look")
        self.heard_of_dead = False
        for number, outcome in outcomes.items():
            if isinstance(outcome, BufferUnconfirmed):
                claims.lost(number, self._token)
            elif not isinstance(outcome, BufferError):
                self.heard_of_dead |= claims._learn(number, outcome[2])
                with claims._lock:
                    for where, token in lost:
                        if where == number:
                            claims._lost.pop((where, token), None)
        return outcomes
