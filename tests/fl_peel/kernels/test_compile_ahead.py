"""Loops that are compiled beside a first run are those, and of those types, that it calls."""

import os
import subprocess
import sys

import psutil
import pytest

from fl_peel import kernels
from fl_peel.kernels import compile_ahead
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
