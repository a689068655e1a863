"""``writes=``: how a repository is to write, as its user says it. What each does is in the file of its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cachewright.behind.buffers.base import Buffer
from cachewright.behind.types import BehindOptions, OnFull, Spelled
from cachewright.errors import ConfigurationError
from cachewright.keys import shorten, without_credentials
from cachewright.options import Seconds
from cachewright.spelling import did_you_mean

__all__ = ["Origin", "WriteAround", "WriteBehind", "WriteThrough"]

FLUSHERS = ("background", "celery", "worker", "none")


@dataclass(frozen=True, slots=True)
class Origin:
    """The user's functions, as `Cache.repository` takes them."""

    load: Callable[[Any], Any] | None = None
    load_many: Callable[[list[Any]], Any] | None = None
    save: Callable[..., Any] | None = None
    save_many: Callable[..., Any] | None = None
    delete: Callable[..., Any] | None = None
    delete_many: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class WriteThrough(Spelled):
    """``writes="through"``: save at the origin, then store in the cache."""


@dataclass(frozen=True, slots=True)
class WriteAround(Spelled):
    """``writes="around"``: save at the origin and leave the key empty: for values that are seldom read back."""


@dataclass(frozen=True, slots=True)
class WriteBehind(Spelled):
    """``writes="behind"`` with options. Times are seconds.

    Attributes:
        buffer: ``sqlite:///file`` for one host; ``redis://host:6379/0`` or ``redis+cluster://host:6379`` for several (see
            `open_buffer` for all schemes and parameters). Left out: a file of the repository's own under
            ``$XDG_STATE_HOME/cachewright`` (``CACHEWRIGHT_BUFFER`` overrides). Or a `Buffer` of your own.
        delay: the coalescing window: a record waits so long for newer states of its key.
        batch_size: most records saved at once.
        max_attempts: failed saves after which a record becomes a dead letter; with the other defaults after an hour and
            a half, so that an origin may be away for that long.
        backoff: pause after the first failed save; doubled each time, with jitter.
        backoff_max: the longest pause.
        max_dirty: most records in the buffer.
        max_dirty_bytes: most bytes in the buffer.
        on_full: what `put` does at a full buffer: ``"block"`` (up to ``full_timeout``), ``"raise"`` or ``"through"``.
        full_timeout: how long ``"block"`` waits before `BufferFull`; ``"through"`` waits so long for an earlier save of the key.
        claim: life of a flusher's claim, renewed while a saver runs.
        settle: how long a save of unknown outcome may still land.
        flusher: ``"background"`` (a thread or task of this process), ``"celery"`` (``CACHEWRIGHT_BROKER`` names the
            broker), a Celery app of your own, a `CeleryFlusher` with its queue, ``"worker"`` (``cachewright worker``
            does it, in another process) or ``"none"`` (only `flush` does).
    """

    buffer: str | Buffer | None = field(default=None, repr=False)  # a URL may hold a password
    delay: Seconds = 0.0
    batch_size: int = 100
    max_attempts: int = 100
    backoff: Seconds = 0.1
    backoff_max: Seconds = 60.0
    max_dirty: int = 100_000
    max_dirty_bytes: int = 256 * 1024 * 1024
    on_full: OnFull = "block"
    full_timeout: Seconds = 5.0
    claim: Seconds = 5.0
    settle: Seconds = 5.0
    flusher: Any = field(default="background")

    def __post_init__(self) -> None:
        if isinstance(self.flusher, str) and self.flusher not in FLUSHERS:
            hint = did_you_mean(self.flusher, FLUSHERS)
            raise ConfigurationError(
                f"flusher={without_credentials(self.flusher)!r}: expected one of {', '.join(FLUSHERS)}{hint}, a Celery app or CeleryFlusher(…)"
            )
        buffer: object = self.buffer
        if (
            buffer is not None
            and not isinstance(buffer, Buffer)
            and not (isinstance(buffer, str) and "://" in buffer)
        ):
            raise ConfigurationError(
                f"buffer={shorten(without_credentials(buffer) if isinstance(buffer, str) else buffer)}: expected sqlite:///path (relative), sqlite:////path (absolute), redis://host:6379/0 or redis+cluster://host:6379"
            )

    def behind_options(self, ordered_saver: bool) -> BehindOptions:
        """The flusher's own options, checked."""
        names = set(BehindOptions.names()) - {"ordered_saver", "poll"}
        return BehindOptions(**{name: getattr(self, name) for name in names}, ordered_saver=ordered_saver)
