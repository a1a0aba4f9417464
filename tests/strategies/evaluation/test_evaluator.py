"""The question to all nodes: the same answer in one message or several, on one node or several."""

import dataclasses
import types

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.array_specs import SUM_SCALE
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.figures import Estimate
from fl_peel.weighting.block_statistics import BlockStatistics
from simulations.scenario_files import load_scenario
from strategies.evaluation.evaluator import BudgetRequest, EvaluationParts, Evaluator, overall_recall
from strategies.evaluation.heterogeneity import FollowPlan, follow
from strategies.evaluation.run_figures import list_figures
from strategies.figures.per_device import MeasuredQuality, cell_recalls
from strategies.figures.schema import Gain
from strategies.groups.state import UserGroupState
from strategies.run.prepare import prepare
from strategies.run.refinement import Refiner
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.runs import connected


def evaluator_of(scenario, folder, nodes: int) -> tuple[Evaluator, LoopbackGrid, np.ndarray]:
    """Before the first round; the grid that is asked, and the pretrained table."""
    run = connected(scenario, folder, nodes)
    prepared = prepare(run)
    return Evaluator.from_strategy(Refiner(run, prepared).joined()), run.grid, prepared.pretrained.items


def same(one, other) -> bool:
    """Two replies, or the columns of two."""
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    return np.array_equal(one, other)


@pytest.fixture
def asked(tiny_scenario, tmp_path):
    return evaluator_of(tiny_scenario, tmp_path / "one", 1)


def test_several_messages_and_nodes_make_no_difference(asked, tiny_scenario, tmp_path):
    one, grid, items = asked
    budgets = [900, 1888, wire.OWN_BUDGET]
    whole = one.evaluate(budgets)
    before = len(grid.crossed)
    assert same(dataclasses.replace(one, message_bytes=1).evaluate(budgets), whole)
    assert [kind for kind, _ in grid.crossed[before:]].count(wire.EVALUATE) == 2  # a message a user group
    three, _, _ = evaluator_of(tiny_scenario, tmp_path / "three", 3)
    assert same(three.evaluate(budgets), whole)
    assert same(three.full_table(items), one.full_table(items))
    traced = one.members.devices[:3]
    together, apart = (
        follow(one, FollowPlan.from_evaluator(one), traced, message_bytes) for message_bytes in (1 << 20, 1)
    )
    assert same(apart.steps, together.steps)
    assert sorted(apart.traced.stacked().tolist()) == sorted(together.traced.stacked().tolist())


def test_ratios_and_differences_are_paired(asked):
    one, _, items = asked
    table, again, small = one.full_table(items), one.full_table(items), one.evaluate([200])
    full, same_again, less = (MeasuredQuality.from_reply(reply) for reply in (table, again, small))
    assert full.over(same_again) == Estimate(1.0, 1.0, 1.0)
    assert full.gain(same_again) == Gain(Estimate(0.0, 0.0, 0.0), full.devices)
    gain, ratio = less.gain(full).recall, less.over(full)
    assert gain.value == pytest.approx(overall_recall(small) - overall_recall(table))
    assert gain.low < gain.value < gain.high
    assert ratio.low < ratio.value < ratio.high
    alone = less.quality().recall
    assert alone.high - alone.low > 0
    assert full.quality(full).to_global == Estimate(1.0, 1.0, 1.0)


def test_without_replicates_there_are_no_intervals_and_nobody_tells_of_single_devices(tiny, tmp_path):
    none, _, items = evaluator_of(load_scenario(tiny, ["evaluation.bootstrap=0"]), tmp_path / "run", 2)
    reply = none.full_table(items)
    measured = MeasuredQuality.from_reply(reply)
    assert (measured.quality().recall.ends, measured.gain(measured)) == (None, None)
    assert measured.over(measured) == Estimate(1.0)
    assert not len(reply.single.devices), "evaluation.per_device is off"


def test_a_figure_depends_on_its_own_budget_alone(asked):
    """Not on the largest of those asked for, which says how long a list is sent at first."""
    one, grid, _ = asked
    budgets = [700, 900, 1400, 3000]
    together = one.evaluate(budgets).by_budget()
    before = len(grid.crossed)
    for place, budget in enumerate(budgets):
        alone = one.evaluate([budget])
        assert same(alone.by_budget()[0], together[place]), budget
        assert not alone.short
    assert len(grid.crossed) - before > len(budgets), "some had to be asked again, or this shows nothing"


# ---------------------------------------------------------------- what is asked, by hand

LAYOUT = BlockLayout(np.arange(30, dtype=np.int32), 1, 1)
BASE, BLOCK = overhead_bytes(1), 6  # in fp32
TABLES = [np.arange(30, dtype=np.float32)[:, None] + 100 * group for group in range(2)]
NOTHING_KNOWN = BlockStatistics(*[np.zeros(0, np.float32)] * 5)


@dataclasses.dataclass
class Reply:
    """What nodes say: which requests they answer, and how many of their devices' lists were too short."""

    answers: list[int]
    short: int = 0

    def __add__(self, other):
        return Reply(self.answers + other.answers, self.short + other.short)


def asking(enough: int = 0, message_bytes: int = 1 << 20, per_device: bool = True):
    """An evaluator of two user groups, with budgets of at most 100 and 90 bytes, and what it asks two nodes. Lists of
    less than ``enough`` blocks are too short for a device of user group 1 on the second.
    """
    asked, known = [], []

    def ask(kind, request_of):
        assert kind == wire.EVALUATE
        request = request_of(0).payload
        assert request_of(1).payload is request
        known.append([request_of(partition).known for partition in range(2)])
        lists = {group: {name: sent.numpy() for name, sent in list_.items()} for group, list_ in request.groups.items()}
        asked.append(dataclasses.replace(request, groups=lists))
        return {0: Reply([]), 1: Reply([len(asked)], int(1 in lists and len(lists[1]["blocks"]) < enough))}

    scenario = types.SimpleNamespace(
        blocks=types.SimpleNamespace(precision="fp32"),
        selector="energy",
        refinement=types.SimpleNamespace(rounds=9),
        evaluation=types.SimpleNamespace(bootstrap=50, per_device=per_device, list_lengths=(10, 20)),
        shown_bytes=lambda num_items: 4,
    )
    federation = types.SimpleNamespace(
        scenario=scenario,
        layout=LAYOUT,
        members=types.SimpleNamespace(
            ceilings=np.array([100, 90]),
            devices=np.arange(5),
            groups=np.array([0, 1, 0, 1, 1]),
            class_names=("phone", "watch", "car"),
        ),
        states=[UserGroupState(table, NOTHING_KNOWN, None, np.zeros(0), np.zeros(0)) for table in TABLES],
        setting="setting",
        nodes=types.SimpleNamespace(
            ask_each=lambda kind, contents: [ask(kind, content) for content in contents],
            partitions_of=lambda devices: devices % 2,
            ids=(7, 8),
            settled=lambda work: work(),
            known=known,
        ),
    )
    weights = {"energy": [np.arange(30.0), -np.arange(30.0)], "popularity": [-np.arange(30.0)] * 2}
    return Evaluator(federation, weights.__getitem__, message_bytes), asked


def blocks(request) -> dict[int, list[int]]:
    return {group: arrays["blocks"].tolist() for group, arrays in request.groups.items()}


def test_nodes_are_asked_what_the_scenario_says():
    evaluator, asked = asking()
    assert evaluator.evaluate([BASE + 4 * BLOCK]) == Reply([1])
    (request,) = asked
    plain = (request.setting, request.server_round, request.precision, request.split, request.label)
    assert plain == ("setting", 9, "fp32", "test", "")
    assert (request.budgets.tolist(), request.factors.tolist(), request.rooms.tolist()) == ([70], [1.0], [-1.0])
    assert request.budgets.dtype == request.artifacts.dtype == np.int64
    assert request.factors.dtype == request.rooms.dtype == np.float64
    assert (request.artifacts.tolist(), request.replicates, request.per_device) == ([], 50, False)
    assert (request.first, request.last) == (0, -1)
    assert (request.on_validation, request.stored) == (0, -1)
    # a quarter more than 70 B: 87 B hold 6 blocks
    assert blocks(request) == {0: [29, 28, 27, 26, 25, 24], 1: [0, 1, 2, 3, 4, 5]}
    codes = request.groups[1]["codes"].view(np.float32)
    assert codes.tolist() == TABLES[1][:6, 0].tolist()


def test_what_is_known_of_a_nodes_answer():
    """The first of two nodes hosts devices 0, 2, 4 of user groups 0, 0, 1, the second 1 and 3 of group 1."""
    evaluator, _ = asking()
    evaluator.evaluate([60, 52], per_device=True)
    evaluator.evaluate([60], everybody=TABLES[1])
    (both, one), (everybody, _) = evaluator.federation.nodes.known
    assert (both.sizes["X"], both.sizes["C"], both.sizes["G"], both.sizes["B"]) == (2, 3, 2, 50)
    assert both.numbers["devices"].tolist() == [0, 2, 4]
    assert one.numbers["devices"].tolist() == [1, 3]
    assert (both.sizes["M"], both.sizes["hosted"], one.sizes["hosted"]) == (3, 3, 2)
    assert (both.sizes["groups"], both.sizes["metrics"], one.sizes["metrics"]) == (2, 3 * SUM_SCALE, 2 * SUM_SCALE)
    assert everybody.sizes["groups"] == 2
    assert everybody.numbers["devices"].tolist() == [], "nothing of single devices was asked"
    evaluator, _ = asking(message_bytes=1)
    evaluator.evaluate([60], per_device=True)
    (first, _), _ = evaluator.federation.nodes.known
    assert first.numbers["devices"].tolist() == [0, 2], "of group 0 alone"
    evaluator, _ = asking(message_bytes=1)
    evaluator.federation.nodes.partitions_of = np.zeros_like
    evaluator.evaluate([60])
    (_, nobody), _ = evaluator.federation.nodes.known
    assert (nobody.sizes["hosted"], nobody.sizes["groups"]) == (0, 1)


def test_where_less_than_two_devices_count_there_is_no_margin():
    means = np.array([0.5, 0.5, 0.0])
    sums = types.SimpleNamespace(
        margin=lambda: np.array([np.nan, 0.25, np.nan]), mean=lambda: (means, means), devices=np.array([1, 2, 0])
    )
    assert cell_recalls(sums) == [Estimate(0.5), Estimate(0.5, 0.25, 0.75, 0.25), None]


def test_nodes_are_asked_what_is_given():
    evaluator, asked = asking()
    given = {"factors": [1, 2], "rooms": [0, 3], "artifacts": np.array([4]), "label": "mine", "per_device": True}
    evaluator.evaluate([60, 52], split="validation", selector="popularity", precision="fp16", devices=(3, 7), **given)
    (request,) = asked
    assert (request.first, request.last) == (3, 7)
    assert (request.split, request.label, request.precision) == ("validation", "mine", "fp16")
    assert (request.factors.tolist(), request.rooms.tolist(), request.artifacts.tolist()) == ([1, 2], [0, 3], [4])
    assert request.factors.dtype == request.rooms.dtype == np.float64
    assert (request.replicates, request.per_device) == (0, True)
    assert blocks(request)[0] == list(range(4))  # 60 B fit no room at all, 65 B hold 4 blocks of 4 B
    evaluator, asked = asking(per_device=False)
    evaluator.evaluate([60], per_device=True)
    assert not asked[0].per_device, "the scenario does not want it"


@pytest.mark.parametrize("server_round", [0, 4])
def test_own_budgets_are_of_the_round_that_is_given(server_round):
    evaluator, asked = asking()
    dataclasses.replace(evaluator, server_round=server_round).evaluate([wire.OWN_BUDGET])
    assert asked[0].server_round == server_round


def test_one_table_for_everybody_is_sent_in_the_order_of_its_rows():
    evaluator, asked = asking()
    evaluator.evaluate([BASE + 4 * BLOCK], everybody=TABLES[1])
    assert blocks(asked[0]) == {wire.EVERYBODY: [0, 1, 2, 3, 4, 5]}
    assert asked[0].groups[wire.EVERYBODY]["codes"].view(np.float32).tolist() == TABLES[1][:6, 0].tolist()


@pytest.mark.parametrize(
    ("budgets", "sent"),
    [
        ([wire.OWN_BUDGET], 13),  # 125 B, a quarter more than the largest of devices' own
        ([60, wire.OWN_BUDGET], 13),
        ([BASE + 20 * BLOCK, wire.OWN_BUDGET, 60], 26),  # 207 B
        ([60, wire.UNLIMITED], 30),
        ([0], 0),
    ],
)
def test_lists_reach_a_quarter_further_than_the_largest_budget(budgets, sent):
    evaluator, asked = asking()
    evaluator.evaluate(budgets)
    assert {len(list_) for list_ in blocks(asked[0]).values()} == {sent}


def test_who_has_too_short_a_list_is_asked_again_with_twice_as_much():
    evaluator, asked = asking(enough=22, message_bytes=1)
    assert evaluator.evaluate([BASE + 4 * BLOCK]) == Reply([1, 4])
    # 87, 174 and 348 bytes; what was too short counts for nothing
    assert [{group: len(list_) for group, list_ in blocks(one).items()} for one in asked] == [
        {0: 6}, {1: 6}, {1: 21}, {1: 30},
    ]  # fmt: skip
    evaluator, asked = asking(enough=99)
    assert evaluator.evaluate([wire.UNLIMITED]) == Reply([1], 1), "there is no longer one"


def test_ones_own_budget_and_full_tables():
    evaluator, asked = asking()
    evaluator.own_budgets()
    evaluator.full_table()
    evaluator.full_table(TABLES[0])
    assert [one.budgets.tolist() for one in asked] == [[wire.OWN_BUDGET], [wire.UNLIMITED], [wire.UNLIMITED]]
    assert all(one.split == "test" and one.per_device for one in asked)
    assert [list(one.groups) for one in asked] == [[0, 1], [0, 1], [wire.EVERYBODY]]
    assert blocks(asked[2]) == {wire.EVERYBODY: list(range(30))}
    evaluator, asked = asking()
    evaluator.scenario.blocks.precision = "int8"
    evaluator.full_table()
    assert asked[0].precision == "fp32"


def test_full_tables_of_some_groups_in_parts_on_the_test_and_on_validation():
    evaluator, asked = asking(message_bytes=1)
    parts = evaluator.full_tables(with_validation=True)
    assert [(one.budgets.tolist(), one.on_validation, one.precision, one.split) for one in asked] == [
        ([wire.UNLIMITED] * 2, 1, "fp32", "test")
    ] * 2
    assert all(one.per_device for one in asked)
    assert [blocks(one) for one in asked] == [{0: list(range(30))}, {1: list(range(30))}]
    nothing = Reply([])
    assert (parts.groups, parts.nodes) == (((0,), (0,), (1,), (1,)), (0, 1, 0, 1))
    assert parts.replies == (nothing, Reply([1]), nothing, Reply([2]))
    assert parts.whole == Reply([1, 2])
    assert parts.without([1]).replies == (nothing, Reply([1]))
    assert parts.without(excluded=[0]).replies == (Reply([1]), Reply([2]))
    again = evaluator.full_tables(groups=[1])
    assert (asked[2].budgets.tolist(), asked[2].on_validation, list(asked[2].groups)) == ([wire.UNLIMITED], 0, [1])
    assert (parts.without([1]) + again).whole == Reply([1, 3])
    together = asking()[0].full_tables()
    assert together.groups == ((0, 1), (0, 1))
    assert together.without([0]).replies == (), "the message is of both"


def test_questions_about_the_same_lists_are_asked_together():
    """Those on validation last; a reply to each, in the order of the questions."""
    evaluator, asked = asking()
    rows = [
        BudgetRequest((52, 60)),
        BudgetRequest((70,), rooms=(1.0,), on_validation=True),
        BudgetRequest((wire.OWN_BUDGET,), factors=(0.5,)),
    ]

    class Whole(Reply):
        def only(self, places):
            return places

    def ask_each(kind, contents):
        return [{0: Whole([asked.append(content(0).payload) or 1])} for content in contents]

    evaluator.federation.nodes.ask_each = ask_each
    result = evaluator.together(rows, precision="fp16", selector="popularity", label="mine", artifacts=np.array([4]))
    assert result == [slice(0, 2), slice(3, 4), slice(2, 3)]
    (request,) = asked
    assert request.budgets.tolist() == [52, 60, wire.OWN_BUDGET, 70]
    assert (request.factors.tolist(), request.rooms.tolist()) == ([1, 1, 0.5, 1], [-1, -1, -1, 1])
    assert (request.on_validation, request.stored, request.artifacts.tolist()) == (1, 2, [4])
    assert (request.precision, request.label, request.split, request.per_device) == ("fp16", "mine", "test", True)
    assert request.groups[0]["blocks"].numpy()[:2].tolist() == [0, 1], "of the selector that is given"
    evaluator.together(rows)
    assert asked[1].label == ""


def test_parts_under_some_of_the_budgets_are_of_the_same_groups():
    parts = EvaluationParts(
        ((0,), (1, 2)), tuple(types.SimpleNamespace(only=lambda places, of=of: (of, places)) for of in "ab"), (-1, -1)
    )
    some = slice(1, 3)
    assert parts.only(some) == EvaluationParts(((0,), (1, 2)), (("a", some), ("b", some)), (-1, -1))


def test_what_has_no_room_needs_no_list():
    evaluator, asked = asking()
    evaluator.evaluate([BASE + 20 * BLOCK], rooms=[1.0])
    assert {len(list_) for list_ in blocks(asked[0]).values()} == {13}, "125 B, as for the largest of devices' own"


def test_lists_of_the_reports_length_have_its_recall(tiny, tmp_path):
    evaluator, _, _ = evaluator_of(load_scenario(tiny, ["evaluation.cutoffs=[5, 40]"]), tmp_path / "run", 2)
    reply = evaluator.evaluate([1888])
    (recall,), (ndcg,) = reply.by_budget().mean()
    means = list_figures(evaluator, reply)
    whole = reply.lists.means(0, (5, 20, 40), int(reply.by_budget().devices[0]), evaluator.layout.num_items)
    assert whole["recall@20"] == (recall, reply.by_budget().margin()[0]), "to the last bit"
    assert whole["ndcg@20"][0] == ndcg
    assert {"recall@20", "ndcg@20"} == whole.keys() - means.keys()
    assert means["recall@5"] < recall < means["recall@40"]
    assert means["hit_rate@5"] < means["hit_rate@20"]
    assert 0 < means["coverage@5"] < means["coverage@40"] <= 1
