"""Faults in tags, outages, atomic operations and lives."""

from __future__ import annotations

from tests.sim.mutations.mutant import Mutant

_LEADING, _WRITE = "cachewright.core.leading", "cachewright.core.write"

SURROUNDINGS = (
    Mutant(
        "tags_are_captured_after_the_load",
        _LEADING,
        "        marks = {**marks, **(late_marks or {})}\n",
        "        marks = {**(await state.capture(rt, tuple(marks), {})), **(late_marks or {})}\n",
        ("tags",),
    ),
    Mutant(
        "late_tags_are_not_judged",
        "cachewright.core.loader",
        "        if standing[tag].mark != proposed[tag] and standing[tag].changed >= began:\n            return None\n",
        "        if not tag:\n            return None\n",
        ("tags",),
    ),
    Mutant(
        "late_joiners_trust_tags_unread",
        _LEADING,
        "            self.flight.spoiled = not await state.still_stand(rt, marks)",
        "            self.flight.spoiled = False",
        ("tags",),
    ),
    Mutant(
        "memory_is_not_told_of_own_tag_changes",
        _WRITE,
        "    if state.chain.local is not None:\n        state.chain.local.kill_tags(names)\n",
        "",
        ("tags",),
    ),
    Mutant(
        "a_drop_that_failed_is_forgotten",
        "cachewright.core.breaker",
        '            return await self._guard(rt, "drop", (), lambda: self.tier.drop(rt, keys))\n'
        "        except TierUnavailable:\n            self.missed(rt, keys)\n            raise",
        '            return await self._guard(rt, "drop", (), lambda: self.tier.drop(rt, keys))\n'
        "        except TierUnavailable:\n            raise",
        ("outages",),
    ),
    Mutant(
        "a_tier_is_trusted_before_the_replay",
        "cachewright.core.breaker",
        "        if self.behind:\n            await self._catch_up(rt, keys)\n",
        "",
        ("outages",),
    ),
    Mutant(
        "a_change_is_swapped_without_comparing",
        "cachewright.core.edit",
        "                done = (await state.chain.authority.swap_one(rt, key, slot, new)).done\n",
        "                now = (await state.chain.authority.read(rt, (key,)))[0].get(key)\n"
        "                done = (await state.chain.authority.swap_one(rt, key, now, new)).done\n",
        ("atomic",),
    ),
    Mutant(
        "memory_is_not_told_of_own_edits",
        "cachewright.core.edit",
        "        if done:\n            state.kill_local((key,))\n            return True",
        "        if done:\n            return True",
        ("atomic",),
    ),
    Mutant(
        "an_edit_leaves_the_lower_tiers",
        "cachewright.core.edit",
        "        failed = await drop_lowers(state, rt, (key,))\n",
        "        failed = None\n",
        ("atomic",),
    ),
    Mutant(
        "a_fill_from_below_begins_a_new_life",
        _LEADING,
        "                if below.entry is not None:\n                    return",
        "                if below.entry is not None:\n"
        "                    later = now_ms(rt) - below.entry.born\n"
        "                    below.entry = replace(below.entry, fresh_until=below.entry.fresh_until + later)\n"
        "                    return",
        ("freshness", "lives"),
    ),
)
