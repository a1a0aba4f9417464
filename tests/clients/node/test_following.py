"""Three devices followed for three rounds, by hand: what they keep, what that moves, and what they find."""

from types import SimpleNamespace

import numpy as np
import pytest

from clients.node.following import _FollowedGroup, follow
from clients.node.joining import PreviousHoldings
from fl_peel.array_specs import SUM_SCALE
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import pack_ranking, rank_blocks
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.exchange.counters import StepCounts
from fl_peel.ranking.bootstrap import Replicates
from fl_peel.wire import OWN_BUDGET
from tests.helpers.blocks import rows_of

ITEMS = np.arange(30)
LAYOUT = BlockLayout(ITEMS.astype(np.int32), 1, 1)
BASE, BLOCK, ID = overhead_bytes(1), 6, 2
LIST = pack_ranking(LAYOUT, "fp32", -ITEMS, ITEMS.astype(np.float32)[:, None], None)
"""Items 0, 1, 2 and so on."""

ROOM = {
    10: [2 * BLOCK, 4 * BLOCK, 4 * BLOCK, BLOCK, 4 * BLOCK, 4 * BLOCK - 1],
    12: [3 * BLOCK, 3 * BLOCK, BLOCK, 2 * BLOCK, 2 * BLOCK, 2 * BLOCK],
    13: [BLOCK, -1, BLOCK, BLOCK, BLOCK, -1],
}
"""Bytes besides header and user embedding, at two steps a round. Device 12 has seen item 1, which takes no room."""

EXPECTED = {
    10: {  # wants item 3
        "kept_blocks": [2, 4, 4, 1, 4, 3],
        "stored_bytes": [BASE + BLOCK * kept for kept in (2, 4, 4, 1, 4, 3)],
        "grew": [0, 1, 0, 0, 1, 0],
        "shrank": [0, 0, 0, 1, 0, 1],
        "missing_bytes": [0, 2 * BLOCK, 0, 0, 3 * BLOCK, 0],
        "moved_bytes": [0, 2 * BLOCK + ID, 0, 0, 3 * BLOCK + ID, 0],
        "counted": [1] * 6,
        "reselected": [0, 1, 0, 1, 1, 1],
        "recall_before": [0, 0, 0, 1, 0, 1],
        "recall_after": [0, 1, 0, 0, 1, 0],
        "recall": [0, 1, 1, 0, 1, 0],
        "recall_square": [0, 1, 1, 0, 1, 0],
        "floor_bytes": [BASE + BLOCK] * 6,
    },
    12: {  # wants nothing
        "kept_blocks": [3, 3, 1, 2, 2, 2],
        "stored_bytes": [BASE + BLOCK * kept for kept in (3, 3, 1, 2, 2, 2)],
        "grew": [0, 0, 0, 1, 0, 0],
        "shrank": [0, 0, 1, 0, 0, 0],
        "missing_bytes": [0, 0, 0, BLOCK, 0, 0],
        "moved_bytes": [0, 0, 0, 2 * BLOCK + ID, 0, 0],  # item 2 behind item 1
        "floor_bytes": [BASE + BLOCK] * 6,
    },
    13: {  # wants items 0 and 29; twice not even the header fits
        "kept_blocks": [1, 0, 1, 1, 1, 0],
        "stored_bytes": [BASE + BLOCK, 0, BASE + BLOCK, BASE + BLOCK, BASE + BLOCK, 0],
        "grew": [0, 0, 1, 0, 0, 0],
        "shrank": [0, 1, 0, 0, 0, 1],
        "missing_bytes": [0, 0, BLOCK, 0, 0, 0],
        "moved_bytes": [0, 0, BLOCK + ID, 0, 0, 0],
        "counted": [1] * 6,
        "reselected": [0, 1, 1, 0, 0, 1],
        "recall_before": [0, 0.5, 0, 0, 0, 0.5],
        "recall_after": [0, 0, 0.5, 0, 0, 0],
        "recall": [0.5, 0, 0.5, 0.5, 0.5, 0],
        "recall_square": [0.25, 0, 0.25, 0.25, 0.25, 0],
    },
}


def counts(device: int) -> StepCounts:
    """As expected of one device."""
    result = StepCounts.zeros(6)
    result.devices[:] = 1
    result.budget_bytes[:] = BASE + np.array(ROOM[device])
    for name, values in EXPECTED[device].items():
        scale = SUM_SCALE if "recall" in name or "square" in name else 1
        getattr(result, name)[:] = np.array(values) * scale
    return result


def cohort_of(requests="", device="cpu", idle=(0,) * 6):
    """Devices 10 to 13: the first two are of user group 0, the others of 1; 12 is of class 0, the others of 1. idle:
    the room of device 11.
    """
    room = np.array([ROOM[10], idle, ROOM[12], ROOM[13]])
    return SimpleNamespace(
        scenario=SimpleNamespace(
            evaluation=SimpleNamespace(top_n=20),
            engine=SimpleNamespace(device=device),
            privacy=SimpleNamespace(requests=requests),
        ),
        state={"r": SimpleNamespace(groups=np.array([0, 0, 1, 1]), users=np.ones((4, 1), np.float32))}.__getitem__,
        layout=lambda: LAYOUT,
        devices=np.arange(10, 14),
        places=lambda devices: devices - 10,
        classes=np.array([1, 1, 0, 1], np.int16),
        fleet=SimpleNamespace(names=("a", "b"), clock=SimpleNamespace(steps_per_round=2, step_s=900)),
        budgets=SimpleNamespace(at={3 + step / 2: BASE + room[:, step] for step in range(6)}.__getitem__),
        seen=rows_of([], [], [1], []),
        splits=SimpleNamespace(test=rows_of([3], [0], [], [0, 29])),
    )


def followed(devices=(13, 10, 12), keeps=False, held_file=None, replicates=0, **changes):
    cohort = cohort_of(**changes)
    cohort.held_file = held_file
    return follow(
        cohort,
        SimpleNamespace(
            server_round=3,
            keeps=keeps,
            rounds=3,
            precision="fp32",
            devices=np.array(devices),
            traced=np.array([12, 10]),
            groups={2: LIST, 0: LIST, 1: LIST},
            replicates=replicates,
        ),
    )


def test_devices_by_class_at_every_step():
    reply = followed()
    assert reply.step_s == 900
    for name in StepCounts.names():
        expected = np.stack([getattr(counts(12), name), getattr(counts(10), name) + getattr(counts(13), name)], axis=1)
        assert getattr(reply.steps, name).tolist() == expected.tolist(), name


def test_a_device_at_its_floor_holds_what_its_smallest_budget_holds():
    """Over six steps device 10 finds its item in three, 13 one of its two in four; at their floors neither does. 11,
    whose budget stays, does in all six. Replicates are of these means, under the weights that any figure has.
    """
    reply, weights = followed((10, 11, 13), idle=(2 * BLOCK,) * 6, replicates=50), replicate_weights([10, 11, 13], 50)
    assert reply.steps.floor_recall[:, 1].tolist() == [SUM_SCALE] * 6
    assert reply.replicates.recall[0].tolist() == pytest.approx(np.array([0.5, 1, 4 / 12]) @ weights * SUM_SCALE)
    assert reply.replicates.recall[1].tolist() == pytest.approx(np.array([0, 1, 0]) @ weights * SUM_SCALE)
    assert reply.replicates.devices.tolist() == weights.sum(axis=0).tolist()


def replicate_weights(devices, count):
    """Weights (N, count) of devices in replicates: what each alone counts for."""
    none, counted = np.zeros((1, 1)), np.ones(1, np.bool_)
    return np.stack([Replicates.from_devices(np.array([d]), none, none, counted, count).devices for d in devices])


def test_devices_that_are_traced_are_told_apart():
    reply = followed()
    assert reply.traced.stacked().tolist() == [
        [device, c, step] for device, c in ((10, 1), (12, 0)) for step in range(6)
    ]
    for place, device in enumerate((10, 12)):
        mine = reply.trace_steps[6 * place : 6 * (place + 1)]
        assert mine.stacked().tolist() == counts(device).stacked().tolist()


@pytest.mark.parametrize("requests", ["", "group-prefix"])
def test_who_has_room_for_no_block_moves_nothing(requests):
    """Not even where whoever reads reads the whole list."""
    steps = followed(devices=[11], requests=requests).steps[:, 1]
    assert (steps.devices.tolist(), steps.counted.tolist()) == ([1] * 6, [1] * 6)
    assert not steps.moved_bytes.any()


def test_who_has_never_kept_a_block_finds_nothing_while_others_do():
    result, alone = followed(devices=[11, 10]).steps[:, 1], counts(10)
    assert result.recall.tolist() == alone.recall.tolist()
    assert result.recall_square.tolist() == alone.recall_square.tolist()


def test_who_has_room_and_keeps_it_serves_from_the_beginning():
    """Its budget never moves; it wants item 0."""
    steps = followed(devices=[11], idle=(2 * BLOCK,) * 6).steps[:, 1]
    assert steps.kept_blocks.tolist() == [2] * 6
    assert steps.recall.tolist() == steps.floor_recall.tolist() == [SUM_SCALE] * 6
    assert not steps.moved_bytes.any()


def test_where_nobody_may_see_where_a_device_stops_it_reads_the_whole_list():
    whole, steps = 30 * BLOCK, followed(requests="group-prefix").steps
    assert steps.moved_bytes.tolist() == [[0, 0], [0, whole], [0, whole], [whole, 0], [0, whole], [0, 0]]


def test_devices_rank_where_the_scenario_says(monkeypatch):
    monkeypatch.setattr("fl_peel.kernels.top_rows", None)
    assert followed(device="torch-cpu").steps.recall[0, 1] == SUM_SCALE / 2


def test_in_a_timeline_devices_remember_what_they_hold_in_the_end(tmp_path):
    """Under their own budgets, the second of two: how far down the list, after the last step of ROOM."""
    path = tmp_path / "held.npz"
    some = np.full((4, 2), 7)
    cohort = SimpleNamespace(held_file=path, devices=np.arange(10, 14))
    PreviousHoldings(np.array([0, 0, 1, 1]), some, np.zeros((2, 1), np.int32), np.array([500, OWN_BUDGET])).save(cohort)
    followed(keeps=True, held_file=path)
    with np.load(path) as kept:
        cutoffs = kept["cutoffs"]
    assert cutoffs[:, 0].tolist() == [7, 7, 7, 7], "of another budget"
    assert cutoffs[1, 1] == 7, "nobody follows device 11"
    assert cutoffs[[0, 2, 3], 1].tolist() == [3, 3, 0], "blocks 0, 1 and 2; blocks 0 and 2; none"
    followed(held_file=path)
    with np.load(path) as kept:
        assert kept["cutoffs"].tolist() == cutoffs.tolist(), "elsewhere nothing is remembered"


def test_growing_to_wider_rows_moves_columns_of_the_user_embedding():
    """Two slices of a column: with the first block of the second one, a slice of the user embedding comes, 2 bytes."""
    layout = BlockLayout(np.arange(3, dtype=np.int32), 2, 2)
    ranked = rank_blocks(layout, "fp32", np.array([6, 4, 5, 3, 2, 1.0]), np.ones((3, 2), np.float32))
    nothing, wanted = rows_of([], []), rows_of([0], [0])
    who = _FollowedGroup(ranked, np.ones((2, 2), np.float32), nothing, wanted, 20, "cpu", False)
    room = np.array([[1, 3], [2, 1], [3, 3], [2, 3]]) * BLOCK
    steps, _ = who.over_time(BASE + room + np.where(room == 3 * BLOCK, 2, 0))
    assert steps.kept_blocks.T.tolist() == [[1, 2, 3, 2], [3, 1, 3, 3]]
    assert steps.missing_bytes.T.tolist() == [[0, BLOCK, BLOCK + 2, 0], [0, 0, 2 * BLOCK + 2, 0]]
    assert steps.moved_bytes.T.tolist() == [[0, BLOCK + ID, BLOCK + 2 + ID, 0], [0, 0, 2 * BLOCK + 2 + ID, 0]]
