"""The service of scene 7 as a module, since other processes run it: one that writes and is killed, one that starts
after it, and Celery's worker (``celery -A cachewright.tour.shop worker``). Its settings come from the environment.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from cachewright import Cache
from cachewright.behind.celery import install
from cachewright.errors import MissingExtraError
from cachewright.tour.origin import Database, Origin, User
from cachewright.tour.processes import report
from cachewright.write_modes import WriteBehind

try:
    from celery import Celery
except ImportError as error:
    raise MissingExtraError("the tour's write-behind", "celery") from error

Todo = queue.Queue[tuple[int, User]]
database = Origin(os.environ.get("TOUR_DATABASE", ":memory:"), os.environ.get("TOUR_TABLE", "tour_users"))
app = Celery("shop", broker=os.environ.get("TOUR_BROKER", "memory://"))
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = False


def ours(cache: Cache, database: Origin, buffer: str, flusher: Any) -> Any:
    """What a user writes."""
    users = cache.repository(
        "user",
        load=database.load_user,
        save=database.save_user,
        writes=WriteBehind(buffer=buffer, flusher=flusher, max_attempts=3),
        ordered_saver=True,  # save_user refuses an older sequence than the row has
    )
    return users  # noqa: RET504  # shown without its last line


def put_textbook(redis: Any, key: str, todo: Todo, user_id: int, user: User) -> None:
    """The textbook's put."""
    redis.set(key, json.dumps(vars(user)))
    todo.put((user_id, user))  # a thread of this process saves it, unless it dies first


def get_textbook(redis: Any, key: str, database: Origin, user_id: int) -> User:
    """The textbook's get."""
    text = redis.get(key)
    return User(**json.loads(text)) if text else database.load_user(user_id)


def save_textbook(todo: Todo, database: Database, out: TextIO = sys.stdout) -> None:
    """The textbook's thread."""
    while True:
        user_id, user = todo.get()
        try:
            database.save_user(user_id, user)
        except Exception as error:
            print(f"could not save {user_id}: {error}", file=out)  # printed, and dropped


def make_users(flusher: Any) -> Any:
    """The repository of this process."""
    cache = Cache(os.environ["TOUR_REDIS"], namespace=os.environ["TOUR_NAMESPACE"])
    return ours(cache, database, os.environ["TOUR_BUFFER"], flusher)


def users_to_write(first: int, number: int) -> list[User]:
    """What the scene's writers write."""
    return [User(n, f"Written {n}", "Erlangen", n) for n in range(first, first + number)]


def _put(first: int, number: int) -> None:
    """Puts, and says that each has returned."""
    database.write_seconds = 0.5  # long enough that nothing is saved before the end
    users = make_users("background")
    for user in users_to_write(first, number):
        began = time.monotonic()
        users.put(user.id, user)
        report("put", id=user.id, seconds=time.monotonic() - began)
    signal.pause()  # until the scene kills it


def _put_textbook(first: int, number: int) -> None:
    import redis

    client = redis.Redis.from_url(os.environ["TOUR_REDIS"])
    todo: queue.Queue[tuple[int, User]] = queue.Queue()
    database.write_seconds = 0.5
    threading.Thread(target=save_textbook, args=(todo, database), daemon=True).start()
    for user in users_to_write(first, number):
        began = time.monotonic()
        put_textbook(client, f"{os.environ['TOUR_PREFIX']}{user.id}", todo, user.id, user)
        report("put", id=user.id, seconds=time.monotonic() - began)
    signal.pause()  # until the scene kills it


def _start_again() -> None:
    """Makes the repository, no more; what was not saved is saved by that alone."""
    users = make_users("background")
    report("started")
    began = time.monotonic()
    users.flush(20)
    report("flushed", seconds=time.monotonic() - began)
    users.close()


if __name__ == "__main__":
    parts: dict[str, Callable[..., None]] = {
        "put": _put,
        "put-textbook": _put_textbook,
        "start": _start_again,
    }
    parts[sys.argv[1]](*map(int, sys.argv[2:]))
elif "TOUR_CELERY_WORKER" in os.environ:
    install(app, queue=os.environ["TOUR_QUEUE"], sweep=5)
    celery_users = make_users(app)  # the worker must know the repository
