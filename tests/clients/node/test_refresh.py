"""What devices read when a period begins, counted by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

import clients.node.following as module
from clients.node.following import PresentBlocks, _sent_bytes, refresh
from clients.node.joining import NEVER, PreviousHoldings
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import pack_ranking, rank_blocks
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.interactions import UserItems
from fl_peel.wire import NEW, OWN_BUDGET, RESCALED, UNLIMITED
from tests.helpers.blocks import rows_of

# 6 items of 4 columns in int8: 4 codes, 2 of scale, 2 of number: 8 bytes a block
LAYOUT = BlockLayout(np.arange(6, dtype=np.int32), 4, 1)
ORDER = np.array([5, 3, 0, 1, 2, 4])
BLOCK, SCALE = 8, 2


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """As many as there are here, and no more."""
    monkeypatch.setattr(module, "AT_ONCE", 100)


def ranked():
    weights = np.empty(6)
    weights[ORDER] = np.arange(6, 0, -1)
    return rank_blocks(LAYOUT, "int8", weights, np.arange(24, dtype=np.float32).reshape(6, 4))


def before(groups, cutoffs, lists):
    ranks = np.full((len(lists), 6), np.iinfo(np.int32).max, np.int32)
    for group, blocks in enumerate(lists):
        ranks[group, blocks] = np.arange(len(blocks))
    return PreviousHoldings(np.array(groups), np.array(cutoffs)[:, None], ranks, np.array([100]))


def sent(held, cutoffs, *, changed=(0,) * 6, hidden=(), members=None, strange=None):
    result = ranked()
    users = np.array([user for user, _ in hidden], np.int64)
    items = np.array([item for _, item in hidden], np.int64)
    places = np.arange(len(cutoffs)) if members is None else np.array(members)
    seen = UserItems.from_pairs(users, items, len(places))
    flags = np.array(changed, np.uint8)[result.blocks]
    there = PresentBlocks(held, 0, places, np.array(strange or [False] * len(places)))
    return _sent_bytes(result, np.array(cutoffs), result.unneeded(seen), flags, there).tolist()


def test_items_that_came_since_were_held_by_nobody():
    short = before([0], [3], [[1, 0]])
    short = PreviousHoldings(short.groups, short.cutoffs, short.ranks[:, :2], short.budgets)
    assert sent(short, [6]) == [4 * BLOCK]


def test_devices_are_looked_at_in_parts_and_each_by_itself(monkeypatch):
    """One at a time: they hold 0, 2 and 3 of the list, and the second has used up item 3."""
    monkeypatch.setattr(module, "AT_ONCE", 1)
    held = before([-1, 0, 0], [0, 2, 3], [ORDER.tolist()])
    assert sent(held, [3, 4, 5], hidden=[(1, 3), (2, 4)]) == [3 * BLOCK, 2 * BLOCK, 2 * BLOCK]
    monkeypatch.setattr(module, "AT_ONCE", 10)  # two at a time
    assert sent(held, [3, 4, 5], hidden=[(1, 3), (2, 4)]) == [3 * BLOCK, 2 * BLOCK, 2 * BLOCK]


def test_a_block_of_several_rows_has_a_scale_for_each():
    """Two items a block: 2 x (4 codes + 2 of scale), and 6 bytes that name it."""
    layout = BlockLayout(np.array([0, 0, 1, 1, 2, 2], np.int32), 4, 1)
    result = rank_blocks(layout, "int8", np.array([3.0, 2.0, 1.0]), np.ones((6, 4), np.float32))
    ranks = np.array([[0, 1, 2]], np.int32)
    held = PreviousHoldings(np.array([0]), np.array([[3]]), ranks, np.array([100]))
    flags, nobody, one = (
        np.full(3, RESCALED, np.uint8),
        UserItems.from_pairs(*(np.zeros(0, int),) * 2, 1),
        np.zeros(1, int),
    )
    output = _sent_bytes(
        result, np.array([3]), result.unneeded(nobody), flags, PresentBlocks(held, 0, one, np.array([False]))
    )
    assert output.tolist() == [3 * 2 * SCALE]


def test_without_scales_what_grew_is_sent_whole():
    result = rank_blocks(LAYOUT, "fp16", np.arange(6, 0, -1.0), np.ones((6, 4), np.float32))
    held = before([0], [3], [[0, 1, 2, 3, 4, 5]])
    nobody = UserItems.from_pairs(np.zeros(0, int), np.zeros(0, int), 1)
    flags = np.array([0, RESCALED, 0, 0, 0, 0], np.uint8)
    there = PresentBlocks(held, 0, np.zeros(1, int), np.array([False]))
    output = _sent_bytes(result, np.array([3]), result.unneeded(nobody), flags, there)
    assert output.tolist() == [2 * 4 + 2]


# ---------------------------------------------------------------- a whole node: seven devices, three budgets

BASE = overhead_bytes(4)
BUDGETS = [UNLIMITED, OWN_BUDGET, BASE + 3 * BLOCK]
OWN = [BLOCK, 2 * BLOCK + 3, -1, 100, 4 * BLOCK, 2 * BLOCK, 100]
LISTS = ([5, 3, 0, 1, 2, 4], [2, 0, 4, 1])
"""Of groups 0 and 1; that of 1 ends early."""
BEFORE = PreviousHoldings(
    np.array([0, 0, -1, 1, 1, 0, 1]),  # as groups were numbered then: 0 is 1 by now, and 1 is 0
    np.array([[3, 1, 2], [3, 2, 3], [0, 0, 0], [6, 6, 2], [6, 4, 3], [3, 2, 3], [6, 5, 4]]),
    np.array([[1, NEVER, 0, 2, NEVER, NEVER], [2, 3, 4, 1, 5, 0]], np.int32),  # of blocks 2, 0, 3; as list 0 is
    np.array(BUDGETS),
)


def node_of(tmp_path, held=BEFORE):
    """Devices 1, 3 and 6 are of group 0, the last takes no part; 3 has used up item 3, 4 one that is not listed yet."""
    cohort = SimpleNamespace(
        layout=lambda: LAYOUT,
        fleet=SimpleNamespace(names=("a", "b")),
        state={"r": SimpleNamespace(groups=np.array([1, 0, 1, 0, 1, 1, 0]))}.__getitem__,
        budgets=SimpleNamespace(at={9: BASE + np.array(OWN)}.__getitem__),
        seen=rows_of([], [], [], [3], [9], [], []),
        devices=np.arange(7),
        joining=np.array([True] * 6 + [False]),
        classes=np.array([0, 1, 1, 0, 1, 0, 1], np.int16),
        held_file=tmp_path / "held.npz",
    )
    if held is not None:
        held.save(cohort)
    return cohort


def asked(changed, groups=(1, 0)):
    def packed(blocks):
        weights = np.zeros(6)
        weights[blocks] = np.arange(6, 6 - len(blocks), -1)
        table = np.arange(24, dtype=np.float32).reshape(6, 4)
        return pack_ranking(LAYOUT, "int8", weights, table, BASE + len(blocks) * BLOCK)

    return SimpleNamespace(
        precision="int8",
        budgets=np.array(BUDGETS),
        server_round=9,
        changed=np.array(changed, np.uint8),
        groups={group: packed(LISTS[group]) for group in groups},
        former=np.array([1, 0]),
    )


def test_what_a_node_reads_by_budget_and_class(tmp_path):
    """Class a: devices 0, 3 and 5; b: 1, 2 and 4. Item 0 is new, 1 and 4 are rescaled, for all groups."""
    cohort = node_of(tmp_path)
    reply = refresh(cohort, asked([[NEW, RESCALED, 0, 0, RESCALED, 0]]))
    result = reply.refreshed
    assert result.devices.tolist() == [[3, 3]] * 3
    assert result.sent_bytes.tolist() == [
        # 0 and 5 hold 2 and lack 0, 4, 1; 3 holds all. 1 holds 3 and 2 and lacks 5, 0, 1, 4; 2 holds nothing; 4 all
        [2 * 3 * BLOCK + BLOCK + 2 * SCALE, (4 * BLOCK) + (4 * BLOCK) + (BLOCK + 2 * SCALE)],
        # 0 needs 2, which it has; 3 is as before; 5 needs 2 and 0. 1 needs 5 and 3; 2 nothing; 4 had 5, 3, 0, 1
        [0 + (BLOCK + 2 * SCALE) + BLOCK, 2 * BLOCK + 0 + (3 * BLOCK + SCALE)],
        # 0 and 5 need 2, 0, 4; 3, which passes over 3, needs 5, 0, 1 and had 5. 1 needs 5, 3, 0 and had 3; 4 lacks all
        [3 * 2 * BLOCK, 2 * BLOCK + 3 * BLOCK + 3 * BLOCK],
    ]
    assert result.moved.tolist() == [[0, 2]] * 3, "1 and 4"
    assert result.moved_bytes.tolist() == [[0, 5 * BLOCK + 2 * SCALE], [0, 5 * BLOCK + SCALE], [0, 5 * BLOCK]]
    assert result.held_bytes.tolist() == [
        [3 * BASE + 14 * BLOCK, 3 * BASE + 14 * BLOCK],
        [3 * BASE + (1 + 5 + 2) * BLOCK, 2 * BASE + (2 + 4) * BLOCK],  # not even the header fits 2
        [3 * BASE + 9 * BLOCK, 3 * BASE + 9 * BLOCK],
    ]
    assert not result.violations.any()
    assert reply.short == 1, "4 has room for more than its list under its own budget"
    after = PreviousHoldings.read(cohort)
    assert after.groups.tolist() == [1, 0, 1, 0, 1, 1, 1], "who takes no part keeps what it had"
    assert after.cutoffs.tolist() == [[4, 1, 3], [6, 2, 3], [4, 0, 3], [6, 6, 4], [4, 4, 3], [4, 2, 3], [6, 5, 4]]
    assert after.ranks.tolist() == [[2, 3, 4, 1, 5, 0], [1, 3, 0, NEVER, 2, NEVER]]
    assert after.ranks.dtype == np.int32
    assert after.budgets.tolist() == BUDGETS


def test_of_tables_of_their_own_each_group_has_its_own_changes(tmp_path):
    """Of group 0's table item 5 is new; of 1's 0 is new and 2 rescaled. 1 and 4 come from the other: they read all."""
    result = refresh(node_of(tmp_path), asked([[0, 0, 0, 0, 0, NEW], [NEW, 0, RESCALED, 0, 0, 0]])).refreshed
    assert result.sent_bytes[0].tolist() == [2 * (3 * BLOCK + SCALE) + BLOCK, (6 + 4 + 4) * BLOCK]
    assert result.moved_bytes[0].tolist() == [0, (6 + 4) * BLOCK]


def test_where_no_list_is_sent_all_is_as_it_was(tmp_path):
    cohort = node_of(tmp_path)
    reply = refresh(cohort, asked([[0] * 6], groups=()))
    assert (reply.short, reply.refreshed.stacked().any()) == (0, False)
    after = PreviousHoldings.read(cohort)
    assert [values.tolist() for values in vars(after).values()] == [values.tolist() for values in vars(BEFORE).values()]


def test_lists_that_are_not_sent_are_nobodys(tmp_path):
    one, two = node_of(tmp_path / "one"), node_of(tmp_path / "two")
    assert refresh(one, asked([[0] * 6], groups=[0])).refreshed.devices.tolist() == [[1, 1]] * 3
    assert PreviousHoldings.read(one).ranks.tolist() == [[2, 3, 4, 1, 5, 0]]
    assert refresh(two, asked([[0] * 6], groups=[1])).refreshed.devices.tolist() == [[2, 2]] * 3
    assert PreviousHoldings.read(two).ranks.tolist() == [[NEVER] * 6, [1, 3, 0, NEVER, 2, NEVER]]


def test_a_list_of_which_a_node_has_no_device_is_read_by_nobody(tmp_path):
    cohort = node_of(tmp_path)
    cohort.state = {"r": SimpleNamespace(groups=np.ones(7, np.int32))}.__getitem__
    assert refresh(cohort, asked([[0] * 6])).refreshed.devices.tolist() == [[3, 3]] * 3
    assert PreviousHoldings.read(cohort).ranks[0].tolist() == [2, 3, 4, 1, 5, 0], "it is remembered all the same"


def test_of_a_list_of_nothing_nothing_is_read():
    empty = rank_blocks(LAYOUT, "int8", np.ones(6), np.ones((6, 4), np.float32), budget_bytes=0)
    nobody, none = UserItems.from_pairs(np.zeros(0, int), np.zeros(0, int), 2), np.zeros(0, np.uint8)
    held = before([-1, 0], [0, 3], [ORDER.tolist()])
    cutoffs, places, strange = np.zeros(2, int), np.arange(2), np.zeros(2, np.bool_)
    assert _sent_bytes(
        empty, cutoffs, empty.unneeded(nobody), none, PresentBlocks(held, 0, places, strange)
    ).tolist() == [0, 0]


def test_in_a_first_period_nobody_held_anything(tmp_path):
    cohort = node_of(tmp_path, held=None)
    result = refresh(cohort, asked([[0] * 6])).refreshed
    assert result.sent_bytes.tolist() == [
        [(4 + 5 + 4) * BLOCK, (6 + 4 + 4) * BLOCK],
        [(1 + 5 + 2) * BLOCK, (2 + 0 + 4) * BLOCK],
        [(3 + 3 + 3) * BLOCK, (3 + 3 + 3) * BLOCK],
    ]
    assert not result.moved.any()
    assert PreviousHoldings.read(cohort).groups.tolist() == [1, 0, 1, 0, 1, 1, -1]
    nobody = node_of(tmp_path / "nobody", held=None)
    refresh(nobody, asked([[0] * 6], groups=()))
    assert PreviousHoldings.read(nobody).ranks.shape == (0, 6)
