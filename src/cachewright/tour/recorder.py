"""Writes down what calls do: who called what, whether it was a hit or a load, who waited, and how long it took."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from cachewright.core.edit import Inspection
from cachewright.options import MISSING
from cachewright.repository import Repository
from cachewright.runtime.process import LOOPBACK
from cachewright.tour.model import Side, Span, Step, TierRow
from cachewright.tour.origin import Origin, User, marks
from cachewright.tour.words import duration

__all__ = ["Recorder", "show", "told"]

T = TypeVar("T")
# What a call means that neither reads nor is told by a mark.
_BY_NAME = {
    "delete": "drop", "invalidate": "drop", "invalidate_tags": "drop", "set": "store", "set_many": "store",
    "add": "store", "put": "store", "touch": "store", "flush": "save", "connect": "note",
}  # fmt: skip
_OWNERS = {
    "Cache": "cache",
    "Repository": "users",
    "Redis": "redis",
    "RedisCluster": "cluster",
    "Origin": "database",
}


class Recorder:
    """One side of one scene.

    Args:
        side: where the steps go.
        origin: whose queries tell a load from a hit.
        now: seconds since the scene began.
    """

    def __init__(self, side: Side, origin: Origin, now: Callable[[], float]) -> None:
        self.side, self._origin, self._now = side, origin, now

    def call(
        self, function: Callable[..., T], *args: Any, who: str = "caller", note: str = "", **options: Any
    ) -> T:
        """Calls it and writes a step.

        Raises:
            Exception: what it raised, after the step was written.
        """
        outcome = self._timed(partial(function, *args, **options), who)
        shown = "" if outcome.value is None and not _name(function).startswith("get") else show(outcome.value)
        words = "; ".join(filter(None, [shown, note]))
        step = self._step(label(function, args, options), [outcome], words)
        step.result = _word(_name(function), outcome)
        step.spans = [replace(span, kind=step.result) for span in step.spans]
        if outcome.error is not None:
            step.note = note or told(outcome.error)
            raise outcome.error
        return outcome.value  # type: ignore[no-any-return]

    def attempt(self, function: Callable[..., T], *args: Any, **more: Any) -> T | Exception:
        """`call`, its error returned."""
        try:
            return self.call(function, *args, **more)
        except Exception as error:
            return error

    def crowd(
        self, callers: int, function: Callable[..., T], *args: Any, who: str = "caller", note: str = ""
    ) -> list[T | Exception]:
        """That many threads call it at the same moment; one step. Errors stand in the place of values."""
        jobs = [(f"{who} {n + 1}", function, args) for n in range(callers)]
        return self.together(jobs, call=f"{callers} × {label(function, args, {})}", note=note)

    def together(
        self, jobs: Sequence[tuple[str, Callable[..., Any], Sequence[Any]]], *, call: str, note: str = ""
    ) -> list[Any]:
        """Different calls at the same moment, each ``(who, function, args)``; one step."""
        barrier = threading.Barrier(len(jobs))
        outcomes: list[_Outcome | None] = [None] * len(jobs)

        def run(index: int, who: str, function: Callable[..., Any], args: Sequence[Any]) -> None:
            barrier.wait(30)
            outcomes[index] = self._timed(partial(function, *args), who)

        threads = [
            threading.Thread(target=run, args=(index, *job), name=f"tour {job[0]}", daemon=True)
            for index, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        done = [outcome for outcome in outcomes if outcome is not None]
        if len(done) < len(jobs):
            raise TimeoutError(
                f"{len(jobs) - len(done)} of {len(jobs)} callers of {call} did not return in 60 s"
            )
        counted = Counter(outcome.result for outcome in done)
        words = ", ".join(f"{number} {_PLURALS.get(word, word)}" for word, number in counted.most_common())
        step = self._step(call, done, f"{words}{'; ' + note if note else ''}")
        step.result = "load" if counted["load"] else counted.most_common(1)[0][0]
        failed = next((outcome.error for outcome in done if outcome.error is not None), None)
        if failed is not None:
            step.note += f"; {told(failed)}"
        step.who = f"{len(jobs)} threads"
        return [outcome.value if outcome.error is None else outcome.error for outcome in done]

    def repeat(
        self,
        until: Callable[[], bool],
        function: Callable[..., Any],
        *args: Any,
        pause: float = 0.03,
        who: str,
    ) -> list[Exception | None]:
        """Calls it again and again until ``until()``; one step. The error of each call, or None."""
        outcomes: list[_Outcome] = []
        while not outcomes or not until():
            outcomes.append(self._timed(partial(function, *args), who))
            time.sleep(pause)
        for outcome in outcomes:  # each is alone: what others load meanwhile is not what it waits for
            outcome.result = "hit" if outcome.result == "wait" else outcome.result
        counted = Counter(outcome.result for outcome in outcomes)
        slowest = max(outcome.seconds for outcome in outcomes)
        words = ", ".join(f"{number} {_PLURALS.get(word, word)}" for word, number in counted.most_common())
        call = f"{len(outcomes)} × {label(function, args, {})}"
        step = self._step(call, outcomes, f"{words}; the slowest took {duration(slowest)}")
        step.result = "error" if counted["error"] else counted.most_common(1)[0][0]
        return [outcome.error for outcome in outcomes]

    def note(
        self, who: str, call: str, note: str = "", *, at: float | None = None, result: str = "note"
    ) -> None:
        """Something that happened beside the calls."""
        moment = self._now() if at is None else at
        self.side.steps.append(Step(moment, 0.0, who, call, result, note, [Span(who, moment, 0.0, result)]))

    def add(self, who: str, call: str, result: str, note: str = "", *, at: float, seconds: float) -> None:
        """A call that another process made."""
        span = Span(who, at, seconds, result)
        self.side.steps.append(Step(at, seconds, who, call, result, note, [span]))

    def tiers(self, inspect: Callable[..., Inspection], *args: Any) -> Inspection:
        """Looks at what every tier holds, and writes it down."""
        seen = inspect(*args)
        rows = [TierRow(_short(view.tier), view.state, view.fresh_for) for view in seen.tiers]
        step = Step(self._now(), 0.0, "look", label(inspect, args, {}), "note", "", [], rows)
        self.side.steps.append(step)
        return seen

    # ------------------------------------------------------------------------------------------- underneath

    def _timed(self, function: partial[Any], who: str) -> _Outcome:
        marks.seen = set()
        asked_before = self._origin.loads + self._origin.failures
        began = self._now()
        clock = time.perf_counter()
        value, error = None, None
        try:
            value = function()
        except Exception as caught:
            error = caught
        seconds = time.perf_counter() - clock
        if "loaded" in marks.seen:
            asked = self._origin.loads + self._origin.failures > asked_before
            marks.seen.add("load" if asked or not _of_repository(function) else "buffer")
        result = next((word for word in ("stale", "load", "buffer", "save") if word in marks.seen), "hit")
        if error is not None:
            result = "error"
        elif result == "hit" and self._others_loaded(began, seconds):
            result = "wait"
        return _Outcome(who, began, seconds, result, value, error)

    def _others_loaded(self, began: float, seconds: float) -> bool:
        """Whether this call was held up by a load on another thread."""
        if seconds < self._origin.read_seconds / 4:
            return False
        ended = began + seconds
        return any(
            at < ended and at + took > began for at, took, kind in self._origin.queries if kind == "load"
        )

    def _step(self, call: str, outcomes: list[_Outcome], note: str) -> Step:
        first = outcomes[0]
        began = min(outcome.at for outcome in outcomes)
        ended = max(outcome.at + outcome.seconds for outcome in outcomes)
        spans = [Span(one.who, one.at, one.seconds, one.result) for one in outcomes]
        step = Step(began, ended - began, first.who, call, first.result, note, spans)
        self.side.steps.append(step)
        return step


class _Outcome:
    def __init__(
        self, who: str, at: float, seconds: float, result: str, value: Any, error: Exception | None
    ) -> None:
        self.who, self.at, self.seconds, self.result, self.value, self.error = (
            who,
            at,
            seconds,
            result,
            value,
            error,
        )


def _of_repository(call: partial[Any]) -> bool:
    """Whether a load that did not ask the database can only have come from the buffer of unsaved writes."""
    return isinstance(getattr(call.func, "__self__", None), Repository)


def _short(tier: str) -> str:
    """``redis:6379`` of ``redis(127.0.0.1:6379)``; of several servers, the kind alone."""
    kind, _, place = tier.partition("(")
    if not place or "," in place:
        return kind
    return f"{kind}:{place.replace(')', '').removeprefix(f'{LOOPBACK}:')}"


def _word(name: str, outcome: _Outcome) -> str:
    """The step's word where no mark says more."""
    if outcome.result != "hit":
        return outcome.result
    if name in _BY_NAME:
        return _BY_NAME[name]
    if not name.startswith("get"):
        return "note"
    return "miss" if outcome.value is None or outcome.value == {} else "hit"


_PLURALS = {
    "load": "loaded",
    "buffer": "from the buffer",
    "wait": "waited",
    "hit": "hit",
    "error": "failed",
    "stale": "got the stale value",
}


def told(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def show(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, User):
        return f"{value.name}, credit {value.credit}"
    if isinstance(value, Exception):
        return told(value)
    if value is None or value is MISSING:
        return "None" if value is None else "MISSING"
    if isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, dict | list | tuple | set):
        return f"{len(value)} values"
    return ""


def label(function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> str:
    """The call as one would write it."""
    words = [_argument(arg) for arg in args] + [
        f"{name}={_argument(value)}" for name, value in options.items()
    ]
    return f"{_path(function)}({', '.join(words)})"


def _argument(value: Any) -> str:
    if isinstance(value, User):
        return f"{value.name}, credit {value.credit}"
    if type(value).__name__ in _OWNERS:
        return _OWNERS[type(value).__name__]
    if isinstance(value, str) and "-textbook:" in value:  # the scene's own prefix, which says nothing
        value = value.partition("-textbook:")[2]
    if callable(value):
        return _path(value)
    if isinstance(value, list | tuple | dict | range) and len(value) > 3:
        return f"{len(value)} {'values' if isinstance(value, dict) else 'keys'}"
    words = repr(value)
    return words if not words.startswith("<") else f"<{type(value).__name__.lower()}>"


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _path(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    if owner is None:
        return _name(function).replace("<lambda>", "loader")
    decorated = getattr(owner, "function", None)  # get_user.invalidate and its like
    if decorated is not None:
        return f"{_name(decorated)}.{_name(function)}"
    return f"{_OWNERS.get(type(owner).__name__, type(owner).__name__.lower())}.{_name(function)}"
