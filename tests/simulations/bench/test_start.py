"""What a run takes from the command typed is that of processes that really did it."""

import sys

import pytest

from fl_peel.errors import EngineError
from simulations.bench import bench

SAYING = "import sys, time; {}; print('[ 0.1 s] start: {} nodes', file=sys.stderr, flush=True); time.sleep(0.3); {}"


def typed(first, nodes, last):
    return bench._typed([sys.executable, "-c", SAYING.format(first, nodes, last)])


def test_the_first_answer_is_when_nodes_are_there_and_the_report_when_all_has_ended():
    first_s, whole_s = typed("time.sleep(0.2)", 2, "pass")
    assert 0.2 < first_s < whole_s - 0.2 < 60


def test_what_fails_has_no_seconds():
    for words in (("pass", "no", "pass"), ("pass", 2, "sys.exit('full disk')"), ("raise ValueError", 2, "pass")):
        with pytest.raises(EngineError, match=r"bench: a run ended with exit code [01]: \S"):
            typed(*words)
