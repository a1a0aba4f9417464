"""Checked before any work: the scenario's files, the folder results go to, the copy of the packages.

What needs NumPy is imported when a fleet is checked: a mistake that shows without is told at once.
"""

from __future__ import annotations

import os
from pathlib import Path

from fl_peel.errors import DataError, ReportError, ScenarioError
from fl_peel.roots import check_one_root
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.processor import require_device


def checked(scenario: Scenario, out: Path | None, *, place: str = "--out", working_dir: Path | None = None) -> Scenario:
    """The scenario with absolute paths (nodes may have another working directory), once everything is found.

    working_dir: of the workers this process will start; nothing in it may hide our packages.

    Raises:
        EngineError: packages from two roots.
        ReportError: ``out`` cannot be a folder of results.
        ProfileError: no such fleet, or one that makes no sense.
        DataError: no such data file.
        ScenarioError: a GPU is asked for, and there is none.
    """
    check_one_root(working_dir)
    require_device(scenario.engine.device)
    if out is not None:
        check_out(out, place)
    scenario = absolute(scenario)
    for key in ("path", "test_path"):
        path = getattr(scenario.data, key)
        if path is not None and not Path(path).exists():
            raise DataError(f"{path}: no such file or folder; correct data.{key}")

    from clients.fleet.fleet import load_fleet

    load_fleet(scenario.fleet)
    check_plug_ins(scenario)
    return scenario


def check_items(scenario: Scenario, num_items: int) -> None:
    """Refuse keys that speak of more items than the data has.

    Raises:
        ScenarioError: naming the key.
    """
    top_n = scenario.evaluation.top_n
    if top_n > num_items:
        raise ScenarioError(f"evaluation.top_n: {top_n} of {num_items} items; give at most {num_items}")
    last = max(scenario.poisoning.target_items, default=0)
    if last >= num_items:
        raise ScenarioError(f"poisoning.target_items: there is no item {last}; items go from 0 to {num_items - 1}")


def check_plug_ins(scenario: Scenario) -> None:
    """Import the contents and statistics that a scenario names: what they are shows before anything runs.

    Raises:
        ScenarioError: one of them is not what its name stands for, or cannot be imported.
    """
    if scenario.refinement.contents is not None:
        from clients.round.choice import contents_kind as device_kind
        from strategies.rounds.choice import contents_kind as server_kind

        device_kind(scenario)
        server_kind(scenario)
    if scenario.privacy.statistics:
        from fl_peel.exchange.statistics import find_statistic

        for name in scenario.privacy.statistics:
            find_statistic(name)


def check_out(out: Path, place: str = "--out") -> None:
    """Refuse a place that no results can be written to.

    Raises:
        ReportError: a file is in the way, or the folder is not writable.
    """
    if out.exists() and not out.is_dir():
        raise ReportError(f"{out}: is a file; give {place} a folder")
    there = out.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ReportError(f"{out}: cannot be made, {there} is a file; give {place} another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ReportError(f"{out}: cannot be written, {there} is read-only; give {place} another folder")


def absolute(scenario: Scenario) -> Scenario:
    """The same scenario with paths that hold in any working directory."""
    data = scenario.data.model_copy(
        update={
            key: os.path.abspath(Path(path).expanduser())
            for key in ("path", "test_path")
            if (path := getattr(scenario.data, key)) is not None
        }
    )
    if isinstance(scenario.fleet, str):
        fleet: str | tuple[str, ...] = _absolute_fleet(scenario.fleet)
    else:
        fleet = tuple(_absolute_fleet(entry) for entry in scenario.fleet)
    return scenario.model_copy(update={"data": data, "fleet": fleet})


def _absolute_fleet(entry: str) -> str:
    """``fleet.yaml`` and ``fleet.yaml:class`` as absolute paths; the name of a shipped fleet stays."""
    path, colon, only = entry.rpartition(":")
    if Path(entry).expanduser().is_file():
        return os.path.abspath(Path(entry).expanduser())
    if colon and Path(path).expanduser().is_file():
        return f"{os.path.abspath(Path(path).expanduser())}:{only}"
    return entry


def require_absolute(scenario: Scenario, folders: dict[str, str]) -> None:
    """Refuse relative paths where the working directory is anybody's guess: under ``flwr run``.

    Raises:
        ScenarioError: naming the key.
    """
    fleet = (scenario.fleet,) if isinstance(scenario.fleet, str) else scenario.fleet
    paths = {**folders, "data.path": scenario.data.path, "data.test_path": scenario.data.test_path}
    paths |= {"fleet": next((entry for entry in fleet if "/" in entry and not entry.startswith(("/", "~"))), "")}
    for key, path in paths.items():
        if path and not Path(path).expanduser().is_absolute():
            raise ScenarioError(f"{key}: {path} is a relative path; give an absolute one under flwr run")
