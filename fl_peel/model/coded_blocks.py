"""Item tables of user groups as a saved model has them: each group's order of blocks, and what is in the blocks.

Blocks lie in the order of their numbers, coded in one precision, and are put into a group's own order when they are
asked for. Where most groups have many blocks in common, these are in one base, and a group has those that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.precision import Codes, code_columns, code_dtype, has_scales, quantize
from fl_peel.blocks.ranked_blocks import RankedBlocks, pack_blocks
from fl_peel.blocks.settings import Precision
from fl_peel.errors import MessageError, ModelError

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
        """Return the arrays to save, by name."""
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
