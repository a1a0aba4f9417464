"""Deltas from one artefact to another, in every precision, whoever made them."""

import numpy as np
import pytest

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.model.device import MAGIC, _packed, delta_of
from fl_peel.scenario.settings import PRECISIONS
from tests.helpers.blocks import LAYOUT_KINDS, layout_of, random_table
from tests.helpers.deltas import applied, unpacked


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", LAYOUT_KINDS)
def test_what_is_held_is_kept_and_what_is_new_is_sent(precision, kind):
    """Of the new one's blocks 7, 3, 0, 1 two are held, in other places; 0 and 1 are of an item group that changed."""
    layout, rng = layout_of(kind, 12, 4, 20, 2, 0), np.random.default_rng(3)
    table = random_table(rng, layout)
    newer = table.copy()
    newer[layout.item_group == 0] += 1
    old, new = (
        StoredEmbedding.build(layout, precision, rng.normal(size=40).astype(np.float32), np.array(blocks), rows)
        for blocks, rows in (([0, 1, 2, 3, 7], table), ([7, 3, 0, 1], newer))
    )
    delta = delta_of(old, new, np.array([4, 3, 0, 1]))
    assert delta.startswith(MAGIC)
    assert applied(old, delta).to_bytes() == new.to_bytes()
    pieces = int(new.counts[:2].sum())
    place_bytes = 2 * 2 + 1  # and one byte of what becomes of four blocks
    assert len(new.to_bytes()) - len(delta) == new.codes[:pieces].nbytes + new.scales[:pieces].nbytes - place_bytes
    nothing = delta_of(old, new, np.full(4, -1))
    assert nothing == new.to_bytes()


def test_of_another_precision_nothing_is_held():
    layout = layout_of("single", 12, 12, 20, 2, 0)
    table, user = np.ones((12, 40), np.float32), np.ones(40, np.float32)
    half, single = (StoredEmbedding.build(layout, kind, user, np.arange(6), table) for kind in ("fp16", "fp32"))
    assert delta_of(half, single, np.arange(6)) == single.to_bytes()


def test_where_blocks_are_many_their_numbers_are_wide():
    """40,000 items in two slices: 80,000 blocks, four bytes a number."""
    layout = BlockLayout(np.arange(40_000, dtype=np.int32), 64, 2)
    table, user = np.ones((40_000, 64), np.float32), np.ones(64, np.float32)
    blocks = np.array([79_999, 3, 70_000])
    old, new = (StoredEmbedding.build(layout, "int8", user, some, table) for some in (blocks, blocks[::-1]))
    delta = delta_of(old, new, np.array([2, 1, 0]))
    assert applied(old, delta).to_bytes() == new.to_bytes()
    assert len(delta) == len(new.to_bytes()) - 3 * (32 + 2) + 3 * 4 + 1


def test_four_blocks_are_told_in_a_byte_lowest_first():
    assert _packed(np.array([1, 2, 0, 1, 2], np.uint8)).tolist() == [1 + 2 * 4 + 64, 2]
    assert unpacked(np.array([73, 2], np.uint8), 5).tolist() == [1, 2, 0, 1, 2]
    assert _packed(np.zeros(0, np.uint8)).tolist() == []
