"""The mathematics of stage 1 by sums: against dense linear algebra, and part by part against the whole."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from fl_peel.data.interactions import UserItems
from fl_peel.errors import DataError
from fl_peel.pretraining import spectral, stage1
from fl_peel.pretraining.stage1 import GroupPlan, PooledSums, num_steps, run_stage1
from fl_peel.steps import base
from fl_peel.steps.base import (
    UNIT_SCALE,
    ContributionBounds,
    HeldItems,
    StepTerms,
    StepVector,
    Units,
    add_rows,
    in_units,
    inverse_power,
    item_matrix,
    nearest,
    unit_vectors,
    weighted_matrix,
)
from fl_peel.steps.choice import FilterGrid
from fl_peel.steps.passes import CountsStep, PassStep, pass_sums
from fl_peel.steps.user_groups import GroupsStep, MapsStep, Moments, MomentsStep, VectorsStep, added_products
from tests.helpers.settings import SPECTRAL

NUM_ITEMS = 50
CONFIG = dataclasses.replace(
    SPECTRAL,
    columns=12,
    oversampling=8,
    passes=30,
    group_columns=6,
    num_threads=1,
    count_exponent=0.4,
    value_exponent=0.1,
)
PLAN = GroupPlan(dim=6, num_groups=3, min_size=5, seed=3)


@pytest.fixture(scope="module")
def rows() -> UserItems:
    """80 users of three tastes, 4 to 15 items each; items 48 and 49 are nobody's."""
    rng = np.random.default_rng(0)
    users, items = [], []
    for user in range(80):
        favourite = np.arange(48) // 16 == user % 3
        weights = np.where(favourite, 1.0, 0.08)
        mine = rng.choice(48, size=rng.integers(4, 16), replace=False, p=weights / weights.sum())
        users += [user] * len(mine)
        items += mine.tolist()
    return UserItems.from_pairs(np.array(users), np.array(items), 80)


def dense(rows: UserItems, a: float, b: float) -> np.ndarray:
    """R~ as a matrix."""
    matrix = np.zeros((rows.num_users, NUM_ITEMS))
    matrix[rows.users(), rows.items] = 1
    counts = matrix.sum(axis=0)
    columns = np.divide(1.0, counts**b, out=np.zeros(NUM_ITEMS), where=counts > 0)
    return matrix.sum(axis=1)[:, None] ** -a * matrix * columns


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.5), (0.5, 0.5), (0.0, 0.25)])
@pytest.mark.parametrize("sent", ["in half precision", "in full"])
def test_passes_find_what_the_svd_of_the_pooled_matrix_finds(rows, a, b, sent, monkeypatch):
    if sent == "in full":
        monkeypatch.setattr(stage1, "halves", lambda table: table)
    error = 1e-5 if sent == "in full" else 3e-4
    config = dataclasses.replace(CONFIG, user_exponent=a, item_exponent=b)
    start = run_stage1(PooledSums(rows, StepTerms(NUM_ITEMS, a)), config, PLAN)
    _, values, right = np.linalg.svd(dense(rows, a, b))
    assert start.values == pytest.approx(values[: config.columns] ** 2, rel=error)
    counts = rows.popularity(NUM_ITEMS).astype(float)
    directions = start.scored[:48] / counts[:48, None] ** config.count_exponent
    projector = directions @ directions.T
    exact = right[: config.columns, :48].T @ right[: config.columns, :48]
    assert np.abs(projector - exact).max() < 30 * error
    assert not start.scored[48:].any()


def test_embeddings_do_not_depend_on_which_devices_are_computed_together(rows):
    rng = np.random.default_rng(1)
    vectors = unit_vectors(add_rows(rng.standard_normal((NUM_ITEMS, 7)).astype(np.float32), rows))
    group_map = rng.standard_normal((7, 3)).astype(np.float32)
    alone = np.concatenate([spectral.embeddings(vectors[i : i + 1], group_map) for i in range(80)])
    assert (spectral.embeddings(vectors, group_map) == alone).all()


def test_a_users_sum_does_not_depend_on_the_order_of_its_items(rows):
    table = np.random.default_rng(2).standard_normal((NUM_ITEMS, 5)).astype(np.float32)
    turned = UserItems(rows.indptr, np.concatenate([rows.row(user)[::-1] for user in range(80)]))
    assert (add_rows(table, turned) == add_rows(table, rows)).all()
    assert (pass_sums(table, turned, 0.5) == pass_sums(table, rows, 0.5)).all()


@pytest.mark.parametrize("closed", [0, 3])
def test_a_pass_is_a_product_with_the_interactions_and_back(rows, closed):
    """In whole numbers; nothing is added to rows that are closed."""
    table = np.random.default_rng(3).standard_normal((NUM_ITEMS, 9)).astype(np.float32)
    opened = np.arange(NUM_ITEMS) >= closed
    matrix = item_matrix(rows, NUM_ITEMS, np.float64)
    factors = 2.0**30 * inverse_power(rows.counts(), 0.6)
    whole = np.rint((matrix @ table.astype(np.float64)) * factors[:, None]).astype(np.int64)
    sums = pass_sums(table, rows, 0.3, 2.0**30, opened=opened if closed else None)
    assert np.array_equal(sums, opened[:, None] * (matrix.astype(np.int64).T @ whole))


@pytest.mark.parametrize("fading", [None, 3.0])
def test_vectors_are_a_product_with_the_interactions_at_length_1(rows, fading, monkeypatch):
    table = np.random.default_rng(5).standard_normal((NUM_ITEMS, 9)).astype(np.float32)
    vectors = add_rows(table, rows, fading)
    product = weighted_matrix(rows, NUM_ITEMS, fading) @ table.astype(np.float64)
    assert np.array_equal(vectors, product.astype(np.float32))
    whole = unit_vectors(vectors)
    monkeypatch.setattr(base, "CHUNK_DEVICES", 7)
    assert np.array_equal(unit_vectors(vectors), whole)
    assert np.allclose(np.square(whole).sum(axis=1), vectors.any(axis=1))


def test_columns_that_are_far_from_dependent_are_orthonormal_after_one_turn_and_others_after_two():
    columns = np.random.default_rng(4).standard_normal((200, 20))
    near = columns.copy()
    near[:, 1] = near[:, 0] + 1e-7 * near[:, 1]
    for some in (columns, near):
        basis = spectral.orthonormal(some)
        assert np.abs(basis.T @ basis - np.eye(20)).max() < 1e-12


def test_tastes_become_groups_and_a_group_loses_little_of_its_scores(rows):
    start = run_stage1(PooledSums(rows, StepTerms(NUM_ITEMS, CONFIG.user_exponent)), CONFIG, PLAN)
    vectors = unit_vectors(add_rows(start.own, rows))
    groups = nearest(vectors, start.centroids)
    assert [len(np.unique(np.arange(80)[groups == group] % 3)) for group in range(3)] == [1, 1, 1]
    for group, it in enumerate(start.groups):
        members = np.flatnonzero(groups == group)
        assert it.size == len(members)
        assert (it.items == rows.select(members).popularity(NUM_ITEMS)).all()
        scores = spectral.embeddings(vectors[members], it.map) @ it.table.T
        exact = vectors[members] @ start.scored.T
        assert np.corrcoef(scores.ravel(), exact.ravel())[0, 1] > 0.95
        assert np.sqrt((spectral.embeddings(vectors[members], it.map) ** 2).sum(axis=1).mean()) == pytest.approx(
            spectral.USER_LENGTH, rel=1e-3
        )
        # drawn users have the moments of the real ones
        assert np.abs(it.users.mean(axis=0) - spectral.embeddings(vectors[members], it.map).mean(axis=0)).max() < 0.3


def test_with_room_for_all_columns_nothing_is_lost(rows):
    sums = PooledSums(rows, StepTerms(NUM_ITEMS, CONFIG.user_exponent))
    start = run_stage1(sums, CONFIG, dataclasses.replace(PLAN, dim=12))
    vectors = unit_vectors(add_rows(start.own, rows))
    groups = nearest(vectors, start.centroids)
    for group, it in enumerate(start.groups):
        some = vectors[groups == group]
        scores, exact = spectral.embeddings(some, it.map) @ it.table.T, some @ start.scored.T
        ratio = scores.ravel() @ exact.ravel() / (exact.ravel() @ exact.ravel())
        assert np.abs(scores - ratio * exact).max() < 1e-3 * np.abs(scores).max()


def test_a_group_whose_sums_are_withheld_has_the_leading_directions_of_the_table(rows):
    """As of a group of which too few devices are there when moments are asked for."""
    scored = run_stage1(PooledSums(rows, StepTerms(NUM_ITEMS, CONFIG.user_exponent)), CONFIG, PLAN).scored
    columns, dim = scored.shape[1], 4
    nothing = Moments(0, np.zeros(columns, np.int64), np.zeros((columns, columns), np.int64), np.zeros(NUM_ITEMS))
    compression = spectral.Compression.from_scored(scored, dim)
    start = compression.group(nothing, num_users=5, rng=np.random.default_rng(0))
    leading = np.linalg.svd(scored.astype(np.float64), full_matrices=False)[0][:, :dim]
    assert 0 < np.abs(start.table).max() < 100
    assert start.table == pytest.approx(leading @ leading.T @ start.table, abs=1e-4)
    assert np.isfinite(start.map).all()
    assert np.isfinite(start.users).all()


@pytest.mark.parametrize("min_size", [1, 27, 80])
def test_no_group_is_smaller_than_allowed(rows, min_size):
    start = run_stage1(
        PooledSums(rows, StepTerms(NUM_ITEMS, CONFIG.user_exponent)),
        CONFIG,
        GroupPlan(dim=6, num_groups=9, min_size=min_size, seed=0),
    )
    assert min(group.size for group in start.groups) >= min_size
    assert sum(group.size for group in start.groups) == 80


@pytest.fixture(scope="module")
def overlapping() -> UserItems:
    """60 users with 7 items each, at random: some are nearer to another group's mean than to their group's."""
    items = np.random.default_rng(0).permuted(np.tile(np.arange(50, dtype=np.int32), (60, 1)), axis=1)[:, :7]
    return UserItems(np.arange(61) * 7, items.reshape(-1))


@pytest.mark.parametrize("num_groups", [1, 3])
def test_centroids_are_the_means_of_the_devices_whose_moments_made_a_table(overlapping, num_groups):
    asked = []

    class Asked(PooledSums):
        def ask(self, step, sent, opened=None):
            asked.extend([(step.name, sent["centroids"])] if "centroids" in sent else [])
            yield from super().ask(step, sent, opened)

    sums = Asked(overlapping, StepTerms(NUM_ITEMS, CONFIG.user_exponent))
    start = run_stage1(sums, CONFIG, replace(PLAN, num_groups=num_groups))
    vectors = unit_vectors(add_rows(start.own, overlapping))
    (first,) = [centroids for name, centroids in asked if name == "moments"]
    before, after = nearest(vectors, first), nearest(vectors, start.centroids)
    assert [one.size for one in start.groups] == np.bincount(before).tolist()
    assert (asked[-1][0] == "groups") == (num_groups > 1), "of a single group nothing can move"
    if num_groups > 1:
        means = [vectors[before == group, : first.shape[1]].mean(axis=0) for group in range(num_groups)]
        assert start.centroids == pytest.approx(np.stack(means), abs=0.01)
        assert 0 < (before != after).sum() < 30


@pytest.mark.parametrize(("num_groups", "min_size"), [(9, 5), (12, 4), (12, 8)])
def test_a_group_that_its_devices_have_left_is_dissolved(overlapping, num_groups, min_size):
    plan = GroupPlan(dim=6, num_groups=num_groups, min_size=min_size, seed=0)
    start = run_stage1(PooledSums(overlapping, StepTerms(NUM_ITEMS, CONFIG.user_exponent)), CONFIG, plan)
    vectors = unit_vectors(add_rows(start.own, overlapping))
    sizes = np.bincount(nearest(vectors, start.centroids), minlength=len(start.groups))
    assert sizes.min() >= min_size
    assert sum(one.size for one in start.groups) < 60, "its moments went with it"


def test_what_is_collected_gives_the_start_and_the_rest_comes_from_all(rows):
    """Two passes over everybody from a start that half of them gave are nearer than two from nothing."""
    few = dataclasses.replace(CONFIG, passes=2)
    half = rows.keep(np.repeat(np.arange(80) % 2 == 0, rows.counts()))
    sums = PooledSums(rows, StepTerms(NUM_ITEMS, CONFIG.user_exponent))
    exact = run_stage1(sums, CONFIG, PLAN).values
    cold, warm = run_stage1(sums, few, PLAN).values, run_stage1(sums, few, PLAN, given=half).values
    assert np.abs(warm - exact).max() < 0.5 * np.abs(cold - exact).max()


def test_fewer_directions_than_columns_and_dimensions_are_no_obstacle():
    rows = UserItems(np.arange(0, 25, 2), np.tile(np.array([0, 1], np.int32), 12))
    events = []
    start = run_stage1(
        PooledSums(rows, StepTerms(4, 0.3)),
        CONFIG,
        dataclasses.replace(PLAN, num_groups=2),
        progress=lambda *step: events.append(step),
    )
    assert all(np.isfinite(group.table).all() and group.table.shape == (4, 6) for group in start.groups)
    assert events[-1][0] == events[-1][1] == num_steps(CONFIG)


def test_nobody_with_anything_is_refused():
    nobody = UserItems(np.zeros(5, np.int64), np.zeros(0, np.int32))
    with pytest.raises(DataError, match="no item has as many devices"):
        run_stage1(PooledSums(nobody, StepTerms(4, 0.3)), CONFIG, PLAN)


def test_devices_choose_the_filter_that_ranks_their_validation_items_best(rows):
    """Columns of mere noise are many and those of tastes few: the steeper filter wins, and by the sum of parts."""
    rng = np.random.default_rng(5)
    wanted = UserItems(np.arange(81), np.array([16 * (user % 3) + rng.integers(16) for user in range(80)], np.int32))
    wanted = wanted.keep(~np.array([wanted.items[user] in rows.row(user) for user in range(80)]))
    free = dataclasses.replace(CONFIG, columns=40, count_exponent=None, value_exponent=None)
    sums = PooledSums(rows, StepTerms(NUM_ITEMS, CONFIG.user_exponent), wanted)
    start = run_stage1(sums, free, PLAN)
    assert start.value_exponent > 0
    assert 0 < start.chosen <= 1
    asked = []

    class Choosing(PooledSums):
        def ask(self, step, sent, opened=None):
            asked.append(step.request(sent, self.terms))
            yield from super().ask(step, sent, opened)

    terms = StepTerms(NUM_ITEMS, CONFIG.user_exponent)
    elsewhere = run_stage1(PooledSums(rows, terms, choosing=Choosing(rows, terms, wanted)), free, PLAN)
    assert (elsewhere.count_exponent, elsewhere.value_exponent, elsewhere.chosen) == (
        start.count_exponent,
        start.value_exponent,
        start.chosen,
    )
    # against all items by hand: 48 of them are known, so all are drawn, and 20 of 48 count
    question = asked[0]
    assert (len(question.drawn), question.place) == (48, 20)
    question = dataclasses.replace(question, place=4)
    question = replace(question, shapes=FilterGrid.from_exponents((0.5,), (0.5,), (2, 5, 40)))
    counts = question.counts.astype(float)
    power = np.sqrt(counts)
    root = np.divide(1.0, power, out=np.zeros(NUM_ITEMS), where=counts > 0)
    results = []
    for leading in (2, 5, 40):
        directions, values, won = question.directions[:, :leading], question.values[:leading], 0
        for user in np.flatnonzero(wanted.counts()):
            vector = (root[rows.row(user), None] * directions[rows.row(user)]).sum(axis=0) * values**0.5
            scores = (directions @ vector) * power
            others = np.setdiff1d(question.drawn, np.concatenate([rows.row(user), wanted.row(user)]))
            won += (scores[others] >= scores[wanted.row(user)[0]]).sum() < 4
        assert 0 < won < 60
        results.append(won)
    assert len({*results}) == 3
    assert question.shares(rows, wanted, 0.5)[0].sum(axis=0).tolist() == results


class Favouring(PooledSums):
    """Devices that all favour one filter, with a number of columns and exponents."""

    favourite = (0, 0.0, 0.0)

    def ask(self, step, sent, opened=None):
        for part, sums in super().ask(step, sent, opened):
            if step.name == "choice":
                shapes = step.request(sent, self.terms).shapes
                every = zip(shapes.leading, shapes.count_exponents, shapes.value_exponents, strict=True)
                sums = {"won": np.array([one == self.favourite for one in every], np.int64), "answered": np.ones(1)}
            yield part, sums


@pytest.mark.parametrize("favourite", [(3, 0.4, 0.5), (6, 0.3, 0.0), (24, 0.5, 0.2)])
def test_tables_are_of_the_leading_columns_that_devices_favour(rows, favourite, monkeypatch):
    """They are those of passes of all columns that there are to choose from, with the exponents chosen beside."""
    monkeypatch.setattr("fl_peel.scenario.settings.SpectralConfig.limited", lambda config, num_items: config)
    leading, count, value = favourite
    terms, wide = StepTerms(NUM_ITEMS, CONFIG.user_exponent), replace(CONFIG, columns=24, passes=2)
    sums = Favouring(rows, terms)
    sums.favourite = favourite
    start = run_stage1(sums, replace(wide, fewer=(3, 6), count_exponent=None, value_exponent=None), PLAN)
    whole = run_stage1(PooledSums(rows, terms), replace(wide, count_exponent=count, value_exponent=value), PLAN)
    assert (start.count_exponent, start.value_exponent) == (count, value)
    for one, other in ((start.directions, whole.directions), (start.own, whole.own), (start.scored, whole.scored)):
        assert np.array_equal(one, other[:, :leading])
    assert np.array_equal(start.values, whole.values[:leading])
    assert len(start.groups[0].map) == leading


def test_passes_of_a_chosen_number_of_columns_open_at_most_a_number_for_three_items():
    """Of (K + 32) columns twice; the fewest are tried on however few items. A number that is given stays."""
    free = replace(SPECTRAL, columns=512, fewer=(128, 256), passes=2)
    for num_items, columns in ((0, 128), (1727, 128), (1728, 256), (3263, 256), (3264, 512)):
        limited = free.limited(num_items)
        assert (*limited.fewer, limited.columns) == tuple(one for one in (128, 256, 512) if one <= columns)
    assert replace(SPECTRAL, columns=512).limited(0).columns == 512


def test_costs_are_those_of_the_arithmetic():
    items, rich = np.array([10, 100]), np.array([10**9, 10**9])
    terms, held = StepTerms(NUM_ITEMS, 0.3, dim=64), HeldItems(items, items, items)
    cost = PassStep(544).cost(terms, held, rich)
    assert cost.download_bytes.tolist() == [10 * (4 + 2 * 544) + 544, 100 * (4 + 2 * 544) + 544]
    assert cost.upload_bytes.tolist() == [8 * 544 + 40, 8 * 544 + 400]
    assert cost.exchanges.tolist() == [1, 1]
    assert cost.least_bytes.tolist() == [2 * 10 + 8, 2 * 100 + 8]
    # room for 10 columns of 28 bytes, and for one of 208
    poor = PassStep(544).cost(terms, held, np.array([280, 280]))
    assert poor.exchanges.tolist() == [55, 544]
    assert (poor.download_bytes == cost.download_bytes).all()
    assert CountsStep().cost(terms, held, rich).upload_bytes.tolist() == [40, 400]
    assert GroupsStep(64, 128).cost(terms, held, rich).download_bytes.tolist() == [64 * 128] * 2
    assert GroupsStep(64, 128).cost(terms, held, rich).upload_bytes.tolist() == [4, 4], "the number of its group"
    assert MomentsStep(64, 128, 512).cost(terms, held, rich).upload_bytes.tolist() == [40 + 4096, 400 + 4096]
    assert VectorsStep(512).cost(terms, held, rich).upload_bytes.tolist() == [0, 0]
    there, joining = VectorsStep(64).cost(terms, held, rich), VectorsStep(64, True, 20 * 64).cost(terms, held, rich)
    assert (joining.download_bytes - there.download_bytes).tolist() == [64 * 4 + 20 * 64] * 2, "default and centroids"
    assert MapsStep(512).cost(terms, held, rich).download_bytes.tolist() == [512 * (2 * 64 + 1)] * 2
    counted = replace(terms, counts_contributors=True)
    for step, down, up in ((PassStep(44), [2, 13], 0), (GroupsStep(20, 44), 0, 0), (MomentsStep(20, 44, 44), 3, 4)):
        bare, both = (step.whole_cost(one, held, rich) for one in (terms, counted))
        assert (both.download_bytes - bare.download_bytes == down).all(), "which rows are opened, a bit each"
        assert (both.upload_bytes - bare.upload_bytes == up).all(), "of passes, ids go with the count alone"


def test_rows_are_sent_in_half_precision():
    """Within a 2048th of each number, or of a 16384th of the column's largest; what is sent once is sent again."""
    table = np.random.default_rng(3).standard_normal((NUM_ITEMS, 6)).astype(np.float32) * 10.0 ** np.arange(-20, 16, 6)
    sent = spectral.halves(table.astype(np.float32))
    assert (np.abs(sent - table) <= np.maximum(np.abs(table) / 2048, np.abs(table).max(axis=0) / 16384)).all()
    assert (spectral.halves(sent) == sent).all()
    assert not spectral.halves(np.zeros((3, 2), np.float32)).any()


@pytest.mark.parametrize("devices", [7, 9, 20, 40, 10**6])
def test_of_few_devices_moments_have_few_directions_and_none_is_lost(devices):
    """Whether the group is small or not, found in a few columns or in all of them; the rest
    are those that matter to devices alike in all directions."""
    rng = np.random.default_rng(devices)
    columns, count = 40, 8
    points = in_units(unit_vectors(rng.standard_normal((min(devices, 60), columns)).astype(np.float32)))
    mean = points.T @ points / (UNIT_SCALE**2 * len(points))
    factor = np.linalg.cholesky(np.cov(rng.standard_normal((columns, 90))) + np.eye(columns))
    energies, basis = np.linalg.eigh(factor.T @ factor)
    alike = (basis * np.sqrt(energies))[:, ::-1][:, :count]
    values, turn = spectral.leading_of(factor, mean, count, devices, alike)
    exact, vectors = np.linalg.eigh(factor.T @ mean @ factor)
    assert values == pytest.approx(exact[::-1][:count], abs=1e-9 * exact[-1])
    seen = values > 1e-9 * values[0]
    agree = np.abs((turn * vectors[:, ::-1][:, :count]).sum(axis=0))
    assert agree[seen] == pytest.approx(np.ones(int(seen.sum())), abs=1e-9)
    assert int(seen.sum()) == min(count, devices)
    assert turn.T @ turn == pytest.approx(np.eye(count), abs=1e-9)
    if not seen.all():
        outside = np.eye(columns) - turn[:, seen] @ turn[:, seen].T
        most = np.linalg.eigvalsh(outside @ alike @ alike.T @ outside)[-int((~seen).sum()) :]
        assert ((turn[:, ~seen].T @ alike) ** 2).sum() == pytest.approx(most.sum(), rel=1e-6)


def test_two_passes_as_a_filter_are_worth_more_than_two(rows):
    """Of a known spectrum: the leading space comes nearer, and lengths stand for the eigenvalues they came from."""
    rng = np.random.default_rng(7)
    basis = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    spectrum = np.concatenate([np.linspace(3.0, 1.3, 10), np.linspace(1.0, 0.0, 50)])
    operator = (basis * spectrum) @ basis.T
    start = spectral.orthonormal(rng.standard_normal((60, 12)))
    asked = []

    def passed(block):
        asked.append(block)
        return operator @ block

    def error(directions):
        return np.linalg.norm(basis[:, :10] - directions @ (directions.T @ basis[:, :10]))

    plain = start
    for _ in range(2):
        plain, _ = spectral.spectrum(operator @ plain)
    twice, values = spectral.filtered(passed, start, 1.0)
    assert len(asked) == 2
    assert max(np.linalg.norm(block, axis=0).max() for block in asked) <= 1 + 1e-9
    assert error(twice) < 0.9 * error(plain)
    exact = basis[:, :12]
    result, values = spectral.filtered(passed, exact, 1.0)
    assert values[:10] == pytest.approx(spectrum[:10], rel=1e-9)
    assert np.abs(np.abs(np.diag(result.T @ exact)) - 1)[:10].max() < 1e-9


def test_passes_are_as_many_as_the_scenario_says():
    assert [spectral.blocks_of(passes) for passes in (1, 2, 3, 4, 6, 7)] == [
        [1],
        [1, 1],
        [1, 1, 1],
        [1, 2, 1],
        [1, 2, 2, 1],
        [1, 2, 2, 1, 1],
    ]


@pytest.mark.parametrize("devices", [3, 80, 943, 29_858, 10**6])
@pytest.mark.parametrize("a", [0.0, 0.3, 0.5])
def test_no_device_can_say_what_does_not_fit_32_bits(devices, a):
    """Of devices with the worst rows that there may be: those of one column alone, at length 1."""
    config = dataclasses.replace(SPECTRAL, sum_bits=32, user_exponent=a)
    units = Units.from_config(config, devices, 200)
    assert units.passes >= 1
    if units.passes == units.moments == 1:
        return
    terms = StepTerms(200, a, units=units)
    vector = StepVector(PassStep(2), terms, 1, devices)
    for size in (1, 7, 200):
        table = np.zeros((200, 2), np.float32)
        table[:size] = size**-0.5 * np.array([1, -1])
        mine = UserItems.from_pairs(np.zeros(size, np.int64), np.arange(size), 1)
        output = pass_sums(table, mine, a, units.passes)
        vector.part((0, 2)).words({"columns": output})  # refuses what might overflow
    unit = np.zeros((1, 6), np.float32)
    unit[0, 0] = 1
    assert added_products(unit, terms)[1].max() * devices < 2**31


def test_units_are_as_fine_as_the_devices_allow():
    config = dataclasses.replace(SPECTRAL, sum_bits=32)
    few, many = Units.from_config(config, 943, 1682), Units.from_config(config, 29_858, 40_981)
    assert (few.passes, few.moments) == (2.0**21, 2.0**10)
    assert (many.passes, many.moments) == (2.0**16, 2.0**8)
    assert Units.from_config(SPECTRAL, 943, 1682) == Units()


def test_coarse_units_change_tables_little(rows):
    exact = run_stage1(PooledSums(rows, StepTerms(NUM_ITEMS, 0.3)), CONFIG, PLAN)
    config = dataclasses.replace(CONFIG, sum_bits=32)
    units = Units.from_config(config, 80, NUM_ITEMS)
    coarse = run_stage1(PooledSums(rows, StepTerms(NUM_ITEMS, 0.3, units=units)), config, PLAN)
    assert coarse.values == pytest.approx(exact.values, rel=1e-3)
    vectors = unit_vectors(add_rows(exact.own, rows))
    one, other = (nearest(vectors, start.centroids) for start in (exact, coarse))
    assert (one == other).mean() > 0.95


def test_a_second_noised_pass_is_over_few_directions_and_weak_ones_are_lifted(rows):
    """Of strong and weak ones a device says one length in all: by hand, eigenvalues to the power of -.65."""
    tables = []

    class Asked(PooledSums):
        def ask(self, step, sent, opened=None):
            tables.append(sent["table"])
            return super().ask(step, sent, opened)

    counts = rows.popularity(NUM_ITEMS).astype(np.float64)
    sums = Asked(rows, StepTerms(NUM_ITEMS, 0.0, bounds=ContributionBounds(1.0)))
    start, config = spectral.popular_directions(counts, 20, 0.5), replace(CONFIG, columns=6, passes=2)
    _, found = stage1.repeated_passes(sums, start, counts, replace(config, passes=1))
    stage1.repeated_passes(sums, start, counts, config)
    assert [table.shape[1] for table in tables] == [20, 20, 6]
    assert np.linalg.norm(tables[2], axis=0) == pytest.approx(found[:6] ** -0.65, rel=1e-3)
    assert found[0] > 2 * found[5] > 0
