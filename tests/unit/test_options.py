"""Wrong options, and wrong words of loaders: each is named with its rule, before anything is loaded or stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from cachewright import Cache, ConfigurationError, Entry, Retry, current_load
from cachewright.errors import InvalidKeyError


@pytest.fixture
def cache(namespace: str) -> Iterator[Cache]:
    with Cache(namespace=namespace, jitter=0) as made:
        yield made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attempts": -1}, r"Retry\(attempts=-1\): expected how many further tries, a whole number from 0"),
        ({"attempts": "2"}, "attempts='2'"),
        ({"attempts": 1.5}, "attempts=1.5"),
        ({"attempts": True}, "attempts=True"),
        ({"wait": -1}, "Retry wait=-1: must be finite and not negative"),
        ({"wait": float("nan")}, "Retry wait=nan"),
        ({"max_wait": float("inf")}, "Retry max_wait=inf"),
        ({"wait": "1"}, "Retry wait='1': expected seconds"),
        ({"wait": 3}, r"Retry\(wait=3, max_wait=2\): the first pause .* set max_wait to 3 or more"),
        ({"on": "ValueError"}, r"Retry\(on='ValueError'\): expected a subclass of Exception, or a tuple"),
        ({"on": (ValueError, "x")}, "expected a subclass of Exception"),
        ({"on": ()}, "expected a subclass of Exception"),
        ({"on": KeyboardInterrupt}, "expected a subclass of Exception"),
        ({"on": (BaseException,)}, "expected a subclass of Exception"),
        ({"on": OSError("x")}, "expected a subclass of Exception"),
    ],
)
def test_a_wrong_retry_is_named(arguments: Any, message: str):
    with pytest.raises(ConfigurationError, match=message):
        Retry(**arguments)


def test_a_retry_takes_what_other_options_take(cache: Cache):
    retry = Retry(0, wait=timedelta(milliseconds=1), max_wait=1, on=OSError)  # type: ignore[arg-type]
    assert (retry.wait, retry.max_wait) == (0.001, 1.0)
    tries: list[int] = []

    def load(error: type[Exception]) -> int:
        tries.append(1)
        if len(tries) < 2:
            raise error
        return len(tries)

    assert cache.get_or_set("k", lambda: load(OSError), retries=Retry(1, 0, 0, on=OSError)) == 2
    tries.clear()
    with pytest.raises(KeyError):
        cache.get_or_set("l", lambda: load(KeyError), retries=Retry(1, 0, 0, on=OSError))


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"ttl": -1}, ConfigurationError, "ttl=-1: must be finite and not negative"),
        ({"ttl": "5"}, ConfigurationError, "ttl='5': expected seconds"),
        ({"stale_if_error": None}, ConfigurationError, "stale_if_error=None: expected seconds"),
        ({"store": "no"}, ConfigurationError, "store='no': expected True or False"),
        ({"store": 0}, ConfigurationError, "store=0: expected True or False"),
        ({"store": None}, ConfigurationError, "store=None"),
        ({"tags": 5}, ConfigurationError, "tags=5: expected a str, or several in a list"),
        ({"tags": None}, ConfigurationError, "tags=None"),
        ({"tags": b"ab"}, ConfigurationError, "tags=b'ab'"),
        ({"tags": [5]}, InvalidKeyError, "tag 5 is of type int"),
    ],
)
def test_a_wrong_word_of_a_loader_is_named(cache: Cache, said: Any, error: type[Exception], message: str):
    def set_it() -> int:
        load = current_load()
        assert load is not None
        load.set(**said)
        return 1

    def renew() -> Any:
        load = current_load()
        assert load is not None
        return load.not_modified(**said)

    cache.set("stale", 1)
    for tell in (
        lambda: Entry(1, **said),
        lambda: cache.get_or_set("k", set_it),
        lambda: forced(cache, renew),
    ):
        with pytest.raises(error, match=message):
            tell()
    assert cache.get("k") is None
    assert cache.get("stale") == 1


def forced(cache: Cache, load: Callable[[], Any]) -> Any:
    """A load of the key ``stale``, over its fresh value."""
    refresh = cache.refresh_every(3600, "stale", load, now=False)
    try:
        return refresh.run_now()
    finally:
        refresh.cancel()


@pytest.mark.parametrize("word", ["set", "not_modified"])
def test_what_a_loader_cannot_say_is_named(cache: Cache, word: str):
    def load() -> Any:
        return getattr(current_load(), word)(tll=5)

    cache.set("stale", 1)
    with pytest.raises(
        ConfigurationError, match=r"cannot say 'tll' .*did you mean 'ttl'.*: it can say ttl, tags,"
    ):
        forced(cache, load)


def test_an_entry_in_an_entry_is_refused(cache: Cache):
    with pytest.raises(ConfigurationError, match="one in the other"):
        cache.get_or_set("k", lambda: Entry(Entry(1)))


def test_an_entry_is_not_stored_as_a_value(cache: Cache):
    users = cache.repository("user", str, save=lambda _id, value: None)
    entry: Any = Entry(1, ttl=3)
    calls: list[Callable[[], Any]] = [
        lambda: cache.set("user:1", entry),
        lambda: cache.set_many({"other": 1, "user:1": entry}),
        lambda: cache.add("user:1", entry),
        lambda: asyncio.run(cache.aset("user:1", entry)),
        lambda: asyncio.run(cache.aadd("user:1", entry)),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match=r"'user:1' was given an Entry: .* ttl=…, tags=…"):
            call()
    for call in (lambda: users.put(1, entry), lambda: users.put_many({0: "x", 1: entry})):
        with pytest.raises(ConfigurationError, match=r"1 was given an Entry: .* put its value"):
            call()
    assert cache.get_many(["user:0", "user:1", "other"]) == {}


def test_add_asks_store_if(cache: Cache):
    assert not cache.add("k", 1, store_if=lambda value: value != 1)
    assert cache.get("k") is None
    assert cache.add("k", 2, store_if=lambda value: value != 1)
    assert cache.get("k") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative_ttl": 0}, "negative_ttl=0: .*; to store no None at all, say store_if="),
        ({"negative_ttl": -1}, "negative_ttl=-1: .*; None means 'never expires'"),
        ({"ttl": 0}, "ttl=0: .*; None means 'never expires'"),
        ({"tags": 5}, "tags=5: expected a str, or several in a list"),
    ],
)
def test_a_wrong_option_names_the_way_out(cache: Cache, options: Any, message: str):
    with pytest.raises(ConfigurationError, match=message):
        cache.set("k", 1, **options)
