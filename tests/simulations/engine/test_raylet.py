"""A raylet that is killed is noticed within seconds; one that lives, or none at all, is left alone."""

import subprocess
import threading

import pytest

from simulations.engine.ray_engine import RayletWatch


@pytest.mark.faults
def test_a_killed_one_is_told_once_and_a_living_one_not():
    lost, calls = threading.Event(), []

    def events():
        calls.append(1)
        lost.set()

    with subprocess.Popen(["sleep", "60"]) as process, RayletWatch(events, poll_s=0.05, name="sleep"):
        assert not lost.wait(0.5)
        process.kill()
        assert lost.wait(10)
    assert len(calls) == 1


def test_none_is_waited_for():
    with RayletWatch(lambda: pytest.fail("there was none"), poll_s=0.01, name="no such process"):
        threading.Event().wait(0.1)
