"""What a step takes of a device: bytes, work, memory.

Rows and centroids come a few columns at a time: as many as fit what the device may hold at that moment, besides what
it keeps of the step itself, so that too little memory costs exchanges first. A device that cannot hold one column sits
out; it is served all the same, with the table of the user group that is nearest to its items. Its own interactions are
its data and no part of the budget, here as in refinement.

Who hides what it has fetches all rows, of which it keeps its own, and answers with a vector that has a word for
whatever anybody could have sent (:func:`hidden`), masked, or noised by itself. The vector goes in parts of as many
words as fit.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

ID_BYTES = 4
NUMBER_BYTES = 4
"""Bytes of a number in fp32, as devices compute with them."""
ROW_BYTES = 2
"""Bytes of an entry of a row or a map, see :func:`fl_peel.pretraining.spectral_steps.halves`."""
UNIT_BYTES = 1
"""Bytes of a column's unit, which is a power of two."""
CENTROID_BYTES = 1
"""Bytes of an entry of a centroid, see :func:`fl_peel.pretraining.spectral_steps.coarse`."""
WORD_BYTES = 8
"""Bytes of a whole number that is added up."""
SAMPLE_COLUMNS = 64
"""Columns of one row whose sum takes about what a training sample takes at embedding dimension 64."""


@dataclass(frozen=True)
class HeldItems:
    """How many items devices have, (N,) each: those that they add up, train items, validation items."""

    contributed: Ints
    train: Ints
    validation: Ints


@dataclass(frozen=True)
class AnswerCost:
    """Cost of answers to sums alone: bytes of a vector; the protocol's bytes down and up; requests."""

    vector_bytes: int
    download_bytes: int
    upload_bytes: int
    exchanges: int

    def __add__(self, other: AnswerCost) -> AnswerCost:
        """Return the cost of both answers together."""
        return AnswerCost(*(mine + others for mine, others in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class StepCost:
    """Cost of a step by device, (N,): bytes moved, training samples worth, bytes held at least, requests."""

    download_bytes: Ints
    upload_bytes: Ints
    samples: Ints
    least_bytes: Ints
    exchanges: Ints


Each = Ints | int
"""A number for each device (N,), or one that is the same for all."""


def cost_by_columns(
    columns: int, rows: Each, budgets: Ints, *, moved: tuple[Each, Each], kept: Each = 0, column_bytes: Each
) -> StepCost:
    """Return the cost of a step that takes rows a few columns at a time. rows: that a device computes with; moved:
    bytes down and up of all columns; kept: bytes that it holds throughout; column_bytes: of one column.
    """
    nothing, column = np.zeros_like(budgets), np.maximum(column_bytes, 1)
    at_a_time = np.clip((budgets - kept) // column, 1, max(columns, 1))
    work = rows * -(-columns // SAMPLE_COLUMNS)
    return StepCost(*(nothing + each for each in (*moved, work, kept + column, -(-columns // at_a_time))))


def rows_bytes(columns: int, rows: Ints | int, all_rows: int) -> Ints | int:
    """Return the bytes in which a device fetches so many of a table's rows by their ids, or all of them in order."""
    if all_rows:
        return (ROW_BYTES * all_rows + UNIT_BYTES) * columns
    return ID_BYTES * rows + (ROW_BYTES * rows + UNIT_BYTES) * columns


def hidden(step: StepCost, answer: AnswerCost, budgets: Ints) -> StepCost:
    """Return the cost of a step of sums alone: a part of the vector must fit beside what the step needs."""
    room = WORD_BYTES * np.maximum((budgets - step.least_bytes) // WORD_BYTES, 1)
    return StepCost(
        step.download_bytes + answer.download_bytes,
        np.full_like(budgets, answer.vector_bytes + answer.upload_bytes),
        step.samples,
        step.least_bytes + WORD_BYTES,
        # the first part comes with the last of what was fetched, and is one of the protocol's own exchanges
        step.exchanges - 1 + -(-answer.vector_bytes // room) - 1 + answer.exchanges,
    )
