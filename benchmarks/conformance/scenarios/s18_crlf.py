"""A key with a line break in it, against Memcached's line protocol."""

from __future__ import annotations

import socket

from benchmarks.conformance.model import MEMCACHED, Failed, Place, Scenario
from benchmarks.conformance.stage import Origin, Stage, Variant, ended

KEYS = (
    "key\r\nset injected 0 60 4\r\nEVIL",
    "key 0 0 1\r\nx\r\nset injected 0 60 4\r\nEVIL\r\nget key",
    "key\nset injected 0 60 4\r\nEVIL",
)


def probe(stage: Stage) -> None:
    """Keys that hold a whole ``set`` command after a line break are read, loaded and invalidated.

    Pass: the command was not executed. An error is as good as a key that is encoded.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    caller = variant.caller(Origin())
    for key in KEYS:
        calls = [caller.get(key)]
        ended(calls, 2.0)
        if caller.reader.invalidate is not None:
            ended([caller.invalidate(key)], 2.0)
        if _injected(variant.place):
            raise Failed("the command in the key is executed")


def _injected(place: Place) -> bool:
    with socket.create_connection((place.host, place.port), 2.0) as connection:
        connection.sendall(b"get injected\r\n")
        return b"EVIL" in connection.recv(100)


SCENARIO = Scenario(
    "crlf", "A key with CR LF injects nothing into Memcached", probe, kinds=(MEMCACHED,), needs="client"
)
