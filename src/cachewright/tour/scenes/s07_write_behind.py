"""Scene 7: a process that is killed right after its puts; saves by Celery; a save that keeps failing."""

from __future__ import annotations

import io
import threading
from functools import partial
from queue import Queue

from cachewright.behind.celery import install
from cachewright.errors import FlushTimeout
from cachewright.events import DeadLetter, Event
from cachewright.tour.gates import HeldSave
from cachewright.tour.origin import User
from cachewright.tour.processes import TourProcess
from cachewright.tour.recorder import show
from cachewright.tour.shop import app, get_textbook, put_textbook, save_textbook, users_to_write
from cachewright.tour.shop import ours as users_saved_behind
from cachewright.tour.stage import Scene, Stage
from cachewright.tour.words import count

MODULE = "cachewright.tour.shop"
WRITES = 5


def run(stage: Stage) -> None:
    """Plays it."""
    env = _environment(stage)
    worker = TourProcess(
        "celery",
        "celery",
        ["-A", MODULE, "worker", "-P", "solo", "-Q", env["TOUR_QUEUE"], "-l", "INFO", "--without-gossip", "--without-mingle"],
        env={**env, "TOUR_CELERY_WORKER": "1", "TOUR_BUFFER": _buffer(stage, "celery")},
        is_ready=lambda text: "ready." in text,
    )  # fmt: skip
    stage.stack.callback(worker.close)
    _killed(stage, env)
    _evicted(stage)
    _dead_letter(stage)
    stage.say("Celery's worker starts")
    worker.start()
    _by_celery(stage, worker, env)


def _environment(stage: Stage) -> dict[str, str]:
    return {
        "TOUR_DATABASE": stage.origin.url,
        "TOUR_TABLE": stage.origin.table,
        "TOUR_REDIS": stage.engines["redis"].url,
        "TOUR_BROKER": stage.engines["broker"].url,
        "TOUR_NAMESPACE": stage.namespace,
        "TOUR_QUEUE": stage.namespace,
        "TOUR_PREFIX": stage.key("user:"),
        "TOUR_BUFFER": _buffer(stage, "killed"),
    }


def _buffer(stage: Stage, name: str) -> str:
    return f"sqlite:///{stage.folder / f'behind-{name}.db'}"


def _killed(stage: Stage, env: dict[str, str]) -> None:
    stage.say(f"a process puts {WRITES} users and is killed")
    saved: dict[str, int] = {}
    for name, side, first in (("put", stage.ours, 700), ("put-textbook", stage.textbook, 710)):
        writer = TourProcess("writer", MODULE, [name, str(first), str(WRITES)], env=env)
        stage.stack.callback(writer.close)
        began = stage.now()
        writer.start()
        puts = writer.wait_for("put", WRITES)
        writer.kill()
        slowest = max(put["seconds"] for put in puts)
        note = f"the slowest returned after {slowest * 1000:.1f} ms"
        side.add(
            "process 1", f"{len(puts)} × put(user)", "store", note, at=began, seconds=stage.now() - began
        )
        side.note("process 1", "SIGKILL", "right after the last put returned", result="kill")
        saved[name] = _saved(stage, first)
        side.note("database", f"{saved[name]} of {WRITES} are saved")

    stage.say("the next process starts")
    began = stage.now()
    again = TourProcess("next", MODULE, ["start"], env=env)
    stage.stack.callback(again.close)
    again.start()
    again.wait_for("flushed")
    stage.ours.add(
        "process 2",
        "cache.repository(…)",
        "save",
        "found the buffer and saved",
        at=began,
        seconds=stage.now() - began,
    )
    mine, theirs = _saved(stage, 700), _saved(stage, 710)
    stage.ours.note("database", f"{mine} of {WRITES} are saved")
    stage.compare(
        f"{WRITES} puts returned, then SIGKILL",
        f"{count(WRITES - theirs, 'write')} lost for ever",
        f"{saved['put']} saved before, {mine} after the next start",
        mine == WRITES and theirs < WRITES,
    )


def _saved(stage: Stage, first: int) -> int:
    return sum(stage.origin.peek(user.id) == user for user in users_to_write(first, WRITES))


def _evicted(stage: Stage) -> None:
    """The key is gone from Redis and the row is not saved yet."""
    stage.say("a key that is evicted before it is saved")
    cache = stage.cache(stage.engines["redis"].url)
    users = users_saved_behind(cache, stage.origin, _buffer(stage, "evicted"), "none")
    new = User(720, "Emmy Noether", "Erlangen", 1)
    stage.ours.call(users.put, 720, new)
    first = stage.ours.call(users.get, 720, note="from the buffer")
    early = stage.origin.peek(720)
    stage.ours.call(cache.delete, users.key_for(720), note="evicted")
    mine = stage.ours.call(users.get, 720, note="from the buffer")
    row = stage.origin.peek(720)
    stage.ours.call(users.flush, 20)
    redis, key = stage.redis(), stage.key("user:721")
    new_too = User(721, "Emmy Noether", "Erlangen", 1)
    stage.textbook.call(put_textbook, redis, key, Queue(), 721, new_too)
    stage.textbook.call(redis.delete, key, note="evicted")
    theirs = stage.textbook.call(get_textbook, redis, key, stage.origin, 721)
    stage.compare(
        "the key is evicted before the save",
        f"a read loads the old row: {show(theirs)}",
        f"a read finds it in the buffer: {show(mine)}",
        mine == first == new
        and new not in (early, row)
        and stage.origin.peek(720) == new
        and theirs != new_too,
    )


def _dead_letter(stage: Stage) -> None:
    """The database refuses the value, however often it is tried."""
    stage.say("a save that the database refuses")
    cache = stage.cache(stage.engines["redis"].url)
    events: list[Event] = []
    cache.events.subscribe(events.append)
    users = users_saved_behind(cache, stage.origin, _buffer(stage, "refused"), "background")
    bad = User(730, "Emmy Noether", "Erlangen", -1)
    stage.ours.call(users.put, 730, bad)
    error = stage.ours.attempt(users.flush, 20)
    dead = [event for event in events if isinstance(event, DeadLetter)]

    todo: Queue[tuple[int, User]] = Queue()
    printed = io.StringIO()
    quiet = threading.Thread(target=save_textbook, args=(todo, stage.origin, printed), daemon=True)
    quiet.start()
    stage.textbook.call(put_textbook, stage.redis(), stage.key("user:731"), todo, 731, bad)
    stage.wait(lambda: bool(printed.getvalue()), "the textbook's save")
    stage.textbook.note("thread", printed.getvalue().strip())
    stage.compare(
        "the database refuses the save",
        "a printed line, and the write is dropped",
        f"{dead[0].attempts if dead else 0} tries, then a dead letter on disk; flush() raises {type(error).__name__}",
        len(dead) == 1 and dead[0].attempts == 3 and isinstance(error, FlushTimeout),
    )


def _by_celery(stage: Stage, worker: TourProcess, env: dict[str, str]) -> None:
    stage.say("Celery's worker saves")
    app.conf.broker_url = env["TOUR_BROKER"]
    flushing = install(app, queue=env["TOUR_QUEUE"])
    cache = stage.cache(stage.engines["redis"].url)
    users = users_saved_behind(cache, stage.origin, _buffer(stage, "celery"), app)
    written = users_to_write(740, WRITES)
    for user in written:
        stage.ours.call(users.put, user.id, user)
    for credit in (1, 2, 3):
        stage.ours.call(users.put, 750, User(750, "Emmy Noether", "Erlangen", credit))
    stage.ours.call(users.flush, 20, note=f"worker {worker.pid} has saved all")
    flushing.sender.drain(5)
    saved = _saved(stage, 740)
    last = stage.origin.peek(750)
    theirs = _race(stage)
    stage.compare(
        f"{WRITES + 3} puts, saved by a Celery worker; three of them of one key",
        f"two threads save two puts of one key: the older one stays: {show(theirs)}",
        f"{saved} saved, and of the three the newest: {show(last)}",
        saved == WRITES
        and theirs == User(751, "Emmy Noether", "Erlangen", 1)
        and last == User(750, "Emmy Noether", "Erlangen", 3),
    )
    if "broker" in stage.engines.given:  # somebody else's: leave nothing
        with app.connection_for_write() as connection:
            connection.default_channel.queue_delete(env["TOUR_QUEUE"])


def _race(stage: Stage) -> User | None:
    """The textbook with two saving threads: the first is slow, so the older of two puts is saved last."""
    held = HeldSave(stage.origin, before=True)
    todo: Queue[tuple[int, User]] = Queue()
    for _ in range(2):
        threading.Thread(target=save_textbook, args=(todo, held), daemon=True).start()
    older, newer = (User(751, "Emmy Noether", "Erlangen", credit) for credit in (1, 2))
    put = partial(stage.textbook.call, put_textbook, stage.redis(), stage.key("user:751"), todo, 751)

    def put_newer() -> None:
        put(newer, note="saved first")
        stage.wait(lambda: stage.origin.peek(751) == newer, "the newer save")

    held.overlap(lambda: put(older, note="saved last"), put_newer)
    stage.wait(lambda: stage.origin.peek(751) == older, "the older save")
    return stage.origin.peek(751)


SCENE = Scene(
    number=7,
    name="write-behind",
    about=(
        "A put returns as soon as the write is durable in a buffer on disk; a flusher saves it to the database later. "
        "The flusher is a thread of this process, the next process, or a Celery worker that RabbitMQ tells what is to be saved."
    ),
    bug=(
        "A crash loses the write, a failed save is printed and dropped, and after an eviction a read returns the old row."
    ),
    needs=("redis", "broker"),
    ours=(users_saved_behind,),
    textbook=(put_textbook, save_textbook),
    run=run,
)
