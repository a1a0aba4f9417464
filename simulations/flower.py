"""The ServerApp of `flwr run .`: the same run as `fl-peel run`, on nodes that Flower started.

Run config (flat, as Flower has it): scenario, seed (-1: the scenario's own), data-dir, out, set (overrides, separated
by semicolons). Paths are absolute: the working directory is wherever the SuperLink was started. The number of nodes
and their processors are Flower's to say (`--federation-config`), not the scenario's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl_peel.device_storage import device_splits, device_timeline
from fl_peel.errors import ScenarioError
from fl_peel.scenario.scenario import Scenario
from simulations.cli.console import show
from simulations.cli.progress_lines import ProgressLines
from simulations.engine.folders import default_cache_dir, run_folder
from simulations.engine.inputs import MODEL, check_run, checked, require_absolute
from simulations.engine.memory import PeakMemory
from simulations.engine.passing_grid import deployment_grid, is_simulated
from simulations.engine.versions import versions
from simulations.report.run_files import summary
from simulations.report.table_view import TableView
from simulations.resumable import resumable_folder
from simulations.runner import finished, save, with_checkpoints
from simulations.scenario_files import load_scenario
from simulations.timeline.report import timeline_summary
from simulations.timeline.run_timeline import save_timeline
from strategies.figures.schema import RunResult
from strategies.run.run_paths import RunPaths
from strategies.server_app import connected, serve
from strategies.timeline.serve import serve_timeline

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the run config names; whatever fails fails the run, with its one line.

    Raises:
        FlPeelError: as for :func:`simulations.runner.run`.
    """
    config = context.run_config
    scenario, data_dir, out = read_config(config)
    grid = deployment_grid(grid, scenario.engine.patience_s)
    with run_folder() as run_dir, PeakMemory() as memory:
        paths = RunPaths(data_dir, str(run_dir), str(default_cache_dir()))
        if scenario.data.timeline is not None:
            _timeline(grid, scenario, paths, out, command(config))
            return
        nodes = None
        if scenario.data.held_by_nodes:  # who say how many devices there are
            nodes = connected(grid, scenario, paths)
        splits = device_splits(scenario, paths.data_dir, paths.run_dir)
        check_run(scenario, splits)
        here = is_simulated(grid)  # elsewhere devices have disks of their own, which nobody copies
        with resumable_folder(out if here else None, scenario, splits) as checkpoint_dir:
            lines = ProgressLines(lambda line: print(line, flush=True))
            at = (
                with_checkpoints(paths, checkpoint_dir)
                if here or out is None
                else replace(paths, model_dir=str(run_dir / MODEL))
            )
            result = serve(grid, scenario, at, lines, nodes)
            result = _with_engine(finished(result, scenario, memory.peak_bytes, command(config)), grid)
            if out is not None:
                save(result, scenario, run_dir, out, Path(at.model_dir), splits if here else None)
    _print(summary(result))


def _print(parts: Iterable[TableView | str]) -> None:
    """Print what a run comes to."""
    show(lambda: None, lambda: parts, None, quiet=False, as_json=False, wide=False)


def _with_engine(result: RunResult, grid: Grid) -> RunResult:
    """Record that a run was on SuperNodes."""
    if is_simulated(grid) or result.environment is None:
        return result
    return replace(result, environment=replace(result.environment, engine="deployment"))


def _timeline(grid: Grid, scenario: Scenario, paths: RunPaths, out: Path | None, typed: str) -> None:
    """Replay a timeline and print it."""
    timeline = device_timeline(scenario, paths.data_dir, paths.run_dir)
    with resumable_folder(out if is_simulated(grid) else None, scenario, timeline) as checkpoint_dir:
        lines = ProgressLines(lambda line: print(line, flush=True))
        result = serve_timeline(grid, scenario, replace(paths, checkpoint_dir=checkpoint_dir), lines)
        result = replace(result, versions=versions(), command=typed)
        if out is not None:
            save_timeline(result, scenario, out)
    _print(timeline_summary(result))


def read_config(config: Mapping[str, object]) -> tuple[Scenario, str, Path | None]:
    """Scenario, data folder ("" for the default places) and output folder of a run config.

    Raises:
        FlPeelError: a mistake in it, named by its key.
    """
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < -1:
        raise ScenarioError(f"seed: {seed!r} is not a seed; give 0, 1, 2, ... or -1 for the scenario's own")
    overrides = [override.strip() for override in str(config["set"]).split(";") if override.strip()]
    scenario = load_scenario(str(config["scenario"]), overrides, seed=None if seed == -1 else seed)
    data_dir, out = str(config["data-dir"]), str(config["out"])
    require_absolute(scenario, {"data-dir": data_dir, "out": out})
    scenario = checked(scenario, Path(out).expanduser() if out else None, place="out", working_dir=Path.cwd())
    folder = os.path.expanduser(data_dir) if data_dir else os.environ.get("FL_PEEL_DATA", "")
    return scenario, folder, Path(out).expanduser() if out else None


def command(config: Mapping[str, object]) -> str:
    """Return the command that makes the same report again, but for the output folder."""
    given = {key: config[key] for key in ("scenario", "seed", "set", "data-dir") if config[key] not in ("", -1)}
    words = " ".join(f"{key}={value}" if isinstance(value, int) else f"{key}='{value}'" for key, value in given.items())
    return f'flwr run . --stream --run-config "{words}"'
