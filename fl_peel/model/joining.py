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
from fl_peel.pretraining.by_sums import add_rows, embeddings, nearest, unit_vectors

FloatArray = NDArray[np.float32]
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Joining(ABC):
    """centroids: (G, c) of user groups."""

    kind: ClassVar[str]
    centroids: FloatArray

    @property
    def num_groups(self) -> int:
        """User groups, G."""
        return len(self.centroids)

    @abstractmethod
    def join(self, rows: UserItems) -> tuple[FloatArray, NDArray[np.int32]]:
        """User embeddings (N, d) and groups (N,) of devices with these items."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """What is saved, by name."""

    @abstractmethod
    def check(self, num_items: int, dim: int) -> None:
        """Refuse what does not fit a table (I, d).

        Raises:
            ModelError: shapes that do not fit, or numbers that are not finite.
        """


@dataclass(frozen=True)
class Fitted(Joining):
    """A device fits its embedding to the item table (I, d), then takes the nearest group."""

    kind: ClassVar[str] = "fitted"
    item_table: FloatArray

    def join(self, rows: UserItems) -> tuple[FloatArray, NDArray[np.int32]]:
        """As devices of a run do whose interactions are not collected."""
        with threadpool_limits(limits=1):
            users = fit_user_embeddings(self.item_table, rows)
        return users, choose_group(users, self.centroids)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """As they are."""
        return {"centroids": self.centroids, "item_table": self.item_table}

    @staticmethod
    def of(tensors: Tensors) -> Fitted:
        """Of what :meth:`tensors` gave."""
        return Fitted(_floats(tensors, "centroids"), _floats(tensors, "item_table"))

    def check(self, num_items: int, dim: int) -> None:
        """See :class:`Joining`."""
        _check_shape("item_table", self.item_table, (num_items, dim))
        _check_shape("centroids", self.centroids, (self.num_groups, dim))


@dataclass(frozen=True)
class Mapped(Joining):
    """A device adds up the rows of its items (I, K) to a vector, takes the nearest group, and multiplies the vector by
    the group's map. maps: (G, K, d).
    """

    kind: ClassVar[str] = "mapped"
    own: FloatArray
    maps: FloatArray

    def join(self, rows: UserItems) -> tuple[FloatArray, NDArray[np.int32]]:
        """As devices of stage 1 by sums do."""
        vectors = unit_vectors(add_rows(self.own, rows))
        groups = nearest(vectors, self.centroids)
        users = [embeddings(vectors[i : i + 1], self.maps[group]) for i, group in enumerate(groups.tolist())]
        return np.concatenate(users), groups

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Rows and maps in half precision where that loses nothing, which is how they are sent."""
        rows, row_units = as_halves(self.own[None])
        maps, map_units = as_halves(self.maps)
        return {
            "centroids": self.centroids,
            "own": rows[0],
            "own_units": row_units,
            "maps": maps,
            "map_units": map_units,
        }

    @staticmethod
    def of(tensors: Tensors) -> Mapped:
        """Of what :meth:`tensors` gave."""
        own, maps = _floats(tensors, "own"), _floats(tensors, "maps")
        row_units, map_units = _floats(tensors, "own_units"), _floats(tensors, "map_units")
        if own.ndim != 2 or maps.ndim != 3:
            raise ModelError(f"own of shape {own.shape}, maps of shape {maps.shape}: not two and three dimensions")
        _check_shape("own_units", row_units, (1, own.shape[1]))
        _check_shape("map_units", map_units, (len(maps), maps.shape[2]))
        return Mapped(_floats(tensors, "centroids"), own * row_units, maps * map_units[:, None, :])

    def check(self, num_items: int, dim: int) -> None:
        """See :class:`Joining`."""
        columns = self.own.shape[1]
        _check_shape("own", self.own, (num_items, columns))
        _check_shape("maps", self.maps, (self.num_groups, columns, dim))
        if self.centroids.ndim != 2 or not 1 <= self.centroids.shape[1] <= columns:
            raise ModelError(f"centroids of shape {self.centroids.shape} for vectors of {columns} numbers")
        _check_shape("centroids", self.centroids, self.centroids.shape)


KINDS: dict[str, type[Fitted] | type[Mapped]] = {kind.kind: kind for kind in (Fitted, Mapped)}


def as_halves(tables: FloatArray) -> tuple[NDArray[Any], FloatArray]:
    """Tables (T, R, k) in half precision with a unit for each column (T, k), if they are just these again; else as they
    are, with units of 1. :func:`fl_peel.pretraining.by_sums.halves` makes such tables.
    """
    largest = np.abs(tables).max(axis=1, initial=0.0)
    units = np.exp2(np.ceil(np.log2(np.maximum(largest, 1e-30)))).astype(np.float32)
    halved = np.empty(tables.shape, np.float16)
    for table, unit, half in zip(tables, units, halved, strict=True):  # one at a time: they may be large
        half[:] = table / unit
        if not np.array_equal(half.astype(np.float32) * unit, table):
            return tables, np.ones_like(units)
    return halved, units


def _floats(tensors: Tensors, name: str) -> FloatArray:
    found = tensors.get(name)
    if found is None or found.dtype not in (np.float16, np.float32):
        raise ModelError(f"{name} is missing, or holds no floats")
    return np.asarray(found, np.float32)


def _check_shape(name: str, found: FloatArray, shape: tuple[int, ...]) -> None:
    if found.shape != shape:
        raise ModelError(f"{name} of shape {found.shape}, not {shape}")
    if not np.isfinite(found).all():
        raise ModelError(f"{name} holds numbers that are not finite")


__all__ = ["KINDS", "Fitted", "Joining", "Mapped", "as_halves"]
