import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.data import interactions
from fl_peel.data.interactions import CONTRIBUTED, PARTS, Interactions, Splits, UserItems, collected, split
from fl_peel.errors import DataError
from tests.helpers.blocks import rows_of as ragged


def rows_of(user_items):
    return [user_items.row(user).tolist() for user in range(user_items.num_users)]


rows_strategy = st.lists(st.lists(st.integers(0, 11), unique=True, max_size=12), min_size=1, max_size=6)


# --- UserItems -------------------------------------------------------------------------------------------------


def test_rows_counts_and_users():
    pairs = ragged([4, 2], [], [7])
    assert (pairs.num_users, pairs.num_interactions) == (3, 3)
    assert pairs.counts().tolist() == [2, 0, 1]
    assert pairs.users().tolist() == [0, 0, 2]
    assert pairs.popularity(8).tolist() == [0, 0, 1, 0, 1, 0, 0, 1]
    assert len(pairs.popularity(12)) == 12  # items that nobody has count 0
    assert pairs.popularity(8).dtype == pairs.counts().dtype == np.int64


def test_by_item_sorts_each_row_and_moves_nothing_between_rows():
    assert rows_of(ragged([4, 2, 9], [], [7, 1]).by_item) == [[2, 4, 9], [], [1, 7]]


def test_from_pairs_keeps_the_order_of_appearance_within_a_user():
    pairs = UserItems.from_pairs(np.array([2, 0, 2, 0]), np.array([9, 5, 1, 3]), num_users=4)
    assert rows_of(pairs) == [[5, 3], [], [9, 1], []]
    assert pairs.items.dtype == np.int32
    assert pairs.indptr.dtype == np.int64


@given(rows_strategy, st.data())
def test_select_equals_picking_rows(rows, data):
    users = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    chosen = ragged(*rows).select(np.array(users, dtype=np.int64))
    assert rows_of(chosen) == [rows[user] for user in users]


def test_rows_of_many_users_are_picked_some_at_a_time(monkeypatch):
    monkeypatch.setattr(interactions, "SELECTED", 2)
    rows = [[4, 2], [], [7], [1, 3, 5], [6]]
    users = [3, 0, 2, 2, 1, 4, 3]
    chosen = ragged(*rows).select(np.array(users))
    assert rows_of(chosen) == [rows[user] for user in users]
    assert (chosen.indptr.dtype, chosen.items.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize("output", [None, ragged([8])])
def test_splits_are_told_by_their_parts_all_of_which_rest(output, monkeypatch):
    three = ragged([1, 2]), ragged([3]), ragged([4, 5])
    splits = Splits(*three, 9, output)
    parts = dict(zip(PARTS, three, strict=True)) | ({} if output is None else {CONTRIBUTED: output})
    assert [(name, id(part)) for name, part in splits.parts()] == [(name, id(part)) for name, part in parts.items()]
    rested = []
    monkeypatch.setattr(interactions, "drop_pages", lambda *arrays: rested.extend(map(id, arrays)))
    splits.drop_pages()
    assert rested == [id(array) for part in parts.values() for array in (part.indptr, part.items)]


@given(rows_strategy, st.data())
def test_keep_equals_filtering_row_by_row(rows, data):
    pairs = ragged(*rows)
    mask = data.draw(st.lists(st.booleans(), min_size=pairs.num_interactions, max_size=pairs.num_interactions))
    flags = iter(mask)
    expected = [[item for item in row if next(flags)] for row in rows]
    kept = pairs.keep(np.array(mask, dtype=np.bool_))
    assert rows_of(kept) == expected
    assert kept.indptr.dtype == np.int64


@given(rows_strategy, st.data())
def test_merged_equals_joining_rows(rows, data):
    n = len(rows)
    others = data.draw(st.lists(st.lists(st.integers(0, 11), max_size=4), min_size=n, max_size=n))
    merged = ragged(*rows).merged(ragged(*others))
    assert rows_of(merged) == [row + other for row, other in zip(rows, others, strict=True)]


# --- split -----------------------------------------------------------------------------------------------------


def test_split_by_time_puts_the_newest_last():
    # Ten items, item i at time 100 - i: item 9 is the oldest. Test: rint(10 * 0.2) = 2 newest, items 1 and 0.
    # Eight are left; validation: rint(8 * 0.1) = 1, the newest of them, item 2.
    times = 100 - np.arange(10)
    data = Interactions("x", ragged(range(10)), 10, timestamps=times)
    for order in ("auto", "time"):
        parts = split(data, seed=0, order=order)
        assert rows_of(parts.test) == [[1, 0]]
        assert rows_of(parts.validation) == [[2]]
        assert rows_of(parts.train) == [[9, 8, 7, 6, 5, 4, 3]]
    assert rows_of(split(data, seed=0, order="random").test) != [[1, 0]]


def test_ties_in_time_are_broken_by_item_not_by_line():
    for items in ([5, 3, 8, 1], [1, 8, 3, 5]):
        data = Interactions("x", ragged(items), 9, timestamps=np.zeros(4, dtype=np.int64))
        parts = split(data, seed=0, validation_share=0.0, test_share=0.25)
        assert rows_of(parts.train) == [[1, 3, 5]]
        assert rows_of(parts.test) == [[8]]


def test_given_test_is_kept_and_validation_comes_from_train():
    data = Interactions("x", ragged(range(10), [0]), 12, given_test=ragged([10, 11], []))
    parts = split(data, seed=3)
    assert rows_of(parts.test) == [[10, 11], []]
    # 10 * 0.1 is 1 whatever the chance; the second user keeps its only item.
    assert parts.validation.counts().tolist() == [1, 0]
    assert sorted(rows_of(parts.train)[0] + rows_of(parts.validation)[0]) == list(range(10))
    assert rows_of(parts.train)[1] == [0]


def test_time_order_without_times_is_refused():
    with pytest.raises(DataError, match=r"books: has no timestamps.*split_order=random"):
        split(Interactions("books", ragged([1]), 2), seed=0, order="time")


def test_random_split_depends_on_the_seed():
    data = Interactions("x", ragged(*[range(20)] * 10), 20)
    first, again, other = (split(data, seed=seed) for seed in (1, 1, 2))
    assert rows_of(first.test) == rows_of(again.test)
    assert rows_of(first.test) != rows_of(other.test)
    # and users with the same items do not all draw the same test
    assert len({tuple(row) for row in rows_of(first.test)}) > 1


def test_random_split_of_a_user_does_not_depend_on_other_users_or_line_order():
    rows = [[3, 1, 4, 9, 5], [2, 6, 7], [8, 0, 2, 5]]
    whole = split(Interactions("x", ragged(*rows), 10), seed=7)
    # the same users with another neighbour's items gone, and every row turned around
    changed = split(Interactions("x", ragged(rows[0][::-1], [], rows[2][::-1]), 10), seed=7)
    for part in ("train", "validation", "test"):
        before, after = rows_of(getattr(whole, part)), rows_of(getattr(changed, part))
        assert (before[0], before[2]) == (after[0], after[2])


def test_some_of_many_users_are_split_as_among_all_of_them():
    rows = [np.random.default_rng(user).permutation(40)[: 15 + user] for user in range(12)]
    whole = split(Interactions("x", ragged(*rows), 40), seed=7)
    behind = split(Interactions("x", ragged(*rows[5:]), 40), seed=7, first=5)
    for part in ("train", "validation", "test"):
        assert rows_of(getattr(behind, part)) == rows_of(getattr(whole, part))[5:]


def test_random_split_is_fair_to_every_place():
    # Each of 10 items of 4000 users is a test item with probability 0.2: 800 +- 5 * sqrt(4000 * 0.16) = 127.
    data = Interactions("x", ragged(*[range(10)] * 4000), 10)
    per_item = split(data, seed=11).test.popularity(10)
    assert (np.abs(per_item - 800) < 127).all()


def test_a_small_validation_share_takes_items_of_users_with_few_items_too():
    # 10 items at 3%: nobody would have a validation item to the nearest number, three users in ten have one by chance.
    # Of 4000 users 1200 +- 5 * sqrt(4000 * 0.21) = 145; of users with 100 items each has 3.
    data = Interactions("x", ragged(*[range(10)] * 4000, range(100)), 100, given_test=ragged(*[[]] * 4001))
    counts = split(data, seed=5, validation_share=0.03).validation.counts()
    assert set(counts[:4000].tolist()) == {0, 1}
    assert abs(int(counts[:4000].sum()) - 1200) < 145
    assert counts[4000] == 3


@given(
    rows_strategy,
    st.integers(0, 9),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_parts_are_disjoint_complete_and_leave_something_to_train(rows, seed, validation, test, timed, times_seed):
    pairs = ragged(*rows)
    times = np.random.default_rng(times_seed).integers(0, 5, pairs.num_interactions) if timed else None
    data = Interactions("x", pairs, 12, timestamps=times)
    parts = split(data, seed=seed, validation_share=validation, test_share=test)
    all_parts = [rows_of(part) for part in (parts.train, parts.validation, parts.test)]
    for user, row in enumerate(rows):
        assert sorted(item for part in all_parts for item in part[user]) == sorted(row)
        assert bool(row) == bool(all_parts[0][user])
        assert len(all_parts[2][user]) == min(round(len(row) * test), max(len(row) - 1, 0))
    if times is not None:
        when = dict(zip(zip(pairs.users().tolist(), pairs.items.tolist(), strict=True), times, strict=True))
        for user in range(len(rows)):
            in_order = [when[user, item] for part in all_parts for item in part[user]]
            assert in_order == sorted(in_order)


@pytest.mark.parametrize("timed", [True, False])
def test_validation_takes_all_but_one_of_what_the_test_leaves(timed):
    # two items, none for the test: 0.9 x 2 is 2 to the nearest and never below 1 by chance, but one stays for training
    data = Interactions("x", ragged([0, 1], [2]), 9, timestamps=np.arange(3) if timed else None)
    parts = split(data, seed=0, validation_share=0.9, test_share=0.0)
    assert [part.counts().tolist() for part in (parts.train, parts.validation, parts.test)] == [[1, 1], [1, 0], [0, 0]]
    assert parts.num_items == 9


def test_share_of_some_users_is_renumbered():
    parts = Splits(ragged([0], [1], [2]), ragged([3], [4], [5]), ragged([6], [7], []), 8)
    share = parts.select(np.array([2, 0]))
    assert share.num_users == 2
    assert (rows_of(share.train), rows_of(share.validation)) == ([[2], [0]], [[5], [3]])
    assert (rows_of(share.test), share.num_items) == ([[], [6]], 8)
    assert (share.contributed, share.contributed_items) == (None, share.train)
    some = Splits(parts.train, parts.validation, parts.test, 8, ragged([], [1], [2])).select(np.array([2, 0]))
    assert rows_of(some.contributed) == rows_of(some.contributed_items) == [[2], []]
    assert rows_of(some.train) == [[2], [0]]


# --- collected -------------------------------------------------------------------------------------------------


def test_collected_users_give_everything_or_nothing():
    train = ragged(*[[user, user + 1] for user in range(10)])
    kept, gave = collected(train, seed=5, share=0.3, mode="users")
    assert gave.sum() == 3
    assert rows_of(kept) == [[u, u + 1] if gave[u] else [] for u in range(10)]
    again, _ = collected(train, seed=5, share=0.3, mode="users")
    assert rows_of(again) == rows_of(kept)
    assert any((collected(train, seed=s, share=0.3, mode="users")[1] != gave).any() for s in range(6, 12))


@pytest.mark.parametrize("mode", ["users", "oldest"])
def test_collecting_all_or_nothing(mode):
    train = ragged([3, 1], [2])
    kept, gave = collected(train, seed=0, share=1.0, mode=mode)
    assert (rows_of(kept), gave.tolist()) == ([[3, 1], [2]], [True, True])
    kept, gave = collected(train, seed=0, share=0.0, mode=mode)
    assert (rows_of(kept), gave.tolist()) == ([[], []], [False, False])


def test_collected_oldest_share_is_rounded_up():
    # ceil(5 * 0.3) = 2, ceil(1 * 0.3) = 1, none of none
    kept, gave = collected(ragged([9, 8, 7, 6, 5], [4], []), seed=0, share=0.3, mode="oldest")
    assert rows_of(kept) == [[9, 8], [4], []]
    assert gave.tolist() == [True, True, False]


def test_collected_oldest_share_is_not_fooled_by_floating_point():
    assert 100 * 0.07 > 7  # as doubles: 7.000000000000001
    kept, _ = collected(ragged(range(100)), seed=0, share=0.07, mode="oldest")
    assert kept.num_interactions == 7


def test_items_below_a_number():
    some, nothing = ragged([3, 0], [5], []), ragged([], [])
    assert rows_of(some.below(5)) == [[3, 0], [], []]
    assert rows_of(some.below(3)) == [[0], [], []]
    assert some.below(6) is some, "there is no other"
    assert nothing.below(1) is nothing
