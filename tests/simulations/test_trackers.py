"""Events carry what the report says; trackers write it, and what fails of them costs no run."""

import json
import logging
import re
import sys
import types

import pytest

from fl_peel import Callback, Event
from fl_peel.errors import EngineError, MissingExtraError, ReportError, ScenarioError
from fl_peel.events import figures_under, plain_name
from simulations import runner
from simulations.report.run_files import read_report
from simulations.trackers import TRACKERS, tracker_kinds
from strategies.figures.schema import to_json
from tests.helpers.root import ROOT
from tests.helpers.runs import run
from tests.simulations.conftest import QUICK


def trackers(asked):
    return [kind(place) for kind, place in tracker_kinds(asked)]


class Notes(Callback):
    def __init__(self):
        self.events = []

    def on_start(self, scenario):
        self.events.append(("start", scenario))

    def on_event(self, event):
        self.events.append(("event", event))

    def on_end(self, result):
        self.events.append(("end", result))

    def on_error(self, error):
        self.events.append(("error", error))

    def series(self):
        result = {}
        for what, event in self.events:
            if what == "event":
                for name, value in event.figures.items():
                    result.setdefault(name, []).append((event.step, value))
        return result


def wanted_series(report):
    """What a run of the tiny scenario tells, from its report alone."""
    result = {}
    for row, moved in zip(report.history, report.rounds, strict=True):
        figures = {
            "refinement/loss": row.loss,
            "refinement/controller_loss": row.controller_loss,
            "refinement/seconds": moved.seconds,
            "refinement/devices": moved.devices,
            "refinement/failures": moved.failures,
            "refinement/download_bytes": moved.download_bytes,
            "refinement/upload_bytes": moved.upload_bytes,
            "refinement/devices_per_second": moved.devices / moved.seconds,
            "refinement/virtual_seconds": moved.clock.virtual_seconds,
            "validation/recall_at_20": row.recall,
            "validation/ndcg_at_20": row.ndcg,
        }
        for name, value in figures.items():
            if value is not None:
                result.setdefault(name, []).append((row.server_round, value))
    for metric in ("recall", "ndcg"):
        for row in report.budgets:
            share = {0.5: "50pct", 1.0: "100pct"}[row.share]
            name = share if row.selector == "controller" else f"{share}_int8_{row.selector}"
            result[f"test/{metric}_at_{report.top_n}/{name}"] = [(1, getattr(row, metric).value)]
        full = report.full_table
        for name, quality in (("global", full.globally), ("start", full.start), ("refined", full.refined)):
            result[f"test/{metric}_at_{report.top_n}/full_{name}"] = [(1, getattr(quality, metric).value)]
    return result


def test_events_carry_what_the_report_says(tiny, without_engine):
    notes, lines = Notes(), []
    result = run(tiny, overrides=["evaluation.top_n=10"], on_event=lines.append, callbacks=[notes])
    series = notes.series()
    assert [step for step, _ in series.pop("pretraining/loss")] == [1, 2, 3]
    assert series == wanted_series(result)
    assert len(series["validation/recall_at_20"]) == 2
    assert "test/recall_at_10/50pct" in series
    assert [what for what, _ in notes.events if what != "event"] == ["start", "end"]
    assert notes.events[0][1] == without_engine[0].model_copy(
        update={"data": notes.events[0][1].data, "fleet": "fleet.yaml"}
    )
    assert notes.events[-1][1] == to_json(result)
    events = [event for what, event in notes.events if what == "event"]
    assert events[:-1] == lines, "the terminal is told nothing but what it was"


def test_names_are_plain():
    assert plain_name("2.5%") == "2.5pct"
    assert plain_name("federation, own budgets") == "federation_own_budgets"
    events = []
    figures_under("rehearsal", events.append)(Event("refinement", 2, 3, "words", {"refinement/loss": 0.5}))
    assert events == [Event("refinement", 2, 3, "words", {"rehearsal/refinement/loss": 0.5})]
    assert events[0].step == 2


def test_a_rehearsal_is_told_under_its_own_names(tiny, without_engine):
    notes = Notes()
    run(tiny, overrides=[*QUICK, "data.refit=true"], callbacks=[notes])
    series = notes.series()
    assert {"rehearsal/validation/recall_at_20", "rehearsal/refinement/loss", "rehearsal/pretraining/loss"} <= set(
        series
    )
    assert "validation/recall_at_20" not in series
    assert [step for step, _ in series["pretraining/loss"]] == [1, 2, 3]


def test_a_callback_that_fails_costs_a_warning_and_no_run(tiny, without_engine, caplog):
    class Broken(Callback):
        calls = 0

        def on_event(self, event):
            Broken.calls += 1
            raise OSError("no space\nleft")

    notes = Notes()
    with caplog.at_level(logging.WARNING, "fl_peel"):
        result = run(tiny, overrides=QUICK, callbacks=[Broken(), notes])
    (line,) = [record.message for record in caplog.records if "Broken" in record.message]
    assert line == "Broken failed (OSError: no space left) and receives no further events of this run, which continues"
    assert Broken.calls == 1
    assert notes.events[-1] == ("end", to_json(result))


def test_callbacks_hear_of_a_run_that_fails(tiny, monkeypatch):
    def simulated(scenario, place, on_event, *, server):
        on_event(Event("start", 1, 1))
        raise EngineError("lost")

    monkeypatch.setattr(runner, "simulated", simulated)
    notes = Notes()
    with pytest.raises(EngineError, match="lost"):
        run(tiny, callbacks=[notes])
    assert [what for what, _ in notes.events] == ["start", "event", "error"]
    assert str(notes.events[-1][1]) == "lost"


def test_a_run_that_is_refused_leaves_no_trace(tiny, tmp_path, command_line):
    pytest.importorskip("tensorboard", reason="no tensorboard")
    place = tmp_path / "boards"
    changes = ("--set", "user_groups.min_size=4000", "--track", f"tensorboard={place}")
    code, _, err = command_line("run", tiny, *changes)
    assert (code, err.splitlines()[-1].startswith("fl-peel: error: ")) == (2, True)
    assert not place.exists()


@pytest.mark.slow
def test_tensorboard_reads_back_what_was_written(tiny, tmp_path, command_line):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    place, out = tmp_path / "boards", tmp_path / "out"
    words = [word for change in QUICK for word in ("--set", change)]
    for _ in range(2):
        code, _, err = command_line(
            "run", tiny, *words, "--seed", 3, "--no-cache", "--out", out, "--track", f"tensorboard={place}"
        )
        assert code == 0, err
    assert sorted(path.name for path in place.iterdir()) == ["tiny-seed-3", "tiny-seed-3-2"]
    read = reading.EventAccumulator(str(place / "tiny-seed-3-2"))
    read.Reload()
    result = {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}
    assert [step for step, _ in result.pop("pretraining/loss")] == [1, 2, 3]
    wanted = wanted_series(read_report(out))
    assert result.keys() == wanted.keys()
    for name, points in wanted.items():
        assert result[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in points], name
    (text,) = read.Tensors("scenario/text_summary")
    assert b"min_size: 4" in text.tensor_proto.string_val[0]


@pytest.mark.slow
def test_mlflow_reads_back_what_was_written(tiny, tmp_path, command_line):
    tracking = pytest.importorskip("mlflow.tracking", reason="no mlflow")
    place, out = tmp_path / "runs", tmp_path / "out"
    words = [word for change in QUICK for word in ("--set", change)]
    code, _, err = command_line("run", tiny, *words, "--seeds", 2, "--out", out, "--track", f"mlflow={place}")
    assert code == 0, err
    client = tracking.MlflowClient(tracking_uri=place.as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "fl-peel"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"tiny-seed-0", "tiny-seed-1"}
    run = runs["tiny-seed-1"]
    assert run.info.status == "FINISHED"
    assert run.data.params["refinement.local.batch_size"] == "4"
    assert run.data.params["seed"] == "1"
    report = read_report(out / "seed-1")
    wanted = wanted_series(report)
    assert run.data.metrics.keys() - wanted.keys() == {"pretraining/loss"}
    for name, points in wanted.items():
        events = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        assert events == [(step, pytest.approx(value)) for step, value in points], name
    assert [one.step for one in client.get_metric_history(run.info.run_id, "pretraining/loss")] == [1, 2, 3]
    artifact = client.download_artifacts(run.info.run_id, "report.json", str(tmp_path))
    with open(artifact, encoding="utf-8") as file:
        assert json.load(file) == json.loads(json.dumps(to_json(report)))


def test_mlflow_says_of_a_run_that_it_failed(tiny_scenario, tmp_path):
    tracking = pytest.importorskip("mlflow.tracking", reason="no mlflow")
    for number, error in enumerate((EngineError("lost"), KeyboardInterrupt())):
        (tracker,) = trackers([f"mlflow={tmp_path / str(number)}"])
        tracker.on_start(tiny_scenario)
        tracker.on_error(error)
        client = tracking.MlflowClient(tracking_uri=(tmp_path / str(number)).as_uri())
        (run,) = client.search_runs([client.get_experiment_by_name("fl-peel").experiment_id])
        assert run.info.status == ("FAILED", "KILLED")[number]


@pytest.mark.parametrize(
    ("asked", "output"),
    [
        ("tensorboard", "expected NAME=PLACE, e.g. tensorboard=out/tensorboard"),
        ("tensorboard= ", "expected NAME=PLACE"),
        ("tensorbord=x", "unknown tracker 'tensorbord'; did you mean 'tensorboard'"),
    ],
)
def test_what_is_no_tracker_is_refused_before_anything_runs(tiny, command_line, without_engine, asked, output):
    with pytest.raises(ScenarioError, match=r"^--track "):
        trackers([asked])
    code, _, err = command_line("run", tiny, "--track", asked)
    assert (code, err.count("\n")) == (2, 1)
    assert output in err
    assert not without_engine


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_place_that_cannot_be_written_is_refused_at_the_start(tmp_path, name):
    pytest.importorskip(name, reason=f"no {name}")
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match=f"file: is a file; give --track {name}= a folder"):
        trackers([f"{name}={tmp_path / 'file'}"])


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
def test_a_package_that_is_not_there_is_one_line_with_the_remedy(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"needs {module} .*; pip install 'fl-peel\[{name}\]'$"):
        trackers([f"{name}={tmp_path}"])


def test_shipped_trackers_are_named():
    assert TRACKERS.names() == ("tensorboard", "mlflow")


def test_the_callback_of_the_page_works(tiny, without_engine, capsys):
    scope = {}
    exec(re.search(r"```python\n(.*?)```", (ROOT / "docs" / "trackers.md").read_text(), re.DOTALL)[1], scope)
    result = run(tiny, overrides=QUICK, callbacks=[scope["Printer"]()])
    assert f"1 {result.history[0].recall}" in capsys.readouterr().out.splitlines()


PAGE = (ROOT / "docs" / "trackers.md").read_text(encoding="utf-8")


def weights_and_biases():
    """The class that the page has for Weights & Biases."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class WandB(" in code]
    scope = {}
    exec(code, scope)
    return scope["WandB"]("mine")


class Figures(Callback):
    """What any callback is told."""

    def __init__(self):
        self.events = []

    def on_event(self, event):
        if event.figures:
            self.events.append({**event.figures, "step": event.step})


@pytest.fixture
def stub(monkeypatch):
    """How the library was begun, and what it was told; it only notes it."""
    started, events = [], []

    def init(**how):
        started.append(how)
        return types.SimpleNamespace(log=events.append, finish=lambda **how: events.append(("finished", how)))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return started, events


def test_they_are_told_what_every_callback_is_told(tiny, without_engine, stub):
    started, events = stub
    figures = Figures()
    result = run(tiny, overrides=QUICK, seed=3, callbacks=[figures, weights_and_biases()])
    assert [(how["project"], how["name"], how["config"]["seed"]) for how in started] == [("mine", "tiny-seed-3", 3)]
    assert started[0]["mode"] == "offline"
    assert events == [*figures.events, ("finished", {})]
    assert {"validation/recall_at_20": result.history[0].recall}.items() <= next(
        one for one in events if "validation/recall_at_20" in one
    ).items()
    assert events[-2]["test/recall_at_20/50pct"] == result.budgets[0].recall.value


def test_a_run_that_fails_is_told_as_one(tiny, monkeypatch, without_engine, stub):
    _, events = stub
    engine = runner.simulated

    def failing(*args, **kwargs):
        engine(*args, **kwargs)
        raise EngineError("pulled the plug")

    monkeypatch.setattr(runner, "simulated", failing)
    with pytest.raises(EngineError, match="plug"):
        run(tiny, overrides=QUICK, callbacks=[weights_and_biases()])
    assert events[-1] == ("finished", {"exit_code": 1})
