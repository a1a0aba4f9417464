"""Rows of the report by hand, from what rounds and evaluations counted."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fl_peel.array_specs import SUM_SCALE
from fl_peel.exchange.counters import ClassCounts, ClockCounts, DeviceTraces, OwnCounts
from fl_peel.ranking.bootstrap import Effects, PairedSums, interval
from fl_peel.ranking.top import MetricSums
from fl_peel.wire import DeviceFigures
from strategies.evaluation.run_figures import (
    BudgetReplies,
    EvaluationReplies,
    FullTableReplies,
    bytes_per_device,
    device_class_rows,
    device_traces,
    history_rows,
    per_device,
    refinement_result,
    round_rows,
    user_group_rows,
)
from strategies.figures.per_device import MeasuredQuality, digest
from strategies.nodes import Members
from strategies.rounds.acceptance import Comparison
from strategies.rounds.federation import RoundRecord
from tests.helpers.blocks import rows_of

NAMES = ("watch", "phone", "laptop")
MEMBERS = Members(np.arange(7), np.array([0, 1, 0, 3, 0, 1, 0], np.int32), np.full(4, 100), NAMES)


def metrics(recall, ndcg, devices, squares=None) -> MetricSums:
    """Sums over devices of metrics, in ones; squares: of recall, by default as of devices that are all alike."""
    if squares is None:
        squares = [total**2 / max(count, 1) for total, count in zip(recall, devices, strict=True)]
    sums = (np.rint(np.array(values) * SUM_SCALE).astype(np.int64) for values in (recall, ndcg, squares))
    return MetricSums(*sums, np.array(devices))


def record(number: int, *, seconds: float = 1.0, traces: DeviceTraces | None = None, **classes) -> RoundRecord:
    """A round of three classes. classes: columns of their counts."""
    counts, clock = ClassCounts.zeros(3), ClockCounts.zeros(3)
    for name, values in classes.items():
        getattr(counts, name)[:] = values
    clock.sampled[:], clock.time_us[:] = [number, 0, 0], [4_000_000, 0, 0]
    numbers = {"download_bytes": 70 * number, "upload_bytes": 7 * number, "message_bytes": 700 * number}
    return RoundRecord(
        server_round=number, devices=10 + number, failures=number % 2, seconds=0.25 * number, **numbers,
        loss=0.5 * number, recall=0.1 * number, ndcg=0.2 * number, controller_loss=None if number == 1 else 3.0,
        classes=counts, clock=clock, virtual_seconds=seconds,
        traces=DeviceTraces.zeros(0) if traces is None else traces,
    )  # fmt: skip


def own(by_class=None, by_group=None, owned=None):
    """What devices reach under their own budgets."""
    return SimpleNamespace(by_class=lambda: by_class, by_group=lambda: by_group, owned=[owned])


def test_a_device_class_by_hand():
    """Watches: 2 devices in each of two rounds and 2 in the evaluation; phones in the evaluation alone; no laptops."""
    rounds = [
        record(
            number,
            devices=[2, 0, 0], budget_bytes=[200, 0, 0], stored_bytes=[150, 0, 0], reselections=[number, 0, 0],
            violations=[1, 0, 0], download_bytes=[60, 0, 8], upload_bytes=[30, 0, 4],
            peak_bytes=[500, 0, 9], working_violations=[number, 0, 7],
        )
        for number in (1, 2)
    ]  # fmt: skip
    served = OwnCounts(*(np.array(v) for v in ([2, 4, 0], [320, 800, 0], [180, 700, 0], [3, 0, 0])))
    rows = device_class_rows(MEMBERS, rounds, own(metrics([1, 1, 0], [0.5, 2, 0], [2, 1, 0]), owned=served))
    assert list(rows) == list(NAMES)
    watch, phone, laptop = rows.values()
    assert (watch.devices, watch.recall.value, watch.ndcg) == (2, 0.5, 0.25)
    assert watch.budget_bytes_mean == (200 + 200 + 320) / 6  # over devices and moments
    assert watch.stored_bytes_mean == (150 + 150 + 180) / 6
    assert (watch.reselections, watch.budget_violations) == (1 + 2, 1 + 1 + 3)
    assert (watch.download_bytes, watch.upload_bytes) == (120 / 2, 60 / 2)
    assert (watch.peak_bytes_mean, watch.working_violations) == (1000 / 4, 1 + 2)
    assert watch.costs.virtual_seconds == 8 / 2
    assert (phone.devices, phone.recall.value, phone.ndcg) == (4, 1.0, 2.0)
    assert (phone.budget_bytes_mean, phone.stored_bytes_mean) == (200, 175)
    assert (phone.budget_violations, phone.download_bytes) == (0, 0)
    assert (laptop.devices, laptop.recall, laptop.ndcg) == (0, None, None)
    assert (laptop.budget_bytes_mean, laptop.stored_bytes_mean) == (0, 0)
    assert (laptop.download_bytes, laptop.upload_bytes) == (16, 8)
    assert (laptop.peak_bytes_mean, laptop.working_violations) == (18, 14)
    assert watch.recall.margin == 0
    assert phone.recall.margin is None


def test_violations_are_those_of_rounds_and_of_the_evaluation():
    nothing = metrics([0] * 3, [0] * 3, [0] * 3)
    for in_rounds, in_evaluation in (([1, 2, 3], [0, 0, 0]), ([0, 0, 0], [4, 0, 6])):
        served = OwnCounts(*(np.array(v) for v in ([1] * 3, [1] * 3, [1] * 3, in_evaluation)))
        rows = device_class_rows(MEMBERS, [record(1, violations=in_rounds)], own(nothing, owned=served))
        assert [row.budget_violations for row in rows.values()] == np.add(in_rounds, in_evaluation).tolist()
        assert [row.budget_bytes_mean for row in rows.values()] == [1, 1, 1]
    rows = device_class_rows(MEMBERS, [], own(nothing, owned=served))
    assert [row.budget_violations for row in rows.values()] == [4, 0, 6], "without a round, of the evaluation alone"


def test_user_groups_by_hand():
    rows = user_group_rows(MEMBERS, 4, own(by_group=metrics([2, 1, 0, 0, 9], [1, 1, 0, 0, 9], [4, 2, 0, 0, 9])))
    assert [(row.group, row.devices, row.recall and row.recall.value, row.ndcg) for row in rows] == [
        (0, 4, 0.5, 0.25), (1, 2, 0.5, 0.5), (2, 0, None, None), (3, 1, None, None),
    ]  # fmt: skip


def test_a_user_group_without_devices_is_there():
    rows = user_group_rows(MEMBERS, 5, own(by_group=metrics([1] * 5, [1] * 5, [1] * 5)))
    assert [row.devices for row in rows] == [4, 2, 0, 1, 0]


def test_rounds_and_history_by_hand():
    records = [record(1, seconds=2.0), record(2, seconds=3.5)]
    first, second = round_rows(records)
    assert (second.server_round, second.download_bytes, second.upload_bytes, second.message_bytes) == (2, 140, 14, 1400)
    assert [(row.devices, row.failures, row.seconds) for row in (first, second)] == [(11, 1, 0.25), (12, 0, 0.5)]
    assert (first.clock.sampled, first.clock.virtual_seconds) == (1, 2.0)
    events = history_rows(records)
    assert [(row.server_round, row.virtual_seconds) for row in events] == [(1, 2.0), (2, 5.5)]
    assert [(row.loss, row.recall, row.ndcg) for row in events] == [(0.5, 0.1, 0.2), (1.0, 0.2, 0.4)]
    assert [row.controller_loss for row in events] == [None, 3.0]


def test_devices_that_rounds_followed():
    def seen(devices, classes, values):
        return DeviceTraces(*(np.array(v) for v in (devices, classes, values, np.add(values, 1), np.add(values, 2))))

    rounds = [record(1, traces=seen([9, 4], [2, 0], [10, 20])), record(2, traces=seen([4], [0], [30])), record(3)]
    four, nine = device_traces(MEMBERS, rounds)
    assert (four.device, four.device_class, nine.device, nine.device_class) == (4, "watch", 9, "laptop")
    assert (four.budget_bytes, nine.budget_bytes) == ((20, 30, None), (10, None, None))
    assert (four.stored_bytes, four.kept_blocks) == ((21, 31, None), (22, 32, None))


def test_bytes_per_device_by_hand():
    moved = bytes_per_device([record(1), record(2)], 7)
    assert (moved.download_mean, moved.upload_mean) == (210 / 7, 21 / 7)
    nobody = bytes_per_device([record(1)], 0)
    assert (nobody.download_mean, nobody.upload_mean) == (70, 7)


def test_what_of_a_refinement_was_kept():
    differences = PairedSums.from_devices(np.array([0, 0, 1, 1]), 3, np.array([0.5, 0.25, -0.25, 0.5]))
    nobody = PairedSums.zeros(3)
    effects, accepted = Effects.from_sums(differences), np.array([True, False, True])
    comparisons = [
        Comparison(4, differences, effects, accepted, 100),
        Comparison(8, nobody, effects, np.zeros(3, bool), 40),
    ]
    keeping = SimpleNamespace(accepted_rounds=np.array([1, 0, 4]), comparisons=comparisons)
    result = refinement_result(keeping, 7)
    assert (result.groups, result.groups_kept, result.rounds_kept) == (3, 2, {"0": 1, "1": 1, "4": 1})
    assert result.bytes_down_mean == 20
    first, second = result.comparisons
    assert (first.server_round, first.devices, first.accepted, first.download_bytes) == (4, 4, 2, 100)
    assert first.difference == pytest.approx(0.25)
    deviation = np.std([0.5, 0.25, -0.25, 0.5], ddof=1)
    assert first.standard_error == pytest.approx(deviation / 2, abs=1e-6)
    assert (second.devices, second.difference, second.standard_error, second.accepted) == (0, 0.0, 0.0, 0)
    assert refinement_result(keeping, 0).bytes_down_mean == 140


def test_what_single_devices_get_by_hand():
    """Two nodes' devices, 3 and 1: put in order, each table's figures from the budget it was asked for under."""

    def reply(*recalls):
        recall = np.array(recalls).T
        classes, groups, items = np.array([2, 0]), np.array([1, 3]), np.array([5, 4])
        single = DeviceFigures(np.array([3, 1]), classes, groups, items, recall, recall / 2)
        return SimpleNamespace(single=single, only=lambda places: SimpleNamespace(single=single.only(places)))

    evaluation = SimpleNamespace(budgets=(0.05, 0.0025), top_n=20)
    evaluator = SimpleNamespace(scenario=SimpleNamespace(evaluation=evaluation, seed=9), members=MEMBERS)
    asked = (
        BudgetReplies("int8", "energy", reply([0.1, 0.2], [0.3, 0.4])),
        BudgetReplies("fp16", "controller", reply([0.5, 0.6], [0.7, 0.8])),
    )
    full = FullTableReplies({"global": reply([0.11, 0.12], [9, 9]), "refined": reply([0.13, 0.14], [9, 9])})
    result = per_device(
        evaluator, EvaluationReplies(asked, reply([0.15, 0.16]), None), full, rows_of([], [4], [], [2, 3])
    )
    assert dict(zip(result.tables, result.recall.T.tolist(), strict=True)) == {
        "global": [0.12, 0.11],
        "refined": [0.14, 0.13],
        "5% int8 energy": [0.2, 0.1],
        "0.25% int8 energy": [0.4, 0.3],
        "5% fp16 controller": [0.6, 0.5],
        "0.25% fp16 controller": [0.8, 0.7],
        "own budget": [0.16, 0.15],
    }
    assert (result.ndcg == result.recall / 2).all()
    assert (result.devices.tolist(), result.classes) == ([1, 3], ("watch", "laptop"))
    assert (result.groups.tolist(), result.items.tolist()) == ([3, 1], [4, 5])
    assert (result.top_n, result.seed, result.test_items) == (20, 9, digest(rows_of([], [4], [], [2, 3])))


def test_what_refinement_adds_by_hand():
    start = MeasuredQuality(0.25, 0.5, np.array([0.2, 0.25, 0.3]), np.zeros(3), 4)
    refined = MeasuredQuality(0.375, 0.5, np.array([0.4, 0.35, 0.3]), np.zeros(3), 4)
    gain = refined.gain(start)
    assert (gain.recall.value, gain.devices) == (0.125, 4)
    assert gain.recall.ends == pytest.approx(interval(np.array([0.2, 0.1, 0.0]), 4))  # replicate by replicate
    assert replace(refined, recalls=np.zeros(0)).gain(replace(start, recalls=np.zeros(0))) is None


def test_margins_are_of_students_t():
    result = metrics([1.5, 1.0], [0, 0], [4, 1], squares=[0.625, 1.0])  # recalls 0.25, 0.25, 0.5, 0.5
    rows = user_group_rows(MEMBERS, 2, own(by_group=result))
    assert rows[0].recall.margin == pytest.approx(3.182446 * np.std([0.25, 0.25, 0.5, 0.5], ddof=1) / 2, rel=1e-5)
    assert rows[1].recall.margin is None
