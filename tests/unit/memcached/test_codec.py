"""The meta codec and the rendezvous placement, without a server."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewright.errors import ConfigurationError, TierProtocolError
from cachewright.tiers import memcached_codec as codec
from cachewright.tiers.memcached_codec import Reply, ReplyParser
from cachewright.tiers.memcached_driver import Turn
from cachewright.tiers.memcached_steps import RELATIVE_LIMIT, exptime
from cachewright.tiers.placement import Placement

REPLIES = [
    (b"VA 3 c7 kns:k:a\r\nabc\r\n", Reply(b"VA", b"ns:k:a", 7, b"abc")),
    (b"VA 0 kx c1\r\n\r\n", Reply(b"VA", b"x", 1)),
    (b"VA 9 c1 kx f0 t-1\r\nEN\r\nHD\r\nx\r\n", Reply(b"VA", b"x", 1, b"EN\r\nHD\r\nx")),
    (b"EN\r\n", Reply(b"EN")),
    (b"EN kx\r\n", Reply(b"EN", b"x")),
    (b"HD c18446744073709551615 kx\r\n", Reply(b"HD", b"x", 2**64 - 1)),
    (b"HD\r\n", Reply(b"HD")),
    (b"NS c0 kx\r\n", Reply(b"NS", b"x")),
    (b"EX kx\r\n", Reply(b"EX", b"x")),
    (b"NF kx\r\n", Reply(b"NF", b"x")),
    (b"MN\r\n", Reply(b"MN")),
    (b"SERVER_ERROR out of memory\r\n", Reply(b"SERVER_ERROR", text="out of memory")),
    (b"ERROR\r\n", Reply(b"ERROR")),
    (b"STAT a 1\r\nSTAT b NULL\r\nEND\r\n", Reply(b"END", stats={b"a": b"1", b"b": b"NULL"})),
    (b"VA 100000 c1 kbig\r\n" + b"\r\n" * 50_000 + b"\r\n", Reply(b"VA", b"big", 1, b"\r\n" * 50_000)),
]


def test_requests():
    assert codec.get(b"k").wire == b"mg k v c k\r\n"
    assert codec.put(b"k", b"vv", 5, cas=9, on=3).wire == b"ms k 2 T5 C9 c k\r\nvv\r\n"
    assert codec.put(b"k", b"", 0).wire == b"ms k 0 T0 c k\r\n\r\n"
    assert codec.add(b"k", b"v", 1).wire == b"ms k 1 T1 ME c k\r\nv\r\n"
    assert codec.delete(b"k", cas=4, on=1).wire == b"md k C4 k\r\n"
    assert [
        r.mutates for r in (codec.get(b"k"), codec.add(b"k", b"", 0), codec.delete(b"k", cas=1, on=1))
    ] == [
        False,
        True,
        True,
    ]


@given(st.lists(st.sampled_from(REPLIES), max_size=12), st.lists(st.integers(1, 60_000), max_size=40))
def test_replies_come_whole_however_the_bytes_are_cut(replies, cuts):
    stream = b"".join(wire for wire, _ in replies)
    parser = ReplyParser("m")
    got, at = [], 0
    for size in [*cuts, len(stream)]:
        got += parser.feed(stream[at : at + size])
        at += size
        if at >= len(stream):
            break
    assert got == [reply for _, reply in replies]
    assert not parser.pending


@pytest.mark.parametrize(("wire", "reply"), REPLIES[:-1])
def test_byte_by_byte(wire, reply):
    parser = ReplyParser("m")
    for n in range(len(wire) - 1):
        assert parser.feed(wire[n : n + 1]) == []
        assert parser.pending
    assert parser.feed(wire[-1:]) == [reply]


@pytest.mark.parametrize(
    "wire",
    [
        b"VA -1 kx\r\n",
        b"VA 1_0 kx\r\n",
        b"VA +5 kx\r\n",
        "VA ٣ kx\r\n".encode(),
        b"VA  kx\r\n",
        b"VA 99999999999999999999999 kx\r\n",
        b"VA 67108865 kx\r\n",
        b"VA 3 kx\r\nabcXX",
        b"VA 3 c-1 kx\r\nabc\r\n",
        b"VA 3 c%b kx\r\nabc\r\n" % (b"9" * 21),
        b"HD cx\r\n",
        b"OK\r\n",
        b"VALUE k 0 1\r\nx\r\nEND\r\n",
        b"END of it\r\n",
        b"\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"-ERR unknown command\r\n",
        b"x" * 3000,
        b"\0" * 2048,
        b"".join(b"STAT s%d 1\r\n" % n for n in range(1100)),
    ],
)
def test_nonsense_is_refused(wire):
    with pytest.raises(TierProtocolError):
        ReplyParser("m").feed(wire)


def test_an_announced_length_reserves_nothing_and_is_bounded():
    parser = ReplyParser("m", max_item=1000)
    assert parser.feed(b"VA 1000 kx\r\nabc") == []
    with pytest.raises(TierProtocolError, match="1,001 bytes"):
        ReplyParser("m", max_item=1000).feed(b"VA 1001 kx\r\n")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_else(data):
    try:
        ReplyParser("m").feed(data)
    except TierProtocolError:
        pass


@pytest.mark.parametrize(
    ("request_", "reply", "says"),
    [
        (codec.get(b"a"), Reply(b"VA", b"b", 1, b"x"), "is about b'b'"),
        (codec.get(b"a"), Reply(b"VA", None, 1, b"x"), "no key"),
        (codec.get(b"a"), Reply(b"EN", b"b"), "is about b'b'"),
        (codec.get(b"a"), Reply(b"HD", b"a"), "answered with 'HD'"),
        (codec.add(b"a", b"", 0), Reply(b"HD"), "no key"),
        (codec.add(b"a", b"", 0), Reply(b"EN"), "answered with 'EN'"),
        (codec.add(b"a", b"", 0), Reply(b"CLIENT_ERROR", text="bad data chunk"), "bad data chunk"),
        (codec.get(b"a"), Reply(b"ERROR"), "1.6 or newer"),
        (codec.noop(), Reply(b"EN"), "answered with 'EN'"),
    ],
)
def test_a_reply_must_belong_to_its_request(request_, reply, says):
    with pytest.raises(TierProtocolError, match=says):
        codec.check("m", request_, reply)


def test_a_turn_leaves_out_what_is_bound_to_another_connection():
    bound = codec.delete(b"b", cas=1, on=6)
    turn = Turn("m", [codec.get(b"a"), bound, codec.get(b"c")], 7)
    assert turn.sent == b"mg a v c k\r\nmg c v c k\r\n"
    assert not turn.mutates
    turn.take(Reply(b"EN", b"a"))
    turn.take(Reply(b"VA", b"c", 2, b"x"))
    assert turn.complete
    assert [r and r.status for r in turn.answer().replies] == [b"EN", None, b"VA"]
    with pytest.raises(TierProtocolError, match="nobody asked for"):
        turn.take(Reply(b"EN"))


def test_expiry_is_never_early_and_absolute_beyond_thirty_days():
    now = 1_700_000_000.5
    assert exptime(None, now) == 0
    assert [exptime(ms, now) for ms in (1, 999, 1000, 1001, 5000)] == [2, 2, 2, 3, 6]
    assert exptime((RELATIVE_LIMIT - 1) * 1000, now) == RELATIVE_LIMIT
    assert exptime(RELATIVE_LIMIT * 1000, now) == 1_700_000_001 + RELATIVE_LIMIT + 1
    assert exptime(100 * 365 * 86_400_000, now) == 0  # past what the server can count


# ---------------------------------------------------------------------------------------------- placement

NAMES = ["127.0.0.1:11211", "127.0.0.1:11212", "cache-3.example:11211", "/run/memcached.sock"]


def test_placement_is_frozen():
    """Never change these: a fleet in the middle of an update would look for keys in two places."""
    place = Placement(NAMES)
    assert [place.node(b"shop:k:user:%d" % n) for n in range(16)] == [
        3,
        1,
        3,
        2,
        3,
        1,
        0,
        3,
        3,
        1,
        3,
        1,
        3,
        2,
        1,
        0,
    ]
    weight = hashlib.blake2b(b"127.0.0.1:11211\0shop:k:user:0", digest_size=8).hexdigest()
    assert weight == "2cda665851aeeeaf"


def test_the_order_of_servers_does_not_matter():
    forward, backward = Placement(NAMES), Placement(NAMES[::-1])
    for n in range(500):
        key = b"k%d" % n
        assert NAMES[forward.node(key)] == NAMES[::-1][backward.node(key)]


def test_a_server_less_moves_only_its_own_keys_and_all_get_a_share():
    all_, less = Placement(NAMES), Placement(NAMES[:-1])
    share = [0] * len(NAMES)
    for n in range(4000):
        key = b"k%d" % n
        home = all_.node(key)
        share[home] += 1
        if home != len(NAMES) - 1:
            assert less.node(key) == home
    assert min(share) > 850


def test_placement_refuses_no_servers_and_twins():
    with pytest.raises(ConfigurationError, match="at least one"):
        Placement([])
    with pytest.raises(ConfigurationError, match="given twice"):
        Placement(["a:1", "b:1", "a:1"])
