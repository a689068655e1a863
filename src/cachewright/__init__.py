"""cachewright: ten caching strategies for Python services, sync and async, from process memory to Redis Cluster."""

from typing import TYPE_CHECKING, Any

from cachewright.behind.types import CeleryFlusher, Write
from cachewright.cache import Cache
from cachewright.core.context import LoadContext, current_load
from cachewright.core.edit import Inspection, TierView
from cachewright.core.run_record import RefreshView
from cachewright.decorator import CachedFunction, CacheInfo
from cachewright.errors import (
    BufferError,
    BufferFull,
    BufferUnavailable,
    BufferUnconfirmed,
    CacheError,
    CodecError,
    ConfigurationError,
    DecodeError,
    EncodeError,
    FlushTimeout,
    InvalidKeyError,
    LoaderInterrupted,
    LoadError,
    LoadTimeout,
    MissingExtraError,
    MissingKeyError,
    NotDirtyError,
    NotSaved,
    RecursiveLoadError,
    TierError,
    TierProtocolError,
    TierTimeout,
    TierUnavailable,
    WouldDeadlockError,
    WriteError,
)
from cachewright.options import MISSING, Entry, Freshness, Options, Retry
from cachewright.repository import Repository
from cachewright.write_modes import WriteAround, WriteBehind, WriteThrough

if TYPE_CHECKING:
    from cachewright.behind.buffers.base import BufferStats
    from cachewright.behind.flusher import FlusherStats
    from cachewright.behind.operating import BufferedWrite
    from cachewright.schedule import Refresh
    from cachewright.warm_plan import WarmReport

__version__ = "0.1.0"

__all__ = [
    "MISSING",
    "BufferError",
    "BufferFull",
    "BufferStats",
    "BufferUnavailable",
    "BufferUnconfirmed",
    "BufferedWrite",
    "Cache",
    "CacheError",
    "CacheInfo",
    "CachedFunction",
    "CeleryFlusher",
    "CodecError",
    "ConfigurationError",
    "DecodeError",
    "EncodeError",
    "Entry",
    "FlushTimeout",
    "FlusherStats",
    "Freshness",
    "Inspection",
    "InvalidKeyError",
    "LoadContext",
    "LoadError",
    "LoadTimeout",
    "LoaderInterrupted",
    "MissingExtraError",
    "MissingKeyError",
    "NotDirtyError",
    "NotSaved",
    "Options",
    "RecursiveLoadError",
    "Refresh",
    "RefreshView",
    "Repository",
    "Retry",
    "TierError",
    "TierProtocolError",
    "TierTimeout",
    "TierUnavailable",
    "TierView",
    "WarmReport",
    "WouldDeadlockError",
    "Write",
    "WriteAround",
    "WriteBehind",
    "WriteError",
    "WriteThrough",
    "__version__",
    "current_load",
]


_LAZY = {
    "BufferStats": "cachewright.behind.buffers.base",
    "BufferedWrite": "cachewright.behind.operating",
    "FlusherStats": "cachewright.behind.flusher",
    "Refresh": "cachewright.schedule",
    "WarmReport": "cachewright.warm_plan",
}


def __getattr__(name: str) -> Any:
    # Only for who schedules or writes behind: importing it costs every other process for nothing.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'cachewright' has no attribute {name!r}")
