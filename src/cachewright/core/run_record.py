"""The run record: the slot beside a scheduled key that says which run of its schedule was done last, and how it ended.

Here, and not with the schedules, so that looking at a key can tell of it, also in a process that schedules nothing.
"""

from __future__ import annotations

import msgspec

from cachewright.core.slot import Slot

__all__ = ["RefreshView", "RunRecord", "read_record", "record_key", "view_of"]

HEAD = 20  # bytes: due moment, nonce, failures in a row
LONGEST_ERROR = 300  # characters


def record_key(key: str) -> str:
    """Where a scheduled key's run record stands; a name that nobody gives to a key of their own."""
    return f"\0refresh:{key}"


class RunRecord(msgspec.Struct, frozen=True):
    """What a run leaves behind.

    Attributes:
        due: microseconds since the epoch at which the run was due: its name.
        nonce: 8 random bytes, so that no two records are alike.
        failures: how many runs in a row failed, this one included; 0 where it did not.
        error: why it failed, one line; empty where it did not.
        born: wall-clock ms at which it was written.
    """

    due: int
    nonce: bytes
    failures: int = 0
    error: str = ""
    born: int = 0

    def payload(self) -> bytes:
        """As it is stored."""
        count = min(self.failures, 2**32 - 1)
        words = " ".join(self.error.split())[:LONGEST_ERROR].encode("utf-8", "replace")
        return self.due.to_bytes(8, "big", signed=True) + self.nonce + count.to_bytes(4, "big") + words


def read_record(slot: Slot | None, now: int) -> RunRecord | None:
    """The record in its slot; None where there is none, or what stands there is none of ours."""
    entry = slot.entry if slot is not None else None
    if entry is None or now >= entry.ends or not isinstance(entry.payload, bytes):
        return None
    payload = entry.payload
    if not HEAD <= len(payload) <= HEAD + 4 * LONGEST_ERROR:
        return None
    return RunRecord(
        int.from_bytes(payload[:8], "big", signed=True),
        payload[8:16],
        int.from_bytes(payload[16:HEAD], "big"),
        payload[HEAD:].decode("utf-8", "replace"),
        entry.born,
    )


class RefreshView(msgspec.Struct, frozen=True):
    """What the fleet knows of a scheduled key.

    Attributes:
        running: some process is doing a run.
        age: seconds since the last run ended, whoever did it; None where there was none yet.
        failures: how many runs in a row failed, up to the last one; 0 where that one did not.
        error: why the last run failed; None where it did not.
    """

    running: bool = False
    age: float | None = None
    failures: int = 0
    error: str | None = None


def view_of(slot: Slot | None, now: int) -> RefreshView | None:
    """What a run record's slot tells; None where nobody schedules the key."""
    record = read_record(slot, now)
    running = slot is not None and slot.lease is not None
    if record is None:
        return RefreshView(running=True) if running else None
    return RefreshView(running, (now - record.born) / 1000, record.failures, record.error or None)
