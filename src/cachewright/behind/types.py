"""What write-behind's users meet: the `Write` that a saver is given, and the options of flushers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Self

from cachewright.errors import ConfigurationError
from cachewright.keys import shorten
from cachewright.options import Seconds, seconds
from cachewright.spelling import did_you_mean

__all__ = ["BehindOptions", "CeleryFlusher", "Spelled", "Write"]

OnFull = Literal["block", "raise", "through"]
_ON_FULL = ("block", "raise", "through")
QUEUE_TYPES = ("classic", "quorum")


class Spelled:
    """Base of option classes: a word that is none of their options is told, with the one that was meant."""

    __slots__ = ()

    if not TYPE_CHECKING:  # who checks types knows the fields of each

        def __new__(cls, *_: object, **given: object) -> Self:
            known = [one.name for one in fields(cls)]
            for name in given:
                if name not in known:
                    raise ConfigurationError(
                        f"{cls.__name__}: there is no option {name!r}{did_you_mean(name, known)}; "
                        f"there are {', '.join(known) or 'none'}"
                    )
            return super().__new__(cls)


@dataclass(frozen=True, slots=True)
class Write:
    """One write, as savers see it that have a parameter named ``write``, and those for many.

    Attributes:
        id: what `put` or `delete` was called with.
        value: the value; `MISSING` for a delete.
        sequence: grows with every write of this key and never goes back, restarts included. A saver that refuses a
            lower one than it has (``… WHERE seq < :seq``) may be declared ``ordered_saver=True``.
        attempt: 1 for the first try. A second try may follow a first whose outcome is unknown.
    """

    id: Any
    value: Any
    sequence: int
    attempt: int


@dataclass(frozen=True, slots=True)
class BehindOptions(Spelled):
    """How a flusher works. Times are seconds.

    Attributes:
        delay: the coalescing window: a record waits this long for newer states of its key before it is saved.
        batch_size: most records claimed, and saved, at once.
        max_attempts: failed saves after which a record becomes a dead letter.
        backoff: pause after the first failed save; doubled each time, with jitter.
        backoff_max: the longest pause.
        max_dirty: most records in the buffer, dead letters included.
        max_dirty_bytes: most bytes of keys, ids and payloads in the buffer.
        on_full: a full buffer makes `put` wait (``"block"``), raise `BufferFull` (``"raise"``) or save at once while
            it holds the key's claim (``"through"``). A key that is dirty already is always taken.
        full_timeout: how long ``"block"`` waits before `BufferFull`; ``"through"`` waits so long for an earlier save of the key.
        claim: life of a claim; renewed while the saver runs. A dead process of the same host frees it at once.
        settle: how long a save of unknown outcome may still land; the record is saved once more after it.
        ordered_saver: the saver refuses older sequences, so nothing needs settling.
        poll: how often the flusher looks for records of other processes.
    """

    delay: float = 0.0
    batch_size: int = 100
    max_attempts: int = 100
    backoff: float = 0.1
    backoff_max: float = 60.0
    max_dirty: int = 100_000
    max_dirty_bytes: int = 256 * 1024 * 1024
    on_full: OnFull = "block"
    full_timeout: float = 5.0
    claim: float = 5.0
    settle: float = 5.0
    ordered_saver: bool = False
    poll: float = 0.5

    def __post_init__(self) -> None:
        for name in ("delay", "backoff", "backoff_max", "full_timeout", "settle"):
            object.__setattr__(self, name, seconds(name, getattr(self, name), zero=True))
        for name in ("claim", "poll"):
            object.__setattr__(self, name, seconds(name, getattr(self, name)))
        for name in ("batch_size", "max_attempts", "max_dirty", "max_dirty_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name}={value!r}: expected a whole number, at least 1")
        if self.on_full not in _ON_FULL:
            words = ", ".join(repr(word) for word in _ON_FULL)
            hint = did_you_mean(str(self.on_full), _ON_FULL)
            raise ConfigurationError(f"on_full={self.on_full!r}: expected one of {words}{hint}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All option names, for messages about a wrong one."""
        return tuple(field.name for field in fields(cls))


@dataclass(frozen=True, slots=True)
class CeleryFlusher(Spelled):
    """``WriteBehind(flusher=CeleryFlusher(app, …))``: Celery workers save. Needs the extra ``celery``.

    All repositories of one app flush through one queue, so they must be given the same settings.

    Attributes:
        app: a `celery.Celery`; None: one for ``CACHEWRIGHT_BROKER``.
        queue: name of the durable queue for the hints; every worker of the app takes it beside its own.
        queue_type: ``"classic"``, or ``"quorum"`` for one that RabbitMQ replicates. A queue that exists keeps its type:
            choose another name with another type.
        sweep: seconds between the sweeps that each worker sends, which save what no hint told of; 0: none, have Celery
            beat send ``cachewright.sweep`` to that queue.
    """

    app: Any = field(default=None, repr=False)  # an app's repr may show its broker
    queue: str = "cachewright"
    queue_type: Literal["classic", "quorum"] = "classic"
    sweep: Seconds = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sweep", seconds("sweep", self.sweep, zero=True))
        queue: object = self.queue
        if (
            not isinstance(queue, str)
            or not 0 < len(queue.encode("utf-8", "replace")) <= 255
            or "\0" in queue
        ):
            raise ConfigurationError(f"queue={shorten(queue)}: expected a name of 1 to 255 bytes")
        if self.queue_type not in QUEUE_TYPES:
            hint = did_you_mean(str(self.queue_type), QUEUE_TYPES)
            raise ConfigurationError(
                f"queue_type={shorten(self.queue_type)}: expected 'classic' or 'quorum'{hint}"
            )
