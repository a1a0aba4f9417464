"""A timeline cuts interactions into a past and periods, and knows nothing of what comes later."""

import numpy as np
import pytest

from fl_peel.data.interactions import Interactions, UserItems
from fl_peel.data.timeline import QUARTERS, Timeline
from fl_peel.errors import DataError

ROWS = [
    # user, item, day
    (7, 50, 1),
    (7, 40, 2),
    (3, 50, 3),
    (3, 60, 4),  # the period before the one behind
    (7, 60, 5),
    (9, 40, 6),  # the period behind
    (3, 40, 7),
    (7, 70, 8),  # period 0 begins with user 3: an item that nobody had
    (5, 50, 9),  # a user that nobody knew
    (5, 70, 10),
    (9, 70, 11),  # period 1
    (5, 60, 12),
    (3, 80, 13),
    (2, 80, 14),
]


def timeline(rows=ROWS, **changes):
    users, items, days = (np.array(column) for column in zip(*rows, strict=True))
    labels, numbers = np.unique(users, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    pairs = UserItems.from_pairs(numbers, items, len(labels))
    data = Interactions("planted", pairs, int(items.max()) + 1, (days * 86_400)[order])
    keys = {"start": 6 / 14, "periods": 2, "share": 4 / 14, "days": None}
    return Timeline.from_interactions(data, **(keys | changes))


def pairs(items):
    return sorted(zip(items.users().tolist(), items.items.tolist(), strict=True))


def three(days):
    return timeline(start=6 / 14, share=2 / 14, periods=2, days=days)


def test_users_and_items_are_numbered_as_they_appear():
    result = three(None)
    # users 7, 3, 9, 5, 2 are 0 to 4; items 50, 40, 60, 70, 80 are 0 to 4
    assert result.users.tolist() == [0, 0, 1, 1, 0, 2, 1, 0, 3, 3, 2, 3, 1, 4]
    assert result.items.tolist() == [0, 1, 0, 2, 2, 1, 1, 3, 0, 3, 3, 2, 4, 4]
    assert result.edges.tolist() == [6, 8, 10]
    assert result.before.tolist() == [2, 4]


def test_before_a_period_there_is_what_was_done_and_in_it_what_is_asked():
    learn = three(None).splits(0, "learn")
    assert (learn.num_users, learn.num_items) == (3, 3)
    assert pairs(learn.train) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 1)]
    assert pairs(learn.test) == [(0, 3), (1, 1)]  # item 3 is new: in no table, but asked for
    assert not learn.validation.num_interactions


def test_what_is_chosen_on_is_the_period_that_lies_behind():
    result = three(None)
    choose = result.splits(0, "choose")
    assert (choose.num_users, choose.num_items) == (3, 3)
    assert pairs(choose.train) == [(0, 0), (0, 1), (1, 0), (1, 2)]
    assert pairs(choose.validation) == [(0, 2), (2, 1)]


def test_what_was_done_of_late_is_in_quarters():
    """Of two things in a period, one is in its first quarter and one in its third; item i of I is q I + i."""
    result = three(None)
    recent = result.splits(0, "recent")
    assert recent.num_items == QUARTERS * 3
    assert pairs(recent.train) == [(0, 0 * 3 + 2), (2, 2 * 3 + 1)]
    assert pairs(result.splits(1, "recent").train) == [(0, 2 * 4 + 3), (1, 0 * 4 + 1)]
    assert pairs(result.splits(0, "earlier").train) == [(1, 0 * 3 + 0), (1, 2 * 3 + 2)]
    assert pairs(result.splits(1, "earlier").train) == pairs(recent.train)


def test_who_joins_has_a_first_thing_and_is_asked_for_the_rest():
    join = three(None).splits(1, "join")
    assert (join.num_users, join.num_items) == (4, 4)
    assert pairs(join.train) == [(3, 0)]
    assert pairs(join.test) == [(3, 3)]
    assert pairs(three(None).splits(1, "learn").test) == []


def test_periods_may_be_days():
    by_days = three(2.0)
    assert by_days.edges.tolist() == [6, 8, 10]
    assert by_days.before.tolist() == [2, 4]


@pytest.mark.parametrize("phase", ["choose", "earlier", "recent", "learn", "join"])
@pytest.mark.parametrize("period", [0, 1])
def test_nothing_that_comes_later_is_in_a_period(period, phase):
    """Everything after the period is replaced: other users, other items. Only the count of what is to come may stay."""
    last = int(three(None).edges[period + 1])
    other = [*ROWS[:last], *((90 + place, 900 - place, 20 + place) for place in range(len(ROWS) - last))]
    ours, theirs = three(None).splits(period, phase), timeline(other, start=6 / 14, share=2 / 14).splits(period, phase)
    assert (ours.num_users, ours.num_items) == (theirs.num_users, theirs.num_items)
    for part in ("train", "validation", "test"):
        assert pairs(getattr(ours, part)) == pairs(getattr(theirs, part))


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(DataError, match=r"^planted: 14 interactions do not hold a past and 2 periods .*; lower"):
        timeline(start=0.1, share=0.3)
    data = Interactions("timeless", UserItems.from_pairs(np.array([0]), np.array([0]), 1), 1)
    with pytest.raises(DataError, match=r"^timeless: has no timestamps, which data.timeline needs; leave it out$"):
        Timeline.from_interactions(data, start=0.5, periods=1, share=0.1, days=None)


def test_who_does_nothing_speaks_of_less_and_less():
    """Half of what one did, the newer one, after one silent period; each interaction before the periods counted is a
    half of a period as well. By hand, of the rows above: users 7, 3, 9 are 0, 1, 2.
    """
    result = timeline(start=6 / 14, share=2 / 14, periods=2, leaving=1.0)
    assert result.silent(0, 3).tolist() == [0, 1, 0]
    assert result.silent(1, 3).tolist() == [0, 0, 1]
    assert result.silent(-1, 3).tolist() == [1, 0, 2]
    assert pairs(result.splits(0, "learn").contributed_items) == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 1)]
    assert pairs(result.splits(0, "choose").contributed_items) == [(0, 1), (1, 0), (1, 2)]
    later = result.splits(1, "learn")
    assert pairs(later.train.select(np.array([2]))) == [(0, 1)], "it still has what it did"
    assert later.contributed_items.counts()[2] == 0, "one thing, half of it: it has left"
    assert pairs(later.select(np.array([1, 0])).contributed_items) == [
        *[(0, 0), (0, 1), (0, 2)],
        *[(1, 0), (1, 1), (1, 2), (1, 3)],
    ]


def test_where_nobody_leaves_everything_is_spoken_of():
    result = three(None).splits(1, "learn")
    assert result.contributed is None
    assert result.contributed_items is result.train
    for phase in ("recent", "earlier", "join"):
        assert timeline(start=6 / 14, share=2 / 14, periods=2, leaving=1.0).splits(0, phase).contributed is None
