"""A sweep for readers: tables, a figure, a page, and its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_peel.json_codec import to_plain
from simulations.differences.seeds import METHOD, figure_text
from simulations.report.plots.run_plots import line_over_shares, share_axis
from simulations.report.plots.style import (
    PALETTE,
    EndLabel,
    Plot,
    finish,
    in_both_forms,
    label_ends,
    new_figure,
)
from simulations.report.render import provenance, render, scenario_name
from simulations.report.result_files import csv_bytes, json_bytes
from simulations.report.result_writer import write_results
from simulations.report.tables.table_view import ABSENT, TableView, format_interval, format_metric
from simulations.sweep.schema import SweepResult, SweepRow
from simulations.sweep.setting_grid import short_names

NAME = "sweep"
PAGE = f"{NAME}.html"


def sweep_view(result: SweepResult) -> TableView:
    """Return every setting's recall, by table; the setting that validation chooses is emphasized."""
    keys, tables = _columns(result)
    rows = tuple(
        (
            *row.values.values(),
            format_metric(row.validation),
            *(figure_text(figure.recall) for figure in row.tables),
        )
        for row in result.rows
    )
    best = {(place, len(keys)) for place, row in enumerate(result.rows) if row.setting == result.chosen}
    note = (
        f"Recall@{result.top_n} on the test, means over {len(result.seeds)} seed(s); in brackets 95 % intervals over "
        "devices" + (" and seeds" if len(result.seeds) > 1 else "") + ". Shares: budgets as shares of the fp32 full "
        "table, with the setting's own precision and selector. Validation: validation Recall@20 in the last round, by "
        "which settings are chosen; the test part is for reporting the chosen one."
    )
    return TableView("Settings", (*keys, "validation", *tables), rows, len(keys), note, frozenset(best))


def _columns(result: SweepResult) -> tuple[list[str], list[str]]:
    """Keys, and tables."""
    first = result.rows[0]
    return short_names(first.values), [figure.table for figure in first.tables]


def differences_view(result: SweepResult) -> TableView | None:
    """Recall less that of the first setting, each device compared with itself; None where nothing can be compared."""
    rows = tuple(
        (
            *row.values.values(),
            *(
                ABSENT if one.less is None else format_interval(one.less.value, one.less.low, one.less.high)
                for one in row.tables
            ),
        )
        for row in result.rows[1:]
    )
    if all(one.less is None for row in result.rows for one in row.tables):
        return None
    keys, tables = _columns(result)
    note = (
        "Paired 95 % intervals over devices. sweep.json has p-values, corrected for all of these differences (Holm). A "
        "dash: a setting with other test items."
    )
    title = f"Difference in Recall@{result.top_n} to {result.rows[0].setting}"
    return TableView(title, (*keys, *tables), rows, len(keys), note)


def sweep_views(result: SweepResult) -> list[TableView]:
    """Return the views that the terminal shows."""
    less = differences_view(result)
    return [sweep_view(result), *([less] if less else [])]


@in_both_forms
def sweep_plot(result: SweepResult) -> Plot | None:
    """Recall at every share of the full table, a line a setting, with intervals; of many settings the first eight, of a
    search the eight that are the best on validation.
    """
    shown = _drawn(result)
    lines = [(row, _by_share(row)) for row in shown]
    if not lines[0][1]:
        return None
    labels, words = [], []
    figure, (axes,) = new_figure(3.9)
    share_axis(axes, list(lines[0][1]), None)
    for index, (row, by_share) in enumerate(lines):
        x, recalls = list(by_share), list(by_share.values())
        y = [one.value for one in recalls]
        ends = [None if one.low is None or one.high is None else (one.low, one.high) for one in recalls]
        color = line_over_shares(axes, x, y, ends, index, len(lines))
        labels.append(EndLabel(row.setting, x[-1], y[-1], color, bold=row.setting == result.chosen))
        words.append(f"{row.setting} goes from {y[0]:.4f} to {y[-1]:.4f}")
    axes.set_ylabel(f"Recall@{result.top_n} (test, mean over devices)")
    axes.margins(y=0.08)
    label_ends(axes, labels)
    return finish(figure, NAME, "Recall against the budget", f"Line chart, by setting: {'; '.join(words)}.")


def _drawn(result: SweepResult) -> tuple[SweepRow, ...]:
    if result.search:
        best = sorted(result.rows, key=lambda row: row.validation or 0.0, reverse=True)[: len(PALETTE)]
        return tuple(row for row in result.rows if row in best)
    return result.rows[: len(PALETTE)]


def _by_share(row: SweepRow) -> dict[float, Any]:
    shares = [one for one in row.tables if one.table.endswith("%")]
    return {float(one.table.removesuffix("%")) / 100: one.recall for one in shares}


def sweep_page(result: SweepResult) -> str:
    """One HTML page, nothing fetched from elsewhere."""
    keys = list(result.rows[0].values)
    chosen = "" if result.chosen is None else f" Best on validation: {result.chosen}."
    more = len(result.rows) - len(PALETTE)
    kind = "search" if result.search else "sweep"
    which = " (the best eight on validation)" if result.search and more > 0 else ""
    origin = f", found in {result.trials} trials of a search on validation" if result.search else ""
    return render(
        "sweep.html",
        title=f"{scenario_name(result.scenario).partition(':')[0]}: a {kind} over {', '.join(keys)}",
        lead=f"One scenario under {len(result.rows)} settings{origin}.{chosen}",
        facts=[
            ("settings", f"{len(result.rows):,}"),
            ("seeds", f"{len(result.seeds)}"),
            ("devices", f"{result.devices:,}"),
        ],
        tables=sweep_views(result),
        plot=sweep_plot(result),
        caption=f"Lines with 95 % intervals, by setting{which}."
        + (f" {more} more are in the table." if more > 0 else ""),
        note=METHOD,
        **provenance(to_plain(result), ""),
    )


def csv_rows(result: SweepResult) -> Iterator[dict[str, Any]]:
    """A row a setting, table and metric."""
    for row in result.rows:
        place = {"setting": row.setting, **row.values}
        yield {**place, "table": "validation", "metric": "recall@20", "value": row.validation}
        for one in row.tables:
            for metric, figure in (("recall", one.recall), ("ndcg", one.ndcg)):
                figures = {"value": figure.value, "low": figure.low, "high": figure.high, "seeds_std": figure.seeds_std}
                if metric == "recall" and one.less is not None:
                    ends = {"less_low": one.less.low, "less_high": one.less.high}
                    figures |= {"less": one.less.value, **ends, "p_holm": one.p_holm}
                yield {**place, "table": one.table, "metric": f"{metric}@{result.top_n}", **figures}


def write_sweep(out: Path, result: SweepResult) -> list[Path]:
    """Write sweep.json, .csv, .html and, where there are budgets, .svg: all or none.

    Raises:
        ReportError: the folder cannot be written.
    """
    plot = sweep_plot(result)
    columns = (
        *("setting", *result.rows[0].values, "table", "metric", "value", "low", "high", "seeds_std"),
        *("less", "less_low", "less_high", "p_holm"),
    )
    contents = {
        f"{NAME}.json": json_bytes(to_plain(result)),
        f"{NAME}.csv": csv_bytes(columns, csv_rows(result)),
        PAGE: sweep_page(result).encode(),
        **({} if plot is None else {f"{NAME}.svg": plot.svg.encode()}),
    }
    return write_results(out, contents, out_of_date=lambda name: name == f"{NAME}.svg")


__all__ = ["PAGE", "sweep_page", "sweep_plot", "sweep_views", "write_sweep"]
