"""Figures of a sweep from the runs of its settings, with intervals over devices and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fl_peel.errors import ReportError
from simulations.differences.diff import Difference, DiffRow, corrected, rows_of
from simulations.differences.seed_runs import SeedRuns, require_same
from simulations.differences.seeds import FULL_TABLES, Figure
from simulations.report.run_files import read_report
from simulations.sweep.schema import SweepFigure, SweepRow
from simulations.sweep.setting_grid import Setting
from strategies.figures.per_device import OWN_BUDGET, PerDevice


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
        own = f"{runs.scenario['blocks']['precision']} {runs.scenario['selector']}"
        shared = tuple(_shared(one, own) for one in runs.by_seed)
        validation = float(np.mean(known)) if len(known) == len(last) else None
        return MeasuredSetting(setting, replace(runs, by_seed=shared), validation)


def _shared(devices: PerDevice, own: str) -> PerDevice:
    """Shorten ``1% int8 exposure`` to ``1%`` where that is the setting's own: a budget has one name in all settings."""
    names = tuple(table.removesuffix(f" {own}") for table in devices.tables)
    return replace(devices, tables=names)


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
        means, drawn = one.runs.means(tables), one.runs.replicates(tables, replicates)
        figures = [
            [Figure.mean(means[m, t].tolist(), drawn[m, t], one.runs.num_devices) for t in range(len(tables))]
            for m in range(2)
        ]
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
                        recall=recall,
                        ndcg=ndcg,
                        less=differences[table].difference if table in differences else None,
                        p_holm=differences[table].p_holm if table in differences else None,
                    )
                    for table, recall, ndcg in zip(tables, *figures, strict=True)
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


__all__ = ["MeasuredSetting", "shared_tables", "sweep_rows"]
