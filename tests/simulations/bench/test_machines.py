"""The same run with the code of several processors: the tool sees a difference, and pinned runs have none."""

import os

import numpy as np
import pytest

from fl_peel.cpu_dispatch import NEEDED, processor_flags
from fl_peel.errors import EngineError, ScenarioError
from simulations.bench import machines
from simulations.bench.machines import MACHINES, compared, differences


def test_a_last_bit_is_seen():
    table = np.linspace(1, 4, 6, dtype=np.float32).reshape(2, 3)
    other = table.copy()
    other[0, 1] = np.nextafter(other[0, 1], np.float32(9))
    first = {"tables": table, "recall": np.array([0.5])}
    same, apart = compared(first, first, "same"), compared(first, first | {"tables": other}, "other")
    assert [(one.stage, one.equal, one.largest) for one in same] == [("tables", True, 0.0), ("recall", True, 0.0)]
    assert [one.equal for one in apart] == [False, True]
    assert apart[0].largest == pytest.approx(2.0**-23 / 4)
    assert apart[0].digest != same[0].digest


def test_another_shape_or_type_is_another_result():
    wide, long = {"x": np.zeros((2, 3))}, {"x": np.zeros((3, 2))}
    assert compared(wide, long, "m")[0].largest == float("inf")
    assert not compared(wide, {"x": np.zeros((2, 3), np.float32)}, "m")[0].equal


def test_a_machine_has_nothing_of_the_callers(tmp_path, monkeypatch):
    """Its code paths and caches are its own."""
    seen = {}

    def ran(command, env, **_):
        seen.update(env)
        np.savez(command[3], recall=np.zeros(1))
        return type("Done", (), {"returncode": 0})()

    monkeypatch.setattr(machines.subprocess, "run", ran)
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "mine")
    result = differences("ml-100k", machines={"a": {}, "b": {"NUMBA_CPU_NAME": "haswell"}})
    assert [(one.machine, one.stage, one.equal) for one in result] == [("b", "recall", True)]
    assert "MKL_CBWR" not in seen
    assert seen["NUMBA_CPU_NAME"] == "haswell"
    assert seen["NUMBA_CACHE_DIR"] not in ("mine", os.environ["NUMBA_CACHE_DIR"])


@pytest.mark.slow
def test_a_run_that_fails_is_told(tiny):
    with pytest.raises(EngineError, match=r"a run failed: .*no-such-scenario"):
        differences("no-such-scenario", machines={"a": {}, "b": {}})


@pytest.mark.engine
@pytest.mark.skipif(not processor_flags() >= NEEDED, reason="needs AVX2 and FMA on Linux")
def test_a_pinned_run_is_the_same_to_the_last_bit_on_another_processor(tiny, compiled_for_others):
    """From pretraining to recall: with loops compiled for haswell, and libraries on one thread."""
    cache = {"NUMBA_CACHE_DIR": compiled_for_others}
    mine = {"NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", "")}  # where all tests have it
    pinned = mine | dict.fromkeys(MACHINES["pinned-one-thread"], "2")
    other = cache | MACHINES["pinned-haswell"] | MACHINES["pinned-one-thread"]
    result = differences(str(tiny), ["user_groups.neighbour_weight=0.1"], machines={"pinned": pinned, "other": other})
    assert {"pretrained items", "starting tables", "refined tables", "refined weights", "recall"} <= {
        one.stage for one in result
    }
    assert [one.stage for one in result if not one.equal] == []


def test_machines_are_asked_for_by_name():
    from simulations.cli.machines import machines as command

    with pytest.raises(ScenarioError, match="unknown machine 'mine'; choose from pinned, "):
        command("ml-100k", on=["mine"])
