"""The races that the protocol rests on, with real concurrency, on every tier: threads, and tasks of one loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cachewright.core import slot as slots
from cachewright.core.slot import Slot
from cachewright.tiers.base import Swap

WORKERS = 8


def test_one_winner_a_round(kit: Any) -> None:
    """Eight swap one key from the same state: one is done, and seven are told what the winner wrote."""
    standing: Slot | None = None
    for turn in range(6):
        news = [kit.stored(b"%d" % n) if turn % 2 else kit.leased() for n in range(WORKERS)]
        if turn == 3:
            news = [kit.stored(b"%d" % n * 50_000) for n in range(WORKERS)]  # Redis: the way of large values

        def work(new: Slot, standing: Slot | None = standing) -> Callable[..., Any]:
            return lambda rt: kit.tier.swap(rt, [Swap("k", standing, new)])

        results = [result[0] for result in kit.at_once([work(new) for new in news])]
        winners = [new for new, result in zip(news, results, strict=True) if result.done]
        assert len(winners) == 1
        stands = kit.slot("k")
        assert stands.header == winners[0].header
        for result in results:
            assert result.done or result.current.header == stands.header
        standing = stands


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_no_change_is_lost(kit: Any, large: bool) -> None:
    """Eight add to one payload by read and swap, again where refused: a lost update would be missing in the end."""
    pad = b"." * (40_000 if large else 0)
    kit.put("k", kit.stored(b"0" + pad))
    each = 4 if large else 10

    async def add(rt: Any) -> None:
        for _ in range(each):
            seen = (await kit.tier.read(rt, ["k"]))[0]["k"]
            while True:
                count = int(seen.payload.rstrip(b"."))
                result = (await kit.tier.swap(rt, [Swap("k", seen, kit.stored(b"%d" % (count + 1) + pad))]))[
                    0
                ]
                if result.done:
                    break
                seen = result.current

    kit.at_once([add] * WORKERS)
    assert int(kit.slot("k").payload.rstrip(b".")) == WORKERS * each


def test_a_drop_beats_every_commit_that_it_overlaps(kit: Any) -> None:
    """Whichever is first: after both, nothing of the lease's holder stands unless it came after the drop; it cannot."""
    for turn in range(12):
        key = f"k{turn}"
        lease = kit.put(key, kit.leased())
        entry = kit.entry(b"old")

        async def commit(rt: Any, key: str = key, lease: Slot = lease, entry: Any = entry) -> bool:
            new = slots.commit_load(lease, lease.lease.token, entry, nonce=kit.new_id())  # type: ignore[union-attr]
            return bool((await kit.tier.swap(rt, [Swap(key, lease, new)]))[0].done)

        async def drop(rt: Any, key: str = key) -> bool:
            return bool((await kit.tier.drop(rt, [key]))[0])

        committed, dropped = kit.at_once([commit, drop])
        assert kit.slot(key) is None
        assert dropped == committed, "an entry went exactly where one had come first"


def test_a_renewal_never_revives_what_a_drop_took(kit: Any) -> None:
    for turn in range(12):
        key = f"k{turn}"
        lease = kit.put(key, kit.leased(kit.entry() if turn % 2 else None))

        async def renew(rt: Any, key: str = key, lease: Slot = lease) -> None:
            assert lease.lease is not None
            new = slots.renew_lease(lease, lease.lease.token, now=kit.now() + 1000, nonce=kit.new_id())
            await kit.tier.swap(rt, [Swap(key, lease, new)])

        async def drop(rt: Any, key: str = key) -> None:
            await kit.tier.drop(rt, [key])

        kit.at_once([renew, drop])
        assert kit.slot(key) is None


def test_intents_survive_drops_stores_and_each_other(kit: Any) -> None:
    """Writers place their intents while others drop and store: every intent stands in the end, contended."""
    for turn in range(6):
        key = f"k{turn}"

        async def write(rt: Any, key: str = key) -> bytes:
            seen = (await kit.tier.read(rt, [key]))[0].get(key)
            while True:
                intent = kit.intent()
                new = slots.begin_write(seen, intent, now=kit.now(), nonce=kit.new_id())
                result = (await kit.tier.swap(rt, [Swap(key, seen, new)]))[0]
                if result.done:
                    return bytes(intent.id)
                seen = result.current

        async def drop(rt: Any, key: str = key) -> None:
            await kit.tier.drop(rt, [key])

        async def store(rt: Any, key: str = key) -> None:
            await kit.tier.store(rt, {key: kit.stored(b"set")})

        ids = kit.at_once([write, drop, write, store, write, drop, store, write])
        slot = kit.slot(key)
        assert {intent.id for intent in slot.intents} == {one for one in ids if one is not None}
        assert slot.contended
        assert slot.entry is None


def test_a_store_beside_a_lease_takes_the_commit_away(kit: Any) -> None:
    for turn in range(12):
        key = f"k{turn}"
        lease = kit.put(key, kit.leased())

        async def commit(rt: Any, key: str = key, lease: Slot = lease) -> None:
            await kit.tier.swap(rt, [Swap(key, lease, kit.stored(b"loaded"))])

        async def store(rt: Any, key: str = key) -> bool:
            return bool((await kit.tier.store(rt, {key: kit.stored(b"set")}))[0])

        assert kit.at_once([commit, store])[1]
        assert kit.slot(key).payload == b"set"


def test_two_processes_are_no_different(kit: Any) -> None:
    """The same race through two tiers, each with connections of its own."""
    if kit.kind == "memory":
        pytest.skip("process memory belongs to one cache")
    tiers = [kit.tier, kit.another()]
    standing = kit.put("k", kit.stored())
    for _ in range(5):
        news = [kit.stored(b"%d" % n) for n in range(WORKERS)]

        def work(n: int, new: Slot, standing: Slot = standing) -> Callable[..., Any]:
            return lambda rt: tiers[n % 2].swap(rt, [Swap("k", standing, new)])

        results = kit.at_once([work(n, new) for n, new in enumerate(news)])
        assert sum(result[0].done for result in results) == 1
        standing = kit.slot("k")
