"""What a signal handler raises (a soft time limit, an alarm, Ctrl-C) may end a call between any two of its steps.

It must cost that call alone: the next one, of whichever thread, has its value.
"""

from __future__ import annotations

import gc
import linecache
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import cachewright
from cachewright import Cache

# A coroutine that was interrupted before it began says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")

HOME = os.path.dirname(cachewright.__file__)
# Python runs handlers after calls, at jumps back and where a function starts: never between these and what follows.
NEVER_HERE = ("with ", "try:")


class SoftTimeLimit(BaseException):
    """As a signal handler raises it."""


class Interrupter:
    """Raises at the given line event, counted from 0, of what this thread runs inside the package."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines: list[str] = []

    def __call__(self, frame: FrameType, event: str, arg: object) -> Interrupter | None:
        code = frame.f_code
        if not code.co_filename.startswith(HOME):
            return None
        text = linecache.getline(code.co_filename, frame.f_lineno).strip()
        if event == "line" and not text.startswith(NEVER_HERE):
            self.lines.append(f"{os.path.relpath(code.co_filename, HOME)}:{frame.f_lineno}: {text}")
            if len(self.lines) == self.at + 1:
                sys.settrace(None)
                raise SoftTimeLimit
        return self

    def interrupt(self, work: Callable[[], object]) -> BaseException | None:
        """What ended the work; kept with its traceback, as an interactive Python keeps the last one."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except SoftTimeLimit as error:
            return error
        finally:
            sys.settrace(before)
        return None


def everybody_has_a_value(cache: Cache, keys: list[str], where: str) -> None:
    """In another thread first, which can be given up; then in this one."""
    memory = cache.engine.state.chain.memory
    assert memory is not None
    assert not memory._held.locked(), f"locked for ever by an interrupt at {where}"
    memory.check()  # nothing is half done, although nobody has looked at these keys since
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(cache.get_or_set(key, lambda: 2) for key in keys))
    thread.daemon = True
    thread.start()
    thread.join(5)
    assert len(found) == len(keys), f"wedged by an interrupt at {where}"
    assert {cache.get_or_set(key, lambda: 3) for key in keys} <= {1, 2}
    memory.check()


def lines_of(work: Callable[[], object], times: int) -> list[int]:
    """Which line events of the work to interrupt: the first of each line, or the first two."""
    trace = Interrupter(-1)
    trace.interrupt(work)
    seen: Counter[str] = Counter()
    chosen = []
    for at, line in enumerate(trace.lines):
        seen[line] += 1
        if seen[line] <= times:
            chosen.append(at)
    return chosen


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What was interrupted is collected before the next test, which knows nothing of it."""
    yield
    gc.collect()


@pytest.mark.parametrize("many", [False, True], ids=["one key", "many keys"])
def test_a_load_that_is_interrupted_at_any_line_wedges_nothing(many: bool) -> None:
    cache = Cache("memory://", namespace="interrupted", ttl=60)

    def ask(key: str) -> None:
        if many:
            cache.get_or_set_many([key, key + "b"], lambda keys: dict.fromkeys(keys, 1))
        else:
            cache.get_or_set(key, lambda: 1)

    ask("warm")
    wheres, kept = [], []
    for at in lines_of(lambda: ask("first"), 1 if many else 2):
        key = f"k{at}"
        interrupter = Interrupter(at)
        error = interrupter.interrupt(lambda key=key: ask(key))  # type: ignore[misc]
        if not many:
            kept.append(error)
        del error
        where = interrupter.lines[-1]
        wheres.append(where)
        everybody_has_a_value(cache, [key, key + "b"], where)
        assert not len(cache.engine.state.flights), where
    assert len(wheres) > 100
    assert any("memory_table" in where for where in wheres)


def test_a_run_of_alarms_wedges_nothing() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice, armed, ended = random.Random(seed), False, 0

    def alarm(*_: object) -> None:
        if armed:
            raise SoftTimeLimit

    cache = Cache("memory://", namespace="alarms", ttl=60)
    before = signal.signal(signal.SIGALRM, alarm)
    gc.disable()  # other people's callbacks of the collector must not be what the alarm meets
    try:
        for n in range(250):
            keys = [f"k{n}.{i}" for i in range(20)]
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, 0.00002 + dice.random() * 0.001)
                for key in keys:
                    cache.get_or_set(key, lambda: 1)
            except SoftTimeLimit:
                ended += 1
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            everybody_has_a_value(cache, keys, f"round {n} of seed {seed}")
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert ended, "no alarm came while a call was under way"
