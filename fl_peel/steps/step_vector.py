"""What a device contributes to a step, as words of fixed number, so that its length tells nothing.

Counters are 64 bits wide, and so is all else unless units are coarser (:class:`fl_peel.steps.units.Units`): products of
vectors and passes fill that, and counts are few beside those. A vector is a head, of counters and the word that proves
the masks gone, and a body of the step's pieces. It may go in parts of some pieces each, as one stream: masks go on
where they were.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_peel.exchange.counters import ClassCounts, ClockCounts
from fl_peel.secure.protocol_plan import EXCHANGES, DeviceBytes
from fl_peel.secure.vector import CHECK, Field, VectorLayout
from fl_peel.steps.base import Part, Step, StepTerms
from fl_peel.steps.step_cost import AnswerCost


@dataclass(frozen=True)
class StepVector:
    """Vector of a step. classes: device classes to count, 0: nothing is counted; devices: a sum is over at most so
    many.
    """

    step: Step
    terms: StepTerms
    classes: int
    devices: int

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
        """Return the layout of some pieces; the first ones come with the head."""
        return VectorLayout((self._head if part[0] == 0 else ()) + self.step.fields(self.terms, part), self.devices)

    def start(self, part: Part) -> int:
        """Return the bytes of the vector before that part."""
        return self.part((0, part[0])).num_bytes if part[0] else 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole vector."""
        return self.part((0, self.step.num_pieces)).num_bytes

    @property
    def contribution_bytes(self) -> int:
        """Bytes of the contribution, without counters and the check."""
        return VectorLayout(self.step.fields(self.terms, (0, self.step.num_pieces)), self.devices).num_bytes

    def clear_cost(self) -> AnswerCost:
        """Return what it costs a device to send all words of its contribution at once, in the clear."""
        return AnswerCost(self.contribution_bytes, 0, 0, 1)

    def masked_cost(self, neighbours: int) -> AnswerCost:
        """Return what it costs a device to send the vector with masks of so many neighbours."""
        moved = DeviceBytes.from_sizes(neighbours, 0)
        return AnswerCost(self.num_bytes, moved.download, moved.upload, EXCHANGES)
