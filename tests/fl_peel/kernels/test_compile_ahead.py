"""Loops that are compiled beside a first run are those, and of those types, that it calls."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fl_peel import kernels
from fl_peel.kernels import compile_ahead, compile_cache
from fl_peel.kernels.compile_cache import VARIABLE, choose_cache_folder
from tests.helpers.root import ROOT
from tests.helpers.runs import served

ONE = """
from fl_peel.kernels import compile_ahead
compile_ahead.LOOPS = {"tile_rows": compile_ahead.LOOPS["tile_rows"]}
before = compile_ahead.is_compiled()
compile_ahead.compile_all()
print(before, compile_ahead.is_compiled())
"""


def test_a_run_calls_the_loops_with_these_types_and_no_other_loop(tiny_scenario, tmp_path):
    before = {loop: set(result.signatures) for loop, result in dispatchers().items()}
    served(tiny_scenario, tmp_path / "run")
    for loop, dispatcher in dispatchers().items():
        called = set(dispatcher.signatures)
        known = set(compile_ahead.signatures(loop)) if loop in compile_ahead.LOOPS else set()
        assert known <= called, loop
        assert called - before[loop] <= known, loop


def dispatchers():
    return {name: getattr(kernels, name) for name in kernels.__all__ if hasattr(getattr(kernels, name), "signatures")}


@pytest.mark.slow
def test_what_was_compiled_is_kept_and_said(tmp_path):
    how = {"env": os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, "capture_output": True, "text": True, "check": True}
    assert subprocess.run([sys.executable, "-c", ONE], **how).stdout.split() == ["False", "True"]
    assert [file.name.split("-")[0] for file in tmp_path.rglob("*.nbc")] == ["ranking.tile_rows"]
    assert subprocess.run([sys.executable, "-c", ONE], **how).stdout.split() == ["True", "True"]


def test_another_processor_or_another_source_is_not_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    compile_ahead._stamp().touch()
    assert compile_ahead.is_compiled()
    with monkeypatch.context() as other:
        other.setenv("NUMBA_CPU_NAME", "haswell")
        assert not compile_ahead.is_compiled()
    with monkeypatch.context() as other:
        (tmp_path / "loops.py").write_text("another source")
        other.setattr(kernels, "__file__", str(tmp_path / "loops.py"))
        assert not compile_ahead.is_compiled()


def test_no_process_is_left_and_none_is_started_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    me = psutil.Process()
    before = set(me.children())
    with compile_ahead.compiling_ahead():
        (compiling,) = set(me.children()) - before
    assert not compiling.is_running()
    assert not compile_ahead.is_compiled()  # nobody waited for it
    compile_ahead._stamp().touch()
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("all is compiled"))
    with compile_ahead.compiling_ahead():
        pass


@pytest.fixture(autouse=True)
def no_choice_yet(monkeypatch):
    monkeypatch.setitem(os.environ, VARIABLE, "")  # restored afterwards, also if the test sets it
    monkeypatch.delitem(sys.modules, "numba", raising=False)  # so that its setting stays as it is


def not_a_folder(path):
    """A place that even root cannot write below."""
    path.write_text("")
    return path


def test_beside_the_source_where_that_is_writable(tmp_path):
    choose_cache_folder(tmp_path)
    assert os.environ[VARIABLE] == ""


def test_what_the_user_chose_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "/mine")
    choose_cache_folder(not_a_folder(tmp_path / "source"))
    assert os.environ[VARIABLE] == "/mine"


def test_else_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    choose_cache_folder(not_a_folder(tmp_path / "source"))
    assert os.environ[VARIABLE] == str(tmp_path / "cache" / "fl-peel" / "compiled")


def test_without_a_cache_in_a_private_temporary_folder_that_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(not_a_folder(tmp_path / "cache")))
    monkeypatch.setattr(compile_cache.tempfile, "tempdir", str(tmp_path))
    source = not_a_folder(tmp_path / "source")
    choose_cache_folder(source)
    chosen = Path(os.environ[VARIABLE])
    assert chosen == tmp_path / f"fl-peel-compiled-{os.getuid()}"
    assert stat.S_IMODE(chosen.stat().st_mode) == 0o700
    os.environ[VARIABLE] = ""
    choose_cache_folder(source)
    assert Path(os.environ[VARIABLE]) == chosen


@pytest.mark.parametrize("taken", ["open to others", "a link"])
def test_a_folder_that_others_could_write_to_is_not_used(tmp_path, monkeypatch, taken):
    monkeypatch.setenv("XDG_CACHE_HOME", str(not_a_folder(tmp_path / "cache")))
    monkeypatch.setattr(compile_cache.tempfile, "tempdir", str(tmp_path))
    name = tmp_path / f"fl-peel-compiled-{os.getuid()}"
    if taken == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        name.symlink_to(tmp_path / "theirs")
    else:
        name.mkdir()
        name.chmod(0o777)
    choose_cache_folder(not_a_folder(tmp_path / "source"))
    chosen = Path(os.environ[VARIABLE])
    assert chosen != name
    assert chosen.parent == tmp_path
    assert stat.S_IMODE(chosen.stat().st_mode) == 0o700


@pytest.mark.slow
def test_processes_that_compile_at_once_get_the_same_and_leave_it_for_the_next(tmp_path):
    code = (
        "import numpy as np\n"
        "from fl_peel import kernels\n"
        "out = [np.empty(2, np.int64) for _ in range(3)]\n"
        "narrow = np.empty((2, 0), np.int64)\n"
        "room, cost, skipped = np.array([5, 9]), np.array([0, 4, 8]), (np.array([0, 1, 1]), np.array([0]))\n"
        "kernels.serving_cutoffs(room, cost, narrow, 8, *skipped, *out)\n"
        "print(*[o.tolist() for o in out], sum(kernels.serving_cutoffs.stats.cache_hits.values()))"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {VARIABLE: str(tmp_path)}

    def start():
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    both = [process.communicate(timeout=200)[0] for process in [start(), start()]]
    # room for 5 and 9 bytes of blocks that cost 4 each; the first device never needs the block of rank 0, so that
    # it keeps the one of rank 1 instead (cut after 2 blocks, 4 bytes, 1 block); the second keeps both
    assert [line.split("] ")[:3] for line in both] == [["[2, 2", "[4, 8", "[1, 2"]] * 2
    assert start().communicate(timeout=200)[0].strip() == "[2, 2] [4, 8] [1, 2] 1"  # taken from the cache
