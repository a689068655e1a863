"""What ``warm`` is to load, what became of it, and the user's loaders as they tell of their end."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cachewright.core.interrupted import call_loader, exit_of
from cachewright.errors import ConfigurationError
from cachewright.keys import shorten
from cachewright.options import MISSING, Options
from cachewright.runtime.base import Runtime, drive

__all__ = [
    "Progress",
    "Unit",
    "WarmPlan",
    "WarmReport",
    "check_items",
    "check_warm",
    "told",
]

L = TypeVar("L")
Progress = Callable[[int, int | None, int], object]
MOST_AT_ONCE = 64  # background threads of a process


@dataclass
class WarmReport(Generic[L]):
    """How warming went.

    Attributes:
        loaded: keys that were loaded and stored.
        skipped: keys that were fresh, or that somebody else loaded meanwhile.
        absent: keys that ``load_many`` left out: the origin has no such thing.
        unstored: keys that were loaded and are not fresh now: changed meanwhile, or ``store_if`` said no.
        failed: why the others failed, by key (of a repository by id).
        stopped: it ended before all keys were looked at: the cache was closed, or ``progress`` returned False.
    """

    loaded: int = 0
    skipped: int = 0
    absent: int = 0
    unstored: int = 0
    failed: dict[L, Exception] = field(default_factory=dict)
    stopped: bool = False

    @property
    def done(self) -> int:
        """How many keys were looked at, whatever became of them."""
        return self.loaded + self.skipped + self.absent + self.unstored + len(self.failed)

    @property
    def ok(self) -> bool:
        """All keys were looked at, and none failed."""
        return not self.failed and not self.stopped


@dataclass(frozen=True)
class WarmPlan:
    """What is warmed, and how.

    Attributes:
        key_of: the key of an item, which may raise: then this item fails.
        label_of: what an item is called in ``failed``.
        options_of: the options of an item's load.
        one: the loader of one item.
        many: the loader of many, given the items by key; None where there is none.
        implicit: tags of all these entries that the user does not see.
    """

    key_of: Callable[[Any], str]
    options_of: Callable[[Any, str], Options]
    one: Callable[[Runtime, Any, str], Callable[[], Any]]
    many: Callable[[Runtime, Mapping[str, Any]], Callable[[list[str]], Any]] | None = None
    label_of: Callable[[Any, str], Any] = lambda _, key: key
    implicit: tuple[str, ...] = ()


def check_warm(concurrency: object, batch_size: object) -> None:
    """The rules of ``warm``'s numbers.

    Raises:
        ConfigurationError: one breaks its rule.
    """
    for name, value, most in (("concurrency", concurrency, MOST_AT_ONCE), ("batch_size", batch_size, 10_000)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ConfigurationError(f"{name}={value!r}: expected a whole number from 1 to {most:,}")


def check_items(what: str, items: object) -> None:
    """The rule of what ``warm`` is given: several, as a list or anything else that a ``for`` goes through.

    Raises:
        ConfigurationError: a single one, or nothing to go through.
    """
    if isinstance(items, Iterable) and not isinstance(items, str | bytes | bytearray):
        return
    hint = ""
    if isinstance(items, AsyncIterable):
        hint = ", or gather an async generator first: [one async for one in …]"
    raise ConfigurationError(f"warm({shorten(items)}): expected {what} in a list{hint}")


class Unit:
    """Keys that are loaded together, and what their loader did."""

    def __init__(self, items: Mapping[str, Any], *, stale: bool) -> None:
        self.items, self.stale = items, stale
        self.called: set[str] = set()
        self.absent: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self.exits: BaseException | None = None  # a SystemExit of its loader, say: for the one who warms

    def failed(self, keys: Iterable[str], error: Exception) -> None:
        """The loader was called for these keys, and raised."""
        for key in keys:
            self.called.add(key)
            self.errors[key] = error

    def ended(self, keys: Iterable[str], found: Any) -> None:
        """The loader was called for these keys and returned; a mapping, where it is one of many."""
        for key in keys:
            self.called.add(key)
            self.errors.pop(key, None)
            self.absent.discard(key)
            value = found.get(key, MISSING) if isinstance(found, Mapping) else None
            if value is MISSING:
                self.absent.add(key)
            elif isinstance(value, Exception):
                self.errors[key] = value


def told(rt: Runtime, loader: Callable[..., Any], unit: Unit, *args: Any) -> Callable[..., Any]:
    """The loader of one item, or of many keys, whose end the unit is told of."""

    async def load(*keys: list[str]) -> Any:
        asked = keys[0] if keys else args
        try:
            result = await call_loader(rt, loader, next(iter(unit.items)), *keys)
        except Exception as error:
            unit.failed(asked, error)
            unit.exits = exit_of(rt, error)
            raise
        unit.ended(asked, result if keys else None)
        return result

    return (lambda *keys: drive(load(*keys))) if rt.name == "threads" else load
