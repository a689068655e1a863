"""Secrets in URLs, keys, passwords and the environment show nowhere: a marked one is planted, and all is searched."""

from __future__ import annotations

import base64
import io
import logging
import pickle
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from cachewright import Cache, ConfigurationError, events
from cachewright.behind.buffers import open_buffer
from cachewright.environment import read_environment
from cachewright.errors import TierError
from cachewright.tiers.memcached import MemcachedTier
from cachewright.urls import make_tiers
from cachewright.write_modes import WriteBehind

SECRET = "hUnTeR2/%?#@:x9"
KEY = b"S3cr3tK3yOf32Bytes-hUnTeR2-hUnT!"
FORMS = {
    SECRET, quote(SECRET, safe=""), repr(SECRET)[1:-1], "hUnTeR2", base64.b64encode(SECRET.encode()).decode(),
    KEY.decode(), repr(KEY), KEY.hex(), base64.b64encode(KEY).decode(),
}  # fmt: skip


class Gathered:
    """All that a program says: logs of every library at every level, events, and what is asked of the cache."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.said: list[str] = []

    def add(self, *things: object) -> None:
        for thing in things:
            self.said += [str(thing), repr(thing)]
            if isinstance(thing, BaseException):
                self.said += traceback.format_exception(thing)
                self.said.append(repr(vars(thing)))

    def search(self) -> None:
        everything = "\n".join([*self.said, self.stream.getvalue()])
        for form in FORMS:
            assert form not in everything, everything[max(0, everything.index(form) - 300) :][:600]
        assert everything.strip()


@pytest.fixture
def gathered() -> Iterator[Gathered]:
    one = Gathered()
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(one.handler)
    root.setLevel(logging.DEBUG)
    yield one
    root.removeHandler(one.handler)
    root.setLevel(level)
    one.search()


SAID = quote(SECRET, safe="")


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster"])
@pytest.mark.parametrize("answer", ["nobody is there", "silence", "refused", "quoted"])
def test_a_tier_that_fails_in_every_way(
    gathered: Gathered, liar: Any, open_cache: Any, scheme: str, answer: str
) -> None:
    if answer == "nobody is there":
        port = 1
    else:
        said = {
            "silence": b"",
            "refused": b"-WRONGPASS invalid username-password pair or user is disabled.\r\n" * 2,
            # Redis quotes the arguments of a command that it does not know, cut off at 128 bytes.
            "quoted": b"-ERR unknown command 'AUTH', with args beginning with: 'user' '%s'\r\n"
            % SECRET.encode()
            * 2,
        }[answer]
        port = liar(said).port
    url = f"{scheme}://user:{SAID}@127.0.0.1:{port}"
    cache = open_cache(f"{url}?timeout=0.05", on_outage="raise", encryption_keys=KEY)
    told: list[events.Event] = []
    cache.cache.events.subscribe(told.append)
    for call in (
        lambda: cache.connect(attempts=1),
        lambda: cache.get("a"),
        lambda: cache.set("a", 1),
        lambda: cache.get_or_set("a", lambda: 1),
        lambda: cache.delete("a"),
        lambda: cache.invalidate_tags("t"),
        lambda: cache.clear(),
    ):
        with pytest.raises(TierError) as caught:
            call()
        gathered.add(caught.value)
    gathered.add(cache.cache, cache.cache.stats(), cache.inspect("a"), *told)
    gathered.add(*(tier for tier in cache.cache.engine._tiers()))


@pytest.mark.parametrize(
    "quoted",
    [
        "ERR unknown command `AUTH`, with args beginning with: `user`, `{secret}`, ",
        "ERR unknown command 'AUTH', with args beginning with: '{cut}'",
        "{secret}",
        "{secret} is wrong",
        "WRONGPASS {secret}\x07\x1b[2J",
        "MOVED 1 {secret}:1",
        "NOAUTH " + "x" * 280 + "{secret}",
    ],
)
def test_whatever_the_server_quotes(gathered: Gathered, liar: Any, namespace: str, quoted: str) -> None:
    secret = "hUnTeR2-and-more"
    server = liar(b"-%s\r\n" % quoted.format(secret=secret, cut=secret[:9]).encode() * 2)
    with Cache(
        f"redis://:{secret}@127.0.0.1:{server.port}?timeout=1", namespace=namespace, on_outage="raise"
    ) as cache:
        with pytest.raises(TierError) as caught:
            cache.get("a")
        gathered.add(caught.value, cache.stats())
        assert "\x1b" not in str(caught.value)
    assert secret.encode() in server.heard  # it was sent, where it belongs


def test_a_short_password_hides_no_redirection() -> None:
    """A cluster whose password is "7001" still finds its nodes on port 7001."""
    from cachewright.tiers.redis_driver import new_reader

    reader = new_reader("7001")
    reader.feed(b"-MOVED 3999 127.0.0.1:7001\r\n")
    assert str(reader.gets()) == "MOVED 3999 127.0.0.1:7001"


WRONG_URLS = [
    "redis://user:{secret}@host:port", "redis://user:{secret}@host/db", "redis://user:{secret}@host?timeout=soon",
    "redis://user:{secret}@host?timeuot=1", "redis://user:{secret}@a,b", "redis://user:{secret}@", "redis://:{secret}",
    "redis//user:{secret}@host", "redis:/user:{secret}@host", "//user:{secret}@host", "user:{secret}@host",
    "rdis://user:{secret}@host", "http://user:{secret}@host", "redis://user:{secret}@[::1", "redis://user:{secret}\u2100@host",
    "redis://user:{secret}@host/0/x@y", "memory://user:{secret}@host", "sqlite://user:{secret}@host/x.db",
    "memcached://user:{secret}@host:port", "embedded+cluster://user:{secret}@host", "redis+unix://user:{secret}@",
    "redis+cluster://user:{secret}@host:99999",  "redis://host?password={secret}",
    "memory://?max_entries=1://user:{secret}@host",
]  # fmt: skip


@pytest.mark.parametrize("url", WRONG_URLS)
@pytest.mark.parametrize(
    "secret", ["hUnTeR2", SAID, SECRET, "hUnTeR2?x", "hUnTeR2#x", "hUnTeR2/x", "hUnTeR2@x"]
)
def test_wrong_urls_wherever_they_are_given(gathered: Gathered, url: str, secret: str) -> None:
    wrong = url.format(secret=secret)
    for use in (
        lambda: Cache(wrong),
        lambda: Cache("memory://", wrong),
        lambda: Cache.from_env({"CACHEWRIGHT_TIERS": wrong}),
        lambda: open_buffer(wrong, "shop/user"),
        lambda: WriteBehind(buffer=wrong),
        lambda: WriteBehind(flusher=wrong),
        lambda: MemcachedTier(servers=wrong, namespace="shop"),
        lambda: MemcachedTier(servers=[f"x{wrong}"], namespace="shop"),  # "//…" is the path of a socket
    ):
        try:
            gathered.add(use())
        except ConfigurationError as error:
            gathered.add(error)


def test_a_broken_environment(gathered: Gathered) -> None:
    for name in ("TTL", "RETRIES", "COPY", "JITTER", "LEASE"):
        for text in (f"redis://user:{SECRET}@host", SECRET * 3):
            with pytest.raises(ConfigurationError, match=f"CACHEWRIGHT_{name}=…: expected") as caught:
                read_environment({f"CACHEWRIGHT_{name}": text})
            gathered.add(caught.value)
    for name in ("PICKLE_KEYS", "ENCRYPTION_KEYS"):
        for text in (SECRET, KEY.decode(), f"{KEY.hex()}0", f"{KEY.hex()} {SECRET}"):
            with pytest.raises(ConfigurationError, match="hexadecimal") as caught:
                read_environment({f"CACHEWRIGHT_{name}": text})
            gathered.add(caught.value)
    with pytest.raises(ConfigurationError, match="names no option") as caught:
        read_environment({"CACHEWRIGHT_REDIS_PASSWORD": SECRET})
    gathered.add(caught.value)
    with pytest.raises(ConfigurationError, match="32 bytes") as caught:
        Cache.from_env({"CACHEWRIGHT_ENCRYPTION_KEYS": KEY.hex()[2:]})
    gathered.add(caught.value)


def test_keys_of_codecs(gathered: Gathered, tmp_path: Any) -> None:
    with Cache(
        f"sqlite:///{tmp_path}/a.db", codec="pickle", pickle_keys=[KEY], encryption_keys=[KEY]
    ) as cache:
        told: list[events.Event] = []
        cache.events.subscribe(told.append)
        cache.set("a", {"x": 1})
        other = Cache(f"sqlite:///{tmp_path}/a.db", encryption_keys=KEY[::-1])
        other.events.subscribe(told.append)
        assert other.get("a") is None
        assert [type(event) for event in told] == [events.DecodeFailed]
        pipeline = cache.engine.state.pipeline
        gathered.add(
            cache, cache.stats(), cache.inspect("a"), pipeline, pipeline.codec, pipeline._encryption, *told
        )
        for holder in (pipeline.codec, pipeline._encryption):
            with pytest.raises(TypeError, match="holds secrets and cannot be pickled"):
                pickle.dumps(holder)
        other.close()


def test_a_brokers_url(gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    from cachewright.behind.celery import app_for, install

    monkeypatch.setenv("CACHEWRIGHT_BROKER", f"amqp://user:{SAID}@127.0.0.1:1//")
    flushing = install(app_for())
    hub = events.Hub()
    told: list[events.Event] = []
    hub.subscribe(told.append)
    flushing.hints("shop", "user", hub)(["user:1"])
    assert flushing.sender.drain(20)
    assert [type(event) for event in told] == [events.BackgroundFailed]
    gathered.add(
        *told, *(event.error for event in told if isinstance(event, events.BackgroundFailed)), flushing
    )
    flushing.close()


def test_no_tier_pickles_or_shows_its_address_whole(gathered: Gathered) -> None:
    from cachewright.runtime.threads import SYSTEM_CLOCK

    for tier in make_tiers([f"redis://user:{SAID}@host:1/2"], "shop", SYSTEM_CLOCK, False):
        gathered.add(tier, tier.describe(), tier.name, vars(tier))
        gathered.add(*vars(tier).values())
        tier.close()
