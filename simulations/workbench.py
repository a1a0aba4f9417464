"""Runs from Python and in notebooks: `fl_peel.run`, the result that it returns, and how a run shows its progress."""

from __future__ import annotations

import base64
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from matplotlib.figure import Figure
from rich.console import Console

from fl_peel.errors import ReportError, ScenarioError
from fl_peel.events import Callback, Event, OnEvent
from fl_peel.figures import Figures
from fl_peel.json_codec import laid_flat
from fl_peel.packages import optional
from fl_peel.scenario.scenario import Scenario
from simulations import runner
from simulations.cli.console import shown
from simulations.engine.inputs import RUN_RESULTS, check_out, default_cache_dir, given_folder
from simulations.report.drawing import styled
from simulations.report.render import render, scenario_name
from simulations.report.result_files import write_results
from simulations.report.run_files import RUN, own_rows, read_report
from simulations.report.sections.quality import budgets_figure, budgets_plot, budgets_view
from simulations.report.seeds import SEEDS_FILE
from simulations.report.table_view import format_share
from simulations.scenario_files import RunArguments, RunOptions, load_scenario
from strategies.figures.per_device import FILE, PerDevice
from strategies.figures.schema import FullTableResult, RunResult, to_json

if TYPE_CHECKING:
    import pandas as pd

LEAST_S = 0.25
"""Seconds between two changes of what a notebook shows, but for changes that end a stage."""


def notebook() -> Any:
    """The notebook's shell, None where this is no notebook."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


def show_figures() -> None:
    """Have a notebook show figures that are the value of a cell, whether or not pyplot was ever loaded."""
    shell = notebook()
    if shell is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})  # type: ignore[no-untyped-call]


@dataclass
class StageBars:
    """The latest event of each stage, as a notebook shows it."""

    latest: dict[str, Event] = field(default_factory=dict)
    end: str = ""

    def __repr__(self) -> str:
        lines = [f"{one.stage} {one.done}/{one.total} {one.text}".strip() for one in self.latest.values()]
        return "\n".join([*lines, *([self.end] if self.end else [])])

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><th>{escape(one.stage)}</th>"
            f'<td><progress value="{min(one.done, one.total)}" max="{one.total}"></progress></td>'
            f"<td>{one.done}/{one.total}</td><td>{escape(one.text)}</td></tr>"
            for one in self.latest.values()
        ]
        return f"<table>{''.join(rows)}</table>{escape(self.end)}"


class Progress(Callback):
    """Callback that shows a run's stages, in a notebook as bars, else on stderr; one per run at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = ExitStack()
        self._print: OnEvent | None = None
        self._handle: Any = None
        self._stages = StageBars()
        self._start_s = self._shown_s = 0.0

    def on_start(self, scenario: Scenario) -> None:
        """Start the display."""
        self._start_s = self._clock()
        if notebook() is None:
            self._print = self._open.enter_context(shown(Console(stderr=True, highlight=False)))
            return
        from IPython.display import display

        self._stages = StageBars()
        self._handle = display(self._stages, display_id=True)  # type: ignore[no-untyped-call]

    def on_event(self, event: Event) -> None:
        """Show the event, unless another one was shown just before."""
        if self._print is not None:
            self._print(event)
            return
        self._stages.latest[event.stage] = event
        now_s = self._clock()
        if event.done >= event.total or now_s - self._shown_s >= LEAST_S:
            self._shown_s = now_s
            self._handle.update(self._stages)

    def on_end(self, result: Mapping[str, Any]) -> None:
        """Show the duration."""
        self._close(f"done in {self._clock() - self._start_s:.1f} s")

    def on_error(self, error: BaseException) -> None:
        """Leave the display as it is."""
        self._close(f"stopped after {self._clock() - self._start_s:.1f} s")

    def _close(self, end: str) -> None:
        self._open.close()
        self._print = None
        if self._handle is not None:
            self._stages.end = end
            self._handle.update(self._stages)
            self._handle = None


@dataclass(frozen=True, eq=False, repr=False)
class Result(Mapping[str, Any]):
    """Result of a run. As a mapping it is the content of report.json; ``measured`` has the same content with types.

    per_device: figures of single devices, for runs with ``evaluation.per_device``. Tables need the extra ``pandas``;
    their columns are named as in report.json, with a dot between nested names.
    """

    measured: RunResult
    per_device: PerDevice | None = None

    @cached_property
    def figures(self) -> Figures:
        """All numbers of the run, as the rows of one tidy table: ``figures.to_pandas()``, ``.to_arrow()``."""
        return self.measured.figures

    @cached_property
    def report(self) -> dict[str, Any]:
        """Content of report.json."""
        return to_json(self.measured)

    def __getitem__(self, key: str) -> Any:
        return self.report[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.report)

    def __len__(self) -> int:
        return len(self.report)

    @property
    def scenario(self) -> dict[str, Any]:
        """Resolved scenario: every key with its value."""
        return self.measured.scenario

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.measured.seed

    @property
    def full_table(self) -> FullTableResult:
        """Full item table in fp32: the global table, and the group tables before and after refinement."""
        return self.measured.full_table

    @property
    def budgets(self) -> pd.DataFrame:
        """Return a row for each budget, precision and selector.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return _frame(self.report["budgets"])

    @property
    def rounds(self) -> pd.DataFrame:
        """Return a row for each round, with its bytes and metrics.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = zip(self.report["rounds"], self.report["history"], strict=True)
        elapsed = "elapsed_virtual_seconds"  # on the fleet's clock at the round's end
        return _frame({**reached, **moved, elapsed: reached["virtual_seconds"]} for moved, reached in rows)

    @property
    def classes(self) -> pd.DataFrame:
        """Return a row for each device class, under its own changing budgets.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return _frame({"class": name, **row} for name, row in self.report["device_classes"].items())

    @property
    def devices(self) -> pd.DataFrame:
        """Return a row for each device: its class, user group, and recall and NDCG with every table.

        Raises:
            ReportError: the run did not ask for single devices.
            MissingExtraError: pandas is not installed.
        """
        if self.per_device is None:
            raise ReportError(
                "devices: the run has no figures of single devices; run again with overrides=['evaluation.per_device="
                "true'] (--per-device), or take .classes"
            )
        pandas = optional("pandas", "pandas", "a table of a result")
        return pandas.DataFrame(self.per_device.columns())

    def plot(self) -> Figure:
        """Plot recall relative to the full model against the budget, with paired intervals: a matplotlib figure.

        Raises:
            ReportError: no budget was measured.
        """
        with styled():
            drawn = budgets_figure(self.measured)
        if drawn is None:
            raise ReportError("plot: the run measured no budget; give evaluation.budgets")
        show_figures()
        return drawn[0]

    def save(self, path: str | Path) -> Path:
        """Write report.json, metrics.csv and .parquet, report.html, scenario.yaml and, where there are figures of
        single devices, per-device.parquet into a folder; returns it. Stored embeddings of devices are only written by
        ``run(..., out=...)``.

        Raises:
            ReportError: the folder cannot be written, or holds files of somebody else by these names.
        """
        folder = Path(path)
        check_out(folder, "save()", RUN_RESULTS)
        scenario = Scenario.model_validate(self.scenario).to_yaml().encode()
        contents: dict[str, bytes | Path] = {**RUN.contents(self.report), "scenario.yaml": scenario}
        with tempfile.TemporaryDirectory() as temporary:
            if self.per_device is not None:
                contents[FILE] = Path(temporary) / FILE
                self.per_device.write(Path(temporary) / FILE)
            write_results(folder, contents, out_of_date=lambda name: name == FILE)
        return folder

    @staticmethod
    def load(path: str | Path) -> Result:
        """Read the result from a folder that a run or :meth:`save` has written, or from the report.json in it.

        Raises:
            ReportError: it is none, or of several seeds.
        """
        place = Path(path)
        if (place / SEEDS_FILE).is_file():
            raise ReportError(f"{place}: holds several seeds; give one of its folders, such as {place / 'seed-0'}")
        per_device_file = (place if place.is_dir() else place.parent) / FILE
        return Result(read_report(place), PerDevice.read(per_device_file) if per_device_file.is_file() else None)

    def __repr__(self) -> str:
        result = self.measured
        devices = "" if result.environment is None else f", {result.environment.devices:,} devices"
        rows = own_rows(result)
        ends = dict.fromkeys((rows[0], rows[-1])) if rows else ()
        reached = " to ".join(f"{row.recall.value:.4f} at {format_share(row.share)}" for row in ends)
        recall = f", recall@{result.top_n} {reached}" if rows else ""
        return f"<Result of {scenario_name(result.scenario)}, seed {result.seed}{devices}{recall}>"

    def _repr_html_(self) -> str:
        """The budgets and the lead figure, for notebooks."""
        with styled():
            plot = budgets_plot(self.measured)
        return render(
            "notebook.html",
            title=repr(self).strip("<>"),
            budgets=budgets_view(self.measured) if self.measured.budgets else None,
            alt="" if plot is None else plot.alt,
            image="" if plot is None else base64.b64encode(plot.svg.encode()).decode(),
        )


def _frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    pandas = optional("pandas", "pandas", "a table of a result")
    return pandas.DataFrame([laid_flat(row) for row in rows])


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
    :class:`simulations.scenario_files.RunArguments`.

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
