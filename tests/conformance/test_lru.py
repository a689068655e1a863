"""CPython's own tests of `functools.lru_cache` and `functools.cache`, run against `cachewright.compat`.

They come from the standard library's ``test`` package of the Python that runs them. Below them: what they leave out.
"""

from __future__ import annotations

import functools
import gc
import importlib
import os
import random
import select
import sys
import threading
import unittest
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from cachewright import CacheInfo, compat

theirs: Any = None
try:
    theirs = importlib.import_module("test.test_functools")
except ImportError as error:
    MISSING = (
        f"CPython's own tests are not installed here ({error}): they are part of a Python from python.org or pyenv; "
        f"Debian and Ubuntu have them in libpython3.{sys.version_info.minor}-testsuite, Fedora in python3-test"
    )

DIFFERENCES: dict[str, tuple[type[Exception], str]] = {}  # none: all of them pass on 3.11, 3.12 and 3.13

# The names of functools that their tests use, ours where there is one.
FUNCTOOLS = SimpleNamespace(
    lru_cache=compat.lru_cache,
    cache=compat.cache,
    _CacheInfo=CacheInfo,
    partial=functools.partial,
    WRAPPER_ASSIGNMENTS=functools.WRAPPER_ASSIGNMENTS,
)


@compat.lru_cache()
def cached_func(x: int, y: int) -> int:
    return 3 * x + y


def test_their_tests_are_installed() -> None:
    assert theirs is not None, MISSING


if theirs is not None:

    class TestLru(theirs.TestLRU, unittest.TestCase):  # type: ignore[misc]  # no stubs of it
        module = FUNCTOOLS
        cached_func = (cached_func,)

        @compat.lru_cache()
        def cached_meth(self, x: int, y: int) -> int:
            return 3 * x + y

        @staticmethod
        @compat.lru_cache()
        def cached_staticmeth(x: int, y: int) -> int:
            return 3 * x + y

    class TestCache(theirs.TestCache, unittest.TestCase):  # type: ignore[misc]
        module = FUNCTOOLS

    def test_every_difference_is_one_of_their_tests() -> None:
        assert {name for name in DIFFERENCES if not hasattr(TestLru, name)} == set()
        assert len([name for name in dir(TestLru) if name.startswith("test_")]) >= 25


# ------------------------------------------------------------------------------- what their tests leave out


class Thing:
    """Equal by number, its hash as told."""

    def __init__(self, number: int, hashed: int = 1) -> None:
        self.number, self.hashed = number, hashed

    def __hash__(self) -> int:
        return self.hashed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and other.number == self.number


@pytest.mark.parametrize("maxsize", [0, 1, 2, 7, None])
@pytest.mark.parametrize("typed", [False, True])
def test_a_random_walk_hits_and_misses_exactly_as_functools_does(maxsize: int | None, typed: bool):
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    values: list[Any] = [0, 1, 1.0, True, "1", None, (1,), (1.0,), "x", "y", Thing(1), Thing(2), Thing(3, 2)]
    ran: tuple[list[Any], list[Any]] = ([], [])

    def make(log: list[Any]) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            log.append((args, kwargs))
            return object()

        return function

    ours = compat.lru_cache(maxsize, typed)(make(ran[0]))
    real = functools.lru_cache(maxsize, typed)(make(ran[1]))
    last: dict[int, Any] = {}
    for step in range(3000):
        args = rng.choices(values, k=rng.choice([0, 1, 1, 2]))
        kwargs = {name: rng.choice(values) for name in rng.sample(["x", "y"], rng.choice([0, 0, 1, 2]))}
        if rng.random() < 0.005:
            ours.cache_clear()
            real.cache_clear()
            last.clear()
        mine, theirs_ = ours(*args, **kwargs), real(*args, **kwargs)
        assert last.setdefault(id(theirs_), mine) is mine, f"seed {seed}, step {step}: another object"
        last[id(theirs_)], last[-id(theirs_)] = mine, theirs_  # kept, so that no id is used again
        assert tuple(ours.cache_info()) == tuple(real.cache_info()), f"seed {seed}, step {step}"
    assert ran[0] == ran[1], f"seed {seed}"


@pytest.mark.parametrize("maxsize", [1, 100, None])
def test_what_is_dropped_is_free_at_once(maxsize: int | None):
    made: list[weakref.ref[Thing]] = []

    @compat.lru_cache(maxsize)
    def thing(number: int) -> Thing:
        made.append(weakref.ref(found := Thing(number)))
        return found

    gc.disable()  # C's lru_cache does not need the garbage collector for this
    try:
        for number in range(10):
            thing(number)
        assert sum(ref() is not None for ref in made) == min(maxsize or 10, 10)
        thing.cache_clear()
        assert all(ref() is None for ref in made)
    finally:
        gc.enable()
    assert (thing(1), thing.cache_info()) == (Thing(1), (0, 1, maxsize, 1))


def test_an_object_that_its_own_method_caches_can_die():
    class Service:
        @compat.lru_cache
        def answer(self) -> Any:
            return self

    service = Service()
    assert service.answer() is service
    dead = weakref.ref(service), weakref.ref(Service)
    del service, Service
    gc.collect()
    assert [ref() for ref in dead] == [None, None]


def test_a_cached_function_may_be_cached_again():
    inner = compat.lru_cache(2)(lambda x: object())
    outer = compat.lru_cache(1)(inner)
    assert outer(1) is inner(1)
    assert outer(2) is inner(2)
    assert outer(1) is inner(1)
    assert outer.__wrapped__ is inner
    assert (outer.cache_info(), inner.cache_info()) == ((0, 3, 1, 1), (4, 2, 2, 2))
    assert (outer.cache_parameters()["maxsize"], inner.cache_parameters()["maxsize"]) == (1, 2)


def test_of_two_results_of_one_call_the_first_is_kept():
    once = [True]

    @compat.lru_cache(2)
    def function(x: int) -> list[Any]:
        return [function(x)] if once and once.pop() else []

    outer = function(1)
    assert function(1) is outer[0]
    assert function.cache_info() == (1, 2, 2, 1)


def test_threads_lose_no_count_and_the_bound_holds():
    calls, threads, barrier = 2_000, 4, threading.Barrier(4)
    square = compat.lru_cache(10)(lambda x: x * x)
    endless = compat.cache(lambda x: x * x)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        barrier.wait(20)
        for _ in range(calls):
            x = rng.randrange(15)
            assert square(x) == endless(x) == x * x

    running = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    info = square.cache_info()
    assert (info.hits + info.misses, info.currsize) == (calls * threads, 10)
    assert sum(endless.cache_info()[:2]) == calls * threads
    for x in range(10):  # the ring is whole: what was used last stays
        square(x)
    before = square.cache_info().hits
    assert [square(x) for x in range(10)] == [x * x for x in range(10)]
    assert square.cache_info().hits == before + 10


def test_an_argument_that_calls_the_function_when_it_is_compared():
    rng = random.Random(7)

    @compat.lru_cache(3)
    def number(thing: Thing) -> int:
        return thing.number

    class Meddler(Thing):
        depth = 0

        __hash__ = Thing.__hash__

        def __eq__(self, other: object) -> bool:
            if Meddler.depth < 2:
                Meddler.depth += 1
                number(Meddler(rng.randrange(6)))
                Meddler.depth -= 1
            return super().__eq__(other)

    for _ in range(2_000):
        wanted = rng.randrange(6)
        assert number(Meddler(wanted)) == wanted
        assert number.cache_info().currsize <= 3
    Meddler.depth = 9
    for wanted in (1, 2, 3, 1, 2, 3):
        assert number(Meddler(wanted)) == wanted


@pytest.mark.parametrize("wrong", ["128", 1.5, [1]])
def test_a_wrong_maxsize_is_named(wrong: Any):
    with pytest.raises(TypeError, match=r"maxsize=.*expected an int, None \(no bound\), or the function"):
        compat.lru_cache(wrong)


def test_a_child_that_was_forked_while_a_thread_held_the_lock_goes_on():
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Thing):
        __hash__ = Thing.__hash__

        def __eq__(self, other: object) -> bool:
            inside.set()
            assert go_on.wait(20)
            return True

    @compat.lru_cache
    def function(x: Any) -> int:
        return 42

    function(Slow(1))
    thread = threading.Thread(target=function, args=(Slow(1),))
    thread.start()
    assert inside.wait(20)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"%d" % function("child"))
        os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], 10)
    if not ready:
        os.kill(child, 9)
    os.waitpid(child, 0)
    go_on.set()
    thread.join()
    assert ready, "the child waits for a lock whose holder is not there"
    assert os.read(reader, 10) == b"42"
    os.close(reader)
    assert function.cache_info().hits == 1
