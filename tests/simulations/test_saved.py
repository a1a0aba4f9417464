"""What a run writes into its folder of results: the model is among it, listed, and goes with the run."""

import shutil

import fl_peel
from simulations.listing import listed
from simulations.runner import MODEL, finished, keeping, save
from strategies.run.place import Place
from tests.helpers.models import ran


def test_a_model_is_listed_and_a_later_run_leaves_nothing_of_it(tiny_scenario, tmp_path):
    run_dir, out = tmp_path / "run", tmp_path / "out"
    result = finished(ran(tiny_scenario, run_dir), tiny_scenario, 1, None)
    digest = fl_peel.load(run_dir / MODEL).digest
    out.mkdir()
    save(result, tiny_scenario, run_dir, out, run_dir / MODEL)
    names = {f"{MODEL}/{file.name}" for file in (run_dir / MODEL).iterdir()}
    assert names <= listed(out)
    shutil.rmtree(run_dir)  # as a run does
    assert fl_peel.load(out / MODEL).digest == digest
    (out / MODEL / "mine").write_text("mine")
    save(result, tiny_scenario, run_dir, out, run_dir / MODEL)
    assert [file.name for file in (out / MODEL).iterdir()] == ["mine"]
    assert not names & listed(out)


def test_a_run_without_results_leaves_no_model_either():
    assert keeping(Place("a", "b"), "") == Place("a", "b")
    assert keeping(Place("a", "b"), "/c") == Place("a", "b", "", "/c", "/c/model")
