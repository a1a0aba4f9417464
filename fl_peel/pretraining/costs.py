"""What a step of stage 1 takes of a device: bytes, work, memory.

Rows and centroids come a few columns at a time: as many as fit what the device may hold at that moment, besides what
it keeps of the step itself, so that too little memory costs exchanges first. A device that cannot hold one column sits
out; it is served all the same, with the table of the user group that is nearest to its items. Its own interactions are
its data and no part of the budget, here as in refinement.

A pass returns one number a column, and the numbers of the device's rows: what it adds to each of them is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Step = Literal["counts", "pass", "choice", "vectors", "groups", "moments", "maps"]

ID_BYTES = 4
NUMBER_BYTES = 4
"""Of a row's entry, sent in fp32."""
CENTROID_BYTES = 1
"""Of a centroid's entry, see :func:`fl_peel.pretraining.by_sums.coarse`."""
WORD_BYTES = 8
"""Of a whole number that is added up."""
SAMPLE_COLUMNS = 64
"""Columns of one row whose sum takes about what a training sample takes at embedding dimension 64."""


@dataclass(frozen=True)
class Asked:
    """A step. columns: K that it is of; groups: user groups there are; dim: of user embeddings."""

    step: Step
    columns: int = 0
    groups: int = 0
    dim: int = 0


@dataclass(frozen=True)
class StepCost:
    """Of devices (N,): bytes moved, training samples the work is worth, bytes that must be held at least, and how often
    the server is asked.
    """

    download_bytes: Ints
    upload_bytes: Ints
    samples: Ints
    least_bytes: Ints
    exchanges: Ints


def cost_of(asked: Asked, items: Ints, budgets: Ints) -> StepCost:
    """Of devices with that many items (N,) and bytes they may hold (N,)."""
    nothing = np.zeros_like(items)
    if asked.step == "counts":
        return StepCost(nothing, ID_BYTES * items, nothing, nothing, nothing + 1)
    if asked.step == "moments":
        kept = nothing + NUMBER_BYTES * asked.columns
        return StepCost(nothing, ID_BYTES * items + WORD_BYTES * asked.columns, nothing + 1, kept, nothing + 1)
    ids, kept, up, number = nothing, nothing, nothing, NUMBER_BYTES
    if asked.step == "pass":
        rows, ids, up = items, ID_BYTES * items, WORD_BYTES * asked.columns + ID_BYTES * items
        column = NUMBER_BYTES * rows + WORD_BYTES
    elif asked.step == "vectors":
        rows, ids, kept = items, ID_BYTES * items, nothing + NUMBER_BYTES * asked.columns
        column = NUMBER_BYTES * rows
    elif asked.step == "groups":
        rows, up = nothing + asked.groups, nothing + WORD_BYTES * asked.columns + ID_BYTES
        column, kept = CENTROID_BYTES * rows, nothing + WORD_BYTES * asked.groups + NUMBER_BYTES * asked.columns
        number = CENTROID_BYTES
    else:  # one row of the map for every column of the vector
        rows = nothing + asked.dim
        column, kept = NUMBER_BYTES * rows, nothing + NUMBER_BYTES * asked.columns + WORD_BYTES * asked.dim
    column = np.maximum(column, 1)
    at_a_time = np.clip((budgets - kept) // column, 1, max(asked.columns, 1))
    return StepCost(
        ids + number * rows * asked.columns,
        up,
        rows * -(-asked.columns // SAMPLE_COLUMNS),
        kept + column,
        -(-asked.columns // at_a_time),
    )


def choice_cost(
    columns: int, drawn: int, place: int, shapes: int, items: Ints, wanted: Ints, budgets: Ints
) -> StepCost:
    """Of ranking ``wanted`` (N,) validation items among ``drawn`` ones under ``shapes`` filters. items: (N,) on which
    the device trains, of which it makes its vector. Rows come as many at a time as fit beside that vector, the
    eigenvalues, and under each filter the scores of the device's items and of the best ``place`` drawn ones.
    """
    rows, row = items + wanted + drawn, NUMBER_BYTES * columns
    kept = 2 * row + NUMBER_BYTES * shapes * (place + wanted)
    at_a_time = np.clip((budgets - kept) // row, 1, rows)
    return StepCost(
        row * (rows + 1) + ID_BYTES * rows,
        np.full_like(items, WORD_BYTES * shapes) + ID_BYTES * (items + wanted),
        rows * -(-columns // SAMPLE_COLUMNS),
        kept + row,
        -(-rows // at_a_time),
    )


__all__ = ["Asked", "Step", "StepCost", "choice_cost", "cost_of"]
