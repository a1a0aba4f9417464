"""Contents of a folder of results for a comparison: a run, or a run repeated with several seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.errors import ReportError
from simulations.report.run_files import read_report
from strategies.figures.per_device import FILE, METRICS, PerDevice

Doubles = NDArray[np.float64]

SEEDS_FILE = "seeds.json"


@dataclass(frozen=True)
class SeedRuns:
    """Seeds, and what devices get under each of them; scenario: resolved, of the first."""

    name: str
    seeds: tuple[int, ...]
    by_seed: tuple[PerDevice, ...]
    scenario: dict[str, Any]

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
        by_seed = tuple(PerDevice.read(one / FILE) for one in folders)
        return SeedRuns(str(path), tuple(report.seed for report in reports), by_seed, reports[0].scenario)

    @property
    def tables(self) -> tuple[str, ...]:
        """Return the tables that every seed measured."""
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

    def means(self, tables: Iterable[str]) -> Doubles:
        """Mean recall and NDCG by seed, (2, T, S)."""
        chosen = tuple(tables)
        whole = [one.means()[:, [one.tables.index(table) for table in chosen]] for one in self.by_seed]
        return np.stack(whole, axis=2)

    def replicates(self, tables: Iterable[str], count: int) -> Doubles:
        """The same in every replicate of the bootstrap over devices, as means over seeds, (2, T, B)."""
        chosen = tuple(tables)
        mean: Doubles = np.mean([one.replicates(chosen, count) for one in self.by_seed], axis=0)
        return mean


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


__all__ = ["METRICS", "SEEDS_FILE", "SeedRuns", "require_same"]
