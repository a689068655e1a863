"""Scene 8: what a lower tier gives back to an upper one, and an update that must reach all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from cachewright import Cache
from cachewright.tour.origin import Database, User
from cachewright.tour.plain_memcached import PlainMemcached
from cachewright.tour.recorder import show
from cachewright.tour.stage import Scene, Stage

TTL = 3.0
EVICTED_AT = 1.5
LOOK_AT = 3.4


def ours(cache: Cache, database: Database) -> Callable[[int], User]:
    """What a user writes: the cache is ``Cache("memory://", "redis://…", "memcached://…")``."""

    @cache.cached(key="user:{user_id}", ttl=TTL, jitter=0)
    def get_user(user_id: int) -> User:
        return database.load_user(user_id)

    return get_user


def textbook(
    redis: Any, memcached: Any, database: Database
) -> tuple[Callable[..., User], Callable[..., None]]:
    """The textbook's."""

    def get_user(key: str, user_id: int) -> User:
        if (text := redis.get(key)) is not None:
            return User(**json.loads(text))
        if (text := memcached.get(key)) is not None:
            redis.set(key, text, ex=int(TTL))  # a second full life
            return User(**json.loads(text))
        user = database.load_user(user_id)
        memcached.set(key, json.dumps(vars(user)))  # never expires
        redis.set(key, json.dumps(vars(user)), ex=int(TTL))
        return user

    def update_user(key: str, user: User) -> None:
        database.save_user(user.id, user)
        redis.delete(key)  # and the level below?

    return get_user, update_user


def run(stage: Stage) -> None:
    """Plays it."""
    chain = ("memory://", stage.engines["redis"].url, stage.engines["memcached"].url)
    cache, other = stage.cache(*chain), stage.cache(*chain)
    lower = _lower(stage)
    get, update = textbook(stage.redis(), lower, stage.origin)
    _second_life(stage, cache, other, get, lower)
    _update(stage, cache, get, update)


def _lower(stage: Stage) -> Any:
    if stage.engines.embedded("memcached"):
        return stage.redis("memcached")
    client = stage.stack.enter_context(PlainMemcached(stage.engines["memcached"].url))
    for n in (81, 83):
        stage.stack.callback(client.delete, stage.key(f"user:{n}"))
    return client


def _second_life(stage: Stage, cache: Cache, other: Cache, get: Any, lower: Any) -> None:
    """Filled at 0 s, gone from the upper level at 1.5 s, looked at again when the life of 3 s is over."""
    stage.say(f"a life of {TTL:g} s in three tiers")
    key = stage.key("user:81")
    get_user, from_other = ours(cache, stage.origin), ours(other, stage.origin)
    began = time.monotonic()
    old = stage.ours.call(get_user, 81, who="process 1")
    loaded = time.monotonic()
    stage.textbook.call(get, key, 81)
    stage.ours.tiers(cache.inspect, "user:81")

    stage.say(f"after {EVICTED_AT:g} s the upper level evicts it, and another process asks")
    _sleep_until(began + EVICTED_AT)
    stage.cache(stage.engines["redis"].url).delete("user:81")
    stage.redis().delete(key)
    stage.ours.tiers(other.inspect, "user:81")
    stage.ours.call(from_other, 81, who="process 2", note="from the lower level")
    stage.textbook.call(get, key, 81, note="from the lower level")
    most = TTL - (time.monotonic() - loaded) + 0.05
    seen = stage.ours.tiers(other.inspect, "user:81")
    least = TTL - (time.monotonic() - began) - 0.05
    lives = [view.fresh_for or 0.0 for view in seen.tiers]
    their_life = stage.redis().pttl(key) / 1000
    stage.compare(
        f"remaining life after {EVICTED_AT:g} of {TTL:g} s, filled from below",
        f"upper level: {their_life:.1f} s; lower level: no end",
        ", ".join(
            f"{view.tier.partition('(')[0]} {life:.1f} s"
            for view, life in zip(seen.tiers, lives, strict=True)
        ),
        all(least <= life <= most for life in lives) and their_life > TTL - EVICTED_AT + 0.3,
    )

    stage.say("the life is over; the row has changed")
    _sleep_until(began + LOOK_AT)
    stage.origin.save_user(81, User(81, "Emmy Noether", "Erlangen", 1))
    stage.ours.tiers(other.inspect, "user:81")
    mine = stage.ours.call(from_other, 81, who="process 2")
    theirs = stage.textbook.call(get, key, 81)
    stage.compare(
        f"a read after {LOOK_AT:g} s; the row has changed",
        f"{show(theirs)}, loaded {LOOK_AT:g} s ago",
        f"{show(mine)}, as in the database",
        mine == stage.origin.peek(81) and theirs == old,
    )


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _update(stage: Stage, cache: Cache, get: Any, update: Any) -> None:
    stage.say("an update of the row")
    key = stage.key("user:83")
    get_user = ours(cache, stage.origin)
    stage.ours.call(get_user, 83)
    stage.textbook.call(get, key, 83)
    new = User(83, "Emmy Noether", "Erlangen", 1)
    stage.textbook.call(update, key, new)
    stage.ours.call(cache.delete, "user:83", note="lower tiers first, memory last")
    stage.ours.tiers(cache.inspect, "user:83")
    mine, theirs = stage.ours.call(get_user, 83), stage.textbook.call(get, key, 83)
    stage.compare(
        "a read after an update",
        f"{show(theirs)}: the lower level still had it",
        f"{show(mine)}",
        mine == new and theirs != new,
    )


SCENE = Scene(
    number=8,
    name="multi-level",
    about=(
        "A read goes down from memory to Redis to Memcached and fills the tiers above with the life that is left. "
        "A delete goes up, so that no reader can bring back from below what was dropped above."
    ),
    bug="Backfill gives an entry a second full life, the lower level never expires, and levels disagree after an update.",
    needs=("redis", "memcached"),
    ours=(ours,),
    textbook=(textbook,),
    run=run,
)
