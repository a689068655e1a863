"""Scene 1: a decorated function, a server that comes up late, 50 callers at once, a slow load, values that are falsy."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from cachewright import Cache
from cachewright.tour.origin import Origin, User
from cachewright.tour.recorder import show
from cachewright.tour.stage import Scene, Stage
from cachewright.tour.words import count

CALLERS = 50
LATE = 0.5


def ours(cache: Cache, database: Origin) -> Callable[[int], User]:
    """What a user writes."""

    @cache.cached(key="user:{user_id}", ttl=30)
    def get_user(user_id: int) -> User:
        return database.load_user(user_id)

    return get_user


def get_cached(redis: Any, key: Any, load: Callable[[], Any]) -> Any:
    """The textbook's first version."""
    value = redis.get(key)
    if value and json.loads(value):  # 0, "" and [] count as misses
        return json.loads(value)
    value = load()
    redis.set(key, json.dumps(value), ex=30)
    return value


def get_locked(redis: Any, key: Any, load: Callable[[], Any], lock_seconds: float = 5) -> Any:
    """And its second, against the stampede."""
    while not (value := redis.get(key)):
        if redis.set(f"{key}:lock", "1", nx=True, px=int(lock_seconds * 1000)):
            value = json.dumps(load())  # longer than the lock: the next one loads too
            redis.set(key, value, ex=30)
            redis.delete(f"{key}:lock")
            break
        time.sleep(0.02)
    return json.loads(value)


def run(stage: Stage) -> None:
    """Plays it."""
    _connection_retry(stage)
    _stampede(stage)
    _slow_load(stage)
    _falsy(stage)
    _same_key(stage)


def _connection_retry(stage: Stage) -> None:
    engine = stage.engines["redis"]
    cache = stage.cache(engine.url)
    if engine.server is None:  # somebody else's: not ours to stop
        stage.ours.call(cache.connect, note="reached")
        return
    stage.say(f"the server comes up {LATE:g} s late")
    engine.server.stop()
    starter = threading.Timer(LATE, engine.server.start)
    starter.start()
    stage.ours.call(cache.connect, attempts=10, wait=0.2, note=f"the server came up {LATE:g} s late")
    seconds = stage.result.ours.steps[-1].seconds
    starter.join()
    stage.compare(
        f"the server comes up {LATE:g} s late",
        "—",
        f"connect() tries again and has it after {seconds:.1f} s",
        seconds >= LATE * 0.8,
    )


def _stampede(stage: Stage) -> None:
    stage.say(f"{CALLERS} callers ask for one cold key")
    database = stage.origin
    get_user = ours(stage.cache(stage.engines["redis"].url), database)
    mine = stage.loads(lambda: stage.ours.crowd(CALLERS, get_user, 1))
    took = stage.result.ours.steps[-1].seconds
    stage.ours.call(get_user, 1)
    stage.ours.tiers(get_user.inspect, 1)  # type: ignore[attr-defined]
    redis, key = stage.redis(), stage.key("user:2")
    theirs = stage.loads(
        lambda: stage.textbook.crowd(CALLERS, get_cached, redis, key, lambda: vars(database.load_user(2)))
    )
    their_time = stage.result.textbook.steps[-1].seconds
    stage.compare(
        f"{CALLERS} callers, one cold key",
        f"{count(theirs, 'load')} in {their_time * 1000:.0f} ms",
        f"{count(mine, 'load')} in {took * 1000:.0f} ms",
        mine == 1 and theirs > 1,
    )


def _slow_load(stage: Stage) -> None:
    lock, load = 0.4, 1.0
    stage.say(f"a load of {load:g} s under a lock of {lock:g} s, in 3 services")
    database = stage.origin
    quick, database.read_seconds = database.read_seconds, load
    try:
        services = [stage.cache(stage.engines["redis"].url) for _ in range(3)]
        jobs: list[Any] = [
            (f"service {n + 1}", _get_or_set, (one, database, lock)) for n, one in enumerate(services)
        ]
        call = f"cache.get_or_set('slow', load, lease={lock:g})"
        mine = stage.loads(lambda: stage.ours.together(jobs, call=f"3 × {call}"))
        redis, key = stage.redis(), stage.key("slow")
        jobs = [
            (f"service {n + 1}", get_locked, (redis, key, lambda: database.load_user(3).credit, lock))
            for n in range(3)
        ]
        theirs = stage.loads(
            lambda: stage.textbook.together(jobs, call=f"3 × get_locked(redis, 'slow', load, {lock:g})")
        )
    finally:
        database.read_seconds = quick
    stage.compare(
        f"load {load:g} s, lock {lock:g} s, 3 services",
        f"{count(theirs, 'load')}: the lock ran out under the load",
        f"{count(mine, 'load')}: the lease is renewed while it runs",
        mine == 1 and theirs > 1,
    )


def _get_or_set(cache: Cache, database: Origin, lease: float) -> Any:
    return cache.get_or_set("slow", lambda: database.load_user(3).credit, lease=lease)


def _falsy(stage: Stage) -> None:
    stage.say("a value that is 0")
    database, redis = stage.origin, stage.redis()
    cache = stage.cache(stage.engines["redis"].url, ttl=30)

    def load_credit() -> int:
        return database.load_user(7).credit

    def both() -> None:
        for _ in range(3):
            stage.ours.call(cache.get_or_set, "credit:7", load_credit)

    def textbook() -> None:
        for _ in range(3):
            stage.textbook.call(get_cached, redis, stage.key("credit:7"), load_credit)

    mine, theirs = stage.loads(both), stage.loads(textbook)
    stage.compare(
        "the value is 0, asked for 3 times",
        f"{count(theirs, 'load')}: it counts as a miss",
        f"{count(mine, 'load')}, then hits",
        mine == 1 and theirs == 3,
    )


def _same_key(stage: Stage) -> None:
    stage.say("two functions, both called with 1")
    database, redis = stage.origin, stage.redis()
    cache = stage.cache(stage.engines["redis"].url)

    @cache.cached
    def get_city(user_id: int) -> str:
        return database.load_user(user_id).city

    @cache.cached
    def get_name(user_id: int) -> str:
        return database.load_user(user_id).name

    city, name = stage.ours.call(get_city, 1), stage.ours.call(get_name, 1)
    key = stage.key("1")
    stage.textbook.call(get_cached, redis, key, lambda: get_city.__wrapped__(1))
    their_name = stage.textbook.call(get_cached, redis, key, lambda: get_name.__wrapped__(1))
    stage.compare(
        "get_city(1), then get_name(1)",
        f"the name is {show(their_name)}: both keys are 1",
        f"{show(city)} and {show(name)}",
        name != city and their_name == city,
    )


SCENE = Scene(
    number=1,
    name="simple caching with a TTL, connection retry, stampede lock",
    about=(
        "A function's results are kept in Redis for 30 seconds; one decorator does it. "
        "However many callers miss at once, in however many processes, one of them loads and the others get its value."
    ),
    bug=(
        "A falsy value counts as a miss, the lock runs out under a slow load, "
        "and the key 1 meets every other 1."
    ),
    needs=("redis",),
    ours=(ours,),
    textbook=(get_cached, get_locked),
    run=run,
)
