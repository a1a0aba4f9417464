"""The command of the reader without Python: what Python recommends, under the user's own ids; mistakes in one line."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from clients.runtime import READER
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.resizing import shrink
from fl_peel.blocks.stored import StoredEmbedding
from tests.helpers.node import needs_node, node
from tests.vectors import make

RANK = READER.parent / "rank.mjs"
GROUPS = np.array([2, 0, 1, 1, 0, 2, 3, 0], np.int32)
pytestmark = needs_node


def artefact(groups):
    layout = BlockLayout(np.asarray(groups, np.int32), 6, 3)
    rng = np.random.default_rng(1)
    table = rng.normal(size=(layout.num_items, 6)).astype(np.float32)
    blocks = rng.permutation(layout.num_blocks)
    return layout, StoredEmbedding.build(layout, "int8", table[0] + 1, blocks, table)


def ranked(folder, stored, side, *options):
    """What the command prints: the columns of its lines."""
    (folder / "me.peel").write_bytes(stored.to_bytes())
    if side is not None:
        (folder / "me.items.json").write_text(json.dumps(side))
    done = node(RANK, str(folder / "me.peel"), *options)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("\t") for line in done.stdout.splitlines()]


def wanted(layout, stored, seen, n, names):
    """The same lines by Python."""
    result, scores = stored.scores()
    score_of = dict(zip(result.tolist(), scores.tolist(), strict=True))
    rows = stored.top_n(n, layout.row_in_catalogue[list(seen)])
    return [[str(i + 1), str(names(row)), f"{score_of[row]:.6f}"] for i, row in enumerate(rows.tolist())]


@pytest.mark.parametrize("groups", [range(8), GROUPS], ids=["single", "groups"])
@pytest.mark.parametrize("seen", [(), (1, 3)])
def test_it_prints_what_python_recommends(tmp_path, groups, seen):
    layout, stored = artefact(groups)
    ids = [f"title of {item}" for item in range(8)]
    side = {"ids": ids, "seen": list(seen), "groups": [int(group) for group in groups]}
    by_row = wanted(layout, stored, seen, 3, lambda row: ids[layout.catalogue[row]])
    assert ranked(tmp_path, stored, side, "--top", "3") == by_row
    budget = len(stored.to_bytes()) // 2
    smaller = shrink(stored, layout, budget)
    by_row = wanted(layout, smaller, seen, 10, lambda row: ids[layout.catalogue[row]])
    assert ranked(tmp_path, stored, side, "--budget", str(budget)) == by_row


def test_titles_stand_behind_what_has_one(tmp_path):
    layout, stored = artefact(range(8))
    titles = [None, *(f"Heat, part {item}" for item in range(1, 8))]
    rows = wanted(layout, stored, (), 8, lambda row: row)
    shown = [row if row[1] == "0" else [*row, f"Heat, part {row[1]}"] for row in rows]
    assert ranked(tmp_path, stored, {"titles": titles}) == shown
    assert "0" in [row[1] for row in rows]


def test_without_a_side_file_items_are_called_by_number(tmp_path):
    layout, stored = artefact(range(8))
    assert ranked(tmp_path, stored, None) == wanted(layout, stored, (), 10, lambda row: row)
    assert ranked(tmp_path, stored, {"seen": [2]}) == wanted(layout, stored, (2,), 10, lambda row: row)


def test_without_groups_they_are_called_by_catalogue_row(tmp_path):
    layout, stored = artefact(GROUPS)
    ids = [f"row {row}" for row in range(8)]
    seen_rows = layout.catalogue[[2]]
    assert ranked(tmp_path, stored, {"ids": ids, "seen": [2]}) == wanted(
        layout, stored, seen_rows, 10, lambda row: ids[row]
    )


def test_items_beyond_the_catalogue_may_have_been_seen(tmp_path):
    layout, stored = artefact(range(8))
    assert ranked(tmp_path, stored, {"seen": [8, 1, 999]}) == wanted(layout, stored, (1,), 10, lambda row: row)


@pytest.mark.parametrize(
    ("side", "why"),
    [
        ("{", "me.items.json: cannot be read"),
        ({"ids": ["a"]}, "me.items.json: ids: not a list of 8 entries, one an item"),
        ({"titles": ["a"]}, "me.items.json: titles: not a list of 8 entries, one an item"),
        ({"ids": "abcdefgh"}, "ids: not a list of 8 entries"),
        ({"groups": [0] * 7}, "groups: not a list of 8 entries"),
        ({"groups": [0] * 8}, "groups: of another catalogue than the artefact"),
        ({"groups": ["x"] * 8}, "groups: of another catalogue than the artefact"),
        ({"seen": [-1]}, "seen: not a list of item numbers"),
        ({"seen": "none"}, "seen: not a list of item numbers"),
    ],
)
def test_a_side_file_that_does_not_fit_is_one_line(tmp_path, side, why):
    _, stored = artefact(GROUPS)
    (tmp_path / "me.peel").write_bytes(stored.to_bytes())
    (tmp_path / "me.items.json").write_text(side if isinstance(side, str) else json.dumps(side))
    refused(node(RANK, str(tmp_path / "me.peel")), why)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "usage: node rank.mjs ME.peel"),
        (("a.peel", "b.peel"), "usage: node rank.mjs ME.peel"),
        (("nowhere.peel",), "nowhere.peel: ENOENT"),
        ((str(RANK),), "rank.mjs: not a stored embedding"),
        ((str(make.FOLDER / "no-block.peel"), "--budget", "10"), "budget 10 B does not hold header and user embedding"),
        (("a.peel", "--top", "1.5"), "--top: 1.5 is not a whole number"),
        (("a.peel", "--most", "1"), "usage: node rank.mjs ME.peel"),
    ],
)
def test_a_mistake_is_one_line(options, why):
    refused(node(RANK, *options), why)


def refused(done, why):
    assert done.returncode == 2
    assert done.stdout == ""
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_digest_is_that_of_python(tmp_path):
    """BLAKE2b, of lengths around its blocks of 128 bytes."""
    lengths = [0, 1, 31, 32, 33, 63, 64, 65, 1000]
    script = tmp_path / "digests.mjs"
    script.write_text(
        f"import {{ digest }} from {json.dumps((READER.parent / 'catalogue.mjs').as_uri())};\n"
        f"for (const length of {lengths}) console.log(digest(Array.from({{ length }}, (_, i) => (i * 7919) % 1013)));\n"
    )
    result = node(script).stdout.split()
    groups = [(np.arange(length) * 7919 % 1013).astype("<i4") for length in lengths]
    assert result == [hashlib.blake2b(group.tobytes(), digest_size=8).hexdigest() for group in groups]
