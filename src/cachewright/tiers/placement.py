"""Which node of several holds a key: rendezvous (highest random weight) hashing over the nodes' names.

A node's weight for a key is the BLAKE2b of ``<node's name> NUL <key>`` with an 8-byte digest, read as a big-endian
number; the key lives on the node that weighs most. So the order in which the nodes were configured does not matter,
a node that is added takes only the keys that it now wins, and one that is removed gives up only its own. Names are
what the user configured: two processes that write one server's address differently would look for a key in two
places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cachewright.errors import ConfigurationError

__all__ = ["Placement"]


class Placement:
    """Finds a key's node among named nodes.

    Args:
        names: the nodes' names; at least one, no two alike.

    Raises:
        ConfigurationError: no names, or a name given twice (its keys would have two homes).
    """

    def __init__(self, names: Sequence[str]) -> None:
        if not names:
            raise ConfigurationError("no servers: give at least one")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(f"server {twice[0]!r} is given twice: give each server once")
        self.names = tuple(names)
        # Hashing the name once and copying the state costs half of hashing name and key anew.
        self._states = [hashlib.blake2b(name.encode() + b"\0", digest_size=8) for name in names]

    def node(self, key: bytes) -> int:
        """The index, in the order of ``names``, of the node that holds ``key``."""
        if len(self._states) == 1:
            return 0
        best, most = 0, b""
        for index, state in enumerate(self._states):
            weigher = state.copy()
            weigher.update(key)
            weight = weigher.digest()
            # Equal weights (once in 2**64) go by name, for the order of configuration must not matter.
            if weight > most or (weight == most and self.names[index] > self.names[best]):
                best, most = index, weight
        return best
