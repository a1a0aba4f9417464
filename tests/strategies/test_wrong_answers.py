"""Whatever a node answers: it is right, or the node has failed; never a traceback, never other figures in silence."""

import logging
from contextlib import chdir
from functools import reduce
from operator import add

import numpy as np
import pytest
from flwr.app import Error, Message
from hypothesis import HealthCheck, given

from fl_peel import wire
from fl_peel.errors import EngineError, MessageError
from simulations.scenario_files import load_scenario
from strategies import nodes as asking
from strategies.nodes import Nodes
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.examples import examples
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.mutating import mutated, parts_of, put_together, replying, with_array
from tests.helpers.runs import figures

CLEAR = ["evaluation.per_device=true", "elasticity.rounds=2", "elasticity.devices=10"]
MODES = {
    "clear": CLEAR,
    "bucketed": ["refinement.aggregation.robust.rule=median", "elasticity.rounds=0"],
    "bounded": ["privacy.mechanism=central-gaussian", "privacy.noise_multiplier=1", "elasticity.rounds=0"]
    + ["privacy.clipping={kind: flat, norm: 1.0}"],
    "secure": ["secure_aggregation={enabled: true, devices_per_group: null, min_devices: 3}", "elasticity.rounds=0"]
    + ["refinement.acceptance.rule=always"],
    "federated": ["pretraining={model: spectral, source: devices, columns: 8, group_columns: 4}", "elasticity.rounds=0"]
    + ["pretraining.collected.share=0", "refinement.rounds=0", "evaluation.selectors=[popularity]"]
    + ["pretraining.passes=2"],
}
MODES["masked steps"] = [*MODES["federated"], "secure_aggregation={enabled: true, min_devices: 3, neighbours: 4}"]
KINDS = {
    "clear": [wire.JOIN, wire.ROUND, wire.EVALUATE, wire.MOVING, wire.COMPARE, wire.KEEP],
    "bucketed": [wire.ROUND],
    "bounded": [wire.ROUND],
    "secure": [wire.SECURE_KEYS, wire.SECURE_SHARES, wire.SECURE_OWNERS, wire.SECURE_ROUND, wire.SECURE_UNMASK],
    "federated": [wire.STEP],
    "masked steps": [wire.SECURE_STEP, wire.SECURE_SUMS],
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(asking, "PAUSES_S", (0.0, 0.0))


@pytest.fixture
def heard(tiny, tmp_path, monkeypatch):
    """Runs a scenario, and keeps the last answers of each kind with what was known of them."""

    def run(mode):
        kept = {}
        real = Nodes.answers

        def listen(self, kind, replies):
            replies = list(replies)
            kept[kind] = (self, dict(self._open), replies)
            return real(self, kind, replies)

        monkeypatch.setattr(Nodes, "answers", listen)
        serve(LoopbackGrid(2), load_scenario(tiny, MODES[mode]), RunPaths("", str(tmp_path / "run")))
        monkeypatch.setattr(Nodes, "answers", real)
        return kept

    return run


@pytest.mark.hypothesis
@pytest.mark.parametrize("mode", list(KINDS))
def test_an_answer_is_right_or_its_node_has_failed(heard, mode):
    """Every kind of message, changed in every way."""
    kept = heard(mode)
    for kind in KINDS[mode]:
        try_answers(kind, *kept[kind])


def try_answers(kind, nodes, sent, replies):
    """Of one kind of message, of which these were right."""

    @examples(40, suppress_health_check=list(HealthCheck))
    @given(wrong=mutated(replies[0].content))
    def check(wrong):
        nodes._open.clear()
        nodes._open.update(sent)
        result = list(nodes.answers(kind, [replying(replies[0], wrong.content), *replies[1:]]))
        assert len(result) == len(replies)
        assert all(answer.error is None for answer in result[1:])
        if result[0].error is not None:
            assert isinstance(result[0].error, MessageError)
            assert "\n" not in str(result[0].error)
            assert len(str(result[0].error)) < 400
        elif asking._disagreeing(kind, {answer.partition: answer for answer in result}):
            pass  # of another size than the others: asked again
        elif hasattr(kind.reply, "__add__"):  # what is let in can be added up
            reduce(add, [answer.reply for answer in result])

    check()


@pytest.fixture(scope="module")
def whole(planted_home, tmp_path_factory):
    """The run in which every answer is right."""
    with chdir(planted_home):
        scenario = load_scenario("tiny.yaml", MODES["clear"])
        return serve(LoopbackGrid(2), scenario, RunPaths("", str(tmp_path_factory.mktemp("whole"))))


class Changing(LoopbackGrid):
    """Partition 1's replies of some kind are changed by ``change``, as often as ``times`` says."""

    def __init__(self, nodes, kind, change, times=1):
        super().__init__(nodes)
        self._kind, self._change, self._times = kind, change, times

    def _answer(self, message):
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        reply = super()._answer(message)
        if kind == self._kind and self._partition[node] == 1 and self._times and not reply.has_error():
            self._times -= 1
            changed = self._change(reply.content)
            return Message(Error(0, "worker died"), reply_to=message) if changed is None else replying(reply, changed)
        return reply


def changed_run(tiny, folder, mode, kind, change, times=1):
    return serve(Changing(2, kind, change, times), load_scenario(tiny, MODES[mode]), RunPaths("", str(folder)))


def set_wide(content):
    """Rows that no table has, with numbers to be added to them."""
    arrays, config = parts_of(content)
    group = next(name.split("/")[1] for name in arrays if name.endswith("wide_rows"))
    columns = arrays[f"groups/{group}/sums"].shape[1]
    arrays[f"groups/{group}/wide_rows"] = wire._to_array(np.array([5, 2**31 - 1], np.int32))
    arrays[f"groups/{group}/wide_sums"] = wire._to_array(np.ones((2, columns), np.int64))
    return put_together(arrays, config)


def fewer_sampled(content):
    """Devices that were asked are not spoken of."""
    return with_array(content, "counts.clock", lambda clock: clock * np.int64(0))


@pytest.mark.parametrize("change", [set_wide, fewer_sampled])
def test_in_a_round_the_node_counts_as_failed_and_the_run_goes_on(tiny, tmp_path, caplog, change):
    """As if it had not answered: to the last digit."""
    caplog.set_level(logging.WARNING, "fl_peel")
    result = changed_run(tiny, tmp_path / "wrong", "clear", wire.ROUND, change)
    silent = changed_run(tiny, tmp_path / "silent", "clear", wire.ROUND, lambda content: None)
    assert [(row.devices, row.failures) for row in result.rounds] == [(20, 20), (40, 0)]
    assert figures(result) == figures(silent)
    lines = [record.getMessage() for record in caplog.records if "train.round" in record.getMessage()]
    assert len(lines) == 2
    assert lines[0].startswith("node 1 (train.round)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (wire.JOIN, lambda content: with_array(content, "groups", lambda groups: groups + np.int32(1000))),
        (wire.EVALUATE, lambda content: None),
        (wire.COMPARE, lambda content: with_array(content, "sums", lambda sums: sums[:1])),
    ],
)
def test_outside_the_rounds_a_node_is_asked_again(tiny, tmp_path, whole, kind, change):
    again = changed_run(tiny, tmp_path / "again", "clear", kind, change)
    assert figures(again) == figures(whole)


def test_but_not_for_ever(tiny, tmp_path):
    """Half of all nodes are too many to go on without."""

    def change(content):
        return with_array(content, "stored_max", lambda stored: stored - np.int64(2**40))

    with pytest.raises(
        MessageError, match=r"^node 1 \(evaluate.budgets\) gave a wrong answer: EvaluateReply.stored_max"
    ):
        changed_run(tiny, tmp_path / "run", "clear", wire.EVALUATE, change, times=100)
    with pytest.raises(EngineError, match=r"^node 1 \(query.join\) failed: worker died$"):
        changed_run(tiny, tmp_path / "dead", "clear", wire.JOIN, lambda content: None, times=100)


class Echoing(LoopbackGrid):
    """Every reply comes twice, and once more with the next ones."""

    last: tuple[Message, ...] = ()

    def send_and_receive(self, messages, *, timeout=None):
        replies = list(super().send_and_receive(messages, timeout=timeout))
        late, self.last = self.last, tuple(replies)
        return [*late, *replies, *replies] if replies and replies[0].metadata.group_id else replies


def test_replies_that_come_late_or_twice_count_once(tiny, tmp_path, whole):
    echoed = serve(Echoing(2), load_scenario(tiny, MODES["clear"]), RunPaths("", str(tmp_path / "echo")))
    assert figures(echoed) == figures(whole)


def wrong_keys(content):
    return with_array(content, "groups", lambda groups: 1 - groups)


def wrong_vector(content):
    name = next(name for name in parts_of(content)[0] if name.endswith("/wide"))
    return with_array(content, name, lambda wide: wide + np.uint64(1))


def wrong_shares(content):
    name = next(name for name in parts_of(content)[0] if name.endswith("/shares"))
    return with_array(content, name, lambda shares: shares ^ np.uint8(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "change", "then"),
    [
        (wire.SECURE_KEYS, wrong_keys, 40),
        (wire.SECURE_ROUND, wrong_vector, 30),
        (wire.SECURE_UNMASK, wrong_shares, 30),
    ],
)
def test_under_secure_aggregation_it_has_dropped_out_or_its_group_is_void(tiny, tmp_path, kind, change, then):
    """then: devices of the next round; after a void group, those of the node at fault are searched for."""
    result = changed_run(tiny, tmp_path / "run", "secure", kind, change)
    first, second = (row.counts for row in result.secure_aggregation.rounds)
    assert first.devices < 40
    assert (second.devices, second.void_groups) == (then, 0)
