"""The folder of a run: no room in it is one line; what killed runs left is swept, and nothing of a living one."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from fl_peel.errors import ReportError
from simulations.engine.folders import run_folder
from tests.helpers.root import ROOT

KILLED = """
import os, signal
from simulations.engine.folders import run_folder

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
