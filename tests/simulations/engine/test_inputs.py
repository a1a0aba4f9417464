"""Nothing that can be known at the start fails at the end: what is refused once files, fleet and data are there."""

import os
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from fl_peel import plugins
from fl_peel.device_storage import device_splits
from fl_peel.errors import DataError, FlPeelError, ReportError
from simulations.engine.inputs import check_devices, check_out, check_run, checked, run_folder
from simulations.scenario_files import load_scenario
from tests.helpers.root import ROOT

SECURE = "secure_aggregation.enabled=true"
NOISED = "privacy={mechanism: central-gaussian, target_epsilon: 8, clipping: {kind: flat}}"


def looked_at(tiny, tmp_path, *changes):
    """All that is checked before a run's engine starts."""
    scenario = checked(load_scenario(tiny, changes), tmp_path / "out")
    splits = device_splits(scenario, "", str(tmp_path / "run"))
    check_run(scenario, splits)
    check_devices(scenario, splits)


BAD = [
    ([NOISED.replace("8,", "8, delta: 0.03,")], "privacy.delta: 0.03 is above one of 40 devices"),
    (["blocks.count=60"], "blocks.count: 60 is not in 1..59, the number of items; change it"),
    (["blocks={item_groups: interest-popularity, count: 60}"], "blocks.count: 60 is not in 1..59"),
    (["evaluation.budgets=[1%]"], "evaluation.budgets 1.0000%: budget 18 B is below one block"),
    (["evaluation={precisions: [int4, fp32], budgets: [10%]}"], "evaluation.budgets 10.0000%: budget 188 B is below"),
    (
        ["blocks={item_groups: interest-popularity, count: 6}", "evaluation.budgets=[1%]"],
        "evaluation.budgets 1.0000%: budget 18 B is below one block",
    ),
    (["fleet=[poor.yaml]"], "device profile poor: budget 18 B is below one block"),
    (["fleet=[poor.yaml]", "budget_factor=0.5"], "device profile poor: budget 18 B is below one block"),
    (["pretraining.collected.share=1%"], "pretraining: no interactions were collected; raise pretraining.collected"),
    (["user_groups.min_size=41"], "user_groups.min_size: 41 of 40 devices whose data is collected; lower it"),
    (["pretraining.collected.share=5%"], "user_groups.min_size: 4 of 2 devices whose data is collected; lower it"),
    (["data.test_share=0"], "data.test_share: no device has a test item, and reports need them; raise it"),
    (["data.validation_share=0"], "data.validation_share: no device has a validation item, and fairness.tiers are"),
    (
        ["data.validation_share=0", "fairness.tiers=[]"],
        "data.validation_share: no device has a validation item, and the controller learns from them; raise it",
    ),
    (
        ["poisoning.share=0.999999"],
        "poisoning.share, poisoning.compare: 99.9999% leaves no honest device with test items",
    ),
    (["poisoning={share: 10%, num_targets: 60}"], "poisoning.num_targets: 60 of 59 items; give at most 59"),
    (["poisoning={share: 10%, target_items: [59]}"], "poisoning.target_items: there is no item 59"),
    (
        ["fleet=[fleet.yaml:small]", "refinement.min_budget_share=43%"],
        "refinement.min_budget_share: 43.0000% is above the largest budget of the fleet, 41.",
    ),
    (
        ["fleet=[fleet.yaml:small]", "fairness.exclude_below=43%"],
        "fairness.exclude_below: 43.0000% is above the largest budget of the fleet, 41.",
    ),
    (["refinement.deadline_s=0.000001"], "refinement.deadline_s: 1e-06 is shorter than the download of one block "),
    (
        ["fleet=[slow.yaml]", "refinement.deadline_s=1"],
        "refinement.deadline_s: 1 is shorter than the download of one block",
    ),
    (["fleet=[away.yaml]"], "fleet: no device is available in any of 2 rounds, so that no device would train; raise"),
    (["user_groups={count: 41, min_size: 1}"], "user_groups.count: 41 of 40 devices; lower it"),
    (
        ["secure_aggregation={enabled: true, min_devices: 41, devices_per_group: null}"],
        "secure_aggregation.min_devices: 41 of 40 devices that a round can sample, so that every user group would skip",
    ),
    ([SECURE, "refinement.cohort_share=15%"], "secure_aggregation.min_devices: 8 of 6 devices that a round can sample"),
    # of the scenario and what is installed alone
    ([NOISED, "fairness.exclude_below=50%"], "fairness.exclude_below: refines once more and so spends epsilon again"),
    (["selector=broken"], "the selector 'broken' of nowhere:at_all cannot be imported"),
    (["evaluation.selectors=[odd]"], "selector 'odd' is a tuple; register a function of a group's statistics"),
]


@pytest.fixture
def world(tiny, tmp_path, monkeypatch):
    """A fleet that holds nothing, and packages whose selectors are none."""
    (tmp_path / "poor.yaml").write_text("profiles: [{name: poor, memory: {table_share: 0.01}}]\n")
    (tmp_path / "away.yaml").write_text("profiles: [{name: a, memory: {table_share: 1.0}, availability: 0}]\n")
    (tmp_path / "slow.yaml").write_text(
        "profiles: [{name: a, memory: {table_share: 1.0}, network: {downlink_mbps: 0.00001}}]\n"
    )
    result = {"broken": "nowhere:at_all", "odd": "tests.simulations.engine.test_inputs:ODD"}
    points = [EntryPoint(name, value, "fl_peel.selectors") for name, value in result.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "fl_peel.selectors" else [])
    return tiny


ODD = ("no", "function")


@pytest.mark.parametrize(("changes", "start"), BAD)
def test_what_is_known_before_the_engine_starts_is_told_then(world, tmp_path, changes, start):
    with pytest.raises(FlPeelError) as caught:
        looked_at(world, tmp_path, *changes)
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["blocks={item_groups: interest-popularity, count: 6}"],
        ["blocks.item_groups=single", "blocks.count=1000"],
        ["data.validation_share=0", "fairness.tiers=[]", "refinement.rounds=0"],
        ["data.validation_share=0", "fairness.tiers=[]", "selector=exposure", "evaluation.selectors=[exposure]"],
        ["budget_factor=0.000001"],
        [SECURE, "refinement={rounds: 0, cohort_share: 1%}"],
        [SECURE, "secure_aggregation.devices_per_group=null", "refinement={sampling: poisson, cohort_share: 1%}"],
        ["poisoning.num_targets=60"],
        ["user_groups={count: 40, min_size: 1}"],
        ["fleet=[away.yaml]", "refinement.rounds=0"],
        ["fleet=[slow.yaml]", "refinement.deadline_s=1000"],
    ],
)
def test_what_can_be_had_is_let_through(world, tmp_path, changes):
    looked_at(world, tmp_path, *changes)


@pytest.mark.parametrize("name", ["report.json", "scenario.yaml", "compare.svg", "audit.html"])
def test_a_folder_in_a_results_place_is_refused(tmp_path, name):
    check_out(tmp_path, writes=[name])
    (tmp_path / name).mkdir()
    with pytest.raises(ReportError, match=f"{name}: is a folder with the name of a result; move it, or give another"):
        check_out(tmp_path, writes=[name])
    check_out(tmp_path, writes=["sweep.json"])


@pytest.mark.parametrize("name", ["artifacts", "checkpoints", "model"])
def test_a_file_in_a_results_folders_place_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    check_out(tmp_path)
    (tmp_path / name).rmdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        ReportError, match=f"{name}: is a file with the name of a result's folder; move it, or give another"
    ):
        check_out(tmp_path)


def test_a_place_in_which_nothing_can_be_made_is_refused_at_the_start(tmp_path, monkeypatch):
    """Whatever its mode says: nobody may write into a full disk, or into some folders of the system's."""

    def refuse(dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simulations.engine.inputs.tempfile.TemporaryFile", refuse)
    with pytest.raises(ReportError, match=r"out: cannot be written, .* is not writable \(No space left on device\)"):
        check_out(tmp_path / "out")


@pytest.mark.parametrize("key", ["path", "test_path"])
def test_a_pipe_or_a_device_is_no_data(tiny_scenario, tmp_path, key):
    """Whoever read it would wait, or read, for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        data = tiny_scenario.data.model_copy(update={key: str(path)})
        output = rf"{path}: is a device or a pipe, neither file nor folder; correct data\.{key}"
        with pytest.raises(DataError, match=output):
            checked(tiny_scenario.model_copy(update={"data": data}), None)


def test_a_link_to_nowhere_is_refused(tmp_path):
    os.symlink(tmp_path / "gone", tmp_path / "link")
    for out in (tmp_path / "link", tmp_path / "link" / "deeper"):
        with pytest.raises(ReportError, match=r"cannot be made, .*link is a broken link; give --out another"):
            check_out(out)


def test_a_name_that_no_folder_can_have_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"cannot be a folder \(File name too long\); give --out another one"):
        check_out(tmp_path / ("x" * 300))


def test_no_place_for_a_runs_folder_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ReportError, match=r"no temporary folder can be made .*; set TMPDIR"), run_folder():
        pass


KILLED = """
import os, signal
from simulations.engine.inputs import run_folder

with run_folder() as folder:
    (folder / "users.npy").write_bytes(b"of a device")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.faults
def test_the_next_run_sweeps_what_a_killed_one_left(temporary):
    environment = os.environ | {"TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (folder,) = temporary.iterdir()
    assert (folder / "users.npy").is_file()
    with run_folder() as own:
        assert list(temporary.iterdir()) == [own]
    assert not list(temporary.iterdir())


def test_a_living_runs_folder_stays_and_one_that_is_not_a_runs(temporary):
    (temporary / "fl-peel-compiled-0").mkdir()
    with run_folder() as first:
        with run_folder() as second:
            assert first.is_dir()
            assert second.is_dir()
        assert first.is_dir()
    assert [folder.name for folder in temporary.iterdir()] == ["fl-peel-compiled-0"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("400 requested and 100 written")])
def test_no_room_is_one_line_and_nothing_stays(temporary, error):
    output = r"no space left for the run's folder \(.*\); free some, or set TMPDIR"
    with pytest.raises(ReportError, match=output) as caught, run_folder():
        raise error
    assert str(caught.value).startswith(f"{temporary}: ")
    assert not list(temporary.iterdir())


def test_another_mistake_keeps_its_traceback(temporary):
    with pytest.raises(FileNotFoundError), run_folder():
        raise FileNotFoundError(2, "No such file or directory")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_numpy_tells_a_full_disk_as_we_know_it(temporary):
    with (
        pytest.raises(ReportError, match="no space left for the run's folder"),
        run_folder(),
        open("/dev/full", "wb") as full,
    ):
        np.save(full, np.zeros(10_000))
