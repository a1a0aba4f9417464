"""Bytes and shapes at the edges: shares in whole bytes, nothing sent, ranks of blocks, what a stored file may say."""

import numpy as np
import pytest

from fl_peel.blocks.layout import BlockLayout, budget_bytes, dequantize, quantize, share_bytes
from fl_peel.blocks.ranked_blocks import (
    RankedBlocks,
    check_budget,
    pack_ranking,
    rank_blocks,
    smallest_budget_bytes,
)
from fl_peel.blocks.stored import StoredEmbedding, overhead_bytes, stored_user
from fl_peel.errors import BudgetError
from tests.helpers.blocks import rows_of

# group 0 = items 1, 4; group 1 = items 0, 2, 5; group 2 = item 3; three slices of two columns
LAYOUT = BlockLayout(np.array([1, 0, 1, 2, 0, 1], np.int32), 6, 3)
TABLE = np.arange(36, dtype=np.float32).reshape(6, 6)


def test_a_share_of_the_table_is_rounded_down_but_loses_no_whole_byte():
    assert LAYOUT.full_table_bytes == 144
    assert [budget_bytes(LAYOUT, share) for share in (0.0, 0.5, 0.99, 1.0, 1.5)] == [0, 72, 142, 144, 216]
    assert 0.07 * 100 > 7  # as doubles
    assert 0.29 * 100 < 29
    assert [share_bytes(100, share) for share in (0.07, 0.29, 0.2999, 0.0)] == [7, 29, 29, 0]
    assert isinstance(share_bytes(100, 0.5), int)


def test_what_is_kept_in_many_copies_is_kept_narrow():
    assert LAYOUT.catalogue.dtype == LAYOUT.row_in_catalogue.dtype == np.int32
    ranked = rank_blocks(LAYOUT, "int8", np.arange(9.0), TABLE)
    for values in (ranked.items, ranked.position, ranked.first_position, ranked.row_of_item):
        assert values.dtype == np.int32
    for values in (ranked.table, stored_user(np.ones(6, np.float32))):
        assert values.dtype == np.float32
    for values in (ranked.blocks, ranked.cost, ranked.rank_of_block, LAYOUT.block_bytes("int8"), LAYOUT.group_sizes):
        assert values.dtype == np.int64


def test_nothing_sent_is_nothing_kept():
    nothing = rank_blocks(LAYOUT, "int8", np.arange(9.0), TABLE, budget_bytes=0)
    assert (len(nothing.blocks), len(nothing.items)) == (0, 0)
    assert nothing.first_position.shape == (0,)
    assert nothing.first_position.dtype == np.int32
    assert nothing.cutoffs(np.array([0, 10_000])).tolist() == [0, 0]
    assert nothing.num_present(np.array([0, 9])).tolist() == [0, 0]
    assert nothing.unneeded(rows_of([0, 1, 2, 3, 4, 5])).row(0).tolist() == []
    assert (nothing.row_of_item == -1).all()
    assert (nothing.rank_of_block == -1).all()


def test_ranks_of_blocks():
    ranked = rank_blocks(LAYOUT, "int8", np.arange(9.0), TABLE)
    assert ranked.rank_of_block.tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    single = rank_blocks(BlockLayout(np.arange(6, dtype=np.int32), 6, 1), "int8", np.arange(6.0), TABLE)
    assert single.position.dtype == single.items.dtype == np.int32


def test_the_smallest_budget_holds_the_smallest_block():
    # int8: group 2 has one item of two columns: 6 + 2 + 2 = 10 bytes; group 1 has three: 6 + 12
    smallest = smallest_budget_bytes(LAYOUT, "int8")
    assert smallest == overhead_bytes(2) + 10
    check_budget(LAYOUT, "int8", smallest, "here")
    with pytest.raises(BudgetError, match=f"^here: budget {smallest - 1} B is below one block"):
        check_budget(LAYOUT, "int8", smallest - 1, "here")


@pytest.mark.parametrize(
    ("precision", "codes", "scales"), [("fp32", 8, 0), ("fp16", 4, 0), ("int8", 2, 2), ("int4", 1, 2)]
)
def test_what_is_sent_is_as_wide_as_it_must_be(precision, codes, scales):
    """A row piece has two columns; a block's number takes two bytes; its weight is not sent; arrays are flat."""
    sent = pack_ranking(LAYOUT, precision, np.arange(9.0), TABLE, None)
    pieces = 6 * 3
    expected = {"blocks": 9 * 2, "codes": pieces * codes, "scales": pieces * scales}
    assert {name: values.nbytes for name, values in sent.items()} == expected
    assert {values.ndim for values in sent.values()} == {1}
    ranked = RankedBlocks.unpack(LAYOUT, precision, sent)
    assert ranked.table.dtype == dequantize(*quantize(TABLE, precision), precision, 6).dtype == np.float32


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_rows_in_double_are_coded_as_in_single(precision):
    rows = np.array([[1.0, -0.3, 0.123456789], [0.0, 0.0, 0.0]])
    (codes, scales), (single, its_scales) = quantize(rows, precision), quantize(rows.astype(np.float32), precision)
    assert (codes.dtype, scales.dtype) == (single.dtype, np.dtype(np.float16))
    assert (codes == single).all()
    assert (scales == its_scales).all()


# ---------------------------------------------------------------- stored files


def test_block_numbers_are_as_wide_as_slices_make_them():
    layout = BlockLayout(np.arange(300, dtype=np.int32), 219, 219)  # 300 items, 65,700 blocks
    stored = StoredEmbedding.build(layout, "fp32", np.ones(219, np.float32), np.array([65_699]), np.ones((300, 219)))
    data = stored.to_bytes()
    assert StoredEmbedding.from_bytes(data).blocks.tolist() == [65_699]
    assert len(data) == overhead_bytes(219) + 4 + 4
