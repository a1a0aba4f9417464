"""One node of four lies in every message: the run goes on, and ends with the others' figures."""

import numpy as np
import pytest
from flwr.app import Array, Error, Message

from fl_peel import wire
from fl_peel.errors import ScenarioError
from fl_peel.steps.base import UNIT_SCALE
from simulations.report.run_files import run_page
from simulations.scenario_files import load_scenario
from strategies import nodes as nodes_module
from strategies.figures.schema import from_json, to_json
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.mutating import RESHAPED, extreme, parts_of, put_together, replying
from tests.helpers.runs import figures
from tests.strategies.test_wrong_answers import MODES

LIAR, NODES = 1, 4
DEVICES = 10
"""Devices that each node hosts."""
ERRORS = {
    f"names {kind}": Error(wire.USER_MISTAKE, wire.NodeError(kind, place, text).to_reason())
    for kind, place, text in (
        ("ScenarioError", "refinement.rounds", "refinement.rounds: is wrong; change it"),
        ("BudgetError", "", ""),
        ("SecureAggregationError", "", "no"),
        ("KeyboardInterrupt", "", ""),
    )
} | {
    "names nothing": Error(wire.USER_MISTAKE, "ScenarioError|refinement.rounds"),
    "fails": Error(wire.NODE_FAILED, "x"),
    "died": Error(0, "worker died"),
}
ENDS = {"largest": "max", "smallest": "min"}
SENT = {
    "clear": (wire.JOIN, wire.ROUND, wire.EVALUATE, wire.COMPARE, wire.KEEP, wire.MOVING),
    "federated": (wire.STEP, wire.JOIN, wire.EVALUATE),
    "secure": (wire.SECURE_KEYS, wire.SECURE_SHARES, wire.SECURE_OWNERS, wire.SECURE_ROUND, wire.SECURE_UNMASK),
    "bounded": (wire.ROUND,),
}
"""Kinds of messages that nodes answer, in each mode of a run."""


class Lying(LoopbackGrid):
    """``lie`` makes another answer of one node's answers of some kind (None: any but the first), after so many
    ``honest`` ones: an error, or another content.
    """

    def __init__(self, kind, lie, honest=0):
        super().__init__(NODES)
        self._kind, self._lie, self._honest = kind, lie, honest
        self.asked = 0

    def _answer(self, message):
        reply = super()._answer(message)
        kind = message.metadata.message_type
        if self._partition[message.metadata.dst_node_id] != LIAR or reply.has_error():
            return reply
        if kind != self._kind and (self._kind is not None or kind == wire.HELLO):
            return reply
        self.asked += 1
        if self.asked <= self._honest:
            return reply
        lie = self._lie(reply.content)
        return Message(lie, reply_to=message) if isinstance(lie, Error) else replying(reply, lie)


def every_number(change):
    """A lie: all numbers of a reply are changed by ``change``, array by array."""

    def lie(content):
        arrays, config = parts_of(content)
        for name, array in arrays.items():
            arrays[name] = Array(change(array.numpy()))
        for name, value in config.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                config[name] = change(np.array(value)).item()
        return put_together(arrays, config)

    return lie


def to_the(end):
    """All numbers at an end of what their type holds."""

    def change(array):
        if array.dtype.kind not in "iu":
            return np.full_like(array, np.inf) if array.dtype.kind == "f" else array
        return np.full_like(array, getattr(np.iinfo(array.dtype), end))

    return change


def one_less(array):
    return array - array.dtype.type(1) if array.dtype.kind in "iuf" else array


LIES = {
    **{name: lambda content, error=error: error for name, error in ERRORS.items()},
    **{f"{name} numbers": every_number(to_the(end)) for name, end in ENDS.items()},
    "one less": every_number(one_less),
    "nothing": every_number(lambda array: array[:0] if array.ndim else array),
}
TABLE = [(mode, kind, lie) for mode, kinds in SENT.items() for kind in kinds for lie in LIES]
SOME = ("names ScenarioError", "largest numbers", "one less")
"""Lies that ``make test-all`` tries."""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(nodes_module, "PAUSES_S", (0.0, 0.0))


@pytest.fixture
def lied(tiny, tmp_path):
    """Runs a scenario in which a node lies; returns its report as it is written, its result, and the grid."""

    def run(mode, kind, lie, folder="lied", honest=0, more=()):
        grid = Lying(kind, lie, honest)
        result = serve(grid, load_scenario(tiny, [*MODES[mode], *more]), RunPaths("", str(tmp_path / folder)))
        plain = to_json(result)
        from_json(plain)  # all that is refused when a report is written
        return plain, result, grid

    return run


FAILED: dict[tuple, object] = {}
"""Figures of the runs in which the node fails in place of each lie."""


def figures_without(lied, mode, kind, more=()):
    """The figures of a run in which the node fails at messages of a kind."""
    key = (mode, kind, *more)
    if key not in FAILED:
        FAILED[key] = figures(lied(mode, kind, LIES["fails"], "failed", more=more)[1])
    return FAILED[key]


def check_the_run_goes_on(lied, mode, kind, lie):
    """It ends with a report that can be written; where the lie was refused, with the figures of a run in which that
    node fails in its place.
    """
    report, result, grid = lied(mode, kind, LIES[lie])
    assert grid.asked
    excluded = report["environment"].get("excluded_nodes", {})
    assert excluded.keys() <= {str(LIAR)}
    failures = [row["failures"] for row in report["rounds"]]
    if excluded or (kind == wire.ROUND and min(failures) == DEVICES):
        assert figures(result) == figures_without(lied, mode, kind)
    if lie in ERRORS and kind in (wire.JOIN, wire.EVALUATE, wire.STEP, wire.COMPARE, wire.MOVING):
        assert excluded, "it never answered"


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kind", "lie"), [row for row in TABLE if row[2] in SOME])
def test_a_liar_ends_no_run(lied, mode, kind, lie):
    check_the_run_goes_on(lied, mode, kind, lie)


@pytest.mark.hostile
@pytest.mark.parametrize(("mode", "kind", "lie"), [row for row in TABLE if row[2] not in SOME])
def test_nor_in_any_other_way(lied, mode, kind, lie, trial):
    trial("chosen lies of one node", mode)
    check_the_run_goes_on(lied, mode, kind, lie)


@pytest.mark.hostile
@pytest.mark.parametrize("lie", ["names ScenarioError", "died", "largest numbers", "nothing"])
def test_nor_in_steps_that_are_noised(lied, lie, trial):
    trial("chosen lies of one node", "noised steps")
    noised = ["privacy={mechanism: central-gaussian, noise_multiplier: 0.02, group_epsilon: 9, clipping: {kind: flat}}"]
    report, result, _ = lied("federated", wire.STEP, LIES[lie], more=noised)
    assert report["environment"]["excluded_nodes"].keys() == {str(LIAR)}
    assert figures(result) == figures_without(lied, "federated", wire.STEP, noised)


@pytest.mark.hostile
@pytest.mark.parametrize("seed", range(100))
def test_nor_by_a_lie_in_every_message_it_sends(lied, seed, trial):
    """One number of each reply, another one each time, is at an end of its type, or one array is of another shape. A
    node whose first answers were refused is as one that failed then.
    """
    rng = np.random.default_rng(seed)
    mode = list(SENT)[seed % len(SENT)]
    trial("whole runs in which one node lies in every message", mode)

    def lie(content):
        arrays, config = parts_of(content)
        name = rng.choice(sorted(arrays)) if arrays else None
        if name is not None:
            array = arrays[name].numpy()
            changed = RESHAPED[rng.choice(sorted(RESHAPED))](array) if rng.random() < 0.3 else None
            place, end = int(rng.integers(1 << 31)), bool(rng.random() < 0.5)
            arrays[name] = Array(extreme(array, place, end) if changed is None else changed)
        return put_together(arrays, config)

    report, result, grid = lied(mode, None, lie)
    excluded = report["environment"].get("excluded_nodes", {})
    assert excluded.keys() <= {str(LIAR)}
    if excluded and grid.asked <= 1 + len(nodes_module.PAUSES_S):
        trial("of these, with the figures of a run in which that node failed", mode)
        assert figures(result) == figures_without(lied, mode, excluded[str(LIAR)].partition(":")[0])


@pytest.mark.parametrize(
    ("mode", "kind", "lie"),
    [
        ("clear", wire.ROUND, "names ScenarioError"),
        ("clear", wire.EVALUATE, "largest numbers"),
    ],
)
def test_nor_do_two_of_the_worst(lied, mode, kind, lie):
    check_the_run_goes_on(lied, mode, kind, lie)


def test_a_mistake_that_all_nodes_name_does(lied, monkeypatch):
    monkeypatch.setattr("tests.hostile.test_liars.LIAR", 0)
    grid_of_all = Lying.__dict__["_answer"]

    def everybody(self, message):
        monkeypatch.setattr("tests.hostile.test_liars.LIAR", self._partition[message.metadata.dst_node_id])
        return grid_of_all(self, message)

    monkeypatch.setattr(Lying, "_answer", everybody)
    with pytest.raises(ScenarioError, match=r"^refinement.rounds: is wrong; change it$"):
        lied("clear", wire.JOIN, LIES["names ScenarioError"])


def with_number(name, value):
    def lie(content):
        arrays, config = parts_of(content)
        config[name] = value
        return put_together(arrays, config)

    return lie


def test_lists_that_are_said_to_be_too_short_are_sent_whole_at_most(lied):
    """A list twice as long each time, until it is whole: of 12 blocks, after a few times."""
    report, _, grid = lied("clear", wire.EVALUATE, with_number("short", 1))
    _, _, honest = lied("clear", wire.EVALUATE, lambda content: content, "honest")
    assert "excluded_nodes" not in report["environment"]
    assert grid.asked <= 3 * honest.asked


def test_another_fleet_than_the_others_have_is_one_nodes_own(lied):
    report, result, _ = lied("clear", wire.JOIN, with_number("class_names", "phone\nwatch"))
    (failure,) = report["environment"]["excluded_nodes"].values()
    assert failure.endswith("gave a wrong answer: class_names phone watch, unlike others")
    page, sentence = run_page(result), f"Without node {LIAR} and its devices"
    assert sentence in page.html()
    assert any(str(part).startswith(sentence) for part in page.terminal())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lie", "line"),
    [
        (LIES["names ScenarioError"], "refinement.rounds: is wrong; change it"),
        (LIES["died"], "failed: worker died"),
        (with_number("num_partitions", 1 << 20), "where others say 4 partitions"),
        (with_number("partition", 5), "it is partition 5 of 4"),
        (with_number("num_partitions", 0), "is not in 1..1048576"),
    ],
)
def test_a_node_that_is_refused_at_the_start_is_not_waited_for(lied, lie, line, caplog):
    report, result, _ = lied("clear", wire.HELLO, lie)
    assert report["environment"]["excluded_nodes"] == {str(LIAR): "query.hello: no node answered for it"}
    assert report["environment"]["devices"] == (NODES - 1) * DEVICES
    (refused,) = (record.getMessage() for record in caplog.records if "the node is refused" in record.getMessage())
    assert line in refused
    assert figures(result) == figures_without(lied, "clear", wire.JOIN)


@pytest.mark.slow
def test_tables_before_and_after_rounds_are_compared_on_the_same_devices(lied):
    """A node that fails only when refined tables are evaluated; no round is accepted, so that both are the same."""
    never = ["refinement.acceptance.confidence=0.9999999"]
    late, _, grid = lied("clear", wire.EVALUATE, LIES["fails"], honest=2, more=never)
    early, _, _ = lied("clear", wire.EVALUATE, LIES["fails"], "early", more=never)
    assert grid.asked > 2
    assert late["full_table"] == early["full_table"]
    assert late["budgets"] == early["budgets"]
    assert late["full_table"]["start"] == late["full_table"]["refined"]
    assert late["full_table"]["gain"]["devices"] == (NODES - 1) * DEVICES


def with_filters_that_win_more_than_there_is(content):
    """Where a node chooses, it answers for one device, as if all of its devices had found all items."""
    arrays, config = parts_of(content)
    if "sums/won" in arrays:
        arrays["sums/won"] = Array(np.full_like(arrays["sums/won"].numpy(), DEVICES * int(UNIT_SCALE)))
        arrays["sums/answered"] = Array(np.ones_like(arrays["sums/answered"].numpy()))
    return put_together(arrays, config)


def test_a_filter_cannot_win_more_than_its_devices_have(lied):
    report, _, _ = lied("federated", wire.STEP, with_filters_that_win_more_than_there_is)
    (failure,) = report["environment"]["excluded_nodes"].values()
    assert failure.endswith("is more than 1 devices can add up to")


def with_devices_in_two_places(content):
    """As many devices as the node hosts, once for every cell of a class and a user group."""
    arrays, config = parts_of(content)
    sums = arrays["sums"].numpy().copy()
    sums[..., -1] = DEVICES
    arrays["sums"] = Array(sums)
    return put_together(arrays, config)


def with_perfect_recall(content):
    """Of fewer devices than it takes."""
    arrays, config = parts_of(content)
    sums = arrays["sums"].numpy().copy()
    sums[..., 0] = DEVICES << 32
    arrays["sums"] = Array(sums)
    return put_together(arrays, config)


@pytest.mark.parametrize(
    ("lie", "line"),
    [
        (with_devices_in_two_places, r"sums.devices: adds up to 40, which is more than 10$"),
        (with_perfect_recall, r"sums.recall: more than devices can add up to$"),
    ],
)
def test_numbers_that_cannot_be_true_together_are_refused(lied, lie, line):
    report, _, _ = lied("clear", wire.EVALUATE, lie)
    (failure,) = report["environment"]["excluded_nodes"].values()
    assert failure.startswith("evaluate.budgets: node 1 (evaluate.budgets) gave a wrong answer: EvaluateReply.")
    assert failure.endswith(line.removesuffix("$"))
