"""One round of a flusher: claim, save, drop, acknowledge or fail. And the same for one record saved through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

from cachewright.behind.backoff import Backoff
from cachewright.behind.buffers.base import Ack, Buffer, Failure, Record
from cachewright.behind.endings import Ending, Endings
from cachewright.behind.saving import Outcome, Savers
from cachewright.behind.types import BehindOptions
from cachewright.errors import BufferError
from cachewright.events import BackgroundFailed, Hub
from cachewright.runtime.base import Job, Runtime, next_renewal

__all__ = ["AfterSave", "Rounds"]

_DROP_AGAIN = 1.0  # seconds until a record whose slot could not be dropped has another round
AfterSave = Callable[[Runtime, Sequence[str]], Awaitable[None]]


class Rounds:
    """What a round needs, and what all rounds of this process did. See `flusher.Flusher` for the arguments."""

    def __init__(
        self,
        buffer: Buffer,
        savers: Savers,
        repository: str,
        after_save: AfterSave,
        options: BehindOptions,
        events: Hub,
    ) -> None:
        self.buffer, self.savers, self.repository = buffer, savers, repository
        self.options, self.events, self._after_save = options, events, after_save
        self._backoff = Backoff(options.backoff, options.backoff_max)
        self.endings = Endings(buffer, repository, options, events)

    async def run(self, rt: Runtime, keys: Sequence[str] | None, hurry: bool) -> int:
        """One batch, and what could not be ended of earlier ones; how many records that were."""
        done = await self.endings.catch_up(rt)
        token = rt.new_id()
        options = self.options
        try:
            records = await self.buffer.claim(
                rt, options.batch_size, token, options.claim, keys=keys, hurry=hurry
            )
        except BaseException as error:
            await self._give_back(rt, Ending(token, release=True), error)
            raise
        if not records:
            return done
        heart = self._keep_claim(rt, token)
        ending = None
        try:
            outcomes, spent = await self._save(rt, records)
            ending = self._ending(rt, token, outcomes, spent)
            await self.endings.end(rt, ending)
        except BaseException as error:
            await self._give_back(rt, ending or self._ended_by(rt, token, records, error), error)
            raise
        finally:
            heart.cancel()
        await _ended(rt, heart)
        return done + len(records)

    async def _give_back(self, rt: Runtime, ending: Ending, error: BaseException) -> None:
        """Who is ended in a round gives its claims back, so that who comes next need not wait for their end."""
        if isinstance(error, GeneratorExit):
            self.endings.leave(ending)  # nothing may be awaited any more
        elif not isinstance(error, Exception):
            try:  # else the buffer failed, and may still: then it is left already
                await self.endings.end(rt, ending)
            except Exception as failed:
                self.events.emit(BackgroundFailed(f"giving back a claim of {self.repository}", failed))

    def _ended_by(
        self,
        rt: Runtime,
        token: bytes,
        records: Sequence[Record],
        error: BaseException,
        *,
        held: bool = False,
    ) -> Ending:
        said = f"its flusher was ended by {type(error).__name__} while saving it"
        # Who exits may do so because of this very record, and after its next start again; who is cancelled does not.
        # What is held counts, too: a hurried round would take what it has not tried yet before its time to settle is over.
        counts = held or isinstance(error, KeyboardInterrupt | SystemExit)
        failures = [
            Failure(
                r.key,
                r.sequence,
                said,
                rt.now() + (self._backoff(r.tries + 1, rt.random()) if counts else 0.0),
                counts=counts,
            )
            for r in records
        ]
        return Ending(token, failures=failures, settle=self._settle(records, held=held))

    def _settle(self, records: Iterable[Record], *, held: bool = False) -> float:
        held = held or any(record.state == "held" for record in records)
        return 0.0 if self.options.ordered_saver and not held else self.options.settle

    async def _save(self, rt: Runtime, records: Sequence[Record]) -> tuple[list[Outcome], list[Record]]:
        """Outcomes, and the records whose flushers died with them so often that they are not tried again."""
        spent: list[Record] = []
        rest: list[Record] = []
        outcomes: list[Outcome] = []
        for record in records:
            if record.state == "held":
                outcomes.append(Outcome(record))  # its writer is gone; only its slot is to be dropped
            else:
                (spent if record.tries >= self.options.max_attempts else rest).append(record)
        if rest:
            outcomes += await self.savers.save(rt, rest)
        over = [o for o in outcomes if o.error is None or self._is_last(o)]
        # What is given up is what reads are to see from now on, and no save will heal a put that died before its drop.
        keys = [o.record.key for o in over] + [record.key for record in spent]
        try:
            if keys:
                await self._after_save(rt, keys)
        except Exception as error:
            # an old entry may stand: the records stay until a drop has worked
            self.events.emit(BackgroundFailed(f"drop after save of {self.repository}", error))
            again = [Outcome(o.record, o.error or error, o.unknown, undropped=True) for o in over]
            again += [Outcome(record, error, unknown=True, undropped=True) for record in spent]
            return [o for o in outcomes if o not in over] + again, []
        return outcomes, spent

    def _is_last(self, outcome: Outcome) -> bool:
        """Whether the save failed, and is not to be tried again."""
        last = outcome.record.tries + 1 >= self.options.max_attempts
        return outcome.error is not None and not outcome.undropped and last

    def _ending(
        self,
        rt: Runtime,
        token: bytes,
        outcomes: Sequence[Outcome],
        spent: Sequence[Record],
        *,
        patient: bool = True,
    ) -> Ending:
        # What is saved through a full buffer settles whoever orders the saves: no state of it is kept that would be
        # saved again, so the slot is dropped once more when the save must have landed.
        settle = self._settle((o.record for o in outcomes), held=not patient)
        saved = [o for o in outcomes if o.error is None]
        ending = Ending(token, settle=settle, outcomes=outcomes, spent=spent, loud=patient)
        for over in (True, False):
            acks = [
                Ack(o.record.key, o.record.sequence, o.unknown) for o in saved if _settled(o.record) == over
            ]
            if acks:
                ending.acks.append((acks, 0.0 if over else settle))
        failed = {o.record.key: o for o in outcomes if o.error is not None}
        failures = [self._failure(rt, outcome) for outcome in failed.values()]
        failures += [
            Failure(r.key, r.sequence, r.last_error or "", rt.now(), dead=True, unknown=True) for r in spent
        ]
        ending.failures = failures
        return ending

    def _failure(self, rt: Runtime, outcome: Outcome) -> Failure:
        record, error = outcome.record, outcome.error
        attempt = record.tries + 1
        return Failure(
            record.key,
            record.sequence,
            f"{type(error).__name__}: {error}"[:2000],
            rt.now() + (_DROP_AGAIN if outcome.undropped else self._backoff(attempt, rt.random())),
            dead=self._is_last(outcome),
            unknown=outcome.unknown,
            counts=not outcome.undropped,
        )

    def _keep_claim(self, rt: Runtime, token: bytes) -> Job:
        pause, told = self.options.claim / 3, False

        async def renew() -> float | None:
            nonlocal told
            began, answered = rt.monotonic(), True
            try:
                if await self.buffer.renew(rt, token, self.options.claim) <= 0:
                    return None
            except Exception as error:
                answered = False
                if not told:  # not again for each try until somebody answers
                    self.events.emit(BackgroundFailed(f"renewing a claim of {self.repository}", error))
            told = not answered
            return next_renewal(rt, began, pause, answered)

        return rt.every(pause, renew, f"claim of {self.repository}")

    async def through(self, rt: Runtime, record: Record, token: bytes) -> None:
        """Saves a held record on its caller's time; the saver's error is the caller's."""
        heart = self._keep_claim(rt, token)
        ending = None
        try:
            with suppress(BufferError):
                await self.endings.catch_up(rt)  # else only rounds do, and those may be other processes'
            (outcome,) = await self.savers.save(rt, [record])
            if outcome.error is None:
                await self._after_save(rt, [record.key])
            ending = self._ending(rt, token, [outcome], [], patient=False)
            await self.endings.end(rt, ending)
        except BaseException as error:
            await self._give_back(rt, ending or self._ended_by(rt, token, [record], error, held=True), error)
            raise
        finally:
            heart.cancel()
        await _ended(rt, heart)
        if outcome.error is not None:
            raise outcome.error


def _settled(record: Record) -> bool:
    """Whether it is only held and its save failed so long ago that it must have landed.

    It is due since it was made, or settles since its save failed. One that was taken over from a dead writer has yet to.
    """
    return record.state == "held" and record.not_before > record.first_dirty


async def _ended(rt: Runtime, heart: Job) -> None:
    """A renewal that is under way ends within its deadline; one that began after a close would open the file anew."""
    while not heart.done():
        await rt.sleep(0.002)
