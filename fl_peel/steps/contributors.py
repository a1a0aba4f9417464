"""The rule that no sum of few devices is opened: a step counts who would contribute, then opens what enough do.

A sum with a single contributor is that contributor's own number. Stage 1 adds up rows: of a pass one for each item, of
user groups and moments one for each group, of the choice of a filter a single one. A step therefore has two parts for
the same devices. In the first one devices say to which rows they would contribute, and their numbers are added up; in
the second one they contribute to the rows of which :func:`opened_rows` says that they may be opened, and say zeros for
all others, so that a row that stays closed looks as if nobody were there.

Counts themselves are opened: they say how many devices contribute, and nothing else of any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import ArraySpec
from fl_peel.errors import MessageError
from fl_peel.steps.base import Arrays, Bools, Part, Step, StepDevices, StepTerms, SumField
from fl_peel.steps.step_cost import HeldItems, StepCost
from fl_peel.steps.units import Ints

Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class ContributorsStep(Step):
    """The first part of a step: to which of its rows (R,) devices would contribute."""

    step: Step

    name: ClassVar[str] = "contributors"

    def __post_init__(self) -> None:
        if type(self.step).contributors is Step.contributors:
            raise MessageError(f"ContributorsStep: nobody contributes to a row in step {self.step.name}")

    @property
    def question(self) -> Step:
        """See :class:`fl_peel.steps.base.Step`: both parts have the same devices and are counted once."""
        return self.step

    def sent_arrays(self, terms: StepTerms, part: Part) -> Mapping[str, ArraySpec]:
        """See :class:`fl_peel.steps.base.Step`."""
        whole = self.step.sent_arrays(terms, (0, self.step.num_pieces))
        return {name: whole[name] for name in self.step.counting_sent}

    def cut(self, sent: Arrays, part: Part, terms: StepTerms) -> Arrays:
        """See :class:`fl_peel.steps.base.Step`."""
        return {name: sent[name] for name in self.step.counting_sent}

    def sums(self, terms: StepTerms) -> tuple[SumField, ...]:
        """See :class:`fl_peel.steps.base.Step`."""
        return (SumField("contributors", (self.step.num_rows(terms),), counts=True),)

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        """See :class:`fl_peel.steps.base.Step`."""
        return {"contributors": self.step.contributors(devices, sent, terms)}

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`fl_peel.steps.base.Step`."""
        return self.step.cost(terms, items, budgets)


def opened_rows(contributors: NDArray[Any], least: int) -> Bools:
    """Return which rows (R,) may be opened, of which so many devices (R,) contribute to each: ``privacy.min_owners``
    of them at the least.
    """
    return np.asarray(contributors >= least)


def packed_rows(opened: Bools) -> Bits:
    """Return the rows (R,) that are opened as they are sent, a bit each."""
    return np.packbits(opened)


def unpacked_rows(bits: Bits, rows: int) -> Bools:
    """Return which of so many rows are opened, (R,), of what was sent; a row whose bit lacks stays closed."""
    opened = np.zeros(rows, np.bool_)
    known = np.unpackbits(bits)[:rows].astype(np.bool_)
    opened[: len(known)] = known
    return opened
