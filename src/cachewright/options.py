"""Options: what each means, its default and its rule; how those of cache, decorator and call merge.

The nearest wins: a call's option over the decorator's or repository's, over the cache's. Merged sets are frozen. An
entry's times are fixed when it is stored: a later call's options govern only what that call loads.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Final, Generic, Literal, TypedDict, TypeVar

from cachewright.errors import ConfigurationError
from cachewright.keys import check_tag, shorten
from cachewright.spelling import did_you_mean

__all__ = [
    "DEFAULTS",
    "MISSING",
    "Entry",
    "Freshness",
    "Missing",
    "Options",
    "Retry",
    "Said",
    "Seconds",
    "check_said",
    "merge",
    "refuse_entries",
    "seconds",
]

T = TypeVar("T")
LONGEST = 100 * 365.25 * 86_400
Seconds = float | int | timedelta


class Missing(enum.Enum):
    """The type of `MISSING`."""

    MISSING = "MISSING"

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        return "cachewright.MISSING"


MISSING: Final = Missing.MISSING
"""Says "no value" where ``None`` is one."""


class Said(TypedDict, total=False):
    """What a loader may say of its value; see `Entry`."""

    ttl: Seconds | None
    tags: str | Iterable[str]
    stale_while_revalidate: Seconds
    stale_if_error: Seconds
    note: Any
    store: bool


class Entry(Generic[T]):
    """What a loader may return instead of the bare value, to say how long it is good and what it belongs to.

    What is left out is as the load's own options say.

    Args:
        value: the value.
        ttl: seconds of freshness; ``None`` never expires, 0 is stale at once (an HTTP ``max-age=0``, say).
        tags: further tags. They are known only now, so they cannot have been captured before the load: where one of
            them changed while the loader ran, the value goes to the caller and is not stored.
        stale_while_revalidate: seconds after ``ttl`` in which it is served at once and refreshed behind.
        stale_if_error: seconds after ``ttl`` in which it is served where the loader fails.
        note: a small plain value that is kept beside this one and shown to the next load of the key as
            ``current_load().note``: an ETag, a Last-Modified, a version.
        store: False: for the callers of this load only.

    Raises:
        ConfigurationError: a time, or ``store``, that breaks its rule; a value that is an `Entry` itself.
        InvalidKeyError: a tag that breaks its rule.
    """

    __slots__ = ("note", "stale_if_error", "stale_while_revalidate", "store", "tags", "ttl", "value")

    def __init__(
        self,
        value: T,
        *,
        ttl: Seconds | Missing | None = MISSING,
        tags: str | Iterable[str] = (),
        stale_while_revalidate: Seconds | Missing = MISSING,
        stale_if_error: Seconds | Missing = MISSING,
        note: Any = MISSING,
        store: bool | Missing = MISSING,
    ) -> None:
        if isinstance(value, Entry):
            raise ConfigurationError(f"Entry({shorten(value)}): one in the other; say all of it in one")
        if store is not MISSING and not isinstance(store, bool):
            raise ConfigurationError(f"store={shorten(store)}: expected True or False")
        self.value = value
        self.ttl = ttl if ttl is MISSING else seconds("ttl", ttl, none=True, zero=True)
        self.tags = _tags(tags)
        self.stale_while_revalidate = _given("stale_while_revalidate", stale_while_revalidate)
        self.stale_if_error = _given("stale_if_error", stale_if_error)
        self.note = note
        self.store = store

    def __repr__(self) -> str:
        said = [f"{name}={value!r}" for name, value in self.said().items()]
        return f"Entry({', '.join([repr(self.value), *said])})"

    def said(self) -> dict[str, Any]:
        """What was given, by name."""
        names = ("ttl", "stale_while_revalidate", "stale_if_error", "note", "store")
        said = {name: value for name in names if (value := getattr(self, name)) is not MISSING}
        return said | ({"tags": self.tags} if self.tags else {})


@dataclass(frozen=True, slots=True)
class Retry:
    """How a failing loader is tried again (tenacity's exponential wait with jitter).

    Attributes:
        attempts: further tries after the first.
        wait: the longest pause before the second try, in seconds; doubled before each further one.
        max_wait: the longest pause at all, in seconds.
        on: the exception, or a tuple of them, that is worth another try.

    Raises:
        ConfigurationError: a value that breaks its rule.
    """

    attempts: int = 2
    wait: float = 0.1
    max_wait: float = 2.0
    on: type[Exception] | tuple[type[Exception], ...] = (Exception,)

    def __post_init__(self) -> None:
        attempts: Any = self.attempts
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 0:
            raise ConfigurationError(
                f"Retry(attempts={attempts!r}): expected how many further tries, a whole number from 0"
            )
        for name in ("wait", "max_wait"):
            object.__setattr__(self, name, seconds(f"Retry {name}", getattr(self, name), zero=True))
        if self.wait > self.max_wait:
            raise ConfigurationError(
                f"Retry(wait={self.wait:g}, max_wait={self.max_wait:g}): the first pause is longer than the longest; "
                f"set max_wait to {self.wait:g} or more"
            )
        classes: tuple[Any, ...] = self.on if isinstance(self.on, tuple) else (self.on,)
        # A KeyboardInterrupt, a SystemExit or a cancellation is no failure of the origin.
        if not classes or not all(isinstance(one, type) and issubclass(one, Exception) for one in classes):
            raise ConfigurationError(
                f"Retry(on={self.on!r}): expected a subclass of Exception, or a tuple of them, "
                "such as on=(ConnectionError, TimeoutError)"
            )


class Freshness(TypedDict, total=False):
    """The keyword options that ``cached``, ``repository``, ``get_or_set`` and ``set`` accept alike."""

    ttl: Seconds | None
    jitter: float
    stale_while_revalidate: Seconds
    stale_if_error: Seconds
    refresh_ahead: bool | float
    soft_timeout: Seconds | None
    load_timeout: Seconds | None
    negative_ttl: Seconds | None
    retries: int | Retry
    error_ttl: Seconds
    lease: Seconds
    tags: str | Iterable[str]
    store_if: Callable[[Any], bool] | None
    type: Any


@dataclass(frozen=True, slots=True)
class Options:
    """One merged set. Times are seconds.

    Attributes:
        ttl: how long an entry is fresh; None never expires.
        jitter: up to this share of ``ttl`` is taken off at random, so that what was filled together does not expire
            together. Never longer than asked.
        stale_while_revalidate: how long after ``ttl`` a stale value is served at once, refreshed behind.
        stale_if_error: how long after ``ttl`` a stale value is served where the loader fails.
        refresh_ahead: refresh before the entry turns stale: ``True`` by XFetch with the measured load time, or a
            fraction of the life after which the next read refreshes behind.
        soft_timeout: where a stale value is at hand, wait no longer than this for the loader.
        load_timeout: wait no longer than this for the loader; then `LoadTimeout`.
        negative_ttl: ``ttl`` of a loaded None; left out, ``ttl``.
        retries: further tries of a failing loader.
        error_ttl: after a failed load over a value that may still be used, how long the loader is left alone.
        lease: life of the lease; renewed while the loader runs.
        tags: what the entry belongs to.
        store_if: asked with the value; False returns it without storing it.
        type: what stored bytes are converted to; None: the plain types.
    """

    ttl: float | None = 300.0
    jitter: float = 0.1
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    refresh_ahead: bool | float = False
    soft_timeout: float | None = None
    load_timeout: float | None = None
    negative_ttl: float | Missing | None = MISSING
    retries: Retry | None = None
    error_ttl: float = 1.0
    lease: float = 5.0
    tags: tuple[str, ...] = ()
    store_if: Callable[[Any], bool] | None = None
    type: Any = None

    @property
    def background(self) -> bool:
        """The load runs behind the caller, who may stop waiting for it."""
        return self.soft_timeout is not None or self.load_timeout is not None


DEFAULTS: Final = Options()
_NAMES: Final = tuple(field.name for field in fields(Options))


def seconds(name: str, value: object, *, none: bool = False, zero: bool = False) -> float | None:
    """A time option as float seconds.

    Raises:
        ConfigurationError: neither a number nor a ``timedelta``, not finite, negative, or zero where that means
            nothing.
    """
    if value is None and none:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        allowed = "seconds (int or float) or a timedelta" + (", or None" if none else "")
        raise ConfigurationError(f"{name}={value!r}: expected {allowed}")
    hint = "; None means 'never expires'" if name in ("ttl", "negative_ttl") else ""
    if value > LONGEST and math.isfinite(value):
        raise ConfigurationError(
            f"{name}={value!r}: longer than {LONGEST:,.0f} seconds, a hundred years{hint}"
        )
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "not negative" if zero else "above 0"
        if value == 0 and name == "negative_ttl":
            hint = "; to store no None at all, say store_if=lambda value: value is not None"
        raise ConfigurationError(f"{name}={value!r}: must be finite and {least}{hint}")
    return float(value)


def refuse_entries(values: Mapping[Any, Any], way_out: str) -> None:
    """For what is stored as it is given: there an `Entry` would be found again as the value.

    Raises:
        ConfigurationError: one of these values is an `Entry`.
    """
    for key, value in values.items():
        if isinstance(value, Entry):
            raise ConfigurationError(
                f"{shorten(key)} was given an Entry: that is what a loader returns; {way_out}"
            )


def check_said(said: Mapping[str, Any]) -> None:
    """The names of what is said of a value; `Entry` checks the rest.

    Raises:
        ConfigurationError: there is no such thing to say.
    """
    names = tuple(Said.__annotations__)
    for name in said:
        if name not in names:
            raise ConfigurationError(
                f"a loader cannot say {name!r} of its value{did_you_mean(name, names)}: it can say {', '.join(names)}"
            )


def _given(name: str, value: Any) -> Any:
    return value if value is MISSING else seconds(name, value, zero=True)


def merge(base: Options, given: Mapping[str, Any]) -> Options:
    """``base`` with what is given laid over it.

    Raises:
        ConfigurationError: an unknown name (the nearest right one is named) or a value that breaks its rule.
    """
    if not given:
        return base
    return replace(base, **{name: _check(name, value) for name, value in given.items()})


def _check(name: str, value: Any) -> Any:
    rule = _RULES.get(name)
    if rule is None:
        raise ConfigurationError(f"there is no option {name!r}{did_you_mean(name, _NAMES)}")
    return rule(name, value)


def _lease(name: str, value: Any) -> Any:
    life = seconds(name, value) or 0.0
    if not 0.05 <= life <= 86_400:
        raise ConfigurationError(
            f"{name}={value!r}: expected 0.05 seconds to a day; it is renewed while a loader runs"
        )
    return life


def _optional(name: str, value: Any) -> Any:
    return seconds(name, value, none=True)


def _window(name: str, value: Any) -> Any:
    return seconds(name, value, zero=True)


def _share(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigurationError(f"{name}={value!r}: expected a share of the ttl, 0 <= {name} < 1")
    return float(value)


def _ahead(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and 0 < value < 1:
        return float(value)
    raise ConfigurationError(f"{name}={value!r}: expected False, True (XFetch) or a fraction between 0 and 1")


def _retry(name: str, value: Any) -> Any:
    if isinstance(value, Retry):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{name}={value!r}: expected how many further tries (0, 1, …) or a Retry(…)")
    return Retry(value) if value else None


def _tags(value: Any) -> tuple[str, ...]:
    if isinstance(value, bytes | bytearray) or not isinstance(value, Iterable):
        raise ConfigurationError(f"tags={shorten(value)}: expected a str, or several in a list; () for none")
    names = (value,) if isinstance(value, str) else tuple(value)
    if len(names) > 64:
        raise ConfigurationError(f"{len(names)} tags on one entry: at most 64")
    return tuple(dict.fromkeys(check_tag(tag) for tag in names))


def _function(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise ConfigurationError(f"{name}={value!r}: expected a function of the value, or None")
    return value


_RULES: Final[dict[str, Callable[[str, Any], Any]]] = {
    "ttl": _optional,
    "jitter": _share,
    "stale_while_revalidate": _window,
    "stale_if_error": _window,
    "refresh_ahead": _ahead,
    "soft_timeout": _optional,
    "load_timeout": _optional,
    "negative_ttl": _optional,
    "retries": _retry,
    "error_ttl": _window,
    "lease": _lease,
    "tags": lambda _, value: _tags(value),
    "store_if": _function,
    "type": lambda _, value: value,
}
