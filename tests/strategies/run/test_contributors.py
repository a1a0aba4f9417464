"""No sum of few devices is opened: what stage 1 leaves out, in the clear and masked, and what an attacker finds."""

import dataclasses

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.attacks.decoder import PassView, reconstruct
from fl_peel.data.interactions import UserItems
from fl_peel.device_storage import device_splits
from fl_peel.errors import DataError
from fl_peel.exchange.contributors import opened_rows, packed_rows, unpacked_rows
from fl_peel.pretraining.contribution import OpenContribution
from fl_peel.pretraining.costs import StepShape, cost_of
from fl_peel.pretraining.spectral_steps import halves
from fl_peel.pretraining.stage1 import PooledSums, run_stage1
from fl_peel.secure.stage1_vector import StepVector
from tests.strategies.run.test_masked_stage1 import CHEAP, same, secure
from tests.strategies.run.test_masked_stage1 import prepared as prepared_masked
from tests.strategies.run.test_stage1 import AT_HOME, SPECTRAL, changed, prepared

LEAST = 5
"""More owners than some items of the planted data have, and more members than its smallest groups."""


@pytest.fixture
def scenario(tiny_scenario, tmp_path):
    (tmp_path / "home.yaml").write_text(AT_HOME)
    keys = SPECTRAL | CHEAP | {"count_exponent": None}
    home = str(tmp_path / "home.yaml")
    least = {"min_owners": LEAST}
    return changed(tiny_scenario, pretraining=keys, fleet=home, refinement={"rounds": 0}, privacy=least)


def test_the_rule_by_hand():
    opened = opened_rows(np.array([0, 1, 4, 5, 6, 0, 0, 0, 9]), 5)
    assert opened.tolist() == [False, False, False, True, True, False, False, False, True]
    assert unpacked_rows(packed_rows(opened), 9).tolist() == opened.tolist()
    assert not unpacked_rows(np.zeros(0, np.uint8), 9).any(), "what the server does not name stays closed"
    assert unpacked_rows(packed_rows(opened), 4).tolist() == opened[:4].tolist()


@pytest.mark.parametrize("nodes", [1, 4])
def test_tables_are_those_of_pooled_data_in_the_clear_and_masked(scenario, tmp_path, nodes):
    splits = device_splits(scenario, "", str(tmp_path / "data"))
    config = scenario.pretraining.spectral()
    pooled = PooledSums(splits.train, 59, config.user_exponent, validation=splits.validation, min_owners=LEAST)
    start = run_stage1(pooled, config, dim=8, num_groups=2, min_size=4, seed=0)
    clear = prepared(scenario, tmp_path / "clear", nodes)[0]
    assert np.array_equal(clear.start.own, start.own)
    assert np.array_equal(clear.start.centroids, start.centroids)
    assert all((one.table == two.table).all() for one, two in zip(clear.start.groups, start.groups, strict=True))
    rare = splits.train.popularity(59) < LEAST
    assert 0 < rare.sum() < 59
    assert not clear.start.own[rare].any()
    assert not any(group.table[rare].any() or group.items[rare].any() for group in clear.start.groups)
    assert same(clear, prepared_masked(secure(scenario), tmp_path / "masked", nodes)[0])


def test_no_row_of_few_owners_and_no_small_group_is_ever_added_up(scenario, tmp_path):
    many = changed(scenario, user_groups={"count": 12, "min_size": 4})
    _, _, _, grid = prepared(many, tmp_path / "run", nodes=1)
    owners = device_splits(scenario, "", str(tmp_path / "run")).train.popularity(59)
    passes, closed = 0, 0
    asked = None
    for kind, record in grid.crossed:
        if kind == wire.SUMS:
            asked = wire.unpack(wire.SumsRequest, record)
        if kind != f"reply to {wire.SUMS}":
            continue
        sums = wire.unpack(wire.SumsReply, record).sums
        if asked.counts_contributors:
            assert not len(sums[wire.EVERYBODY].first), "a count is all that is said"
        elif asked.step == "pass":
            passes += 1
            assert not sums[wire.EVERYBODY].first[owners < LEAST].any()
            assert sums[wire.EVERYBODY].first[owners >= LEAST].any(axis=1).all()
        elif asked.step == "groups":
            small = sums[wire.EVERYBODY].sizes < LEAST
            closed += int(small.sum())
            assert not sums[wire.EVERYBODY].first[small].any()
            assert not sums[wire.EVERYBODY].sizes[small].any()
        elif asked.step == "moments":
            for one in sums.values():
                assert one.sizes[0] == 0 or one.sizes[0] >= LEAST
                assert one.first.any() == one.second.any() == (one.sizes[0] > 0)
    assert passes == 2
    assert closed, "twelve groups of forty devices: some are small"


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
    words = OpenContribution(80, 0.3, 0.5)
    tables = [halves(rng.standard_normal((80, 50)).astype(np.float32)) for _ in range(2)]

    def attacked(least: int):
        opened = opened_rows(words.counts(data), least)
        views = [
            PassView(table, words.passed(table, np.ones(80, np.float32), slice(None), data, None, opened))
            for table in tables
        ]
        return reconstruct(views, data, 0.3)

    before, after = attacked(1), attacked(2)
    assert (before.single_owners, before.exact) == (20, 20)
    assert (after.single_owners, after.exact) == (20, 0)
    assert after.f1 < before.f1
    # an item with several owners still tells the union of their histories, more than popularity does
    alone = reconstruct(
        [PassView(t, words.passed(t, np.ones(80, np.float32), slice(None), data)) for t in tables],
        data.keep(data.items < 60),
        0.3,
    )
    assert alone.f1 > alone.popularity_f1


def test_both_parts_of_a_step_are_in_what_it_takes():
    items, budgets = np.array([10, 100]), np.array([1 << 20, 1 << 20])
    for step, groups, down, up in (("pass", 0, [2, 13], 0), ("groups", 20, 3, 0), ("moments", 20, 3, 4)):
        asked = StepShape(step, 44, groups)
        bare, both = (cost_of(dataclasses.replace(asked, counts_contributors=c), items, budgets) for c in (False, True))
        assert (both.download_bytes - bare.download_bytes == down).all(), "which rows are opened, a bit each"
        assert (both.upload_bytes - bare.upload_bytes == up).all(), "of passes and groups, ids go with the count alone"
        assert (both.exchanges - bare.exchanges == 1).all()
    counts = [cost_of(StepShape("counts", counts_contributors=c), items, budgets) for c in (False, True)]
    assert counts[0].upload_bytes.tolist() == counts[1].upload_bytes.tolist()
    vector = StepVector("pass", 44, 0, 0, 59, 0, 40)
    assert (vector.counting.units, vector.counting.contribution_bytes) == (1, 59 * 8)
    assert dataclasses.replace(vector, step="groups", groups=7).counting.contribution_bytes == 7 * 8
    assert dataclasses.replace(vector, step="choice").counting.contribution_bytes == 8


def test_the_server_asks_for_no_count_of_what_has_no_rows(scenario, tmp_path):
    _, _, _, grid = prepared(scenario, tmp_path / "run", nodes=1)
    counting = [
        request.step
        for kind, record in grid.crossed
        if kind == wire.SUMS and (request := wire.unpack(wire.SumsRequest, record)).counts_contributors
    ]
    assert set(counting) == {"pass", "groups", "moments"}
