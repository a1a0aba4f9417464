"""A saved model: it is read, a device joins it, and its groups' tables are handed out in their own order.

It has each user group's order of blocks, and what is in the blocks. Blocks lie in the order of their numbers, coded in
one precision, and are put into a group's own order when they are asked for. Where most groups have many blocks in
common, these are in one base, and a group has those that differ.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fl_peel import __version__
from fl_peel.blocks.layout import BlockLayout, Codes, code_columns, code_dtype, has_scales, quantize
from fl_peel.blocks.ranked_blocks import RankedBlocks, pack_blocks
from fl_peel.data.interactions import UserItems
from fl_peel.errors import MessageError, ModelError, ScenarioError
from fl_peel.model.device import KINDS, Device, Joining
from fl_peel.model.model_files import ABOUT, DIGEST, Catalogue, ModelFiles, OwnId, writing
from fl_peel.scenario.base import MOST_ITEMS, WIDEST
from fl_peel.scenario.settings import PRECISIONS, Precision

Tensors = Mapping[str, NDArray[Any]]
FloatArray = NDArray[np.float32]
WHOLE_BYTES = 256_000_000
"""Size of all tables in fp32, including a base, up to which they are saved in fp32 and serve in every precision. Larger
ones are saved as devices of the run read them, in the precision of its blocks alone.
"""


@dataclass(frozen=True)
class CodedBlocks:
    """Blocks (C,) by number, ascending, None for all: codes (T, columns) of their row pieces, block after block, and
    scales (T,), empty for floats.
    """

    numbers: NDArray[np.int64] | None
    codes: Codes
    scales: NDArray[np.float16]

    @staticmethod
    def coded(
        layout: BlockLayout, precision: Precision, table: FloatArray, numbers: NDArray[np.int64] | None = None
    ) -> CodedBlocks:
        """Return the coded blocks of a table (I, d)."""
        some = np.arange(layout.num_blocks) if numbers is None else numbers
        packed = pack_blocks(layout, precision, some, table)
        codes = packed["codes"].view(code_dtype(precision)).reshape(-1, code_columns(layout.slice_dim, precision))
        return CodedBlocks(numbers, codes, packed["scales"].astype(np.float16))

    def tensors(self, layout: BlockLayout) -> dict[str, NDArray[Any]]:
        numbers = {} if self.numbers is None else {"blocks": self.numbers.astype(layout.id_dtype)}
        return {**numbers, "codes": self.codes, "scales": self.scales}

    @staticmethod
    def from_tensors(tensors: Tensors, layout: BlockLayout, precision: Precision) -> CodedBlocks:
        """Return the blocks that :meth:`tensors` gave.

        Raises:
            ModelError: the tensors do not fit the layout.
        """
        numbers = None
        if "blocks" in tensors:
            numbers = block_numbers(tensors, "blocks", layout)
            if (np.diff(numbers) <= 0).any():
                raise ModelError("its blocks are not ascending")
        pieces = layout.num_items * layout.num_slices if numbers is None else len(piece_places(layout, numbers))
        columns = code_columns(layout.slice_dim, precision)
        for name, dtype, shape in (
            ("codes", code_dtype(precision), (pieces, columns)),
            ("scales", np.dtype(np.float16), (pieces if has_scales(precision) else 0,)),
        ):
            array = tensors.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                raise ModelError(f"{name} are not {shape} of {dtype}")
        return CodedBlocks(numbers, tensors["codes"], tensors["scales"])

    def over(self, base: CodedBlocks | None, layout: BlockLayout) -> CodedBlocks:
        """Return all blocks: these, and those of ``base`` that are not among them.

        Raises:
            ModelError: there are others, and no base.
        """
        if self.numbers is None:
            return self
        if base is None:
            raise ModelError("it has some of its blocks, and the model has no base with the others")
        places = piece_places(layout, self.numbers)
        codes, scales = base.codes.copy(), base.scales.copy()
        codes[places] = self.codes
        if len(scales):
            scales[places] = self.scales
        return CodedBlocks(None, codes, scales)


def piece_places(layout: BlockLayout, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places (T,) of the row pieces of blocks (K,) among those of all blocks, block after block."""
    if layout.is_single:
        return blocks
    sizes = np.repeat(layout.group_sizes, layout.num_slices)
    starts = np.cumsum(sizes) - sizes
    mine = sizes[blocks]
    within = np.arange(int(mine.sum())) - np.repeat(np.cumsum(mine) - mine, mine)
    return np.repeat(starts[blocks], mine) + within


def block_numbers(tensors: Tensors, name: str, layout: BlockLayout) -> NDArray[np.int64]:
    """Return block numbers (C,), all different.

    Raises:
        ModelError: the array is something else.
    """
    numbers = tensors.get(name)
    if numbers is None or numbers.dtype != layout.id_dtype or numbers.ndim != 1:
        raise ModelError(f"{name} is missing, or no list of {layout.id_dtype}")
    there = np.zeros(layout.num_blocks, np.bool_)
    if numbers.max(initial=0) < layout.num_blocks:
        there[numbers] = True
    if np.count_nonzero(there) < len(numbers):
        raise ModelError(f"{name} names a block twice, or one beyond {layout.num_blocks}")
    return numbers.astype(np.int64)


def changed_blocks(layout: BlockLayout, base: FloatArray, table: FloatArray) -> NDArray[np.int64]:
    """Return the numbers (C,), ascending, of the blocks in which two tables (I, d) differ."""
    shape = (layout.num_items, layout.num_slices, layout.slice_dim)
    items, slices = np.nonzero((base.reshape(shape) != table.reshape(shape)).any(axis=2))
    if layout.is_single:  # a block is a slice of one row: they are in order, and different
        return items * layout.num_slices + slices
    return np.unique(layout.item_group[items].astype(np.int64) * layout.num_slices + slices)


def ranked(
    layout: BlockLayout, saved: Precision, wanted: Precision, order: NDArray[np.int64], blocks: CodedBlocks
) -> RankedBlocks:
    """Return all blocks of a user group in its order (B,), as its devices decode them.

    Raises:
        ModelError: they were saved in a coarser precision, or hold numbers that are not finite.
    """
    if wanted != saved and saved != "fp32":
        raise ModelError(f"tables of this model are in {saved} alone; leave out the precision, or ask for {saved}")
    places = piece_places(layout, order)
    codes = blocks.codes[places]
    scales = blocks.scales[places] if len(blocks.scales) else blocks.scales
    if wanted != saved:
        codes, scales = quantize(codes.astype(np.float32, copy=False), wanted)
    packed: dict[str, NDArray[np.generic]] = {
        "blocks": order.astype(layout.id_dtype),
        "codes": np.ascontiguousarray(codes.astype(code_dtype(wanted), copy=False)).view(np.uint8).reshape(-1),
        "scales": scales,
    }
    try:
        return RankedBlocks.unpack(layout, wanted, packed)
    except MessageError as error:
        raise ModelError(str(error)) from error


CATALOGUE, ITEMS, JOINING, BASE = "catalogue.json", "item-groups.safetensors", "joining.safetensors", "base.safetensors"
MOST_LISTS = 4
"""User groups whose blocks are held ready, decoded."""
WORTH_A_BASE = 0.8
"""Share of all blocks, base included, below which groups are saved as what differs from it."""


ForEach = Callable[[Callable[[int], None], Iterable[int]], object]
"""Does the work for every number."""


def in_turn(work: Callable[[int], None], groups: Iterable[int]) -> None:
    """One after the other."""
    for group in groups:
        work(group)


def list_name(group: int) -> str:
    """File of a user group's order of blocks and its blocks."""
    return f"group-{group:05}.safetensors"


@dataclass(frozen=True, eq=False)
class ModelContent:
    """What a model is made of. orders: (B,) blocks of each user group, best first; tables: (I, d) of each; base: a
    table (I, d) that groups may have most blocks of; precision: of blocks that devices read.
    """

    catalogue: Catalogue
    joining: Joining
    precision: Precision
    orders: Sequence[NDArray[np.integer]]
    tables: Sequence[FloatArray]
    base: FloatArray | None = None


def save(folder: Path, content: ModelContent, each: ForEach = in_turn) -> int:
    """Save a model, whole or not at all; returns its bytes. each: does the work for every group, in any order."""
    catalogue, joining, precision = content.catalogue, content.joining, content.precision
    orders, tables, base = content.orders, content.tables, content.base
    layout = catalogue.layout
    different = _different(layout, base, tables)
    whole = 1 + sum(map(len, different)) / layout.num_blocks if different is not None else len(tables)
    saved: Precision = "fp32" if whole * layout.full_table_bytes <= WHOLE_BYTES else precision
    about = {
        "package": __version__,
        "precision": precision,
        "tables": saved,
        "items": layout.num_items,
        "embedding_dim": layout.embedding_dim,
        "slices": layout.num_slices,
        "user_groups": len(tables),
        "joining": joining.kind,
    }
    with writing(folder, about) as written:
        titles = {"titles": dict(catalogue.titles)} if catalogue.titles else {}
        written.add_json(CATALOGUE, {"ids": list(catalogue.ids), **titles})
        written.add_tensors(ITEMS, {"item_group": layout.item_group})
        written.add_tensors(JOINING, joining.tensors())
        if different is not None:
            assert base is not None, "groups differ from something"
            written.add_tensors(BASE, CodedBlocks.coded(layout, saved, base).tensors(layout))

        def one(group: int) -> None:
            some = None if different is None else different[group]
            blocks = CodedBlocks.coded(layout, saved, tables[group], some)
            order = {"order": orders[group].astype(layout.id_dtype)}
            written.add_tensors(list_name(group), order | blocks.tensors(layout))

        each(one, range(len(tables)))
    return written.num_bytes


def _different(
    layout: BlockLayout, base: FloatArray | None, tables: Sequence[FloatArray]
) -> list[NDArray[np.int64]] | None:
    """Blocks of each group that differ from the base; None where they are too many to be worth one."""
    if base is None or len(tables) < 2:
        return None
    changes, total, most = [], layout.num_blocks, WORTH_A_BASE * len(tables) * layout.num_blocks
    for table in tables:
        changes.append(changed_blocks(layout, base, table))
        total += len(changes[-1])
        if total > most:
            return None
    return changes


@dataclass(frozen=True, eq=False)
class Model:
    """A saved model. precision: precision of the blocks that devices of its run download; tables: precision in which
    its tables are saved, fp32 for models that serve in every precision."""

    files: ModelFiles
    catalogue: Catalogue
    joining: Joining
    precision: Precision
    tables: Precision
    _lists: OrderedDict[tuple[int, Precision], RankedBlocks] = field(default_factory=OrderedDict, repr=False)

    @staticmethod
    def load(path: str | PathLike[str]) -> Model:
        """Read a model; the blocks of a user group are read and checked at first use.

        Raises:
            ModelError: something is missing, damaged, of another version, or does not fit; names the file.
        """
        files = ModelFiles.open(Path(path))
        num_items, dim = files.number("items", MOST_ITEMS), files.number("embedding_dim", WIDEST)
        catalogue = Catalogue(_layout(files, num_items, dim), _ids(files, num_items), _titles(files))
        num_groups = files.number("user_groups", len(files.about["files"]))
        missing = [name for name in map(list_name, range(num_groups)) if not files.has(name)]
        if missing:
            raise files.fault(ABOUT, f"does not list {missing[0]}")
        joining = _joining(files, num_items, dim, num_groups)
        precision, tables = (files.text(key, *PRECISIONS) for key in ("precision", "tables"))
        if tables not in ("fp32", precision):
            raise files.fault(ABOUT, f"its tables are in {tables}, and its devices read {precision}")
        return Model(files, catalogue, joining, cast(Precision, precision), cast(Precision, tables))

    @property
    def digest(self) -> str:
        """Digest of the whole content: models with equal digests are equal."""
        return self.files.text(DIGEST)

    @property
    def num_items(self) -> int:
        return self.catalogue.num_items

    @property
    def num_groups(self) -> int:
        return self.joining.num_groups

    @property
    def layout(self) -> BlockLayout:
        return self.catalogue.layout

    @property
    def precisions(self) -> tuple[Precision, ...]:
        return PRECISIONS if self.tables == "fp32" else (self.tables,)

    def device(self, interactions: Iterable[OwnId], *, also_seen: Iterable[OwnId] = ()) -> Device:
        """Join a device with its own interactions, oldest first, without a server. also_seen: further items that are
        not recommended to it.

        Raises:
            ModelError: no interactions, or an id that no item has.
        """
        items = self.catalogue.items(interactions)
        if not len(items):
            raise ModelError("interactions: none are given, and a device joins by them; give one item at least")
        seen = np.unique(np.concatenate([items, self.catalogue.items(also_seen)]))
        user, group = self._joined(items)
        return Device(self, group, user, tuple(items.tolist()), tuple(seen.tolist()))

    def _joined(self, items: NDArray[np.int32]) -> tuple[FloatArray, int]:
        """User embedding (d,) and group of a device with these items."""
        try:
            with np.errstate(all="ignore"):
                users, groups = self.joining.join(UserItems(np.array([0, len(items)], np.int64), items))
                storable = np.isfinite(users.astype(np.float16)).all()
        except np.linalg.LinAlgError:
            storable = np.False_
        if not storable:
            raise self.files.fault(JOINING, "gives no user embedding that can be stored")
        return users[0], int(groups[0])

    def blocks(self, group: int, precision: Precision | None = None) -> RankedBlocks:
        """Return all blocks of a user group, in its order.

        Raises:
            ModelError: no such group or precision, or its file is damaged.
        """
        wanted = precision or self.precision
        if wanted not in PRECISIONS:
            raise ModelError(f"precision {str(wanted)[:20]!r} is unknown; choose from {', '.join(self.precisions)}")
        if not 0 <= group < self.num_groups:
            raise ModelError(f"user group {group}: there are {self.num_groups}, which count from 0")
        ranked = self._lists.pop((group, wanted), None)
        if ranked is None:
            ranked = self._read(group, wanted)
        self._lists[group, wanted] = ranked
        while len(self._lists) > MOST_LISTS:
            self._lists.popitem(last=False)
        return ranked

    def _read(self, group: int, precision: Precision) -> RankedBlocks:
        name, layout = list_name(group), self.layout
        if precision not in self.precisions:
            raise ModelError(
                f"{self.files.folder}: its tables are in {self.tables} alone, not {precision}; leave out the precision"
            )
        tensors = self.files.tensors(name)
        try:
            order = block_numbers(tensors, "order", layout)
            if len(order) != layout.num_blocks:
                raise ModelError(f"order has {len(order)} of {layout.num_blocks} blocks")
            whole = CodedBlocks.from_tensors(tensors, layout, self.tables).over(self._base, layout)
            return ranked(layout, self.tables, precision, order, whole)
        except (ModelError, ScenarioError) as error:
            raise self.files.fault(name, str(error)) from error

    @cached_property
    def _base(self) -> CodedBlocks | None:
        if not self.files.has(BASE):
            return None
        return CodedBlocks.from_tensors(self.files.tensors(BASE), self.layout, self.tables)


def _layout(files: ModelFiles, num_items: int, dim: int) -> BlockLayout:
    slices = files.number("slices", dim)
    item_group: NDArray[Any] | None = files.tensors(ITEMS).get("item_group")
    if item_group is None or item_group.dtype != np.int32 or item_group.shape != (num_items,):
        raise files.fault(ITEMS, f"item_group is not of {num_items} items")
    if dim % slices:
        raise files.fault(ABOUT, f"slices {slices} do not divide {dim} columns")
    if item_group.min() < 0 or item_group.max() >= num_items or not np.bincount(item_group).all():
        raise files.fault(ITEMS, "its item groups are not numbered from 0 without gaps")
    return BlockLayout(item_group, dim, slices)


def _ids(files: ModelFiles, num_items: int) -> tuple[str, ...]:
    content = files.json(CATALOGUE)
    ids = content.get("ids") if isinstance(content, dict) else None
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise files.fault(CATALOGUE, "has no list of ids")
    if ids and (len(ids) != num_items or len(set(ids)) != num_items):
        raise files.fault(CATALOGUE, f"has {len(set(ids))} different ids for {num_items} items")
    return tuple(ids)


def _titles(files: ModelFiles) -> dict[str, str]:
    titles = files.json(CATALOGUE).get("titles", {})
    if not isinstance(titles, dict) or not all(isinstance(title, str) for title in titles.values()):
        raise files.fault(CATALOGUE, "has titles that are no text")
    return titles


def _joining(files: ModelFiles, num_items: int, dim: int, num_groups: int) -> Joining:
    kind = KINDS[files.text("joining", *KINDS)]
    try:
        joining = kind.from_tensors(files.tensors(JOINING))
        if joining.centroids.ndim != 2 or joining.num_groups != num_groups:
            raise ModelError(f"centroids of shape {joining.centroids.shape} for {num_groups} user groups")
        joining.check(num_items, dim)
    except ModelError as error:
        if str(files.folder) in str(error):
            raise
        raise files.fault(JOINING, str(error)) from error
    return joining


load = Model.load
