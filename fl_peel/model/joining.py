"""How a device that was not there joins a saved model: its user group and embedding, from its own items alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fl_peel.data.interactions import UserItems
from fl_peel.errors import ModelError
from fl_peel.grouping.clusters import choose_group, fit_user_embeddings
from fl_peel.pretraining.spectral import turned
from fl_peel.pretraining.spectral_steps import embeddings
from fl_peel.steps.units import add_rows, nearest, unit_vectors

FloatArray = NDArray[np.float32]
ROWS_AT_ONCE = 4096
"""Rows of a table that are converted at once; the table may be large."""
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Joining(ABC):
    """Base class of the ways in which a new device joins a saved model. centroids: (G, c) of user groups."""

    kind: ClassVar[str]
    centroids: FloatArray

    @property
    def num_groups(self) -> int:
        """Return the number of user groups, G."""
        return len(self.centroids)

    @abstractmethod
    def join(self, rows: UserItems) -> tuple[FloatArray, NDArray[np.int32]]:
        """Return the user embeddings (N, d) and groups (N,) of devices with these items."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to save, by name."""

    @abstractmethod
    def check(self, num_items: int, dim: int) -> None:
        """Refuse what does not fit a table (I, d).

        Raises:
            ModelError: shapes that do not fit, or numbers that are not finite.
        """


@dataclass(frozen=True)
class FittedJoining(Joining):
    """Joining by a fit: a device fits its embedding to the item table (I, d), takes the nearest group, and turns the
    embedding by the group's map. maps: (G, d, d), (0, d, d) where it stays as it is.
    """

    kind: ClassVar[str] = "fitted"
    item_table: FloatArray
    maps: FloatArray

    def join(self, rows: UserItems) -> tuple[FloatArray, NDArray[np.int32]]:
        """Join as devices of a run do whose interactions are not collected."""
        with threadpool_limits(limits=1):
            users = fit_user_embeddings(self.item_table, rows)
        groups = choose_group(users, self.centroids)
        return turned(users, groups, self.maps) if len(self.maps) else users, groups

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays as they are."""
        maps = {"maps": self.maps} if len(self.maps) else {}
        return {"centroids": self.centroids, "item_table": self.item_table, **maps}

    @staticmethod
    def from_tensors(tensors: Tensors) -> FittedJoining:
        """Return the value that :meth:`tensors` gave."""
        table = _floats(tensors, "item_table")
        if "maps" in tensors:
            maps = _floats(tensors, "maps")
        else:  # nothing was turned
            maps = np.zeros((0, *table.shape[1:], *table.shape[1:]), np.float32)
        return FittedJoining(_floats(tensors, "centroids"), table, maps)

    def check(self, num_items: int, dim: int) -> None:
        """See :class:`Joining`."""
        _check_shape("item_table", self.item_table, (num_items, dim))
        _check_shape("centroids", self.centroids, (self.num_groups, dim))
        _check_shape("maps", self.maps, (self.num_groups if len(self.maps) else 0, dim, dim))


@dataclass(frozen=True)
class MappedJoining(Joining):
    """Joining by a map: a device adds up the rows of its items (I, K) to a vector, takes the nearest group, and
    multiplies the vector by the group's map (K, d). Rows and maps are held as they are saved: own (I, K) and maps (G,
    K, d), whose columns are in units of own_units (1, K), map_units (G, d).
    """

    kind: ClassVar[str] = "mapped"
    own: NDArray[Any]
    own_units: FloatArray
    maps: NDArray[Any]
    map_units: FloatArray

    @staticmethod
    def from_rows(centroids: FloatArray, own: FloatArray, maps: FloatArray) -> MappedJoining:
        """Return the value for rows (I, K) and maps (G, K, d) in fp32."""
        return MappedJoining(centroids, *as_halves(own[None], flat=True), *as_halves(maps))

    def rows_of(self, items: NDArray[np.integer]) -> FloatArray:
        """Return the rows (N, K) of some items."""
        return np.asarray(self.own[items].astype(np.float32) * self.own_units)

    def map_of(self, group: int) -> FloatArray:
        """Return the map of a user group, (K, d)."""
        return np.asarray(self.maps[group].astype(np.float32) * self.map_units[group])

    def join(self, rows: UserItems) -> tuple[FloatArray, NDArray[np.int32]]:
        """Join as devices of stage 1 by sums do."""
        items, places = np.unique(rows.items, return_inverse=True)  # ascending, as sums are taken
        mine = UserItems(rows.indptr, places.astype(np.int32))
        vectors = unit_vectors(add_rows(self.rows_of(items), mine))
        groups = nearest(vectors, self.centroids)
        users = [embeddings(vectors[i : i + 1], self.map_of(group)) for i, group in enumerate(groups.tolist())]
        return np.concatenate(users), groups

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays as they are."""
        return {name: getattr(self, name) for name in ("centroids", "own", "own_units", "maps", "map_units")}

    @staticmethod
    def from_tensors(tensors: Tensors) -> MappedJoining:
        """Return the value that :meth:`tensors` gave."""
        arrays = {name: _floats(tensors, name) for name in ("centroids", "own_units", "map_units")}
        return MappedJoining(own=_some_floats(tensors, "own"), maps=_some_floats(tensors, "maps"), **arrays)

    def check(self, num_items: int, dim: int) -> None:
        """See :class:`Joining`."""
        columns = self.own.shape[-1] if self.own.ndim else 0
        _check_shape("own", self.own, (num_items, columns))
        _check_shape("own_units", self.own_units, (1, columns))
        _check_shape("maps", self.maps, (self.num_groups, columns, dim))
        _check_shape("map_units", self.map_units, (self.num_groups, dim))
        if self.centroids.ndim != 2 or not 1 <= self.centroids.shape[1] <= columns:
            raise ModelError(f"centroids of shape {self.centroids.shape} for vectors of {columns} numbers")
        _check_shape("centroids", self.centroids, self.centroids.shape)


KINDS: dict[str, type[FittedJoining] | type[MappedJoining]] = {
    kind.kind: kind for kind in (FittedJoining, MappedJoining)
}


def as_halves(tables: FloatArray, *, flat: bool = False) -> tuple[NDArray[Any], FloatArray]:
    """Tables (T, R, k) in half precision with a unit for each column (T, k), if they are just these again; else as they
    are, with units of 1. :func:`fl_peel.pretraining.spectral_steps.halves` makes such tables. flat: there is one, (R,
    k).
    """
    largest = np.maximum(tables.max(axis=1, initial=0.0), -tables.min(axis=1, initial=0.0))
    units = np.exp2(np.ceil(np.log2(np.maximum(largest, 1e-30)))).astype(np.float32)
    halved = np.empty(tables.shape, np.float16)
    for table, unit, half in zip(tables, units, halved, strict=True):
        for start in range(0, len(table), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            half[some] = table[some] / unit
            if not np.array_equal(half[some].astype(np.float32) * unit, table[some]):
                return tables[0] if flat else tables, np.ones_like(units)
    return halved[0] if flat else halved, units


def _some_floats(tensors: Tensors, name: str) -> NDArray[Any]:
    array = tensors.get(name)
    if array is None or array.dtype not in (np.float16, np.float32):
        raise ModelError(f"{name} is missing, or holds no floats")
    return array


def _floats(tensors: Tensors, name: str) -> FloatArray:
    return _some_floats(tensors, name).astype(np.float32, copy=False)


def _check_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ModelError(f"{name} of shape {array.shape}, not {shape}")
    if not np.isfinite(array).all():
        raise ModelError(f"{name} holds numbers that are not finite")
