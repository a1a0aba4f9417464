"""The command that writes an ONNX model."""

import shutil

import pytest
from typer.testing import CliRunner

import fl_peel
from simulations.cli.main import app
from tests.vectors import make

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
