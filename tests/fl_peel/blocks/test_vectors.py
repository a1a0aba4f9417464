"""The test vectors are what the code writes, the reader finds in them what they say; whatever else it is given, it
refuses in one line or reads as it was written, in memory that is a small multiple of the file.
"""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.resizing import grow
from fl_peel.blocks.stored import HEADER_BYTES, StoredEmbedding, overhead_bytes
from fl_peel.errors import ArtifactError
from fl_peel.scenario.settings import PRECISIONS
from tests.helpers.examples import examples
from tests.vectors import make

CASES = {case.name: case for case in make.CASES}
names = pytest.mark.parametrize("name", CASES)


def vector(name):
    data = (make.FOLDER / f"{name}.peel").read_bytes()
    return data, json.loads((make.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_the_files_are_what_the_code_writes():
    """If this fails, the format or the scoring has changed: readers elsewhere follow these files."""
    there = {path.name: path.read_bytes() for path in make.FOLDER.iterdir() if path.suffix in (".peel", ".json")}
    assert there == make.contents()


def test_every_kind_of_file_is_there():
    kinds = {(case.precision, case.layout.is_single, case.slices > 1) for case in make.CASES}
    assert {(precision, single) for precision, single, _ in kinds} == {
        (precision, single) for precision in PRECISIONS for single in (True, False)
    }
    assert {(case.layout.id_bytes, case.layout.is_single) for case in make.CASES} == {
        (2, True), (4, True), (6, False), (12, False)
    }  # fmt: skip
    assert {sliced for *_, sliced in kinds} == {True, False}
    assert {(make.FOLDER / f"{name}.peel").read_bytes()[4] for name in CASES} == {2, 3}
    assert any(not make.stored_of(case).blocks.size for case in make.CASES)
    assert any(case.precision == "int4" and case.columns // case.slices % 2 for case in make.CASES)


@names
def test_what_is_read_is_what_the_vector_says(name):
    data, wanted = vector(name)
    stored = StoredEmbedding.from_bytes(data)
    assert len(data) == wanted["bytes"]
    result = make.described(stored)
    assert {key: result[key] for key in result} == {key: wanted[key] for key in result}
    rows, scores = stored.scores()
    assert (rows.tolist(), scores.tolist()) == (wanted["scores"]["rows"], wanted["scores"]["scores"])
    for top in wanted["top"]:
        assert stored.top_n(top["n"], np.array(top["seen_rows"], int)).tolist() == top["rows"]


@names
def test_scores_are_added_up_as_the_docs_say(name):
    """In double: column by column within a slice, then slice by slice, rounded to single at the end."""
    data, wanted = vector(name)
    stored = StoredEmbedding.from_bytes(data)
    width = stored.embedding_dim // stored.num_slices
    scales = wanted["scales"] or [1.0] * len(wanted["codes"])
    parts, piece = {}, 0
    for block, first, count in zip(wanted["blocks"], wanted["first_rows"], wanted["row_counts"], strict=True):
        piece_slice = block % stored.num_slices
        for row in range(first, first + count):
            part = 0.0
            for column, code in enumerate(wanted["codes"][piece]):
                part += code * scales[piece] * wanted["user"][piece_slice * width + column]
            parts[row, piece_slice] = part
            piece += 1
    totals = {}
    for row, piece_slice in sorted(parts):
        totals[row] = totals.get(row, 0.0) + parts[row, piece_slice]
    assert [float(np.float32(total)) for total in totals.values()] == wanted["scores"]["scores"]
    assert list(totals) == wanted["scores"]["rows"]


def test_the_vectors_tell_orders_of_adding_up_apart():
    stored = StoredEmbedding.from_bytes(vector("order-of-sums")[0])
    width = stored.embedding_dim // stored.num_slices
    users = stored.user.astype(np.float64).reshape(-1, width)
    products = stored.codes * users[stored.blocks % stored.num_slices]
    columns, slices = np.cumsum(products, axis=1)[:, -1], np.argsort(stored.blocks % stored.num_slices, kind="stable")
    by_blocks, by_slices = (np.bincount(stored.starts[o], columns[o]) for o in (np.arange(len(columns)), slices))
    pairwise = np.bincount(stored.starts[slices], products.sum(axis=1)[slices])
    backwards = np.bincount(stored.starts[slices], np.cumsum(products[:, ::-1], axis=1)[:, -1][slices])
    assert stored.scores()[1].tolist() == by_slices.astype(np.float32).tolist()
    for other in (by_blocks, pairwise, backwards):
        assert (by_slices.astype(np.float32) != other.astype(np.float32)).any()


@pytest.mark.parametrize("refusal", json.loads((make.FOLDER / make.REFUSED).read_text()), ids=lambda one: one["what"])
def test_what_is_refused_is_refused_for_the_reason_given(refusal):
    with pytest.raises(ArtifactError) as caught:
        StoredEmbedding.from_bytes(bytes.fromhex(refusal["hex"]))
    assert refusal["reason"] in str(caught.value)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"", "0 bytes that begin with no block of 10"),
        (b"\x02", "1 bytes that begin with no block of 10"),
        (b"\x0a\x00345678", "8 bytes that begin with no block of 10"),
        (b"\x01\x00345678", "a block twice, or one that is stored"),
    ],
)
def test_a_list_that_is_none_is_refused(sent, why):
    layout = BlockLayout(np.arange(5, dtype=np.int32), 8, 2)
    stored = StoredEmbedding.build(layout, "int8", np.ones(8, np.float32), np.array([1]), np.ones((5, 8), np.float32))
    with pytest.raises(ArtifactError, match=why):
        grow(stored, layout, np.zeros(0, int), 1000, [sent], np.zeros(layout.embedding_dim, np.float32))


# ---------------------------------------------------------------- anything at all


mutations = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 600), st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("cut"), st.integers(0, 600), st.just(b"")),
        st.tuples(st.just("add"), st.just(0), st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("insert"), st.integers(0, 600), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=4,
)


def mutated(data, changes):
    """The file with bytes changed, cut off, added at the end or in between."""
    for kind, place, content in changes:
        at = place % (len(data) + 1)
        if kind == "set":
            data = data[:at] + content + data[at + len(content) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "add":
            data = data + content
        else:
            data = data[:at] + content + data[at:]
    return data


@examples(150)
@given(name=st.sampled_from(sorted(CASES)), changes=mutations, sealed=st.booleans())
def test_any_change_is_refused_or_read_as_it_is_written(name, changes, sealed):
    """What is read is written again to the last byte: nothing in a file is read past."""
    whole = (make.FOLDER / f"{name}.peel").read_bytes()
    data = mutated(whole, changes)
    if sealed and len(data) >= HEADER_BYTES:
        data = make.resealed(data)
    try:
        stored = StoredEmbedding.from_bytes(data)
    except ArtifactError as error:
        why = str(error)
        assert "\n" not in why
        assert len(why) < 300
        return
    assert sealed or data == whole
    assert stored.to_bytes() == data
    rows, scores = stored.scores()
    assert len(rows) == len(scores) <= len(stored.codes)
    assert (np.diff(rows) > 0).all()
    assert (rows < stored.num_items).all()
    assert np.isfinite(stored.user).all()
    assert len(set(stored.top_n(3).tolist())) == len(stored.top_n(3)) <= 3


@examples(100)
@given(
    fields=st.lists(st.sampled_from([0, 1, 2, 255, 65_535, (1 << 31) + 1, (1 << 32) - 1]), min_size=7, max_size=7),
    precision=st.integers(0, 3),
    numbers=st.sampled_from([(1, 2), (1, 4), (3, 2), (3, 4)]),
    rest=st.binary(max_size=200),
)
def test_a_header_of_huge_numbers_allocates_nothing(fields, precision, numbers, rest):
    items, groups, columns, slices, blocks, pieces, user_group = fields
    head = b"PEEL" + bytes([2, precision, *numbers])
    for number, width in zip((items, groups, columns, slices), (4, 4, 2, 2), strict=True):
        head += (number % (1 << 8 * width)).to_bytes(width, "little")
    head += b"".join(number.to_bytes(4, "little") for number in (blocks, pieces, user_group)) + bytes(8)
    data = make.resealed(head + bytes(4) + rest)
    assert peak_bytes(data) < 16 * len(data) + (64 << 10)


def peak_bytes(data):
    """Of memory while it is read and ranked, or refused."""
    tracemalloc.start()
    try:
        StoredEmbedding.from_bytes(data).top_n(3)
    except ArtifactError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("width", [1, 32])
def test_reading_and_ranking_take_a_small_multiple_of_the_file(precision, grouped, width):
    groups = np.arange(6000) // 3 if grouped else np.arange(6000)
    layout = BlockLayout(groups.astype(np.int32), 2 * width, 2)
    table = np.ones((6000, 2 * width), np.float32)
    user = np.ones(2 * width, np.float32)
    data = StoredEmbedding.build(layout, precision, user, np.arange(layout.num_blocks), table).to_bytes()
    assert len(data) > overhead_bytes(2 * width)
    assert peak_bytes(data) < 32 * len(data)
