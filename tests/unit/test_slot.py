"""The transitions of a slot, cell by cell, and for each rule the run that breaks without it."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from cachewright.core import slot as slots
from cachewright.core.header import MAX_INTENTS
from cachewright.core.slot import (
    NEVER,
    Blocked,
    Hit,
    Intent,
    Lease,
    Slot,
    StoredEntry,
    Take,
    Wait,
    parse,
)

NOW = 1_000_000
GRACE = slots.INTENT_GRACE_MS
_ids = itertools.count(1)


def new_id() -> bytes:
    return next(_ids).to_bytes(8, "big")


def entry(payload: bytes = b"v", *, fresh: int = 1000, stale: int = 0) -> StoredEntry:
    """Fresh for so many ms from NOW (negative: since so long not), usable as stale for so many more."""
    return StoredEntry(payload, NOW - 10, NOW + fresh, NOW + fresh, NOW + fresh + stale)


def lease() -> Lease:
    return Lease(new_id(), NOW + 5000, 5000)


def intent(deadline: int = NOW + 30_000) -> Intent:
    return Intent(new_id(), deadline)


def slot(**parts: Any) -> Slot:
    return Slot(new_id(), **parts)


FRESH, STALE, GONE = entry(), entry(fresh=-1, stale=5000), entry(fresh=-10, stale=5)
FOREIGN = Slot(bytes(8), foreign=b"somebody else's")
NEWER = Slot(bytes(8), foreign=b"a newer format's", newer=True)


def begin(standing: Slot | None, **how: Any) -> Hit | Wait | Blocked | Take:
    return slots.begin_load(standing, now=NOW, lease_life=5000, nonce=new_id(), token=new_id(), **how)


# begin_load

TAKES = {
    "absent": (None, {}),
    "expired": (slot(entry=GONE), {}),
    "stale": (slot(entry=STALE), {}),
    "forced over fresh": (slot(entry=FRESH), {"forced": True}),
    "a dead lease": (slot(lease=lease()), {"takeover": True}),
    "a dead lease beside stale": (slot(entry=STALE, lease=lease()), {"takeover": True}),
    "fresh whose tag changed": (slot(entry=FRESH), {"valid": False}),
    "foreign": (FOREIGN, {}),
}
KEPT = {"stale": STALE, "forced over fresh": FRESH, "a dead lease beside stale": STALE}


@pytest.mark.parametrize("case", TAKES)
def test_a_load_takes_a_lease(case: str) -> None:
    standing, how = TAKES[case]
    verdict = begin(standing, **how)
    assert isinstance(verdict, Take)
    taken = verdict.slot
    assert taken.lease == Lease(verdict.token, NOW + 5000, 5000)
    assert taken.entry is KEPT.get(case)
    assert verdict.stale is KEPT.get(case)
    assert not taken.intents
    assert not taken.contended
    assert standing is None or taken.nonce != standing.nonce


def test_a_fresh_entry_is_a_hit_with_or_without_a_lease_beside_it() -> None:
    for standing in (slot(entry=FRESH), slot(entry=FRESH, lease=lease())):
        assert begin(standing) == Hit(FRESH)


def test_freshness_ends_at_its_very_millisecond() -> None:
    assert isinstance(begin(slot(entry=entry(fresh=1))), Hit)
    assert isinstance(begin(slot(entry=entry(fresh=0))), Take)


def test_a_living_lease_is_waited_for() -> None:
    held = lease()
    assert begin(slot(lease=held)) == Wait(held, None)
    assert begin(slot(entry=STALE, lease=held)) == Wait(held, STALE)
    assert begin(slot(entry=GONE, lease=held)) == Wait(held, None), "what has ended may not be served"
    assert begin(slot(entry=STALE, lease=held), valid=False) == Wait(held, None), (
        "nor what a tag made invalid"
    )
    assert begin(slot(entry=FRESH, lease=held), forced=True) == Wait(held, FRESH)


def test_a_lease_past_its_deadline_is_not_dead_by_that_alone() -> None:
    """Clocks of two hosts differ: who says that it is dead is the one who has watched it (``takeover``)."""
    assert isinstance(begin(slot(lease=Lease(new_id(), NOW - 1, 5000))), Wait)


@pytest.mark.parametrize("how", [{}, {"forced": True}, {"takeover": True}, {"valid": False}])
def test_under_intents_and_newer_formats_nothing_is_stored(how: dict[str, bool]) -> None:
    """A load under a write may have read what the write is about to change."""
    for standing in (slot(intents=(intent(),)), slot(intents=(intent(), intent()), contended=True), NEWER):
        assert begin(standing, **how) == Blocked()


def test_an_intent_past_its_deadline_still_forbids() -> None:
    assert begin(slot(intents=(intent(NOW - 1),))) == Blocked()


# commit_load, renew, abandon: only where the own lease stands


def others(token: bytes) -> list[Slot | None]:
    """States in which the lease with this token is lost."""
    return [
        None,
        slot(entry=FRESH),
        slot(lease=lease()),
        slot(entry=FRESH, lease=lease()),
        slot(intents=(Intent(token, NOW + 1000),)),
        FOREIGN,
        NEWER,
    ]


def test_a_commit_needs_its_own_lease() -> None:
    """Not "the header that I saw": that may be "absent", and absent comes back after a delete."""
    token = new_id()
    for standing in others(token):
        assert slots.commit_load(standing, token, FRESH, nonce=new_id()) is None
    for held in (slot(lease=Lease(token, NOW, 1)), slot(entry=STALE, lease=Lease(token, NOW - 9999, 1))):
        nonce = new_id()
        assert slots.commit_load(held, token, FRESH, nonce=nonce) == Slot(nonce, entry=FRESH)


def test_a_renewal_never_creates_a_lease() -> None:
    """Write, evict, heartbeat: re-created, the lease would let the old value in."""
    token = new_id()
    for standing in others(token):
        assert slots.renew_lease(standing, token, now=NOW, nonce=new_id()) is None
    before = slot(entry=STALE, lease=Lease(token, NOW - 3000, 5000), retry_at=7)
    nonce = new_id()
    after = slots.renew_lease(before, token, now=NOW, nonce=nonce)
    assert after == msgspec.structs.replace(before, nonce=nonce, lease=Lease(token, NOW + 5000, 5000))
    assert after is not None
    assert after.header != before.header
    assert len(after.header) == len(before.header), "a renewal may be sent as a header of the same size"


def test_an_abandoned_lease_is_the_own_one() -> None:
    token = new_id()
    for standing in others(token):
        assert slots.abandon(standing, token, nonce=new_id()) == (False, None)
    assert slots.abandon(slot(lease=Lease(token, NOW, 1)), token, nonce=new_id()) == (True, None)
    nonce = new_id()
    held = slot(entry=STALE, lease=Lease(token, NOW, 1))
    assert slots.abandon(held, token, nonce=nonce, retry_at=NOW + 5) == (
        True,
        Slot(nonce, entry=STALE, retry_at=NOW + 5),
    )


# begin_write


@pytest.mark.parametrize(
    "standing",
    [
        None,
        slot(entry=FRESH),
        slot(entry=STALE),
        slot(lease=lease()),
        slot(entry=STALE, lease=lease()),
        FOREIGN,
    ],
)
def test_a_write_takes_entry_and_lease_out_before_its_save(standing: Slot | None) -> None:
    """An intent that only dropped at the end would leave the old value when the writer dies after its save."""
    mine, nonce = intent(), new_id()
    assert slots.begin_write(standing, mine, now=NOW, nonce=nonce) == Slot(nonce, intents=(mine,))


def test_a_second_writer_makes_both_contended() -> None:
    first, second = intent(), intent()
    one = slots.begin_write(None, first, now=NOW, nonce=new_id())
    two = slots.begin_write(one, second, now=NOW, nonce=new_id())
    assert two.intents == (first, second)
    assert two.contended


def test_an_intent_is_over_only_well_past_its_deadline() -> None:
    """Clocks of two hosts differ, and a writer that lives renews it."""
    for late, counts in ((GRACE, True), (GRACE + 1, False)):
        old, mine = intent(NOW - late), intent()
        after = slots.begin_write(slot(intents=(old,)), mine, now=NOW, nonce=new_id())
        assert after.intents == ((old, mine) if counts else (mine,))
        assert after.contended is counts


def test_the_table_of_intents_is_bounded() -> None:
    many = slot(intents=tuple(intent() for _ in range(MAX_INTENTS)), contended=True)
    mine = intent()
    after = slots.begin_write(many, mine, now=NOW, nonce=new_id())
    assert len(after.intents) == MAX_INTENTS
    assert after.intents[-1] == mine
    assert parse(after.header) == after


# commit_write


def commit(
    standing: Slot | None, mine: Intent, value: StoredEntry | None = FRESH
) -> tuple[bool, Slot | None]:
    return slots.commit_write(standing, mine.id, value, now=NOW, nonce=new_id())


def test_an_intent_that_was_alone_stores() -> None:
    mine = intent()
    change, new = commit(slot(intents=(mine,)), mine)
    assert change
    assert new is not None
    assert (new.entry, new.intents, new.contended) == (FRESH, (), False)
    assert commit(slot(intents=(mine,)), mine, None) == (True, None), (
        "write-around and deletes leave it empty"
    )


def test_an_intent_past_its_deadline_that_still_stands_alone_stores() -> None:
    mine = intent(NOW - 60_000)
    assert commit(slot(intents=(mine,)), mine)[1] is not None


def test_of_overlapping_writers_none_stores() -> None:
    """Nobody knows whose save the origin saw last; forgotten, the last one would store the loser."""
    first, second = intent(), intent()
    both = slots.begin_write(slot(intents=(first,)), second, now=NOW, nonce=new_id())
    for one, other in ((first, second), (second, first)):
        change, rest = commit(both, one)
        assert change
        assert rest is not None
        assert (rest.entry, rest.intents, rest.contended) == (None, (other,), True)
        assert commit(rest, other) == (True, None), "contended stays until the last has gone"


@pytest.mark.parametrize(
    "standing",
    [
        slot(entry=FRESH),
        slot(entry=STALE),
        slot(lease=lease()),
        slot(entry=FRESH, lease=lease()),
        FOREIGN,
        NEWER,
    ],
)
def test_a_missing_intent_takes_away_what_came_since(standing: Slot) -> None:
    """It was evicted: a load may have stored what it read before the save."""
    assert commit(standing, intent()) == (True, None)


def test_a_missing_intent_spoils_the_others() -> None:
    other = intent()
    change, new = commit(slot(intents=(other,)), intent())
    assert change
    assert new is not None
    assert (new.intents, new.contended, new.entry) == ((other,), True, None)


def test_a_missing_intent_on_an_absent_key_changes_nothing() -> None:
    assert commit(None, intent()) == (False, None)


def test_intents_that_are_over_do_not_survive_a_commit() -> None:
    mine, dead = intent(), intent(NOW - GRACE - 1)
    assert commit(slot(intents=(dead, mine), contended=True), mine) == (True, None)
    assert commit(slot(intents=(dead, mine)), mine) == (True, None), "it was there: mine was not alone"


# fail_write


def test_a_failed_save_takes_its_intent_away_and_spoils_the_rest() -> None:
    mine, other = intent(), intent()
    assert slots.fail_write(slot(intents=(mine,)), mine.id, now=NOW, nonce=new_id()) == (True, None)
    change, new = slots.fail_write(slot(intents=(mine, other)), mine.id, now=NOW, nonce=new_id())
    assert change
    assert new is not None
    assert (new.intents, new.contended) == ((other,), True)
    for standing in (None, slot(entry=FRESH), slot(lease=lease()), slot(intents=(other,)), FOREIGN):
        assert slots.fail_write(standing, mine.id, now=NOW, nonce=new_id()) == (False, standing)


# renew_intent


def test_an_intent_is_renewed_in_place() -> None:
    mine, other = intent(), intent()
    later = Intent(mine.id, NOW + 90_000)
    before = slot(intents=(mine, other), contended=True)
    nonce = new_id()
    assert slots.renew_intent(before, later, now=NOW, nonce=nonce) == Slot(
        nonce, intents=(later, other), contended=True
    )
    alone = slots.renew_intent(slot(intents=(mine,)), later, now=NOW, nonce=new_id())
    assert (alone.intents, alone.contended) == ((later,), False), "a renewal does not spoil the write"


def test_a_lost_intent_is_asserted_again_as_contended() -> None:
    """Unlike a lease it may be: it only forbids. But what happened while it was gone is not known."""
    mine, other = intent(), intent()
    for standing, rest in (
        (None, ()),
        (slot(entry=FRESH), ()),
        (slot(lease=lease()), ()),
        (slot(intents=(other,)), (other,)),
    ):
        new = slots.renew_intent(standing, mine, now=NOW, nonce=new_id())
        assert (new.intents, new.contended, new.entry, new.lease) == ((*rest, mine), True, None, None)
        left = commit(new, mine)[1]
        assert left is None or left.entry is None


# drop, store


def test_drop_leaves_only_intents_contended() -> None:
    for standing in (
        None,
        slot(entry=FRESH),
        slot(lease=lease()),
        slot(entry=STALE, lease=lease()),
        FOREIGN,
        NEWER,
    ):
        assert slots.drop(standing, nonce=new_id()) is None
    mine, nonce = intent(), new_id()
    assert slots.drop(slot(intents=(mine,)), nonce=nonce) == Slot(nonce, intents=(mine,), contended=True)
    dropped = slots.drop(slot(intents=(mine,)), nonce=new_id())
    assert commit(dropped, mine) == (True, None), (
        "a delete in the middle of a write leaves it nothing to store"
    )


def test_store_gives_way_to_intents() -> None:
    mine, nonce = intent(), new_id()
    for standing in (None, slot(entry=STALE), slot(lease=lease()), FOREIGN, NEWER):
        assert slots.store(standing, FRESH, nonce=nonce) == (True, Slot(nonce, entry=FRESH))
    assert slots.store(slot(intents=(mine,)), FRESH, nonce=nonce) == (
        False,
        Slot(nonce, intents=(mine,), contended=True),
    )


# Physical life


def test_the_life_of_a_slot_is_its_longest_part() -> None:
    assert slots.life_of(slot(entry=entry(fresh=700)), NOW) == 700
    assert slots.life_of(slot(entry=entry(fresh=700, stale=300)), NOW) == 1000
    assert slots.life_of(slot(entry=msgspec.structs.replace(FRESH, swr_until=NOW + 4000)), NOW) == 4000
    assert slots.life_of(slot(lease=lease()), NOW) == 5000, "a dead holder frees the key by itself"
    assert slots.life_of(slot(entry=entry(fresh=9000), lease=lease()), NOW) == 9000
    assert slots.life_of(slot(entry=STALE, lease=Lease(new_id(), NOW + 6000, 1)), NOW) == 6000
    assert slots.life_of(slot(intents=(intent(NOW + 5), intent(NOW + 70), intent(NOW + 6))), NOW) == 70
    assert slots.life_of(slot(entry=entry(fresh=-50)), NOW) == 1, (
        "never 0, which servers take for ever or refuse"
    )
    forever = msgspec.structs.replace(FRESH, fresh_until=NEVER, swr_until=NEVER, sie_until=NEVER)
    assert slots.life_of(slot(entry=forever), NOW) is None
    assert slots.life_of(slot(entry=forever, lease=lease()), NOW) is None


# No two headers are alike


def test_every_transition_writes_the_nonce_that_it_was_given() -> None:
    """Without it two changes in one millisecond are one; a counter in its place repeats after a delete."""
    mine, token = intent(), new_id()
    held, intended = slot(entry=STALE, lease=Lease(token, NOW, 5)), slot(intents=(mine, intent()))
    nonce = b"\xffnonce\xff\xff"
    taken = slots.begin_load(None, now=NOW, lease_life=1, nonce=nonce, token=token)
    assert isinstance(taken, Take)
    for new in (
        taken.slot,
        slots.commit_load(held, token, FRESH, nonce=nonce),
        slots.renew_lease(held, token, now=NOW, nonce=nonce),
        slots.abandon(held, token, nonce=nonce)[1],
        slots.begin_write(held, mine, now=NOW, nonce=nonce),
        slots.commit_write(intended, mine.id, FRESH, now=NOW, nonce=nonce)[1],
        slots.commit_write(slot(intents=(mine,)), mine.id, FRESH, now=NOW, nonce=nonce)[1],
        slots.fail_write(intended, mine.id, now=NOW, nonce=nonce)[1],
        slots.renew_intent(intended, mine, now=NOW, nonce=nonce),
        slots.renew_intent(None, mine, now=NOW, nonce=nonce),
        slots.drop(intended, nonce=nonce),
        slots.store(None, FRESH, nonce=nonce)[1],
    ):
        assert new is not None
        assert new.nonce == nonce
        assert new.header[12:20] == nonce
        assert parse(new.header + new.payload) == new
