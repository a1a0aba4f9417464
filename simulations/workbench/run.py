"""The function `fl_peel.run`: a run as the command line makes it, for Python and notebooks."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from fl_peel.errors import ScenarioError
from fl_peel.scenario.scenario import Scenario
from simulations import runner
from simulations.engine.folders import default_cache_dir
from simulations.engine.inputs import given_folder
from simulations.run_options import RunArguments, RunOptions
from simulations.scenario_files import load_scenario
from simulations.workbench.progress import Progress, notebook
from simulations.workbench.result import Result
from strategies.figures.per_device import FILE, PerDevice
from strategies.figures.schema import RunResult


def run(
    scenario: str | Path | Scenario = "ml-100k",
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    cache: bool = True,
    **arguments: Unpack[RunArguments],
) -> Result:
    """Run a scenario and return its result; with ``out``, also write the report files there.

    scenario: a shipped name, a YAML file or a Scenario; overrides: ``path=value``. cache: whether pretrained tables are
    cached by content, in ``cache_dir`` or, without one, in the cache of the command line. callbacks: None shows
    progress in a notebook. With ``out``, checkpoints are written there until the run ends: the same run, stopped at any
    moment and called again, resumes and gives the same figures; with ``fresh``, it starts from scratch. arguments:
    :class:`simulations.run_options.RunArguments`.

    Raises:
        FlPeelError: a mistake in the scenario, data or profiles, or a failed engine; one line each.
    """
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario, overrides, seed=seed)
    if scenario.data.timeline is not None:
        raise ScenarioError("data.timeline: timelines are replayed by fl-peel run and flwr run; leave it out")
    options = RunOptions(**arguments)
    if notebook() is not None:
        logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)  # of widgets that nobody asked for
    if options.callbacks is None and notebook() is not None:
        options = replace(options, callbacks=[Progress()])
    folder, single = given_folder(options.out), scenario.evaluation.per_device
    cache_dir = (options.cache_dir or default_cache_dir()) if cache else None
    with ExitStack() as stack:
        if folder is None and single:  # files of single devices go through a folder
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured = runner.run(scenario, replace(options, out=folder, cache_dir=cache_dir))
        assert isinstance(measured, RunResult), "this is a run without a timeline"
        devices = PerDevice.read(folder / FILE) if folder is not None and single else None
    return Result(measured, devices)
