"""How a round grows: seconds, processor seconds and peak memory against devices, items, user groups, columns, rounds
and nodes, one after the other, the others as in a middle point.

Each point is a population of its own on an engine of its own, so that nothing is left of another one. Points that are
done are kept by what decides them, code and versions included. An exponent is the slope of a straight line through
logarithms, by least squares: it is of the range that was measured, and of no other. What every point takes (Flower's
polling, an interpreter for each node) makes it smaller than what it will be for larger sizes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from flwr.serverapp import Grid
from rich.console import Console

from fl_peel.data.population import Population
from fl_peel.events import Event, OnEvent, silent
from fl_peel.package_check import code_digest, own_root
from fl_peel.scenario.scenario import Scenario
from simulations.bench.bench_context import make_context
from simulations.bench.plan import BenchPlan, population_scenario
from simulations.engine.engine import simulated
from simulations.engine.folders import run_folder
from simulations.engine.inputs import GROWTH_RESULTS, check_out, given_folder
from simulations.engine.memory import PeakMemory
from simulations.engine.versions import versions
from simulations.report.result_files import json_bytes, write_files, write_results
from simulations.report.table_view import TableView, format_bytes
from strategies.nodes.nodes import Nodes
from strategies.run.run_paths import RunPaths

KEPT = "checkpoints"
"""Folder of finished points, in that of the results."""
FIGURES = ("seconds", "cpu_seconds", "peak_rss_bytes")
PLANTED_GROUPS = 4
"""Number of groups of taste in every population: the data stays the same when the number of user groups changes."""


@dataclass(frozen=True)
class Point:
    """The sizes of a round. columns: columns of the item tables; rounds: rounds that are counted, after one that is
    not.
    """

    devices: int = 16_000
    items: int = 8_000
    groups: int = 8
    columns: int = 32
    rounds: int = 2
    nodes: int = 2


Sizes = Mapping[str, Sequence[int]]
SIZES: Sizes = {
    "devices": (4_000, 16_000, 64_000, 128_000),
    "items": (2_000, 8_000, 32_000, 64_000),
    "groups": (2, 8, 32, 64),
    "columns": (16, 32, 64, 128),
    "rounds": (2, 4, 8, 16),
    "nodes": (1, 2, 4, 8),
}
"""Sizes measured along every axis; the other axes are at the middle point."""


@dataclass(frozen=True)
class GrowthPlan:
    """The plan of what is measured: ``sizes`` by axis, around ``middle``."""

    middle: Point = field(default_factory=Point)
    sizes: Sizes = field(default_factory=lambda: SIZES)

    def points(self, axis: str) -> list[Point]:
        """Return the points of an axis, smallest first."""
        return [replace(self.middle, **{axis: size}) for size in sorted(self.sizes[axis])]


@dataclass(frozen=True)
class Fit:
    """``factor * size ** exponent``, of sizes from ``low`` to ``high``; largest_ratio: by which a measured figure is
    above or below the line at most.
    """

    exponent: float
    factor: float
    low: float
    high: float
    largest_ratio: float

    @staticmethod
    def from_figures(sizes: Sequence[float], figures: Sequence[float]) -> Fit:
        """Through figures at two sizes at least, all above nought, by least squares on logarithms."""
        x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(figures, np.float64))
        centred = x - x.mean()
        exponent = float((centred * y).sum() / (centred**2).sum())
        level = float(y.mean() - exponent * x.mean())
        off = float(np.abs(y - (level + exponent * x)).max())
        return Fit(exponent, float(np.exp(level)), float(min(sizes)), float(max(sizes)), float(np.exp(off)))


def growth(
    out: str | Path | None = None,
    *,
    plan: GrowthPlan | None = None,
    on_event: OnEvent = silent,
    fresh: bool = False,
) -> dict[str, Any]:
    """Measure every point, and write growth.json and growth.txt to ``out`` if given, where points that are done are
    kept. fresh: none that was kept before is read.

    Raises:
        FlPeelError: ``out`` cannot be written, or a failed engine.
    """
    plan, out = plan or GrowthPlan(), given_folder(out)
    if out is not None:
        check_out(out, writes=GROWTH_RESULTS)
    figures: dict[str, Any] = {
        "environment": {"cpus": psutil.cpu_count(), "load_average_before": psutil.getloadavg()[0]},
        "middle": asdict(plan.middle),
        "axes": {},
    }
    known: dict[Point, dict[str, float]] = {}
    total = sum(map(len, plan.sizes.values()))
    done = 0
    for axis in plan.sizes:
        for point in plan.points(axis):
            if point not in known:
                known[point] = measured(point) if out is None else _read_or_measure(out / KEPT, point, fresh=fresh)
            done += 1
            size = getattr(point, axis)
            on_event(Event("growth", done, total, f"{axis} {size:,}: {known[point]['seconds']:.2f} s"))
        figures["axes"][axis] = axis_figures(axis, [(point, known[point]) for point in plan.points(axis)])
    if out is not None:
        write_results(out, {"growth.json": json_bytes(figures), "growth.txt": growth_text(figures).encode()})
    return figures


def _read_or_measure(folder: Path, point: Point, *, fresh: bool) -> dict[str, float]:
    """Return the figures of a point, as measured before, or measure them now."""
    content = json.dumps([asdict(point), versions(), psutil.cpu_count(), code_digest(own_root())], sort_keys=True)
    name = f"growth-{hashlib.blake2b(content.encode(), digest_size=10).hexdigest()}.json"
    try:
        if not fresh:
            return {key: float(value) for key, value in json.loads((folder / name).read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # none was measured, or its file is damaged
    figures = measured(point)
    write_files(folder, {name: json_bytes(figures)})
    return figures


def axis_figures(axis: str, points: Sequence[tuple[Point, Mapping[str, float]]]) -> dict[str, Any]:
    """Rows of an axis, and the line through each figure. Of rounds the seconds of all count, else those of the best."""
    rows = []
    for point, figures in points:
        each = {name: figures[name if axis != "rounds" or name == FIGURES[-1] else f"all_{name}"] for name in FIGURES}
        rows.append({axis: getattr(point, axis), **each})
    sizes = [row[axis] for row in rows]
    fits = (
        {name: asdict(Fit.from_figures(sizes, [row[name] for row in rows])) for name in FIGURES}
        if len(rows) > 1
        else {}
    )
    return {"rows": rows, "fits": fits}


def measured(point: Point) -> dict[str, float]:
    """Seconds and processor seconds of the best round and of all that count; peak memory of all processes, from when
    devices join on.
    """
    plan = BenchPlan(
        embedding_dim=point.columns, user_groups=point.groups, rounds=point.rounds, nodes=point.nodes, sizes=()
    )
    with run_folder() as folder:
        scenario = population_scenario(plan, folder, Population(0, point.devices, point.items, PLANTED_GROUPS))
        paths = RunPaths("", str(folder / "run"))
        return simulated(scenario, paths, silent, server=partial(_rounds, point))


def _rounds(point: Point, grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent) -> dict[str, float]:
    nodes = Nodes.connect(grid, scenario.to_json(), root=str(own_root()), timeout_s=scenario.engine.reply_timeout_s)
    with PeakMemory() as memory:
        strategy = make_context(scenario, paths, nodes, on_event).strategy()
        cpu = [0.0]
        strategy.after_round = lambda server_round: cpu.append(processor_seconds())
        strategy.run_whole(grid, point.rounds + 1)
    seconds = [record.seconds for record in strategy.rounds][1:]
    used = np.diff(cpu[1:])
    return {
        "seconds": min(seconds),
        "cpu_seconds": float(used.min()),
        "all_seconds": sum(seconds),
        "all_cpu_seconds": float(used.sum()),
        "peak_rss_bytes": float(memory.peak_bytes),
    }


def processor_seconds() -> float:
    """Return the processor seconds of this process and its children so far."""
    me, total = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def growth_views(figures: Mapping[str, Any]) -> list[TableView]:
    """A table an axis."""
    return [_view(axis, part, figures["middle"]) for axis, part in figures["axes"].items()]


def _view(axis: str, part: Mapping[str, Any], middle: Mapping[str, int]) -> TableView:
    formats: tuple[Callable[[float], str], ...] = ("{:.2f}".format, "{:.2f}".format, format_bytes)
    rows = [
        (f"{row[axis]:,}", *(show(row[name]) for show, name in zip(formats, FIGURES, strict=True)))
        for row in part["rows"]
    ]
    if part["fits"]:
        rows.append(("exponent", *(f"{part['fits'][name]['exponent']:.2f}" for name in FIGURES)))
    others = ", ".join(f"{value:,} {key}" for key, value in middle.items() if key != axis)
    what = "all rounds" if axis == "rounds" else "a round"
    return TableView(
        f"Growth with {axis}",
        (axis, f"seconds of {what}", "of processors", "peak memory"),
        tuple(rows),
        1,
        f"Of {others}. The exponent is of this range.",
    )


def growth_text(figures: Mapping[str, Any]) -> str:
    """Return all tables, as the terminal has them."""
    text = io.StringIO()
    console = Console(file=text, width=100, highlight=False)
    for view in growth_views(figures):
        console.print(view.to_rich())
    return text.getvalue()


__all__ = ["Fit", "GrowthPlan", "Point", "axis_figures", "growth", "growth_text", "growth_views", "measured"]
