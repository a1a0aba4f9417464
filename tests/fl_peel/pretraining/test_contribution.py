"""What devices add in stage 1 under a mechanism: within its bounds, whatever they have and whatever they are sent."""

import numpy as np
import pytest

from fl_peel.data.interactions import UserItems
from fl_peel.pretraining.contribution import CHOICE_BOUND, BoundedContribution, OpenContribution, within
from fl_peel.pretraining.denoising import above_noise, cleaned, known, popular_directions, shrunk_items, symmetric
from fl_peel.pretraining.spectral_steps import PASS_SCALE, UNIT_SCALE, FilterGrid, FilterRequest, Moments, unit_vectors

NUM_ITEMS = 30


def device(rng, size: int) -> UserItems:
    return UserItems(np.array([0, size]), np.sort(rng.permutation(NUM_ITEMS)[:size]).astype(np.int32))


def norm(values, unit: float, *, l1: bool) -> float:
    wide = np.asarray(values, np.float64) / unit
    return float(np.abs(wide).sum() if l1 else np.sqrt((wide * wide).sum()))


def parts_of(output: BoundedContribution, rng, size: int) -> dict[str, tuple[np.ndarray, float, float]]:
    """What one device says, its unit and its bound: of a hostile table, weights and centroids."""
    rows, wanted = device(rng, size), device(rng, 4)
    table = (10.0 ** rng.integers(-3, 6) * rng.standard_normal((NUM_ITEMS, 7))).astype(np.float32)
    weights = np.abs(rng.standard_normal(NUM_ITEMS) * 10.0 ** rng.integers(-6, 6, NUM_ITEMS)).astype(np.float32)
    shapes = FilterGrid.from_exponents((0.3, 0.4, 0.5), (0.0, 0.5))
    request = FilterRequest(table, np.ones(7), np.arange(1.0, NUM_ITEMS + 1), shapes, np.arange(NUM_ITEMS), 5)
    vectors = unit_vectors(rng.standard_normal((1, 7)).astype(np.float32))
    groups = output.groups(vectors, rng.standard_normal((3, 4)).astype(np.float32))
    moments = output.moments(vectors, rows)
    return {
        "counts": (output.counts(rows), UNIT_SCALE, output.count_bound),
        "pass": (output.passed(table, weights, slice(None), rows), PASS_SCALE, 1.0),
        "choice": (output.choice(request, rows, wanted)[0], UNIT_SCALE, CHOICE_BOUND),
        "group sizes": (groups.sizes, UNIT_SCALE, 1.0),
        "group vectors": (groups.sums, UNIT_SCALE, 1.0),
        "moment sizes": (np.array([moments.size]), UNIT_SCALE, 1.0),
        "moment vectors": (moments.first, UNIT_SCALE, 1.0),
        "moment products": (moments.second, UNIT_SCALE**2, 1.0),
        "moment items": (moments.items, UNIT_SCALE, output.count_bound),
    }


@pytest.mark.parametrize("l1", [False, True], ids=["l2", "l1"])
def test_every_part_is_within_its_bound_and_some_come_near(l1):
    output, most = BoundedContribution(NUM_ITEMS, 0.5, 1.5, l1), {}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        for part, (values, unit, bound) in parts_of(output, rng, int(rng.integers(1, NUM_ITEMS))).items():
            length = norm(values, unit, l1=l1)
            assert length <= bound, f"{part}, seed {seed}"
            most[part] = max(most.get(part, 0.0), length / bound)
    assert min(most.values()) > 0.99, most


def test_what_is_not_a_number_or_has_no_items_says_nothing():
    output = BoundedContribution(NUM_ITEMS, 0.5, 1.0)
    rows = device(np.random.default_rng(0), 5)
    for worst in (np.nan, np.inf):
        table, weights = np.full((NUM_ITEMS, 3), worst, np.float32), np.ones(NUM_ITEMS, np.float32)
        assert not output.passed(table, weights, slice(None), rows).any()
        finite = output.passed(np.ones((NUM_ITEMS, 3), np.float32), weights * np.float32(worst), slice(None), rows)
        assert norm(finite, PASS_SCALE, l1=False) <= 1
    nobody = UserItems(np.array([0, 0]), np.zeros(0, np.int32))
    assert not output.counts(nobody).any()
    assert not output.passed(np.ones((NUM_ITEMS, 3), np.float32), weights, slice(None), nobody).any()


@pytest.mark.parametrize("l1", [False, True], ids=["l2", "l1"])
def test_a_device_of_unknown_items_alone_says_nothing_in_a_pass(l1):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((NUM_ITEMS, 7)).astype(np.float32)
    output = BoundedContribution(NUM_ITEMS, 0.5, 1.0, l1)
    assert not output.passed(table, np.zeros(NUM_ITEMS, np.float32), slice(None), device(rng, 5)).any()


def test_a_device_of_few_items_counts_fully_and_a_bounded_pass_is_one_of_unit_vectors():
    output, rng = BoundedContribution(NUM_ITEMS, 0.5, 3.0), np.random.default_rng(1)
    rows = device(rng, 9)
    assert np.allclose(output.counts(rows)[rows.items], UNIT_SCALE, rtol=1e-6)
    weights = np.linspace(0.5, 2.0, NUM_ITEMS).astype(np.float32)
    table = np.linalg.qr(rng.standard_normal((NUM_ITEMS, 4)))[0].astype(np.float32)
    row = np.zeros(NUM_ITEMS)
    row[rows.items] = weights[rows.items]
    row /= np.linalg.norm(row)
    result = output.passed(table, weights, slice(1, 3), rows) / PASS_SCALE
    assert np.allclose(result, np.outer(row, row @ table)[:, 1:3], atol=1e-4)


def test_sums_are_the_same_for_devices_together_or_one_by_one():
    output, rng = BoundedContribution(NUM_ITEMS, 0.5, 1.0), np.random.default_rng(2)
    each = [device(rng, size) for size in (3, 8, 20)]
    rows = UserItems(np.array([0, 3, 11, 31]), np.concatenate([one.items for one in each]))
    table, weights = rng.standard_normal((NUM_ITEMS, 5)).astype(np.float32), np.ones(NUM_ITEMS, np.float32)
    vectors = unit_vectors(rng.standard_normal((3, 5)).astype(np.float32))
    whole = slice(None)
    assert (
        output.passed(table, weights, whole, rows) == sum(output.passed(table, weights, whole, one) for one in each)
    ).all()
    assert (output.counts(rows) == sum(output.counts(one) for one in each)).all()
    parts = [output.moments(vectors[i : i + 1], one) for i, one in enumerate(each)]
    together = output.moments(vectors, rows)
    assert (together.second == sum(one.second for one in parts)).all()
    assert together.size == 3 * UNIT_SCALE


def test_what_is_open_is_as_it_was():
    rows = device(np.random.default_rng(3), 9)
    assert OpenContribution(NUM_ITEMS, 0.3, 0.5).counts(rows).sum() == 9
    assert within(np.array([[3.0, 4.0]]), 10.0, 4.0, l1=False).tolist() == [[12, 16]]


def test_items_that_drown_are_unknown_but_not_all():
    counts = (UNIT_SCALE * np.concatenate([np.full(80, 10.0), np.full(20, 1.0), [-3.0]])).astype(np.int64)
    assert (known(counts, 1.0) > 0).tolist() == [True] * 80 + [False] * 21
    assert (known(counts, 100.0) > 0).sum() == 80, "ties of the 64 largest stay"
    assert (known(counts, 0.0) > 0).sum() == 100


def test_directions_begin_with_popularity_and_popular_items():
    counts = np.array([5.0, 0.0, 9.0, 1.0, 4.0])
    directions = popular_directions(counts, 3, 0.5)
    assert np.allclose(directions.T @ directions, np.eye(3))
    assert np.allclose(np.abs(directions[:, 0]), np.sqrt(counts) / np.sqrt(counts.sum()))
    assert not directions[1].any()
    assert popular_directions(counts, 9, 0.5).shape == (5, 4)


def test_half_of_the_noise_of_a_symmetric_pass_is_left_out():
    rng = np.random.default_rng(4)
    counts = np.append(np.ones(200), 0.0)
    directions = np.eye(201)[:, :200]
    truth = np.zeros((201, 201))
    truth[:200, :200] = np.ones((200, 200))
    noise = rng.standard_normal((201, 200))
    result = symmetric(truth @ directions + noise, directions, counts)
    assert np.allclose(result[:200], result[:200].T)
    assert (result - truth[:, :200])[:200].var() == pytest.approx(0.5, rel=0.05)
    values = np.linalg.svd(symmetric(noise, directions, counts), compute_uv=False)
    assert not above_noise(values, counts, 1.0)[1:].any()
    assert above_noise(values, counts, 1.0)[0] > 0


def test_moments_without_what_noise_alone_would_say():
    rng = np.random.default_rng(5)
    vector = unit_vectors(rng.standard_normal((1, 20)).astype(np.float32))[0].astype(np.float64)
    noise = rng.standard_normal((20, 20)) * 2
    second = 100 * np.outer(vector, vector) + (noise + noise.T) / 2
    whole = Moments(
        int(-3 * UNIT_SCALE), np.zeros(20, np.int64), (second * UNIT_SCALE**2).astype(np.int64), np.arange(5)
    )
    result = cleaned(whole, np.ones(5), {"moment products": 2.0, "moment items": 1.0})
    values = np.linalg.eigvalsh(result.second / UNIT_SCALE**2)
    assert values[-1] == pytest.approx(100, abs=8)
    assert np.abs(values[:-1]).max() < 1e-3
    assert result.size == 1


def test_items_of_a_group_are_shrunk_to_those_of_everybody_by_the_noise():
    counts = np.array([40.0, 30.0, 20.0, 10.0] * 50)
    noise = np.random.default_rng(6).normal(0, 3, 200)
    assert np.abs(shrunk_items(counts / 4 + noise, counts, 3.0) - counts / 4).mean() < 0.3 * np.abs(noise).mean()
    other = counts[::-1].copy()
    assert np.corrcoef(shrunk_items(other + noise, counts, 3.0), other)[0, 1] > 0.95
