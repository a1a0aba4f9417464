"""A page from what a run leaves in its folder, and from the data set that it read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.data.datasets import load_dataset
from fl_peel.data.interactions import Splits
from fl_peel.disks import load_interactions, splits_of
from fl_peel.errors import DataError, ReportError
from fl_peel.scenario.scenario import Scenario
from simulations.demo.page import DemoDevice, DemoItems, DemoPoint, demo_page
from simulations.engine.folders import data_folder
from simulations.report.files_of_run import read_report
from simulations.scenario_files import load_scenario
from strategies.figures.schema import RunResult

ARTEFACT = re.compile(r"device-(\d+)-(\w+)-(\d+)\.peel")
"""A device's number, what the file is of, its budget."""


@dataclass(frozen=True)
class RunDemo:
    """A page, and what it lacks: a line where the data set was not found, so that items have no names and no recall."""

    page: str
    lacks: str | None


def demo_of_run(out: Path, data_dir: Path | None = None) -> RunDemo:
    """The page of a run's folder: its devices under their largest budgets, the run's mean recall at every budget.

    data_dir: that holds the data set, as of the run. Where it is not given and the data set is not found, items are
    called by number and recall of single devices is not told.

    Raises:
        ReportError: no folder of a run, or one without artefacts.
        DataError: the data set is not where it was said to be.
        ArtifactError: an artefact is damaged.
    """
    report = read_report(out)
    largest = largest_artefacts(out)
    if not largest:
        raise ReportError(f"{out}: no artifacts/device-*.peel; run again with --set evaluation.artifacts=3")
    scenario = load_scenario(out / "scenario.yaml")
    items, splits, lacks = _data(scenario, data_dir)
    devices = []
    for number, file in largest.items():
        artefact = file.read_bytes()
        stored = StoredEmbedding.from_bytes(artefact)
        known = splits is not None and stored.single and stored.num_items == splits.num_items
        devices.append(_device(number, artefact, splits if known else None))
        if splits is not None and not known:
            items, lacks = (
                DemoItems(),
                "blocks are of item groups, which the run does not leave: items are called by row",
            )
    page = demo_page(
        devices,
        items,
        title=f"{scenario.name}: devices and their budgets",
        curve=_curve(report, scenario),
        recall_at=report.top_n,
        command=f"{report.command or 'fl-peel run'}\nfl-peel demo {out} --out demo.html",
        seed=report.seed,
    )
    return RunDemo(page, lacks)


def largest_artefacts(out: Path) -> Mapping[int, Path]:
    """Of every device that left artefacts the file of its largest budget, by device number."""
    found: dict[int, tuple[int, Path]] = {}
    for file in sorted((out / "artifacts").glob("device-*.peel")):
        if named := ARTEFACT.fullmatch(file.name):
            device, budget = int(named[1]), int(named[3])
            found[device] = max(found.get(device, (-1, file)), (budget, file))
    return {device: found[device][1] for device in sorted(found)}


def _data(scenario: Scenario, data_dir: Path | None) -> tuple[DemoItems, Splits | None, str | None]:
    """Names of items and every device's items, where the data set is found, and what is lacking where it is not."""
    data, folder = scenario.data, data_folder(data_dir)
    try:
        if data.name is not None:
            where = Path(folder) if folder else None
            found = load_dataset(data.name, data_dir=where, min_rating=data.min_rating, allow_download=False)
        else:
            found = load_interactions(scenario, folder)
        return DemoItems(found.item_labels), splits_of(scenario, found), None
    except DataError as error:
        if data_dir is not None:
            raise
        return DemoItems(), None, f"items are called by number, and recall of single devices is not told: {error}"


def _device(number: int, artefact: bytes, splits: Splits | None) -> DemoDevice:
    name = f"device {number}"
    if splits is None:
        return DemoDevice(name, artefact, np.zeros(0, np.int32))
    seen = np.concatenate([splits.train.row(number), splits.validation.row(number)])
    return DemoDevice(name, artefact, seen, splits.test.row(number))


def _curve(report: RunResult, scenario: Scenario) -> list[DemoPoint]:
    """Mean recall at every budget, of the precision and selector that artefacts are of."""
    return [
        DemoPoint(
            row.budget_bytes,
            row.recall,
            None if row.recall_interval is None else row.recall_interval.low,
            None if row.recall_interval is None else row.recall_interval.high,
        )
        for row in report.budgets
        if (row.precision, row.selector) == (scenario.blocks.precision, scenario.selector)
    ]
