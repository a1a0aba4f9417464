"""A device that a run never saw: how it joins, what it keeps, what it ranks; and the delta that it is sent to get from
what it holds to what a newer model gives it, byte for byte.

A delta is the header of the new artefact under a name of its own, then without gaps

    the ids of all new blocks, in their order, as an artefact has them; the user embedding as far as the new one has it;
    two bits a block: it is held as it is now (0), with other scales (1), or is new (2), four to a byte, lowest first;
    of each block that is held, its place in the old artefact, as wide as an id's numbers;
    scales of blocks that are not held as they are; codes of blocks that are new.

It is never longer than the new artefact: where it would be, it is that artefact. ``tests/helpers/deltas.py`` reads one.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fl_peel.blocks import resizing
from fl_peel.blocks.layout import code_dtype, has_scales, number_dtype
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.resizing import ElasticEmbedding
from fl_peel.blocks.stored import CUT_VERSION, StoredEmbedding, sealed
from fl_peel.data.interactions import UserItems
from fl_peel.errors import BudgetError, ModelError
from fl_peel.model.model_files import Catalogue, OwnId
from fl_peel.pretraining.clusters import choose_group, fit_user_embeddings
from fl_peel.pretraining.spectral import embeddings, turned
from fl_peel.scenario.settings import Precision
from fl_peel.steps.base import add_rows, nearest, unit_vectors

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
        maps = {"maps": self.maps} if len(self.maps) else {}
        return {"centroids": self.centroids, "item_table": self.item_table, **maps}

    @staticmethod
    def from_tensors(tensors: Tensors) -> FittedJoining:
        table = _floats(tensors, "item_table")
        if "maps" in tensors:
            maps = _floats(tensors, "maps")
        else:  # nothing was turned
            maps = np.zeros((0, *table.shape[1:], *table.shape[1:]), np.float32)
        return FittedJoining(_floats(tensors, "centroids"), table, maps)

    def check(self, num_items: int, dim: int) -> None:
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
        return {name: getattr(self, name) for name in ("centroids", "own", "own_units", "maps", "map_units")}

    @staticmethod
    def from_tensors(tensors: Tensors) -> MappedJoining:
        arrays = {name: _floats(tensors, name) for name in ("centroids", "own_units", "map_units")}
        return MappedJoining(own=_some_floats(tensors, "own"), maps=_some_floats(tensors, "maps"), **arrays)

    def check(self, num_items: int, dim: int) -> None:
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
    are, with units of 1. :func:`fl_peel.pretraining.spectral.halves` makes such tables. flat: there is one, (R,
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


class ModelSource(Protocol):
    """Who serves a device: :class:`fl_peel.model.model.Model`."""

    @property
    def catalogue(self) -> Catalogue:
        """Its items."""

    def device(self, interactions: Iterable[OwnId], *, also_seen: Iterable[OwnId] = ()) -> Device:
        """A device joins."""

    def blocks(self, group: int, precision: Precision | None = None) -> RankedBlocks:
        """All blocks of a user group, in its order."""


@dataclass(frozen=True)
class Device:
    """A device that has joined a model. group: its user group; user: (d,) its user embedding; items: the items it
    joined with, in its order; seen: these and other items that are not recommended, ascending; both by item number."""

    source: ModelSource
    group: int
    user: NDArray[np.float32]
    items: tuple[int, ...]
    seen: tuple[int, ...]

    def embedding(self, budget_bytes: int, precision: Precision | None = None) -> Embedding:
        """Return the embedding that the device stores under a budget, never a byte above it.

        Raises:
            BudgetError: the budget does not even hold the header and the user embedding.
            ModelError: the model does not serve in this precision, or is damaged.
        """
        seen = np.array(self.seen, np.int64)
        elastic = ElasticEmbedding(self.source.blocks(self.group, precision), self.user, seen, self.group)
        return Embedding(self, elastic.at(budget_bytes), budget_bytes)

    def known_to(self, other: ModelSource) -> Device:
        """Return the same device as it joins another model, with the items that this one has too."""
        mine, theirs = self.source.catalogue, other.catalogue
        names, seen = (
            [name for name in map(mine.id_of, items) if theirs.find(name) >= 0] for items in (self.items, self.seen)
        )
        return other.device(names, also_seen=seen)


@dataclass(frozen=True)
class Embedding:
    """Stored embedding of a device: an artefact (docs/artefact.md) under a budget."""

    device: Device
    stored: StoredEmbedding
    budget_bytes: int

    def to_bytes(self) -> bytes:
        """Return the content of the artefact's file."""
        return self.stored.to_bytes()

    @property
    def num_bytes(self) -> int:
        """Size of the file in bytes."""
        return len(self.to_bytes())

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """Return the n best items, best first: own ids and scores, without seen items and items not stored."""
        layout = self.device.source.catalogue.layout
        best = self.stored.top_n(n, self.seen_rows)
        rows, scores = self.stored.scores()
        top_scores = scores[np.searchsorted(rows, best)]
        items = layout.catalogue[best].tolist()
        return [
            (self.device.source.catalogue.id_of(item), float(score))
            for item, score in zip(items, top_scores, strict=True)
        ]

    @property
    def seen_rows(self) -> NDArray[np.int64]:
        """Return the catalogue rows of the seen items, ascending."""
        rows = self.device.source.catalogue.layout.row_in_catalogue[list(self.device.seen)]
        return np.sort(rows.astype(np.int64))

    def shrink(self, budget_bytes: int) -> Embedding:
        """Return what remains under a smaller budget: the last blocks are dropped, without a message.

        Raises:
            BudgetError: the budget is larger, or does not even hold the header and the user embedding.
        """
        if budget_bytes > self.budget_bytes:
            raise BudgetError(f"budget {budget_bytes} B is above {self.budget_bytes} B: to hold more, grow")
        layout = self.device.source.catalogue.layout
        return Embedding(self.device, resizing.shrink(self.stored, layout, budget_bytes), budget_bytes)

    def grow(self, budget_bytes: int) -> Delta:
        """Return the delta of the user group's block list that fills a larger budget.

        Raises:
            BudgetError: the budget is smaller.
        """
        if budget_bytes < self.budget_bytes:
            raise BudgetError(f"budget {budget_bytes} B is below {self.budget_bytes} B: to hold less, shrink")
        ranked = self.device.source.blocks(self.device.group, self.stored.precision)
        layout = ranked.layout
        last = self.stored.blocks[-1:]
        behind = int(ranked.rank_of_block[last[0]]) + 1 if len(last) else 0
        table = np.zeros((layout.num_items, layout.embedding_dim), np.float32)
        table[ranked.items] = ranked.table
        sent: list[bytes] = []
        following = _recorded(resizing.listed(layout, ranked.precision, ranked.blocks[behind:], table), sent)
        seen = np.array(self.device.seen, np.int64)
        stored, read = resizing.grow(self.stored, layout, seen, budget_bytes, following, self.device.user)
        content = b"".join(sent)[:read]  # of a block that does not fit, its id alone
        return Delta(content, Embedding(self.device, stored, budget_bytes))

    def update(self, newer: ModelSource, budget_bytes: int | None = None) -> Delta:
        """Return the delta that turns the embedding into the one a newer model gives this device, under its budget or
        another one. Unchanged blocks are not sent, whatever their place; of blocks in which only the scale changed,
        the scales are sent.

        Raises:
            ModelError: the newer model has none of the items that the device joined with, or is damaged.
            BudgetError: as for :meth:`Device.embedding`.
        """
        device = self.device.known_to(newer)
        budget = self.budget_bytes if budget_bytes is None else budget_bytes
        after = device.embedding(budget, self.stored.precision)
        places = newer.catalogue.places_of(self.device.source.catalogue, after.stored.blocks, self.stored.blocks)
        return Delta(delta_of(self.stored, after.stored, places), after)


@dataclass(frozen=True)
class Delta:
    """Delta that a device downloads, and the embedding it then stores, equal to a fresh download byte for byte."""

    content: bytes
    embedding: Embedding

    @property
    def num_bytes(self) -> int:
        """Size of the delta in bytes."""
        return len(self.content)


def _recorded(following: Iterable[bytes], sent: list[bytes]) -> Iterator[bytes]:
    for one in following:
        sent.append(one)
        yield one


MAGIC = b"PEED"
HELD, RESCALED, NEW = 0, 1, 2
NUMBERS = struct.Struct("<BBBIIHHIII8s")
"""As of an artefact: precision, numbers per block, bytes per number, items, item groups, columns, slices, blocks, row
pieces, user group, catalogue.
"""
_NUMBERS_AT = 5
_PER_BYTE = 4


def delta_of(old: StoredEmbedding, new: StoredEmbedding, places: NDArray[np.int64]) -> bytes:
    """What leads from one to the other. places: (K,) of the new one's blocks in the old one, -1 for those not there."""
    whole = new.to_bytes()
    dtype = number_dtype(new.num_items, new.num_item_groups * new.num_slices)
    kinds = _kinds(old, new, places)
    held = kinds != NEW
    of_piece = np.repeat(kinds, new.counts)
    parts = [
        _ids(new, dtype),
        new.user.astype("<f2"),
        _packed(kinds),
        places[held].astype(dtype),
        new.scales[of_piece != HELD].astype("<f2") if has_scales(new.precision) else new.scales,
        new.codes[of_piece == NEW].astype(code_dtype(new.precision)),
    ]
    start = _NUMBERS_AT + NUMBERS.size
    delta = sealed(MAGIC, whole[_NUMBERS_AT:start], b"".join(part.tobytes() for part in parts), CUT_VERSION)
    return min(delta, whole, key=len)


def _kinds(old: StoredEmbedding, new: StoredEmbedding, places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What becomes of each new block, (K,)."""
    kinds = np.full(len(new.blocks), NEW, np.uint8)
    if old.precision != new.precision or old.codes.shape[1] != new.codes.shape[1]:
        return kinds
    there = np.flatnonzero(places >= 0)
    there = there[old.counts[places[there]] == new.counts[there]]
    if not len(there):
        return kinds
    mine, theirs = _pieces(new, there), _pieces(old, places[there])
    starts = np.cumsum(new.counts[there]) - new.counts[there]
    same_codes = np.logical_and.reduceat((new.codes[mine] == old.codes[theirs]).all(axis=1), starts)
    kinds[there[same_codes]] = HELD
    if has_scales(new.precision):
        same_scales = np.logical_and.reduceat(new.scales[mine] == old.scales[theirs], starts)
        kinds[there[same_codes & ~same_scales]] = RESCALED
    return kinds


def _pieces(stored: StoredEmbedding, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the row pieces of the blocks at these places (K,) lie, (T,)."""
    starts, counts = np.cumsum(stored.counts) - stored.counts, stored.counts[places]
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(np.repeat(starts[places], counts) + within, np.int64)


def _ids(stored: StoredEmbedding, dtype: np.dtype[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    ids = stored.blocks if stored.single else np.stack([stored.blocks, stored.starts, stored.counts], axis=1)
    return ids.astype(dtype)


def _packed(kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    padded = np.zeros(-(-len(kinds) // _PER_BYTE) * _PER_BYTE, np.uint8)
    padded[: len(kinds)] = kinds
    shifted = padded.reshape(-1, _PER_BYTE) << (2 * np.arange(_PER_BYTE, dtype=np.uint8))
    return cast("NDArray[np.uint8]", np.bitwise_or.reduce(shifted, axis=1))
