"""Whom a strategy works with, and what it starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from fl_peel import wire
from fl_peel.blocks.layout import BlockLayout
from fl_peel.scenario.scenario import Scenario
from strategies.groups.state import UserGroupState
from strategies.nodes.members import Members, bounds_of
from strategies.nodes.nodes import Nodes

Result = TypeVar("Result")


@dataclass(frozen=True)
class Federation:
    """One refinement's parties. states: (G) user groups, which rounds change; temperature: of the local loss, where the
    scenario gives none; begin: rounds of the fleet's clock that are over when the first one opens.
    """

    scenario: Scenario
    setting: wire.RunSetting
    layout: BlockLayout
    states: list[UserGroupState]
    members: Members
    nodes: Nodes
    temperature: float
    begin: int = 0

    @property
    def num_classes(self) -> int:
        """Device classes, C."""
        return len(self.members.class_names)

    def bounds(self, partition: int) -> dict[str, int]:
        """Return what the devices of a node can add up to, as :func:`strategies.nodes.members.bounds_of` names it."""
        return bounds_of(int((self.nodes.partitions_of(self.members.devices) == partition).sum()))


def for_groups(work: Callable[[int], Result], groups: Iterable[int]) -> list[Result]:
    """Do work for each user group, two at a time: nodes wait meanwhile, and compiled loops run side by side."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(work, groups))
