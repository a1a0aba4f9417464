"""Ranked blocks as they travel: whatever cannot have been packed is refused."""

import numpy as np
import pytest

from fl_peel.blocks.layout import BlockLayout, has_scales
from fl_peel.blocks.ranked_blocks import check_packed, pack_blocks, rank_blocks, ranked_as_numbered
from fl_peel.errors import MessageError, ScenarioError
from fl_peel.scenario.settings import PRECISIONS
from tests.helpers.blocks import LAYOUT_KINDS, layout_of, random_table

LAYOUT = layout_of("unequal", 9, 3, 2, 2, 0)
"""Three item groups of 9 items in two slices of two columns: six blocks."""
BLOCKS = np.array([4, 0, 3])
ROWS = int(LAYOUT.group_sizes[BLOCKS // 2].sum())


def packed(precision, layout=LAYOUT, blocks=BLOCKS):
    return pack_blocks(layout, precision, blocks, random_table(np.random.default_rng(0), layout))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", LAYOUT_KINDS)
def test_what_was_packed_is_taken(precision, kind):
    layout = layout_of(kind, 9, 3, 2, 2, 0)
    check_packed(layout, precision, packed(precision, layout))
    check_packed(layout, precision, packed(precision, layout, BLOCKS[:0]))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"codes": None}, ""),
        ({"blocks": np.array([4, 0, 6], np.uint16)}, ""),  # blocks are 0 to 5
        ({"blocks": np.array([4, 0, 3], np.int64)}, ""),
        ({"blocks": np.array([4, 0, 3], np.uint32)}, "numbers of type uint32, not uint16"),
        ({"blocks": np.array([4, 0, 4], np.uint16)}, "a block is there twice"),
        (
            {"codes": np.zeros(2 * ROWS - 1, np.uint8)},
            f"{2 * ROWS - 1} bytes of codes and {ROWS} scales, where 3 blocks",
        ),
        ({"codes": np.zeros(2 * ROWS + 1, np.uint8)}, f"in int8 take {2 * ROWS} and {ROWS}"),
        ({"codes": np.zeros(2 * ROWS, np.int8)}, ""),
        ({"scales": np.zeros(ROWS - 1, np.float16)}, f"{2 * ROWS} bytes of codes and {ROWS - 1} scales"),
        ({"scales": np.zeros(ROWS, np.float32)}, ""),
    ],
)
def test_what_cannot_have_been_packed_is_refused(changes, why):
    arrays = {name: array for name, array in (packed("int8") | changes).items() if array is not None}
    with pytest.raises(MessageError, match=f"^ranked blocks.*{why}"):
        check_packed(LAYOUT, "int8", arrays)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_are_finite_and_have_no_scales(precision, value):
    right = packed(precision)
    assert not has_scales(precision)
    floats = right["codes"].view(f"<f{4 if precision == 'fp32' else 2}").copy()
    floats[-1] = value
    with pytest.raises(MessageError, match=r"^ranked blocks: not all numbers are finite"):
        check_packed(LAYOUT, precision, right | {"codes": floats.view(np.uint8)})
    with pytest.raises(MessageError, match="bytes of codes and 1 scales"):
        check_packed(LAYOUT, precision, right | {"scales": np.zeros(1, np.float16)})


def test_single_items_have_a_row_a_block():
    layout = layout_of("single", 9, 9, 2, 2, 0)
    right = packed("int8", layout)
    with pytest.raises(MessageError, match="7 bytes of codes and 3 scales, where 3 blocks in int8 take 6 and 3"):
        check_packed(layout, "int8", right | {"codes": np.zeros(7, np.uint8)})


@pytest.mark.parametrize("kind", LAYOUT_KINDS)
@pytest.mark.parametrize("slices", [1, 2])
def test_a_whole_table_is_as_if_it_had_travelled(kind, slices):
    layout = layout_of(kind, 9, 3, 2, slices, 0)
    table = random_table(np.random.default_rng(0), layout)
    result, sent = ranked_as_numbered(layout, table), rank_blocks(layout, "fp32", -np.arange(layout.num_blocks), table)
    assert result.layout is layout
    for name in ("blocks", "items", "table", "position"):
        one, other = getattr(result, name), getattr(sent, name)
        assert (one.dtype, one.tolist()) == (other.dtype, other.tolist())
    table[4, 1] = np.nan
    with pytest.raises(ScenarioError, match="diverged"):
        ranked_as_numbered(layout, table)


def test_a_whole_table_of_rows_is_not_copied():
    table = np.ones((5, 2), np.float32)
    result = ranked_as_numbered(BlockLayout(np.arange(5, dtype=np.int32), 2, 1), table)
    assert result.table is table
    assert result.precision == "fp32"
