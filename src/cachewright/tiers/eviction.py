"""Which entry goes when memory is full: the policy port, and S3-FIFO.

S3-FIFO is from Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction" (SOSP 2023).
Most keys of real traffic are asked for once, and LRU lets each of them push something useful out. S3-FIFO makes
a newcomer prove itself in a *small* queue, a tenth of the room: who is not asked for again on the way through it
leaves early, and only its hash is remembered in the *ghost* queue; who was asked for again moves to the *main*
queue. Somebody who comes back while its ghost still stands goes to main directly. In main, an entry that was
marked since its last turn is given another turn and loses one mark (a clock with two bits).

A hit therefore moves nothing: it leaves a mark on the entry and takes no lock. All the work is done by inserts.
Hits must *count* (``if node.mark < MAX_MARK: node.mark += 1``): one who merely sets a bit never reaches ``threshold``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["MAX_MARK", "Evictable", "Policy", "S3FIFO"]

MAX_MARK = 3
"""A hit raises an entry's mark up to this; more would keep what was popular long ago."""


class Evictable(Protocol):
    """What a policy needs of an entry. ``mark`` is written by hits without a lock, ``home`` by the policy alone."""

    key: str
    mark: int
    home: int


N = TypeVar("N", bound=Evictable)


class Policy(Protocol[N]):
    """Decides who leaves. Called under the tier's lock, free of locks itself; holds each key at most once."""

    def admit(self, node: N) -> list[N]:
        """Takes a new entry in; returns those that leave for it, which the policy has forgotten already."""

    def replace(self, old: N, new: N) -> None:
        """``new`` stands in ``old``'s place, under the same key, with its standing."""

    def remove(self, node: N) -> None:
        """Forgets an entry that died otherwise; harmless where it is not held."""

    def clear(self) -> None:
        """Forgets everything."""

    def __len__(self) -> int:
        """How many entries it holds."""

    def __iter__(self) -> Iterator[N]:
        """All entries, next to leave first within each queue."""

    def check(self) -> None:
        """Raises AssertionError where its own accounts do not agree."""


_NOWHERE, _SMALL, _MAIN = 0, 1, 2


class S3FIFO(Generic[N]):
    """S3-FIFO over at most ``capacity`` entries.

    Args:
        capacity: entries held at most; at least 1.
        expired: tells that an entry is of no use to anyone any more; it then leaves whatever its mark.
        small: the small queue's share of the room.
        threshold: the mark at which an entry at the small queue's end moves to main.
    """

    def __init__(
        self,
        capacity: int,
        expired: Callable[[N], bool] | None = None,
        *,
        small: float = 0.1,
        threshold: int = 2,
    ) -> None:
        self.capacity = capacity
        self._expired = expired
        self._small_room = max(1, int(capacity * small))
        # The paper has main's size here; with the whole room one of four traces gained two points, none lost.
        self._ghost_room = capacity
        self._threshold = threshold
        # An OrderedDict, since taking the first key of a plain dict is O(holes before it).
        self._small: OrderedDict[str, N] = OrderedDict()
        self._main: OrderedDict[str, N] = OrderedDict()
        # Hashes, not keys: a ghost is remembered in 32 bytes whatever its key. A collision only admits too well.
        self._ghost: OrderedDict[int, None] = OrderedDict()

    def admit(self, node: N) -> list[N]:
        """Takes a new entry in; returns those that leave for it."""
        evicted: list[N] = []
        while len(self._small) + len(self._main) >= self.capacity:
            if len(self._small) >= self._small_room or not self._main:
                self._evict_small(evicted)
            else:
                self._evict_main(evicted)
        ghost = hash(node.key)
        if ghost in self._ghost:
            del self._ghost[ghost]
            node.home = _MAIN
            self._main[node.key] = node
        else:
            node.home = _SMALL
            self._small[node.key] = node
        return evicted

    def _evict_small(self, evicted: list[N]) -> None:
        """Empties the small queue from its end until one entry has left or all its entries moved to main."""
        while self._small:
            key, node = self._small.popitem(last=False)
            if node.mark >= self._threshold and not (self._expired is not None and self._expired(node)):
                node.mark = 0
                node.home = _MAIN
                self._main[key] = node
                continue
            node.home = _NOWHERE
            self._ghost[hash(key)] = None
            if len(self._ghost) > self._ghost_room:
                self._ghost.popitem(last=False)
            evicted.append(node)
            return

    def _evict_main(self, evicted: list[N]) -> None:
        while (
            True
        ):  # ends after at most MAX_MARK rounds, give or take the hits that other threads land meanwhile
            key, node = self._main.popitem(last=False)
            mark = node.mark
            if mark > 0 and not (self._expired is not None and self._expired(node)):
                # Hits mark without the lock: one that lands between the read and this write is lost, harmless.
                node.mark = min(mark, MAX_MARK) - 1
                self._main[key] = node
                continue
            node.home = _NOWHERE
            evicted.append(node)
            return

    def replace(self, old: N, new: N) -> None:
        """``new`` takes ``old``'s turn in its queue: assigning to a key keeps its place."""
        new.home, old.home = old.home, _NOWHERE
        # Somebody asked for the key again, or it would not have been replaced: that counts as a hit.
        new.mark = min(old.mark + 1, MAX_MARK)
        (self._small if new.home == _SMALL else self._main)[new.key] = new

    def remove(self, node: N) -> None:
        """Forgets an entry that died otherwise."""
        if node.home == _SMALL:
            del self._small[node.key]
        elif node.home == _MAIN:
            del self._main[node.key]
        node.home = _NOWHERE

    def clear(self) -> None:
        """Forgets everything, ghosts too."""
        self._small.clear()
        self._main.clear()
        self._ghost.clear()

    def __len__(self) -> int:
        """How many entries it holds."""
        return len(self._small) + len(self._main)

    def __iter__(self) -> Iterator[N]:
        """All entries, small queue first."""
        yield from self._small.values()
        yield from self._main.values()

    def check(self) -> None:
        """Raises AssertionError where the queues' accounts do not agree."""
        assert len(self) <= self.capacity, f"{len(self)} entries in room for {self.capacity}"
        assert len(self._ghost) <= self._ghost_room, (
            f"{len(self._ghost)} ghosts in room for {self._ghost_room}"
        )
        assert not self._small.keys() & self._main.keys(), "an entry stands in both queues"
        for home, queue in ((_SMALL, self._small), (_MAIN, self._main)):
            for key, node in queue.items():
                assert node.key == key, f"{node.key!r} stands under {key!r}"
                assert node.home == home, f"{key!r} does not know its queue"
                assert 0 <= node.mark <= MAX_MARK, f"{key!r} has mark {node.mark}"
