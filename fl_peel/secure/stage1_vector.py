"""What a device says in a step of stage 1, as words of fixed number, so that its length tells nothing.

Counters are 64 bits wide, and so is all else unless units are coarser
(:class:`fl_peel.pretraining.spectral_steps.Units`): products of vectors and passes fill that, and counts are few beside
those. A vector is a head, of counters and the word that proves the masks gone, and a body of equal units: the columns
of a pass, the user groups of moments, one for any other step. It may go in parts of some units each, as one stream:
masks go on where they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fl_peel.exchange.counters import ClassCounts, ClockCounts
from fl_peel.pretraining.costs import AnswerCost, Step
from fl_peel.pretraining.spectral_steps import Ints, Moments, half_of, whole_of
from fl_peel.secure.protocol_plan import EXCHANGES, DeviceBytes
from fl_peel.secure.vector import CHECK, Bits, Field, VectorLayout

Part = tuple[int, int]
"""First unit of a part, and the one after its last."""


@dataclass(frozen=True)
class StepVector:
    """Vector of a step with K columns, G user groups, C filters to choose from, and I items.

    classes: device classes to count, 0: nothing is counted; devices: a sum is over at most so many; buckets: buckets of
    a pass whose rows are hashed, 0 for all rows; bits: width of words; contributors: whether this is the step's first
    part, in which devices name the rows to which they contribute.
    """

    step: Step
    columns: int
    groups: int
    shapes: int
    items: int
    classes: int
    devices: int
    buckets: int = 0
    bits: Bits = 64
    contributors: bool = False

    @property
    def counting(self) -> StepVector:
        """Return the vector of the step's first part."""
        return replace(self, contributors=True)

    @property
    def units(self) -> int:
        """Number of units of the body."""
        if self.contributors:
            return 1
        return {"pass": self.columns, "moments": self.groups}.get(self.step, 1)

    def _body(self, units: int) -> tuple[Field, ...]:
        if self.contributors:
            rows = {"pass": self.items, "choice": 1}.get(self.step, self.groups)
            return (Field("contributors", (rows,), self.bits),)
        if self.step == "counts":
            return (Field("items", (self.items,), self.bits),)
        if self.step == "pass":
            return (Field("columns", (units, self.buckets or self.items), self.bits),)
        if self.step == "choice":
            return Field("won", (self.shapes,), 64), Field("answered", (1,), 64)
        if self.step == "groups":
            sums = Field("sums", (self.groups, self.columns), self.bits)
            return Field("sizes", (self.groups,), self.bits), sums
        if self.step == "moments":
            return (Field("moments", (units, moment_words(self.columns, self.items)), self.bits),)
        raise AssertionError(f"devices say nothing in step {self.step}")

    @property
    def _head(self) -> tuple[Field, ...]:
        if not self.classes:
            return (Field(CHECK, (1,), 64),)
        return (
            Field(CHECK, (1,), 64),
            Field("classes", (self.classes, len(ClassCounts.names())), 64),
            Field("clock", (self.classes, len(ClockCounts.names())), 64),
        )

    def part(self, part: Part) -> VectorLayout:
        """Return the layout of some units; the first ones come with the head."""
        first, stop = part
        return VectorLayout((self._head if first == 0 else ()) + self._body(stop - first), self.devices)

    def start(self, part: Part) -> int:
        """Return the bytes of the vector before that part."""
        return self.part((0, part[0])).num_bytes if part[0] else 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole vector."""
        return self.part((0, self.units)).num_bytes

    @property
    def contribution_bytes(self) -> int:
        """Bytes of the contribution, without counters and the check."""
        return VectorLayout(self._body(self.units), self.devices).num_bytes

    def parts(self, most_bytes: int) -> list[Part]:
        """Return parts of at most that many bytes each, or of one unit."""
        at_once = max(1, most_bytes * self.units // self.num_bytes)
        return [(first, min(first + at_once, self.units)) for first in range(0, self.units, at_once)]


def answer_of(vector: StepVector, neighbours: int) -> AnswerCost:
    """Return what it costs a device to send that vector, with masks of so many neighbours."""
    moved = DeviceBytes.from_sizes(neighbours, 0)
    return AnswerCost(vector.num_bytes, moved.download, moved.upload, EXCHANGES)


def moment_words(columns: int, items: int) -> int:
    """Return the number of words of a user group's moments: its size, the sums of vectors (K,), half of a symmetric
    matrix (K, K), and item counts (I,).
    """
    return 1 + columns + columns * (columns + 1) // 2 + items


def words_of(moments: Moments) -> Ints:
    """Return a user group's moments as words."""
    return np.concatenate([np.array([moments.size]), moments.first, half_of(moments.second), moments.items])


def moments_of(words: Ints, columns: int) -> Moments:
    """Return the moments that :func:`words_of` turned into words."""
    stop = 1 + columns + columns * (columns + 1) // 2
    second = whole_of(words[1 + columns : stop], columns)
    return Moments(int(words[0]), words[1 : 1 + columns].copy(), second, words[stop:].copy())


__all__ = ["Part", "StepVector", "answer_of", "moment_words", "moments_of", "words_of"]
