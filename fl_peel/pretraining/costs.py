"""What a step of stage 1 takes of a device: bytes, work, memory.

Rows and centroids come a few columns at a time: as many as fit what the device may hold at that moment, besides what
it keeps of the step itself, so that too little memory costs exchanges first. A device that cannot hold one column sits
out; it is served all the same, with the table of the user group that is nearest to its items. Its own interactions are
its data and no part of the budget, here as in refinement.

A pass returns one number a column, and the numbers of the device's rows: what it adds to each of them is the same.

Who hides what it has fetches all rows, of which it keeps its own, and answers with a vector that has a word for
whatever anybody could have said (:func:`hidden`), masked, or noised by itself. The vector goes in parts of as many
words as fit.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Step = Literal["counts", "pass", "choice", "vectors", "groups", "moments", "maps"]

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
class StepShape:
    """A step. columns: K that it is of; groups: user groups there are; dim: of user embeddings; all_rows: how many a
    device fetches that does not say which are of its items, 0 where it does; sketched: whether it is told how often
    each row is had, by which rows are hashed; word_bytes: of a number that is added up; weighted: every row of a pass
    comes with a number besides, as a bounded one does; counts_contributors: whether contributors are counted before
    sums are opened, by a question of its own in the same step.
    """

    step: Step
    columns: int = 0
    groups: int = 0
    dim: int = 0
    all_rows: int = 0
    sketched: bool = False
    word_bytes: int = WORD_BYTES
    weighted: bool = False
    counts_contributors: bool = False


@dataclass(frozen=True)
class AnswerCost:
    """Cost of a device's answers where the server learns sums alone: bytes of a vector; bytes down and up that the
    protocol takes in addition; requests by the server.
    """

    vector_bytes: int
    download_bytes: int
    upload_bytes: int
    exchanges: int

    def __add__(self, other: AnswerCost) -> AnswerCost:
        """Return the cost of both answers together."""
        return AnswerCost(*(mine + others for mine, others in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class StepCost:
    """Cost of a step for each device, (N,): bytes moved, training samples the work is worth, bytes that must be held at
    least, and how many requests the server makes.
    """

    download_bytes: Ints
    upload_bytes: Ints
    samples: Ints
    least_bytes: Ints
    exchanges: Ints


COUNTED: tuple[Step, ...] = ("pass", "choice", "groups", "moments")
"""Steps in which contributors are counted before their sums are opened; item counts are such a count themselves."""


def cost_of(asked: StepShape, items: Ints, budgets: Ints) -> StepCost:
    """Return the cost of a step for devices with that many items (N,) and bytes they may hold (N,)."""
    cost = _cost_of_sums(asked, items, budgets)
    if not asked.counts_contributors or asked.step not in COUNTED:
        return cost
    # ids of rows go with the first question; which of them are opened is a bit for each row
    rows = (asked.all_rows or items) if asked.step == "pass" else asked.groups
    ids = 0 if asked.step in ("pass", "groups") else ID_BYTES
    return replace(
        cost,
        download_bytes=cost.download_bytes + -(-rows // 8),
        upload_bytes=cost.upload_bytes + ids,
        exchanges=cost.exchanges + 1,
    )


def _cost_of_sums(asked: StepShape, items: Ints, budgets: Ints) -> StepCost:
    nothing = np.zeros_like(items)
    if asked.step == "counts":
        return StepCost(nothing, ID_BYTES * items, nothing, nothing, nothing + 1)
    if asked.step == "moments":
        kept = nothing + NUMBER_BYTES * asked.columns
        return StepCost(nothing, ID_BYTES * items + asked.word_bytes * asked.columns, nothing + 1, kept, nothing + 1)
    ids, kept, up, number, unit = nothing, nothing, nothing, ROW_BYTES, UNIT_BYTES
    if asked.step == "pass":
        rows, ids = items, ID_BYTES * items
        up = asked.word_bytes * asked.columns + ids
        column = ROW_BYTES * rows + WORD_BYTES
    elif asked.step == "vectors":
        rows, ids, kept = items, ID_BYTES * items, nothing + NUMBER_BYTES * asked.columns
        column = ROW_BYTES * rows
    elif asked.step == "groups":
        rows, up = nothing + asked.groups, nothing + asked.word_bytes * asked.columns + ID_BYTES
        column, kept = CENTROID_BYTES * rows, nothing + WORD_BYTES * asked.groups + NUMBER_BYTES * asked.columns
        number, unit = CENTROID_BYTES, 0
    else:  # one row of the map for every column of the vector
        rows = nothing + asked.dim
        column, kept = ROW_BYTES * rows, nothing + NUMBER_BYTES * asked.columns + WORD_BYTES * asked.dim
    column = np.maximum(column, 1)
    at_a_time = np.clip((budgets - kept) // column, 1, max(asked.columns, 1))
    down = ids + (number * rows + unit) * asked.columns
    if asked.all_rows and asked.step in ("pass", "vectors"):  # in their order, so that none needs its number
        down = nothing + (number * asked.all_rows + unit) * asked.columns + ID_BYTES * asked.all_rows * asked.sketched
    if asked.weighted and asked.step == "pass":
        down = down + NUMBER_BYTES * (asked.all_rows or rows)
    return StepCost(
        down,
        up,
        rows * -(-asked.columns // SAMPLE_COLUMNS),
        kept + column,
        -(-asked.columns // at_a_time),
    )


def hidden(step: StepCost, answer: AnswerCost, budgets: Ints) -> StepCost:
    """Return the cost of a step whose answers are vectors for sums alone. A part of the vector, of one word at least,
    must fit in addition to what the step needs anyway.
    """
    room = WORD_BYTES * np.maximum((budgets - step.least_bytes) // WORD_BYTES, 1)
    return StepCost(
        step.download_bytes + answer.download_bytes,
        np.full_like(budgets, answer.vector_bytes + answer.upload_bytes),
        step.samples,
        step.least_bytes + WORD_BYTES,
        # the first part comes with the last of what was fetched, and is one of the protocol's own exchanges
        step.exchanges - 1 + -(-answer.vector_bytes // room) - 1 + answer.exchanges,
    )


def choice_cost(
    columns: int,
    drawn: int,
    place: int,
    shapes: int,
    items: Ints,
    wanted: Ints,
    budgets: Ints,
    all_rows: int = 0,
    *,
    counted: bool = False,
) -> StepCost:
    """Return the cost of ranking ``wanted`` (N,) validation items among ``drawn`` ones under ``shapes`` filters.

    items: (N,) train items, of which a device makes its vector. Rows come as many at a time as fit next to that vector,
    the eigenvalues, and under each filter the scores of the device's items and of the best ``place`` drawn ones.
    all_rows: as in :class:`StepShape`; counted: whether contributors are counted first.
    """
    rows, row, vector = items + wanted + drawn, ROW_BYTES * columns, NUMBER_BYTES * columns
    kept = 2 * vector + NUMBER_BYTES * shapes * (place + wanted)
    at_a_time = np.clip((budgets - kept) // row, 1, rows)
    fetched = np.full_like(rows, all_rows) if all_rows else rows
    return StepCost(
        row * fetched + (UNIT_BYTES + NUMBER_BYTES) * columns + ID_BYTES * fetched,
        np.full_like(items, WORD_BYTES * shapes) + ID_BYTES * (items + wanted),
        rows * -(-columns // SAMPLE_COLUMNS),
        kept + row,
        -(-rows // at_a_time) + counted,
    )


__all__ = ["COUNTED", "AnswerCost", "Step", "StepCost", "StepShape", "choice_cost", "cost_of", "hidden"]
