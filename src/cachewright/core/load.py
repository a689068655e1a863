"""Loading a key: join or lead its flight. What a leader does is in `leading`; `get_or_load` is the way in.

Who waits, and for how long, is decided here: soft and hard timeouts, cancelled leaders, loops that stopped.
"""

from __future__ import annotations

from typing import Any

from cachewright.core.context import check_recursion, current_load, outside
from cachewright.core.flight import ABSENT, NOBODY_ASKED, Flight, Joined, Outcome, Phase
from cachewright.core.leading import Leading, Plan
from cachewright.core.stale import served_stale, stale_now
from cachewright.core.state import State
from cachewright.errors import LoadTimeout
from cachewright.events import RefreshFailed
from cachewright.options import MISSING
from cachewright.runtime.base import Runtime, Waiter

__all__ = ["LOOK_AGAIN", "follow", "get_or_load"]

MAX_HANDED_ON = 100  # leaders who were taken away, before one who followed them all goes on alone
LOOK_AGAIN = 0.5  # seconds after which one who waits makes sure that the leader still lives


async def get_or_load(state: State, rt: Runtime, plan: Plan, started: float | None = None) -> Any:
    """The key's value: found, or loaded once for all who ask. ``started``: from when on the timeouts count, if not now.

    Raises:
        LoadTimeout: ``load_timeout`` passed and no stale value may be used.
        RecursiveLoadError: the loader of this key asked for it.
        Exception: whatever the loader raised, where no stale value may be used.
    """
    # The timeouts count from here, however often this caller has to begin anew.
    started = rt.monotonic() if started is None else started
    # One who cannot use a flight's result goes round again; the third time alone, so that nobody starves.
    turn = handed_on = 0
    while turn < 3:
        mine = Flight(plan.forced)
        try:
            if turn < 2:
                flight, joined, waiter = state.flights.join(state, plan.key, rt, mine)
            else:
                check_recursion(current_load(), state, plan.key)
                flight, joined, waiter = mine, (Phase.STARTED, 0), None
            leads = waiter is None
            if waiter is None:
                if not plan.options.background:
                    return await _lead(state, rt, plan, flight)
                waiter = rt.waiter()
                flight.waiters.append(waiter)
                _lead_behind(state, rt, plan, flight)
        except BaseException:
            # A signal handler may raise between any two steps: then a flight that can be joined has no leader.
            if mine.outcome is None:
                state.flights.finish(plan.key, mine, Outcome.HANDED_ON)
            raise
        value = await follow(state, rt, plan, flight, joined, waiter, started)
        if value is not MISSING:
            return value
        if leads and flight.outcome is not Outcome.HANDED_ON:
            return flight.value  # a loader of many keys left this one out
        # Of those who wait together one leads next; alone, each would wait for that one's lease.
        if flight.outcome is Outcome.HANDED_ON and not leads and handed_on < MAX_HANDED_ON:
            handed_on += 1
        else:
            turn += 1
    return await _lead(state, rt, plan, Flight(plan.forced))  # what leads behind the caller is being stopped


def refresh_behind(state: State, rt: Runtime, plan: Plan) -> None:
    """Starts one refresh of the key in the background of this process; a second call meanwhile does nothing.

    It flies alone, so that readers need not wait for it: they find the stale or fresh entry beside its lease.
    """

    async def refresh() -> None:
        try:
            await _lead(state, rt, plan, Flight(plan.forced))
        except Exception as error:
            state.hub.emit(RefreshFailed(plan.key, error))
        finally:
            state.refreshing.pop(plan.key, None)

    try:
        if state.claim_refresh(plan.key):
            with outside():
                job = state.spawn(rt, refresh, f"refresh of {plan.key}")
            state.refresh_runs(plan.key, job)
    except BaseException:
        state.refreshing.pop(plan.key, None)  # interrupted: at worst a second one starts
        raise


def _lead_behind(state: State, rt: Runtime, plan: Plan, flight: Flight) -> None:
    async def lead() -> None:
        try:
            await _lead(state, rt, plan, flight)
        except Exception as error:
            # Those who still wait have it from the flight; where all have stopped waiting it must not be lost.
            if not flight.heard:
                state.hub.emit(RefreshFailed(plan.key, error))

    # From now on: a blocking call on this loop's thread would keep it from its first step.
    flight.thread, _ = rt.whoami()
    job = state.spawn(rt, lead, f"load of {plan.key}")
    if flight.leader_alive is NOBODY_ASKED:
        # Until it runs: a cache that closes cancels what has not started, and those who wait must lead themselves.
        flight.leader_alive = job.goes_on


async def _lead(state: State, rt: Runtime, plan: Plan, flight: Flight) -> Any:
    flight.thread, flight.leader_alive = rt.whoami()
    leading = Leading(state, rt, plan, flight, refresh_behind)
    try:
        outcome, flight.value = await leading.run()
    except Exception as error:
        flight.error = error
        state.flights.finish(plan.key, flight, Outcome.FAILED)
        raise
    except BaseException:
        # Cancelled, or the interpreter is stopping: that is this caller's fate alone; another leads.
        state.flights.finish(plan.key, flight, Outcome.HANDED_ON)
        raise
    finally:
        leading.let_go()
    state.flights.finish(plan.key, flight, outcome)
    return flight.value


async def follow(
    state: State, rt: Runtime, plan: Plan, flight: Flight, joined: Joined, waiter: Waiter, started: float
) -> Any:
    """Waits for a flight; its value, or `MISSING` where this caller must not take it."""
    soft, hard = plan.options.soft_timeout, plan.options.load_timeout
    try:
        while flight.outcome is None:
            waited = rt.monotonic() - started
            if soft is not None and waited >= soft and not plan.forced:
                soft = None
                stale = await _stale_now(state, rt, plan)
                if stale is not MISSING:
                    return stale
            if hard is not None and waited >= hard:
                # who forced a load would take what stood before for its result: a schedule's hung origin looked well
                stale = MISSING if plan.forced else await _stale_now(state, rt, plan, on_error=True)
                if stale is not MISSING:
                    return stale
                raise LoadTimeout(f"{plan.key!r} was not loaded within load_timeout={hard:g} s")
            ends = [limit - waited for limit in (soft, hard) if limit is not None and limit > waited]
            if not await rt.wait(waiter, min([*ends, LOOK_AGAIN])) and not flight.leader_alive():
                state.flights.finish(plan.key, flight, Outcome.HANDED_ON)
    finally:
        state.flights.left(flight, waiter)
    if not flight.usable(joined) or (plan.forced and flight.outcome is Outcome.FOUND):
        return MISSING
    if flight.error is not None:
        raise flight.error
    return MISSING if flight.value is ABSENT else flight.value


async def _stale_now(state: State, rt: Runtime, plan: Plan, *, on_error: bool = False) -> Any:
    found = await stale_now(state, rt, (plan.key,), plan.tags, plan.options.type, on_error=on_error)
    served_stale(state, list(found), "timeout")
    return found.get(plan.key, MISSING)
