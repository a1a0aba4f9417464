"""`fl-peel bench`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from simulations.cli.console import DataDir, path_option, print_json


def bench(
    data_dir: DataDir = None,
    out: Annotated[Path | None, path_option("--out", "Output folder for bench.json or population.json.")] = None,
    device: Annotated[
        str, typer.Option("--device", help="Device on which cohorts train: cpu, cuda, cuda:N, torch-cpu.")
    ] = "cpu",
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Leave out synthetic populations, time fewer rounds: 90 s."),
    ] = False,
    stock_devices: Annotated[
        int, typer.Option("--stock-devices", min=1, help="Number of nodes of the stock Flower app.")
    ] = 1000,
    pfl_python: Annotated[
        Path | None, typer.Option("--pfl-python", help="Python with pfl and torch, to measure pfl too.")
    ] = None,
    population: Annotated[
        int | None,
        typer.Option(
            "--population", min=100, max=100_000_000, help="Measure instead one round of this many synthetic devices."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (always; accepted for consistency).")] = False,
) -> None:
    """Measure the engine on Gowalla against a plain Flower app, and up to a million devices; print bench.json."""
    from simulations.cli.console import shown

    if population is not None:
        from simulations.bench.bench import large

        with shown(Console(stderr=True, highlight=False), quiet=quiet) as on_event:
            figures = large(population, out, on_event=on_event)
        print_json(figures)
        return
    from simulations.bench.bench import bench as measure
    from simulations.bench.bench_context import BenchPlan

    plan = BenchPlan(device=device, stock_devices=stock_devices)
    folder = data_dir or os.environ.get("FL_PEEL_DATA", "")
    with shown(Console(stderr=True, highlight=False), quiet=quiet) as on_event:
        figures = measure(
            folder and Path(folder).absolute(),
            out,
            plan.quick() if quick else plan,
            pfl_python=pfl_python,
            on_event=on_event,
        )
    print_json(figures)
