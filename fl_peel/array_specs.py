"""What a message must hold: shapes in terms of sizes that the reader knows, and ranges of numbers.

A field of a message says what it is with an :class:`ArraySpec`; whoever reads a message brings what is
:class:`MessageContext`. All of it is looked at before anything computes with it: compiled loops check no index.

What is counted travels and adds up in named columns of whole numbers, never under a column's number.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Annotated, Any, Self, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fl_peel.errors import MessageError

IntArray = NDArray[np.int64]
SUM_SCALE = float(1 << 32)
"""Metric sums are int64 in units of 2**-32, so that merging is exact and order-free."""


@lru_cache(maxsize=64)
def _names(columns: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(columns))


@dataclass(frozen=True)
class IntColumns:
    """Base of dataclasses all of whose fields are int64 arrays of one shape.

    As one array they are stacked along a last axis, in the order of the fields: this is how they cross the network, and
    how a device contributes them as words of a vector.
    """

    @classmethod
    def names(cls) -> tuple[str, ...]:
        kind: Any = cls
        return _names(kind)

    @classmethod
    def zeros(cls, *shape: int) -> Self:
        """Return columns of zeros; the arrays may be added to in place."""
        return cls.unstacked(np.zeros((*shape, len(cls.names())), np.int64))

    @classmethod
    def unstacked(cls, array: NDArray[np.int64]) -> Self:
        """Return the columns of an array that :meth:`stacked` made, as views of it.

        Raises:
            ValueError: the array has another number of columns.
        """
        if array.shape[-1] != len(cls.names()):
            raise ValueError(f"{cls.__name__} has {len(cls.names())} columns, the array {array.shape[-1]}")
        return cls(*(array[..., place] for place in range(array.shape[-1])))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the parts joined along the first axis; empty columns where there are none."""
        if not parts:
            return cls.zeros(0)
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.names()))

    def stacked(self) -> IntArray:
        return np.stack([getattr(self, name) for name in self.names()], axis=-1)

    def reshaped(self, *shape: int) -> Self:
        return type(self)(*(getattr(self, name).reshape(shape) for name in self.names()))

    def __getitem__(self, index: Any) -> Self:
        return type(self)(*(getattr(self, name)[index] for name in self.names()))


@dataclass(frozen=True)
class Counters(IntColumns):
    """Columns that are sums over devices: those of disjoint sets of devices add up."""

    def __add__(self, other: Self) -> Self:
        """Return the sums over both sets of devices."""
        return type(self)(*(getattr(self, name) + getattr(other, name) for name in self.names()))

    def add(self, other: Self) -> None:
        """Add in place, to columns that :meth:`zeros` made or that are a part of such."""
        for name in self.names():
            total = getattr(self, name)
            total += getattr(other, name)

    @classmethod
    def from_columns(cls, cells: NDArray[np.integer], num_cells: int, **amounts: NDArray[np.generic]) -> Self:
        """Return the sums (num_cells,) of some columns (N,) of single devices, by name; the others are zero."""
        per_device = cls.zeros(len(cells))
        for name, values in amounts.items():
            getattr(per_device, name)[:] = values
        return per_device.by_cell(cells, num_cells)

    def by_cell(self, cells: NDArray[np.integer], num_cells: int) -> Self:
        """Return the sums (num_cells,) of single devices (N,), each in its cell."""
        sums = np.zeros((num_cells, len(self.names())), np.int64)
        np.add.at(sums, cells, self.stacked())
        return self.unstacked(sums)

    def total(self, axis: int | tuple[int, ...] | None = None) -> Self:
        """Return the sums along an axis (None: all)."""
        return type(self)(*(np.asarray(getattr(self, name).sum(axis=axis)) for name in self.names()))


Number = int | float | str
"""A number, or the name of a size."""
MOST = np.iinfo(np.int64).max
TOTAL = "total"
"""Size that a number of a sum must not pass, on either side of 0, so that the sum over all nodes fits 64 bits."""
WHOLE = ("int32", "int64")


@dataclass(frozen=True)
class ArraySpec:
    """An array, or columns without their last axis. shape: sizes, or their names: a name that is not known stands for
    the same size in all of a message; None: of any shape.

    least, most: ends of what its numbers may be; within: name of a size, for places from 0 to below it; among: name of
    numbers, ascending, that it may have; ascending: each number larger than the last one; by: name of an array whose
    numbers come first in that order; dtypes: where it is not the field's; columns: of columns, ranges of some of them;
    may_lack: nothing is wrong without it; choices, pattern: of a text.

    Of a column of counts, cells: so many leading axes have cells, in each of which the counts add up to ``most`` at
    most; of a sum of metrics, counted_by: the column that says how many devices it is a sum over.
    """

    shape: tuple[int | str, ...] | None = None
    least: Number | None = None
    most: Number | None = None
    within: str | None = None
    among: str | None = None
    ascending: bool = False
    by: str | None = None
    dtypes: tuple[str, ...] = ()
    columns: Mapping[str, ArraySpec] = field(default_factory=dict, hash=False)
    may_lack: bool = False
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    cells: int | None = None
    counted_by: str | None = None


def summed(*shape: int | str, least: Number | None = None, **more: Any) -> ArraySpec:
    """Whole numbers that are added up over nodes."""
    return ArraySpec(shape, least=f"-{TOTAL}" if least is None else least, most=TOTAL, dtypes=WHOLE, **more)


def hosted(cells: int) -> ArraySpec:
    """Counts of a node's devices, which are no more together than it hosts, in each cell of so many leading axes."""
    return ArraySpec(least=0, most="hosted", cells=cells)


def metric_of(devices: str, least: Number = 0) -> ArraySpec:
    """Sums of a metric over devices. devices: the column that counts these."""
    return ArraySpec(least=least, most="metrics", counted_by=devices)


@dataclass(frozen=True)
class MessageContext:
    """What the reader of a message knows. sizes: by name; numbers: by name, ascending; arrays: those that a message
    has by name, of a user group or of a step, None for anything; groups: of every user group that may be named, None
    for any; totals: what columns add up to, by their path; agreed: names of sizes that are not known, but the same in
    all messages; together: what else is checked of a message whose parts are right, raising a MessageError.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, NDArray[np.integer]] = field(default_factory=dict)
    arrays: Mapping[str, ArraySpec] | None = field(default_factory=dict)
    groups: Mapping[int, MessageContext] | None = None
    totals: Mapping[str, int] = field(default_factory=dict)
    agreed: tuple[str, ...] = ()
    together: Callable[[Any], None] | None = None

    def with_sizes(self, **sizes: int) -> MessageContext:
        return dataclasses.replace(self, sizes={**self.sizes, **sizes})

    def with_groups(self, groups: Mapping[int, MessageContext]) -> MessageContext:
        return dataclasses.replace(self, groups=groups)

    def inside(self, group: int) -> MessageContext:
        """Return the context of one user group, with all that holds for every group."""
        mine = MessageContext(arrays=None) if self.groups is None else self.groups[group]
        return dataclasses.replace(mine, sizes={**self.sizes, **mine.sizes}, numbers={**self.numbers, **mine.numbers})


@dataclass(frozen=True)
class ArrayChecker:
    """Looks at the arrays of a message, one after the other. sizes: known ones, and those found on the way."""

    known: MessageContext
    sizes: dict[str, int]

    @staticmethod
    def from_context(known: MessageContext) -> ArrayChecker:
        return ArrayChecker(known, dict(known.sizes))

    def group(self, arrays: Mapping[str, NDArray[Any]], where: str) -> None:
        """All arrays of a user group or a step by name: those that are known, and no others.

        Raises:
            MessageError: one is missing, is not known, or is not what it must be.
        """
        wanted = self.known.arrays
        if wanted is None:
            return
        for name in arrays:
            if name not in wanted:
                raise MessageError(f"{where}: nothing is called {name[:40]!r}")
        for name, of in wanted.items():
            if name in arrays:
                self._form(arrays[name], of, f"{where}/{name}")
            elif not of.may_lack:
                raise MessageError(f"{where}: {name} is missing")
        for name, array in arrays.items():  # only now: numbers of one are looked at beside those of another
            before = wanted[name].by
            self.values(array, wanted[name], f"{where}/{name}", arrays.get(before) if before else None)

    def array(self, array: NDArray[Any], of: ArraySpec, where: str) -> None:
        """One array.

        Raises:
            MessageError: it has another type or shape, or numbers out of range.
        """
        self._form(array, of, where)
        self.values(array, of, where)

    def _form(self, array: NDArray[Any], of: ArraySpec, where: str) -> None:
        if of.dtypes and name_of(array.dtype) not in of.dtypes:
            raise MessageError(f"{where}: of type {array.dtype}, not {' or '.join(of.dtypes)}")
        self._shape(array.shape, of, where)

    def columns(self, columns: IntColumns, of: ArraySpec, where: str, path: str) -> None:
        """Columns, each of the same shape. path: by which :attr:`MessageContext.totals` names them.

        Raises:
            MessageError: as for one array; or they do not add up to what is known.
        """
        for name in columns.names():
            column = np.asarray(getattr(columns, name))
            self._shape(column.shape, of, f"{where}.{name}")
            self.values(column, of.columns.get(name, of), f"{where}.{name}")
            self._together(column, columns, of.columns.get(name, of), f"{where}.{name}")
            wanted = self.known.totals.get(f"{path}.{name}")
            if wanted is not None and int(column.sum()) != wanted:
                raise MessageError(f"{where}.{name}: adds up to {int(column.sum())}, not {wanted}")

    def _together(self, column: NDArray[np.int64], columns: IntColumns, of: ArraySpec, where: str) -> None:
        """Numbers that are possible each by itself, but not together."""
        if of.cells is not None and of.most is not None:
            most, total = self._named(of.most), column.sum(axis=tuple(range(of.cells, column.ndim)))
            if (total > most).any():
                raise MessageError(f"{where}: adds up to {int(total.max())}, which is more than {most}")
        devices = of.counted_by
        if devices is not None and (np.abs(column) > getattr(columns, devices) * SUM_SCALE).any():
            raise MessageError(f"{where}: more than {devices} can add up to")

    def number(self, value: float, of: ArraySpec, where: str) -> None:
        """A number alone.

        Raises:
            MessageError: it is out of range.
        """
        low, high = self._ends(of)
        if of.most is None and of.within is None:
            high = MOST
        if not low <= value <= high:  # nor is what is no number
            raise MessageError(f"{where}: {value} is not in {low}..{high}")

    def text(self, value: str, of: ArraySpec, where: str) -> None:
        """A text alone.

        Raises:
            MessageError: it is none of those that it may be.
        """
        if of.choices and value not in of.choices:
            raise MessageError(f"{where}: {value[:40]!r} is none of {', '.join(of.choices)}")
        if of.pattern is not None and not re.fullmatch(of.pattern, value):
            raise MessageError(f"{where}: {value[:40]!r} is not of the form {of.pattern}")

    def values(self, array: NDArray[Any], of: ArraySpec, where: str, before: NDArray[Any] | None = None) -> None:
        """The numbers of an array, of the right shape. before: the one whose numbers come first in its order.

        Raises:
            MessageError: one of them is out of range, or not where it must be.
        """
        if not array.size:
            return
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise MessageError(f"{where}: not all numbers are finite")
        if of.ascending:
            self._ascending(array, of, where, before)
        self._range(array, of, where)
        if of.among is not None and of.among in self.known.numbers:
            some = self.known.numbers[of.among]
            place = np.minimum(np.searchsorted(some, array), max(len(some) - 1, 0))
            if not len(some) or not (some[place] == array).all():
                raise MessageError(f"{where}: names some that are not among the {of.among}")

    def _ascending(self, array: NDArray[Any], of: ArraySpec, where: str, before: NDArray[Any] | None) -> None:
        order = np.diff(array) > 0
        if before is not None:
            order = (np.diff(before) > 0) | (order & (np.diff(before) == 0))
        if not order.all():
            raise MessageError(f"{where}: not in ascending order")

    def _ends(self, of: ArraySpec) -> tuple[float, float]:
        """Return the ends of the range that numbers must lie in."""
        if of.within is not None:
            return 0, self._named(of.within) - 1
        low, high = of.least, of.most
        return (-np.inf if low is None else self._named(low)), (np.inf if high is None else self._named(high))

    def _range(self, array: NDArray[Any], of: ArraySpec, where: str) -> None:
        """Check the smallest and the largest number alone, and neither where the type holds no others."""
        low, high = self._ends(of)
        kind = array.dtype
        if kind.kind == "b":
            return
        ends = _ends_of(kind)
        least = array[0] if of.ascending and not of.by else array.min() if low > ends.min else ends.min
        most = array[-1] if of.ascending and not of.by else array.max() if high < ends.max else ends.max
        if least < low or most > high:
            raise MessageError(f"{where}: has {least if least < low else most}, which is not in {low}..{high}")

    def _named(self, number: Number) -> float:
        """A number, or a size by its name; with a minus before it, less than 0."""
        if not isinstance(number, str):
            return number
        name = number.removeprefix("-")
        size = self.sizes.get(name, MOST)
        return -size if name != number else size

    def _shape(self, shape: tuple[int, ...], of: ArraySpec, where: str) -> None:
        if of.shape is None:
            return
        wanted = tuple(
            size if isinstance(name, str) and name not in self.sizes else self._named(name)
            for name, size in zip(of.shape, shape, strict=False)
        )
        if len(shape) != len(of.shape) or shape != wanted:
            sizes = ", ".join(str(self.sizes.get(name, name) if isinstance(name, str) else name) for name in of.shape)
            raise MessageError(f"{where}: of shape {shape}, not ({sizes})")
        for name, size in zip(of.shape, shape, strict=True):
            if isinstance(name, str) and self.sizes.setdefault(name, size) != size:  # twice in one shape
                raise MessageError(f"{where}: of shape {shape}, where {name} is one size")


def check(message: object, known: MessageContext) -> dict[str, int]:
    """Shapes and ranges of what a message holds, against what its reader knows. Returns all sizes that it has.

    Raises:
        MessageError: the first that is wrong.
    """
    checked = ArrayChecker.from_context(known)
    _fields_within(message, checked, type(message).__name__)
    if known.together is not None:
        known.together(message)
    return checked.sizes


def _fields_within(message: Any, checked: ArrayChecker, what: str, path: str = "") -> None:
    for name, annotated in fields_of(type(message)).items():
        value, plain = getattr(message, name), plain_of(annotated)
        of = _array_spec(annotated)
        where = f"{path}{name}"
        if isinstance(value, dict) and get_args(plain)[0] is str:
            checked.group(value, f"{what}.{where}")
        elif isinstance(value, dict):
            _groups_within(value, get_args(plain)[1], checked, f"{what}.{where}")
        elif isinstance(value, IntColumns):
            if of is not None:
                checked.columns(value, of, f"{what}.{where}", where)
        elif dataclasses.is_dataclass(value):
            _fields_within(value, checked, what, f"{where}.")
        elif of is None:
            continue
        elif isinstance(value, np.ndarray):
            checked.array(value, of, f"{what}.{where}")
        elif isinstance(value, str):
            checked.text(value, of, f"{what}.{where}")
        else:
            checked.number(value, of, f"{what}.{where}")


def _groups_within(groups: dict[int, Any], inner: Any, checked: ArrayChecker, where: str) -> None:
    known = checked.known
    for group, content in groups.items():
        if known.groups is not None and group not in known.groups:
            raise MessageError(f"{where}: user group {group} was not requested")
        mine = ArrayChecker.from_context(known.inside(group))
        if not dataclasses.is_dataclass(inner):
            mine.group(content, f"{where}/{group}")
        else:
            _fields_within(content, mine, f"{where}/{group}")


@lru_cache(maxsize=64)
def _ends_of(dtype: np.dtype[Any]) -> Any:
    """The smallest and the largest number that a type holds."""
    return np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)


@lru_cache(maxsize=64)
def name_of(dtype: np.dtype[Any]) -> str:
    """``str(dtype)``, which NumPy puts together anew each time."""
    return str(dtype)


def fields_of(kind: Any) -> dict[str, Any]:
    """Types of a dataclass's fields by name, with their :class:`ArraySpec`."""
    return _fields_of(kind)


@lru_cache(maxsize=64)
def _fields_of(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def plain_of(of: Any) -> Any:
    """A field's type without its annotations."""
    return get_args(of)[0] if get_origin(of) is Annotated else of


def _array_spec(annotated: Any) -> ArraySpec | None:
    marks = get_args(annotated)[1:] if get_origin(annotated) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, ArraySpec)), None)
