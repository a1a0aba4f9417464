"""From a timeline to its files and the terminal; the engine itself once."""

import csv
import json
import sys

import pytest

from fl_peel.errors import ScenarioError
from simulations.scenario_files import load_scenario, shipped_scenarios
from simulations.timeline import run as runs
from simulations.timeline.report import timeline_tables
from simulations.timeline.words import LABELS
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.planted_timeline import FLEET, TIMELINE, csv_of, planted
from tests.helpers.root import ROOT


@pytest.fixture
def file(tmp_path):
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "rows.csv").write_text(csv_of(planted()))
    (tmp_path / "timeline.yaml").write_text(TIMELINE.format(path=tmp_path / "rows.csv", fleet=tmp_path / "fleet.yaml"))
    return tmp_path / "timeline.yaml"


def without_engine(scenario, place, on_event, *, server):
    return server(LoopbackGrid(2), scenario, place, on_event)


def test_a_timeline_leaves_its_files(file, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "simulated", without_engine)
    told = []
    result = runs.run_timeline(load_scenario(file), out=tmp_path / "out", on_event=told.append, command="as typed")
    assert [event.done for event in told] == list(range(1, 9))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("timeline.json", "timeline.csv", "timeline.html", "timeline.svg", "scenario.yaml")
    }
    plain = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert plain["last"]["federation"]["lines"]["all"]["recall"] == result.last["federation"].lines["all"].recall
    assert plain["command"] == "as typed"
    rows = list(csv.DictReader((tmp_path / "out" / "timeline.csv").open()))
    assert {row["line"] for row in rows} == result.last.keys()
    assert {row["period"] for row in rows} == {str(number) for number in range(1, 9)}
    page = (tmp_path / "out" / "timeline.html").read_text()
    for words in ("as time goes by", "as typed", LABELS["cached-list"], LABELS["start-table"], "joining in the period"):
        assert words in page
    summary, recall, reads = timeline_tables(result)
    assert (summary.row_count, recall.row_count) == (len(result.last), len(result.last))
    assert reads.row_count == len(result.periods[0].reads)


def test_shipped_timelines_are_refused_nothing():
    from strategies.timeline.serve import check_timeline

    for name in ("timeline", "timeline-ml-100k"):
        assert check_timeline(load_scenario(shipped_scenarios()[name])).periods == 8


def test_what_does_not_go_with_a_timeline_is_refused_before_anything_runs(file, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "simulated", None)
    with pytest.raises(ScenarioError, match=r"^refinement.rounds: "):
        runs.run_timeline(load_scenario(file, ["refinement.rounds=2"]), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ScenarioError, match=r"data.timeline: .*start 0.9 and 8 periods of 0.07 are more than all"):
        load_scenario(file, ["data.timeline.start=0.9"])
    with pytest.raises(ScenarioError, match=r"timeline: has its own splits; leave out refit and test_path"):
        load_scenario(file, ["data.refit=true"])


def test_what_knows_nothing_of_time_refuses_it(file, tmp_path):
    """In place of measuring at the first moment without a word."""
    from simulations.runner import run_seeds
    from simulations.studies.ablate.ablate import ablate
    from strategies.server_app import serve

    scenario = load_scenario(file)
    for asked in (
        lambda: ablate(scenario, out=tmp_path / "out"),
        lambda: run_seeds(scenario, seeds=2, out=tmp_path / "out"),
        lambda: serve(LoopbackGrid(1), scenario, None),
    ):
        with pytest.raises(ScenarioError, match=r"^data.timeline: "):
            asked()
    assert not (tmp_path / "out").exists()


@pytest.mark.engine
def test_the_command_line_replays_a_timeline_on_the_engine(file, tmp_path):
    import subprocess

    command = [sys.executable, "-m", "simulations.cli.main", "run", str(file), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "The last 3 periods" in done.stdout
    assert (tmp_path / "out" / "timeline.html").is_file()
