"""Write-behind's buffer in a simulation: the real SQLite buffer, reached with delays and failures.

A disk of one's own gives no lost answers: what raised has changed nothing. Processes of a simulation share the file as
processes of one host do, and a crash leaves it as the last commit did.
"""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from cachewright.behind.buffers.base import Ack, Buffer, BufferStats, Ended, Failure, NewRecord, Record
from cachewright.behind.buffers.sqlite import SQLiteBuffer
from cachewright.errors import BufferUnavailable
from cachewright.runtime.base import Runtime, drive
from cachewright.runtime.threads import ThreadRuntime
from cachewright.testing.sim.history import Load
from cachewright.testing.sim.network import Broken, Late, Link
from cachewright.testing.sim.runtime import SimRuntime

T = TypeVar("T")

__all__ = ["SimBuffer", "new_scope"]

_numbers = itertools.count()


@lru_cache(maxsize=1)
def _folder() -> Path:
    """One file for all runs of this interpreter, in memory where the system has such a place."""
    memory = Path("/dev/shm")  # noqa: S108  only a place; the folder in it is made fresh and private
    folder = Path(tempfile.mkdtemp(prefix="cachewright-sim-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def new_scope() -> str:
    """A run's own part of the file."""
    return f"sim/{next(_numbers)}"


class SimBuffer(Buffer):
    """One process's way to the buffer.

    Args:
        scope: the run's.
        rt: the process's runtime.
        link: to the disk.
        holds: whether the holder of a claim, ``"process/life"``, is still alive.
        standing: what the database has for a key.
        **bounds: of the buffer.
    """

    def __init__(
        self,
        scope: str,
        rt: SimRuntime,
        link: Link,
        *,
        holds: Callable[[str], bool],
        standing: Callable[[str], Any],
        **bounds: Any,
    ) -> None:
        self._standing = standing
        self._scope, self._path = scope, str(_folder() / "buffer.db")
        self._real = SQLiteBuffer(Path(self._path), scope, synchronous="NORMAL", **bounds)
        name = f"{rt.process.name}/{rt.process.life}"
        self._real._me = lambda: name
        self._real._is_dead = lambda holder: not holds(holder)
        self._link, self._rt = link, rt
        self._inline = ThreadRuntime(rt.process)
        self._inline.new_id = rt.new_id  # type: ignore[method-assign]
        self.url = "sqlite:///buffer.db"
        self.started = False  # a repository looks into an old buffer while it is made, outside of any task

    @property
    def exists(self) -> bool:
        return self.started

    async def _do(self, text: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        def step() -> tuple[T | None, Exception | None]:
            try:
                return drive(work()), None
            except Exception as error:  # raised again where it was asked for
                error.args = tuple(self._name_it(arg) for arg in error.args)
                return None, error

        try:
            ((result, error),) = await self._link.exchange(self._rt, [step], text=text, show=_words)
        except (Broken, Late) as broken:
            raise BufferUnavailable(str(broken)) from None
        if error is not None:
            raise error
        return cast(T, result)

    def _name_it(self, text: Any) -> Any:
        """Without what differs between two runs of one seed: where the file is, and the number of this run."""
        if not isinstance(text, str):
            return text
        return (
            text.replace(self._real.url, self.url)
            .replace(self._path, "buffer.db")
            .replace(self._scope, "sim")
        )

    async def append(
        self, rt: Runtime, records: Sequence[NewRecord], *, delay: float = 0.0, overflow: bool = False
    ) -> list[int]:
        async def work() -> list[int]:
            sequences = await self._real.append(self._inline, records, delay=delay, overflow=overflow)
            for record, sequence in zip(records, sequences, strict=True):
                value = None if record.payload is None else msgspec.msgpack.decode(record.payload)
                self._rt.world.history.accept(msgspec.msgpack.decode(record.id), value, sequence)
            return sequences

        return await self._do(f"append {' '.join(r.key for r in records)}", work)

    async def hold(self, rt: Runtime, key: str, token: bytes, life: float) -> int | None:
        return await self._do(f"hold {key}", lambda: self._real.hold(self._inline, key, token, life))

    async def read(self, rt: Runtime, keys: Sequence[str]) -> dict[str, Record]:
        begun = self._rt.world.time
        try:
            return await self._do(f"look at {' '.join(keys)}", lambda: self._real.read(self._inline, keys))
        except BufferUnavailable as error:
            history, process = self._rt.world.history, self._rt.process.name
            task = self._rt.check().name
            for key in keys:
                name = key.partition(":")[2]
                history.failures.append(Load(process, task, name, begun, self._rt.world.time, error=error))
            raise

    async def claim(
        self,
        rt: Runtime,
        limit: int,
        token: bytes,
        life: float,
        *,
        keys: Sequence[str] | None = None,
        hurry: bool = False,
    ) -> list[Record]:
        return await self._do(
            "claim", lambda: self._real.claim(self._inline, limit, token, life, keys=keys, hurry=hurry)
        )

    async def renew(self, rt: Runtime, token: bytes, life: float) -> int:
        return await self._do("renew claims", lambda: self._real.renew(self._inline, token, life))

    async def acknowledge(self, rt: Runtime, token: bytes, acks: Sequence[Ack], *, settle: float) -> Ended:
        text = f"acknowledge {' '.join(ack.key for ack in acks)}"
        return await self._do(text, lambda: self._real.acknowledge(self._inline, token, acks, settle=settle))

    async def fail(self, rt: Runtime, token: bytes, failures: Sequence[Failure], *, settle: float) -> Ended:
        text = f"note failure of {' '.join(one.key for one in failures)}"
        return await self._do(text, lambda: self._real.fail(self._inline, token, failures, settle=settle))

    async def release(self, rt: Runtime, token: bytes) -> None:
        await self._do("release claims", lambda: self._real.release(self._inline, token))

    async def next_due(self, rt: Runtime, *, hurry: bool = False) -> float | None:
        return await self._do("when is the next due?", lambda: self._real.next_due(self._inline, hurry=hurry))

    async def stats(self, rt: Runtime) -> BufferStats:
        return await self._do("count", lambda: self._real.stats(self._inline))

    async def records(self, rt: Runtime, limit: int = 1000, *, dead: bool = False) -> list[Record]:
        return await self._do("list", lambda: self._real.records(self._inline, limit, dead=dead))

    async def replay(self, rt: Runtime, key: str) -> None:
        async def work() -> None:
            letters = await self._real.records(self._inline, dead=True)
            await self._real.replay(self._inline, key)
            assert key in [letter.key for letter in letters], f"{key} was replayed, and was no dead letter"

        await self._do(f"replay {key}", work)

    async def discard(self, rt: Runtime, key: str, *, dead_only: bool = True) -> Record:
        async def work() -> Record:
            record = await self._real.discard(self._inline, key, dead_only=dead_only)
            name = msgspec.msgpack.decode(record.id)
            self._rt.world.history.discard(name, record.sequence, self._standing(name))
            return record

        return await self._do(f"discard {key}", work)

    # After a run, from outside

    def is_clean(self) -> bool:
        """Whether nothing is dirty, settling or held; dead letters may be there."""
        return drive(self._real.next_due(self._inline)) is None

    def contents(self) -> list[Record]:
        """All records, dead letters too."""
        real, rt = self._real, self._inline
        return drive(real.records(rt)) + drive(real.records(rt, dead=True))

    def close(self) -> None:
        """The file is shared by all processes of the simulation, and stays open."""


def _words(answer: tuple[Any, Exception | None]) -> str:
    """An answer in a few words."""
    result, error = answer
    if error is not None:
        return type(error).__name__
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list) and result and isinstance(result[0], Record):
        return ", ".join(_of(record) for record in result)
    return str(result)


def _of(record: Record) -> str:
    state = record.state if record.payload is None else msgspec.msgpack.decode(record.payload)
    marks = [mark for mark in ("suspect", "settling", "dead") if getattr(record, mark)]
    return " ".join([record.key, str(state), f"#{record.sequence % 10**9}", *marks])
