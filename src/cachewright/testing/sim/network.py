"""What lies between a process and a server: time, and everything that goes wrong on the way.

A request is sent, takes effect, and is answered, at three moments. Its effect is the world's affair, not the caller's: it
lands although the caller has timed out, was cancelled or has crashed, unless the request itself was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cachewright.testing.sim.cues import FATES, Cue, Moment
from cachewright.testing.sim.runtime import SimRuntime
from cachewright.testing.sim.world import Task, World, suspend

__all__ = ["CALM", "Broken", "Faults", "Late", "Link", "Server"]


@dataclass(frozen=True)
class Faults:
    """How likely each misfortune is, per request.

    Attributes:
        before: the connection breaks before the request is sent.
        after: it takes effect, and the connection breaks before the answer comes.
        lost: the request or its answer gets lost: the caller times out, with or without an effect.
        late: the caller times out, and the request takes effect after that.
        slow: it takes long, though not too long.
    """

    before: float = 0.0
    after: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    slow: float = 0.05


CALM = Faults()


class Broken(Exception):
    """The connection broke; ``sent`` says whether the request was on its way."""

    def __init__(self, sent: bool) -> None:
        super().__init__(
            "the connection broke" if sent else "the connection broke before the request was sent"
        )
        self.sent = sent


class Late(Exception):
    """No answer in time."""


def _wake_after(seconds: float, task: Task) -> None:
    task.wake_after(seconds)


class Server:
    """What a link leads to: up, down (refuses at once) or hung (takes requests and does them when it wakes)."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.up = True
        self.hung_until = 0.0

    def awake_at(self, time: float) -> float:
        """When a request that arrives at ``time`` is dealt with."""
        return max(time, self.hung_until)


@dataclass(slots=True, eq=False)
class _Request:
    """One request under way."""

    steps: list[Callable[[], Any]]
    killable: bool
    killed: bool = False
    landed: bool = False
    given_up: bool = False
    late: float | None = None  # seconds after its deadline at which it is to land
    on_landing: Callable[[], None] = lambda: None


class Link:
    """One process's connection to one server.

    Args:
        server: what it leads to.
        faults: what may happen to a request.
        timeout: seconds after which the caller gives up.
    """

    def __init__(self, server: Server, faults: Faults, timeout: float = 0.5) -> None:
        self.server, self.world, self.faults, self.timeout = server, server.world, faults, timeout
        self._open: list[_Request] = []  # killable ones whose fate is unknown

    async def exchange(
        self,
        rt: SimRuntime,
        steps: Sequence[Callable[[], Any]],
        *,
        killable: bool = False,
        text: str = "",
        show: Callable[[Any], str] = str,
    ) -> list[Any]:
        """Has ``steps`` take effect at the server, one after the other, others' in between; their results.

        Args:
            rt: the caller's runtime.
            steps: what happens at the server.
            killable: a caller that times out has the server forget the request before it sends anything else.
            text: for the timeline.
            show: how a result is written there.

        Raises:
            Broken: the connection broke.
            Late: the deadline passed.
        """
        task = rt.check()
        cued = await self._cued(task, text, "before")
        rt.check()
        fate = FATES[cued.kind] if cued is not None else self._fate(task)
        if not self.server.up or fate == "before":
            await suspend(lambda _: task.wake_after(self._way(task)))
            rt.check()
            self._tell(task, f"{text}: refused")
            raise Broken(False)
        request = _Request(list(steps), killable, late=cued.seconds if cued is not None else None)
        request.on_landing = lambda: self._landed(task, text)
        if killable:
            self._open.append(request)
        try:
            outcome = await suspend(lambda _: self._send(task, request, fate))
            rt.check()
        finally:
            request.given_up = not request.landed
            if request.landed and request in self._open:
                self._open.remove(request)
        if outcome == "late":
            self._tell(task, f"{text}: no answer in time")
            raise Late
        if outcome == "broken":
            self._tell(task, f"{text}: the answer was lost")
            raise Broken(True)
        self._tell(task, f"{text} → {', '.join(show(one) for one in outcome)}")
        await self._cued(task, text, "answered")
        rt.check()
        results: list[Any] = outcome
        return results

    async def _cued(self, task: Task, text: str, moment: Moment) -> Cue | None:
        """What is to happen at this moment of this request has happened; a fate that it is to have is returned."""
        fate: Cue | None = None
        for cue in self.world.cues.at(task.process.name, text, moment) if self.world.faulty else ():
            if cue.kind == "stall":
                await suspend(partial(_wake_after, cue.seconds))
            elif cue.kind not in FATES:
                await suspend(partial(self._strike, cue))
            elif self.world.allows(f"{task.name}/{text}:{cue.kind}"):
                fate = cue
        return fate

    def _strike(self, cue: Cue, task: Task) -> None:
        self.world.at(self.world.time, lambda: self.world.strike(cue))
        task.wake_after(0.0)

    def _landed(self, task: Task, text: str) -> None:
        for cue in self.world.cues.at(task.process.name, text, "landed") if self.world.faulty else ():
            self.world.strike(cue)

    def _fate(self, task: Task) -> str:
        luck, faults = task.random.random(), self.faults
        for kind in ("before", "after", "lost", "late"):
            chance = getattr(faults, kind)
            if luck < chance:
                return kind if task.fault(kind) else ""
            luck -= chance
        return "slow" if luck < faults.slow else ""

    def _way(self, task: Task) -> float:
        return task.random.random() * task.random.random() * 0.002

    def _send(self, task: Task, request: _Request, fate: str) -> None:
        wake_late = task.waker()
        begun = self.world.time
        deadline = begun + self.timeout
        slow = (task.random.random() * 0.2, task.random.random() * 0.2) if fate == "slow" else (0.0, 0.0)
        way = self._way(task) + slow[0]
        late = task.random.random() * 2.0 if request.late is None else request.late
        arrival = deadline + late if fate == "late" else begun + way
        effect = not (fate == "lost" and task.random.random() < 0.5)
        self.world.at(deadline, lambda: wake_late("late"))
        results: list[Any] = []

        def answer() -> None:
            if fate == "after":
                self.world.at(self.world.time + self._way(task), lambda: wake_late("broken"))
            elif fate != "lost":
                self.world.at(self.world.time + self._way(task) + slow[1], lambda: wake_late(results))

        def land(n: int) -> None:
            if request.killed or not self.server.up:
                request.landed = True
                return
            if self.server.hung_until > self.world.time:
                self.world.at(self.server.hung_until, lambda: land(n))
                return
            if n == 0:
                self._kill_older(request)
            results.append(request.steps[n]())
            if n + 1 < len(request.steps):
                gap = 0.0 if task.random.random() < 0.5 else task.random.random() * 0.001
                self.world.at(self.world.time + gap, lambda: land(n + 1))
            else:
                request.landed = True
                answer()
                request.on_landing()

        if effect:
            self.world.at(arrival, lambda: land(0))

    def _kill_older(self, request: _Request) -> None:
        """What this client gave up waiting for is forgotten before its next request is served."""
        for other in self._open:
            other.killed = other.killed or other.given_up
        self._open = [other for other in self._open if not other.killed]

    def _tell(self, task: Task, text: str) -> None:
        self.world.history.note(task.name, f"{self.server.name}: {text}")
