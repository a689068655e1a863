"""Signed values, and somebody who can write to the store but has not the secret."""

from __future__ import annotations

import secrets

from benchmarks.conformance.model import REDIS, Failed, Scenario
from benchmarks.conformance.plant import marker, pickled, planted, read, write
from benchmarks.conformance.stage import Stage, Variant


def probe(stage: Stage) -> None:
    """Values are signed pickles. Planted: a pickle without a signature, behind every beginning of a signed value; the
    signed value of another key; and up to 10,000 signatures that the library's own format invites to guess.

    Pass: no planted pickle is executed, and no key shows another's value.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    made = marker(variant)
    store = variant.store(variant.stage.library.signed, secrets.token_hex(16).encode())
    store.set("key", [1.5], 60)
    store.set("other", [2.5], 60)
    names = {("other" if b"other" in name else "key"): name for name in read(variant)}
    raw = read(variant)
    write(variant, names["key"], raw[names["other"]])
    if _get(store.get) == [2.5]:
        raise Failed("a value signed for another key is accepted")
    write(variant, names["key"], raw[names["key"]])
    for _ in planted(variant, pickled(made), names["key"]):
        _get(store.get)
        if made.exists():
            raise Failed("a pickle without its signature is executed")
    for guess, forged in enumerate(variant.stage.library.forgeries("key", pickled(made)), 1):
        write(variant, names["key"], forged)
        _get(store.get)
        if made.exists():
            size = "a few thousand" if guess > 500 else "some hundred"
            raise Failed(f"a forged signature is accepted after {size} guesses")


def _get(get: object) -> object:
    try:
        return get("key")  # type: ignore[operator]
    except Failed as refused:  # the library raises, which is as good as a miss
        if "hung" in str(refused):
            raise
        return None


SCENARIO = Scenario(
    "forgery", "A forged signature is refused", probe, kinds=(REDIS,), needs="signs", limit=90
)
