"""The commands about many runs: `fl-peel compare`, `ablate`, `audit`, `reproduce`, `sweep`, `diff` and `bench`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.console import Console

from fl_peel.errors import ScenarioError
from simulations.cli.console import (
    AsJson,
    DataDir,
    NoCache,
    Overrides,
    Quiet,
    ScenarioName,
    Track,
    Wide,
    path_option,
    print_json,
    print_lines,
    print_parts,
    read_budgets,
    show,
    shown,
    typed_command,
)
from simulations.cli.run import print_estimate
from simulations.sweep_space import TRIALS, settings_of, space_of
from simulations.trackers import tracker_kinds

if TYPE_CHECKING:
    from fl_peel.scenario.scenario import Scenario

Out = Annotated[Path, path_option("--out", "Output folder, also for checkpoints to resume from.")]
Budgets = Annotated[
    str,
    typer.Option(
        "--budgets",
        metavar="BUDGETS",
        help="Memory budgets, in bytes or as shares of the fp32 full item table, e.g. 430B,1KB,1%.",
    ),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds, from the scenario's on.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start from scratch, ignoring the checkpoints in --out.")]


def compare(
    scenario: ScenarioName = "ml-100k",
    out: Out = Path("compare"),
    budgets: Budgets = "0.1%,0.25%,0.5%,1%,2.5%,5%,10%",
    single_budgets: Annotated[
        str | None,
        typer.Option(
            "--single-budgets", metavar="SHARES", help="Budgets for which PEEL is also trained with that budget alone."
        ),
    ] = None,
    rivals: Annotated[
        str | None,
        typer.Option("--rivals", metavar="NAMES", help="Restrict other methods and upper bounds to these."),
    ] = None,
    seeds: Seeds = 1,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Compare PEEL with other methods under memory budgets: one table, one plot.

    A fully federated scenario is compared with federated methods.
    """
    from simulations.scenario_files import load_scenario

    loaded = load_scenario(scenario, overrides or [])
    whole = _full_table_bytes(loaded, data_dir)
    shares = read_budgets(budgets, full_table_bytes=whole)
    single = None if single_budgets is None else read_budgets(single_budgets, "--single-budgets", whole)

    from simulations.studies.compare import compare as compared
    from simulations.studies.compare import compare_federated, nothing_is_collected, some, some_federated

    federated, names = nothing_is_collected(loaded), _words(rivals, ",")
    chosen = {} if names is None else (some_federated if federated else some)(names)
    if federated:
        if single is not None:
            raise ScenarioError(
                "--single-budgets: is for scenarios in which the server collects interactions; leave it out"
            )
        _show_study(loaded, partial(compare_federated, loaded, shares, seeds=seeds, **chosen))
        return
    _show_study(loaded, partial(compared, loaded, shares, seeds=seeds, single_budgets=single, **chosen))


def ablate(
    scenario: ScenarioName = "ml-100k",
    out: Out = Path("ablate"),
    budgets: Budgets = "0.25%,1%,5%",
    parts: Annotated[
        str | None,
        typer.Option("--parts", metavar="NAMES", help="Restrict the ablation to these parts, e.g. slices,grouping."),
    ] = None,
    seeds: Seeds = 1,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Ablate the method: leave out or change one part at a time; one table, one plot."""
    from simulations.scenario_files import load_scenario

    loaded = load_scenario(scenario, overrides or [])
    shares = read_budgets(budgets, full_table_bytes=_full_table_bytes(loaded, data_dir))

    from simulations.studies.ablate import ablate as ablated

    _show_study(loaded, partial(ablated, loaded, shares, seeds=seeds, parts=_words(parts, ",")))


def audit(
    scenario: ScenarioName = "ml-100k",
    out: Out = Path("audit"),
    devices: Annotated[
        int,
        typer.Option(
            "--devices", min=8, help="Number of devices that are attacked; a quarter of them are accomplices."
        ),
    ] = 400,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Number of rounds observed, from the first on.")] = 8,
    budget: Annotated[
        str, typer.Option("--budget", metavar="SHARE", help="Budget at which recall is measured.")
    ] = "1%",
    epsilons: Annotated[
        str, typer.Option("--epsilons", metavar="LIST", help="Epsilons of the rows with central DP.")
    ] = "1,2,4,8",
    clip_norm: Annotated[
        float, typer.Option("--clip-norm", help="Clipping bound of a device's update, if the scenario has none.")
    ] = 1.0,
    attacks: Annotated[
        str | None, typer.Option("--attacks", metavar="NAMES", help="Restrict the audit to these attacks.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="ROWS", help="Restrict the audit to these rows, e.g. 'none; clipping'."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--row", metavar="NAME:PATH=VALUE,...", help="Additional row with these overrides; repeatable."),
    ] = None,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Audit privacy: attack what devices send under every mechanism; one table, one plot."""
    from simulations.scenario_files import load_scenario

    shares = read_budgets(budget, "--budget")
    try:
        wanted = tuple(float(word) for word in epsilons.split(",") if word.strip())
    except ValueError as error:
        raise ScenarioError(f"--epsilons {epsilons}: not a list of numbers; write e.g. 1,2,4,8") from error
    loaded = load_scenario(scenario, overrides or [])

    from simulations.studies import audit as auditing

    names = (_words(attacks, ","), _words(only, ";"))
    settings = auditing.AuditSettings(devices, rounds, shares[0], clip_norm, wanted, *names)
    _show_study(loaded, partial(auditing.audit, loaded, settings=settings, rows=rows or []))


def reproduce(
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Run this experiment; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Run only what takes minutes: ML-100K.")] = False,
    out: Out = Path("reproduce"),
    data_dir: DataDir = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Measure again what README and docs claim, and say which figures hold.

    Exit code 1: some figure differs, or could not be measured. Finished experiments are not run again.
    """
    from simulations.report.result_files import write_files
    from simulations.report.table_view import TableView
    from simulations.studies import reproduce as claims

    experiments = claims.chosen(claims.read_claims(), only or [], quick=quick)
    rows = list(claims.reproduce(experiments, out, data_dir=data_dir, on_event=print_lines(quiet), fresh=fresh))
    write_files(out, {claims.TABLE_FILE: claims.markdown(rows).encode()})
    view = TableView("Claims", tuple(claims.COLUMNS), tuple(tuple(claims.cells(row)) for row in rows), 2)
    show(lambda: rows, lambda: [view], out / claims.TABLE_FILE)
    failed = sum(not row.holds for row in rows)
    typer.echo(f"{len(rows) - failed} of {len(rows)} figures hold", err=as_json)
    if failed:
        raise typer.Exit(1)


def _words(text: str | None, separator: str) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(separator) if word.strip())


def _full_table_bytes(scenario: Scenario, data_dir: Path | None) -> Callable[[], int]:
    """Return the function that reads the data for the size of its full table."""

    def num_bytes() -> int:
        from fl_peel.device_storage import load_interactions

        items = load_interactions(scenario, "" if data_dir is None else str(data_dir)).num_items
        return 4 * items * scenario.pretraining.embedding_dim

    return num_bytes


def _show_study(scenario: Scenario, study: Callable[..., dict[str, Any]]) -> None:
    """Tell how long the command's study may take, do it, and show what it came to. study: is given a study's arguments,
    which follow from the command's options.
    """
    from simulations.engine.inputs import default_cache_dir
    from simulations.result_pages import result_kind

    context = click.get_current_context()
    asked, name = context.params, str(context.info_name)
    if not asked["quiet"]:
        print_estimate(name, scenario, asked["data_dir"], asked["out"], asked.get("seeds", 1))
    result = study(
        out=asked["out"],
        data_dir=asked["data_dir"],
        cache_dir=default_cache_dir(),
        on_event=print_lines(asked["quiet"]),
        command=typed_command(),
        fresh=asked["fresh"],
    )
    kind = result_kind(name)
    show(lambda: result, lambda: kind.page(kind.read(result, name)).terminal(), asked["out"] / f"{name}.html")


def diff(
    runs: Annotated[
        list[Path], typer.Argument(metavar="A B [C ...]", help="Output folders of `fl-peel run`; A is the reference.")
    ],
    json_file: Annotated[Path | None, path_option("--json-file", "JSON file for the figures.", "FILE")] = None,
    html_file: Annotated[Path | None, path_option("--html", "HTML file for a page.", "FILE")] = None,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Compare runs: paired differences and ratios with intervals, and corrected p-values.

    Runs need `--per-device` or `--seeds`, and the same data and split.
    """
    from simulations.engine.inputs import check_file

    for option, file in (("--json-file", json_file), ("--html", html_file)):
        if file is not None:
            check_file(file, option)

    from fl_peel.json_codec import to_plain
    from simulations.report.diff import diff as compared
    from simulations.report.diff import diff_page, missing_note
    from simulations.report.result_files import json_bytes, write_files
    from simulations.resumable import versions

    result = compared(runs)
    page = diff_page(result, versions())
    if as_json:
        print_json(result)
    else:
        print_parts(page.terminal(), wide=wide)
    if missing_note(result):
        typer.echo(missing_note(result), err=as_json)
    if json_file is not None:
        write_files(json_file.absolute().parent, {json_file.name: json_bytes(to_plain(result))})
    if html_file is not None:
        write_files(html_file.absolute().parent, {html_file.name: page.html().encode()})
        typer.echo(f"page: {html_file}", err=as_json)


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
        space_of(searched, asked or [])
    else:
        settings_of(asked or [])
    if trials is not None and not searched:
        raise ScenarioError("--trials: needs a search; give --search PATH=LOW..HIGH, or leave it out")
    callbacks = [kind(place) for kind, place in tracker_kinds(track or [])]

    from fl_peel.json_codec import to_plain
    from simulations.engine.inputs import default_cache_dir
    from simulations.sweep import sweep as swept
    from simulations.sweep import sweep_page

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
        command=typed_command(),
        fresh=fresh,
        searched=searched or [],
        trials=trials or TRIALS,
    )
    show(lambda: to_plain(result), lambda: sweep_page(result).terminal(), out / "sweep.html")


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
    if population is not None:
        from simulations.bench.bench import large

        with shown(Console(stderr=True, highlight=False), quiet=quiet) as on_event:
            figures = large(population, out, on_event=on_event)
        print_json(figures)
        return
    from simulations.bench.bench import BenchPlan
    from simulations.bench.bench import bench as measure

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
