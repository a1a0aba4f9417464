"""`fl-peel export` and `fl-peel serve-device`: what they write and print, and one line for what does not fit."""

import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from typer.testing import CliRunner

import fl_peel
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.errors import BudgetError
from simulations.cli.console import read_size
from simulations.cli.main import app
from simulations.cli.model import six_digits
from tests.helpers.blocks import layout_of
from tests.helpers.models import saved
from tests.helpers.root import ROOT
from tests.simulations.cli.test_cli import ERROR
from tests.vectors import make

LAYOUT = layout_of("unequal", 30, 12, 4, 2, 0)
RANK = ROOT / "clients" / "runtime" / "rank.mjs"
LEAST = 44 + 2 * 4
"""Header, and a slice of the user embedding."""


@pytest.fixture
def typed(fl_peel, monkeypatch, tmp_path):
    """The command, in a folder with a model in it."""
    saved(tmp_path / "model", layout=LAYOUT)
    monkeypatch.chdir(tmp_path)
    return fl_peel


def export(*more, items="item 3,item 20", budget="400", out="me.peel"):
    return ("export", "model", "--budget", budget, "--user-items", items, "--out", out, *more)


def test_export_writes_the_artefact_and_names_the_best(typed, tmp_path):
    code, out, err = typed(*export("--top", "3"))
    device = fl_peel.load("model").device(["item 3", "item 20"])
    result = device.embedding(400)
    assert code == 0
    assert (tmp_path / "me.peel").read_bytes() == result.to_bytes()
    best = result.top(3)
    assert out == "".join(f"{rank}\t{name}\t{score:.6f}\n" for rank, (name, score) in enumerate(best, 1))
    assert err == (
        f"me.peel: {result.num_bytes} of 400 B, {len(result.stored.blocks)} blocks, int8, user group {device.group}\n"
    )


def test_export_tells_the_same_as_json(typed):
    code, out, _ = typed(*export("--top", "3", "--json"))
    device = fl_peel.load("model").device(["item 3", "item 20"])
    result = device.embedding(400)
    assert code == 0
    assert json.loads(out) == {
        "bytes": result.num_bytes,
        "budget_bytes": 400,
        "blocks": len(result.stored.blocks),
        "precision": "int8",
        "user_group": device.group,
        "items": [{"rank": rank, "id": name, "score": score} for rank, (name, score) in enumerate(result.top(3), 1)],
    }


def test_the_file_beside_it_is_all_that_another_reader_needs(typed, tmp_path):
    """Own ids by catalogue row, and rows that were seen: from these and the artefact alone come the same lines."""
    _, out, _ = typed(*export())
    side = json.loads((tmp_path / "me.items.json").read_text())
    assert side.keys() == {"ids", "seen"}
    assert [side["ids"][row] for row in side["seen"]] == sorted(("item 3", "item 20"), key=side["ids"].index)
    stored = StoredEmbedding.from_bytes((tmp_path / "me.peel").read_bytes())
    rows = stored.top_n(10, np.array(side["seen"]))
    assert [side["ids"][row] for row in rows] == [line.split("\t")[1] for line in out.splitlines()]
    assert {file.name for file in tmp_path.iterdir()} == {"model", "me.peel", "me.items.json"}


def test_items_may_stand_in_a_file_and_precision_and_folder_may_be_others(typed, tmp_path):
    (tmp_path / "mine.txt").write_text("\ufeffitem 3\r\n\n item 20 \n", encoding="utf-8")
    typed(*export("--precision", "int4"))
    code, _, _ = typed(
        *("export", "model", "--budget", "400", "--items-file", "mine.txt"),
        *("--out", "new/other.peel", "--precision", "int4"),
    )
    assert code == 0
    assert (tmp_path / "new" / "other.peel").read_bytes() == (tmp_path / "me.peel").read_bytes()
    assert StoredEmbedding.from_bytes((tmp_path / "me.peel").read_bytes()).precision == "int4"
    assert (tmp_path / "new" / "other.items.json").is_file()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (export(items="item 3,nothing"), "item 'nothing' is none of the model's 30; ids are those of its data"),
        (export(items=" , "), "interactions: none are given, and a device joins by them"),
        (export(budget="51"), "budget 51 B does not hold header and user embedding (52 B); raise the budget"),
        (export(budget="lots"), "--budget: 'lots' is not a number of bytes; write e.g. 100KB or 4096"),
        (
            export("--precision", "int3"),
            "Invalid value for '--precision': 'int3' is not one of 'fp32', 'fp16',",
        ),
        (export(out="model"), "model: is a folder; give --out a file"),
        (export(out=""), "--out: is empty; give a path"),
        (export("--items-file", "nowhere.txt"), "nowhere.txt: no such file; correct --items-file"),
        (("export", ".", *export()[2:]), ".: holds no model.json; name the folder model in it"),
        (("serve-device", "nowhere"), "nowhere/model.json: no such file; name the folder model/"),
        (("serve-device", "model", "--precision", "x"), "Invalid value for '--precision': 'x' is not one of"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(typed, tmp_path, args, line):
    code, out, err = typed(*args)
    assert (code, out) == (2, "")
    assert err.startswith(ERROR + line)
    assert err.count("\n") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"model"}


def test_a_file_of_items_that_is_no_text_is_one_line(typed, tmp_path):
    (tmp_path / "mine").write_bytes(b"\xff\xfe\x00")
    assert typed(*export("--items-file", "mine"))[2].startswith(f"{ERROR}mine: cannot be read")


def test_a_damaged_model_is_one_line(typed, tmp_path):
    for file in (tmp_path / "model").glob("group-*"):
        file.write_bytes(file.read_bytes()[:-1])
    code, out, err = typed(*export())
    assert (code, out) == (2, "")
    assert "it was cut off or changed; save the model again" in err


def talk(typed, monkeypatch, *lines, end="q\n", more=()):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines) + end))
    return typed("serve-device", "model", "--top", "2", *more)


def test_a_device_at_the_terminal(typed, monkeypatch):
    code, out, err = talk(typed, monkeypatch, "item 3, item 20", "", "300", "400", "100", "400B")
    device = fl_peel.load("model").device(["item 3", "item 20"])
    small, large, least = (device.embedding(budget) for budget in (300, 400, 100))
    assert (code, err) == (0, "")
    assert out.startswith("30 items, 2 user groups, int8 blocks; q ends\n")
    assert f"user group {device.group} of 2\n" in out
    events = [line for line in out.splitlines() if " blocks, int8, " in line]
    assert [line.split("; ")[0].split("> ")[-1] for line in events] == [
        "downloaded",
        f"grown, {small.grow(400).num_bytes} B downloaded",
        "shrunk, 0 B downloaded",
        f"grown, {least.grow(400).num_bytes} B downloaded",
    ]
    for line, result in zip(events, (small, large, least, large), strict=True):
        assert f"{result.num_bytes} of {result.budget_bytes} B" in line
    ranked = [f"{rank}\t{name}\t{score:.6f}" for rank, (name, score) in enumerate(large.top(2), 1)]
    assert out.count("\n".join(ranked)) >= 2


def test_mistakes_at_the_terminal_are_a_line_each_and_it_goes_on(typed, monkeypatch):
    code, out, err = talk(typed, monkeypatch, "nothing", ",", "item 3", "x", "10", "400", "20", end="")
    assert code == 0  # the pipe has ended
    assert [line.split(";")[0] for line in err.splitlines()] == [
        "error: item 'nothing' is none of the model's 30",
        "error: interactions: none are given, and a device joins by them",
        "error: budget: 'x' is not a number of bytes",
        f"error: budget 10 B does not hold header and user embedding ({LEAST} B)",
        f"error: budget 20 B does not hold header and user embedding ({LEAST} B)",
    ]
    assert out.count(" of 400 B, ") == 1


def test_another_precision_at_the_terminal(typed, monkeypatch):
    assert " blocks, int4, " in talk(typed, monkeypatch, "item 3", "400", more=("--precision", "int4"))[1]


@pytest.mark.parametrize("word", ["q", "Q", " quit ", "exit"])
def test_it_ends_when_told(typed, monkeypatch, word):
    code, out, _ = talk(typed, monkeypatch, word, "item 3")
    assert code == 0
    assert "user group" not in out.partition("\n")[2]


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.0078125, "0.007813"), (-0.0078125, "-0.007813"), (0.25, "0.250000"), (-0.0, "0.000000"), (-1e-9, "-0.000000")],
)
def test_scores_are_rounded_as_javascript_does(score, text):
    assert six_digits(score) == text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None or not RANK.is_file(), reason="node, or its reader, is not there")
@pytest.mark.parametrize(("kind", "precision"), [("single", "fp32"), ("contiguous", "int8"), ("unequal", "int4")])
def test_a_reader_without_python_prints_the_same_lines(typed, tmp_path, kind, precision):
    saved(tmp_path / "model", layout=layout_of(kind, 30, 12, 4, 2, 0))
    _, out, _ = typed(*export("--precision", precision))
    ran = subprocess.run(["node", str(RANK), "me.peel"], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == (out, "")
    assert len(out.splitlines()) == 10


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4096", 4096),
        ("100KB", 100_000),
        ("1.5 mb", 1_500_000),
        ("64KiB", 65_536),
        ("0", 0),
        ("2.9b", 2),
        ("1GB", 10**9),
    ],
)
def test_sizes(text, num_bytes):
    assert read_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "KB", "-1", "1e3", "1,000", "1 TB", "nan", "9" * 400, ".5KB", "٣"])
def test_what_is_no_size(text):
    with pytest.raises(BudgetError, match="is not a number of bytes"):
        read_size(text)


# --- The command that writes an ONNX model.


pytest.importorskip("onnx", reason="onnx is not installed (pip install 'fl-peel[onnx]')")


def test_it_writes_the_model_beside_the_artefact_or_where_it_is_told(tmp_path):
    file = tmp_path / "me.peel"
    shutil.copy(make.FOLDER / "groups-int4.peel", file)
    for options, target in (((), "me.onnx"), (("--out", str(tmp_path / "other.onnx")), "other.onnx")):
        done = CliRunner().invoke(app, ["export-onnx", str(file), *options])
        assert done.exit_code == 0, done.output
        assert (tmp_path / target).read_bytes() == fl_peel.to_onnx(file)


def test_mistakes_are_told_and_nothing_is_written(tmp_path):
    file = tmp_path / "me.peel"
    file.write_bytes(b"PEEL")
    done = CliRunner().invoke(app, ["export-onnx", str(file)])
    assert "me.peel: not a stored embedding: 4 bytes" in str(done.exception)
    done = CliRunner().invoke(app, ["export-onnx", str(file), "--out", str(tmp_path)])
    assert "is a folder; give --out a file" in str(done.exception)
    done = CliRunner().invoke(app, ["export-onnx", "."])
    assert str(done.exception) == ".: is a folder; give the file that fl-peel export wrote"
    assert [path.name for path in tmp_path.iterdir()] == ["me.peel"]
