"""A user group's sums where nothing is hidden: as a reply names its rows, and with an entry for every row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.exchange.statistics import GroupShape
from fl_peel.secure.vector import Bits, Field, Values

BY_ROW = ("sums", "touched", "row_loss", "row_examples")
"""Arrays of a group's reply that have one entry a row, of those rows that its ``rows`` name."""


def update_fields(group: GroupShape, *, signals: bool, update_bits: Bits) -> tuple[Field, ...]:
    """A group's arrays of a :class:`fl_peel.wire.RoundReply`, with an entry for every row.

    Counts of devices or of interactions take 32 bits, losses and signals 64.
    """
    rows, blocks = group.rows, group.blocks
    fields = [
        Field("sums", (rows, group.dim), update_bits),
        Field("touched", (rows, group.slices), 32),
        Field("row_loss", (rows,), 64),
        Field("row_examples", (rows,), 32),
        Field("holders", (blocks,), 32),
    ]
    if signals:
        fields += [Field("hits", (blocks,), 64), Field("shown", (blocks,), 64), Field("exposed", (blocks,), 32)]
    return tuple(fields)


def dense(content: Mapping[str, NDArray[Any]], rows: int, dim: int) -> Values:
    """A group's arrays with an entry for every row, from those of a reply, which may name their rows."""
    if "rows" not in content:
        return {name: array.astype(np.int64) for name, array in content.items()}
    where = content["rows"]
    result: Values = {}
    for name, array in content.items():
        if name in BY_ROW:
            result[name] = np.zeros((rows, *array.shape[1:]), np.int64)
            result[name][where] = array
        elif name not in ("rows", "wide_rows", "wide_sums"):
            result[name] = array.astype(np.int64)
    if "wide_rows" in content:
        result["sums"][content["wide_rows"]] += content["wide_sums"]
    return result


def sparse(values: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
    """A group's arrays as a reply has them, from sums with an entry for every row: rows that some device changed."""
    if "touched" not in values:
        return dict(values)
    by_row = {name: values[name] for name in BY_ROW}
    changed = np.any([array.reshape(len(array), -1).any(axis=1) for array in by_row.values()], axis=0)
    rows = np.flatnonzero(changed).astype(np.int32)
    others = {name: values[name] for name in ("holders", "hits", "shown", "exposed") if name in values}
    return {"rows": rows, **{name: array[rows] for name, array in by_row.items()}, **others}


__all__ = ["BY_ROW", "dense", "sparse", "update_fields"]
