"""How rounds end: acknowledgements, failures and claims given back, and those of them that the buffer did not take.

A claim that is left to its end keeps everybody from its keys for seconds, though nobody holds it, and then saves anew
what was saved. So what the buffer did not take is given to it again before this process's next round, however long it
was away: it goes by token and sequence, and where the claim was taken over meanwhile nothing is removed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cachewright.behind.buffers.base import Ack, Buffer, Ended, Failure, Record
from cachewright.behind.saving import Outcome
from cachewright.behind.types import BehindOptions
from cachewright.errors import BufferError
from cachewright.events import BackgroundFailed, ClaimLost, DeadLetter, Hub, SaveFailed
from cachewright.runtime.base import Runtime
from cachewright.runtime.interrupts import is_exit

__all__ = ["Ending", "Endings"]

_REMEMBERED: Final = 1000
"""Rounds; the claims of one that is forgotten end by themselves."""


@dataclass(slots=True)
class Ending:
    """What is to be done with the claims of one token. What is done is taken out.

    Attributes:
        token: of the claims.
        acks: what was saved, each part with its settle time.
        failures: what was not.
        settle: the settle time of the failures.
        outcomes: of those that were saved or tried, for who is told.
        spent: those that were given up untried.
        loud: the failures are told as events; else their caller has the error.
        release: nothing was sent to a saver.
        again: the buffer may have done it already: its answer was lost, or only a part of it failed.
        busy: somebody is at it.
        lost: the keys whose claims were gone; see `Ended`.
    """

    token: bytes
    acks: list[tuple[Sequence[Ack], float]] = field(default_factory=list)
    failures: Sequence[Failure] = ()
    settle: float = 0.0
    outcomes: Sequence[Outcome] = ()
    spent: Sequence[Record] = ()
    loud: bool = False
    release: bool = False
    again: bool = False
    busy: bool = False
    lost: dict[str, bool] = field(default_factory=dict)


class Endings:
    """Ends the rounds of one flusher, and counts what became of their records."""

    def __init__(self, buffer: Buffer, repository: str, options: BehindOptions, events: Hub) -> None:
        self._buffer, self._repository, self._options, self._events = buffer, repository, options, events
        self.saved = self.failed = self.dead = 0
        self.forget()

    def forget(self) -> None:
        """In a forked child: another thread may have held the lock, and its parent ends its own rounds."""
        self._lock = threading.RLock()  # the collector may end a round of a stopped loop inside of it
        self._left: OrderedDict[bytes, Ending] = OrderedDict()

    def leave(self, ending: Ending) -> None:
        """Keeps it for `catch_up`."""
        ending.again = True
        with self._lock:
            self._left[ending.token] = ending
            while len(self._left) > _REMEMBERED:
                self._left.popitem(last=False)

    async def catch_up(self, rt: Runtime) -> int:
        """Ends what could not be ended before; of how many records that was.

        Raises:
            BufferError: the buffer is still away: all of it, so that nothing can be claimed before this has been done. The
                next round would take over what this process has saved, as soon as its claim is over.
        """
        done = 0
        for _ in range(len(self._left)):
            with self._lock:
                if not self._left:
                    break
                _, ending = self._left.popitem(last=False)
            try:
                done += await self.end(rt, ending)
            except BufferError:
                if self._buffer.parts == 1:
                    raise
                break  # a part is away; the others have records, and one wait for it is enough before a round
        return done

    async def end(self, rt: Runtime, ending: Ending) -> int:
        """Does it, or leaves it for `catch_up` and raises; of how many records it was (0: somebody is at it already)."""
        with self._lock:
            self._left.pop(ending.token, None)
            if ending.busy:
                return 0
            ending.busy = True
        try:
            dead = await self._end(rt, ending)
        except BaseException as error:
            ending.busy = False
            if isinstance(error, BufferError) or not isinstance(error, Exception):
                self.leave(ending)
            raise
        saved = sum([outcome.error is None for outcome in ending.outcomes])
        with self._lock:
            self.saved += saved
            self.failed += len(ending.failures) if ending.outcomes or ending.spent else 0
            self.dead += len(dead)
        self._tell_lost(ending)
        if ending.loud:
            self._tell(rt, ending, dead)
        return saved + len(ending.failures)

    async def _end(self, rt: Runtime, ending: Ending) -> set[str]:
        """The keys of new dead letters."""
        if ending.release:
            await self._buffer.release(rt, ending.token)
        while ending.acks:
            acks, settle = ending.acks[0]
            self._note(ending, await self._buffer.acknowledge(rt, ending.token, acks, settle=settle))
            del ending.acks[0]
        if not ending.failures:
            return set()
        ended = await self._buffer.fail(rt, ending.token, ending.failures, settle=ending.settle)
        dead, last = set(ended.dead), {one.key: one.sequence for one in ending.failures if one.dead}
        if ending.again and last.keys() - dead:  # made one when its answer was lost
            found = await self._buffer.read(rt, list(last))
            dead |= {key for key, record in found.items() if record.dead and record.sequence == last[key]}
        self._note(ending, ended)
        return dead

    @staticmethod
    def _note(ending: Ending, ended: Ended) -> None:
        # What is gone by the second time was most likely removed the first time.
        ending.lost |= {key: kept for key, kept in ended.lost.items() if kept or not ending.again}

    def _tell_lost(self, ending: Ending) -> None:
        if self._options.ordered_saver:
            return  # refuses older sequences: nothing of it can land over a newer state
        spared = {record.key for record in ending.spent}
        spared |= {outcome.record.key for outcome in ending.outcomes if outcome.record.state == "held"}
        for key, kept in ending.lost.items():
            if key not in spared:
                self._events.emit(ClaimLost(self._repository, key, kept))

    def _tell(self, rt: Runtime, ending: Ending, dead: set[str]) -> None:
        failed = {one.record.key: one for one in ending.outcomes if one.error is not None}
        for one in failed.values():
            if one.error is not None and is_exit(one.error):
                self._events.emit(BackgroundFailed(f"a saver of {self._repository}", one.error))
        tries = {record.key: record.tries for record in ending.spent}
        for failure in ending.failures:
            outcome = failed.get(failure.key)
            attempt = outcome.record.tries + 1 if outcome else tries[failure.key]
            if failure.key in dead:
                self._events.emit(DeadLetter(self._repository, failure.key, failure.error, attempt))
            elif outcome is not None and outcome.error is not None:
                pause = max(0.0, failure.not_before - rt.now())
                self._events.emit(SaveFailed(self._repository, failure.key, outcome.error, attempt, pause))
