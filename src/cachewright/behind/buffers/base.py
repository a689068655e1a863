"""What a buffer is: the durable newest state of each dirty key, and who may save it.

One record per key. Its life::

    append ──▶ dirty ──claim──▶ claimed ──ack, token and sequence mine──▶ removed
                 ▲                 │                  └─ suspect ──▶ settling ──claim, save, ack──▶ removed
                 │                 ├─ack, a newer state came──▶ dirty
                 └─fail, back off──┤
                                   └─fail, too often──▶ dead letter ──append, replay──▶ dirty ; discard──▶ removed

* Newest state wins, and a delete is a state (a tombstone). The sequence is durable, never reset, and given before the
  state is visible.
* The claim's token is on the *key*: an append keeps it. Otherwise an append in the middle of a save would let a second
  flusher save the newer state beside the first, and the older could land last.
* A *suspect* key has had a save whose outcome nobody knows; that save may still land. Its next good save is therefore
  repeated after the settle time (it *settles*). Both marks stay with the key across appends.
  It is suspect, too, where a save ended whose claim was taken over while somebody saves the key.
* A record that is *held* has no state: somebody saves through a full buffer and keeps flushers off the key.

Methods are ``async def`` and take the runtime that the face has chosen. Times are wall-clock seconds.
Errors of every method: `BufferUnavailable`; then nothing was accepted or acknowledged. Where an answer was lost nobody
knows, and it is `BufferUnconfirmed`: appending the same again is safe, and a claim that nobody heard of ends by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cachewright.runtime.base import Runtime

__all__ = [
    "RETRY_NEWER", "STATES", "Ack", "Buffer", "BufferStats", "Ended", "Failure", "NewRecord", "Record", "State",
]  # fmt: skip

State = Literal["value", "tombstone", "held"]
STATES: tuple[State, ...] = ("value", "tombstone", "held")
"""As they are numbered where they are stored."""

# A newer state waits at most this long behind the back-off of the one that it replaces: it may well be the mended one,
# and a key that is written all the time must not hammer an origin that is down.
RETRY_NEWER = 1.0


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A key's new state. ``payload`` None is a tombstone; ``id`` and ``payload`` are the caller's own encoding."""

    key: str
    id: bytes
    payload: bytes | None
    codec: int = 0
    codec_flags: int = 0

    @property
    def size(self) -> int:
        """Bytes that count towards the buffer's bound."""
        return len(self.key) + len(self.id) + len(self.payload or b"")


@dataclass(frozen=True, slots=True)
class Record:
    """A key's newest state and its history.

    Attributes:
        state: ``"value"``, ``"tombstone"``, or ``"held"`` for a claim without a state.
        first_dirty: since when the key has been dirty.
        tries: failed saves of this state, flushers that died with it included.
        not_before: when it is due.
        token: the claim on the key, None without one.
        deadline: when the claim ends by itself.
        holder: the process that claimed it.
        suspect: a save of unknown outcome may still land.
        settling: saved; due once more.
        dead: given up after too many tries.
    """

    key: str
    id: bytes
    state: State
    payload: bytes | None
    codec: int
    codec_flags: int
    sequence: int
    first_dirty: float
    tries: int
    last_error: str | None
    not_before: float
    token: bytes | None
    deadline: float
    holder: str | None
    suspect: bool
    settling: bool
    dead: bool


@dataclass(frozen=True, slots=True)
class Ack:
    """This state of the key was saved. ``unsure``: but an earlier try of this round may still land.

    What settles after an ``unsure`` save has ``tries`` 1: a batch raised with it, so it is not put into one again.
    """

    key: str
    sequence: int
    unsure: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """This state of the key was not saved, or nobody knows (``unknown``). ``counts``: towards ``tries``."""

    key: str
    sequence: int
    error: str
    not_before: float
    dead: bool = False
    unknown: bool = True
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of records whose saves ended.

    Attributes:
        removed: how many records were removed.
        dead: the keys whose records are dead letters now.
        lost: the keys that were not the caller's any more, of failures only the unknown ones: somebody else may have
            saved a newer state, and the caller's save landed over it, or may yet. True where the newest state is still
            there and is saved after that.
    """

    removed: int = 0
    dead: tuple[str, ...] = ()
    lost: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BufferStats:
    """What stands in the buffer.

    Attributes:
        dirty: records to be saved, settling ones included.
        settling: of these, saved and due once more.
        dead: dead letters.
        bytes: of keys, ids and payloads, dead letters included.
        oldest: since when the oldest dirty key has been dirty, or None.
    """

    dirty: int = 0
    settling: int = 0
    dead: int = 0
    bytes: int = 0
    oldest: float | None = None


class Buffer(ABC):
    """One repository's records in one place. See the module's text for the rules."""

    url: str
    parts: int = 1
    """How many there are of which one can be away while the others answer."""

    @property
    @abstractmethod
    def exists(self) -> bool:
        """Whether there may be records, as far as one can tell without connecting or making anything."""

    @abstractmethod
    async def append(
        self, rt: Runtime, records: Sequence[NewRecord], *, delay: float = 0.0, overflow: bool = False
    ) -> list[int]:
        """Takes new states, all or none; durable when it returns. A dead letter is replaced.

        Args:
            rt: the caller's runtime.
            records: at most one per key.
            delay: seconds before a key that was clean is due.
            overflow: take keys that have a record whatever their new size.

        Returns:
            The sequence of each.

        Raises:
            BufferFull: over the bounds; a key that has a state is never refused for their number.
        """

    @abstractmethod
    async def hold(self, rt: Runtime, key: str, token: bytes, life: float) -> int | None:
        """Claims a key that has no record, to save it through; None where it has one now.

        Also where that is only held: a save through is under way, or may still land, over a later one of a state that
        nobody keeps to save it once more. So that key waits until its record is gone.

        Returns:
            A sequence, as `append` would have given. End it by `acknowledge` or `fail`.
        """

    @abstractmethod
    async def read(self, rt: Runtime, keys: Sequence[str]) -> dict[str, Record]:
        """The records of those keys that have a state: dirty, settling and dead alike."""

    @abstractmethod
    async def claim(
        self,
        rt: Runtime,
        limit: int,
        token: bytes,
        life: float,
        *,
        keys: Sequence[str] | None = None,
        hurry: bool = False,
    ) -> list[Record]:
        """Claims due records, the longest due first.

        A claim that has expired, or whose holder is a dead process of this host, is taken over: that marks the key
        suspect, counts as a try, and such a record comes alone (it may be what killed its flusher; its neighbours in
        the batch should not die with it again).

        Args:
            rt: the caller's runtime.
            limit: most records.
            token: fresh for every call.
            life: seconds.
            keys: only these.
            hurry: do not wait for the coalescing window.
        """

    @abstractmethod
    async def renew(self, rt: Runtime, token: bytes, life: float) -> int:
        """Prolongs all claims of this token; how many there still were."""

    @abstractmethod
    async def acknowledge(self, rt: Runtime, token: bytes, acks: Sequence[Ack], *, settle: float) -> Ended:
        """Removes what was saved, where token *and* sequence are both still the caller's.

        A suspect key settles instead: due once more after ``settle`` seconds (0: the saver refuses older sequences,
        nothing needs to settle). With a newer state only the claim is released. Without the claim nothing is removed;
        whoever saves the key now may have done so before the caller's save landed, so that makes it suspect.
        """

    @abstractmethod
    async def fail(self, rt: Runtime, token: bytes, failures: Sequence[Failure], *, settle: float) -> Ended:
        """Releases the claim of what was not saved and has it wait, or makes it a dead letter.

        A newer state that came meanwhile keeps its own count and is not made a dead letter. Without the claim, a
        failure that is unknown makes the key suspect.
        """

    @abstractmethod
    async def release(self, rt: Runtime, token: bytes) -> None:
        """Gives up all claims of this token; nothing of theirs was sent to a saver."""

    @abstractmethod
    async def next_due(self, rt: Runtime, *, hurry: bool = False) -> float | None:
        """When the next record can be claimed (now or before: at once); None when there is none."""

    @abstractmethod
    async def stats(self, rt: Runtime) -> BufferStats:
        """Counts and ages."""

    @abstractmethod
    async def records(self, rt: Runtime, limit: int = 1000, *, dead: bool = False) -> list[Record]:
        """Dirty and settling records, oldest first; or with ``dead`` the dead letters."""

    @abstractmethod
    async def replay(self, rt: Runtime, key: str) -> None:
        """Makes a dead letter dirty again, its tries forgotten.

        Raises:
            NotDirtyError: there is no dead letter of that key (any more).
        """

    @abstractmethod
    async def discard(self, rt: Runtime, key: str, *, dead_only: bool = True) -> Record:
        """Removes a record for good; the caller must then drop the key's slot, whose value was never saved.

        Raises:
            NotDirtyError: there is no such record, or a flusher is at work on it.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of files and connections. Records stay. The next operation opens it again."""
