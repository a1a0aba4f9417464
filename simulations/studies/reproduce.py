"""`fl-peel reproduce`: every figure that README and docs claim, measured again by the command that stands beside it.

``simulations/claims.yaml`` holds them: a command of `fl-peel`, and under it the figures that are claimed of it, each
with its place in the table of figures that the command leaves.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from fl_peel.errors import FlPeelError, ReportError
from fl_peel.events import Event, OnEvent
from fl_peel.figures import Estimate
from fl_peel.plugins import did_you_mean
from fl_peel.problems import read_yaml_file
from fl_peel.scenario.base import Keys
from simulations.engine.inputs import data_folder
from simulations.report.table_view import format_estimate
from simulations.resumable import CHECKPOINTS, owned_store
from simulations.scenario_files import validated
from simulations.studies.study import Checkpoints, stage_key
from strategies.figures.per_device import FILE

CLAIMS_FILE = Path(__file__).parent.parent / "claims.yaml"
TABLE_FILE = "reproduce.md"


class Claim(Keys):
    """A figure that is claimed."""

    says: str
    """Sentence or row of a table that has it."""
    where: dict[str, Any]
    """Columns of the table of figures that say which row it is; null for a column that the row leaves empty."""
    value: float
    """Expected value."""
    low: float | None = None
    """Lower end of its 95 % interval, null where none is claimed."""
    high: float | None = None
    """Upper end."""
    tolerance: float = 6e-5
    """Most that a measurement may differ: by default half of the fourth digit."""


class ClaimRow(Keys):
    """A row of a table whose cells are claimed."""

    says: str
    """What the row is of."""
    where: dict[str, Any]
    """As of a claim, for all cells."""
    columns: list[str]
    """Columns of the table of figures in which cells differ."""
    cells: list[list[Any]]
    """A list a cell: what these columns have, and the expected value behind it."""

    def claims(self) -> Iterator[Claim]:
        for *places, value in self.cells:
            says = ", ".join([self.says, *map(str, places)])
            yield Claim(says=says, where=self.where | dict(zip(self.columns, places, strict=True)), value=value)


class Experiment(Keys):
    """A command, and the figures that are claimed of it."""

    name: str
    """Name for `--only`, and of its folder of results."""
    command: str
    """Words after `fl-peel`, without the folders of data and results; DATA in them stands for the former."""
    data: str
    """Data set that it reads."""
    seconds: float
    """Wall time on two idle cores of an AMD EPYC."""
    quick: bool = False
    """Whether `--quick` runs it."""
    claims: list[Claim] = Field(default_factory=list)
    """Its figures."""
    rows: list[ClaimRow] = Field(default_factory=list)
    """Rows of tables of its figures."""

    def all_claims(self) -> list[Claim]:
        """Return its figures, those of rows behind the others."""
        return [*self.claims, *(claim for row in self.rows for claim in row.claims())]


class Claims(Keys):
    """The file of claims."""

    experiments: list[Experiment]
    """All commands."""


@dataclass(frozen=True)
class Measured:
    """A claim beside what was measured. value, low, high: of this run; error: why there is no value, in one line."""

    experiment: str
    command: str
    claim: Claim
    value: float | None = None
    low: float | None = None
    high: float | None = None
    error: str = ""

    @property
    def holds(self) -> bool:
        """Return whether what was measured is what is claimed, both ends of a claimed interval included."""
        pairs = [(self.claim.value, self.value), (self.claim.low, self.low), (self.claim.high, self.high)]
        return all(want is None or (got is not None and abs(want - got) <= self.claim.tolerance) for want, got in pairs)


def read_claims(file: Path = CLAIMS_FILE) -> list[Experiment]:
    """Return all experiments.

    Raises:
        ScenarioError: a key is unknown or of the wrong type.
    """
    return validated(Claims, {"experiments": read_yaml_file(file)}, file.name).experiments


def chosen(experiments: Iterable[Experiment], names: Iterable[str], *, quick: bool) -> list[Experiment]:
    """Return the experiments of these names, or all; quick: only those that take minutes.

    Raises:
        ReportError: there is none of a name.
    """
    by_name = {one.name: one for one in experiments}
    for name in names:
        if name not in by_name:
            raise ReportError(f"--only: no experiment {name!r}; {did_you_mean(name, by_name)}")
    wanted = set(names) or set(by_name)
    return [one for one in by_name.values() if one.name in wanted and (one.quick or not quick)]


def reproduce(
    experiments: Iterable[Experiment], out: Path, *, data_dir: Path | None, on_event: OnEvent, fresh: bool
) -> Iterator[Measured]:
    """Run each experiment in a folder of ``out`` and yield its claims beside what was measured. What was measured with
    the same code before is read, unless ``fresh``.

    Raises:
        ReportError: another process works in ``out``, or it cannot be written.
    """
    with owned_store(out / CHECKPOINTS) as store:
        checkpoints = Checkpoints(store, on_event, fresh)
        for one in experiments:
            key = stage_key(one.data, one.command)
            kept = checkpoints.read({one.name: key}).get(one.name)
            if kept is None:
                start = time.monotonic()
                on_event(Event(one.name, 0, 1, f"fl-peel {one.command}, about {one.seconds:.0f} s"))
                try:
                    kept = {"figures": _run(one, out / one.name, data_dir)}
                except FlPeelError as error:
                    yield from (Measured(one.name, one.command, claim, error=str(error)) for claim in one.all_claims())
                    continue
                checkpoints.write(one.name, key, kept, time.monotonic() - start)
                on_event(Event(one.name, 1, 1, ""))
            yield from (measured(one, claim, kept["figures"]) for claim in one.all_claims())


def _run(one: Experiment, out: Path, data_dir: Path | None) -> list[dict[str, Any]]:
    """Run a command and return the rows of the table of figures that it leaves, without empty columns."""
    import pyarrow.parquet

    where = [] if data_dir is None else ["--data-dir", str(data_dir)]
    asked = [word.replace("DATA", data_folder(data_dir)) for word in shlex.split(one.command)]
    words = [sys.executable, "-m", "simulations.cli.main", *asked, "--out", str(out), *where]
    done = subprocess.run([*words, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        line = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        raise ReportError(line.removeprefix("fl-peel: error: "))
    files = [file for file in sorted(out.glob("*.parquet")) if file.name != FILE]
    if len(files) != 1:
        raise ReportError(f"{out}: {len(files)} tables of figures; give an empty --out")
    rows = pyarrow.parquet.read_table(files[0]).to_pylist()
    return [{column: cell for column, cell in row.items() if cell is not None} for row in rows]


def measured(one: Experiment, claim: Claim, rows: list[dict[str, Any]]) -> Measured:
    """Return a claim beside the row of a table of figures that it is about."""
    matching = [row for row in rows if all(row.get(column) == cell for column, cell in claim.where.items())]
    if len(matching) != 1:
        return Measured(one.name, one.command, claim, error=f"{len(matching)} figures at {claim.where}, not one")
    value, low, high = (matching[0].get(column) for column in ("value", "low", "high"))
    return Measured(one.name, one.command, claim, value, low, high)


COLUMNS = ("claim", "command", "expected", "measured", "")


def cells(row: Measured) -> tuple[str, ...]:
    """Return a row of the table: the claim, its command, what is expected and was measured, a tick or a cross."""
    expected = format_estimate(Estimate(row.claim.value, row.claim.low, row.claim.high))
    result = row.error or format_estimate(None if row.value is None else Estimate(row.value, row.low, row.high))
    return row.claim.says, f"fl-peel {row.command}", expected, result, "✓" if row.holds else "✗"


def markdown(rows: Iterable[Measured]) -> str:
    """Return the table as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|---|"]
    for says, command, *rest in map(cells, rows):
        lines.append("| " + " | ".join((says, f"`{command}`", *rest)) + " |")
    return "\n".join(lines) + "\n"
