"""Finished stages of a long study, kept by content, so that a killed one goes on where it stopped.

A stage's key is everything that decides its result: what the stage says of itself, the devices' data, and the code.
Change any, and the stage is done anew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fl_peel.data.interactions import Splits
from fl_peel.data.timeline import Timeline
from fl_peel.events import Event, OnEvent, silent
from fl_peel.package_check import PACKAGES, code_digest, own_root
from fl_peel.plugins import all_added
from fl_peel.scenario.scenario import Scenario
from fl_peel.store import Store
from simulations.report.result_files import to_plain


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a study. fresh: what was there before is not read."""

    store: Store
    on_event: OnEvent = silent
    fresh: bool = False
    _written: list[tuple[str, Any]] = field(default_factory=list, repr=False, compare=False)

    def read(self, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Return the kept results of stages by name. keys: everything that decides each; of one that is kept of
        something else an event says so.
        """
        results = {}
        for name, key in keys.items():
            if self.fresh and (name, key) not in self._written:
                continue
            entry = self.store.read(name, key)
            if entry is not None:
                results[name] = entry.value["result"]
                self.on_event(Event(name, 1, 1, "resumed from an earlier run"))
            elif self.store.others(name, key):
                self.on_event(
                    Event(name, 0, 1, "checkpoint of another scenario, data, fleet, options or version: computed again")
                )
        return results

    def write(self, name: str, key: Any, result: Any, seconds: float) -> Any:
        """Keep a result, whole or not at all; returns it as it will be read."""
        value = to_plain({"seconds": seconds, "result": result}, name)
        self.store.write(name, key, value)
        self._written.append((name, key))
        return value["result"]


def stage_key(data: str, content: object, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Return everything that decides the result of a stage. data: digest of the devices' data; content: what the stage
    says of itself; modules: modules that it enters besides our own and those of installed packages.
    """
    return {"data": data, "decides": content, "code": code_behind(tuple(modules))}


@cache
def code_behind(modules: tuple[str, ...] = ()) -> str:
    """Return a digest of our packages' code, and of that of the packages of other modules and of all that packages add.

    It is read once: what runs in this process is what was there when it started.
    """
    digest = hashlib.blake2b(code_digest(own_root()).encode(), digest_size=10)
    names = {name.partition(".")[0] for name in (*modules, *(point.module for point in all_added()))}
    for name in sorted(names - set(PACKAGES)):
        for path in _source_files(name):
            # what was typed into an interpreter has no file: who knows whether it is the same next time
            digest.update(uuid.uuid4().bytes if path is None else path.read_bytes())
    return digest.hexdigest()


def _source_files(name: str) -> list[Path] | list[None]:
    """Return the files of a package or module, without importing it; None stands for one that has none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None and name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:  # it is named, and not installed
            return []
        file = spec.origin
    if file is None:
        return [None]
    path = Path(file)
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


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
