"""Steps of stage 1: each is one question to devices whose answers add up, both halves of it in one file.

Here is every step by its name: a new one is a file, and a line here. Installed packages add stages with a step each.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

from fl_peel.scenario.scenario import Scenario
from fl_peel.steps.base import ContributorsStep, Stage, Step, find_stage
from fl_peel.steps.choice import ChoiceStep
from fl_peel.steps.passes import CountsStep, PassStep
from fl_peel.steps.user_groups import GroupsStep, MapsStep, MomentsStep, VectorsStep

_ALL: tuple[type[Step], ...] = (
    CountsStep,
    PassStep,
    ChoiceStep,
    VectorsStep,
    GroupsStep,
    MomentsStep,
    MapsStep,
    ContributorsStep,
)
STEPS = MappingProxyType({step.name: step for step in _ALL})


def find_step(name: str) -> type[Step]:
    """Return a step by its name.

    Raises:
        FieldError: neither stage 1 nor an installed package has it.
    """
    return STEPS[name] if name in STEPS else type(find_stage(name))


def steps_of(scenario: Scenario) -> Iterator[type[Step]]:
    """Yield the steps that a run of a scenario may ask: those of stage 1, and of the stages that it names."""
    yield from STEPS.values()
    yield from (find_step(name) for name in scenario.stages)


__all__ = ["STEPS", "Stage", "find_stage", "find_step", "steps_of"]
