"""What the type checkers must see, and what they must refuse. Never run; `test_typing.py` has it checked.

A line that must be refused carries ``type: ignore`` with mypy's code and ``pyright: ignore`` with pyright's rule; both
checkers report one that is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type

from cachewright import (
    BufferedWrite,
    Cache,
    CachedFunction,
    CacheInfo,
    CeleryFlusher,
    Entry,
    FlusherStats,
    Inspection,
    Refresh,
    RefreshView,
    Repository,
    Retry,
    WarmReport,
    WriteBehind,
    compat,
    current_load,
)


@dataclass
class User:
    id: int
    name: str


cache = Cache("memory://?max_entries=10", "redis://localhost", namespace="shop", ttl=timedelta(minutes=1))


# Functions


@cache.cached
def bare(user_id: int) -> User:
    return User(user_id, "")


@cache.cached(ttl=30, key="user:{user_id}", tags=["users"], stale_if_error=3600, retries=Retry(2))
def get_user(user_id: int, *, full: bool = False) -> User | None:
    return None


@cache.cached(ttl=None)
async def find(name: str, limit: int = 10) -> list[User]:
    return []


def functions() -> None:
    assert_type(bare(1), User)
    assert_type(bare(user_id=1), User)
    assert_type(get_user(1), User | None)
    assert_type(get_user(1, full=True), User | None)
    assert_type(get_user.invalidate(1, full=True), bool)
    assert_type(get_user.refresh(1), User | None)
    assert_type(get_user.inspect(1), Inspection)
    assert_type(get_user.key_for(user_id=1), str)
    assert_type(get_user.cache_info(), CacheInfo)
    assert_type(get_user.cache_info().hits, int)
    assert_type(get_user.__name__, str)
    as_callable: Callable[[int], User] = bare
    as_callable(1)
    get_user.cache_clear()

    bare("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bare()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    get_user(1, True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    get_user(1, partial=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    get_user.invalidate()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    get_user.invalidate("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    get_user.refresh("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    get_user.key_for()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    get_user.forget(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def coroutines() -> None:
    assert_type(await find("ada"), list[User])
    assert_type(await find("ada", limit=3), list[User])
    assert_type(await find.ainvalidate("ada", limit=3), bool)
    assert_type(await find.arefresh("ada"), list[User])
    assert_type(await bare.arefresh(1), User)
    assert_type(await find.ainspect("ada"), Inspection)
    assert_type(find.key_for("ada"), str)
    awaitable: Callable[[str], Coroutine[Any, Any, list[User]]] = find
    await awaitable("ada")
    await find.acache_clear()

    await find(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await find.ainvalidate(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await find.arefresh()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


# Warming and schedules


@cache.cached(refresh_every={"cron": "0 6 * * *", "spread": 60}, refresh_for=["EUR", ("USD",)])
def rate(currency: str) -> float:
    return 1.0


def show(done: int, total: int | None, failed: int) -> None: ...


async def ahead() -> None:
    assert_type(cache.warm(["k"], load_many=lambda keys: dict.fromkeys(keys, 1)), WarmReport[str])
    assert_type(await cache.awarm(["k"], len, concurrency=2, progress=show, ttl=5), WarmReport[str])
    assert_type(cache.warm(["k"], len).failed, dict[str, Exception])
    assert_type(rate.warm(["EUR"], progress=show), WarmReport[str])
    assert_type(await find.awarm([("ada", 3)]), WarmReport[str])
    assert_type(rate.keep_fresh("EUR"), Refresh)
    assert_type(await find.akeep_fresh("ada"), Refresh)
    assert_type(cache.refresh_every("*/5 * * * *", "k", int, spread=5), Refresh)
    assert_type(rate.inspect("EUR").refresh, RefreshView | None)

    cache.warm(["k"], len, cocurrency=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    cache.warm([1], len)  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    rate.keep_fresh(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Methods


class Service:
    @cache.cached(ttl=30, ignore=("self",))
    def user(self, user_id: int) -> User:
        return User(user_id, "")

    @cache.cached(ignore=("self",))
    async def users(self, name: str) -> list[User]:
        return []

    @cache.cached
    @staticmethod
    def total(group: str) -> int:
        return 0


async def methods(service: Service) -> None:
    assert_type(service.user(1), User)
    assert_type(service.user.invalidate(1), bool)
    assert_type(service.user.key_for(1), str)
    assert_type(Service.user(service, 1), User)
    assert_type(await service.users("ada"), list[User])
    assert_type(await service.users.arefresh("ada"), list[User])
    assert_type(await service.users.ainvalidate("ada"), bool)
    assert_type(Service.total("staff"), int)
    bound: CachedFunction[[int], User] = service.user
    bound(1)

    service.user("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    service.user.invalidate()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await service.users(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Service.total(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Plain keys


async def keys() -> None:
    cache.set("k", 1, ttl=timedelta(seconds=5), tags=["a", "b"])
    cache.set_many({"k": 1, "l": None}, jitter=0.0)
    assert_type(cache.add("k", 1), bool)
    assert_type(cache.delete("k"), bool)
    assert_type(cache.delete_many(["k"]), int)
    assert_type(cache.touch("k", 5), bool)
    assert_type(cache.get_many(["k"]), dict[str, Any])
    assert_type(await cache.adelete("k"), bool)
    assert_type(await cache.aget_many(["k"]), dict[str, Any])
    assert_type(cache.connect(), Cache)
    with cache as entered:
        assert_type(entered, Cache)
    async with cache as awaited:
        assert_type(awaited, Cache)

    cache.set("k", 1, tll=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    cache.set("k", 1, ttl="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.get(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    cache.get_or_set("k", 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Cache("memory://", on_outage="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Repositories


def load_user(user_id: int) -> User | None:
    return None


async def load_user_later(user_id: int) -> User:
    return User(user_id, "")


def load_users(user_ids: list[int]) -> dict[int, User]:
    return {}


def save_user(user_id: int, user: User) -> None:
    return None


async def repositories() -> None:
    users = cache.repository("user", load=load_user, save=save_user, ttl=60)
    assert_type(users.get(1), User | None)
    assert_type(users.get_many([1, 2]), dict[int, User | None])
    assert_type(users.key_for(1), str)
    assert_type(users.invalidate(1), bool)
    assert_type(users.warm([1]), WarmReport[int])
    assert_type(await users.awarm(range(3), batch_size=5), WarmReport[int])
    users.put(1, User(1, "Ada"))
    users.put_many({1: User(1, "Ada")})
    users.delete(1)
    users.flush(timeout=1)
    assert_type(users.dirty(limit=10), list[BufferedWrite])
    assert_type(await users.adirty(), list[BufferedWrite])
    assert_type(users.dead_letters(), list[BufferedWrite])
    assert_type(await users.adead_letters(limit=10), list[BufferedWrite])
    users.replay(1)
    await users.areplay(1)
    assert_type(users.discard(1), BufferedWrite)
    assert_type(await users.adiscard(1), BufferedWrite)
    assert_type(users.behind_stats(), FlusherStats)
    assert_type(await users.abehind_stats(), FlusherStats)
    assert_type(users.behind_stats().buffer.dirty, int)
    assert_type(cache.repositories, Mapping[str, Repository[Any, Any]])
    assert_type(cache.stats(), dict[str, Any])
    assert_type(await cache.astats(), dict[str, Any])
    WriteBehind(flusher=CeleryFlusher(queue="hints", queue_type="quorum", sweep=timedelta(seconds=5)))
    CeleryFlusher(queue_type="stream")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    users.replay("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    users.discard("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    later = cache.repository("user", load=load_user_later, writes="around")
    assert_type(await later.aget(1), User)
    assert_type(await later.aget_many([1]), dict[int, User])
    many = cache.repository("user", load_many=load_users)
    assert_type(many.get(1), User)

    users.get("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    users.put(1, "Ada")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await later.aput(1, None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def number() -> int:
    return 1


def named() -> Entry[str]:
    return Entry("x", ttl=3)


def renewed() -> str:
    load = current_load()
    if load is None:
        return "x"
    load.set(ttl=3, tags="t", note={"etag": "e"}, store=True)
    load.set(tll=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    load.set(ttl="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return load.of("k").not_modified(stale_if_error=5)


async def awaited_number() -> int:
    return 1


async def awaited_named() -> Entry[str]:
    return Entry("x")


async def loaders() -> None:
    """What a loader returns, bare or as an `Entry`, awaited or not, is what comes back."""
    assert_type(cache.get_or_set("k", number), int)
    assert_type(cache.get_or_set("k", named), str)
    assert_type(cache.get_or_set("k", renewed), str)
    assert_type(await cache.aget_or_set("k", awaited_number), int)
    assert_type(await cache.aget_or_set("k", awaited_named), str)
    assert_type(await cache.aget_or_set("k", number), int)
    assert_type(cache.get_or_set_many(["k"], lambda keys: dict.fromkeys(keys, 1)), dict[str, int])


class Shop:
    @cache.cached
    @staticmethod
    def by_name(x: int) -> str:
        return str(x)


def classes() -> None:
    """``@cached`` above ``@staticmethod`` keeps what a caller sees; above ``@classmethod`` mypy does not look."""
    assert_type(Shop.by_name(1), str)
    assert_type(cache.get("a", type=Shop), Shop | None)
    assert_type(cache.get("a", 1, type=Shop), Shop | int)


# As functools


@compat.lru_cache(maxsize=10, typed=True)
def cube(n: int, *, exact: bool = True) -> int:
    return n**3


@compat.lru_cache
def halve(n: int) -> float:
    return n / 2


@compat.cache
def name_of(user: User) -> str:
    return user.name


class Shelf:
    @compat.lru_cache(maxsize=None)
    def book(self, number: int) -> str:
        return ""

    @staticmethod
    @compat.cache
    def size(number: int) -> int:
        return number


def as_functools() -> None:
    assert_type(cube(2, exact=False), int)
    assert_type(halve(1), float)
    assert_type(name_of(User(1, "")), str)
    assert_type(cube.__wrapped__(2), int)
    assert_type(cube.cache_info(), CacheInfo)
    assert_type(cube.cache_parameters(), dict[str, Any])
    assert_type(Shelf().book(1), str)
    assert_type(Shelf().book.cache_info().hits, int)
    assert_type(Shelf.book(Shelf(), 1), str)
    assert_type(Shelf.size(1), int)
    plain: Callable[[int], float] = halve
    plain(1)
    halve.cache_clear()

    cube("2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    halve(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Shelf().book("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    compat.lru_cache("2")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
