"""A run's progress: on stderr, or in a notebook."""

import pytest

from fl_peel.errors import EngineError
from fl_peel.events import Event
from simulations.workbench import progress as module
from simulations.workbench.progress import Progress


def test_without_a_notebook_stderr_has_lines(capsys, tiny_scenario):
    progress = Progress()
    progress.on_start(tiny_scenario)
    progress.on_event(Event("start", 1, 1, "2 nodes"))
    progress.on_end({})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.rstrip().endswith("start: 2 nodes")


@pytest.fixture
def cell(monkeypatch):
    """What a notebook's cell shows, each time that it changes."""
    display = pytest.importorskip("IPython.display", reason="no IPython")
    shown = []

    class Handle:
        def update(self, stages):
            shown.append((repr(stages), stages._repr_html_()))

    monkeypatch.setattr(module, "notebook", lambda: True)
    monkeypatch.setattr(display, "display", lambda stages, display_id: Handle())
    return shown


def test_a_notebook_has_a_bar_for_each_stage(cell, tiny_scenario):
    now = [100.0]
    progress = Progress(clock=lambda: now[0])
    progress.on_start(tiny_scenario)
    for done in range(1, 101):
        now[0] += 0.01
        progress.on_event(Event("pretraining", done, 100, f"loss <{done}>"))
    progress.on_event(Event("report", 1, 1))
    now[0] += 2
    progress.on_end({})
    assert len(cell) <= 4 + 1 + 1 + 1, "a change every quarter of a second, and at the end of a stage"
    text, html = cell[-1]
    assert text == "pretraining 100/100 loss <100>\nreport 1/1\ndone in 3.0 s"
    assert '<progress value="100" max="100">' in html
    assert "loss &lt;100&gt;" in html


def test_a_run_that_failed_is_said_to_have(cell, tiny_scenario):
    progress = Progress(clock=lambda: 0.0)
    progress.on_start(tiny_scenario)
    progress.on_error(EngineError("lost"))
    assert cell[-1][0] == "stopped after 0.0 s"
