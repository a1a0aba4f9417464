"""Sweeps: every setting a run of its own, side by side, resumable, refused as a whole."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from fl_peel import Callback
from fl_peel.errors import EngineError
from simulations import runner
from simulations.listing import LIST
from simulations.report.diff import diff
from simulations.report.run_files import read_report
from simulations.result_pages import rebuild_pages
from simulations.resumable import CHECKPOINTS
from simulations.scenario_files import load_scenario
from simulations.sweep import sweep, sweep_page, sweep_plot
from strategies.figures.schema import to_json
from tests.helpers.runs import run
from tests.simulations.conftest import QUICK

pytestmark = pytest.mark.usefixtures("undrawn")

VARIED = ["refinement.local.batch_size=2,4", "selector=controller,popularity"]


def words(changes):
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.slow
def test_a_sweep_is_runs_side_by_side(tiny, tmp_path, command_line, made_up):
    out = tmp_path / "out"
    code, shown, err = command_line("sweep", tiny, *words([*QUICK, *VARIED]), "--seeds", 2, "--seed", 3, "--out", out)
    assert code == 0, err
    folders = [
        f"refinement.local.batch_size={size},selector={selector}"
        for size in (2, 4)
        for selector in ("controller", "popularity")
    ]
    files = {f"sweep.{ending}" for ending in ("json", "csv", "parquet", "html", "svg")}
    assert {path.name for path in out.iterdir()} == {*folders, *files, LIST, CHECKPOINTS}
    assert [(one.seed, one.refinement.local.batch_size, one.selector) for one in made_up] == [
        (seed, size, selector) for size in (2, 4) for selector in ("controller", "popularity") for seed in (3, 4)
    ]
    plain = json.loads((out / "sweep.json").read_text())
    assert [row["folder"] for row in plain["rows"]] == folders
    assert plain["rows"][1]["values"] == {"refinement.local.batch_size": "2", "selector": "popularity"}
    tables = ["50%", "100%", "own budget", "global", "start", "refined"]
    for row in plain["rows"]:
        reports = [read_report(out / row["folder"] / f"seed-{seed}") for seed in (3, 4)]
        assert [figure["table"] for figure in row["tables"]] == tables
        selector = row["values"]["selector"]
        at_half = [
            next(one.recall.value for one in report.budgets if (one.share, one.selector) == (0.5, selector))
            for report in reports
        ]
        half = row["tables"][0]["recall"]
        assert half["by_seed"] == pytest.approx(at_half, abs=1e-8)
        assert half["low"] < half["value"] < half["high"]
        assert row["validation"] == pytest.approx(np.mean([report.history[-1].recall for report in reports]))
    best = max(plain["rows"], key=lambda row: row["validation"])
    assert plain["chosen"] == best["setting"]
    assert plain["command"].startswith(f"fl-peel sweep {tiny} --set refinement.rounds=1 ")

    rows = list(csv.DictReader((out / "sweep.csv").open()))
    recalls = [float(row["value"]) for row in rows if row["name"] == "recall" and not row["seed"]]
    assert recalls == [table["recall"]["value"] for row in plain["rows"] for table in row["tables"]]
    assert {row["setting"] for row in rows} == {"", *(row["setting"] for row in plain["rows"])}
    page = (out / "sweep.html").read_text()
    assert "<svg" in page
    assert page.count("<script") == 1  # what all pages have
    assert "batch_size=4, selector=popularity" in page
    half = f"{plain['rows'][3]['tables'][0]['recall']['value']:.4f}"
    assert any(line.split()[:2] == ["4", "popularity"] and half in line for line in shown.splitlines())
    assert f"report: {out / 'sweep.html'}" in shown
    assert "[4/4]" in err or "sweep 4/4" in err


@pytest.mark.slow
def test_differences_are_paired_as_those_of_a_diff(tiny, tmp_path, without_engine):
    out = tmp_path / "out"
    result = sweep(tiny, [*QUICK, "blocks.precision=int8,int4"], out=out)
    first, other = result.rows
    assert all(one.less is None for one in first.tables)
    results = diff([out / row.folder for row in result.rows], result.replicates)
    by_table = {row.table: row.others[0] for row in results.rows if row.metric.startswith("recall")}
    for name in ("refined", "own budget"):
        less = next(one.less for one in other.tables if one.table == name)
        assert less == by_table[name].difference
    half = next(one for one in other.tables if one.table == "50%")
    assert half.less.value == pytest.approx(half.recall.value - first.tables[0].recall.value, abs=1e-12)
    assert half.p_holm is not None
    alone = run(load_scenario(tiny, [*QUICK, "blocks.precision=int4"]))
    assert to_json(read_report(out / other.folder / "seed-0"))["budgets"] == to_json(alone)["budgets"]

    _, less, settings = sweep_page(result).terminal()
    assert less.title == "Recall@20: precision=int4 − precision=int8"
    assert all(cell[0] in "+-" for cell in less.rows[0][1:])
    assert settings.title == "Settings"
    assert sweep_plot(result).alt.startswith("Difference in recall, by setting: precision=int8 goes from 0.0000 to 0.0")
    page = (out / "sweep.html").read_text()
    assert rebuild_pages(out) == [out / "sweep.html"]
    assert (out / "sweep.html").read_text() == page

    many = replace(result, rows=tuple(replace(first, setting=f"number {number}") for number in range(10)))
    assert sweep_plot(many).alt.count("goes from") == 8
    assert "2 more are in the table" in sweep_page(many).html()


def test_settings_with_other_test_items_are_not_compared(tiny, tmp_path, made_up):
    result = sweep(tiny, [*QUICK, "data.test_share=25%,30%"], out=tmp_path / "out")
    assert all(one.less is None for row in result.rows for one in row.tables)
    assert "a setting with other test items" not in (tmp_path / "out" / "sweep.html").read_text()


def stop(monkeypatch, when):
    """Runs end before they begin where ``when`` is true of their scenario; returns how they are begun otherwise."""
    engine = runner.simulated

    def stopping(scenario, *args, **kwargs):
        if when(scenario):
            raise EngineError("pulled the plug")
        return engine(scenario, *args, **kwargs)

    monkeypatch.setattr(runner, "simulated", stopping)
    return engine


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        (["refinement.rounds=1,many"], "refinement.rounds"),
        (["refinement.round=1,2"], "did you mean 'rounds'"),
        (["fleet=fleet.yaml,nowhere.yaml"], "nowhere.yaml"),
        (["user_groups.min_size=4,4000"], "user_groups.min_size"),
        (["evaluation.top_n=10,20"], "evaluation.top_n: metrics of lists of different lengths cannot be compared"),
        (["refinement.rounds=1"], "--set: nothing varies"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(tiny, tmp_path, command_line, without_engine, changes, output):
    out = tmp_path / "out"
    code, _, err = command_line("sweep", tiny, *words(changes), "--out", out)
    assert (code, err.count("\n")) == (2, 1), err
    assert output in err
    assert not without_engine
    assert not out.exists()


def test_somebody_elses_files_are_left_alone(tiny, tmp_path, command_line, without_engine):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sweep.csv").write_text("mine")
    code, _, err = command_line("sweep", tiny, *words(["refinement.rounds=1,2"]), "--out", out)
    assert code == 2
    assert "the folder holds files that fl-peel did not write" in err
    assert not without_engine


def test_every_setting_is_a_run_of_its_own_for_trackers(tiny, tmp_path, made_up):
    events = []

    class Names(Callback):
        def on_start(self, scenario):
            events.append((scenario.name, scenario.seed))

        def on_end(self, result):
            events.append(result["seed"])

    sweep(tiny, [*QUICK, "refinement.local.batch_size=2,4"], out=tmp_path / "out", callbacks=[Names()])
    assert events == [("tiny: batch_size=2", 0), 0, ("tiny: batch_size=4", 0), 0]
