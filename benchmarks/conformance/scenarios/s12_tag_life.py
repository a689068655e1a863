"""A tag with a long-lived and a short-lived member."""

from __future__ import annotations

import time

from benchmarks.conformance.model import Failed, Scenario
from benchmarks.conformance.stage import Stage, Variant, until


def probe(stage: Stage) -> None:
    """A key that lives for a minute and one that lives for a second carry the same tag; the short one ends, and half a
    second later the tag is invalidated.

    Pass: the long-lived key is gone.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    store = variant.store(variant.stage.library.tagged)
    assert store.set_tagged is not None
    assert store.drop_tag is not None
    store.set_tagged("long", "value", 60.0, "tag")
    store.set_tagged("short", "value", 1.0, "tag")
    if store.get("long") is None:
        raise Failed("a key with a tag is not stored")
    if not until(lambda: store.get("short") is None):
        raise Failed("a key outlives its ttl")
    time.sleep(0.5)
    store.drop_tag("tag")
    if store.get("long") is not None:
        raise Failed("a short-lived member ends the tag, and the long-lived key escapes")


SCENARIO = Scenario(
    "tag-life", "A short-lived member does not end its tag", probe, side_by_side=True, needs="tags"
)
