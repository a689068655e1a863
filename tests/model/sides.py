"""A cache under test, on a clock moved by hand, called through the one face or the other; and what stands in its tiers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cachewright import MISSING, Cache, Entry, NotSaved, WriteBehind
from cachewright.core.state import now_ms
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.testing.invariants import unrest
from tests.model.reference import ABSENT, UNSET, Down, Outcome

PATIENCE = 30.0
START = 2_000_000_000  # whole seconds, and moved by halves: so its milliseconds are exact


class HandClock:
    """Wall clock and monotonic clock in one."""

    def __init__(self) -> None:
        self.time = float(START)

    def now(self) -> float:
        return self.time

    monotonic = now


class Side:
    """One cache with a decorated function, three repositories and their origins.

    ``awaits`` says which face is called; it may change at any time, as the faces share everything.
    """

    def __init__(
        self, urls: list[str], namespace: str, loop: asyncio.AbstractEventLoop, *, awaits: bool, buffer: str
    ) -> None:
        self.clock, self.loop, self.awaits = HandClock(), loop, awaits
        # local_ttl ends entries in memory while they are fresh below it: nobody may notice.
        self.cache = Cache(*urls, namespace=namespace, clock=self.clock, jitter=0, local_ttl=90)
        self.rt: Any = self.cache._threads  # the blocking runtime on this clock
        self.log: list[Any] = []
        self.outcome = Outcome()
        self.saving: Exception | None = None
        self.lands = True
        self.origin: dict[str, Any] = {}
        self.made = 0
        self.tags: list[str] = []  # all that were met
        self.times: dict[str, tuple[float, ...]] = {}
        self.functions = self._decorate()
        behind = WriteBehind(buffer=f"sqlite:///{buffer}?synchronous=normal", flusher="none")
        self.repositories = {
            name: self.cache.repository(
                name,
                self._load_from(name),
                self._save_to(name),
                self._delete_from(name),
                writes=behind if name == "behind" else name,
                ttl=400,
                stale_if_error=200,
            )
            for name in ("through", "around", "behind")
        }

    # Calling

    def run(self, made: Any) -> Any:
        return self.loop.run_until_complete(made)

    def do(self, name: str, *args: Any, on: Any = None, **kwargs: Any) -> Any:
        target = on if on is not None else self.cache
        if self.awaits:
            return self.run(getattr(target, f"a{name}")(*args, **kwargs))
        return getattr(target, name)(*args, **kwargs)

    def function(self, number: int) -> Any:
        return self.run(self.functions[1](number)) if self.awaits else self.functions[0](number)

    def settle(self) -> None:
        """Waits for what runs behind the callers."""
        deadline = time.monotonic() + PATIENCE
        while left := unrest(self.cache):
            assert time.monotonic() < deadline, left
            self.run(asyncio.sleep(0.0002))

    # Loaders, savers, the decorated function

    def load(self, outcome: Outcome, *keys: str) -> Any:
        """What every loader does."""
        if outcome.log is None:
            self.log.append(keys)
        self.clock.time += outcome.slow
        if outcome.error:
            raise Down(outcome.error)
        if outcome.bare:
            return outcome.value
        return Entry(outcome.value, ttl=MISSING if outcome.ttl == UNSET else outcome.ttl, tags=outcome.tags)

    def loader(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As the face likes it; the awaiting one takes plain functions too, which it runs in a thread."""
        self.made += 1
        if not self.awaits or self.made % 2:
            return function

        async def load(*args: Any) -> Any:
            await asyncio.sleep(0)
            return function(*args)

        return load

    def many(self, outcomes: dict[str, Outcome], error: str) -> Callable[[list[str]], Any]:
        def load(keys: list[str]) -> dict[str, Any]:
            self.log.append(tuple(keys))
            if error:
                raise Down(error)
            found = {key: outcomes[key] for key in keys if outcomes[key].value is not ABSENT}
            return {
                key: Down(outcome.error)
                if outcome.error
                else outcome.value
                if outcome.bare
                else Entry(outcome.value, ttl=outcome.ttl)
                for key, outcome in found.items()
            }

        return load

    def _decorate(self) -> tuple[Any, Any]:
        """A function for each face, with one name, so that both have the same entries and the same tag for them."""

        def number(n: int) -> Any:
            return self.load(self.outcome, f"f:{n}")

        async def anumber(n: int) -> Any:
            return self.load(self.outcome, f"f:{n}")

        anumber.__qualname__ = number.__qualname__
        options: dict[str, Any] = {
            "stale_while_revalidate": 100,
            "stale_if_error": 200,
            "tags": ["a", "n:{n}"],
        }
        both = (self.cache.cached(key="f:{n}", ttl=200, **options)(f) for f in (number, anumber))
        return tuple(both)  # type: ignore[return-value]

    def _load_from(self, name: str) -> Callable[[int], Any]:
        def load(id: int) -> Any:
            self.log.append(f"{name}:{id}")
            if self.outcome.error:
                raise Down(self.outcome.error)
            return self.origin.get(f"{name}:{id}")

        return load

    def _save_to(self, name: str) -> Callable[[int, Any], None]:
        def save(id: int, value: Any) -> None:
            if self.lands:
                self.origin[f"{name}:{id}"] = value
            if self.saving is not None:
                raise self.saving

        return save

    def _delete_from(self, name: str) -> Callable[[int], None]:
        def delete(id: int) -> None:
            if self.lands:
                self.origin.pop(f"{name}:{id}", None)
            if self.saving is not None:
                raise self.saving

        return delete

    def save_will(self, how: str) -> None:
        """The next saves work (``""``), are refused (``"refused"``), or raise after they landed or not (``"landed"``, ``"lost"``)."""
        self.lands = how in ("", "landed")
        self.saving = None if not how else NotSaved(how) if how == "refused" else Down(how)

    # Looking

    def standing(self, keys: list[str]) -> tuple[dict[str, dict[str, Any]], list[Any]]:
        """For each kind of tier the values of its fresh and valid entries; and the leases and intents that stand.

        On the way it notes the authority's ``times``: when made, ends of the life and of both windows, pause after a failure.
        """
        state = self.cache.engine.state
        found: dict[str, dict[str, Any]] = {}
        controls = []
        memory = state.chain.memory
        if memory is not None:  # what it answers by itself, asking nobody
            nodes = {key: node for key in keys if (node := memory.table.get(key)) is not None}
            found["hits"] = {key: node.value for key, node in nodes.items() if node.untyped > self.clock.time}
        known: Any = {}
        self.times = {}
        for level in state.chain.levels:
            found[level.tier.kind] = here = {}
            slots, more = drive(level.tier.read(self.rt, keys, () if known else self.tags))
            known = known or more
            for key, slot in slots.items():
                if slot.lease is not None or slot.intents:
                    controls.append((level.tier.kind, key, slot.lease, slot.intents))
                entry = slot.entry
                if entry is not None and level is state.chain.authority:
                    ends = (entry.born, entry.fresh_until, entry.swr_until, entry.sie_until)
                    self.times[key] = (*ends, max(0, slot.retry_at - now_ms(self.rt)))
                if entry is None or now_ms(self.rt) >= entry.fresh_until:
                    continue
                self.tags += [tag for tag, _ in entry.tags if tag not in self.tags]
                if drive(state.is_valid(self.rt, entry, known)):
                    here[key] = state.value_of(key, entry, None, level.tier.name)
        return found, controls

    def counters(self) -> dict[str, float]:
        """What the model counts too: hits of any tier together."""
        stats = self.cache.stats()
        names = ("misses", "loads", "load_failures", "stale_served", "stores", "drops", "saves")
        waste = {name: stats[name] for name in ("waits", "lost_leases") if stats[name]}
        return {"hits": stats["hits"] + stats["local_hits"], **{name: stats[name] for name in names}, **waste}

    def close(self) -> None:
        drive(self.cache.engine.clear(THREADS))
        self.save_will("")
        self.awaits = True  # both faces' connections end
        self.do("close")
