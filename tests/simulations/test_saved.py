"""What a run writes into its folder of results: the model is among it, listed, and goes with the run."""

import shutil

import pytest

import fl_peel
from fl_peel.device_storage import device_splits
from simulations.listing import listed
from simulations.result_pages import rebuild_pages
from simulations.runner import MODEL, finished, save
from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from tests.helpers.models import ran

pytestmark = pytest.mark.usefixtures("without_figures")


def test_a_model_is_listed_and_a_later_run_leaves_nothing_of_it(tiny_scenario, tmp_path):
    run_dir, out = tmp_path / "run", tmp_path / "out"
    result = finished(ran(tiny_scenario, run_dir), tiny_scenario, 1, None)
    digest = fl_peel.load(run_dir / MODEL).digest
    paths = RunPaths("", str(run_dir), model_dir=str(run_dir / MODEL))
    out.mkdir()
    save(result, tiny_scenario, out, paths)
    names = {f"{MODEL}/{file.name}" for file in (run_dir / MODEL).iterdir()}
    assert names <= listed(out)
    shutil.rmtree(run_dir)  # as a run does
    assert fl_peel.load(out / MODEL).digest == digest
    (out / MODEL / "mine").write_text("mine")
    save(result, tiny_scenario, out, paths)
    assert [file.name for file in (out / MODEL).iterdir()] == ["mine"]
    assert not names & listed(out)


def test_the_page_to_play_with_lies_beside_the_report_which_links_it(tiny, tmp_path):
    scenario = load_scenario(tiny, ["data.path=" + str(tmp_path / "planted.csv")])
    run_dir, out = tmp_path / "run", tmp_path / "out"
    result = finished(ran(scenario, run_dir), scenario, 1, None)
    splits = device_splits(scenario, "", str(run_dir))
    paths = RunPaths("", str(run_dir), model_dir=str(run_dir / MODEL))
    out.mkdir()
    save(result, scenario, out, paths, splits)
    assert 'href="demo.html"' in (out / "report.html").read_text()
    assert '"wanted": [' in (out / "demo.html").read_text()
    assert "demo.html" in listed(out)
    rebuild_pages(out)
    assert 'href="demo.html"' in (out / "report.html").read_text()
    shutil.rmtree(run_dir / "artifacts")  # a run of which no device leaves anything
    save(result, scenario, out, paths, splits)
    assert not (out / "demo.html").exists()
    assert "demo.html" not in (out / "report.html").read_text()
