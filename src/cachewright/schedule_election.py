"""One run of a schedule in one process of the fleet: who does it, and what the others know of it afterwards.

Beside the scheduled key stands a *run record* in the authority tier: a slot like any other, whose entry tells which
run was done last. Whoever means to do a run swaps a lease into it, and the entry in its place when the run is over.
So the protocol of loads elects: one process at a time, a dead one is replaced when its lease has expired, and one
that was paused past its lease can commit neither record nor value.

Runs are named by the moment at which they are due, the same in all processes. A wrong clock cannot stop the others: a
record of a run from the future counts only as long as it changes between one's own firings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cachewright.core import slot as slots
from cachewright.core.engine import Engine
from cachewright.core.lease import Held, Watch
from cachewright.core.run_record import RunRecord, read_record, record_key
from cachewright.core.slot import Blocked, StoredEntry, Take
from cachewright.core.state import now_ms
from cachewright.errors import TierUnavailable
from cachewright.events import RefreshFailed
from cachewright.options import Options
from cachewright.runtime.base import Runtime, Waiter
from cachewright.schedule_times import Times

__all__ = ["Election", "Ran", "record_key", "run_once"]

EARLY = 1_000  # µs: a timer that fires a rounding error early still means the run that it was set for
KEPT = 60_000  # ms for which a record outlives the next run but one


@dataclass(frozen=True, slots=True)
class Ran:
    """How one firing ended here.

    Attributes:
        did: this process did the run; otherwise another one had done it.
        at: wall-clock seconds at which the run ended.
        error: why it failed.
    """

    did: bool
    at: float
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """This process is to do the run that is due. ``held`` is None where a newer version's record stands.

    ``failures``: how many runs in a row have failed before this one.
    """

    due: int
    held: Held | None
    failures: int = 0


class Election:
    """One process's part in choosing who does each run.

    Args:
        lease: its life in seconds: how long a process that died in a run holds up the others.
    """

    def __init__(self, engine: Engine, key: str, times: Times, lease: float) -> None:
        self.times = times
        self.stopped = False
        self._state = engine.state
        self._key = record_key(key)
        # Also in process memory it must end: an event loop may stop in the middle of a run and never go on.
        self._life = int(lease * 1000)
        self._seen: tuple[bytes, int] | None = (
            None  # nonce of the record, and due moment, of the firing before
        )
        self._bell: Waiter | None = None

    async def rest(self, rt: Runtime, seconds: float) -> None:
        """Pauses until the seconds are over or the election is stopped."""
        self._bell = bell = rt.waiter()
        if not self.stopped and seconds > 0:
            await rt.wait(bell, seconds)

    def stop(self) -> None:
        """Ends a pause, or a wait for another process's run."""
        self.stopped = True
        bell = self._bell
        if bell is not None:
            bell.set()

    async def turn(self, rt: Runtime) -> Turn | float | None:
        """The run is this process's; or when another one ended it; or None: stopped.

        While another process is at it, this one stands by: should that one die, the run is not lost.

        Raises:
            TierUnavailable: the authority cannot be reached, so nobody can be chosen.
        """
        authority, watch = self._state.chain.authority, Watch(self._state)
        self._bell = bell = rt.waiter()
        while not self.stopped:
            due = self.times.latest(int(rt.now() * 1e6) + EARLY)
            standing, _ = await authority.read(rt, (self._key,))
            slot = standing.get(self._key)
            while True:
                record = read_record(slot, now_ms(rt))
                if record is not None and self._is_done(record, due):
                    self._seen = (record.nonce, due)
                    return record.born / 1000
                verdict = slots.begin_load(
                    slot,
                    now=now_ms(rt),
                    lease_life=self._life,
                    nonce=rt.new_id(),
                    token=rt.new_id(),
                    forced=True,
                    takeover=slot is not None and watch.is_dead(rt, slot),
                )
                if isinstance(verdict, Blocked):
                    return Turn(due, None)
                if not isinstance(verdict, Take):
                    break
                swapped = await authority.swap_one(rt, self._key, slot, verdict.slot)
                if swapped.done:
                    # A record of the run that lands late must find it.
                    held = Held(
                        self._state, authority, self._key, verdict.token, verdict.slot, only_dies=True
                    )
                    return Turn(due, held, record.failures if record is not None else 0)
                slot = swapped.current
            # Rarely: all processes but one do this for as long as a run lasts.
            await rt.wait(bell, self._life / 4000 * (0.75 + rt.random() / 2))
        return None

    async def finish(self, rt: Runtime, turn: Turn, error: Exception | None = None) -> None:
        """Writes down that the run is done, failed or not: others are not to repeat it."""
        if turn.held is None:
            return
        failures = turn.failures + 1 if error is not None else 0
        record = RunRecord(turn.due, rt.new_id(), failures, _why(error))
        born = now_ms(rt)
        later = self.times.after(self.times.after(turn.due))
        ends = born + max(0, later - turn.due) // 1000 + KEPT
        if await turn.held.commit(rt, StoredEntry(record.payload(), born, ends, ends, ends)):
            self._seen = (record.nonce, turn.due)

    def _is_done(self, record: RunRecord, due: int) -> bool:
        if record.due <= due:
            return record.due == due
        # From the future: somebody's clock is wrong, perhaps ours. If nobody has done a run since our firing before
        # this one, nobody else will.
        return self._seen is None or self._seen[0] != record.nonce or self._seen[1] == due


def _why(error: Exception | None) -> str:
    if error is None:
        return ""
    from cachewright.behind.operating import safe_text  # a driver's error may hold a URL, and its password

    return safe_text(f"{type(error).__name__}: {error}")


async def run_once(
    engine: Engine,
    rt: Runtime,
    election: Election,
    key: str,
    loader: Callable[[], Any],
    options: Options,
) -> Ran | None:
    """What a firing does: the run if it is this process's turn, which is a forced load; None where it was stopped.

    A failed run leaves the entry as it is and counts as the run that was due: the next one tries again.
    """
    try:
        turn = await election.turn(rt)
    except TierUnavailable as error:
        engine.state.hub.emit(RefreshFailed(key, error))
        return Ran(True, rt.now(), error)
    if turn is None:
        return None
    if not isinstance(turn, Turn):
        return Ran(False, turn)
    if turn.held is not None:
        turn.held.start_heartbeat(rt)
    failed: Exception | None = None
    try:
        await engine.load(rt, key, loader, options, forced=True)
    except Exception as error:
        failed = error
        engine.state.hub.emit(RefreshFailed(key, error))
    except BaseException:
        if turn.held is not None:
            await turn.held.abandon(rt)  # this process is stopping: one that stands by does the run
        raise
    await election.finish(rt, turn, failed)
    return Ran(True, rt.now(), failed)
