"""`fl-peel diff`: one run against others, table by table, with paired intervals and corrected p-values."""

from __future__ import annotations

import json
import re
import shlex
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from fl_peel.errors import ReportError
from fl_peel.figures import SETTING, Column, Estimate, Figures
from fl_peel.json_codec import laid_flat
from fl_peel.ranking.bootstrap import REPLICATES, Sample, holm
from simulations.report.drawing import INK, LABEL_PT, PALETTE, Plot, finish, in_both_forms, new_figure
from simulations.report.render import Chart, Page, Section
from simulations.report.seeds import SeedRuns, require_same
from simulations.report.table_view import ABSENT, TableView, format_estimate, format_ratio, metric_name
from strategies.figures.per_device import METRICS

IRRELEVANT = ("name", "question", "engine")
"""Keys of a scenario that change no figure."""
LONGEST_NAME = 16
"""Characters of a run's name in headings; longer ones are replaced by letters."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of another run from the first one, for one table. figure: the other run's; difference: that less
    the first run's; ratio: that over the first run's; p: of a difference of 0; p_holm: corrected for all questions of
    the diff (Holm). seeds: whether intervals and p include the seeds.
    """

    run: Annotated[str, Column("run")]
    figure: Estimate
    difference: Estimate
    ratio: Estimate | None
    p: float | None
    p_holm: float | None
    seeds: bool


@dataclass(frozen=True, kw_only=True)
class DiffRow:
    """A table and a metric that all runs have."""

    table: Annotated[str, Column("table")]
    metric: Annotated[str, Column("metric")]
    figure: Estimate
    others: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class DiffRun:
    """A run that is compared, under the letter that it goes by."""

    run: Annotated[str, Column("run")]
    path: str
    scenario: str
    seeds: Annotated[tuple[int, ...], SETTING]
    devices: int


@dataclass(frozen=True, kw_only=True)
class DiffResult:
    """The content of what ``--json-file`` writes. changed: scenario keys that are not the same in all runs, with each
    run's value; missing: tables that some run does not have, and which.
    """

    runs: tuple[DiffRun, ...]
    top_n: Annotated[int, SETTING]
    replicates: Annotated[int, SETTING]
    rows: tuple[DiffRow, ...]
    changed: dict[str, tuple[Any, ...]]
    missing: dict[str, tuple[str, ...]]

    @property
    def figures(self) -> Figures:
        """Return every number, as the rows of a tidy table."""
        return Figures.from_result(self)


def diff(paths: Sequence[Path], replicates: int = REPLICATES) -> DiffResult:
    """Compare output folders with the first of them.

    Raises:
        ReportError: fewer than two, one of them is no run, lacks per-device.parquet, or is of other data.
    """
    if not 2 <= len(paths) <= len(string.ascii_uppercase):
        raise ReportError(f"{len(paths)} run(s) given; give the output folders of two runs or more, up to 26")
    runs = [SeedRuns.read(path).with_own_budgets() for path in paths]
    for other in runs[1:]:
        require_same(runs[0], other)
    tables = tuple(table for table in runs[0].tables if all(table in other.tables for other in runs[1:]))
    if not tables:
        raise ReportError(
            f"{runs[0].name}: has no table in common with the other runs; run them with the same evaluation.budgets"
        )
    names = string.ascii_uppercase[: len(runs)]
    anywhere = dict.fromkeys(table for one in runs for table in one.tables)
    return DiffResult(
        runs=tuple(
            DiffRun(
                run=name,
                path=one.name,
                scenario=str(one.scenario.get("name", "")),
                seeds=one.seeds,
                devices=one.num_devices,
            )
            for name, one in zip(names, runs, strict=True)
        ),
        top_n=runs[0].top_n,
        replicates=replicates,
        rows=corrected(rows_of(runs, tables, names, replicates)),
        changed=changed_keys([one.scenario for one in runs]),
        missing={
            table: tuple(name for name, one in zip(names, runs, strict=True) if table not in one.tables)
            for table in anywhere
            if table not in tables
        },
    )


def rows_of(runs: Sequence[SeedRuns], tables: Sequence[str], names: Sequence[str], replicates: int) -> list[DiffRow]:
    """Return every metric of every table, p-values not yet corrected."""
    samples = [one.samples(tables, replicates) for one in runs]
    rows = []
    for metric in METRICS:
        for table in tables:
            first, *others = (one[metric][table] for one in samples)
            same_seeds = [len(run.seeds) > 1 and run.seeds == runs[0].seeds for run in runs[1:]]
            rows.append(
                DiffRow(
                    table=table,
                    metric=f"{metric}@{runs[0].top_n}",
                    figure=first.estimate().bare(),
                    others=tuple(map(_difference, names[1:], others, [first] * len(others), same_seeds)),
                )
            )
    return rows


def _difference(run: str, other: Sample, first: Sample, same_seeds: bool) -> Difference:
    less, ratio = other.less(first, same_seeds=same_seeds), other.over(first, same_seeds=same_seeds)
    return Difference(
        run=run,
        figure=other.estimate().bare(),
        difference=less.bare(),
        ratio=None if ratio is None else ratio.bare(),
        p=less.p_value,
        p_holm=None,
        seeds=same_seeds,
    )


def corrected(rows: Sequence[DiffRow]) -> tuple[DiffRow, ...]:
    """Return the rows with p-values corrected for their number."""
    known = [one.p for row in rows for one in row.others if one.p is not None]
    values: Iterator[float] = iter(holm(known))

    def more(one: Difference) -> Difference:
        return replace(one, p_holm=None if one.p is None else next(values))

    return tuple(replace(row, others=tuple(more(one) for one in row.others)) for row in rows)


def changed_keys(scenarios: Sequence[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Keys whose values differ, by their paths; None where a scenario lacks one."""
    flat = [laid_flat(scenario) for scenario in scenarios]
    paths = sorted({path for one in flat for path in one if path.split(".")[0] not in IRRELEVANT})
    values_by_path = {path: tuple(one.get(path) for one in flat) for path in paths}
    return {path: values for path, values in values_by_path.items() if any(value != values[0] for value in values)}


def runs_view(result: DiffResult) -> TableView:
    """Return the view of the runs that are compared."""
    rows = tuple(
        (one.run, one.path, one.scenario, ", ".join(map(str, one.seeds)), f"{one.devices:,}") for one in result.runs
    )
    return TableView("Runs", ("run", "folder", "scenario", "seeds", "devices"), rows, 4, terminal=True)


def metric_views(result: DiffResult) -> list[TableView]:
    """A table a metric: every table of the runs, in every run but the first, against the first."""
    names = run_names(result)
    first = names[result.runs[0].run]
    second = names[result.runs[1].run] if len(result.runs) == 2 else "run"
    views = []
    for metric in dict.fromkeys(row.metric for row in result.rows):
        rows = [_cells(row, other, names) for row in result.rows if row.metric == metric for other in row.others]
        columns = ["table", "run", f"{second} − {first}", first, second, "p (Holm)", f"{second} / {first}"]
        num_labels = 2
        if len(result.runs) == 2:  # there is but one other run, and columns have its name
            num_labels, columns, rows = 1, [columns[0], *columns[2:]], [(row[0], *row[2:]) for row in rows]
        views.append(
            TableView(metric_name(metric), tuple(columns), tuple(rows), num_labels, _note(result), terminal=True)
        )
    return views


def run_names(result: DiffResult) -> dict[str, str]:
    """Name runs by letter: after the folders in which paths differ, or by the letters where these are long or alike."""
    paths = [list(Path(one.path).parts) for one in result.runs]
    while all(paths) and len({parts[-1] for parts in paths}) == 1:
        paths = [parts[:-1] for parts in paths]
    names = [re.sub(r"[\w.]+\.(\w+=)", r"\1", parts[-1]) if parts else "" for parts in paths]
    if len(set(names)) < len(names) or not all(0 < len(name) <= LONGEST_NAME for name in names):
        names = [one.run for one in result.runs]
    return {one.run: name for one, name in zip(result.runs, names, strict=True)}


def _cells(row: DiffRow, other: Difference, names: Mapping[str, str]) -> tuple[str, ...]:
    return (
        row.table,
        names[other.run],
        format_estimate(other.difference, signed=True),
        f"{row.figure.value:.4f}",
        f"{other.figure.value:.4f}",
        _p(other.p_holm),
        format_ratio(other.ratio),
    )


def _p(value: float | None) -> str:
    if value is None:
        return ABSENT
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _note(result: DiffResult) -> str:
    several = max(len(one.seeds) for one in result.runs) > 1
    covered = all(other.seeds for row in result.rows for other in row.others)
    over = "devices and seeds" if covered else "devices"
    note = (
        f"In brackets: paired 95 % intervals over {over}. p: p-value of no difference, corrected for all comparisons "
        "of this diff (Holm)."
    )
    return note + (
        " The runs have different seeds: figures are means over seeds, without the variation over seeds."
        * (several and not covered)
    )


def changed_view(result: DiffResult) -> TableView | None:
    """Keys of the scenarios that are not the same."""
    if not result.changed:
        return None
    rows = tuple((key, *(_value(value) for value in values)) for key, values in result.changed.items())
    columns = ("key", *(one.run for one in result.runs))
    return TableView("Differences of the scenarios", columns, rows, 1, terminal=True)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def missing_note(result: DiffResult) -> str:
    """Tables that cannot be compared, in a sentence."""
    if not result.missing:
        return ""
    words = [f"{table} (not in {', '.join(runs)})" for table, runs in result.missing.items()]
    return f"Not compared, since not in all runs: {'; '.join(words)}."


@in_both_forms
def diff_plot(result: DiffResult) -> Plot | None:
    """Ratios to the first run, with intervals: a line a table, a colour a run."""
    rows = [row for row in result.rows if row.metric.startswith("recall")]
    first, *others = run_names(result).values()
    words = []
    figure, (axes,) = new_figure(0.9 + (0.22 + 0.14 * len(others)) * len(rows))
    for i, name in enumerate(others):
        for place, row in enumerate(rows):
            ratio = row.others[i].ratio
            if ratio is None:
                continue
            height = len(rows) - 1 - place + 0.5 * (0.5 - (i + 0.5) / len(others))
            color = PALETTE[i % len(PALETTE)]
            if ratio.ends is not None:
                axes.plot(ratio.ends, (height, height), color=color, linewidth=1.4)
            axes.plot(ratio.value, height, "o", color=color, label=name if place == 0 else None)
            words.append(f"{row.table}: {name} {format_ratio(ratio)}")
    if not words:
        return None
    axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    axes.set_yticks(range(len(rows)), [row.table for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"Recall@{result.top_n} relative to {first}; lines: paired 95 % intervals")
    if len(others) > 1:
        axes.legend(frameon=False, fontsize=LABEL_PT, loc="best")
    return finish(figure, "diff", "Ratios", f"Dots with intervals, by table: {'; '.join(words)}.")


def diff_page(result: DiffResult, versions: dict[str, str] | None = None) -> Page:
    """Return the page of a diff."""
    first, *others = run_names(result).values()
    views = (runs_view(result), changed_view(result), *metric_views(result))
    caption = (
        "Right of the dashed line: better than the first run. An interval across it: no significant difference, even "
        "without the correction of the p-values below."
    )
    return Page(
        f"{', '.join(others)} compared with {first}",
        [Section("tables", "", (Chart(lambda: diff_plot(result), caption), *views, missing_note(result)))],
        ["Paired comparison of runs on the same devices."],
        [
            ("runs", str(len(result.runs))),
            ("devices", f"{min(one.devices for one in result.runs):,}"),
            ("tables", str(len({row.table for row in result.rows}))),
        ],
        shlex.join(["fl-peel", "diff", *(one.path for one in result.runs)]),
        versions,
    )
