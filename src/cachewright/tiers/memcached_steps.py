"""What the Memcached tier does to one key, as steps without I/O: generators that yield a request and are sent its reply.

The tier runs the steps of many keys side by side and sends, round by round, each node one batch. A step's loop ends
because every round is under the deadline of the whole operation.

Nothing here overwrites or deletes blindly: every change of a slot names the CAS unique of the state that it replaces,
or adds where nothing stands. That is why a request which lands late, after its caller has given up, is harmless: a
compare-and-swap lands only if nothing has happened since; and the one thing that is ever *added* is a slot without
an entry. (An entry added late would come back after a delete that found nothing to delete and was acknowledged. A late
lease is a lease that nobody holds and that ends by itself; a late intent only forbids.) So ``set`` of an absent key
first adds a lease of its own and then swaps the entry into it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeAlias, TypeVar

from cachewright.core import slot as transitions
from cachewright.core.slot import Lease, Slot, StoredEntry
from cachewright.errors import TierProtocolError, TierUnavailable
from cachewright.tiers import memcached_codec as codec
from cachewright.tiers.base import Generation, Swapped
from cachewright.tiers.memcached_codec import Reply, Request

__all__ = ["Outcome", "Seen", "SlotSteps", "Steps", "exptime", "parse_record"]

T = TypeVar("T")

Outcome: TypeAlias = "tuple[Reply | None, int]"
"""A reply and the connection that it came on; None where the request's own connection is gone (it was not sent)."""

Steps: TypeAlias = Generator[Request, Outcome, T]


class Seen(NamedTuple):
    """A slot's handle: the connection on which its state was seen, and the state's CAS unique."""

    on: int
    cas: int


RELATIVE_LIMIT = 30 * 24 * 3600
"""Seconds up to which Memcached takes an expiry for a duration; above, for a Unix time."""

_LATEST = 2**31 - 1  # its parser keeps an expiry in 32 signed bits
_ASK_ABOVE = 1000  # no server can be told to take less than 1 KiB an item


def exptime(life: int | None, now: float) -> int:
    """A life in ms as Memcached's expiry: whole seconds, never too early.

    One second is added to the rounding: the server counts on a clock that ticks once a second, so what is stored for
    1 s lives between 0 and 1 s (measured). A lease that ends before its time lets in a second load.
    """
    if life is None:
        return 0
    seconds = -(-life // 1000) + 1
    if seconds <= RELATIVE_LIMIT:
        return seconds
    end = int(now) + 1 + seconds
    return end if end <= _LATEST else 0


def parse_record(value: bytes) -> Generation | None:
    """A tag's record: mark and ms, 8 bytes each; None for anything else, which is as good as missing."""
    if len(value) != 16:
        return None
    return Generation(value[:8], int.from_bytes(value[8:], "big"))


class SlotSteps:
    """The steps of one operation on one tier.

    Args:
        tier: its name, for errors.
        now: wall-clock seconds.
        new_id: fresh ids.
        lease_life: ms that the lease lives which ``set`` adds; longer than the operation can take.
        limits: what is known of the nodes' item limits, by node; shared and filled in here.
    """

    def __init__(
        self,
        tier: str,
        now: Callable[[], float],
        new_id: Callable[[], bytes],
        lease_life: int,
        limits: dict[int, int],
    ) -> None:
        self._tier = tier
        self._now = now
        self._new_id = new_id
        self._lease_life = lease_life
        self._limits = limits

    # ------------------------------------------------------------------ slots

    def look(self, key: bytes) -> Steps[Slot | None]:
        """What stands, with the handle to change it by."""
        reply, generation = yield codec.get(key)
        if reply is None or not self._held(reply):
            return None
        return transitions.parse(reply.value, Seen(generation, reply.cas))

    def swap(self, key: bytes, node: int, expected: Slot | None, new: Slot | None) -> Steps[Swapped]:
        """`Tier.swap` of one key."""
        if expected is None and new is not None and new.entry is not None:
            return (yield from self._add_entry(key, node, new))
        at = _seen(expected)
        sure = expected is None and new is not None  # adding compares by itself
        while True:
            if (at is not None or sure) and (yield from self._send(key, node, new, at)):
                return Swapped(True)
            current = yield from self.look(key)
            if (current.header if current else None) != (expected.header if expected else None):
                return Swapped(False, current)
            if expected is None and new is None:
                return Swapped(True)
            # As expected, and yet not swapped: seen on another connection, or absent now but not a moment ago.
            at = _seen(current)

    def _add_entry(self, key: bytes, node: int, new: Slot) -> Steps[Swapped]:
        yield from self._check_size(key, node, new, None)
        lease = Lease(self._new_id(), int(self._now() * 1000) + self._lease_life, self._lease_life)
        held = Slot(self._new_id(), lease=lease)
        added = yield from self.swap(key, node, None, held)
        if not added.done:
            return added
        return (yield from self.swap(key, node, held, new))

    def drop(self, key: bytes, node: int) -> Steps[bool]:
        """`Tier.drop` of one key."""
        while True:
            current = yield from self.look(key)
            if current is None:
                return False
            new = transitions.drop(current, nonce=self._new_id())
            if (yield from self._send(key, node, new, _seen(current))):
                return current.entry is not None

    def store(self, key: bytes, node: int, slot: Slot) -> Steps[bool]:
        """`Tier.store` of one key."""
        current = yield from self.look(key)
        while True:
            stored, new = transitions.store(current, _entry(slot), nonce=self._new_id())
            # The caller's own ids where they may stand. To send them again is safe here: only what was refused for
            # certain, or never sent, is sent again.
            swapped = yield from self.swap(key, node, current, slot if stored else new)
            if swapped.done:
                return stored
            current = swapped.current

    def _send(self, key: bytes, node: int, new: Slot | None, at: Seen | None) -> Steps[bool]:
        """``new`` in the place of the state seen at ``at`` (None: of nothing); whether that state still stood."""
        if new is None:
            assert at is not None
            reply, _ = yield codec.delete(key, cas=at.cas, on=at.on)
            return reply is not None and self._done(reply)
        yield from self._check_size(key, node, new, at)
        now = self._now()
        until = exptime(transitions.life_of(new, int(now * 1000)), now)
        value = new.header + new.payload
        if at is None:
            request = codec.add(key, value, until)
        else:
            request = codec.put(key, value, until, cas=at.cas, on=at.on)
        reply, generation = yield request
        if reply is None or not self._done(reply):
            return False
        if reply.cas:
            # The caller passes this very slot as the expected one of its next swap: a round trip less.
            new.__dict__["memcached"] = Seen(generation, reply.cas)
        return True

    def _held(self, reply: Reply) -> bool:
        if reply.status == b"SERVER_ERROR":
            raise TierUnavailable(self._tier, f"the server could not read: {reply.text}")
        return reply.status == b"VA"

    def _done(self, reply: Reply) -> bool:
        if reply.status == b"SERVER_ERROR":
            raise TierUnavailable(self._tier, f"the server refused to store: {reply.text}")
        return reply.status == b"HD"

    def _check_size(self, key: bytes, node: int, new: Slot, at: Seen | None) -> Steps[None]:
        """Refuses an item that the server would refuse.

        Asked beforehand, since a server that refuses an item for its size also deletes what stands under the key,
        whatever CAS unique was named: other writers' intents, say. The slot is emptied instead, as if the item had
        been stored and evicted at once, but only if its state still stands.
        """
        size = codec.item_size(key, len(new.header) + len(new.payload))
        if size <= _ASK_ABOVE or size <= self._limits.get(node, 0):
            return
        (
            reply,
            _,
        ) = yield codec.settings()  # asked again before each refusal: a server may restart with another limit
        limit = (reply.stats or {}).get(b"item_size_max", b"") if reply is not None else b""
        if not limit.isdigit():
            return  # a proxy, perhaps; the server behind it will judge
        self._limits[node] = int(limit)
        if size <= int(limit):
            return
        if at is not None:
            yield codec.delete(key, cas=at.cas, on=at.on)
        raise TierProtocolError(
            self._tier,
            f"a slot of {size:,} bytes is over the server's item limit of {int(limit):,}: start memcached with a "
            f"larger -I, compress the values, or keep them in another tier",
        )

    # ------------------------------------------------------------------ generations

    def mark(self, key: bytes, mark: bytes, only_missing: bool) -> Steps[Generation]:
        """`Tier.set_generations` of one tag. A plain set is safe: a mark that lands late only invalidates again."""
        mine = Generation(mark, int(self._now() * 1000))
        value = mark + mine.changed.to_bytes(8, "big")
        request = codec.add(key, value, 0) if only_missing else codec.put(key, value, 0)
        while True:
            reply, _ = yield request
            if reply is not None and self._done(reply):
                return mine
            reply, generation = yield codec.get(key)
            if reply is None or not self._held(reply):
                request = codec.add(key, value, 0)
                continue
            standing = parse_record(reply.value)
            if standing is not None:
                return standing
            request = codec.put(key, value, 0, cas=reply.cas, on=generation)


def _entry(slot: Slot) -> StoredEntry:
    if slot.entry is None:
        raise ValueError("a slot to be stored has an entry")
    return slot.entry


def _seen(expected: Slot | None) -> Seen | None:
    """Where a slot's state was seen last: as it was swapped in by us, or as it was read."""
    if expected is None:
        return None
    handle = expected.__dict__.get("memcached") or expected.handle
    return handle if isinstance(handle, Seen) else None
