"""Devices fetch the map of their user group, as they join: the request to join brings it, and here is what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_peel.steps.base import (
    Size,
    Step,
    StepChannel,
    StepTerms,
    answer_to,
)
from fl_peel.steps.step_cost import (
    NUMBER_BYTES,
    ROW_BYTES,
    UNIT_BYTES,
    WORD_BYTES,
    HeldItems,
    StepCost,
    cost_by_columns,
)
from fl_peel.steps.units import Ints


@dataclass(frozen=True)
class MapsStep(Step):
    """Maps of K columns: one row of the map for every column of the vector."""

    columns: Size

    name: ClassVar[str] = "maps"

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`Step`."""
        nothing = np.zeros_like(budgets)
        return cost_by_columns(
            self.columns,
            nothing + terms.dim,
            budgets,
            moved=(
                nothing + (ROW_BYTES * terms.dim + UNIT_BYTES) * self.columns,
                nothing,
            ),
            kept=nothing + NUMBER_BYTES * self.columns + WORD_BYTES * terms.dim,
            column_bytes=nothing + ROW_BYTES * terms.dim,
        )

    @staticmethod
    def ask(channel: StepChannel, columns: int) -> None:
        """Count what maps of so many columns take of devices."""
        answer_to(channel, MapsStep(columns), {})
