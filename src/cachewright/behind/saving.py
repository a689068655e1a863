"""The user's savers, called the way they want to be called, and what became of each record.

A failure is *known* where the origin is certainly unchanged: the saver raised `NotSaved`, or one of ``not_saved``.
Every other failure is *unknown*: the save may still land, also after a later one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cachewright.behind.buffers.base import Record
from cachewright.behind.types import Write
from cachewright.errors import ConfigurationError, NotSaved
from cachewright.options import MISSING
from cachewright.runtime.base import Runtime
from cachewright.runtime.interrupts import cancellations, ends_us
from cachewright.runtime.threads import is_async

__all__ = ["Outcome", "Savers", "takes_write"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record.

    Attributes:
        record: which.
        error: why it was not saved; None: it was.
        unknown: this or an earlier try of the round may still land.
        undropped: its slot could not be dropped: whatever became of the save, the record has another round.
    """

    record: Record
    error: BaseException | None = None
    unknown: bool = False
    undropped: bool = False


def takes_write(function: Callable[..., Any]) -> bool:
    """Whether a saver has a parameter named ``write``."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return "write" in parameters and parameters["write"].kind is not inspect.Parameter.POSITIONAL_ONLY


class Savers:
    """``save(id, value)``, ``delete(id)``, ``save_many(writes)``, ``delete_many(writes)``; at least one that saves.

    The ones for many get a list of `Write` and may return a mapping from id to an exception for those that failed;
    anything else they return means that all were saved.

    Args:
        save: for one value.
        save_many: for many values.
        delete: for one delete.
        delete_many: for many deletes.
        decode: a record's value.
        decode_id: a record's id.
        not_saved: exceptions by which these savers say that the origin is unchanged.
    """

    def __init__(
        self,
        *,
        save: Callable[..., Any] | None = None,
        save_many: Callable[..., Any] | None = None,
        delete: Callable[..., Any] | None = None,
        delete_many: Callable[..., Any] | None = None,
        decode: Callable[[Record], Any] | None = None,
        decode_id: Callable[[bytes], Any] | None = None,
        not_saved: Sequence[type[Exception]] = (),
    ) -> None:
        self._save, self._save_many = save, save_many
        self._delete, self._delete_many = delete, delete_many
        self._decode, self._decode_id = decode, decode_id
        self._not_saved: tuple[type[Exception], ...] = (NotSaved, *not_saved)
        self._with_write = {f for f in (save, delete) if f is not None and takes_write(f)}
        self.is_async = any(is_async(f) for f in (save, save_many, delete, delete_many) if f is not None)
        """Whether they need an event loop."""

    @property
    def can_delete(self) -> bool:
        """Whether a delete can be saved."""
        return self._delete is not None or self._delete_many is not None

    @property
    def certain(self) -> tuple[type[Exception], ...]:
        """The exceptions by which these savers say that the origin is unchanged."""
        return self._not_saved

    def check(self, repository: str, deletes: Iterable[bool]) -> None:
        """Raises `ConfigurationError` where a write (True: a delete) has no saver, before anything is touched."""
        for delete in set(deletes):
            try:
                self._pick(delete)
            except ConfigurationError as error:
                raise ConfigurationError(f"{repository!r}: {error}") from None

    def is_unknown(self, error: BaseException) -> bool:
        """Whether a save that raised this may have changed the origin all the same."""
        return not isinstance(error, self._not_saved)

    def write_of(self, record: Record) -> Write:
        """A record as its saver sees it."""
        assert self._decode is not None, "made to save now, not records"
        assert self._decode_id is not None
        value = MISSING if record.state == "tombstone" else self._decode(record)
        return Write(self._decode_id(record.id), value, record.sequence, record.tries + 1)

    async def save_one(self, rt: Runtime, write: Write) -> None:
        """Saves one write; the saver's own error comes through. Write-through uses it too."""
        many, one = self._pick(write.value is MISSING)
        if one is not None:
            extra = {"write": write} if one in self._with_write else {}
            values = (write.id,) if write.value is MISSING else (write.id, write.value)
            await rt.call(one, *values, **extra)
            return
        if many is not None:
            for error in _failures(await rt.call(many, [write]), [write]).values():
                raise error

    async def save_now(self, rt: Runtime, writes: Sequence[Write]) -> None:
        """Saves writes of one kind while the caller waits; the savers' own error comes through."""
        many, _ = self._pick(writes[0].value is MISSING)
        if many is None or len(writes) == 1:
            for write in writes:
                await self.save_one(rt, write)
            return
        for error in _failures(await rt.call(many, list(writes)), writes).values():
            raise error

    async def save(self, rt: Runtime, records: Sequence[Record]) -> list[Outcome]:
        """Saves all; one outcome each, in no particular order. Raises nothing of a saver's, but what ends the caller too."""
        outcomes: list[Outcome] = []
        # By what they do and by their past: one record that makes its batch raise must not take fresh ones with it
        # each time that it is tried again.
        groups: dict[tuple[bool, bool, bool], list[tuple[Record, Write]]] = {}
        for record in records:
            try:
                pair = (record, self.write_of(record))
            except Exception as error:  # what cannot be decoded was sent to nobody
                outcomes.append(Outcome(record, error))
                continue
            kind = (record.state == "tombstone", record.tries > 0, record.settling)
            groups.setdefault(kind, []).append(pair)
        for (deletes, tried, settling), group in groups.items():
            # settles because its batch raised: in a batch that raises again it would settle for ever
            singly = settling and tried
            outcomes += await self._save_group(rt, group, deletes, singly)
        return outcomes

    async def _save_group(
        self, rt: Runtime, group: list[tuple[Record, Write]], deletes: bool, singly: bool
    ) -> list[Outcome]:
        many, _ = self._pick(deletes)
        if many is None or singly or len(group) == 1:
            return [await self._try_one(rt, record, write) for record, write in group]
        before = cancellations(rt)
        try:
            writes = [write for _, write in group]
            failed = _failures(await rt.call(many, list(writes)), writes)
        except BaseException as error:
            if ends_us(rt, error, before):
                raise
            # one poison record must delay only itself: all again, singly, for each may or may not have been saved
            unsure = self.is_unknown(error)
            return [await self._try_one(rt, record, write, unsure) for record, write in group]
        outcomes = []
        for record, write in group:
            said = failed.get(write.id) if failed else None
            outcomes.append(Outcome(record, said, said is not None and self.is_unknown(said)))
        return outcomes

    async def _try_one(self, rt: Runtime, record: Record, write: Write, unsure: bool = False) -> Outcome:
        before = cancellations(rt)
        try:
            await self.save_one(rt, write)
        except BaseException as error:
            if ends_us(rt, error, before):
                raise
            return Outcome(record, error, unsure or self.is_unknown(error))
        return Outcome(record, None, unsure)

    def _pick(self, deletes: bool) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
        many, one = (self._delete_many, self._delete) if deletes else (self._save_many, self._save)
        if many is None and one is None:
            what = "delete= or delete_many=" if deletes else "save= or save_many="
            raise ConfigurationError(f"this repository was made without {what}")
        return many, one


def _failures(result: object, writes: Sequence[Write]) -> dict[Any, Exception]:
    """What a saver for many says of those that failed.

    Raises:
        TypeError: it means to say so, and not in a way that is understood: taken for success, that would lose the write.
    """
    if not isinstance(result, Mapping):
        if isinstance(result, list | tuple) and any(isinstance(one, BaseException) for one in result):
            raise TypeError("a saver for many returned a list with exceptions: return {id: exception}")
        return {}
    ids = {write.id for write in writes}
    for id, error in result.items():
        if isinstance(error, type) and issubclass(error, BaseException):
            raise TypeError(
                f"a saver for many returned the class {error.__name__} for {id!r}: return an instance of it"
            )
        if isinstance(error, Exception) and id not in ids:
            raise TypeError(
                f"a saver for many returned an exception for {id!r}, which is no id that it was given"
            )
    return {id: error for id, error in result.items() if isinstance(error, Exception)}
