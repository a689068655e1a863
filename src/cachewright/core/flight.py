"""Flights: inside a process, all callers of one key share one load, whichever face they came through.

State changes are plain functions under one lock that is never held across an ``await``; they return what to do.

Who may use a flight's result depends on how far it was when they joined:

* before its read was sent: anything it found or loaded (a flight that waits for another process's lease reads in
  rounds: who joined in an earlier round joined before the read that found it);
* before its loader was called: what it loaded, but not what it had read;
* later: only a load whose lease still stood at its end. Otherwise: a load has read v0, put(v1) returns, a new reader
  joins, and is handed v0.

A flight is closed to joiners *before* its commit is sent, so that "the lease stood at the end" speaks of a moment
after every joiner's arrival. Only an ``Exception`` is shared; a cancelled leader hands the flight on.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterable
from typing import Any

from cachewright.core.context import LoadContext, Waiting, check_recursion, current_load, led_by
from cachewright.errors import RecursiveLoadError, WouldDeadlockError
from cachewright.runtime.base import Runtime, Waiter

__all__ = ["ABSENT", "NOBODY_ASKED", "Flight", "Flights", "Joined", "Outcome", "Phase"]


class _Absent:
    """The type of `ABSENT`."""


ABSENT = _Absent()
"""The value of a flight whose loader of many keys left the key out; never handed to a caller."""


class Phase(enum.IntEnum):
    """How far a flight is."""

    STARTED = 0
    READING = 1
    LOADING = 2
    CLOSED = 3


class Outcome(enum.Enum):
    """How a flight ended."""

    FOUND = "found"
    LOADED = "loaded"
    FAILED = "failed"
    HANDED_ON = "handed on"


Joined = tuple[Phase, int]
"""How far a flight was when somebody joined it, and in which round of its reading."""


def NOBODY_ASKED() -> bool:  # noqa: N802  a constant that happens to be callable
    """`Flight.leader_alive` before its leader has said who it is."""
    return True


class Flight(Waiting):
    """One load of one key."""

    __slots__ = (
        "confirmed", "error", "forced", "heard", "joined_late", "killed", "leader_alive", "outcome", "phase", "round", "spoiled",
        "thread", "value", "waiters",
    )  # fmt: skip

    def __init__(self, forced: bool = False) -> None:
        self.phase = Phase.STARTED
        self.round = 0
        self.outcome: Outcome | None = None
        self.value: Any = None
        self.error: Exception | None = None
        self.confirmed = False  # the lease stood at the end
        self.killed = False  # this process dropped the key meanwhile
        self.spoiled = False  # a tag's generation changed by the end
        self.joined_late = False
        self.forced = forced
        self.heard = False  # somebody waited for it when it ended
        self.waiters: list[Waiter] = []
        self.waits_for = []  # what its leader is waiting for (gathered, several), to find circles
        self.thread: int | None = None  # of the event loop that leads it; None under threads
        self.leader_alive: Callable[[], bool] = NOBODY_ASKED

    def usable(self, joined: Joined) -> bool:
        """Whether one who joined at ``joined`` may take this flight's result."""
        phase, round_ = joined
        if self.outcome is Outcome.FAILED:
            return True
        if self.outcome is Outcome.FOUND:
            return phase <= Phase.STARTED or round_ < self.round
        if self.outcome is Outcome.LOADED:
            return phase < Phase.LOADING or (self.confirmed and not self.spoiled)
        return False


class Flights:
    """The open flights of one engine."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """A forked child has none: their leaders stayed in the parent."""
        self._lock = threading.Lock()
        self.epoch = 0  # how often this process changed a tag or cleared everything
        self._open: dict[
            tuple[str, bool], Flight
        ] = {}  # a refresh flies apart: who reads need not wait for it

    def __len__(self) -> int:
        return len(self._open)

    def open_keys(self) -> list[str]:
        """The keys whose flights can be joined."""
        with self._lock:
            return [key for key, _forced in self._open]

    def join(
        self, owner: object, key: str, rt: Runtime, mine: Flight
    ) -> tuple[Flight, Joined, Waiter | None]:
        """Joins the key's flight or leads ``mine``: ``(flight, how far it was, waiter; None for the leader)``.

        The caller brings the flight, so that it can end it even where it is interrupted before this returns.

        Raises:
            RecursiveLoadError: this caller is itself part of what the flight waits for.
            WouldDeadlockError: the flight is led by the event loop that this blocking caller holds up.
        """
        context = current_load()
        check_recursion(context, owner, key)
        with self._lock:
            flight = self._open.get((key, mine.forced))
            if flight is None:
                self._open[key, mine.forced] = mine
                return mine, (Phase.STARTED, 0), None
            if context is not None:
                self._check_circle(context, flight, key)
            _check_own_loop(flight, rt, key)
            waiter = rt.waiter()
            flight.waiters.append(waiter)
            if flight.phase >= Phase.LOADING:
                flight.joined_late = True
            for waits in led_by(context):
                waits.waits_for.append(flight)
            return flight, (flight.phase, flight.round), waiter

    @staticmethod
    def _check_circle(context: LoadContext, flight: Flight, key: str) -> None:
        mine = set(led_by(context))
        todo, seen = list[Waiting]([flight]), set[Waiting]()
        while todo:
            one = todo.pop()
            if one in mine:
                raise RecursiveLoadError(f"the loads of {context.key!r} and {key!r} wait for each other")
            if one not in seen:
                seen.add(one)
                todo += one.waits_for

    def left(self, flight: Flight, waiter: Waiter) -> None:
        """A waiting caller has gone (served, cancelled or out of time)."""
        with self._lock:
            if waiter in flight.waiters:
                flight.waiters.remove(waiter)
            _forget(led_by(current_load()), flight)

    def awaits_lease(self, rt: Runtime, mine: Flight, holder: Flight, key: str) -> Callable[[], None]:
        """``mine`` waits for the lease that ``holder``, a flight of this process that cannot be joined, has on the
        key; what is returned ends that.

        A forced load flies apart from those who read. Nobody joins it, and yet they wait for it.

        Raises:
            RecursiveLoadError: ``holder`` waits for ``mine``.
            WouldDeadlockError: ``holder`` is led by the event loop that this blocking caller holds up.
        """
        context = current_load()
        with self._lock:
            _check_own_loop(holder, rt, key)
            if context is not None:
                self._check_circle(context, holder, key)
            waiting = [mine, *led_by(context)]
            for waits in waiting:
                waits.waits_for.append(holder)

        def ended() -> None:
            with self._lock:
                _forget(waiting, holder)

        return ended

    def reached(self, flight: Flight, phase: Phase) -> None:
        """The flight is now that far; a new round of reading goes back."""
        with self._lock:
            flight.round += phase is Phase.STARTED
            flight.phase = phase

    def close(self, key: str, flight: Flight) -> None:
        """No further joiners from here on."""
        with self._lock:
            flight.phase = Phase.CLOSED
            if self._open.get((key, flight.forced)) is flight:
                del self._open[key, flight.forced]

    def kill(self, keys: list[str]) -> None:
        """This process drops these keys: their flights' values are old from now on for whoever joins later."""
        with self._lock:
            for key in keys:
                for forced in (False, True):
                    flight = self._open.pop((key, forced), None)
                    if flight is not None:
                        flight.killed = True

    def tags_changed(self) -> None:
        """This process has changed a tag, or cleared everything: what cannot ask the authority must go by this."""
        with self._lock:
            self.epoch += 1

    def finish(self, key: str, flight: Flight, outcome: Outcome) -> None:
        """Ends the flight and wakes all who wait."""
        self.close(key, flight)
        with self._lock:
            flight.outcome = outcome
            waiters, flight.waiters = flight.waiters, []
            flight.heard = bool(waiters)
        for waiter in waiters:
            waiter.set()


def _check_own_loop(flight: Flight, rt: Runtime, key: str) -> None:
    if rt.name == "threads" and flight.thread == threading.get_ident() and flight.leader_alive():
        raise WouldDeadlockError(
            f"{key!r} is being loaded on this thread's event loop, which this blocking call holds up: "
            "await the method with an 'a' in front instead"
        )


def _forget(waiting: Iterable[Waiting], flight: Flight) -> None:
    for waits in waiting:
        if flight in waits.waits_for:
            waits.waits_for.remove(flight)
