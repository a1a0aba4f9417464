"""Finished stages of a long study, kept by content, so that a killed one goes on where it stopped.

A stage's key is everything that decides its result: what the stage says of itself, the devices' data, and the code.
Change any, and the stage is done anew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fl_peel.errors import ReportError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.package_check import PACKAGES, code_digest, own_root
from fl_peel.plugins import all_added
from fl_peel.scenario.scenario import Scenario
from fl_peel.store import Store
from simulations.report.result_files import to_plain
from simulations.resumable import fleet_digests


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
        """Keep a result, whole or not at all; returns it as it will be read.

        Raises:
            ReportError: the folder cannot be written.
        """
        value = to_plain({"seconds": seconds, "result": result}, name)
        try:
            self.store.write(name, key, value)
        except OSError as error:
            raise ReportError(f"{self.store.folder}: cannot write ({error}); the same command goes on later") from error
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


def decisive(scenario: Scenario) -> dict[str, Any]:
    """Return the part of a scenario that decides a study's figures: not its name, not the machine, not the report's own
    parts.
    """
    content = scenario.model_dump(mode="json")
    for key in ("name", "question", "engine", "evaluation", "fairness", "elasticity"):
        content.pop(key, None)
    return content | {"device": scenario.engine.device, "fleet files": fleet_digests(scenario)}


def decisive_of_tables(scenario: Scenario) -> dict[str, Any]:
    """Return the part of a scenario that decides the figures of those who start from the pretrained tables and know no
    device.
    """
    content = scenario.model_dump(mode="json")
    return {key: content[key] for key in ("seed", "data", "pretraining")} | {"device": scenario.engine.device}


def decisive_of_starts(scenario: Scenario) -> dict[str, Any]:
    """The same, of those who may also start from the tables of the user groups."""
    return decisive_of_tables(scenario) | {"user_groups": scenario.model_dump(mode="json")["user_groups"]}
