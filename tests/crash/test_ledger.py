"""The judge of the crash runs: it lets every legal end pass and sees each wrong one."""

from __future__ import annotations

import pytest

from tests.crash.ledger import Ledger
from tests.crash.origin import Journaled

LINES = """
    put w0.1 k 1.0
    ack w0.1 2.0
    put w0.2 k 3.0
    ack w0.2 4.0
    put w1.1 k 3.5
    ack w1.1 5.0
    put w0.3 k 6.0
    put w2.1 other 1.0
    not w2.1 2.0
    put w2.2 gone 1.0
    ack w2.2 2.0
    del w2.3 gone 3.0
    ack w2.3 4.0
"""
# w0.2 and w1.1 overlap; w0.3 was cut off by the kill of w0 at 7.0; w2.1 was refused; "gone" ends deleted.
KEYS = ["k", "other", "gone", "never"]


@pytest.fixture
def ledger() -> Ledger:
    """What the lines above tell."""
    ledger = Ledger()
    for line in LINES.split("\n"):
        if line.strip():
            ledger.line(line)
    ledger.died("w0", 7.0)
    return ledger


@pytest.mark.parametrize("value", ["w0.2", "w1.1", "w0.3"])
def test_legal_ends(ledger: Ledger, value: str) -> None:
    ledger.check_rows({"k": value}, KEYS)
    assert ledger.acks == 5


@pytest.mark.parametrize(
    "rows",
    [
        {"k": "w0.1"},  # an older acknowledged write
        {},  # lost
        {"k": "w9.9"},  # nobody wrote it
        {"k": "w2.2"},  # of another key
        {"k": "w0.2", "other": "w2.1"},  # refused
        {"k": "w0.2", "gone": "w2.2"},  # deleted since
        {"k": "w0.2", "never": "w0.2"},
    ],
)
def test_wrong_ends(ledger: Ledger, rows: dict[str, str]) -> None:
    with pytest.raises(AssertionError):
        ledger.check_rows(rows, KEYS)


def test_a_write_that_follows_a_cut_off_one_makes_it_old(ledger: Ledger) -> None:
    ledger.line("put w3.1 k 8.0")
    ledger.check_rows({"k": "w0.3"}, KEYS)
    ledger.line("ack w3.1 9.0")
    with pytest.raises(AssertionError):
        ledger.check_rows({"k": "w0.3"}, KEYS)


@pytest.mark.parametrize(
    "line", ["got k w0.1 2.5 3.2", "got k w1.1 5.5 6.0", "got k - 0.5 1.5", "got gone - 3.5 4.5", "got k w0.3 6.5 7"]
)  # fmt: skip
def test_right_reads(ledger: Ledger, line: str) -> None:
    ledger.line(line)
    ledger.check_reads()


@pytest.mark.parametrize(
    "line",
    [
        "got k w0.1 5.5 6.0",  # old
        "got k - 5.5 6.0",  # nothing
        "got k w0.3 5.0 5.5",  # before it was written
        "got gone w2.2 4.5 5.0",  # deleted
        "got other w2.1 2.5 3.0",  # refused
    ],
)
def test_wrong_reads(ledger: Ledger, line: str) -> None:
    ledger.line(line)
    with pytest.raises(AssertionError):
        ledger.check_reads()


def saved(*entries: tuple[str, str | None, int, bool]) -> list[Journaled]:
    return [Journaled(id, value, sequence, kept, 1) for id, value, sequence, kept in entries]


def test_right_journals(ledger: Ledger) -> None:
    journal = saved(
        ("k", "w0.1", 1, True), ("k", "w1.1", 2, True), ("k", "w1.1", 2, True), ("k", "w0.2", 3, True),
        ("k", "w0.1", 1, False), ("gone", "w2.2", 4, True), ("gone", None, 5, True),
    )  # fmt: skip
    assert ledger.check_journal(journal) == 1


@pytest.mark.parametrize(
    "journal",
    [
        saved(("k", "w0.2", 2, True), ("k", "w0.1", 1, True)),  # back to an older one
        saved(("k", "w0.1", 3, True), ("k", "w0.2", 2, False)),  # the sequence went back
        saved(("k", "w0.1", 1, True), ("k", "w0.2", 1, True)),  # one sequence, given twice
        saved(("other", "w2.1", 1, True)),  # refused
        saved(("other", "w0.1", 1, True)),  # of another key
    ],
)
def test_wrong_journals(ledger: Ledger, journal: list[Journaled]) -> None:
    with pytest.raises(AssertionError):
        ledger.check_journal(journal)
