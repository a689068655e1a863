"""Databases that hold one caller up at the worst moment, so that a race that is rare in life happens every time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cachewright.tour.origin import Origin, User

__all__ = ["HeldSave", "SlowLoad"]

_LONGEST = 20.0


class SlowLoad:
    """A reader is held up after it has read the row, as a slow network would: from `hold` until `let_go`."""

    def __init__(self, database: Origin) -> None:
        self._database = database
        self._has_read, self._go_on = threading.Event(), threading.Event()
        self._go_on.set()

    def load_user(self, user_id: int) -> User:
        """Reads, then waits."""
        user = self._database.load_user(user_id)
        self._has_read.set()
        self._go_on.wait(_LONGEST)
        return user

    def save_user(self, user_id: int, user: User) -> None:
        """Saves."""
        self._database.save_user(user_id, user)

    def hold(self) -> None:
        """From now on."""
        self._has_read.clear()
        self._go_on.clear()

    def wait_until_read(self, reader: threading.Thread) -> None:
        """Returns when the reader has read the row and is held up, or has failed."""
        while reader.is_alive() and not self._has_read.wait(0.05):
            pass

    def let_go(self) -> None:
        """The reader goes on."""
        self._go_on.set()


class HeldSave:
    """The first writer is held up, before or after its save, until `let_go`."""

    def __init__(self, database: Origin, *, before: bool) -> None:
        self._database, self._before = database, before
        self._lock = threading.Lock()
        self._first = True
        self._held, self._go_on = threading.Event(), threading.Event()

    def load_user(self, user_id: int) -> User:
        """Reads."""
        return self._database.load_user(user_id)

    def save_user(self, user_id: int, user: User) -> None:
        """Saves, and waits if it is the first."""
        with self._lock:
            first, self._first = self._first, False
        if first and self._before:
            self._wait()
        self._database.save_user(user_id, user)
        if first and not self._before:
            self._wait()

    def overlap(self, writer_a: Callable[[], object], writer_b: Callable[[], object]) -> None:
        """A begins and is held up; B writes from begin to end; A goes on to its end."""
        thread = threading.Thread(target=writer_a, name="tour writer A", daemon=True)
        thread.start()
        self._held.wait(_LONGEST)
        writer_b()
        self._go_on.set()
        thread.join(_LONGEST)

    def _wait(self) -> None:
        self._held.set()
        self._go_on.wait(_LONGEST)
