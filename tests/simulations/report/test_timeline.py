"""From a timeline to its files and the terminal; the engine itself once."""

import csv
import html
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fl_peel
from fl_peel.errors import ReportError, ScenarioError
from fl_peel.events import Callback
from fl_peel.store import Store
from simulations import flower, runner
from simulations.listing import LIST
from simulations.report.table_view import format_ratio
from simulations.report.timeline_report import LABELS, timeline_page
from simulations.scenario_files import RunOptions, load_scenario, shipped_scenarios
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.planted_timeline import FLEET, TIMELINE, csv_of, planted
from tests.helpers.runs import run
from tests.helpers.without_ray import simulated

pytestmark = pytest.mark.usefixtures("undrawn")


def written(folder):
    (folder / "fleet.yaml").write_text(FLEET)
    (folder / "rows.csv").write_text(csv_of(planted()))
    (folder / "timeline.yaml").write_text(TIMELINE.format(path=folder / "rows.csv", fleet=folder / "fleet.yaml"))
    return folder / "timeline.yaml"


@pytest.fixture
def file(tmp_path):
    return written(tmp_path)


SHORT = "data.timeline.periods=2"


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """(seeds 0 and 1 of a short timeline, their folder)."""
    folder = tmp_path_factory.mktemp("two-seeds")
    short = load_scenario(written(folder), [SHORT])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "simulated", simulated)
        return runner.run_seeds(short, 2, RunOptions(out=folder / "out", command="as typed")), folder / "out"


@pytest.mark.slow
def test_a_timeline_leaves_its_files(file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "simulated", simulated)
    events, followed = [], []

    class Follower(Callback):
        def on_event(self, event):
            followed.append(event)

        def on_end(self, result):
            followed.append(result)

    short, callbacks = load_scenario(file, [SHORT]), [Follower()]
    result = run(short, out=tmp_path / "out", on_event=events.append, callbacks=callbacks, command="as typed")
    assert [event.done for event in events] == [1, 2]
    assert followed[:2] == events
    for event, period in zip(events, result.periods, strict=True):
        assert event.figures["timeline/recall_at_20/federation"] == period.lines["federation"]["all"].recall.value
        assert event.figures["timeline/items"] == period.items
    assert followed[-1]["seed"] == result.seed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        LIST,
        *(f"timeline.{ending}" for ending in ("json", "csv", "parquet", "html", "svg")),
        "scenario.yaml",
    }
    plain = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert plain["last"]["federation"]["lines"]["all"]["recall"] == result.last["federation"].lines["all"].recall.value
    assert plain["command"] == "as typed"
    rows = list(csv.DictReader((tmp_path / "out" / "timeline.csv").open()))
    recalls = [row for row in rows if (row["part"], row["name"], row["cohort"]) == ("periods.lines", "recall", "all")]
    assert {row["method"] for row in recalls} == result.last.keys()
    assert {row["period"] for row in recalls} == {"1", "2"}
    page = html.unescape((tmp_path / "out" / "timeline.html").read_text())
    for words in (
        "recall over time",
        "as typed",
        LABELS["cached-list"],
        LABELS["start-table"],
        "joining in the period",
    ):
        assert words in page
    seen, trained, at_budget, summary, recall, reads = timeline_page(result).terminal()
    assert all(sentence in page for sentence in (seen, trained, at_budget))
    assert seen.startswith("Fully federated: no interaction leaves a device")
    over = result.last["federation"].over
    assert f"is {format_ratio(over['cached-list'])} times that of the static top-20 list" in trained
    assert f"; {format_ratio(over['start-table'])} times that of the static table" in trained
    assert at_budget.startswith("At ")
    assert (len(summary.rows), len(recall.rows)) == (len(result.last), len(result.last))
    assert len(reads.rows) == len(result.periods[0].reads)


def test_shipped_timelines_are_refused_nothing():
    from strategies.timeline.period import check_timeline

    for name in ("timeline", "timeline-ml-100k"):
        assert check_timeline(load_scenario(shipped_scenarios()[name])).periods == 8


def test_what_does_not_go_with_a_timeline_is_refused_before_anything_runs(file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "simulated", None)
    with pytest.raises(ScenarioError, match=r"^poisoning.share: "):
        run(load_scenario(file, ["poisoning.share=5%"]), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ScenarioError, match=r"data.timeline: .*start 0.9 and 8 periods of 0.07 cover more than all"):
        load_scenario(file, ["data.timeline.start=0.9"])
    with pytest.raises(
        ScenarioError, match=r"timeline: a timeline makes its own splits; leave out refit and test_path"
    ):
        load_scenario(file, ["data.refit=true"])


def test_what_knows_nothing_of_time_refuses_it(file, tmp_path):
    """In place of measuring at the first moment without a word."""
    from simulations.studies.ablate import ablate
    from strategies.server_app import serve

    scenario = load_scenario(file)
    for asked in (
        lambda: ablate(scenario, out=tmp_path / "out"),
        lambda: fl_peel.run(scenario, out=tmp_path / "out"),
        lambda: serve(LoopbackGrid(1), scenario, None),
    ):
        with pytest.raises(ScenarioError, match=r"^data.timeline: "):
            asked()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_several_seeds_are_put_together(two_seeds):
    """Means over seeds, and intervals over devices and seeds: as wide as one seed's at least where seeds agree."""
    result, out = two_seeds
    alone = [json.loads((out / f"seed-{seed}" / "timeline.json").read_text()) for seed in (0, 1)]
    by_line = {one.line: one for one in result.lines}
    assert by_line.keys() == alone[0]["last"].keys()
    federation = by_line["federation"]
    recalls = [one["last"]["federation"]["lines"]["all"]["recall"] for one in alone]
    assert federation.recall.by_seed == tuple(recalls)
    assert federation.recall.value == pytest.approx(np.mean(recalls))
    assert federation.recall.low < min(recalls) <= max(recalls) < federation.recall.high
    cached = [one["last"]["cached-list"]["lines"]["all"]["recall"] for one in alone]
    assert federation.over["cached-list"].value == pytest.approx(np.mean(recalls) / np.mean(cached))
    assert federation.over["cached-list"].by_seed == pytest.approx(
        [a / b for a, b in zip(recalls, cached, strict=True)]
    )
    assert json.loads((out / "timeline-seeds.json").read_text())["seeds"] == [0, 1]
    page = (out / "timeline-seeds.html").read_text()
    assert "2 seeds" in page
    assert "as typed" in page


def test_a_timeline_of_another_scenario_is_told_in_one_line(file, tmp_path, monkeypatch):
    def stopped(scenario, place, on_event, *, server):
        Store(Path(place.checkpoint_dir)).write("timeline")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "simulated", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(load_scenario(file), out=tmp_path / "out")
    other = load_scenario(file, ["data.timeline.passes=2"])
    with pytest.raises(ReportError, match=r"unfinished run, with data\.timeline\.passes=.* and not 2; give another"):
        run(other, out=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(other, out=tmp_path / "out", fresh=True)
    (tmp_path / "rows.csv").write_text(csv_of(planted(1)))
    with pytest.raises(ReportError, match="unfinished run, with other data"):
        run(other, out=tmp_path / "out")


@pytest.mark.slow
def test_flwr_run_replays_a_timeline(file, tmp_path, monkeypatch, capsys):
    config = {"scenario": str(file), "out": str(tmp_path / "out"), "set": SHORT}
    context = SimpleNamespace(run_config={"seed": -1, "data-dir": "", **config})
    flower.main(LoopbackGrid(2), context)
    out = tmp_path / "out"
    assert "The last 2 periods" in capsys.readouterr().out
    assert json.loads((out / "timeline.json").read_text())["command"] == flower.command(context.run_config)
