"""Page of a few devices in one HTML file: the reader in JavaScript and the artefacts are inside, nothing is loaded.

It is made from what a run leaves in its folder, and from the data set that it read.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from clients.runtime import READER
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.data.datasets import load_dataset
from fl_peel.data.interactions import Splits
from fl_peel.device_storage import item_titles, load_interactions, splits_of
from fl_peel.errors import DataError, ReportError
from fl_peel.figures import Estimate
from fl_peel.model.model import Model, load
from fl_peel.scenario.scenario import Scenario
from simulations.engine.inputs import ARTIFACTS, MODEL, data_folder
from simulations.report.render import policy, render
from simulations.report.run_files import read_report
from simulations.report.table_view import format_bytes
from simulations.scenario_files import load_scenario
from strategies.figures.schema import RunResult

SCRIPT = Path(__file__).parent / "demo.mjs"
SHOWN = 10
"""Items that the page lists."""


@dataclass(frozen=True, eq=False)
class DemoDevice:
    """A device to play with. artefact: its file under the largest budget; seen: items that it is not recommended;
    wanted: held-out items, by which recall is counted, None where they are not known.
    """

    name: str
    artefact: bytes
    seen: NDArray[np.integer]
    wanted: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class DemoItems:
    """Ids or titles and groups of items by number, empty where not known: as in the side file of docs/artefact.md."""

    ids: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class DemoCurve:
    """Mean recall over the devices of a run when all are held to a budget, by its bytes. recall_at: how many items
    recall looks at.
    """

    recall_at: int
    points: Mapping[int, Estimate] = field(default_factory=dict)


def demo_page(
    devices: Sequence[DemoDevice],
    items: DemoItems,
    *,
    title: str,
    command: str,
    curve: DemoCurve,
    seed: int | None = None,
) -> str:
    """The page. command: what to type to get it again; curve: of the run that the devices are from.

    Raises:
        ReportError: there is no device, or none that holds a block.
        ArtifactError: an artefact is none.
    """
    stored = {device: StoredEmbedding.from_bytes(device.artefact) for device in devices}
    holding = [device for device in devices if len(stored[device].blocks)]
    if not holding:
        raise ReportError("no device stores a block; run with larger evaluation.budgets")
    first = stored[holding[0]]
    code = script()
    data = {
        "devices": [_plain(device) for device in holding],
        "items": {key: value for key, value in (("ids", items.ids), ("groups", items.groups)) if value},
        "curve": [
            {"bytes": budget, "recall": recall.value, "low": recall.low, "high": recall.high}
            for budget, recall in sorted(curve.points.items())
        ],
        "recallAt": curve.recall_at,
        "shown": SHOWN,
    }
    return render(
        "demo.html",
        title=title,
        lead="A device stores the embedding blocks that fit its memory budget, and ranks items with them. Move the "
        "budget: blocks are added or dropped at the end of its user group's block order.",
        facts=[
            ("items", f"{first.num_items:,}"),
            ("columns", str(first.embedding_dim)),
            ("slices", str(first.num_slices)),
            ("precision", first.precision),
            ("full table, fp32", format_bytes(4 * first.num_items * first.embedding_dim)),
        ],
        names=[device.name for device in holding],
        data=_json(data),
        script=Markup(code),
        policy=policy(code, "img-src data:"),
        recall_at=curve.recall_at,
        command=command,
        seed=seed,
        versions=None,
        scenario=None,
    )


def _plain(device: DemoDevice) -> dict[str, Any]:
    return {
        "name": device.name,
        "file": base64.b64encode(device.artefact).decode(),
        "seen": device.seen.tolist(),
        "wanted": None if device.wanted is None else device.wanted.tolist(),
    }


def _json(data: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the element it stands in."""
    return Markup(json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c"))


def script() -> str:
    """The reader and what draws, as one module: their imports of each other are left out.

    Raises:
        ReportError: a file is missing.
    """
    try:
        parts = [path.read_text(encoding="utf-8") for path in (READER, READER.parent / "catalogue.mjs", SCRIPT)]
    except OSError as error:
        raise ReportError(
            f"{error.filename}: {error.strerror}; it is not part of a Flower app bundle: install fl-peel"
        ) from error
    lines = [line for part in parts for line in part.splitlines() if not line.startswith("import ")]
    return "\n".join(lines)


ARTEFACT = re.compile(r"device-(\d+)-(\w+)-(\d+)\.peel")
"""A device's number, what the file is of, its budget."""


@dataclass(frozen=True)
class RunDemo:
    """The page of a run, and what it lacks: a line where the data set, so names and recall, is missing."""

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
    written = (scenario.blocks.precision, scenario.selector)  # what artefacts are of
    recalls = {row.budget_bytes: row.recall for row in report.budgets if (row.precision, row.selector) == written}
    return demo_page(
        devices,
        items,
        title=f"{scenario.name}: devices and their budgets",
        curve=DemoCurve(report.top_n, recalls),
        command=f"{report.command or 'fl-peel run'}\n{command}",
        seed=report.seed,
    )


def items_of(model: Model) -> DemoItems:
    """Return the names that a saved model has for its items, and their groups."""
    catalogue = model.catalogue
    groups = () if catalogue.layout.is_single else tuple(catalogue.layout.item_group.tolist())
    ids = map(catalogue.id_of, range(catalogue.num_items))
    return DemoItems(tuple(catalogue.titles.get(name, name) for name in ids), groups)


def largest_artefacts(out: Path) -> Mapping[int, Path]:
    """Return the file of the largest budget of every device that left artefacts, by device number."""
    largest: dict[int, tuple[int, Path]] = {}
    for file in sorted((out / ARTIFACTS).glob("device-*.peel")):
        if named := ARTEFACT.fullmatch(file.name):
            device, budget = int(named[1]), int(named[3])
            largest[device] = max(largest.get(device, (-1, file)), (budget, file))
    return {device: largest[device][1] for device in sorted(largest)}


def _data(scenario: Scenario, data_dir: Path | None) -> tuple[DemoItems, Splits | None, str | None]:
    """Return names of items and every device's items, or what is lacking where the data set is not there."""
    data, folder = scenario.data, data_folder(data_dir)
    try:
        if data.name is not None:
            where = Path(folder) if folder else None
            interactions = load_dataset(data.name, data_dir=where, min_rating=data.min_rating, allow_download=False)
        else:
            interactions = load_interactions(scenario, folder)
        labels = interactions.item_labels or tuple(map(str, range(interactions.num_items)))
        titles = item_titles(scenario, labels, folder)
        names = tuple(titles.get(label, label) for label in labels) if titles else interactions.item_labels
        return DemoItems(names), splits_of(scenario, interactions), None
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
