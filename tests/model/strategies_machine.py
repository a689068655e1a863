"""The machine of a chain, with a decorated function and repositories of all three ways of writing on top."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from cachewright.runtime.base import drive
from cachewright.tiers.base import Swap
from tests.model.chain_machine import (
    REPOSITORY,
    TAG,
    Anything,
    ChainMachine,
    numbers,
    outcomes,
    repositories,
    values,
)
from tests.model.reference import MUTE, Down, Options, Outcome
from tests.model.sides import Side

downs = st.sampled_from(["", "", "down"])
GONE: Any = "deleted, not saved yet"


def function_options(number: int) -> Options:
    return Options(ttl=200, swr=100, sie=200, tags=("a", f"n:{number}", TAG["f"]))


class StrategiesMachine(ChainMachine):
    """See the module."""

    # The decorated function

    def will(self, outcome: Outcome) -> None:
        self.part_from_changes(outcome)
        for side in self.sides:
            side.outcome = outcome

    @rule(number=numbers, outcome=outcomes)
    def call(self, number: int, outcome: Outcome) -> None:
        self.will(outcome)
        self.check(
            lambda: self.model.load(f"f:{number}", outcome, function_options(number)),
            lambda side: side.function(number),
        )

    @rule(number=numbers, outcome=outcomes)
    def refresh_call(self, number: int, outcome: Outcome) -> None:
        self.will(outcome)
        self.check(
            lambda: self.model.load(f"f:{number}", outcome, function_options(number), forced=True),
            lambda side: side.do("refresh", number, on=side.functions[side.awaits]),
        )

    @rule(number=numbers)
    def invalidate_call(self, number: int) -> None:
        found = self.model.drop(f"f:{number}")
        self.check(
            lambda: Anything() if found is None else found,
            lambda side: side.do("invalidate", number, on=side.functions[side.awaits]),
        )

    @rule(number=numbers)
    def invalidate_a_templates_tag(self, number: int) -> None:
        self.do(lambda: self.model.invalidate_tags([f"n:{number}"]), "invalidate_tags", f"n:{number}")

    @rule()
    def cache_clear(self) -> None:
        self.check(
            lambda: self.model.invalidate_tags([TAG["f"]]),
            lambda side: side.do("cache_clear", on=side.functions[side.awaits]),
        )

    @invariant()
    def an_index_by_arguments_has_nothing_else(self) -> None:
        """A hit of a decorated function looks at nothing but its index and the node's own deadline."""
        for side in self.sides:
            for function in side.functions:
                for number, (node, _) in function.invalidate.__self__.index.items():
                    entry = self.model.fresh(f"f:{number}")
                    if node.deadline > side.clock.time:
                        assert entry is not None, f"{number}: {node.value!r}"
                        assert repr(entry.value) == repr(node.value)

    # Repositories

    def source(self, name: str, id: int, down: str) -> Outcome:
        """What a read of the origin comes to; with write-behind the buffer is asked first."""
        key = f"{name}:{id}"
        if key in self.pending:
            value = self.pending[key]
            return Outcome(None if value is GONE else value, log=MUTE)
        return Outcome(self.origin.get(key), error=down, log=key)

    @rule(name=repositories, id=numbers, down=downs, forced=st.booleans())
    def read(self, name: str, id: int, down: str, forced: bool) -> None:
        self.will(Outcome(error=down))
        self.check(
            lambda: self.model.load(
                f"{name}:{id}", self.source(name, id, down), REPOSITORY[name], forced=forced
            ),
            lambda side: side.do("refresh" if forced else "get", id, on=side.repositories[name]),
        )

    @rule(name=repositories, id=numbers, value=values)
    def put(self, name: str, id: int, value: Any) -> None:
        self.write(name, {id: value})
        self.check(lambda: None, lambda side: side.do("put", id, value, on=side.repositories[name]))

    @rule(name=repositories, values=st.dictionaries(numbers, values, max_size=2))
    def put_many(self, name: str, values: dict[int, Any]) -> None:
        self.write(name, values)
        self.check(lambda: None, lambda side: side.do("put_many", values, on=side.repositories[name]))

    @rule(name=repositories, id=numbers)
    def delete_one(self, name: str, id: int) -> None:
        self.write(name, {id: GONE})
        self.check(lambda: None, lambda side: side.do("delete", id, on=side.repositories[name]))

    def write(self, name: str, values: dict[int, Any]) -> None:
        """What a write that works does: saved now and kept, saved now, or to be saved."""
        for id, value in values.items():
            key = f"{name}:{id}"
            self.model.entries.pop(key, None)
            if name == "behind":
                self.pending[key] = value
                self.model.counts["drops"] += 1
                continue
            self.model.counts["saves"] += 1
            self.land(key, value)
            if name == "through" and value is not GONE:
                self.model.set(key, value, REPOSITORY[name])

    def land(self, key: str, value: Any) -> None:
        if value is GONE:
            self.origin.pop(key, None)
        else:
            self.origin[key] = value

    @rule(name=st.sampled_from(["through", "around"]), id=numbers, value=values)
    def put_is_refused(self, name: str, id: int, value: Any) -> None:
        """The saver proves that nothing was changed: the cache forgets the value, and is as before otherwise."""
        self.model.entries.pop(f"{name}:{id}", None)

        def expected() -> None:
            raise Down("refused")

        def act(side: Side) -> None:
            side.save_will("refused")
            try:
                side.do("put", id, value, on=side.repositories[name])
            finally:
                side.save_will("")

        self.check(expected, act)

    @rule(name=st.sampled_from(["through", "around"]), id=numbers, value=values, lands=st.booleans())
    def put_ends_unknown(self, name: str, id: int, value: Any, lands: bool) -> None:
        """For the settle time reads go to the origin, nothing is stored, and small changes find nothing."""
        key, how = f"{name}:{id}", "landed" if lands else "lost"
        self.model.entries.pop(key, None)
        if lands:
            self.land(key, value)

        def raises() -> None:
            raise Down(how)

        def act(side: Side) -> None:
            side.save_will(how)
            try:
                side.do("put", id, value, on=side.repositories[name])
            finally:
                side.save_will("")

        self.will(Outcome())
        self.check(raises, act)
        for _ in range(2):

            def unstored() -> Any:
                result = self.model.load(key, self.source(name, id, ""), REPOSITORY[name])
                self.model.entries.pop(key, None)
                return result

            self.check(unstored, lambda side: side.do("get", id, on=side.repositories[name]))
        self.do(lambda: None, "set", key, "not stored")
        self.do(lambda: False, "add", key, "not stored")
        self.do(lambda: False, "touch", key, 100)
        self.do(lambda: self.model.get(key, "nothing"), "get", key, "nothing")
        self.wait(7)
        for side in self.sides:
            self.intents_end(side, key)

    def intents_end(self, side: Side, key: str) -> None:
        """Servers let a slot end by their own clock, which nobody moves: done for them."""
        tier = side.cache.engine.state.chain.authority.tier
        slot = drive(tier.read(side.rt, [key]))[0].get(key)
        if slot is not None:
            assert tier.shared
            assert slot.intents
            assert slot.entry is None
            drive(tier.swap(side.rt, [Swap(key, slot, None)]))

    @rule(name=repositories, id=numbers, value=values)
    def the_origin_changes_by_itself(self, name: str, id: int, value: Any) -> None:
        """Nobody tells the cache."""
        self.origin[f"{name}:{id}"] = value
        for side in self.sides:
            side.origin[f"{name}:{id}"] = value

    @rule()
    def flush(self) -> None:
        def expected() -> None:
            for key, value in self.pending.items():
                self.land(key, value)
                self.model.entries.pop(key, None)
                self.model.counts["drops"] += 1
            self.pending.clear()

        self.check(expected, lambda side: side.do("flush", 20, on=side.repositories["behind"]))

    @rule(name=repositories, id=numbers)
    def invalidate(self, name: str, id: int) -> None:
        found = self.model.drop(f"{name}:{id}")
        self.check(
            lambda: Anything() if found is None else found,
            lambda side: side.do("invalidate", id, on=side.repositories[name]),
        )

    @rule(name=repositories)
    def clear_repository(self, name: str) -> None:
        self.check(
            lambda: self.model.invalidate_tags([TAG[name]]),
            lambda side: side.do("clear", on=side.repositories[name]),
        )

    @invariant()
    def origins_agree(self) -> None:
        for side in self.sides:
            assert repr(sorted(side.origin.items(), key=str)) == repr(sorted(self.origin.items(), key=str))
