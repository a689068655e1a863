"""Write-behind: `put` returns when the buffer has the record durably; a flusher saves it later.

The way of a write: append to the buffer, drop the key in every tier, return. The way of a read: slot, lease, *buffer*,
origin: so an evicted dirty key is never read old. The buffer, the flusher and Celery are in ``behind/``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cachewright.behind.buffers import default_buffer_url, open_buffer
from cachewright.behind.buffers.base import Buffer, NewRecord, Record
from cachewright.behind.flusher import Flusher, Where
from cachewright.behind.operating import Operating, is_hosted, shown_url
from cachewright.behind.saving import Savers
from cachewright.behind.types import BehindOptions, CeleryFlusher
from cachewright.codecs.base import make_context
from cachewright.codecs.msgpack import MsgpackCodec
from cachewright.core.engine import Engine
from cachewright.errors import BufferUnconfirmed, ConfigurationError
from cachewright.options import MISSING, Options
from cachewright.runtime.base import Runtime
from cachewright.write_modes import Origin, WriteBehind

__all__ = ["SavingLater"]

log = logging.getLogger("cachewright")
_ID = MsgpackCodec()


class SavingLater:
    """How a repository writes when a flusher saves."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        how: WriteBehind,
        origin: Origin,
        options: Callable[[], Options],
        not_saved: Sequence[type[Exception]],
        ordered_saver: bool,
        runtimes: tuple[Runtime, Runtime],
        beside: Operating | None = None,
    ) -> None:
        if origin.save is None and origin.save_many is None:
            raise ConfigurationError(f"repository {name!r} writes behind and needs save= or save_many=")
        self.savers = Savers(
            save=origin.save,
            save_many=origin.save_many,
            delete=origin.delete,
            delete_many=origin.delete_many,
            decode=self._decode,
            decode_id=_decode_id,
            not_saved=not_saved,
        )
        self._engine, self._options = engine, options
        namespace = engine.state.namespace
        behind = how.behind_options(ordered_saver)
        buffer = _open(how.buffer, namespace, name, behind)
        if beside is not None and beside.flusher.buffer.url != buffer.url:
            raise ConfigurationError(
                f"this cache has a repository {name!r} that writes behind through {beside.url}, and this one would "
                f"through {shown_url(buffer.url)}: their keys are the same, and neither would read what waits "
                f"in the other's buffer; give both the same buffer, or another name"
            )
        where, notify, on_close = self._where(how, namespace, name)
        self.flusher = Flusher(
            buffer,
            self.savers,
            namespace=namespace,
            repository=name,
            after_save=self._after_save,
            options=behind,
            events=engine.state.hub,
            where="worker" if is_hosted() else where,
            notify=notify,
            on_close=on_close,
        )
        self.behind = Operating(
            self.flusher, where, *runtimes, engine.drop_many, self._decode, _decode_id, hint=notify
        )
        log.info("repository %r writes behind through %s", name, shown_url(buffer.url))
        self.flusher.resume()

    def _where(
        self, how: WriteBehind, namespace: str, name: str
    ) -> tuple[Where, Callable[[Sequence[str]], None] | None, Callable[[], None] | None]:
        """Who saves; and for Celery, how a `Flusher` is to hint and to close."""
        where: Any = how.flusher
        if where in ("background", "worker", "none"):
            return where, None, None
        if is_hosted():
            return "celery", None, None
        from cachewright.behind.celery import app_for, install

        if isinstance(where, CeleryFlusher):
            app = where.app if where.app is not None else app_for()
            flushing = install(app, queue=where.queue, queue_type=where.queue_type, sweep=where.sweep)
        else:
            flushing = install(app_for() if where == "celery" else where)
        return "celery", flushing.hints(namespace, name, self._engine.state.hub), flushing.close

    async def _after_save(self, rt: Runtime, keys: Sequence[str]) -> None:
        await self._engine.drop_many(rt, list(keys))

    async def write(self, rt: Runtime, values: Mapping[str, tuple[Any, Any]], options: Options) -> None:
        """Appends ``key → (id, value)`` durably, then drops the keys: until they are saved, reads ask the buffer."""
        records = [self._record(key, id, value, options) for key, (id, value) in values.items()]
        try:
            await self.flusher.accept(rt, records)
        except Exception as error:
            # it, or through a full buffer some of it, may have been taken: who misses reads that from the buffer, so
            # nobody may still be served the old entry
            if isinstance(error, BufferUnconfirmed) or self.flusher.options.on_full == "through":
                await self._engine.drop_many(rt, list(values))
            raise
        await self._engine.drop_many(rt, list(values))

    def _record(self, key: str, id: Any, value: Any, options: Options) -> NewRecord:
        if value is MISSING and not self.savers.can_delete:
            raise ConfigurationError("this repository was made without delete= or delete_many=")
        state = self._engine.state
        context = make_context(state.namespace, key)
        encoded_id = _ID.encode(id, context)
        if value is MISSING:
            return NewRecord(key, encoded_id, None)
        codec, flags, payload = state.pipeline.encode(value, context, options.type)
        return NewRecord(key, encoded_id, payload, codec, flags)

    async def pending(self, rt: Runtime, keys: list[str]) -> dict[str, Any]:
        """The newest state of those keys that are not saved yet; `MISSING` for one that is deleted."""
        records = await self.flusher.buffer.read(rt, keys)
        return {key: MISSING if r.payload is None else self._decode(r) for key, r in records.items()}

    async def flush(self, rt: Runtime, timeout: float | None) -> None:
        """Returns when nothing is dirty; else raises `FlushTimeout`."""
        await self.flusher.flush(rt, timeout)

    async def close(self, rt: Runtime, timeout: float | None) -> None:
        """Drains with a deadline and stops the flusher. What is left stays in the buffer for the next start."""
        await self.flusher.close(rt, timeout)

    def _decode(self, record: Record) -> Any:
        state = self._engine.state
        assert record.payload is not None, "a tombstone has no value"
        context = make_context(state.namespace, record.key)
        type_ = self._options().type
        return state.pipeline.decode(record.codec, record.codec_flags, record.payload, context, type_)


def _open(given: str | Buffer | None, namespace: str, name: str, behind: BehindOptions) -> Buffer:
    if isinstance(given, Buffer):
        return given
    url = given if given is not None else default_buffer_url(namespace, name)
    return open_buffer(
        url, f"{namespace}/{name}", max_dirty=behind.max_dirty, max_dirty_bytes=behind.max_dirty_bytes
    )


def _decode_id(data: bytes) -> Any:
    """A repository id, of its own type."""
    return _ID.decode(data, b"")
