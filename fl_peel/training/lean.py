"""Local training of one device in as little memory as :mod:`fl_peel.training.memory` counts: plain NumPy in fp32.

It does what the compiled loop does, one interaction at a time: logits change between batches only, so that nothing of an
interaction need be kept once its coefficients are added.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked import RankedBlocks
from fl_peel.training.memory import TrainingMemory
from fl_peel.training.reference import DeviceRandom
from fl_peel.training.settings import LocalTraining

Buffers = dict[str, NDArray[np.generic]]


def train_lean(
    ranked: RankedBlocks,
    cutoff: int,
    user: NDArray[np.float32],
    items: NDArray[np.integer],
    seed: int,
    how: LocalTraining,
) -> tuple[NDArray[np.float32], NDArray[np.float32], Buffers]:
    """Train one device that holds whole rows (one slice), without a bound on its update.

    Returns its user embedding (d,), its block update (R, d), and the buffers that this took, by name.
    """
    assert ranked.layout.num_slices == 1, "a device of whole rows"
    dim, present = ranked.layout.embedding_dim, int(ranked.num_present(np.array([cutoff]))[0])
    needs = TrainingMemory(dim, 1, how, 0)
    most = int(needs.most_touched(np.array([present]), np.array([len(items)]))[0])
    rows = ranked.row_of_item[items]
    buffers: Buffers = {
        "slot_of_row": np.full(present, -1, np.int32),
        "is_liked": np.zeros(present, np.bool_),
        "row": np.zeros(most, np.int32),
        "place": np.zeros(most, np.int32),
        "logit": np.zeros(most, np.float32),
        "coefficient": np.zeros(most, np.float32),
        "times": np.zeros(most, np.int32),
        "batch": np.zeros(most, np.int32),
        "copies": np.zeros((most, dim), np.float32),
        "positives": np.zeros(len(items), np.int32),
        "drawn": np.zeros(1 + how.num_negatives, np.int32),
        "chances": np.zeros(1 + how.num_negatives, np.float32),
        "user": user.astype(np.float32),
        "gradient": np.zeros(dim, np.float32),
        "step": np.zeros(dim, np.float32),
    }
    slot_of_row, is_liked, row_of_slot, place, logit, coefficient, times, batch, copies = (
        buffers[name]
        for name in ("slot_of_row", "is_liked", "row", "place", "logit", "coefficient", "times", "batch", "copies")
    )
    positives, drawn, chances, mine, gradient, step = (
        buffers[name] for name in ("positives", "drawn", "chances", "user", "gradient", "step")
    )
    there = rows[(rows >= 0) & (rows < present)]
    count, num_slots = len(there), 0
    positives[:count] = there
    is_liked[there] = True
    update = np.zeros(ranked.table.shape, np.float32)  # what the server is sent, row by row
    if not count or is_liked.all():
        return mine, update, buffers
    random = DeviceRandom(seed)
    for _ in range(how.epochs):
        for j in range(count - 1, 0, -1):
            other = random.below(j + 1)
            positives[j], positives[other] = positives[other], positives[j]
        for start in range(0, count, how.batch_size):
            in_batch, size = 0, min(how.batch_size, count - start)
            for positive in positives[start : start + how.batch_size].tolist():
                for k in range(1 + how.num_negatives):
                    row = positive
                    while k and is_liked[row := random.below(present)]:
                        pass
                    slot = slot_of_row[row]
                    if slot < 0:
                        slot = slot_of_row[row] = num_slots
                        row_of_slot[slot], place[slot] = row, slot * dim
                        copies[slot] = ranked.table[row]
                        num_slots += 1
                    if not times[slot]:
                        logit[slot] = copies[slot] @ mine / np.float32(how.temperature)
                        batch[in_batch] = slot
                        in_batch += 1
                    times[slot] += 1
                    drawn[k] = slot
                _chances(logit, drawn, chances, how)
                for k in range(1, 1 + how.num_negatives):
                    coefficient[drawn[k]] += chances[k]
                    coefficient[drawn[0]] -= chances[k]
            gradient[:] = np.float32(how.l2 * size) * mine
            for slot in batch[:in_batch].tolist():
                gradient += coefficient[slot] * copies[slot]
                step[:] = coefficient[slot] * mine + np.float32(how.l2 * times[slot]) * copies[slot]
                copies[slot] -= np.float32(how.learning_rate) * step
                coefficient[slot], times[slot] = 0, 0
            mine -= np.float32(how.user_learning_rate) * gradient
    for slot in range(num_slots):
        step[:] = copies[slot] - ranked.table[row_of_slot[slot]]
        update[row_of_slot[slot]] = step
    return mine, update, buffers


def _chances(
    logit: NDArray[np.float32], drawn: NDArray[np.int32], chances: NDArray[np.float32], how: LocalTraining
) -> None:
    """Write the loss's derivative by the logit of each negative of one interaction, over the temperature."""
    chances[:] = logit[drawn]
    if how.loss == "sampled-softmax":
        chances -= chances.max()
        np.exp(chances, out=chances)
        chances /= chances.sum()
    else:
        chances -= chances[0]
        chances[:] = 1 / (1 + np.exp(-chances)) / np.float32(how.num_negatives)
    chances /= np.float32(how.temperature)


__all__ = ["train_lean"]
