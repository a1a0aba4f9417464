"""The folder of an unfinished run: who may go on from it, and who is told that he may not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fl_peel.device_storage import device_splits
from fl_peel.errors import ReportError
from fl_peel.store import ENTRY, Store
from simulations import resumable as module
from simulations.resumable import (
    CHECKPOINTS,
    NAME,
    about_run,
    mark_finished,
    owned_store,
    read_finished,
    resumable_folder,
    what_differs,
)
from simulations.scenario_files import load_scenario
from tests.helpers.root import ROOT


@pytest.fixture
def splits(tiny, tmp_path):
    return device_splits(load_scenario(tiny), "", str(tmp_path / "run"))


def stop_in(out: Path, scenario, splits) -> None:
    """A run that leaves a stage and is stopped."""

    def stopped() -> None:
        with resumable_folder(out, scenario, splits) as folder:
            Store(Path(folder)).write("stage-1", None, "something")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()


def test_what_is_left_is_there_for_the_same_run_and_gone_when_it_is_done(tiny, splits, tmp_path):
    scenario, out = load_scenario(tiny), tmp_path / "out"
    stop_in(out, scenario, splits)
    for model in ("model", ".model-abcd"):  # the second was killed while it was written
        (out / NAME / model).mkdir()
    renamed = scenario.model_copy(update={"name": "another", "question": "Another?"})
    with resumable_folder(out, renamed, splits) as folder:
        assert Store(Path(folder)).read("stage-1").value == "something"
    assert not (out / NAME).exists()


def test_without_a_folder_of_results_nothing_is_kept(tiny, splits):
    with resumable_folder(None, load_scenario(tiny), splits) as folder:
        assert folder == ""


@pytest.mark.parametrize(
    ("change", "output"),
    [
        ("refinement.rounds=5", "scenario.refinement.rounds"),
        ("engine.nodes=3", "engine.nodes=2 and not 3"),
    ],
)
def test_another_scenario_is_refused_by_its_key(change, output, tiny, splits, tmp_path):
    stop_in(tmp_path / "out", load_scenario(tiny), splits)
    output = output.removeprefix("scenario.")
    with (
        pytest.raises(ReportError, match=rf"unfinished run, with {output}.*another --out, or --fresh"),
        resumable_folder(tmp_path / "out", load_scenario(tiny, [change]), splits),
    ):
        pass
    assert Store(tmp_path / "out" / NAME).read("stage-1") is not None, "nothing of it is lost"


def test_other_data_another_fleet_and_other_code_are_refused(tiny, splits, tmp_path, monkeypatch):
    scenario, out = load_scenario(tiny), tmp_path / "out"
    stop_in(out, scenario, splits)
    fewer = splits.select(range(30))
    with pytest.raises(ReportError, match="with other data"), resumable_folder(out, scenario, fewer):
        pass
    fleet = (tmp_path / "fleet.yaml").read_text()
    (tmp_path / "fleet.yaml").write_text(fleet + "\n# changed\n")
    with pytest.raises(ReportError, match="with another fleet"), resumable_folder(out, scenario, splits):
        pass
    (tmp_path / "fleet.yaml").write_text(fleet)
    with monkeypatch.context() as patched:
        patched.setattr(module, "code_digest", lambda root: "another")
        with pytest.raises(ReportError, match="the code of another version"), resumable_folder(out, scenario, splits):
            pass
    with monkeypatch.context() as patched:
        patched.setattr(module, "versions", lambda: {"numpy": "9.9"})
        with pytest.raises(ReportError, match=r"with numpy=.* and not 9\.9"), resumable_folder(out, scenario, splits):
            pass
    with resumable_folder(out, scenario, splits):
        pass


def test_a_key_of_no_value_that_another_version_has_not_is_a_difference():
    assert what_differs({"scenario": {"a": 1}}, {"scenario": {"a": 1, "b": None}}) == "the scenario of another version"


def test_fresh_starts_anew(tiny, splits, tmp_path):
    stop_in(tmp_path / "out", load_scenario(tiny), splits)
    other = load_scenario(tiny, ["seed=4"])
    with resumable_folder(tmp_path / "out", other, splits, fresh=True) as folder:
        assert Store(Path(folder)).read("stage-1") is None


def test_a_run_that_came_to_nothing_leaves_nothing(tiny, splits, tmp_path):
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "out", load_scenario(tiny), splits):
        raise KeyboardInterrupt
    assert not (tmp_path / "out" / NAME).exists()


RUNNING = """
import sys
from pathlib import Path
from simulations.resumable import owned_store

with owned_store(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_two_runs_do_not_write_into_one_folder(tiny, splits, tmp_path):
    """The other one is killed, as with the container that it was in: nothing of it stands in the way then."""
    scenario, out = load_scenario(tiny), tmp_path / "out"
    stop_in(out, scenario, splits)
    with subprocess.Popen(
        [sys.executable, "-c", RUNNING, out / NAME], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(ReportError, match=r"out: another process is writing a run there; wait for it, or give"),
            resumable_folder(out, scenario, splits, fresh=True),
        ):
            pass
        assert Store(out / NAME).read("stage-1") is not None
        other.kill()
    with resumable_folder(out, scenario, splits) as folder:
        assert Store(Path(folder)).read("stage-1") is not None


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_else_is_not_touched(fresh, tiny, splits, tmp_path):
    (tmp_path / "out" / NAME).mkdir(parents=True)
    (tmp_path / "out" / NAME / "thesis.txt").write_text("mine")
    with (
        pytest.raises(ReportError, match=r"thesis\.txt: this version of fl-peel did not write it; move \.unfinished"),
        resumable_folder(tmp_path / "out", load_scenario(tiny), splits, fresh=fresh),
    ):
        pass
    assert [file.name for file in (tmp_path / "out").rglob("*")] == [NAME, "thesis.txt"]


def test_what_is_of_a_run_that_nobody_knows_is_not_gone_on_from(tiny, splits, tmp_path):
    stop_in(tmp_path / "out", load_scenario(tiny), splits)
    store = Store(tmp_path / "out" / NAME)
    (run,) = [entry for entry in store.entries() if entry.name == "run"]
    (run.folder / ENTRY).write_bytes(b"damaged")
    with resumable_folder(tmp_path / "out", load_scenario(tiny), splits):
        assert store.read("stage-1") is None


def test_results_are_known_by_what_they_are_of_and_by_what_is_in_them(tiny, splits, tmp_path):
    about, results = about_run(load_scenario(tiny), splits), tmp_path / "seed-0"
    (results / "deeper").mkdir(parents=True)
    for file in (results / "report.json", results / "deeper" / "report.json"):
        file.write_text("1")
    with owned_store(tmp_path / CHECKPOINTS) as store:
        assert read_finished(store, results, about) is None
        mark_finished(store, results, about, "more")
        assert read_finished(store, results, about).value["value"] == "more"
        assert read_finished(store, results, about_run(load_scenario(tiny, ["seed=1"]), splits)) is None
        (results / "notes.txt").write_text("2")
        assert read_finished(store, results, about) is not None
        file.write_text("2")
        assert read_finished(store, results, about) is None
