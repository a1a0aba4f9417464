"""What rounds and whole runs report of memory: all that devices hold and take, and what goes over its bounds."""

from __future__ import annotations

import numpy as np
import pytest

from clients.round import round_context as module
from clients.round.round_context import WorkingMemory
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.errors import BudgetError
from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.clients.node.test_cohort import World
from tests.helpers.loopback import LoopbackGrid
from tests.strategies.evaluation.test_heterogeneity import EVERYBODY, round_of, world_of

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
    assert not any(row.budget_violations for row in violated(tiny, tmp_path, "right").device_classes.values())
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
    right = violated(tiny, tmp_path, "right").device_classes
    assert all(row.peak_bytes_mean > row.stored_bytes_mean > 0 for row in right.values())
    assert not any(row.working_violations for row in right.values())
    monkeypatch.setattr(module, "stored_bytes", lambda ranked, cutoffs, budgets, extra=0: budgets + 1)
    monkeypatch.setattr(WorkingMemory, "taken_bytes", lambda self, ranked, cutoffs, touched: self.allowed + 1)
    wrong = violated(tiny, tmp_path, "wrong").device_classes
    rounds, steps = 2, 4
    assert sum(row.budget_violations for row in wrong.values()) >= 40 * rounds * steps * 3 // 4
    assert all(0 < row.working_violations <= rounds * row.devices for row in wrong.values())
