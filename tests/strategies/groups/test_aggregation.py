"""Block-wise aggregation, by hand on two devices, and the server's optimizers, by hand over two steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RowOrder, rank_blocks
from fl_peel.data.interactions import UserItems
from fl_peel.kernels import FIXED_POINT
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.group import train_group
from fl_peel.training.update import GroupUpdate, LocalWork, holders_of
from fl_peel.weighting.block_statistics import BlockStatistics
from strategies.groups.state import BlockSums, ServerOptimizer, UserGroupState, apply_mean, block_energy, mean_update
from tests.helpers.blocks import layouts, random_table, seeds
from tests.helpers.examples import examples

TWO_ITEMS = BlockLayout(np.arange(2, dtype=np.int32), 2, 2)
RANKED = np.array([0, 2, 1])
"""Item 0 slice 0, item 1 slice 0, item 0 slice 1; item 1 slice 1 (block 3) was sent to nobody."""
ORDER = RowOrder.from_blocks(TWO_ITEMS, RANKED)


def fixed(values) -> np.ndarray:
    return np.rint(np.array(values) * FIXED_POINT).astype(np.int64)


def reply(rows, sums, touched, holders, **more) -> dict[str, np.ndarray]:
    return {
        "rows": np.array(rows, np.int32),
        "sums": fixed(sums).astype(np.int32),
        "touched": np.array(touched, np.int32),
        "row_loss": np.array(more.get("row_loss", np.zeros(len(rows))), np.int64),
        "row_examples": np.array(more.get("row_examples", np.zeros(len(rows))), np.int32),
        "holders": np.array(holders, np.int32),
    }


# device A keeps all three blocks and changes item 0 in both slices; device B keeps the first two and changes both items
DEVICE_A = reply([0], [[0.4, 0.2]], [[1, 1]], [1, 1, 1], row_examples=[2])
DEVICE_B = reply([0, 1], [[0.2, 0.0], [0.6, 0.0]], [[1, 0], [1, 0]], [1, 1, 0], row_examples=[1, 3])


def added(*replies) -> BlockSums:
    total = BlockSums.zeros(2, 2, 2, 3)
    for one in replies:
        total.add(one)
    return total


def test_mean_over_those_that_changed_the_piece():
    mean, changed = mean_update(added(DEVICE_A, DEVICE_B), ORDER.position, "touched")
    # item 0: slice 0 by both, (0.4 + 0.2) / 2; slice 1 by A alone, 0.2 / 1. Item 1: slice 0 by B alone, 0.6 / 1
    np.testing.assert_allclose(mean, [[0.3, 0.2], [0.6, 0.0]], atol=1e-6)
    assert changed.tolist() == [[True, True], [True, False]]


def test_mean_over_holders():
    mean, changed = mean_update(added(DEVICE_A, DEVICE_B), ORDER.position, "holders")
    # item 1 slice 0 is held by both, though A did not change it: 0.6 / 2
    np.testing.assert_allclose(mean, [[0.3, 0.2], [0.3, 0.0]], atol=1e-6)
    assert changed.tolist() == [[True, True], [True, False]]


def node_reply(update: GroupUpdate) -> dict[str, np.ndarray]:
    rows = np.flatnonzero(update.touched.any(axis=1))
    by_row = {name: getattr(update, name)[rows] for name in ("sums", "touched", "row_loss", "row_examples")}
    return {"rows": rows, **by_row, "holders": update.holders}


@examples(25)
@given(
    layout=layouts.filter(lambda layout: layout.num_items > 2),
    seed=seeds,
    denominator=st.sampled_from(["holders", "touched"]),
)
def test_means_equal_the_readable_mean_over_devices(layout, seed, denominator):
    """Real updates of six devices, added up by the kernel, against a loop over devices one by one."""
    rng = np.random.default_rng(seed)
    ranked = rank_blocks(layout, "fp32", rng.random(layout.num_blocks), random_table(rng, layout))
    cutoffs = rng.integers(0, layout.num_blocks + 1, 6)
    users = rng.normal(size=(6, layout.embedding_dim)).astype(np.float32)
    train = UserItems.from_pairs(np.repeat(np.arange(6), 2), rng.integers(0, layout.num_items, 12), 6)
    how = LocalTraining(num_negatives=2)

    def update_of(who: list[int]) -> GroupUpdate:
        places = np.array(who)
        return train_group(
            LocalWork(ranked, cutoffs[places], users[places], train.select(places), places.astype(np.uint64), how)
        )[1]

    total = BlockSums.zeros(len(ranked.items), layout.num_slices, layout.embedding_dim, layout.num_blocks)
    total.add(node_reply(update_of([0, 3, 5])))
    total.add(node_reply(update_of([4, 1, 2])))
    mean, changed = mean_update(total, ranked.position, denominator)
    alone = [update_of([i]) for i in range(6)]
    for row in range(len(ranked.items)):
        for s in range(layout.num_slices):
            columns = slice(s * layout.slice_dim, (s + 1) * layout.slice_dim)
            steps = [update.sums[row, columns] / FIXED_POINT for update in alone]
            holds = [cutoffs[i] > ranked.position[row, s] and alone[i].examples[0] > 0 for i in range(6)]
            touched = [update.touched[row, s] == 1 for update in alone]
            assert all(hold or not touch for hold, touch in zip(holds, touched, strict=True))
            assert all(touch or not step.any() for touch, step in zip(touched, steps, strict=True))
            number = sum(holds) if denominator == "holders" else sum(touched)
            np.testing.assert_allclose(mean[row, columns], sum(steps) / max(number, 1), rtol=1e-6, atol=1e-9)
            assert (changed[row, columns] == any(touched)).all()
    assert (total.holders == holders_of(cutoffs[[u.examples[0] > 0 for u in alone]], layout.num_blocks)).all()


@given(order=st.permutations(range(8)))
def test_the_order_of_replies_cannot_matter(order):
    rng = np.random.default_rng(0)
    replies = []
    for _ in range(8):
        rows = np.flatnonzero(rng.random(20) < 0.4)
        replies.append(
            {
                "rows": rows.astype(np.int32),
                "sums": rng.integers(-(2**40), 2**40, (len(rows), 4)),
                "touched": rng.integers(0, 9, (len(rows), 2)).astype(np.int32),
                "row_loss": rng.integers(0, 2**40, len(rows)),
                "row_examples": rng.integers(0, 9, len(rows)).astype(np.int32),
                "holders": rng.integers(0, 9, 7).astype(np.int32),
                "hits": rng.integers(0, 2**40, 7),
                "shown": rng.integers(0, 2**40, 7),
                "exposed": rng.integers(0, 9, 7),
            }
        )
    straight, shuffled = BlockSums.zeros(20, 2, 4, 7), BlockSums.zeros(20, 2, 4, 7)
    for i in range(8):
        straight.add(replies[i])
        shuffled.add(replies[order[i]])
    for name in ("sums", *(name for name, value in vars(straight).items() if isinstance(value, np.ndarray))):
        assert (getattr(straight, name) == getattr(shuffled, name)).all()
        assert getattr(straight, name).any()


# ---------------------------------------------------------------- optimizers


def two_steps(name: str, **keys) -> np.ndarray:
    """Row 1 of two is updated by 1, then by 2; its second entry by nobody."""
    optimizer = ServerOptimizer(name, 0.1, **keys)
    table = np.full((2, 2), 5.0, np.float32)
    changed = np.array([[True, False]])
    for update in (1.0, 2.0):
        optimizer.apply(table, np.array([1]), np.array([[update, 0.0]], np.float32), changed)
    assert table[0].tolist() == [5, 5]
    assert table[1, 1] == 5
    return float(table[1, 0]) - 5


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("sgd", 1 + 2),
        # m = 0.1, v = 0.01 -> 0.1 / (0.1 + 0.001); m = 0.09 + 0.2, v = 0.0099 + 0.04 -> 0.29 / (sqrt(0.0499) + 0.001)
        ("adam", 0.1 / 0.101 + 0.29 / (0.0499**0.5 + 0.001)),
        ("adagrad", 1 / 1.001 + 2 / (5**0.5 + 0.001)),  # v = 1, then 1 + 4
    ],
)
def test_optimizers_by_hand(name, steps):
    assert two_steps(name) == pytest.approx(0.1 * steps, rel=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad"])
def test_what_nobody_changed_stays_even_with_momentum(name):
    """Round 1 changes both entries; in round 2 nobody holds the second, whose momentum must not carry it on."""
    optimizer = ServerOptimizer(name, 0.1)
    table = np.zeros((1, 2), np.float32)
    optimizer.apply(table, np.array([0]), np.ones((1, 2), np.float32), np.ones((1, 2), bool))
    before = table.copy()
    optimizer.apply(table, np.array([0]), np.array([[1, 0]], np.float32), np.array([[True, False]]))
    assert table[0, 1] == before[0, 1]
    assert table[0, 0] > before[0, 0]


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_moments_wait_where_nobody_changed(name):
    """Rounds 1 and 3 update an entry by 1 and 2, round 2 only its neighbour: the same as two rounds in a row."""
    optimizer = ServerOptimizer(name, 0.1)
    table = np.zeros((1, 2), np.float32)
    for update, changed in ((1.0, True), (0.0, False), (2.0, True)):
        optimizer.apply(table, np.array([0]), np.array([[update, 5.0]], np.float32), np.array([[changed, True]]))
    assert table[0, 0] == pytest.approx(two_steps(name), rel=1e-5)


# ---------------------------------------------------------------- a round of one user group


def group_state(optimizer: str = "sgd") -> tuple[UserGroupState, Scenario]:
    scenario = Scenario.model_validate(
        {"name": "t", "data": {"path": "x.csv"}, "refinement": {"aggregation": {"optimizer": optimizer}}}
    )
    four = np.full(4, 0.5, np.float32)
    statistics = BlockStatistics(four, four.copy(), four.copy(), np.zeros(4, np.float32), four.copy())
    table = np.array([[1, 2], [3, 4]], np.float32)
    # so far 4 devices with 2 interactions with each item
    return UserGroupState(
        table, statistics, ServerOptimizer(optimizer, 1.0), np.full(4, 2.0), np.full(4, 4.0)
    ), scenario


def take(state: UserGroupState, total: BlockSums, scenario: Scenario) -> None:
    """What open contents do with the sums of a user group."""
    order = RowOrder.from_blocks(TWO_ITEMS, RANKED)
    apply_mean(
        state.table,
        order.items,
        total,
        order.position,
        scenario.refinement.aggregation.denominator,
        state.optimizer,
    )
    state.take_statistics(TWO_ITEMS, RANKED, order, total, scenario)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad"])
def test_blocks_that_nobody_held_stay_exactly_as_they_were(optimizer):
    state, scenario = group_state(optimizer)
    take(state, added(DEVICE_A, DEVICE_B), scenario)
    after_first = state.table.copy()
    assert after_first[1, 1] == 4
    assert (after_first != [[1, 2], [3, 4]]).sum() == 3
    take(state, added(DEVICE_B), scenario)
    assert state.table[0, 1] == after_first[0, 1]  # A alone holds it
    assert state.table[1, 1] == 4
    if optimizer == "sgd":
        np.testing.assert_allclose(after_first, [[1.3, 2.2], [3.6, 4]], atol=1e-6)
        np.testing.assert_allclose(state.table, [[1.5, 2.2], [4.2, 4]], atol=1e-6)


def test_popularity_is_per_device_that_could_count():
    """Item 0 was interacted with 2 + 1 times, item 1 3 times, by two devices that hold some slice of either."""
    state, scenario = group_state()
    take(state, added(DEVICE_A, DEVICE_B), scenario)
    # with the 2 interactions of 4 devices before: (2 + 3) / (4 + 2) for every slice of both items: a slice that few
    # devices hold is not more popular than its neighbour
    np.testing.assert_allclose(state.statistics.popularity, [5 / 6, 5 / 6, 5 / 6, 5 / 6], rtol=1e-6)
    # energy: squares of the new table, item by item and slice by slice
    np.testing.assert_allclose(state.statistics.energy, [1.3**2, 2.2**2, 3.6**2, 16], rtol=1e-5)


@pytest.mark.parametrize("all_rows", [False, True])
def test_energy_is_that_of_the_whole_table_where_only_some_rows_change(all_rows):
    layout = BlockLayout(np.arange(40, dtype=np.int32), 8, 2)
    rng = np.random.default_rng(0)
    table = rng.standard_normal((40, 8)).astype(np.float32)
    nothing = np.zeros(layout.num_blocks, np.float32)
    statistics = BlockStatistics(nothing, nothing, nothing, nothing, block_energy(layout, table))
    state = UserGroupState(table, statistics, ServerOptimizer("sgd", 1.0), np.zeros(80), np.zeros(80))
    earlier = statistics.energy
    before = earlier.copy()
    blocks = np.array([6, 7, 31, 2])  # of items 3, 15, 1
    order = RowOrder.from_blocks(layout, blocks)
    table[order.items] *= 2
    if all_rows:  # a rule of one's own changes what it wants
        table[39] *= 3
    scenario = group_state()[1]
    state.take_statistics(layout, blocks, order, BlockSums.zeros(3, 2, 8, 4), scenario, all_rows=all_rows)
    np.testing.assert_array_equal(statistics.energy, block_energy(layout, table))
    assert (statistics.energy != before).sum() == (8 if all_rows else 6)
    np.testing.assert_array_equal(earlier, before)  # a copy of the state may have it


def test_loss_is_the_mean_over_interactions_and_stays_where_nobody_had_any():
    state, scenario = group_state()
    one = reply([0], [[0.1, 0.0]], [[1, 0]], [1, 1, 0], row_loss=fixed([3.0]), row_examples=[2])
    take(state, added(one), scenario)
    np.testing.assert_allclose(state.statistics.loss, [1.5, 1.5, 0, 0], atol=1e-6)


@given(st.integers(0, 10**6))
def test_counting_the_rows_that_were_sent_is_counting_all_blocks(seed):
    """Where a block is a row, to the last bit; and what a copy of the state has stays as it was."""
    rng, layout = np.random.default_rng(seed), BlockLayout(np.arange(30, dtype=np.int32), 4, 1)
    scenario = group_state()[1]
    blocks = rng.permutation(30)[: rng.integers(1, 31)]
    order = RowOrder.from_blocks(layout, blocks)
    total = BlockSums.zeros(len(blocks), 1, 4, len(blocks))
    total.row_examples[:] = rng.integers(0, 3, len(blocks))
    total.row_loss[:] = rng.integers(0, 2**40, len(blocks))
    total.holders[:] = rng.integers(0, 9, len(blocks))

    def state() -> UserGroupState:
        known = np.linspace(0, 2, 30)
        statistics = BlockStatistics(*(known.astype(np.float32) for _ in range(5)))
        counted = np.arange(30.0), np.arange(30.0)
        return UserGroupState(np.ones((30, 4), np.float32), statistics, ServerOptimizer("sgd", 1.0), *counted)

    rows, all_blocks = state(), state()
    before = rows.statistics.loss, rows.counted_interactions, rows.counted_devices
    copies = [array.copy() for array in before]
    rows._count_rows(order.items, blocks, total, scenario)
    all_blocks._count_blocks(layout, order.items, blocks, total, scenario)
    np.testing.assert_array_equal(rows.statistics.loss, all_blocks.statistics.loss)
    np.testing.assert_array_equal(rows.counted_interactions, all_blocks.counted_interactions)
    np.testing.assert_array_equal(rows.counted_devices, all_blocks.counted_devices)
    for array, copied in zip(before, copies, strict=True):
        np.testing.assert_array_equal(array, copied)
