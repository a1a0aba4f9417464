"""Named columns of whole numbers: what is counted travels and adds up under its name, never as a column's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

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
        """Return the names of the columns, in order."""
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
        """Return the columns as one array (..., columns)."""
        return np.stack([getattr(self, name) for name in self.names()], axis=-1)

    def reshaped(self, *shape: int) -> Self:
        """Return the same numbers in another shape."""
        return type(self)(*(getattr(self, name).reshape(shape) for name in self.names()))

    def __getitem__(self, index: Any) -> Self:
        """Return the same part of every column."""
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
