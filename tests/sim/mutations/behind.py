"""Faults in write-behind."""

from __future__ import annotations

from tests.sim.mutations.mutant import Mutant

_BUFFER, _BEHIND = "cachewright.behind.buffers.sqlite", ("behind",)

BEHIND = (
    Mutant(
        "an_acknowledgement_ignores_the_sequence",
        _BUFFER,
        "        if sequence != ack.sequence:  #",
        "        if not sequence:  #",
        _BEHIND,
    ),
    Mutant(
        "an_acknowledgement_ignores_the_claim",
        _BUFFER,
        '"SELECT sequence, suspect, state, size FROM record WHERE scope = ? AND key = ? AND token = ?",\n'
        "            (scope.id, ack.key, token),",
        '"SELECT sequence, suspect, state, size FROM record WHERE scope = ? AND key = ?",\n'
        "            (scope.id, ack.key),",
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
        "        await self.flusher.accept(rt, records)\n        await self._engine.drop_many(rt, list(values))",
        "        await self._engine.drop_many(rt, list(values))\n        await self.flusher.accept(rt, records)",
        _BEHIND,
    ),
    Mutant(
        "it_is_acknowledged_before_it_is_saved",
        "cachewright.behind.rounds",
        "            outcomes, spent = await self._save(rt, records)\n",
        "            await self._conclude(rt, token, [Outcome(r) for r in records], [])\n"
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
)
