"""Which rows a device has, hidden in fewer rows: a count sketch of a pass.

Rows are hashed into buckets, each with a sign, and a device says for each bucket what it would have said for its rows
there, signs applied, added up (Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", ICALP 2002).
The server reads each row from its bucket. What else lies there is noise without direction: in the next pass it meets
other buckets, and power iteration filters it out (Hardt and Price, "The noisy power method", NeurIPS 2014), so that the
last pass alone needs all rows.

Buckets are public; they hide nothing by themselves, as those of a few passes together tell the rows. Masks hide, and
the sketch makes them cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fl_peel.randomness import rng_for

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_ROWS = 8
"""Largest number of a device's rows that count in a bucket, signs added up: this proves that its numbers fit."""
OWN_SHARE = 0.5
"""Share of the buckets that the most frequent rows have to themselves, one each."""


@dataclass(frozen=True)
class RowSketch:
    """Buckets of I rows. place: (I,) bucket of each, from 1 on, negative where its sign is; buckets: B."""

    place: NDArray[np.int32]
    buckets: int

    @staticmethod
    def from_counts(counts: Ints, share: float, seed: int, number: int) -> RowSketch:
        """Return the sketch for the pass of that number; every pass has a new one. counts: (I,) of devices that have
        each item; share: B / I.

        The most frequent rows have a bucket each; in the others, rows of every frequency are mixed.
        """
        items = len(counts)
        buckets = min(items, max(1, round(share * items)))
        rng = rng_for(seed, "row-sketch", number)
        order = np.argsort(-counts, kind="stable")
        own = round(OWN_SHARE * buckets) if buckets > 1 else 0
        place = np.zeros(items, np.int64)
        place[order[:own]] = np.arange(own)
        rest, mixed = order[own:], buckets - own
        for start in range(0, len(rest), mixed):  # rows of like frequency are apart
            some = rest[start : start + mixed]
            place[some] = own + rng.permutation(mixed)[: len(some)]
        signs = rng.choice(np.array([-1, 1]), items)
        return RowSketch((signs * (place + 1)).astype(np.int32), buckets)

    @property
    def matrix(self) -> sp.csr_matrix:
        """Return the matrix (I, B) with a sign in each row."""
        items = len(self.place)
        signs = np.sign(self.place).astype(np.int64)
        return sp.csr_matrix((signs, np.abs(self.place) - 1, np.arange(items + 1)), shape=(items, self.buckets))

    def rows_of(self, rows: sp.csr_matrix) -> sp.csr_matrix:
        """Return what counts of devices' 0/1 rows (N, I) in each bucket, (N, B), int64."""
        buckets = sp.csr_matrix(rows.astype(np.int64) @ self.matrix)
        buckets.data = np.clip(buckets.data, -MOST_ROWS, MOST_ROWS)
        buckets.eliminate_zeros()
        return buckets

    def read(self, sums: Doubles, counts: Ints) -> Doubles:
        """All rows (I, k) from the buckets' sums (B, k): what lies in a bucket is each row's in the share that its
        count has there, the least squared error where a row's squares go with its count (Wiener's filter).
        """
        where = np.abs(self.place) - 1
        held = np.bincount(where, weights=counts, minlength=self.buckets)
        share = np.divide(counts, held[where], out=np.zeros(len(counts)), where=counts > 0)
        read: Doubles = (np.sign(self.place) * share)[:, None] * sums[where]
        return read
