"""Finished stages of a long study, kept by content, so that a killed one goes on where it stopped.

A stage's file is named after the stage and a digest of everything that decides its result: what the stage says of
itself, the devices' data, and the source code it runs through. Change any, and the stage is done anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_peel.config import Scenario
from fl_peel.interactions import Splits
from fl_peel.roots import own_root
from simulations.report_files import json_bytes, to_plain, write_files

CENTRAL = ("fl_peel/*.py", "fl_peel/kernels/*.py", "strategies/rival*.py")
"""Source files behind the rivals that are trained centrally."""
FEDERATED = ("fl_peel/**/*.py", "clients/**/*.py", "clients/**/*.yaml", "strategies/[!r]*.py")
"""Source files behind a federated run."""


@dataclass(frozen=True)
class Checkpoints:
    """folder: of the files; data: digest of the devices' data."""

    folder: Path
    data: str

    def path(self, name: str, content: object, sources: Iterable[str]) -> Path:
        """Where the result of a stage is kept."""
        digest = hashlib.blake2b(digest_size=10)
        digest.update(json.dumps([self.data, content], sort_keys=True).encode())
        root = own_root()
        for pattern in sources:
            for path in sorted(root.glob(pattern)):
                digest.update(path.read_bytes())
        return self.folder / f"{name.replace(' ', '-').replace('%', '')}-{digest.hexdigest()}.json"

    def read(self, path: Path) -> Any | None:
        """The kept result, or None where there is none (or the file is damaged)."""
        try:
            return json.loads(path.read_text(encoding="utf-8"))["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path, result: Any, seconds: float) -> None:
        """Keep a result, whole or not at all."""
        kept = to_plain({"seconds": seconds, "result": result}, path.stem)
        write_files(path.parent, {path.name: json_bytes(kept)})

    def stage(
        self, name: str, content: object, sources: Iterable[str], work: Callable[[], Any]
    ) -> tuple[Any, float | None]:
        """The kept result, or that of ``work``, which is then kept; and the seconds it took, None if it was kept."""
        path = self.path(name, content, sources)
        kept = self.read(path)
        if kept is not None:
            return kept, None
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        self.write(path, result, seconds)
        return result, seconds


def seconds_of(path: Path) -> float:
    """Wall seconds that a kept stage took."""
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])


def data_digest(splits: Splits) -> str:
    """Digest of the three splits of all devices."""
    digest = hashlib.blake2b(digest_size=10)
    for part in (splits.train, splits.validation, splits.test):
        digest.update(np.ascontiguousarray(part.indptr).tobytes())
        digest.update(np.ascontiguousarray(part.items).tobytes())
    return f"{splits.num_items}-{digest.hexdigest()}"


def decisive(scenario: Scenario) -> dict[str, Any]:
    """What of a scenario decides a study's figures: not its name, not the machine, not the report's own parts."""
    content = scenario.model_dump(mode="json")
    for key in ("name", "question", "engine", "evaluation", "fairness", "elasticity"):
        content.pop(key, None)
    fleet = (scenario.fleet,) if isinstance(scenario.fleet, str) else scenario.fleet
    texts = [Path(entry).read_text(encoding="utf-8-sig") for entry in fleet if Path(entry).is_file()]
    return content | {"device": scenario.engine.device, "fleet files": texts}


def decisive_of_tables(scenario: Scenario) -> dict[str, Any]:
    """What of a scenario decides the figures of those who start from the pretrained tables and know no device."""
    content = scenario.model_dump(mode="json")
    return {key: content[key] for key in ("seed", "data", "pretraining")} | {"device": scenario.engine.device}
