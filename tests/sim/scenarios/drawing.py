"""What scenarios draw their plans from."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from cachewright.testing.sim.ops import Cancelled
from cachewright.testing.sim.plan import Client, Disaster, DisasterKind, Op

CHAINS = (("redis",), ("redis", "redis2"), ("memory", "redis"), ("memory", "redis", "redis2"), ("memcached",))
LOCAL_TTLS = (0.01, 5.0)  # the short one lets others' changes be looked for behind memory too


def ops_of(
    random: Random, count: int, choices: list[Op], cancels: float = 0.0, longest: float = 0.1
) -> tuple[tuple[float, Op], ...]:
    """Operations with pauses between them, of ``longest`` seconds at most: mostly none, so that things meet."""
    ops = []
    for _ in range(count):
        pause = random.choice((0.0, 0.0, 0.0, random.random() * 0.01, random.random() * longest))
        op = random.choice(choices)
        if random.random() < cancels:
            op = Cancelled(op, random.random() * 0.05)
        ops.append((pause, op))
    return tuple(ops)


def clients_of(random: Random, processes: int, choices: list[Op], cancels: float = 0.0) -> tuple[Client, ...]:
    """Two to five clients of one to four operations each."""
    return tuple(
        Client(random.randrange(processes), ops_of(random, random.randint(1, 4), choices, cancels))
        for _ in range(random.randint(2, 5))
    )


def disasters_of(
    random: Random,
    most: int,
    kinds: Sequence[DisasterKind],
    targets: Sequence[int | str],
    within: float = 0.2,
) -> tuple[Disaster, ...]:
    """Up to so many disasters, short ones and ones that outlast every lease."""
    return tuple(
        Disaster(
            random.random() * within, random.choice(kinds), random.choice(targets), random.choice((0.2, 7.0))
        )
        for _ in range(random.randint(0, most))
    )
