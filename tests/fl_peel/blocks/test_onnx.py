"""The ONNX model scores what the artefact scores, to the last bit, in a stock runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.onnx_export import to_onnx
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.errors import ArtifactError
from tests.helpers.blocks import layouts, precisions, random_table, seeds
from tests.helpers.examples import examples
from tests.vectors import make

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'fl-peel[onnx]')")
pytest.importorskip("onnx", reason="onnx is not installed (pip install 'fl-peel[onnx]')")


def run(model, **given):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, given)
    return scores


def check(stored, scores):
    rows, wanted = stored.scores()
    assert scores.dtype == np.float32
    assert scores.shape == (stored.num_items,)
    assert scores[rows].tolist() == wanted.tolist()
    rest = np.ones(stored.num_items, bool)
    rest[rows] = False
    assert (scores[rest] == -np.inf).all()
    best = np.lexsort((np.arange(len(scores)), -scores))[: min(5, len(rows))]
    assert best.tolist() == stored.top_n(5).tolist()


@pytest.mark.parametrize("case", make.CASES, ids=lambda case: case.name)
def test_every_vector_is_scored_to_the_last_bit(case):
    file = make.FOLDER / f"{case.name}.peel"
    check(StoredEmbedding.from_bytes(file.read_bytes()), run(to_onnx(file)))


@examples(40)
@given(layouts, precisions, seeds, st.floats(0, 1))
def test_at_random_it_is_scored_to_the_last_bit(layout, precision, seed, share):
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(layout.num_blocks)[: round(share * layout.num_blocks)]
    user = rng.normal(size=layout.embedding_dim).astype(np.float32)
    stored = StoredEmbedding.build(layout, precision, user, blocks, random_table(rng, layout))
    check(stored, run(to_onnx(stored.to_bytes())))


def test_another_user_may_be_given():
    stored = make.stored_of(make.CASES[2])
    other = (stored.user[::-1] * np.float16(0.5)).astype(np.float16)
    scores = run(to_onnx(stored), user=other.astype(np.float32))
    assert (scores != run(to_onnx(stored))).any()
    check(replace(stored, user=other), scores)


def test_the_model_is_the_same_each_time_and_little_larger_than_the_artefact(tmp_path):
    layout = BlockLayout(np.arange(2000, dtype=np.int32), 64, 1)
    table = random_table(np.random.default_rng(0), layout)
    stored = StoredEmbedding.build(layout, "int8", table[0], np.arange(1500), table)
    data = to_onnx(stored, tmp_path / "me.onnx")
    assert data == to_onnx(stored) == (tmp_path / "me.onnx").read_bytes()
    assert len(data) < 1.2 * len(stored.to_bytes())  # nodes: four a column


@pytest.mark.parametrize(
    ("artefact", "why"),
    [
        (b"PEEL", "not a stored embedding: 4 bytes"),
        ("nowhere.peel", r"nowhere.peel: cannot be read \(No such file or directory\)"),
        (__file__, "test_onnx.py: not a stored embedding: it begins with"),
    ],
)
def test_what_is_no_artefact_is_one_line(artefact, why):
    with pytest.raises(ArtifactError, match=why):
        to_onnx(artefact)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be written"):
        to_onnx(make.stored_of(make.CASES[0]), tmp_path / "no" / "me.onnx")
