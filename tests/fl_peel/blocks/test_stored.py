"""The artefact on the device: its bytes, its round trip, and files that are not what they claim to be."""

import hashlib
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.blocks.layout import BlockLayout, quantize
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.blocks.resizing import ElasticEmbedding
from fl_peel.blocks.stored import HEADER_BYTES, StoredEmbedding, _rows_agree, overhead_bytes, stored_user
from fl_peel.errors import ArtifactError
from fl_peel.scenario.settings import PRECISIONS
from tests.helpers.blocks import layout_of, layouts, precisions, random_table, seeds
from tests.helpers.examples import examples
from tests.helpers.root import ROOT
from tests.vectors.make import resealed


def stored(layout: BlockLayout, precision: str, seed: int, share: float = 0.5) -> StoredEmbedding:
    """A random part of the blocks of a random table, in random order."""
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(layout.num_blocks)[: round(share * layout.num_blocks)]
    user = rng.normal(size=layout.embedding_dim).astype(np.float32)
    return StoredEmbedding.build(layout, precision, user, blocks, random_table(rng, layout))


@examples(150)
@given(layout=layouts, precision=precisions, seed=seeds, share=st.sampled_from([0.0, 0.3, 1.0]))
def test_bytes_are_linear_in_the_blocks_kept(layout, precision, seed, share):
    artefact = stored(layout, precision, seed, share)
    data = artefact.to_bytes()
    user_columns = (max([block % layout.num_slices for block in artefact.blocks], default=0) + 1) * layout.slice_dim
    assert len(data) == overhead_bytes(user_columns) + layout.block_bytes(precision)[artefact.blocks].sum()
    assert data[4] == (2 if user_columns == layout.embedding_dim else 3)


def test_the_worked_example_of_the_docs():
    """docs/artefact.md, byte for byte; what it says of the bytes is read by hand, not by the reader."""
    text = (ROOT / "docs" / "artefact.md").read_text(encoding="utf-8")
    data = bytes.fromhex(re.search(r"```hex\n(.*?)```", text, re.DOTALL).group(1))
    layout = BlockLayout(np.arange(3, dtype=np.int32), 4, 2)
    table = np.array([[0.5, -0.25, 9, 9], [9, 9, 127, -63.5], [9, 9, 9, 9]], np.float32)
    user = np.array([1, -2, 0.5, 0], np.float32)
    artefact = StoredEmbedding.build(layout, "int8", user, np.array([3, 0]), table, user_group=7)
    assert artefact.to_bytes() == data
    assert len(data) == 64 == HEADER_BYTES + 2 * 4 + 2 * 2 + 2 * (2 + 2)
    assert data[:8] == b"PEEL" + bytes([2, PRECISIONS.index("int8"), 1, 2])
    assert struct.unpack_from("<IIHHIII", data, 8) == (3, 3, 4, 2, 2, 2, 7)
    assert data[32:40] == hashlib.blake2b(struct.pack("<3i", 0, 1, 2), digest_size=8).digest()
    assert struct.unpack_from("<I", data, 40)[0] == zlib.crc32(data[:40] + data[44:])
    assert np.frombuffer(data, "<f2", 4, 44).tolist() == [1, -2, 0.5, 0]
    assert struct.unpack_from("<2H", data, 52) == (3, 0)
    assert np.frombuffer(data, "<f2", 2, 56).tolist() == [1, pytest.approx(0.5 / 127, rel=1e-3)]
    assert np.frombuffer(data, "i1", 4, 60).tolist() == [127, -64, 127, -64]
    rows, scores = StoredEmbedding.from_bytes(data).scores()
    assert rows.tolist() == [0, 1]
    assert scores.tolist() == pytest.approx([1.004, 63.5], abs=1e-3)
    fields = [(int(at), int(size)) for at, size in re.findall(r"^\| (\d+) \| (\d+) \|", text, re.MULTILINE)]
    sizes = [struct.calcsize("<" + letter) for letter in ("4s", *"BBBBIIHHIII", "8s", "I")]
    assert fields == list(zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True))


@examples(150)
@given(layout=layouts, precision=precisions, seed=seeds, share=st.sampled_from([0.0, 0.3, 1.0]))
def test_round_trip(layout, precision, seed, share):
    artefact = stored(layout, precision, seed, share)
    again = StoredEmbedding.from_bytes(artefact.to_bytes())
    for name in ("num_items", "num_item_groups", "embedding_dim", "num_slices", "precision", "single", "catalogue"):
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


@pytest.mark.parametrize("changes", [{"embedding_dim": 1 << 16}, {"user_group": 1 << 32}, {"num_items": 1 << 32}])
def test_what_a_header_cannot_say_is_not_written(changes):
    artefact = replace(stored(layout_of("single", 9, 9, 2, 2, 0), "int8", 1), **changes)
    with pytest.raises(ArtifactError, match="too large to be stored on a device"):
        artefact.to_bytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_ids_of_four_bytes_come_back(precision):
    layout = BlockLayout(np.arange(70_000, dtype=np.int32), 2, 1)
    artefact = StoredEmbedding.build(
        layout, precision, np.ones(2, np.float32), np.array([69_999, 5]), np.ones((70_000, 2), np.float32)
    )
    data = artefact.to_bytes()
    assert len(data) == overhead_bytes(2) + layout.block_bytes(precision)[[69_999, 5]].sum()
    assert StoredEmbedding.from_bytes(data).blocks.tolist() == [69_999, 5]


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


def test_a_score_beyond_all_numbers_keeps_its_place():
    """60,000 x 3e38 is above what fp32 has; there is no warning."""
    layout = BlockLayout(np.arange(3, dtype=np.int32), 1, 1)
    table = np.array([[1.0], [3e38], [-3e38]], np.float32)
    artefact = StoredEmbedding.build(layout, "fp32", np.array([60_000], np.float32), np.arange(3), table)
    assert artefact.scores()[1].tolist() == [60_000, np.inf, -np.inf]
    assert artefact.top_n(3).tolist() == [1, 0, 2]


def test_ties_go_to_the_smaller_catalogue_row():
    layout = BlockLayout(np.arange(4, dtype=np.int32), 2, 1)
    artefact = StoredEmbedding.build(
        layout, "int8", np.ones(2, np.float32), np.array([3, 1, 0, 2]), np.ones((4, 2), np.float32)
    )
    assert artefact.top_n(3).tolist() == [0, 1, 2]


def test_the_user_embedding_is_rounded_to_fp16():
    assert stored_user(np.array([1.0, 1.0004, 1.0006], np.float32)).tolist() == [1.0, 1.0, 1 + 2.0**-10]


@examples(60)
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


GROUPED = stored(layout_of("unequal", 9, 3, 2, 2, 0), "int8", 1, 1.0).to_bytes()
SINGLE = stored(layout_of("single", 9, 9, 2, 2, 0), "int8", 1, 1.0).to_bytes()


HUGE = b"\xff\xff\xff\xff"


# :mod:`tests.fl_peel.blocks.test_vectors` has what else is refused, each for its reason


def test_a_block_without_rows_is_refused_though_rows_add_up():
    """Ids begin at 52, of six bytes each: number, first row, rows."""
    ids = np.frombuffer(GROUPED, "<u2", 18, 52).reshape(6, 3).copy()
    ids[0, 2], ids[1, 1:] = 0, (0, ids[0, 2] + ids[1, 2])
    assert "6 blocks are not 18 row pieces of different blocks" in refused(resealed(GROUPED, (52, ids.tobytes())))


@pytest.mark.parametrize(
    ("groups", "starts", "counts", "agree"),
    [
        ([], [], [], True),
        ([2, 0, 2, 1], [5, 0, 5, 3], [2, 3, 2, 1], True),  # in any order, with a gap
        ([0, 1], [0, 3], [3, 1], True),
        ([0, 1], [0, 2], [3, 1], False),  # the second begins in the first
        ([1, 0], [0, 3], [3, 1], False),  # or before it
        ([0, 1, 2], [0, 3, 4], [3, 2, 1], False),
        ([0, 0], [1, 2], [3, 2], False),  # one group begins here and there, or ends
        ([0, 0], [1, 1], [3, 2], False),
        ([0, 0], [0, 2], [2, 2], False),
    ],
)
def test_rows_of_item_groups_by_hand(groups, starts, counts, agree):
    assert _rows_agree(*(np.array(one, np.int64) for one in (groups, starts, counts))) is agree


def test_the_user_group_is_kept_from_the_list_to_the_file_and_back():
    layout = BlockLayout(np.arange(3, dtype=np.int32), 2, 1)
    table, user = np.ones((3, 2), np.float32), np.ones(2, np.float32)
    ranked = rank_blocks(layout, "int8", np.arange(3, 0, -1.0), table)
    nothing = np.zeros(0, np.int64)
    of_seven = ElasticEmbedding(ranked, user, nothing, user_group=7).at(1000)
    assert of_seven.user_group == StoredEmbedding.from_bytes(of_seven.to_bytes()).user_group == 7
    assert ElasticEmbedding(ranked, user, nothing).at(1000).user_group == 0
    blocks, pieces = np.array([1]), np.ones((1, 2), np.float32)
    assert StoredEmbedding.build(layout, "int8", user, blocks, table, 7).user_group == 7
    assert StoredEmbedding.build(layout, "int8", user, blocks, table).user_group == 0
    assert StoredEmbedding.from_pieces(layout, "int8", user, blocks, pieces).user_group == 0
