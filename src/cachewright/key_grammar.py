"""What a key template may hold: parameters' plain names, kept apart so that no two calls make one key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import Formatter

from cachewright.errors import ConfigurationError
from cachewright.key_values import BARE, OPENERS
from cachewright.keys import shorten
from cachewright.spelling import did_you_mean

__all__ = ["listed", "parse_template", "refuse_ambiguous"]

_FIELD_START = re.compile(r"\s*(\w*)")


def listed(names: Sequence[str]) -> str:
    """Return the names for a message."""
    return ", ".join(names) or "no parameters"


def parse_template(template: str, names: Sequence[str], label: str) -> list[tuple[str, str | None]]:
    """Split a template into literals, each with the field that follows it; the last has none."""
    where = f"{label}: key template {shorten(template)}"
    if not template:
        raise ConfigurationError(f'{where} is empty; write one such as "user:{{user_id}}"')
    try:
        template.encode()
        parsed = list(Formatter().parse(template))
    except UnicodeEncodeError:
        raise ConfigurationError(f"{where} holds a lone surrogate, which UTF-8 cannot encode") from None
    except ValueError as error:
        raise ConfigurationError(
            f"{where}: {error}; a brace that is meant as such is written twice"
        ) from None
    pieces: list[tuple[str, str | None]] = []
    literal = ""
    nth = 0
    for text, field, spec, conversion in parsed:
        literal += text
        if field is None:
            continue
        if spec or conversion or field not in names:
            raise ConfigurationError(f"{where}: {_wrong_field(field, spec, conversion, nth, names)}")
        pieces.append((literal, field))
        literal = ""
        nth += 1
    pieces.append((literal, None))
    return pieces


def _wrong_field(field: str, spec: str | None, conversion: str | None, nth: int, names: Sequence[str]) -> str:
    written = f"{{{field}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
    match = _FIELD_START.match(field)
    start = match.group(1) if match else ""
    if start == field and start.isidentifier():
        if not (spec or conversion):
            return (
                f"{written} names no parameter{did_you_mean(field, names)}; the function has {listed(names)}"
            )
        rule = "a field has neither a format nor a conversion, which could make two values one key"
    elif not start or start.isdecimal():
        # By position: what stands there is what was meant.
        position = int(start) if start and len(start) < 4 else nth
        near = f" (did you mean '{{{names[position]}}}'?)" if position < len(names) else ""
        return f"{written} is not a name: a field is named after a parameter{near}; the function has {listed(names)}"
    else:
        rule = "a field is a parameter's plain name, without attributes or indexing"
    near = f" (did you mean '{{{start}}}'?)" if start in names else did_you_mean(start, names)
    return f"{written}: {rule}{near}; for more than that give key= a callable"


def refuse_ambiguous(pieces: Sequence[tuple[str, str | None]], template: str, label: str) -> None:
    """Refuse a template with which two calls could make one key.

    ``{a}{b}`` makes "abc" of ("ab", "c") and of ("a", "bc"), and ``{a}-{b}`` makes "x-y-z" of two calls too,
    for a word may hold ``-``. So between two fields must stand a character that no bare value holds, and
    the first such must not be one that can follow a mark. Then a key is read in one way only: a value
    that begins with ``"``, ``[``, ``{`` or ``@``, or has a mark, ends at the partner of its opener. Any other
    reaches, with the bare characters that begin the literal (their number is known), up to that
    character. After the last field comes a known text to the end of the key.
    """
    for position in range(1, len(pieces) - 1):
        literal = pieces[position][0]
        first = next((character for character in literal if character not in BARE), None)
        if first is None or first in OPENERS:
            left, right = pieces[position - 1][1], pieces[position][1]
            why = f"stands only {literal!r}, which a value may hold too" if literal else "stands nothing"
            raise ConfigurationError(
                f"{label}: key template {shorten(template)}: between {{{left}}} and {{{right}}} {why}, so two calls "
                f"could make one key; separate them by ':' or '/', as in '{{{left}}}:{{{right}}}'"
            )
