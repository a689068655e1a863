"""Records as the scripts of the buffer in Redis take and tell them."""

from __future__ import annotations

from typing import Any

from cachewright.behind.buffers.base import STATES, NewRecord, Record
from cachewright.errors import BufferUnavailable
from cachewright.keys import shorten

__all__ = ["as_record", "as_words", "micros"]


def micros(seconds: float) -> int:
    """Whole microseconds."""
    return round(seconds * 1e6)


def as_words(new: NewRecord) -> tuple[bytes | int, ...]:
    """A new state as `APPEND` takes it."""
    state = STATES.index("tombstone" if new.payload is None else "value")
    return (new.key.encode(), new.id, new.payload or b"", state, new.codec, new.codec_flags, new.size)


def as_record(row: Any, shift: float) -> Record:
    """A record as the scripts tell it.

    Args:
        row: their reply.
        shift: seconds to add to the server's times.

    Raises:
        BufferUnavailable: it cannot be one.
    """
    try:
        (
            key,
            id,
            state,
            payload,
            codec,
            flags,
            sequence,
            first,
            tries,
            error,
            due,
            token,
            deadline,
            holder,
            *marks,
        ) = row
        suspect, settling, dead = map(bool, marks)
        return Record(
            key=key.decode(),
            id=id,
            state=STATES[state],
            payload=payload,
            codec=codec,
            codec_flags=flags,
            sequence=sequence,
            first_dirty=first / 1e6 + shift,
            tries=tries,
            last_error=None if error is None else error.decode(errors="replace"),
            not_before=due / 1e6 + shift,
            token=None if token is None else bytes.fromhex(token.decode()),
            deadline=0.0 if token is None else deadline / 1e6 + shift,
            holder=None if holder is None else holder.decode(errors="replace"),
            suspect=suspect,
            settling=settling,
            dead=dead,
        )
    except (TypeError, ValueError, IndexError, AttributeError) as error_:
        raise BufferUnavailable(
            f"the buffer holds a damaged record (of {shorten(row[0] if isinstance(row, list) and row else row)}): "
            f"take it out with redis-cli"
        ) from error_
