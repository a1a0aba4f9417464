"""A compiled epoch of central training: pooled interactions of many users, one table, one step per interaction.

The yardstick of federated refinement (:mod:`strategies.rivals.central`): the loss and the negatives are those of
:func:`fl_peel.kernels.train_devices`, but every step sees the table as the step before left it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fl_peel.kernels.lanes import dot

Array = NDArray[Any]


def pooled_epoch(
    table: NDArray[np.float32],
    users: NDArray[np.float32],
    indptr: NDArray[np.int64],
    items: NDArray[np.int64],
    owners: NDArray[np.int64],
    order: NDArray[np.int64],
    seed: int,
    num_negatives: int,
    learning_rate: float,
    user_learning_rate: float,
    l2: float,
    softmax: bool,
    temperature: float,
    moments: NDArray[np.float32],
) -> float:
    """One pass, in place over table (I, d) and users (N, d); returns the mean loss.

    indptr (N + 1,), items: train items, ascending within each user; owners: user of each; order: of the pass.
    moments: (I, d) sums of squared gradients for AdaGrad (Duchi et al., JMLR 2011), changed; (1, 1) for plain steps.
    """
    state = np.array([seed], np.uint64)
    loss: float = _pooled_epoch(
        table,
        users,
        indptr,
        items,
        owners,
        order,
        state,
        num_negatives,
        np.float32(learning_rate),
        np.float32(user_learning_rate),
        np.float32(l2),
        softmax,
        np.float32(1 / temperature),
        moments,
    )
    return loss


@njit(nogil=True, cache=True, error_model="numpy")
def _pooled_epoch(
    table: Array,
    users: Array,
    indptr: Array,
    items: Array,
    owners: Array,
    order: Array,
    state: Array,
    num_negatives: int,
    rate: Any,
    user_rate: Any,
    decay: Any,
    softmax: bool,
    inverse_temperature: Any,
    moments: Array,
) -> float:
    num_items, dim = table.shape
    adaptive = moments.shape[0] == num_items and moments.shape[1] == dim
    rows = np.empty(num_negatives + 1, np.int64)
    logits = np.empty(num_negatives + 1, np.float32)
    user_gradient = np.empty(dim, np.float32)
    total_loss = 0.0
    used = 0
    random = state[0]
    for j in order:
        owner = owners[j]
        start, stop = indptr[owner], indptr[owner + 1]
        if stop - start >= num_items:
            continue
        user = users[owner]
        for k in range(num_negatives + 1):
            row = items[j]
            if k > 0:
                while True:
                    random = random + np.uint64(0x9E3779B97F4A7C15)
                    z = random
                    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                    z = z ^ (z >> np.uint64(31))
                    row = np.int64(((z >> np.uint64(32)) * np.uint64(num_items)) >> np.uint64(32))
                    low, high = start, stop
                    while low < high:
                        middle = (low + high) // 2
                        if items[middle] < row:
                            low = middle + 1
                        else:
                            high = middle
                    if low >= stop or items[low] != row:
                        break
            rows[k] = row
            logits[k] = dot(users, owner, table, row, 0, dim) * inverse_temperature
        if softmax:
            top = logits.max()
            total = np.float32(0.0)
            for k in range(num_negatives + 1):
                total += np.float32(math.exp(logits[k] - top))
            total_loss += math.log(total) + top - logits[0]
            for k in range(1, num_negatives + 1):
                logits[k] = np.float32(math.exp(logits[k] - top)) / total
        else:
            for k in range(1, num_negatives + 1):
                gap = np.float64(logits[k] - logits[0])
                total_loss += (max(gap, 0.0) + math.log1p(math.exp(-abs(gap)))) / num_negatives
                logits[k] = np.float32(1.0 / (1.0 + math.exp(-gap)) / num_negatives)
        used += 1
        user_gradient[:] = 0.0
        push = np.float32(0.0)
        for k in range(1, num_negatives + 1):
            push += logits[k] * inverse_temperature
        for k in range(num_negatives + 1):
            row = rows[k]
            weight = -push if k == 0 else logits[k] * inverse_temperature
            for c in range(dim):
                old = table[row, c]
                user_gradient[c] += weight * old
                step = weight * user[c] + decay * old
                if adaptive:
                    moments[row, c] += step * step
                    step = step / (math.sqrt(moments[row, c]) + np.float32(1e-6))
                table[row, c] = old - rate * np.float32(step)
        for c in range(dim):
            user[c] -= user_rate * (user_gradient[c] + decay * user[c])
    return total_loss / max(used, 1)
