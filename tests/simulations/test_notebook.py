"""The shipped notebook runs as it is, and comes to what it shows."""

import pytest

pytest.importorskip("nbclient", reason="no nbclient: pip install 'fl-peel[dev]'")
pytest.importorskip("ipykernel", reason="no ipykernel: pip install 'fl-peel[dev]'")
pytest.importorskip("pandas", reason="no pandas: pip install 'fl-peel[pandas]'")

import nbformat

from tests.helpers.notebooks import QUICKSTART, executed, words


def test_the_shipped_notebook_is_small_and_has_outputs():
    assert QUICKSTART.stat().st_size < 100_000
    shown = words(nbformat.read(QUICKSTART, as_version=4))
    assert len(shown) == 6
    assert shown[0].startswith("<Result of likes, seed 0")


@pytest.mark.engine
def test_the_notebook_comes_to_what_it_shows(tmp_path):
    done = executed(QUICKSTART, str(tmp_path))
    assert words(done) == words(nbformat.read(QUICKSTART, as_version=4))
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    # where tqdm is there and ipywidgets is not, whoever imports tqdm's notebook bar is told so, once
    reply = [output.text for output in outputs if output.output_type == "stream" and "TqdmWarning" not in output.text]
    assert not reply, "nobody else talks"
    (progress,) = [output for output in outputs if output.output_type == "display_data"]
    assert "refinement 4/4" in progress.data["text/plain"], "told by another thread while the cell ran"
    assert "done in" in progress.data["text/plain"]
    assert any("data:image/svg+xml" in output.data.get("text/html", "") for output in outputs if "data" in output)
    assert any("image/png" in output.data for output in outputs if "data" in output)
    assert (tmp_path / "out" / "per-device.parquet").is_file()
