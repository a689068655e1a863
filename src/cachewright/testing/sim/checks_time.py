"""What must hold of times: how long a call may take, how long a value may live, when a stale one must answer.

They are exact, since time is virtual; what is added as slack is said where it is added.
"""

from __future__ import annotations

from collections.abc import Iterator

from cachewright.errors import LoadTimeout
from cachewright.testing.sim.history import Call, Load
from cachewright.testing.sim.origin import OriginFailed
from cachewright.testing.sim.play import Run
from cachewright.testing.sim.seat import NAMESPACE

__all__ = [
    "calls_end_in_time",
    "no_error_where_a_stale_value_may_answer",
    "no_value_outlives_its_life",
    "timeouts_hold",
]

DEADLINE = 0.5  # of one request to a tier
SLACK = 0.05  # a few turns of the scheduler, whole milliseconds


def calls_end_in_time(run: Run) -> list[str]:
    """Over a server that hangs a call ends within a few deadlines, the database's time not counted.

    A read without a loader, a drop: three. It asks each server for at most two things that may fail (a lease and its
    end), and after the first failure there is nothing to be given back; a server that wakes may cost one more.
    A read with a loader may in addition wait for the lease of somebody whose commit was lost: for its life and the
    margin of a takeover, as often as it has to begin anew (three times, the last one alone).
    """
    lease = float(run.plan.options.get("lease", 5.0))
    found = []
    for call in run.history.calls:
        if call.end is None or call.outcome == "crashed":
            continue
        took = call.end - call.start
        if call.kind == "change":
            took -= 0.5 * call.text.count(",") + 0.5  # each save takes less than that
        limit = 3 * DEADLINE + SLACK
        if call.kind == "read":
            limit = 3 * (lease + 0.5 + 3 * DEADLINE + 0.5)
        if took > limit:
            found.append(f"{_who(call)} took {took:.2f} s, more than {limit:.2f} s: too long")
    return found


def no_value_outlives_its_life(run: Run) -> list[str]:
    """Nothing is returned past its ``ttl`` and the window in which its stale value may be used.

    Past ``stale_while_revalidate`` a stale value answers for a failed load, or for one that takes too long, only.
    """
    found = []
    stale_while, stale_if = _option(run, "stale_while_revalidate"), _option(run, "stale_if_error")
    impatient = _option(run, "soft_timeout") or _option(run, "load_timeout")
    for call in run.history.calls:
        if call.outcome != "returned" or call.kind not in ("read", "look"):
            continue
        if call.kind == "look" and call.value is None:
            continue  # nothing was there
        loads = [
            load
            for load in _good(run, call.key)
            if load.value == call.value and _end(load) <= (call.end or 0)
        ]
        if not loads:
            continue
        fresh = _life(run, call.value) + _unsure(run)
        age = call.start - max(_end(load) for load in loads)
        if call.kind == "look":
            if age > fresh:
                found.append(f"{_who(call)} returned {call.value!r}, {age:.2f} s old: it outlived its ttl")
        elif age > fresh + max(stale_while, stale_if):
            found.append(
                f"{_who(call)} returned {call.value!r}, {age:.2f} s old: it outlived its stale window"
            )
        elif age > fresh + stale_while and not impatient and not _failed_lately(run, call):
            found.append(
                f"{_who(call)} returned {call.value!r}, {age:.2f} s old: it outlived what no failure excuses"
            )
    return found


def _failed_lately(run: Run, call: Call) -> bool:
    since = call.start - _option(run, "error_ttl", 1.0) - _unsure(run)
    return any(
        load.key == call.key and load.error is not None and since <= _end(load) <= (call.end or 0)
        for load in run.history.loads
    )


def no_error_where_a_stale_value_may_answer(run: Run) -> list[str]:
    """Neither a loader's error nor `LoadTimeout` reaches a reader while a value stands that may answer for it."""
    found = []
    window = _option(run, "stale_if_error")
    for call in run.history.calls:
        if call.kind != "read" or not isinstance(call.error, OriginFailed | LoadTimeout):
            continue
        if call.text.startswith("refresh"):
            continue  # asks for a new value, and gets no other
        # A load of many keys fails for all where it fails for one that nothing stands for.
        parts = [one for one in run.history.calls if (one.client, one.steps) == (call.client, call.steps)]
        # Whoever joined a load gets its error, also where it had begun before that value came to stand.
        begun = min((one.start for one in run.history.loads if one.error is call.error), default=call.start)
        if all(any(_end(load) <= begun for load in _standing(run, one, window)) for one in parts):
            found.append(
                f"{_who(call)} failed although a value stood for {call.key}: it raised {call.error!r}"
            )
    return found


def timeouts_hold(run: Run) -> list[str]:
    """Nobody waits longer than ``load_timeout``; nor, where a stale value stands, than ``soft_timeout``.

    What is added is the time to read the value that stands. Who asks for many keys at once waits for all of them, unless
    a stale value stands for each.
    """
    found = []
    soft, hard = run.plan.options.get("soft_timeout"), run.plan.options.get("load_timeout")
    window = max(_option(run, "stale_while_revalidate"), _option(run, "stale_if_error"))
    for call in run.history.calls:
        if (
            call.kind != "read"
            or call.end is None
            or call.text.startswith("refresh")
            or call.outcome == "crashed"
        ):
            continue
        took = call.end - call.start
        if hard is not None and took > hard + DEADLINE + SLACK:
            found.append(f"{_who(call)} took {took:.2f} s, too long for load_timeout={hard:g}")
        if soft is None or took <= soft + DEADLINE + SLACK:
            continue
        together = [one for one in run.history.calls if (one.client, one.start) == (call.client, call.start)]
        if all(any(_standing(run, one, window)) for one in together):
            found.append(f"{_who(call)} took {took:.2f} s, too long for soft_timeout={soft:g}")
    return found


def _standing(run: Run, call: Call, window: float) -> Iterator[Load]:
    """Loads whose value certainly stood from before the call to after it: stored, told by a read's return, and
    nothing has touched the key since. They are few of those that did."""
    end = call.end or 0.0
    jitter = float(run.plan.options.get("jitter", 0.1))
    moments = [
        *run.history.disturbances.get("", ()),
        *run.history.disturbances.get(f"{NAMESPACE}:{call.key}", ()),
    ]
    returned = [
        one
        for one in run.history.calls
        if one.key == call.key
        and one.kind == "read"
        and one.outcome == "returned"
        and (one.end or 0) < call.start
    ]
    for load in _good(run, call.key):
        if any(load.start - 1.0 <= moment <= end for moment in moments):
            continue
        # What was loaded since has taken its place, and may live shorter: None, by ``negative_ttl``.
        since = [load, *(one for one in _good(run, call.key) if _end(load) <= _end(one) <= end)]
        fresh = min(_end(one) + _life(run, one.value) * (1 - jitter) for one in since)
        if end > fresh + window - _unsure(run):
            continue
        for one in returned:
            inside = one.start <= load.start and _end(load) <= (one.end or 0)
            if inside and one.process == load.process and one.value == load.value:
                yield load
                break


def _good(run: Run, key: str) -> list[Load]:
    return [
        load for load in run.history.loads if load.key == key and load.error is None and load.end is not None
    ]


def _end(load: Load) -> float:
    return load.end if load.end is not None else float("inf")


def _option(run: Run, name: str, default: float = 0.0) -> float:
    return float(run.plan.options.get(name) or default) if name in run.plan.options else default


def _life(run: Run, value: object) -> float:
    options = run.plan.options
    return float(options["negative_ttl"] if value is None and "negative_ttl" in options else options["ttl"])


def _unsure(run: Run) -> float:
    """How far apart processes' ideas of a moment may be: their clocks, pauses between a load's end and its commit."""
    skews = [*run.plan.skews, 0.0]
    struck = sum(abs(one.seconds) for one in run.plan.disasters if one.kind in ("pause", "clock"))
    return SLACK + max(skews) - min(skews) + struck


def _who(call: Call) -> str:
    return f"{call.client}: {call.text} (from {call.start * 1000:.2f} ms)"
