"""`fl-peel sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_peel.errors import ScenarioError
from simulations.cli.console import (
    AsJson,
    DataDir,
    NoCache,
    Quiet,
    Track,
    Wide,
    command_line,
    path_option,
    print_lines,
    show,
)
from simulations.sweep.space import TRIALS, settings_of
from simulations.trackers.registry import trackers


def sweep(
    scenario: Annotated[str, typer.Argument(help="Name of a shipped scenario, or a YAML file.")] = "ml-100k",
    asked: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUES", help="Values of a key, e.g. refinement.rounds=1,5; repeatable."),
    ] = None,
    searched: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="PATH=LOW..HIGH",
            help="Search this range for the best value on validation, optionally with (log) or (step N); or "
            "PATH=VALUES.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help=f"Number of settings that a search evaluates.  [default: {TRIALS}]"),
    ] = None,
    out: Annotated[Path, path_option("--out", "Output folder, with a folder for each setting.")] = Path("sweep"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds for every setting.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="First seed, in place of the scenario's.")] = None,
    data_dir: DataDir = None,
    no_cache: NoCache = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all settings again, finished ones too.")] = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Run a scenario under every combination of settings, or search for the best: one table, one plot.

    The same command again resumes a stopped sweep; with further values, it runs the new settings.
    """
    # before the heavy imports
    if searched:
        from simulations.sweep.search import optuna
        from simulations.sweep.space import space_of

        space_of(searched, asked or [])
        optuna()
    else:
        settings_of(asked or [])
    if trials is not None and not searched:
        raise ScenarioError("--trials: needs a search; give --search PATH=LOW..HIGH, or leave it out")
    callbacks = trackers(track or [])

    from fl_peel.json_codec import to_plain
    from simulations.engine.folders import default_cache_dir
    from simulations.sweep.sweep import sweep as swept
    from simulations.sweep.sweep_page import PAGE, sweep_views

    options = {"--set": asked, "--search": searched, "--trials": trials, "--seeds": seeds, "--seed": seed}
    result = swept(
        scenario,
        asked or [],
        out=out,
        seeds=seeds,
        seed=seed,
        data_dir=data_dir,
        cache_dir=None if no_cache else default_cache_dir(),
        on_event=print_lines(quiet, lambda event: event.done >= event.total or event.stage in ("sweep", "search")),
        callbacks=callbacks,
        command=command_line(["sweep", scenario], options | {"--data-dir": data_dir}),
        fresh=fresh,
        searched=searched or [],
        trials=trials or TRIALS,
    )
    show(
        lambda: to_plain(result),
        lambda: sweep_views(result),
        out / PAGE,
        quiet=quiet,
        as_json=as_json,
        wide=wide,
    )
