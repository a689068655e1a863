"""The fuzzer in small for every run and in large for `make soak`, and proof that its judge judges.

A failure prints the input. ``CACHEWRIGHT_FUZZ_SEED=N`` runs the inputs of that seed again.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewright.codecs.base import make_context
from cachewright.codecs.compress import COMPRESSORS
from cachewright.codecs.pipeline import make_pipeline
from cachewright.keys import memcached_key, physical_key


def _load() -> ModuleType:
    name = "cachewright_hostile_fuzz"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("fuzz.py"))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


fuzz: Any = _load()
IN_TESTS = 20_000
IN_SOAK = 1_000_000


@pytest.fixture
def seed(capsys: pytest.CaptureFixture[str]) -> int:
    """A new one unless the environment names one; printed either way."""
    number = fuzz.chosen_seed()
    with capsys.disabled():
        print(f"\nfuzz: CACHEWRIGHT_FUZZ_SEED={number}", end=" ", flush=True)
    return number


def test_hostile_bytes(seed: int) -> None:
    figures = fuzz.fuzz(seed, IN_TESTS)
    assert figures.inputs >= IN_TESTS


@pytest.mark.soak
def test_a_million_hostile_bytes(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    figures = fuzz.fuzz(seed, IN_SOAK)
    assert figures.inputs >= IN_SOAK
    with capsys.disabled():
        print(f"\n{figures}", flush=True)


@pytest.mark.parametrize("name", list(fuzz.TARGETS))
def test_every_target_accepts_what_is_honest_and_refuses_what_is_not(name: str) -> None:
    """Else a target that refuses, or swallows, everything would find nothing."""
    figures = fuzz.fuzz(1, 400, [name])
    assert figures.outcomes.get("value", 0) > 0
    assert len(figures.outcomes) > 1, figures


def test_a_seed_makes_the_same_inputs_everywhere() -> None:
    for name, target in fuzz.TARGETS.items():
        one, two = Random(f"5/{name}"), Random(f"5/{name}")
        assert [target.make(one) for _ in range(20)] == [target.make(two) for _ in range(20)]


def test_a_failure_names_seed_target_and_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> str:
        raise IndexError("a parser's bug")

    monkeypatch.setitem(fuzz.TARGETS, "json", fuzz.TARGETS["json"]._replace(run=broken))
    with pytest.raises(fuzz.Failure, match="IndexError: a parser's bug") as caught:
        fuzz.fuzz(77, 10, ["json"])
    said = str(caught.value)
    assert "json (seed 77, input 0)" in said
    data = bytes.fromhex(said.split("bytes.fromhex('")[1].split("'")[0])
    rng = Random("77/json/0")
    assert data == fuzz.TARGETS["json"].make(rng)


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(data: bytes) -> str:
        while True:
            pass

    monkeypatch.setattr(fuzz, "CPU_LIMIT", 0.05)
    monkeypatch.setitem(fuzz.TARGETS, "json", fuzz.TARGETS["json"]._replace(run=hang))
    with pytest.raises(fuzz.Failure, match="met _Hang"):
        fuzz.fuzz(1, 1, ["json"])


# ------------------------------------------------------------------------------------------- what is honest, by hypothesis

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.text(st.characters(exclude_categories=()), max_size=5) | st.decimals(allow_nan=False) | st.uuids() | st.timedeltas()
)  # fmt: skip
HASHABLE = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.binary(max_size=8)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(HASHABLE | st.tuples(HASHABLE, HASHABLE), inner, max_size=5)
        | st.frozensets(HASHABLE, max_size=5)
    ),
    max_leaves=12,
)
PIPES = [
    make_pipeline(codec, compression, encryption, compression_threshold=1)
    for codec in ("msgpack", "json")
    for compression in (None, *COMPRESSORS)
    for encryption in (None, b"a" * 32)
]


@settings(max_examples=300)
@given(VALUES, st.text(max_size=8).filter(lambda text: text.isascii()))
def test_every_pipeline_gives_back_what_it_took(value: Any, key: str) -> None:
    context = make_context("shop", key)
    for pipe in PIPES:
        back = pipe.decode(*pipe.encode(value, context), context)
        assert back == value
        assert type(back) is type(value)


KEYS = st.text(min_size=1, max_size=300).filter(lambda text: text.isprintable() or text[0] != "\0")


@settings(max_examples=500)
@given(st.sampled_from(["a", "shop", "A.b-c_d"]), KEYS, st.sampled_from(["a", "shop", "A.b-c_d"]), KEYS)
def test_no_two_keys_meet(one: str, key: str, other: str, another: str) -> None:
    """Whatever the namespaces and the kinds: what differs for the user differs in the store, and on Memcached."""
    places = {
        (namespace, kind, name): physical_key(namespace, kind, name)
        for namespace, name in ((one, key), (other, another))
        for kind in ("k", "t")
    }
    assert len(set(places.values())) == len(places)
    assert len({memcached_key(place) for place in places.values()}) == len(places)
    assert all(0 < len(memcached_key(place)) <= 250 for place in places.values())
