"""``refresh_every`` in a simulation: the real handle and the real election; only the timer that fires is the world's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cachewright.core.engine import Engine
from cachewright.runtime.base import Runtime
from cachewright.schedule import LONGEST_SPREAD, SPREAD, Refresh, Schedules
from cachewright.schedule_election import Election, Turn
from cachewright.schedule_times import Every, Times
from cachewright.testing.sim.history import Firing
from cachewright.testing.sim.plan import Op
from cachewright.testing.sim.seat import NAMESPACE, Seat

__all__ = ["Schedule"]


class _Recorded(Election):
    """An election whose turns stand in the history."""

    def __init__(self, seat: Seat, engine: Engine, key: str, times: Times, lease: float) -> None:
        super().__init__(engine, key, times, lease)
        self._history, self._process = seat.world.history, seat.process
        self._name = key

    async def turn(self, rt: Runtime) -> Turn | float | None:
        due = self.times.latest(int(rt.now() * 1e6))
        turn = await super().turn(rt)
        if turn is not None:
            mine = isinstance(turn, Turn)
            due = turn.due if isinstance(turn, Turn) else max(due, self._seen[1] if self._seen else 0)
            world = self._process.world
            firing = Firing(self._process.name, self._name, due, world.time, world.steps, mine)
            self._history.firings.append(firing)
            verb = "is to do" if mine else "found done"
            self._history.note(self._process.name, f"{verb} the run of {due % 10**9 / 1e6:.3f}")
        return turn

    async def finish(self, rt: Runtime, turn: Turn, error: Exception | None = None) -> None:
        await super().finish(rt, turn, error)
        for firing in self._history.firings:
            if firing.mine and firing.process == self._process.name and firing.due == turn.due:
                firing.finished = self._process.world.time


@dataclass(frozen=True)
class Schedule(Op):
    """``refresh_every`` for so many seconds, then its end; ``slow``: by how much its loader may take longer."""

    key: str = "k"
    every: float = 1.0
    seconds: float = 6.0
    slow: float = 0.0

    async def run(self, seat: Seat, cancelled: bool = False) -> None:
        text = f"refresh_every({self.every}, {self.key}) for {self.seconds:g} s"
        with seat.call("schedule", text, [self.key], cancelled=cancelled, value=self):
            refresh = self._make(seat)
            ends = seat.world.time + self.seconds
            while seat.world.time < ends:
                now = int(seat.rt.now() * 1e6)
                await seat.rt.sleep((refresh._election.times.after(now) - now) / 1e6)
                refresh.fire()
            refresh.cancel()
            await refresh.end(seat.rt, 5.0)

    def _make(self, seat: Seat) -> Refresh:
        engine, rt = seat.cache.engine, seat.rt
        times = Every(self.every, f"{NAMESPACE}:{self.key}")
        options = replace(engine.options, lease=max(1.0, self.every / 2))
        election = _Recorded(seat, engine, self.key, times, options.lease)
        spread = min(self.every * SPREAD, LONGEST_SPREAD)

        async def loader() -> Any:
            await rt.sleep(rt.random() * self.slow)
            return await seat.load(self.key)

        return Refresh(Schedules(engine, rt, rt), rt, self.key, loader, options, election, spread)
