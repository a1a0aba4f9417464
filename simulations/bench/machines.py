"""Does a seed give the same figures on any processor? The same run as several processors would do it, stage by stage.

Libraries are told to run the code of another processor, each in a process of its own with caches of its own: what a
processor computes is decided by the code that it is given. ``docs/machines.md`` says what came of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

import fl_peel
from fl_peel.cpu_dispatch import SWITCH
from fl_peel.errors import EngineError
from fl_peel.events import OnEvent, silent
from fl_peel.scenario.scenario import Scenario
from simulations.engine.engine import simulated
from simulations.engine.folders import run_folder
from simulations.engine.inputs import checked
from strategies.evaluation.evaluator import Evaluator
from strategies.figures.intervals import qualities
from strategies.figures.run_figures import evaluated
from strategies.nodes.nodes import Nodes
from strategies.run.central_stage1 import CentralStage1Outcome
from strategies.run.prepare import prepare
from strategies.run.refinement import Refiner
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.run.stage1_outcome import privacy_plan

_NATIVE = {SWITCH: "native"}
MACHINES: dict[str, dict[str, str]] = {
    "pinned": {},
    "pinned-haswell": {"NUMBA_CPU_NAME": "haswell"},
    "pinned-skylake": {"NUMBA_CPU_NAME": "skylake-avx512"},
    "pinned-one-thread": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    "native": _NATIVE,
    "native-haswell": {
        **_NATIVE,
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_CBWR": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "NUMBA_CPU_NAME": "haswell",
    },
    "native-nehalem": {
        **_NATIVE,
        "OPENBLAS_CORETYPE": "Nehalem",
        "MKL_CBWR": "COMPATIBLE",
        "ATEN_CPU_CAPABILITY": "default",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
    },
}
"""Environments by name, the first the one that others are compared with. "native": libraries choose for themselves."""
READ = ("OPENBLAS_CORETYPE", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "NPY_DISABLE_CPU_FEATURES", "NUMBA_CPU_NAME", SWITCH)
"""Variables that a machine is made of: those of the caller do not reach it."""
Stagewise = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StageDifference:
    """The difference of one stage on one machine from the first machine. digest: digest of its numbers there; largest:
    largest difference, over the largest magnitude, infinite where the two machines have different numbers of values;
    equal: whether all are the same bit by bit.
    """

    machine: str
    stage: str
    digest: str
    equal: bool
    largest: float


def stages_of(grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent = silent) -> Stagewise:
    """Run a scenario; what each stage leaves, in order."""
    stages = StageTimes()
    root = os.fspath(Path(fl_peel.__file__).resolve().parent.parent)
    nodes = Nodes.connect(grid, scenario.to_json(), root=root, timeout_s=scenario.engine.reply_timeout_s)
    plan = privacy_plan(scenario, paths)
    prepared = prepare(scenario, plan, paths, stages, nodes, on_event)
    by_stage: Stagewise = {}
    if isinstance(prepared, CentralStage1Outcome):
        by_stage["pretrained users"], by_stage["pretrained items"] = (
            prepared.pretrained.users,
            prepared.pretrained.items,
        )
        by_stage["user groups"] = prepared.groups.assignment
    refiner = Refiner(grid, paths, prepared, nodes, on_event)
    strategy = refiner.joined(scenario, plan)
    by_stage["starting tables"] = np.stack([state.table for state in strategy.states])
    by_stage["starting weights"] = np.stack(strategy.weights(scenario.selector))
    refiner.refine(strategy)
    by_stage["refined tables"] = np.stack([state.table for state in strategy.states])
    by_stage["refined weights"] = np.stack(strategy.weights(scenario.selector))
    rows = [
        one
        for asked in evaluated(Evaluator.from_strategy(strategy), on_event).budgets
        for one in qualities(asked.reply)
    ]
    by_stage["recall"] = np.array([row.recall for row in rows])
    by_stage["ndcg"] = np.array([row.ndcg for row in rows])
    return by_stage


def compared(first: Stagewise, other: Stagewise, machine: str) -> list[StageDifference]:
    """Compare every stage of the other machine with the first machine's."""
    return [_difference(machine, stage, first[stage], other[stage]) for stage in first]


def _difference(machine: str, stage: str, mine: NDArray[Any], other: NDArray[Any]) -> StageDifference:
    equal = (mine.dtype, mine.shape, mine.tobytes()) == (other.dtype, other.shape, other.tobytes())
    largest = float("inf")
    if mine.shape == other.shape:
        apart = np.abs(mine.astype(np.float64) - other.astype(np.float64)).max(initial=0.0)
        largest = float(apart / max(float(np.abs(mine).max(initial=0)), 1e-300))
    return StageDifference(machine, stage, blake2b(other.tobytes(), digest_size=4).hexdigest(), equal, largest)


def differences(
    scenario: str,
    overrides: Sequence[str] = (),
    data_dir: Path | None = None,
    machines: Mapping[str, Mapping[str, str]] = MACHINES,
) -> list[StageDifference]:
    """Run a scenario on every machine; the differences of each from the first.

    Raises:
        EngineError: a run failed.
    """
    by_machine: dict[str, Stagewise] = {}
    with tempfile.TemporaryDirectory(prefix="fl-peel-machines-") as folder:
        for number, (machine, environment) in enumerate(machines.items()):
            place = Path(folder) / str(number)
            by_machine[machine] = _alone(scenario, overrides, data_dir, environment, place)
    (first, mine), *_ = by_machine.items()
    return [one for machine, other in by_machine.items() if machine != first for one in compared(mine, other, machine)]


def _alone(
    scenario: str, overrides: Sequence[str], data_dir: Path | None, environment: Mapping[str, str], place: Path
) -> Stagewise:
    """Return what stages leave in a process of its own, with caches of its own in ``place``."""
    place.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in READ}
    caches = {"XDG_CACHE_HOME": str(place), "NUMBA_CACHE_DIR": str(place / "compiled")}
    out = place / "stages.npz"
    ran = subprocess.run(
        [sys.executable, "-m", "simulations.bench.machines", str(out), str(data_dir or ""), scenario, *overrides],
        env={**kept, **caches, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise EngineError(f"machines: a run failed: {' '.join(ran.stdout.split())[-400:]}")
    with np.load(out) as kept_stages:
        return dict(kept_stages)


def _main(out: str, data_dir: str, name: str, *overrides: str) -> None:
    from simulations.scenario_files import load_scenario

    scenario = checked(load_scenario(name, list(overrides)), None, working_dir=Path.cwd())
    with run_folder() as run_dir:
        paths = RunPaths(os.path.abspath(data_dir) if data_dir else "", str(run_dir), "")
        np.savez(out, allow_pickle=False, **simulated(scenario, paths, server=stages_of))


if __name__ == "__main__":
    _main(*sys.argv[1:])


__all__ = ["MACHINES", "StageDifference", "compared", "differences", "stages_of"]
