"""Pretraining: the spectral start, propagation, the losses, and the whole."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from fl_peel.data.interactions import UserItems
from fl_peel.errors import DataError, ScenarioError
from fl_peel.pretraining.central_training import EpochFigures, pretrain
from fl_peel.pretraining.losses import (
    BatchLoss,
    InteractionGraph,
    SparseMatrix,
    UserBatch,
    bpr_loss,
    propagate,
    sampled_softmax_loss,
    slice_diversity,
)
from fl_peel.pretraining.spectral import basis, normalized_interactions, truncated_svd
from fl_peel.randomness import rng_for
from fl_peel.training.workers import Workers, own_threads
from tests.helpers.settings import PRETRAINING

SMALL = replace(
    PRETRAINING,
    embedding_dim=8,
    num_slices=4,
    epochs=4,
    batch_size=16,
    num_negatives=10,
    learning_rate=0.01,
    l2=1e-4,
    temperature=0.15,
)


def some_rows(num_users: int = 40, num_items: int = 30, seed: int = 0) -> UserItems:
    """Random likes, 3 to 9 per user: enough for the graph to hang together."""
    rng = rng_for(seed, "rows")
    chosen = [rng.permutation(num_items)[: rng.integers(3, 10)] for _ in range(num_users)]
    users = np.repeat(np.arange(num_users), [len(row) for row in chosen])
    return UserItems.from_pairs(users, np.concatenate(chosen), num_users)


def test_pretraining_leaves_the_interactions_as_they_are_and_does_not_depend_on_their_order() -> None:
    rows = some_rows()
    turned = UserItems(rows.indptr, np.concatenate([rows.row(u)[::-1] for u in range(rows.num_users)]))
    for each in (rows, turned):
        each.items.setflags(write=False)  # as the files are that devices' interactions are mapped from
    first, second = (pretrain(each, 30, SMALL, seed=3) for each in (rows, turned))
    assert (first.items == second.items).all()
    assert (first.users == second.users).all()


# ---- spectral start


def test_normalized_interactions_by_hand() -> None:
    # user 0 has items 0 and 1, user 1 has item 1, user 2 has nothing; item 2 has nobody
    rows = UserItems.from_pairs(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    r2 = 1 / math.sqrt(2)
    # entry = 1 / sqrt(degree of the user * degree of the item); degrees: users 2, 1; items 1, 2
    expected = [[r2, 1 / 2, 0], [0, r2, 0], [0, 0, 0]]
    assert np.allclose(normalized_interactions(rows, 3).toarray(), expected)


def test_truncated_svd_equals_numpy() -> None:
    matrix = normalized_interactions(some_rows(60, 50), 50)
    users, values, items = truncated_svd(matrix, 6, seed=1)
    left, exact, right = np.linalg.svd(matrix.toarray().astype(np.float64), full_matrices=False)
    assert np.allclose(values, exact[:6], atol=1e-5)
    # singular vectors are equal up to sign: compare |cosine|
    assert np.allclose(np.abs((users * left[:, :6]).sum(axis=0)), 1.0, atol=1e-4)
    assert np.allclose(np.abs((items * right[:6].T).sum(axis=0)), 1.0, atol=1e-4)
    best = (left[:, :6] * exact[:6]) @ right[:6]
    assert np.allclose((users * values) @ items.T, best, atol=1e-4)


def test_truncated_svd_of_a_matrix_smaller_than_the_rank() -> None:
    matrix = normalized_interactions(some_rows(5, 4), 4)
    users, values, items = truncated_svd(matrix, 8, seed=1)
    assert users.shape == (5, 8)
    assert items.shape == (4, 8)
    assert np.allclose((users * values) @ items.T, matrix.toarray(), atol=1e-5)


@pytest.mark.parametrize(("least", "rank"), [(0.5, 12), (1e-2, 12), (1e-5, 12), (0.0, 11)])
def test_a_basis_is_that_of_a_qr_decomposition_up_to_signs(least: float, rank: int) -> None:
    """Columns of which the last is the others' sum, but for so much of its own."""
    block = rng_for(0, "block").standard_normal((300, 12)).astype(np.float32)
    block[:, -1] = block[:, :-1].sum(axis=1) + least * block[:, -1]
    columns, twin = basis(block), np.linalg.qr(block)[0]
    assert columns.dtype == np.float32
    assert np.allclose(columns.T @ columns, np.eye(12), atol=1e-6)
    signs = np.sign((columns * twin).sum(axis=0))
    assert np.allclose((columns * signs)[:, :rank], twin[:, :rank], atol=1e-6)


# ---- propagation


def test_propagation_and_its_gradient_equal_those_of_its_dense_twin() -> None:
    """Layers as in LightGCN, equation 8."""
    rows, num_items = some_rows(), 30
    graph = InteractionGraph.build(rows, num_items)
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(40, 5, generator=generator, requires_grad=True)
    items = torch.randn(30, 5, generator=generator, requires_grad=True)
    target = torch.randn(70, 5, generator=generator)
    spread = torch.cat(propagate(graph, users, items, 2))
    (spread * target).sum().backward()
    dense = torch.from_numpy(normalized_interactions(rows, num_items).toarray())
    twin_users, twin_items = users.detach().clone().requires_grad_(), items.detach().clone().requires_grad_()
    u1, i1 = dense @ twin_items, dense.T @ twin_users
    u2, i2 = dense @ i1, dense.T @ u1
    twin = torch.cat([(twin_users + u1 + u2) / 3, (twin_items + i1 + i2) / 3])
    (twin * target).sum().backward()
    assert torch.allclose(spread, twin, atol=1e-5)
    assert torch.allclose(users.grad, twin_users.grad, atol=1e-5)
    assert torch.allclose(items.grad, twin_items.grad, atol=1e-5)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_tables_of_the_users_that_are_wanted_are_the_same_to_the_last_bit_and_so_is_their_gradient(num_layers, count):
    rows, num_items = some_rows(), 30
    graph = InteractionGraph.build(rows, num_items)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randperm(40, generator=generator)[:9]
    users, items = torch.randn(40, 5, generator=generator), torch.randn(30, 5, generator=generator)
    target = torch.randn(39, 5, generator=generator)

    def result(workers: Workers | None) -> list[torch.Tensor]:
        mine, theirs = users.clone().requires_grad_(), items.clone().requires_grad_()
        if workers is None:
            every, spread = propagate(graph, mine, theirs, num_layers)
            some = every[wanted]
        else:
            some, spread = propagate(graph, mine, theirs, num_layers, wanted=wanted, workers=workers)
        (torch.cat([some, spread]) * target).sum().backward()
        return [some, spread, mine.grad, theirs.grad]

    with own_threads(count) as workers:
        for one, other in zip(result(None), result(workers), strict=True):
            assert torch.equal(one, other)


def added_one_by_one(matrix, table):
    """The product, every product and every sum rounded, in the order of the terms."""
    product = np.zeros((matrix.shape[0], table.shape[1]), np.float32)
    for row, out in enumerate(product):
        for place in range(*matrix.indptr[row : row + 2]):
            out += matrix.data[place] * table[matrix.indices[place]]
    return product


@pytest.mark.parametrize("dim", [5, 64, 70, 128])
def test_sparse_products_equal_those_of_scipy(dim):
    matrix = sp.random(40, 30, density=0.3, format="csr", dtype=np.float32, random_state=1)
    table, back = torch.randn(30, dim), torch.randn(3, dim)
    whole, some = SparseMatrix.from_scipy(matrix), np.array([7, 0, 39])
    total = torch.ones(40, dim)
    with own_threads(2) as workers:
        spread = whole.spread(table, workers, total)
        assert torch.equal(total, spread + 1)
        assert np.array_equal(spread.numpy(), added_one_by_one(matrix, table.numpy()))
        assert np.allclose(spread.numpy(), matrix @ table.numpy(), atol=1e-6)
        assert torch.equal(whole.rows(some).spread(table, workers), spread[some])
        twin = matrix[some].T @ back.numpy()
        added = torch.ones(30, dim)
        whole.rows(some).add_back(back, added, workers)
        assert np.allclose(added.numpy() - 1, twin, atol=1e-6)


def test_workers_share_out_everything_once_and_about_evenly():
    for count in (1, 2, 3, 8):
        workers = Workers(count)
        work = np.array([0, 0, 100, 101, 102, 103, 203])
        for parts in (workers.ranges(3, 13), workers.parts(work)):
            assert [last for _, last in parts[:-1]] == [first for first, _ in parts[1:]]
            assert all(first < last for first, last in parts)
        assert (workers.ranges(3, 13)[0][0], workers.ranges(3, 13)[-1][1]) == (3, 13)
        assert (workers.parts(work)[0][0], workers.parts(work)[-1][1]) == (0, 6)
    assert Workers(2).ranges(0, 41) == [(0, 20), (20, 41)]
    assert Workers(2).parts(np.array([0, 50, 60, 70, 100])) == [(0, 1), (1, 4)]


# ---- losses


def tiny_batch() -> tuple[torch.Tensor, torch.Tensor, UserBatch]:
    """User 0 likes items 0 and 1, user 1 likes item 2; all positives weigh the same."""
    users = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]], requires_grad=True)
    weights = torch.full((3,), 1 / 3)
    indptr, rows, liked = torch.tensor([0, 2, 3]), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    return users, items, UserBatch(torch.tensor([0, 1]), indptr, rows, liked, weights)


DRAWN = torch.tensor([0, 3, 5, 11])


@pytest.mark.parametrize("candidates", [None, DRAWN])
def test_softmax_gradient_equals_autograd(candidates: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of a user at a time."""
    monkeypatch.setattr("fl_peel.pretraining.losses._CHUNK_LOGITS", 4)
    generator = torch.Generator().manual_seed(2)
    rows = some_rows(9, 12)
    users = torch.randn(9, 4, generator=generator, requires_grad=True)
    items = torch.randn(12, 4, generator=generator, requires_grad=True)
    weights = torch.rand(rows.num_interactions, generator=generator)
    batch = UserBatch(
        torch.arange(9),
        torch.from_numpy(rows.indptr),
        torch.from_numpy(rows.users()),
        torch.from_numpy(rows.items.astype(np.int64)),
        weights,
    )
    loss = sampled_softmax_loss(users, items, batch, temperature=0.3, candidates=candidates)
    (2.0 * loss).backward()
    twin_users, twin_items = users.detach().clone().requires_grad_(), items.detach().clone().requires_grad_()
    logits = twin_users @ twin_items.T / 0.3
    positive = logits[batch.rows, batch.items]
    if candidates is None:
        total = logits.logsumexp(dim=1)[batch.rows]
    else:
        drawn = logits[:, candidates] + math.log(12 / 4)
        total = torch.logaddexp(drawn.logsumexp(dim=1)[batch.rows], positive)
    twin = ((total - positive) * weights).sum()
    (2.0 * twin).backward()
    assert loss.item() == pytest.approx(twin.item(), rel=1e-5)
    assert torch.allclose(users.grad, twin_users.grad, atol=1e-5)
    assert torch.allclose(items.grad, twin_items.grad, atol=1e-5)


@pytest.mark.parametrize("sampled", [True, False])
def test_softmax_is_the_same_to_the_last_bit_for_any_number_of_workers(sampled: bool, monkeypatch) -> None:
    monkeypatch.setattr("fl_peel.pretraining.losses._CHUNK_LOGITS", 13 * 150)
    generator = torch.Generator().manual_seed(2)
    rows = some_rows(371, 97)
    items, starts = torch.randn(97, 8, generator=generator), torch.randn(371, 8, generator=generator)
    counts = rows.counts()
    weights = torch.rand(rows.num_interactions, generator=generator)
    batch = UserBatch(
        torch.arange(371),
        torch.from_numpy(rows.indptr),
        torch.from_numpy(np.repeat(np.arange(371), counts)),
        torch.from_numpy(rows.items.astype(np.int64)),
        weights,
    )
    candidates = torch.randperm(97, generator=generator)[:13] if sampled else None
    result = []
    for count in (1, 2, 3):
        users, table = starts.clone().requires_grad_(), items.clone().requires_grad_()
        with own_threads(count) as workers:
            loss = sampled_softmax_loss(users, table, batch, temperature=0.3, candidates=candidates, workers=workers)
            loss.backward()
        result.append((loss.detach(), users.grad, table.grad))
    for other in result[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(result[0], other, strict=True))


def test_bpr_by_hand() -> None:
    users, items, batch = tiny_batch()
    # margins: user 0: 1 - 2 (item 3) = -1 and 0 - 1 (item 2) = -1; user 1: 2 - 0 (item 0) = 2
    expected = (2 * math.log(1 + math.exp(1)) + math.log(1 + math.exp(-2))) / 3
    negatives = torch.tensor([[3], [2], [0]])
    assert bpr_loss(users, items, batch, negatives, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_a_penalty_that_is_added_to_gradients_is_that_of_the_loss_to_the_last_bit() -> None:
    loss_of, source = BatchLoss(some_rows(), 30, replace(SMALL, l2=0.3, l2_exponent=0.7)), generator(1)
    tables = [torch.randn(size, 8, generator=source) for size in (40, 30)]
    pulls = [torch.randn(size, 8, generator=source) for size in (40, 30)]
    one, other = ([table.clone().requires_grad_() for table in tables] for _ in range(2))
    whole = loss_of.penalty(*one)
    (whole + sum((table * pull).sum() for table, pull in zip(one, pulls, strict=True))).backward()
    for table, pull in zip(other, pulls, strict=True):
        table.grad = pull.clone()
    assert torch.equal(loss_of.add_penalty(*other), whole.detach())
    assert all(torch.equal(mine.grad, theirs.grad) for mine, theirs in zip(one, other, strict=True))


# ---- diversity


def test_cosine_diversity_by_hand() -> None:
    # item 0: slices (1, 0), (0, 3), (1, 1): squared cosines 0, 1/2, 1/2, mean 1/3
    # item 1: slices (1, 2), (2, 4), (-1, -2): all on one line: 1
    items = torch.tensor([[1.0, 0, 0, 3, 1, 1], [1, 2, 2, 4, -1, -2]])
    assert float(slice_diversity(items, 3, "cosine")) == pytest.approx((1 / 3 + 1) / 2, rel=1e-6)


def test_distance_diversity_by_hand() -> None:
    # item 0: |(1,0)-(0,3)|^2 = 10, |(0,3)-(1,1)|^2 = 5; item 1: 1 + 4 = 5, 9 + 36 = 45; minus the mean of 15 and 50
    items = torch.tensor([[1.0, 0, 0, 3, 1, 1], [1, 2, 2, 4, -1, -2]])
    assert float(slice_diversity(items, 3, "distance")) == pytest.approx(-32.5)


@pytest.mark.parametrize("form", ["cosine", "distance"])
def test_diversity_gradient_equals_finite_differences(form: str) -> None:
    items = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda table: slice_diversity(table, 4, form), (items,))  # type: ignore[arg-type]


def test_diversity_off_and_single_slice_are_zero() -> None:
    items = torch.ones(2, 4)
    assert float(slice_diversity(items, 4, "none")) == float(slice_diversity(items, 4, "axes")) == 0.0
    assert float(slice_diversity(items, 1, "cosine")) == 0.0


def test_diversity_weight_makes_the_slices_differ() -> None:
    rows = some_rows(80, 30)
    overlap = [
        float(slice_diversity(torch.from_numpy(pretrain(rows, 30, config, seed=1).items), 4, "cosine"))
        for config in (
            replace(SMALL, epochs=20, diversity_weight=0.0),
            replace(SMALL, epochs=20, diversity_weight=5.0, diversity_form="cosine"),
        )
    ]
    # 4 slices of 2 dimensions cannot all be at right angles: the least mean is (4 / 2 - 1) / (4 - 1) = 1/3
    assert overlap[1] == pytest.approx(1 / 3, abs=0.01)
    assert overlap[0] > 0.4


# ---- the whole


@pytest.mark.parametrize(
    ("model", "loss", "initialization"),
    [
        ("lightgcn", "sampled-softmax", "spectral"),
        ("lightgcn", "bpr", "normal"),
        ("matrix-factorization", "sampled-softmax", "normal"),
        ("matrix-factorization", "bpr", "spectral"),
    ],
)
def test_training_lowers_the_loss_and_repeats_to_the_last_digit(model: str, loss: str, initialization: str) -> None:
    config = replace(SMALL, model=model, loss=loss, initialization=initialization, epochs=6)  # type: ignore[arg-type]
    rows = some_rows()
    seen: list[EpochFigures] = []
    first = pretrain(rows, 30, config, seed=11, progress=seen.append)
    second = pretrain(rows, 30, config, seed=11)
    other = pretrain(rows, 30, config, seed=12)
    assert np.array_equal(first.users, second.users)
    assert np.array_equal(first.items, second.items)
    assert not np.array_equal(first.items, other.items)
    assert first.history == tuple(seen)
    assert [figures.epoch for figures in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1].loss < seen[0].loss


def test_users_without_data_get_zero_rows_and_change_nothing() -> None:
    rows = some_rows()
    with_absent = UserItems(np.append(rows.indptr, rows.indptr[-1]), rows.items)  # user 40 gave nothing
    tables = pretrain(with_absent, 30, replace(SMALL, model="lightgcn"), seed=1)
    assert tables.users.shape == (41, 8)
    assert not tables.users[40].any()
    assert tables.users[:40].any(axis=1).all()


def test_thread_count_is_put_back() -> None:
    before = torch.get_num_threads()
    pretrain(some_rows(), 30, replace(SMALL, num_threads=3, epochs=1), seed=1)
    assert torch.get_num_threads() == before


def test_l2_exponent_shifts_the_penalty_to_rare_rows() -> None:
    # item 0 has 60 users, items 1..29 have 1 or 2 each: with exponent 0 a rare row carries as much penalty as item 0
    users = np.concatenate([np.arange(60), np.arange(60)])
    rows = UserItems.from_pairs(users, np.concatenate([np.zeros(60, int), 1 + np.arange(60) % 29]), 60)
    lengths = [
        np.linalg.norm(pretrain(rows, 30, replace(SMALL, epochs=30, l2=1.0, l2_exponent=x), seed=1).items[1:], axis=1)
        for x in (1.0, 0.0)
    ]
    assert lengths[1].mean() < lengths[0].mean()


def test_mistakes_are_named() -> None:
    rows = some_rows()
    with pytest.raises(DataError, match="no interactions were collected"):
        pretrain(rows.keep(np.zeros(rows.num_interactions, bool)), 30, SMALL, seed=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e30},
        {"user_weight_exponent": 1000.0},
        {"l2_exponent": 1000.0},
        {"epochs": 0, "initial_norm": 1e6},
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_diverged_is_told_where_it_did(changes: dict[str, float]) -> None:
    with pytest.raises(ScenarioError, match=r"pretraining: training diverged; lower pretraining\.learning_rate"):
        pretrain(some_rows(), 30, replace(SMALL, **changes), seed=1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
