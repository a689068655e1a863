"""cachewright: the caching layer for Python services."""

__version__ = "0.1.0"
