"""What a `Cache` puts around a function, an origin or a schedule: ``cached``, ``repository``, ``refresh_every``."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import tzinfo
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, Unpack, overload

from cachewright.codecs.annotations import loader_type
from cachewright.core.engine import Engine
from cachewright.decorator import CachedFunction, decorate
from cachewright.decorator_ahead import Keeping
from cachewright.errors import ConfigurationError
from cachewright.options import Entry, Freshness, Options, Seconds, merge
from cachewright.repository import Repository, Writes
from cachewright.runtime.base import Runtime
from cachewright.warm_face import WarmFace
from cachewright.write_modes import Origin

if TYPE_CHECKING:
    from cachewright.schedule import Refresh, Schedules

__all__ = ["Strategies"]

P = ParamSpec("P")
R = TypeVar("R")
Id = TypeVar("Id")
V = TypeVar("V")
_FIRST = threading.Lock()  # two threads that schedule first at once


class Closing(Protocol):
    """Something that `Cache.close` ends first."""

    async def close_part(self, rt: Runtime, timeout: float) -> None:
        """Ends it within ``timeout`` seconds."""


class _Decorate(Protocol):
    """What ``cached(…)`` with options returns."""

    @overload
    def __call__(self, function: staticmethod[P, R], /) -> CachedFunction[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> CachedFunction[P, R]: ...


class Strategies(WarmFace):
    """Base of `Cache`."""

    def __init__(self, engine: Engine, threads: Runtime, aio: Runtime) -> None:
        self.engine = engine
        self._threads, self._aio = threads, aio
        self._parts: set[Closing] = set()
        self._types: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._schedules: Schedules | None = None
        self._repositories: dict[str, Repository[Any, Any]] = {}

    @overload
    def cached(self, function: staticmethod[P, R], /) -> CachedFunction[P, R]: ...

    @overload
    def cached(self, function: Callable[P, R], /) -> CachedFunction[P, R]: ...

    @overload
    def cached(
        self,
        *,
        key: str | Callable[..., str] | None = None,
        ignore: Collection[str] = (),
        refresh_every: Seconds | str | Mapping[str, Any] | None = None,
        refresh_for: Iterable[Any] | None = None,
        **options: Unpack[Freshness],
    ) -> _Decorate: ...

    def cached(  # type: ignore[misc]  # mypy does not see that ``**options: Any`` takes an unpacked TypedDict
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        key: str | Callable[..., str] | None = None,
        ignore: Collection[str] = (),
        refresh_every: Seconds | str | Mapping[str, Any] | None = None,
        refresh_for: Iterable[Any] | None = None,
        **options: Any,
    ) -> Any:
        """Caches a function's results: ``@cache.cached`` or ``@cache.cached(ttl=30, key="user:{user_id}")``.

        Takes plain and ``async def`` functions, methods, static- and classmethods (put it above ``@staticmethod`` and
        ``@classmethod``). The result has the function's own signature, and ``invalidate``, ``refresh``, ``inspect``,
        ``key_for``, ``cache_info``, ``cache_clear``, ``warm``, ``keep_fresh``, ``__wrapped__``; an ``async def`` also ``ainvalidate``,
        ``arefresh``, ``ainspect``, ``acache_clear``, ``awarm``, ``akeep_fresh``.

        Args:
            function: the function, without parentheses.
            key: a template of parameter names (``"user:{user_id}"``) or a callable of the same arguments. Left out:
                module, name and arguments. Two closures that one factory made share a name: give them a ``key``.
            ignore: parameters to leave out of the key, such as ``("self", "db")``.
            refresh_every: seconds or a crontab expression (or a mapping of the arguments of `refresh_every`): from the
                first call in a process on, the calls of ``refresh_for`` are kept fresh by this schedule.
            refresh_for: the calls that are scheduled, each a tuple of arguments, a dict of them by name, or the only
                argument. Left out: the call without arguments, if the function allows it. ``keep_fresh`` adds more.
            **options: freshness options; ``tags`` may be templates too (``"user:{user_id}"``).

        Raises:
            ConfigurationError: an option, template or function that cannot work.
        """
        merged = merge(self.engine.options, options)
        if refresh_for is not None and refresh_every is None:
            raise ConfigurationError("refresh_for= needs refresh_every=: how often these calls are refreshed")
        chosen = None if refresh_for is None else list(refresh_for)

        def wrap(target: Callable[..., Any]) -> Any:
            return decorate(
                target,
                self.engine,
                self._threads,
                self._aio,
                merged,
                key=key,
                ignore=ignore,
                typed="type" in options,
                parts=self._parts,
                keeping=None if refresh_every is None else self._keeping(refresh_every, chosen, options),
            )

        return wrap if function is None else wrap(function)

    @overload
    def repository(
        self,
        name: str,
        load: Callable[[Id], Awaitable[V]],
        save: Callable[..., Any] | None = ...,
        delete: Callable[..., Any] | None = ...,
        *,
        load_many: Callable[[list[Id]], Any] | None = ...,
        save_many: Callable[..., Any] | None = ...,
        delete_many: Callable[..., Any] | None = ...,
        writes: Writes = ...,
        not_saved: Sequence[type[Exception]] = ...,
        ordered_saver: bool = ...,
        **options: Unpack[Freshness],
    ) -> Repository[Id, V]: ...

    @overload
    def repository(
        self,
        name: str,
        load: Callable[[Id], V],
        save: Callable[..., Any] | None = ...,
        delete: Callable[..., Any] | None = ...,
        *,
        load_many: Callable[[list[Id]], Any] | None = ...,
        save_many: Callable[..., Any] | None = ...,
        delete_many: Callable[..., Any] | None = ...,
        writes: Writes = ...,
        not_saved: Sequence[type[Exception]] = ...,
        ordered_saver: bool = ...,
        **options: Unpack[Freshness],
    ) -> Repository[Id, V]: ...

    @overload
    def repository(
        self,
        name: str,
        load: None = ...,
        save: Callable[..., Any] | None = ...,
        delete: Callable[..., Any] | None = ...,
        *,
        load_many: Callable[[list[Id]], Mapping[Id, V]],
        save_many: Callable[..., Any] | None = ...,
        delete_many: Callable[..., Any] | None = ...,
        writes: Writes = ...,
        not_saved: Sequence[type[Exception]] = ...,
        ordered_saver: bool = ...,
        **options: Unpack[Freshness],
    ) -> Repository[Id, V]: ...

    def repository(
        self,
        name: str,
        load: Callable[..., Any] | None = None,
        save: Callable[..., Any] | None = None,
        delete: Callable[..., Any] | None = None,
        *,
        load_many: Callable[..., Any] | None = None,
        save_many: Callable[..., Any] | None = None,
        delete_many: Callable[..., Any] | None = None,
        writes: Writes = "through",
        not_saved: Sequence[type[Exception]] = (),
        ordered_saver: bool = False,
        **options: Any,
    ) -> Any:
        """One kind of thing at one origin, read and written through the cache.

        Args:
            name: what its keys begin with: ``user:1``. Two repositories of one name share their keys; where one writes
                behind, a later one must too, through the same buffer.
            load: ``load(id)`` reads one.
            save: ``save(id, value)`` writes one; with a parameter ``write`` it is also given a `Write`.
            delete: ``delete(id)`` deletes one.
            load_many: ``load_many(ids)`` returns a mapping from id to value.
            save_many: ``save_many(writes)`` writes a list of `Write`.
            delete_many: ``delete_many(writes)`` deletes them.
            writes: ``"through"``, ``"around"``, ``"behind"``, or `WriteThrough`, `WriteAround`, `WriteBehind` with
                options.
            not_saved: exceptions of the savers that prove that nothing was changed (``IntegrityError``, say).
            ordered_saver: the savers refuse a lower ``write.sequence`` than they have, so that write-behind need not
                save anything twice.
            **options: freshness options.

        Raises:
            ConfigurationError: functions or options that cannot work together.
        """
        before = self._repositories.get(name)
        made: Repository[Any, Any] = Repository(
            self.engine,
            self._threads,
            self._aio,
            name,
            Origin(load, load_many, save, save_many, delete, delete_many),
            merge(self.engine.options, options),
            writes=writes,
            typed="type" in options,
            not_saved=not_saved,
            ordered_saver=ordered_saver,
            beside=before.behind if before is not None else None,
        )
        self._parts.add(made)
        self._repositories[name] = made
        return made

    @property
    def repositories(self) -> Mapping[str, Repository[Any, Any]]:
        """The repositories made so far, by name; of several with one name, the last."""
        return MappingProxyType(dict(self._repositories))

    def refresh_every(
        self,
        every: Seconds | str | None,
        key: str,
        loader: Callable[[], Any],
        *,
        cron: str | None = None,
        timezone: str | tzinfo = "UTC",
        now: bool = True,
        spread: Seconds = 0,
        scheduler: Any = None,
        **options: Unpack[Freshness],
    ) -> Refresh:
        """Keeps a key warm: ``loader()`` runs every so often, in one process of all that schedule this key.

        A failed run keeps the last good value. For that a scheduled entry never expires, unless ``ttl`` is given here.

        Args:
            every: seconds from run to run, at moments that are the same in all processes; or a crontab expression of
                five fields.
            key: the key.
            loader: takes nothing; a plain function. For an ``async def`` await `arefresh_every`.
            cron: the crontab expression by name, with None for ``every``.
            timezone: what ``cron`` is read in.
            now: start the run that was due last at once, in the background, unless some process has done it.
            spread: each run begins up to so many seconds after it is due, so that many keys of one crontab do not all
                load at once.
            scheduler: an APScheduler 3 of your own, which you start and stop. Left out: one for the cache.
            **options: freshness options of the loads.

        Raises:
            ConfigurationError: times, options or a loader that cannot work.
            MissingExtraError: APScheduler is not installed.
        """
        return self._schedule(
            self._threads,
            options,
            every,
            key,
            loader,
            cron=cron,
            timezone=timezone,
            now=now,
            spread=spread,
            scheduler=scheduler,
        )

    async def arefresh_every(
        self,
        every: Seconds | str | None,
        key: str,
        loader: Callable[[], Any],
        *,
        cron: str | None = None,
        timezone: str | tzinfo = "UTC",
        now: bool = True,
        spread: Seconds = 0,
        scheduler: Any = None,
        **options: Unpack[Freshness],
    ) -> Refresh:
        """`refresh_every` on the running event loop: ends with it; a plain loader runs in a worker thread."""
        return self._schedule(
            self._aio,
            options,
            every,
            key,
            loader,
            cron=cron,
            timezone=timezone,
            now=now,
            spread=spread,
            scheduler=scheduler,
        )

    def _schedule(
        self,
        rt: Runtime,
        given: Freshness,
        every: Seconds | str | None,
        key: str,
        loader: Callable[[], Any],
        **how: Any,
    ) -> Refresh:
        merged = self._load_options({"ttl": None, **given}, loader)
        return self._add_schedule(rt, every, key, loader, merged, lease_given="lease" in given, **how)

    def _add_schedule(self, rt: Runtime, *args: Any, **how: Any) -> Refresh:
        from cachewright.schedule import Schedules  # here: not everybody schedules, and imports cost

        with _FIRST:
            schedules = self._schedules
            if schedules is None:
                schedules = self._schedules = Schedules(self.engine, self._threads, self._aio)
                self._parts.add(schedules)
                weakref.finalize(self, schedules.abandon).atexit = False
        return schedules.add(rt, *args, **how)

    def _keeping(self, every: Any, chosen: list[Any] | None, given: Mapping[str, Any]) -> Keeping:
        return Keeping(
            self._add_schedule, every, chosen, ttl_given="ttl" in given, lease_given="lease" in given
        )

    def _load_options(self, given: Freshness, loader: Callable[..., Any], *, many: bool = False) -> Options:
        """Merged options; the type is the loader's return annotation unless given."""
        options = self.engine.options
        if "type" not in given:
            type_ = self._type_of(loader, many)
            if type_ is not None:
                return merge(options, {**given, "type": type_})
        return merge(options, given)

    def _type_of(self, loader: Callable[..., Any], many: bool) -> Any:
        if isinstance(loader, FunctionType) and "return" not in loader.__annotations__:
            return None
        try:
            return self._types[loader]
        except (KeyError, TypeError):
            type_ = loader_type(loader, wrappers=(Entry,), many=many)
        try:
            self._types[loader] = type_
        except TypeError:  # no weak reference to it: looked up each time
            pass
        return type_

    async def _close_parts(self, rt: Runtime, timeout: float) -> None:
        """Ends schedules and flushers, each within the deadline; the first error is raised after all were asked."""
        failed: Exception | None = None
        for part in list(self._parts):
            try:
                await part.close_part(rt, timeout)
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed
