"""What a step of stage 1 takes of a device: bytes, work, memory.

Rows and centroids come a few columns at a time: as many as fit what the device may hold at that moment, besides what
it keeps of the step itself, so that memory costs exchanges and not participation. Below ``LEAST_COLUMNS`` at a time
the device sits out; it is served all the same, with the table of the user group that is nearest to its items.

A pass returns one vector and the numbers of the device's rows: what it adds to each of them is that vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Step = Literal["counts", "pass", "vectors", "groups", "moments", "maps"]

ID_BYTES = 4
NUMBER_BYTES = 4
"""Of a row's entry, sent in fp32."""
WORD_BYTES = 8
"""Of a whole number that is added up."""
LEAST_COLUMNS = 32
"""Columns at a time below which a device's exchanges would take longer than what it adds is worth."""
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
    ids, kept_words, up = nothing, WORD_BYTES * asked.columns, nothing
    if asked.step == "pass":
        rows, ids, up = items, ID_BYTES * items, WORD_BYTES * asked.columns + ID_BYTES * items
    elif asked.step == "vectors":
        rows, ids = items, ID_BYTES * items
    elif asked.step == "groups":
        rows, up = nothing + asked.groups, nothing + WORD_BYTES * asked.columns + ID_BYTES
        kept_words += WORD_BYTES * asked.groups
    else:  # one row of the map for every column of the vector
        rows, kept_words = nothing + asked.dim, NUMBER_BYTES * asked.columns + WORD_BYTES * asked.dim
    column = np.maximum(NUMBER_BYTES * rows, 1)
    room = np.maximum(budgets - ids - kept_words, 0) // column
    at_a_time = np.clip(room, min(LEAST_COLUMNS, asked.columns), max(asked.columns, 1))
    return StepCost(
        ids + NUMBER_BYTES * rows * asked.columns,
        up,
        rows * -(-asked.columns // SAMPLE_COLUMNS),
        ids + kept_words + column * min(LEAST_COLUMNS, asked.columns),
        -(-asked.columns // np.maximum(at_a_time, 1)),
    )


__all__ = ["Asked", "Step", "StepCost", "cost_of"]
