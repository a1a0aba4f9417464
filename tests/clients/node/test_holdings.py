"""What devices serve from under a budget, by hand; and that a device over its budget is seen."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from clients.node.evaluate import Holdings, evaluation_items, scaled
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.scenario.scenario import Scenario
from fl_peel.wire import OWN_BUDGET, UNLIMITED
from tests.helpers.blocks import rows_of

LAYOUT = BlockLayout(np.arange(5, dtype=np.int32), 4, 1)
TABLE = np.ones((5, 4), np.float32)
RANKED = rank_blocks(LAYOUT, "int8", np.array([5.0, 4.0, 3.0, 2.0, 1.0]), TABLE)
BASE, BLOCK = overhead_bytes(4), 8  # a block: number 2, codes 4, scale 2
NOTHING = rows_of([], [], [])
OWN = np.array([BASE - 1, BASE + BLOCK, BASE + 3 * BLOCK + 5])


def under(budget, *, factor=1.0, room=-1.0, ranked=RANKED, seen=NOTHING) -> Holdings:
    return Holdings.under(ranked, budget, factor, room, OWN, ranked.unneeded(seen))


def numbers(held):
    return held.cutoffs.tolist(), held.stored.tolist(), held.budgets.tolist(), held.short.tolist()


def test_without_a_budget_devices_have_everything_and_break_none():
    held = under(UNLIMITED)
    assert numbers(held) == ([5] * 3, [BASE + 5 * BLOCK] * 3, [UNLIMITED] * 3, [False] * 3)
    assert held.violations.tolist() == [0, 0, 0]


def test_a_budget_is_the_same_for_all_and_ones_own_is_not():
    given = BASE + 2 * BLOCK
    assert numbers(under(given)) == ([2] * 3, [given] * 3, [given] * 3, [False] * 3)
    # one's own: none, one block, three blocks
    stored = [0, BASE + BLOCK, BASE + 3 * BLOCK]
    assert numbers(under(OWN_BUDGET)) == ([0, 1, 3], stored, OWN.tolist(), [False] * 3)


def test_a_share_of_ones_own_budget_in_whole_bytes():
    assert scaled(OWN, 1) is OWN
    assert scaled(np.array([5, 7]), 0.5).tolist() == [2, 3]
    assert scaled(np.array([5, 7]), 0.5).dtype == np.int64
    half = under(OWN_BUDGET, factor=0.5)
    assert half.budgets.tolist() == (OWN // 2).tolist()
    assert half.stored.tolist() == [0, 0, 0]  # half of it does not hold the header
    assert under(OWN_BUDGET, factor=2.0).cutoffs.tolist() == [5, 5, 5]
    assert under(BASE + BLOCK, factor=0.5).cutoffs.tolist() == [1, 1, 1]  # a factor is of one's own alone


def test_blocks_that_do_not_fit_the_room_are_not_had():
    two = under(BASE + 2 * BLOCK, room=1.0)  # the room: 1 x the device's own budget
    assert numbers(two) == ([0, 0, 2], [0, 0, BASE + 2 * BLOCK], OWN.tolist(), [False] * 3)
    exact = under(BASE + BLOCK, room=1.0)
    assert exact.stored.tolist() == [0, BASE + BLOCK, BASE + BLOCK]
    assert under(BASE + 2 * BLOCK, room=0.0).stored.tolist() == [0, 0, 0]  # room 0 is a room
    assert under(BASE + 2 * BLOCK, room=0.0).budgets.tolist() == [0, 0, 0]
    assert under(BASE + 2 * BLOCK, room=2.0).stored.tolist() == [BASE + 2 * BLOCK] * 3


def test_a_list_that_ends_before_the_budget_is_told():
    sent = rank_blocks(LAYOUT, "int8", np.array([5.0, 4.0, 3.0, 2.0, 1.0]), TABLE, BASE + 2 * BLOCK)
    assert under(BASE + 2 * BLOCK, ranked=sent).short.tolist() == [True] * 3
    assert under(BASE + BLOCK, ranked=sent).short.tolist() == [False] * 3
    assert under(OWN_BUDGET, ranked=sent).short.tolist() == [False, False, True]
    assert under(BASE + 5 * BLOCK).short.tolist() == [False] * 3  # the whole list there is
    # what does not fit the room of the first two would not with a longer list
    assert under(BASE + 2 * BLOCK, room=1.0, ranked=sent).short.tolist() == [False, False, True]


def test_what_was_seen_takes_no_room():
    held = under(BASE + 2 * BLOCK, seen=rows_of([0], [0, 2], []))
    assert held.cutoffs.tolist() == [3, 4, 2]
    assert held.stored.tolist() == [BASE + 2 * BLOCK] * 3


def test_who_stores_more_than_he_may_is_counted():
    held = dataclasses.replace(under(OWN_BUDGET), stored=OWN + [1, 0, -1])
    assert held.violations.tolist() == [1, 0, 0]
    assert held.violations.dtype == np.int64
    free = dataclasses.replace(under(UNLIMITED), stored=OWN)
    assert free.violations.tolist() == [0, 0, 0]


# ---------------------------------------------------------------- what should be found, and what not

SPLITS = SimpleNamespace(
    train=rows_of([0, 1], [2], [3]),
    validation=rows_of([4], [5], []),
    test=rows_of([6], [], [7]),
    num_users=3,
    num_items=9,
)


def cohort_of(poisoning=None):
    scenario = Scenario.model_validate({"name": "w", "data": {"path": "pairs.csv"}, "poisoning": poisoning or {}})
    seen = SPLITS.train.merged(SPLITS.validation)
    return SimpleNamespace(scenario=scenario, splits=SPLITS, seen=seen, devices=np.arange(3))


def rows(items):
    return [items.row(user).tolist() for user in range(items.num_users)]


def test_items_of_the_split_are_wanted_and_what_was_known_before_is_hidden():
    wanted, hidden = evaluation_items(cohort_of(), "test")
    assert (rows(wanted), rows(hidden)) == ([[6], [], [7]], [[0, 1, 4], [2, 5], [3]])
    wanted, hidden = evaluation_items(cohort_of(), "validation")
    assert (rows(wanted), rows(hidden)) == ([[4], [5], []], [[0, 1], [2], [3]])


@pytest.mark.parametrize("split", ["test", "targets"])
def test_targets_that_a_device_knows_are_not_wanted_and_who_lies_wants_nothing(split):
    poisoning = {"kind": "promote", "target_items": [1, 5, 8], "share": 0.0}
    wanted, hidden = evaluation_items(cohort_of(poisoning), split)
    assert rows(wanted) == ([[5, 8], [1, 8], [1, 5, 8]] if split == "targets" else [[6], [], [7]])
    assert rows(hidden) == [[0, 1, 4], [2, 5], [3]]
    for everybody in ({"share": 0.999}, {"compare": [0.5, 0.999]}):  # under any share
        assert rows(evaluation_items(cohort_of(poisoning | everybody), split)[0]) == [[], [], []]
