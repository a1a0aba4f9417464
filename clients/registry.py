"""Things that can be named in a fleet file: those that ship, and those that installed packages add.

A package adds one by an entry point of the group, in its own ``pyproject.toml``::

    [project.entry-points."fl_peel.budgets"]
    tidal = "my_package.budgets:TidalBudget"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Generic, TypeVar

from clients.specs import FieldError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Names of one kind of thing: ``shipped`` ones first, then those of the entry-point ``group``."""

    what: str
    group: str
    shipped: Mapping[str, T] = field(default_factory=lambda: MappingProxyType({}))

    def added(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages by name."""
        return {point.name: point for point in entry_points(group=self.group)}

    def names(self) -> tuple[str, ...]:
        """Every known name, sorted."""
        return tuple(sorted({*self.shipped, *self.added()}))

    def get(self, name: str) -> T:
        """Return what the name stands for; an entry point is imported now.

        Raises:
            FieldError: unknown, claimed twice, or its package cannot be imported.
        """
        claims = [point for point in entry_points(group=self.group) if point.name == name]
        targets = sorted({point.value for point in claims})
        if len(targets) > 1 or (claims and name in self.shipped):
            others = ", ".join(targets)
            raise FieldError(f"the {self.what} {name!r} is registered more than once ({others}): rename one")
        if name in self.shipped:
            return self.shipped[name]
        if not claims:
            raise FieldError(f"unknown {self.what} {name!r}; {did_you_mean(name, self.names())}")
        try:
            return claims[0].load()  # type: ignore[no-any-return]
        except Exception as error:
            raise FieldError(
                f"the {self.what} {name!r} of {claims[0].value} cannot be imported: {type(error).__name__}: {error}"
            ) from None
