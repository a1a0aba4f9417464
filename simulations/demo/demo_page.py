"""Page of a few devices in one HTML file: the reader in JavaScript and the artefacts are inside, nothing is loaded."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from clients.runtime import READER
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.errors import ReportError
from simulations.report.render import policy, render
from simulations.report.table_view import format_bytes

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
    """Own ids or titles by item number, and the item group of each, both empty where not known: as in the side file
    of docs/artefact.md.
    """

    ids: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class DemoPoint:
    """Mean recall over the devices of a run when all are held to a budget; low, high: its interval, where known."""

    budget_bytes: int
    recall: float
    low: float | None = None
    high: float | None = None


def demo_page(
    devices: Sequence[DemoDevice],
    items: DemoItems,
    *,
    title: str,
    command: str,
    recall_at: int,
    curve: Sequence[DemoPoint] = (),
    seed: int | None = None,
) -> str:
    """The page. command: what to type to get it again; recall_at: how many items recall looks at; curve: of the run
    that the devices are from, in any order.

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
            {"bytes": point.budget_bytes, "recall": point.recall, "low": point.low, "high": point.high}
            for point in sorted(curve, key=lambda point: point.budget_bytes)
        ],
        "recallAt": recall_at,
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
        recall_at=recall_at,
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
