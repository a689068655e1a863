"""Faults in scheduled refreshes of a fleet."""

from __future__ import annotations

from tests.sim.mutations.mutant import Mutant

_ELECTION, _SCHEDULES = "cachewright.schedule_election", ("schedules",)

SCHEDULES = (
    Mutant(
        "a_run_that_is_done_is_done_again",
        _ELECTION,
        "            return record.due == due\n",
        "            return False\n",
        _SCHEDULES,
    ),
    Mutant(
        "a_dead_runner_is_waited_for",
        _ELECTION,
        "takeover=slot is not None and watch.is_dead(rt, slot)",
        "takeover=False",
        _SCHEDULES,
    ),
    Mutant(
        "a_living_runner_is_taken_for_dead",
        _ELECTION,
        "takeover=slot is not None and watch.is_dead(rt, slot)",
        "takeover=slot is not None",
        _SCHEDULES,
    ),
    Mutant(
        "a_runs_lease_is_not_renewed",
        _ELECTION,
        "        turn.held.start_heartbeat(rt)\n",
        "        pass\n",
        _SCHEDULES,
    ),
    Mutant(
        "a_failed_run_is_not_written_down",
        _ELECTION,
        "    await election.finish(rt, turn, failed)\n",
        "    if failed is None:\n        await election.finish(rt, turn, failed)\n",
        _SCHEDULES,
    ),
    Mutant(
        "a_run_is_written_down_before_it_is_done",
        _ELECTION,
        "    failed: Exception | None = None\n    try:\n        await engine.load(",
        "    failed: Exception | None = None\n    await election.finish(rt, turn, failed)\n    try:\n        await engine.load(",
        _SCHEDULES,
    ),
    Mutant(
        "a_record_from_the_future_stops_everybody",
        _ELECTION,
        "        return self._seen is None or self._seen[0] != record.nonce or self._seen[1] == due\n",
        "        return True\n",
        _SCHEDULES,
    ),
    Mutant(
        "a_refused_swap_counts_as_ones_turn",
        _ELECTION,
        "                if swapped.done:\n                    # A record",
        "                if swapped.done or swapped.current is not None:\n                    # A record",
        _SCHEDULES,
    ),
    Mutant(
        "a_failing_run_drops_the_value",
        _ELECTION,
        "        failed = error\n",
        "        failed = error\n        await engine.drop_many(rt, [key])\n",
        _SCHEDULES,
    ),
    Mutant(
        "firings_during_a_run_start_more_runs",
        "cachewright.schedule",
        "            if self._busy:\n                self._again = True\n                return\n",
        "",
        _SCHEDULES,
    ),
)
