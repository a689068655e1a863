"""Celery as the flusher: messages are hints that a key is dirty; the buffer alone says what is to be saved.

So a message that is lost, doubled or late does no harm: the task claims what it finds in the buffer, and a sweep, sent
by every worker at an interval, picks up what no hint told of, what waits after a failure, and what settles.

The side that writes and the worker import the same module, which makes the repository::

    app = Celery("shop", broker="amqp://…")
    users = cache.repository("user", load=…, save=…, writes=WriteBehind(flusher=app))  # or CeleryFlusher(app, queue=…)

    $ celery -A shop worker        # takes the queue "cachewright" beside its own

They share the buffer: with SQLite, on one host.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

from cachewright.behind.flusher import find_flusher, known_flushers
from cachewright.behind.types import CeleryFlusher
from cachewright.errors import ConfigurationError, MissingExtraError
from cachewright.events import BackgroundFailed, Hub
from cachewright.options import Seconds, seconds
from cachewright.runtime.base import drive
from cachewright.runtime.threads import THREADS

try:
    import celery
    import kombu
    from celery import signals
except ImportError as error:
    raise MissingExtraError("flushing by Celery", "celery") from error

__all__ = ["FLUSH", "SWEEP", "CeleryFlushing", "app_for", "install", "unsafe_settings"]

log = logging.getLogger("cachewright")
FLUSH, SWEEP = "cachewright.flush", "cachewright.sweep"
_KEYS_A_MESSAGE = 100
_MOST_WAITING = 100_000  # hints not sent yet; what is more is left to the sweep
_ROUNDS = 100  # of one task; a key that is written all the time must not keep a worker for ever
_LATE_BROKERS = ("redis", "rediss", "sentinel", "filesystem", "sqs", "sqlalchemy", "gcpubsub")
_CONFIRMED = ("amqp", "pyamqp", "amqps")  # by py-amqp


def unsafe_settings(app: Any) -> list[str]:
    """What in an app's settings makes flushing late or unsafe, one sentence each."""
    found = []
    transport = str(app.connection_for_write().transport_cls).partition("+")[0]
    if transport in _LATE_BROKERS:
        options = app.conf.broker_transport_options or {}
        life = options.get("visibility_timeout")
        after = "an hour by default" if life is None else f"{life} s here"
        found.append(
            f"the broker is {transport}: the hints of a worker that dies come again only after its visibility "
            f"timeout ({after}), so such keys wait for the sweep, and a save that takes longer than it is hinted "
            f"twice; RabbitMQ is the broker to use"
        )
    elif transport not in _CONFIRMED:
        found.append(
            f"the transport {transport} has no publisher confirms: nobody notices a hint that is lost on its way, and "
            f"its key waits for the sweep; use amqp://"
        )
    task = app.tasks[FLUSH]
    for name, loses in (("acks_late", "a worker"), ("reject_on_worker_lost", "a pool child")):
        if not getattr(task, name):
            found.append(f"task_annotations take {name} from {FLUSH}: {loses} that dies loses its hint")
    loose = {"pickle", "yaml", "application/x-python-serialize"} & set(app.conf.accept_content or ())
    if loose:
        found.append(
            f"accept_content has {', '.join(sorted(loose))}: who reaches the broker runs code in the worker"
        )
    if app.conf.task_always_eager:
        found.append("task_always_eager is on: saves run in this process, no worker is asked")
    return found


class CeleryFlushing:
    """The tasks in one app, and the sender of hints. Make it by `install`.

    Args:
        app: a `celery.Celery`.
        queue: name of the durable queue for the hints.
        queue_type: ``"classic"``, or ``"quorum"`` for one that is replicated.
        sweep: seconds between the sweeps that each worker sends; 0: none (let beat send ``cachewright.sweep`` to that
            queue).
    """

    def __init__(
        self, app: Any, *, queue: str, queue_type: Literal["classic", "quorum"], sweep: float
    ) -> None:
        self.app, self.queue, self.queue_type, self.sweep_every = app, queue, queue_type, sweep
        how = {
            "serializer": "json",
            "ignore_result": True,
            # the message stays until the save is done, also when only the pool's child dies
            "acks_late": True,
            "reject_on_worker_lost": True,
        }
        self.flush_task = app.task(_flush, name=FLUSH, **how)
        self.sweep_task = app.task(_sweep, name=SWEEP, **how)
        self.sender = HintSender(self)
        # not before: the user's module may still be setting the app up
        app.on_after_finalize.connect(self._declare, weak=False)
        if app.finalized:
            self._declare(app)
        signals.worker_ready.connect(self._worker_ready, weak=False)
        signals.worker_shutting_down.connect(self._worker_ends, weak=False)
        self._ending = threading.Event()

    def _declare(self, sender: Any = None, **_: Any) -> None:
        entities: Any = kombu  # its types are unknown
        arguments = {"x-queue-type": "quorum"} if self.queue_type == "quorum" else None
        self.app.amqp.queues.select_add(
            entities.Queue(
                self.queue,
                entities.Exchange(self.queue, type="direct", durable=True),
                routing_key=self.queue,
                durable=True,
                queue_arguments=arguments,
            )
        )

    def hints(self, namespace: str, repository: str, events: Hub) -> Callable[[Sequence[str]], None]:
        """The ``notify`` of a `Flusher`: never blocks, never raises; what fails is told as `BackgroundFailed`."""

        def notify(keys: Sequence[str]) -> None:
            self.sender.put(namespace, repository, keys, events)

        return notify

    def close(self) -> None:
        """The ``on_close`` of a `Flusher`. A broker that is slow to answer is waited for two seconds."""
        self.sender.close(2.0)

    # -- in the worker ------------------------------------------------------------------------------------------

    def _worker_ready(self, sender: Any = None, **_: Any) -> None:
        if getattr(sender, "app", None) is not self.app:
            return
        for sentence in unsafe_settings(self.app):
            log.warning("unsafe Celery setting: %s", sentence)
        if self.sweep_every > 0:
            threading.Thread(target=self._send_sweeps, name="cachewright-sweeps", daemon=True).start()

    def _worker_ends(self, **_: Any) -> None:
        self._ending.set()

    def _send_sweeps(self) -> None:
        # sent, not run here: savers belong into the pool, and its children are forked from this process
        while not self._ending.wait(self.sweep_every):
            try:
                self.sweep_task.apply_async(queue=self.queue, expires=max(1.0, self.sweep_every), retry=False)
            except Exception as error:
                log.warning("a sweep could not be sent: %r", error)


class HintSender:
    """One thread that sends what `put` leaves with it; each message names up to 100 keys.

    It has a connection of its own: publisher confirms are on whatever the app says, and a forked child can leave the
    parent's connection alone.
    """

    def __init__(self, flushing: CeleryFlushing) -> None:
        self._flushing = flushing
        self.sent = self.lost = 0
        self._reset()
        atexit.register(self.drain, 2.0)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._waiting: dict[tuple[str, str], tuple[Hub, dict[str, None]]] = {}
        self._count = 0
        self._thread: threading.Thread | None = None
        self._closing = False
        self._connection: Any = None

    def put(self, namespace: str, repository: str, keys: Sequence[str], events: Hub) -> None:
        """Leaves hints to be sent."""
        if self._pid != os.getpid():
            _left_to_parent.append(
                self._connection
            )  # collecting it would say good-bye on the parent's socket
            self._reset()
        with self._lock:
            if self._count + len(keys) > _MOST_WAITING:
                self.lost += len(keys)
                return
            _, waiting = self._waiting.setdefault((namespace, repository), (events, {}))
            before = len(waiting)
            waiting.update(dict.fromkeys(keys))
            self._count += len(waiting) - before
            self._idle.clear()
            self._closing = False
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="cachewright-hints", daemon=True)
                self._thread.start()
        self._wake.set()

    def drain(self, timeout: float) -> bool:
        """Waits until all was sent or lost; False when ``timeout`` seconds passed first."""
        return self._pid != os.getpid() or self._idle.wait(timeout)

    def close(self, timeout: float) -> None:
        """Has the thread and its connection end once all is sent or lost, and waits for that at most so many seconds.

        A later hint starts them again.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            thread, self._closing = self._thread, True
        self._wake.set()
        ends = time.monotonic() + timeout
        while self._closing and thread is not None and thread.is_alive() and time.monotonic() < ends:
            thread.join(0.01)  # not longer: a hint of another repository may keep the thread

    def _run(self) -> None:
        while not self._is_over():
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                waiting, self._waiting, self._count = self._waiting, {}, 0
            for (namespace, repository), (events, keys) in waiting.items():
                self._send_all(namespace, repository, list(keys), events)

    def _is_over(self) -> bool:
        with self._lock:
            if self._waiting:
                return False
            self._idle.set()
            if not self._closing:
                return False
            self._thread = None
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()
        return True

    def _send_all(self, namespace: str, repository: str, keys: list[str], events: Hub) -> None:
        for start in range(0, len(keys), _KEYS_A_MESSAGE):
            some = keys[start : start + _KEYS_A_MESSAGE]
            try:
                self._send(namespace, repository, some)
                self.sent += len(some)
            except Exception as error:
                # the sweep will find them; trying each at a dead broker would only hold up the next
                self.lost += len(keys) - start
                events.emit(
                    BackgroundFailed(f"hinting Celery of {len(keys) - start} key(s) of {repository}", error)
                )
                return

    def _send(self, namespace: str, repository: str, keys: list[str]) -> None:
        for last in (False, True):
            try:
                producer = self._producer()
                self._flushing.flush_task.apply_async(
                    (namespace, repository, keys),
                    producer=producer,
                    queue=self._flushing.queue,
                    delivery_mode=2,  # the hint outlives a restart of the broker
                    retry=False,
                    confirm_timeout=5.0,
                )
                return
            except Exception:
                connection, self._connection = self._connection, None
                if connection is not None:
                    connection.release()
                if last:
                    raise

    def _producer(self) -> Any:
        if self._connection is None:
            app = self._flushing.app
            app.finalize(auto=True)
            connection = app.connection_for_write()
            options = {**(app.conf.broker_transport_options or {}), "confirm_publish": True}
            if connection.transport_cls in _CONFIRMED:
                connection.transport_options = options
            self._connection = connection
        self._connection.ensure_connection(max_retries=1, interval_start=0, timeout=4.0)
        return self._connection.Producer()


_left_to_parent: list[Any] = []


def _flush(namespace: str, repository: str, keys: list[str]) -> None:
    """Saves those keys, as far as they are still dirty and nobody else's."""
    flusher = find_flusher(namespace, repository)
    if flusher is None:
        known = ", ".join(f"{f.namespace}/{f.repository}" for f in known_flushers()) or "none"
        raise ConfigurationError(
            f"this Celery worker does not know the repository {namespace}/{repository} (it knows {known}): it must "
            f"import the module that calls cache.repository({repository!r}, …), by celery -A or the setting `include`"
        )
    for _ in range(_ROUNDS):  # a write during a save is found by the next round
        if not drive(flusher.step(THREADS, keys=keys)):
            return


def _sweep() -> None:
    """Saves whatever is due in the buffers of this worker's repositories."""
    until = time.monotonic() + 60.0
    for flusher in known_flushers():
        while flusher.where == "celery" and drive(flusher.step(THREADS)) and time.monotonic() < until:
            pass


_installed: weakref.WeakKeyDictionary[Any, CeleryFlushing] = weakref.WeakKeyDictionary()
_apps: dict[str, Any] = {}
_lock = threading.Lock()


def install(
    app: Any,
    *,
    queue: str | None = None,
    queue_type: Literal["classic", "quorum"] | None = None,
    sweep: Seconds | None = None,
) -> CeleryFlushing:
    """Puts the tasks into an app, once; later calls return the same. See `CeleryFlushing` for the arguments.

    What is left out is what an earlier call said, or the default.

    Raises:
        ConfigurationError: ``app`` is no Celery app, a setting cannot work or is not what an earlier call said.
    """
    if not isinstance(app, celery.Celery):
        raise ConfigurationError(f"flusher={app!r}: expected a celery.Celery app")
    asked = {"queue": queue, "queue_type": queue_type, "sweep": sweep}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    how = CeleryFlusher(app, **given)
    with _lock:
        found = _installed.get(app)
        if found is None:
            every = seconds("sweep", how.sweep, zero=True)
            assert every is not None, "None is no sweep's interval"
            found = CeleryFlushing(app, queue=how.queue, queue_type=how.queue_type, sweep=every)
            _installed[app] = found
    stand = {"queue": found.queue, "queue_type": found.queue_type, "sweep": found.sweep_every}
    for name, wanted in given.items():
        if getattr(how, name) != stand[name]:
            raise ConfigurationError(
                f"{name}={wanted!r}: this Celery app flushes with {name}={stand[name]!r} already, and there is one "
                f"queue for all repositories of an app; give all of them the same CeleryFlusher"
            )
    return found


def app_for(broker: str | None = None) -> Any:
    """The app behind ``flusher="celery"``: one per broker URL and process, ``CACHEWRIGHT_BROKER`` by default.

    Raises:
        ConfigurationError: no broker is named anywhere.
    """
    url = broker or os.environ.get("CACHEWRIGHT_BROKER")
    if not url:
        raise ConfigurationError(
            'flusher="celery" needs a broker: set CACHEWRIGHT_BROKER=amqp://…, or give your own app, flusher=app'
        )
    with _lock:
        if url not in _apps:
            _apps[url] = celery.Celery("cachewright", broker=url)
        return _apps[url]
