"""Runs without an engine, for tests of what stands around them."""

import sys
from contextlib import nullcontext

import pytest
from matplotlib.backends.backend_svg import FigureCanvasSVG

from simulations import runner
from simulations.cli import main as cli
from simulations.engine import engine
from simulations.report import run_files
from tests.helpers.browser import browser
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.without_ray import bare_sections

QUICK = ["refinement.rounds=1", "elasticity={rounds: 0, falls: []}", "fairness.tiers=[]", "data.validation_share=0.1"]
"""Overrides of the tiny scenario for runs of which nothing but their surroundings matters."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A page of a headless browser, that a module's tests share."""
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(autouse=True)
def nothing_ahead(monkeypatch):
    """Commands start no workers ahead of a run, which these tests replace, or which starts its own."""
    monkeypatch.setattr(engine, "starting", lambda scenario: nullcontext())


@pytest.fixture
def grids():
    """The nodes of each run without an engine, with what crossed."""
    return []


@pytest.fixture
def without_figures(monkeypatch):
    """Pages of runs have no figures, which take longer to draw than all the rest: test_run.py draws them."""
    monkeypatch.setattr(run_files, "run_sections", bare_sections)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures have all their words, and nothing is drawn: for tests that look at what stands around them."""

    def draw_nothing(canvas, file, **options):
        width_in, height_in = canvas.figure.get_size_inches()
        file.write(f'<svg viewBox="0 0 {72 * width_in} {72 * height_in}"></svg>')

    monkeypatch.setattr(FigureCanvasSVG, "print_svg", draw_nothing)


@pytest.fixture
def without_engine(monkeypatch, grids, without_figures):
    """Runs are served by two nodes in this process; the scenarios of those that began are kept."""
    started = []

    def simulated(scenario, place, on_event, *, server):
        started.append(scenario)
        grids.append(LoopbackGrid(2))
        return server(grids[-1], scenario, place, on_event)

    monkeypatch.setattr(runner, "simulated", simulated)
    return started


@pytest.fixture
def command_line(capfd, monkeypatch, without_engine):
    """The command line, as (exit code, stdout, stderr) of what is typed, on such runs."""

    def invoke(*args):
        monkeypatch.setattr(sys, "argv", ["fl-peel", *map(str, args)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        out, err = capfd.readouterr()
        return leaving.value.code or 0, out, err

    return invoke
