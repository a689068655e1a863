"""What `cached` refuses, shares and hands out, in process memory."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cachewright import Cache, ConfigurationError


@dataclass
class Clock:
    seconds: float = 1000.0

    def now(self) -> float:
        return 1e9 + self.seconds

    def monotonic(self) -> float:
        return self.seconds


def test_a_template_that_names_no_parameter_is_refused() -> None:
    with Cache() as cache:
        with pytest.raises(ConfigurationError, match=r"names none of .*ignore=\('x',\)"):
            cache.cached(key="users")(_takes_x)
        assert cache.cached(key="users", ignore=("x",))(_takes_x)(1) == 1
        assert cache.cached(key="rates")(lambda: 5)() == 5


def _takes_x(x: int) -> int:
    return x


def test_two_closures_of_one_factory_need_keys() -> None:
    with Cache() as cache:

        def make(n: int, key: str | None = None) -> Callable[[int], int]:
            @cache.cached(key=key)
            def multiplied(x: int) -> int:
                return n * x

            return multiplied

        double = make(2)
        with pytest.raises(ConfigurationError, match="key="):
            make(3)
        assert double(1) == 2
        assert make(3, "triple:{x}")(1) == 3


def test_an_unknown_option_is_refused_before_there_is_a_function() -> None:
    with Cache() as cache, pytest.raises(ConfigurationError, match="ttl"):
        cache.cached(tll=3)  # type: ignore[call-overload]


def test_functions_that_are_gone_leave_nothing_behind() -> None:
    with Cache() as cache:
        for n in range(50):
            cache.cached(key=f"f{n}:{{x}}")(lambda x: x)(1)
        gc.collect()
        assert len(cache.engine.state.decorated) < 5


def test_copies_part_those_who_shared_a_load() -> None:
    with Cache(copy=True) as cache:
        barrier, values = threading.Barrier(5), list[list[int]]()

        def load() -> list[int]:
            return [1]

        def one() -> None:
            barrier.wait(10)
            values.append(cache.get_or_set("k", load))

        threads = [threading.Thread(target=one) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len({id(value) for value in values}) == 5
        values[0].append(2)
        assert cache.get("k") == [1]


def test_a_batch_over_expired_entries_is_one_load_and_falls_back_on_them() -> None:
    clock, calls = Clock(), list[list[str]]()
    keys = [f"k{n}" for n in range(20)]
    with Cache(clock=clock, ttl=10, jitter=0, stale_if_error=100, error_ttl=1, tags="u", lease=1000) as cache:

        def load(missing: list[str]) -> dict[str, int]:
            calls.append(missing)
            return dict.fromkeys(missing, len(calls))

        def fail(missing: list[str]) -> dict[str, int]:
            calls.append(missing)
            raise OSError("down")

        cache.get_or_set_many(keys, load)
        clock.seconds += 20
        assert set(cache.get_or_set_many(keys, load).values()) == {2}
        cache.invalidate_tags("u")
        assert set(cache.get_or_set_many(keys, load).values()) == {3}
        clock.seconds += 20
        assert set(cache.get_or_set_many(keys, fail).values()) == {3}
        assert [len(call) for call in calls] == [20] * 4
        # The failure is remembered beside each entry: the origin is left alone for error_ttl.
        assert set(cache.get_or_set_many(keys, fail).values()) == {3}
        assert len(calls) == 4
        cache.invalidate_tags("u")
        with pytest.raises(OSError, match="down"):
            cache.get_or_set_many(keys, fail)


def test_an_awaited_function_is_one_still() -> None:
    with Cache() as cache:

        @cache.cached
        async def load(x: int) -> int:
            return x

        assert asyncio.iscoroutinefunction(load)
        assert asyncio.run(load(1)) == 1
