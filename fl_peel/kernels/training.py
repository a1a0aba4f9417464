"""Compiled local training of the devices of one user group, one after the other, on the group's ranked blocks."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from fl_peel.kernels.lanes import UNIT, add_fixed, dot, fetch, fixed, fma, step_row
from fl_peel.kernels.random import STEP, below, next_below, next_number

_ROOM = 2147483647.0  # largest int32
_LIKED = np.int32(-(2**31))  # in a device's note of a row: it is among the train items
_SLOT = np.int32(2**31 - 1)  # and the rest of the note: one more than the row's slot, 0 where it has none yet
_DRAWN = 256  # rows that are drawn at a time
_AHEAD = 12  # slots between the row that is worked on and the one that is brought near


@njit(nogil=True, cache=True, inline="always")
def _clip_factor(size, entries, bound, l1):
    """Return the factor for an update of this norm that keeps it within the bound after rounding to fixed point.

    Norms are sums of float32 numbers, good to 1e-5; rounding moves an entry by half a unit at most.
    """
    rounding = 0.5 / UNIT * (entries if l1 else math.sqrt(entries))
    limit = max(bound * (1.0 - 1e-5) - rounding, 0.0)
    return limit / size if size > limit else 1.0


@njit(nogil=True, cache=True)
def _add_wide_step(step, bound, row, sums, spilled, is_spilled, tallies):
    """Add a step that does not fit in 32 bits, alone or on top of what is there; otherwise as :func:`_add_step`."""
    fits = bound < _ROOM
    if not is_spilled[row]:
        is_spilled[row] = True
        spilled[row, :] = 0
    if not fits:
        for c in range(step.shape[1]):
            spilled[row, c] += np.int64(np.floor(np.float64(step[0, c]) * UNIT + 0.5))
            step[0, c] = 0.0
        bound = 1.0
    if tallies[row, 2] + np.int64(bound) > _ROOM:
        for c in range(step.shape[1]):
            spilled[row, c] += sums[row, c]
        tallies[row, 2] = 0
    add_fixed(sums, row, step, tallies[row, 2] == 0)
    tallies[row, 2] += np.int64(bound)


@njit(nogil=True, cache=True, inline="always")
def _add_step(step, norm, row, sums, spilled, is_spilled, tallies):
    """Add a device's contribution to a row, ``step`` (1, d), to the sums. norm: squared: its root is at least the
    largest magnitude of the step.
    """
    bound = np.float64(math.sqrt(norm)) * 1.001 * UNIT + 2.0
    if bound < _ROOM and tallies[row, 2] + np.int64(bound) <= _ROOM:
        add_fixed(sums, row, step, tallies[row, 2] == 0)
        tallies[row, 2] += np.int64(bound)
    else:
        _add_wide_step(step, bound, row, sums, spilled, is_spilled, tallies)


@njit(nogil=True, cache=True, error_model="numpy")
def _draw(positives, start, stop, present, state, drawing, random, notes, slot_row, pairs, counts, times, batch_slots):
    """Each positive of a batch and its negatives, by the slots of their rows, in ``pairs``; where either counts,
    ``times`` that each is there, and ``batch_slots`` that are. drawing: numbers of ``random`` that are used, that there
    are, slots that are taken. Returns the new state and drawing, and how many slots the batch has.
    """
    num_used, num_random, num_slots = drawing
    drawn = len(pairs) // (stop - start)
    num_batch = 0
    at = 0
    for j in range(start, stop):
        for k in range(drawn):
            row = np.int64(positives[j])
            note = notes[row]
            while k > 0:
                if num_used == num_random:
                    state += np.uint64(num_used) * STEP
                    num_used, num_random = 0, min(len(random), (stop - j) * (drawn - 1))
                    next_below(state, present, random[:num_random])
                row = np.int64(random[num_used])
                num_used += 1
                note = notes[row]
                if note >= 0:
                    break
            # without a branch: whether a row is new to a device is anybody's guess
            slot = np.int64(note & _SLOT) - 1
            is_new = np.int64(slot < 0)
            slot += is_new * (num_slots + 1)
            notes[row] = (note & _LIKED) | np.int32(slot + 1)
            slot_row[num_slots] = row
            num_slots += is_new
            pairs[at] = slot
            at += 1
            if counts:
                batch_slots[num_batch] = slot
                num_batch += np.int64(times[slot] == 0)
                times[slot] += 1
    return state, (num_used, num_random, num_slots), num_batch


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_logits(table, slots, users, i, inverse_temperature, logits):
    """Fill in the logits of the rows of a device's ``slots``, read straight from the table."""
    last = len(slots) - 1
    for slot in range(len(slots)):
        fetch(table, slots[min(slot + _AHEAD, last)])
        logits[slot] = dot(users, i, table, slots[slot], 0, table.shape[1]) * inverse_temperature


@njit(nogil=True, cache=True, error_model="numpy")
def _add_losses(loss, pairs, drawn, logits, softmax, inverse_temperature, slot_row, tallies, coefficient, chances):
    """``loss``, with that of a batch. ``coefficient``: the derivative by each negative's logit goes to the negative,
    minus their sum to the positive.
    """
    num_negatives = drawn - 1
    for at in range(0, len(pairs), drawn):
        liked = pairs[at]
        if softmax:
            top = logits[liked]
            for k in range(drawn):
                chances[k] = logits[pairs[at + k]]
                top = max(top, chances[k])
            total = np.float32(0.0)
            for k in range(drawn):
                chances[k] = np.float32(math.exp(chances[k] - top))
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
        loss += this_loss
        tallies[slot_row[liked], 0] += fixed(this_loss)
        tallies[slot_row[liked], 1] += 1
        pull = coefficient[liked]  # no negative is among the positives
        for k in range(1, drawn):
            weight = chances[k] * inverse_temperature
            coefficient[pairs[at + k]] += weight
            pull -= weight
        coefficient[liked] = pull
    return loss


@njit(nogil=True, cache=True, error_model="numpy")
def _step_at_once(
    table, slots, users, i, gradient, step, coefficient, times, decay, rate, sums, spilled, is_spilled, tallies
):
    """The only step of a device, straight to the sums, row by row of its ``slots``. ``gradient`` (1, d) of its user
    embedding grows; ``coefficient`` and ``times`` are set to 0. Returns the squared norm of its update.
    """
    square = 0.0
    last = len(slots) - 1
    for slot in range(len(slots)):
        row = slots[slot]
        ahead = slots[min(slot + _AHEAD, last)]
        fetch(sums, ahead)
        fetch(tallies, ahead)
        push = coefficient[slot]
        shrink = decay * np.float32(times[slot])
        norm = step_row(table, row, users, i, gradient, step, push, shrink, rate)
        square += np.float64(norm)
        coefficient[slot] = 0.0
        times[slot] = 0
        tallies[row, 3] += 1
        _add_step(step, norm, row, sums, spilled, is_spilled, tallies)
    return square


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
    are copied to ``local``, a few kilobytes; of a device that takes one step nothing is copied: it reads the table, and
    what it changes goes to the sums at once. The phases of a batch are separate loops, so that reads of far rows
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
    slot_row = np.empty(most + 1, np.int64)
    logits = np.empty(most, np.float32)
    coefficient = np.zeros(most, np.float32)  # of the user embedding in the row's gradient
    times = np.zeros(most, np.int32)  # in this batch
    batch_slots = np.empty(most + 1, np.int32)
    pairs = np.empty(min(batch_size, longest) * drawn, np.int32)  # slots of a positive, its negatives, the next one
    random = np.empty(_DRAWN, np.int32)
    notes = np.zeros(num_rows, np.int32)  # of rows: see _LIKED and _SLOT
    positives = np.empty(longest, np.int64)
    user_gradient = np.empty((1, dim), np.float32)
    chances = np.empty(drawn, np.float32)
    step = np.empty((1, dim), np.float32)
    norm_factor = np.ones((1, dim), np.float32) if clip_l1 else step  # what a step is multiplied by for its norm
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
                if notes[row] == 0:
                    notes[row] = _LIKED
                    distinct += 1
        examples[i] = count
        loss[i] = 0.0
        touched_pieces[i] = 0
        squared_norms[i] = 0.0
        if count == 0 or distinct >= present:
            examples[i] = 0
            for j in range(count):
                notes[positives[j]] = 0
            continue  # nothing to learn from, or no item left to contrast with
        at_once = epochs == 1 and count <= batch_size and not (cut_rows or clips)
        state = seeds[i]
        drawing = 0, 0, 0
        square = 0.0
        for _epoch in range(epochs):
            state += np.uint64(drawing[0]) * STEP
            drawing = 0, 0, drawing[2]
            for j in range(count - 1, 0, -1):  # Fisher-Yates
                state, bits = next_number(state)
                other = below(bits, j + 1)
                positives[j], positives[other] = positives[other], positives[j]
            epoch_loss = 0.0
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                first_slot = drawing[2]
                mine = pairs[: (stop - start) * drawn]
                state, drawing, num_batch = _draw(
                    positives,
                    start,
                    stop,
                    present,
                    state,
                    drawing,
                    random,
                    notes,
                    slot_row,
                    mine,
                    not at_once or l2 != 0.0,
                    times,
                    batch_slots,
                )
                num_slots = drawing[2]
                if at_once:
                    _fill_logits(table, slot_row[:num_slots], users, i, inverse_temperature, logits)
                else:
                    for slot in range(first_slot, num_slots):
                        row = slot_row[slot]
                        fetch(table, slot_row[min(slot + _AHEAD, num_slots - 1)])
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
                epoch_loss = _add_losses(
                    epoch_loss,
                    mine,
                    drawn,
                    logits,
                    softmax,
                    inverse_temperature,
                    slot_row,
                    tallies,
                    coefficient,
                    chances,
                )
                for c in range(dim):
                    user_gradient[0, c] = decay * np.float32(stop - start) * user[c]
                if at_once:
                    square = _step_at_once(
                        table,
                        slot_row[:num_slots],
                        users,
                        i,
                        user_gradient,
                        step,
                        coefficient,
                        times,
                        decay,
                        rate,
                        sums,
                        spilled,
                        is_spilled,
                        tallies,
                    )
                else:
                    for b in range(num_batch):
                        slot = batch_slots[b]
                        push = coefficient[slot]
                        shrink = decay * np.float32(times[slot])
                        coefficient[slot] = 0.0
                        times[slot] = 0
                        if cut_rows:
                            for c in range(dim):
                                value = local[slot, c]
                                user_gradient[0, c] = fma(push, value, user_gradient[0, c])
                                gradient = fma(push, user[c], shrink * value)
                                local[slot, c] = fma(-rate * masks[slot, c], gradient, value)
                        else:
                            for c in range(dim):
                                value = local[slot, c]
                                user_gradient[0, c] = fma(push, value, user_gradient[0, c])
                                local[slot, c] = fma(-rate, fma(push, user[c], shrink * value), value)
                for c in range(dim):
                    user[c] = fma(-user_rate, user_gradient[0, c], user[c])
            loss[i] = epoch_loss / count
        num_slots = drawing[2]
        for slot in range(num_slots):
            notes[slot_row[slot]] = 0
        if at_once:
            touched_pieces[i] = num_slots
            squared_norms[i] = square
            continue
        # the update is what changed, clipped to max_norm, in fixed point
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
                        norm = dot(step, 0, norm_factor, 0, s * width, (s + 1) * width)
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
            ahead = slot_row[min(slot + _AHEAD, num_slots - 1)]
            fetch(table, ahead)
            fetch(sums, ahead)
            fetch(tallies, ahead)
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
            norm = dot(step, 0, step, 0, 0, dim)
            clipped_square += np.float64(norm)
            _add_step(step, norm, row, sums, spilled, is_spilled, tallies)
        if clips and clip_blocks:
            for slot in range(num_slots):
                for s in range(num_slices):
                    block = position[slot_row[slot], s]
                    if block < cutoff:
                        block_sizes[block] = 0.0
                        block_entries[block] = 0.0
        touched_pieces[i] = pieces
        squared_norms[i] = square if clips else clipped_square
