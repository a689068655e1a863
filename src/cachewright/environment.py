"""Options from ``CACHEWRIGHT_…`` environment variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cachewright.errors import ConfigurationError
from cachewright.spelling import did_you_mean

__all__ = ["read_environment"]

PREFIX = "CACHEWRIGHT_"


def _ttl(text: str) -> float | None:
    return None if text.strip().lower() in ("none", "never") else float(text)


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
        text.strip().lower()
    ]


_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "NAMESPACE": (str, "a name"),
    "TTL": (_ttl, "seconds, or 'none' for ever"),
    "JITTER": (float, "a share from 0 to 1"),
    "STALE_WHILE_REVALIDATE": (float, "seconds"),
    "STALE_IF_ERROR": (float, "seconds"),
    "NEGATIVE_TTL": (_ttl, "seconds"),
    "LOCAL_TTL": (float, "seconds"),
    "LEASE": (float, "seconds"),
    "SOFT_TIMEOUT": (float, "seconds"),
    "LOAD_TIMEOUT": (float, "seconds"),
    "RETRIES": (int, "a whole number"),
    "CODEC": (str, "a codec's name"),
    "COMPRESSION": (str, "a compression's name"),
    "ON_OUTAGE": (str, "'serve' or 'raise'"),
    "COPY": (_flag, "true or false"),
}
_OTHERS = ("TIERS", "BUFFER", "BROKER", "PICKLE_KEYS", "ENCRYPTION_KEYS")


def read_environment(environ: Mapping[str, str]) -> tuple[list[str], dict[str, Any]]:
    """The tier URLs and options that the environment names.

    Raises:
        ConfigurationError: a variable that names no option, or a value that cannot be read.
    """
    tiers = environ.get(f"{PREFIX}TIERS", "").split()
    for tier in tiers:
        # A comma within one URL parts the hosts of a cluster or of Memcached.
        if tier.endswith(",") or any("://" in part for part in tier.split(",")[1:]):
            raise ConfigurationError(f"{PREFIX}TIERS: separate URLs with spaces, not commas")
    options: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX)
        if name in ("TIERS", "BUFFER", "BROKER"):  # the last two are read where write-behind starts
            continue
        if name in ("PICKLE_KEYS", "ENCRYPTION_KEYS"):
            options[name.lower()] = _keys(variable, text)
            continue
        if name not in _READERS:
            known = [f"{PREFIX}{word}" for word in (*_READERS, *_OTHERS) if did_you_mean(name, [word])]
            raise ConfigurationError(f"{variable} names no option{did_you_mean(variable, known)}")
        read, expected = _READERS[name]
        try:
            options[name.lower()] = read(text)
        except (ValueError, KeyError):
            # Something long, or with an @, was meant for another variable and may be secret.
            shown = repr(text) if len(text) <= 20 and "@" not in text else "…"
            raise ConfigurationError(f"{variable}={shown}: expected {expected}") from None
    return tiers, options


def _keys(variable: str, text: str) -> list[bytes]:
    try:
        return [bytes.fromhex(part) for part in text.split()]
    except ValueError:
        raise ConfigurationError(f"{variable}: expected keys in hexadecimal, separated by spaces") from None
