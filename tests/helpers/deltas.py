"""The device half of an update: what it makes of the artefact that is held (docs/model.md has the format)."""

import numpy as np

from fl_peel.blocks.layout import code_columns, code_dtype, has_scales, number_dtype
from fl_peel.blocks.stored import CUT_VERSION, HEADER_BYTES, StoredEmbedding, opened, user_slices
from fl_peel.blocks.stored import MAGIC as WHOLE
from fl_peel.model.device import HELD, MAGIC, NEW, NUMBERS, RESCALED, _pieces
from fl_peel.scenario.settings import PRECISIONS


def unpacked(packed, count):
    """What becomes of each of so many blocks, two bits each, lowest first."""
    kinds = (packed[:, None] >> (2 * np.arange(4, dtype=np.uint8))) & 3
    return kinds.reshape(-1)[:count]


def applied(old, delta):
    """What the device holds afterwards; every byte of the delta is used."""
    if delta.startswith(WHOLE):
        return StoredEmbedding.from_bytes(delta)
    at = HEADER_BYTES

    def take(dtype, count):
        nonlocal at
        at += np.dtype(dtype).itemsize * count
        return np.frombuffer(delta, dtype, count, at - np.dtype(dtype).itemsize * count)

    place, fields, _, num_items, groups, dim, num_slices, num_blocks, num_pieces, user_group, catalogue = (
        NUMBERS.unpack(opened(MAGIC, delta, (CUT_VERSION,)))
    )
    precision, dtype = PRECISIONS[place], number_dtype(num_items, groups * num_slices)
    scaled, columns = has_scales(precision), code_columns(dim // num_slices, precision)
    ids = take(dtype, num_blocks * fields).astype(np.int64).reshape(num_blocks, fields)
    user = take("<f2", user_slices(ids[:, 0], num_slices) * (dim // num_slices))
    kinds = unpacked(take("u1", -(-num_blocks // 4)), num_blocks)
    counts = np.ones(num_blocks, np.int64) if fields == 1 else ids[:, 2]
    held = np.flatnonzero(kinds != NEW)
    ours = _pieces(old, take(dtype, len(held)).astype(np.int64))
    of_piece = np.repeat(kinds, counts)
    fresh, rescaled = (int(counts[kinds == kind].sum()) for kind in (NEW, RESCALED))
    scales = np.zeros(num_pieces if scaled else 0, np.float16)
    codes = np.zeros((num_pieces, columns), code_dtype(precision))
    codes[of_piece != NEW] = old.codes[ours]
    if scaled:
        scales[of_piece == HELD] = old.scales[ours[np.repeat(kinds[held] == HELD, counts[held])]]
        scales[of_piece != HELD] = take("<f2", fresh + rescaled)
    codes[of_piece == NEW] = take(code_dtype(precision), fresh * columns).reshape(fresh, columns)
    assert at == len(delta)
    blocks = ids[:, 0].copy()
    starts = blocks // num_slices if fields == 1 else ids[:, 1].copy()
    shape = (num_items, groups, dim, num_slices, precision)
    rows = (user.astype(np.float16), blocks, starts, counts, scales, codes)
    made = StoredEmbedding(*shape, *rows, fields == 1, catalogue, user_group)
    return StoredEmbedding.from_bytes(made.to_bytes())  # which looks at everything once more
