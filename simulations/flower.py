"""The ServerApp of `flwr run .`: the same run as `fl-peel run`, on nodes that Flower started.

Run config (flat, as Flower has it): scenario, num-server-rounds and other plain keys (-1 or "": the scenario's own),
seed, data-dir, out, set (overrides of any key, separated by semicolons). Paths are absolute: the working directory is
wherever the SuperLink was started. The number of nodes and their processors are Flower's to say
(`--federation-config`), not the scenario's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl_peel.errors import ScenarioError
from fl_peel.packages import check_one_root
from fl_peel.scenario.scenario import Scenario
from simulations.cli.console import ProgressLines, print_parts
from simulations.engine.inputs import checked, default_cache_dir, require_absolute
from simulations.engine.passing_grid import deployment_grid
from simulations.result_pages import result_kind
from simulations.runner import run
from simulations.scenario_files import RunOptions, load_scenario
from strategies.figures.schema import RunResult

PLAIN_KEYS = {
    "num-server-rounds": "refinement.rounds",
    "local-epochs": "refinement.local.epochs",
    "learning-rate": "refinement.local.learning_rate",
    "fleet": "fleet",
    "selector": "selector",
}
"""Keys of the run config that stand for a key of the scenario."""

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the run config names; whatever fails fails the run, with its one line.

    Raises:
        FlPeelError: as for :func:`simulations.runner.run`.
    """
    config = context.run_config
    scenario, data_dir, out = read_config(config)
    options = RunOptions(
        out=out,
        data_dir=data_dir,
        cache_dir=default_cache_dir(),
        on_event=ProgressLines(lambda line: print(line, flush=True)),
        command=command(config),
        grid=deployment_grid(grid, scenario.engine.patience_s),
    )
    result = run(scenario, options)
    kind = result_kind("report" if isinstance(result, RunResult) else "timeline")
    print_parts(kind.page(result).terminal())


def read_config(config: Mapping[str, object]) -> tuple[Scenario, str, Path | None]:
    """Scenario, data folder ("" for the default places) and output folder of a run config.

    Raises:
        FlPeelError: a mistake in it, named by its key.
    """
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < -1:
        raise ScenarioError(f"seed: {seed!r} is not a seed; give 0, 1, 2, ... or -1 for the scenario's own")
    overrides = [override.strip() for override in str(config["set"]).split(";") if override.strip()]
    given = {key: config[key] for key in PLAIN_KEYS if config.get(key, "") not in ("", -1)}
    overrides += [f"{PLAIN_KEYS[key]}={value}" for key, value in given.items()]
    scenario = load_scenario(str(config["scenario"]), overrides, seed=None if seed == -1 else seed)
    data_dir, out = str(config["data-dir"]), str(config["out"])
    require_absolute(scenario, {"data-dir": data_dir, "out": out})
    check_one_root(Path.cwd())  # in which the workers of `flwr run` look first
    scenario = checked(scenario, Path(out).expanduser() if out else None, place="out")
    folder = os.path.expanduser(data_dir) if data_dir else os.environ.get("FL_PEEL_DATA", "")
    return scenario, folder, Path(out).expanduser() if out else None


def command(config: Mapping[str, object]) -> str:
    """Return the command that makes the same report again, but for the output folder."""
    keys = ("scenario", *PLAIN_KEYS, "seed", "set", "data-dir")
    given = {key: config[key] for key in keys if config.get(key, "") not in ("", -1)}
    words = " ".join(
        f"{key}={value}" if isinstance(value, int | float) else f"{key}='{value}'" for key, value in given.items()
    )
    return f'flwr run . --stream --run-config "{words}"'
