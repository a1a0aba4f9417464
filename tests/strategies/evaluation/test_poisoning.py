"""Malicious devices and robust aggregation: who they are, what they send, what is left of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.node.contents import buckets_of
from clients.node.poisoning import Adversary, malicious, pretended, target_items, train_poisoned
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.kernels import FIXED_POINT
from fl_peel.scenario.method import Poisoning, Robust
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.group import train_group
from fl_peel.training.update import LocalWork
from simulations.scenario_files import load_scenario
from strategies.figures.schema import to_json
from strategies.groups.state import BlockSums, mean_update
from strategies.rounds.contents import krum_choice, robust_update, trimmed
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.blocks import rows_of
from tests.helpers.loopback import LoopbackGrid

NO_TARGETS = np.zeros(0, np.int32)


def scenario(**changes) -> Scenario:
    return Scenario.model_validate({"name": "p", "data": {"name": "ml-100k"}, **changes})


def world(num_devices=6, num_items=12):
    """Devices with three train items each, on one group's table."""
    rng = np.random.default_rng(0)
    layout = BlockLayout(np.arange(num_items, dtype=np.int32), 4, 1)
    table = rng.normal(size=(num_items, 4)).astype(np.float32)
    ranked = rank_blocks(layout, "fp32", -np.arange(num_items, dtype=np.float64), table)
    users = rng.normal(size=(num_devices, 4)).astype(np.float32)
    train = rows_of(*([int(x) for x in rng.permutation(num_items)[:3]] for _ in range(num_devices)))
    seeds = np.arange(num_devices, dtype=np.uint64) + np.uint64(7)
    return ranked, np.full(num_devices, num_items), users, train, seeds


def sums_with(liars, part, how=None, targets=NO_TARGETS):
    ranked, cutoffs, users, train, seeds = world()
    work = LocalWork(ranked, cutoffs, users, train, seeds, how or LocalTraining())
    return train_poisoned(work, Adversary(np.array(liars), part, targets))


def single(i, how=None):
    ranked, cutoffs, users, train, seeds = world()
    one = np.array([i])
    return train_group(
        LocalWork(ranked, cutoffs[one], users[one], train.select(one), seeds[one], how or LocalTraining())
    )


def test_malicious_devices_are_drawn_by_identity_and_nested():
    devices = np.arange(20_000)
    one = malicious(scenario(), devices, 0.01)
    ten = malicious(scenario(), devices, 0.1)
    assert 0.008 < one.mean() < 0.012
    assert 0.09 < ten.mean() < 0.11
    assert ten[one].all()
    assert np.array_equal(malicious(scenario(), devices[::-1][:50], 0.1), ten[::-1][:50])
    assert not malicious(scenario(), devices).any()


def test_nobody_malicious_is_plain_training_to_the_last_bit():
    ranked, cutoffs, users, train, seeds = world()
    plain_users, plain = train_group(LocalWork(ranked, cutoffs, users, train, seeds, LocalTraining()))
    got_users, got = sums_with([False] * 6, Poisoning())
    assert np.array_equal(got_users, plain_users)
    assert np.array_equal(got.sums, plain.sums)
    assert np.array_equal(got.touched, plain.touched)
    for name in ("loss", "examples", "norms", "touched_pieces", "holders", "row_examples", "row_loss"):
        assert np.array_equal(getattr(got, name), getattr(plain, name)), name


@pytest.mark.parametrize(("kind", "times"), [("scaled", 10), ("sign-flip", -10)])
def test_what_one_malicious_device_adds(kind, times):
    """Sums are those of the five others plus ``times`` what device 2 learned."""
    _, alone = single(2)
    _, got = sums_with([i == 2 for i in range(6)], Poisoning(share=0.5, kind=kind, factor=10))
    _, honest = sums_with([False] * 6, Poisoning())
    assert np.array_equal(got.sums - honest.sums, (times - 1) * alone.sums)
    assert np.array_equal(got.touched, honest.touched)


def test_sums_that_pass_32_bits_go_the_wide_way():
    _, got = sums_with([i == 2 for i in range(6)], Poisoning(share=0.5, kind="scaled", factor=1e6))
    assert got.is_wide.any()
    _, alone = single(2)
    _, honest = sums_with([False] * 6, Poisoning())
    assert np.array_equal(got.sums, honest.sums + (10**6 - 1) * alone.sums)


def test_the_node_bounds_what_malicious_devices_send():
    """A bound of 0.05: the one device's contribution has that norm, whatever its factor."""
    how = LocalTraining(max_norm=0.05)
    contributions = []
    for factor in (10, 1e6):
        _, got = sums_with([i == 2 for i in range(6)], Poisoning(share=0.5, kind="scaled", factor=factor), how)
        _, others = sums_with([False] * 6, Poisoning(), how)
        _, alone = single(2, how)
        mine = (got.sums - others.sums + alone.sums) / FIXED_POINT
        assert np.linalg.norm(mine) == pytest.approx(0.05, abs=1e-6)
        contributions.append(mine)
    assert np.allclose(*contributions, atol=1e-6)


def test_promotion_trains_on_the_targets_and_boosts_their_rows():
    _, alone = single(2)
    targets = np.array([11], np.int32)
    _, train = world()[2:4]
    assert 11 not in train.row(2)
    _, once = sums_with([i == 2 for i in range(6)], Poisoning(share=0.5, kind="promote", factor=1), targets=targets)
    _, boosted = sums_with([i == 2 for i in range(6)], Poisoning(share=0.5, kind="promote", factor=5), targets=targets)
    _, honest = sums_with([False] * 6, Poisoning())
    row = 11  # one item a block, ranked by number
    mine = once.sums[row] - honest.sums[row] + alone.sums[row]
    assert once.row_examples[row] == honest.row_examples[row] + 1
    assert np.abs(boosted.sums[row] - once.sums[row] - 4 * mine).max() <= 1
    others = np.arange(12) != row
    assert np.array_equal(boosted.sums[others], once.sums[others])


def test_pretended_items_come_once_and_on_liars_alone():
    items = rows_of([1, 2], [3], [])
    got = pretended(items, np.array([True, False, True]), np.array([2, 5], np.int32))
    assert [got.row(i).tolist() for i in range(3)] == [[1, 2, 5], [3], [2, 5]]


def test_target_items_are_the_scenarios_or_drawn():
    assert target_items(scenario(poisoning={"target_items": [7, 3, 99]}), 50).tolist() == [3, 7]
    drawn = target_items(scenario(), 50)
    assert len(drawn) == 5
    assert np.array_equal(drawn, target_items(scenario(), 50))


def test_trimmed_means_by_hand():
    """1, 2, 3, 4, 100 without one at either end: 3; the median of 1, 2, 3, 100 is 2.5; of nothing 0."""
    five = np.array([100.0, 2, 3, 4, 1], np.float32)[:, None]
    assert trimmed(five, 0.2)[0] == 3
    assert trimmed(five, 0.5)[0] == 3
    assert trimmed(five, 0.0)[0] == 22
    four = np.array([100.0, np.nan, 2, 3, 1], np.float32)[:, None]
    assert trimmed(four, 0.5)[0] == 2.5
    assert trimmed(np.full((3, 1), np.nan, np.float32), 0.5)[0] == 0
    assert trimmed(np.array([[7.0], [np.nan]], np.float32), 0.4)[0] == 7


@given(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=15), st.floats(0, 0.5))
def test_a_minority_of_buckets_cannot_leave_the_range_of_the_others(values, trim):
    """With ``floor(trim n)`` numbers changed to anything, the result lies between the others' least and largest."""
    honest = np.array(values, np.float32)[:, None]
    few = min(int(np.floor(trim * len(honest) + 1e-9)), (len(honest) - 1) // 2)
    for lie in (1e6, -1e6):
        poisoned = honest.copy()
        poisoned[:few] = lie
        result = trimmed(poisoned, trim)[0]
        assert honest[few:].min() - 1e-4 <= result <= honest[few:].max() + 1e-4


def test_krum_by_hand():
    """Five near 0 and one at 10, a share of 0.2 (f = 2): the far one and the farther of the rest go, four stay."""
    updates = np.array([[0.1], [0.2], [0.3], [0.4], [0.9], [10.0], [0.0]], np.float32)
    kept = krum_choice(updates, 0.2)
    assert kept.tolist() == [0, 1, 2, 3]  # the last is all zero: nothing to say
    assert krum_choice(updates[:3], 0.2).tolist() == [0, 1, 2]  # too few to tell


def bucket_sums(means, touched, num_rows=1, dim=2):
    """Buckets with one row each, whose devices moved it by ``means`` on average."""
    parts = []
    for mean, count in zip(means, touched, strict=True):
        part = BlockSums.zeros(num_rows, 1, dim, num_rows)
        if count:
            one = np.ones(1, np.int64)
            part.add(
                {
                    "rows": np.zeros(1, np.int32),
                    "sums": np.full((1, dim), round(mean * count * FIXED_POINT)),
                    "touched": np.full((1, 1), count),
                    "row_loss": one,
                    "row_examples": one,
                    "holders": one,
                }
            )
        parts.append(part)
    return parts


def test_only_buckets_that_changed_a_row_have_a_say():
    """Buckets' means 1, 2, 50 and one that never met the row: the median of three is 2, the plain mean is 53/3."""
    parts = bucket_sums([1, 2, 50, 0], [1, 1, 1, 0])
    position = np.zeros((1, 1), np.int32)
    update, changed = robust_update(parts, position, "touched", Robust(rule="median"))
    assert update.tolist() == [[2, 2]]
    assert changed.all()
    total = BlockSums.zeros(1, 1, 2, 1)
    for part in parts:
        total.parts += part.parts
        total.touched += part.touched
    assert mean_update(total, position, "touched")[0][0, 0] == pytest.approx(53 / 3)


def test_buckets_are_a_matter_of_identity():
    part = scenario(refinement={"aggregation": {"robust": {"rule": "median", "buckets": 4}}})
    devices = np.arange(4000)
    whole = buckets_of(part, devices)
    assert np.array_equal(buckets_of(part, devices[1::2]), whole[1::2])
    assert (np.bincount(whole, minlength=4) > 900).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"secure_aggregation": {"enabled": True}}, "secure aggregation hides"),
        ({"privacy": {"rows": "all-sent"}}, "privacy hides"),
    ],
)
def test_sub_cohorts_and_what_hides_them_exclude_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        scenario(refinement={"aggregation": {"robust": {"rule": "krum"}}}, **changes)


def test_off_is_off(tiny, tmp_path):
    """Without malicious devices there is no field, no sub-cohort on the wire, no further folder of state."""
    grid = LoopbackGrid(2)
    result = serve(grid, load_scenario(tiny), RunPaths("", str(tmp_path / "run")))
    assert result.poisoning is None
    assert "poisoning" not in to_json(result)
    assert {path.name for path in (tmp_path / "run" / "nodes").iterdir()} == {"0-of-2", "1-of-2"}
    assert not any("bucket" in name for _, content in grid.crossed for name in content.array_records["arrays"])
