"""The part of a decorated function that works ahead of its callers: ``warm``, and ``refresh_every`` for chosen arguments."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cachewright.core.engine import Engine
from cachewright.errors import ConfigurationError, MissingExtraError
from cachewright.key_template import KeyMaker
from cachewright.keys import shorten
from cachewright.options import Options
from cachewright.runtime.base import Runtime, drive
from cachewright.spelling import did_you_mean

if TYPE_CHECKING:
    from cachewright.schedule import Refresh
    from cachewright.warm_plan import Progress, WarmReport

__all__ = ["Ahead", "Keeping", "as_call", "part_of"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
_TIMES = ("every", "cron", "timezone", "now", "spread", "scheduler")


def as_call(item: Any) -> Call:
    """One item of chosen arguments: a tuple, a dict by name, or the only argument itself."""
    if isinstance(item, tuple):
        return item, {}
    if isinstance(item, dict):
        return (), item
    return (item,), {}


def part_of(function: object) -> Ahead | None:
    """What stands behind a decorated function or bound method; None where it is none."""
    part = getattr(getattr(function, "warm", None), "__self__", None)
    part = getattr(part, "_part", part)
    return part if isinstance(part, Ahead) else None


class Ahead:
    """Base of `decorator.Decorated`."""

    engine: Engine
    threads: Runtime
    aio: Runtime
    function: Callable[..., Any]
    maker: KeyMaker
    is_async: bool
    own_tag: str
    bound: tuple[Any, ...]
    parts: set[Any]
    keeping: Keeping | None

    def options_for(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Options:
        """The options of one call's load."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------- warming

    def warm(
        self, arguments: Iterable[Any], *, concurrency: int = 8, progress: Progress | None = None
    ) -> WarmReport[str]:
        if self.is_async:
            raise ConfigurationError(f"{self.maker.name} is async: await {self.maker.name}.awarm(…)")
        return drive(self._warm(self.threads, arguments, concurrency, progress))

    async def awarm(
        self, arguments: Iterable[Any], *, concurrency: int = 8, progress: Progress | None = None
    ) -> WarmReport[str]:
        return await self._warm(self.aio, arguments, concurrency, progress)

    async def _warm(
        self, rt: Runtime, arguments: Iterable[Any], concurrency: int, progress: Progress | None
    ) -> WarmReport[str]:
        from cachewright.warm_plan import WarmPlan, check_items
        from cachewright.warming import Warming

        check_items("the arguments of each call", arguments)

        def call(item: Any) -> Call:
            args, kwargs = as_call(item)
            return self.bound + args, kwargs

        plan = WarmPlan(
            key_of=lambda item: self.maker(*call(item)),
            options_of=lambda item, key: self.options_for(key, *call(item)),
            one=lambda _rt, item, _key: functools.partial(self.function, *call(item)[0], **call(item)[1]),
            implicit=(self.own_tag,),
        )
        warming = Warming(
            self.engine,
            rt,
            plan,
            arguments,
            self.parts,
            concurrency=concurrency,
            batch_size=1,
            progress=progress,
        )
        return await warming.run()

    # ----------------------------------------------------------------------------------------- refreshing

    def keep_fresh(self, *args: Any, **kwargs: Any) -> Refresh:
        if self.is_async:
            raise ConfigurationError(f"{self.maker.name} is async: await {self.maker.name}.akeep_fresh(…)")
        return self._keeping().keep(self, self.threads, self.bound + args, kwargs)

    async def akeep_fresh(self, *args: Any, **kwargs: Any) -> Refresh:
        return self._keeping().keep(self, self.aio, self.bound + args, kwargs)

    def _keeping(self) -> Keeping:
        if self.keeping is None:
            raise ConfigurationError(
                f"{self.maker.name} has no schedule: decorate it with @cache.cached(refresh_every=…)"
            )
        return self.keeping


class Keeping:
    """The schedule of one decorated function, for chosen arguments.

    It starts with the first call in a process (on asyncio: on a loop), not with the decoration: a module may be
    imported before a server forks its workers, and a schedule does not run on in a forked child.

    Args:
        add: `Schedules.add` of the cache, with its first use.
        every: seconds, a crontab expression, or a mapping of ``refresh_every``'s arguments.
        chosen: the arguments to begin with; None: ``()`` where the function needs none, else nothing.
        ttl_given: the function has a ``ttl`` of its own.
        lease_given: the same of ``lease``.
    """

    def __init__(
        self,
        add: Callable[..., Refresh],
        every: Any,
        chosen: Iterable[Any] | None,
        *,
        ttl_given: bool,
        lease_given: bool,
    ) -> None:
        self._add, self._ttl_given, self._lease_given = add, ttl_given, lease_given
        self._how = _checked(every)
        self._chosen = None if chosen is None else [as_call(item) for item in chosen]
        self._handles: dict[str, Refresh] = {}
        self._homes: dict[str, Callable[[], bool]] = {}  # whether the event loop of a handle runs
        self.after_fork()
        _ALL.add(self)

    def after_fork(self) -> None:
        """In a forked child: the next call begins anew."""
        self._lock = threading.RLock()
        self._begun: tuple[int, Callable[[], bool]] | None = None

    def check(self, part: Ahead, *, owner: bool) -> None:
        """At decoration, so that what cannot work shows there.

        Raises:
            ConfigurationError: chosen arguments that the function does not take.
        """
        if owner and self._chosen:
            raise ConfigurationError(
                f"{part.maker.name} is a method, so refresh_for= cannot name its object: "
                f"call keep_fresh(…) on the object's method"
            )
        if self._chosen is None:
            try:
                part.maker((), {})
            except TypeError:
                self._chosen = []
            else:
                self._chosen = [] if owner else [((), {})]
        for args, kwargs in self._chosen:
            try:
                part.maker(args, kwargs)
            except TypeError as error:
                given = shorten((*args, *(f"{name}={value!r}" for name, value in kwargs.items())))
                raise ConfigurationError(
                    f"refresh_for: {part.maker.name} does not take {given}: {error}"
                ) from error

    def begin(self, part: Ahead, rt: Runtime) -> None:
        """Starts the chosen ones, unless that was done here."""
        begun, closings = self._begun, part.engine.state.closings
        if begun is not None and begun[0] == closings and begun[1]():
            return
        with self._lock:
            if self._begun is not begun:
                return
            self._begun = closings, _home(rt)
            for args, kwargs in self._chosen or ():
                self.keep(part, rt, args, kwargs)
            for refresh in self._handles.values():
                refresh.wake()

    def keep(self, part: Ahead, rt: Runtime, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Refresh:
        """The schedule of these arguments, started where it does not run."""
        call = dict(kwargs)
        key = part.maker(args, call)
        with self._lock:
            standing = self._handles.get(key)
            if standing is not None and not standing.cancelled:
                if self._homes[key]():
                    return standing
                standing.cancel()  # its event loop is gone
            options = self.lasting(key, part.options_for(key, args, call), chosen=True)
            options = replace(options, tags=(*options.tags, part.own_tag))
            refresh = self._add(
                rt,
                key=key,
                loader=functools.partial(part.function, *args, **call),
                options=options,
                lease_given=self._lease_given,
                **self._how,
            )
            self._handles[key], self._homes[key] = refresh, _home(rt)
            return refresh

    def lasting(self, key: str, options: Options, *, chosen: bool = False) -> Options:
        """The options of a load of this key: without end where a schedule renews it."""
        if self._ttl_given or not (chosen or key in self._handles):
            return options
        return replace(options, ttl=None)


def _home(rt: Runtime) -> Callable[[], bool]:
    return rt.whoami()[1] if rt.name == "asyncio" else _always


def _always() -> bool:
    return True


def _checked(every: Any) -> dict[str, Any]:
    how = dict(every) if isinstance(every, Mapping) else {"every": every}
    for name in how:
        if name not in _TIMES:
            raise ConfigurationError(
                f"refresh_every={shorten(every)}: there is no {name!r}{did_you_mean(str(name), _TIMES)}"
            )
    from cachewright.schedule_times import make_times

    try:
        import apscheduler  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("refresh_every=", "scheduler") from error
    make_times(how.get("every"), how.get("cron"), how.get("timezone", "UTC"), "")
    defaults = {"every": None, "cron": None, "timezone": "UTC", "now": True, "spread": 0, "scheduler": None}
    return {**defaults, **how}


_ALL: weakref.WeakSet[Keeping] = weakref.WeakSet()


def _after_fork() -> None:
    for keeping in _ALL:
        keeping.after_fork()


os.register_at_fork(after_in_child=_after_fork)
