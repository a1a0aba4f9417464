"""A folder of results: what an earlier run listed as its own is replaced, and nothing else."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fl_peel.errors import ReportError
from fl_peel.files import OWNED, owned_folder
from simulations.engine.inputs import RUN_RESULTS, check_out, require_folders
from simulations.listing import LIST, listed
from simulations.report.result_files import STAGING, write_results


def artifacts(name):
    return name.startswith("artifacts/")


def names(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_later_run_replaces_what_an_earlier_one_listed(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "stored").write_bytes(b"numbers")
    write_results(out, {"report.json": b"1", "artifacts/a": tmp_path / "stored", "artifacts/b": b"2"}, artifacts)
    assert (out / "artifacts" / "a").read_bytes() == b"numbers"
    (out / "notes.txt").write_text("mine")
    (out / "artifacts" / "notes.txt").write_text("mine")
    write_results(out, {"report.json": b"3", "artifacts/b": b"4"}, artifacts)
    assert names(out) == {"report.json", "artifacts/b", "notes.txt", "artifacts/notes.txt", LIST}
    assert listed(out) == {"report.json", "artifacts/b"}
    (out / "artifacts" / "notes.txt").unlink()
    write_results(out, {"report.json": b"5"}, artifacts)
    assert not (out / "artifacts").exists()


def test_other_kinds_of_results_stay_and_stay_listed(tmp_path):
    write_results(tmp_path, {"compare.json": b"1", "artifacts/a": b"2"})
    write_results(tmp_path, {"report.json": b"3"}, artifacts)
    assert listed(tmp_path) == {"compare.json", "report.json"}
    assert names(tmp_path) == {"compare.json", "report.json", LIST}


@pytest.mark.parametrize(
    "name",
    ["report.json", "scenario.yaml", "per-device.parquet", "artifacts/mine", "artifacts/a/b", "model/model.json"],
)
def test_a_file_that_no_run_listed_is_refused_at_the_start(tmp_path, name):
    write_results(tmp_path, {"metrics.csv": b"1"})
    check_out(tmp_path, writes=RUN_RESULTS)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        ReportError, match=f"{name}: the folder holds files that fl-peel did not write; move this file, or give"
    ):
        check_out(tmp_path, writes=RUN_RESULTS)
    check_out(tmp_path, writes=("compare.json",))


def test_so_is_one_in_the_folder_of_a_later_seed(tiny_scenario, tmp_path):
    (tmp_path / "seed-2").mkdir()
    (tmp_path / "seed-2" / "report.json").write_text("mine")
    require_folders(tmp_path, tiny_scenario, 2)
    with pytest.raises(ReportError, match=r"seed-2/report\.json: the folder holds files that fl-peel did not write"):
        require_folders(tmp_path, tiny_scenario, 3)


def test_what_a_killed_process_has_left_aside_goes_and_nothing_of_a_living_one(tmp_path):
    with owned_folder(tmp_path, STAGING) as living:
        (tmp_path / f"{STAGING}0").mkdir()
        (tmp_path / f"{STAGING}0" / OWNED).touch()
        write_results(tmp_path, {"report.json": b"1"})
        assert {path.name for path in tmp_path.iterdir()} == {living.name, "report.json", LIST}


def test_of_several_that_write_at_once_all_names_are_listed(tmp_path, monkeypatch):
    real = os.replace
    monkeypatch.setattr("simulations.report.result_files.os.replace", lambda *moved: (time.sleep(0.01), real(*moved)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_results(tmp_path / "out", {f"{number}.json": b"1"}), range(8)))
    assert listed(tmp_path / "out") == {f"{number}.json" for number in range(8)}


def test_at_no_moment_is_one_of_our_files_not_listed(tmp_path, monkeypatch):
    """Whoever is killed then can go on."""
    write_results(tmp_path, {"report.json": b"1", "artifacts/a": b"2"})
    real, looks = os.replace, []

    def replace(source, target):
        looks.append({name for name in names(tmp_path) if not name.startswith(STAGING)} - listed(tmp_path))
        real(source, target)

    monkeypatch.setattr("simulations.report.result_files.os.replace", replace)
    write_results(tmp_path, {"report.json": b"3", "metrics.csv": b"4"}, artifacts)
    assert looks
    assert all(unlisted <= {LIST} for unlisted in looks)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"files": 3}', "\x00"])
def test_a_list_that_makes_no_sense_lists_nothing(tmp_path, content):
    (tmp_path / LIST).write_text(content)
    assert listed(tmp_path) == frozenset()


def test_a_list_cannot_have_files_of_others_removed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "mine").write_text("mine")
    (out / LIST).write_text(json.dumps({"files": ["../mine", str(tmp_path / "mine"), "", "artifacts/../../mine", 1]}))
    write_results(out, {"report.json": b"1"}, lambda name: True)
    assert (tmp_path / "mine").read_text() == "mine"
    assert listed(out) == {"report.json"}
