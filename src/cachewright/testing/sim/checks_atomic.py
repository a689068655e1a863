"""Linearizability of plain operations on a cache whose authority is one server."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cachewright.testing.sim.history import Call
from cachewright.testing.sim.linearize import MISSING_NUMBER, Atom, Operation, is_linearizable
from cachewright.testing.sim.play import Run
from cachewright.testing.sim.seat import NAMESPACE

__all__ = ["linearizable"]

LANDS = 2.6  # seconds after its caller gave up in which a request may still take effect (see `network`)


@dataclass(frozen=True, slots=True)
class _Placed(Operation):
    """With the moment after which it cannot land any more, and the step by which it certainly cannot."""

    lands: float = float("inf")  # virtual seconds
    killed: float = float("inf")  # steps
    begun: float = 0.0  # virtual seconds


def linearizable(run: Run) -> list[str]:
    """The results of all operations on a key are those that one copy of it would have given, in some order.

    A tier that may have missed a change is told to drop the key before it is used again (see `core.breaker`): from
    the first call that failed on, the key may vanish at any moment at which a drop landed. What the authority evicts
    vanishes when somebody notices, if a lower tier does not bring it back.
    """
    found = []
    for key in run.plan.keys:
        calls = [call for call in run.history.calls if call.kind == "atom" and call.key == key]
        plain = [call for call in calls if call.value.kind != "load"]
        operations: list[_Placed] = [
            _place(run, call, calls)
            for call in plain
            if not _is_hidden(call, calls) and not _is_evicted(run, call)
        ]
        operations += _drops(run, key, calls) + _loads(run, calls) + _evictions(run) + _looks(run, key)
        if not is_linearizable(operations, _precedes):
            story = "; ".join(f"{call.client} {call.text} {call.outcome}: {_said(call)}" for call in calls)
            found.append(f"no order of the operations on {key} explains their results: {story}")
    return found


def _is_hidden(call: Call, calls: list[Call]) -> bool:
    """Whether it found no entry because its own process no longer trusts the one that stands.

    A key that a tier may have missed a change of counts as absent until the tier has been told, in the process that
    knows of it only. That is a miss, which changes nothing, and not yet the drop that all others see.
    """
    absent = Atom("get"), Atom("touch", None, False), Atom("incr", 1, MISSING_NUMBER)
    return (
        call.outcome == "returned"
        and call.value in absent
        and any(
            one.outcome in ("raised", "cancelled", None)
            and one.process == call.process
            and one.value.kind != "get"
            and one.steps < call.end_steps
            for one in calls
        )
    )


def _is_evicted(run: Run, call: Call) -> bool:
    """Whether it found no entry in an authority that was evicted. ``touch`` and ``incr`` look there alone, and change
    nothing; a read may still bring the entry back from below."""
    absent = Atom("touch", None, False), Atom("incr", 1, MISSING_NUMBER)
    below = sum(name != "memory" for name in run.plan.chain) > 1
    return below and call.value in absent and any(step < call.end_steps for _, step in run.history.evictions)


def _loads(run: Run, calls: list[Call]) -> list[_Placed]:
    """A loaded value is kept where the key is still absent, by the time its call returns.

    Once more, from below, where the authority lost it while the lower tier was still to be told.
    """
    found = []
    for call in calls:
        if call.value.kind == "load":
            one = replace(_place(run, call, calls), atom=Atom("add", call.value.argument), known=False)
            if call.outcome == "returned":
                one = replace(one, killed=call.end_steps)
            meanwhile = any(
                call.steps <= step and time <= one.lands and (one.killed >= step)
                for time, step in run.history.evictions
            )
            found += [one, one] if meanwhile else [one]
    return found


def _evictions(run: Run) -> list[_Placed]:
    return [_Placed(Atom("delete"), steps, steps, False, begun=time) for time, steps in run.history.evictions]


def _precedes(one: Operation, other: Operation) -> bool:
    assert isinstance(one, _Placed)
    assert isinstance(other, _Placed)
    if one.known:
        return one.end < other.start
    return one.lands < other.begun or one.killed < other.start


def _said(call: Call) -> object:
    return call.value.result if call.outcome == "returned" else "?"


def _place(run: Run, call: Call, calls: list[Call]) -> _Placed:
    atom: Atom = call.value
    if atom.kind == "delete" and sum(name != "memory" for name in run.plan.chain) > 1:
        # What it removed is the authority's word. A load between its drop below and its drop there is, in the end,
        # one that came after it: its entry stands below, and comes back.
        atom = Atom("delete")
    known = call.outcome == "returned"
    end = float("inf") if call.end is None else call.end
    killed = float("inf")
    crashes = any(disaster.kind == "crash" for disaster in run.plan.disasters)
    if atom.kind == "set" and not known and not crashes:
        # A `set` that was given up is killed before the same client's next request is served.
        after = (c for c in calls if c.process == call.process and c.steps > call.end_steps)
        killed = min((c.end_steps for c in after if c.outcome == "returned"), default=killed)
    return _Placed(atom, call.steps, call.end_steps, known, end + LANDS, killed, call.start)


def _drops(run: Run, key: str, calls: list[Call]) -> list[_Placed]:
    unknown = min((c.steps for c in calls if c.outcome not in (None, "returned")), default=None)
    moments = run.history.drops.get(f"{NAMESPACE}:{key}", ())
    if unknown is None:
        return []
    return [
        _Placed(Atom("delete"), steps, steps, False, time, steps, time)
        for time, steps in moments
        if steps > unknown
    ]


def _looks(run: Run, key: str) -> list[_Placed]:
    """What every process, and the server, had in the end."""
    values = {who: value for who, one, value in run.looks if one == key}
    names = [process.name for process in run.processes if not process.name.startswith("judge")]
    last = run.world.steps
    return [
        _Placed(Atom("get", None, values.get(who)), last, last, True, begun=run.world.time) for who in names
    ]
