"""Figures of a sweep, as sweep.json has them, from the runs of its settings: with intervals over devices and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from fl_peel.errors import ReportError
from fl_peel.figures import SETTING, Column, Estimate, Figures, SeedsEstimate
from simulations.differences.diff import Difference, DiffRow, corrected, rows_of
from simulations.differences.seeds import FULL_TABLES, SeedRuns, require_same
from simulations.report.run_files import read_report
from simulations.sweep.space import Setting
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
class SweepResult:
    """Content of `sweep.json`. chosen: best setting on validation, None where that was not measured; tables: shares of
    the full table under the setting's own precision and selector, own budgets, and full tables; scenario: that of
    the first setting; search: keys that were searched; trials: their number of trials; both empty for a sweep over
    all combinations.
    """

    scenario: dict[str, Any]
    seeds: Annotated[tuple[int, ...], SETTING]
    devices: int
    top_n: Annotated[int, SETTING]
    replicates: Annotated[int, SETTING]
    fixed: tuple[str, ...]
    chosen: str | None
    rows: tuple[SweepRow, ...]
    versions: dict[str, str]
    command: str | None = None
    search: tuple[str, ...] = ()
    trials: Annotated[int | None, SETTING] = None

    @property
    def figures(self) -> Figures:
        """Return every number, as the rows of a tidy table."""
        return Figures.from_result(self, seeds=self.seeds)


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
    rows = [row for row in rows_of([one.runs for one in same], tables, names, replicates) if _is_recall(row)]
    less: dict[str, dict[str, Difference]] = {}
    for row in corrected(rows):
        for other in row.others:
            less.setdefault(other.run, {})[row.table] = other
    return less


def _is_recall(row: DiffRow) -> bool:
    return row.metric.startswith("recall")


def _comparable(first: SeedRuns, other: SeedRuns) -> bool:
    try:
        require_same(first, other)
    except ReportError:
        return False
    return True
