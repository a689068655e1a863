"""The repository under test, made by the public interface alone, alike in every process of a run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cachewright import MISSING, Cache, Repository, Write, WriteBehind
from tests.crash.origin import Origin

__all__ = ["NAMESPACE", "REPOSITORY", "Order", "Shop"]

NAMESPACE, REPOSITORY = "crash", "item"


@dataclass(frozen=True, slots=True)
class Order:
    """What a process is to open and to do; travels as JSON.

    Attributes:
        origin: URL of the database.
        buffer: URL of the buffer.
        tiers: URLs of the chain.
        form: ``"plain"`` (an upsert, whose unknown outcomes settle) or ``"ordered"`` (``WHERE seq < :seq``).
        many: whether there is a ``save_many``.
        face: ``"threads"`` or ``"asyncio"``; with asyncio the savers are async too, but not Celery's.
        flusher: as of `WriteBehind`; ``"celery"`` is the app of `hints`.
        behind: more options of `WriteBehind`.
        name: the writer's; its writes are called by it.
        seed: of its plan.
        callers: threads or tasks that write at once.
        keys: how many keys they share.
        prefix: what the keys begin with.
        reads: whether they also read.
        puts: writes of each caller, then it drains and ends; None: until it is killed.
        pause: seconds between two writes of a caller.
        kill: ``("before" | "after", n)``: it ends itself by SIGKILL at that side of the commit of its n-th save;
            ``("acked", n)``: as soon as its n-th write was acknowledged.
    """

    origin: str
    buffer: str
    tiers: Sequence[str] = ("memory://",)
    form: str = "plain"
    many: bool = False
    face: str = "threads"
    flusher: str = "background"
    behind: dict[str, Any] = field(default_factory=dict)
    name: str = "w"
    seed: int = 0
    callers: int = 1
    keys: int = 10
    prefix: str = "k"
    reads: bool = True
    puts: int | None = None
    pause: float = 0.0
    kill: Sequence[Any] | None = None

    def but(self, **changes: Any) -> Order:
        """The same with changes."""
        return replace(self, **changes)

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Order:
        """From JSON."""
        return cls(**json.loads(text))

    def key(self, number: int) -> str:
        """The id of the number-th row."""
        return f"{self.prefix}{number}"

    @property
    def ids(self) -> list[str]:
        """All of them."""
        return [self.key(number) for number in range(self.keys)]


class Shop:
    """A cache, its repository and its origin, opened as an order says."""

    def __init__(self, order: Order, at: Callable[[str], None] = lambda point: None) -> None:
        self.order = order
        self.origin = Origin(order.origin, at)
        self.cache = Cache(*order.tiers, namespace=NAMESPACE)
        ordered = order.form == "ordered"
        flusher: Any = order.flusher
        if flusher == "celery":
            from tests.crash.hints import app

            flusher = app
        self.items: Repository[str, str | None] = self.cache.repository(
            REPOSITORY,
            load=self.origin.load,
            ordered_saver=ordered,
            writes=WriteBehind(buffer=order.buffer, flusher=flusher, **order.behind),
            **self._savers(ordered),
        )

    def _savers(self, ordered: bool) -> dict[str, Any]:
        origin, order = self.origin, self.order

        def save_many(writes: Sequence[Write]) -> None:
            rows = [(w.id, None if w.value is MISSING else w.value, w.sequence) for w in writes]
            origin.save(rows, ordered=ordered)

        def save(id: str, value: str, write: Write) -> None:
            save_many([write])

        def delete(id: str, write: Write) -> None:
            save_many([write])

        async def asave_many(writes: Sequence[Write]) -> None:
            await asyncio.to_thread(save_many, writes)

        async def asave(id: str, value: str, write: Write) -> None:
            await asyncio.to_thread(save_many, [write])

        async def adelete(id: str, write: Write) -> None:
            await asyncio.to_thread(save_many, [write])

        # Celery's workers run plain functions, whatever face the writers have.
        awaited = order.face == "asyncio" and order.flusher != "celery"
        savers: dict[str, Any] = {
            "save": asave if awaited else save,
            "delete": adelete if awaited else delete,
        }
        if order.many:
            savers["save_many"] = savers["delete_many"] = asave_many if awaited else save_many
        return savers

    def close(self, timeout: float = 10.0) -> None:
        """Drains, and lets go of everything (blocking face)."""
        try:
            self.items.close(timeout)
        finally:
            self.cache.close()
            self.origin.close()

    async def aclose(self, timeout: float = 10.0) -> None:
        """`close`, awaited."""
        try:
            await self.items.aclose(timeout)
        finally:
            await self.cache.aclose()
            self.origin.close()
