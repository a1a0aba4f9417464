"""The folder of an unfinished run: who may go on from it, and who is told that he may not."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fl_peel.device_storage import device_splits
from fl_peel.errors import ReportError
from simulations import resumable as module
from simulations.engine.folders import OWNER, Owner
from simulations.resumable import NAME, about_run, is_completed, mark_completed, resumable_folder
from simulations.scenario_files import load_scenario


@pytest.fixture
def splits(tiny, tmp_path):
    return device_splits(load_scenario(tiny), "", str(tmp_path / "run"))


def stop_in(out: Path, scenario, splits) -> None:
    """A run that leaves a stage and is stopped."""

    def stopped() -> None:
        with resumable_folder(out, scenario, splits) as folder:
            (Path(folder) / "stage-1.kept").write_bytes(b"something")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()


def test_what_is_left_is_there_for_the_same_run_and_gone_when_it_is_done(tiny, splits, tmp_path):
    scenario, out = load_scenario(tiny), tmp_path / "out"
    stop_in(out, scenario, splits)
    renamed = scenario.model_copy(update={"name": "another", "question": "Another?"})
    with resumable_folder(out, renamed, splits) as folder:
        assert (Path(folder) / "stage-1.kept").read_bytes() == b"something"
    assert not (out / NAME).exists()


def test_without_a_folder_of_results_nothing_is_kept(tiny, splits):
    with resumable_folder(None, load_scenario(tiny), splits) as folder:
        assert folder == ""


@pytest.mark.parametrize(
    ("change", "output"),
    [
        ("refinement.rounds=5", "scenario.refinement.rounds"),
        ("seed=4", "seed=0 and not 4"),
        ("evaluation.budgets=[25%]", "evaluation.budgets"),
        ("engine.nodes=3", "engine.nodes=2 and not 3"),
    ],
)
def test_another_scenario_is_refused_by_its_key(change, output, tiny, splits, tmp_path):
    stop_in(tmp_path / "out", load_scenario(tiny), splits)
    output = output.removeprefix("scenario.")
    with (
        pytest.raises(ReportError, match=rf"unfinished run, with {output}.*--fresh"),
        resumable_folder(tmp_path / "out", load_scenario(tiny, [change]), splits),
    ):
        pass
    assert (tmp_path / "out" / NAME / "stage-1.kept").is_file()  # nothing of it is lost


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


def test_fresh_starts_anew(tiny, splits, tmp_path):
    stop_in(tmp_path / "out", load_scenario(tiny), splits)
    other = load_scenario(tiny, ["seed=4"])
    with resumable_folder(tmp_path / "out", other, splits, fresh=True) as folder:
        assert not (Path(folder) / "stage-1.kept").exists()


def test_a_run_that_came_to_nothing_leaves_nothing(tiny, splits, tmp_path):
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "out", load_scenario(tiny), splits):
        raise KeyboardInterrupt
    assert not (tmp_path / "out" / NAME).exists()


def test_two_runs_do_not_write_into_one_folder(tiny, splits, tmp_path):
    scenario, out = load_scenario(tiny), tmp_path / "out"
    stop_in(out, scenario, splits)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        owner = Owner.from_process(psutil.Process(other.pid))
        (out / NAME / OWNER).write_text(json.dumps(dataclasses.asdict(owner)))
        with (
            pytest.raises(ReportError, match=rf"process {other.pid} of \S+ is writing a run there"),
            resumable_folder(out, scenario, splits, fresh=True),
        ):
            pass
        assert (out / NAME / "stage-1.kept").is_file()
    finally:
        other.kill()
        other.wait()
    with resumable_folder(out, scenario, splits):  # that process is gone
        pass


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"pid": 1}', '{"pid": PID}'])
def test_what_says_nothing_of_a_living_run_stops_nobody(text, tiny, splits, tmp_path):
    text = text.replace("PID", str(os.getpid()))
    (tmp_path / "out" / NAME).mkdir(parents=True)
    (tmp_path / "out" / NAME / OWNER).write_text(text)
    (tmp_path / "out" / NAME / "about.json").write_text(text)
    with resumable_folder(tmp_path / "out", load_scenario(tiny), splits):
        pass


def test_a_seed_that_is_done_is_known_by_what_it_is(tiny, splits, tmp_path):
    about = about_run(load_scenario(tiny), splits)
    assert not is_completed(tmp_path, about)
    mark_completed(tmp_path, about)
    assert is_completed(tmp_path, about)
    assert not is_completed(tmp_path, about_run(load_scenario(tiny, ["seed=1"]), splits))
