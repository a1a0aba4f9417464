"""How many devices have each item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_peel.steps.base import (
    Arrays,
    Bools,
    NoisedPart,
    Part,
    Step,
    StepChannel,
    StepDevices,
    StepTerms,
    SumField,
    answer_to,
)
from fl_peel.steps.step_cost import ID_BYTES, HeldItems, StepCost
from fl_peel.steps.units import Ints


@dataclass(frozen=True)
class CountsStep(Step):
    """Item counts. Within bounds a device adds min(1, bound / sqrt(n)) for each of its n items (L1: bound / n)."""

    name: ClassVar[str] = "counts"
    noised: ClassVar[tuple[NoisedPart, ...]] = (NoisedPart("counts", "items", 0.05, None),)
    counts_alone: ClassVar[str] = "items"

    def sums(self, terms: StepTerms) -> tuple[SumField, ...]:
        """See :class:`Step`."""
        return (SumField("items", (terms.num_items,), counts=True),)

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        """See :class:`Step`."""
        return {"items": terms.count_items(devices.contributed)}

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`Step`; the ids of a device's items, and nothing to keep."""
        nothing = np.zeros_like(budgets)
        return StepCost(nothing, ID_BYTES * items.contributed, nothing, nothing, nothing + 1)

    @staticmethod
    def ask(channel: StepChannel) -> Ints:
        """Return how many devices have each item, (I,)."""
        counts: Ints = answer_to(channel, CountsStep(), {})["items"]
        return counts
