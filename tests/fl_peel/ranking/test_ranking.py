"""Ranking: the device and the cohort agree item for item; Recall and NDCG by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel import kernels
from fl_peel.array_specs import SUM_SCALE
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, rank_blocks
from fl_peel.blocks.resizing import ElasticEmbedding
from fl_peel.blocks.stored import overhead_bytes, stored_user
from fl_peel.ranking.bootstrap import NUM_BINS, Effects, Histogram, PairedSums
from fl_peel.ranking.top import LIST_METRICS, MetricSums, Ranker, Tiles, evaluate, recall_ndcg, top_rows
from tests.helpers import readable_twins as reference
from tests.helpers.blocks import layouts, precisions, rows_of, seeds
from tests.helpers.examples import examples


def exact_table(rng: np.random.Generator, layout: BlockLayout) -> np.ndarray:
    """Small whole numbers, each piece with a 7 among them: every precision codes them without loss or nearly so, and
    every sum is exact, so that many scores tie."""
    table = rng.integers(-2, 3, (layout.num_items, layout.num_slices, layout.slice_dim))
    table[..., 0] = 7
    return table.reshape(layout.num_items, layout.embedding_dim).astype(np.float32)


@examples(300)
@given(layout=layouts, precision=st.sampled_from(["fp32", "fp16", "int4"]), seed=seeds, n=st.sampled_from([1, 3, 50]))
def test_device_and_cohort_recommend_the_same_items_ties_included(layout, precision, seed, n):
    rng = np.random.default_rng(seed)
    ranked = rank_blocks(layout, precision, rng.random(layout.num_blocks), exact_table(rng, layout))
    users = rng.integers(-2, 3, (6, layout.embedding_dim)).astype(np.float32)
    whole = overhead_bytes(layout.embedding_dim) + layout.block_bytes(precision).sum()
    budgets = rng.integers(overhead_bytes(layout.embedding_dim), whole + 1, 6)
    seen = rows_of(*[np.flatnonzero(rng.random(layout.num_items) < 0.3).tolist() for _ in range(6)])
    cutoffs, _, _ = ranked.serving_cutoffs(budgets, seen)
    best = top_rows(ranked, cutoffs, stored_user(users), seen, n)
    for i in range(6):
        mine = ElasticEmbedding(ranked, users[i], seen.row(i)).top_n(int(budgets[i]), n)
        assert mine.tolist() == ranked.items[best[i][best[i] >= 0]].tolist()
        rows = reference.top_rows(ranked, int(cutoffs[i]), users[i], seen.row(i), n)
        assert mine.tolist() == ranked.items[rows].tolist()


@examples(150)
@given(
    layout=layouts,
    precision=precisions,
    seed=seeds,
    lists=st.integers(0, 5),
    device=st.sampled_from(["cpu", "torch-cpu"]),
)
def test_under_several_cutoffs_every_list_is_as_if_it_were_alone(layout, precision, seed, lists, device):
    """In any order of cutoffs, with equal ones, none and all of the blocks, and with ties."""
    rng = np.random.default_rng(seed)
    ranked = rank_blocks(layout, precision, rng.random(layout.num_blocks), exact_table(rng, layout))
    users = rng.integers(-2, 3, (6, layout.embedding_dim)).astype(np.float32)
    seen, wanted = (
        rows_of(*[np.flatnonzero(rng.random(layout.num_items) < share).tolist() for _ in range(6)])
        for share in (0.3, 0.2)
    )
    cutoffs = rng.integers(0, len(ranked.blocks) + 1, (6, lists))
    result = Ranker(ranked, 3, device).top_rows(cutoffs, users, seen)
    assert (result.shape, result.dtype) == ((lists, 6, 3), np.int32)
    recall, ndcg = Ranker(ranked, 3, device).evaluate(cutoffs, users, seen, wanted)
    assert recall.shape == ndcg.shape == (6, lists)
    for place in range(lists):
        alone = top_rows(ranked, cutoffs[:, place].copy(), users, seen, 3, device)
        assert result[place].tolist() == alone.tolist()
        metrics = recall_ndcg(ranked, alone, wanted, 3)
        assert [recall[:, place].tolist(), ndcg[:, place].tolist()] == [one.tolist() for one in metrics]


def test_hundreds_of_rows_are_looked_at_once_for_all_lists(monkeypatch):
    """More than one tile of rows and more than one block of devices, cutoffs on and beside the ends of tiles."""
    rng, layout = np.random.default_rng(0), BlockLayout(np.arange(300, dtype=np.int32), 8, 1)
    ranked = rank_blocks(layout, "fp32", rng.random(300), rng.integers(-99, 99, (300, 8)).astype(np.float32))
    users = rng.integers(-99, 99, (70, 8)).astype(np.float32)  # whole numbers: every sum is exact
    seen = rows_of(*[rng.permutation(300)[:9] for _ in range(70)])
    cutoffs = rng.choice([0, 1, 63, 64, 65, 127, 128, 200, 299, 300], (70, 4))
    alone = [
        [reference.top_rows(ranked, cutoff, users[i], seen.row(i), 9) for i, cutoff in enumerate(one)]
        for one in cutoffs.T.tolist()
    ]
    alone = [[rows + [-1] * (9 - len(rows)) for rows in one] for one in alone]
    calls, loop = [], kernels.top_rows
    monkeypatch.setattr(kernels, "top_rows", lambda *given: calls.append(loop(*given)))
    assert Ranker(ranked, 9).top_rows(cutoffs, users, seen).tolist() == alone
    assert len(calls) == 1


def test_no_more_rows_are_laid_out_than_somebody_has_and_none_twice(monkeypatch):
    rng, layout = np.random.default_rng(0), BlockLayout(np.arange(300, dtype=np.int32), 6, 1)
    ranked = rank_blocks(layout, "fp32", rng.random(300), rng.normal(size=(300, 6)).astype(np.float32))
    users, nothing = rng.normal(size=(2, 6)).astype(np.float32), rows_of([], [])
    whole, part, none = Tiles.from_ranked(ranked), Tiles.from_ranked(ranked, 65), Tiles.from_ranked(ranked, 0)
    assert (whole.rows.shape, whole.rows.dtype) == ((5, 8, 64), np.float32), "six columns are padded to eight"
    assert (whole.places.shape, whole.places.dtype) == ((5, 1, 64), np.int32)
    assert (len(part.rows), len(part.places), len(none.rows)) == (2, 2, 0)
    asked, lay_out = [], Tiles.from_ranked
    monkeypatch.setattr(Tiles, "from_ranked", staticmethod(lambda *given: asked.append(given[1:]) or lay_out(*given)))
    for cutoffs in ([[3, 70], [64, 9]], [[0, 0], [0, 0]]):
        Ranker(ranked, 3).top_rows(np.array(cutoffs), users, nothing)
    assert asked == [(70,), (0,)]
    result = Ranker(ranked, 3, "cpu", whole).evaluate(np.array([[3, 70], [64, 9]]), users, nothing, rows_of([1], [2]))
    assert len(asked) == 2, "whoever brings rows that are laid out needs none"
    assert result[0].shape == (2, 2)
    assert Ranker(ranked, 3).top_rows(np.zeros((0, 2), np.int64), users[:0], rows_of()).shape == (2, 0, 3)


def test_who_wants_nothing_ranks_nothing(monkeypatch):
    layout = BlockLayout(np.arange(4, dtype=np.int32), 2, 1)
    ranked = rank_blocks(layout, "fp32", np.arange(4.0), np.ones((4, 2), np.float32))
    ranks, users = [], []
    monkeypatch.setattr(
        Ranker, "top_rows", lambda self, cutoffs, some, exclude: ranks.append(cutoffs) or users.append(some)
        or np.zeros((1, len(some), 1), np.int32)
    )  # fmt: skip
    given = ranked, np.array([1, 2, 3]), np.arange(6, dtype=np.float32).reshape(3, 2), rows_of([], [], [])
    recall, ndcg = evaluate(*given, rows_of([], [3], [1]), 1)
    assert (ranks[0].tolist(), users[0].tolist()) == ([[2], [3]], [[2, 3], [4, 5]])
    assert recall.tolist() == ndcg.tolist() == [0, 1, 0], "row 0 is of item 3"
    assert evaluate(*given, rows_of([], [], []), 1)[0].tolist() == [0, 0, 0]
    assert len(ranks) == 1


# ---------------------------------------------------------------- metrics


def ten_items(num_users: int = 3) -> tuple[RankedBlocks, np.ndarray]:
    """Ten single items whose score for user (1) falls with their number; such users."""
    layout = BlockLayout(np.arange(10, dtype=np.int32), 1, 1)
    table = np.arange(10, 0, -1, dtype=np.float32)[:, None]
    return rank_blocks(layout, "fp32", np.arange(10, 0, -1.0), table), np.ones((num_users, 1), np.float32)


def test_recall_and_ndcg_by_hand():
    ranked, users = ten_items()
    wanted = rows_of([1, 3, 7], [0], [])
    best = top_rows(ranked, np.full(3, 10), users, rows_of([], [0], []), 3)
    assert ranked.items[best].tolist() == [[0, 1, 2], [1, 2, 3], [0, 1, 2]]
    recall, ndcg = recall_ndcg(ranked, best, wanted, 3)
    # device 0: of items 1, 3, 7 one is in the top 3, at rank 2; the ideal list has three hits
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert recall.tolist() == [pytest.approx(1 / 3), 0, 0]
    assert ndcg.tolist() == [pytest.approx(1 / np.log2(3) / ideal), 0, 0]


def test_metrics_of_lists_by_hand():
    """Four devices with 2, 1, 5 and 1 items to find: hits at places 2 and 4, at 1, at 3 and 4, and nowhere."""
    hits = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], np.bool_)
    wanted = np.array([2, 1, 5, 1])
    four = {name: metric(hits, wanted).tolist() for name, metric in LIST_METRICS.items()}
    assert four["recall"] == [1, 1, 2 / 5, 0]
    assert four["mrr"] == pytest.approx([1 / 2, 1, 1 / 3, 0])
    assert four["hit_rate"] == [1, 1, 1, 0]
    assert four["precision"] == [2 / 4, 1 / 4, 2 / 4, 0]
    gains = [1 / math.log2(place + 1) for place in (1, 2, 3, 4)]
    ideal = gains[0] + gains[1]
    assert four["ndcg"] == pytest.approx([(gains[1] + gains[3]) / ideal, 1, (gains[2] + gains[3]) / sum(gains), 0])
    two = {name: metric(hits[:, :2], wanted).tolist() for name, metric in LIST_METRICS.items()}
    assert two["recall"] == [1 / 2, 1, 0, 0]
    assert two["mrr"] == [1 / 2, 1, 0, 0]
    assert two["precision"] == [1 / 2, 1 / 2, 0, 0]
    assert two["ndcg"] == pytest.approx([gains[1] / ideal, 1, 0, 0])


def test_items_that_are_not_stored_count_as_missed():
    ranked, users = ten_items()
    wanted = rows_of([0, 9], [9], [0])
    recall, _ = evaluate(ranked, np.array([2, 2, 0]), users, rows_of([], [], []), wanted, 5)
    assert recall.tolist() == [0.5, 0, 0]


def test_items_that_no_table_knows_are_wanted_and_never_found():
    """Items 3 and 9 came after the table of 3 was made; rows 0 and 1, items 2 and 0, are recommended. By hand: the
    first device finds one of three, the second all of its one, the third none of two, the fourth none of its one.
    """
    layout = BlockLayout(np.arange(3, dtype=np.int32), 1, 1)
    ranked = rank_blocks(layout, "fp32", np.array([2.0, 1.0, 3.0]), np.ones((3, 1), np.float32))
    assert ranked.items.tolist() == [2, 0, 1]
    best = np.array([[0, 1], [0, 1], [0, -1], [1, 2]], np.int32)
    recall, ndcg = recall_ndcg(ranked, best, rows_of([3, 0, 9], [2], [9, 1], [9]), 2)
    assert recall.tolist() == pytest.approx([1 / 3, 1, 0, 0])
    assert ndcg[1] == 1
    assert ndcg[2] == 0


# --- Sums, intervals, effects and histograms by hand, and lists at their edges.


def sums_of(*differences) -> PairedSums:
    """Of groups, each with these devices' differences."""
    groups = np.repeat(np.arange(len(differences)), [len(d) for d in differences])
    return PairedSums.from_devices(groups, len(differences), np.concatenate([np.array(d, float) for d in differences]))


def test_a_group_s_mean_varies_as_differences_do_within_all_groups():
    # group 0: 0.5 +- 0.25, two devices; group 1: -0.25, one; group 2: nobody; group 3: 0 +- 0.5, two
    sums = sums_of([0.25, 0.75], [-0.25], [], [-0.5, 0.5])
    assert sums.devices.tolist() == [2, 1, 0, 2]
    assert sums.mean().tolist() == [0.5, -0.25, 0, 0]
    within = 2 * 0.25**2 + 0 + 2 * 0.5**2  # about each group's own mean
    spread = within / (5 - 3)  # five devices, three groups that have any
    assert sums.variance() == pytest.approx([spread / 2, spread, math.inf, spread / 2])
    assert sums_of([0.25, 0.75]).variance() == pytest.approx([2 * 0.25**2 / 1 / 2])


def test_sums_are_in_units_of_two_to_the_minus_32():
    sums = sums_of([0.5, -0.25])
    assert (int(sums.difference[0]), int(sums.square[0])) == (2**30, 2**30 + 2**28)
    assert {column.dtype for column in (sums.devices, sums.difference, sums.square)} == {np.dtype(np.int64)}


def test_nothing_is_known_of_nobody():
    assert PairedSums.zeros(2).mean().tolist() == [0, 0]
    assert PairedSums.zeros(2).variance().tolist() == [math.inf, math.inf]


def effects_of(means, variance, devices=200) -> Effects:
    """Of groups with these means, each of that variance of its mean, up to the units of sums."""
    deviation = math.sqrt(variance * devices * (1 - 1 / devices))
    return Effects.from_sums(sums_of(*([m + s * deviation for s in (-1, 1) * (devices // 2)] for m in means)))


def test_two_groups_that_differ_by_hand():
    # v = 1e-4; means 0 and 0.04: Q = 0.04^2 / 2v = 8, above 1 + 1.645 sqrt(2): between = v (Q - 1) = 7e-4
    effects = effects_of([0.0, 0.04], 1e-4)
    share = 7 / 8  # of a group's own mean
    assert effects.mean == pytest.approx([0.02 / 8, 0.02 / 8 + share * 0.04], rel=1e-3)
    certainty = (1e-4 + 7e-4) / 2
    assert effects.deviation == pytest.approx(
        [math.sqrt(share**2 * 1e-4 + (7e-4 + certainty) / 64)] * 2, rel=1e-3
    )  # fmt: skip


def test_groups_that_differ_no_more_than_chance_have_one_effect():
    # Q = 0.018^2 / 2e-4 = 1.62, and even 3.2 would be below 1 + 1.645 sqrt(2) = 3.33
    for gap in (0.018, 0.0253):
        effects = effects_of([0.01, 0.01 + gap], 1e-4)
        assert effects.mean == pytest.approx([0.01 + gap / 2] * 2, rel=1e-3)
        assert effects.deviation == pytest.approx([math.sqrt(0.5e-4)] * 2, rel=1e-3)
    assert np.ptp(effects_of([0.01, 0.01 + 0.0262], 1e-4).mean) > 0.01  # 3.43 is above


def test_large_groups_weigh_more_in_the_common_effect():
    rng = np.random.default_rng(0)
    many, few = rng.choice([-0.1, 0.1], 900), rng.choice([-0.1, 0.1], 100)
    sums = sums_of(many - many.mean() + 0.02, few - few.mean() + 0.01)
    assert Effects.from_sums(sums).mean == pytest.approx([0.9 * 0.02 + 0.1 * 0.01] * 2, rel=1e-3)


def test_three_groups_need_more_than_two_to_differ():
    # Q of three equal variances: sum of squares about the mean / v; chance lets it be 2 + 1.645 sqrt(4) = 5.29
    below, above = (effects_of([-gap, 0.0, gap], 1e-4).mean for gap in (0.0161, 0.0164))  # 2 gap^2 / v = 5.18, 5.38
    assert np.ptp(below) == pytest.approx(0, abs=1e-6)
    assert np.ptp(above) > 0.01


def test_who_was_not_heard_has_the_common_effect_and_its_own_uncertainty():
    heard, unheard = sums_of([0.1, 0.3] * 50), sums_of([0.1, 0.3] * 50, [])
    one, two = Effects.from_sums(heard), Effects.from_sums(unheard)
    assert two.mean == pytest.approx([one.mean[0]] * 2)
    assert two.deviation == pytest.approx([one.deviation[0]] * 2)
    assert one.deviation[0] > 0


def test_better_is_beyond_a_quantile_of_one_side():
    effects = Effects(np.array([1.64, 1.65, -9.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0]))
    assert effects.better(0.95).tolist() == [False, True, False, False]
    assert effects.better(0.5).tolist() == [True, True, False, False]


def test_nobody_heard_is_no_effect():
    for sums in (PairedSums.zeros(2), sums_of([0.0, 0.0], [0.0])):
        effects = Effects.from_sums(sums)
        assert (effects.mean.tolist(), effects.deviation.tolist()) == ([0, 0], [0, 0])


# ---------------------------------------------------------------- spread


def histogram(values, counted=None, cells=None, num_cells=1) -> Histogram:
    values = np.array(values, float)
    cells = np.zeros(len(values), np.int64) if cells is None else np.array(cells)
    return Histogram.from_devices(
        cells, num_cells, values, np.ones(len(values), bool) if counted is None else np.array(counted)
    )


def test_bins_have_their_upper_ends():
    result = histogram([0.0, 0.001, 0.01, 0.0101, 0.5, 0.99, 0.991, 1.0, 0.07])
    assert np.flatnonzero(result.counts[0]).tolist() == [0, 1, 2, 7, 50, 99, 100]
    assert result.counts[0, [0, 1, 2, 100]].tolist() == [1, 2, 1, 2]
    assert 0.07 * 100 > 7  # as doubles: 0.07 is still at the end of its bin
    assert result.sums[0, 1] == round(0.001 * SUM_SCALE) + round(0.01 * SUM_SCALE)
    assert result.counts.shape == result.sums.shape == (1, NUM_BINS)


def test_each_cell_has_its_own_devices_and_those_that_do_not_count_are_in_none():
    result = histogram([0.5, 0.5, 0.25, 0.0], [True, True, True, False], [2, 0, 2, 2], 4)
    assert result.counts.sum(axis=1).tolist() == [1, 0, 2, 0]
    assert result.counts[2, [25, 50]].tolist() == [1, 1]
    assert result.sums.sum(axis=1).tolist() == [2**31, 0, 3 * 2**30, 0]
    assert result.counts.dtype == result.sums.dtype == np.int64


def test_the_worst_share_counts_devices_in_part():
    one = histogram([0.0, 0.25, 0.5, 1.0])[0]
    assert one.worst_mean(0.25) == 0.0
    assert one.worst_mean(0.375) == pytest.approx((0 + 0.25 / 2) / 1.5)
    assert one.worst_mean(0.75) == pytest.approx(0.25)
    assert one.worst_mean(1.0) == pytest.approx(0.4375)
    assert one.zero_share() == 0.25
    assert histogram([0.25, 0.5])[0].zero_share() == 0.0
    assert histogram([0.242, 0.25, 0.5, 0.5])[0].worst_mean(0.25) == pytest.approx(0.246)  # of one bin: their mean


def test_nobody_has_no_worst_and_no_share():
    nobody = histogram([])[0]
    assert (nobody.worst_mean(0.5), nobody.zero_share()) == (None, None)


# ---------------------------------------------------------------- metrics and lists


def test_metric_sums_by_cell():
    recall, ndcg = np.array([0.5, 1.0, 0.25, 0.75]), np.array([0.25, 0.5, 0.125, 1.0])
    sums = MetricSums.from_devices(np.array([1, 0, 1, 1]), 3, recall, ndcg, np.array([True, True, True, False]))
    assert sums.devices.tolist() == [1, 2, 0]
    assert sums.recall.tolist() == [2**32, 3 * 2**30, 0]
    assert sums.mean()[0].tolist() == [1.0, 0.375, 0.0]
    assert sums.mean()[1].tolist() == [0.5, 0.1875, 0.0]
    assert sums.with_groups(5).devices.tolist() == [1, 2, 0, 0, 0]
    more = sums.reshaped(1, 3).with_groups(5)
    assert more.devices.tolist() == [[1, 2, 0, 0, 0]]
    assert more.recall.tolist() == [[2**32, 3 * 2**30, 0, 0, 0]]
    assert more.ndcg.shape == (1, 5)


def test_the_margin_of_two_devices():
    both = np.array([0.25, 0.75])
    sums = MetricSums.from_devices(np.zeros(2, int), 1, both, both, np.ones(2, bool))
    assert sums.margin() == pytest.approx([12.7062 * math.sqrt(2 * 0.25**2 / 2)])  # t of one degree of freedom


def test_the_ideal_list_is_no_longer_than_the_list():
    ranked, users = ten_items(2)
    best = top_rows(ranked, np.full(2, 10), users, rows_of([], []), 2)
    recall, ndcg = recall_ndcg(ranked, best, rows_of([0, 1, 2, 3], [1]), 2)
    assert recall.tolist() == [0.5, 1.0]
    assert ndcg == pytest.approx([1.0, 1 / math.log2(3)])  # two of two places are hits; one of one, at rank 2
    assert recall.dtype == ndcg.dtype == np.float64


@pytest.mark.parametrize("device", ["cpu", "torch-cpu"])
def test_what_is_excluded_is_not_recommended_and_the_rest_moves_up(device):
    ranked, users = ten_items(2)
    cutoffs = np.array([10, 4])
    best = top_rows(ranked, cutoffs, users, rows_of([0, 2], [9, 1]), 4, device)
    assert best.tolist() == [[1, 3, 4, 5], [0, 2, 3, -1]]
    assert best.dtype == np.int32
    ranker = Ranker(ranked, 4, device)
    recall, _ = ranker.evaluate(cutoffs[:, None], users, rows_of([0, 2], [9, 1]), rows_of([1, 9], [0]))
    assert recall[:, 0].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("device", ["cpu", "torch-cpu"])
def test_what_is_excluded_and_not_here_hides_no_other(device):
    _, users = ten_items(1)
    layout = BlockLayout(np.arange(10, dtype=np.int32), 1, 1)
    three = overhead_bytes(1) + int(layout.block_bytes("fp32")[:3].sum())
    ranked = rank_blocks(layout, "fp32", np.arange(10, 0, -1.0), np.ones((10, 1), np.float32), three)
    best = top_rows(ranked, np.array([3]), users, rows_of([9]), 4, device)
    assert best.tolist() == [[0, 1, 2, -1]]


@pytest.mark.parametrize("device", ["cpu", "torch-cpu"])
def test_scores_that_are_nearly_nought_are_told_apart(device):
    layout = BlockLayout(np.arange(4, dtype=np.int32), 1, 1)
    table = np.array([[-2e-9], [1e-9], [-1e-9], [2e-9]], np.float32)
    ranked = rank_blocks(layout, "fp32", np.arange(4, 0, -1.0), table)
    best = top_rows(ranked, np.array([4]), np.ones((1, 1), np.float32), rows_of([]), 4, device)
    assert best.tolist() == [[3, 1, 2, 0]]


@pytest.mark.parametrize("device", ["cpu", "torch-cpu"])
def test_users_are_ranked_as_stored(device):
    """1.0004 is 1 in half precision: the two items tie, and the smaller wins."""
    layout = BlockLayout(np.arange(2, dtype=np.int32), 2, 1)
    ranked = rank_blocks(layout, "fp32", np.array([2.0, 1.0]), np.eye(2, dtype=np.float32))
    user = np.array([[1.0, 1.0004]], np.float32)
    nothing, wanted = rows_of([]), rows_of([0])
    assert top_rows(ranked, np.array([2]), user, nothing, 1, device).tolist() == [[1]]
    assert Ranker(ranked, 1, device).evaluate(np.array([[2]]), user, nothing, wanted)[0].tolist() == [[1.0]]
