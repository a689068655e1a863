"""Write-behind's buffer against its rules in a dictionary: who may save which state of a key, and when.

The rules are those of ``behind/buffers/base.py``; `tests/contract/test_buffers.py` has the single cases by hand. Two
repositories share the file and must not meet; the steps come through both faces in turn.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from cachewright.behind.buffers import open_buffer
from cachewright.behind.buffers.base import Ack, Buffer, BufferStats, Ended, Failure, NewRecord, Record
from cachewright.behind.buffers.redis_urls import open_redis
from cachewright.errors import BufferFull, NotDirtyError
from cachewright.runtime.aio import AioRuntime
from cachewright.runtime.base import drive
from cachewright.runtime.threads import ThreadRuntime
from tests.model.book import MOST, MOST_BYTES, Book, Kept

NAMES = ["one", "other"]
keys = st.sampled_from(["a", "b", "c", "d"])
payloads = st.sampled_from([b"", b"x", b"y" * 15, b"z" * 45])
lives = st.sampled_from([1.0, 4.0])
settles = st.sampled_from([0.0, 3.0, 3.0])
delays = st.sampled_from([0.0, 0.0, 2.0])
which = st.integers(0, 9)


class Clock:
    """Moved by hand, also backwards."""

    def __init__(self) -> None:
        self.time = 2_000_000_000.0

    def now(self) -> float:
        return self.time

    monotonic = now


class BufferMachine(RuleBasedStateMachine):
    """See the module. A subclass says how a buffer is made."""

    make_buffer: ClassVar[Callable[[str], Buffer]]

    @initialize()
    def begin(self) -> None:
        self.clock, self.loop, self.turn = Clock(), asyncio.new_event_loop(), 0
        self.runtimes: list[Any] = [ThreadRuntime(self.clock), AioRuntime(self.clock)]
        self.buffers = [type(self).make_buffer(name) for name in NAMES]
        self.books = [Book(), Book()]
        self.claims: list[tuple[int, bytes, list[tuple[str, int]]]] = []
        self.numbers = itertools.count(1)
        self.at = 0

    def teardown(self) -> None:
        for buffer in getattr(self, "buffers", []):
            buffer.close()
        if hasattr(self, "loop"):
            self.loop.close()

    def do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.turn += 1
        made = getattr(self.buffers[self.at], name)(self.runtimes[self.turn % 2], *args, **kwargs)
        return self.loop.run_until_complete(made) if self.turn % 2 else drive(made)

    @property
    def book(self) -> Book:
        return self.books[self.at]

    def token(self) -> bytes:
        return next(self.numbers).to_bytes(8, "big")

    def taken(self, choice: int) -> tuple[bytes, list[tuple[str, int]]]:
        """A claim of this repository, running, lost or over; or one that nobody ever made."""
        mine = [(token, what) for at, token, what in self.claims if at == self.at]
        return mine[-1 - choice % len(mine)] if mine else (b"nobody's", [("a", 1)])

    # Steps

    @rule(
        news=st.dictionaries(
            keys, st.none() | st.sampled_from([b"", b"x", b"y" * 15, b"z" * 45]), max_size=3
        ),
        delay=delays,
        overflow=st.booleans(),
    )
    def append(self, news: dict[str, bytes | None], delay: float, overflow: bool) -> None:
        records = [NewRecord(key, b"id", value, 1, 2) for key, value in news.items()]
        if not self.book.fits(news, overflow):
            with pytest.raises(BufferFull):
                self.do("append", records, delay=delay, overflow=overflow)
            return
        now = self.clock.time
        wanted = [self.book.append(key, value, now, delay) for key, value in news.items()]
        assert self.do("append", records, delay=delay, overflow=overflow) == wanted

    @rule(key=keys, life=lives)
    def hold(self, key: str, life: float) -> None:
        token, now = self.token(), self.clock.time
        sequence = self.book.sequence(now)
        got = self.do("hold", key, token, life)
        if key in self.book.kept:
            assert got is None
            return
        assert got == sequence
        self.book.kept[key] = Kept(
            key, "held", None, sequence, now, now, token=token, deadline=now + life, claimed=now
        )
        self.claims.append((self.at, token, [(key, sequence)]))

    @rule(
        limit=st.integers(1, 4),
        life=lives,
        only=st.none() | st.none() | st.lists(keys, min_size=1, max_size=2, unique=True),
        hurry=st.booleans(),
    )
    def claim(self, limit: int, life: float, only: list[str] | None, hurry: bool) -> None:
        token, now = self.token(), self.clock.time
        free, over = self.book.due(now, only, hurry)
        found = self.do("claim", limit, token, life, keys=only, hurry=hurry)
        # What is taken over comes alone; it may be what killed its flusher.
        among, most = (over, 1) if over else (free, limit)
        first = sorted(one.not_before for one in among)[:most]
        assert [record.not_before for record in found] == first, "the longest due come first"
        assert {record.key for record in found} <= {one.key for one in among}
        for record in found:
            self.book.claim(record.key, token, now, life)
            self.agree(record)
        if found:
            self.claims.append((self.at, token, [(record.key, record.sequence) for record in found]))

    @rule(
        key=keys,
        value=st.none() | payloads,
        newer=st.sampled_from(["no", "no", None, b"n"]),
        ends=st.sampled_from(["saved", "saved", "unsure", "failed", "dead", "lost"]),
    )
    def a_round(self, key: str, value: bytes | None, newer: Any, ends: str) -> None:
        """What happens most: a write, a flusher's claim, perhaps another write meanwhile, and how the save ended."""
        self.append({key: value}, 0.0, False)
        self.claim(1, 4.0, [key], True)
        if newer != "no":
            self.append({key: newer}, 0.0, False)
        if ends in ("saved", "unsure"):
            self.acknowledge(0, ends == "unsure", 3.0)
        elif ends == "lost":
            self.time_passes(4.0)
        else:
            self.fail(0, 2.0, ends == "dead", True, True, 3.0)

    @rule(choice=which, life=lives)
    def renew(self, choice: int, life: float) -> None:
        token, _ = self.taken(choice)
        mine = [one for one in self.book.kept.values() if one.token == token]
        assert self.do("renew", token, life) == len(mine)
        for one in mine:
            one.deadline = self.clock.time + life

    @rule(choice=which, unsure=st.booleans(), settle=settles)
    def acknowledge(self, choice: int, unsure: bool, settle: float) -> None:
        token, what = self.taken(choice)
        acks = [Ack(key, sequence, unsure) for key, sequence in what]
        now = self.clock.time
        lost = {key: self.book.saves_later(key) for key in self.book.lost(token, what)}
        wanted = sum(self.book.acknowledge(a.key, token, a.sequence, unsure, now, settle) for a in acks)
        assert self.do("acknowledge", token, acks, settle=settle) == Ended(wanted, lost=lost)

    @rule(
        choice=which,
        pause=st.sampled_from([0.0, 2.0, 9.0]),
        dead=st.booleans(),
        unknown=st.booleans(),
        counts=st.booleans(),
        settle=settles,
    )
    def fail(self, choice: int, pause: float, dead: bool, unknown: bool, counts: bool, settle: float) -> None:
        token, what = self.taken(choice)
        now = self.clock.time
        failures = [
            Failure(key, sequence, "Boom", now + pause, dead, unknown, counts) for key, sequence in what
        ]
        gone = self.book.lost(token, what) if unknown else []
        lost = {key: self.book.saves_later(key) for key in gone}
        wanted = [failure.key for failure in failures if self.book.fail(failure, token, now, settle)]
        assert self.do("fail", token, failures, settle=settle) == Ended(dead=tuple(wanted), lost=lost)

    @rule(choice=which)
    def release(self, choice: int) -> None:
        token, _ = self.taken(choice)
        self.do("release", token)
        for one in [one for one in self.book.kept.values() if one.token == token]:
            one.let_go()
            if one.state == "held" and not one.suspect:
                del self.book.kept[one.key]

    @rule(key=keys)
    def replay(self, key: str) -> None:
        one = self.book.kept.get(key)
        if one is None or not one.dead:
            with pytest.raises(NotDirtyError):
                self.do("replay", key)
            return
        self.do("replay", key)
        one.dead, one.tries = False, 0
        one.not_before = one.first_dirty = self.clock.time

    @rule(key=keys, dead_only=st.booleans())
    def discard(self, key: str, dead_only: bool) -> None:
        one = self.book.kept.get(key)
        if one is None or one.state == "held" or one.token is not None or (dead_only and not one.dead):
            with pytest.raises(NotDirtyError):
                self.do("discard", key, dead_only=dead_only)
            return
        self.agree(self.do("discard", key, dead_only=dead_only))
        del self.book.kept[key]

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 10.0, -30.0]))
    def time_passes(self, seconds: float) -> None:
        """Or the clock is set back."""
        self.clock.time += seconds

    @rule()
    def another_repository(self) -> None:
        self.at = 1 - self.at

    @rule()
    def close(self) -> None:
        self.buffers[self.at].close()

    @rule()
    def another_turn(self) -> None:
        self.turn += 1

    # What must hold

    def agree(self, record: Record) -> None:
        one = self.book.kept[record.key]
        for name in ("state", "payload", "sequence", "first_dirty", "not_before", "tries", "token"):
            assert getattr(record, name) == getattr(one, name), name
        assert (record.suspect, record.settling, record.dead) == (one.suspect, one.settling, one.dead)
        if one.token is not None:
            assert record.deadline == one.deadline
        if one.state != "held":
            assert (record.id, record.codec, record.codec_flags) == (b"id", 1, 2)

    @invariant()
    def the_buffer_holds_what_the_book_holds(self) -> None:
        real = self.book.real
        read = self.do("read", ["a", "b", "c", "d", "e"])
        assert read.keys() == {one.key for one in real}
        for record in read.values():
            self.agree(record)
        dead = [one for one in real if one.dead]
        dirty = [one for one in real if not one.dead]
        oldest = min((one.first_dirty for one in dirty), default=None)
        size = sum(one.size for one in real)
        settling = sum(one.settling for one in dirty)
        assert self.do("stats") == BufferStats(len(dirty), settling, len(dead), size, oldest)
        for wanted, listed in ((dirty, self.do("records")), (dead, self.do("records", dead=True))):
            assert [r.first_dirty for r in listed] == sorted(one.first_dirty for one in wanted)
            assert {r.key for r in listed} == {one.key for one in wanted}

    @invariant()
    def it_says_when_to_come_again(self) -> None:
        alive = [one for one in self.book.kept.values() if not one.dead]
        times = [one.not_before if one.token is None else max(one.not_before, one.deadline) for one in alive]
        assert self.do("next_due") == min(times, default=None)
        if any(one.token is None and not one.tries and not one.settling for one in alive):
            times.append(0.0)
        assert self.do("next_due", hurry=True) == min(times, default=None)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
@pytest.mark.parametrize("examples", [40, pytest.param(2000, marks=pytest.mark.soak)])
def test_a_buffer_holds_what_its_rules_say(
    examples: int, kind: str, tmp_path: Path, namespace: str, request: pytest.FixtureRequest
) -> None:
    made = itertools.count()
    server = request.getfixturevalue("redis_server").url if kind == "redis" else ""

    def make(name: str) -> Buffer:
        scope = (
            f"{namespace}{next(made) // len(NAMES)}/{name}"  # one file for all examples: a file takes longest
        )
        bounds = {"max_dirty": MOST, "max_dirty_bytes": MOST_BYTES}
        if server:
            return open_redis(f"{server}?timeout=30", scope, clock=lambda rt: rt.now(), **bounds)
        return open_buffer(f"sqlite:///{tmp_path}/buffer.db?synchronous=normal", scope, **bounds)

    run_state_machine_as_test(
        type(f"Machine of {kind}", (BufferMachine,), {"make_buffer": staticmethod(make)}),
        settings=settings(
            max_examples=examples, stateful_step_count=40, suppress_health_check=list(HealthCheck)
        ),
    )
