"""Elastic tables: blocks that a budget holds, and what a device reads and drops as it moves.

Shrinking needs no message: the blocks of a :class:`fl_peel.blocks.stored.StoredEmbedding` lie in the order of their
weights, so that a device drops the last ones. To grow it names the last block it holds and reads on in its user group's
list from there, block after block, until one that it needs no longer fits. The list itself it does not keep. Blocks of
items that it knows already it is sent all the same and passes over: asking around them would name them. Either way it
ends with the very bytes that choosing from scratch under the new budget gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout, code_columns, code_dtype, has_scales
from fl_peel.blocks.ranked_blocks import RankedBlocks, prefix_length
from fl_peel.blocks.stored import HEADER_BYTES, StoredEmbedding, overhead_bytes, user_bytes, user_slices
from fl_peel.data.interactions import UserItems
from fl_peel.errors import ArtifactError, BudgetError
from fl_peel.scenario.settings import Precision


@dataclass(frozen=True)
class ElasticEmbedding:
    """One device's elastic embedding: the list of its user group, and what it keeps of it under a budget.

    >>> pee = ElasticEmbedding(ranked, user, seen_items)      # doctest: +SKIP
    >>> small = pee.at(budget_bytes=10_000)                   # a StoredEmbedding of at most 10,000 bytes
    """

    ranked: RankedBlocks
    user: NDArray[np.float32]
    seen: NDArray[np.integer]
    user_group: int = 0

    def kept(self, budget_bytes: int) -> NDArray[np.int64]:
        """Block numbers kept under a budget, best first; empty where not even the user embedding fits."""
        items = np.unique(self.seen).astype(np.int32)  # seen twice is seen once
        seen = UserItems(np.array([0, len(items)], np.int64), items)
        cutoff = int(self.ranked.serving_cutoffs(np.array([budget_bytes], np.int64), seen)[0][0])
        skipped = self.ranked.unneeded(seen).items
        ranks = np.setdiff1d(np.arange(cutoff), skipped)
        return self.ranked.blocks[ranks]

    def at(self, budget_bytes: int) -> StoredEmbedding:
        """The artefact for a budget.

        Raises:
            BudgetError: the budget does not even hold the header and a slice of the user embedding.
        """
        layout = self.ranked.layout
        _check_budget(layout, budget_bytes)
        blocks = self.kept(budget_bytes)
        items, slices, _ = layout.block_rows(blocks)
        rows = self.ranked.table.reshape(-1, layout.num_slices, layout.slice_dim)
        pieces = rows[self.ranked.row_of_item[items], slices]  # (T, s)
        return StoredEmbedding.from_pieces(layout, self.ranked.precision, self.user, blocks, pieces, self.user_group)

    def top_n(self, budget_bytes: int, n: int) -> NDArray[np.int64]:
        """Items recommended under a budget, best first."""
        stored = self.at(budget_bytes)
        layout = self.ranked.layout
        return layout.catalogue[stored.top_n(n, layout.row_in_catalogue[self.seen])].astype(np.int64)


def shrink(stored: StoredEmbedding, layout: BlockLayout, budget_bytes: int) -> StoredEmbedding:
    """Drop the last blocks until the rest fits; nobody is asked.

    Raises:
        BudgetError: the budget does not even hold the header and a slice of the user embedding.
        ArtifactError: the embedding is of another catalogue.
    """
    check_catalogue(stored, layout)
    _check_budget(layout, budget_bytes)
    kept = prefix_length(layout, stored.precision, stored.blocks, budget_bytes)
    rows = int(stored.counts[:kept].sum())
    return replace(
        stored,
        user=stored.user[: user_slices(stored.blocks[:kept], layout.num_slices) * layout.slice_dim],
        blocks=stored.blocks[:kept],
        starts=stored.starts[:kept],
        counts=stored.counts[:kept],
        scales=stored.scales[:rows] if has_scales(stored.precision) else stored.scales,
        codes=stored.codes[:rows],
    )


def _check_budget(layout: BlockLayout, budget_bytes: int) -> None:
    least = overhead_bytes(layout.slice_dim)
    if budget_bytes < least:
        raise BudgetError(
            f"budget {budget_bytes} B does not hold header and user embedding ({least} B); raise the budget"
        )


def listed(
    layout: BlockLayout, precision: Precision, blocks: NDArray[np.integer], table: NDArray[np.float32]
) -> Iterator[bytes]:
    """Blocks (K,) of a user group's list as its devices read them: of each its id, the scales and codes of ``table``
    (I, d).
    """
    nobody = np.zeros(0, np.float32)
    for block in blocks.tolist():
        one = StoredEmbedding.build(layout, precision, nobody, np.array([block]), table)
        yield one.to_bytes()[HEADER_BYTES:]


def grow(
    stored: StoredEmbedding,
    layout: BlockLayout,
    seen: NDArray[np.integer],
    budget_bytes: int,
    following: Iterable[bytes],
    user: NDArray[np.float32],
) -> tuple[StoredEmbedding, int]:
    """Append what fits of ``following``: the list from behind the last block that is stored (the whole list where none
    is), as :func:`listed` has it, read no further than the id of the first block that is needed and does not fit.

    seen: items that the device has interacted with; of blocks that hold these alone none is needed. user: (d,) its
    user embedding, of which the file has the columns alone that its blocks have.
    Returns the embedding, and bytes read.

    Raises:
        ArtifactError: the embedding is of another catalogue; a block is not of its size, is not there, or is there
            twice.
    """
    check_catalogue(stored, layout)
    sizes = layout.block_bytes(stored.precision)
    known = np.bincount(layout.item_group[np.unique(seen)], minlength=layout.num_item_groups) == layout.group_sizes
    room = budget_bytes - overhead_bytes(layout.slice_dim) - int(sizes[stored.blocks].sum())
    slice_bytes, widest = user_bytes(layout.slice_dim), user_slices(stored.blocks, layout.num_slices) - 1
    read, parts = 0, [stored]
    for sent in following:
        block = _number(sent, layout)
        needed = not known[block // layout.num_slices]
        wider = max(widest, block % layout.num_slices)
        if needed and sizes[block] + wider * slice_bytes > room:
            read += layout.id_bytes
            break
        if len(sent) != sizes[block]:
            raise ArtifactError(f"block {block} takes {sizes[block]} bytes, {len(sent)} came; ask for it again")
        read += len(sent)
        if needed:
            room, widest = room - len(sent), wider
            parts.append(_alone(stored, layout, block, sent))
    grown = replace(_joined(parts), user=user[: (widest + 1) * layout.slice_dim].astype(np.float16))
    if len(np.unique(grown.blocks)) < len(grown.blocks):
        raise ArtifactError("the list has a block twice, or one that is stored; ask for it from the last block stored")
    return grown, read


def _number(sent: bytes, layout: BlockLayout) -> int:
    """Which block was sent.

    Raises:
        ArtifactError: none that the catalogue has.
    """
    block = int(np.frombuffer(sent, layout.id_dtype, 1)[0]) if len(sent) >= layout.id_bytes else -1
    if not 0 <= block < layout.num_blocks:
        raise ArtifactError(
            f"the list has {len(sent)} bytes that begin with no block of {layout.num_blocks}; ask for it again"
        )
    return block


def _alone(stored: StoredEmbedding, layout: BlockLayout, block: int, sent: bytes) -> StoredEmbedding:
    """One block as it was sent, with the user embedding and precision of ``stored``."""
    group = block // layout.num_slices
    rows, precision = int(layout.group_sizes[group]), stored.precision
    head = layout.id_bytes
    scales = np.frombuffer(sent, "<f2", rows if has_scales(precision) else 0, head)
    codes = np.frombuffer(sent, code_dtype(precision), offset=head + scales.nbytes)
    return replace(
        stored,
        blocks=np.array([block]),
        starts=layout.group_starts[[group]],
        counts=layout.group_sizes[[group]],
        scales=scales,
        codes=codes.reshape(rows, code_columns(layout.slice_dim, precision)),
    )


def _joined(parts: Sequence[StoredEmbedding]) -> StoredEmbedding:
    return replace(
        parts[0],
        blocks=np.concatenate([part.blocks for part in parts]),
        starts=np.concatenate([part.starts for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        codes=np.concatenate([part.codes for part in parts]),
    )


def check_catalogue(stored: StoredEmbedding, layout: BlockLayout) -> None:
    """Refuse an embedding whose block numbers mean other items.

    Raises:
        ArtifactError: its catalogue is not that of the layout.
    """
    if stored.catalogue != layout.digest:
        raise ArtifactError(
            f"stored embedding is of catalogue {stored.catalogue.hex()}, the list of {layout.digest.hex()}: "
            "download it anew"
        )
