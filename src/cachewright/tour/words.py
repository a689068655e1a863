"""How numbers and results are put into words, the same in every rendering."""

from __future__ import annotations

from cachewright.tour.model import Step, TierRow, TourResult

__all__ = ["count", "duration", "life", "outcome", "result_word", "tier_line", "verdict"]


def count(number: int, noun: str) -> str:
    """``1 load``, ``3 loads``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """A time in three figures."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s"


def life(row: TierRow) -> str:
    """``fresh, 29.3 s left``."""
    if row.state in ("absent", "unavailable"):
        return row.state
    if row.left is None:
        return f"{row.state}, no end"
    if row.left < 0:
        return f"{row.state}, for {-row.left:.1f} s"
    return f"{row.state}, {row.left:.1f} s left"


def outcome(result: TourResult) -> str:
    """The tour in one line."""
    failed = [str(scene.number) for scene in result.scenes if not scene.ok]
    named = f"{'scene' if len(failed) == 1 else 'scenes'} {', '.join(failed)} FAILED"
    return f"{named if failed else count(len(result.scenes), 'scene') + ' ok'} in {result.seconds:.0f} s"


def result_word(step: Step) -> str:
    """The result, where it says more than the call does."""
    return "" if step.result in ("note", "kill") else step.result


def tier_line(step: Step) -> str:
    """All tiers in one line, nearest first."""
    return " · ".join(f"{row.tier}: {life(row)}" for row in step.tiers)


def verdict(ok: bool) -> str:
    """What is said beside what we did; the textbook's outcome is never as promised."""
    return "✓ as promised" if ok else "✗ NOT AS PROMISED"
