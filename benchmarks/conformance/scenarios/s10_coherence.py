"""Two processes with memories above one Redis write and read the same keys."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from benchmarks.conformance.model import REDIS, Failed, Scenario
from benchmarks.conformance.stage import Stage, Variant, until

KEYS = [f"key{number}" for number in range(50)]


def probe(stage: Stage) -> None:
    """Two instances have a key in memory and one of them changes it; then both write the same 50 keys at once.

    Pass: within 2 s the other one reads the change, and within 2 s after the last write both read the same values.
    """
    stage.each(_one)


def _one(variant: Variant) -> None:
    one, two = (variant.store(variant.stage.library.above) for _ in range(2))
    one.set("key", "old", 60)
    if two.get("key") != "old":
        raise Failed("the other process does not read what was written")
    one.set("key", "new", 60)
    if not until(lambda: bool(two.get("key") == "new"), 2.0):
        raise Failed("the other process's memory is never told of a change")

    def write(store_and_name: tuple[object, str]) -> None:
        store, name = store_and_name
        for number in range(5):
            for key in KEYS:
                store.set(key, f"{name}{number}", 60)  # type: ignore[attr-defined]
                store.get(key)  # type: ignore[attr-defined]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [(one, "one"), (two, "two")]))
    differing = KEYS

    def agree() -> bool:
        nonlocal differing
        differing = [key for key in KEYS if one.get(key) != two.get(key)]
        return not differing

    if not until(agree, 2.0):
        raise Failed("keys of the 50 still differ after concurrent writes")


SCENARIO = Scenario(
    "coherence",
    "Memories above one Redis agree after writes",
    probe,
    timed=True,
    kinds=(REDIS,),
    needs="levels",
)
