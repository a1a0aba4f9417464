"""Compiled local training of the devices of one user group, one after the other, on the group's ranked blocks."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from fl_peel.kernels.fixed_point import UNIT, fixed
from fl_peel.kernels.lanes import dot, fma
from fl_peel.kernels.random import below, next_number


@intrinsic
def _fetch(typingctx, array, row):  # type: ignore[no-untyped-def]
    """Ask for a row of a C-contiguous matrix to be brought near: a hint to the processor, without effect on results."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        num_bytes = builder.mul(cgutils.unpack_tuple(builder, view.shape)[1], view.itemsize)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        start = builder.gep(builder.bitcast(view.data, byte), [builder.mul(arguments[1], num_bytes)])
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        zero, line = (ir.Constant(num_bytes.type, value) for value in (0, 64))
        with cgutils.for_range_slice(builder, zero, num_bytes, line) as (offset, _):
            builder.call(prefetch, [builder.gep(start, [offset]), *(ir.Constant(number, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


_ROOM = 2147483647.0  # largest int32


@njit(nogil=True, cache=True, inline="always")
def _clip_factor(size, entries, bound, l1):
    """What an update of this norm is multiplied by, so that it is within the bound after rounding to fixed point.

    Norms are sums of float32 numbers, good to 1e-5; rounding moves an entry by half a unit at most.
    """
    rounding = 0.5 / UNIT * (entries if l1 else math.sqrt(entries))
    limit = max(bound * (1.0 - 1e-5) - rounding, 0.0)
    return limit / size if size > limit else 1.0


@njit(nogil=True, cache=True, error_model="numpy")
def train_devices(
    table,  # (R, d) float32, read only
    position,  # (R, S) int32
    num_present,  # (N,) int64: rows each device has, a prefix of the table
    cutoffs,  # (N,) int64: blocks each device keeps
    users,  # (N, d) float32, updated in place
    indptr,  # (N + 1,) int64
    rows,  # (sum n_u,) int32: table row of each train item, -1 where the group was not sent it
    seeds,  # (N,) uint64
    epochs,
    batch_size,
    num_negatives,
    learning_rate,
    user_learning_rate,
    l2,
    softmax,
    temperature,
    max_norm,  # of a device's update; infinite for none
    clip_blocks,  # bool: instead, each block has at most this norm
    clip_l1,  # bool: in L1 instead of L2
    sums,  # (R, d) int32, written in rows that some device changed: block updates
    spilled,  # (R, d) int64, written in rows where ``is_spilled``: what would not have fitted in 32 bits
    is_spilled,  # (R,) bool, of zeros
    tallies,  # (R, 3 + S) int64, of zeros: loss and number of the row's train interactions, a bound of the magnitudes
    # in the row of ``sums`` (0: not written), and the devices that changed each slice
    loss,  # (N,) float64: mean loss in the last epoch
    examples,  # (N,) int64: train interactions used per epoch
    touched_pieces,  # (N,) int64: row pieces (slices of rows) each device changed
    squared_norms,  # (N,) float64: squared norm of each device's update, before clipping
):
    """Within a batch, a row's gradient is a multiple of the user embedding (and, with l2, of the row itself): one
    coefficient a row says it all, and every row is read and written once a batch. The rows that a device touches
    are copied to ``local``, a few kilobytes. The phases of a batch are separate loops, so that reads of far rows
    overlap.
    """
    num_rows, dim = table.shape
    num_slices = position.shape[1]
    width = dim // num_slices
    inverse_temperature = np.float32(1.0 / temperature)
    rate = np.float32(learning_rate)
    user_rate = np.float32(user_learning_rate)
    decay = np.float32(l2)
    num_devices = len(cutoffs)
    drawn = num_negatives + 1
    most = 1
    longest = 1
    for i in range(num_devices):
        here = indptr[i + 1] - indptr[i]
        longest = max(longest, here)
        most = max(most, min(num_present[i], here * (1 + num_negatives * epochs)))
    local = np.empty((most, dim), np.float32)
    cut_rows = num_slices > 1  # a device may keep a part of a row: ``masks`` has 1 for the columns it keeps, else 0
    masks = np.empty((most if cut_rows else 1, dim), np.float32)
    slice_of = np.arange(dim) // width
    slot_row = np.empty(most, np.int64)
    logits = np.empty(most, np.float32)
    coefficient = np.zeros(most, np.float32)  # of the user embedding in the row's gradient
    times = np.zeros(most, np.int32)  # in this batch
    batch_slots = np.empty(most, np.int64)
    pairs = np.empty(min(batch_size, longest) * drawn, np.int64)  # slots of a positive, its negatives, the next one
    marks = np.full((num_rows, 4), -1, np.int32)  # last device to touch the row, its slot, last to have it in train
    positives = np.empty(longest, np.int64)
    user_gradient = np.empty(dim, np.float32)
    chances = np.empty(drawn, np.float32)
    step = np.empty((1, dim), np.float32)
    beside = np.ones((1, dim), np.float32) if clip_l1 else step  # what a step is multiplied by for its norm
    clips = max_norm < np.inf
    num_blocks = num_rows * num_slices + 1 if clips and clip_blocks else 1
    block_sizes = np.zeros(num_blocks, np.float64)
    block_entries = np.zeros(num_blocks, np.float64)

    for i in range(num_devices):
        present = num_present[i]
        cutoff = cutoffs[i]
        user = users[i]
        count = 0
        distinct = 0
        for j in range(indptr[i], indptr[i + 1]):
            row = rows[j]
            if row >= 0 and row < present:
                positives[count] = row
                count += 1
                if marks[row, 2] != i:
                    marks[row, 2] = i
                    distinct += 1
        examples[i] = count
        loss[i] = 0.0
        touched_pieces[i] = 0
        squared_norms[i] = 0.0
        if count == 0 or distinct >= present:
            examples[i] = 0
            continue  # nothing to learn from, or no item left to contrast with
        state = seeds[i]
        num_slots = 0
        for _epoch in range(epochs):
            for j in range(count - 1, 0, -1):  # Fisher-Yates
                state, bits = next_number(state)
                other = below(bits, j + 1)
                positives[j], positives[other] = positives[other], positives[j]
            epoch_loss = 0.0
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                num_batch = 0
                at = 0
                first_slot = num_slots
                for j in range(start, stop):
                    for k in range(drawn):
                        row = positives[j]
                        if k > 0:
                            while True:
                                state, bits = next_number(state)
                                row = below(bits, present)
                                if marks[row, 2] != i:
                                    break
                        if marks[row, 0] != i:
                            marks[row, 0] = i
                            marks[row, 1] = num_slots
                            slot_row[num_slots] = row
                            _fetch(table, row)
                            _fetch(sums, row)
                            _fetch(tallies, row)
                            num_slots += 1
                        slot = np.int64(marks[row, 1])
                        pairs[at] = slot
                        at += 1
                        if times[slot] == 0:
                            batch_slots[num_batch] = slot
                            num_batch += 1
                        times[slot] += 1
                for slot in range(first_slot, num_slots):
                    row = slot_row[slot]
                    if cut_rows:
                        for c in range(dim):
                            masks[slot, c] = np.float32(1.0 if position[row, slice_of[c]] < cutoff else 0.0)
                        for c in range(dim):
                            local[slot, c] = masks[slot, c] * table[row, c]
                    else:
                        for c in range(dim):
                            local[slot, c] = table[row, c]
                for b in range(num_batch):
                    slot = batch_slots[b]
                    logits[slot] = dot(users, i, local, slot, 0, dim) * inverse_temperature
                # the derivative of the loss by each negative's logit goes to the negative, minus their sum to the
                # positive
                for j in range(start, stop):
                    at = (j - start) * drawn
                    liked = pairs[at]
                    if softmax:
                        top = logits[liked]
                        for k in range(1, drawn):
                            top = max(top, logits[pairs[at + k]])
                        total = np.float32(0.0)
                        for k in range(drawn):
                            chances[k] = np.float32(math.exp(logits[pairs[at + k]] - top))
                            total += chances[k]
                        this_loss = math.log(total) + top - logits[liked]
                        for k in range(1, drawn):
                            chances[k] /= total
                    else:
                        this_loss = 0.0
                        for k in range(1, drawn):
                            gap = np.float64(logits[pairs[at + k]] - logits[liked])
                            small = math.exp(-abs(gap))
                            this_loss += (max(gap, 0.0) + math.log1p(small)) / num_negatives
                            chances[k] = np.float32((1.0 if gap >= 0.0 else small) / (1.0 + small) / num_negatives)
                    epoch_loss += this_loss
                    tallies[slot_row[liked], 0] += fixed(this_loss)
                    tallies[slot_row[liked], 1] += 1
                    for k in range(1, drawn):
                        weight = chances[k] * inverse_temperature
                        coefficient[pairs[at + k]] += weight
                        coefficient[liked] -= weight
                for c in range(dim):
                    user_gradient[c] = decay * np.float32(stop - start) * user[c]
                for b in range(num_batch):
                    slot = batch_slots[b]
                    push = coefficient[slot]
                    shrink = decay * np.float32(times[slot])
                    coefficient[slot] = 0.0
                    times[slot] = 0
                    if cut_rows:
                        for c in range(dim):
                            value = local[slot, c]
                            user_gradient[c] = fma(push, value, user_gradient[c])
                            gradient = fma(push, user[c], shrink * value)
                            local[slot, c] = fma(-rate * masks[slot, c], gradient, value)
                    else:
                        for c in range(dim):
                            value = local[slot, c]
                            user_gradient[c] = fma(push, value, user_gradient[c])
                            local[slot, c] = fma(-rate, fma(push, user[c], shrink * value), value)
                for c in range(dim):
                    user[c] = fma(-user_rate, user_gradient[c], user[c])
            loss[i] = epoch_loss / count
        # the update is what changed, clipped to max_norm, in fixed point
        square = 0.0
        pieces = 0
        scale = np.float32(1.0)
        if clips:
            entries = 0.0
            for slot in range(num_slots):
                row = slot_row[slot]
                for c in range(dim):
                    change = local[slot, c] - table[row, c]
                    step[0, c] = abs(change) if clip_l1 else change
                for s in range(num_slices):
                    block = position[row, s]
                    if block < cutoff:
                        norm = dot(step, 0, beside, 0, s * width, (s + 1) * width)
                        square += np.float64(norm)
                        entries += width
                        if clip_blocks:
                            block_sizes[block] += np.float64(norm)
                            block_entries[block] += width
            if clip_l1:
                square *= square
            if not clip_blocks:
                scale = np.float32(_clip_factor(math.sqrt(square), entries, max_norm, clip_l1))
        clipped_square = 0.0
        for slot in range(num_slots):
            row = slot_row[slot]
            if cut_rows:
                for s in range(num_slices):
                    if position[row, s] < cutoff:
                        tallies[row, 3 + s] += 1
                        pieces += 1
                for c in range(dim):
                    step[0, c] = scale * masks[slot, c] * (local[slot, c] - table[row, c])
            else:
                tallies[row, 3] += 1
                pieces += 1
                for c in range(dim):
                    step[0, c] = scale * (local[slot, c] - table[row, c])
            if clips and clip_blocks:
                for s in range(num_slices):
                    block = position[row, s]
                    if block < cutoff:
                        size = block_sizes[block] if clip_l1 else math.sqrt(block_sizes[block])
                        factor = np.float32(_clip_factor(size, block_entries[block], max_norm, clip_l1))
                        for c in range(s * width, (s + 1) * width):
                            step[0, c] *= factor
            norm = dot(step, 0, step, 0, 0, dim)  # squared: its root is at least the largest magnitude of the step
            clipped_square += np.float64(norm)
            bound = np.float64(math.sqrt(norm)) * 1.001 * UNIT + 2.0
            fits = bound < _ROOM
            if (not fits or tallies[row, 2] + np.int64(bound) > _ROOM) and not is_spilled[row]:
                is_spilled[row] = True
                for c in range(dim):
                    spilled[row, c] = 0
            if not fits:
                for c in range(dim):
                    spilled[row, c] += np.int64(np.floor(np.float64(step[0, c]) * UNIT + 0.5))
                bound = 1.0
                for c in range(dim):
                    step[0, c] = 0.0
            if tallies[row, 2] + np.int64(bound) > _ROOM:
                for c in range(dim):
                    spilled[row, c] += sums[row, c]
                tallies[row, 2] = 0
            if tallies[row, 2] == 0:
                for c in range(dim):
                    sums[row, c] = np.int32(np.floor(np.float64(step[0, c]) * UNIT + 0.5))
            else:
                for c in range(dim):
                    sums[row, c] += np.int32(np.floor(np.float64(step[0, c]) * UNIT + 0.5))
            tallies[row, 2] += np.int64(bound)
        if clips and clip_blocks:
            for slot in range(num_slots):
                for s in range(num_slices):
                    block = position[slot_row[slot], s]
                    if block < cutoff:
                        block_sizes[block] = 0.0
                        block_entries[block] = 0.0
        touched_pieces[i] = pieces
        squared_norms[i] = square if clips else clipped_square
