"""Things that can be named: those that ship, and those that installed packages add.

A package adds one by an entry point of the group, in its own ``pyproject.toml``::

    [project.entry-points."fl_peel.budgets"]
    tidal = "my_package.budgets:TidalBudget"

A further group is one more :class:`Registry`, in a module that is cheap to import; this is the one place that looks
entry points up.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Generic, TypeVar

from fl_peel.errors import FieldError

T = TypeVar("T")
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Names of one kind of thing: ``shipped`` ones first, then those of the entry-point ``group``.

    shipped: what each name stands for, or the place that it is imported from when it is asked for, written as entry
    points write it (``module:name``). reserved: names that mean something of their own, such as none: they are known,
    but there is nothing to get.
    """

    what: str
    group: str
    shipped: Mapping[str, T | str] = field(default_factory=lambda: MappingProxyType({}))
    reserved: tuple[str, ...] = ()

    def added(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages by name."""
        return {point.name: point for point in _points(self.group)}

    def names(self) -> tuple[str, ...]:
        """Every known name: reserved and shipped ones in their order, then added ones, sorted."""
        return tuple(dict.fromkeys((*self.reserved, *self.shipped, *sorted(self.added()))))

    def check(self, name: str) -> str:
        """The name itself, if it is known; nothing is imported.

        Raises:
            FieldError: unknown, or claimed twice.
        """
        if name not in self.reserved:
            self._find(name)
        return name

    def get(self, name: str) -> T:
        """Return what the name stands for, imported now where it is only named.

        Raises:
            FieldError: unknown, claimed twice, or it cannot be imported.
        """
        entry = self._find(name)
        if not isinstance(entry, EntryPoint):
            return entry
        try:
            return entry.load()  # type: ignore[no-any-return]
        except Exception as error:
            raise FieldError(f"{self._place(name, entry)} cannot be imported: {_error_text(error)}") from None

    def make(self, name: str, kind: type[Kind]) -> Kind:
        """Return a value of ``kind``: what the name stands for, called without arguments where it makes one.

        Raises:
            FieldError: as for :meth:`get`; or it fails, or makes something else.
        """
        target, place = self.get(name), self._place(name, self._find(name))
        try:
            made = target() if callable(target) and not isinstance(target, kind) else target
        except Exception as error:
            raise FieldError(f"{place} cannot be made: {_error_text(error)}") from None
        if not isinstance(made, kind):
            raise FieldError(f"{place} is not a {kind.__name__}; subclass {kind.__module__}.{kind.__name__}")
        return made

    def _place(self, name: str, entry: object) -> str:
        return f"the {self.what} {name!r}" + (f" of {entry.value}" if isinstance(entry, EntryPoint) else "")

    def _find(self, name: str) -> T | EntryPoint:
        claims = [point for point in _points(self.group) if point.name == name]
        targets = sorted({point.value for point in claims})
        if len(targets) > 1 or (claims and name in (*self.shipped, *self.reserved)):
            others = ", ".join(targets)
            raise FieldError(f"the {self.what} {name!r} is registered more than once ({others}): rename one")
        if name in self.shipped:
            entry = self.shipped[name]
            return EntryPoint(name, entry, self.group) if isinstance(entry, str) else entry
        if not claims:
            raise FieldError(f"unknown {self.what} {name!r}; {did_you_mean(name, self.names())}")
        return claims[0]


def all_added() -> list[EntryPoint]:
    """Every entry point that installed packages add to a group of fl-peel's; its own public names are none."""
    points = entry_points()
    groups = sorted(group for group in points.groups if group.startswith("fl_peel.") and group != "fl_peel.api")
    return [point for group in groups for point in points.select(group=group)]


def _points(group: str) -> tuple[EntryPoint, ...]:
    return _read_points(entry_points, group, tuple((place, _changed_ns(place)) for place in sys.path))


def _changed_ns(place: str) -> int:
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _read_points(
    read: Callable[..., Iterable[EntryPoint]], group: str, searched: tuple[tuple[str, int], ...]
) -> tuple[EntryPoint, ...]:
    """Read a group's entry points; again only once another folder is searched, or something is installed into one."""
    # once a library imports importlib_metadata (mlflow and OpenTelemetry do), what is found is of that package's class
    return tuple(
        point if isinstance(point, EntryPoint) else EntryPoint(point.name, point.value, point.group)
        for point in read(group=group)
    )


def _error_text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Say ``did you mean 'x'? `` (or nothing) and list what is known, in the order given."""
    names = list(known)
    if not names:
        return "none is known; an installed package adds one (docs/how-to/extend.md)"
    close = nearest(str(word), names)
    guess = f"did you mean {close!r}? " if close else ""
    return f"{guess}known: {', '.join(names)}"


def nearest(word: str, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the name that a word is short for, such as ``lr`` for ``learning_rate``, or that it is most like."""
    known = list(names)
    short = {"".join(part[:1] for part in name.split("_")): name for name in reversed(known) if "_" in name}
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return short.get(word) or next(iter(close), None)
