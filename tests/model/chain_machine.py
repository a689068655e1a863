"""A chain of tiers against the reference, step by step on both faces.

Two caches live the same life, one through each face; a rule lets the faces change places. After every step both must
have answered as the reference says, called their loaders as it says, counted as it says, and hold in no tier a fresh
value that is not the reference's. What the two hold may differ in nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cachewright import EncodeError, NotSaved
from cachewright.core import slot
from cachewright.runtime.base import drive
from cachewright.tiers.base import Swap
from tests.model.reference import ABSENT, NEVER, UNSET, Down, Options, Outcome, Reference
from tests.model.sides import START, Side

OWN = ("k1", "k2")
FUNCTION = ("f:0", "f:1")
REPOSITORIES = ("through", "around", "behind")
ALL = [*OWN, *FUNCTION, *(f"{name}:{id}" for name in REPOSITORIES for id in (0, 1))]
TAG = {"f": "#function", **{name: f"#{name}" for name in REPOSITORIES}}
REPOSITORY = {name: Options(ttl=400, sie=200, tags=(TAG[name],)) for name in REPOSITORIES}


@dataclasses.dataclass
class User:
    """What typed reads ask for."""

    id: int
    name: str


keys = st.sampled_from(["k1", "k1", "k1", "k2", "f:0", "through:0"])
several = st.lists(keys, min_size=1, max_size=4)
numbers = st.integers(0, 1)
repositories = st.sampled_from(REPOSITORIES)
values = st.one_of(
    st.integers(-3, 3),
    st.sampled_from(["text", "", (1, 2), [None], {"id": 1, "name": "Ann"}, 2**70, True, 0.5]),
)
# Long beside what an example takes in real time, by which servers forget. Multiples of each other, so that the clock
# often stands on the very end of a life.
ttls = st.sampled_from([100, 200, 200, 400, None])
windows = st.sampled_from([0, 100, 300])
tag_sets = st.lists(st.sampled_from(["a", "b"]), max_size=2, unique=True).map(tuple)
stored = st.builds(Options, ttl=ttls, swr=windows, sie=windows, tags=tag_sets)
loaded = st.builds(
    Options,
    ttl=ttls,
    swr=windows,
    sie=windows,
    error_ttl=st.sampled_from([1, 100, 100]),
    negative=st.sampled_from([UNSET, UNSET, 100, None]),
    tags=tag_sets,
    only_true=st.sampled_from([False, False, False, True]),
)
slow = st.sampled_from([0, 0, 0, 2])
failures = st.builds(Outcome, error=st.sampled_from(["down", "still down"]), slow=slow)
outcomes = st.one_of(
    st.builds(Outcome, value=values, slow=slow),
    st.builds(Outcome, value=st.none() | values, ttl=ttls, slow=slow),
    st.builds(Outcome, slow=slow),
    st.builds(Outcome, value=values, tags=tag_sets),
    failures,
    failures,
)
batched = st.one_of(
    st.builds(Outcome, value=values | st.none() | st.just(ABSENT)),
    st.builds(Outcome, value=values, ttl=ttls),
    st.builds(Outcome, error=st.just("that one is down")),
)
once_in_a_while = st.sampled_from([False, False, False, True])


def given_as(options: Options, *, loads: bool = False) -> dict[str, Any]:
    """The keyword arguments that mean these options."""
    made: dict[str, Any] = {
        "ttl": options.ttl,
        "stale_while_revalidate": options.swr,
        "stale_if_error": options.sie,
        "tags": options.tags,
    }
    if loads:
        made |= {"error_ttl": options.error_ttl, "store_if": bool if options.only_true else None}
        if options.negative != UNSET:
            made["negative_ttl"] = options.negative
    return made


def never(end: int) -> int:
    return slot.NEVER if end == NEVER else end


def attempt(work: Callable[[], Any]) -> str:
    """What a call comes to, as text: it tells 1 from True."""
    try:
        return repr(work())
    except (Down, NotSaved) as error:
        return str(error)
    except LookupError:
        return "there is none"
    except (TypeError, EncodeError):
        return "it is no number"


class ChainMachine(RuleBasedStateMachine):
    """See the module. A subclass says how a side is made."""

    make_side: ClassVar[Callable[..., Side]]

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.sides = [type(self).make_side(self.loop, awaits) for awaits in (False, True)]
        chain = self.sides[0].cache.engine.state.chain
        self.model = Reference(
            START * 1000,
            dates_tags=chain.authority.tier.server_time,
            clear_drops=chain.authority.tier.scannable,
        )
        self.lowers = bool(chain.lowers)
        self.origin: dict[str, Any] = {}
        self.pending: dict[str, Any] = {}

    def teardown(self) -> None:
        for side in getattr(self, "sides", []):
            side.close()
        if hasattr(self, "loop"):
            self.loop.close()

    # Both and the model

    def check(self, expected: Callable[[], Any], act: Callable[[Side], Any]) -> None:
        """Does a step on all three: answers and loader calls must be the same."""
        results = []
        for side in self.sides:
            results.append(attempt(lambda side=side: act(side)))  # type: ignore[misc]
            side.settle()
        wanted = attempt(expected)
        assert results[0] == results[1], "the faces differ"
        assert wanted in (results[0], "ANY"), f"{results[0]}, and the model says {wanted}"
        for side in self.sides:
            # Refreshes behind one call run side by side.
            assert sorted(map(str, side.log)) == sorted(map(str, self.model.log)), "loader calls"
            side.log.clear()
        self.model.log.clear()

    def do(self, expected: Callable[[], Any], name: str, *args: Any, **kwargs: Any) -> None:
        self.check(expected, lambda side: side.do(name, *args, **kwargs))

    @invariant()
    def counters_agree(self) -> None:
        for side in self.sides:
            counted = {name: n for name, n in side.counters().items() if n}
            assert counted == {name: n for name, n in self.model.counts.items() if n}

    @invariant()
    def no_tier_holds_what_is_not_the_models(self) -> None:
        (held, controls), (others, more) = [side.standing(ALL) for side in self.sides]
        assert repr(held) == repr(others)
        assert controls + more == [], "nobody loads or writes now"
        for tier, here in held.items():
            for key, value in here.items():
                entry = self.model.fresh(key)
                assert entry is not None, f"{tier} holds {key}: {value!r}"
                assert repr(entry.value) == repr(value), f"{tier} holds {key}: {value!r}"
        authority = self.sides[0].cache.engine.state.chain.authority.tier.kind
        own = {key for key in ALL if self.model.own(key) is not None}
        assert own == set(held[authority]), "nothing is lost"
        for key in ALL:
            entry = self.model.standing(key)
            if entry is not None and not entry.below:
                ends = [never(end) for end in (entry.born, entry.fresh, entry.swr, entry.sie)]
                wanted = (*ends, max(0, entry.retry_at - self.model.now))
                assert [side.times.get(key) for side in self.sides] == [wanted, wanted], key

    # Time and faces

    @rule(seconds=st.sampled_from([0.5, 1, 50, 100, 200, 1000]))
    def time_passes(self, seconds: float) -> None:
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        self.model.now += int(seconds * 1000)
        for side in self.sides:
            side.clock.time += seconds

    @precondition(lambda self: any(entry.ends > self.model.now for entry in self.model.entries.values()))
    @rule(choice=st.integers(0, 20), early=st.sampled_from([0, 0, 500]))
    def wait_for_an_edge(self, choice: int, early: int) -> None:
        """Until an entry stops being fresh, or usable, or its loader may be asked again; or half a second less."""
        found = {
            edge - early
            for entry in self.model.entries.values()
            for edge in (entry.fresh, entry.swr, entry.sie, entry.retry_at)
            if self.model.now < edge - early < NEVER - 500
        }
        if found:
            edge = sorted(found)[choice % len(found)]
            self.wait((edge - self.model.now) / 1000)

    @rule()
    def faces_change_places(self) -> None:
        for side in self.sides:
            side.awaits = not side.awaits

    # Reading

    @rule(key=keys, default=st.sampled_from([None, "nothing"]))
    def get(self, key: str, default: Any) -> None:
        self.do(lambda: self.model.get(key, default), "get", key, default)

    @rule(key=keys, wanted=st.sampled_from([int, User]))
    def get_typed(self, key: str, wanted: Any) -> None:
        def convert(value: Any) -> Any:
            if wanted is int:
                return value if type(value) is int else ABSENT
            return User(**value) if type(value) is dict else ABSENT

        self.do(lambda: self.model.get(key, "nothing", convert), "get", key, "nothing", type=wanted)

    @rule(keys=several)
    def get_many(self, keys: list[str]) -> None:
        def expected() -> dict[str, Any]:
            names = list(dict.fromkeys(keys))
            found = {key: self.model.get(key, ABSENT) for key in names}
            return {key: value for key, value in found.items() if value is not ABSENT}

        self.do(expected, "get_many", keys)

    @rule(key=keys, outcome=outcomes, options=loaded)
    def get_or_load(self, key: str, outcome: Outcome, options: Options) -> None:
        self.get_or_set(key, outcome, options)

    def get_or_set(self, key: str, outcome: Outcome, options: Options) -> None:
        self.part_from_changes(outcome)
        self.check(
            lambda: self.model.load(key, outcome, options),
            lambda side: side.do(
                "get_or_set",
                key,
                side.loader(lambda: side.load(outcome, key)),
                **given_as(options, loads=True),
            ),
        )

    @rule(key=keys, value=values, options=loaded, down=st.booleans())
    def grow_stale(self, key: str, value: Any, options: Options, down: bool) -> None:
        """A value is loaded and its time passes; perhaps the next load of it fails."""
        self.get_or_set(key, Outcome(value), options)
        entry = self.model.fresh(key)
        if entry is not None and entry.fresh < NEVER:
            self.wait((entry.fresh - self.model.now) / 1000)
            if down:
                self.get_or_set(key, Outcome(error="down"), options)

    def part_from_changes(self, outcome: Outcome) -> None:
        """Tags that come with a value are judged by the server's clock: what changed in its last ms is refused."""
        if outcome.tags:
            self.wait(1)
            time.sleep(0.004)

    @rule(data=st.data(), keys=several, options=loaded, fails=once_in_a_while)
    def get_or_set_many(self, data: Any, keys: list[str], options: Options, fails: bool) -> None:
        drawn = {key: data.draw(batched, label=key) for key in dict.fromkeys(keys)}
        error = "all is down" if fails else ""
        self.check(
            lambda: self.model.load_many(keys, drawn, error, options),
            lambda side: side.do(
                "get_or_set_many",
                keys,
                side.loader(side.many(drawn, error)),
                **given_as(options, loads=True),
            ),
        )

    @rule(key=st.sampled_from(ALL))
    def inspect(self, key: str) -> None:
        entry = self.model.standing(key)
        for side in self.sides:
            found = side.do("inspect", key)
            authority = side.cache.engine.state.chain.authority.tier.name
            view = next(view for view in found.tiers if view.tier == authority)
            if entry is None or entry.below:
                assert view.state in ("absent", "invalid")
                continue
            assert found.state == view.state == self.model.state(key)
            wanted = [
                None if end == NEVER else (end - self.model.now) / 1000 for end in (entry.fresh, entry.ends)
            ]
            assert [view.fresh_for, view.usable_for] == wanted
            assert view.age == (self.model.now - entry.born) / 1000
            assert view.retry_in == max(0, entry.retry_at - self.model.now) / 1000
            assert sorted(view.tags) == sorted(tag for tag in entry.tags if not tag.startswith("#"))

    # Changing

    @rule(key=keys, value=values | st.none(), options=stored)
    def set(self, key: str, value: Any, options: Options) -> None:
        self.do(lambda: self.model.set(key, value, options), "set", key, value, **given_as(options))

    @rule(values=st.dictionaries(keys, values, max_size=3), options=stored)
    def set_many(self, values: dict[str, Any], options: Options) -> None:
        def expected() -> None:
            for key, value in values.items():
                self.model.set(key, value, options)

        self.do(expected, "set_many", values, **given_as(options))

    @rule(key=keys, value=values, options=stored)
    def add(self, key: str, value: Any, options: Options) -> None:
        self.do(lambda: self.model.add(key, value, options), "add", key, value, **given_as(options))

    @rule(key=keys, ttl=ttls)
    def touch(self, key: str, ttl: float | None) -> None:
        self.do(lambda: self.model.touch(key, ttl), "touch", key, ttl)

    @rule(key=keys, delta=st.integers(-2, 2))
    def incr(self, key: str, delta: int) -> None:
        self.do(lambda: self.model.incr(key, delta), "incr", key, delta)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        found = self.model.drop(key)
        self.do(lambda: Anything() if found is None else found, "delete", key)

    @rule(keys=several)
    def delete_many(self, keys: list[str]) -> None:
        found = [self.model.drop(key) for key in dict.fromkeys(keys)]
        self.do(lambda: Anything() if None in found else sum(map(bool, found)), "delete_many", keys)

    @rule(tags=tag_sets)
    def invalidate_tags(self, tags: tuple[str, ...]) -> None:
        self.do(lambda: self.model.invalidate_tags(tags), "invalidate_tags", *tags)

    @rule()
    def clear(self) -> None:
        self.do(self.model.clear, "clear")

    @rule(keys=several)
    def memory_forgets(self, keys: list[str]) -> None:
        """Memory above other tiers may lose anything at any time."""
        for side in self.sides:
            local = side.cache.engine.state.chain.local
            if local is not None:
                local.kill(keys)

    @precondition(lambda self: self.lowers)
    @rule(key=keys)
    def authority_forgets(self, key: str) -> None:
        """The first shared tier evicts an entry; what a lower tier has of it is as good, for as long as it is fresh."""
        for side in self.sides:
            authority = side.cache.engine.state.chain.authority
            stands = drive(authority.tier.read(side.rt, [key]))[0].get(key)
            if stands is not None:
                drive(authority.tier.swap(side.rt, [Swap(key, stands, None)]))
            side.cache.engine.state.kill_local([key])
        left = [any(key in here for here in side.standing([key])[0].values()) for side in self.sides]
        assert left[0] == left[1]
        entry = self.model.fresh(key)
        if not left[0]:
            self.model.entries.pop(key, None)
        else:
            assert entry is not None
            entry.below, entry.retry_at = True, 0


class Anything:
    """What the reference leaves open."""

    def __repr__(self) -> str:
        return "ANY"
