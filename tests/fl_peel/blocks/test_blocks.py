"""BlockLayout: rows, ranges and bytes of blocks, by hand and for every layout."""

import numpy as np
import pytest
from hypothesis import given

from fl_peel.blocks.layout import BlockLayout, row_bytes
from fl_peel.errors import ScenarioError
from fl_peel.scenario.settings import PRECISIONS
from tests.helpers.blocks import layouts, precisions
from tests.helpers.examples import examples

# group 0 = items 1, 4; group 1 = items 0, 2, 5; group 2 = item 3; three slices of two columns
SIX_ITEMS = BlockLayout(np.array([1, 0, 1, 2, 0, 1], np.int32), 6, 3)


def test_the_catalogue_lists_items_group_by_group():
    assert SIX_ITEMS.group_sizes.tolist() == [2, 3, 1]
    assert SIX_ITEMS.catalogue.tolist() == [1, 4, 0, 2, 5, 3]
    assert SIX_ITEMS.group_starts.tolist() == [0, 2, 5, 6]
    assert (SIX_ITEMS.num_items, SIX_ITEMS.num_item_groups, SIX_ITEMS.num_blocks, SIX_ITEMS.slice_dim) == (6, 3, 9, 2)
    assert SIX_ITEMS.full_table_bytes == 6 * 6 * 4


def test_block_bytes_are_counted_once():
    layout = BlockLayout(np.zeros(3, np.int32), 2, 1)
    assert layout.block_bytes("int8") is layout.block_bytes("int8")
    assert layout.block_bytes("fp32").tolist() != layout.block_bytes("int8").tolist()
    with pytest.raises(ValueError, match="read-only"):
        layout.block_bytes("int8")[0] = 0


def test_block_bytes_by_hand():
    # a block is identified by three uint16 numbers: 6 bytes; a piece of two columns takes:
    # fp32 8, fp16 4, int8 2 codes + 2 of scale = 4, int4 1 byte of codes + 2 of scale = 3
    expected = {"fp32": [22, 30, 14], "fp16": [14, 18, 10], "int8": [14, 18, 10], "int4": [12, 15, 9]}
    for precision in PRECISIONS:
        assert SIX_ITEMS.block_bytes(precision).tolist() == np.repeat(expected[precision], 3).tolist()


def test_single_items_are_identified_by_one_number():
    layout = BlockLayout(np.arange(5, dtype=np.int32), 4, 1)
    assert layout.is_single
    assert layout.block_bytes("int8").tolist() == [2 + 4 + 2] * 5  # number, codes, scale


def test_single_items_out_of_order_are_stored_as_groups():
    """Block g would not be item g, so a block number alone could not say which item it holds."""
    layout = BlockLayout(np.array([1, 0, 2], np.int32), 4, 1)
    assert not layout.is_single
    assert layout.block_bytes("int8").tolist() == [6 + 4 + 2] * 3


@pytest.mark.parametrize(
    ("num_items", "num_groups", "num_slices", "expected"),
    [
        (65_535, 1, 1, "<u2"),  # the largest number is the count of the one group, 65535
        (65_536, 1, 1, "<u4"),  # a count of 65536 does not fit
        (300, 300, 218, "<u2"),  # 65400 blocks
        (300, 300, 219, "<u4"),  # 65700 blocks
    ],
)
def test_numbers_take_two_bytes_as_long_as_all_fit(num_items, num_groups, num_slices, expected):
    layout = BlockLayout((np.arange(num_items) % num_groups).astype(np.int32), num_slices, num_slices)
    assert layout.id_dtype.str == expected
    largest = max(layout.num_blocks - 1, int(layout.group_starts[-2]), int(layout.group_sizes.max()))
    assert largest <= np.iinfo(layout.id_dtype).max


def test_block_rows_by_hand():
    # block 4 = group 1, slice 1; block 0 = group 0, slice 0; block 8 = group 2, slice 2
    items, slices, place = SIX_ITEMS.block_rows(np.array([4, 0, 8]))
    assert items.tolist() == [0, 2, 5, 1, 4, 3]
    assert slices.tolist() == [1, 1, 1, 0, 0, 2]
    assert place.tolist() == [0, 0, 0, 1, 1, 2]
    assert [len(part) for part in SIX_ITEMS.block_rows(np.zeros(0, np.int64))] == [0, 0, 0]


def test_slices_must_divide_the_dimension():
    with pytest.raises(ScenarioError, match=r"blocks\.num_slices: 3 does not divide embedding_dim 8"):
        BlockLayout(np.zeros(2, np.int32), 8, 3)
    with pytest.raises(ScenarioError, match=r"blocks\.num_slices: 0"):
        BlockLayout(np.zeros(2, np.int32), 8, 0)


@examples(150)
@given(layout=layouts, precision=precisions)
def test_all_blocks_together_are_the_whole_table_once(layout, precision):
    items, slices, place = layout.block_rows(np.arange(layout.num_blocks))
    pieces = set(zip(items.tolist(), slices.tolist(), strict=True))
    assert len(items) == len(pieces) == layout.num_items * layout.num_slices
    assert (place == layout.item_group[items] * layout.num_slices + slices).all()
    assert (layout.catalogue[layout.group_starts[:-1]] == [np.flatnonzero(layout.item_group == g)[0]
            for g in range(layout.num_item_groups)]).all()  # fmt: skip
    whole = layout.num_blocks * layout.id_bytes + len(items) * row_bytes(layout.slice_dim, precision)
    assert layout.block_bytes(precision).sum() == whole
