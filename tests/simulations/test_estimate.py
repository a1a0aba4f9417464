"""What is told before a run is what it then moves, holds and takes, within what is promised."""

import json
import os

import pytest
import typer
from typer.testing import CliRunner

from fl_peel.errors import ScenarioError
from simulations import estimate as estimates
from simulations.cli.main import app
from simulations.cli.run import format_seconds
from simulations.estimate import WITHIN, estimate
from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.runs import run

BY_DEVICES = ["pretraining.model=spectral", "pretraining.source=devices", "pretraining.collected.share=0"]
NARROW = ["privacy.min_owners=1", "pretraining.columns=16", "pretraining.group_columns=8"]
LOADED = 3.0
"""By which other work on the machine may slow a run besides."""


def measured(scenario, tmp_path):
    return serve(LoopbackGrid(2), scenario, RunPaths("", str(tmp_path / "run")))


def test_bytes_of_refinement(tiny, tmp_path):
    scenario = load_scenario(tiny, ["refinement.rounds=3"])
    results, result = estimate(scenario, None), measured(scenario, tmp_path)
    assert results.download_bytes == pytest.approx(result.bytes_per_device.download_mean, rel=0.1)
    assert result.bytes_per_device.upload_mean / 2 < results.upload_bytes < 2 * result.bytes_per_device.upload_mean
    assert results.participants == pytest.approx(sum(row.devices for row in result.rounds) / 3, rel=0.1)
    assert (results.devices, results.items, results.rounds) == (40, 59, 3)
    assert results.full_table_bytes == result.full_table.bytes
    assert results.blocks == result.environment.blocks


@pytest.mark.slow
def test_bytes_of_stage_1_by_devices(tiny, tmp_path):
    scenario = load_scenario(tiny, [*BY_DEVICES, *NARROW, "refinement.rounds=0", "selector=exposure"])
    results, result = estimate(scenario, None), measured(scenario, tmp_path)
    assert results.stage1_download_bytes == pytest.approx(result.stage1.bytes_down_mean, rel=0.25)
    assert results.stage1_upload_bytes == pytest.approx(result.stage1.bytes_up_mean, rel=0.25)
    assert results.download_bytes == results.upload_bytes == 0
    given = [*BY_DEVICES, *NARROW, "pretraining.count_exponent=0.5", "pretraining.value_exponent=0.1"]
    assert estimate(load_scenario(tiny, given), None).stage1_download_bytes < 0.8 * results.stage1_download_bytes


def test_devices_that_do_not_train_move_nothing(tiny):
    some = estimate(load_scenario(tiny, ["refinement.cohort_share=50%"]), None)
    every = estimate(load_scenario(tiny), None)
    assert some.download_bytes == pytest.approx(every.download_bytes / 2)
    assert some.participants == pytest.approx(every.participants / 2)
    large = estimate(load_scenario(tiny, ["refinement.min_budget_share=90%"]), None)
    assert 0 < large.participants < every.participants


@pytest.mark.engine
def test_time_and_memory(tiny_scenario):
    results, result = estimate(tiny_scenario, None), run(tiny_scenario)
    assert results.memory_bytes / WITHIN < result.peak_rss_bytes < WITHIN * results.memory_bytes
    took = sum(result.stages.values())
    assert results.total_s / WITHIN < took < LOADED * WITHIN * results.total_s


def fl_peel(*args):
    return CliRunner().invoke(app, [*map(str, args)], catch_exceptions=False)


def test_a_dry_run_tells_and_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("simulations.runner.run", None)
    before = sorted(os.walk(tmp_path))
    ran = fl_peel("run", tiny, "--dry-run", "--out", tmp_path / "out")
    assert ran.exit_code == 0
    assert "40 devices, 59 items" in ran.stdout
    assert f"within a factor of {WITHIN:g}" in " ".join(ran.stdout.split())
    result = json.loads(fl_peel("run", tiny, "--dry-run", "--seeds", 3, "--json", "--out", tmp_path / "out").stdout)
    assert result["total_seconds"] == pytest.approx(3 * sum(result["seconds"].values()))
    assert result["total_bytes"] == pytest.approx(40 * result["bytes_per_device"])
    assert sorted(os.walk(tmp_path)) == before


def test_what_a_run_would_refuse_a_dry_run_refuses(tiny):
    with pytest.raises(ScenarioError, match=r"user_groups\.count: 90 of 40 devices"):
        fl_peel("run", tiny, "--dry-run", "--set", "user_groups.count=90")
    with pytest.raises(ScenarioError, match="not estimated"):
        fl_peel("run", tiny, "--dry-run", "--set", "data.timeline={}")


@pytest.mark.parametrize("study", ["compare", "ablate", "audit"])
def test_a_line_before_a_study(study, tiny, tmp_path, monkeypatch):
    def measure(*args, **kwargs):
        typer.echo("measured", err=True)
        return {"rows": []}

    monkeypatch.setattr(f"simulations.studies.{study}.{study}", measure)
    lines = fl_peel(study, tiny, "--out", tmp_path / "out", "--json").stderr.splitlines()
    assert lines[0].startswith("estimate: about ")
    assert lines[0].endswith(f"within a factor of {WITHIN:g}")
    assert lines[1] == "measured"
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    assert "are not computed again" in fl_peel(study, tiny, "--out", tmp_path / "out", "--json").stderr
    assert "estimate" not in fl_peel(study, tiny, "--out", tmp_path / "out", "--json", "--quiet").stderr


def test_seconds_have_no_more_digits_than_they_should():
    texts = [format_seconds(seconds) for seconds in (4.2, 99, 200, 7200)]
    assert texts == ["about 4 s", "about 99 s", "about 3 min", "about 2.0 h"]


def test_tables_above_what_stays_in_memory_count_once():
    """Of 256 groups with 10.49 MB each: they lie in a file."""
    at_most = 256 << 20
    assert estimates._table_bytes(at_most) == 5 * at_most
    assert estimates._table_bytes(at_most + 1000) == 5 * at_most + 1000
