"""What happens to a write when the buffer is full: wait, raise, or save through while holding the key's claim."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from cachewright.behind.buffers.base import Buffer, NewRecord, Record
from cachewright.behind.types import BehindOptions
from cachewright.errors import BufferFull
from cachewright.runtime.base import Runtime

__all__ = ["Intake"]

Room = Callable[[Runtime, float], Awaitable[None]]
Through = Callable[[Runtime, Record, bytes], Awaitable[None]]


class Intake:
    """Appends by the rule of ``on_full``."""

    def __init__(self, buffer: Buffer, options: BehindOptions) -> None:
        self._buffer, self._options = buffer, options

    async def append(
        self, rt: Runtime, records: Sequence[NewRecord], room: Room, through: Through
    ) -> list[int]:
        """Sequences of what was taken.

        Args:
            rt: the caller's runtime.
            records: at most one per key.
            room: waits, at most so long, until there may be room.
            through: saves a held record under its token, concludes the claim, raises the saver's error.
        """
        options = self._options
        started = rt.monotonic()
        while True:
            try:
                return await self._buffer.append(rt, records, delay=options.delay)
            except BufferFull as full:
                if options.on_full == "through":
                    return [await self._save_through(rt, record, room, through) for record in records]
                too_large = sum(record.size for record in records) > options.max_dirty_bytes
                if options.on_full == "raise" or too_large or len(records) > options.max_dirty:
                    raise
                left = started + options.full_timeout - rt.monotonic()
                if left <= 0:
                    raise BufferFull(f"waited {options.full_timeout:g} s: {full}") from None
            await room(rt, left)

    async def _hold(self, rt: Runtime, key: str, token: bytes) -> int | None:
        try:
            return await self._buffer.hold(rt, key, token, self._options.claim)
        except (Exception, GeneratorExit):
            raise
        except BaseException:
            # cancelled, and the key may be held all the same: its next writer would wait for the claim's whole life
            await self._buffer.release(rt, token)
            raise

    async def _save_through(self, rt: Runtime, new: NewRecord, room: Room, through: Through) -> int:
        ends = rt.monotonic() + self._options.full_timeout
        while True:
            try:
                taken = await self._buffer.append(rt, [new], delay=self._options.delay, overflow=True)
                return taken[0]
            except BufferFull as full:
                token = rt.new_id()
                # without the claim an append and its flusher could overtake this save, which would then land over them
                sequence = await self._hold(rt, new.key, token)
                left = ends - rt.monotonic()
                if sequence is None and left <= 0:
                    raise BufferFull(
                        f"{full}; and {new.key!r} cannot be saved through: for {self._options.full_timeout:g} s an "
                        f"earlier save of it was under way, or might still land over this one"
                    ) from None
            if sequence is None:
                await room(rt, left)  # its record goes, or takes a state and with it an append
                continue
            now = rt.now()
            record = Record(
                new.key,
                new.id,
                "tombstone" if new.payload is None else "value",
                new.payload,
                new.codec,
                new.codec_flags,
                sequence,
                first_dirty=now,
                tries=0,
                last_error=None,
                not_before=now,
                token=token,
                deadline=now + self._options.claim,
                holder=None,
                suspect=False,
                settling=False,
                dead=False,
            )
            await through(rt, record, token)
            return sequence
