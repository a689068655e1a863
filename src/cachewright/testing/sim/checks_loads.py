"""That loads do not overlap, in settings of their own: process memory alone, clocks that differ."""

from __future__ import annotations

from cachewright.testing.sim import checks
from cachewright.testing.sim.play import Run

__all__ = ["one_load_between_changes", "one_load_where_clocks_agree"]

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
