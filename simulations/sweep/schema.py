"""Types of `sweep.json`: what a sweep measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulations.differences.diff import FigureInterval
from simulations.differences.seeds import Figure


@dataclass(frozen=True, kw_only=True)
class SweepFigure:
    """Recall and NDCG of a setting with one table. less: paired difference of its recall to that of the first setting;
    p_holm: p-value of no difference, corrected for all differences of the sweep. Both are None for the first
    setting, and where test items differ.
    """

    table: str
    recall: Figure
    ndcg: Figure
    less: FigureInterval | None
    p_holm: float | None


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """Setting of a sweep: values by key, the folder of its runs within that of the sweep, and its figures by table.
    validation: recall@20 on validation items in the last round, mean over seeds; None without rounds or validation
    items.
    """

    setting: str
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
    seeds: tuple[int, ...]
    devices: int
    top_n: int
    replicates: int
    fixed: tuple[str, ...]
    chosen: str | None
    rows: tuple[SweepRow, ...]
    versions: dict[str, str]
    command: str | None = None
    search: tuple[str, ...] = ()
    trials: int | None = None


__all__ = ["SweepFigure", "SweepResult", "SweepRow"]
