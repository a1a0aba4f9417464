"""Product quantization and hashing: files that say it all, codes of a textbook, rows chosen as said."""

import faiss
import numpy as np
import pytest
import torch

from fl_peel.blocks.compression import DenseTable, number_type, stored_bytes, to_bytes
from fl_peel.training.workers import fixed_threads
from strategies.rivals.base import Request, compete, quality
from strategies.rivals.compressed import (
    Codebooks,
    HashedTable,
    Hashing,
    ProductQuantization,
    QuantizedTable,
    composed,
    most_remainders,
    most_rows,
)
from strategies.rivals.table_rivals import best_items, narrowed
from tests.strategies.rivals.conftest import read_head
from tests.strategies.rivals.test_rivals import random_table, requests


def quantized(table, items, parts, bits, precision, seed=1, residual=False):
    with fixed_threads(1):
        return QuantizedTable.from_table(
            table, np.asarray(items, np.int32), Codebooks(parts, bits, residual), precision, seed
        )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(("parts", "bits"), [(2, 4), (4, 2), (8, 1), (4, 6)])
@pytest.mark.parametrize("kept", [300, 70])
def test_bytes_are_those_of_a_file_that_faiss_decodes_alike(parts, bits, precision, kept):
    table = random_table(0, 300, 8)
    items = np.sort(np.random.default_rng(1).permutation(300)[:kept])
    stored = quantized(table, items, parts, bits, precision)
    data = to_bytes(stored, np.zeros(8, np.float32))
    assert len(data) == stored_bytes(stored)
    kind, coded, (said_parts, said_bits, num_items, count) = read_head(data)
    assert (kind, coded, said_parts, said_bits, num_items, count) == ("quantized", precision, parts, bits, 300, kept)
    value, rest = np.dtype({"fp32": "<f4", "fp16": "<f2", "int8": "i1"}[precision]), data[44 + 16 :]

    def take(dtype, *shape):
        nonlocal rest
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        part, rest = np.frombuffer(rest[:size], dtype).reshape(shape), rest[size:]
        return part

    codes = take("u1", kept, parts * bits // 8)
    books = take(value, parts << bits, 8 // parts).astype(np.float32)
    if precision == "int8":
        books = books * take("<f2", parts << bits).astype(np.float32)[:, None]
    result, rows = stored.decoded()
    # another reader: places, then faiss with the codebooks of the file
    if kept == 300:
        assert not rest
        assert result.tolist() == list(range(300))
    elif len(rest) == 2 * kept:
        assert np.frombuffer(rest, "<u2").tolist() == items.tolist()
    else:
        assert np.flatnonzero(np.unpackbits(np.frombuffer(rest, np.uint8))).tolist() == items.tolist()
    reader = faiss.ProductQuantizer(8, parts, bits)
    faiss.copy_array_to_vector(books.ravel(), reader.centroids)
    np.testing.assert_array_equal(reader.decode(codes), rows)
    # a row is said by the nearest centroid of each part
    width = 8 // parts
    mine, books = table[items].reshape(kept, parts, width), books.reshape(parts, 1 << bits, width)
    nearest = ((mine[:, :, None] - books) ** 2).sum(axis=3).min(axis=2).sum()
    assert ((rows - table[items]) ** 2).sum() == pytest.approx(nearest, rel=1e-4)


@pytest.mark.parametrize(("parts", "bits"), [(1, 8), (2, 4), (4, 2)])
def test_a_residual_codebook_is_of_what_those_before_it_leave(parts, bits):
    table = random_table(0, 300, 8)
    stored = quantized(table, np.arange(300), parts, bits, "int8", residual=True)
    data, each = to_bytes(stored, np.zeros(8, np.float32)), parts * bits // 8
    assert len(data) == stored_bytes(stored) == 44 + 16 + 300 * each + (parts << bits) * (8 + 2)
    assert read_head(data) == ("residual", "int8", [parts, bits, 300, 300])
    codes = np.frombuffer(data[60 : 60 + 300 * each], "u1").reshape(300, each)
    books, scales = data[60 + 300 * each : -2 * (parts << bits)], data[-2 * (parts << bits) :]
    books = np.frombuffer(books, "i1").reshape(-1, 8) * np.frombuffer(scales, "<f2").astype(np.float32)[:, None]
    reader = faiss.ResidualQuantizer(8, parts, bits)
    faiss.copy_array_to_vector(books.ravel(), reader.codebooks)
    reader.is_trained = True
    rows = stored.decoded()[1]
    np.testing.assert_allclose(reader.decode(codes), rows, rtol=1e-6, atol=1e-6)
    error = ((rows - table) ** 2).sum(axis=1)
    by_one = ((table[:, None] - books[None, : 1 << bits]) ** 2).sum(axis=2).min(axis=1)
    assert error.sum() == pytest.approx(by_one.sum(), rel=1e-4) if parts == 1 else error.sum() < by_one.sum()
    books = Codebooks(parts, bits, residual=True)
    assert most_rows(300, 8, books, "int8", len(data)) == 300 > most_rows(300, 8, books, "int8", len(data) - 1)


def test_as_many_rows_as_fit_and_no_more():
    for num_items, dim, parts, bits in ((1000, 16, 8, 2), (1000, 16, 4, 4), (70_000, 16, 8, 1)):
        for budget in (500, 700, 1500, 4000, 50_000, 500_000):
            most = most_rows(num_items, dim, Codebooks(parts, bits), "int8", budget)

            def size(count, num_items=num_items, dim=dim, parts=parts, bits=bits):
                ids = 0 if count == num_items else min(count * number_type(num_items).itemsize, -(-num_items // 8))
                return 44 + 2 * dim + (parts << bits) * (dim // parts + 2) + count * parts * bits // 8 + ids

            assert most == 0 or size(most) <= budget
            if most:
                assert most == num_items or size(most + 1) > budget
            else:
                assert size(1 << bits) > budget


def test_codes_do_not_depend_on_threads():
    table = random_table(0, 900, 16)
    one = quantized(table, np.arange(900), 8, 4, "int8")
    two = QuantizedTable.from_table(table, np.arange(900, dtype=np.int32), Codebooks(8, 4), "int8", 1)
    again = quantized(table, np.arange(900), 8, 4, "int8")
    np.testing.assert_array_equal(one.packed, again.packed)
    assert np.mean((one.decoded()[1] - table) ** 2) == pytest.approx(np.mean((two.decoded()[1] - table) ** 2), rel=0.05)


def test_rows_are_kept_by_popularity_or_by_what_is_shown(material):
    popular = best_items(material, "popularity")
    assert (np.diff(material.popularity[popular]) <= 0).all()
    shown = best_items(material, "exposure")
    assert (np.diff(material.shown[shown]) <= 0).all()
    assert popular.tolist() != shown.tolist()
    (option,) = ProductQuantization(dims=(1.0,), parts=(8,), bits=(1,), orders=("exposure",)).options(
        material, [Request("int8", 0.1, 60 + 16 * 3 + 30)]
    )
    # 22 rows of a byte with a bit for each of 60 items in 8 bytes
    assert sorted(option.ranked.items.tolist()) == sorted(shown[:22].tolist())


def test_narrow_tables_give_the_closest_scores(material):
    table, users = narrowed(material, 3)
    scores = material.users.astype(np.float64) @ material.pretrained.items.T
    u, s, v = np.linalg.svd(scores)
    np.testing.assert_allclose(users @ table.T, (u[:, :3] * s[:3]) @ v[:3], atol=1e-2 * np.abs(scores).max())
    assert narrowed(material, 8)[0] is material.pretrained.items


def test_quantization_is_chosen_among_settings_that_are_counted(material):
    rival = ProductQuantization(dims=(1.0, 0.5), parts=(4, 8), bits=(2, 4))
    wanted = requests(0.05, 0.3, precisions=("int8",))
    rows = compete(rival, material, wanted)
    for request, row in zip(wanted, rows, strict=True):
        options = list(rival.options(material, [request]))
        assert row["trials"] == len(options) > 1
        best = max(quality(option, material, "validation")["recall@20"] for option in options)
        assert row["validation"]["recall@20"] == best
        assert row["stored_bytes_max"] <= request.budget_bytes
    assert len({repr(one) for one in rival.settings()}) == 2 * 2 * 2 * 2


# hashing


@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_two_rows_make_an_item(operation):
    remainders, quotients = np.array([[1.0, 2], [3, 4], [5, 6]]), np.array([[0.5, 1], [2, 3]])
    number = np.array([4, 0, 2])  # rows (1, 1), (0, 0), (2, 0)
    combine = np.add if operation == "add" else np.multiply
    wanted = [combine(remainders[i], quotients[j]) for i, j in ((1, 1), (0, 0), (2, 0))]
    parts = [torch.from_numpy(remainders), torch.from_numpy(quotients)]
    np.testing.assert_array_equal(composed(parts, torch.from_numpy(number), operation).numpy(), wanted)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_bytes_of_hashed_tables_are_those_of_the_file(precision):
    first, second = (DenseTable.from_table(random_table(seed, rows, 6), precision) for seed, rows in ((0, 20), (1, 5)))
    stored = HashedTable(first, second, "add", np.random.default_rng(0).permutation(97))
    data = to_bytes(stored, np.zeros(6, np.float32))
    assert len(data) == stored_bytes(stored)
    assert read_head(data) == ("hashed-add", precision, [20, 6])
    items, rows = stored.decoded()
    assert items.tolist() == list(range(97))
    place = stored.number[13]
    np.testing.assert_array_equal(rows[13], first.decoded()[1][place % 20] + second.decoded()[1][place // 20])


def test_as_many_remainders_as_fit():
    for num_items in (10, 97, 1682):
        for budget in (300, 450, 700, 1500, 5000):
            count = most_remainders(num_items, 8, "int8", budget)
            rows = (budget - 44 - 16) // 10
            fits = [m for m in range(1, num_items + 1) if m + -(-num_items // m) <= rows]
            assert count == max(fits, default=0)


def test_hashed_tables_are_trained_and_every_setting_counts(material):
    rival = Hashing(dims=(0.25, 0.5), steps=30, rates=(1.0, 4.0))
    wanted = requests(0.15, 0.5, precisions=("int8",))
    rows = compete(rival, material, wanted)
    # at the largest budget two operations at two rates, and the other width; else two widths
    assert [row["trials"] for row in rows] == [2, 5]
    assert all(row["stored_bytes_max"] <= row["budget_bytes"] for row in rows)
    assert rows[1]["validation"]["recall@20"] > 0.5  # 20 of 60 items at random would find a third
