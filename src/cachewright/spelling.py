"""The nearest right spelling of a word, for error messages."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the option nearest to ``word``, or ``""`` when none is near.

    Case and ``-``/``_`` are not held against the writer.
    """
    import difflib  # only for who made a mistake

    def plain(text: str) -> str:
        return text.casefold().replace("-", "_")

    by_plain: dict[str, str] = {}
    for option in options:
        by_plain.setdefault(plain(option), option)
    near = difflib.get_close_matches(plain(word), by_plain, n=1, cutoff=0.6)
    return f" (did you mean {by_plain[near[0]]!r}?)" if near else ""
