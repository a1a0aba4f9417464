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
from fl_peel.device_storage import load_interactions, splits_of
from fl_peel.errors import DataError, ReportError
from fl_peel.model.model import Model, load
from fl_peel.scenario.scenario import Scenario
from simulations.demo.demo_page import DemoDevice, DemoItems, DemoPoint, demo_page
from simulations.engine.folders import data_folder
from simulations.engine.inputs import ARTIFACTS, MODEL
from simulations.report.run_files import read_report
from simulations.scenario_files import load_scenario
from strategies.figures.schema import RunResult

ARTEFACT = re.compile(r"device-(\d+)-(\w+)-(\d+)\.peel")
"""A device's number, what the file is of, its budget."""


@dataclass(frozen=True)
class RunDemo:
    """The page of a run, and what it lacks: a line where the data set is missing, so that items have no names and no
    recall.
    """

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
    if (out / MODEL).is_dir():
        items = items_of(load(out / MODEL))
        lacks = None if lacks is None else f"recall of single devices is not available: {lacks}"
    elif lacks is not None:
        lacks = f"items are shown by number, and recall of single devices is not available: {lacks}"
    elif not all(StoredEmbedding.from_bytes(file.read_bytes()).single for file in largest.values()):
        items, splits = DemoItems(), None
        lacks = "blocks are item groups, whose items only model/ lists: items are shown by row"
    return RunDemo(page_of(report, scenario, largest, items, splits, f"fl-peel demo {out} --out demo.html"), lacks)


def page_of(
    report: RunResult,
    scenario: Scenario,
    artefacts: Mapping[int, Path],
    items: DemoItems,
    splits: Splits | None,
    command: str,
) -> str:
    """Return the page of some devices, by number. splits: items of all devices, None where they are not at hand.

    Raises:
        ReportError, ArtifactError: as :func:`demo_page`.
    """
    devices = []
    for number, file in artefacts.items():
        artefact = file.read_bytes()
        known = splits is not None and StoredEmbedding.from_bytes(artefact).num_items == splits.num_items
        devices.append(_device(number, artefact, splits if known else None))
    return demo_page(
        devices,
        items,
        title=f"{scenario.name}: devices and their budgets",
        curve=_curve(report, scenario),
        recall_at=report.top_n,
        command=f"{report.command or 'fl-peel run'}\n{command}",
        seed=report.seed,
    )


def items_of(model: Model) -> DemoItems:
    """Return the names that a saved model has for its items, and their groups."""
    catalogue = model.catalogue
    groups = () if catalogue.layout.is_single else tuple(catalogue.layout.item_group.tolist())
    return DemoItems(tuple(catalogue.id_of(item) for item in range(catalogue.num_items)), groups)


def largest_artefacts(out: Path) -> Mapping[int, Path]:
    """Return the file of the largest budget of every device that left artefacts, by device number."""
    largest: dict[int, tuple[int, Path]] = {}
    for file in sorted((out / ARTIFACTS).glob("device-*.peel")):
        if named := ARTEFACT.fullmatch(file.name):
            device, budget = int(named[1]), int(named[3])
            largest[device] = max(largest.get(device, (-1, file)), (budget, file))
    return {device: largest[device][1] for device in sorted(largest)}


def _data(scenario: Scenario, data_dir: Path | None) -> tuple[DemoItems, Splits | None, str | None]:
    """Return the names of items and every device's items, where the data set is available, and what is lacking where it
    is not.
    """
    data, folder = scenario.data, data_folder(data_dir)
    try:
        if data.name is not None:
            where = Path(folder) if folder else None
            interactions = load_dataset(data.name, data_dir=where, min_rating=data.min_rating, allow_download=False)
        else:
            interactions = load_interactions(scenario, folder)
        return DemoItems(interactions.item_labels), splits_of(scenario, interactions), None
    except DataError as error:
        if data_dir is not None:
            raise
        return DemoItems(), None, str(error)


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
            row.recall.value,
            row.recall.low,
            row.recall.high,
        )
        for row in report.budgets
        if (row.precision, row.selector) == (scenario.blocks.precision, scenario.selector)
    ]
