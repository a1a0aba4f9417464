"""The page about devices: its tables and figures, from a run of seconds."""

from __future__ import annotations

import json

import pytest

from fl_peel.config import load_scenario
from simulations.fleet_summary import fleet_summary
from simulations.heterogeneity_tables import elasticity_tables, fairness_tables, fleet_table, time_table
from simulations.plot_style import styled
from simulations.plots_heterogeneity import (
    dot_limits,
    fairness_by_class,
    fleet_budgets,
    moving_budgets,
    recall_after_falls,
)
from simulations.report import read_report, write_report
from simulations.runner import finished
from strategies.server_app import Place, serve
from tests.loopback import LoopbackGrid

CHANGES = ["fairness={tiers: [40%, 80%]}", "elasticity={rounds: 2, falls: [1, 0.8], trained_for: [0.8]}"]


@pytest.fixture
def result(tiny, tmp_path):
    scenario = load_scenario(tiny, CHANGES)
    return finished(serve(LoopbackGrid(1), scenario, Place("", str(tmp_path / "run"))), scenario, 1, None)


def test_a_run_has_every_table_and_figure_about_devices(result, tmp_path):
    write_report(result, tmp_path / "out")
    again = read_report(tmp_path / "out")
    assert again == json.loads(json.dumps(result))
    page = (tmp_path / "out" / "report.html").read_text()
    for title in (
        *("The fleet", "Time to recall, on the virtual clock", "By device class", "Over devices"),
        *("When all budgets fall at once", "Devices followed after training"),
    ):
        assert f"<caption>{title}" in page
    with styled():
        plots = [draw(again) for draw in (fleet_budgets, fairness_by_class, recall_after_falls, moving_budgets)]
    assert [plot.name for plot in plots] == ["fleet", "fairness", "falls", "moving"]
    for plot in plots:
        assert f'aria-label="{plot.alt}"' in page.replace("&#39;", "'")
    falls = {row["factor"]: row for row in again["elasticity"]["falls"]}
    assert f"trained_for from {falls[0.8]['trained_for']:.4f} at 80%" in plots[2].alt


def test_tables_show_the_figures(result):
    fleet, times = fleet_table(result), time_table(result)
    assert [row[0] for row in fleet.rows] == ["small", "large"]
    assert fleet.rows[1][fleet.columns.index("of full table")] == "100%"
    assert {row[0] for row in times.rows} == {"all", "small", "large"}
    by_class, spread, worst, gap = fairness_tables(result)[:4]
    assert "small excluded" not in by_class.columns  # not measured, no column
    peel = result["fairness"]["by_class"][0]["peel"]
    assert by_class.rows[0][by_class.columns.index("elastic")] == f"{peel:.4f}"
    assert by_class.note.startswith("Fixed tiers, each class's of 40%, 80% of the full table: small ")
    assert spread.rows[0][0] == gap.rows[0][0] == "elastic (PEEL)"
    assert [row[0] for row in worst.rows] == ["full table, global", "full table, refined"]
    assert worst.rows[0][2] == f"{result['fairness']['worst_class'][0]['ratio']:.3f}"
    assert gap.rows[0][1:] == ("large", "small", f"{result['fairness']['gap'][0]['gap']:+.4f}")
    assert len(fairness_tables(result)) == 5  # what is left, in a table of its own
    falls = elasticity_tables(result)[0]
    assert falls.rows[0][falls.columns.index("trained for it")] == "–"


def test_what_was_not_measured_is_left_out(result):
    bare = {key: value for key, value in result.items() if key not in ("fairness", "elasticity", "fleet")}
    bare["time_to_recall"] = []
    assert fleet_table(bare) is None
    assert time_table(bare) is None
    assert fairness_tables(bare) == elasticity_tables(bare) == []
    with styled():
        for draw in (fleet_budgets, fairness_by_class, recall_after_falls, moving_budgets):
            assert draw(bare) is None


def test_dots_have_room_on_both_sides():
    """Close ones are told apart, the largest is not cut in half; where one is below half of another, zero is seen."""
    assert dot_limits([0.5, 1.0]) == pytest.approx((0.47, 1.03))
    assert dot_limits([0.4, 1.0]) == pytest.approx((0.0, 1.036))
    low, high = dot_limits([0.2])
    assert (low, high) == pytest.approx((0.198, 0.202))
    assert dot_limits([0.0, 1.0]) == pytest.approx((-0.06, 1.06))


def test_the_fleet_in_numbers(tiny):
    """The large class is a constant 100% of the table; the small one moves between 60% and 0.7 x 60%."""
    summary = fleet_summary(load_scenario(tiny), num_devices=40, full_table_bytes=1920)
    small, large = summary["classes"]
    assert summary["rounds"] == 2 + 6 + 1  # of training, of following, and the moment after
    assert (large["share_low"], large["share_high"], large["changes_per_round"]) == (1.0, 1.0, 0.0)
    assert small["share_low"] == pytest.approx(0.42, abs=1e-3)  # 806 of 1,920 B
    assert small["share_high"] == pytest.approx(0.6, abs=1e-3)
    assert 0 < small["changes_per_round"] < 1
    assert small["available"] == 1.0
