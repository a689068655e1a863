"""The faults. Nothing of cachewright is imported here: a mutant must be in place before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A fault: in ``module``, ``old`` becomes ``new``; ``scenarios`` are tried in this order."""

    name: str
    module: str
    old: str
    new: str
    scenarios: tuple[str, ...]

    def applied(self, source: str) -> str:
        """The module's source with the fault in it.

        Raises:
            ValueError: the place is not there exactly once: the code has changed, the mutant must follow.
        """
        if source.count(self.old) != 1:
            raise ValueError(
                f"mutant {self.name}: its place stands {source.count(self.old)} times in {self.module}"
            )
        return source.replace(self.old, self.new)


_LOADS, _WRITES = ("loads_and_changes",), ("writes",)
_SLOT, _FLIGHT, _LEADING = "cachewright.core.slot", "cachewright.core.flight", "cachewright.core.leading"
_LEASE, _WRITE, _LOAD = "cachewright.core.lease", "cachewright.core.write", "cachewright.core.load"

_LIST = (
    Mutant(
        "a_load_commits_without_its_lease",
        _SLOT,
        "    if not holds(slot, token):\n        return None\n    return Slot(nonce, entry=entry)",
        "    return Slot(nonce, entry=entry)",
        _LOADS,
    ),
    Mutant(
        "the_last_of_two_writers_stores",
        _SLOT,
        "if mine and not rest and not slot.contended:",
        "if mine and not rest:",
        _WRITES,
    ),
    Mutant(
        "the_first_of_two_writers_leaves_no_mark",
        _SLOT,
        "        return True, Slot(nonce, intents=live, contended=True)",
        "        return True, Slot(nonce, intents=live)",
        _WRITES,
    ),
    Mutant(
        "a_write_that_failed_leaves_no_mark",
        _SLOT,
        "(Slot(nonce, intents=rest, contended=True) if rest else None)",
        "(Slot(nonce, intents=rest) if rest else None)",
        _WRITES,
    ),
    Mutant(
        "a_writer_whose_intent_is_gone_leaves_what_stands",
        _SLOT,
        "        return True, Slot(nonce, intents=live, contended=True)\n    return True, None",
        "        return True, Slot(nonce, intents=live, contended=True)\n    return mine, None",
        ("backfills",),
    ),
    Mutant(
        "a_drop_takes_intents_away",
        _SLOT,
        "    if slot is None or not slot.intents:\n        return None\n    return Slot(nonce, intents=slot.intents",
        "    if slot is not None:\n        return None\n    return Slot(nonce, intents=slot.intents",
        _WRITES,
    ),
    Mutant(
        "a_drop_does_not_mark_intents",
        _SLOT,
        "        return None\n    return Slot(nonce, intents=slot.intents, contended=True)\n\n\ndef store",
        "        return None\n    return Slot(nonce, intents=slot.intents, contended=slot.contended)\n\n\ndef store",
        _WRITES,
    ),
    Mutant(
        "a_load_stores_under_an_intent",
        _SLOT,
        "    if slot.newer or slot.intents:\n        return Blocked()",
        "    if slot.newer:\n        return Blocked()",
        _WRITES,
    ),
    Mutant(
        "anybody_gives_a_lease_back",
        _SLOT,
        "    if not holds(slot, token):\n        return False, None\n    assert slot is not None",
        "    if slot is None or slot.lease is None:\n        return False, None",
        _LOADS,
    ),
    Mutant(
        "a_heartbeat_makes_its_lease_anew",
        _SLOT,
        "    if slot is None or slot.lease is None or slot.lease.token != token:\n        return None",
        "    if slot is None or slot.lease is None or slot.lease.token != token:\n"
        "        return Slot(nonce, lease=Lease(token, now + 5000, 5000))",
        ("lives", "loads_and_changes", "writes"),
    ),
    Mutant(
        "late_joiners_get_what_was_loaded_before",
        _FLIGHT,
        "return phase < Phase.LOADING or (self.confirmed and not self.spoiled)",
        "return True",
        _LOADS,
    ),
    Mutant(
        "late_joiners_get_what_was_found_before",
        _FLIGHT,
        "return phase <= Phase.STARTED or round_ < self.round",
        "return True",
        _LOADS,
    ),
    Mutant(
        "tags_that_changed_do_not_spoil_a_flight",
        _FLIGHT,
        "(self.confirmed and not self.spoiled)",
        "self.confirmed",
        ("tags",),
    ),
    Mutant(
        "a_flight_takes_joiners_while_it_commits",
        _LEADING,
        "            state.flights.close(plan.key, self.flight)\n            await self._commit",
        "            await self._commit",
        _LOADS,
    ),
    Mutant(
        "a_failed_flight_takes_joiners",
        _LEADING,
        "        state.flights.close(plan.key, self.flight)\n        error_ttl",
        "        error_ttl",
        _WRITES,
    ),
    Mutant(
        "memory_is_filled_by_a_ticket_taken_late",
        _LEADING,
        "state.fill(rt, self.ticket, value, entry, plan.options)",
        "state.fill(rt, state.ticket(plan.key), value, entry, plan.options)",
        _LOADS,
    ),
    Mutant(
        "memory_is_filled_although_the_lease_was_lost",
        _LEADING,
        "            if taken:\n                state.fill(rt, self.ticket, loaded",
        "            if taken or self.ticket:\n                state.fill(rt, state.ticket(plan.key), loaded",
        _LOADS,
    ),
    Mutant(
        "memory_counts_local_ttl_from_its_filling",
        "cachewright.core.state",
        "self.local_ttl - (rt.monotonic() - (ticket.taken if seen is None else seen))",
        "self.local_ttl",
        _WRITES,
    ),
    Mutant(
        "lower_tiers_are_filled_without_the_authority",
        _LEADING,
        "            await commit_down(rt, below, entry if taken else None)\n            state.hub.emit(LoadedEvent",
        "            await commit_down(rt, below, entry)\n            state.hub.emit(LoadedEvent",
        ("writers_that_crash",),
    ),
    Mutant(
        "a_backfill_needs_no_lease",
        _LEADING,
        "        taken = await held.commit(rt, entry)\n        await commit_down(rt, below, entry if taken",
        "        taken = all(await state.chain.authority.store(rt, {self.plan.key: Slot(rt.new_id(), entry)}))\n"
        "        await commit_down(rt, below, entry if taken",
        ("backfills", "loads_and_changes"),
    ),
    Mutant(
        "a_lost_commit_hands_its_value_on",
        _LEADING,
        "self.flight.confirmed = taken = await held.commit(rt, entry)",
        "taken = await held.commit(rt, entry)\n            self.flight.confirmed = True",
        _LOADS,
    ),
    Mutant(
        "cancellation_is_shared",
        _LOAD,
        "    except Exception as error:\n        flight.error = error\n",
        "    except BaseException as error:\n        flight.error = error  # type: ignore\n",
        _LOADS,
    ),
    Mutant(
        "a_living_lease_is_taken_over",
        _LEASE,
        "return rt.monotonic() - self._since >= lease.life / 1000",
        "return True",
        _LOADS,
    ),
    Mutant(
        "a_dead_lease_is_never_taken_over",
        _LEASE,
        "        if now_ms(rt) > lease.deadline + TAKEOVER_MARGIN_MS:\n            return True\n",
        "        if lease.life:\n            return False\n",
        ("lives", "writes"),
    ),
    Mutant(
        "no_heartbeat",
        _LEADING,
        "            held.start_heartbeat(rt)\n            loaded",
        "            loaded",
        ("lives",),
    ),
    Mutant(
        "memory_is_not_told_of_own_changes",
        "cachewright.core.state",
        "        if self.chain.local is not None:\n            self.chain.local.kill(keys)\n        self.flights",
        "        self.flights",
        _LOADS,
    ),
    Mutant(
        "fills_under_way_outlive_a_kill",
        "cachewright.tiers.memory",
        "            pending.dead = True",
        "            pending.dead = False",
        _LOADS,
    ),
    Mutant(
        "the_authority_is_dropped_before_the_lower_tiers",
        _WRITE,
        "    failed = await drop_lowers(state, rt, keys)\n    gone = [False] * len(keys)\n",
        "    failed = None\n    gone = [False] * len(keys)\n    await state.chain.authority.drop(rt, keys)\n"
        "    await drop_lowers(state, rt, keys)\n    return gone\n",
        _LOADS,
    ),
    Mutant(
        "a_write_leaves_the_lower_tiers_until_its_end",
        _WRITE,
        "    below = await drop_lowers(state, rt, keys)\n    state.kill_local(keys)\n    if below is not None",
        "    below = None\n    state.kill_local(keys)\n    if below is not None",
        ("writers_that_crash",),
    ),
    Mutant(
        "an_unknown_outcome_takes_its_intent_away",
        _WRITE,
        "    except certain:\n",
        "    except Exception:\n",
        _WRITES,
    ),
    Mutant(
        "a_write_puts_no_intent_in",
        _WRITE,
        "        await _place(state, rt, writes)\n",
        "        await state.chain.authority.drop(rt, keys)\n",
        _WRITES,
    ),
    Mutant(
        "intents_end_before_the_save_can_land",
        _WRITE,
        "INTENT_SECONDS = 30.0\nSETTLE_SECONDS = 5.0",
        "INTENT_SECONDS = 0.1\nSETTLE_SECONDS = 0.1",
        _WRITES,
    ),
    Mutant(
        "a_write_stores_before_it_saves",
        _WRITE,
        "        result = await save()\n",
        "        await _finish(state, rt, writing, entries, failed=False)\n        result = await save()\n",
        _WRITES,
    ),
)

MUTANTS = {mutant.name: mutant for mutant in _LIST}
