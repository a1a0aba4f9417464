"""A scenario on Flower's deployment engine, all of it on this machine: what a deployment does, without machines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import fl_peel
from fl_peel.data.readers import read_interactions
from fl_peel.errors import EngineError, ScenarioError
from fl_peel.file_lock import owned_folder, remove_abandoned
from fl_peel.scenario.scenario import Scenario
from simulations.deployment.processes import Config, Deployment, deployed, end_all
from simulations.engine.folders import data_folder
from simulations.engine.inputs import given_folder
from simulations.run_options import RunOptions

PREFIX, HOME = "deployed-fl-peel-", "home"
"""Prefix of the name of a deployment's folder, and Flower's own in it."""


def node_configs(scenario: Scenario, *, nodes: int, own: Sequence[Path] = ()) -> list[Config]:
    """Return what SuperNodes are started with. own: data files of theirs, one each, numbered in this order; nodes:
    number of SuperNodes where there are no files, so that each takes its share of the scenario's devices.

    Raises:
        ScenarioError: files and a scenario that do not fit together.
        DataError: a file cannot be read.
    """
    if bool(own) != scenario.data.held_by_nodes:
        raise ScenarioError(
            "--own: nodes have files of their own where the scenario has data.catalogue, and neither data.name nor "
            "data.path; give both or none"
        )
    if not own:
        return [{"partition-id": number, "num-partitions": nodes, "simulated": True} for number in range(nodes)]
    configs: list[Config] = []
    first = 0
    for number, path in enumerate(own):
        place = {"partition-id": number, "num-partitions": len(own)}
        configs.append({**place, "data": str(path.absolute()), "first-device": first})
        first += read_interactions(path, format=scenario.data.format, dialect=scenario.data.dialect).num_users
    return configs


def run_deployed(
    scenario: Scenario,
    configs: Sequence[Config],
    on_line: Callable[[Deployment, str], None],
    options: RunOptions,
    *,
    secure: bool = True,
    limit_s: float | None = None,
) -> None:
    """Start a SuperLink and SuperNodes, run a scenario with absolute paths on them, and end them. on_line: gets every
    line of the server's side, with what runs; options: of these, the folders of data and results; limit_s: after so
    long everything is ended.

    Raises:
        EngineError: one of them did not start, or the run failed, with its last words.
    """
    place = Path(tempfile.gettempdir())
    remove_abandoned(place, PREFIX, lambda folder: end_all(folder / HOME))
    with owned_folder(place, PREFIX) as folder:
        home = folder / HOME
        (folder / "scenario.yaml").write_text(scenario.to_yaml(), encoding="utf-8")
        if scenario.data.held_by_nodes:  # what devices keep goes with the deployment
            configs = [{**one, "run-dir": f"{folder}/node-{one['partition-id']}"} for one in configs]
        out = given_folder(options.out)
        given = {
            "scenario": f"{folder}/scenario.yaml",
            "data-dir": data_folder(options.data_dir),
            "out": str(out.absolute()) if out else "",
        }
        with deployed(home, configs, secure=secure) as deployment:
            show_line = partial(on_line, deployment)
            try:
                deployment.run(write_app(folder / "app"), given, show_line, limit_s)
            except EngineError as error:
                tail = deployment.log("superlink").read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
                for line in tail:
                    show_line(line)
                raise EngineError(str(error).partition("; see ")[0]) from error


# ---- The Flower app of a deployment: the packages as they are installed on each machine, of which nothing is sent


APP = """\
[project]
name = "fl-peel"
version = "{version}"
description = "fl-peel, as it is installed where this runs"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fl-peel"

[tool.flwr.app.components]
serverapp = "fl_peel.server_app:app"
clientapp = "fl_peel.client_app:app"

[tool.flwr.app.config]
scenario = "ml-100k"
num-server-rounds = -1
local-epochs = -1
learning-rate = -1.0
fleet = ""
selector = ""
seed = -1
data-dir = ""
out = ""
set = ""
"""


def write_app(folder: Path) -> Path:
    """Write the app that ``flwr run`` takes into a folder of its own, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(APP.format(version=fl_peel.__version__), encoding="utf-8")
    return folder
