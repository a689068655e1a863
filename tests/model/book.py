"""Write-behind's rules in a dictionary: what may become of a record, and who may save it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cachewright.behind.buffers.base import Failure

MOST, MOST_BYTES = 3, 60
RETRY_NEWER = 1.0  # how long a newer state waits at most behind the back-off of the one that it replaces


@dataclass
class Kept:
    """One key's record as the model has it."""

    key: str
    state: str
    payload: bytes | None
    sequence: int
    first_dirty: float
    not_before: float
    tries: int = 0
    token: bytes | None = None
    deadline: float = 0.0
    claimed: float = 0.0
    suspect: bool = False
    settling: bool = False
    dead: bool = False

    @property
    def size(self) -> int:
        return 0 if self.state == "held" else len(self.key) + 2 + len(self.payload or b"")

    def let_go(self) -> None:
        self.token = None


@dataclass
class Book:
    """One repository's records and what they are allowed to become."""

    last: int = 0
    kept: dict[str, Kept] = field(default_factory=dict)

    @property
    def real(self) -> list[Kept]:
        return [one for one in self.kept.values() if one.state != "held"]

    def sequence(self, now: float) -> int:
        """Grows, whatever the clock does."""
        self.last = max(self.last + 1, int(now * 1_000_000))
        return self.last

    def fits(self, news: dict[str, bytes | None], overflow: bool) -> bool:
        clean = [key for key in news if key not in self.kept or self.kept[key].state == "held"]
        sizes = {one.key: one.size for one in self.kept.values()}
        more = sum(len(key) + 2 + len(value or b"") - sizes.get(key, 0) for key, value in news.items())
        if clean and len(self.real) + len(clean) > MOST:
            return False
        return more <= 0 or sum(sizes.values()) + more <= MOST_BYTES or (overflow and not clean)

    def append(self, key: str, payload: bytes | None, now: float, delay: float) -> int:
        """The newest state wins. Claim, suspicion and back-off are the key's, and stay."""
        state = "tombstone" if payload is None else "value"
        new = Kept(key, state, payload, self.sequence(now), now, now + delay)
        old = self.kept.get(key)
        if old is not None:
            new.token, new.deadline, new.claimed = old.token, old.deadline, old.claimed
            new.suspect = old.suspect or old.settling
            if not old.dead and old.state != "held":
                new.first_dirty = old.first_dirty
                if old.token is None:
                    longest = max(delay, RETRY_NEWER) if old.tries else delay
                    new.not_before = min(old.not_before, now + longest)
        self.kept[key] = new
        return new.sequence

    def due(self, now: float, keys: list[str] | None, hurry: bool) -> tuple[list[Kept], list[Kept]]:
        """What may be claimed: freely, and taken over from a claim that has ended."""
        ready = [
            one
            for one in self.kept.values()
            if not one.dead
            and (one.not_before <= now or (hurry and not one.tries and not one.settling))
            and (keys is None or one.key in keys)
        ]
        free = [one for one in ready if one.token is None]
        return free, [one for one in ready if one.token is not None and one.deadline <= now]

    def claim(self, key: str, token: bytes, now: float, life: float) -> None:
        one = self.kept[key]
        if one.token is not None:
            one.suspect, one.settling, one.tries = True, False, one.tries + 1
        one.token, one.deadline, one.claimed = token, now + life, now

    def acknowledge(
        self, key: str, token: bytes, sequence: int, unsure: bool, now: float, settle: float
    ) -> int:
        one = self.kept.get(key)
        if one is None or one.token != token:
            self.lose(one, unsure, settle)
            return 0
        one.suspect = one.suspect or unsure
        if one.sequence != sequence:
            one.let_go()
            one.first_dirty = max(one.first_dirty, one.claimed)
        elif one.suspect and settle:
            one.let_go()
            one.suspect, one.settling = False, True
            one.tries, one.not_before = int(unsure), now + settle
        else:
            del self.kept[key]
            return 1
        return 0

    def lost(self, token: bytes, what: list[tuple[str, int]]) -> list[str]:
        return [key for key, _ in what if key not in self.kept or self.kept[key].token != token]

    def saves_later(self, key: str) -> bool:
        one = self.kept.get(key)
        return one is not None and one.state != "held" and not one.dead

    def lose(self, one: Kept | None, unknown: bool, settle: float) -> None:
        """A save ended whose claim was gone: whoever is at the key may have saved it before that."""
        if one is not None and settle and (unknown or one.token is not None):
            one.suspect = True

    def fail(self, failure: Failure, token: bytes, now: float, settle: float) -> bool:
        one = self.kept.get(failure.key)
        if one is None or one.token != token:
            if failure.unknown:
                self.lose(one, True, settle)
            return False
        same = one.sequence == failure.sequence
        one.let_go()
        one.suspect = one.suspect or one.settling or (failure.unknown and settle > 0)
        one.settling = False
        if one.state == "held":
            if not one.suspect:
                del self.kept[failure.key]
                return False
            one.not_before = now + settle
            one.tries = one.tries + failure.counts if same else 0
            return False
        if same:
            one.tries, one.not_before, one.dead = one.tries + failure.counts, failure.not_before, failure.dead
        else:
            one.tries = 0
            one.not_before = max(one.not_before, min(failure.not_before, now + RETRY_NEWER))
        return one.dead
