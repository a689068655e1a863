"""Faults in what a process has yet to tell a tier, and in the small conditions at the end of loads and reads."""

from __future__ import annotations

from tests.sim.mutations.mutant import Mutant

_WRITE, _INTENTS, _AIMED = "cachewright.core.write", "cachewright.core.intents", ("aimed",)

FORGOTTEN = (
    Mutant(
        "a_write_that_could_place_no_intent_is_forgotten",
        _WRITE,
        "    if failed is not None:\n        state.chain.authority.missed(rt, keys)\n    writing",
        "    writing",
        _AIMED,
    ),
    Mutant(
        "an_end_of_a_write_that_did_not_get_through_is_forgotten",
        _WRITE,
        "        state.chain.authority.missed(rt, [one.key for one in todo])\n        error = error or caught",
        "        error = error or caught",
        _AIMED,
    ),
    Mutant(
        "a_write_without_an_intent_is_not_told_again",
        _WRITE,
        "    if unguarded:\n        state.chain.authority.missed(rt, unguarded)\n",
        "",
        _AIMED,
    ),
    Mutant(
        "a_write_without_an_intent_drops_nothing_in_the_end",
        _WRITE,
        "        if unguarded:\n            await state.chain.authority.drop(rt, unguarded)\n",
        "",
        _AIMED,
    ),
    Mutant(
        "an_intent_that_could_not_be_renewed_is_forgotten",
        _INTENTS,
        "                authority.missed(rt, [one.key])\n                one.sent = new\n",
        "                return True\n",
        _AIMED,
    ),
    Mutant(
        "a_plain_store_leaves_what_came_below_meanwhile",
        _WRITE,
        "    failed = await drop_lowers(state, rt, list(values)) or failed\n    state.kill_local",
        "    state.kill_local",
        ("atomic",),
    ),
    Mutant(
        "what_is_missed_during_a_replay_is_forgotten_with_it",
        "cachewright.core.breaker",
        "        if missed.get(name) == number:",
        "        if name in missed:",
        _AIMED,
    ),
    Mutant(
        "a_stale_value_answers_though_its_tag_changed",
        "cachewright.core.stale",
        "            if await state.is_valid(rt, entry, generations):\n",
        "            if True:\n",
        _AIMED,
    ),
    Mutant(
        "a_lease_is_taken_over_after_half_a_life",
        "cachewright.core.lease",
        "self._since >= lease.life / 1000",
        "self._since >= lease.life / 2000",
        _AIMED,
    ),
    Mutant(
        "a_batch_confirms_what_it_could_not_store",
        "cachewright.core.loading_many",
        "self.flights[key].confirmed = key in confirmed",
        "self.flights[key].confirmed = True",
        _AIMED,
    ),
    Mutant(
        "memory_is_filled_by_a_read_whose_lease_was_lost",
        "cachewright.core.read",
        "            if took:\n",
        "            if took or lease:\n",
        _AIMED,
    ),
    Mutant(
        "load_timeout_does_not_bound_a_batch",
        "cachewright.core.batch",
        "            if hard is not None and waited >= hard:\n",
        "            if hard is not None and waited >= 9 * hard:\n",
        ("freshness",),
    ),
    Mutant(
        "soft_timeout_does_not_bound_a_batch",
        "cachewright.core.batch",
        "            if soft is not None and waited >= soft:\n",
        "            if soft is not None and waited >= 99 * soft:\n",
        ("freshness",),
    ),
    Mutant(
        "a_batch_serves_a_stale_value_though_its_tag_changed",
        "cachewright.core.leading_many",
        "        if why is None or not await self.state.is_valid(self.rt, entry, self.generations):\n",
        "        if why is None:\n",
        ("tags", "freshness", *_AIMED),
    ),
    Mutant(
        "an_add_is_sent_without_a_lease_before_it",
        "cachewright.core.edit",
        "            if slot is None and new.entry is not None and not state.chain.in_memory:\n",
        "            if not state:\n",
        ("atomic",),
    ),
)
