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

import contextvars
import enum
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, Unpack, cast

from cachewright.errors import ConfigurationError, RecursiveLoadError, WouldDeadlockError
from cachewright.options import MISSING, Entry, Options, Said, check_said
from cachewright.runtime.base import Runtime, Waiter

__all__ = [
    "ABSENT", "Flight", "Flights", "Joined", "LoadContext", "NotModified", "Outcome", "Phase", "current_load",
]  # fmt: skip

V = TypeVar("V")


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


class NotModified(Entry[Any]):
    """What `LoadContext.not_modified` gives its loader to return."""

    __slots__ = ("load",)

    load: LoadContext


class LoadContext:
    """What a running loader can learn and say about its own load, through `current_load`.

    Attributes:
        key: the key being loaded.
        options: the options of this load.
        stale: the value that is being replaced and could still be used, or `MISSING`; where a refresh runs ahead of
            time, the fresh one.
        note: what was kept beside ``stale`` (see `Entry`), or None.
    """

    __slots__ = (
        "active", "also", "find", "flights", "key", "note", "options", "outer", "owner", "parts", "said", "stale",
    )  # fmt: skip

    def __init__(
        self,
        owner: object,
        key: str,
        options: Options,
        stale: Any,
        flights: Iterable[Flight],
        also: frozenset[str] = frozenset(),
        note: Any = None,
        find: Callable[[str], tuple[Any, Any]] | None = None,
    ) -> None:
        self.owner, self.key, self.options, self.stale, self.note = owner, key, options, stale, note
        self.find = find  # the stale value and the note of one key of a batch
        self.said: dict[str, Any] = {}
        self.parts: dict[str, LoadContext] = {}  # of a batch, by key
        # All that this loader is to end: whoever waits for any of them waits for it.
        self.flights = tuple(flights)
        self.also = also  # further keys of a batch
        self.outer = _LOADING.get()
        self.active = True

    def of(self, key: str) -> LoadContext:
        """The part of one key, for a loader of many: its ``stale`` and ``note``, its ``set`` and ``not_modified``.

        A loader of many that was called for one key alone finds the same.

        Raises:
            ConfigurationError: this load is not about ``key``.
        """
        if key == self.key and self.find is None:
            return self
        if self.find is None or key not in self.also:
            raise ConfigurationError(
                f"current_load().of({key!r}): this load is about {sorted(self.also) or [self.key]}"
            )
        if key not in self.parts:
            stale, note = self.find(key)
            part = LoadContext(self.owner, key, self.options, stale, self.flights, note=note)
            part.active = self.active
            self.parts[key] = part
        return self.parts[key]

    def forget(self) -> None:
        """A try has failed: what it said is void."""
        self.said = {}
        self.parts.clear()

    def end(self) -> None:
        """The loader has returned: nothing can be said any more."""
        for context in (self, *self.parts.values()):
            context.active = False

    def set(self, **said: Unpack[Said]) -> None:
        """Says something of the value that this loader is about to return, as `Entry` would.

        For code deep inside of a loader: an HTTP client that has read a ``max-age``, say. Where the loader returns an
        `Entry`, what that says wins; tags add up. A try that failed (``retries``) has said nothing.

        Args:
            **said: ``ttl``, ``tags``, ``stale_while_revalidate``, ``stale_if_error``, ``note``, ``store``; see `Entry`.

        Raises:
            ConfigurationError: the load is over, or a name or value that breaks its rule.
        """
        if not self.active:
            raise ConfigurationError(f"the load of {self.key!r} is over: nothing can be said of it any more")
        check_said(said)
        self.said = laid_over(self.said, Entry(None, **said))

    # Of whatever type its loader is to return: ``-> Any`` would be an error there to a strict type checker.
    def not_modified(self, **said: Unpack[Said]) -> V:  # type: ignore[type-var]
        """To be returned by a loader that has found that ``stale`` still is the value: it gets a new life.

        Its callers get ``stale``. The tiers keep the payload that they have, where they can, and its tags, and the note,
        unless another one is given. The new times are as this load's options say, and not as an earlier load's `Entry`
        did: say ``ttl`` and the windows again with each answer.

        Args:
            **said: as for `set`.

        Raises:
            ConfigurationError: there is no ``stale`` value, or a name or value that breaks its rule.
        """
        if self.stale is MISSING:
            raise ConfigurationError(
                f"not_modified() in the load of {self.key!r}: there is no value to renew; ask the origin "
                "conditionally only where current_load().stale is not MISSING"
            )
        check_said(said)
        renewed: Any = NotModified(self.stale, **said)
        renewed.load = self
        return cast(V, renewed)


def laid_over(said: dict[str, Any], entry: Entry[Any]) -> dict[str, Any]:
    """What was said of a value, with what ``entry`` says laid over it; tags add up."""
    given = entry.said()
    tags = (*said.get("tags", ()), *given.get("tags", ()))
    return said | given | ({"tags": tuple(dict.fromkeys(tags))} if tags else {})


_LOADING: contextvars.ContextVar[LoadContext | None] = contextvars.ContextVar(
    "cachewright_load", default=None
)


def current_load() -> LoadContext | None:
    """The load that this code runs in; None outside of a loader."""
    context = _LOADING.get()
    return context if context is not None and context.active else None


Joined = tuple[Phase, int]
"""How far a flight was when somebody joined it, and in which round of its reading."""


def _led_by(context: LoadContext | None) -> Iterator[Flight]:
    """The flights that wait for this code: its own load's, and those of the loads that it runs inside of."""
    while context is not None:
        if context.active:
            yield from context.flights
        context = context.outer


def NOBODY_ASKED() -> bool:  # noqa: N802  a constant that happens to be callable
    """`Flight.leader_alive` before its leader has said who it is."""
    return True


class Flight:
    """One load of one key."""

    __slots__ = (
        "confirmed", "error", "forced", "heard", "joined_late", "killed", "leader_alive", "outcome", "phase", "round", "spoiled",
        "thread", "value", "waiters", "waits_for",
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
        self.waits_for: list[
            Flight
        ] = []  # what this flight's leader is waiting for (gathered, several), to find circles
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
            if flight.thread is not None and rt.name == "threads" and flight.thread == threading.get_ident():
                raise WouldDeadlockError(
                    f"{key!r} is being loaded on this thread's event loop, which this blocking call holds up: "
                    "await the method with an 'a' in front instead"
                )
            waiter = rt.waiter()
            flight.waiters.append(waiter)
            if flight.phase >= Phase.LOADING:
                flight.joined_late = True
            for mine in _led_by(context):
                mine.waits_for.append(flight)
            return flight, (flight.phase, flight.round), waiter

    def lead(self, owner: object, key: str, mine: Flight) -> bool:
        """Leads ``mine`` for the key; False where another flight is open."""
        check_recursion(current_load(), owner, key)
        with self._lock:
            return self._open.setdefault((key, mine.forced), mine) is mine

    @staticmethod
    def _check_circle(context: LoadContext, flight: Flight, key: str) -> None:
        mine = set(_led_by(context))
        todo, seen = [flight], set[Flight]()
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
            for mine in _led_by(current_load()):
                if flight in mine.waits_for:
                    mine.waits_for.remove(flight)

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


def check_recursion(context: LoadContext | None, owner: object, key: str) -> None:
    """Raises `RecursiveLoadError` where the caller is inside a load of ``key``."""
    outer = context
    while outer is not None:
        if outer.active and outer.owner is owner and (outer.key == key or key in outer.also):
            raise RecursiveLoadError(
                f"the loader of {key!r} asked for {key!r} itself; read what it needs from the origin, "
                "or give the part its own key"
            )
        outer = outer.outer


class loading:  # noqa: N801  used as a context manager, like contextlib.suppress
    """Marks the code inside as the loader of ``context.key``."""

    def __init__(self, context: LoadContext) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = _LOADING.set(self._context)

    def __exit__(self, *_: object) -> None:
        self._context.end()
        _LOADING.reset(self._token)
