"""The page about devices: its tables and figures, from a run of seconds."""

from __future__ import annotations

import json
from contextlib import chdir
from dataclasses import replace

import pytest

from fl_peel.errors import ScenarioError
from simulations import run
from simulations.report.drawing import styled
from simulations.report.fleet_view import fleet_summary
from simulations.report.run_files import read_report
from simulations.report.sections.classes import (
    dot_limits,
    fairness_by_class,
    fairness_tables,
    fleet_budgets,
    fleet_table,
)
from simulations.report.sections.elasticity import elasticity_tables, moving_budgets, recall_after_falls
from simulations.report.sections.rounds import time_table
from simulations.runner import finished
from simulations.scenario_files import load_scenario
from strategies.figures.schema import FullTableResult, RunResult
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.reports import write_report

CHANGES = ["fairness={tiers: [40%, 80%]}", "elasticity={rounds: 2, falls: [1, 0.8], trained_for: [0.8]}"]


def result_of(tiny, tmp_path, *changes: str) -> RunResult:
    scenario = load_scenario(tiny, [*CHANGES, *changes])
    return finished(serve(LoopbackGrid(1), scenario, RunPaths("", str(tmp_path / "run"))), scenario, 1, None)


@pytest.fixture(scope="module")
def result(planted_home, tmp_path_factory) -> RunResult:
    with chdir(planted_home):
        return result_of("tiny.yaml", tmp_path_factory.mktemp("result"))


def test_a_run_has_every_table_and_figure_about_devices(result, tmp_path):
    write_report(result, tmp_path / "out")
    again = read_report(tmp_path / "out")
    assert again == result
    page = (tmp_path / "out" / "report.html").read_text()
    for title in (
        *("The fleet", "Time to recall, on the virtual clock", "Recall by device class", "Distribution over devices"),
        *("Drop of all budgets at once", "Devices followed after training"),
    ):
        assert f"<caption>{title}" in page
    with styled():
        plots = [draw(again) for draw in (fleet_budgets, fairness_by_class, recall_after_falls, moving_budgets)]
    assert [plot.name for plot in plots] == ["fleet", "fairness", "falls", "moving"]
    for plot in plots:
        assert f'aria-label="{plot.alt}"' in page.replace("&#39;", "'")
    falls = {row.factor: row for row in again.elasticity.falls}
    assert f"trained_for from {falls[0.8].trained_for.value:.4f} at 80%" in plots[2].alt


POISONED = "poisoning={share: 0.2, kind: promote, factor: 20, num_targets: 3}"


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_full_tables_ends_with_a_report(tiny, tmp_path):
    result = result_of(tiny, tmp_path, POISONED, "evaluation.full_tables=false")
    assert result.full_table == FullTableResult(bytes=1888)  # 59 items x 8 columns x 4 B
    assert {one.method for one in result.fairness.over_devices} == {"peel", "fixed_tiers"}
    assert result.fairness.worst_class == ()
    assert [row.ratio for row in result.fairness.by_class] == [{}, {}]
    assert {row.full_table_global for row in result.elasticity.falls} == {None}
    write_report(result, tmp_path / "out")
    assert read_report(tmp_path / "out") == result
    plain = json.loads((tmp_path / "out" / "report.json").read_text())
    assert plain["full_table"] == {"bytes": 1888}
    assert "full_table" not in json.dumps(plain["elasticity"]) + json.dumps(plain["fairness"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not measured (evaluation.full_tables is false)" in page
    assert "global full table" not in page


def test_keys_that_speak_of_more_items_than_there_are_are_refused(tiny):
    for change, why in (
        ("evaluation.top_n=61", "evaluation.top_n: 61 of 59 items; give at most 59"),
        ("poisoning.target_items=[3, 60]", "poisoning.target_items: there is no item 60; items go from 0 to 58"),
    ):
        with pytest.raises(ScenarioError) as caught:
            run(tiny, overrides=[change])
        assert str(caught.value) == why


def test_tables_show_the_figures(result):
    fleet, times = fleet_table(result), time_table(result)
    assert [row[0] for row in fleet.rows] == ["small", "large"]
    assert fleet.rows[1][fleet.columns.index("share of full table")] == "100%"
    assert {row[0] for row in times.rows} == {"all", "small", "large"}
    by_class, spread, worst, gap = fairness_tables(result)[:4]
    assert "small devices excluded" not in by_class.columns  # not measured, no column
    peel = result.fairness.by_class[0].recall["peel"]
    assert by_class.rows[0][by_class.columns.index("elastic")] == f"{peel.value:.4f}"
    assert by_class.note.startswith("Fixed tier of each class, out of 40%, 80% of the full table: small ")
    assert spread.rows[0][0] == gap.rows[0][0] == "elastic (PEEL)"
    assert [row[0] for row in worst.rows] == ["global full table", "refined full table"]
    assert worst.rows[0][2] == f"{result.fairness.worst_class[0].ratio:.3f}"
    assert gap.rows[0][1:] == ("large", "small", f"{result.fairness.gap[0].gap:+.4f}")
    assert len(fairness_tables(result)) == 4  # nothing is left
    falls = elasticity_tables(result)[0]
    assert falls.rows[0][falls.columns.index("trained for this budget")] == "–"


def test_what_was_not_measured_is_left_out(result):
    bare = replace(result, fairness=None, elasticity=None, fleet=None, time_to_recall=())
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
    """The large class is a constant 100% of the table; the small one moves between 42% and 0.57 x 42%."""
    summary = fleet_summary(load_scenario(tiny), num_devices=40, full_table_bytes=1920)
    small, large = summary.classes
    assert summary.rounds == 2 + 6 + 1  # of training, of following, and the moment after
    assert (large.share_low, large.share_high, large.changes_per_round) == (1.0, 1.0, 0.0)
    assert small.share_low == pytest.approx(0.57 * 0.42, abs=1e-3)  # 459 of 1,920 B
    assert small.share_high == pytest.approx(0.42, abs=1e-3)
    assert 0 < small.changes_per_round < 1
    assert small.available == 1.0
