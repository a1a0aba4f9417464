"""What the command line prints: tables, errors, and lines of progress."""

from __future__ import annotations

import json
import logging
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from click.core import ParameterSource
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fl_peel.errors import BudgetError, FlPeelError, ReportError, shortened
from fl_peel.events import Event, OnEvent, silent
from fl_peel.json_codec import to_plain

if TYPE_CHECKING:
    from simulations.report.table_view import TableView

STAGES = ("start", "data", "pretraining", "grouping", "joining", "refinement", "evaluation", "model", "heterogeneity")
"""In the order in which they run."""

MAX_LINES = {"pretraining": 5}
"""Lines that a stage is told in, at most; 20 for any other."""


@contextmanager
def shown(console: Console, *, quiet: bool = False) -> Iterator[OnEvent]:
    """Show the events that the given function is told, as bars on a terminal, as lines elsewhere."""
    if quiet:
        yield silent
        return
    handler = RichHandler(console=console, show_path=False, show_time=False)
    logger = logging.getLogger("fl_peel")
    logger.addHandler(handler)
    try:
        if console.is_terminal:
            yield from _bars(console)
        else:
            yield ProgressLines(lambda line: console.print(Text(line), soft_wrap=True))
    finally:
        logger.removeHandler(handler)


class ProgressLines:
    """A line for each step of a stage with few steps, a few lines for a stage with many."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._start = clock()
        self._ended: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Tell a step, unless its stage has been told to the end."""
        last = event.done >= event.total
        every = max(1, -(-event.total // MAX_LINES.get(event.stage, 20)))
        if event.stage in self._ended or not (last or event.done % every == 0):
            return
        if last:
            self._ended.add(event.stage)
        steps = f" {event.done}/{event.total}" if event.total > 1 else ""
        text = f": {event.text}" if event.text else ""
        self._write(f"[{self._clock() - self._start:6.1f} s] {event.stage}{steps}{text}")


def _bars(console: Console) -> Iterator[OnEvent]:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[steps]:>9}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def begin(stage: str) -> TaskID:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=None, steps="", text="")
            return tasks[stage]

        def tell(event: Event) -> None:
            steps = f"{event.done}/{event.total}" if event.total > 1 else ""
            task = begin(event.stage)
            progress.update(task, total=event.total, completed=event.done, steps=steps)
            if event.text:
                progress.update(task, text=event.text)
            if event.done >= event.total:
                progress.stop_task(task)
                following = STAGES[STAGES.index(event.stage) + 1 :] if event.stage in STAGES else ()
                if following:
                    begin(following[0])

        begin(STAGES[0])
        yield tell


# ---- `fl-peel run --live`: progress on the terminal, and on a page of loopback as well


@contextmanager
def shown_at(console: Console, *, port: int | None, title: str, quiet: bool = False) -> Iterator[OnEvent]:
    """As :func:`shown`; with a port, events are told to a page there, too.

    Raises:
        ReportError: the port is taken.
    """
    if port is None:
        with shown(console, quiet=quiet) as on_event:
            yield on_event
        return
    from simulations.live import live

    with live(port, title) as (address, events):
        console.print(Text(f"live: {address}"), soft_wrap=True)
        with shown(console, quiet=quiet) as on_event:

            def tell(event: Event) -> None:
                events(event)
                on_event(event)

            yield tell


LINE = 80
"""Characters of a line of text."""

# ---- Bytes as they are typed on the command line

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
"""1 KB is 1000 bytes, as in all tables of a run; 1 KiB is 1024."""
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-z]*)")


def read_size(text: str, place: str = "--budget") -> int:
    """``100KB``, ``1.5 MB``, ``64KiB`` or ``4096`` in bytes, rounded down.

    Raises:
        BudgetError: it is none of these.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or match[2] not in UNITS:
        raise BudgetError(f"{place}: {shortened(repr(text), 40)} is not a number of bytes; write e.g. 100KB or 4096")
    return int(float(match[1]) * UNITS[match[2]])


# ---- Budgets as they are typed on the command line: shares of the full table, or bytes


def read_budgets(
    text: str, option: str = "--budgets", full_table_bytes: Callable[[], int] | None = None
) -> tuple[float, ...]:
    """``430B,1KB,0.25%,0.01`` as ascending shares. full_table_bytes: asked where a budget is in bytes; without it, none
    may be.

    Raises:
        BudgetError: not a list of bytes and of shares above 0 and at most 1.
    """
    shares = []
    for part in text.split(","):
        word = part.strip()
        in_bytes = full_table_bytes is not None and word.lower().endswith("b")
        try:
            share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1) if not in_bytes else 0.0
        except ValueError as error:
            more = "" if full_table_bytes is None else ", or bytes, e.g. 430B,1KB"
            raise BudgetError(f"{option}: {word!r} is not a share; write e.g. 0.5%,1%{more}") from error
        if in_bytes and full_table_bytes is not None:
            share = read_size(word, option) / full_table_bytes()
        if not 0 < share <= 1:
            raise BudgetError(f"{option}: {word} is not above 0 and at most 100%; write e.g. 0.5%,1%")
        shares.append(share)
    return tuple(sorted(set(shares)))


# ---- Options that commands share

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder with the data sets, by name; default: $FL_PEEL_DATA, then the cache."),
]

Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="NAME=PLACE", help="Log to a tracker: tensorboard=DIR, mlflow=DIR; repeatable."),
]


def _scenarios(incomplete: str) -> list[str]:
    from simulations.scenario_files import shipped_scenarios

    return [name for name in shipped_scenarios() if name.startswith(incomplete)]


ScenarioName = Annotated[
    str, typer.Argument(help="Name of a shipped scenario, or a YAML file.", autocompletion=_scenarios)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a key, e.g. refinement.rounds=5; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, everything else to stderr.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Pretrain again, without reading or writing the cache.")]
Wide = Annotated[bool, typer.Option("--wide", help="Print all columns of tables, however wide.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no tables.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed, in place of the scenario's.")]


NOT_OF_FIGURES = {"out", "fresh", "no_cache", "track", "live", "live_port", "quiet", "as_json", "wide"}
"""Parameters of commands that change no figure."""


def typed_command() -> str:
    """Return what to type to get the same files again, but for the folder: this command with its options."""
    context = click.get_current_context()
    words = ["fl-peel", str(context.info_name)]
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif name not in NOT_OF_FIGURES and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [parameter.opts[0], *([] if one is True else [str(one)])]
    return shlex.join(words)


def print_lines(quiet: bool, every: Callable[[Event], bool] = lambda event: True) -> OnEvent:
    """A line a step on stderr, for what has too many stages for bars. every: whether an event is a step."""
    console = Console(stderr=True, highlight=False)
    lines = ProgressLines(lambda line: console.print(Text(line), soft_wrap=True))

    def on_event(event: Event) -> None:
        if every(event):
            lines(event)

    return silent if quiet else on_event


def path_option(name: str, text: str, metavar: str = "PATH") -> Any:
    """An option that is a path; an empty one, which would mean the current folder, is refused."""

    def read(given: str) -> Path:
        if not str(given).strip():
            raise ReportError(f"{name}: is empty; give a path, or . for the current folder")
        return Path(given)

    return typer.Option(name, parser=read, metavar=metavar, help=text)


RunOut = Annotated[Path | None, path_option("--out", "Output folder for report.html, report.json, ...")]


def new_table(*columns: str) -> Table:
    """An empty table without lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_table(table: Table | TableView, *, wide: bool = False) -> None:
    """Write a table to stdout. wide: all columns of a view, whatever the terminal's width."""
    console = Console(highlight=False)
    if wide or not console.is_terminal:
        console.width = 400  # a file or a pipe has no width of its own: one row, one line
    console.print(table if isinstance(table, Table) else table.to_rich(wide=wide))


def print_json(value: Any) -> None:
    """Write one JSON document to stdout: what a command found, dataclasses included."""
    plain = to_plain(value)
    typer.echo(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False))


def print_parts(parts: Iterable[TableView | str], *, wide: bool = False) -> None:
    """Write sentences and tables to stdout."""
    for part in parts:
        if isinstance(part, str):
            typer.echo(f"{fill(part, LINE)}\n")
        else:
            print_table(part, wide=wide)


def show(figures: Callable[[], Any], parts: Callable[[], Iterable[TableView | str]], page: Path | None) -> None:
    """Print what was measured, as sentences and tables or JSON, and where the page lies, as the command's ``--json``,
    ``--quiet`` and ``--wide`` have it; make nothing else.
    """
    asked = click.get_current_context().params
    if asked["as_json"]:
        print_json(figures())
    elif not asked["quiet"]:
        print_parts(parts(), wide=asked["wide"])
    if page is not None and not asked["quiet"]:
        typer.echo(f"report: {page}", err=asked["as_json"])


def one_line(mistake: FlPeelError) -> str:
    """The message without line breaks, and without what a terminal would obey: files quoted in it may hold anything."""
    text = " ".join(str(mistake).split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
