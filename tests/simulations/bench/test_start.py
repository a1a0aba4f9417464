"""What a run's start takes is that of processes that really did it."""

import pytest

from fl_peel.errors import EngineError
from simulations.bench import bench as start


def test_seconds_are_those_of_the_program():
    assert 0.2 < start._program_seconds("import time; time.sleep(0.2)") < 60


def test_a_program_that_fails_has_no_seconds():
    with pytest.raises(EngineError, match="ValueError: nothing"):
        start._program_seconds("raise ValueError('nothing')")


def test_a_run_whose_nodes_never_answer_has_none():
    with pytest.raises(EngineError, match=r"ended before its nodes answered: .*no such scenario"):
        start._until_nodes("no-such-scenario", "")
