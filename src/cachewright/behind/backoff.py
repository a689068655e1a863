"""How long a failed record waits: tenacity's exponential wait with jitter."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenacity.wait import wait_base

__all__ = ["Backoff", "pause_after"]


def pause_after(failures: int, poll: float, longest: float, luck: float) -> float:
    """How long a flusher rests whose rounds fail, since its buffer is away, say.

    Args:
        failures: rounds that failed in a row; no power of it may be taken, an outage of half an hour has a thousand.
        poll: its usual rest.
        longest: the longest rest.
        luck: from 0 to 1.
    """
    return min(longest, poll * 2.0 ** min(failures, 16)) * (0.5 + luck / 2)


class Backoff:
    """Seconds before the next try. tenacity is imported at the first failure, not before.

    Args:
        first: pause after the first failure; doubled each time, and up to as much again at random.
        longest: the longest pause.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._wait: wait_base | None = None

    def __call__(self, attempt: int, luck: float) -> float:
        """The pause after that many failures (1 or more); ``luck``, from 0 to 1, is the caller's own jitter.

        The caller's, because a simulation must repeat it.
        """
        import tenacity

        if self._wait is None:
            self._wait = tenacity.wait_exponential(self._first, self._longest)
        # only the attempt's number is looked at
        state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
        state.attempt_number = attempt
        return min(self._longest, float(self._wait(state)) + luck * self._first)
