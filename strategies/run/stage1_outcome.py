"""Stage 1, and what else is known before the first round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.blocks.layout import BlockLayout, budget_bytes
from fl_peel.blocks.ranked_blocks import check_budget
from fl_peel.data.interactions import UserItems, collected
from fl_peel.device_storage import device_splits, device_timeline
from fl_peel.model.device import Joining
from fl_peel.privacy.noise_plan import Plan, check_delta, make_plan
from fl_peel.scenario.scenario import Scenario
from strategies.figures.schema import Stage1Result
from strategies.groups.state import FloatArray, UserGroupState
from strategies.nodes import Members
from strategies.rounds.step_channels import SumsRecord
from strategies.rounds.strategy import sample_cohort
from strategies.run.run_paths import RunPaths


@dataclass(frozen=True)
class Stage1Outcome(ABC):
    """State of the server after stage 1. temperature: temperature of the local loss, where the scenario gives none."""

    layout: BlockLayout
    temperature: float

    @property
    def steps(self) -> tuple[SumsRecord, ...]:
        """Return the records of the steps that devices took part in; none where the server ran stage 1 alone."""
        return ()

    def chosen(self) -> dict[str, float]:
        """Keys of pretraining that were chosen on validation items, and what was chosen."""
        return {}

    def figures(self, members: Members, seconds: float, before: tuple[SumsRecord, ...] = ()) -> Stage1Result | None:
        """Return stage 1's cost for devices (None: server alone). seconds: wall time; before: earlier steps."""
        return None

    @property
    def global_table(self) -> FloatArray | None:
        """Return the one item table (I, d) for all devices, where there is one."""
        return None

    @property
    def global_tables(self) -> FloatArray | Callable[[int], FloatArray] | None:
        """Return the same table as devices score by it: for each user group, by number, where embeddings differ."""
        return self.global_table

    @abstractmethod
    def states(self, scenario: Scenario, folder: str = "") -> list[UserGroupState]:
        """Return every user group as it starts. folder: of large tables (:mod:`strategies.groups.state`)."""

    @property
    @abstractmethod
    def joining(self) -> Joining:
        """Return how a new device joins."""

    @property
    def sends_own_embeddings(self) -> bool:
        """Return whether every device is sent something of its own, so that of many devices some join at a time."""
        return False

    @abstractmethod
    def join_request(self, setting: wire.RunSetting, devices: NDArray[np.int64]) -> wire.JoinRequest:
        """Return the join request for these devices of a node."""


def given_data(scenario: Scenario, train: UserItems) -> tuple[UserItems, NDArray[np.bool_]]:
    """The train interactions that the server may see, and which users gave any, (U,)."""
    part = scenario.pretraining.collected
    return collected(train, seed=scenario.seed, share=part.share, mode=part.mode)


def check_budgets(scenario: Scenario, layout: BlockLayout) -> None:
    """Refuse budgets to evaluate at that hold nothing.

    Raises:
        BudgetError: an evaluation budget is below one block.
    """
    for share in scenario.evaluation.budgets:
        for precision in scenario.evaluation.precisions or (scenario.blocks.precision,):
            check_budget(layout, precision, budget_bytes(layout, share), f"evaluation.budgets {share:.4%}")


def privacy_plan(scenario: Scenario, paths: RunPaths) -> Plan | None:
    """Return how much noise the run adds, and what it spends; None where no mechanism is named.

    Raises:
        ScenarioError: a target that cannot be met, a delta above one device, or keys under which its epsilon would not
            be true.
    """
    if not scenario.privacy.noised:
        return None
    splits, refinement = device_splits(scenario, paths.data_dir, paths.run_dir), scenario.refinement
    num_devices = splits.num_users
    if scenario.data.timeline is not None:  # of all periods
        timeline = device_timeline(scenario, paths.data_dir, paths.run_dir)
        num_devices = timeline.users_before(int(timeline.edges[-1]))
    check_delta(scenario, num_devices)
    _, has_data = given_data(scenario, splits.train)
    most = None
    if refinement.sampling == "fixed":  # a schedule that depends on no data: count the rounds of each device
        devices = np.arange(splits.num_users, dtype=np.int64)
        counts = np.zeros(splits.num_users, np.int64)
        for server_round in range(1, refinement.rounds + 1):
            counts[sample_cohort(scenario.seed, server_round, devices, refinement.sampling_rate)] += 1
        most = int(counts.max(initial=0))
    asks = scenario.pretraining.model == "spectral" or not has_data.all()
    asks_groups = asks and scenario.user_groups.count > 1
    return make_plan(scenario, most_rounds=most, asks_groups=asks_groups)
