"""What a mutant is. Nothing of cachewright is imported here: a mutant must be in place before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A fault: in ``module``, ``old`` becomes ``new``; ``scenarios`` are tried in this order."""

    name: str
    module: str
    old: str
    new: str
    scenarios: tuple[str, ...]

    def applied(self, source: str) -> str:
        """The module's source with the fault in it.

        Raises:
            ValueError: the place is not there exactly once: the code has changed, the mutant must follow.
        """
        if source.count(self.old) != 1:
            raise ValueError(
                f"mutant {self.name}: its place stands {source.count(self.old)} times in {self.module}"
            )
        return source.replace(self.old, self.new)
