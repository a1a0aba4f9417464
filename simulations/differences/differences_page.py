"""A diff for readers: tables for the terminal, and one page with a figure."""

from __future__ import annotations

import json
import shlex

from simulations.differences.diff import Difference, DiffResult, DiffRow
from simulations.report.plots.style import (
    INK,
    LABEL_PT,
    PALETTE,
    Plot,
    finish,
    in_both_forms,
    new_figure,
)
from simulations.report.render import provenance, render
from simulations.report.tables.labels import metric_name
from simulations.report.tables.table_view import ABSENT, TableView, format_interval


def runs_view(result: DiffResult) -> TableView:
    """Return the view of the runs that are compared."""
    rows = tuple(
        (one.run, one.path, one.scenario, ", ".join(map(str, one.seeds)), f"{one.devices:,}") for one in result.runs
    )
    return TableView("Runs", ("run", "folder", "scenario", "seeds", "devices"), rows, 4)


def metric_views(result: DiffResult) -> list[TableView]:
    """A table a metric: every table of the runs, in every run but the first, against the first."""
    first = result.runs[0].run
    second = result.runs[1].run if len(result.runs) == 2 else "run"
    views = []
    for metric in dict.fromkeys(row.metric for row in result.rows):
        rows = tuple(_cells(row, other) for row in result.rows if row.metric == metric for other in row.others)
        columns = ("table", "run", first, second, f"{second} − {first}", f"{second} / {first}", "p (Holm)")
        views.append(TableView(metric_name(metric), columns, rows, 2, _note(result)))
    return views


def _cells(row: DiffRow, other: Difference) -> tuple[str, ...]:
    less, ratio = other.difference, other.ratio
    return (
        row.table,
        other.run,
        f"{row.figure.value:.4f}",
        f"{other.figure.value:.4f}",
        format_interval(less.value, less.low, less.high),
        ABSENT if ratio is None else format_interval(ratio.value, ratio.low, ratio.high, 3),
        _p(other.p_holm),
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
    return TableView("Differences of the scenarios", ("key", *(one.run for one in result.runs)), rows, 1)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def missing_note(result: DiffResult) -> str:
    """Tables that cannot be compared, in a sentence."""
    if not result.missing:
        return ""
    words = [f"{table} (not in {', '.join(runs)})" for table, runs in result.missing.items()]
    return f"Not compared, since not in all runs: {'; '.join(words)}."


def diff_views(result: DiffResult) -> list[TableView]:
    """Return the views that the terminal shows."""
    changed = changed_view(result)
    return [runs_view(result), *([changed] if changed else []), *metric_views(result)]


@in_both_forms
def diff_plot(result: DiffResult) -> Plot | None:
    """Ratios to the first run, with intervals: a line a table, a colour a run."""
    rows = [row for row in result.rows if row.metric.startswith("recall")]
    first, others = result.runs[0].run, [one.run for one in result.runs[1:]]
    words = []
    figure, (axes,) = new_figure(0.9 + (0.22 + 0.14 * len(others)) * len(rows))
    for i, name in enumerate(others):
        for place, row in enumerate(rows):
            ratio = row.others[i].ratio
            if ratio is None:
                continue
            height = len(rows) - 1 - place + 0.5 * (0.5 - (i + 0.5) / len(others))
            color = PALETTE[i % len(PALETTE)]
            if ratio.low is not None and ratio.high is not None:
                axes.plot((ratio.low, ratio.high), (height, height), color=color, linewidth=1.4)
            axes.plot(ratio.value, height, "o", color=color, label=name if place == 0 else None)
            words.append(f"{row.table}: {name} {format_interval(ratio.value, ratio.low, ratio.high, 3)}")
    if not words:
        return None
    axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    axes.set_yticks(range(len(rows)), [row.table for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"Recall@{result.top_n} relative to run {first}; lines: paired 95 % intervals")
    if len(others) > 1:
        axes.legend(frameon=False, fontsize=LABEL_PT, loc="best")
    return finish(figure, "diff", "Ratios", f"Dots with intervals, by table: {'; '.join(words)}.")


def diff_page(result: DiffResult, versions: dict[str, str]) -> str:
    """One HTML page, nothing fetched from elsewhere."""
    letters = ", ".join(one.run for one in result.runs[1:])
    return render(
        "tables.html",
        title=f"{letters} compared with {result.runs[0].run}",
        lead="Paired comparison of runs on the same devices.",
        facts=[
            ("runs", str(len(result.runs))),
            ("devices", f"{min(one.devices for one in result.runs):,}"),
            ("tables", str(len({row.table for row in result.rows}))),
        ],
        tables=diff_views(result),
        plot=diff_plot(result),
        note=missing_note(result),
        **provenance({"versions": versions}, shlex.join(["fl-peel", "diff", *(one.path for one in result.runs)])),
    )


__all__ = ["diff_page", "diff_plot", "diff_views", "missing_note"]
