"""Faults in write-behind."""

from __future__ import annotations

from tests.sim.mutations.mutant import Mutant

_BUFFER, _BEHIND, _LETTERS = "cachewright.behind.buffers.sqlite", ("behind",), ("dead_letters",)
_CLAIMS = ("claims", "behind")

BEHIND = (
    Mutant(
        "an_acknowledgement_ignores_the_sequence",
        _BUFFER,
        "        if sequence != ack.sequence:  #",
        "        if not sequence:  #",
        _BEHIND,
    ),
    Mutant(
        "a_claim_taken_over_is_not_suspect",
        _BUFFER,
        "UPDATE record SET suspect = suspect OR token IS NOT NULL, ",
        "UPDATE record SET suspect = suspect, ",
        _BEHIND,
    ),
    Mutant(
        "what_is_suspect_does_not_settle",
        _BUFFER,
        "        elif suspect and settle > 0:",
        "        elif suspect and settle > 1e9:",
        _BEHIND,
    ),
    Mutant(
        "an_append_forgets_that_the_key_settles",
        "cachewright.behind.buffers.sqlite_schema",
        "suspect = suspect OR settling, settling = 0",
        "suspect = suspect, settling = 0",
        _BEHIND,
    ),
    Mutant(
        "an_append_takes_the_claim_away",
        "cachewright.behind.buffers.sqlite_schema",
        "  suspect = suspect OR settling, settling = 0,",
        "  token = NULL, suspect = suspect OR settling, settling = 0,",
        _BEHIND,
    ),
    Mutant(
        "a_read_asks_the_origin_before_the_buffer",
        "cachewright.repository",
        "            pending = await self._writer.pending(rt, [key])\n            if key in pending:",
        "            early = await rt.call(self._origin.load, id) if self._origin.load else None\n"
        "            pending = await self._writer.pending(rt, [key])\n"
        "            if key not in pending:\n                return early\n            if key in pending:",
        _BEHIND,
    ),
    Mutant(
        "a_put_drops_before_it_appends",
        "cachewright.write_behind",
        "        try:\n            await self.flusher.accept(rt, records)\n",
        "        await self._engine.drop_many(rt, list(values))\n        await self.flusher.accept(rt, records)\n"
        "        return\n        try:\n            pass\n",
        _BEHIND,
    ),
    Mutant(
        "it_is_acknowledged_before_it_is_saved",
        "cachewright.behind.rounds",
        "            outcomes, spent = await self._save(rt, records)\n",
        "            await self.endings.end(rt, self._ending(rt, token, [Outcome(r) for r in records], []))\n"
        "            outcomes, spent = await self._save(rt, records)\n",
        _BEHIND,
    ),
    Mutant(
        "a_save_drops_nothing",
        "cachewright.behind.rounds",
        "            if keys:\n                await self._after_save(rt, keys)",
        "            if not keys:\n                await self._after_save(rt, keys)",
        _BEHIND,
    ),
    Mutant(
        "a_batch_that_failed_in_part_counts_as_saved",
        "cachewright.behind.saving",
        "said = failed.get(write.id) if failed else None",
        "said = None",
        _BEHIND,
    ),
    Mutant(
        "sequences_follow_a_coarse_clock",
        "cachewright.behind.buffers.sqlite_schema",
        "max(self.last + 1, int(now * 1_000_000))",
        "int(now * 1_000)",
        _BEHIND,
    ),
    Mutant(
        "dead_letters_are_not_read",
        _BUFFER,
        'f"state < 2 AND key IN',
        'f"state < 2 AND dead = 0 AND key IN',
        ("dead_letters",),
    ),
    Mutant(
        "an_acknowledgement_ignores_the_token",
        _BUFFER,
        "SELECT key, sequence, suspect, state, size FROM record WHERE scope = ? AND token = ?",
        "SELECT key, sequence, suspect, state, size FROM record WHERE scope = ? AND ? != ''",
        _CLAIMS,
    ),
    Mutant(
        "a_dead_process_keeps_its_claim",
        _BUFFER,
        "dead = [holder for (holder,) in holders if self._is_dead(holder)]",
        "dead: list[str] = []",
        _CLAIMS,
    ),
    Mutant(
        "claims_are_not_renewed",
        "cachewright.behind.rounds",
        "                if await self.buffer.renew(rt, token, self.options.claim) <= 0:",
        "                if pause:",
        _CLAIMS,
    ),
    Mutant(
        "a_failure_of_unknown_outcome_leaves_no_mark",
        _BUFFER,
        "suspect = bool(suspect or settling or (failure.unknown and settle > 0))",
        "suspect = bool(suspect or settling)",
        _BEHIND,
    ),
    Mutant(
        "a_try_of_unknown_outcome_before_a_good_one_leaves_no_mark",
        "cachewright.behind.saving",
        "            unsure = self.is_unknown(error)",
        "            unsure = False",
        _BEHIND,
    ),
    Mutant(
        "a_tombstone_is_not_read",
        "cachewright.write_behind",
        "for key, r in records.items()}",
        "for key, r in records.items() if r.payload is not None}",
        _BEHIND,
    ),
    Mutant(
        "a_read_skips_the_buffer",
        "cachewright.repository",
        "            if key in pending:\n                return",
        "            if not key:\n                return",
        _BEHIND,
    ),
    Mutant(
        "a_save_through_drops_before_it_saves",
        "cachewright.behind.rounds",
        "            (outcome,) = await self.savers.save(rt, [record])\n            if outcome.error is None:\n"
        "                await self._after_save(rt, [record.key])\n",
        "            await self._after_save(rt, [record.key])\n"
        "            (outcome,) = await self.savers.save(rt, [record])\n",
        _CLAIMS,
    ),
    Mutant(
        "a_sequence_begins_anew_after_its_record_is_gone",
        "cachewright.behind.buffers.sqlite_schema",
        "        self.last = max(self.last + 1, int(now * 1_000_000))",
        "        self.last = self.last + 1 if self.records else 1",
        _BEHIND,
    ),
    Mutant(
        "a_put_over_a_dead_letter_is_dead_too",
        "cachewright.behind.buffers.sqlite_schema",
        "tries = 0, dead = 0,",
        "tries = 0, dead = dead,",
        _LETTERS,
    ),
    Mutant(
        "a_failure_of_an_older_state_gives_the_newer_up",
        _BUFFER,
        "        dead = same and failure.dead and not held",
        "        dead = failure.dead and not held",
        _LETTERS,
    ),
    Mutant(
        "what_is_no_dead_letter_is_replayed",
        _BUFFER,
        "WHERE scope = ? AND key = ? AND dead = 1",
        "WHERE scope = ? AND key = ?",
        _LETTERS,
    ),
    Mutant(
        "a_discard_leaves_the_slot",
        "cachewright.behind.operating",
        "        await self._drop(rt, [key])\n        return self.seen(record)",
        "        return self.seen(record)",
        _LETTERS,
    ),
    Mutant(
        "a_discard_drops_the_slot_first",
        "cachewright.behind.operating",
        "        record = await self.flusher.buffer.discard(rt, key)\n",
        "        await self._drop(rt, [key])\n"
        "        return self.seen(await self.flusher.buffer.discard(rt, key))\n"
        "        record = await self.flusher.buffer.discard(rt, key)\n",
        _LETTERS,
    ),
    Mutant(
        "a_save_through_holds_no_claim",
        _BUFFER,
        "            return sequence if done.rowcount else None",
        '            db.execute("DELETE FROM record WHERE token = ?", (token,))\n'
        "            return sequence if done.rowcount else None",
        _BEHIND,
    ),
    Mutant(
        "a_scheduled_run_takes_living_leases_over",
        "cachewright.schedule_election",
        "takeover=slot is not None and watch.is_dead(rt, slot)",
        "takeover=True",
        ("schedules",),
    ),
    Mutant(
        "a_scheduled_run_keeps_no_heartbeat",
        "cachewright.schedule_election",
        "turn.held.start_heartbeat(rt)",
        "pass",
        ("schedules",),
    ),
)
