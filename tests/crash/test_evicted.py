"""A dirty key that a full Redis evicted, in every tier: reads get its newest state from the buffer, not the old row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachewright.testing.servers import RedisServer
from tests.crash.harness import ROOT, environment
from tests.crash.shop import Order, Shop

IDS = ["changed", "deleted", "new"]
NEWEST = {"changed": "new value", "deleted": None, "new": "its first"}

# Another process: no memory of its own yet, the same tier and the same buffer.
READER = """
import json, sys
from tests.crash.shop import Order, Shop
shop = Shop(Order.parse(sys.argv[1]))
print(json.dumps([{id: shop.items.get(id) for id in json.loads(sys.argv[2])},
                  shop.items.get_many(json.loads(sys.argv[2]))]))
shop.cache.close()
shop.origin.close()
"""


@pytest.fixture(params=["sqlite", "redis"])
def order(
    request: pytest.FixtureRequest, tmp_path: Path, own_redis: Callable[..., RedisServer]
) -> tuple[Order, RedisServer]:
    """A small Redis as the tier, and a buffer elsewhere."""
    tier = own_redis(options={"maxmemory": "3mb", "maxmemory-policy": "allkeys-lru"})
    buffer = f"sqlite:///{tmp_path}/buffer.db"
    if request.param == "redis":
        buffer = own_redis(options={"appendonly": "yes"}).url
    order = Order(
        origin=f"sqlite:///{tmp_path}/origin.db",
        buffer=buffer,
        tiers=["memory://?max_entries=4", f"{tier.url}?timeout=5"],
        flusher="none",
    )
    return order, tier


@pytest.fixture
def shop(order: tuple[Order, RedisServer]) -> Iterator[Shop]:
    """Two rows at the origin; both change, and one is made, and nobody flushes."""
    shop = Shop(order[0])
    shop.origin.create()
    shop.origin.save([("changed", "old value", 1), ("deleted", "old value", 1)], ordered=False)
    assert shop.items.get_many(IDS) == {"changed": "old value", "deleted": "old value", "new": None}
    shop.items.put("changed", "in between")
    shop.items.put("changed", "new value")
    shop.items.delete("deleted")
    shop.items.put("new", "its first")
    assert shop.items.get_many(IDS) == NEWEST, "the tiers hold them now"
    yield shop
    shop.close()


def evict(shop: Shop, tier: RedisServer) -> None:
    """Fills the tiers until nothing of those keys is left in any."""
    for number in range(20_000):
        shop.cache.set(f"filler{number}", os.urandom(2000))
        # KEYS, for it does not make a key newer as a look at it would
        if number % 100 == 0 and tier.ask("KEYS", f"*{shop.items.name}:*") == []:
            break
    else:
        pytest.fail("the tier evicted nothing")
    for turn in range(1000):  # memory lets a flood pass by; what is read again and again, it keeps instead
        name = f"filler{number - turn % 4}"
        if shop.cache.get(name) is None:  # the tier may have evicted it too
            shop.cache.set(name, b"again")
        if {view.state for id in IDS for view in shop.items.inspect(id).tiers} == {"absent"}:
            break
    else:
        pytest.fail("memory evicted nothing")
    assert int(tier.info("stats")["evicted_keys"]) > 0


def read_elsewhere(order: Order) -> Any:
    """Both ways of reading, in another process."""
    words = [sys.executable, "-c", READER, order.dump(), json.dumps(IDS)]
    done = subprocess.run(
        words, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_dirty_key_evicted_everywhere_is_read(shop: Shop, order: tuple[Order, RedisServer]) -> None:
    evict(shop, order[1])
    assert {id: shop.items.get(id) for id in IDS} == NEWEST
    evict(shop, order[1])
    assert shop.items.get_many(IDS) == NEWEST
    evict(shop, order[1])
    assert {id: shop.items.refresh(id) for id in IDS} == NEWEST
    assert shop.origin.load_many(IDS) == {"changed": "old value", "deleted": "old value"}, "not flushed yet"


def test_a_dirty_key_evicted_everywhere_is_read_in_another_process(
    shop: Shop, order: tuple[Order, RedisServer]
) -> None:
    evict(shop, order[1])
    assert read_elsewhere(order[0]) == [NEWEST, NEWEST]
    shop.items.flush(60)
    assert shop.origin.load_many(IDS) == {"changed": "new value", "new": "its first"}
    assert read_elsewhere(order[0]) == [NEWEST, NEWEST]
