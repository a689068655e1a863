"""Scene 6: reads that load by themselves, and a database that is down for a while."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from cachewright import Cache
from cachewright.tour.origin import Origin, User
from cachewright.tour.recorder import show
from cachewright.tour.stage import Scene, Stage
from cachewright.tour.words import count, duration

TTL = 0.4
CALLS = 6


def ours(cache: Cache, database: Origin) -> Any:
    """What a user writes."""
    users = cache.repository(
        "user",
        load=database.load_user,
        load_many=database.load_users,
        ttl=TTL,
        stale_if_error=3600,
        error_ttl=0.3,  # a failing database is asked again so often, not by every call
    )
    return users  # noqa: RET504  # shown without its last line


def textbook(redis: Any, prefix: str, database: Origin) -> Callable[[int], User]:
    """The textbook's."""

    def get_user(user_id: int) -> User:
        if (text := redis.get(f"{prefix}{user_id}")) is not None:
            return User(**json.loads(text))
        user = database.load_user(user_id)  # fails: so does the service
        redis.set(f"{prefix}{user_id}", json.dumps(vars(user)), px=int(TTL * 1000))
        return user

    return get_user


def run(stage: Stage) -> None:
    """Plays it."""
    database = stage.origin
    cache = stage.cache(stage.engines["redis"].url, jitter=0)
    users, get_user = ours(cache, database), textbook(stage.redis(), stage.key("user:"), database)
    _many(stage, users, get_user)

    stage.say("the database goes down after a TTL is over")
    before = stage.ours.call(users.get, 61)
    stage.ours.call(users.get, 61)
    stage.ours.tiers(users.inspect, 61)
    stage.textbook.call(get_user, 61)
    time.sleep(TTL)
    with database.down():
        stage.ours.tiers(users.inspect, 61)
        asked = database.failures
        mine = [stage.ours.attempt(users.get, 61) for _ in range(CALLS)]
        asked = database.failures - asked
        theirs = [stage.textbook.attempt(get_user, 61) for _ in range(CALLS)]
    failed = sum(isinstance(one, Exception) for one in theirs)
    served = mine.count(before)
    stage.compare(
        f"{CALLS} reads while the database is down",
        f"{count(failed, 'error')}: {show(theirs[0])}",
        f"{served} answers: {show(before)}, stale",
        served == CALLS and failed == CALLS,
    )
    stage.compare(
        "how often the database that is down was asked",
        f"{CALLS} times",
        count(asked, "time"),
        1 <= asked < CALLS,
    )
    _back(stage, users)


def _many(stage: Stage, users: Any, get_user: Any) -> None:
    stage.say("many at once")
    stage.ours.call(users.get, 70)
    stage.textbook.call(get_user, 70)
    ids = range(70, 80)
    loads = stage.loads(lambda: stage.ours.call(users.get_many, list(ids), note="one of them cached"))
    took = stage.result.ours.steps[-1].seconds
    began = stage.now()
    theirs = stage.loads(lambda: [stage.textbook.call(get_user, user_id) for user_id in ids])
    stage.compare(
        "10 users, 1 of them cached",
        f"{count(theirs, 'load')} in {duration(stage.now() - began)}",
        f"{count(loads, 'load')} in {duration(took)}",
        loads == 1 and theirs > loads,
    )


def _back(stage: Stage, users: Any) -> None:
    stage.say("the database is back")
    began = time.monotonic()
    stage.wait(lambda: users.get(61) is not None and users.inspect(61).state == "fresh", "a fresh entry", 5)
    took = time.monotonic() - began
    stage.ours.call(users.get, 61)
    stage.ours.tiers(users.inspect, 61)
    stage.compare("the database is back", "—", f"fresh again after {took:.1f} s", took < 4)


SCENE = Scene(
    number=6,
    name="read-through",
    about=(
        "The repository is asked and loads by itself what is missing, many ids in one query. "
        "Where the database fails, an entry that is past its TTL is still served for as long as stale_if_error allows."
    ),
    bug="A failing database becomes a failing service although a usable stale value exists.",
    needs=("redis",),
    ours=(ours,),
    textbook=(textbook,),
    run=run,
)
