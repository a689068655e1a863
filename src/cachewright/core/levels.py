"""Reading down the chain, under leases placed above first; filling up with the entry's own times.

An entry carries absolute times, so a fill can never give it a second life. A lower tier is filled only after the
authority took the value: otherwise what a delete overtook would survive below.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cachewright.core import slot as slots
from cachewright.core.breaker import Level
from cachewright.core.flight import Flight
from cachewright.core.lease import Held, abandon_all, lease_life
from cachewright.core.slot import Hit, StoredEntry, Take
from cachewright.core.state import State, now_ms
from cachewright.errors import TierUnavailable
from cachewright.options import MISSING, Options
from cachewright.runtime.base import Runtime
from cachewright.tiers.base import Generation, Swap

NO_FLIGHTS: Mapping[str, Flight] = {}

__all__ = ["Below", "commit_down", "look_below", "place_leases"]


class Below:
    """What a look below found for one key.

    Attributes:
        entry, value: the fresh entry and its decoded value, or None and `MISSING`.
        tier: the name of the tier that had it.
        leases: our leases in the lower tiers that lacked it, to be committed or abandoned.
    """

    __slots__ = ("entry", "leases", "tier", "value")

    def __init__(self) -> None:
        self.entry: StoredEntry | None = None
        self.value: object = MISSING
        self.tier = ""
        self.leases: list[Held] = []


async def place_leases(
    state: State,
    rt: Runtime,
    level: Level,
    wanted: Mapping[str, slots.Slot | None],
    options: Options,
    invalid: Collection[str] = (),
    made: list[Held] | None = None,
    forced: Collection[str] = (),
    dead: Collection[str] = (),
    flights: Mapping[str, Flight] = NO_FLIGHTS,
) -> dict[str, Held]:
    """Leases on these keys (as they were just read), in one batch; a key whose swap is refused is left out.

    What stands under an ``invalid`` key is as good as absent; that a ``forced`` key's entry is fresh does not matter; a
    lease on a ``dead`` key is taken over. ``made`` gets every lease before it is placed.
    """
    swaps: list[Swap] = []
    held: list[Held] = made if made is not None else []
    for key, slot in wanted.items():
        token = rt.new_id()
        verdict = slots.begin_load(
            slot,
            now=now_ms(rt),
            lease_life=lease_life(state, rt, options),
            nonce=rt.new_id(),
            token=token,
            valid=level is state.chain.authority and key not in invalid,  # below, all is about to be replaced
            forced=key in forced,
            # Below, only the authority's lease counts.
            takeover=level is not state.chain.authority or key in dead,
        )
        if isinstance(verdict, Take):
            swaps.append(Swap(key, slot, verdict.slot))
            held.append(Held(state, level, key, token, verdict.slot, flights.get(key)))
    if not swaps:
        return {}
    try:
        done = await level.swap(rt, swaps)
    except GeneratorExit:  # collected with its loop: nothing can be awaited any more
        raise
    except BaseException as error:
        # Some may be placed all the same, by other nodes, or because a caller was cancelled meanwhile: nobody else's
        # load of those keys should wait for a whole life of them.
        if level.tier.sharded or not isinstance(error, TierUnavailable):
            await abandon_all(rt, held)
        else:
            for one in held:
                one.orphan(rt)
        raise
    return {one.key: one for one, swapped in zip(held, done, strict=True) if swapped.done}


async def look_below(
    state: State,
    rt: Runtime,
    keys: list[str],
    options: Options,
    generations: Mapping[str, Generation] | None,
    *,
    lease: bool,
    take: bool = True,
) -> dict[str, Below]:
    """Looks for fresh entries in the lower tiers, nearest first. A tier that is down is passed over.

    Args:
        generations: those that were read with the keys; None: the authority cannot be asked for any, so only entries
            without users' tags are taken (to ask it all the same would cost a second deadline).
        lease: leave a lease in every lower tier that lacked a key, placed before the next tier is read.
        take: False places leases only (a refresh: what stands below does not end it).
    """
    found = {key: Below() for key in keys}
    open_keys = list(keys)
    for level in state.chain.lowers:
        if not open_keys:
            break
        try:
            standing, _ = await level.read(rt, open_keys)
            for key in list(open_keys) if take else ():
                if await _take(state, rt, level, standing.get(key), found[key], key, options, generations):
                    open_keys.remove(key)
            if lease and open_keys:
                held = await place_leases(state, rt, level, {k: standing.get(k) for k in open_keys}, options)
                for key, one in held.items():
                    found[key].leases.append(one)
        except TierUnavailable:
            if state.strict:
                raise
    return found


async def _take(
    state: State,
    rt: Runtime,
    level: Level,
    slot: slots.Slot | None,
    below: Below,
    key: str,
    options: Options,
    generations: Mapping[str, Generation] | None,
) -> bool:
    verdict = slots.begin_load(slot, now=now_ms(rt), lease_life=1, nonce=b"", token=b"")
    if not isinstance(verdict, Hit):
        return False
    if generations is None:
        valid = state.born_under(verdict.entry, state.own_generations())
    else:
        valid = await state.is_valid(rt, verdict.entry, generations)
    if not valid:
        return False
    value = state.value_of(key, verdict.entry, options.type, level.tier.name)
    if value is MISSING:
        return False
    below.entry, below.value, below.tier = verdict.entry, value, level.tier.name
    return True


async def commit_down(rt: Runtime, below: Below | None, entry: StoredEntry | None) -> None:
    """After the authority: commits the entry that it took to the lower leases; None abandons them."""
    for held in below.leases if below is not None else ():
        if entry is not None:
            await held.commit(rt, entry)
        else:
            await held.abandon(rt)
