"""The artefact on the device: its bytes, its round trip, and files that are not what they claim to be."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.precision import code_columns, code_dtype, quantize
from fl_peel.blocks.settings import PRECISIONS
from fl_peel.blocks.stored import (
    HEADER_BYTES,
    StoredEmbedding,
    overhead_bytes,
    safetensors_header,
    stored_user,
)
from fl_peel.errors import ArtifactError
from tests.helpers.blocks import layout_of, layouts, precisions, random_table, seeds


def stored(layout: BlockLayout, precision: str, seed: int, share: float = 0.5) -> StoredEmbedding:
    """A random part of the blocks of a random table, in random order."""
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(layout.num_blocks)[: round(share * layout.num_blocks)]
    user = rng.normal(size=layout.embedding_dim).astype(np.float32)
    return StoredEmbedding.build(layout, precision, user, blocks, random_table(rng, layout))


@settings(max_examples=400, deadline=None)
@given(layout=layouts, precision=precisions, seed=seeds, share=st.sampled_from([0.0, 0.3, 1.0]))
def test_bytes_are_linear_in_the_blocks_kept(layout, precision, seed, share):
    artefact = stored(layout, precision, seed, share)
    data = artefact.to_bytes()
    assert len(data) == overhead_bytes(layout.embedding_dim) + layout.block_bytes(precision)[artefact.blocks].sum()


def test_bytes_by_hand():
    # header 384, user 2 x 6; blocks 4 and 8 of test_blocks: 3 items and 1 item, two columns each in int8
    layout = BlockLayout(np.array([1, 0, 1, 2, 0, 1], np.int32), 6, 3)
    table = np.arange(36, dtype=np.float32).reshape(6, 6)
    artefact = StoredEmbedding.build(layout, "int8", np.ones(6, np.float32), np.array([4, 8]), table)
    assert len(artefact.to_bytes()) == 384 + 12 + (6 + 3 * 4) + (6 + 1 * 4)
    assert artefact.starts.tolist() == [2, 5]
    assert artefact.counts.tolist() == [3, 1]


@settings(max_examples=150, deadline=None)
@given(layout=layouts, precision=precisions, seed=seeds, share=st.sampled_from([0.0, 0.3, 1.0]))
def test_any_safetensors_reader_opens_it(layout, precision, seed, share):
    artefact = stored(layout, precision, seed, share)
    tensors = safetensors.numpy.load(artefact.to_bytes())
    assert (tensors["user"] == artefact.user).all()
    ids = tensors["ids"] if layout.is_single else tensors["ids"][:, 0]
    assert (ids == artefact.blocks).all()
    assert (tensors["codes"] == artefact.codes).all()
    assert ("scales" in tensors) == (precision in ("int8", "int4"))


@settings(max_examples=150, deadline=None)
@given(layout=layouts, precision=precisions, seed=seeds, share=st.sampled_from([0.0, 0.3, 1.0]))
def test_round_trip(layout, precision, seed, share):
    artefact = stored(layout, precision, seed, share)
    again = StoredEmbedding.from_bytes(artefact.to_bytes())
    for name in ("num_items", "num_item_groups", "embedding_dim", "num_slices", "precision", "single"):
        assert getattr(again, name) == getattr(artefact, name)
    for name in ("user", "blocks", "starts", "counts", "scales", "codes"):
        assert (getattr(again, name) == getattr(artefact, name)).all()
        assert getattr(again, name).shape == getattr(artefact, name).shape
    for mine, theirs in zip(again.scores(), artefact.scores(), strict=True):
        assert (mine == theirs).all()
    assert again.to_bytes() == artefact.to_bytes()


def test_one_group_of_exactly_65536_items_comes_back():
    layout = BlockLayout(np.zeros(65_536, np.int32), 1, 1)
    table = np.arange(65_536, dtype=np.float32)[:, None]
    artefact = StoredEmbedding.build(layout, "fp32", np.ones(1, np.float32), np.array([0]), table)
    again = StoredEmbedding.from_bytes(artefact.to_bytes())
    assert again.counts.tolist() == [65_536]
    assert again.top_n(1).tolist() == [65_535]


@pytest.mark.parametrize(
    ("num_items", "num_groups", "dim", "num_slices"),
    [
        (91_599, 91_599, 128, 16),  # Amazon-Book, the authors' slices
        (10_000_000, 10_000_000, 128, 16),
        (100_000_000, 1_000_000, 4096, 64),
    ],
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_header_has_room_for_full_tables_of_any_size(num_items, num_groups, dim, num_slices, precision):
    num_blocks, num_pieces = num_groups * num_slices, num_items * num_slices
    single = num_groups == num_items
    shapes = {
        "user": (np.dtype("<f2"), (dim,)),
        "ids": (np.dtype("<u4"), (num_blocks,) if single else (num_blocks, 3)),
        "scales": (np.dtype("<f2"), (num_pieces,)),
        "codes": (code_dtype(precision), (num_pieces, code_columns(dim // num_slices, precision))),
    }
    header = safetensors_header(shapes, {"fl-peel-1": f"{num_items} {num_groups} {dim} {num_slices} {precision}"})
    assert len(header) == HEADER_BYTES


def test_scores_by_hand_with_some_slices():
    """Masked concatenation: slices that are present contribute, each with its own slice of the user embedding."""
    layout = BlockLayout(np.arange(3, dtype=np.int32), 4, 2)
    table = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 1, 1]], np.float32)
    user = np.array([1, 10, 100, 1000], np.float32)
    # kept: item 0 slice 1 (block 1), item 1 slices 0 and 1 (blocks 2, 3); nothing of item 2
    artefact = StoredEmbedding.build(layout, "fp32", user, np.array([3, 1, 2]), table)
    rows, scores = artefact.scores()
    assert rows.tolist() == [0, 1]
    # item 0: 3 x 100 + 4 x 1000 alone; item 1: 5 + 60 + 700 + 8000
    assert scores.tolist() == [4300, 8765]
    assert artefact.top_n(10).tolist() == [1, 0]  # item 2 is never recommended
    assert artefact.top_n(1).tolist() == [1]
    assert artefact.top_n(10, np.array([1])).tolist() == [0]


def test_ties_go_to_the_smaller_catalogue_row():
    layout = BlockLayout(np.arange(4, dtype=np.int32), 2, 1)
    artefact = StoredEmbedding.build(
        layout, "int8", np.ones(2, np.float32), np.array([3, 1, 0, 2]), np.ones((4, 2), np.float32)
    )
    assert artefact.top_n(3).tolist() == [0, 1, 2]


def test_the_user_embedding_is_rounded_to_fp16():
    assert stored_user(np.array([1.0, 1.0004, 1.0006], np.float32)).tolist() == [1.0, 1.0, 1 + 2.0**-10]


@settings(max_examples=60, deadline=None)
@given(layout=layouts, precision=precisions, seed=seeds)
def test_codes_are_those_of_the_table(layout, precision, seed):
    """Building from a table and from a table of which only the kept blocks are known is the same."""
    rng = np.random.default_rng(seed)
    table = random_table(rng, layout)
    blocks = rng.permutation(layout.num_blocks)[: layout.num_blocks // 2 + 1]
    user = rng.normal(size=layout.embedding_dim).astype(np.float32)
    items, slices, _ = layout.block_rows(blocks)
    known = np.full((layout.num_items, layout.num_slices, layout.slice_dim), 9.0, np.float32)
    pieces = table.reshape(known.shape)[items, slices]
    known[items, slices] = pieces
    a = StoredEmbedding.build(layout, precision, user, blocks, table)
    b = StoredEmbedding.build(layout, precision, user, blocks, known.reshape(table.shape))
    assert a.to_bytes() == b.to_bytes()
    assert (a.codes == quantize(pieces, precision)[0]).all()


# ---------------------------------------------------------------- files that are not what they claim to be


def refused(data: bytes) -> str:
    with pytest.raises(ArtifactError) as caught:
        StoredEmbedding.from_bytes(data)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    return text


def with_header(data: bytes, change) -> bytes:
    """The same file, its header replaced by what ``change`` makes of it."""
    header = json.loads(data[8:HEADER_BYTES])
    text = json.dumps(change(header)).encode()
    return struct.pack("<Q", len(text)) + text + data[HEADER_BYTES:]


GOOD = stored(layout_of("unequal", 9, 3, 2, 2, 0), "int8", 1, 1.0).to_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"PK\x03\x04 not an artefact at all, rather long and rather wrong",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 1) + b"3",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 4) + b'"ab"',
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"\xff\xfe\xfd",
        struct.pack("<Q", 20_000) + b"[" * 20_000,
        GOOD[:-1],
        GOOD[:HEADER_BYTES],
        GOOD[: HEADER_BYTES // 2],
        GOOD + b"\x00",
    ],
    ids=range(14),
)
def test_other_bytes_are_refused(data):
    refused(data)


def _entry(name, **changes):
    return lambda header: {**header, name: {**header[name], **changes}}


@pytest.mark.parametrize(
    "change",
    [
        lambda header: {**header, "__metadata__": "text"},
        lambda header: {**header, "__metadata__": {}},
        lambda header: {**header, "__metadata__": {"fl-peel-9": "9 3 4 2 int8"}},
        lambda header: {**header, "__metadata__": {"fl-peel-1": "9 3 4 2 int5"}},
        lambda header: {**header, "__metadata__": {"fl-peel-1": "9 3 4 2"}},
        lambda header: {**header, "__metadata__": {"fl-peel-1": "9 3 four 2 int8"}},
        lambda header: {**header, "__metadata__": {"fl-peel-1": "9 3 4 0 int8"}},
        lambda header: {**header, "__metadata__": {"fl-peel-1": "9 3 5 2 int8"}},
        lambda header: {**header, "__metadata__": {"fl-peel-1": "9 3 8 2 int8"}},
        lambda header: {**header, "__metadata__": {"fl-peel-1": "9 2 4 2 int8"}},
        lambda header: {**header, "__metadata__": {"fl-peel-1": "8 3 4 2 int8"}},
        lambda header: {**header, "__metadata__": {"fl-peel-1": "9 3 4 2 fp32"}},
        lambda header: {**header, "__metadata__": {"fl-peel-1": ["9", "3", "4", "2", "int8"]}},
        lambda header: {name: entry for name, entry in header.items() if name != "codes"},
        lambda header: {name: entry for name, entry in header.items() if name != "scales"},
        lambda header: {name: entry for name, entry in header.items() if name != "user"},
        lambda header: {**header, "codes": 7},
        _entry("codes", dtype="BF16"),
        _entry("codes", dtype="U8"),
        _entry("codes", shape=[10**30, 2]),
        _entry("codes", shape=[-1, 2]),
        _entry("codes", shape=[1.5]),
        _entry("codes", shape=None),
        _entry("codes", data_offsets=[0]),
        _entry("codes", data_offsets=["a", "b"]),
        _entry("user", data_offsets=[4, 8]),
        _entry("ids", shape=[18]),
        _entry("ids", shape=[3, 6]),
        _entry("ids", shape=[3, 2, 3]),
        _entry("ids", dtype="F16"),
    ],
    ids=range(30),
)
def test_a_header_that_contradicts_the_content_is_refused(change):
    assert StoredEmbedding.from_bytes(with_header(GOOD, lambda header: header)).num_items == 9
    refused(with_header(GOOD, change))


@settings(max_examples=500, deadline=None)
@given(places=st.lists(st.integers(0, len(GOOD) - 1), min_size=1, max_size=4), byte=st.integers(0, 255))
def test_flipped_bytes_are_refused_or_harmless(places, byte):
    """Content has no checksum; but whatever is read can be ranked without a crash or an index out of range."""
    data = bytearray(GOOD)
    for place in places:
        data[place] = byte
    try:
        artefact = StoredEmbedding.from_bytes(bytes(data))
    except ArtifactError:
        refused(bytes(data))
        return
    with np.errstate(all="ignore"):  # a flipped scale may be infinite
        rows = artefact.top_n(5)
    assert ((rows >= 0) & (rows < artefact.num_items)).all()
    assert len(set(rows.tolist())) == len(rows)


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, len(GOOD) - 1))
def test_cut_off_files_are_refused(length):
    refused(GOOD[:length])
