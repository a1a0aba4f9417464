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
    from simulations.report.tables.view import TableView


def show_estimate(scenario: Scenario, data_dir: Path | None, seeds: int, *, as_json: bool) -> None:
    """Print what a run would take, as a table or as JSON."""
    from simulations.estimate import estimate

    found = estimate(scenario, data_dir)
    if as_json:
        print_json(in_json(found, seeds))
        return
    print_table(estimate_view(found, seeds).to_rich())


def print_estimate(
    study: str, scenario: Scenario, data_dir: Path | None, out: Path, seeds: int, *, quiet: bool
) -> None:
    """A line on stderr before a study: how long it may take. Of a mistake nothing is told here: the study tells it."""
    from simulations.engine.inputs import checked
    from simulations.estimate import STUDIES, WITHIN, estimate

    if quiet:
        return
    try:
        found = estimate(checked(scenario, None), data_dir)
    except FlPeelError:
        return
    seconds = seeds * (found.total_s + (STUDIES[study] - 1) * found.study_s)
    text = f"estimate: {format_seconds(seconds)} and {_memory(found)}, within a factor of {WITHIN:g}"
    kept = f"; rows in {out / 'checkpoints'} are not computed again" if (out / "checkpoints").is_dir() else ""
    typer.echo(text + kept, err=True)


def in_json(found: RunEstimate, seeds: int) -> dict[str, Any]:
    """An estimate in numbers, with its sums and how far it may be off."""
    from simulations.estimate import WITHIN

    sums = {"bytes_per_device": found.bytes_per_device, "total_bytes": found.total_bytes}
    return {**asdict(found), **sums, "seeds": seeds, "total_seconds": seeds * found.total_s, "within_factor": WITHIN}


def estimate_view(found: RunEstimate, seeds: int) -> TableView:
    """An estimate as a table: what, how much, how it is known."""
    from simulations.estimate import WITHIN
    from simulations.report.tables.view import TableView, format_bytes

    constants = f"measured constants, within a factor of {WITHIN:g}"
    parts = f"{found.train:,} train, {found.validation:,} validation, {found.test:,} test interactions"
    asked = f"{found.rounds}, with {found.participants:,.0f} devices each"
    rows = [
        ("data", f"{found.data}: {found.devices:,} devices, {found.items:,} items", "read"),
        ("", parts, "split"),
        ("full table", f"{format_bytes(found.full_table_bytes)}, {found.blocks:,} blocks", "exact"),
        ("user groups", f"{found.user_groups}", "at most"),
        ("rounds", asked, "budgets and availability of the fleet"),
        ("stage 1, per device", _moved(found.stage1_download_bytes, found.stage1_upload_bytes), "protocol"),
        (
            "rounds, per device",
            _moved(found.download_bytes, found.upload_bytes),
            "protocol; up within a factor of 2",
        ),
        ("all devices", format_bytes(found.total_bytes), "both, times the number of devices"),
        ("memory", _memory(found), constants),
        *((f"time: {name}", format_seconds(value), constants) for name, value in found.seconds.items()),
        ("time", format_seconds(seeds * found.total_s), f"{seeds} seeds" if seeds > 1 else "all stages"),
    ]
    note = "; ".join(found.notes)
    return TableView(
        f"Estimated cost of a run of {found.scenario}", ("quantity", "estimate", "source"), tuple(rows), 3, note
    )


def _moved(download_bytes: float, upload_bytes: float) -> str:
    from simulations.report.tables.view import format_bytes

    return f"{format_bytes(download_bytes)} down, {format_bytes(upload_bytes)} up"


def _memory(found: RunEstimate) -> str:
    return f"{found.memory_bytes / 1e9:.1f} GB of memory"


def format_seconds(seconds: float) -> str:
    """Of an estimate: no more digits than it has."""
    if seconds < 100:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"


__all__ = ["estimate_view", "format_seconds", "in_json", "print_estimate", "show_estimate"]
