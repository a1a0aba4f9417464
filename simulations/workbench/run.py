"""The function `fl_peel.run`: a run as the command line makes it, for Python and notebooks."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from fl_peel.callbacks import Callback
from fl_peel.events import OnEvent, silent
from fl_peel.scenario.scenario import Scenario
from simulations import runner
from simulations.engine.folders import default_cache_dir
from simulations.engine.inputs import given_folder
from simulations.scenario_files import load_scenario
from simulations.workbench.progress import Progress, notebook
from simulations.workbench.result import Result
from strategies.figures.per_device import FILE, PerDevice


def run(
    scenario: str | Path | Scenario = "ml-100k",
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    on_event: OnEvent = silent,
    callbacks: Sequence[Callback] | None = None,
    command: str | None = None,
    fresh: bool = False,
) -> Result:
    """Run a scenario and return its result; with ``out``, also write the report files there.

    scenario: a shipped name, a YAML file or a Scenario; overrides: ``path=value``. cache: whether pretrained tables are
    cached by content, in ``cache_dir`` or, where that is None, in the cache of the command line. callbacks: receive the
    run's events; None: progress is shown in a notebook. With ``out``, checkpoints are written there until the run ends:
    the same run, stopped at any moment and called again, resumes and gives the same figures; fresh: it starts from
    scratch.

    Raises:
        FlPeelError: a mistake in the scenario, data or profiles, or a failed engine; one line each.
    """
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario, overrides, seed=seed)
    if notebook() is not None:
        logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)  # of widgets that nobody asked for
    if callbacks is None:
        callbacks = [] if notebook() is None else [Progress()]
    folder, single = given_folder(out), scenario.evaluation.per_device
    with ExitStack() as stack:
        if folder is None and single:  # files of single devices go through a folder
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured = runner.run(
            scenario,
            data_dir=data_dir,
            out=folder,
            cache_dir=(cache_dir or default_cache_dir()) if cache else None,
            on_event=on_event,
            callbacks=callbacks,
            command=command,
            fresh=fresh,
        )
        devices = PerDevice.read(folder / FILE) if folder is not None and single else None
    return Result(measured, devices)
