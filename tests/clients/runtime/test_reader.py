"""The reader without Python: every vector to its last code, and byte for byte what Python makes of random files."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib

import numpy as np
import pytest
from hypothesis import Phase, given
from hypothesis import strategies as st

from clients.runtime import READER
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import prefix_length, rank_blocks
from fl_peel.blocks.resizing import ElasticEmbedding, grow, listed
from fl_peel.blocks.stored import StoredEmbedding, overhead_bytes
from fl_peel.errors import ArtifactError
from tests.fl_peel.blocks.test_vectors import mutated, mutations
from tests.helpers.blocks import layouts, precisions, random_table, seeds
from tests.helpers.examples import examples
from tests.helpers.node import answers, needs_node
from tests.helpers.root import ROOT
from tests.vectors import make

WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""A batch that fails is told as it is: to make it smaller takes a process a step."""
NAMES = [case.name for case in make.CASES]


def test_the_reader_is_small_and_needs_nothing():
    text = READER.read_text(encoding="utf-8")
    assert len(text.encode()) < 15_000
    assert "import" not in text
    assert "require(" not in text


def test_it_is_in_the_wheel():
    """Whole packages are, whatever their files are called."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert list(wheel) == ["packages"]
    assert READER.relative_to(ROOT).parts[0] in wheel["packages"]


@pytest.fixture(scope="module")
def events():
    """Of every vector: what it says, and what the reader says."""
    wanted = {name: json.loads((make.FOLDER / f"{name}.json").read_text()) for name in NAMES}
    questions = [
        {
            "hex": (make.FOLDER / f"{name}.peel").read_bytes().hex(),
            "top": vector["top"],
            "shrink": [one["budget_bytes"] for one in vector["shrunk"]],
            "grow": [
                {**{key: one[key] for key in ("budget_bytes", "following", "user")}, "seen_rows": vector["seen_rows"]}
                for one in vector["grown"]
            ],
        }
        for name, vector in wanted.items()
    ]
    return dict(zip(NAMES, zip(wanted.values(), answers(questions), strict=True), strict=True))


@needs_node
@pytest.mark.parametrize("name", NAMES)
def test_every_vector_is_read_to_the_last_code(events, name):
    wanted, result = events[name]
    assert result["told"] == {key: wanted[key] for key in result["told"]}
    assert result["scores"] == wanted["scores"]
    assert result["top"] == [top["rows"] for top in wanted["top"]]
    without_budget = [{key: one[key] for key in one if key != "budget_bytes"} for one in wanted["shrunk"]]
    assert result["shrunk"] == without_budget
    assert result["grown"] == [{key: one[key] for key in ("hex", "read_bytes")} for one in wanted["grown"]]


@needs_node
def test_what_is_refused_is_refused_for_the_reason_given():
    refusals = json.loads((make.FOLDER / make.REFUSED).read_text())
    result = answers([{"hex": one["hex"]} for one in refusals])
    for answer, one in zip(result, refusals, strict=True):
        assert one["reason"] in answer["refused"], one["what"]
        assert "\n" not in answer["refused"]


cases = st.fixed_dictionaries(
    {
        "layout": layouts,
        "precision": precisions,
        "seed": seeds,
        "known": st.sampled_from([0.0, 0.3, 1.0]),
        "shares": st.tuples(st.floats(0, 1.05), st.floats(0, 1.05)),
        "scale": st.sampled_from([1.0, 1e-6, 1e3]),
    }
)


def of_a_device(case):
    """A question about what a device stores under the smaller of two budgets, and Python's answer."""
    layout, precision, rng = case["layout"], case["precision"], np.random.default_rng(case["seed"])
    table = random_table(rng, layout) * np.float32(case["scale"])
    user = rng.normal(size=layout.embedding_dim).astype(np.float32)
    ranked = rank_blocks(layout, precision, rng.random(layout.num_blocks), table)
    known = np.flatnonzero(rng.random(layout.num_items) < case["known"])
    elastic = ElasticEmbedding(ranked, user, known, int(rng.integers(1 << 32)))
    whole = int(ranked.stored_bytes(np.array([layout.num_blocks]))[0])
    least = overhead_bytes(layout.slice_dim)
    few, many = sorted(least + int(share * (whole - least)) for share in case["shares"])
    small, large = elastic.at(few), elastic.at(many)
    after = int(np.flatnonzero(ranked.blocks == small.blocks[-1])[0]) + 1 if len(small.blocks) else 0
    following = list(listed(layout, precision, ranked.blocks[after:], table))
    grown, read = grow(small, layout, known, many, following, user)
    seen = layout.row_in_catalogue[known].tolist()
    rows, scores = small.scores()
    tops = [{"n": n, "seen_rows": rows} for n in (1, 4, 1000) for rows in ([], seen)]
    return (
        {
            "hex": small.to_bytes().hex(),
            "top": tops,
            "grow": [
                {
                    "budget_bytes": many,
                    "following": [block.hex() for block in following],
                    "seen_rows": seen,
                    "user": user.astype("<f2").tobytes().hex(),
                },
                {"budget_bytes": many, "fuller": large.to_bytes().hex(), "seen_rows": seen},
            ],
        },
        {"hex": large.to_bytes().hex(), "shrink": [few, many]},
        {
            "told": make.described(small),
            "scores": {"rows": rows.tolist(), "scores": scores.astype(float).tolist()},
            "top": [small.top_n(top["n"], np.array(top["seen_rows"], int)).tolist() for top in tops],
            "grown": [grown.to_bytes().hex(), large.to_bytes().hex()],
            "read": read,
            "shrunk": [small.to_bytes().hex(), large.to_bytes().hex()],
        },
    )


@needs_node
@examples(12, phases=WITHOUT_SHRINKING)
@given(st.lists(cases, min_size=5, max_size=25))
def test_at_random_it_makes_the_bytes_that_python_makes(batch):
    asked = [of_a_device(case) for case in batch]
    result = iter(answers([question for small, large, _ in asked for question in (small, large)]))
    for _, _, wanted in asked:
        small, large = next(result), next(result)
        assert {key: small[key] for key in ("told", "scores", "top")} == {
            key: wanted[key] for key in ("told", "scores", "top")
        }
        assert [grown["hex"] for grown in small["grown"]] == wanted["grown"]
        assert small["grown"][0]["read_bytes"] == wanted["read"]
        assert [shrunk["hex"] for shrunk in large["shrunk"]] == wanted["shrunk"]


def in_python(data):
    """Why it is refused, or its scores as the reader tells them."""
    try:
        stored = StoredEmbedding.from_bytes(data)
    except ArtifactError as error:
        return {"refused": str(error)}
    rows, scores = stored.scores()
    numbers = [float(s) if np.isfinite(s) else ("Infinity" if s > 0 else "-Infinity") for s in scores]
    return {"told": make.described(stored), "scores": {"rows": rows.tolist(), "scores": numbers}}


@needs_node
@examples(12, phases=WITHOUT_SHRINKING)
@given(st.lists(st.tuples(st.sampled_from(NAMES), mutations), min_size=20, max_size=60))
def test_what_python_refuses_it_refuses_and_what_python_reads_it_reads(batch):
    """With a checksum that fits, so that the numbers behind it are looked at."""
    changed = [mutated((make.FOLDER / f"{name}.peel").read_bytes(), changes) for name, changes in batch]
    changed = [make.resealed(data) if len(data) >= 44 else data for data in changed]
    for data, answer in zip(changed, answers([{"hex": data.hex()} for data in changed]), strict=True):
        wanted = in_python(data)
        if "refused" in wanted:
            why = re.split(r" b['\"]", wanted["refused"].removesuffix("; write it again with to_bytes()"))[0]
            assert answer["refused"].startswith(why)
        else:
            assert {key: answer[key] for key in wanted} == wanted


GROUPS, OTHERS = (make.CASES[NAMES.index(name)] for name in ("groups-int8", "groups-fp16"))


@needs_node
@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ("", "0 bytes of a block, whose id has 6"),
        ("0b0007", "3 bytes of a block, whose id has 6"),
        ("0c0000000100" + "00" * 4, "block 12 with rows 0 to 1 is beyond the catalogue"),
        ("0b0008000100" + "00" * 4, "block 11 with rows 8 to 9 is beyond the catalogue"),
        ("0b0007000000", "block 11 with rows 7 to 7 is beyond the catalogue"),
        ("0b0007000100" + "00" * 3, "block 11 takes 10 bytes, 9 came"),
        ("080000000100" + "00" * 4, "do not agree on which rows an item group has"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(sent, why):
    mine = make.stored_of(GROUPS).to_bytes().hex()
    (result,) = answers([{"hex": mine, "grow": [{"budget_bytes": 1000, "following": [sent], "seen_rows": []}]}])
    assert why in result["grown"][0]["refused"]


@needs_node
def test_a_block_that_is_there_is_not_taken_twice_and_another_devices_file_is_none():
    stored, other = make.stored_of(GROUPS), make.stored_of(OTHERS)
    mine = stored.to_bytes()
    (last,) = listed(GROUPS.layout, "int8", stored.blocks[-1:], make.table_of(GROUPS))
    (result,) = answers(
        [
            {
                "hex": mine.hex(),
                "grow": [
                    {"budget_bytes": 1000, "following": [last.hex()], "seen_rows": []},
                    {"budget_bytes": 1000, "fuller": other.to_bytes().hex(), "seen_rows": []},
                    {"budget_bytes": 1000, "fuller": (make.FOLDER / "no-block.peel").read_bytes().hex()},
                ],
            }
        ]
    )
    twice, another, empty = (answer["refused"] for answer in result["grown"])
    assert "row pieces of different blocks" in twice
    assert "the fuller file is of userGroup 2, this one of 12" in another
    assert "the fuller file is of userGroup 0" in empty


# --- What the reader without Python holds of an artefact is little more than its bytes.


COLUMNS = 64
FLAGS = ("--expose-gc", "--no-flush-bytecode", "--max-semi-space-size=1")
"""Garbage is collected when it is asked for, and about every megabyte."""


def artefact(budget_bytes):
    """A file that is as large as its budget allows: single items in int8."""
    layout = BlockLayout(np.arange(1 + budget_bytes // COLUMNS, dtype=np.int32), COLUMNS, 1)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(layout.num_items, COLUMNS)).astype(np.float32)
    blocks = rng.permutation(layout.num_blocks)
    kept = blocks[: prefix_length(layout, "int8", blocks, budget_bytes)]
    return StoredEmbedding.build(layout, "int8", table[0], kept, table).to_bytes()


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("budget", [10_000, 100_000, 1_000_000])
def test_memory_is_a_small_multiple_of_the_bytes_promised(tmp_path, budget):
    """held: of the file; live: at most, while it is read, checked and ranked. A process of Node for each."""
    small, file = tmp_path / "small.peel", tmp_path / "artefact.peel"
    small.write_bytes(artefact(1000))
    file.write_bytes(artefact(budget))
    stored = file.stat().st_size
    command = ["node", *FLAGS, str(READER.parent / "memory.mjs"), str(small), str(file)]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"budget {budget:,}, file {stored:,}, held {figures['held']:,}, live {figures['live']:,}")
    assert stored <= budget
    assert figures["held"] < 1.5 * stored + 64_000
    assert figures["live"] < 4 * stored + 1_000_000
