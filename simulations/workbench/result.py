"""Result of a run, for Python and notebooks: tables, a figure, files."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from fl_peel.errors import ReportError
from fl_peel.figures import Figures
from fl_peel.json_codec import laid_flat
from fl_peel.lazy_imports import optional
from fl_peel.scenario.scenario import Scenario
from simulations.differences.seeds import SEEDS_FILE
from simulations.engine.inputs import RUN_RESULTS, check_out
from simulations.report.drawing import styled
from simulations.report.render import render, scenario_name
from simulations.report.result_files import write_results
from simulations.report.run_files import read_report, report_contents
from simulations.report.sections.quality import budgets_figure, budgets_plot, budgets_view
from simulations.report.table_view import format_share
from simulations.report.verdict import own_rows
from simulations.workbench.progress import show_figures
from strategies.figures.per_device import FILE, PerDevice
from strategies.figures.schema import FullTableResult, RunResult, to_json

if TYPE_CHECKING:
    import pandas as pd


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
        contents: dict[str, bytes | Path] = {**report_contents(self.measured), "scenario.yaml": scenario}
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
