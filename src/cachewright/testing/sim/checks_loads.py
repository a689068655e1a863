"""That loads do not overlap where memory stands alone or clocks differ; and that what they load is kept."""

from __future__ import annotations

from cachewright.testing.sim import checks
from cachewright.testing.sim.history import Call, Load
from cachewright.testing.sim.play import Run

__all__ = ["one_load_between_changes", "one_load_where_clocks_agree", "what_is_loaded_is_kept"]

MARGIN = 0.5  # clocks further apart than this may take a living lease for dead


def one_load_between_changes(run: Run) -> list[str]:
    """Two loads of one key overlap only where the key was changed meanwhile.

    For a chain that is process memory alone: no server tells when a lease went, so the calls do. A change that was
    cancelled or failed may have dropped a lease as well, and later than it ended (a write's intent stands for a while).
    """
    changes = [call for call in run.history.calls if call.kind == "change"]
    found = []
    loads = sorted(run.history.loads, key=lambda load: load.start)
    for n, first in enumerate(loads):
        for second in loads[n + 1 :]:
            if first.end is not None and second.start >= first.end:
                break
            if second.key != first.key:
                continue
            between = [call for call in changes if call.start <= second.start]
            if not any(
                call.end is None or call.end >= first.start or _lingers(call.outcome) for call in between
            ):
                found.append(f"{second.key} was loaded twice at once, at {second.start * 1000:.2f} ms")
    return found


def _lingers(outcome: str | None) -> bool:
    return outcome != "returned"


def one_load_where_clocks_agree(run: Run) -> list[str]:
    """`checks.one_load_at_a_time`, where no two clocks are further apart than the margin of a takeover."""
    skews = [process.skew for process in run.processes[: run.plan.processes]]
    jumps = any(disaster.kind == "clock" for disaster in run.plan.disasters)
    if jumps or max(skews) - min(skews) > MARGIN:
        return []
    return checks.one_load_at_a_time(run)


def what_is_loaded_is_kept(run: Run) -> list[str]:
    """Where nothing fails and nobody changes the key, nothing is loaded again after a load that ended.

    Caches that keep nothing break none of the other promises. Of calls rather than loads, since a value stands only
    when the call that loaded it has returned; refreshes ask for a load and get one.
    """
    history = run.history
    if history.faults or run.plan.disasters or any(call.was_cancelled for call in history.calls):
        return []
    found = []
    for load in history.loads:
        kept = _kept(run, load)
        if kept is None:
            continue
        since, until = kept
        for again in history.loads:
            if again.key != load.key or again.start <= until:
                continue
            asking = _around(run, again)
            if any(call.text.startswith("refresh") or call.start <= until for call in asking):
                continue
            last = max((call.end or again.start for call in asking), default=again.start)
            if not any(
                call.kind == "change"
                and call.key == load.key
                and call.start <= last
                and (call.end is None or call.end >= since)
                for call in history.calls
            ):
                found.append(
                    f"{again.process} loaded {again.key} at {again.start * 1000:.2f} ms, though it was kept "
                    f"at {until * 1000:.2f} ms and nobody had changed it"
                )
    return found


def _kept(run: Run, load: Load) -> tuple[float, float] | None:
    """From when nobody may change the key for this load to be kept, and when it certainly is."""
    if load.error is not None or load.end is None:
        return None
    around = _around(run, load)
    if not around or any(call.outcome != "returned" or call.value != load.value for call in around):
        return None
    return min(call.start for call in around), max(call.end or 0.0 for call in around)


def _around(run: Run, load: Load) -> list[Call]:
    """The reads of its process during which it began: its caller is one of them."""
    return [
        call
        for call in run.history.calls
        if (call.process, call.key, call.kind) == (load.process, load.key, "read")
        and call.start <= load.start
        and (call.end is None or call.end >= load.start)
    ]
