"""Local training of the devices of one user group in torch: what ``kernels.train_devices`` does, on a GPU.

The compiled loop takes devices one after the other; here they go side by side. In step t every device trains on its
t-th mini-batch, if it has one. Which items a device draws is up to its own random stream, which a small compiled loop
follows (:mod:`fl_peel.kernels.random`), so that the two differ by the rounding of float32 alone.

Three words. A *slot* is a row that a device touches: it is copied once, and no table is built per device. A *touch* is
a slot in a step, a *visit* a device in a step. Slots are numbered device by device, and touches are sorted by step and
slot, so that what must be added up lies side by side: sums are over segments, in a fixed order, never by atomic
additions of floats, which come in any order. Sums over devices are integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_peel import kernels
from fl_peel.kernels import FIXED_POINT
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.update import LocalWork

IntArray = NDArray[np.int64]

CHUNK_FLOATS = 1 << 25
"""Rows drawn by devices that go side by side, times d: temporary arrays take 4 or 8 bytes for each (128 or 256 MB),
more only where a device does by itself.
"""


@dataclass(frozen=True)
class CohortSums:
    """users: (N, d), trained. sums: (R, d) block updates in units of 1 / FIXED_POINT; tallies: (R, 3 + S) as in
    :mod:`fl_peel.kernels.training`, column 2 unused. Per device, (N,): loss, examples, touched_pieces, squared_norms.
    """

    users: NDArray[np.float32]
    sums: IntArray
    tallies: IntArray
    loss: NDArray[np.float64]
    examples: IntArray
    touched_pieces: IntArray
    squared_norms: NDArray[np.float64]


def train_devices(work: LocalWork, where: torch.device, chunk_floats: int = CHUNK_FLOATS) -> CohortSums:
    """Train the devices of one user group in torch, on the processor or the GPU ``where``."""
    ranked, cutoffs, train, seeds, how = work.ranked, work.cutoffs, work.train, work.seeds, work.how
    (num_rows, dim), num_devices = ranked.table.shape, len(cutoffs)
    present, rows = ranked.num_present(cutoffs), ranked.row_of_item[train.items]
    examples = np.zeros(num_devices, np.int64)
    kernels.count_examples(present, train.indptr, rows, num_rows, examples)
    group = _Group(
        torch.from_numpy(ranked.table).to(where),
        torch.from_numpy(ranked.position).to(where),
        torch.zeros((num_rows, dim), dtype=torch.int64, device=where),
        torch.zeros((num_rows, 3 + ranked.layout.num_slices), dtype=torch.int64, device=where),
        how,
        how.bound(max(len(ranked.blocks), 1)),
        len(ranked.blocks),
    )
    trained = np.array(work.users, np.float32, copy=True)
    loss, squares, pieces = np.zeros(num_devices), np.zeros(num_devices), np.zeros(num_devices, np.int64)
    for some in _chunks(examples, how.epochs * (1 + how.num_negatives) * dim, chunk_floats):
        batches = _Batches.draw(some, examples[some], present, train.indptr, rows, seeds, how, num_rows, where)
        mine = torch.from_numpy(trained[some]).to(where)
        cuts = torch.from_numpy(cutoffs[some]).to(where)
        each, squared, touched = group.train(batches, mine, cuts)
        trained[some] = mine.cpu().numpy()
        loss[some] = batches.mean_loss(each.cpu().numpy())
        squares[some], pieces[some] = squared.cpu().numpy(), touched.cpu().numpy()
    return CohortSums(trained, group.sums.cpu().numpy(), group.tallies.cpu().numpy(), loss, examples, pieces, squares)


def _chunks(examples: IntArray, floats_each: int, most: int) -> Iterator[IntArray]:
    """Devices that have examples, in parts that draw ``most`` floats or are one device; like with like in length."""
    order = np.argsort(-examples, kind="stable")[: int((examples > 0).sum())]
    ends = np.cumsum(examples[order] * floats_each)
    first = 0
    while first < len(order):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield order[first:last]
        first = last


@dataclass(frozen=True)
class _Batches:
    """All mini-batches of M devices, E examples of 1 + K rows in the order of steps; T slots, U touches, V visits.

    pairs: (E, 1 + K) touch of a positive and of its negatives; positive_row: (E,) its table row.
    slot_row: (T,) table rows; slot_device: (T,); device_slots: (M,) how many each has.
    touch_slot, times: (U,) and how often it occurs in its batch; by_touch: (E * (1 + K),) flat pairs, by touch.
    visit_device, visit_touches, visit_examples: (V,).
    ends: (steps, 3) where the examples, touches and visits of each step end.
    count: (M,) examples of an epoch; in_last_epoch, example_device: (E,) on the host.
    """

    pairs: Tensor
    positive_row: Tensor
    slot_row: Tensor
    slot_device: Tensor
    device_slots: Tensor
    touch_slot: Tensor
    times: Tensor
    by_touch: Tensor
    visit_device: Tensor
    visit_touches: Tensor
    visit_examples: Tensor
    ends: list[list[int]]
    count: IntArray
    in_last_epoch: NDArray[np.bool_]
    example_device: IntArray

    @staticmethod
    def draw(
        devices: IntArray,
        count: IntArray,
        present: IntArray,
        indptr: IntArray,
        rows: NDArray[np.int32],
        seeds: NDArray[np.uint64],
        how: LocalTraining,
        num_rows: int,
        device: torch.device,
    ) -> _Batches:
        """Follow the random streams of ``devices`` (M,); present, seeds: (N,) of all; count: (M,)."""
        num_devices, drawn = len(devices), 1 + how.num_negatives
        who = np.repeat(np.arange(num_devices), count * how.epochs)
        number = np.arange(len(who)) - (np.cumsum(count * how.epochs) - count * how.epochs)[who]
        epoch, example = np.divmod(number, count[who])
        step = epoch * -(-count[who] // how.batch_size) + example // how.batch_size
        order = np.argsort(step, kind="stable")  # by step, then by device
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        step, who, last = step[order], who[order], (epoch == how.epochs - 1)[order]
        most = np.minimum(present[devices], count * (1 + how.num_negatives * how.epochs))
        pairs, slot_row = np.empty((len(who), drawn), np.int32), np.empty(int(most.sum()), np.int32)
        slot_ends = np.empty(num_devices, np.int64)
        kernels.draw_batches(
            devices, present, indptr, rows, seeds, how.epochs, place, num_rows, pairs, slot_row, slot_ends
        )
        num_slots = int(slot_ends[-1])
        device_slots = np.diff(slot_ends, prepend=0)
        slot_device = np.repeat(np.arange(num_devices), device_slots)
        visits, visit_examples = np.unique(step * num_devices + who, return_counts=True)

        def put(array: NDArray[np.integer]) -> Tensor:
            return torch.from_numpy(array.astype(np.int64)).to(device)

        slots, steps, slot_rows, slot_devices = put(pairs), put(step), put(slot_row[:num_slots]), put(slot_device)
        keys, by_touch = torch.sort((steps[:, None] * num_slots + slots).flatten(), stable=True)
        touches, places, times = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
        touch_slot, touch_step = touches % num_slots, touches // num_slots
        _, visit_touches = torch.unique_consecutive(
            touch_step * num_devices + slot_devices[touch_slot], return_counts=True
        )
        each_step = np.arange(int(step[-1]) + 1)
        ends = [
            np.searchsorted(step, each_step, side="right"),
            torch.searchsorted(touch_step, put(each_step), right=True).cpu().numpy(),
            np.searchsorted(visits // num_devices, each_step, side="right"),
        ]
        return _Batches(
            torch.empty_like(by_touch).scatter_(0, by_touch, places).view(-1, drawn),
            slot_rows[slots[:, 0]],
            slot_rows,
            slot_devices,
            put(device_slots),
            touch_slot,
            times,
            by_touch,
            put(visits % num_devices),
            visit_touches,
            put(visit_examples),
            np.stack(ends, axis=1).tolist(),
            count,
            last,
            who,
        )

    def steps(self) -> Iterator[tuple[slice, slice, slice]]:
        """Examples, touches and visits of each step."""
        before = [0, 0, 0]
        for ends in self.ends:
            examples, touches, visits = (slice(a, b) for a, b in zip(before, ends, strict=True))
            yield examples, touches, visits
            before = ends

    def mean_loss(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over each device's examples of the last epoch (M,), of losses (E,)."""
        last = self.in_last_epoch
        total = np.bincount(self.example_device[last], weights=losses[last], minlength=len(self.count))
        return np.asarray(total / self.count, np.float64)


@dataclass(frozen=True)
class _Group:
    """A group's blocks on the torch device: table (R, d), position (R, S); sums, tallies; bound: of a clip."""

    table: Tensor
    position: Tensor
    sums: Tensor
    tallies: Tensor
    how: LocalTraining
    bound: float
    num_blocks: int

    def train(self, batches: _Batches, users: Tensor, cutoffs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Train devices: users (M, d) change in place. Losses (E,); squared norms and touched pieces (M,)."""
        slot_position = self.position[batches.slot_row]
        held = slot_position < cutoffs[batches.slot_device][:, None]  # (T, S)
        before = self._masked(self.table[batches.slot_row], held)
        local = before.clone()  # (T, d)
        losses = torch.empty(len(batches.pairs), dtype=torch.float64, device=users.device)
        for step in batches.steps():
            losses[step[0]] = self._step(batches, step, users, local, held)
        fixed = torch.floor(losses * FIXED_POINT + 0.5).long()
        self.tallies[:, :2].index_add_(0, batches.positive_row, torch.stack([fixed, torch.ones_like(fixed)], dim=1))
        self.tallies[:, 3:].index_add_(0, batches.slot_row, held.long())
        change, squares = self._clipped(batches, local - before, held, slot_position)
        self.sums.index_add_(0, batches.slot_row, torch.floor(change.double() * FIXED_POINT + 0.5).long())
        return losses, squares, _segments(held.sum(1).double(), batches.device_slots).long()

    def _step(
        self,
        batches: _Batches,
        step: tuple[slice, slice, slice],
        users: Tensor,
        local: Tensor,
        held: Tensor,
    ) -> Tensor:
        """One mini-batch of every device that has one; users (M, d) and local (T, d) change. Returns losses. step: its
        examples, touches and visits.
        """
        examples, touches, visits = step
        how, drawn = self.how, batches.pairs.shape[1]
        slots, who, lengths = batches.touch_slot[touches], batches.visit_device[visits], batches.visit_touches[visits]
        user, rows, times = users[who], local[slots], batches.times[touches]  # (V, d), (U, d), (U,)
        mine = user.repeat_interleave(lengths, dim=0, output_size=len(slots))  # (U, d)
        logits = (rows * mine).sum(1) / how.temperature
        loss, weights = _derivatives(logits[batches.pairs[examples] - touches.start], how)
        flat = slice(examples.start * drawn, examples.stop * drawn)
        push = _segments(weights.flatten()[batches.by_touch[flat] - flat.start], times)[:, None]
        gradient = _segments(push * rows, lengths) + how.l2 * batches.visit_examples[visits][:, None] * user
        local[slots] = rows - how.learning_rate * self._masked(
            push * mine + how.l2 * times[:, None] * rows, held[slots]
        )
        users[who] = user - how.user_learning_rate * gradient
        return loss.double()

    def _masked(self, rows: Tensor, held: Tensor) -> Tensor:
        """Rows (T, d) with zeros in the slices that are not held (T, S)."""
        if held.shape[1] == 1:
            return rows  # a device that has a row has all of it
        return (rows.view(*held.shape, -1) * held[:, :, None]).view(rows.shape)

    def _clipped(self, batches: _Batches, change: Tensor, held: Tensor, slot_position: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of rows (T, d) within the bound, and each device's squared norm before (M,)."""
        clips = self.bound < float("inf")
        absolute = clips and self.how.clip_l1
        parts = change.view(*held.shape, -1)  # (T, S, d / S)
        sizes = (parts.abs() if absolute else parts.square()).sum(2).double()  # (T, S)
        entries = parts.shape[2] * held.double()
        size = _segments(sizes.sum(1), batches.device_slots)
        squares = size.square() if absolute else size
        if not clips:
            return change, squares
        if not self.how.clip_blocks:
            factors = self._factors(size, _segments(entries.sum(1), batches.device_slots))
            return change * factors[batches.slot_device][:, None], squares
        keys = (batches.slot_device[:, None] * (self.num_blocks + 1) + slot_position).flatten()
        keys, order = torch.sort(keys, stable=True)
        _, places, counts = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
        factors = self._factors(_segments(sizes.flatten()[order], counts), _segments(entries.flatten()[order], counts))
        of_piece = torch.empty_like(factors[places]).scatter_(0, order, factors[places])
        return (parts * of_piece.view(*held.shape, 1)).view(change.shape), squares

    def _factors(self, sizes: Tensor, entries: Tensor) -> Tensor:
        """Factors that keep updates within the bound once rounded. sizes: norms, squared unless L1; entries: in one."""
        absolute = self.how.clip_l1
        rounding = 0.5 / FIXED_POINT * (entries if absolute else entries.sqrt())
        limit = (self.bound * (1.0 - 1e-5) - rounding).clamp(min=0.0)
        size = sizes if absolute else sizes.sqrt()
        return torch.where(size > limit, limit / size, 1.0).float()


def _derivatives(logits: Tensor, how: LocalTraining) -> tuple[Tensor, Tensor]:
    """Losses (m,) of logits (m, 1 + K), the positive's first, and their derivatives by what the logits are of."""
    if how.loss == "sampled-softmax":
        loss, weights = torch.logsumexp(logits, 1) - logits[:, 0], torch.softmax(logits, 1)[:, 1:]
    else:
        gaps = logits[:, 1:] - logits[:, :1]
        loss, weights = torch.nn.functional.softplus(gaps).mean(1), torch.sigmoid(gaps) / how.num_negatives
    return loss, torch.cat([-weights.sum(1, keepdim=True), weights], 1) / how.temperature


def _segments(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums over consecutive segments of the first dimension, each in order."""
    return torch.segment_reduce(values, "sum", lengths=lengths, axis=0, unsafe=True)
