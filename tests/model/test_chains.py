"""Every chain of tiers lives as the reference says, on both faces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.strategies_machine import StrategiesMachine

CHAINS = [
    "memory",
    "sqlite",
    "redis",
    "cluster",
    "memcached",
    "memory > redis",
    "memory > sqlite",
    "redis > memcached",
    "memory > redis > memcached",
]
# In `make test`; connections to many servers take longest.
EXAMPLES = {"memory": 25, "memory > sqlite": 15, "cluster": 5}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("examples", [None, pytest.param(300, marks=pytest.mark.soak)])
def test_a_chain_does_as_the_reference(
    chain: str, examples: int | None, make_side: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "cachewright")  # failing loaders are all day's work here
    # A class of its own for each chain: what failed is found again under its name.
    machine = type(f"Machine of {chain}", (StrategiesMachine,), {"make_side": staticmethod(make_side)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples or EXAMPLES.get(chain, 10),
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )
