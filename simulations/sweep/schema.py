"""What a sweep has found: the content of `sweep.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulations.differences.diff import Sure
from simulations.differences.seeds import Figure


@dataclass(frozen=True, kw_only=True)
class SweepFigure:
    """Recall and NDCG that a setting gets from a table; less: its recall less that of the first setting, paired device
    by device; p_holm: of no difference, corrected for all differences of the sweep. Both None for the first setting,
    and where test items are not the same.
    """

    table: str
    recall: Figure
    ndcg: Figure
    less: Sure | None
    p_holm: float | None


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """A setting: values by key, the folder of its runs within that of the sweep, and its figures by table. validation:
    recall@20 on validation items in the last round, mean over seeds; None without rounds or validation items.
    """

    setting: str
    values: dict[str, str]
    folder: str
    validation: float | None
    tables: tuple[SweepFigure, ...]


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """chosen: the setting that is the best on validation, None where that was not measured; tables: shares of the full
    table under the setting's own precision and selector, own budgets, and full tables; scenario: of the first setting.
    search: what was looked for, with how many trials; nothing of a sweep over all combinations.
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
