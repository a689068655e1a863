"""The intents of a write: placed before its save, kept alive while it runs, and never left standing for nobody.

While one stands, loads of its key are served and not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cachewright.core import slot as slots
from cachewright.core.lease import MAX_REFUSED
from cachewright.core.slot import Intent, Slot
from cachewright.core.state import State, now_ms
from cachewright.errors import TierError, TierProtocolError, TierUnavailable
from cachewright.runtime.base import Job, Runtime, next_renewal
from cachewright.tiers.base import Swap

__all__ = ["SETTLE_SECONDS", "Write", "Writing", "forbid_storing", "place", "refuses", "take_out"]

INTENT_SECONDS = 30.0
SETTLE_SECONDS = 5.0
AGAIN_SECONDS = 0.2


class Write:
    """One key's intent, from before the save to after it.

    Attributes:
        slot: what we believe stands.
        sent: a slot with the intent that was sent and not answered: it may stand.
        confirmed: it stood at least once.
        closings: see `State.closings`.
    """

    __slots__ = ("closings", "confirmed", "id", "key", "sent", "slot")

    def __init__(self, state: State, rt: Runtime, key: str) -> None:
        self.key, self.id, self.closings = key, rt.new_id(), state.closings
        self.slot: Slot | None = None
        self.sent: Slot | None = None
        self.confirmed = False

    def may_stand(self) -> None:
        """What was confirmed once may stand, whatever became of it since."""
        if self.confirmed and self.sent is None:
            self.sent = self.slot


class Writing:
    """The intents of one write, and whether they are over: a late beat must not assert them again."""

    __slots__ = ("keys", "over")

    def __init__(self, keys: list[Write]) -> None:
        self.keys, self.over = keys, False

    def start_heartbeat(self, state: State, rt: Runtime) -> Job:
        """Renews them every third of their life."""
        pause = INTENT_SECONDS / 3

        async def beat() -> float | None:
            began = rt.monotonic()
            answered = await renew(state, rt, self.keys, INTENT_SECONDS, lambda: self.over)
            return None if self.over else next_renewal(rt, began, pause, answered)

        return rt.every(pause, beat, f"intent of {self.keys[0].key}")


async def place(state: State, rt: Runtime, writes: list[Write]) -> None:
    """Places them in the authority, whatever stands there.

    Raises:
        TierUnavailable: some or all are unconfirmed.
        TierProtocolError: the tier refuses for ever.
    """
    todo = writes
    for _ in range(MAX_REFUSED):
        swaps = []
        for one in todo:
            one.id = rt.new_id()  # fresh in every send: an id whose fate is unknown is never used again
            now = now_ms(rt)
            intent = Intent(one.id, now + int(INTENT_SECONDS * 1000))
            one.sent = slots.begin_write(one.slot, intent, now=now, nonce=rt.new_id())
            swaps.append(Swap(one.key, one.slot, one.sent))
        results = await state.chain.authority.swap(rt, swaps)
        refused = []
        for one, swap, swapped in zip(todo, swaps, results, strict=True):
            one.sent = None
            one.confirmed = swapped.done
            one.slot = swap.new if swapped.done else swapped.current
            if not swapped.done:
                refused.append(one)
        todo = refused
        if not todo:
            return
    raise refuses(state)


def refuses(state: State) -> TierProtocolError:
    """What is raised of a tier that takes no swap."""
    name = state.chain.authority.tier.name
    return TierProtocolError(name, f"refused {MAX_REFUSED:,} swaps of a write in a row")


async def renew(
    state: State,
    rt: Runtime,
    writes: Sequence[Write],
    seconds: float,
    over: Callable[[], bool] = lambda: False,
) -> bool:
    """They stand for so much longer; one that is gone (evicted) is asserted again. False: for some there was no answer."""
    answered, authority = True, state.chain.authority
    for one in writes:
        for _ in range(5):
            if over():
                return True
            now = now_ms(rt)
            intent = Intent(one.id, now + int(seconds * 1000))
            new = slots.renew_intent(one.slot, intent, now=now, nonce=rt.new_id())
            try:
                swapped = await authority.swap_one(rt, one.key, one.slot, new)
            except TierError as error:
                authority.missed(rt, [one.key])
                one.sent = new
                answered = answered and not isinstance(error, TierUnavailable)
                if not authority.tier.sharded:
                    return answered
                break  # another key's node may answer
            one.slot = new if swapped.done else swapped.current
            if swapped.done:
                break
    return answered


async def forbid_storing(state: State, rt: Runtime, writes: Sequence[Write], settle: float) -> None:
    """After a save of unknown outcome: for ``settle`` seconds nothing is stored, and then the intents end by themselves.

    Where the tier does not answer, it hears of the keys when it is back. That alone forbids nothing: what a reader then
    stores may be what the save replaces a moment later. So they are asserted as soon as it answers; and where it does not
    in all that time, it hears of the keys once more after it.
    """
    if await renew(state, rt, writes, settle):
        return

    until = rt.monotonic() + settle

    async def again() -> float | None:
        left = until - rt.monotonic()
        if left <= 0:
            state.chain.authority.missed(rt, [one.key for one in writes])
            return None
        return None if await renew(state, rt, writes, left) else AGAIN_SECONDS

    state.repeat(rt, AGAIN_SECONDS, again, f"a save of unknown outcome of {writes[0].key}")


def take_out(state: State, rt: Runtime, writes: Sequence[Write]) -> None:
    """The write is over: intents that were sent and never answered go as soon as the tier answers again."""
    for one in writes:
        if one.sent is not None and state.closings == one.closings:
            state.orphans.add(rt, one.id, INTENT_SECONDS + 1, partial(_is_out, state, one, one.sent))
        one.sent = None


async def _is_out(state: State, one: Write, slot: Slot | None, rt: Runtime) -> bool:
    """Takes the intent out where it stands; False: the tier did not answer.

    By swaps alone: a read counts as absent what its tier has yet to hear of, and this key may be that.
    """
    try:
        for _ in range(MAX_REFUSED):
            if state.closings != one.closings:
                break
            change, new = slots.fail_write(slot, one.id, now=now_ms(rt), nonce=rt.new_id())
            if not change:
                break
            swapped = await state.chain.authority.swap_one(rt, one.key, slot, new)
            if swapped.done:
                break
            slot = swapped.current
    except TierUnavailable:
        return False
    except TierError:
        return True  # it ends by itself
    return True
