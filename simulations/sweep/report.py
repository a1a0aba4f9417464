"""A sweep as `sweep.json` has it, from the runs of its settings, with intervals over devices and seeds; its tables, its
figure and its page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Annotated

import numpy as np

from fl_peel.errors import ReportError
from fl_peel.figures import SETTING, Column, Estimate, SeedsEstimate
from fl_peel.json_codec import from_plain
from simulations.report import drawing
from simulations.report.diff import Difference, corrected, rows_of
from simulations.report.drawing import Plot
from simulations.report.render import Page, ResultKind, scenario_name
from simulations.report.run_files import read_report
from simulations.report.section import Chart, Section
from simulations.report.seeds import FULL_TABLES, METHOD, OverSeeds, SeedRuns, require_same
from simulations.report.table_view import TableView, format_estimate, format_metric
from simulations.sweep.space import Setting, short_names
from strategies.figures.per_device import METRICS, OWN_BUDGET


@dataclass(frozen=True, kw_only=True)
class SweepFigure:
    """Recall and NDCG of a setting with one table. less: paired difference of its recall to that of the first setting;
    p_holm: p-value of no difference, corrected for all differences of the sweep. Both are None for the first
    setting, and where test items differ.
    """

    table: Annotated[str, Column("table")]
    recall: SeedsEstimate
    ndcg: SeedsEstimate
    less: Estimate | None
    p_holm: float | None


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """Setting of a sweep: values by key, the folder of its runs within that of the sweep, and its figures by table.
    validation: recall@20 on validation items in the last round, mean over seeds; None without rounds or validation
    items.
    """

    setting: Annotated[str, Column("setting")]
    values: dict[str, str]
    folder: str
    validation: float | None
    tables: tuple[SweepFigure, ...]


@dataclass(frozen=True, kw_only=True)
class SweepResult(OverSeeds):
    """Content of `sweep.json`. chosen: best setting on validation, None where that was not measured; tables: shares of
    the full table under the setting's own precision and selector, own budgets, and full tables; scenario: that of
    the first setting; search: keys that were searched; trials: their number of trials; both empty for a sweep over
    all combinations.
    """

    top_n: Annotated[int, SETTING]
    replicates: Annotated[int, SETTING]
    fixed: tuple[str, ...]
    chosen: str | None
    rows: tuple[SweepRow, ...]
    search: tuple[str, ...] = ()
    trials: Annotated[int | None, SETTING] = None


@dataclass(frozen=True)
class MeasuredSetting:
    """A setting's runs, one a seed, tables by names that settings share; validation: as in a sweep's row."""

    setting: Setting
    runs: SeedRuns
    validation: float | None

    @staticmethod
    def read(folder: Path, setting: Setting) -> MeasuredSetting:
        """Read the folder that the setting's runs have left.

        Raises:
            ReportError: something is missing or damaged.
        """
        runs = SeedRuns.read(folder)
        reports = [read_report(folder / f"seed-{seed}") for seed in runs.seeds]
        last = [report.history[-1].recall if report.history else None for report in reports]
        known = [recall for recall in last if recall is not None]
        validation = float(np.mean(known)) if len(known) == len(last) else None
        return MeasuredSetting(setting, runs.with_own_budgets(), validation)


def shared_tables(settings: Sequence[MeasuredSetting]) -> tuple[str, ...]:
    """Tables that all settings have: shares of the full table, own budgets, full tables."""
    tables = [table for table in settings[0].runs.tables if all(table in other.runs.tables for other in settings[1:])]
    shares = [table for table in tables if table.endswith("%")]
    return (*shares, *(table for table in (OWN_BUDGET, *FULL_TABLES) if table in tables))


def sweep_rows(settings: Sequence[MeasuredSetting], tables: Sequence[str], replicates: int) -> tuple[SweepRow, ...]:
    """Return every setting's figures, and recall less that of the first."""
    less = _less(settings, tables, replicates)
    rows = []
    for one in settings:
        recalls, ndcgs = (one.runs.samples(tables, replicates)[metric] for metric in METRICS)
        differences = less.get(one.setting.label, {})
        rows.append(
            SweepRow(
                setting=one.setting.label,
                values=dict(one.setting.values),
                folder=one.setting.folder,
                validation=one.validation,
                tables=tuple(
                    SweepFigure(
                        table=table,
                        recall=recalls[table].estimate(),
                        ndcg=ndcgs[table].estimate(),
                        less=differences[table].difference if table in differences else None,
                        p_holm=differences[table].p_holm if table in differences else None,
                    )
                    for table in tables
                ),
            )
        )
    return tuple(rows)


def _less(
    settings: Sequence[MeasuredSetting], tables: Sequence[str], replicates: int
) -> dict[str, dict[str, Difference]]:
    """Return, by setting and table, recall less that of the first setting; those with other test items are left out."""
    same = [one for one in settings if _comparable(settings[0].runs, one.runs)]
    if len(same) < 2:
        return {}
    names = [one.setting.label for one in same]
    rows = [
        row for row in rows_of([one.runs for one in same], tables, names, replicates) if row.metric.startswith("recall")
    ]
    less: dict[str, dict[str, Difference]] = {}
    for row in corrected(rows):
        for other in row.others:
            less.setdefault(other.run, {})[row.table] = other
    return less


def _comparable(first: SeedRuns, other: SeedRuns) -> bool:
    try:
        require_same(first, other)
    except ReportError:
        return False
    return True


def sweep_view(result: SweepResult) -> TableView:
    """Return every setting's recall, by table; the setting that validation chooses is emphasized."""
    keys, tables = _columns(result)
    rows = tuple(
        (
            *row.values.values(),
            format_metric(row.validation),
            *(format_estimate(figure.recall) for figure in row.tables),
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
    columns = (*keys, "validation", *tables)
    return TableView("Settings", columns, rows, len(keys), note, frozenset(best), terminal=True)


def _columns(result: SweepResult) -> tuple[list[str], list[str]]:
    """Keys, and tables."""
    first = result.rows[0]
    return short_names(first.values), [figure.table for figure in first.tables]


def differences_view(result: SweepResult) -> TableView | None:
    """Recall less that of the first setting, each device compared with itself; None where nothing can be compared."""
    rows = tuple(
        (
            *row.values.values(),
            *(format_estimate(one.less, signed=True) for one in row.tables),
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
    others = result.rows[1].setting if len(result.rows) == 2 else "other settings"
    title = f"Recall@{result.top_n}: {others} − {result.rows[0].setting}"
    return TableView(title, (*keys, *tables), rows, len(keys), note, terminal=True)


@drawing.in_both_forms
def sweep_plot(result: SweepResult) -> Plot | None:
    """Draw recall at every share of the full table less that of the first setting, paired, a line a setting; where test
    items differ, recall itself. Of many settings the first eight, of a search the best eight on validation.
    """
    paired = all(one.less is not None for row in result.rows[1:] for one in row.tables)
    lines = [(row, _by_share(row, paired=paired)) for row in _drawn(result)]
    if not lines[0][1]:
        return None
    labels, words = [], []
    figure, (axes,) = drawing.new_figure(3.9)
    drawing.share_axis(axes, list(lines[0][1]), None)
    for index, (row, by_share) in enumerate(lines):
        recalls, style = list(by_share.values()), drawing.line_kwargs(index)
        aside, bold = drawing.line_aside(index, len(lines)), row.setting == result.chosen
        label = drawing.draw_line(
            axes, drawing.Line(row.setting, list(by_share), recalls, bold=bold, aside=aside), style
        )
        labels.append(label)
        words.append(f"{row.setting} goes from {recalls[0].value:.4f} to {recalls[-1].value:.4f}")
    less = f" − that of {result.rows[0].setting}" if paired else ""
    axes.set_ylabel(fill(f"Recall@{result.top_n}{less} (test)", 40))
    axes.margins(y=0.08)
    drawing.label_ends(axes, labels)
    kind = "Difference in recall" if paired else "Recall"
    return drawing.finish(figure, "sweep", f"{kind} against the budget", f"{kind}, by setting: {'; '.join(words)}.")


def _drawn(result: SweepResult) -> tuple[SweepRow, ...]:
    if result.search:
        best = sorted(result.rows, key=lambda row: row.validation or 0.0, reverse=True)[: len(drawing.PALETTE)]
        return tuple(row for row in result.rows if row in best)
    return result.rows[: len(drawing.PALETTE)]


def _by_share(row: SweepRow, *, paired: bool) -> dict[float, Estimate]:
    """Return recall by share, or what it is less that of the first setting, whose own line is at 0."""
    shares = [one for one in row.tables if one.table.endswith("%")]
    return {
        float(one.table.removesuffix("%")) / 100: (one.less or Estimate(0.0)) if paired else one.recall
        for one in shares
    }


def sweep_page(result: SweepResult) -> Page:
    """Return the page of a sweep; paired differences come first."""
    keys = list(result.rows[0].values)
    chosen = "" if result.chosen is None else f" Best on validation: {result.chosen}."
    more = len(result.rows) - len(drawing.PALETTE)
    kind = "search" if result.search else "sweep"
    which = " (the best eight on validation)" if result.search and more > 0 else ""
    origin = f", found in {result.trials} trials of a search on validation" if result.search else ""
    caption = f"By setting{which}, with paired 95 % intervals where it is compared with the first, at 0."
    caption += f" {more} more are in the table." if more > 0 else ""
    parts = (Chart(lambda: sweep_plot(result), caption), differences_view(result), sweep_view(result), METHOD)
    return Page(
        f"{scenario_name(result.scenario).partition(':')[0]}: a {kind} over {', '.join(keys)}",
        [Section("settings", "", parts)],
        [f"One scenario under {len(result.rows)} settings{origin}.{chosen}"],
        [
            ("settings", f"{len(result.rows):,}"),
            ("seeds", f"{len(result.seeds)}"),
            ("devices", f"{result.devices:,}"),
        ],
    )


SWEEP = ResultKind("sweep", partial(from_plain, SweepResult), sweep_page)
