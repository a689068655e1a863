"""Carries a plan out in a world: boots processes, drives clients, brings disasters, waits for quiet, looks once more."""

from __future__ import annotations

import gc
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from cachewright.behind.buffers.base import Record
from cachewright.testing.sim.buffer import SimBuffer, new_scope
from cachewright.testing.sim.cues import Cue, Cues
from cachewright.testing.sim.history import History
from cachewright.testing.sim.leftovers import leftovers
from cachewright.testing.sim.plan import Client, Disaster, Plan
from cachewright.testing.sim.seat import NAMESPACE, Scene, Seat
from cachewright.testing.sim.world import EPOCH, Dead, Process, Task, World

__all__ = ["Run", "play"]

MAX_STEPS = 60_000
LONGEST_LIFE = 33.0  # of a lease or an intent in virtual seconds, with what clocks may differ by
LANDED = 4.0  # virtual seconds after which nothing that was sent before is still under way


class Run:
    """A run and all that is known of it.

    Attributes:
        plan, seed: what was carried out.
        history: what happened.
        hung: whether a call did not end although time and steps were plenty.
        looks: after all was quiet: what each process, and each server, had for each key.
        reads: the same for reads of a repository that writes behind.
        left: what its buffer still held.
        under_way: what was still under way then.
        scene: servers and database as they stood in the end.
    """

    def __init__(self, plan: Plan, seed: int | str, suppressed: frozenset[str]) -> None:
        self.plan, self.seed = plan, seed
        self.world = World(seed, suppressed)
        self.scene = Scene(self.world, plan, new_scope())
        self.history: History = self.world.history
        self.processes = [
            Process(self.world, f"p{n}", plan.skews[n] if n < len(plan.skews) else 0.0)
            for n in range(plan.processes)
        ]
        self.seats: dict[str, Seat] = {}
        self.drivers = [_Driver(self, n, client) for n, client in enumerate(plan.clients)]
        self.hung = False
        self.looks: list[tuple[str, str, Any]] = []
        self.reads: list[tuple[str, str, Any]] = []
        self.left: list[Record] = []
        self.under_way: list[str] = []
        self._snapshots: list[tuple[float, str, Any]] = []

    # The way of a run

    def carry_out(self) -> None:
        for process in self.processes:
            self.boot(process)
        self.world.cues, self.world.strike = Cues(self.plan.cues), self._take_cue
        for disaster in self.plan.disasters:
            self.world.at(disaster.at, lambda disaster=disaster: self._strike(disaster))  # type: ignore[misc]
        done = self.world.run(
            self.plan.horizon, lambda: all(driver.done for driver in self.drivers), MAX_STEPS
        )
        self.hung = not done
        if not self.hung:
            self._be_quiet()
            self._look_for_leftovers()
            self._look_once_more()
        for process in self.processes:
            if process.alive:
                process.alive = False
                for task in list(process.tasks):
                    task.kill()

    def boot(self, process: Process) -> None:
        """A process starts: its cache is made, its flusher runs, its clients go on."""
        seat = self.seats[process.name] = Seat(self.scene, process)
        if self.plan.writes == "behind":
            self.spawn(process, _start_flusher(seat), "start")
        for driver in self.drivers:
            if driver.client.process == self.processes.index(process):
                driver.start()

    def spawn(self, process: Process, work: Coroutine[Any, Any, Any], name: str) -> Task:
        """Starts a task; an error that leaves it is a finding."""
        task = process.spawn(work, name)

        def ended() -> None:
            if task.error is not None and not isinstance(task.error, Dead):
                self.history.escaped.append((task.name, task.error))

        task.when_done(ended)
        return task

    def _take_cue(self, cue: Cue) -> None:
        now = self.world.time
        if cue.kind == "evict":
            for server in self.scene.servers:
                self._strike(Disaster(now, "evict", server))
        elif cue.kind in ("crash", "pause"):
            self._strike(Disaster(now, cue.kind, cue.process, cue.seconds))

    def _strike(self, disaster: Disaster) -> None:
        if not self.world.faulty:
            return
        world, target = self.world, disaster.target
        if isinstance(target, int):
            process = self.processes[target]
            if not process.alive:
                return
            self.history.disturb("")
            if disaster.kind == "crash":
                process.crash()
                world.at(world.time + disaster.seconds, lambda: self._revive(process))
            elif disaster.kind == "pause":
                process.pause(disaster.seconds)
                world.at(world.time + disaster.seconds, lambda: self.history.disturb(""))
            elif disaster.kind == "clock":
                process.skew += disaster.seconds
                self.history.note(process.name, f"its clock jumps by {disaster.seconds:g} s")
            return
        server = self.scene.servers[target]
        self.history.note(target, {"evict": "evicts all"}.get(disaster.kind, f"{disaster.kind}"))
        self.history.disturb("")
        if disaster.kind == "hang":
            server.hung_until = world.time + disaster.seconds
        elif disaster.kind == "down":
            server.up = False
            world.at(world.time + disaster.seconds, lambda: setattr(server, "up", True))
        elif disaster.kind == "evict":
            server.store.rows.clear()
            self.history.evictions.append((world.time, world.steps))
        elif disaster.kind == "empty":
            server.store.empty()
        elif disaster.kind == "old":
            old = server.store.snapshot()
            world.at(world.time + disaster.seconds, lambda: server.store.restore(old))

    def _revive(self, process: Process) -> None:
        if not process.alive:
            process.restart()
            self.boot(process)

    def _be_quiet(self) -> None:
        """No more faults; whoever is down starts; then time enough for everything that is under way."""
        self.world.faulty = False
        for server in self.scene.servers.values():
            server.up, server.hung_until = True, 0.0
        for process in self.processes:
            self._revive(process)
        self.history.note("", "══ no more faults")
        self._quiet_since = self.world.time
        if self.plan.writes == "behind":
            self._wait_for_flushers()
        else:
            self.world.run(self.world.time + self.plan.quiet, lambda: False, self.world.steps + MAX_STEPS)

    def _wait_for_flushers(self) -> None:
        """Until nothing is dirty, and a little longer: what still lands after that may not undo it."""
        for process in self.processes:
            # Where a repository was closed and nobody has used it since, this is the next one that opens it.
            self.spawn(process, _start_flusher(self.seats[process.name]), "start")
        world, buffer = self.world, self.seats[self.processes[0].name].flusher.buffer
        assert isinstance(buffer, SimBuffer)
        ends = world.time + self.plan.quiet
        while True:
            world.run(world.time + 1.0, lambda: False, world.steps + MAX_STEPS)
            awake = all(process.paused_until <= world.time for process in self.processes)
            if (awake and buffer.is_clean()) or world.time > ends:
                break
        world.run(world.time + LANDED, lambda: False, world.steps + MAX_STEPS)
        self.left = buffer.contents()

    def _look_for_leftovers(self) -> None:
        rested = self.world.time - self._quiet_since > LONGEST_LIFE  # else what was lost then may still live
        self.under_way = leftovers([self.seats[process.name] for process in self.processes], rested)

    def _look_once_more(self) -> None:
        for process in self.processes:
            self._look(self.seats[process.name], process.name)
        servers = [name for name in self.plan.chain if name != "memory"]
        if not servers:
            return
        authority, *lowers = servers
        judge = Process(self.world, f"judge of {authority}")
        self.processes.append(judge)
        self._look(Seat(self.scene, judge, tuple(servers)), authority)
        for name in lowers:
            self.looks += [(name, *row) for row in self._rows(name, authority)]

    def _rows(self, name: str, authority: str) -> Iterator[tuple[str, Any]]:
        """What a lower tier would give for each key if the authority lost it.

        Its rows are judged as they stand: a cache of the lower tier alone would find no generations there, and take
        every entry that has tags for invalid.
        """
        store, generations = self.scene.servers[name].store, self.scene.servers[authority].store.generations
        seat = self.seats[self.processes[0].name]
        stamped = seat.cache.engine.state.chain.stamped
        for key in self.plan.keys:
            for called in (key, seat.repository.key_for(key)):
                slot = store.get(f"{NAMESPACE}:{called}")
                if slot is None or slot.entry is None or slot.intents:
                    continue
                entry = slot.entry
                stand = [generations.get(f"{NAMESPACE}:{tag}") for tag, _ in entry.tags]
                born = [mark for _, mark in entry.tags]
                is_valid = [one.mark for one in stand if one is not None] == born and (born or not stamped)
                if is_valid and (EPOCH + self.world.time) * 1000 < entry.fresh_until:
                    yield key, msgspec.msgpack.decode(entry.payload)

    def _look(self, seat: Seat, who: str) -> None:
        task = seat.process.spawn(_look(self, seat, who), "look")
        if not self.world.run(self.world.time + 60, lambda: task.done, self.world.steps + MAX_STEPS):
            self.hung = True


class _Driver:
    """A client's way through its operations, over the lives of its process."""

    def __init__(self, run: Run, number: int, client: Client) -> None:
        self._run, self.client, self.name = run, client, f"c{number}"
        self._next = 0

    @property
    def done(self) -> bool:
        return self._next > len(self.client.ops)

    def start(self) -> None:
        process = self._run.processes[self.client.process]
        self._run.spawn(process, self._go(self._run.seats[process.name]), self.name)

    async def _go(self, seat: Seat) -> None:
        while self._next < len(self.client.ops):
            pause, op = self.client.ops[self._next]
            self._next += 1  # before: what a crash interrupts is not done again
            await seat.rt.sleep(pause)
            await op.run(seat)
        self._next = len(self.client.ops) + 1


async def _start_flusher(seat: Seat) -> None:
    seat.flusher.start(seat.rt)


async def _look(run: Run, seat: Seat, who: str) -> None:
    for key in run.plan.keys:
        for name in (key, f"r:{key}"):
            value = await seat.cache.aget(name)
            if value is not None:
                run.looks.append((who, key, value))
    if run.plan.writes == "behind":
        for key in run.plan.keys:
            run.reads.append((who, key, await seat.repository.aget(key)))


@contextmanager
def _quietly() -> Iterator[None]:
    """No log lines for what is meant to go wrong; no collector in the middle of things that are about to be dropped."""
    log = logging.getLogger("cachewright")
    before, log.disabled = log.disabled, True
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        log.disabled = before
        if collecting:
            gc.enable()


def play(plan: Plan, seed: int | str, suppressed: frozenset[str] = frozenset()) -> Run:
    """Carries a plan out.

    Args:
        plan: what is to happen.
        seed: the luck it has.
        suppressed: names of faults that are not to happen.
    """
    with _quietly():
        run = Run(plan, seed, suppressed)
        run.carry_out()
    return run
