"""Everything is chosen on validation items, then refit with them: what that run must be equal to."""

from types import SimpleNamespace

import numpy as np
import pytest

from fl_peel.device_storage import device_splits
from fl_peel.scenario.scenario import Scenario
from strategies.run.refinement import kept_by_most
from tests.helpers.runs import figures, served
from tests.strategies.rounds.test_clear_steps import AT_HOME, SPECTRAL, changed, fleet


@pytest.fixture
def scenario(tiny_scenario, tmp_path) -> Scenario:
    free = SPECTRAL | {"count_exponent": None, "value_exponent": None}
    data = {"validation_share": 0.2, "refit": True}
    everything = {"min_owners": 1}
    return changed(
        tiny_scenario, pretraining=free, fleet=fleet(tmp_path, AT_HOME, "home.yaml"), data=data, privacy=everything
    )


def test_tables_are_those_of_a_run_on_both_parts_with_what_was_chosen(scenario, tmp_path):
    result, grid = served(scenario, tmp_path / "refit")
    chosen = result.stage1.filter
    plain = changed(
        scenario,
        data={"validation_share": 0.0, "refit": False},
        pretraining={
            "count_exponent": chosen.count_exponent,
            "value_exponent": chosen.value_exponent,
            "passes": 10,
        },
        refinement={"rounds": 0},
        fairness={"tiers": []},
    )
    expected, _ = served(plain, tmp_path / "plain")
    assert set(result.refinement.rounds_kept) == {"0"}, "in this example nothing is worth keeping"
    for one, other in (
        (result.full_table.start, expected.full_table.start),
        (result.budgets[-1], expected.budgets[-1]),
    ):
        recalls = (one.recall.value, other.recall.value)
        assert recalls[0] == pytest.approx(recalls[1], abs=0.03), "two passes from there are as good as ten"
    assert len(result.rounds) == 2, "those of choosing"
    assert result.stage1.rounds == (1 + 4 + 1 + 1 + 1 + 1 + 1 + 1) + (1 + 2 + 1 + 1 + 1 + 1 + 1)  # the second goes on
    assert result.scenario["data"]["refit"]
    sent = {record.config_records["config"].get("split") for kind, record in grid.crossed if "budgets" in kind}
    assert "validation" not in sent


def test_where_nothing_is_refined_the_filter_is_all_that_is_chosen(scenario, tmp_path):
    """Devices are asked for no user groups before the refit, whose figures are those of a choice in full."""
    bare = changed(scenario, refinement={"rounds": 0})
    short, grid = served(bare, tmp_path / "short")
    whole, _ = served(scenario, tmp_path / "whole")
    assert set(whole.refinement.rounds_kept) == {"0"}
    assert short.full_table.start == whole.full_table.start
    assert short.stage1.rounds == (1 + 4 + 1) + (1 + 2 + 1 + 1 + 1 + 1 + 1)
    assert short.refinement is None
    assert [kind for kind, _ in grid.crossed].count("query.join") == 2  # by each node, once


def test_the_test_part_is_looked_at_once(scenario, tmp_path, monkeypatch):
    """While something is still to be chosen, no message asks for figures of the test part."""
    _, grid = served(scenario, tmp_path / "refit")
    kinds = [kind for kind, _ in grid.crossed]
    last_choice = max(
        i for i, kind in enumerate(kinds) if kind in ("evaluate.choice", "evaluate.compare", "query.keep")
    )
    assert not any(kind in ("evaluate.budgets", "evaluate.moving") for kind in kinds[:last_choice])


@pytest.mark.slow
def test_a_refit_with_lightgcn_knows_more(tiny_scenario, tmp_path):
    data = {"validation_share": 0.3, "refit": True}
    refit, _ = served(changed(tiny_scenario, data=data), tmp_path / "refit")
    plain, _ = served(changed(tiny_scenario, data=data | {"refit": False}), tmp_path / "plain")
    assert refit.full_table.start.recall > plain.full_table.start.recall
    splits = device_splits(changed(tiny_scenario, data={"validation_share": 0.3}), "", str(tmp_path / "data"))
    assert splits.validation.num_interactions > 0
    again, _ = served(changed(tiny_scenario, data=data), tmp_path / "again", nodes=5)
    assert figures(again) == figures(refit)


def test_both_parts_are_one_split_with_nothing_held_back(scenario, tmp_path):
    both = device_splits(changed(scenario, data={"validation_share": 0.0, "refit": False}), "", str(tmp_path / "1"))
    apart = device_splits(changed(scenario, data={"refit": False}), "", str(tmp_path / "2"))
    merged = apart.train.merged(apart.validation)
    assert (both.train.by_item.items == merged.by_item.items).all()
    assert (both.test.items == apart.test.items).all()
    assert np.array_equal(both.test.indptr, apart.test.indptr)


@pytest.mark.parametrize(
    ("rounds", "groups", "kept"),
    [
        ([0, 2, 8], [0, 1, 1, 1, 2], 2),  # the median device, and neither the most rounds nor the median group's
        ([0, 2, 8], [0, 0, 0, 1, 2], 0),
        ([3, 3, 8], [], 0),
    ],
)
def test_a_refit_has_the_rounds_that_the_median_device_kept(rounds, groups, kept):
    acceptance = SimpleNamespace(accepted_rounds=np.array(rounds))
    assert kept_by_most(acceptance, SimpleNamespace(groups=np.array(groups, np.int64))) == kept
