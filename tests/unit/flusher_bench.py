"""A flusher over a real buffer file, its origin a dict, and a clock that only the test moves."""

from __future__ import annotations

from cachewright import events
from cachewright.behind.buffers import open_buffer
from cachewright.behind.buffers.base import NewRecord
from cachewright.behind.flusher import Flusher
from cachewright.behind.saving import Savers
from cachewright.behind.types import BehindOptions
from cachewright.options import MISSING
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS, ThreadRuntime


class Clock:
    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class Bench:
    """An origin (a dict), its flushers over one buffer, and what they told."""

    def __init__(self, folder, clock=None, where="none", options=None, **savers) -> None:
        self.url = f"sqlite:///{folder}/buffer.db"
        self.rt = ThreadRuntime(clock) if clock else THREADS
        self.origin: dict[str, object] = {}
        self.saves: list[tuple[str, object]] = []
        self.dropped: list[str] = []
        self.events: list[events.Event] = []
        self.hub = events.Hub()
        self.hub.subscribe(self.events.append)
        self.options = BehindOptions(**(options or {}))
        self.flusher = self.make(where, **(savers or {"save": self.save, "delete": self.delete}))
        self.buffer = self.flusher.buffer

    def make(self, where="none", notify=None, **savers) -> Flusher:
        options = self.options
        buffer = open_buffer(
            self.url, "shop/user", max_dirty=options.max_dirty, max_dirty_bytes=options.max_dirty_bytes
        )
        return Flusher(
            buffer,
            Savers(
                **savers,
                decode=lambda record: (record.payload or b"").decode(),
                decode_id=lambda raw: raw.decode(),
            ),
            namespace="shop",
            repository="user",
            after_save=self.after_save,
            options=options,
            events=self.hub,
            where=where,
            notify=notify,
        )

    async def after_save(self, rt, keys) -> None:
        self.dropped.extend(keys)

    def save(self, id, value):
        self.saves.append((id, value))
        self.origin[id] = value

    def delete(self, id):
        self.saves.append((id, MISSING))
        self.origin.pop(id, None)

    def put(self, key, value="v"):
        payload = None if value is None else value.encode()
        return drive(self.flusher.accept(self.rt, [NewRecord(key, key.encode(), payload)]))[0]

    def step(self, flusher=None, **more):
        return drive((flusher or self.flusher).step(self.rt, **more))

    def stats(self):
        return drive(self.buffer.stats(self.rt))

    def told(self, kind):
        return [event for event in self.events if isinstance(event, kind)]
