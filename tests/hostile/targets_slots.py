"""What the fuzzer drives, third part: hostile slots under a whole cache."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from cachewright import Cache
from cachewright.codecs.base import make_context
from cachewright.codecs.pipeline import make_pipeline
from cachewright.core import slot as transitions
from cachewright.core.slot import Slot, StoredEntry, parse
from cachewright.errors import EncodeError, MissingKeyError
from cachewright.tiers.base import Generation, Swap, Swapped, Tier

__all__ = ["TARGETS", "Planted"]


def _values() -> ModuleType:
    name = "cachewright_hostile_targets_values"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("targets_values.py"))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


values = _values()
NOW: int = values.NOW
_PIPE = make_pipeline()


class Planted(Tier):
    """Bytes in a dictionary, swapped as every tier swaps them."""

    kind = "planted"

    def __init__(self) -> None:
        super().__init__("planted", "shop")
        self.held: dict[str, bytes] = {}
        self.marks: dict[str, Generation] = {}

    def _get(self, key: str) -> Slot | None:
        raw = self.held.get(key)
        return parse(raw) if raw is not None else None

    def _put(self, key: str, slot: Slot | None) -> None:
        if slot is None:
            self.held.pop(key, None)
        else:
            transitions.life_of(slot, NOW)
            self.held[key] = slot.header + slot.payload

    async def read(
        self, rt: Any, keys: Sequence[str], tags: Sequence[str] = ()
    ) -> tuple[dict[str, Slot], dict[str, Generation]]:
        found = {key: slot for key in keys if (slot := self._get(key)) is not None}
        return found, {tag: self.marks[tag] for tag in tags if tag in self.marks}

    async def swap(self, rt: Any, swaps: Sequence[Swap]) -> list[Swapped]:
        results = []
        for swap in swaps:
            current = self._get(swap.key)
            have, want = (slot.header if slot else None for slot in (current, swap.expected))
            if have == want:
                self._put(swap.key, swap.new)
            results.append(Swapped(have == want, None if have == want else current))
        return results

    async def drop(self, rt: Any, keys: Sequence[str]) -> list[bool]:
        gone = []
        for key in keys:
            current = self._get(key)
            gone.append(current is not None and current.entry is not None)
            self._put(key, transitions.drop(current, nonce=rt.new_id()))
        return gone

    async def store(self, rt: Any, slots: Mapping[str, Slot]) -> list[bool]:
        done = []
        for key, slot in slots.items():
            assert slot.entry is not None
            stored, stands = transitions.store(self._get(key), slot.entry, nonce=slot.nonce)
            self._put(key, stands)
            done.append(stored)
        return done

    async def set_generations(
        self, rt: Any, marks: Mapping[str, bytes], *, only_missing: bool
    ) -> dict[str, Generation]:
        for tag, mark in marks.items():
            if not only_missing or tag not in self.marks:
                self.marks[tag] = Generation(mark, NOW)
        return {tag: self.marks[tag] for tag in marks}

    async def clear(self, rt: Any) -> None:
        self.held.clear()

    def close(self) -> None:
        """Nothing is open."""


class Still:
    """A clock that stands at `NOW`."""

    def now(self) -> float:
        return NOW / 1000

    def monotonic(self) -> float:
        return 1000.0


_TIER = Planted()
_CACHE = Cache(_TIER, namespace="shop", clock=Still())
_ANSWER = {"fresh": [1, 2]}
_WHOLE = []
for _value in ({"fresh": [1, 2]}, 7, "text"):
    _id, _flags, _payload = _PIPE.encode(_value, make_context("shop", "x"))
    _slot = Slot(
        b"nonce--1", StoredEntry(_payload, NOW, NOW + 60_000, NOW + 90_000, NOW + 120_000, 9, _id, _flags)
    )
    _WHOLE.append(_slot.header + _slot.payload)
_WHOLE += values.header_samples()


def _under_a_cache(data: bytes) -> str:
    """Whatever stands there: reads give a value or miss, and a change is read back exactly."""
    which, raw = (data[0] if data else 0) % 6, data[1:]
    _TIER.held = {"x": raw, "bystander": _WHOLE[0]}
    slot = parse(raw)
    if which == 0:
        _CACHE.get_many(["x", "bystander"])
        _CACHE.inspect("x")
        if slot.lease is None:  # else the load would wait for its holder
            _CACHE.get_or_set("x", lambda: _ANSWER)
        assert not slot.newer or _TIER.held["x"] == raw, "a load changed what a newer version wrote"
    elif which == 1:
        _CACHE.set("x", _ANSWER)
        assert slot.intents or _CACHE.get("x") == _ANSWER, "what was set is not what is read"
    elif which == 2:
        _CACHE.delete("x")
        assert _CACHE.get("x") is None, "what was deleted is still there"
    elif which == 3:
        _CACHE.incr("x")
    elif which == 4:
        _CACHE.add("x", _ANSWER)
        _CACHE.touch("x", 5)
    else:
        _CACHE.get("x", type=dict[str, int])
    assert _TIER.held["bystander"] == _WHOLE[0], "another key was changed"
    return "miss" if slot.entry is None else "value"


def _planted(rng: Random) -> bytes:
    return bytes((rng.randrange(6),)) + values.mutated(_WHOLE, rng)


TARGETS: dict[str, Any] = {
    "slots": values.Target(_planted, _under_a_cache, (MissingKeyError, EncodeError), 4),
}
