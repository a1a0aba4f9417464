"""A result: tables, a figure, files, and what a notebook shows of it."""

import dataclasses
import json
import sys
from contextlib import chdir

import matplotlib.pyplot as plt
import pyarrow.parquet
import pytest

import fl_peel
from fl_peel.errors import EngineError, MissingExtraError, ReportError
from fl_peel.events import Event
from fl_peel.scenario.scenario import Scenario
from simulations import runner
from simulations import workbench as module
from simulations.engine.inputs import default_cache_dir
from simulations.report import run_files
from simulations.report.run_files import read_report
from simulations.workbench import Progress, run
from strategies.figures.schema import to_json
from tests.helpers.without_ray import bare_sections, simulated
from tests.simulations.conftest import QUICK
from tests.simulations.report.test_report import run_result


@pytest.fixture(scope="module")
def result(planted_home):
    """A run, whose page has no figures."""
    with chdir(planted_home), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "simulated", simulated)
        patch.setattr(run_files, "run_sections", bare_sections)
        return run("tiny.yaml", overrides=[*QUICK, "evaluation.per_device=true"], cache=False)


@pytest.fixture
def pandas():
    return pytest.importorskip("pandas", reason="no pandas")


@pytest.mark.usefixtures("api", "without_figures")
class TestResult:
    def test_it_is_what_report_json_says(self, result):
        assert result.report == to_json(result.measured)
        assert result["budgets"][0]["recall@20"] == result.measured.budgets[0].recall.value
        assert dict(result) == json.loads(json.dumps(result.report))
        assert (result.seed, result.scenario["name"]) == (0, "tiny")
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.measured = None

    def test_it_says_itself_in_a_line(self, result):
        rows = result.measured.budgets
        low, high = (max(row.recall.value for row in rows if row.share == share) for share in (0.5, 1.0))
        assert repr(result) == (
            f"<Result of tiny, seed 0, 40 devices, recall@20 {low:.4f} at 50% to {high:.4f} at 100%>"
        )
        bare = dataclasses.replace(result.measured, budgets=(), environment=None)
        assert repr(fl_peel.Result(bare)) == "<Result of tiny, seed 0>"

    def test_tables_are_those_of_the_report(self, result, pandas):
        budgets = result.budgets
        assert isinstance(budgets, pandas.DataFrame)
        first = result.measured.budgets[0]
        assert budgets["recall@20"].tolist() == [row.recall.value for row in result.measured.budgets]
        assert budgets.loc[0, "recall@20_interval.low"] == first.recall.low
        assert budgets.loc[0, "to_global.value"] == first.to_global.value
        rounds = result.rounds
        assert rounds["upload_bytes"].tolist() == [row.upload_bytes for row in result.measured.rounds]
        assert rounds["validation recall@20"].tolist() == [row.recall for row in result.measured.history]
        assert result.classes["class"].tolist() == list(result.measured.device_classes)

    def test_a_round_says_what_it_took_and_when_it_ended(self, pandas):
        frame = fl_peel.Result(run_result()).rounds
        assert frame["virtual_seconds"].tolist() == [12.5, 12.5, 12.5]
        assert frame["elapsed_virtual_seconds"].tolist() == [60.0, 120.0, 180.0]

    def test_the_whole_run_is_one_tidy_table(self, result, pandas):
        frame = result.figures.to_pandas()
        assert isinstance(frame, pandas.DataFrame)
        recalls = frame[(frame.part == "budgets") & (frame.name == "recall@20")]
        assert recalls.value.tolist() == [row["recall@20"] for row in result["budgets"]]
        assert recalls.low.tolist() == [row["recall@20_interval"]["low"] for row in result["budgets"]]
        assert frame.equals(result.figures.to_arrow().to_pandas())

    def test_devices_are_those_of_the_file(self, result, pandas, tmp_path):
        devices = result.devices
        table = pyarrow.parquet.read_table(result.save(tmp_path / "saved") / "per-device.parquet")
        assert devices.columns.tolist() == table.column_names
        for name in table.column_names:
            assert devices[name].tolist() == table.column(name).to_pylist(), name

    def test_without_single_devices_it_says_what_to_do(self, result):
        with pytest.raises(ReportError, match=r"evaluation\.per_device=true.*or take \.classes"):
            _ = fl_peel.Result(result.measured).devices

    def test_without_pandas_it_says_what_to_do(self, result, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        for name in ("budgets", "rounds", "devices", "classes"):
            with pytest.raises(MissingExtraError, match=r"pip install 'fl-peel\[pandas\]'$"):
                getattr(result, name)

    def test_what_is_saved_is_read_back(self, result, tmp_path):
        folder = result.save(tmp_path / "saved")
        assert read_report(folder) == result.measured
        for place in (folder, folder / "report.json", str(folder)):
            read = fl_peel.Result.load(place)
            assert read == result
            assert read.per_device.recall.tolist() == result.per_device.recall.tolist()
        assert (folder / "report.html").is_file()
        assert Scenario.model_validate(result.scenario).to_yaml() == (folder / "scenario.yaml").read_text()
        fl_peel.Result(result.measured).save(folder)
        assert fl_peel.Result.load(folder).per_device is None, "that of the result before is gone"

    def test_what_is_no_run_is_refused_in_a_line(self, result, tmp_path):
        (tmp_path / "seeds.json").write_text("{}")
        with pytest.raises(ReportError, match="holds several seeds; give one of its folders"):
            fl_peel.Result.load(tmp_path)
        (tmp_path / "words.json").write_text("words")
        for place in (tmp_path / "nowhere", tmp_path / "words.json"):
            with pytest.raises(ReportError, match=rf"^{place}.*(give the --out folder of a run|run again with --out)$"):
                fl_peel.Result.load(place)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "report.json").write_text("mine")
        with pytest.raises(ReportError, match="the folder holds files that fl-peel did not write"):
            result.save(tmp_path / "mine")
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["report.json"]

    def test_the_figure_has_budgets_recalls_and_error_bars(self, result, tmp_path):
        figure = result.plot()
        (axes,) = figure.axes
        rows = [row for row in result.measured.budgets if row.selector == "controller"]
        drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if len(line.get_xdata()) == 2]
        assert ([row.share for row in rows], [row.to_strongest.value for row in rows]) in drawn
        assert len(axes.containers) == 2, "error bars of both selectors"
        figure.savefig(tmp_path / "recall.png")
        assert plt.get_fignums() == [], "no window, no global state"
        with pytest.raises(ReportError, match=r"give evaluation\.budgets"):
            fl_peel.Result(dataclasses.replace(result.measured, budgets=())).plot()

    def test_a_notebook_shows_budgets_and_the_figure(self, result):
        shown = result._repr_html_()
        assert "Elastic embeddings by budget" in shown
        assert f"{result.measured.budgets[0].recall.value:.4f}" in shown
        assert 'src="data:image/svg+xml;base64,' in shown
        assert len(shown) < 200_000
        assert "<script" not in fl_peel.Result(dataclasses.replace(result.measured, budgets=()))._repr_html_()


@pytest.mark.usefixtures("api")
def test_pretrained_tables_are_kept_as_on_the_command_line(tiny, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(runner, "run", lambda scenario, options: kept.append(options.cache_dir) or run_result())
    for options in ({}, {"cache": False}, {"cache_dir": tmp_path / "mine"}):
        fl_peel.run(tiny, **options)
    assert kept == [default_cache_dir(), None, tmp_path / "mine"]


@pytest.mark.usefixtures("api", "without_engine")
def test_files_are_written_where_a_folder_is_given(tiny, tmp_path):
    result = fl_peel.run(tiny, overrides=[*QUICK, "evaluation.per_device=true"], out=tmp_path / "out")
    assert fl_peel.Result.load(tmp_path / "out") == result
    assert fl_peel.Result.load(tmp_path / "out").per_device.tables == result.per_device.tables


def test_without_a_notebook_stderr_has_lines(capsys, tiny_scenario):
    progress = Progress()
    progress.on_start(tiny_scenario)
    progress.on_event(Event("start", 1, 1, "2 nodes"))
    progress.on_end({})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.rstrip().endswith("start: 2 nodes")


@pytest.fixture
def cell(monkeypatch):
    """What a notebook's cell shows, each time that it changes."""
    display = pytest.importorskip("IPython.display", reason="no IPython")
    shown = []

    class Handle:
        def update(self, stages):
            shown.append((repr(stages), stages._repr_html_()))

    monkeypatch.setattr(module, "notebook", lambda: True)
    monkeypatch.setattr(display, "display", lambda stages, display_id: Handle())
    return shown


def test_a_notebook_has_a_bar_for_each_stage(cell, tiny_scenario):
    now = [100.0]
    progress = Progress(clock=lambda: now[0])
    progress.on_start(tiny_scenario)
    for done in range(1, 101):
        now[0] += 0.01
        progress.on_event(Event("pretraining", done, 100, f"loss <{done}>"))
    progress.on_event(Event("report", 1, 1))
    now[0] += 2
    progress.on_end({})
    assert len(cell) <= 4 + 1 + 1 + 1, "a change every quarter of a second, and at the end of a stage"
    text, html = cell[-1]
    assert text == "pretraining 100/100 loss <100>\nreport 1/1\ndone in 3.0 s"
    assert '<progress value="100" max="100">' in html
    assert "loss &lt;100&gt;" in html


def test_a_run_that_failed_is_said_to_have(cell, tiny_scenario):
    progress = Progress(clock=lambda: 0.0)
    progress.on_start(tiny_scenario)
    progress.on_error(EngineError("lost"))
    assert cell[-1][0] == "stopped after 0.0 s"
