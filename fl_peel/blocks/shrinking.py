"""A stored embedding that grows and shrinks in place, and the bytes that takes.

Shrinking needs no message: the blocks of a :class:`fl_peel.blocks.stored.StoredEmbedding` lie in the order of their
weights, so that a device drops the last ones. Growing needs the missing blocks and nothing else: the device knows the
ranked list, asks for the ranks that it lacks, and is sent their scales and codes, block after block, without ids or
header. Either way it ends with the very bytes that choosing from scratch under the new budget gives.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.precision import Codes, code_columns, code_dtype, has_scales, quantize, row_bytes
from fl_peel.blocks.settings import Precision
from fl_peel.blocks.stored import StoredEmbedding, overhead_bytes
from fl_peel.errors import ArtifactError, BudgetError


def shrink(stored: StoredEmbedding, layout: BlockLayout, budget_bytes: int) -> StoredEmbedding:
    """Drop the last blocks until the rest fits; nobody is asked.

    Raises:
        BudgetError: the budget does not even hold the header and the user embedding.
    """
    room = budget_bytes - overhead_bytes(stored.embedding_dim)
    if room < 0:
        raise BudgetError(
            f"budget {budget_bytes} B does not hold header and user embedding "
            f"({overhead_bytes(stored.embedding_dim)} B); raise the budget"
        )
    cost = np.cumsum(layout.block_bytes(stored.precision)[stored.blocks])
    kept = int(np.searchsorted(cost, room, side="right"))
    rows = int(stored.counts[:kept].sum())
    return replace(
        stored,
        blocks=stored.blocks[:kept],
        starts=stored.starts[:kept],
        counts=stored.counts[:kept],
        scales=stored.scales[:rows] if has_scales(stored.precision) else stored.scales,
        codes=stored.codes[:rows],
    )


def growth_payload(
    layout: BlockLayout, precision: Precision, blocks: NDArray[np.integer], table: NDArray[np.float32]
) -> bytes:
    """What the server answers to a device that asks for ``blocks`` (K,) of ``table`` (I, d): scales, then codes."""
    items, slices, _ = layout.block_rows(blocks)
    pieces = table.reshape(layout.num_items, layout.num_slices, layout.slice_dim)[items, slices]  # (T, s)
    codes, scales = quantize(pieces, precision)
    head = scales.astype("<f2").tobytes() if has_scales(precision) else b""
    return head + codes.astype(code_dtype(precision)).tobytes()


def grow(stored: StoredEmbedding, layout: BlockLayout, blocks: NDArray[np.integer], payload: bytes) -> StoredEmbedding:
    """Append the blocks (K,) that were asked for.

    Raises:
        ArtifactError: the payload is not of these blocks' size.
    """
    groups = blocks.astype(np.int64) // layout.num_slices
    counts = layout.group_sizes[groups]
    num_rows, precision = int(counts.sum()), stored.precision
    wanted = num_rows * row_bytes(layout.slice_dim, precision)
    if len(payload) != wanted:
        raise ArtifactError(f"{len(blocks)} blocks take {wanted} bytes, {len(payload)} came; ask for them again")
    head = 2 * num_rows if has_scales(precision) else 0
    flat = np.frombuffer(payload[head:], code_dtype(precision))
    codes: Codes = flat.reshape(num_rows, code_columns(layout.slice_dim, precision))
    return replace(
        stored,
        blocks=np.concatenate([stored.blocks, blocks.astype(np.int64)]),
        starts=np.concatenate([stored.starts, layout.group_starts[groups]]),
        counts=np.concatenate([stored.counts, counts]),
        scales=np.concatenate([stored.scales, np.frombuffer(payload[:head], np.float16)]),
        codes=np.concatenate([stored.codes, codes]),
    )


__all__ = ["grow", "growth_payload", "shrink"]
