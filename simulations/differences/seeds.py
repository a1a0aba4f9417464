"""One scenario under several seeds: means with intervals over devices and seeds; `seeds.json` and `seeds.html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_peel.json_codec import to_plain
from fl_peel.ranking.bootstrap import REPLICATES, Doubles, Estimate, estimate, over
from simulations.differences.seed_runs import SEEDS_FILE, SeedRuns
from simulations.report.render import provenance, render, scenario_name
from simulations.report.result_files import json_bytes
from simulations.report.result_writer import write_results
from simulations.report.tables.table_view import ABSENT, TableView, format_interval

SEEDS_PAGE = "seeds.html"
FULL_TABLES = ("global", "start", "refined")
METHOD = (
    "Value: mean over seeds, each a mean over devices. Interval, 95 %: squared standard errors of devices (Poisson "
    "bootstrap of the mean over seeds, paired) and of seeds (sample variance over their number) added up; Student's t "
    "with degrees of freedom by Satterthwaite. With one seed: the bootstrap's percentiles."
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with its 95 % interval over devices and seeds, its spread over seeds, and its value by seed."""

    value: float
    low: float | None
    high: float | None
    seeds_std: float | None
    by_seed: tuple[float, ...]

    @staticmethod
    def from_estimate(estimated: Estimate, by_seed: list[float]) -> Figure:
        """Make the figure of an estimate."""
        return Figure(
            value=estimated.value,
            low=estimated.low,
            high=estimated.high,
            seeds_std=estimated.seeds_std,
            by_seed=tuple(by_seed),
        )

    @staticmethod
    def mean(by_seed: Sequence[float], drawn: Doubles, num_devices: int) -> Figure:
        """Mean over seeds. drawn: (B,) replicates of it."""
        values = list(by_seed)
        return Figure.from_estimate(estimate(float(np.mean(values)), drawn, num_devices, values), values)

    @staticmethod
    def ratio(
        by_seed: Sequence[float], base_by_seed: Sequence[float], drawn: Doubles, base_drawn: Doubles, num_devices: int
    ) -> Figure:
        """Mean over seeds over that of a base, paired."""
        value = float(np.mean(by_seed) / np.mean(base_by_seed))
        ratios = [one / base for one, base in zip(by_seed, base_by_seed, strict=True)]
        return Figure.from_estimate(estimate(value, over(drawn, base_drawn), num_devices, ratios), ratios)


@dataclass(frozen=True, kw_only=True)
class SeedsRow:
    """A table: recall, NDCG, and recall over that of the full global table and of the strongest full table; None where
    there is none.
    """

    table: str
    recall: Figure
    ndcg: Figure
    to_global: Figure | None
    to_strongest: Figure | None


@dataclass(frozen=True, kw_only=True)
class SeedsResult:
    """The content of `seeds.json`. strongest: of the full tables, by mean recall on the test."""

    scenario: dict[str, Any]
    seeds: tuple[int, ...]
    devices: int
    top_n: int
    strongest: str | None
    method: str
    replicates: int
    rows: tuple[SeedsRow, ...]
    versions: dict[str, str]
    command: str | None = None


def seeds_result(runs: SeedRuns, versions: dict[str, str], command: str | None, replicates: int) -> SeedsResult:
    """Return every table's figures over all seeds. replicates: number of replicates of the bootstrap."""
    tables = runs.tables
    means, drawn = runs.means(tables), runs.replicates(tables, replicates)
    full = {name: tables.index(name) for name in FULL_TABLES if name in tables}
    strongest = max(full, key=lambda name: float(means[0, full[name]].mean()), default=None)

    def figure(metric: int, place: int) -> Figure:
        return Figure.mean(means[metric, place].tolist(), drawn[metric, place], runs.num_devices)

    def ratio(place: int, name: str | None) -> Figure | None:
        if name not in full or not means[0, full[name]].all():
            return None
        base = full[name]
        by_seed, base_by_seed = means[0, place].tolist(), means[0, base].tolist()
        return Figure.ratio(by_seed, base_by_seed, drawn[0, place], drawn[0, base], runs.num_devices)

    rows = tuple(
        SeedsRow(
            table=table,
            recall=figure(0, place),
            ndcg=figure(1, place),
            to_global=ratio(place, "global"),
            to_strongest=ratio(place, strongest),
        )
        for place, table in enumerate(tables)
    )
    return SeedsResult(
        scenario=runs.scenario,
        seeds=runs.seeds,
        devices=runs.num_devices,
        top_n=runs.top_n,
        strongest=strongest,
        method=METHOD,
        replicates=replicates,
        rows=rows,
        versions=versions,
        command=command,
    )


def seeds_view(result: SeedsResult) -> TableView:
    """Return every table's mean over seeds with its interval, the spread over seeds, and ratios."""
    against = [name for name in dict.fromkeys(("global", result.strongest)) if name in {r.table for r in result.rows}]
    rows = tuple(
        (
            row.table,
            figure_text(row.recall),
            ABSENT if row.recall.seeds_std is None else f"{row.recall.seeds_std:.4f}",
            figure_text(row.ndcg),
            *(figure_text(row.to_global if name == "global" else row.to_strongest, 3) for name in against),
        )
        for row in result.rows
    )
    names = (
        f"Recall@{result.top_n}",
        "± over seeds",
        f"NDCG@{result.top_n}",
        *(f"relative to {'global' if name == 'global' else 'best'}" for name in against),
    )
    note = (
        f"Means over {len(result.seeds)} seeds. In brackets: 95 % intervals over devices and seeds. ± over seeds: "
        "standard deviation of recall over runs. Relative to: paired ratio of recall to that of a full fp32 table "
        "(best: {result.strongest})."
    )
    return TableView(f"Seeds {', '.join(map(str, result.seeds))}", ("table", *names), rows, 1, note)


def figure_text(figure: Figure | None, digits: int = 4) -> str:
    """Format a figure with its interval; a dash for none."""
    return ABSENT if figure is None else format_interval(figure.value, figure.low, figure.high, digits)


def write_seeds(out: Path, result: SeedsResult) -> list[Path]:
    """Write `seeds.json` and `seeds.html` into ``out``, both or none."""
    name = scenario_name(result.scenario)
    page = render(
        "tables.html",
        title=f"{name}: {len(result.seeds)} seeds",
        lead="The same scenario with several seeds: means and their variation over seeds.",
        facts=[("devices", f"{result.devices:,}"), ("seeds", f"{len(result.seeds)}")],
        tables=[seeds_view(result)],
        plot=None,
        note=result.method,
        **provenance(to_plain(result), "") | {"seed": None},
    )
    return write_results(out, {SEEDS_FILE: json_bytes(to_plain(result)), SEEDS_PAGE: page.encode()})


__all__ = [
    "METHOD",
    "REPLICATES",
    "SEEDS_PAGE",
    "Figure",
    "SeedsResult",
    "figure_text",
    "seeds_result",
    "seeds_view",
    "write_seeds",
]
