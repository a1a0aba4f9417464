"""Two taste groups with worlds of their own, small enough to know the right answer by hand.

World A holds items a0..a3 (0, 2, 4, 6), world B b0..b3 (1, 3, 5, 7). Every user has interacted with three items of its
own world and tests on the fourth. The missing one is a0 for 2 users of A, a1 for 4, a2 for 6, a3 for 8 (20 users), and
b0 for 3 users of B, b1 for 5, b2 for 7, b3 for 9 (24 users). So the train interactions are

    a0 18, a1 16, a2 14, a3 12;  b0 21, b1 19, b2 17, b3 15

and the items by global popularity: b0 b1 a0 b2 a1 b3 a2 a3.
"""

import numpy as np
import pytest

from fl_peel.blocks.ranked_blocks import rank_blocks, ranking
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.interactions import UserItems
from fl_peel.pretraining.central_training import pretrain
from fl_peel.ranking.top import evaluate
from fl_peel.scenario.scenario import Scenario
from fl_peel.weighting.controller import Controller
from fl_peel.weighting.selectors import block_weights
from simulations.scenario_files import validated
from strategies.groups.start import CollectedUsers, make_groups, make_layout, starting_states, starting_tables

MISSING = {0: (2, 4, 6, 8), 1: (3, 5, 7, 9)}  # world -> users whose missing item is its 0th, 1st, 2nd, 3rd
NUM_USERS = 44


def planted():
    """World of each user, train and test items."""
    rows = [
        (world, [world + 2 * i for i in range(4) if i != missing], world + 2 * missing)
        for world, counts in MISSING.items()
        for missing, count in enumerate(counts)
        for _ in range(count)
    ]
    train = UserItems(np.arange(0, 3 * len(rows) + 1, 3), np.array([row[1] for row in rows], np.int32).ravel())
    test = UserItems(np.arange(len(rows) + 1), np.array([row[2] for row in rows], np.int32))
    return np.array([row[0] for row in rows]), train, test


@pytest.fixture(scope="module")
def world():
    scenario = validated(
        Scenario,
        {
            "name": "planted",
            "data": {"name": "ml-100k"},
            "pretraining": {
                "embedding_dim": 8,
                "num_layers": 1,
                "epochs": 5,
                "num_negatives": 0,
                "diversity_slices": 1,
            },
            "user_groups": {"count": 2, "min_size": 4},
            "controller": {"list_length": 1},
        },
        "planted",
    )
    taste, train, test = planted()
    pretrained = pretrain(train, 8, scenario.pretraining.config(), seed=0)
    groups = make_groups(scenario, pretrained, np.ones(NUM_USERS, np.bool_))
    layout = make_layout(scenario, 8, train.popularity(8), pretrained.items)
    tables = starting_tables(scenario, pretrained, groups, train)
    states = starting_states(scenario, layout, tables, CollectedUsers(pretrained.users, groups, train))
    return scenario, taste, train, test, pretrained, groups, layout, states


def test_the_counts_are_those_of_the_docstring():
    taste, train, test = planted()
    assert train.popularity(8).tolist() == [18, 21, 16, 19, 14, 17, 12, 15]
    assert np.bincount(taste).tolist() == [20, 24]
    assert (test.items % 2 == taste).all()


def test_groups_are_recovered(world):
    _, taste, _, _, _, groups, _, _ = world
    assert groups.num_groups == 2
    assert (groups.assignment == taste).all() or (groups.assignment == 1 - taste).all()


def weights_of(selector, world):
    scenario, _, _, _, _, _, _, states = world
    statistics = [state.statistics for state in states]
    controller = Controller.for_statistics(statistics, scenario.controller.config(), seed=0)
    return [block_weights(selector, s, controller, seed=0, user_group=g) for g, s in enumerate(statistics)]


@pytest.mark.parametrize("selector", ["popularity", "exposure", "controller"])
def test_each_groups_weights_rank_its_own_worlds_blocks_first(world, selector):
    _, taste, _, _, _, groups, layout, _ = world
    assert layout.num_blocks == 8  # one item a block
    for group, weights in enumerate(weights_of(selector, world)):
        own = taste[groups.assignment == group][0]
        items = layout.item_group.argsort()[ranking(weights)]
        assert set((items[:4] % 2).tolist()) == {own}
    if selector == "popularity":  # and in the order of the docstring
        firsts = [layout.item_group.argsort()[ranking(w)][:4].tolist() for w in weights_of(selector, world)]
        assert sorted(firsts) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def recall(world, selector, num_blocks, n):
    """Mean recall@n over all devices with room for ``num_blocks`` blocks."""
    _, _, train, test, pretrained, groups, layout, states = world
    budget = overhead_bytes(8) + num_blocks * int(layout.block_bytes("fp32")[0])
    total = 0.0
    for group, weights in enumerate(weights_of(selector, world)):
        members = np.flatnonzero(groups.assignment == group)
        ranked = rank_blocks(layout, "fp32", weights, states[group].table)
        seen = train.select(members)
        cutoffs, stored, kept = ranked.serving_cutoffs(np.full(len(members), budget), seen)
        assert (stored <= budget).all()
        assert (kept == num_blocks).all()
        values, _ = evaluate(ranked, cutoffs, pretrained.users[members], seen, test.select(members), n)
        total += values.sum()
    return total / NUM_USERS


def test_without_groups_a_tight_budget_holds_the_wrong_world(world):
    """A device skips the three items it has seen: of the list b0 b1 a0 b2 a1 b3 a2 a3 it keeps the first two others.

    Users of A keep b0 and b1 whatever they miss: 0 of 20 find their item. Users of B who miss b0 (3) or b1 (5) have it
    first; who miss b2 (7) keep a0 and b2; who miss b3 (9) keep a0 and a1: 15 of 24 find theirs.
    """
    assert recall(world, "global-popularity", 2, 20) == pytest.approx(15 / 44)


@pytest.mark.parametrize("selector", ["popularity", "exposure", "controller"])
def test_with_groups_it_holds_the_right_one(world, selector):
    """The one item of its own world that a device has not seen is the first it keeps: everybody finds it. That is
    29/44 more than without groups; and it ranks first, before the best of the other world, which is kept too.
    """
    assert recall(world, selector, 1, 20) == 1.0
    assert recall(world, selector, 2, 20) == 1.0
    assert recall(world, selector, 2, 1) == 1.0
    margin = recall(world, selector, 2, 20) - recall(world, "global-popularity", 2, 20)
    assert margin == pytest.approx(29 / 44)


def test_with_room_for_every_block_groups_make_no_difference(world):
    """Five blocks that a device has not seen: its own missing item and all four of the other world."""
    assert recall(world, "global-popularity", 5, 20) == recall(world, "popularity", 5, 20) == 1.0
