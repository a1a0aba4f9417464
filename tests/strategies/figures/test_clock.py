"""Time to recall by hand."""

import numpy as np

from fl_peel.array_specs import SUM_SCALE
from fl_peel.exchange.counters import ClassCounts, ClockCounts, DeviceTraces
from strategies.figures.stage_figures import class_costs, recent_recall, round_clock, time_to_recall
from strategies.rounds.federation import RoundRecord


def fixed(*values: float) -> np.ndarray:
    return np.array([round(value * SUM_SCALE) for value in values], np.int64)


def record(number: int, seconds: float, recall: list[float], evaluated: list[int], **columns: list[int]) -> RoundRecord:
    """A round of two classes; recall: sums over devices."""
    clock, classes = ClockCounts.zeros(2), ClassCounts.zeros(2)
    clock.recall[:], clock.evaluated[:] = fixed(*recall), evaluated
    for name, values in columns.items():
        getattr(clock, name)[:] = values
    classes.download_bytes[:], classes.upload_bytes[:] = [100, 40], [10, 4]
    return RoundRecord(
        number, 10, 0, 1.0, 140, 14, 0, 0.0, None, None, None, classes, clock, seconds, DeviceTraces.zeros(0)
    )


def test_recall_of_rounds_that_cover_enough_devices():
    recall, evaluated = fixed(1, 1, 2, 9), np.array([2, 3, 5, 1])
    # five devices: rounds 1 and 2 have 2 + 3, round 3 alone has 5, rounds 3 and 4 have 5 + 1
    assert recent_recall(recall, evaluated, 5).round(6).tolist()[1:] == [0.4, 0.4, round(11 / 6, 6)]
    assert np.isnan(recent_recall(recall, evaluated, 5)[0])
    assert np.isnan(recent_recall(recall, evaluated, 12)).all()
    assert recent_recall(recall, evaluated, 1).round(6).tolist() == [0.5, 0.333333, 0.4, 9.0]


def test_rounds_without_anybody_repeat_the_last_figure():
    got = recent_recall(fixed(2, 0), np.array([4, 0]), 4)
    assert got.tolist() == [0.5, 0.5]


def test_time_to_recall_by_hand():
    """Two classes of ten devices; all answer. Recall 0.1, 0.18, 0.2 in the first, 0.2, 0.2, 0.2 in the second."""
    rounds = [
        record(1, 3.0, [1.0, 2.0], [10, 10], energy_mj=[5000, 0]),
        record(2, 4.0, [1.8, 2.0], [10, 10], energy_mj=[5000, 0]),
        record(3, 5.0, [2.0, 2.0], [10, 10], energy_mj=[5000, 0]),
    ]
    rows = time_to_recall(rounds, ("a", "b"), np.array([10, 10]))
    when = {(row.device_class, row.target_share): row for row in rows}
    # a: 0.9 x 0.2 = 0.18 in round 2, the rest in round 3; b: at once; all: 0.15, 0.19, 0.2
    assert [when["a", target].server_round for target in (0.9, 0.95, 0.99)] == [2, 3, 3]
    assert [when["b", target].server_round for target in (0.9, 0.95, 0.99)] == [1, 1, 1]
    assert [when["all", target].server_round for target in (0.9, 0.95, 0.99)] == [2, 2, 3]
    assert when["a", 0.9].virtual_seconds == 3 + 4
    assert when["a", 0.9].download_bytes == 2 * 100 / 10
    assert when["a", 0.9].energy_j == 2 * 5.0 / 10
    assert when["all", 0.99].upload_bytes == 3 * 14 / 20


def test_costs_and_counts_by_hand():
    late = {"sampled": [6, 5], "unavailable": [1, 1], "stragglers": [2, 0], "memory_dropouts": [0, 1]}
    rounds = [record(n, 2.0, [0, 0], [0, 0], time_us=[3_000_000, 0], **late) for n in (1, 2)]
    small, large = class_costs(rounds, np.array([6, 5]))
    assert small.virtual_seconds == 2 * 3 / 6
    assert (small.dropped, large.dropped) == (4, 2)
    assert large.memory_dropouts == 2
    counts = round_clock(rounds[0])
    assert (counts.sampled, counts.unavailable, counts.stragglers, counts.virtual_seconds) == (
        11,
        2,
        2,
        2.0,
    )
    assert class_costs([], np.array([3]))[0].energy_j == 0.0
    assert time_to_recall(rounds, ("a", "b"), np.array([6, 5])) == []
