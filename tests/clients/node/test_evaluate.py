"""Four devices rank under four budgets, by hand: what is added up, what is told of each, what is stored."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from clients.node.evaluate import evaluate_budgets
from fl_peel.array_specs import SUM_SCALE
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import pack_ranking
from fl_peel.blocks.stored import StoredEmbedding, overhead_bytes
from fl_peel.ranking.bootstrap import Replicates
from fl_peel.ranking.top import LIST_METRICS, Tiles
from fl_peel.wire import EVERYBODY, OWN_BUDGET, UNLIMITED
from tests.helpers.blocks import rows_of

ITEMS = np.arange(30)
LAYOUT = BlockLayout(ITEMS.astype(np.int32), 1, 1)
TABLE = ITEMS.astype(np.float32)[:, None]
BASE, BLOCK = overhead_bytes(1), 6
LIST = pack_ranking(LAYOUT, "fp32", -ITEMS, TABLE, None)
"""Items 0, 1, 2 and so on, each better than the one before."""

BUDGETS = [BASE + 2 * BLOCK, OWN_BUDGET, BASE + 3 * BLOCK, UNLIMITED]
FACTORS, ROOMS = [1.0, 2.0, 1.0, 1.0], [-1.0, -1.0, 1.0, -1.0]
OWN = np.array([BASE + 3 * BLOCK, 0, BASE + BLOCK, BASE + 4 * BLOCK])

# device 10 wants item 3, which is among 13 but not among 2, 3, or the best 20 of all; 11 wants item 0 and has no memory
# of its own; 12 wants nothing, and has seen item 1; 13 wants items 0 and 29
RECALL = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]])
SECOND = 1 / np.log2(3)
"""NDCG of what is found at rank 2; items 0 to k are ranked k to 0."""
IDEAL = 1 + SECOND
NDCG = np.array(
    [[0, 1 / np.log2(11), 0, 0], [SECOND, 0, 0, 0], [0] * 4, np.array([SECOND, 1 / 4, 1 / 2, 1]) / IDEAL]
)  # fmt: skip


def cohort_of(folder=Path("nowhere"), device="cpu"):
    """Devices 10 to 13; 12 is of class 0, the others of class 1."""
    return SimpleNamespace(
        scenario=SimpleNamespace(
            evaluation=SimpleNamespace(top_n=20, list_lengths=(10, 20)),
            shown_bytes=lambda num_items: 4,
            engine=SimpleNamespace(device=device),
            poisoning=SimpleNamespace(largest_share=0.0),
        ),
        state={
            "r": SimpleNamespace(groups=np.array([0, 0, 1, 1]), users=np.arange(1.0, 5, dtype=np.float32)[:, None])
        }.__getitem__,
        layout=lambda: LAYOUT,
        devices=np.arange(10, 14),
        classes=np.array([1, 1, 0, 1], np.int16),
        fleet=SimpleNamespace(names=("a", "b")),
        budgets=SimpleNamespace(at={3: OWN}.__getitem__),
        seen=rows_of([], [], [1], []),
        splits=SimpleNamespace(test=rows_of([3], [0], [], [0, 29]), train=rows_of([], [], [], []), num_items=30),
        population=14,
        folder=folder / "nodes" / "0-of-1",
    )


def evaluated(cohort=None, **changes):
    given = {
        "server_round": 3,
        "precision": "fp32",
        "split": "test",
        "label": "mine",
        "budgets": np.array(BUDGETS),
        "factors": np.array(FACTORS),
        "rooms": np.array(ROOMS),
        "artifacts": np.zeros(0, np.int64),
        "groups": {2: LIST, 0: LIST, 1: LIST},
        "replicates": 7,
        "per_device": True,
        "first": 0,
        "last": -1,
        "on_validation": 0,
        "stored": -1,
    }
    return evaluate_budgets(cohort or cohort_of(), SimpleNamespace(**(given | changes)))


def test_devices_count_from_a_first_to_before_a_last():
    """11 and 12 alone, of which 12 wants nothing; then from 13 on."""
    assert evaluated(first=11, last=13).sums.devices.tolist() == [[[0, 0, 0], [1, 0, 0]]] * 4
    assert evaluated(first=13).sums.devices.tolist() == [[[0, 0, 0], [0, 1, 0]]] * 4
    assert evaluated(last=10).sums.devices.sum() == 0
    assert evaluated(last=0).sums.devices.sum() == 0, "no device is before the first"
    cohort = cohort_of()
    cohort.devices = np.arange(4)
    assert evaluated(cohort, first=1).sums.devices.tolist() == [[[0, 0, 0], [1, 1, 0]]] * 4
    assert evaluated(cohort, last=1).sums.devices.tolist() == [[[0, 0, 0], [1, 0, 0]]] * 4


def test_metrics_by_budget_class_and_user_group():
    sums = evaluated().sums
    assert sums.recall.shape == (4, 2, 3)
    assert (sums.recall[:, 1, 0] / SUM_SCALE).tolist() == [1, 1, 0, 0]
    assert (sums.recall[:, 1, 1] / SUM_SCALE).tolist() == [0.5] * 4
    assert sums.ndcg[:, 1, 0] / SUM_SCALE == pytest.approx(NDCG[:2].sum(axis=0))
    assert sums.ndcg[:, 1, 1] / SUM_SCALE == pytest.approx(NDCG[3])
    assert sums.devices.tolist() == [[[0, 0, 0], [2, 1, 0]]] * 4


def test_lists_of_ten_and_of_twenty():
    """Under the first budget 11 and 13 find an item at place 2; under the second 10 finds one at 10, 13 one at 15,
    which is in no list of ten; then 13 alone, at 3 and at 1. Items shown: those that any list has.
    """
    lists = evaluated().lists
    place = dict(zip(LIST_METRICS, np.moveaxis(lists.metrics / SUM_SCALE, 2, 0), strict=True))
    assert place["mrr"] == pytest.approx(np.array([[1, 1], [1 / 10, 1 / 10 + 1 / 15], [1 / 3, 1 / 3], [1, 1]]))
    assert place["hit_rate"].tolist() == [[2, 2], [1, 2], [1, 1], [1, 1]]
    assert place["precision"] == pytest.approx(np.array([[0.2, 0.1], [0.1, 0.1], [0.1, 0.05], [0.1, 0.05]]))
    assert place["recall"].tolist() == [[1.5, 1.5], [1, 1.5], [0.5, 0.5], [0.5, 0.5]]
    assert place["ndcg"][:, 1] == pytest.approx(NDCG.sum(axis=0))
    square = dict(zip(LIST_METRICS, np.moveaxis(lists.squares / SUM_SCALE, 2, 0), strict=True))
    tenth, fifteenth = 1 / 100, 1 / 225
    assert square["mrr"] == pytest.approx(
        np.array([[1 / 2, 1 / 2], [tenth, tenth + fifteenth], [1 / 9, 1 / 9], [1, 1]])
    )
    assert square["hit_rate"].tolist() == [[2, 2], [1, 2], [1, 1], [1, 1]]
    assert square["precision"] == pytest.approx(np.array([[0.02, 0.005], [0.01, 0.005], *[[0.01, 0.0025]] * 2]))
    assert square["recall"].tolist() == [[1.25, 1.25], [1, 1.25], [0.25, 0.25], [0.25, 0.25]]
    assert square["ndcg"][:, 1] == pytest.approx((NDCG**2).sum(axis=0))
    shown = np.unpackbits(lists.shown, axis=2, count=30)
    assert [[np.flatnonzero(bits).tolist() for bits in row] for row in shown] == [
        [[0, 1], [0, 1]], [[*range(3, 15)], [*range(15)]], [[0, 1, 2], [0, 1, 2]], [[*range(20, 30)], [*range(10, 30)]],
    ]  # fmt: skip
    means = lists.means(1, (10, 20), 3, 30)
    assert means["coverage@10"] == pytest.approx((12 / 30, math.nan), nan_ok=True), "no mean over devices"
    two_of_three = np.std([1, 1, 0], ddof=1) / math.sqrt(3)
    assert means["hit_rate@20"] == pytest.approx((2 / 3, 4.30265 * two_of_three)), "t of two degrees of freedom"
    assert list(means)[:6] == ["recall@10", "ndcg@10", "mrr@10", "hit_rate@10", "precision@10", "coverage@10"]


def test_nodes_together_show_what_either_shows():
    first, second = evaluated(first=10, last=11).lists, evaluated(first=11).lists
    both, whole = first + second, evaluated().lists
    assert both.metrics.tolist() == whole.metrics.tolist()
    assert both.squares.tolist() == whole.squares.tolist()
    assert whole.only(slice(1, 3)).squares.tolist() == whole.squares[1:3].tolist()
    assert both.shown.tolist() == whole.shown.tolist()
    assert first.means(0, (10, 20), 1, 30)["coverage@20"][0] == 2 / 30


def test_where_devices_say_sums_alone_no_items_are_named():
    cohort = cohort_of()
    cohort.scenario.shown_bytes = lambda num_items: 0
    lists = evaluated(cohort).lists
    assert lists.shown.size == 0
    assert not [name for name in lists.means(0, (10, 20), 3, 30) if name.startswith("coverage")]
    assert lists.metrics.tolist() == evaluated().lists.metrics.tolist()


def test_bytes_by_budget_and_class():
    """Twice one's own budget holds 13, none, 9 and 15 blocks; three blocks fit the room of devices 10 and 13 alone."""
    reply = evaluated()
    assert reply.stored_max.tolist() == [BASE + 2 * BLOCK, BASE + 15 * BLOCK, BASE + 3 * BLOCK, BASE + 30 * BLOCK]
    two, all_ = BASE + 2 * BLOCK, BASE + 30 * BLOCK
    owned = reply.owned
    assert owned.devices.tolist() == [[1, 3]] * 4
    assert owned.budget_bytes.tolist() == [
        [two, 3 * two], [2 * (BASE + BLOCK), 2 * (2 * BASE + 7 * BLOCK)], [BASE + BLOCK, 2 * BASE + 7 * BLOCK],
        [UNLIMITED, 3 * UNLIMITED],
    ]  # fmt: skip
    assert owned.stored_bytes.tolist() == [
        [two, 3 * two], [BASE + 9 * BLOCK, 2 * BASE + 28 * BLOCK], [0, 2 * (BASE + 3 * BLOCK)], [all_, 3 * all_]
    ]  # fmt: skip
    assert not owned.violations.any()


def test_recall_of_single_devices_is_in_its_bin():
    counts = evaluated().spread.counts
    assert not counts[:, 0].any()
    for budget in range(4):
        expected = np.bincount((100 * RECALL[[0, 1, 3], budget]).astype(int), minlength=101)
        assert counts[budget, 1].tolist() == expected.tolist()


@pytest.mark.parametrize("groups", [{2: LIST, 0: LIST, 1: LIST}, {EVERYBODY: LIST}])
def test_single_devices_are_told_where_they_are_asked_for(groups):
    reply = evaluated(groups=groups)
    assert reply.by_group().devices.tolist()[:2] == [2, 1]
    assert reply.by_class().devices.tolist() == [0, 3]
    single = reply.single
    assert single.devices.tolist() == [10, 11, 12, 13]
    assert (single.classes.tolist(), single.groups.tolist()) == ([1, 1, 0, 1], [0, 0, 1, 1])
    assert single.classes.dtype == single.groups.dtype == np.int64
    assert single.items.tolist() == [1, 1, 0, 2]
    assert single.recall.tolist() == RECALL.tolist()
    assert single.ndcg == pytest.approx(NDCG)
    assert not len(evaluated(per_device=False).single.devices)


def test_user_groups_that_are_not_asked_are_in_nothing():
    reply = evaluated(groups={1: LIST})
    assert reply.single.devices.tolist() == [12, 13]
    assert reply.sums.devices.tolist() == [[[0, 0], [0, 1]]] * 4
    expected = Replicates.from_devices(np.array([13]), RECALL[3:], NDCG[3:], np.ones(1, np.bool_), 7)
    assert reply.replicates.devices.tolist() == expected.devices.tolist()
    assert reply.replicates.recall.tolist() == expected.recall.tolist()


def test_replicates_are_of_devices_that_count():
    result, counted = evaluated().replicates, RECALL.any(axis=1)
    expected = Replicates.from_devices(np.arange(10, 14), RECALL, evaluated().single.ndcg, counted, 7)
    for name in ("recall", "ndcg", "devices"):
        assert getattr(result, name).tolist() == getattr(expected, name).tolist()
    assert evaluated(replicates=0).replicates.recall.shape == (4, 0)


def test_devices_whose_list_was_too_short_are_counted_under_every_budget():
    three = pack_ranking(LAYOUT, "fp32", -ITEMS, TABLE, BASE + 3 * BLOCK)
    # device 12 has seen one of the three; under twice their own all but device 11 want more; all fit three blocks, but
    # for 11 and 12 there is no room anyway
    assert evaluated(groups={0: three, 1: three}).short == 1 + 3 + 2
    assert evaluated().short == 0


def test_a_node_without_devices_knows_the_groups_that_are_asked():
    nobody = SimpleNamespace(groups=np.zeros(0, np.int64), users=np.zeros((0, 1), np.float32))
    cohort = SimpleNamespace(
        **(vars(cohort_of()) | {"state": lambda mode: nobody, "devices": ITEMS[:0], "classes": ITEMS[:0]}),
    )
    cohort.splits, cohort.seen = SimpleNamespace(test=rows_of(), num_items=30), rows_of()
    cohort.budgets = SimpleNamespace(at=lambda number: ITEMS[:0])
    assert evaluated(cohort, groups={1: LIST}).sums.recall.shape == (4, 2, 2)
    assert evaluated(cohort, groups={}).sums.recall.shape == (4, 2, 0)


def test_devices_rank_where_the_scenario_says(monkeypatch):
    monkeypatch.setattr("fl_peel.kernels.top_rows", None)
    assert evaluated(cohort_of(device="torch-cpu")).single.recall.tolist() == RECALL.tolist()


def test_what_is_stored_is_written_for_the_devices_that_are_named(tmp_path):
    cohort, artifacts = cohort_of(tmp_path / "run"), tmp_path / "run" / "artifacts"
    budgets = [BASE - 1, BASE, BASE + 2 * BLOCK]
    given = {"budgets": np.array(budgets), "factors": np.ones(3), "rooms": -np.ones(3)}
    for _ in range(2):  # what is there is written anew
        reply = evaluated(cohort, artifacts=np.array([99, 12, 10]), **given)
    assert reply.stored_max.tolist() == [0, *budgets[1:]]
    names = [f"device-{device}-mine-{budget}.peel" for device in (10, 12) for budget in budgets[1:]]
    assert sorted(path.name for path in artifacts.iterdir()) == names
    ten, twelve = (StoredEmbedding.from_bytes((artifacts / name).read_bytes()) for name in (names[1], names[3]))
    assert (ten.blocks.tolist(), ten.user.tolist(), ten.user_group) == ([0, 1], [1.0], 0)
    assert (twelve.blocks.tolist(), twelve.user.tolist(), twelve.user_group) == ([0, 2], [3.0], 1)
    evaluated(cohort_of(tmp_path / "other"), artifacts=np.array([99]))
    assert not (tmp_path / "other").exists()


def test_the_last_budgets_may_be_of_validation_items():
    """Beside the test: of items before the last ones, 11 finds item 0, and 12 item 2."""
    cohort = cohort_of()
    cohort.splits.validation, cohort.splits.train = rows_of([], [0], [2], []), rows_of([], [], [1], [])
    cohort.seen = cohort.splits.train.merged(cohort.splits.validation)
    given = {"factors": np.ones(4), "rooms": -np.ones(4), "replicates": 3}
    two, three = BASE + 2 * BLOCK, BASE + 3 * BLOCK
    whole = evaluated(cohort, budgets=np.array([two, three, two, three]), on_validation=2, **given)
    alone = {name: given[name][:2] for name in ("factors", "rooms")} | {"budgets": np.array([two, three])}
    test = evaluated(cohort, **alone, replicates=3)
    validation = evaluated(cohort, **alone, split="validation", replicates=0, per_device=False)
    for part, expected in ((slice(0, 2), test), (slice(2, 4), validation)):
        result = whole.only(part)
        for name in ("sums", "owned", "spread"):
            assert getattr(result, name).stacked().tolist() == getattr(expected, name).stacked().tolist()
        assert result.stored_max.tolist() == expected.stored_max.tolist()
    assert validation.sums.recall.sum() / SUM_SCALE == 4, "12 has no room for item 1, so that it has item 2"
    result = whole.only(slice(0, 2))
    assert result.replicates.recall.tolist() == test.replicates.recall.tolist()
    assert result.replicates.devices.tolist() == test.replicates.devices.tolist()
    assert result.single.recall.tolist() == test.single.recall.tolist()
    assert not whole.single.recall[:, 2:].any()
    assert not whole.replicates.recall[2:].any()


@pytest.mark.parametrize(
    ("device", "on_validation", "whole"), [("cpu", 0, 0), ("cpu", 2, 2), ("torch-cpu", 0, 0), ("torch-cpu", 2, 0)]
)
def test_rows_are_laid_out_once_where_they_are_looked_at_twice(monkeypatch, device, on_validation, whole):
    """Of two user groups that have devices: all rows, None; else as many as somebody holds, and of torch none."""
    made, lay_out = [], Tiles.from_ranked
    monkeypatch.setattr(Tiles, "from_ranked", staticmethod(lambda *asked: made.append(asked[1:]) or lay_out(*asked)))
    cohort = cohort_of(device=device)
    cohort.splits.validation = rows_of([], [0], [2], [])
    evaluated(cohort, on_validation=on_validation)
    assert made.count(()) == whole
    assert bool(made) == (device == "cpu")
    assert len(made) == whole or not whole, "and not again"


def test_embeddings_are_written_under_the_first_budgets_alone(tmp_path):
    cohort, budgets = cohort_of(tmp_path / "run"), np.array([BASE + BLOCK, BASE + 2 * BLOCK, BASE + 3 * BLOCK])
    given = {"budgets": budgets, "factors": np.ones(3), "rooms": -np.ones(3), "artifacts": np.array([10])}
    evaluated(cohort, **given, stored=2)
    names = {f"device-10-mine-{budget}.peel" for budget in budgets[:2]}
    assert {path.name for path in (tmp_path / "run" / "artifacts").iterdir()} == names
    evaluated(cohort_of(tmp_path / "other"), **given, stored=0)
    assert not list((tmp_path / "other").rglob("*.peel"))
