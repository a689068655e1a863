"""A pickle that somebody else wrote into the store."""

from __future__ import annotations

from benchmarks.conformance.model import DISK, REDIS, Failed, Scenario
from benchmarks.conformance.plant import marker, pickled, planted
from benchmarks.conformance.stage import Origin, Stage, Variant, ended, result


def probe(stage: Stage) -> None:
    """A list is stored. Then whoever can write to the store puts a pickle in its place, bare and behind every possible
    beginning of the stored bytes; the pickle makes a folder. After each, another instance reads the key.

    Pass: the folder is never made.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    made = marker(variant)
    result(variant.caller(Origin([1.5, {"name": "value"}])).get("key"), "the first call")
    reading = variant.caller(Origin([2.5]))
    tried = 0
    for _ in planted(variant, pickled(made)):
        tried += 1
        if not ended([reading.get("key")]):
            raise Failed("hung: reading what was planted")
        if made.exists():
            raise Failed("a planted pickle is executed")
    if not tried:
        raise AssertionError("found nothing to plant into")


SCENARIO = Scenario("pickle", "A pickle planted in the store is not executed", probe, kinds=(DISK, REDIS))
