"""The part of a `Repository` that looks after its write-behind buffer: what waits, what was given up, and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from cachewright.errors import ConfigurationError
from cachewright.runtime.base import Runtime, drive

if TYPE_CHECKING:
    from cachewright.behind.flusher import FlusherStats
    from cachewright.behind.operating import BufferedWrite, Operating

__all__ = ["BehindFace"]

Id = TypeVar("Id")


class BehindFace(Generic[Id]):
    """Base of `Repository`. All of it raises `ConfigurationError` where the repository does not write behind."""

    name: str
    behind: Operating | None
    _threads: Runtime
    _aio: Runtime

    def key_for(self, id: Id) -> str:
        """The key of an id."""
        raise NotImplementedError

    def _operating(self) -> Operating:
        if self.behind is None:
            raise ConfigurationError(
                f"repository {self.name!r} saves before put returns, so nothing of it waits in a buffer: "
                f"make it with writes='behind' or writes=WriteBehind(…)"
            )
        return self.behind

    def dirty(self, limit: int = 1000) -> list[BufferedWrite]:
        """Write-behind: the writes that are not saved yet, settling ones included, oldest first.

        Args:
            limit: at most so many.

        Raises:
            ConfigurationError: the repository does not write behind.
            BufferUnavailable: the buffer cannot be read.
        """
        return drive(self._operating().writes(self._threads, _checked(limit)))

    async def adirty(self, limit: int = 1000) -> list[BufferedWrite]:
        """`dirty`, awaited."""
        return await self._operating().writes(self._aio, _checked(limit))

    def dead_letters(self, limit: int = 1000) -> list[BufferedWrite]:
        """Write-behind: the writes that were given up after ``max_attempts``, oldest first; reads go on seeing them.

        Args:
            limit: at most so many.

        Raises:
            ConfigurationError: the repository does not write behind.
            BufferUnavailable: the buffer cannot be read.
        """
        return drive(self._operating().writes(self._threads, _checked(limit), dead=True))

    async def adead_letters(self, limit: int = 1000) -> list[BufferedWrite]:
        """`dead_letters`, awaited."""
        return await self._operating().writes(self._aio, _checked(limit), dead=True)

    def replay(self, id: Id) -> None:
        """Write-behind: has a dead letter saved again, its tries forgotten.

        Raises:
            NotDirtyError: there is no dead letter of that id (any more).
            ConfigurationError: the repository does not write behind.
            BufferUnavailable: the buffer cannot be reached.
        """
        drive(self._operating().replay(self._threads, self.key_for(id)))

    async def areplay(self, id: Id) -> None:
        """`replay`, awaited."""
        await self._operating().replay(self._aio, self.key_for(id))

    def discard(self, id: Id) -> BufferedWrite:
        """Write-behind: removes a dead letter for good and drops the key in every tier; reads see the origin again.

        Returns:
            What was removed.

        Raises:
            NotDirtyError: there is no dead letter of that id (any more).
            ConfigurationError: the repository does not write behind.
            BufferUnavailable: the buffer cannot be reached.
        """
        return drive(self._operating().discard(self._threads, self.key_for(id)))

    async def adiscard(self, id: Id) -> BufferedWrite:
        """`discard`, awaited."""
        return await self._operating().discard(self._aio, self.key_for(id))

    def behind_stats(self) -> FlusherStats:
        """Write-behind: depth, age of the oldest dirty key, and what this process saved.

        Raises:
            ConfigurationError: the repository does not write behind.
            BufferUnavailable: the buffer cannot be read.
        """
        return drive(self._operating().stats(self._threads))

    async def abehind_stats(self) -> FlusherStats:
        """`behind_stats`, awaited."""
        return await self._operating().stats(self._aio)


def _checked(limit: object) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigurationError(f"limit={limit!r}: expected a whole number, at least 1")
    return limit
