"""A stage of a run that an installed package adds: one step, when it is asked, and the figures of its sum."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_peel.errors import FieldError
from fl_peel.figures import Figure
from fl_peel.scenario.settings import STAGES
from fl_peel.steps.base import Arrays, HeldItems, Step, StepCost, StepTerms
from fl_peel.steps.units import Doubles, Floats, Ints

AFTER = ("joining", "refinement", "evaluation")
"""Stages of every run after which another one may stand."""


@dataclass(frozen=True)
class Stage(Step):
    """A step that a run asks once, and the figures of its sum. after: stage of a run after which it stands, one of
    :data:`AFTER`; its fields have defaults. An entry point of the group ``fl_peel.stages`` registers it under its own
    name, and a scenario takes it with the key ``stages``. Masks, noise, the least number of owners, checkpoints and
    costs are those of any step; under a mechanism its ``noised`` parts have a share of the budget of stage 1.
    """

    after: ClassVar[str]

    def sent(self, tables: Sequence[Floats]) -> Arrays:
        """Return the arrays that devices are sent. tables: item tables (I, d) of the user groups as they are then."""
        return {}

    @abstractmethod
    def figures(self, sums: dict[str, Doubles], tables: Sequence[Floats]) -> Iterable[Figure]:
        """Return the figures, each with its name and columns (``where``). sums: of all devices, noised parts in ones;
        tables: as in :meth:`sent`.
        """

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`Step`; a device holds all that it is sent, and its contribution."""
        down, up, nothing = 0, 0, np.zeros_like(budgets)
        for spec in self.sent_arrays(terms, (0, self.num_pieces)).values():
            down += math.prod(map(int, spec.shape or ())) * np.dtype((spec.dtypes or ("int64",))[0]).itemsize
        for one in self.sums(terms):
            up += terms.word_bytes * math.prod(one.shape)
        return StepCost(nothing + down, nothing + up, nothing, nothing + down + up, nothing + 1)


def find_stage(name: str) -> Stage:
    """Return the stage that an installed package registers under a name.

    Raises:
        FieldError: there is none, it is not a :class:`Stage`, or it has another name, or no place in a run.
    """
    stage = STAGES.make(name, Stage)  # type: ignore[type-abstract]
    if stage.name != name or stage.after not in AFTER:
        raise FieldError(
            f"the stage {name!r} is named {stage.name!r} and stands after {stage.after!r}: register it under its own "
            f"name, and set after to one of {', '.join(AFTER)}"
        )
    return stage
