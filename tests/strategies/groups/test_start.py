"""Which block is worth most before any round, in cases computed by hand."""

import numpy as np
import pytest

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks, ranked_as_numbered
from fl_peel.blocks.resizing import ElasticEmbedding
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.interactions import UserItems
from strategies.groups.start import shown_in_lists

NOTHING = UserItems(np.zeros(2, np.int64), np.zeros(0, np.int32))
USER = np.ones((1, 2), np.float32)
FIRST, SECOND, THIRD = 1.0, 1 / np.log2(3), 1 / np.log2(4)
"""What the places of a list count."""
NARROW = [[9, 1], [5.4, 0.6], [2.7, 0.3]]
"""Rows of two slices of a column each: the first slice makes nine tenths of every score."""
WIDE = [[5, 5], [2, 2], [1, 1]]


@pytest.mark.parametrize(
    ("table", "groups", "worth", "kept"),
    [
        # the third item's first slice (.45) is worth more than the first item's second one (.1)
        (
            NARROW,
            [0, 1, 2],
            [0.9 * FIRST, 0.1 * FIRST, 0.9 * SECOND, 0.1 * SECOND, 0.9 * THIRD, 0.1 * THIRD],
            [0, 2, 4],
        ),
        # the first item's second slice (.5) is worth more than the second item's first one (.32)
        (WIDE, [0, 1, 2], [0.5 * FIRST, 0.5 * FIRST, 0.5 * SECOND, 0.5 * SECOND, 0.5 * THIRD, 0.5 * THIRD], [0, 1, 2]),
        # the mean of the first two items' first slices (.73) is worth more a row than that of the third (.45)
        (NARROW, [0, 0, 1], [0.45 * (FIRST + SECOND), 0.05 * (FIRST + SECOND), 0.9 * THIRD, 0.1 * THIRD], [0, 2]),
    ],
    ids=["narrow", "wide", "coarse"],
)
def test_the_block_that_is_worth_most_for_its_bytes_is_kept_first(table, groups, worth, kept):
    layout, rows = BlockLayout(np.array(groups, np.int32), 2, 2), np.array(table, np.float32)
    shown = shown_in_lists(ranked_as_numbered(layout, rows), USER, NOTHING, list_length=3)
    per_row = shown / np.repeat(layout.group_sizes, 2)
    assert per_row == pytest.approx(worth, abs=1e-6)
    ranked = rank_blocks(layout, "int8", per_row, rows)
    room = int(layout.block_bytes("int8")[kept].sum())
    elastic = ElasticEmbedding(ranked, USER[0], np.zeros(0, np.int64))
    assert elastic.kept(overhead_bytes(2) + room).tolist() == kept
