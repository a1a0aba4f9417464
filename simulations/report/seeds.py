"""One scenario under several seeds: means with intervals over devices and seeds; `seeds.json` and `seeds.html`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from fl_peel.errors import ReportError
from fl_peel.figures import SETTING, Column, Figures, SeedsEstimate
from fl_peel.json_codec import from_plain
from fl_peel.ranking.bootstrap import Doubles, Sample
from simulations.report.render import Page, ResultKind, Section, scenario_name
from simulations.report.run_files import best_budget, read_report, refinement_helped, seen_data
from simulations.report.table_view import TableView, format_estimate, format_metric, format_ratio
from strategies.figures.per_device import FILE, METRICS, PerDevice
from strategies.figures.schema import RunResult

SEEDS_FILE = "seeds.json"
FULL_TABLES = ("global", "start", "refined")
METHOD = (
    "Value: mean over seeds, each a mean over devices. Interval, 95 %: squared standard errors of devices (Poisson "
    "bootstrap of the mean over seeds, paired) and of seeds (sample variance over their number) added up; Student's t "
    "with degrees of freedom by Satterthwaite. With one seed: the bootstrap's percentiles."
)


@dataclass(frozen=True)
class SeedRuns:
    """The runs of a folder of results, one or more of different seeds, and what devices get under each.

    scenario: resolved, of the first; best: of the full tables, by mean recall on validation.
    """

    name: str
    seeds: tuple[int, ...]
    by_seed: tuple[PerDevice, ...]
    scenario: dict[str, Any]
    best: str | None

    @staticmethod
    def from_reports(name: str, reports: Sequence[RunResult], by_seed: Sequence[PerDevice]) -> SeedRuns:
        seeds = tuple(report.seed for report in reports)
        return SeedRuns(name, seeds, tuple(by_seed), reports[0].scenario, _best_full_table(reports))

    @staticmethod
    def read(path: Path) -> SeedRuns:
        """Read an output folder of `fl-peel run`, with or without --seeds, or the report.json or seeds.json in it.

        Raises:
            ReportError: there is no such thing, or no per-device.parquet beside it.
        """
        folder = path.parent if path.name in ("report.json", SEEDS_FILE) else path
        folders = [folder]
        if (folder / SEEDS_FILE).is_file():
            folders = [folder / f"seed-{seed}" for seed in _seeds(folder / SEEDS_FILE)]
        reports = [read_report(one) for one in folders]
        return SeedRuns.from_reports(str(path), reports, [PerDevice.read(one / FILE) for one in folders])

    def with_own_budgets(self) -> SeedRuns:
        """Name what devices are sent by its share alone, so that runs of other precisions have tables of that name."""
        own = f" {(self.scenario.get('blocks') or {}).get('precision')} {self.scenario.get('selector')}"
        by_seed = (replace(one, tables=tuple(name.removesuffix(own) for name in one.tables)) for one in self.by_seed)
        return replace(self, by_seed=tuple(by_seed))

    @property
    def tables(self) -> tuple[str, ...]:
        first, *others = (one.tables for one in self.by_seed)
        return tuple(table for table in first if all(table in other for other in others))

    @property
    def num_devices(self) -> int:
        """Return the number of devices that count, in the seed in which the fewest do."""
        return min(int(one.counted.sum()) for one in self.by_seed)

    @property
    def top_n(self) -> int:
        """Items that recall and NDCG look at."""
        return self.by_seed[0].top_n

    def samples(self, tables: Iterable[str], count: int) -> dict[str, dict[str, Sample]]:
        """Return means over seeds with ``count`` replicates, by metric and table."""
        chosen = tuple(tables)
        means = [one.means()[:, [one.tables.index(table) for table in chosen]] for one in self.by_seed]
        by_seed: Doubles = np.stack(means, axis=2)  # (2, T, S)
        drawn: Doubles = np.mean([one.replicates(chosen, count) for one in self.by_seed], axis=0)  # (2, T, B)
        return {
            metric: {
                table: Sample(float(by_seed[m, t].mean()), drawn[m, t], self.num_devices, tuple(by_seed[m, t].tolist()))
                for t, table in enumerate(chosen)
            }
            for m, metric in enumerate(METRICS)
        }


def _best_full_table(reports: Sequence[RunResult]) -> str | None:
    """Return the full table with the best mean recall on validation, or that which the first seed compares to."""
    by_seed = [report.full_table.on_validation for report in reports]
    tables = [name for name in by_seed[0] if all(name in other for other in by_seed)]
    means = {name: float(np.mean([one[name].recall.value for one in by_seed])) for name in tables}
    return max(means, key=lambda name: means[name], default=reports[0].full_table.strongest)


def _seeds(file: Path) -> list[int]:
    try:
        return [int(seed) for seed in json.loads(file.read_text(encoding="utf-8"))["seeds"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{file}: not a file of --seeds ({error}); run again with --seeds") from error


def require_same(first: SeedRuns, other: SeedRuns) -> None:
    """Refuse runs of different devices or test items: their figures are of different things.

    Raises:
        ReportError: in one line.
    """
    if first.top_n != other.top_n:
        raise ReportError(
            f"{other.name}: figures of the first {other.top_n} items, those of {first.name} of the first "
            f"{first.top_n}; run one again with the other's evaluation.top_n"
        )
    ours, theirs = ([(one.test_items, one.items.tolist()) for one in runs.by_seed] for runs in (first, other))
    same = ours == theirs if first.seeds == other.seeds else all(one == ours[0] for one in ours + theirs)
    if not same:
        raise ReportError(
            f"{other.name}: its devices or test items differ from those of {first.name}; only runs of the same data "
            "set and split can be compared (a random split follows from the seed)"
        )


@dataclass(frozen=True, kw_only=True)
class SeedsRow:
    """A table: recall, NDCG, and recall relative to the full global table and the best full table, if any."""

    table: Annotated[str, Column("table")]
    recall: SeedsEstimate
    ndcg: SeedsEstimate
    to_global: SeedsEstimate | None
    to_strongest: SeedsEstimate | None


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """What every result over several seeds says of itself. scenario: resolved, of the first; devices: the fewest of a
    seed.
    """

    scenario: dict[str, Any]
    seeds: Annotated[tuple[int, ...], SETTING]
    devices: int
    versions: dict[str, str]
    command: str | None = None

    @property
    def figures(self) -> Figures:
        """Return every number, as the rows of a tidy table."""
        return Figures.from_result(self, seeds=self.seeds)


@dataclass(frozen=True, kw_only=True)
class SeedsResult(OverSeeds):
    """The content of `seeds.json`. strongest: of the full tables, by mean recall on validation; gain: in recall, of
    the group tables after refinement over those before it.
    """

    top_n: Annotated[int, SETTING]
    strongest: str | None
    gain: SeedsEstimate | None
    method: str
    replicates: Annotated[int, SETTING]
    rows: tuple[SeedsRow, ...]


def seeds_result(runs: SeedRuns, versions: dict[str, str], command: str | None, replicates: int) -> SeedsResult:
    """Return every table's figures over all seeds. replicates: number of replicates of the bootstrap."""
    samples = runs.samples(runs.tables, replicates)
    recalls, ndcgs = (samples[metric] for metric in METRICS)
    full = {name: recalls[name] for name in FULL_TABLES if name in recalls}

    def over(table: str, base: str | None) -> SeedsEstimate | None:
        return recalls[table].over(full[base]) if base in full else None

    return SeedsResult(
        scenario=runs.scenario,
        seeds=runs.seeds,
        devices=runs.num_devices,
        top_n=runs.top_n,
        strongest=runs.best,
        gain=full["refined"].less(full["start"]) if {"start", "refined"} <= set(full) else None,
        method=METHOD,
        replicates=replicates,
        rows=tuple(
            SeedsRow(
                table=table,
                recall=recalls[table].estimate(),
                ndcg=ndcgs[table].estimate(),
                to_global=over(table, "global"),
                to_strongest=over(table, runs.best),
            )
            for table in runs.tables
        ),
        versions=versions,
        command=command,
    )


def seeds_verdicts(result: SeedsResult) -> tuple[str, ...]:
    """Say who has seen which interactions, what the smallest budget that keeps up has, and what refinement did."""
    scenario = result.scenario
    own = f" {scenario['blocks']['precision']} {scenario['selector']}"
    ratios = {
        f"{row.table.removesuffix(own)} of the bytes": row.to_strongest
        for row in result.rows
        if row.table.endswith(own)
    }
    return (
        seen_data(scenario),
        best_budget(ratios, scenario, result.strongest, result.top_n),
        refinement_helped(result.gain, scenario["refinement"]["rounds"], top_n=result.top_n),
    )


def seeds_view(result: SeedsResult) -> TableView:
    """Return every table's mean over seeds with its interval, the spread over seeds, and ratios."""
    against = [name for name in dict.fromkeys(("global", result.strongest)) if name in {r.table for r in result.rows}]
    rows = tuple(
        (
            row.table,
            format_estimate(row.recall),
            format_metric(row.recall.seeds_std),
            format_estimate(row.ndcg),
            *(format_ratio(row.to_global if name == "global" else row.to_strongest) for name in against),
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
        f"(best on validation: {result.strongest})."
    )
    return TableView(f"Seeds {', '.join(map(str, result.seeds))}", ("table", *names), rows, 1, note, terminal=True)


def seeds_page(result: SeedsResult) -> Page:
    """Return the page of a run with several seeds."""
    return over_seeds_page(result, seeds_view(result), seeds_verdicts(result))


def over_seeds_page(result: OverSeeds, view: TableView, verdicts: Sequence[str], what: str = "") -> Page:
    """Return the page of a result over several seeds, which is one table. what: after their number in its title."""
    return Page(
        f"{scenario_name(result.scenario)}: {len(result.seeds)} seeds{what}",
        [Section("tables", "", (view, METHOD))],
        verdicts,
        [("devices", f"{result.devices:,}"), ("seeds", f"{len(result.seeds)}")],
    )


SEEDS = ResultKind("seeds", partial(from_plain, SeedsResult), seeds_page)
