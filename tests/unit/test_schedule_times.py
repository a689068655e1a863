"""When runs are due: alike in every process, and what a crontab means."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewright.errors import ConfigurationError
from cachewright.schedule_apscheduler import TimesTrigger
from cachewright.schedule_times import Cron, Every, Times, to_datetime, to_micros

MOMENTS = st.integers(0, 4 * 10**15)
CRONS = st.sampled_from(
    [
        "* * * * *",
        "*/5 * * * *",
        "0 3 * * *",
        "30 9-17 * * 1-5",
        "0 0 1 */3 *",
        "0 0 29 2 *",
        "0 12 13 * 5",
        "5 4 * * 0",
    ]
)


def at(text: str) -> int:
    return to_micros(datetime.fromisoformat(text).replace(tzinfo=UTC))


def holds(times: Times, moment: int) -> None:
    latest, after = times.latest(moment), times.after(moment)
    assert latest <= moment < after
    assert times.latest(latest) == latest
    assert times.latest(after) == after
    assert times.latest(after - 1) == latest, "nothing is due in between"
    assert times.after(latest) == after


@given(MOMENTS, st.floats(0.05, 10**6), st.text(min_size=1))
def test_every(moment: int, seconds: float, name: str):
    times = Every(seconds, name)
    holds(times, moment)
    assert times.after(moment) - times.latest(moment) == round(seconds * 1e6)
    assert Every(seconds, name).after(moment) == times.after(moment), "another process computes the same"


def test_keys_of_one_interval_are_not_all_due_together():
    dues = sorted(Every(60, f"key {n}").after(0) for n in range(100))
    assert len(set(dues)) == 100
    assert max(b - a for a, b in itertools.pairwise(dues)) < 10e6


@given(MOMENTS, CRONS)
def test_cron(moment: int, expression: str):
    holds(Cron(expression), moment)


@pytest.mark.parametrize(
    ("expression", "moments"),
    [
        ("*/5 * * * *", ["2026-01-01 00:05", "2026-01-01 00:10"]),
        ("0 6 * * 1", ["2026-01-05 06:00", "2026-01-12 06:00"]),  # Mondays; APScheduler's 1 is Tuesday
        ("0 6 * * 0", ["2026-01-04 06:00", "2026-01-11 06:00"]),
        ("0 6 * * 7", ["2026-01-04 06:00", "2026-01-11 06:00"]),
        ("0 6 * * sun", ["2026-01-04 06:00", "2026-01-11 06:00"]),
        ("0 6 * * 5-7", ["2026-01-02 06:00", "2026-01-03 06:00", "2026-01-04 06:00", "2026-01-09 06:00"]),
        ("0 6 * * sat-mon", ["2026-01-03 06:00", "2026-01-04 06:00", "2026-01-05 06:00", "2026-01-10 06:00"]),
        ("0 6 * * 1,3", ["2026-01-05 06:00", "2026-01-07 06:00"]),
        ("0 6 * * 0-6/3", ["2026-01-03 06:00", "2026-01-04 06:00", "2026-01-07 06:00"]),
        ("0 6 2 * 1", ["2026-01-02 06:00", "2026-01-05 06:00", "2026-01-12 06:00"]),  # either day will do
        ("0 0 29 2 *", ["2028-02-29 00:00", "2032-02-29 00:00"]),
    ],
)
def test_crontab_means_what_cron_means(expression: str, moments: list[str]):
    times, moment = Cron(expression), at("2026-01-01 00:00")
    for expected in moments:
        moment = times.after(moment)
        assert moment == at(expected), to_datetime(moment)


def test_cron_in_a_timezone_with_summer_time():
    times = Cron("30 9 * * *", "Europe/Berlin")
    assert times.after(at("2026-01-01 00:00")) == at("2026-01-01 08:30")
    assert times.after(at("2026-07-01 00:00")) == at("2026-07-01 07:30")


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "61 * * * *",
        "x * * * *",
        "0 0 30 2 *",
        "0 0 * * 8",
        "0 0 * * 1-x",
        "0 0 * * 1/0",
    ],
)
def test_a_wrong_crontab_is_named(expression: str):
    with pytest.raises(ConfigurationError, match="cron="):
        Cron(expression)


def test_a_wrong_timezone_is_named():
    with pytest.raises(ConfigurationError, match="Mars"):
        Cron("* * * * *", "Mars/Olympus")


def test_after_a_long_pause_one_run_is_due_and_not_one_for_each_that_was_missed():
    times = Every(1, "rates")
    trigger, due = TimesTrigger(times), to_datetime(times.after(0))
    now = due + timedelta(days=1)
    calls = []
    moment = due  # as APScheduler asks for the runs that are due
    while moment <= now:
        calls.append(moment)
        moment = trigger.get_next_fire_time(moment, now)
    assert len(calls) == 2
    assert now < moment <= now + timedelta(seconds=1)
