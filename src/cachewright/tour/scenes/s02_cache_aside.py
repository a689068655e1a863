"""Scene 2: a reader is still loading when a writer changes the row and invalidates the key."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from cachewright import Cache
from cachewright.tour.gates import SlowLoad
from cachewright.tour.origin import Database, User
from cachewright.tour.recorder import Recorder, show
from cachewright.tour.stage import Scene, Stage


def ours(cache: Cache, database: Database, user_id: int) -> tuple[Callable[..., User], Callable[..., None]]:
    """What a user writes."""

    def get_user() -> Any:
        return cache.get_or_set(f"user:{user_id}", lambda: database.load_user(user_id), ttl=60, type=User)

    def update_user(user: User) -> None:
        database.save_user(user_id, user)
        cache.delete(f"user:{user_id}")

    return get_user, update_user


def textbook(
    redis: Any, key: str, database: Database, user_id: int
) -> tuple[Callable[..., User], Callable[..., None]]:
    """The textbook's."""

    def get_user() -> User:
        if (text := redis.get(key)) is not None:
            return User(**json.loads(text))
        user = database.load_user(user_id)
        redis.set(key, json.dumps(vars(user)), ex=60)  # the row may have changed since
        return user

    def update_user(user: User) -> None:
        database.save_user(user_id, user)
        redis.delete(key)

    return get_user, update_user


def run(stage: Stage) -> None:
    """Plays it."""
    stage.say("reading one user three times")
    database = stage.origin
    cache = stage.cache(stage.engines["redis"].url)
    slow = SlowLoad(database)
    get_user, update_user = ours(cache, slow, 11)
    for _ in range(3):
        stage.ours.call(get_user)
    stage.ours.tiers(cache.inspect, "user:11")
    cache.delete("user:11")

    stage.say("a writer invalidates while a slow reader is loading")
    mine = _race(stage.ours, slow, get_user, update_user, 11)
    stage.ours.tiers(cache.inspect, "user:11")
    slow = SlowLoad(database)
    theirs = _race(stage.textbook, slow, *textbook(stage.redis(), stage.key("user:12"), slow, 12), 12)
    lost = cache.stats()["lost_leases"]
    true, their_true = database.peek(11), database.peek(12)
    stage.compare(
        "the next reader gets",
        f"{show(theirs)}, for 60 s; the database has {show(their_true)}",
        f"{show(mine)}; the database has {show(true)}",
        mine == true and theirs != their_true,
    )
    stage.compare(
        "the slow reader's old value",
        "is stored after the invalidation",
        "goes to the slow reader alone: its lease was gone" if lost else "was stored",
        lost == 1,
    )


def _race(side: Recorder, slow: SlowLoad, get_user: Any, update_user: Any, user_id: int) -> Any:
    """A reader reads the row, a writer writes and invalidates, the reader goes on. What the next reader is given."""
    slow.hold()
    reader = threading.Thread(target=lambda: side.attempt(get_user, who="slow reader"))
    reader.start()
    slow.wait_until_read(reader)
    side.call(
        update_user, User(user_id, "Emmy Noether", "Erlangen", 1), who="writer", note="saved, invalidated"
    )
    slow.let_go()
    reader.join(20)
    return side.call(get_user, who="next reader")


SCENE = Scene(
    number=2,
    name="cache-aside",
    about=(
        "The service looks in the cache, loads what is missing, and drops the key after it has changed the row. "
        "A load stores its value only where its lease still stands, and a drop takes the lease away."
    ),
    bug="A slow reader stores the old value after a writer has invalidated it; it stays for the whole TTL.",
    needs=("redis",),
    ours=(ours,),
    textbook=(textbook,),
    run=run,
)
