"""One process that writes behind and may be killed at any moment: ``python -m tests.crash.writer '<order as JSON>'``.

It tells its parent what it does in lines on standard output; each is one ``write`` of a pipe, so a SIGKILL tears none
and takes none back. Times are of the monotonic clock, which is one for all processes of the machine; they enclose the
call (the first is read before it, the second after it)::

    begun                          the repository is open
    put  <name> <key> <time>       about to write the value <name>        (del: about to delete)
    ack  <name> <time>             that call returned
    not  <name> <time>             it raised `BufferUnavailable` or `BufferFull`: nothing was accepted
    what <name> <time> <error>     it raised something else: it may have been taken
    got  <key> <value> <time> <time>   a read; "-" is None
    save <n>                       its n-th save is about to be committed; `done` after it

With ``puts``, or when its standard input ends, it stops writing by itself: it drains and leaves.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
import traceback
from typing import Any

from cachewright import BufferFull, BufferUnavailable
from tests.crash.shop import Order, Shop

__all__: list[str] = []

PATIENCE = 60.0
WORDS = {"before": "save", "after": "done"}
OVER = threading.Event()
HOT = 10  # keys that get half of the writes, where there are more


def say(*words: object) -> None:
    """One line, whole or not at all."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Crash:
    """Ends this process at one side of the commit of its n-th save, or at its n-th acknowledgement."""

    def __init__(self, order: Order) -> None:
        self._order, self._counts = order, {"begin": 0, "before": 0, "after": 0, "acked": 0}
        self._lock = threading.Lock()

    def at(self, point: str) -> None:
        """Called by the origin in every save."""
        with self._lock:
            self._counts[point] += 1
            here = [point, self._counts[point]]
        if point in WORDS:
            say(WORDS[point], here[1])
        if self._order.kill is not None and list(self._order.kill) == here:
            signal.pthread_kill(
                threading.get_ident(), signal.SIGKILL
            )  # this thread does not go on for a moment

    def acked(self, name: str) -> None:
        """Called by a caller whose write was taken."""
        say("ack", name, time.monotonic())
        self.at("acked")


class Caller:
    """One thread or task of a writer: what it writes next, and what it says of it."""

    def __init__(self, order: Order, number: int, crash: Crash) -> None:
        self.order, self.number, self.crash, self.count = order, number, crash, 0
        self.chance = random.Random(f"{order.seed}:{number}")

    def next(self) -> tuple[str, str, str]:
        """What to do, to which key, under which name."""
        what = self.chance.choices(["put", "del", "got"], [85, 10, 5 * self.order.reads])[0]
        self.count += what != "got"
        # Some keys are written all the time; the others keep what a lost hint, or a lost write, did to them.
        keys = self.order.keys if self.chance.random() < 0.5 else min(HOT, self.order.keys)
        key = self.order.key(self.chance.randrange(keys))
        return what, key, f"{self.order.name}.{self.number}.{self.count}"

    @property
    def is_over(self) -> bool:
        return OVER.is_set() or (self.order.puts is not None and self.count >= self.order.puts)

    def failed(self, name: str, error: Exception) -> float:
        """Says so; how long to wait before the next."""
        if isinstance(error, BufferUnavailable | BufferFull):
            say("not", name, time.monotonic())
        else:
            say("what", name, time.monotonic(), type(error).__name__)
        return 0.01

    def run(self, shop: Shop) -> None:
        """As a thread."""
        items = shop.items
        while not self.is_over:
            what, key, name = self.next()
            pause = self.order.pause
            before = time.monotonic()
            try:
                if what == "got":
                    found = items.get(key)
                    say("got", key, found or "-", before, time.monotonic())
                    continue
                say(what, name, key, before)
                if what == "put":
                    items.put(key, name)
                else:
                    items.delete(key)
                self.crash.acked(name)
            except Exception as error:
                pause += 0.01 if what == "got" else self.failed(name, error)
            if pause:
                time.sleep(pause)

    async def arun(self, shop: Shop) -> None:
        """As a task."""
        items = shop.items
        while not self.is_over:
            what, key, name = self.next()
            pause = self.order.pause
            before = time.monotonic()
            try:
                if what == "got":
                    found = await items.aget(key)
                    say("got", key, found or "-", before, time.monotonic())
                    continue
                say(what, name, key, before)
                if what == "put":
                    await items.aput(key, name)
                else:
                    await items.adelete(key)
                self.crash.acked(name)
            except Exception as error:
                pause += 0.01 if what == "got" else self.failed(name, error)
            await asyncio.sleep(pause)


def write(order: Order) -> None:
    """The blocking face."""
    crash = Crash(order)
    shop = Shop(order, crash.at)
    say("begun")
    callers = [Caller(order, number, crash) for number in range(order.callers)]
    threads = [threading.Thread(target=guarded, args=(caller.run, shop)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shop.close(PATIENCE)


async def awrite(order: Order) -> None:
    """The face of asyncio."""
    crash = Crash(order)
    shop = Shop(order, crash.at)
    say("begun")
    await asyncio.gather(*(Caller(order, number, crash).arun(shop) for number in range(order.callers)))
    await shop.aclose(PATIENCE)


def guarded(work: Any, *arguments: Any) -> None:
    """A thread that fails takes the process with it: its parent sees the exit code."""
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def heed_the_parent() -> None:
    """Until standard input ends: on the parent's word, or with its life."""
    while os.read(0, 1):
        pass
    OVER.set()


def main() -> None:
    order = Order.parse(sys.argv[1])
    threading.Thread(target=heed_the_parent, daemon=True).start()
    if order.face == "asyncio":
        asyncio.run(awrite(order))
    else:
        write(order)


if __name__ == "__main__":
    main()
