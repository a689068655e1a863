"""Sides of every chain. The helpers' assertions are to be as readable as the tests' own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.model.chain_machine", "tests.model.strategies_machine", "tests.model.sides"
)

from tests.model.sides import Side  # noqa: E402


@pytest.fixture
def make_side(
    chain: str, request: pytest.FixtureRequest, tmp_path: Path, namespace: str
) -> Callable[[asyncio.AbstractEventLoop, bool], Side]:
    """Makes a side of the chain, with nothing in it."""
    count = itertools.count()

    def url(tier: str, number: int) -> str:
        if tier == "memory":
            return "memory://"
        if tier == "sqlite":
            return f"sqlite:///{tmp_path}/{number}.db?timeout=30"
        names = {"cluster": "redis_cluster", "memcached": "memcached_server"}
        return f"{request.getfixturevalue(names.get(tier, f'{tier}_server')).url}?timeout=30"

    def make(loop: asyncio.AbstractEventLoop, awaits: bool) -> Side:
        number = next(count)
        urls = [url(tier, number) for tier in chain.split(" > ")]
        return Side(urls, f"{namespace}.{number}", loop, awaits=awaits, buffer=f"{tmp_path}/b{number}.db")

    return make
