"""Stage 1 that goes on: rows stay where scores stay, new items get rows from sums, the past fades."""

from dataclasses import replace

import numpy as np
import pytest

from fl_peel.data.interactions import UserItems
from fl_peel.errors import DataError
from fl_peel.pretraining.incremental import (
    MOST_DRAWN,
    Exponents,
    drawn_by_use,
    exponents_of,
    filter_request,
    freshness_request,
    update_model,
)
from fl_peel.pretraining.spectral import USER_LENGTH
from fl_peel.pretraining.stage1 import GroupPlan, PooledSums
from fl_peel.steps.base import StepTerms, add_rows, unit_vectors
from fl_peel.steps.choice import ChoiceStep, freshness, nth_best, recent_uses
from tests.helpers.settings import SPECTRAL

CONFIG = replace(SPECTRAL, columns=6, group_columns=6, oversampling=4, passes=6)
NUM_ITEMS = 30
SHAPE = Exponents(0.5, 0.5, 0.0)


def worlds(seed=0, num_users=40, items=NUM_ITEMS):
    """Two worlds of taste: even users take even items."""
    rng = np.random.default_rng(seed)
    rows = [np.sort(rng.permutation(np.arange(user % 2, items, 2))[:6]) for user in range(num_users)]
    return UserItems.from_pairs(np.repeat(np.arange(num_users), 6), np.concatenate(rows), num_users)


def model_of(rows, before=None, *, num_items=NUM_ITEMS, passes=6, shape=SHAPE, recent=None):
    sums = PooledSums(rows, StepTerms(num_items, CONFIG.user_exponent, CONFIG.item_exponent))
    return update_model(
        sums,
        replace(CONFIG, passes=passes),
        GroupPlan(dim=8, num_groups=2, min_size=3, seed=0),
        before,
        exponents=shape,
        recent=np.zeros(num_items) if recent is None else recent,
    )


def test_where_nothing_happened_no_row_moves():
    first, start = model_of(worlds(), passes=40)
    second, again = model_of(worlds(), first, passes=1)
    lengths = np.linalg.norm(first.scored, axis=1)
    assert np.linalg.norm(second.scored - first.scored, axis=1).max() < 0.005 * lengths.max()
    assert np.abs(second.centroids - first.means).max() == 0
    assert np.abs(second.means - first.means).max() < 0.01
    assert np.abs(again.groups[0].table - start.groups[0].table).max() < 0.01 * np.abs(start.groups[0].table).max()


def test_directions_that_turn_are_turned_back():
    """The two leading directions are of equal strength, and so turn as they please: rows stay."""
    first, _ = model_of(worlds(), passes=40)
    turn = np.eye(first.directions.shape[1])
    turn[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    turned = replace(first, directions=first.directions @ turn)
    second, _ = model_of(worlds(), turned, passes=1)
    assert np.linalg.norm(second.scored - first.scored) < 0.02 * np.linalg.norm(first.scored)
    anew, _ = model_of(worlds(), replace(turned, scored=first.scored @ turn[:6, :6].astype(np.float32)), passes=1)
    assert np.linalg.norm(anew.scored - first.scored) > 0.3 * np.linalg.norm(first.scored)


def test_a_new_item_gets_its_row_from_those_who_use_it():
    first, _ = model_of(worlds(), passes=20)
    rows = worlds()
    even = np.arange(0, 40, 2)
    more = rows.merged(UserItems.from_pairs(even, np.full(20, NUM_ITEMS), 40))
    second, start = model_of(more, first, num_items=NUM_ITEMS + 1, passes=1)
    assert second.num_items == NUM_ITEMS + 1
    # everybody of the even world has it, nobody of the other: it lies where the even items lie
    unit = unit_vectors(second.scored)
    likeness = unit[NUM_ITEMS] @ unit[:NUM_ITEMS].T
    assert likeness[0::2].mean() > 0.5 > 0.2 > likeness[1::2].mean()
    assert start.counts[NUM_ITEMS] == 20


def test_what_devices_did_long_ago_fades():
    """By hand: of three items one after the other, with fading 2, the oldest counts e^-1, the next e^-1/2."""
    table = np.eye(3, dtype=np.float32)
    rows = UserItems.from_pairs(np.array([0, 0, 0, 1]), np.array([2, 0, 1, 1]), 2)
    result = add_rows(table, rows, 2.0)
    assert result[0] == pytest.approx([np.exp(-0.5), 1.0, np.exp(-1.0)])
    assert result[1].tolist() == [0, 1, 0]
    assert add_rows(table, rows)[0].tolist() == [1, 1, 1]


def test_what_is_used_of_late_scores_more():
    """By hand: 4 of 9 uses of late and .1 more, over one use more than there are; to the power 1/2."""
    fresh = freshness(np.array([4, 0]), np.array([9, 9]), 0.5)
    assert fresh == pytest.approx([np.sqrt(4.1 / 10), np.sqrt(0.1 / 10)])
    assert freshness(np.array([4, 0]), np.array([9, 9]), 0.0).tolist() == [1, 1]
    recent = np.zeros(NUM_ITEMS)
    recent[3] = 5
    _, plain = model_of(worlds(), recent=recent)
    model, start = model_of(worlds(), recent=recent, shape=Exponents(0.5, 0.5, 1.0))
    ratio = start.groups[0].table[:, 0] / plain.groups[0].table[:, 0]
    assert ratio == pytest.approx(model.fresh, rel=1e-4)


def test_recent_uses_fade():
    """By hand: a use at the start of a period is three quarters of it older than one at its end, and those from before
    a whole one; with a half-life of half a period that is 2^-1.5 and 2^-2.
    """
    counts = np.array([[8, 0, 0], [0, 0, 0], [0, 2, 0], [0, 8, 1]])
    assert recent_uses(counts.ravel(), 0.5, None) == pytest.approx([8 / 2**1.5, 8 + 2 / 2**0.5, 1])
    later = recent_uses(counts.ravel(), 0.5, np.array([4.0, 0.0]))
    assert later == pytest.approx([8 / 2**1.5 + 1, 8 + 2 / 2**0.5, 1]), "the last item is new"


def test_devices_choose_freshness_by_what_they_did():
    """All who are asked did item 4 of some 60 that their taste has: freshness ranks it above the others."""
    many = worlds(items=120)
    recent = np.zeros(120)
    recent[4] = 40
    model, _ = model_of(many, num_items=120, recent=recent)
    question = freshness_request(model, 0, SHAPE, fresh=(0.0, 1.0), mean=(0.0,), fading=None)
    even = np.flatnonzero([user % 2 == 0 and 4 not in many.row(user) for user in range(40)])
    wanted = UserItems.from_pairs(even, np.full(len(even), 4), 40)
    asked = PooledSums(many, StepTerms(120, 0.3, CONFIG.item_exponent), wanted)
    won, answered = ChoiceStep.ask(asked, question, 1000)
    assert answered == len(even)
    assert exponents_of(question, won, answered) == Exponents(0.5, 0.5, 1.0)
    assert freshness_request(model, 0, SHAPE, fresh=(0.5,), mean=(0.0,), fading=None) is None
    assert filter_request(model, 0, count=(0.5,), value=(0.5,), fresh=(0.0, 1.0), fading=None) is None
    with pytest.raises(DataError, match=r"^stage 1: none of the requested devices has an interaction .*; set "):
        exponents_of(question, won, 0)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_devices_judge_what_they_would_rank_with(weight):
    """Where all items are drawn, an item counts if a device that adds so much of the mean vector has it among its first
    20; so it is for a model that was turned onto another one, and for a device without an item.
    """
    many, recent = worlds(items=120), np.arange(120.0)
    before, _ = model_of(worlds(seed=1, items=120), num_items=120, recent=recent)
    shape = Exponents(0.5, 0.5, 0.5, weight)
    model, _ = model_of(many, before, num_items=120, recent=recent, shape=shape)
    rows = many.select(np.arange(20))
    rows = UserItems(np.append(rows.indptr, rows.indptr[-1]), rows.items)
    rng = np.random.default_rng(0)
    used = [set(rows.row(user).tolist()) for user in range(21)]
    known = np.flatnonzero(model.counts)
    wanted = [[item for item in rng.permutation(known).tolist() if item not in used[user]][:10] for user in range(21)]
    asked = UserItems.from_pairs(np.repeat(np.arange(21), 10), np.concatenate(wanted), 21)
    question = freshness_request(model, 0, shape, fresh=(0.5, 0.0), mean=(weight,), fading=None)
    shares = question.shares(rows, asked, CONFIG.item_exponent)[0][:, 0]
    users = unit_vectors(add_rows(model.own, rows))
    users[20] = model.middle
    scores = (users + weight * model.middle) @ (model.scored * model.fresh[:, None].astype(np.float32)).T
    for user in range(21 if weight else 20):  # where nothing is added, who has nothing says nothing
        others = np.setdiff1d(known, [*used[user], *wanted[user]])
        first = [item for item in wanted[user] if (scores[user, others] > scores[user, item]).sum() < 20]
        assert shares[user] == pytest.approx(len(first) / 10), user
    assert question.mean is None or weight > 0
    pull = model.pull(8)
    assert pull.shape == (int(weight > 0), 8)
    assert pull.sum(axis=0)[:6] == pytest.approx(USER_LENGTH * weight * model.middle)


def test_drawn_items_stand_for_all():
    """Of 2,000 items those used most are sure to be drawn; an item's weight is 1 on average over draws."""
    recent = np.exp(np.random.default_rng(0).normal(0, 2, 2000))
    total = np.zeros(2000)
    for seed in range(300):
        drawn, weights = drawn_by_use(recent, np.ones(2000), seed)
        assert abs(len(drawn) - MOST_DRAWN) <= 1
        total[drawn] += weights
    assert total[np.argsort(-recent)[:5]].tolist() == [300] * 5
    assert total.mean() == pytest.approx(300, rel=0.01)
    assert total[recent < np.median(recent)].mean() == pytest.approx(300, rel=0.05)
    few = drawn_by_use(recent[:9], np.array([1, 0, 1, 1, 1, 1, 1, 1, 1]), 0)
    assert few[0].tolist() == [0, 2, 3, 4, 5, 6, 7, 8]
    assert few[1].tolist() == [1] * 8


def test_a_place_is_reached_by_weight():
    scores = np.array([[5.0, 1.0, 3.0], [1.0, 2.0, 3.0]])
    assert nth_best(scores, np.ones(3), 2).tolist() == [3, 2]
    assert nth_best(scores, np.array([1.0, 3.0, 0.5]), 2).tolist() == [1, 2]
    assert nth_best(scores, np.ones(3), 4).tolist() == [-np.inf, -np.inf]


def test_items_that_no_table_has_yet_are_nothing_to_choose_on():
    model, _ = model_of(worlds())
    question = filter_request(model, 0, count=(0.5,), value=(0.0, 0.5), fresh=(0.0,), fading=3.0)
    wanted = UserItems.from_pairs(np.array([0, 1]), np.array([NUM_ITEMS + 4, 1]), 40)
    assert question.shares(worlds(), wanted, CONFIG.item_exponent)[1] == 1


def test_more_columns_than_a_table_are_refused():
    sums = PooledSums(worlds(), StepTerms(NUM_ITEMS, 0.3))
    with pytest.raises(DataError, match=r"^pretraining.columns: a timeline needs at most embedding_dim 4, not 6"):
        update_model(sums, CONFIG, GroupPlan(4, 1, 1, 0), None, exponents=SHAPE, recent=np.zeros(NUM_ITEMS))
    nobody = PooledSums(UserItems(np.zeros(3, np.int64), np.zeros(0, np.int32)), StepTerms(NUM_ITEMS, 0.3))
    with pytest.raises(DataError, match=r"^stage 1: no item has as many devices that answered"):
        update_model(nobody, CONFIG, GroupPlan(8, 1, 1, 0), None, exponents=SHAPE, recent=np.zeros(NUM_ITEMS))
