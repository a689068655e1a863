"""What must hold where a flusher saves: order, completeness, and what becomes of records that are given up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cachewright.testing.sim.network import CALM
from cachewright.testing.sim.play import Run

__all__ = [
    "dead_letters_stand",
    "flushed_means_saved",
    "last_save_is_newest",
    "reads_agree_in_the_end",
    "saves_in_order",
]


def saves_in_order(run: Run) -> list[str]:
    """Where nothing fails, the saves of a key never go back."""
    found = []
    highest: dict[str, int] = {}
    for save in run.scene.origin.saves if _is_calm(run) else ():
        if save.sequence < highest.get(save.key, 0):
            found.append(
                f"{save.key} was saved as {save.value!r} after a newer state, and nothing had failed"
            )
        highest[save.key] = max(save.sequence, highest.get(save.key, 0))
    return found


def last_save_is_newest(run: Run) -> list[str]:
    """Whatever failed: the last save of a key is the newest. A record that was given up is settled by nobody."""
    saves = run.scene.origin.saves
    dead = [record.key for record in run.left if record.dead]
    newest = {save.key: max(one.sequence for one in saves if one.key == save.key) for save in saves}
    last = {save.key: save.sequence for save in saves}
    return [
        f"the last save of {key} was not its newest"
        for key in last
        if last[key] != newest[key] and f"r:{key}" not in dead
    ]


def _is_calm(run: Run) -> bool:
    """Also no cancellation: an op that is cancelled while it saves through leaves a save of unknown outcome."""
    return (
        not run.history.faults
        and not run.plan.blows
        and not any(call.was_cancelled for call in run.history.calls)
    )


def flushed_means_saved(run: Run) -> list[str]:
    """A `flush` or `close` that returned: what was accepted before it began is at the database, or something newer."""
    found = []
    for call in run.history.calls:
        if call.kind != "flush" or call.outcome != "returned":
            continue
        for key, states in run.history.accepted.items():
            before = [one.sequence for one in states if one.steps <= call.steps]
            saved = [s.sequence for s in run.scene.origin.saves if s.key == key and s.steps <= call.end_steps]
            if before and max(saved, default=0) < max(before):
                found.append(
                    f"{call.client}: {call.text} returned, and the newest state of {key} was not saved"
                )
    return found


def reads_agree_in_the_end(run: Run) -> list[str]:
    """When all is quiet, a repository's read is the newest state that was accepted, in every process."""
    found = []
    for who, key, value in run.reads:
        newest = run.history.newest(key)
        if value != newest:
            found.append(f"in the end {who} reads {value!r} for {key}, and {newest!r} was accepted last")
    if any(not record.dead for record in run.left):
        left = ", ".join(record.key for record in run.left if not record.dead)
        found.append(f"in the end {left} was still dirty")
    return found


def dead_letters_stand(run: Run) -> list[str]:
    """The newest state of a key is at the database, or is the key's dead letter; and the tiers hold nothing else."""
    found = []
    letters = {record.key: record.sequence for record in run.left if record.dead}
    for key in run.history.truth:
        newest = run.history.newest(key)
        at_database: Any = run.scene.origin.values.get(key)
        sequences = [one.sequence for one in run.history.accepted.get(key, ())]
        is_dead = sequences and letters.get(f"r:{key}") == max(sequences)
        if is_dead and not _has_failed(run, key, newest):
            found.append(f"{newest!r} of {key} was given up, and no save of it had failed")
        if at_database != newest and not is_dead:
            found.append(f"the last accepted state of {key}, {newest!r}, is neither saved nor a dead letter")
        for who, one, value in run.looks:
            if one == key and value != newest:
                found.append(f"in the end {who} has {value!r} for {key}, and {newest!r} was accepted last")
    return found


def _has_failed(run: Run, key: str, value: Any) -> bool:
    """Whether a save of it failed, or a claim on it may have been taken over, which counts as a failure.

    That is so where its holder dies, is paused, or cannot reach the disk to say that it has saved.
    """
    if run.plan.disk.before or any(blow.kind in ("crash", "pause") for blow in run.plan.blows):
        return True
    return any((save.key, save.value) == (key, value) for save in run.history.failed_saves)


def is_outage(run: Run) -> bool:
    """Whether tiers may be unreachable in this run: then only one's own changes are sure to be seen."""
    return replace(run.plan.network, slow=CALM.slow) != CALM
