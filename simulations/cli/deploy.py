"""`fl-peel deploy`: a scenario on Flower's deployment engine, on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.console import DataDir, path_option


def deploy(
    scenario: Annotated[str, typer.Argument(help="Name of a shipped scenario, or a YAML file.")] = "ml-100k",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Override a key, e.g. refinement.rounds=5; repeatable."),
    ] = None,
    nodes: Annotated[
        int, typer.Option("--nodes", min=1, help="Number of SuperNodes, each with a share of the devices.")
    ] = 3,
    own: Annotated[
        list[Path] | None,
        typer.Option("--own", metavar="FILE", help="Interactions of one SuperNode; repeatable; needs data.catalogue."),
    ] = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, path_option("--out", "Output folder for report.html, report.json, ...")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed, in place of the scenario's.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Use neither TLS nor SuperNode authentication.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no output of the server.")] = False,
) -> None:
    """Run a scenario on a SuperLink and SuperNodes, as local processes that end with the command."""
    from simulations.engine.inputs import checked
    from simulations.scenario_files import load_scenario

    loaded = checked(load_scenario(scenario, overrides or [], seed=seed), out)

    from simulations.deployment.local import node_configs, run_deployed
    from simulations.engine.folders import data_folder

    configs = node_configs(loaded, nodes=nodes, own=own or [])
    run_deployed(
        loaded,
        configs,
        (lambda line: None) if quiet else typer.echo,
        data_dir=data_folder(data_dir),
        out=out,
        secure=not insecure,
    )
    if out is not None and not quiet:
        typer.echo(f"report: {out / 'report.html'}")
