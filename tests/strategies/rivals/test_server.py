"""Lines to look up to: textbook matrices, lists that leave out what a device knows, bytes of what is sent."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from strategies.rivals import server
from strategies.rivals.base import SPLITS, UNLIMITED, GroupStarts, Request, compete
from strategies.rivals.quality import quality
from strategies.rivals.server import (
    CachedList,
    Ease,
    FullTable,
    ItemNeighbours,
    best_lists,
    ease_weights,
    interactions,
    keep_popular_items,
    neighbour_weights,
)


@pytest.fixture(scope="module")
def matrix():
    rng = np.random.default_rng(0)
    return sp.csr_matrix((rng.random((40, 15)) < 0.3).astype(np.float32))


def test_ease_is_the_ridge_regression_without_a_diagonal(matrix):
    """Column j of B minimizes |x_j - X b|^2 + lambda |b|^2 with b_j = 0: solved for each column by itself."""
    weights, dense = ease_weights(matrix, 7.0), matrix.toarray().astype(np.float64)
    assert weights.dtype == np.float32
    for j in range(15):
        others = np.delete(np.arange(15), j)
        part = dense[:, others]
        wanted = np.linalg.solve(part.T @ part + 7.0 * np.eye(14), part.T @ dense[:, j])
        np.testing.assert_allclose(weights[others, j], wanted, atol=1e-5)
        assert weights[j, j] == 0


def test_the_triangle_is_mirrored_across_blocks():
    square = np.asfortranarray(np.tril(np.arange(49.0).reshape(7, 7)).astype(np.float32))
    whole = np.tril(square) + np.tril(square, -1).T
    server._mirror(square, block=3)
    np.testing.assert_array_equal(square, whole)


def test_neighbours_by_hand():
    """Items 0, 1, 2 with users {0,1,2,3}, {0,1}, {3}: cosines 2 / sqrt(8), 1 / sqrt(4), 0."""
    rows = sp.csr_matrix(np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 1]], np.float32))
    near = neighbour_weights(rows, 2, 1.0).toarray()
    a, b = 2 / (8**0.5 + 1), 1 / (2 + 1)
    np.testing.assert_allclose(near, [[0, a, b], [a, 0, 0], [b, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(neighbour_weights(rows, 1, 1.0).toarray(), [[0, a, 0], [a, 0, 0], [b, 0, 0]], rtol=1e-6)


def test_neighbours_in_blocks_are_the_same(matrix):
    whole, blocks = (neighbour_weights(matrix, 4, 10.0, block=size) for size in (100, 4))
    np.testing.assert_array_equal(whole.toarray(), blocks.toarray())
    assert np.diff(whole.indptr).max() == 4
    assert (whole.diagonal() == 0).all()


def test_lists_are_the_best_scores_ties_to_the_smaller_item(material):
    train = material.splits.train
    scores = np.random.default_rng(0).integers(0, 9, (120, 60)).astype(np.float32)
    scores[:, 7] = -np.inf
    place = iter(range(0, 120, server.CHUNK_USERS))
    lists = best_lists(lambda rows: scores[next(place) :][: rows.shape[0]].copy(), train, material.seen, 60)
    for user in range(120):
        free = [i for i in range(60) if i != 7 and i not in set(material.seen.row(user).tolist())]
        wanted = sorted(free, key=lambda i: (-scores[user, i], i))[:20]
        assert lists[user].tolist() == wanted + [-1] * (20 - len(wanted))


@pytest.mark.parametrize("rival", [Ease(), ItemNeighbours(neighbours=(5, 20), shrinkages=(0.0, 5.0))])
def test_ceilings_rank_well_and_leave_out_what_is_known(material, rival):
    options = list(rival.options(material, [UNLIMITED]))
    assert len(options) == (6 if isinstance(rival, Ease) else 4)
    best = max(quality(option, material, "validation")["recall@20"] for option in options)
    assert best > 0.5  # 20 of 60 items at random would find a third
    for split, known in (("validation", material.splits.train), ("test", material.seen)):
        for user in range(120):
            assert not set(options[0].lists[split][user].tolist()) & set(known.row(user).tolist())
    assert rival.ceiling


def test_ease_needs_its_memory_and_says_so(material, monkeypatch):
    class Memory:
        available = 5 * 60**2 - 1

    monkeypatch.setattr(server.psutil, "virtual_memory", lambda: Memory)
    (row,) = compete(Ease(), material, [UNLIMITED])
    assert row["note"] == "not done: needs 0.0 GB of free memory"
    assert (row["trials"], row["stored_bytes_max"]) == (0, 0)
    Memory.available = 5 * 60**2
    assert compete(Ease(), material, [UNLIMITED])[0]["trials"] == 6


def test_a_large_catalogue_chooses_lambda_on_its_popular_items(material):
    part = keep_popular_items(material, 40)
    popularity = material.splits.train.popularity(60)
    kept = np.sort(np.argsort(-popularity, kind="stable")[:40])
    assert part.num_items == 40
    assert part.splits.train.popularity(40).tolist() == popularity[kept].tolist()
    inside = [quality(Ease().solved(part, ridge), part, "validation")["recall@20"] for ridge in Ease().ridges]
    ridge = Ease().ridges[int(np.argmax(inside))]
    (row,) = compete(Ease(most_items=40), material, [UNLIMITED])
    assert row["note"] == f"lambda {ridge:g}, chosen on 40 items"
    assert row["trials"] == 6
    assert row["test"] == quality(Ease().solved(material, ridge), material, "test")


def test_a_cached_list_is_worth_the_table_it_came_from(material):
    starts = GroupStarts(np.zeros(120, np.int64), lambda group: material.pretrained.items)
    grouped = dataclasses.replace(material, starts=starts)
    (plain,) = FullTable().options(material, [UNLIMITED])
    budgets = [Request("fp32", 0.1, bytes_) for bytes_ in (0, 7, 20, 45, 5000)]
    rows = compete(CachedList(tables=(FullTable(),)), grouped, budgets)
    assert [row["stored_bytes_max"] for row in rows] == [0, 7, 20, 45, 60]  # a byte an item
    assert rows[2]["test"] == rows[4]["test"] == quality(plain, material, "test")
    assert 0 < rows[1]["test"]["recall@20"] < rows[2]["test"]["recall@20"]
    # the best of several tables, each counted
    (row,) = compete(CachedList(), grouped, budgets[3:4])
    assert row["trials"] == 2 + 6
    options = list(Ease().options(material, [UNLIMITED]))
    best = max(quality(option, material, "validation")["recall@20"] for option in [plain, *options])
    assert row["validation"]["recall@20"] == best
    assert CachedList().ceiling


def test_an_item_number_takes_two_bytes_from_257_items_on(material):
    wide = dataclasses.replace(material.splits, num_items=300)
    table = np.concatenate([material.pretrained.items, np.zeros((240, 8), np.float32)])
    large = dataclasses.replace(material, splits=wide, pretrained=dataclasses.replace(material.pretrained, items=table))
    (option,) = CachedList(tables=(FullTable(),)).options(large, [Request("fp32", 0.1, 40)])
    assert option.stored.tolist() == [40] * 120
    assert option.label == "20 items of full-table"
    assert (option.lists["test"] >= 0).all()
    assert set(option.lists) == set(SPLITS)


def test_interactions_are_a_matrix_of_ones(material):
    whole = interactions(material.splits.train, 60)
    assert whole.shape == (120, 60)
    assert whole[5].indices.tolist() == material.splits.train.row(5).tolist()
