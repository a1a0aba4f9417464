"""`fl-peel diff`: one run against others, table by table, with paired intervals and corrected p-values."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_peel.errors import ReportError
from fl_peel.json_codec import laid_flat, to_plain
from fl_peel.ranking.bootstrap import REPLICATES, estimate, holm, over
from simulations.differences.seed_runs import METRICS, SeedRuns, require_same

IRRELEVANT = ("name", "question", "engine")
"""Keys of a scenario that change no figure."""


@dataclass(frozen=True, kw_only=True)
class FigureInterval:
    """A figure and its 95 % interval, None where it is not known."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of another run from the first one, for one table. figure: the other run's; difference: that less
    the first run's; ratio: that over the first run's; p: of a difference of 0; p_holm: corrected for all questions of
    the diff (Holm). seeds: whether intervals and p include the seeds.
    """

    run: str
    figure: FigureInterval
    difference: FigureInterval
    ratio: FigureInterval | None
    p: float | None
    p_holm: float | None
    seeds: bool


@dataclass(frozen=True, kw_only=True)
class DiffRow:
    """A table and a metric that all runs have."""

    table: str
    metric: str
    figure: FigureInterval
    others: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class DiffRun:
    """A run that is compared, under the letter that it goes by."""

    run: str
    path: str
    scenario: str
    seeds: tuple[int, ...]
    devices: int


@dataclass(frozen=True, kw_only=True)
class DiffResult:
    """The content of what ``--json-file`` writes. changed: scenario keys that are not the same in all runs, with each
    run's value; missing: tables that some run does not have, and which.
    """

    runs: tuple[DiffRun, ...]
    top_n: int
    replicates: int
    rows: tuple[DiffRow, ...]
    changed: dict[str, tuple[Any, ...]]
    missing: dict[str, tuple[str, ...]]


def diff(paths: Sequence[Path], replicates: int = REPLICATES) -> DiffResult:
    """Compare output folders with the first of them.

    Raises:
        ReportError: fewer than two, one of them is no run, lacks per-device.parquet, or is of other data.
    """
    if not 2 <= len(paths) <= len(string.ascii_uppercase):
        raise ReportError(f"{len(paths)} run(s) given; give the output folders of two runs or more, up to 26")
    runs = [SeedRuns.read(path) for path in paths]
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
    means = [one.means(tables) for one in runs]  # (2, T, S) each
    drawn = [one.replicates(tables, replicates) for one in runs]  # (2, T, B) each
    rows = []
    for m, metric in enumerate(METRICS):
        for t, table in enumerate(tables):
            value, figures = [], []
            for one, mean, sums in zip(runs, means, drawn, strict=True):
                by_seed = mean[m, t]
                value.append(float(by_seed.mean()))
                figure = estimate(value[-1], sums[m, t], one.num_devices, by_seed.tolist())
                figures.append(FigureInterval(value=figure.value, low=figure.low, high=figure.high))
            others = []
            for i in range(1, len(runs)):
                paired = len(runs[0].seeds) > 1 and runs[0].seeds == runs[i].seeds
                by_seed = (means[i] - means[0])[m, t].tolist() if paired else []
                devices = min(runs[0].num_devices, runs[i].num_devices)
                less = estimate(value[i] - value[0], drawn[i][m, t] - drawn[0][m, t], devices, by_seed)
                others.append(
                    Difference(
                        run=names[i],
                        figure=figures[i],
                        difference=FigureInterval(value=less.value, low=less.low, high=less.high),
                        ratio=_ratio(means, drawn, i, (m, t), devices, paired),
                        p=less.p_value,
                        p_holm=None,
                        seeds=paired,
                    )
                )
            rows.append(
                DiffRow(table=table, metric=f"{metric}@{runs[0].top_n}", figure=figures[0], others=tuple(others))
            )
    return rows


def _ratio(
    means: Sequence[Any], drawn: Sequence[Any], i: int, place: tuple[int, int], devices: int, paired: bool
) -> FigureInterval | None:
    base = means[0][place]
    if not base.all():
        return None
    by_seed = (means[i][place] / base).tolist() if paired else []
    figure = estimate(
        float(means[i][place].mean() / base.mean()), over(drawn[i][place], drawn[0][place]), devices, by_seed
    )
    return FigureInterval(value=figure.value, low=figure.low, high=figure.high)


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


def in_json(result: DiffResult) -> dict[str, Any]:
    """The content of the JSON file."""
    plain: dict[str, Any] = to_plain(result)
    return plain


__all__ = ["DiffResult", "diff", "in_json"]
