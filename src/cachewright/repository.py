"""`Repository`: one kind of thing at one origin, read and written through the cache.

Reads are read-through. Writes are write-through, write-around or write-behind; how each writes is in a file of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from cachewright.codecs.annotations import loader_type
from cachewright.core.engine import Engine, Inspection
from cachewright.core.loading_many import as_mapping
from cachewright.errors import ConfigurationError
from cachewright.key_values import render
from cachewright.keys import check_key
from cachewright.options import MISSING, Entry, Options, refuse_entries
from cachewright.repository_behind import BehindFace
from cachewright.repository_warm import WarmIdsFace
from cachewright.runtime.base import Runtime, drive
from cachewright.spelling import did_you_mean
from cachewright.write_modes import Origin, WriteAround, WriteBehind, WriteThrough

if TYPE_CHECKING:
    from cachewright.behind.operating import Operating

__all__ = ["Origin", "Repository", "Writes"]

Id = TypeVar("Id")
V = TypeVar("V")
Writes = str | WriteThrough | WriteAround | WriteBehind


class _Writer(Protocol):
    savers: Any

    @property
    def behind(self) -> Operating | None: ...

    async def write(self, rt: Runtime, values: Mapping[str, tuple[Any, Any]], options: Options) -> None: ...

    async def pending(self, rt: Runtime, keys: list[str]) -> dict[str, Any]: ...

    async def flush(self, rt: Runtime, timeout: float | None) -> None: ...

    async def close(self, rt: Runtime, timeout: float | None) -> None: ...


class Repository(BehindFace[Id], WarmIdsFace[Id], Generic[Id, V]):
    """Made by `Cache.repository`. Every method has a twin with an ``a`` in front, to be awaited."""

    def __init__(
        self,
        engine: Engine,
        threads: Runtime,
        aio: Runtime,
        name: str,
        origin: Origin,
        options: Options,
        *,
        writes: Writes,
        typed: bool,
        not_saved: Sequence[type[Exception]],
        ordered_saver: bool,
        beside: Operating | None = None,
    ) -> None:
        if not name or any(mark in name for mark in "{}\0"):
            raise ConfigurationError(f"repository name {name!r}: expected a word, without braces")
        if origin.load is None and origin.load_many is None:
            raise ConfigurationError(f"repository {name!r} needs load= or load_many=")
        self.name = name
        self._engine, self._threads, self._aio, self._origin = engine, threads, aio, origin
        self._tag = f"\0r:{name}"
        self._options, self._typed = options, typed
        self._memory = engine.state.chain.memory
        self._warmings: set[Any] = set()
        self._writer = self._make_writer(writes, not_saved, ordered_saver, beside)
        self.behind = self._writer.behind

    def _make_writer(
        self,
        writes: Writes,
        not_saved: Sequence[type[Exception]],
        ordered_saver: bool,
        beside: Operating | None,
    ) -> _Writer:
        named: dict[str, Writes] = {
            "through": WriteThrough(),
            "around": WriteAround(),
            "behind": WriteBehind(),
        }
        how = named.get(writes) if isinstance(writes, str) else writes
        if isinstance(how, WriteBehind):
            # Here, because a process that writes nothing behind should not pay for importing how.
            from cachewright.write_behind import SavingLater

            return SavingLater(
                self._engine,
                self.name,
                how,
                self._origin,
                lambda: self.options,
                not_saved,
                ordered_saver,
                (self._threads, self._aio),
                beside,
            )
        if isinstance(how, WriteThrough | WriteAround):
            if beside is not None:
                raise ConfigurationError(
                    f"this cache has a repository {self.name!r} that writes behind, and its keys are those of this one, "
                    f"whose reads would pass what waits in the buffer: use that one, or give this one another name"
                )
            from cachewright.write_through import SavingNow

            keep = isinstance(how, WriteThrough)
            return SavingNow(self._engine, self._origin, (self._tag,), not_saved, keep=keep)
        hint = did_you_mean(writes, named) if isinstance(writes, str) else ""
        raise ConfigurationError(
            f"writes={writes!r}: expected 'through', 'around', 'behind' or WriteBehind(…){hint}"
        )

    def __repr__(self) -> str:
        return f"<Repository {self.name!r}>"

    @property
    def options(self) -> Options:
        """With the type that the loader's annotation names, looked up late: it may be defined below."""
        if not self._typed:
            one, many = self._origin.load, self._origin.load_many
            if one is not None:
                type_ = loader_type(one, wrappers=(Entry,))
            else:
                type_ = loader_type(many, wrappers=(Entry,), many=True) if many is not None else None
            self._options = replace(self._options, type=type_)
            self._typed = True
        return self._options

    def key_for(self, id: Id) -> str:
        """The key of an id: ``cache.get(users.key_for(1))`` is the same slot."""
        return check_key(f"{self.name}:{render(id)}")

    # ------------------------------------------------------------------------------------------- reading

    def get(self, id: Id) -> V:
        """The value of an id: cached, waiting to be saved, or loaded once for all who ask.

        One that is deleted and not yet saved at the origin (write-behind) is None.
        """
        return drive(self._get(self._threads, id))

    async def aget(self, id: Id) -> V:
        """`get`, awaited."""
        return await self._get(self._aio, id)

    async def _get(self, rt: Runtime, id: Id) -> V:
        key, options = self.key_for(id), self.options
        value = self._memory.peek(key, options.type) if self._memory is not None else MISSING
        if value is not MISSING:
            self._engine.state.stats.local_hits += 1
            found: V = value
            return found
        loaded: V = await self._engine.load(
            rt, key, self._loader(rt, id, key), options, implicit=(self._tag,)
        )
        return loaded

    def get_many(self, ids: Iterable[Id]) -> dict[Id, V]:
        """The values of many ids: one round trip a tier, one call of ``load_many`` for what is missing."""
        return drive(self._get_many(self._threads, ids))

    async def aget_many(self, ids: Iterable[Id]) -> dict[Id, V]:
        """`get_many`, awaited."""
        return await self._get_many(self._aio, ids)

    async def _get_many(self, rt: Runtime, ids: Iterable[Id]) -> dict[Id, V]:
        by_key = {self.key_for(id): id for id in ids}
        options, memory = self.options, self._memory
        found = {}
        if memory is not None:
            found = {key: v for key in by_key if (v := memory.peek(key, options.type)) is not MISSING}
            self._engine.state.stats.local_hits += len(found)
        rest = [key for key in by_key if key not in found]
        if rest:
            loader = self._many_loader(rt, by_key)
            found.update(await self._engine.load_many(rt, rest, loader, options, implicit=(self._tag,)))
        return {id: found[key] for key, id in by_key.items() if key in found}

    def refresh(self, id: Id) -> V:
        """Loads anew, even over a fresh entry; a failure keeps the last good value."""
        return drive(self._refresh(self._threads, id))

    async def arefresh(self, id: Id) -> V:
        """`refresh`, awaited."""
        return await self._refresh(self._aio, id)

    async def _refresh(self, rt: Runtime, id: Id) -> V:
        key = self.key_for(id)
        loader = self._loader(rt, id, key)
        value: V = await self._engine.load(rt, key, loader, self.options, implicit=(self._tag,), forced=True)
        return value

    def _loader(self, rt: Runtime, id: Id, key: str) -> Callable[[], Any]:
        """Buffer first, then the origin: what is not saved yet is newer than what stands there."""

        async def load() -> Any:
            pending = await self._writer.pending(rt, [key])
            if key in pending:
                return None if pending[key] is MISSING else pending[key]
            if self._origin.load is not None:
                return await rt.call(self._origin.load, id)
            assert self._origin.load_many is not None
            return (await rt.call(self._origin.load_many, [id])).get(id)

        return (lambda: drive(load())) if rt.name == "threads" else load

    def _many_loader(self, rt: Runtime, by_key: Mapping[str, Id]) -> Callable[[list[str]], Any]:
        async def load(keys: list[str]) -> dict[str, Any]:
            pending = await self._writer.pending(rt, keys)
            found = {key: None if value is MISSING else value for key, value in pending.items()}
            rest = [key for key in keys if key not in found]
            if rest and self._origin.load_many is not None:
                loaded = as_mapping(await rt.call(self._origin.load_many, [by_key[key] for key in rest]))
                return found | {key: loaded[by_key[key]] for key in rest if by_key[key] in loaded}
            assert self._origin.load is not None or not rest
            for key in rest:
                try:
                    found[key] = await rt.call(self._origin.load, by_key[key])  # type: ignore[arg-type]
                except Exception as error:
                    found[key] = error  # fails this key alone
            return found

        return (lambda keys: drive(load(keys))) if rt.name == "threads" else load

    # ------------------------------------------------------------------------------------------- writing

    def put(self, id: Id, value: V) -> None:
        """Writes a value: to the origin (through, around) or durably to the buffer (behind).

        Once it has returned, no reader anywhere is served anything older.

        Raises:
            ConfigurationError: the repository cannot save, or an `Entry` for a value.
            Exception: what the saver raised; then no value that was not saved is left in the cache.
            BufferFull: write-behind's bounds are reached.
            BufferUnavailable: the buffer could not store it; nothing was accepted.
            BufferUnconfirmed: the buffer may or may not have it; writing the same again is safe.
        """
        drive(self._write(self._threads, {id: value}))

    async def aput(self, id: Id, value: V) -> None:
        """`put`, awaited."""
        await self._write(self._aio, {id: value})

    def put_many(self, values: Mapping[Id, V]) -> None:
        """Writes many values, by ``save_many`` in one call where there is one."""
        drive(self._write(self._threads, values))

    async def aput_many(self, values: Mapping[Id, V]) -> None:
        """`put_many`, awaited."""
        await self._write(self._aio, values)

    def delete(self, id: Id) -> None:
        """Deletes at the origin (behind: durably in the buffer) and in every tier."""
        drive(self._write(self._threads, {id: MISSING}))

    async def adelete(self, id: Id) -> None:
        """`delete`, awaited."""
        await self._write(self._aio, {id: MISSING})

    def delete_many(self, ids: Iterable[Id]) -> None:
        """Deletes many."""
        drive(self._write(self._threads, dict.fromkeys(ids, MISSING)))

    async def adelete_many(self, ids: Iterable[Id]) -> None:
        """`delete_many`, awaited."""
        await self._write(self._aio, dict.fromkeys(ids, MISSING))

    async def _write(self, rt: Runtime, values: Mapping[Id, Any]) -> None:
        refuse_entries(values, "put its value; the options of the repository say how long it is good")
        self._writer.savers.check(self.name, [value is MISSING for value in values.values()])
        if values:
            await self._writer.write(
                rt, {self.key_for(id): (id, value) for id, value in values.items()}, self.options
            )

    def invalidate(self, id: Id) -> bool:
        """Drops the cached value; the origin, and what waits to be saved, stay."""
        return drive(self._engine.drop_many(self._threads, [self.key_for(id)]))[0]

    async def ainvalidate(self, id: Id) -> bool:
        """`invalidate`, awaited."""
        return (await self._engine.drop_many(self._aio, [self.key_for(id)]))[0]

    def clear(self) -> None:
        """Drops every cached value of this repository, in all processes."""
        drive(self._engine.invalidate_tags(self._threads, [self._tag]))

    async def aclear(self) -> None:
        """`clear`, awaited."""
        await self._engine.invalidate_tags(self._aio, [self._tag])

    # --------------------------------------------------------------------------------------- looking, ending

    def inspect(self, id: Id) -> Inspection:
        """What every tier holds for an id."""
        return drive(self._engine.inspect(self._threads, self.key_for(id)))

    async def ainspect(self, id: Id) -> Inspection:
        """`inspect`, awaited."""
        return await self._engine.inspect(self._aio, self.key_for(id))

    def flush(self, timeout: float | None = None) -> None:
        """Write-behind: returns when nothing is dirty.

        Raises:
            FlushTimeout: after ``timeout`` seconds something still was; ``dirty`` has the keys.
            WouldDeadlockError: this blocking call would hold up the event loop that is to save; await `aflush`.
        """
        drive(self._writer.flush(self._threads, timeout))

    async def aflush(self, timeout: float | None = None) -> None:
        """`flush`, awaited."""
        await self._writer.flush(self._aio, timeout)

    def close(self, timeout: float | None = 10.0) -> None:
        """Write-behind: drains within ``timeout`` seconds and stops the flusher. What is left stays in the buffer.

        A later use opens anew: a `put` is taken, and starts the flusher again.

        Raises:
            FlushTimeout: something is left.
            WouldDeadlockError: so it is, and this call would hold up the event loop that is to save; await `aclose`.
        """
        drive(self._writer.close(self._threads, timeout))

    async def aclose(self, timeout: float | None = 10.0) -> None:
        """`close`, awaited."""
        await self._writer.close(self._aio, timeout)

    async def close_part(self, rt: Runtime, timeout: float) -> None:
        """How `Cache.close` ends it."""
        await self._stop_warming(rt, timeout)
        await self._writer.close(rt, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
