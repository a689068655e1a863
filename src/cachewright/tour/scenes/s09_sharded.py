"""Scene 9: keys over the shards of a cluster, and a shard whose primary is killed while its keys are read."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from cachewright import Cache
from cachewright.errors import MissingExtraError
from cachewright.keys import physical_key
from cachewright.tiers.embedded_cluster import ClusterProcesses
from cachewright.tour.origin import Database, User
from cachewright.tour.stage import Scene, Stage
from cachewright.tour.words import count, duration

CALLERS = 30
KEYS = 60
LONGEST = 12.0


def ours(cache: Cache, database: Database) -> Any:
    """What a user writes: the cache is ``Cache("redis+cluster://host:7000,host:7001")``."""

    @cache.cached(key="user:{user_id}", ttl=60)
    def get_user(user_id: int) -> User:
        return database.load_user(user_id)

    return get_user


def textbook(cluster: Any, database: Database) -> Callable[[str, int], User]:
    """The textbook's."""

    def get_user(key: str, user_id: int) -> User:
        text = cluster.get(key)  # no answer while the shard fails over
        if text is not None:
            return User(**json.loads(text))
        user = database.load_user(user_id)  # no lock
        cluster.set(key, json.dumps(vars(user)))  # no TTL
        return user

    return get_user


def run(stage: Stage) -> None:
    """Plays it."""
    engine = stage.engines["cluster"]
    cache, client = stage.cache(engine.url), _client(stage)
    get_user, theirs = ours(cache, stage.origin), textbook(client, stage.origin)
    _stampede(stage, get_user, theirs, client)
    if not isinstance(engine.server, ClusterProcesses):
        stage.ours.note("tour", "the cluster's URL was given: none of its nodes is killed")
        return
    _spread(stage, cache, engine.server, client)
    _failover(stage, cache, engine.server, get_user, theirs)


def _client(stage: Stage) -> Any:
    try:
        from redis.cluster import RedisCluster
    except ImportError as error:
        raise MissingExtraError("the tour's textbook versions", "redis") from error
    url = stage.engines["cluster"].url
    head, _, nodes = url.partition("://")[2].rpartition("@")
    login = f"{head}@" if head else ""
    client = RedisCluster.from_url(f"redis://{login}{nodes.partition(',')[0]}", decode_responses=True)
    stage.stack.callback(client.close)
    return client


def _stampede(stage: Stage, get_user: Any, theirs: Any, client: Any) -> None:
    stage.say(f"{CALLERS} callers ask for one cold key of the cluster")
    key = stage.key("user:91")
    mine = stage.loads(lambda: stage.ours.crowd(CALLERS, get_user, 91))
    their_loads = stage.loads(lambda: stage.textbook.crowd(CALLERS, theirs, key, 91))
    life = stage.ours.tiers(get_user.inspect, 91).tiers[0].fresh_for
    their_life = client.ttl(key)
    client.delete(key)
    stage.compare(
        f"{CALLERS} callers, one cold key",
        f"{count(their_loads, 'load')}; then it lives {'for ever' if their_life == -1 else f'{their_life} s'}",
        f"{count(mine, 'load')}; then it lives {life:.0f} s",
        mine == 1 and their_loads > 1 and life is not None and life <= 60 and their_life == -1,
    )


def _spread(stage: Stage, cache: Cache, cluster: ClusterProcesses, client: Any) -> None:
    stage.say(f"{KEYS} keys over the shards")
    keys = [f"item:{n}" for n in range(KEYS)]
    stage.ours.call(cache.set_many, dict.fromkeys(keys, 1), ttl=60)
    found = len(stage.ours.call(cache.get_many, keys, note="one batch for each node"))
    shards = Counter(cluster.primary_of(physical_key(stage.namespace, "k", key)).port for key in keys)
    words = ", ".join(f"{number} on :{port}" for port, number in sorted(shards.items()))
    refused = stage.textbook.attempt(client.mget, [stage.key(key) for key in keys])
    stage.ours.note("cluster", f"{KEYS} keys over {len(shards)} shards", words)
    stage.compare(
        f"{KEYS} keys in one call",
        f"{type(refused).__name__}" if isinstance(refused, Exception) else "answered",
        f"{found} found: {words}",
        found == KEYS and isinstance(refused, Exception) and len(shards) == cluster.primaries,
    )


def _failover(stage: Stage, cache: Cache, cluster: ClusterProcesses, get_user: Any, theirs: Any) -> None:
    user_id = 92
    ours_at = physical_key(stage.namespace, "k", f"user:{user_id}")
    primary = cluster.primary_of(ours_at)
    # A key of the same shard, so that both suffer the same death.
    key = next(
        name for n in range(10_000) if cluster.primary_of(name := stage.key(f"user:{user_id}:{n}")) is primary
    )
    get_user(user_id), theirs(key, user_id)
    stage.say("the primary of a shard is killed while its keys are read")
    over = threading.Event()
    errors: list[Exception | None] = []
    reader = threading.Thread(
        target=lambda: errors.extend(
            stage.textbook.repeat(over.is_set, theirs, key, user_id, who="reader of the shard")
        ),
        daemon=True,
    )
    other = _other_shard(stage, cluster, primary)
    get_user(other)
    killed = threading.Timer(0.3, cluster.kill_primary, [ours_at])
    began = stage.now()
    reader.start()
    killed.start()
    back: list[float] = []
    mine = stage.ours.repeat(
        lambda: _healed(stage, cache, began, user_id, back), get_user, user_id, who="reader of the shard"
    )
    spans = stage.result.ours.steps[-1].spans
    slowest = max(span.seconds for span in spans)
    loaded = sum(span.kind == "load" for span in spans)
    over.set()
    reader.join(LONGEST + 20)
    stage.ours.note("cluster", f"SIGKILL of {primary.address}", at=began + 0.3, result="kill")
    stage.ours.call(get_user, other, note="of a shard that lives on")
    stage.ours.call(get_user, user_id, note="from the shard's new primary")
    stage.ours.tiers(get_user.inspect, user_id)
    failed = [error for error in errors if error is not None]
    their_slowest = max(span.seconds for span in stage.result.textbook.steps[-1].spans)
    what = type(failed[0]).__name__ if failed else "no error"
    stage.compare(
        "reads while the shard has no primary",
        f"{len(failed)} of {len(errors)} failed ({what}); the slowest took {duration(their_slowest)}",
        f"{len(mine) - sum(map(bool, mine))} of {len(mine)} answered, {loaded} by the loader; "
        f"the slowest took {duration(slowest)}",
        not any(mine) and loaded > 0 and bool(failed or their_slowest > 1.0),
    )
    stage.compare(
        "the shard after the failover",
        "is used again" if errors and errors[-1] is None else "is not used again",
        f"is used again {back[0] - 0.3:.1f} s after the kill" if back else "is not used again",
        bool(back),
    )


def _other_shard(stage: Stage, cluster: ClusterProcesses, primary: Any) -> int:
    return next(
        n
        for n in range(93, 400)
        if cluster.primary_of(physical_key(stage.namespace, "k", f"user:{n}")) is not primary
    )


def _healed(stage: Stage, cache: Cache, began: float, user_id: int, back: list[float]) -> bool:
    """The shard has answered for the key again, after its primary was killed."""
    elapsed = stage.now() - began
    if elapsed > LONGEST:
        return True
    if elapsed < 1.0:
        return False
    if cache.inspect(f"user:{user_id}").state == "fresh":
        back.append(elapsed)
        time.sleep(0.2)
        return True
    return False


SCENE = Scene(
    number=9,
    name="sharded",
    about=(
        "Keys are spread over the shards of a Redis Cluster; each has its TTL and its lease as everywhere else. "
        "While a shard fails over, its keys are answered by the loader, and the other shards go on."
    ),
    bug="No TTL, no lock, and no answer while a shard fails over.",
    needs=("cluster",),
    ours=(ours,),
    textbook=(textbook,),
    run=run,
)
