"""Looking after a buffer: what waits in it, what was given up, replaying and discarding that, and figures for monitoring.

Repositories, `Cache.stats` and the command line are faces of this.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from cachewright.behind.buffers.base import Record
from cachewright.behind.flusher import Flusher, FlusherStats, Where
from cachewright.errors import CacheError
from cachewright.keys import without_credentials
from cachewright.options import MISSING
from cachewright.runtime.base import Runtime, drive
from cachewright.runtime.workers import BACKGROUND, waiting

__all__ = [
    "BufferedWrite",
    "Operating",
    "escaped",
    "hosted",
    "is_hosted",
    "look_at",
    "safe_text",
    "shown_url",
]

Drop = Callable[[Runtime, Sequence[str]], Awaitable[object]]
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


@dataclass(frozen=True, slots=True)
class BufferedWrite:
    """One write that stands in a buffer and not yet, as far as anybody knows, at the origin.

    Attributes:
        id: what `put` or `delete` was called with; `MISSING` where the buffer's bytes of it cannot be read.
        key: the cache's key of that id.
        state: ``"dirty"``, ``"claimed"`` (a flusher is at work on it), ``"settling"`` (saved, and saved once more
            because an earlier save of unknown outcome may still land) or ``"dead"`` (given up: a dead letter).
        deleted: it is a delete.
        sequence: as savers see it in `Write`.
        attempts: failed saves so far.
        first_dirty: since when the key has been dirty, in seconds since the epoch.
        error: what the last failed save said.
        next_try: when it is due, in seconds since the epoch; None for a dead letter and for what is claimed.
        claimed_by: the process that claimed it, as ``host/pid/start``, where that is known.
        size: bytes of key, id and value.
    """

    id: Any
    key: str
    state: Literal["dirty", "claimed", "settling", "dead"]
    deleted: bool
    sequence: int
    attempts: int
    first_dirty: float
    error: str | None
    next_try: float | None
    claimed_by: str | None
    size: int


class Operating:
    """What may be done to one repository's buffer beside writing and saving.

    Args:
        flusher: the repository's.
        kind: where its user said that it flushes, whatever it does in this process.
        threads: the cache's runtime for threads.
        aio: the cache's runtime for event loops.
        drop: drops keys in every tier.
        decode: a record's value.
        decode_id: a record's id.
        hint: told the keys of what was made dirty again (Celery).
    """

    def __init__(
        self,
        flusher: Flusher,
        kind: Where,
        threads: Runtime,
        aio: Runtime,
        drop: Drop,
        decode: Callable[[Record], Any],
        decode_id: Callable[[bytes], Any],
        hint: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self.flusher, self.kind = flusher, kind
        self.threads, self.aio = threads, aio
        self._drop, self._decode, self._decode_id, self._hint = drop, decode, decode_id, hint
        self._look: _Look | None = None

    @property
    def name(self) -> str:
        """The repository's."""
        return self.flusher.repository

    @property
    def url(self) -> str:
        """The buffer's, without credentials."""
        return shown_url(self.flusher.buffer.url)

    async def writes(self, rt: Runtime, limit: int, *, dead: bool = False) -> list[BufferedWrite]:
        """Dirty and settling ones, oldest first; or with ``dead`` the dead letters."""
        if not self.flusher.buffer.exists:
            return []
        return [self.seen(record) for record in await self.flusher.buffer.records(rt, limit, dead=dead)]

    async def find(self, rt: Runtime, key: str) -> BufferedWrite | None:
        """The write of that key, if the buffer has one."""
        if not self.flusher.buffer.exists:
            return None
        found = await self.flusher.buffer.read(rt, [key])
        return self.seen(found[key]) if key in found else None

    async def value(self, rt: Runtime, key: str) -> Any:
        """The value that waits under a key; `MISSING` for a delete, and where nothing waits (any more).

        Raises:
            DecodeError: it cannot be read.
        """
        record = (await self.flusher.buffer.read(rt, [key])).get(key)
        return MISSING if record is None or record.payload is None else self._decode(record)

    def seen(self, record: Record) -> BufferedWrite:
        """A record as its user sees it."""
        try:
            id = self._decode_id(record.id)
        except CacheError:  # a list of what waits must not fail by one row; its key tells enough
            id = MISSING
        claimed = record.token is not None
        state: Literal["dirty", "claimed", "settling", "dead"] = (
            "dead" if record.dead else "claimed" if claimed else "settling" if record.settling else "dirty"
        )
        return BufferedWrite(
            id,
            record.key,
            state,
            record.payload is None,
            record.sequence,
            record.tries,
            record.first_dirty,
            record.last_error,
            None if record.dead or claimed else record.not_before,
            record.holder if claimed else None,
            len(record.key) + len(record.id) + len(record.payload or b""),
        )

    async def replay(self, rt: Runtime, key: str) -> None:
        """Makes a dead letter dirty again, its tries forgotten, and has it saved soon.

        Raises:
            NotDirtyError: there is no dead letter of that key (any more).
        """
        await self.flusher.buffer.replay(rt, key)
        self.flusher.start(rt)
        self.flusher.ring()
        if self._hint is not None:
            self._hint([key])

    async def discard(self, rt: Runtime, key: str) -> BufferedWrite:
        """Removes a dead letter for good and drops the key in every tier: its value was never saved.

        Returns:
            What was removed.

        Raises:
            NotDirtyError: there is no dead letter of that key (any more).
        """
        record = await self.flusher.buffer.discard(rt, key)
        # after, and not before: a read between the two would bring the value back from the buffer
        await self._drop(rt, [key])
        return self.seen(record)

    async def stats(self, rt: Runtime) -> FlusherStats:
        """Depth, age and counters."""
        return await self.flusher.stats(rt)

    def begin_look(self) -> _Look:
        """`stats` on a thread of its own. A buffer that is away holds up one such thread, however often it is asked."""
        look = self._look
        if look is None or look.done.is_set() or look.pid != os.getpid():
            look = self._look = _Look(self)
            BACKGROUND.submit(look.run)
        return look


class _Look:
    """One question for `stats` under way."""

    def __init__(self, part: Operating) -> None:
        self._part = part
        self.pid = os.getpid()  # a forked child has not the thread that would answer
        self.done = threading.Event()
        self.answer: FlusherStats | Exception | None = None

    def run(self) -> None:
        try:
            self.answer = drive(self._part.stats(self._part.threads))
        except Exception as error:
            self.answer = error
        finally:
            self.done.set()


def look_at(parts: Mapping[str, Operating], timeout: float = 0.5) -> dict[str, dict[str, Any]]:
    """Figures of several buffers, asked at once; for one that fails or does not answer, an ``error`` in their place.

    Args:
        parts: by name.
        timeout: seconds to wait for all of them together.
    """
    ends = time.monotonic() + timeout
    looks = {name: part.begin_look() for name, part in parts.items()}
    found = {}
    for name, look in looks.items():
        with waiting():
            look.done.wait(max(0.0, ends - time.monotonic()))
        found[name] = {"flusher": parts[name].kind, "buffer": parts[name].url} | _figures(look, timeout)
    return found


def _figures(look: _Look, timeout: float) -> dict[str, Any]:
    answer = look.answer
    if isinstance(answer, FlusherStats):
        return {
            "dirty": answer.buffer.dirty,
            "settling": answer.buffer.settling,
            "dead": answer.buffer.dead,
            "bytes": answer.buffer.bytes,
            "lag": answer.lag,
            "saved": answer.saved,
            "failed": answer.failed,
            "dead_letters": answer.dead_letters,
        }
    if answer is None:
        return {"error": f"the buffer did not answer within {timeout:g} s"}
    return {"error": safe_text(f"{type(answer).__name__}: {answer}")}


def shown_url(url: str) -> str:
    """A buffer's URL without credentials; a file has none, and its path may hold what looks like some."""
    return url if url.startswith("sqlite:") else without_credentials(url)


def safe_text(text: str) -> str:
    """An error's words: without the credentials of the URLs in it, on one line, control characters escaped."""
    return escaped(_URL.sub(lambda found: without_credentials(found[0]), text))


def escaped(text: str) -> str:
    """A key or a value: all of it, on one line, control characters escaped."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


# ------------------------------------------------------------------------------------------------- hosting

_hosts = 0


@contextmanager
def hosted() -> Iterator[None]:
    """Repositories that are made in here flush nothing by themselves: whoever made them looks, or flushes for them.

    For programs that import a user's module to operate it: a flusher that began to save while `buffer list` runs would
    be cut off at its end. It holds for the whole process, for a module may make its repositories on any thread.
    """
    global _hosts
    _hosts += 1
    try:
        yield
    finally:
        _hosts -= 1


def is_hosted() -> bool:
    """Whether repositories are to leave the flushing to their host."""
    return _hosts > 0
