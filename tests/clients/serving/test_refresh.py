"""What devices read when a period begins, counted by hand."""

import numpy as np

from clients.serving.refresh import Before, _sent_bytes
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked import rank_blocks
from fl_peel.data.interactions import UserItems
from fl_peel.wire import NEW, RESCALED

# 6 items of 4 columns in int8: 4 codes, 2 of scale, 2 of number: 8 bytes a block
LAYOUT = BlockLayout(np.arange(6, dtype=np.int32), 4, 1)
ORDER = np.array([5, 3, 0, 1, 2, 4])
BLOCK, SCALE = 8, 2


def ranked():
    weights = np.empty(6)
    weights[ORDER] = np.arange(6, 0, -1)
    return rank_blocks(LAYOUT, "int8", weights, np.arange(24, dtype=np.float32).reshape(6, 4))


def before(groups, cutoffs, lists):
    ranks = np.full((len(lists), 6), np.iinfo(np.int32).max, np.int32)
    for group, blocks in enumerate(lists):
        ranks[group, blocks] = np.arange(len(blocks))
    return Before(np.array(groups), np.array(cutoffs)[:, None], ranks)


def sent(held, cutoffs, *, changed=(0,) * 6, hidden=(), members=None):
    found = ranked()
    users = np.array([user for user, _ in hidden], np.int64)
    items = np.array([item for _, item in hidden], np.int64)
    places = np.arange(len(cutoffs)) if members is None else np.array(members)
    seen = UserItems.from_pairs(users, items, len(places))
    flags = np.array(changed, np.uint8)[found.blocks]
    return _sent_bytes(found, np.array(cutoffs), seen, flags, held, places, 0).tolist()


def test_who_holds_nothing_reads_all_that_fits():
    assert sent(before([-1, -1], [0, 0], []), [3, 0]) == [3 * BLOCK, 0]


def test_who_holds_a_beginning_reads_the_rest():
    held = before([0, 0], [2, 6], [ORDER.tolist()])
    assert sent(held, [3, 3]) == [BLOCK, 0]


def test_another_list_is_read_where_it_differs():
    """Held: 1, 2, 3 of another group's list; needed: 5, 3, 0."""
    held = before([1], [3], [ORDER.tolist(), [1, 2, 3, 4, 5, 0]])
    assert sent(held, [3]) == [2 * BLOCK]


def test_changed_blocks_are_read_again_and_rescaled_ones_get_a_scale():
    held = before([0], [3], [ORDER.tolist()])
    flags = [0, 0, 0, NEW, 0, RESCALED]  # of items 0 to 5; 5, 3 and 0 are needed
    assert sent(held, [3], changed=flags) == [BLOCK + SCALE]
    assert sent(before([-1], [0], []), [3], changed=flags) == [3 * BLOCK], "what is read whole has its scale"


def test_what_a_device_never_needs_is_passed_over():
    held = before([0], [2], [ORDER.tolist()])
    assert sent(held, [4], hidden=[(0, 0)]) == [BLOCK], "0 is used up; 1 is read"


def test_items_that_came_since_were_held_by_nobody():
    short = before([0], [3], [[1, 0]])
    short = Before(short.groups, short.cutoffs, short.ranks[:, :2])
    assert sent(short, [6]) == [4 * BLOCK]
