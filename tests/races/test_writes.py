"""Writes through the cache: whatever overlaps, fails or dies, the cache and the origin agree in the end."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from cachewright import NotSaved
from cachewright.core import write as core_write

FACES = ("threads", "asyncio")
ORDERS = sorted(set(itertools.permutations("AAABBB")))  # each writer: begin, save, commit


class Origin:
    """A table of the truth, and savers that stop before the save and after it."""

    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {}

    def load(self, id: Any) -> Any:
        return self.rows.get(id)

    def save(self, id: Any, value: Any) -> None:
        self.rows[id] = value

    def delete(self, id: Any) -> None:
        self.rows.pop(id, None)


class Writer:
    """One put (or delete), taken step by step: begin, save, commit."""

    def __init__(self, yard: Any, cache: Any, origin: Origin, id: Any, value: Any, **how: Any) -> None:
        self.yard, self.id, self.value = yard, id, value
        self.begun, self.go_save, self.saved, self.go_commit = (threading.Event() for _ in range(4))

        def act(*_: Any) -> None:
            self.begun.set()
            assert self.go_save.wait(20)
            if value is None:
                origin.delete(id)
            else:
                origin.save(id, value)
            self.saved.set()
            assert self.go_commit.wait(20)

        self.users = cache.repository("u", load=origin.load, save=act, delete=act, **how)
        self.steps = iter([self.begin, self.save, self.commit])

    def step(self) -> None:
        next(self.steps)()

    def begin(self) -> None:
        words = ("delete", self.id) if self.value is None else ("put", self.id, self.value)
        self.future = self.yard.start(*words, on=self.users)
        assert self.begun.wait(20)

    def save(self) -> None:
        self.go_save.set()
        assert self.saved.wait(20)

    def commit(self) -> None:
        self.go_commit.set()
        self.future.result(20)


def readers(yard: Any, origin: Origin, cache: Any) -> Any:
    return cache.repository("u", load=yard.loader(origin.load), save=origin.save)


@pytest.mark.parametrize("reading", [False, True], ids=["", "read between"])
@pytest.mark.parametrize("second", ["put", "delete"])
def test_two_writes_in_every_order(yard: Any, second: str, reading: bool) -> None:
    """Begin, save and commit of two writers in all 20 orders, in one process, a reader between all steps."""
    origin = Origin()
    users = readers(yard, origin, yard.cache)
    for id, order in enumerate(ORDERS):
        yard.do("put", id, "before", on=users)
        writers = {
            "A": Writer(yard, yard.cache, origin, id, "a"),
            "B": Writer(yard, yard.cache, origin, id, "b" if second == "put" else None),
        }
        for step in order:
            writers[step].step()
            if reading:
                assert yard.do("get", id, on=users) == origin.rows.get(id), "".join(order)
        truth = origin.rows.get(id)
        assert set(yard.standing(users.key_for(id)).values()) <= {truth}, "".join(order)
        assert yard.do("get", id, on=users) == truth
        if order in (tuple("AAABBB"), tuple("BBBAAA")) and truth is not None:
            assert set(yard.standing(users.key_for(id)).values()) == {truth}, (
                "a write that is alone is stored"
            )


@pytest.mark.parametrize("writes", ["through", "around"])
def test_two_writers_of_two_processes_in_every_order(yard: Any, writes: str) -> None:
    origin = Origin()
    one, two = yard.cache, yard.other()
    for id, order in enumerate(ORDERS):
        writers = {
            "A": Writer(yard, one, origin, id, "a", writes=writes),
            "B": Writer(yard, two, origin, id, "b", writes=writes),
        }
        for step in order:
            writers[step].step()
        key = writers["A"].users.key_for(id)
        assert set(yard.standing(key, shared=True).values()) <= {origin.rows[id]}, "".join(order)
        if writes == "around":
            assert yard.standing(key) == {}
        reader = readers(yard, origin, yard.other())
        assert yard.do("get", id, on=reader) == origin.rows[id]


def test_what_was_read_under_a_write_is_not_stored(yard: Any) -> None:
    origin = Origin()
    users = readers(yard, origin, yard.cache)
    origin.rows[1] = "before"
    assert yard.do("get", 1, on=users) == "before"
    writer = Writer(yard, yard.other(), origin, 1, "after")
    if yard.has_local:
        writer = Writer(yard, yard.cache, origin, 1, "after")  # nobody tells the other one's memory
    writer.begin()
    assert yard.standing("u:1") == {}
    view = yard.authority("u:1")
    assert (view.state, view.intents) == ("absent", 1)
    for _ in range(2):
        assert yard.do("get", 1, on=users) == "before"
        assert yard.do("get_many", [1, 2], on=users) == {1: "before", 2: None}
    assert yard.do("add", "u:1", "added") is False
    yard.do("set", "u:1", "set")
    assert yard.do("get", "u:1") is None
    assert yard.standing("u:1") == {}
    writer.save()
    writer.commit()
    assert yard.standing("u:1") == {}, "the set in between made the write contended"
    assert yard.do("get", 1, on=users) == "after"


class Refused(Exception):
    """The database says no, and nothing was changed."""


@pytest.mark.parametrize("error", [NotSaved("no"), Refused("constraint")], ids=["NotSaved", "not_saved="])
def test_a_save_that_changed_nothing_leaves_no_value_and_no_intent(yard: Any, error: Exception) -> None:
    origin = Origin()
    origin.rows[1] = "before"

    def save(id: Any, value: Any) -> None:
        raise error

    users = yard.cache.repository("u", load=yard.loader(origin.load), save=save, not_saved=(Refused,))
    assert yard.do("get", 1, on=users) == "before"
    with pytest.raises(type(error)):
        yard.do("put", 1, "never", on=users)
    assert yard.standing("u:1") == {}
    assert yard.do("get", "u:1") is None
    assert yard.do("get", 1, on=users) == "before"
    assert set(yard.standing("u:1").values()) == {"before"}, "stored again at once: no intent is left"


def test_a_failed_save_spoils_the_write_that_it_overlaps(yard: Any) -> None:
    """It marks the rest contended: whether its drop came before the other's begin is no longer known."""
    origin = Origin()
    writer = Writer(yard, yard.cache, origin, 1, "saved")
    failing = yard.Gated(NotSaved("no"))
    users = yard.cache.repository("u", load=origin.load, save=failing)
    refused = yard.start("put", 1, "never", on=users)
    failing.has_begun()
    writer.begin()
    failing.go.set()
    with pytest.raises(NotSaved):
        refused.result(20)
    writer.save()
    writer.commit()
    assert set(yard.standing("u:1").values()) <= {"saved"}
    assert yard.do("get", 1, on=writer.users) == "saved"


@pytest.mark.parametrize("landed", [True, False])
def test_a_save_of_unknown_outcome_forbids_storing_until_it_must_have_settled(
    yard: Any, landed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults: Any = core_write.write.__kwdefaults__
    monkeypatch.setitem(defaults, "settle", 0.25)
    origin = Origin()
    origin.rows[1] = "before"

    def save(id: Any, value: Any) -> None:
        if landed:
            origin.save(id, value)
        raise ConnectionResetError("the connection broke before the answer")

    users = yard.cache.repository("u", load=yard.loader(origin.load), save=save)
    assert yard.do("get", 1, on=users) == "before"
    with pytest.raises(ConnectionResetError):
        yard.do("put", 1, "maybe", on=users)
    assert yard.standing("u:1") == {}
    assert yard.authority("u:1").intents == 1
    truth = origin.rows[1]
    assert yard.do("get", 1, on=users) == truth

    def stored_again() -> bool:
        assert yard.do("get", 1, on=users) == truth
        return set(yard.standing("u:1").values()) == {truth}

    yard.until(stored_again)


def test_many_writers_and_readers_agree_with_the_origin_in_the_end(yard: Any) -> None:
    """No order chosen here: six writers and three readers of one key, as they come."""
    origin = Origin()
    lock = threading.Lock()

    def save(id: Any, value: Any) -> None:
        with lock:
            origin.save(id, value)

    users = yard.cache.repository("u", load=yard.loader(origin.load), save=save)
    for turn in range(5):
        works = [yard.start("put", turn, f"w{n}", on=users) for n in range(6)]
        works[3:3] = [yard.start("get", turn, on=users) for _ in range(3)]
        for work in works:
            work.result(20)
        assert set(yard.standing(users.key_for(turn)).values()) <= {origin.rows[turn]}
        assert yard.do("get", turn, on=users) == origin.rows[turn]


def test_put_many_and_delete_many(yard: Any) -> None:
    origin = Origin()
    calls: list[Any] = []

    def save_many(writes: Any) -> None:
        calls.append(len(writes))
        for write in writes:
            origin.save(write.id, write.value)

    users = yard.cache.repository(
        "u", load=yard.loader(origin.load), save_many=save_many, save=origin.save, delete=origin.delete
    )
    yard.do("put_many", {n: f"v{n}" for n in range(20)}, on=users)
    assert calls == [20]
    assert yard.do("get_many", range(20), on=users) == {n: f"v{n}" for n in range(20)}
    assert all(set(yard.standing(f"u:{n}").values()) == {f"v{n}"} for n in range(20))
    yard.do("delete_many", range(0, 20, 2), on=users)
    assert yard.standing("u:4") == {}
    assert yard.do("get", 4, on=users) is None
    assert yard.do("get", 5, on=users) == "v5"


@pytest.mark.parametrize(
    "yard",
    [f"{chain} | {face}" for chain in ("redis > memcached", "memory > redis > memcached") for face in FACES],
    indirect=True,
)
def test_a_lower_tier_is_not_filled_without_the_authoritys_consent(yard: Any) -> None:
    """A load has its lease in the authority when a write begins there and passes the lower tier; then it leases the
    lower tier, and reads what the save is about to replace. If the writer dies now, nobody drops that any more."""
    origin = Origin()
    origin.rows[1] = "before"
    loading, lower = yard.gated(len(yard.urls) - 1)
    lower.before["read"] = looks = yard.Gated()
    users = readers(yard, origin, loading)
    load = yard.start("get", 1, on=users)
    looks.has_begun()
    writer = Writer(yard, yard.cache, origin, 1, "after")
    writer.begin()
    looks.go.set()
    assert load.result(20) == "before"
    assert yard.standing("u:1") == {}
    writer.save()
    writer.commit()
    assert set(yard.standing("u:1", shared=True).values()) == {"after"}
