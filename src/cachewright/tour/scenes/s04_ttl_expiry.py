"""Scene 4: 300 keys filled together, and when each of them expires."""

from __future__ import annotations

import time
from typing import Any

from cachewright import Cache, Entry
from cachewright.tour.stage import Scene, Stage

KEYS = 300
TTL = 1.5
JITTER = 0.4
BUCKET = 0.1


def fill(cache: Cache, values: dict[str, int]) -> None:
    """What a user writes."""
    cache.set_many(values, ttl=TTL, jitter=JITTER)  # up to 40 % sooner, at random; never later


def fill_textbook(redis: Any, values: dict[str, int]) -> None:
    """The textbook's."""
    pipeline = redis.pipeline()
    for key, value in values.items():
        pipeline.set(key, value, px=int(TTL * 1000))
    pipeline.execute()


def run(stage: Stage) -> None:
    """Plays it."""
    _spread(stage)
    _own_life(stage)


def _spread(stage: Stage) -> None:
    cache, redis = stage.cache(stage.engines["redis"].url), stage.redis()
    values = {f"item:{n}": n for n in range(KEYS)}
    names = {stage.key(name): n for name, n in values.items()}
    stage.say(f"{KEYS} keys are given a life of {TTL:g} s")
    began = time.monotonic()
    stage.ours.call(fill, cache, values, note=f"ttl={TTL:g}, jitter={JITTER:g}")
    stage.textbook.call(fill_textbook, redis, names, note=f"ttl={TTL:g}")
    stage.ours.tiers(cache.inspect, "item:0")
    stage.ours.tiers(cache.inspect, "item:1")
    pipeline = redis.pipeline()
    for name in names:
        pipeline.pttl(name)
    now = time.monotonic() - began
    theirs = [now + life / 1000 for life in pipeline.execute()]
    mine = []
    for name in values:
        life = cache.inspect(name).tiers[0].fresh_for or 0.0
        mine.append(time.monotonic() - began + life)
    for side, ends in ((stage.ours, mine), (stage.textbook, theirs)):
        side.note("expiry", f"{KEYS} keys, per {BUCKET:g} s", _histogram(ends))
    stage.compare(
        f"{KEYS} keys filled together: most that expire within {BUCKET:g} s",
        f"{_busiest(theirs)}: as many loads at once",
        f"{_busiest(mine)}, spread over {max(mine) - min(mine):.1f} s",
        _busiest(mine) < KEYS * 0.4 and _busiest(theirs) > KEYS * 0.7,
    )

    stage.say("and the last of them expires")
    stage.wait(lambda: not cache.get_many(values), "the end of all lives")
    last = time.monotonic() - began
    stage.ours.call(cache.get_many, list(values))
    stage.compare("none outlives its TTL", "—", f"none was left after {last:.2f} s", max(mine) <= TTL + 0.1)


def _busiest(times: list[float]) -> int:
    """The most keys that went within one bucket's length, wherever that begins."""
    return max(sum(start <= moment < start + BUCKET for moment in times) for start in set(times))


def _histogram(times: list[float]) -> str:
    """Bars, one a bucket."""
    counts = [0] * (int(TTL / BUCKET) + 3)
    for moment in times:
        counts[min(int(moment / BUCKET), len(counts) - 1)] += 1
    bars = " ▁▂▃▄▅▆▇█"
    top = max(counts)
    return (
        "".join(bars[0 if not n else max(1, round(8 * n / top))] for n in counts).rstrip()
        + f"  (highest: {top})"
    )


def _own_life(stage: Stage) -> None:
    """A loader may say how long its value is good; a touch gives a new life; None has no end."""
    stage.say("entries with lives of their own")
    cache = stage.cache(stage.engines["redis"].url, jitter=0)

    def load_token() -> Entry[str]:
        return Entry("abc", ttl=20)

    stage.ours.call(cache.get_or_set, "token", load_token, note="its loader says: good for 20 s")
    token = stage.ours.tiers(cache.inspect, "token").tiers[0].fresh_for or 0
    stage.ours.call(cache.touch, "token", 60)
    touched = stage.ours.tiers(cache.inspect, "token").tiers[0].fresh_for or 0
    stage.ours.call(cache.set, "country", "Norway", ttl=None)
    endless = stage.ours.tiers(cache.inspect, "country").tiers[0]
    stage.compare(
        "lives of their own: a loader's, a touch's, none",
        "one TTL for all",
        f"{token:.0f} s, {touched:.0f} s, no end",
        19 < token <= 20 and 59 < touched <= 60 and endless.fresh_for is None and endless.state == "fresh",
    )


SCENE = Scene(
    number=4,
    name="TTL expiry",
    about=(
        "Every entry has a life, and nobody has to remember to end it. "
        "A random share of it is taken off, so that what was filled together does not expire together."
    ),
    bug="Every key that was filled together expires together, and the database gets all their loads at once.",
    needs=("redis",),
    ours=(fill,),
    textbook=(fill_textbook,),
    run=run,
)
