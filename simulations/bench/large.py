"""One round of a population of any size, out of core: does it run, for how long, and in how much memory?"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from flwr.serverapp import Grid

from fl_peel.data.population import Population
from fl_peel.errors import EngineError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.scenario.scenario import Scenario
from simulations.bench.bench_context import BenchPlan, make_context, population_scenario
from simulations.engine.engine import simulated
from simulations.engine.folders import run_folder
from simulations.engine.inputs import POPULATION_RESULTS, check_out, given_folder
from simulations.engine.memory import PeakMemory
from simulations.report.result_files import json_bytes, write_results
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths

DEVICES_PER_GROUP = 62_500
"""Devices per user group, as for a million in 16 groups: what a node holds at a time is of one group, whatever the
population.
"""
BASE_BYTES, DEVICE_BYTES, DISK_BYTES = 3 << 30, 550, 1700
"""Memory that must be free, besides and for each device; disk for each device. With less, Ray would end workers, of
other runs too."""


@dataclass
class _Clock:
    """Seconds between two looks."""

    before: float

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self.before = now - self.before, now
        return passed


def large(size: int, out: str | Path | None = None, *, on_event: OnEvent = silent) -> dict[str, Any]:
    """Write a population, have it join, and run one round; population.json goes to ``out`` if given.

    Raises:
        EngineError: memory or disk is short, or the engine failed.
        FlPeelError: ``out`` cannot be written.
    """
    out = given_folder(out)
    if out is not None:
        check_out(out, writes=POPULATION_RESULTS)
    _require_room(size)
    groups = max(1, round(size / DEVICES_PER_GROUP))
    plan = BenchPlan(user_groups=groups, rounds=1, sizes=())
    clock = _Clock(time.perf_counter())
    with run_folder() as folder, PeakMemory() as memory:
        scenario = population_scenario(plan, folder, Population(0, size, plan.num_items, groups))
        stages = {"write_population": clock.lap()}
        on_event(Event("bench", 1, 3, f"{size:,} devices written"))
        paths = RunPaths("", str(folder / "run"))
        round_s, devices = simulated(scenario, paths, on_event, server=partial(_round, clock, stages))
    figures = {
        "devices": devices,
        "items": plan.num_items,
        "user_groups": groups,
        "seconds": sum(stages[name] for name in ("write_population", "join", "round")),
        "round_seconds": round_s,
        "devices_per_second": devices / round_s,
        "peak_rss_bytes": memory.peak_bytes,
        "stages": stages,
        "environment": {"cpus": psutil.cpu_count(), "load_average_after": psutil.getloadavg()[0]},
    }
    if out is not None:
        write_results(out, {"population.json": json_bytes(figures)})
    return figures


def _round(
    clock: _Clock, stages: dict[str, float], grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent
) -> tuple[float, int]:
    stages["engine"] = clock.lap()
    strategy = make_context(Run.connect(grid, scenario, paths, on_event)).strategy()
    stages["join"] = clock.lap()
    on_event(Event("bench", 2, 3, f"{len(strategy.members.devices):,} devices joined"))
    strategy.run_whole(grid, 1)
    stages["round"] = clock.lap()
    (record,) = strategy.rounds
    on_event(Event("bench", 3, 3, f"{record.devices / record.seconds:,.0f} devices/s"))
    return record.seconds, record.devices


def _require_room(size: int) -> None:
    """Refuse to start what memory or the temporary folder cannot hold.

    Raises:
        EngineError: naming what is needed and what is there.
    """
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(tempfile.gettempdir()).free
    for what, needed, free, remedy in (
        ("memory", BASE_BYTES + DEVICE_BYTES * size, memory, "stop other programs, or make the population smaller"),
        (f"disk in {tempfile.gettempdir()}", DISK_BYTES * size, disk, "set TMPDIR to where there is more"),
    ):
        if free < needed:
            raise EngineError(
                f"bench: {size:,} devices take up to {needed / 1e9:.1f} GB of {what}, and {free / 1e9:.1f} GB are "
                f"free; {remedy}"
            )
