"""Full tables and budgets in the report by hand; what is asked for them, and what of it is shown meanwhile."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.array_specs import SUM_SCALE
from fl_peel.blocks.layout import BlockLayout
from fl_peel.events import Event
from fl_peel.figures import Estimate
from fl_peel.json_codec import from_plain, to_plain
from fl_peel.ranking.bootstrap import Replicates
from fl_peel.ranking.top import LIST_METRICS, ListSums, MetricSums
from strategies.evaluation.evaluator import BudgetRequest, EvaluationParts
from strategies.evaluation.run_figures import (
    BudgetReplies,
    EvaluationReplies,
    FullTableReplies,
    _full_tables,
    budget_rows,
    evaluated,
    full_table,
)
from strategies.figures.schema import Gain, Quality
from strategies.nodes import Members, some_devices

LAYOUT = BlockLayout(np.arange(10, dtype=np.int32), 10, 1)  # the table: 400 B
MEMBERS = Members(np.arange(7), np.zeros(7, np.int32), np.full(1, 100), ("phone",))
EVALUATION = SimpleNamespace(budgets=(0.05, 0.1), top_n=2, list_lengths=(1, 2))
EVALUATOR = SimpleNamespace(scenario=SimpleNamespace(evaluation=EVALUATION), layout=LAYOUT)


def reply(recalls, ndcgs, devices=4, stored=()):
    """Of so many devices, one figure a budget; in the one replicate, of two devices, both metrics are half as good."""
    once, half = (
        [np.rint(np.array(values) * count * SUM_SCALE).astype(np.int64) for values in (recalls, ndcgs)]
        for count in (devices, 1)
    )
    sums = MetricSums(*once, np.zeros_like(once[0]), np.full(len(recalls), devices))
    replicates = Replicates(half[0][:, None], half[1][:, None], np.array([2]))

    parts = np.arange(len(recalls) * 2 * len(LIST_METRICS)).reshape(len(recalls), 2, len(LIST_METRICS))
    squares = parts**2 * 65 * devices << 16  # a variance of (parts / 256)**2
    shown = np.full((len(recalls), 2, 2), 0b10000001, np.uint8)  # items 0, 7, 8
    lists = ListSums(parts * devices << 27, squares, shown)

    def only(places):
        return reply(recalls[places], ndcgs[places], devices)

    return SimpleNamespace(
        by_budget=lambda: sums, replicates=replicates, stored_max=np.array(stored), only=only, lists=lists
    )


def replies(**by_table):
    """Replies about full tables, by name; "global" without a final underscore."""
    return FullTableReplies({name.rstrip("_"): one for name, one in by_table.items()})


GLOBAL, START, REFINED = reply([0.25], [0.125]), reply([0.5], [0.75], devices=8), reply([0.375], [0.625], devices=8)


def test_full_tables_by_hand():
    result = full_table(EVALUATOR, replies(global_=GLOBAL, start=START, refined=REFINED))
    assert result.bytes == 400
    assert [(one.recall.value, one.ndcg.value) for one in (result.globally, result.start, result.refined)] == [
        (0.25, 0.125), (0.5, 0.75), (0.375, 0.625),
    ]  # fmt: skip
    assert (result.start.recall.ends, result.start.ndcg.ends) == ((0.25, 0.25), (0.375, 0.375))
    assert (result.globally.to_global, result.start.to_global) == (Estimate(1.0, 1.0, 1.0), Estimate(2.0, 2.0, 2.0))
    assert result.on_validation == {}
    assert result.gain == Gain(Estimate(-0.125, -0.0625, -0.0625), devices=8)
    assert result.strongest == "refined", "the last one, where validation does not choose"


def test_validation_chooses_the_best_full_table_whatever_the_test_says():
    """On the test, the table before refinement is the best one; on validation, the global one."""
    by_table = {"global": ([0.25, 0.5], [0.125, 0.3125]), "start": ([0.5, 0.4375], [0.5, 0.75])}
    result = full_table(EVALUATOR, FullTableReplies({name: reply(*values) for name, values in by_table.items()}))
    assert result.global_validation == Quality(Estimate(0.5), Estimate(0.3125))
    assert (result.start_validation.recall, result.refined_validation) == (Estimate(0.4375), None)
    assert result.start.recall.value > result.globally.recall.value
    assert result.strongest == "global"


def test_tables_that_nobody_asked_for_are_not_there():
    nothing = full_table(EVALUATOR, replies())
    assert (nothing.tables, nothing.on_validation, nothing.gain, nothing.strongest) == ({}, {}, None, None)
    for some in ({"start": START}, {"refined": REFINED}):
        assert full_table(EVALUATOR, replies(global_=GLOBAL, **some)).gain is None


def budgets_of(full):
    asked = (
        BudgetReplies("int8", "energy", reply([0.125, 0.25], [0.5, 0.375], stored=[19, 38])),
        BudgetReplies("fp16", "controller", reply([0.0625, 0.5], [0.25, 0.75], stored=[20, 40], devices=2)),
    )
    return budget_rows(EVALUATOR, EvaluationReplies(asked, None, None), full)


def test_budgets_by_hand():
    rows = budgets_of(replies(global_=GLOBAL, refined=REFINED, start=START))
    assert [(row.share, row.budget_bytes, row.precision, row.selector) for row in rows] == [
        (0.05, 20, "int8", "energy"), (0.1, 40, "int8", "energy"),
        (0.05, 20, "fp16", "controller"), (0.1, 40, "fp16", "controller"),
    ]  # fmt: skip
    assert [(row.recall.value, row.ndcg.value, row.stored_bytes_max, row.devices) for row in rows] == [
        (0.125, 0.5, 19, 4), (0.25, 0.375, 38, 4), (0.0625, 0.25, 20, 2), (0.5, 0.75, 40, 2),
    ]  # fmt: skip
    assert rows[1].recall.ends == (0.125, 0.125)
    assert rows[1].ndcg.ends == (0.1875, 0.1875)
    assert rows[1].to_global == Estimate(1.0, 1.0, 1.0)
    assert rows[1].to_strongest == Estimate(0.5, 0.5, 0.5)


def test_lists_by_hand():
    """Sums are counted in parts of 32: 0 to 9 of the first budget, five for each length, 10 to 19 of the second."""
    second = budgets_of(replies())[1].lists
    assert {name: one.value for name, one in second.items()} == {
        "recall@1": 10 / 32, "ndcg@1": 11 / 32, "mrr@1": 12 / 32, "hit_rate@1": 13 / 32, "precision@1": 14 / 32,
        "coverage@1": 0.3, "mrr@2": 17 / 32, "hit_rate@2": 18 / 32, "precision@2": 19 / 32, "coverage@2": 0.3,
    }  # fmt: skip
    parts = {name: round(one.value * 32) for name, one in second.items() if not name.startswith("coverage")}
    student = 3.182446  # t of four devices, three degrees of freedom
    assert {name: one.margin for name, one in second.items()} == {"coverage@1": None, "coverage@2": None} | {
        name: pytest.approx(student * part / 256 / math.sqrt(3)) for name, part in parts.items()
    }
    full = full_table(EVALUATOR, replies(start=START))
    assert full.start.lists["mrr@2"].value == 7 / 32
    plain = to_plain(full.start, top_n=2)
    assert list(plain)[:2] == ["recall@2", "recall@2_interval"]
    assert (plain["mrr@2"], plain["mrr@2_margin"]) == (7 / 32, full.start.lists["mrr@2"].margin)
    assert "coverage@2_margin" not in plain
    assert from_plain(Quality, plain | {"of a newer version": "text"}, "result", top_n=2) == full.start


def test_budgets_beside_no_table_are_no_share_of_one():
    (row, *_) = budgets_of(replies())
    assert (row.to_global, row.to_strongest) == (None, None)
    (row, *_) = budgets_of(replies(start=START))
    assert (row.to_global, row.to_strongest) == (None, Estimate(0.25, 0.25, 0.25))


# ---------------------------------------------------------------- what is asked


def asked_for(selector="energy", extra=None, **changes):
    """What is evaluated, and the events meanwhile; 10 items of 10 columns, 5% and 10% of 400 bytes."""
    given = {"budgets": (0.05, 0.1), "precisions": ("fp16", "int8"), "selectors": ("energy", "popularity")}
    evaluation = SimpleNamespace(**(given | {"artifacts": 3, "full_tables": True} | changes))
    asked, events = [], []

    def together(rows, **more):
        asked.append((rows, more))
        return [f"reply {len(asked)}, {place}" for place in range(len(rows))]

    evaluator = SimpleNamespace(
        scenario=SimpleNamespace(
            data=SimpleNamespace(validation_share=0.1),
            evaluation=evaluation,
            blocks=SimpleNamespace(precision="int8"),
            selector=selector,
            seed=3,
        ),
        members=MEMBERS,
        layout=LAYOUT,
        evaluate=lambda budgets, **more: asked.append((budgets, more)) or f"reply {len(asked)}",
        together=together,
        full_tables=lambda with_validation: SimpleNamespace(whole=f"full, {with_validation}"),
    )
    result = evaluated(evaluator, events.append, extra)
    stored = some_devices(evaluator.scenario, MEMBERS, "artifacts", 3).tolist()
    for _, more in asked:
        if "artifacts" in more:
            assert more["artifacts"].tolist() == stored
            more["artifacts"] = "stored"
    return result, asked, events


OWN = BudgetRequest((wire.OWN_BUDGET,))


def test_every_precision_meets_every_selector():
    """What else is asked goes with the lists that devices are sent: those of the scenario's precision and selector."""
    tiers = BudgetRequest((7, 8), on_validation=True)
    result, asked, events = asked_for(extra={"tiers": tiers})
    pairs = [("fp16", "energy"), ("fp16", "popularity"), ("int8", "energy"), ("int8", "popularity")]
    what = [{"precision": precision, "selector": selector, "label": precision} for precision, selector in pairs]
    assert asked == [
        ([20, 40], what[0] | {"per_device": True}),
        ([20, 40], what[1] | {"per_device": True}),
        ([BudgetRequest((20, 40)), OWN, tiers], what[2] | {"artifacts": "stored"}),
        ([20, 40], what[3] | {"per_device": True}),
    ]
    replies = ["reply 1", "reply 2", "reply 3, 0", "reply 4"]
    rows = tuple(BudgetReplies(*pair, reply) for pair, reply in zip(pairs, replies, strict=True))
    assert result == EvaluationReplies(rows, "reply 3, 1", "full, True", {"tiers": "reply 3, 2"})
    texts = ["fp16, energy", "fp16, popularity", "int8, energy", "int8, popularity", "own budgets", "full tables"]
    assert events == [Event("evaluation", done + 1, 6, text) for done, text in enumerate(texts)]


def test_without_precisions_it_is_the_scenarios_and_without_full_tables_there_are_none():
    result, asked, events = asked_for(precisions=(), selectors=("energy",), full_tables=False)
    assert asked == [
        (
            [BudgetRequest((20, 40)), OWN],
            {"precision": "int8", "selector": "energy", "label": "int8", "artifacts": "stored"},
        )
    ]
    assert (result.own, result.refined, result.extra) == ("reply 1, 1", None, {})
    assert [event.total for event in events] == [3, 3, 3]


def test_what_devices_are_sent_is_evaluated_whatever_else_is():
    """A scenario's own selector and precision, a plug-in's too, need not be listed."""
    result, asked, events = asked_for(selector="controller", precisions=("fp16",))
    assert [(one.precision, one.selector) for one in result.budgets] == [
        ("fp16", "energy"), ("fp16", "popularity"), ("int8", "controller"),
    ]  # fmt: skip
    assert asked[-1][0] == [BudgetRequest((20, 40)), OWN]
    assert asked[-1][1]["artifacts"] == "stored"
    assert (len(asked), events[-1].done, events[-1].total) == (3, 5, 5)


def test_full_tables_that_did_not_change_are_not_asked_again():
    class Reply(str):
        def __add__(self, other):
            return Reply(f"{self} {other}")

    def full_tables(groups, with_validation):
        assert with_validation
        asked.append(list(groups))
        return EvaluationParts((tuple(groups),), (Reply("anew"),), (-1,))

    asked = []
    scenario = SimpleNamespace(data=SimpleNamespace(validation_share=0.1))
    federation = SimpleNamespace(states=[None] * 4)
    evaluator = SimpleNamespace(federation=federation, full_tables=full_tables, scenario=scenario)
    started = EvaluationParts(((0, 1), (2,)), (Reply("both"), Reply("two")), (-1, -1))
    assert (_full_tables(evaluator, started), asked) == ("both two anew", [[3]])
    assert (_full_tables(evaluator, started.without([1])), asked) == ("two anew", [[3], [0, 1, 3]])
    assert _full_tables(evaluator, started.without(range(4))) == "anew"
    evaluator.federation.states.pop()
    assert (_full_tables(evaluator, started), len(asked)) == ("both two", 3), "nobody is left to be asked"


def test_without_budgets_nothing_is_asked_or_stored():
    result, asked, events = asked_for(selector="controller", budgets=())
    assert (result.budgets, asked) == ((), [([OWN], {})])
    assert [(event.done, event.total) for event in events] == [(1, 2), (2, 2)]
