"""What devices hold and take in a round against what they may, by hand: bounded, and counted where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from clients.fleet.fleet import FleetBudgets, fleet_from_mapping
from clients.node import round_context as module
from clients.node.evaluate import Holdings
from clients.node.round_context import RoundMemory, WorkingMemory
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, rank_blocks
from fl_peel.errors import BudgetError
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.update import TrainingMemory
from fl_peel.wire import OWN_BUDGET
from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.clients.node.test_cohort import World
from tests.helpers.blocks import rows_of
from tests.helpers.loopback import LoopbackGrid
from tests.strategies.evaluation.test_heterogeneity import EVERYBODY, round_of, world_of

LAYOUT = BlockLayout(np.arange(12, dtype=np.int32), 4, 1)
RANKED = rank_blocks(LAYOUT, "int8", -np.arange(12.0), np.ones((12, 4), np.float32))
"""Overhead 44 + 8 = 52; a block takes 2 + 2 + 4 = 8 bytes."""
TAKES = TrainingMemory(4, 1, LocalTraining(num_negatives=1), 0)
"""With n interactions 4 n + 16 + 48 bytes, 5 a row held and 40 a row touched, 2 n rows in one epoch."""


def working(*allowed: int, interactions: int = 10) -> WorkingMemory:
    return WorkingMemory(np.array(allowed), np.full(len(allowed), interactions), TAKES)


def test_training_begins_with_as_many_of_the_stored_blocks_as_working_memory_allows():
    """104 bytes and 45 a row: 2 rows take 194, 5 take 329; what is stored does not depend on it."""
    own = working(103, 148, 149, 194, 329, 10_000)
    trainable = own.cutoffs(RANKED)
    assert trainable.tolist() == [0, 0, 1, 2, 5, 12]
    budgets = np.full((2, 6), 52 + 4 * 8)
    budgets[1, 4] = 52 + 3 * 8
    memory = RoundMemory.from_budgets(RANKED, budgets, trainable)
    assert memory.first.tolist() == [4] * 6
    assert memory.last.tolist() == [4, 4, 4, 4, 3, 4]
    assert memory.started.tolist() == [0, 0, 1, 2, 4, 4]
    assert memory.trained.tolist() == [0, 0, 1, 2, 3, 4]
    assert memory.interrupted.tolist() == [False] * 4 + [True, False]
    assert memory.dropped_out.tolist() == [True] * 2 + [False] * 4
    assert (own.most_bytes(RANKED, memory.started) <= np.maximum(own.allowed, 8)).all()


def test_losing_blocks_that_are_not_trained_interrupts_nothing():
    memory = RoundMemory.from_budgets(RANKED, np.array([[52 + 40, 52 + 16], [52 + 16, 52 + 40]]), np.array([2, 2]))
    assert memory.dropped_blocks.tolist() == [True, False]
    assert memory.interrupted.tolist() == [False, False]


def test_steps_at_which_a_device_holds_more_than_its_budget_are_counted(monkeypatch):
    """By itself, whatever chose the blocks."""
    budgets = np.full((3, 2), 84)
    more = np.array([[1, 0], [1, 0], [0, 1]])
    monkeypatch.setattr(module, "stored_bytes", lambda ranked, held, lowest, extra: budgets + more)
    assert RoundMemory.from_budgets(RANKED, budgets, np.full(2, 12)).violations.tolist() == [2, 1]


def test_working_bytes_by_hand():
    """Two devices end the round, having touched 3 and 1 rows; the third was interrupted, the fourth is late: both count
    what they may have touched. The fifth has nothing to train and reads a block.
    """
    own = working(*[10_000] * 4, 50)
    memory = RoundMemory.from_budgets(
        RANKED, np.array([[84, 84, 84, 84, 84], [84, 84, 60, 84, 84]]), own.cutoffs(RANKED)
    )
    taken = memory.working_bytes(RANKED, own, np.array([0, 1, 2]), np.array([3, 1, 1]))
    full = 104 + 4 * 45
    assert taken.tolist() == [104 + 4 * 5 + 3 * 40, 104 + 4 * 5 + 40, full, full, 8]


def test_what_a_device_may_take_by_hand():
    """A device that trains nothing reads a block, of which the list that is empty has none."""
    own = working(*[10_000] * 3)
    assert own.most_bytes(RANKED, np.array([0, 1, 2])).tolist() == [8, 104 + 45, 104 + 2 * 45]
    assert working(*[10_000] * 2, interactions=0).most_bytes(RANKED, np.array([0, 1])).tolist() == [8, 64 + 5]
    assert RANKED.largest_bytes == 8
    nothing = rank_blocks(LAYOUT, "int8", -np.arange(12.0), np.ones((12, 4), np.float32), budget_bytes=0)
    assert len(nothing.blocks) == nothing.largest_bytes == 0
    assert own.most_bytes(nothing, np.zeros(3, np.int64)).tolist() == [0, 0, 0]
    wide = rank_blocks(LAYOUT, "fp32", -np.arange(12.0), np.ones((12, 4), np.float32))
    assert wide.largest_bytes == 2 + 4 * 4


def test_what_lies_beside_the_file_counts_against_the_budget():
    memory = RoundMemory.from_budgets(RANKED, np.array([[84, 59, 60, 68]]), np.full(4, 12), extra_bytes=8)
    assert memory.first.tolist() == [3, 0, 0, 1]
    assert memory.stored.tolist() == [84, 0, 60, 68]
    assert not memory.violations.any()


@pytest.mark.parametrize("room", [-1.0, 1.0])
def test_serving_from_blocks_whose_cost_lies_is_counted(monkeypatch, room):
    def one_more(self, budgets, skipped):
        cutoffs = np.minimum(self.cutoffs(budgets) + 1, len(self.blocks))
        return cutoffs, self.stored_bytes(cutoffs), cutoffs

    monkeypatch.setattr(RankedBlocks, "cutoffs_without", one_more)
    held = Holdings.under(RANKED, OWN_BUDGET, 1.0, room, np.array([84, 52 + 12 * 8]), RANKED.unneeded(rows_of([], [])))
    assert held.violations.tolist() == ([1, 0] if room < 0 else [0, 0])  # with a room, what does not fit is not held


# ---------------------------------------------------------------- what a profile says


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ({"table_share": 0.05}, 16 * 500_000),
        ({"table_share": 0.05, "working_factor": 2.5}, 1_250_000),
        ({"total_kb": 64, "recommender_share": 0.25}, 48 * 1024),  # 16 x 16 KB are more than the device has left
        ({"total_kb": 64, "recommender_share": 0.25, "working_factor": 1}, 16 * 1024),
        ({"total_kb": 64, "recommender_share": 1}, 0),
    ],
)
def test_working_memory_by_hand(memory, expected):
    fleet = fleet_from_mapping({"profiles": [{"name": "a", "memory": memory}]})
    assert FleetBudgets(fleet, 0, np.arange(3), 10_000_000).working().tolist() == [expected] * 3


def test_working_memory_is_of_the_largest_budget_and_leaves_it_room():
    budget = {"process": "periodic", "period_hours": 6, "amplitude": 0.3}
    memory = {"total_kb": 100, "recommender_share": 0.5}
    fleet = fleet_from_mapping({"profiles": [{"name": "a", "memory": memory, "budget": budget}]})
    budgets = FleetBudgets(fleet, 0, np.arange(5), 10_000)
    assert (budgets.working() + budgets.ceiling() == 100 * 1024).all()
    assert (budgets.ceiling() == int(1.3 * 50 * 1024)).all()


def test_the_user_embedding_a_device_may_go_back_to_lies_beside():
    scenario = Scenario.model_validate({"name": "n", "data": {"name": "ml-100k"}})
    assert module.extra_bytes(scenario) == 2 * scenario.pretraining.embedding_dim
    always = {"refinement": {"acceptance": {"rule": "always"}}}
    assert module.extra_bytes(Scenario.model_validate({"name": "n", "data": {"name": "ml-100k"}, **always})) == 0


TIGHT = """
profiles:
  - {name: roomy, population_share: 0.5, memory: {table_share: 1, working_factor: 100}}
  - {name: tight, population_share: 0.5, memory: {table_share: 1, working_factor: FACTOR}}
"""


def test_a_round_trains_no_more_than_working_memory_allows(tmp_path):
    """Four columns in two slices: 45 bytes a piece, and with two negatives and 8 x 0.6 train items some 300 besides."""
    world = world_of(tmp_path, TIGHT.replace("FACTOR", "3"))
    cohort = world.cohorts(1)[0]
    tight = cohort.classes == 1
    (reply,) = round_of(world, EVERYBODY)
    counts = reply.counts.classes
    assert counts.working_violations.tolist() == counts.violations.tolist() == [0, 0]
    mean = counts.peak_bytes / counts.devices
    assert (mean > counts.stored_bytes / counts.devices).all()
    assert mean[1] <= 384 + 3 * 384 < mean[0]
    alone = round_of(world, EVERYBODY[tight])[0]
    most = max(int(np.flatnonzero(arrays["holders"]).max()) for arrays in alone.groups.values())
    shown = max(int(np.flatnonzero(arrays["exposed"]).max()) for arrays in alone.groups.values())
    assert most < 30 < shown  # all blocks are held and looked up, some are trained


def test_training_that_takes_more_than_it_may_is_counted(tmp_path, monkeypatch):
    """A round whose choice of blocks ignores working memory: every device of the class goes over it."""
    world = world_of(tmp_path, TIGHT.replace("FACTOR", "3"))
    tight = int((world.cohorts(1)[0].classes == 1).sum())
    monkeypatch.setattr(WorkingMemory, "cutoffs", lambda self, ranked: np.full(len(self.allowed), len(ranked.blocks)))
    (reply,) = round_of(world, EVERYBODY)
    assert reply.counts.classes.working_violations.tolist() == [0, tight]


def test_working_memory_that_trains_nothing_is_refused_at_the_start(tmp_path):
    world = World(tmp_path)
    (tmp_path / "fleet.yaml").write_text(TIGHT.replace("FACTOR", "0.1"))
    with pytest.raises(
        BudgetError, match=r"device profile tight: 38 B of working memory .* raise memory.working_factor"
    ):
        world.join(world.cohorts(1)[0])


def violated(tiny, tmp_path, name: str):
    """A whole run."""
    more = ["elasticity={rounds: 2, falls: [0.8], devices: 40}", "fairness={tiers: [40%]}"]
    return serve(LoopbackGrid(1), load_scenario(tiny, more), RunPaths("", str(tmp_path / name)))


def test_a_run_reports_what_serving_stores_over_budget(tiny, tmp_path, monkeypatch):
    right = violated(tiny, tmp_path, "right").device_classes
    assert all(row.peak_bytes_mean > row.stored_bytes_mean > 0 for row in right.values())
    assert not any(row.budget_violations or row.working_violations for row in right.values())
    real = RankedBlocks.cutoffs_without

    def heavier(self, budgets, skipped):
        cutoffs, stored, kept = real(self, budgets, skipped)
        return cutoffs, np.where(stored > 0, budgets + 1, 0), kept

    monkeypatch.setattr(RankedBlocks, "cutoffs_without", heavier)
    result = violated(tiny, tmp_path, "wrong")
    devices = sum(row.devices for row in result.device_classes.values())
    assert sum(row.budget_violations for row in result.device_classes.values()) == devices == 40
    assert [row.budget_violations for row in result.elasticity.falls] == [40]
    followed = result.elasticity.followed
    assert followed.figures.budget_violations == 40 * 2 * 4  # at each of two rounds' four steps
    assert sum(row.figures.budget_violations for row in followed.by_class) == 40 * 2 * 4


def test_a_run_reports_what_rounds_store_and_take_over_their_bounds(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "stored_bytes", lambda ranked, cutoffs, budgets, extra=0: budgets + 1)
    monkeypatch.setattr(WorkingMemory, "taken_bytes", lambda self, ranked, cutoffs, touched: self.allowed + 1)
    wrong = violated(tiny, tmp_path, "wrong").device_classes
    rounds, steps = 2, 4
    assert sum(row.budget_violations for row in wrong.values()) >= 40 * rounds * steps * 3 // 4
    assert all(0 < row.working_violations <= rounds * row.devices for row in wrong.values())
