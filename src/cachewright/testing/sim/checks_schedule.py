"""What must hold where a fleet refreshes a key by a schedule."""

from __future__ import annotations

from cachewright.testing.sim.history import Firing
from cachewright.testing.sim.play import Run
from cachewright.testing.sim.world import EPOCH

__all__ = [
    "done_means_loaded",
    "found_done_is_done",
    "good_values_stay",
    "no_run_is_lost",
    "one_run_an_interval",
]

SKEW = 0.5  # seconds by which clocks may differ before a living lease is taken for dead (see `core.lease`)
ANSWER = 0.5  # seconds that the answer to a swap may take: the lease it placed stood before
SLACK = 2.0  # seconds: spread, polls, a loader that waits for its database


def one_run_an_interval(run: Run) -> list[str]:
    """Each interval has one run, unless who was to do it crashed, was paused, or the record of it was lost."""
    found = []
    if max(run.plan.skews, default=0.0) - min(run.plan.skews, default=0.0) >= SKEW:
        return []
    mine = [firing for firing in run.history.firings if firing.mine]
    for n, first in enumerate(mine):
        for second in mine[n + 1 :]:
            same = (first.key, first.due) == (second.key, second.due)
            if same and not _was_disturbed(run, first, second):
                found.append(f"{first.process} and {second.process} both did the run of {_at(first)}")
    return found


def _was_disturbed(run: Run, first: Firing, second: Firing) -> bool:
    for disaster in run.plan.disasters:
        if disaster.at > second.time:
            continue
        if not isinstance(disaster.target, int):
            if disaster.at >= first.time - ANSWER:
                return True
        # The second, where it took the lease first and was paused before it knew.
        elif (
            f"p{disaster.target}" in (first.process, second.process)
            and disaster.at + disaster.seconds >= first.time
        ):
            return True
    return False


def _at(firing: Firing) -> str:
    return f"{(firing.due / 1e6 - EPOCH) * 1000:.0f} ms"


def found_done_is_done(run: Run) -> list[str]:
    """Who found a run done: some process has written it, or a later one, down."""
    found = []
    for one in run.history.firings:
        if one.mine:
            continue
        written = [
            other
            for other in run.history.firings
            if other.mine and other.key == one.key and other.due >= one.due and other.steps < one.steps
        ]
        if not written:
            found.append(f"{one.process} found the run of {_at(one)} done, and nobody had done it")
    return found


def done_means_loaded(run: Run) -> list[str]:
    """A run is written down when a load of it has ended: else one who dies in it takes it along."""
    found = []
    for one in run.history.firings:
        if not one.mine or one.finished is None:
            continue
        loads = [
            load
            for load in run.history.loads
            if (load.process, load.key) == (one.process, one.key)
            and load.end is not None
            and one.time <= load.end <= one.finished
        ]
        if not loads:
            found.append(f"{one.process} wrote down the run of {_at(one)} as done, and had loaded nothing")
    return found


def no_run_is_lost(run: Run) -> list[str]:
    """While a process that schedules lives, every run is done by somebody, or a later one soon is."""
    found = []
    for call in run.history.calls:
        number = int(call.process[1:])
        undisturbed = all(one.target != number for one in run.plan.disasters)
        if call.kind != "schedule" or call.outcome != "returned" or not undisturbed or call.end is None:
            continue
        every, slow = call.value.every, call.value.slow
        # One run under way, its leader's death or that of a reader who loads, and the run of whoever takes over.
        lease = max(1.0, every / 2, run.plan.options["lease"])
        within = every + 2.6 * lease + 2 * slow + SLACK
        done = [
            f.finished for f in run.history.firings if f.mine and f.key == call.key and f.finished is not None
        ]
        moment = call.start + every
        while moment + within < call.end:
            if not any(moment <= one <= moment + within for one in done):
                found.append(
                    f"{call.process} scheduled {call.key}, and from {moment * 1000:.0f} ms on nothing was done"
                )
                break
            moment += every / 2
    return found


def good_values_stay(run: Run) -> list[str]:
    """Where nobody drops the key, a value that once stood there stays, however later runs end.

    That a read returned one says less: its load may have lost its lease to a process with another clock.
    """
    evicted = any(not isinstance(one.target, int) for one in run.plan.disasters)
    if evicted or any(call.kind == "change" for call in run.history.calls):
        return []
    found = []
    seen: dict[str, float] = {}
    for call in run.history.calls:
        if call.kind != "look" or call.outcome != "returned" or call.end is None:
            continue
        if call.value is not None:
            seen[call.key] = min(call.end, seen.get(call.key, call.end))
    for call in run.history.calls:
        empty = call.kind == "look" and call.outcome == "returned" and call.value is None
        # A tier that answers while its client is paused past the deadline has not answered in time: a miss.
        empty = empty and not any(f"p{one.target}" == call.process for one in run.plan.disasters)
        if empty and call.start > seen.get(call.key, float("inf")):
            found.append(
                f"{call.client} found no {call.key} at {call.start * 1000:.2f} ms, after it had had a value"
            )
    return found
