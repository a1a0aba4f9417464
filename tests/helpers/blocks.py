"""What the tests of blocks, artefacts and selection share: small layouts of every kind, with random tables."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from fl_peel.blocks.layout import BlockLayout
from fl_peel.data.interactions import UserItems
from fl_peel.scenario.settings import PRECISIONS

LAYOUT_KINDS = ("single", "contiguous", "unequal")


def layout_of(kind: str, num_items: int, num_groups: int, slice_dim: int, num_slices: int, seed: int) -> BlockLayout:
    """single: an item a group; contiguous: runs of ids; unequal: scattered ids, the first group by far the largest."""
    num_groups = min(num_groups, num_items)
    numbers = np.arange(num_items)
    if kind == "single":
        groups = numbers
    elif kind == "contiguous":
        groups = numbers * num_groups // num_items
    else:
        rng = np.random.default_rng(seed)
        extra = (num_groups * rng.random(num_items - num_groups) ** 3).astype(np.int64)  # most in group 0
        groups = rng.permutation(np.concatenate([np.arange(num_groups), extra]))
    return BlockLayout(groups.astype(np.int32), slice_dim * num_slices, num_slices)


layouts = st.builds(
    layout_of,
    kind=st.sampled_from(LAYOUT_KINDS),
    num_items=st.integers(1, 30),
    num_groups=st.integers(1, 7),
    slice_dim=st.integers(1, 5),
    num_slices=st.sampled_from([1, 2, 3, 4]),
    seed=st.integers(0, 10_000),
)
precisions = st.sampled_from(PRECISIONS)
seeds = st.integers(0, 2**32 - 1)


def random_table(rng: np.random.Generator, layout: BlockLayout) -> np.ndarray:
    """(I, d) float32, normal."""
    return rng.normal(size=(layout.num_items, layout.embedding_dim)).astype(np.float32)


def rows_of(*rows: list[int]) -> UserItems:
    """The given items of each user."""
    indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return UserItems(indptr, np.array([item for row in rows for item in row], np.int32))
