"""Local training of one device in as little memory as :mod:`fl_peel.training.update` counts: plain NumPy in fp32.

It does what the compiled loop does, one interaction at a time: logits change between batches only, so that nothing of
an interaction need be kept once its coefficients are added.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.update import TrainingMemory
from tests.helpers.readable_twins import DeviceRandom

FloatArray = NDArray[np.float32]
Numbers = NDArray[np.int32]


@dataclass(frozen=True)
class Buffers:
    """Buffers that training allocates, and no more. Of R rows that take part: slot_of_row, is_liked; of T that are
    copied: row, place, logit, coefficient, times, batch, copies (T, d); of n train interactions: positives; of an
    interaction and its negatives: drawn, chances; (d,): user, gradient, step.
    """

    slot_of_row: Numbers
    is_liked: NDArray[np.bool_]
    row: Numbers
    place: Numbers
    logit: FloatArray
    coefficient: FloatArray
    times: Numbers
    batch: Numbers
    copies: FloatArray
    positives: Numbers
    drawn: Numbers
    chances: FloatArray
    user: FloatArray
    gradient: FloatArray
    step: FloatArray

    @staticmethod
    def from_sizes(rows: int, copied: int, interactions: int, user: FloatArray, how: LocalTraining) -> Buffers:
        """Return buffers for so many rows, of which ``copied`` can be touched."""
        dim, drawn = len(user), 1 + how.num_negatives
        return Buffers(
            slot_of_row=np.full(rows, -1, np.int32),
            is_liked=np.zeros(rows, np.bool_),
            row=np.zeros(copied, np.int32),
            place=np.zeros(copied, np.int32),
            logit=np.zeros(copied, np.float32),
            coefficient=np.zeros(copied, np.float32),
            times=np.zeros(copied, np.int32),
            batch=np.zeros(copied, np.int32),
            copies=np.zeros((copied, dim), np.float32),
            positives=np.zeros(interactions, np.int32),
            drawn=np.zeros(drawn, np.int32),
            chances=np.zeros(drawn, np.float32),
            user=user.astype(np.float32),
            gradient=np.zeros(dim, np.float32),
            step=np.zeros(dim, np.float32),
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))


def train_lean(
    ranked: RankedBlocks,
    cutoff: int,
    user: FloatArray,
    items: NDArray[np.integer],
    seed: int,
    how: LocalTraining,
) -> tuple[FloatArray, FloatArray, Buffers]:
    """Train one device that holds whole rows (one slice), without a bound on its update.

    Returns its user embedding (d,), its block update (R, d), which it would send row by row, and what this took.
    """
    assert ranked.layout.num_slices == 1, "a device of whole rows"
    present = int(ranked.num_present(np.array([cutoff]))[0])
    takes = TrainingMemory(ranked.layout.embedding_dim, 1, how, 0)
    copied = int(takes.most_touched(np.array([present]), np.array([len(items)]))[0])
    own = Buffers.from_sizes(present, copied, len(items), user, how)
    update = np.zeros(ranked.table.shape, np.float32)
    rows = ranked.row_of_item[items]
    there = rows[(rows >= 0) & (rows < present)]
    own.positives[: len(there)] = there
    own.is_liked[there] = True
    if not len(there) or own.is_liked.all():
        return own.user, update, own
    random, num_slots = DeviceRandom(seed), 0
    for _ in range(how.epochs):
        for j in range(len(there) - 1, 0, -1):
            other = random.below(j + 1)
            own.positives[[j, other]] = own.positives[[other, j]]
        for start in range(0, len(there), how.batch_size):
            batch = own.positives[start : min(start + how.batch_size, len(there))]
            num_slots = _batch(ranked, own, batch, num_slots, random, how)
    for slot in range(num_slots):
        own.step[:] = own.copies[slot] - ranked.table[own.row[slot]]
        update[own.row[slot]] = own.step
    return own.user, update, own


def _batch(
    ranked: RankedBlocks, own: Buffers, positives: Numbers, num_slots: int, random: DeviceRandom, how: LocalTraining
) -> int:
    """Train on one batch of row numbers (n,); return how many rows have a copy by now."""
    present, in_batch = len(own.slot_of_row), 0
    for positive in positives.tolist():
        for k in range(1 + how.num_negatives):
            row = positive if k == 0 else random.below(present)
            while k and own.is_liked[row]:
                row = random.below(present)
            if own.slot_of_row[row] < 0:
                own.slot_of_row[row], own.row[num_slots] = num_slots, row
                own.place[num_slots] = num_slots * own.copies.shape[1]
                own.copies[num_slots] = ranked.table[row]
                num_slots += 1
            slot = own.slot_of_row[row]
            if not own.times[slot]:
                own.logit[slot] = own.copies[slot] @ own.user / how.temperature
                own.batch[in_batch] = slot
                in_batch += 1
            own.times[slot] += 1
            own.drawn[k] = slot
        _fill_chances(own, how)
        for k in range(1, 1 + how.num_negatives):
            own.coefficient[own.drawn[k]] += own.chances[k]
            own.coefficient[own.drawn[0]] -= own.chances[k]
    own.gradient[:] = how.l2 * len(positives) * own.user
    for slot in own.batch[:in_batch].tolist():
        push = own.coefficient[slot]
        own.gradient[:] += push * own.copies[slot]
        own.step[:] = push * own.user + how.l2 * own.times[slot] * own.copies[slot]
        own.copies[slot] -= how.learning_rate * own.step
        own.coefficient[slot], own.times[slot] = 0, 0
    own.user[:] -= how.user_learning_rate * own.gradient
    return num_slots


def _fill_chances(own: Buffers, how: LocalTraining) -> None:
    """Fill in the loss's derivative by the logit of each negative of one interaction, over the temperature."""
    own.chances[:] = own.logit[own.drawn]
    if how.loss == "sampled-softmax":
        own.chances[:] -= own.chances.max()
        own.chances[:] = np.exp(own.chances)
        own.chances[:] /= own.chances.sum()
    else:
        own.chances[:] = 1 / (1 + np.exp(own.chances[0] - own.chances)) / how.num_negatives
    own.chances[:] /= how.temperature
