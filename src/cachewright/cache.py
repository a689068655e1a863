"""`Cache`, both faces: look in process memory, else drive (blocking) or await (asyncio) the same core."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from cachewright.cache_aside import CacheAside
from cachewright.codecs.base import Codec
from cachewright.codecs.pipeline import make_pipeline
from cachewright.core.breaker import Level
from cachewright.core.engine import Engine, Inspection
from cachewright.core.state import Chain, State
from cachewright.environment import read_environment
from cachewright.errors import ConfigurationError
from cachewright.events import Hub
from cachewright.keys import check_key, check_keys, check_namespace, check_tag
from cachewright.options import DEFAULTS, MISSING, Freshness, Options, merge, refuse_entries, seconds
from cachewright.runtime.aio import AioRuntime
from cachewright.runtime.base import Clock, Runtime, drive
from cachewright.runtime.threads import SYSTEM_CLOCK, ThreadRuntime
from cachewright.runtime.workers import LOADS_AT_ONCE, Workers
from cachewright.spelling import did_you_mean
from cachewright.tiers.base import Tier
from cachewright.tiers.memory import MemoryTier
from cachewright.urls import make_tiers

__all__ = ["Cache"]

D = TypeVar("D")
T = TypeVar("T")
LOCAL_TTL = 5.0
_AS_OPTIONS = "store its value, and give what it says as options: ttl=…, tags=…"


class Cache(CacheAside):
    """A chain of tiers, for threads and event loops at once.

    Every method that does I/O has a twin with an ``a`` in front, to be awaited. Nothing connects and no thread starts
    before first use. ``with`` and ``async with`` close it.

    Args:
        *tiers: tier URLs, nearest first (see ``docs/reference/urls.md``); none means process memory.
        namespace: what all keys of this cache begin with in shared tiers.
        codec: ``"msgpack"``, ``"json"``, ``"pickle"`` (signed: give ``pickle_keys``), or a codec of your own.
        compression: ``"zstd"``, ``"lz4"`` or ``"zlib"`` for payloads from 4 KiB.
        encryption_keys: AES-256 keys; the first encrypts, all decrypt.
        pickle_keys: keys that sign pickles; the first signs, all verify.
        on_outage: ``"serve"`` answers from the other tiers or the origin; ``"raise"`` raises `TierUnavailable`.
        local_ttl: longest life of an entry in memory above a shared tier, in seconds: what bounds staleness there.
        copy: hand out deep copies from process memory instead of the objects themselves.
        max_value_bytes: largest payload.
        clock: where time comes from; for tests.
        **options: defaults of every freshness option (`Options`).

    Raises:
        ConfigurationError: an option or URL that cannot work.
    """

    def __init__(
        self,
        *tiers: str | Tier,
        namespace: str = "cachewright",
        codec: str | Codec = "msgpack",
        compression: str | None = None,
        encryption_keys: bytes | Iterable[bytes] | None = None,
        pickle_keys: bytes | Iterable[bytes] | None = None,
        on_outage: Literal["serve", "raise"] = "serve",
        local_ttl: float | timedelta = LOCAL_TTL,
        copy: bool = False,
        max_value_bytes: int = 64 * 1024 * 1024,
        clock: Clock = SYSTEM_CLOCK,
        **options: Unpack[Freshness],
    ) -> None:
        check_namespace(namespace)
        if on_outage not in ("serve", "raise"):
            hint = did_you_mean(str(on_outage), ("serve", "raise"))
            raise ConfigurationError(f"on_outage={on_outage!r}: expected 'serve' or 'raise'{hint}")
        hub = Hub()
        made = make_tiers(tiers or ("memory://",), namespace, clock, copy)
        local = made.pop(0) if len(made) > 1 and isinstance(made[0], MemoryTier) else None
        chain = Chain(local if isinstance(local, MemoryTier) else None, [Level(tier, hub) for tier in made])
        pipeline = make_pipeline(
            codec, compression, encryption_keys, pickle_keys, max_value_bytes=max_value_bytes
        )
        state = State(
            namespace,
            chain,
            pipeline,
            merge(DEFAULTS, options),
            hub=hub,
            strict=on_outage == "raise",
            local_ttl=seconds("local_ttl", local_ttl) or LOCAL_TTL,
        )
        system = clock is SYSTEM_CLOCK
        # Of its own: loads that hang on one cache's origin must not keep another's from starting.
        workers = Workers("worker", LOADS_AT_ONCE)
        threads, aio = ThreadRuntime(clock, workers), AioRuntime(clock, workers)
        super().__init__(Engine(state), threads, aio)
        self._threads: Runtime = threads
        self._aio: Runtime = aio

        self._table = self._memory.table if self._memory is not None and not copy else {}
        self._monotonic = time.monotonic if system else clock.monotonic
        _CACHES.add(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Self:
        """A cache from ``CACHEWRIGHT_TIERS`` (URLs, separated by spaces), ``CACHEWRIGHT_NAMESPACE``,
        ``CACHEWRIGHT_TTL`` and further options by their names in capitals; ``overrides`` win.

        Raises:
            ConfigurationError: a variable that names no option, or a value that breaks its rule.
        """
        tiers, options = read_environment(environ)
        return cls(*tiers, **{**options, **overrides})

    def __repr__(self) -> str:
        state = self.engine.state
        names = [t.name for t in ([state.chain.local] if state.chain.local else [])]
        names += [level.tier.name for level in state.chain.levels]
        return f"<Cache {' > '.join(names)} namespace={state.namespace!r}>"

    @property
    def namespace(self) -> str:
        """What all keys of this cache begin with in shared tiers."""
        return self.engine.state.namespace

    @property
    def events(self) -> Hub:
        """Subscribe here to what happens behind the callers' backs."""
        return self.engine.state.hub

    # ------------------------------------------------------------------------------------------- reading

    @overload
    def get(self, key: str, default: D, *, type: type[T]) -> T | D: ...

    @overload
    def get(self, key: str, *, type: type[T]) -> T | None: ...

    @overload
    def get(self, key: str, default: Any = None, *, type: Any = None) -> Any: ...

    def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:
        """The fresh value of ``key``, or ``default``. Never waits for a load.

        Args:
            key: the key.
            default: what to return where there is no fresh entry.
            type: what stored bytes are converted to (a dataclass, a model, ``list[User]`` …).
        """
        node = self._table.get(key) if key.__class__ is str else None
        if node is not None and type is None:
            value = node.value
            if node.untyped > self._monotonic():
                if node.mark < 3:
                    node.mark += 1
                self._stats.local_hits += 1
                return value
        return drive(self._get(self._threads, key, default, type))

    @overload
    async def aget(self, key: str, default: D, *, type: type[T]) -> T | D: ...

    @overload
    async def aget(self, key: str, *, type: type[T]) -> T | None: ...

    @overload
    async def aget(self, key: str, default: Any = None, *, type: Any = None) -> Any: ...

    async def aget(self, key: str, default: Any = None, *, type: Any = None) -> Any:
        """`get`, awaited."""
        return await self._get(self._aio, key, default, type)

    async def _get(self, rt: Runtime, key: str, default: Any, type_: Any) -> Any:
        value = self._local(key, type_)
        if value is not MISSING:
            return value
        return await self.engine.get(rt, check_key(key), default, self._typed(type_))

    def _typed(self, type_: Any) -> Options:
        return self.engine.options if type_ is None else merge(self.engine.options, {"type": type_})

    def get_many(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Any]:
        """The fresh values of those keys that have one, in one round trip a tier."""
        return drive(self._get_many(self._threads, keys, type))

    async def aget_many(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Any]:
        """`get_many`, awaited."""
        return await self._get_many(self._aio, keys, type)

    async def _get_many(self, rt: Runtime, keys: Iterable[str], type_: Any) -> dict[str, Any]:
        names = check_keys(keys)
        found = {key: value for key in names if (value := self._local(key, type_)) is not MISSING}
        rest = [key for key in names if key not in found]
        if rest:
            found.update(await self.engine.get_many(rt, rest, self._typed(type_)))
        return {key: found[key] for key in names if key in found}

    # ------------------------------------------------------------------------------------------- changing

    def set(self, key: str, value: Any, **options: Unpack[Freshness]) -> None:
        """Stores a value. Where a write of the key is under way it is left empty instead: the write decides.

        Raises:
            ConfigurationError: an option that breaks its rule, or an `Entry` for a value: give what it says as options.
            EncodeError: a tier other than memory stands in the chain and the value cannot be turned into bytes.
        """
        drive(self._set_many(self._threads, {key: value}, options))

    async def aset(self, key: str, value: Any, **options: Unpack[Freshness]) -> None:
        """`set`, awaited."""
        await self._set_many(self._aio, {key: value}, options)

    def set_many(self, values: Mapping[str, Any], **options: Unpack[Freshness]) -> None:
        """Stores many values, pipelined; each key by itself is atomic."""
        drive(self._set_many(self._threads, values, options))

    async def aset_many(self, values: Mapping[str, Any], **options: Unpack[Freshness]) -> None:
        """`set_many`, awaited."""
        await self._set_many(self._aio, values, options)

    async def _set_many(self, rt: Runtime, values: Mapping[str, Any], given: Freshness) -> None:
        for key in values:
            check_key(key)
        refuse_entries(values, _AS_OPTIONS)
        merged = merge(self.engine.options, given)
        if merged.store_if is not None:
            values = {key: value for key, value in values.items() if merged.store_if(value)}
        await self.engine.set_many(rt, values, merged)

    def add(self, key: str, value: Any, **options: Unpack[Freshness]) -> bool:
        """Stores only where no fresh entry stands; True if it did."""
        return drive(self._add(self._threads, key, value, options))

    async def aadd(self, key: str, value: Any, **options: Unpack[Freshness]) -> bool:
        """`add`, awaited."""
        return await self._add(self._aio, key, value, options)

    async def _add(self, rt: Runtime, key: str, value: Any, given: Freshness) -> bool:
        check_key(key)
        refuse_entries({key: value}, _AS_OPTIONS)
        merged = merge(self.engine.options, given)
        if merged.store_if is not None and not merged.store_if(value):
            return False
        return await self.engine.add(rt, key, value, merged)

    def delete(self, key: str) -> bool:
        """Drops a key in every tier; True if it had an entry. Loads that began before leave nothing behind."""
        return drive(self.engine.drop_many(self._threads, [check_key(key)]))[0]

    async def adelete(self, key: str) -> bool:
        """`delete`, awaited."""
        return (await self.engine.drop_many(self._aio, [check_key(key)]))[0]

    def delete_many(self, keys: Iterable[str]) -> int:
        """Drops many keys in one round trip a tier; how many had an entry."""
        return sum(drive(self.engine.drop_many(self._threads, check_keys(keys))))

    async def adelete_many(self, keys: Iterable[str]) -> int:
        """`delete_many`, awaited."""
        return sum(await self.engine.drop_many(self._aio, check_keys(keys)))

    def touch(self, key: str, ttl: float | timedelta | None) -> bool:
        """Gives a fresh entry a new life of ``ttl`` seconds from now; False where there is none."""
        return drive(self.engine.touch(self._threads, check_key(key), seconds("ttl", ttl, none=True)))

    async def atouch(self, key: str, ttl: float | timedelta | None) -> bool:
        """`touch`, awaited."""
        return await self.engine.touch(self._aio, check_key(key), seconds("ttl", ttl, none=True))

    def incr(self, key: str, delta: float = 1) -> float:
        """Adds to a fresh number, atomically; its life stays.

        Raises:
            MissingKeyError: there is no fresh entry.
            EncodeError: the entry is no number.
        """
        return drive(self.engine.incr(self._threads, check_key(key), delta))

    async def aincr(self, key: str, delta: float = 1) -> float:
        """`incr`, awaited."""
        return await self.engine.incr(self._aio, check_key(key), delta)

    def invalidate_tags(self, *tags: str) -> None:
        """Everything that carries one of these tags is invalid once this returns, however much it is."""
        drive(self.engine.invalidate_tags(self._threads, [check_tag(tag) for tag in tags]))

    async def ainvalidate_tags(self, *tags: str) -> None:
        """`invalidate_tags`, awaited."""
        await self.engine.invalidate_tags(self._aio, [check_tag(tag) for tag in tags])

    def clear(self) -> None:
        """Drops every entry of this namespace in every tier."""
        drive(self.engine.clear(self._threads))

    async def aclear(self) -> None:
        """`clear`, awaited."""
        await self.engine.clear(self._aio)

    # ------------------------------------------------------------------------------- looking and life cycle

    def inspect(self, key: str) -> Inspection:
        """What every tier holds for a key: state, remaining life, tags, leases; nothing is touched."""
        return drive(self.engine.inspect(self._threads, check_key(key)))

    async def ainspect(self, key: str) -> Inspection:
        """`inspect`, awaited."""
        return await self.engine.inspect(self._aio, check_key(key))

    def stats(self) -> dict[str, Any]:
        """Counters since the cache was made, and each tier's and buffer's own facts. Holds no keys and no credentials.

        A buffer that does not answer within half a second has an ``error`` in place of its figures.
        """
        parts = {name: one.behind for name, one in self._repositories.items() if one.behind is not None}
        if not parts:
            return self.engine.stats() | {"write_behind": {}}
        from cachewright.behind.operating import look_at

        return self.engine.stats() | {"write_behind": look_at(parts)}

    async def astats(self) -> dict[str, Any]:
        """`stats`, awaited: an event loop need not wait for buffers."""
        return await self._aio.offload(self.stats)

    def connect(self, attempts: int = 3, wait: float = 1.0) -> Self:
        """Reaches every tier once, trying again as often as said, so that a wrong address shows at start.

        Raises:
            TierUnavailable: a tier could not be reached.
        """
        drive(self.engine.connect(self._threads, attempts, wait))
        return self

    async def aconnect(self, attempts: int = 3, wait: float = 1.0) -> Self:
        """`connect`, awaited."""
        await self.engine.connect(self._aio, attempts, wait)
        return self

    def close(self, timeout: float = 5.0) -> None:
        """Stops schedules, flushers and background work, and closes every connection. A later use opens anew.

        Called by a loader, it does not wait for loads: it would wait for itself.

        Args:
            timeout: seconds that each of these is given. A load that a thread runs behind its callers cannot be
                interrupted: past its time it is left alone (a `BackgroundFailed` event), and stores nothing.
        """
        drive(self._close_parts(self._threads, timeout))
        drive(self.engine.close(self._threads, timeout))

    async def aclose(self, timeout: float = 5.0) -> None:
        """`close`, awaited."""
        await self._close_parts(self._aio, timeout)
        await self.engine.aclose(self._aio, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


_CACHES: weakref.WeakSet[Cache] = weakref.WeakSet()


def _after_fork() -> None:
    for cache in _CACHES:
        cache.engine.after_fork()


os.register_at_fork(after_in_child=_after_fork)
