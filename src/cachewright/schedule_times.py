"""When a schedule's runs are due: moments that every process of a fleet computes alike, without talking.

A run is named by the moment at which it is due, in microseconds since the epoch. Phases counted from each process's
start would not do: two processes half an interval apart can never agree on which run is which.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Protocol

from cachewright.errors import ConfigurationError, MissingExtraError
from cachewright.options import Seconds, seconds

__all__ = ["Cron", "Every", "Times", "make_times", "share_of", "to_datetime", "to_micros"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICRO = timedelta(microseconds=1)
SHORTEST = 0.05
LOOK_BACK = timedelta(days=8 * 366)  # 29 February comes after eight years at the latest (1896 to 1904)
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


class Times(Protocol):
    """The moments at which runs are due."""

    def latest(self, at: int) -> int:
        """The last such moment that is not after ``at``; 0 where there is none."""

    def after(self, at: int) -> int:
        """The first such moment after ``at``."""


def to_micros(moment: datetime) -> int:
    """Microseconds since the epoch."""
    return (moment - EPOCH) // MICRO


def to_datetime(micros: int) -> datetime:
    """The same moment, in UTC."""
    return EPOCH + micros * MICRO


class Every:
    """Every so many seconds, at a phase that belongs to the name, so that not all keys are refreshed together."""

    def __init__(self, seconds: float, name: str) -> None:
        if seconds < SHORTEST:
            raise ConfigurationError(f"every={seconds!r}: at least {SHORTEST} seconds")
        self.micros = round(seconds * 1e6)
        self._phase = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % self.micros

    def latest(self, at: int) -> int:
        return (at - self._phase) // self.micros * self.micros + self._phase

    def after(self, at: int) -> int:
        return self.latest(at) + self.micros


def share_of(name: str, due: int) -> float:
    """A number in [0, 1) that belongs to one run of one key: the same in all processes, another one at the next run."""
    return int.from_bytes(hashlib.sha256(f"{name}:{due}".encode()).digest()[:8]) / 2**64


def make_times(
    every: Seconds | str | None, cron: str | None, zone: str | tzinfo, name: str
) -> tuple[Times, float]:
    """When runs are due, and the shortest time between two of them, in seconds.

    Raises:
        ConfigurationError: neither an interval nor a crontab expression, or both, or one that cannot work.
    """
    if isinstance(every, str) and cron is None:
        every, cron = None, every
    if (every is None) == (cron is None):
        given = "both" if cron is not None else "neither"
        raise ConfigurationError(
            f"refresh_every needs an interval in seconds or a crontab expression, and was given {given}: "
            "refresh_every(10, key, loader), or refresh_every('*/5 * * * *', key, loader)"
        )
    if cron is not None:
        return Cron(cron, zone), 60.0
    interval = seconds("every", every) or 0.0
    return Every(interval, name), interval


class Cron:
    """A crontab expression of five fields: minute, hour, day of month, month, day of week (0 and 7 are Sunday).

    As in cron, where both days are restricted either of them will do. APScheduler by itself wants both, and counts
    days of the week from Monday: ``0 6 * * 1`` would run on Tuesdays.
    """

    def __init__(self, expression: str, zone: str | tzinfo = "UTC") -> None:
        try:
            from apscheduler.triggers.cron import CronTrigger
        except ImportError as error:
            raise MissingExtraError("cron=", "scheduler") from error
        fields = str(expression).split()
        if len(fields) != 5:
            raise ConfigurationError(
                f"cron={expression!r}: expected five fields, such as '*/5 * * * *' "
                "(minute, hour, day of month, month, day of week)"
            )
        minute, hour, day, month, week_day = fields
        both = not day.startswith("*") and not week_day.startswith("*")
        try:
            names = _week_days(week_day)
            wanted = [(day, "*"), ("*", names)] if both else [(day, names)]
            self._triggers = [
                CronTrigger(minute=minute, hour=hour, day=d, month=month, day_of_week=w, timezone=zone)
                for d, w in wanted
            ]
        except (ValueError, TypeError, LookupError) as error:
            raise ConfigurationError(f"cron={expression!r}, timezone={zone!r}: {error}") from error
        if self._next(datetime.now(UTC)) is None:
            raise ConfigurationError(f"cron={expression!r}: there is no such day")

    def latest(self, at: int) -> int:
        now = to_datetime(at)
        back = timedelta(minutes=2)
        while True:
            found, moment = None, self._next(now - back)
            while moment is not None and moment <= now:
                found, moment = moment, self._next(moment)
            if found is not None:
                return to_micros(found)
            if back > LOOK_BACK:
                return 0
            back *= 2

    def after(self, at: int) -> int:
        moment = self._next(to_datetime(at))
        if moment is None:  # past the year 9999
            raise OverflowError("the crontab expression has no further moment")
        return to_micros(moment)

    def _next(self, moment: datetime) -> datetime | None:
        found: list[Any] = [t.get_next_fire_time(moment, moment) for t in self._triggers]
        return min((f for f in found if f is not None), default=None)


def _week_days(field: str) -> str:
    """Crontab's days of the week as the names that mean the same to everybody."""
    if field == "*":
        return field
    days: set[int] = set()
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        if span == "*":
            low, high = 0, 6
        else:
            low = _week_day(first)
            high = _week_day(last) if last else (6 if step else low)
        high += 7 if high < low else 0
        if step and (not step.isdecimal() or int(step) == 0):
            raise ValueError(f"{part!r} is no day of the week")
        days.update(day % 7 for day in range(low, high + 1, int(step or 1)))
    return ",".join(DAYS[day] for day in sorted(days))


def _week_day(text: str) -> int:
    if text.isdecimal() and int(text) <= 7:
        return int(text)
    if text in DAYS:
        return DAYS.index(text)
    raise ValueError(f"{text!r} is no day of the week: write 0 to 7 or {', '.join(DAYS)}")
