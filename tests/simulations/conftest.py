"""Runs without an engine, for tests of what stands around them."""

import sys
from contextlib import chdir, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_svg import FigureCanvasSVG

from fl_peel.events import Event
from simulations import runner
from simulations.cli import main as cli
from simulations.engine import engine
from simulations.report import run_files
from simulations.scenario_files import load_scenario
from strategies.figures.per_device import FILE, PerDevice
from tests.helpers.browser import browser
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.runs import served
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


@pytest.fixture(scope="module")
def measured_once(planted_home, tmp_path_factory):
    """A run of the tiny scenario, and what each of its devices gets."""
    folder = tmp_path_factory.mktemp("once")
    with chdir(planted_home):
        result, _ = served(load_scenario("tiny.yaml", [*QUICK, "evaluation.per_device=true"]), folder)
    return result, PerDevice.read(folder / FILE)


@pytest.fixture
def made_up(without_engine, measured_once, monkeypatch):
    """Runs have the figures of one that was made before, but for the seed, the test items and the recall on validation,
    which is better with larger steps; the scenarios of those that began are kept.
    """
    result, devices = measured_once

    def simulated(scenario, place, on_event, *, server):
        without_engine.append(scenario)
        on_event(Event("start", 1, 1))
        mine = replace(devices, seed=scenario.seed, test_items=str(scenario.data.test_share))
        mine.write(Path(place.run_dir) / FILE)
        reached = min(1.0, scenario.refinement.local.learning_rate + scenario.seed / 100)
        history = (*result.history[:-1], replace(result.history[-1], recall=reached))
        plain = scenario.model_dump(mode="json")
        return replace(result, scenario=plain, seed=scenario.seed, history=history)

    monkeypatch.setattr(runner, "simulated", simulated)
    return without_engine


@pytest.fixture
def fl_peel(capfd, monkeypatch):
    """The command line, through the real entry point, as (exit code, stdout, stderr) of what is typed."""

    def invoke(*args):
        monkeypatch.setattr(sys, "argv", ["fl-peel", *map(str, args)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        out, err = capfd.readouterr()
        return leaving.value.code or 0, out, err

    return invoke


@pytest.fixture
def command_line(fl_peel, without_engine):
    """The same, on runs without an engine."""
    return fl_peel
