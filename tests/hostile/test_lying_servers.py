"""Servers that answer nonsense: every call ends with a clear error or what the loader gives, and never hangs.

Memcached's meta protocol has more of these in tests/unit/memcached/test_nonsense.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cachewright.errors import TierError, TierProtocolError, TierUnavailable
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS
from cachewright.tiers.redis import RedisTier

WELCOME = b":1\r\n"  # CLIENT ID
REDIS = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "zeros": b"\0" * 5000,
    "a number": b":7\r\n",
    "a number beyond 64 bits": b":99999999999999999999999\r\n",
    "a list": b"*1\r\n:1\r\n",
    "an empty list": b"*0\r\n",
    "lists in lists": b"*1\r\n" * 20,
    "a list of no length": b"*-5\r\n",
    "a list longer than memory": b"*4294967295\r\n",
    "a string of no length": b"$-7\r\n",
    "a string that does not end": b"$5\r\nhelloXX",
    "a string that never comes": b"$536870912\r\nabc",
    "a map without a key": b"%1\r\n*0\r\n:1\r\n",
    "a double": b",1.5\r\n",
    "a truth": b"#t\r\n",
    "more than was asked": b"$-1\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n",
    "an unknown script, always": b"-NOSCRIPT No matching script\r\n",
    "a redirection": b"-MOVED 3999 127.0.0.1:1\r\n",
    "an error of many words": b"-ERR " + b"x" * 100_000 + b"\r\n",
    "silence": b"",
}
MEMCACHED = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "zeros": b"\0" * 5000,
    "an old server": b"ERROR\r\n",
    "another key": b"VA 2 c1 kanother:k:a\r\nhi\r\n",
    "no key": b"VA 2 c1\r\nhi\r\n",
    "a value beyond the limit": b"VA 99999999999 c1 kx\r\n",
    "a confirmation that was not asked for": b"HD\r\nHD\r\nHD\r\n",
    "half a reply": b"EN\r\nVA 5 c1 ",
    "no end of statistics": b"STAT a b\r\n" * 2000,
    "silence": b"",
}
CLUSTER = {
    **{
        name: REDIS[name]
        for name in ("zeros", "a number", "an empty list", "a list longer than memory", "silence")
    },
    "slots without nodes": b"*1\r\n*2\r\n:0\r\n:16383\r\n",
    "slots by the million million": b"*1\r\n*3\r\n:0\r\n:1000000000000\r\n*2\r\n$1\r\nh\r\n:1\r\n",
    "slots before the first": b"*1\r\n*3\r\n:-5\r\n:16383\r\n*2\r\n$1\r\nh\r\n:1\r\n",
    "slots that end before they begin": b"*1\r\n*3\r\n:9\r\n:3\r\n*2\r\n$1\r\nh\r\n:1\r\n",
    "the same slots again and again": b"*2\r\n" + b"*3\r\n:0\r\n:16383\r\n*2\r\n$1\r\nh\r\n:1\r\n" * 2,
    "a port that is none": b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$1\r\nh\r\n:99999\r\n",
    "a host that is no text": b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$2\r\n\xff\xfe\r\n:1\r\n",
    "a number in a node's place": b"*1\r\n*3\r\n:0\r\n:16383\r\n:1\r\n",
}


def each_call_ends(cache: Any) -> None:
    """Twice, for what the first call left behind must not keep the second."""
    calls: list[Callable[[], Any]] = [
        lambda: cache.get("a"),
        lambda: cache.get_many(["a", "b"]),
        lambda: cache.get_or_set("a", lambda: "loaded"),
        lambda: cache.set("a", 1),
        lambda: cache.set("a", "x" * 50_000),
        lambda: cache.add("a", 1),
        lambda: cache.delete("a"),
        lambda: cache.invalidate_tags("t"),
        lambda: cache.clear(),
        lambda: cache.inspect("a"),
    ]
    for call in calls * 2:
        result, told = None, None
        try:
            result = call()
        except TierError as error:
            told = error
        assert told is None or isinstance(told, (TierProtocolError, TierUnavailable))
        assert len(str(told)) < 1000
        assert result in (None, {}, "loaded", False) or type(result).__name__ == "Inspection"


@pytest.mark.parametrize("answer", REDIS)
def test_redis(liar: Any, open_cache: Any, answer: str) -> None:
    server = liar(REDIS[answer], WELCOME)
    each_call_ends(open_cache(f"redis://127.0.0.1:{server.port}?timeout=0.1"))


@pytest.mark.parametrize("answer", CLUSTER)
def test_cluster(liar: Any, open_cache: Any, answer: str) -> None:
    server = liar(CLUSTER[answer], WELCOME)
    each_call_ends(open_cache(f"redis+cluster://127.0.0.1:{server.port}?timeout=0.1"))


@pytest.mark.parametrize("answer", MEMCACHED)
def test_memcached(liar: Any, open_cache: Any, answer: str) -> None:
    server = liar(MEMCACHED[answer])
    each_call_ends(open_cache(f"memcached://127.0.0.1:{server.port}?timeout=0.1"))


def test_memory_above_goes_on_and_the_loader_serves(liar: Any, open_cache: Any) -> None:
    server = liar(b"", WELCOME)
    cache = open_cache("memory://", f"redis://127.0.0.1:{server.port}?timeout=0.1")
    assert cache.get_or_set("a", lambda: "loaded") == "loaded"


# ----------------------------------------------------------------------------------------------- what the user is told


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("another protocol", "does not speak Redis's protocol: Protocol error"),
        ("a number", r"answered with a reply of type int in the place of a string"),
        ("a list", r"answered with a reply of type list in the place of a string"),
        (
            "a map without a key",
            r"does not speak Redis's protocol: a reply that cannot be built \(TypeError\)",
        ),
        ("a list longer than memory", r"a reply that cannot be built \(MemoryError\)"),
        ("more than was asked", "does not speak Redis's protocol: more replies than commands"),
        ("a redirection", r"the server answered: MOVED 3999 127\.0\.0\.1:1"),
    ],
)
def test_the_error_says_what_was_wrong(liar: Any, namespace: str, answer: str, says: str) -> None:
    server = liar(REDIS[answer], WELCOME)
    tier = RedisTier(port=server.port, namespace=namespace, timeout=5)
    with pytest.raises(TierProtocolError, match=says):
        drive(tier.read(THREADS, ["a"]))
    tier.close()


@pytest.mark.parametrize("answer", [b"$2\r\nOK\r\n", b"*0\r\n", b"$-1\r\n", b"+QUEUED\r\n"])
def test_a_drop_that_was_not_confirmed_is_not_taken_for_one(liar: Any, namespace: str, answer: bytes) -> None:
    tier = RedisTier(port=liar(answer, WELCOME).port, namespace=namespace, timeout=5)
    with pytest.raises(TierProtocolError, match="in the place of a number"):
        drive(tier.drop(THREADS, ["a"]))
    tier.close()


def test_a_scan_that_goes_in_circles_ends(liar: Any, namespace: str) -> None:
    tier = RedisTier(port=liar(b"*2\r\n$1\r\n7\r\n*0\r\n", WELCOME).port, namespace=namespace, timeout=5)
    with pytest.raises(TierProtocolError, match="SCAN does not get on: it returned the cursor b'7' again"):
        drive(tier.clear(THREADS))
    tier.close()


@pytest.mark.parametrize(
    "name", [name for name in CLUSTER if name.startswith(("s", "the", "a p", "a h")) and name != "silence"]
)
def test_a_map_of_slots_that_is_none_says_so(liar: Any, open_cache: Any, name: str) -> None:
    server = liar(CLUSTER[name], WELCOME)
    cache = open_cache(f"redis+cluster://127.0.0.1:{server.port}?timeout=5")
    with pytest.raises(TierProtocolError, match="CLUSTER SLOTS with nonsense"):
        cache.connect(attempts=1)


@pytest.mark.parametrize(
    "redirection",
    [
        "MOVED 5 127.0.0.1:{port}",
        "ASK 5 127.0.0.1:{port}",
        "MOVED",
        "MOVED x y",
        "ASK 99999 h:1",
        "MOVED 5 h:0",
    ],
)
def test_a_redirection_without_end_or_place_ends(liar: Any, open_cache: Any, redirection: str) -> None:
    said = b""
    slots = b""

    def answer(request: bytes) -> bytes:
        if b"CLIENT" in request:
            return WELCOME
        return slots if b"SLOTS" in request else said

    server = liar(answer)
    said = f"-{redirection.format(port=server.port)}\r\n".encode()
    slots = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % server.port
    cache = open_cache(f"redis+cluster://127.0.0.1:{server.port}?timeout=1", on_outage="raise")
    says = "a redirection that leads nowhere" if "{" not in redirection else "times within one call|no answer"
    with pytest.raises(TierError, match=says):
        cache.get("a")
    assert server.heard.count(b"GET") < 50
