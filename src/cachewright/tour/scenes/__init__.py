"""The ten scenes, one file each."""

from __future__ import annotations

from importlib import import_module

from cachewright.tour.stage import Scene

__all__ = ["all_scenes"]

_MODULES = (
    "s01_simple_ttl",
    "s02_cache_aside",
    "s03_invalidation",
    "s04_ttl_expiry",
    "s05_write_through",
    "s06_read_through",
    "s07_write_behind",
    "s08_multi_level",
    "s09_sharded",
    "s10_time_based_refresh",
)


def all_scenes() -> list[Scene]:
    """All of them, in order."""
    return [import_module(f"{__name__}.{module}").SCENE for module in _MODULES]
