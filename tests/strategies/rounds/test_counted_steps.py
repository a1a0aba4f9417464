"""No sum of few devices is opened: what stage 1 leaves out, in the clear and masked, and what an attacker finds."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import nnls

from fl_peel import wire
from fl_peel.attacks.decoder import (
    GroupSums,
    ItemCounts,
    PassView,
    absences,
    difference,
    lone_vectors,
    owners_items,
    reconstruct,
    solved_shares,
)
from fl_peel.data.interactions import UserItems
from fl_peel.device_storage import device_splits
from fl_peel.errors import DataError
from fl_peel.pretraining.spectral import halves
from fl_peel.pretraining.stage1 import GroupPlan, PooledSums, run_stage1
from fl_peel.steps.base import (
    PASS_SCALE,
    UNIT_SCALE,
    StepTerms,
    add_rows,
    in_units,
    nearest,
    opened_rows,
    packed_rows,
    unit_vectors,
    unpacked_rows,
)
from fl_peel.steps.passes import pass_sums
from fl_peel.steps.user_groups import GroupedStep, whole_of
from tests.helpers.blocks import rows_of
from tests.helpers.settings import SPECTRAL as SETTINGS
from tests.strategies.rounds.test_clear_steps import AT_HOME, SPECTRAL, changed, fleet, prepared
from tests.strategies.rounds.test_masked_steps import CHEAP, secure

LEAST = 5
"""More owners than some items of the planted data have, and more members than its smallest groups."""


@pytest.fixture
def scenario(tiny_scenario, tmp_path):
    keys = SPECTRAL | CHEAP | {"count_exponent": None}
    home = fleet(tmp_path, AT_HOME, "home.yaml")
    least = {"min_owners": LEAST}
    return changed(tiny_scenario, pretraining=keys, fleet=home, refinement={"rounds": 0}, privacy=least)


def test_the_rule_by_hand():
    opened = opened_rows(np.array([0, 1, 4, 5, 6, 0, 0, 0, 9]), 5)
    assert opened.tolist() == [False, False, False, True, True, False, False, False, True]
    assert unpacked_rows(packed_rows(opened), 9).tolist() == opened.tolist()
    assert not unpacked_rows(np.zeros(0, np.uint8), 9).any(), "what the server does not name stays closed"
    assert unpacked_rows(packed_rows(opened), 4).tolist() == opened[:4].tolist()


def test_no_row_of_few_owners_and_no_small_group_is_ever_added_up(scenario, tmp_path):
    many = changed(scenario, user_groups={"count": 12, "min_size": 4})
    grid = prepared(many, tmp_path / "run", nodes=1)[1].grid
    owners = device_splits(scenario, "", str(tmp_path / "run")).train.popularity(59)
    passes, sizes = 0, []
    asked = None
    for kind, record in grid.crossed:
        if kind == wire.STEP:
            asked = wire.unpack(wire.StepRequest, record).step.name
        if kind != f"reply to {wire.STEP}":
            continue
        sums = wire.unpack(wire.StepReply, record).sums
        if asked == "pass":
            passes += 1
            assert not sums["columns"][owners < LEAST].any()
            assert sums["columns"][owners >= LEAST].any(axis=1).all()
        elif asked in ("groups", "moments"):
            assert ("first" in sums) == (asked == "moments"), "of vectors, groups say nothing"
            sizes.append(sums["sizes"])
    assert passes == 2
    assert sizes[0].min() < LEAST <= sizes[-1].min(), "twelve groups of forty devices: small ones are dissolved"


@pytest.mark.parametrize("masked", [False, True])
def test_a_choice_that_few_answer_is_not_opened(scenario, tmp_path, masked):
    few = changed(scenario, pretraining={"filter_devices": 5}, privacy={"min_owners": 6})  # five devices are asked
    with pytest.raises(DataError, match=r"privacy\.min_owners.*filter_devices"):
        prepared(secure(few) if masked else few, tmp_path / "run")


def test_the_decoder_finds_whole_histories_of_single_owners_and_nothing_of_rows_that_stay_closed(tmp_path):
    """The planted run: every device alone has one item, so that sums which are opened all the same tell everything."""
    rng = np.random.default_rng(0)
    rows = [[*sorted(rng.permutation(60)[:12].tolist()), 60 + user] for user in range(20)]
    data = UserItems(np.arange(21) * 13, np.array(rows, np.int32).reshape(-1))
    tables = [halves(rng.standard_normal((80, 50)).astype(np.float32)) for _ in range(2)]

    def attacked(least: int):
        opened = opened_rows(data.popularity(80), least)
        views = [PassView(table, pass_sums(table, data, 0.3, opened=opened)) for table in tables]
        return reconstruct(views, data, 0.3)

    before, after = attacked(1), attacked(2)
    assert (before.single_owners, before.exact) == (20, 20)
    assert (after.single_owners, after.exact) == (20, 0)
    assert after.f1 < before.f1


def planted_owners(owners, *, alike=False):
    """Devices with histories of other lengths, or ``alike``; of item 0 so many are the owners. Sums, and the truth."""
    rng = np.random.default_rng(owners)
    sizes = [20 if alike else 12 + 3 * user for user in range(owners + 4)]
    chosen = [np.sort(rng.permutation(np.arange(1, 80))[: size - 1]) for size in sizes]
    rows = [np.concatenate([np.arange(user < owners), mine]) for user, mine in enumerate(chosen)]
    data = rows_of(*rows)
    tables = [halves(rng.standard_normal((80, 50)).astype(np.float32)) for _ in range(2)]
    return [PassView(table, pass_sums(table, data, 0.3)) for table in tables], data


def decoded_owners(views, data, owners):
    """What the decoder finds of the owners of item 0, the first of the devices."""
    (shares,) = solved_shares(views, np.array([0]), data.popularity(80))
    return owners_items(shares, 0, data.counts()[:owners], 0.3)


@pytest.mark.parametrize("owners", [1, 2, 3, 5])
def test_the_decoder_tells_the_owners_of_a_sum_apart(owners):
    """The planted run: whole histories of each of them, whatever ``min_owners`` is; who has most adds least."""
    views, data = planted_owners(owners)
    decoded = decoded_owners(views, data, owners)
    assert [np.flatnonzero(one).tolist() for one in decoded] == [data.row(user).tolist() for user in range(owners)]


def test_owners_that_add_alike_are_left_as_one():
    """For each of them as many items as it has, of those that most owners have: no history of a single one."""
    views, data = planted_owners(3, alike=True)
    decoded = decoded_owners(views, data, 3)
    assert (decoded == decoded[0]).all()
    shared = np.bincount(np.concatenate([data.row(user) for user in range(3)]), minlength=80)
    assert decoded[0].sum() == 20
    assert shared[decoded[0]].min() >= shared[~decoded[0]].max()


def test_fewer_numbers_than_items_tell_no_owner_apart_and_fit_what_came_back():
    """One pass of 30 columns is less than 80 unknowns: the guess explains the sums, and finds no history."""
    views, data = planted_owners(3)
    few = [PassView(views[0].table[:, :30], views[0].sums[:, :30])]
    (shares,) = solved_shares(few, np.array([0]), data.popularity(80))
    assert np.allclose(few[0].table.T @ shares, few[0].sums[0] / PASS_SCALE, atol=1e-6)
    of_all, of_few = (reconstruct(some, data, 0.3) for some in (views, few))
    assert of_all.exact_devices > 0
    assert of_few.exact_devices == 0
    assert of_few.f1 < of_all.f1


def test_a_period_later_the_difference_is_what_a_device_has_done_since():
    """The planted run: one of three owners has another item in the second period, whose sums are decoded alone."""
    views, data = planted_owners(3)
    new = int(np.setdiff1d(np.arange(80), data.row(2))[0])
    items = [data.row(user) if user != 2 else np.sort([*data.row(2), new]) for user in range(data.num_users)]
    later = rows_of(*items)
    moved = [PassView(halves(one.table * 0.9), pass_sums(halves(one.table * 0.9), later, 0.3)) for one in views]
    before, after = decoded_owners(views, data, 3), decoded_owners(moved, later, 3)
    changed_items = np.argwhere(before != after)
    assert changed_items.tolist() == [[2, new]]


def test_who_alone_changes_its_user_group_is_the_difference_of_two_rounds():
    """The planted run: of 40 devices one leaves the first group for the third, two leave the second for the fourth."""
    rng = np.random.default_rng(0)
    items = np.sort(rng.permuted(np.tile(np.arange(40, dtype=np.int32), (40, 1)), axis=1)[:, :6], axis=1)
    data = UserItems(np.arange(41) * 6, items.reshape(-1))
    own = rng.standard_normal((40, 24)).astype(np.float32)
    units = in_units(unit_vectors(add_rows(own, data))).astype(np.int64)
    before = np.repeat(np.arange(5), 8)
    after = before.copy()
    after[[3, 8, 9]] = 2, 3, 3

    def opened(groups):
        sums = np.zeros((5, 24), np.int64)
        np.add.at(sums, groups, units)
        return GroupSums(np.bincount(groups, minlength=5), sums)

    rounds = [opened(before), opened(after), opened(after)]
    assert lone_vectors(rounds) == pytest.approx(units[3:4] / UNIT_SCALE)
    found = difference(rounds, own, data)
    assert (found.devices, found.f1) == (1, 1.0), "six of forty items, from 24 numbers"
    assert found.popularity_f1 < 0.6
    assert difference(rounds[1:], own, data).devices == 0
    assert len(lone_vectors([rounds[0], GroupSums(rounds[1].sizes[:4], rounds[1].sums[:4])])) == 0


def test_who_alone_is_absent_from_one_of_two_counts_is_their_difference():
    """The planted run: of 40 devices one lacks in the second count; then another in the first one as well, whose items
    are as many less: what both have cancels out, and stays unknown.
    """
    rng = np.random.default_rng(1)
    data = rows_of(*(np.sort(rng.permutation(60)[:9]) for _ in range(40)))

    def count(*absent):
        there = np.setdiff1d(np.arange(40), absent)
        return ItemCounts(there, data.select(there).popularity(60), data)

    alone = absences([(count(), count(7))])
    assert (alone.devices, alone.f1) == (1, 1.0)
    assert alone.popularity_f1 < 0.5
    shared = len(np.intersect1d(data.row(7), data.row(11)))
    assert shared
    both = absences([(count(11), count(7))])
    found = 9 - shared
    assert (both.devices, both.f1) == (2, pytest.approx(2 * found / (found + 9)))
    many = absences([(count(), count(*range(20)))])
    assert many.devices == 20
    assert many.f1 < 0.5, "what many have in common"
    assert absences([(count(), count())]) is None


def outside(first, products, units=UNIT_SCALE):
    """What a sum of vectors (K,) has outside the space of the vectors whose products (K, K) are added up: the projector
    onto that outside, and the length of what is there.
    """
    values, basis = np.linalg.eigh(products / units**2)
    inside = basis[:, values > 1e-6]
    projector = np.eye(len(first)) - inside @ inside.T
    return projector, np.linalg.norm(projector @ first / units)


def test_products_of_other_devices_than_the_vectors_would_give_whoever_alone_left_away():
    """The planted run: vectors of eight devices are added up, then one leaves, and of seven the products. No two sums
    are alike, and still the history is found whole: moments are therefore asked for once, all together.
    """
    rng = np.random.default_rng(0)
    items = np.sort(rng.permuted(np.tile(np.arange(40, dtype=np.int32), (8, 1)), axis=1)[:, :6], axis=1)
    data = UserItems(np.arange(9) * 6, items.reshape(-1))
    own = rng.standard_normal((40, 32)).astype(np.float32)
    points = in_units(unit_vectors(add_rows(own, data)))
    projector, length = outside(points.sum(axis=0), points[1:].T @ points[1:])
    assert length > 0.5
    assert outside(points.sum(axis=0), points.T @ points)[1] < 1e-6, "of the same devices nothing is left"
    share = nnls(projector @ own.T, projector @ points.sum(axis=0) / UNIT_SCALE)[0]
    assert set(np.argsort(-share)[:6].tolist()) == set(items[0].tolist())


class Recorded(PooledSums):
    """Keeps every sum that is opened of vectors."""

    def ask(self, step, sent, opened=None):
        whole = step.whole(self.terms, super().ask(step, sent, opened))
        if isinstance(step, GroupedStep) and whole.keys() != {"sizes"}:
            self.__dict__.setdefault("vectors", []).append(GroupSums(whole["sizes"], whole["first"]))
            products = [whole_of(half, step.columns) for half in whole["second"]]
            self.__dict__.setdefault("products", []).append(np.stack(products))
        yield (0, step.num_pieces), whole


def test_stage_1_adds_vectors_up_once_where_rounds_of_k_means_gave_single_devices_away():
    """The rounds are those of Lloyd's algorithm, which stage 1 took before."""
    rng = np.random.default_rng(1)
    items = np.sort(rng.permuted(np.tile(np.arange(40, dtype=np.int32), (60, 1)), axis=1)[:, :6], axis=1)
    data = UserItems(np.arange(61) * 6, items.reshape(-1))
    config = replace(SETTINGS, columns=24, group_columns=24, passes=4, count_exponent=0.4, value_exponent=0.1)
    sums = Recorded(data, StepTerms(40, config.user_exponent))
    start = run_stage1(sums, config, GroupPlan(8, 4, 5, 0))
    assert len(start.groups) > 1
    assert difference(sums.vectors, start.own, data).devices == 0
    assert [int(one.sizes.sum()) for one in sums.vectors] == [60], "each device is in one sum"
    small = [group for group, size in enumerate(sums.vectors[0].sizes) if size < 24]
    assert small
    assert max(outside(sums.vectors[0].sums[one], sums.products[0][one])[1] for one in small) < 1e-6

    vectors, centroids, rounds = unit_vectors(add_rows(start.own, data)), start.centroids, []
    for _ in range(8):
        groups = nearest(vectors, centroids)
        whole = np.zeros((len(centroids), 24), np.int64)
        np.add.at(whole, groups, in_units(vectors).astype(np.int64))
        rounds.append(GroupSums(np.bincount(groups, minlength=len(centroids)), whole))
        centroids = (whole / UNIT_SCALE / rounds[-1].sizes[:, None]).astype(np.float32)
    assert difference(rounds, start.own, data).devices > 0


def test_the_server_asks_for_no_count_of_what_has_no_rows(scenario, tmp_path):
    grid = prepared(scenario, tmp_path / "run", nodes=1)[1].grid
    counting = [
        record["config"]["step.step"]
        for kind, record in grid.crossed
        if kind == wire.STEP and record["config"]["step"] == "contributors"
    ]
    assert set(counting) == {"pass", "choice", "moments"}
