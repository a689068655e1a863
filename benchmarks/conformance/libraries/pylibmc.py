"""pylibmc: the bare client as cache-aside, as the first example of its documentation makes it."""

from __future__ import annotations

from benchmarks.conformance.model import MEMCACHED, How, Library, Load, Place, Reader


class Pylibmc(Library):
    name = "pylibmc"
    distributions = ("pylibmc",)
    threads = (MEMCACHED,)
    client = True

    def blocking(self, place: Place, load: Load, how: How) -> Reader:
        import pylibmc

        client = pylibmc.Client([place.address])

        def get(key: str) -> object:
            found = client.get(key)
            if found is not None:
                return found
            value = load(key)
            client.set(key, value, time=int(how.ttl))
            return value

        return Reader(get, client.delete)


LIBRARY = Pylibmc()
