"""A client's place in a process: its cache, its database, and how its calls are recorded."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cachewright.behind.flusher import Flusher
from cachewright.behind.types import Write
from cachewright.cache import Cache
from cachewright.options import MISSING
from cachewright.repository import Repository
from cachewright.testing.sim.buffer import SimBuffer
from cachewright.testing.sim.history import Call, Load
from cachewright.testing.sim.network import Link
from cachewright.testing.sim.origin import OriginClient, SimOrigin
from cachewright.testing.sim.runtime import SimRuntime
from cachewright.testing.sim.setting import Setting
from cachewright.testing.sim.store import SimServer, SimTier
from cachewright.testing.sim.world import Process, World, suspend
from cachewright.tiers.base import Tier
from cachewright.write_behind import SavingLater
from cachewright.write_modes import WriteBehind

__all__ = ["NAMESPACE", "Scene", "Seat"]

NAMESPACE = "sim"


class Scene:
    """What all processes of a run share: servers, database, buffer."""

    def __init__(self, world: World, plan: Setting, scope: str) -> None:
        self.world, self.plan, self.scope = world, plan, scope
        self.servers = {
            name: SimServer(world, name, "memcached" if name.startswith("memcached") else "redis")
            for name in plan.chain
            if name != "memory"
        }
        behind = plan.writes == "behind"
        self.origin = SimOrigin(world, is_truth=not behind, ordered=plan.ordered_saver)
        self.processes: dict[str, Process] = {}
        self.values = 0
        for key in plan.keys:
            value = self.new_value(key)
            self.origin.begin(key, value)

    def is_alive(self, life: str) -> bool:
        """Whether this life of a process, ``"name/number"``, goes on."""
        name, _, number = life.partition("/")
        process = self.processes[name]
        return process.alive and process.life == int(number)

    def new_value(self, key: str) -> str:
        """A value that nobody had before."""
        self.values += 1
        return f"{key}.{self.values}"

    @property
    def has_memory(self) -> bool:
        """Whether memory stands above a shared tier."""
        return self.plan.chain[0] == "memory" and len(self.plan.chain) > 1


class Seat:
    """One life of one process, as clients see it."""

    def __init__(self, scene: Scene, process: Process, chain: tuple[str, ...] | None = None) -> None:
        self.scene, self.process, self.world = scene, process, scene.world
        scene.processes[process.name] = process
        self.rt = SimRuntime(process)
        plan = scene.plan
        authority = next((name for name in plan.chain if name != "memory"), "")
        tiers: list[str | Tier] = [
            "memory://"
            if name == "memory"
            else SimTier(
                scene.servers[name].store,
                NAMESPACE,
                name=name,
                like=scene.servers[name].like,
                link=Link(scene.servers[name], plan.network),
                on_lease=self._leased if name == authority else lambda key: None,
            )
            for name in chain or plan.chain
        ]
        self.cache = Cache(*tiers, namespace=NAMESPACE, clock=process, **plan.options)
        self.cache._aio = self.rt
        self.database = OriginClient(scene.origin, Link(scene.origin, plan.database, timeout=1.0))
        self.repository = self._make_repository()

    def _leased(self, key: str) -> None:
        """The running task asks the authority for the lease of a key."""
        self.world.history.leases.setdefault((self.rt.check().name, key), []).append(self.world.time)

    @property
    def flusher(self) -> Flusher:
        """Its repository's, where that writes behind."""
        writer = self.repository._writer
        assert isinstance(writer, SavingLater), "this run writes otherwise"
        return writer.flusher

    def _make_repository(self) -> Repository[Any, Any]:
        plan, rt = self.scene.plan, self.rt
        buffer: SimBuffer | None = None
        writes: Any = plan.writes
        if plan.writes == "behind":
            disk = Link(SimServer(self.world, "buffer"), plan.disk, timeout=60.0)
            bounds = {name: plan.behind[name] for name in ("max_dirty",) if name in plan.behind}
            standing = self.scene.origin.values.get
            buffer = SimBuffer(
                self.scene.scope, rt, disk, holds=self.scene.is_alive, standing=standing, **bounds
            )
            writes = WriteBehind(buffer=buffer, **{"max_attempts": 10_000, "backoff_max": 1.0, **plan.behind})

        async def load(id: str) -> Any:
            return await self.load(id)

        async def save(id: str, value: Any, write: Write) -> None:
            await self.database.save(rt, id, value, write.sequence)

        async def delete(id: str, write: Write) -> None:
            await self.database.save(rt, id, None, write.sequence)

        async def save_many(writes: list[Write]) -> dict[str, Exception]:
            rows = [(w.id, None if w.value is MISSING else w.value, w.sequence) for w in writes]
            return await self.database.save_many(rt, rows, plan.saves_many or 0.0)

        savers: dict[str, Any] = {"save": save, "delete": delete}
        if plan.saves_many is not None:
            savers |= {"save_many": save_many, "delete_many": save_many}
        made = self.cache.repository(
            "r", load=load, **savers, writes=writes, ordered_saver=plan.ordered_saver
        )
        if buffer is not None:
            buffer.started = True
        return made

    async def load(self, key: str) -> Any:
        """A loader: the value is read at some moment in its middle."""
        history, random = self.world.history, self.rt.check().random
        load = Load(self.process.name, self.rt.check().name, key, self.world.time)
        history.loads.append(load)
        history.note(self.rt.check().name, f"loader of {key} begins")
        try:
            await self.rt.sleep(random.random() * 0.02)
            value = await self.database.read(self.rt, key)
            await self.rt.sleep(random.random() * random.choice((0.002, 0.05)))
        except BaseException as error:
            load.error = error
            raise
        finally:
            load.end = self.world.time
        load.value = value
        history.note(self.rt.check().name, f"loader of {key} returns {value}")
        return value

    def new_value(self, key: str) -> str:
        """A value that nobody had before."""
        return self.scene.new_value(key)

    # Recording

    @contextmanager
    def call(
        self, kind: str, text: str, keys: Sequence[str], *, cancelled: bool = False, value: Any = None
    ) -> Iterator[list[Call]]:
        """Records a call, one record a key; set ``value`` on them before the end."""
        world = self.world
        who = self.rt.check().name
        client = who.partition("#")[0]
        calls = [
            Call(client, self.process.name, text, key, kind, world.time, world.steps, value=value)
            for key in keys
        ]
        for call in calls:
            call.was_cancelled = cancelled
        world.history.calls += calls
        world.history.note(who, f"── {text}")
        outcome = "returned"
        error: BaseException | None = None
        try:
            yield calls
        except CancelledError as caught:
            outcome, error = "cancelled", caught
        except Exception as caught:
            outcome, error = "raised", caught
        except BaseException:
            outcome = "crashed"
            raise
        finally:
            for call in calls:
                call.outcome, call.error, call.end, call.end_steps = outcome, error, world.time, world.steps
            if outcome != "crashed":
                shown = error if error is not None else [call.value for call in calls]
                world.history.note(who, f"── {text} {outcome}: {shown!r}")

    async def cancelling(self, work: Callable[[], Awaitable[Any]], after: float) -> None:
        """Runs ``work`` as a task of its own and cancels it after so many seconds."""
        task = self.process.spawn(_run(work), "cancelled", inherit=True)
        self.world.at(self.world.time + after, task.cancel)
        mine = self.rt.check()

        def arrange(_: Any) -> None:
            wake = mine.waker()
            task.when_done(lambda: wake(None))

        await suspend(arrange)


async def _run(work: Callable[[], Awaitable[Any]]) -> None:
    await work()
