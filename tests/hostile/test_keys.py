"""Hostile keys over every tier and both faces: stored and read back exactly, no other key touched, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from cachewright import Cache, InvalidKeyError
from cachewright.keys import memcached_key, physical_key

PLAIN = {
    "CR LF": "a\r\nflush_all\r\n",
    "LF": "a\nb",
    "CR": "a\rb",
    "NUL inside": "a\0b",
    "space": "a b",
    "spaces only": "   ",
    "DEL": "a\x7fb",
    "249 bytes": "a" * 249,
    "250 bytes": "a" * 250,
    "251 bytes": "a" * 251,
    "65,536 bytes": "a" * 65_536,
    "65,536 bytes of UTF-8": "é" * 32_768,
    "é": "caf\u00e9",
    "é in two": "cafe\u0301",
    "RTL marks": "\u202egnp.exe\u200f",
    "line separator": "a\u2028b",
    "BOM": "\ufeffa",
    "non-character": "a\uffff\U0010ffff",
    "braces": "{a}b",
    "other braces": "{a}c",
    "empty braces": "{}",
    "template": "{0.__class__.__mro__}",
    "percent": "%s%n%(x)s",
    "glob": "*?[a-z]\\",
    "quotes": "'; DROP TABLE slots; --",
    "colons": ":::",
    "path": "../../etc/passwd",
    "protocol": "*1\r\n$8\r\nFLUSHALL\r\n",
}


def all_keys(namespace: str) -> dict[str, str]:
    """With those that look like what the cache itself writes."""
    own = physical_key(namespace, "k", "bystander")
    tag = physical_key(namespace, "t", "users")
    digest = memcached_key(physical_key(namespace, "k", PLAIN["251 bytes"])).decode()
    return {
        **PLAIN,
        "an internal key": own,
        "a tag's internal key": tag,
        "a tag": "users",
        "a digest": digest,
        "a digest without its namespace": digest.removeprefix(f"{namespace}:"),
    }


def test_each_is_stored_exactly_and_touches_no_other(store: Any) -> None:
    cache = store.cache()
    keys = all_keys(store.namespace)
    cache.set("bystander", "here", tags=["users"])
    wanted = {key: f"value of {name}" for name, key in keys.items()}
    assert len(wanted) == len(keys)
    for key, value in wanted.items():
        cache.set(key, value)
    for key, value in wanted.items():
        assert cache.get(key) == value
    assert cache.get_many([*wanted, "bystander"]) == {**wanted, "bystander": "here"}
    for key in list(wanted):
        assert cache.delete(key) is True
        del wanted[key]
        assert cache.get_many([key, *wanted]) == wanted
        assert cache.get_or_set(key, lambda key=key: f"loaded {key[:9]}") == f"loaded {key[:9]}"
        assert cache.delete(key) is True
    assert cache.get("bystander") == "here"


def test_a_key_that_is_a_tag_is_not_touched_by_it(store: Any) -> None:
    cache = store.cache()
    names = ["users", physical_key(store.namespace, "t", "users"), "{0.__class__}"]
    for name in names:
        cache.set(name, f"key {name}")
    cache.set("tagged", 1, tags=names)
    cache.invalidate_tags(*names)
    assert cache.get("tagged") is None
    assert cache.get_many(names) == {name: f"key {name}" for name in names}
    for name in names:
        cache.delete(name)
    cache.set("tagged", 2, tags=names)
    assert cache.get("tagged") == 2


REFUSED = {
    "empty": ("", "'' is empty: a key must have at least one character"),
    "a lone surrogate": ("a\ud800", "cannot be encoded as UTF-8 (a lone surrogate at position 1)"),
    "65,537 bytes": ("a" * 65_537, "has 65,537 bytes, and the limit is 65,536"),
    "65,538 bytes of UTF-8": ("é" * 32_769, "has 65,538 bytes, and the limit is 65,536"),
    "NUL at its start": ("\0own", "begins with NUL: those are the cache's own"),
    "bytes": (b"a", "key b'a' is of type bytes: a key must be a str"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_refusal_says_why_on_every_way_in(store: Any, name: str) -> None:
    cache = store.cache()
    cache.set("bystander", "here")
    key, said = REFUSED[name]
    calls: list[Any] = [
        lambda: cache.get(key),
        lambda: cache.get_many(["a", key]),
        lambda: cache.get_or_set(key, lambda: 1),
        lambda: cache.set(key, 1),
        lambda: cache.set_many({"a": 1, key: 1}),
        lambda: cache.add(key, 1),
        lambda: cache.touch(key, 1),
        lambda: cache.incr(key),
        lambda: cache.delete(key),
        lambda: cache.delete_many([key]),
        lambda: cache.inspect(key),
    ]
    for call in calls:
        with pytest.raises(InvalidKeyError) as caught:
            call()
        assert said in str(caught.value)
        assert len(str(caught.value)) < 400
    assert cache.get_many(["a", "bystander"]) == {"bystander": "here"}


def test_an_argument_is_never_taken_for_a_template() -> None:
    with Cache("memory://") as cache:
        loaded: list[str] = []

        @cache.cached(key="user:{user_id}")
        def load(user_id: str) -> str:
            loaded.append(user_id)
            return f"value of {user_id}"

        hostile = [
            "{0.__class__}",
            "{user_id}",
            "{{x}}",
            "%s",
            "{user_id.__init__.__globals__}",
            "a:b",
            '"a:b"',
        ]
        for user_id in hostile * 2:
            assert load(user_id) == f"value of {user_id}"
        assert loaded == hostile
