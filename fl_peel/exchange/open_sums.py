"""A user group's sums where nothing is hidden: as a reply names its rows, and with an entry for every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import WHOLE, ArraySpec, summed
from fl_peel.exchange.bounded_statistic import GroupShape
from fl_peel.secure.vector import Bits, Field, Values

BY_ROW = ("sums", "touched", "row_loss", "row_examples")
"""Arrays of a group's reply that have one entry a row, of those rows that its ``rows`` name."""

_ROWS = ArraySpec(("T",), within="R", ascending=True, dtypes=WHOLE)
_WIDE_ROWS = ArraySpec(("W",), within="R", ascending=True, dtypes=WHOLE)
_DEVICES_OF_BLOCKS = ArraySpec(("K",), least=0, most="N", dtypes=WHOLE)
UPDATES = {
    "rows": _ROWS,
    "sums": summed("T", "d"),
    "wide_rows": _WIDE_ROWS,
    "wide_sums": summed("W", "d"),
    "touched": ArraySpec(("T", "S"), least=0, most="N", dtypes=WHOLE),
    "row_loss": summed("T"),
    "row_examples": summed("T", least=0),
    "holders": _DEVICES_OF_BLOCKS,
}
"""A group's arrays of a reply: of N devices, with K blocks of S slices in R rows of d columns."""
SIGNALS = {"hits": summed("K"), "shown": summed("K"), "exposed": _DEVICES_OF_BLOCKS}
"""And in rounds with signals."""
IN_BUCKETS = {
    "rows": replace(_ROWS, by="buckets"),
    "buckets": ArraySpec(("T",), within="buckets", dtypes=WHOLE),
    "wide_rows": replace(_WIDE_ROWS, by="wide_buckets"),
    "wide_buckets": ArraySpec(("W",), within="buckets", dtypes=WHOLE),
    "bucket_holders": ArraySpec(("buckets", "K"), least=0, most="N", dtypes=WHOLE),
}
"""What is different, or besides, where devices are in buckets."""


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
