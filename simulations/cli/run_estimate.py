"""What a run or a study will take, told before it starts: `fl-peel run --dry-run`, and a line before studies."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fl_peel.errors import FlPeelError
from fl_peel.scenario.scenario import Scenario
from simulations.cli.console import print_json, print_table

if TYPE_CHECKING:
    from simulations.estimate import RunEstimate
    from simulations.report.table_view import TableView


def show_estimate(scenario: Scenario, data_dir: Path | None, seeds: int, *, as_json: bool) -> None:
    """Print what a run would take, as a table or as JSON."""
    from simulations.estimate import estimate

    figures = estimate(scenario, data_dir)
    if as_json:
        print_json(in_json(figures, seeds))
        return
    print_table(estimate_view(figures, seeds).to_rich())


def print_estimate(
    study: str, scenario: Scenario, data_dir: Path | None, out: Path, seeds: int, *, quiet: bool
) -> None:
    """A line on stderr before a study: how long it may take. Of a mistake nothing is told here: the study tells it."""
    from simulations.engine.inputs import checked
    from simulations.estimate import STUDIES, WITHIN, estimate

    if quiet:
        return
    try:
        figures = estimate(checked(scenario, None), data_dir)
    except FlPeelError:
        return
    seconds = seeds * (figures.total_s + (STUDIES[study] - 1) * figures.study_s)
    text = f"estimate: {format_seconds(seconds)} and {_memory(figures)}, within a factor of {WITHIN:g}"
    kept = f"; rows in {out / 'checkpoints'} are not computed again" if (out / "checkpoints").is_dir() else ""
    typer.echo(text + kept, err=True)


def in_json(figures: RunEstimate, seeds: int) -> dict[str, Any]:
    """An estimate in numbers, with its sums and how far it may be off."""
    from simulations.estimate import WITHIN

    sums = {"bytes_per_device": figures.bytes_per_device, "total_bytes": figures.total_bytes}
    return {
        **asdict(figures),
        **sums,
        "seeds": seeds,
        "total_seconds": seeds * figures.total_s,
        "within_factor": WITHIN,
    }


def estimate_view(figures: RunEstimate, seeds: int) -> TableView:
    """An estimate as a table: what, how much, how it is known."""
    from simulations.estimate import WITHIN
    from simulations.report.table_view import TableView, format_bytes

    constants = f"measured constants, within a factor of {WITHIN:g}"
    parts = f"{figures.train:,} train, {figures.validation:,} validation, {figures.test:,} test interactions"
    asked = f"{figures.rounds}, with {figures.participants:,.0f} devices each"
    rows = [
        ("data", f"{figures.data}: {figures.devices:,} devices, {figures.items:,} items", "read"),
        ("", parts, "split"),
        ("full table", f"{format_bytes(figures.full_table_bytes)}, {figures.blocks:,} blocks", "exact"),
        ("user groups", f"{figures.user_groups}", "at most"),
        ("rounds", asked, "budgets and availability of the fleet"),
        ("stage 1, per device", _moved(figures.stage1_download_bytes, figures.stage1_upload_bytes), "protocol"),
        (
            "rounds, per device",
            _moved(figures.download_bytes, figures.upload_bytes),
            "protocol; up within a factor of 2",
        ),
        ("all devices", format_bytes(figures.total_bytes), "both, times the number of devices"),
        ("memory", _memory(figures), constants),
        *((f"time: {name}", format_seconds(value), constants) for name, value in figures.seconds.items()),
        ("time", format_seconds(seeds * figures.total_s), f"{seeds} seeds" if seeds > 1 else "all stages"),
    ]
    note = "; ".join(figures.notes)
    return TableView(
        f"Estimated cost of a run of {figures.scenario}", ("quantity", "estimate", "source"), tuple(rows), 3, note
    )


def _moved(download_bytes: float, upload_bytes: float) -> str:
    from simulations.report.table_view import format_bytes

    return f"{format_bytes(download_bytes)} down, {format_bytes(upload_bytes)} up"


def _memory(figures: RunEstimate) -> str:
    return f"{figures.memory_bytes / 1e9:.1f} GB of memory"


def format_seconds(seconds: float) -> str:
    """Format an estimate in seconds, with no more digits than it has."""
    if seconds < 100:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"


__all__ = ["estimate_view", "format_seconds", "in_json", "print_estimate", "show_estimate"]
