"""Finished stages of a long study, kept by content, so that a killed one goes on where it stopped.

A stage's file is named after the stage and a digest of everything that decides its result: what the stage says of
itself, the devices' data, and the source code it runs through, found by following imports from the modules that the
stage enters (:mod:`simulations.studies.sources`). Change any, and the stage is done anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fl_peel.data.interactions import Splits
from fl_peel.data.timeline import Timeline
from fl_peel.package_check import own_root
from fl_peel.scenario.scenario import Scenario
from simulations.report.result_files import json_bytes, to_plain, write_files
from simulations.studies.sources import digest_of

CHECKPOINTS = "checkpoints"
"""Folder of them, in that of a study's results."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a study. folder: folder of the files; data: digest of the devices' data; root: the folder that
    our packages lie in; fresh: files that were there before are not read.
    """

    folder: Path
    data: str
    root: Path = field(default_factory=own_root)
    fresh: bool = False
    _written: set[Path] = field(default_factory=set, repr=False, compare=False)

    def path(self, name: str, content: object, modules: Iterable[str]) -> Path:
        """Return the path of the kept result of a stage. modules: modules that its work enters; all they import follows
        from them.
        """
        digest = hashlib.blake2b(digest_size=10)
        sources = digest_of(tuple(modules), self.root)
        digest.update(json.dumps([self.data, content, sources], sort_keys=True).encode())
        return self.folder / f"{name.replace(' ', '-').replace('%', '')}-{digest.hexdigest()}.json"

    def read(self, path: Path) -> Any | None:
        """The kept result, or None where there is none (or the file is damaged)."""
        if self.fresh and path not in self._written:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path, result: Any, seconds: float) -> None:
        """Keep a result, whole or not at all."""
        kept = to_plain({"seconds": seconds, "result": result}, path.stem)
        write_files(path.parent, {path.name: json_bytes(kept)})
        self._written.add(path)

    def others(self, path: Path) -> bool:
        """Whether what is kept under the name of a file is of something else: another scenario, data, or code."""
        name = path.name.rpartition("-")[0]
        return any(one.name.rpartition("-")[0] == name and one != path for one in self.folder.glob(f"{name}-*.json"))

    def stage(
        self, name: str, content: object, modules: Iterable[str], work: Callable[[], Any]
    ) -> tuple[Any, float | None]:
        """The kept result, or that of ``work``, which is then kept; and the seconds it took, None if it was kept."""
        path = self.path(name, content, modules)
        kept = self.read(path)
        if kept is not None:
            return kept, None
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        self.write(path, result, seconds)
        return result, seconds


def data_digest(splits: Splits | Timeline) -> str:
    """Digest of the three splits of all devices, or of all that they do as time goes by."""
    digest = hashlib.blake2b(digest_size=10)
    if isinstance(splits, Timeline):
        for column in (splits.users, splits.items, splits.times, splits.edges, splits.before):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()
    for part in (splits.train, splits.validation, splits.test):
        digest.update(np.ascontiguousarray(part.indptr).tobytes())
        digest.update(np.ascontiguousarray(part.items).tobytes())
    return f"{splits.num_items}-{digest.hexdigest()}"


def decisive(scenario: Scenario) -> dict[str, Any]:
    """Return the part of a scenario that decides a study's figures: not its name, not the machine, not the report's own
    parts.
    """
    content = scenario.model_dump(mode="json")
    for key in ("name", "question", "engine", "evaluation", "fairness", "elasticity"):
        content.pop(key, None)
    return content | {"device": scenario.engine.device, "fleet files": fleet_digests(scenario)}


def fleet_digests(scenario: Scenario) -> list[list[str]]:
    """Return the digests of the files of a scenario's fleet, one list for each entry."""
    fleet = (scenario.fleet,) if isinstance(scenario.fleet, str) else scenario.fleet
    return [_file_digests(entry) for entry in fleet]


def _file_digests(entry: str) -> list[str]:
    """Return the digests of a fleet file, whole or one class of it (``fleet.yaml:class``), and of the traces and values
    that it names.

    Fleets that ship are found with the sources.
    """
    path = next((Path(text) for text in (entry, entry.rpartition(":")[0]) if Path(text).is_file()), None)
    if path is None:
        return []
    text = path.read_text(encoding="utf-8-sig")
    named = {os.path.join(path.parent, os.path.expanduser(word)) for word in _words(yaml.safe_load(text))}
    files = [path, *(Path(file) for file in sorted(named) if os.path.isfile(file))]
    return [hashlib.blake2b(file.read_bytes(), digest_size=10).hexdigest() for file in files]


def _words(node: object) -> Iterator[str]:
    """Yield every text value of a YAML document."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _words(value)
    elif isinstance(node, list):
        for value in node:
            yield from _words(value)


def decisive_of_tables(scenario: Scenario) -> dict[str, Any]:
    """Return the part of a scenario that decides the figures of those who start from the pretrained tables and know no
    device.
    """
    content = scenario.model_dump(mode="json")
    return {key: content[key] for key in ("seed", "data", "pretraining")} | {"device": scenario.engine.device}


def decisive_of_starts(scenario: Scenario) -> dict[str, Any]:
    """The same, of those who may also start from the tables of the user groups."""
    return decisive_of_tables(scenario) | {"user_groups": scenario.model_dump(mode="json")["user_groups"]}
