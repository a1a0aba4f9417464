"""`fl-peel machines`."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.cli.console import AsJson, DataDir, Overrides, ScenarioName, new_table, print_json, print_table


def machines(
    scenario: ScenarioName = "ml-100k",
    overrides: Overrides = None,
    data_dir: DataDir = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", help="Restrict the comparison to this machine and the first; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario with the code paths of several processors, and print where stages differ (docs/machines.md)."""
    from fl_peel.errors import ScenarioError
    from simulations.bench.machines import MACHINES, differences

    wanted = list(on or MACHINES)
    unknown = [name for name in wanted if name not in MACHINES]
    if unknown:
        raise ScenarioError(f"--on: unknown machine {unknown[0]!r}; choose from {', '.join(MACHINES)}")
    first = next(iter(MACHINES))
    some = {name: values for name, values in MACHINES.items() if name == first or name in wanted}
    stages = differences(scenario, overrides or [], data_dir, some)
    if as_json:
        print_json(stages)
        return
    table = new_table("machine", "stage", f"difference to {first!r}, relative to the largest number", "digest")
    for one in stages:
        table.add_row(one.machine, one.stage, "equal" if one.equal else f"{one.largest:.1e}", one.digest)
    print_table(table)


__all__ = ["machines"]
