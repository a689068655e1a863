"""What a running loader can learn and say about its own load, and which loads the running code is inside of."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, Unpack, cast

from cachewright.errors import ConfigurationError, RecursiveLoadError
from cachewright.options import MISSING, Entry, Options, Said, check_said

__all__ = [
    "LoadContext",
    "Waiting",
    "NotModified",
    "check_recursion",
    "current_load",
    "laid_over",
    "led_by",
    "loading",
]

V = TypeVar("V")


class Waiting:
    """Something that others wait for, and that may wait for others itself: a flight."""

    __slots__ = ("waits_for",)

    waits_for: list[Waiting]


class NotModified(Entry[Any]):
    """What `LoadContext.not_modified` gives its loader to return."""

    __slots__ = ("load",)

    load: LoadContext


class LoadContext:
    """What a running loader can learn and say about its own load, through `current_load`.

    Attributes:
        key: the key being loaded.
        options: the options of this load.
        stale: the value that is being replaced and could still be used, or `MISSING`; where a refresh runs ahead of
            time, the fresh one.
        note: what was kept beside ``stale`` (see `Entry`), or None.
    """

    __slots__ = (
        "active", "also", "find", "flights", "key", "note", "options", "outer", "owner", "parts", "said", "stale",
    )  # fmt: skip

    def __init__(
        self,
        owner: object,
        key: str,
        options: Options,
        stale: Any,
        flights: Iterable[Waiting],
        also: frozenset[str] = frozenset(),
        note: Any = None,
        find: Callable[[str], tuple[Any, Any]] | None = None,
    ) -> None:
        self.owner, self.key, self.options, self.stale, self.note = owner, key, options, stale, note
        self.find = find  # the stale value and the note of one key of a batch
        self.said: dict[str, Any] = {}
        self.parts: dict[str, LoadContext] = {}  # of a batch, by key
        # All that this loader is to end: whoever waits for any of them waits for it.
        self.flights = tuple(flights)
        self.also = also  # further keys of a batch
        self.outer = _LOADING.get()
        self.active = True

    def of(self, key: str) -> LoadContext:
        """The part of one key, for a loader of many: its ``stale`` and ``note``, its ``set`` and ``not_modified``.

        A loader of many that was called for one key alone finds the same.

        Raises:
            ConfigurationError: this load is not about ``key``.
        """
        if key == self.key and self.find is None:
            return self
        if self.find is None or key not in self.also:
            raise ConfigurationError(
                f"current_load().of({key!r}): this load is about {sorted(self.also) or [self.key]}"
            )
        if key not in self.parts:
            stale, note = self.find(key)
            part = LoadContext(self.owner, key, self.options, stale, self.flights, note=note)
            part.active = self.active
            self.parts[key] = part
        return self.parts[key]

    def forget(self) -> None:
        """A try has failed: what it said is void."""
        self.said = {}
        self.parts.clear()

    def end(self) -> None:
        """The loader has returned: nothing can be said any more."""
        for context in (self, *self.parts.values()):
            context.active = False

    def set(self, **said: Unpack[Said]) -> None:
        """Says something of the value that this loader is about to return, as `Entry` would.

        For code deep inside of a loader: an HTTP client that has read a ``max-age``, say. Where the loader returns an
        `Entry`, what that says wins; tags add up. A try that failed (``retries``) has said nothing.

        Args:
            **said: ``ttl``, ``tags``, ``stale_while_revalidate``, ``stale_if_error``, ``note``, ``store``; see `Entry`.

        Raises:
            ConfigurationError: the load is over, or a name or value that breaks its rule.
        """
        if not self.active:
            raise ConfigurationError(f"the load of {self.key!r} is over: nothing can be said of it any more")
        check_said(said)
        self.said = laid_over(self.said, Entry(None, **said))

    # Of whatever type its loader is to return: ``-> Any`` would be an error there to a strict type checker.
    def not_modified(self, **said: Unpack[Said]) -> V:  # type: ignore[type-var]
        """To be returned by a loader that has found that ``stale`` still is the value: it gets a new life.

        Its callers get ``stale``. The tiers keep the payload that they have, where they can, and its tags, and the note,
        unless another one is given. The new times are as this load's options say, and not as an earlier load's `Entry`
        did: say ``ttl`` and the windows again with each answer.

        Args:
            **said: as for `set`.

        Raises:
            ConfigurationError: there is no ``stale`` value, or a name or value that breaks its rule.
        """
        if self.stale is MISSING:
            raise ConfigurationError(
                f"not_modified() in the load of {self.key!r}: there is no value to renew; ask the origin "
                "conditionally only where current_load().stale is not MISSING"
            )
        check_said(said)
        renewed: Any = NotModified(self.stale, **said)
        renewed.load = self
        return cast(V, renewed)


def laid_over(said: dict[str, Any], entry: Entry[Any]) -> dict[str, Any]:
    """What was said of a value, with what ``entry`` says laid over it; tags add up."""
    given = entry.said()
    tags = (*said.get("tags", ()), *given.get("tags", ()))
    return said | given | ({"tags": tuple(dict.fromkeys(tags))} if tags else {})


_LOADING: contextvars.ContextVar[LoadContext | None] = contextvars.ContextVar(
    "cachewright_load", default=None
)


def current_load() -> LoadContext | None:
    """The load that this code runs in; None outside of a loader."""
    context = _LOADING.get()
    return context if context is not None and context.active else None


def led_by(context: LoadContext | None) -> Iterator[Waiting]:
    """The flights that wait for this code: its own load's, and those of the loads that it runs inside of."""
    while context is not None:
        if context.active:
            yield from context.flights
        context = context.outer


def check_recursion(context: LoadContext | None, owner: object, key: str) -> None:
    """Raises `RecursiveLoadError` where the caller is inside a load of ``key``."""
    outer = context
    while outer is not None:
        if outer.active and outer.owner is owner and (outer.key == key or key in outer.also):
            raise RecursiveLoadError(
                f"the loader of {key!r} asked for {key!r} itself; read what it needs from the origin, "
                "or give the part its own key"
            )
        outer = outer.outer


class loading:  # noqa: N801  used as a context manager, like contextlib.suppress
    """Marks the code inside as the loader of ``context.key``."""

    def __init__(self, context: LoadContext) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = _LOADING.set(self._context)

    def __exit__(self, *_: object) -> None:
        self._context.end()
        # A task whose loop has gone is unwound by the garbage collector, in the context of whoever is running.
        with contextlib.suppress(ValueError):
            _LOADING.reset(self._token)


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """What is started inside is no part of the load that the running code is in: that one does not wait for it."""
    token = _LOADING.set(None)
    try:
        yield
    finally:
        _LOADING.reset(token)
