"""Every error that cachewright raises, and nothing else.

::

    CacheError
    ├── ConfigurationError (ValueError)      an option, URL, template or use that cannot work
    │   └── MissingExtraError (ImportError)  an optional dependency is not installed
    ├── InvalidKeyError (ValueError)         a key that no tier could hold safely
    ├── MissingKeyError (KeyError)           the operation needs an entry and there is none
    ├── CodecError
    │   ├── EncodeError (TypeError)          the value cannot be stored as it is
    │   └── DecodeError (ValueError)         stored bytes are damaged, forged or of the wrong type
    ├── LoadError
    │   ├── LoaderInterrupted                a loader leaked a cancellation, or exited behind its callers
    │   ├── LoadTimeout (TimeoutError)       the loader ran past ``load_timeout``
    │   ├── RecursiveLoadError               a loader asked for a key that waits for it
    │   └── WouldDeadlockError               a blocking call would wait for its own event loop
    ├── TierError
    │   ├── TierUnavailable (ConnectionError)  a tier cannot be reached, or its breaker is open
    │   │   └── TierTimeout (TimeoutError)     a tier did not answer within its deadline
    │   └── TierProtocolError                  a server answered something that makes no sense
    ├── WriteError
    │   └── NotSaved                         raised *by savers*: the origin is certainly unchanged
    └── BufferError
        ├── BufferFull                       write-behind's bounds are reached
        ├── BufferUnavailable                the buffer cannot store durably; nothing was accepted
        ├── BufferUnconfirmed                nobody knows whether the buffer has it: write it again
        ├── FlushTimeout (TimeoutError)      dirty keys remained when the deadline passed
        └── NotDirtyError (KeyError)         a record that an operation names is not there

A loader's or saver's own ``Exception`` reaches the caller unwrapped; it is never one of these unless the
loader or saver raised it.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BufferError",
    "BufferFull",
    "BufferUnavailable",
    "BufferUnconfirmed",
    "CacheError",
    "CodecError",
    "ConfigurationError",
    "DecodeError",
    "EncodeError",
    "FlushTimeout",
    "InvalidKeyError",
    "LoadError",
    "LoadTimeout",
    "LoaderInterrupted",
    "MissingExtraError",
    "MissingKeyError",
    "NotDirtyError",
    "NotSaved",
    "RecursiveLoadError",
    "TierError",
    "TierProtocolError",
    "TierTimeout",
    "TierUnavailable",
    "WouldDeadlockError",
    "WriteError",
]


class CacheError(Exception):
    """Root of everything that cachewright raises by itself."""


class ConfigurationError(CacheError, ValueError):
    """An option, URL, key template or way of use that cannot work; the message names the way out."""


class MissingExtraError(ConfigurationError, ImportError):
    """An optional dependency is missing; the message is the exact ``pip install`` line."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs an optional dependency: pip install "cachewright[{extra}]"')
        self.extra = extra


class InvalidKeyError(CacheError, ValueError):
    """A key that is not a non-empty, encodable ``str`` within the size limit."""


class MissingKeyError(CacheError, KeyError):
    """The operation needs a live entry (``incr``) and the key has none."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CodecError(CacheError):
    """A value cannot be turned into bytes or back."""


class EncodeError(CodecError, TypeError):
    """The value cannot be stored as it is; nothing was stored."""


class DecodeError(CodecError, ValueError):
    """Stored bytes are damaged, forged, too large or not of the wanted type."""


class LoadError(CacheError):
    """A load could not be run or waited for."""


class LoaderInterrupted(LoadError):
    """A loader raised what usually ends a task or a thread, where that ends nobody: its load has failed.

    It let a ``CancelledError`` through though nobody had cancelled its caller, or it raised ``SystemExit`` or the like
    behind its callers or in the thread of a pool. ``__cause__`` is what it raised.
    """

    brought: tuple[int, ...] = ()  # which loader it was: ids, since an error may be pickled


class LoadTimeout(LoadError, TimeoutError):
    """The loader ran longer than ``load_timeout`` seconds and no usable stale value was at hand."""


class RecursiveLoadError(LoadError):
    """A loader asked, directly or through other loaders, for the key that it is loading."""


class WouldDeadlockError(LoadError):
    """A blocking call on an event loop's own thread would wait for work of that very loop."""


class TierError(CacheError):
    """A tier failed. Seen by callers only with ``on_outage="raise"`` and in events."""

    unsent = False  # True where the request has certainly not left this process: no connection was to be had

    def __init__(self, tier: str, message: str) -> None:
        super().__init__(f"{tier}: {message}")
        self.tier = tier


class TierUnavailable(TierError, ConnectionError):
    """The tier cannot be reached, or its breaker is open."""


class TierTimeout(TierUnavailable, TimeoutError):
    """The tier did not answer within its deadline; whether it acted is unknown."""


class TierProtocolError(TierError):
    """The server answered something that its protocol does not allow here."""


class WriteError(CacheError):
    """A write through the cache could not be carried out."""


class NotSaved(WriteError):
    """Raise this from a saver to say: the origin is certainly unchanged by this save."""


class BufferError(CacheError):
    """Write-behind's buffer refused or failed."""


class BufferFull(BufferError):
    """The buffer's bounds are reached and ``on_full`` says raise, or its wait timed out."""


class BufferUnavailable(BufferError):
    """The buffer could not store the record durably; the write was not accepted."""


class BufferUnconfirmed(BufferError):
    """The buffer may or may not have the write: its answer was lost, or too few replicas confirmed it in time.

    Nothing of it is lost if it was taken; writing the same again is safe.
    """


class FlushTimeout(BufferError, TimeoutError):
    """Dirty keys remained when the deadline passed.

    Attributes:
        dirty: the keys that are still dirty, at most the first 1,000.
    """

    def __init__(self, message: str, dirty: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.dirty = list(dirty)


class NotDirtyError(BufferError, KeyError):
    """The buffer holds no record of that key in the wanted state."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""
