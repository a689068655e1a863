"""Scene 5: a put, a put that the database refuses, and two puts at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cachewright import Cache
from cachewright.tour.gates import HeldSave
from cachewright.tour.origin import Database, User
from cachewright.tour.recorder import Recorder, show
from cachewright.tour.stage import Scene, Stage


def ours(cache: Cache, database: Database) -> Any:
    """What a user writes."""
    users = cache.repository(
        "user", load=database.load_user, save=database.save_user, writes="through", ttl=60
    )
    return users  # noqa: RET504  # shown without its last line


def textbook(
    redis: Any, prefix: str, database: Database
) -> tuple[Callable[[int], User], Callable[[int, User], None]]:
    """The textbook's."""

    def get(user_id: int) -> User:
        if (text := redis.get(f"{prefix}{user_id}")) is not None:
            return User(**json.loads(text))
        user = database.load_user(user_id)
        redis.set(f"{prefix}{user_id}", json.dumps(vars(user)))
        return user

    def put(user_id: int, user: User) -> None:
        redis.set(f"{prefix}{user_id}", json.dumps(vars(user)))  # cache first, without a TTL
        database.save_user(user_id, user)  # database second

    return get, put


def run(stage: Stage) -> None:
    """Plays it."""
    cache = stage.cache(stage.engines["redis"].url)
    users = ours(cache, stage.origin)
    _put_and_get(stage, users)
    _refused(stage, users)
    _two_writers(stage)


def _put_and_get(stage: Stage, users: Any) -> None:
    stage.say("a put, then a get")
    new = User(51, "Emmy Noether", "Erlangen", 10)
    stage.ours.call(users.put, 51, new)
    loads = stage.loads(lambda: stage.ours.call(users.get, 51))
    stage.ours.tiers(users.inspect, 51)
    life = users.inspect(51).tiers[0].fresh_for or 0.0
    redis, prefix = stage.redis(), stage.key("user:")
    get, put = textbook(redis, prefix, stage.origin)
    stage.textbook.call(put, 55, User(55, "Emmy Noether", "Erlangen", 10))
    stage.textbook.call(get, 55)
    their_life = redis.ttl(f"{prefix}55")
    row = stage.origin.peek(51)
    stage.compare(
        "put, then get",
        f"a hit; it lives {'for ever' if their_life == -1 else f'{their_life} s'}",
        f"{'a hit' if loads == 0 else 'a load'}; it lives {life:.0f} s; the database has it",
        row == new and loads == 0 and 0 < life <= 60 and their_life == -1,
    )


def _refused(stage: Stage, users: Any) -> None:
    stage.say("the database refuses the save")
    redis, prefix = stage.redis(), stage.key("user:")
    bad = User(52, "Emmy Noether", "Erlangen", -10)
    stage.ours.call(users.get, 52)
    error = stage.ours.attempt(users.put, 52, bad)
    stage.ours.tiers(users.inspect, 52)
    mine = stage.ours.call(users.get, 52)
    get, put = textbook(redis, prefix, stage.origin)
    stage.textbook.call(get, 52)
    stage.textbook.attempt(put, 52, bad)
    theirs = stage.textbook.call(get, 52)
    life = redis.ttl(f"{prefix}52")
    row = stage.origin.peek(52)
    stage.compare(
        "the database refuses a credit of -10",
        f"cached: {show(theirs)}, {'for ever' if life == -1 else f'for {life} s'}: it never existed",
        f"cached: {show(mine)}, as in the database; the caller got {type(error).__name__}",
        mine == row and isinstance(error, Exception) and theirs == bad,
    )


def _two_writers(stage: Stage) -> None:
    stage.say("two puts of one user at the same time")
    database = stage.origin
    held = HeldSave(database, before=True)
    users = ours(stage.cache(stage.engines["redis"].url), held)
    mine = _overlap(stage.ours, held, users.get, users.put, 53)
    stage.ours.tiers(users.inspect, 53)
    held = HeldSave(database, before=True)
    theirs = _overlap(stage.textbook, held, *textbook(stage.redis(), stage.key("user:"), held), 54)
    row, their_row = database.peek(53), database.peek(54)
    stage.compare(
        "put A begins, put B begins and ends, put A ends",
        f"cached: {show(theirs)}; database: {show(their_row)}; for ever",
        f"cached: {show(mine)}; database: {show(row)}",
        mine == row and theirs != their_row,
    )


def _overlap(side: Recorder, held: HeldSave, get: Any, put: Any, user_id: int) -> Any:
    """What the next reader is given."""
    user_a, user_b = User(user_id, "Alonzo", "Oslo", 1), User(user_id, "Barbara", "Oslo", 2)
    held.overlap(
        lambda: side.attempt(put, user_id, user_a, who="writer A"),
        lambda: side.attempt(put, user_id, user_b, who="writer B"),
    )
    return side.call(get, user_id, who="next reader")


SCENE = Scene(
    number=5,
    name="write-through",
    about=(
        "A put saves to the database and then to the cache, before it returns. "
        "A mark stands in the cache meanwhile, so nobody is served what is being changed, and only a saved value is stored."
    ),
    bug="Cache first, database second: a failed save leaves a value that never existed, without a TTL.",
    needs=("redis",),
    ours=(ours,),
    textbook=(textbook,),
    run=run,
)
