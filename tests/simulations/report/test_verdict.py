"""What a run says first, in words: who has seen what, and what its figures come to."""

from dataclasses import replace

import pytest

from fl_peel.figures import Estimate
from simulations.report.verdict import (
    best_budget,
    classes_below,
    own_rows,
    refinement_helped,
    seen_data,
    significance,
    verdicts,
)
from simulations.scenario_files import load_scenario
from strategies.figures.schema import FULL_REFINED, Gain, RefinementResult
from tests.simulations.report.test_report import run_result

OWN = {"blocks": {"precision": "int8"}, "selector": "mine"}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("ml-100k", [], "Pretraining: on the server, from 100% of the interactions (as in the paper); in refinement"),
        ("ml-100k", ["pretraining.collected.share=10%"], "on the server, from 10% of the interactions; in"),
        ("ml-100k", ["pretraining.collected={mode: oldest, share: 20%}"], "on the server, from the oldest 20% of"),
        ("nothing-collected", [], "Fully federated: no interaction leaves a device; the server sees sums over"),
        ("nothing-collected", ["pretraining.collected.share=5%"], "from sums over devices, begun with 5% of the"),
        ("secure-aggregation", [], "the server sees masked sums over each node's devices."),
        ("nothing-collected-private", [], "no interaction leaves a device; the server sees masked sums"),
        ("local-dp", [], "the server sees sums over each node's devices, with noise."),
    ],
)
def test_who_has_seen_what(name, changes, words):
    assert words in seen_data(load_scenario(name, changes).model_dump(mode="json"))


def test_the_headline_is_of_what_devices_are_sent_whatever_is_best_on_the_test():
    """An order of blocks that nobody chose is far better on the test; the sentence is not about it."""
    mine, better = run_result().budgets[:2], []
    for row in mine:
        better.append(replace(row, selector="lucky", to_strongest=Estimate(1.5, 1.4, 1.6)))
    result = replace(run_result(), budgets=(*better, *mine))
    assert own_rows(result) == sorted(mine, key=lambda row: row.share) or len(own_rows(result)) == 1
    assert "ranked by the controller have 0." in verdicts(result)[0]
    assert "1.5" not in verdicts(result)[0]


def test_the_smallest_budget_that_keeps_up_is_named():
    ratios = {
        "1%": Estimate(0.9, 0.85, 0.95),
        "5%": Estimate(0.99, 0.97, 1.01),
        "10%": Estimate(1.02, 1.01, 1.03),
    }
    assert best_budget(ratios, OWN, "refined") == (
        "At 5%, int8 blocks ranked by “mine” have 0.990 [0.970, 1.010] times the Recall@20 of the full model (group "
        "tables after refinement): equal within 5%."
    )
    del ratios["5%"]
    assert best_budget(ratios, OWN, "start").endswith("before refinement): significantly better.")
    del ratios["10%"]
    assert best_budget(ratios, OWN, "global").endswith("(global table): significantly worse.")
    assert "not measured" in best_budget({"1%": None}, OWN, None)


@pytest.mark.parametrize(
    ("low", "high", "p_value", "words"),
    [
        (0.99, 1.01, None, ": equal within 5%"),
        (0.95, 1.01, None, ": no significant difference, and not shown to be equal within 5%"),  # .95 is 5% below 1
        (0.99, 1.053, None, ": no significant difference, and not shown to be equal within 5%"),  # 1 is 5% below
        (1.01, 1.04, None, ": significantly better"),
        (1.01, 1.04, 0.051, ": equal within 5%"),  # corrected for others
        (1.01, 1.2, 0.051, ": no significant difference, and not shown to be equal within 5%"),
        (0.8, 1.01, 0.049, ": significantly worse"),
        (None, None, None, ""),
    ],
)
def test_a_ratio_is_called_equal_only_where_its_whole_interval_is_near_1(low, high, p_value, words):
    value = 1.0 if low is None else (low + high) / 2
    assert significance(Estimate(value, low, high), p_value) == words


@pytest.mark.parametrize(
    ("gain", "rounds", "accepted", "words"),
    [
        (Estimate(0.01, 0.005, 0.015), 2, 3, "helped: +0.0100 [+0.0050, +0.0150] Recall@20."),
        (Estimate(-0.125, -0.14, -0.11), 2, 3, "did harm: -0.1250 [-0.1400, -0.1100] Recall@20; lower"),
        (Estimate(0.0, -0.01, 0.01), 2, None, "no significant difference: +0.0000 [-0.0100, +0.0100] Recall@20; lower"),
        (Estimate(0.0, 0.0, 0.0), 2, 0, "no user group accepted it on validation; lower"),
        (None, 0, None, "There was no federated refinement (refinement.rounds: 0)."),
        (None, 2, 1, "was not measured"),
    ],
)
def test_whether_refinement_helped_and_what_to_do_where_it_did_not(gain, rounds, accepted, words):
    assert words in refinement_helped(gain, rounds, accepted)


def test_classes_far_below_their_full_tables_are_named():
    result = run_result()
    (row, *_) = result.fairness.by_class
    rows = tuple(
        replace(row, device_class=name, ratio={FULL_REFINED: ratio})
        for name, ratio in (("watch", 0.6), ("phone", 0.95))
    )
    said = classes_below(replace(result, fairness=replace(result.fairness, by_class=rows)))
    assert said.startswith("Far below the recall of their own full tables: watch 0.60 times it; raise")
    assert "phone" not in said
    assert classes_below(replace(result, fairness=None)) == ""


def test_a_run_says_all_of_it_in_this_order():
    scenario = load_scenario("ml-100k").model_dump(mode="json")
    stage = RefinementResult(groups=2, groups_kept=1, rounds_kept={}, bytes_down_mean=0.0, comparisons=())
    full = replace(run_result().full_table, gain=Gain(Estimate(0.01, 0.005, 0.015), 9))
    result = replace(run_result(), scenario=scenario, refinement=stage, full_table=full)
    first, second, third = verdicts(result)
    assert first == seen_data(scenario)
    assert second.startswith("At 5% of the bytes (50.00 KB), int8 blocks ranked by the controller have 0.840 [")
    assert third.startswith("Federated refinement helped")
