"""Whatever a node is asked: its devices answer, or refuse in one line."""

import pytest
from flwr.app import Message
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from fl_peel import wire
from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.examples import examples
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.mutating import mutated
from tests.strategies.test_wrong_answers import MODES

KINDS = {
    "clear": [wire.HELLO, wire.ROUND, wire.EVALUATE, wire.MOVING, wire.COMPARE, wire.KEEP, wire.JOIN],
    "secure": [wire.SECURE_KEYS, wire.SECURE_SHARES, wire.SECURE_OWNERS, wire.SECURE_ROUND, wire.SECURE_UNMASK],
    "federated": [wire.STEP],
    "masked steps": [wire.SECURE_STEP, wire.SECURE_SUMS],
}


@pytest.mark.hypothesis
@pytest.mark.parametrize("mode", list(KINDS))
def test_a_question_is_answered_or_refused_in_one_line(tiny, tmp_path, mode):
    """Every kind of message, changed in every way; no compiled loop meets a number that it does not expect."""
    grid = LoopbackGrid(2)
    serve(grid, load_scenario(tiny, MODES[mode]), RunPaths("", str(tmp_path / "run")))
    asked = {}
    for kind, content in grid.crossed:
        asked.setdefault(kind, []).append(content)
    node = next(iter(grid.get_node_ids()))
    for kind in KINDS[mode]:
        questions = asked[kind][:: max(1, len(asked[kind]) // 4)]  # the first of them, and some of other steps
        try_questions(grid, node, kind, questions)


def try_questions(grid, node, kind, questions):
    """Of one kind of message, of which these were right."""

    @examples(30, suppress_health_check=list(HealthCheck))
    @given(wrong=st.integers(0, len(questions) - 1).flatmap(lambda place: mutated(questions[place])))
    def check(wrong):
        (reply,) = grid.send_and_receive([Message(wrong.content, dst_node_id=node, message_type=kind)])
        grid.crossed.clear()
        if reply.has_error():
            assert reply.error.code == wire.USER_MISTAKE, reply.error.reason
            assert "\n" not in reply.error.reason

    check()


TIMES = {
    "clear": dict.fromkeys((wire.ROUND, wire.EVALUATE, wire.MOVING, wire.COMPARE), "server_round"),
    "secure": {wire.SECURE_KEYS: "server_round"},
    "federated": {wire.STEP: "time"},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(TIMES))
def test_a_time_that_never_comes_is_refused(tiny, tmp_path, mode):
    """The budgets' clock starts at 0, and nodes go from step to step to know where they are."""
    grid = LoopbackGrid(1)
    serve(grid, load_scenario(tiny, MODES[mode]), RunPaths("", str(tmp_path / "run")))
    node = next(iter(grid.get_node_ids()))
    for kind, name in TIMES[mode].items():
        content = next(content for its, content in grid.crossed if its == kind)
        for when in (-1, 1 << 40):
            content["config"][name] = when
            (reply,) = grid.send_and_receive([Message(content, dst_node_id=node, message_type=kind)])
            assert reply.error.code == wire.USER_MISTAKE
            assert name in reply.error.reason
