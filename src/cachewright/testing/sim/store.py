"""A simulated store: `swap` by exact header, drops, plain stores, generations; and the tier that reaches it.

It keeps bytes, as the real ones do, and passes the same contract suite. `SimTier` without a link answers at once, under
any runtime; with one, every request travels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import msgspec

from cachewright.core import slot as transitions
from cachewright.core.slot import Slot, life_of, parse
from cachewright.errors import TierTimeout, TierUnavailable
from cachewright.runtime.base import Runtime
from cachewright.testing.sim.network import Broken, Late, Link, Server
from cachewright.testing.sim.runtime import SimRuntime
from cachewright.testing.sim.world import EPOCH, World
from cachewright.tiers.base import Generation, Swap, Swapped, Tier

__all__ = ["SimServer", "SimStore", "SimTier"]


class _Row(msgspec.Struct):
    header: bytes
    payload: bytes
    ends: float | None


class SimStore:
    """What a server keeps.

    Args:
        now: its own wall clock, in seconds; it alone lets rows expire.
        disturbed: told the keys whose lease may have gone, for a reason other than the load's own.
        dropped: told the keys that are dropped.
    """

    def __init__(
        self,
        now: Callable[[], float],
        disturbed: Callable[[str], None] = lambda key: None,
        dropped: Callable[[str], None] = lambda key: None,
    ) -> None:
        self.now, self._disturbed, self._dropped = now, disturbed, dropped
        self.rows: dict[str, _Row] = {}
        self.generations: dict[str, Generation] = {}

    def get(self, key: str) -> Slot | None:
        """The slot that stands, parsed from its bytes."""
        row = self._row(key)
        return parse(row.header + row.payload) if row is not None else None

    def _row(self, key: str) -> _Row | None:
        row = self.rows.get(key)
        if row is not None and row.ends is not None and row.ends <= self.now():
            del self.rows[key]
            return None
        return row

    def _put(self, key: str, slot: Slot | None, life: int | None) -> None:
        if slot is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = _Row(
                slot.header, slot.payload, None if life is None else self.now() + life / 1000
            )

    def swap(self, swap: Swap, life: int | None) -> Swapped:
        """See `Tier.swap`. ``life`` is the new slot's, in ms, as the client counted it."""
        row = self._row(swap.key)
        standing = row.header if row is not None else None
        expected = swap.expected.header if swap.expected is not None else None
        if standing != expected:
            return Swapped(False, self.get(swap.key))
        if swap.new is not None and swap.new.intents:
            self._disturbed(swap.key)
        self._put(swap.key, swap.new, life)
        return Swapped(True)

    def drop(self, key: str, nonce: bytes) -> bool:
        """See `Tier.drop`."""
        self._disturbed(key)
        self._dropped(key)
        slot = self.get(key)
        if slot is None:
            return False
        row = self.rows[key]
        life = None if row.ends is None else max(1, int((row.ends - self.now()) * 1000))
        self._put(key, transitions.drop(slot, nonce=nonce), life)
        return slot.entry is not None

    def store(self, key: str, new: Slot, life: int | None) -> bool:
        """See `Tier.store`."""
        self._disturbed(key)
        if new.entry is None:
            raise AssertionError(f"store of {key!r}: the slot holds no entry")
        standing = self.get(key)
        stored, slot = transitions.store(standing, new.entry, nonce=new.nonce)
        if not stored:
            row = self.rows[key]
            life = None if row.ends is None else max(1, int((row.ends - self.now()) * 1000))
        self._put(key, slot, life)
        return stored

    def generation(self, tag: str) -> Generation | None:
        """A tag's generation."""
        return self.generations.get(tag)

    def set_generation(self, tag: str, mark: bytes, only_missing: bool) -> Generation:
        """See `Tier.set_generations`."""
        standing = self.generations.get(tag)
        if standing is None or not only_missing:
            standing = self.generations[tag] = Generation(mark, int(self.now() * 1000))
        return standing

    def clear(self, prefix: str, nonce: Callable[[], bytes]) -> None:
        """See `Tier.clear`; a namespace's keys have a prefix."""
        for key in [key for key in self.rows if key.startswith(prefix)]:
            self.drop(key, nonce())

    # What befalls a server

    def evict(self, key: str) -> None:
        """The key goes, whatever stood there."""
        self._disturbed(key)
        self.rows.pop(key, None)

    def empty(self) -> None:
        """Everything goes, generations too."""
        self._disturbed("")
        self.rows.clear()
        self.generations.clear()

    def snapshot(self) -> Any:
        """What a later `restore` brings back."""
        return dict(self.rows), dict(self.generations)

    def restore(self, snapshot: Any) -> None:
        """An old state comes back, as after a restart from a file."""
        self._disturbed("")
        rows, generations = snapshot
        self.rows, self.generations = dict(rows), dict(generations)


class SimServer(Server):
    """A server that holds one store.

    Args:
        world: where it stands.
        name: for the timeline and as its tiers' name.
        like: ``"redis"``; or ``"memcached"``: it cannot be scanned, and its tags' times are no one clock's.
    """

    def __init__(self, world: World, name: str, like: str = "redis", skew: float = 0.0) -> None:
        super().__init__(world, name)
        self.like = like
        history = world.history
        self.store = SimStore(lambda: EPOCH + world.time + skew, history.disturb, history.drop)


class SimTier(Tier):
    """A client of a store: immediate, or over a `Link`."""

    kind: ClassVar[str] = "sim"

    def __init__(
        self,
        store: SimStore,
        namespace: str,
        *,
        name: str = "sim",
        like: str = "redis",
        link: Link | None = None,
        on_lease: Callable[[str], None] = lambda key: None,
    ) -> None:
        super().__init__(name, namespace)
        self._kept, self.link, self._on_lease = store, link, on_lease
        self.scannable = self.server_time = like != "memcached"  # type: ignore[misc]

    async def _do(
        self, rt: Runtime, steps: Sequence[Callable[[], Any]], text: str, *, killable: bool = False
    ) -> list[Any]:
        if self.link is None:
            return [step() for step in steps]
        if not steps:
            return []
        try:
            return await self.link.exchange(
                cast(SimRuntime, rt), steps, killable=killable, text=text, show=_show
            )
        except Late:
            raise TierTimeout(self.name, "no answer in time") from None
        except Broken as error:
            raise TierUnavailable(self.name, str(error)) from None

    def _physical(self, key: str) -> str:
        return f"{self.namespace}:{key}"

    async def read(
        self, rt: Runtime, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Slot], dict[str, Generation]]:
        """Slots first, then generations, each at a moment of its own: no more than the contract says."""
        steps: list[Callable[[], Any]] = [partial(self._kept.get, self._physical(key)) for key in keys]
        steps += [partial(self._kept.generation, self._physical(tag)) for tag in tags]
        found = await self._do(rt, steps, f"read {' '.join([*keys, *tags])}")
        slots = {key: slot for key, slot in zip(keys, found, strict=False) if slot is not None}
        generations = {tag: g for tag, g in zip(tags, found[len(keys) :], strict=True) if g is not None}
        return slots, generations

    async def swap(self, rt: Runtime, swaps: Sequence[Swap]) -> list[Swapped]:
        now = int(rt.now() * 1000)
        steps = []
        for swap in swaps:
            if swap.new is not None and swap.new.lease is not None and _is_new(swap):
                self._on_lease(swap.key)
            physical = msgspec.structs.replace(swap, key=self._physical(swap.key))
            life = life_of(swap.new, now) if swap.new is not None else None
            steps.append(partial(self._kept.swap, physical, life))
        text = ", ".join(f"swap {s.key}: {_words(s.expected)} → {_words(s.new)}" for s in swaps)
        return await self._do(rt, steps, text)

    async def drop(self, rt: Runtime, keys: Sequence[str]) -> list[bool]:
        steps = [partial(self._kept.drop, self._physical(key), _nonce(rt)) for key in keys]
        return await self._do(rt, steps, f"drop {' '.join(keys)}")

    async def store(self, rt: Runtime, slots: Mapping[str, Slot]) -> list[bool]:
        now = int(rt.now() * 1000)
        steps = [
            partial(self._kept.store, self._physical(key), slot, life_of(slot, now))
            for key, slot in slots.items()
        ]
        return await self._do(rt, steps, f"store {' '.join(slots)}", killable=True)

    async def set_generations(
        self, rt: Runtime, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        steps = [
            partial(self._kept.set_generation, self._physical(tag), mark, only_missing)
            for tag, mark in marks.items()
        ]
        verb = "create" if only_missing else "change"
        found = await self._do(rt, steps, f"{verb} tags {' '.join(marks)}")
        return dict(zip(marks, found, strict=True))

    async def clear(self, rt: Runtime) -> None:
        await self._do(rt, [partial(self._kept.clear, self._physical(""), lambda: _nonce(rt))], "clear")

    def write_raw(self, key: str, raw: bytes) -> None:
        """Puts any bytes under a key, past the protocol."""
        self._kept.rows[self._physical(key)] = _Row(raw, b"", None)

    def close(self) -> None:
        """Nothing is held."""


def _nonce(rt: Runtime) -> bytes:
    return rt.new_id() if rt.name == "sim" else os.urandom(8)


def _is_new(swap: Swap) -> bool:
    """Whether the swap asks for a lease, and does not renew one."""
    before = swap.expected.lease if swap.expected is not None else None
    return swap.new is not None and (before is None or before.token != getattr(swap.new.lease, "token", None))


def _show(result: Any) -> str:
    if isinstance(result, Swapped):
        return "done" if result.done else f"refused: {_words(result.current)}"
    if isinstance(result, Generation):
        return result.mark.hex()[:4]
    return _words(result) if result is None or isinstance(result, Slot) else str(result)


def _words(slot: Slot | None) -> str:
    """A slot in a few words."""
    if slot is None:
        return "absent"
    parts = []
    if slot.entry is not None:
        value = slot.entry.payload
        parts.append(f"entry {value[1:].decode()}" if value[:1] and value[1:].isascii() else "entry")
    if slot.lease is not None:
        parts.append(f"lease {slot.lease.token.hex()[:4]}")
    if slot.intents:
        parts.append("intents " + " ".join(i.id.hex()[:4] for i in slot.intents))
    if slot.contended:
        parts.append("contended")
    return " + ".join(parts) or "damaged"
