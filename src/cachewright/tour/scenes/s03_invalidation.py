"""Scene 3: one key by hand, many by a tag, all by time; and two writers at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from cachewright import Cache
from cachewright.tour.gates import HeldSave
from cachewright.tour.origin import Database, User
from cachewright.tour.recorder import Recorder, show
from cachewright.tour.stage import Scene, Stage


def ours(cache: Cache, database: Database) -> tuple[Any, Callable[[int, User], None]]:
    """What a user writes."""

    @cache.cached(key="user:{user_id}", ttl=60, tags=["users"])
    def get_user(user_id: int) -> User:
        return database.load_user(user_id)

    def update_user(user_id: int, user: User) -> None:
        database.save_user(user_id, user)
        get_user.invalidate(user_id)

    return get_user, update_user


def textbook(
    redis: Any, key: str, database: Database
) -> tuple[Callable[[int], User], Callable[[int, User], None]]:
    """The textbook's."""

    def get_user(user_id: int) -> User:
        if (text := redis.get(key)) is not None:
            return User(**json.loads(text))
        user = database.load_user(user_id)
        redis.set(key, json.dumps(vars(user)), ex=60)
        return user

    def update_user(user_id: int, user: User) -> None:
        database.save_user(user_id, user)
        redis.set(key, json.dumps(vars(user)), ex=60)  # "invalidates" by writing

    return get_user, update_user


def run(stage: Stage) -> None:
    """Plays it."""
    database, url = stage.origin, stage.engines["redis"].url
    cache = stage.cache(url)
    get_user, update_user = ours(cache, database)
    _by_hand(stage, get_user, update_user)
    _by_tag(stage, cache)
    _by_time(stage, cache)
    _two_writers(stage, url)


def _by_hand(stage: Stage, get_user: Any, update_user: Any) -> None:
    stage.say("by hand: one key")
    before = stage.ours.call(get_user, 21)
    stage.ours.call(get_user, 21)
    stage.ours.call(update_user, 21, User(21, "Emmy Noether", "Erlangen", 1), note="saved, invalidated")
    after = stage.ours.call(get_user, 21)
    stage.compare(
        "one key by hand",
        "—",
        f"{show(before)}, then {show(after)}",
        after == stage.origin.peek(21) != before,
    )


def _by_tag(stage: Stage, cache: Cache) -> None:
    stage.say("by hand: 500 keys that share a tag")
    keys = [f"list:{n}" for n in range(500)]
    stage.ours.call(cache.set_many, dict.fromkeys(keys, 1), tags=["users"])
    held = len(stage.ours.call(cache.get_many, keys))
    stage.ours.call(cache.invalidate_tags, "users", note="one command, however many keys")
    took = stage.result.ours.steps[-1].seconds
    left = len(stage.ours.call(cache.get_many, keys))
    stage.compare(
        "500 keys by their tag",
        "—",
        f"{held} before, {left} after, in {took * 1000:.1f} ms",
        not left,
    )


def _by_time(stage: Stage, cache: Cache) -> None:
    stage.say("by time: a TTL of 0.4 s")
    stage.ours.call(cache.set, "rate", 1.25, ttl=0.4, jitter=0)
    stage.ours.tiers(cache.inspect, "rate")
    stage.ours.call(cache.get, "rate")
    began = time.monotonic()
    stage.wait(lambda: cache.get("rate") is None, "the end of a life of 0.4 s", 5)
    lived = time.monotonic() - began
    stage.ours.tiers(cache.inspect, "rate")
    stage.compare("a TTL of 0.4 s", "—", f"gone after {lived:.2f} s", 0.35 < lived < 2)


def _two_writers(stage: Stage, url: str) -> None:
    stage.say("two writers of one row at the same time")
    database, redis, key = stage.origin, stage.redis(), stage.key("user:23")
    held = HeldSave(database, before=False)
    get_user, update_user = ours(stage.cache(url), held)
    mine = _overlap(stage.ours, held, get_user, update_user, 22)
    held = HeldSave(database, before=False)
    theirs = _overlap(stage.textbook, held, *textbook(redis, key, held), 23)
    stage.compare(
        "writer A saves, B saves and ends, A ends",
        f"cached: {show(theirs)}; database: {show(database.peek(23))}; for 60 s",
        f"cached: {show(mine)}; database: {show(database.peek(22))}",
        mine == database.peek(22) and theirs != database.peek(23),
    )


def _overlap(side: Recorder, held: HeldSave, get_user: Any, update_user: Any, user_id: int) -> Any:
    """Writer A saves; writer B saves and finishes; A finishes. What the next reader is given."""
    side.call(get_user, user_id)
    user_a, user_b = User(user_id, "Alonzo", "Oslo", 1), User(user_id, "Barbara", "Oslo", 2)
    held.overlap(
        lambda: side.attempt(update_user, user_id, user_a, who="writer A"),
        lambda: side.attempt(update_user, user_id, user_b, who="writer B"),
    )
    return side.call(get_user, user_id, who="next reader")


SCENE = Scene(
    number=3,
    name="invalidation, by hand and by time",
    about=(
        "What has changed is dropped: one key by hand, any number by their tag, everything else when its time is over. "
        "To invalidate is to drop and never to write, so that no order of two writers can leave the loser's value."
    ),
    bug='An update "invalidates" by writing: of two writers, the loser\'s value can stay in the cache.',
    needs=("redis",),
    ours=(ours,),
    textbook=(textbook,),
    run=run,
)
