"""What must hold in a run. Each check reads the history and returns a sentence for every violation it finds."""

from __future__ import annotations

from asyncio import CancelledError

from cachewright.errors import (
    BufferError,
    BufferFull,
    BufferUnavailable,
    FlushTimeout,
    LoadTimeout,
    TierUnavailable,
)
from cachewright.testing.sim.history import Call, Load
from cachewright.testing.sim.network import CALM
from cachewright.testing.sim.origin import OriginFailed
from cachewright.testing.sim.play import Run
from cachewright.testing.sim.seat import NAMESPACE

__all__ = [
    "agreement_in_the_end",
    "every_call_ends",
    "every_write_is_saved",
    "nobody_inherits_a_fate",
    "nothing_older",
    "one_load_at_a_time",
    "own_changes_are_seen",
]


def nothing_older(run: Run) -> list[str]:
    """No read that starts after an acknowledged change returns anything older than it.

    Memory above a shared tier may be ``local_ttl`` behind other processes' changes.
    """
    return _older(run, others=True)


def own_changes_are_seen(run: Run) -> list[str]:
    """The same for changes of the reader's own process, in the same life: that holds in every outage too."""
    return _older(run, others=False)


def _older(run: Run, *, others: bool) -> list[str]:
    history, found = run.history, []
    lag = float(run.plan.options.get("local_ttl", 5.0)) if run.scene.has_memory else 0.0
    changes = [c for c in history.calls if c.kind == "change" and c.outcome == "returned"]
    for read in history.calls:
        if read.outcome != "returned" or read.kind not in ("read", "look"):
            continue
        if read.kind == "look" and read.value is None:
            continue
        position = history.position(read.key, read.value, read.end_steps)
        for change in changes:
            if change.key != read.key or change.end_steps >= read.steps:
                continue
            mine = change.process == read.process
            if not mine and not others:
                continue
            if not mine and change.end is not None and read.start < change.end + lag:
                continue
            wanted = history.made(change.key, change.value, change.steps, change.end_steps)
            if position < wanted:
                found.append(f"{_who(read)} returned {read.value!r}, older than what {_who(change)} had made")
    return found


def one_load_at_a_time(run: Run) -> list[str]:
    """Two live loads of one key never overlap, unless something ended the first one's lease."""
    found = []
    loads = sorted(run.history.loads, key=lambda load: load.start)
    for n, first in enumerate(loads):
        for second in loads[n + 1 :]:
            if first.end is not None and second.start >= first.end:
                break
            if second.key != first.key:
                continue
            if not (_lost_its_lease(run, first, second.start) or _lost_its_lease(run, second, second.start)):
                found.append(
                    f"{first.process} and {second.process} loaded {first.key} at once, "
                    f"at {second.start * 1000:.2f} ms"
                )
    return found


def _lost_its_lease(run: Run, load: Load, by: float) -> bool:
    """Whether something may have ended the lease of a load between its asking for it and then."""
    moments = run.history.disturbances
    asked = run.history.leases.get((load.task, load.key), ())
    leased = max((time for time in asked if time <= load.start), default=0.0)
    reasons = [*moments.get("", ()), *moments.get(f"{NAMESPACE}:{load.key}", ())]
    return any(leased <= moment <= by for moment in reasons)


def every_call_ends(run: Run) -> list[str]:
    """No call hangs; and when all is quiet nothing is under way that nobody waits for."""
    if not run.hung:
        return [f"in the end {what}" for what in run.under_way]
    waiting = [_who(call) for call in run.history.calls if call.end is None]
    return [f"never ended: {'; '.join(waiting) or 'background work'}"]


def nobody_inherits_a_fate(run: Run) -> list[str]:
    """A caller sees its own cancellation and its own errors only: those of a load it took part in, or of its write."""
    found = [f"{name} ended with {error!r}" for name, error in run.history.escaped]
    strict = run.plan.options.get("on_outage") == "raise"
    for call in run.history.calls:
        error = call.error
        if error is None or call.outcome == "crashed":
            continue
        if isinstance(error, CancelledError):
            if not call.was_cancelled:
                found.append(f"{_who(call)} was cancelled, though nobody cancelled it")
        elif isinstance(error, TierUnavailable):
            if not strict:
                found.append(f"{_who(call)} raised {error!r} although the caches serve on")
            elif not _may_be_out(run):
                found.append(f"{_who(call)} raised {error!r} although every tier could be reached")
        elif isinstance(error, LoadTimeout):
            found += [] if "load_timeout" in run.plan.options else [f"{_who(call)} raised {error!r}"]
        elif isinstance(error, BufferError):
            if not _is_the_buffers(run, call, error):
                found.append(f"{_who(call)} raised {error!r}")
        elif reason := _is_not_its_own(run, call, error):
            found.append(f"{_who(call)} raised {error!r}, {reason}")
    return found


def _is_not_its_own(run: Run, call: Call, error: BaseException) -> str:
    """Why this error is not one of the database's that the call itself has met; "": it is."""
    if not isinstance(error, OriginFailed) or _is_not_its_save(run, call):
        return "which is no error that it may raise"
    if call.kind == "read" and not any(_is_of(call, load) for load in run.history.loads):
        return "which is no error of a load it took part in"
    if call.kind == "change" and not _is_of_its_save(run, call):
        return "which is no error of a save of its own"
    if call.kind == "look" and call.text.startswith("get("):
        return "and asked the database for nothing"
    return ""


def _may_be_out(run: Run) -> bool:
    """Whether a tier may not have answered in time; a process that is paused past a request's deadline finds it so."""
    return bool(run.history.faults) or any(one.kind not in ("crash", "clock") for one in run.plan.blows)


def _is_of_its_save(run: Run, call: Call) -> bool:
    """A call for many keys has a record for each, and fails for all."""
    parts = [one for one in run.history.calls if (one.client, one.steps) == (call.client, call.steps)]
    return any(
        save.error is call.error
        and save.task.partition("#")[0] == call.client
        and call.steps <= save.steps <= call.end_steps
        and any((save.key, save.value) == (part.key, part.value) for part in parts)
        for save in run.history.failed_saves
    )


def _is_the_buffers(run: Run, call: Call, error: BufferError) -> bool:
    """Whether this error of the buffer belongs to this call."""
    behind = run.plan.behind
    lasted = (call.end or 0.0) - call.start
    if isinstance(error, BufferFull):
        rule = behind.get("on_full", "block")
        waited = rule in ("block", "through") and lasted >= behind.get("full_timeout", 5.0)
        most = behind.get("max_dirty", 100_000)
        together = sum(one.steps == call.steps and one.text == call.text for one in run.history.calls)
        at_once = rule != "through" and together > most
        over = len(run.plan.keys) > most
        return call.kind == "change" and over and (rule == "raise" or waited or at_once)
    if isinstance(error, FlushTimeout):
        may_die = "max_attempts" in behind
        return call.kind == "flush" and (may_die or lasted >= float(call.text.partition("(")[2][:-1]))
    if not isinstance(error, BufferUnavailable) or run.plan.disk == CALM:
        return False
    return call.kind != "read" or any(_is_of(call, load) for load in run.history.failures)


def _is_not_its_save(run: Run, call: Call) -> bool:
    """Behind a buffer, the database's errors are the flusher's, but for what is saved through a full one."""
    behind = run.plan.writes == "behind" and run.plan.behind.get("on_full") != "through"
    return behind and call.kind != "read"


def _is_of(call: Call, load: Load) -> bool:
    if load.error is not call.error or load.process != call.process:
        return False
    return load.end is not None and load.end >= call.start


def agreement_in_the_end(run: Run) -> list[str]:
    """When all is quiet, whatever stands in any tier is what the database has."""
    found = []
    for who, key, value in run.looks:
        if value != run.scene.origin.values.get(key) and not _excused(run, key):
            true = run.scene.origin.values.get(key)
            found.append(f"in the end {who} has {value!r} for {key}, and the database {true!r}")
    return found


def _excused(run: Run, key: str) -> bool:
    """A change past the cache that never came to tell it: its last value may be unknown to the cache."""
    if run.plan.writes == "behind":
        return False
    changes = [c for c in run.history.calls if c.kind == "change" and c.key == key and "then" in c.text]
    told = [c.steps for c in changes if c.outcome == "returned"]
    untold = [c for c in changes if c.outcome != "returned"]
    effects = [run.history.last_step(key, c.value) for c in untold]  # it may land after the call has ended
    return any(effect >= 0 and not any(step > effect for step in told) for effect in effects)


def every_write_is_saved(run: Run) -> list[str]:
    """The database ends with the newest state that the buffer took, and has had them in order."""
    found = []
    for key, states in run.history.truth.items():
        newest = states[-1][1]
        if run.scene.origin.values.get(key) != newest:
            has = run.scene.origin.values.get(key)
            found.append(f"the last accepted state of {key} was {newest!r}, and the database has {has!r}")
    for call in run.history.calls:
        acknowledged = call.kind == "change" and call.outcome == "returned"
        if acknowledged and run.history.position(call.key, call.value, call.end_steps) < 0:
            found.append(f"{_who(call)} returned, and its state was never accepted")
    return found


def _who(call: Call) -> str:
    return f"{call.client}: {call.text} (from {call.start * 1000:.2f} ms)"
