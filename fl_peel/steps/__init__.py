"""Steps of stage 1: each is one question to devices whose answers add up, both halves of it in one file.

Here is every step by its name: a new one is a file, and a line here.
"""

from __future__ import annotations

from types import MappingProxyType

from fl_peel.steps.base import ContributorsStep, Step
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

__all__ = ["STEPS"]
