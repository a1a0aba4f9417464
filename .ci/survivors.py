"""Mutants that no test kills, each listed with a reason in ``.ci/survivors.yaml``; their counts in ``.ci/mutants.md``.

A mutant is known by its module, its function and the lines that differ, blanks squeezed: lines may move.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LISTED = ROOT / ".ci" / "survivors.yaml"
COUNTS = ROOT / ".ci" / "mutants.md"
"""The counts of each module's last run, a table in Markdown and nothing else."""
KILLED = ("killed", "segfault")
"""Of mutmut's statuses, those of mutants that a test failed on; code that ends the process was noticed, too."""
NOTICED = (*KILLED, "timeout")
TRIED = ("survived", "timeout")
"""Those of a mutant that is listed: what changes nothing may still draw examples that take longer."""
COLUMNS = {"killed": "killed", "timeout": "ran too long", "segfault": "crashed", "not checked": "not run"}
ALWAYS = ("killed", "timeout")
"""Columns of the table, those that are there even where they are empty."""


@dataclass(frozen=True, order=True)
class Mutant:
    """module: dotted; function: with its class; was, now: the lines that differ."""

    module: str
    function: str
    was: str
    now: str

    @property
    def place(self) -> str:
        """As lists and output name it."""
        return f"{self.module}:{self.function}"


def squeezed(text: str) -> str:
    """Without comments and what else a formatter may change."""
    return " ".join(" ".join(line.split("  # ")[0] for line in text.split("\n")).split())


def read_listed(text: str) -> dict[Mutant, str]:
    """Reason of every listed mutant."""
    reasons: dict[Mutant, str] = {}
    for entry in yaml.safe_load(text) or ():
        for one in entry["mutants"]:
            module, function = one["at"].split(":")
            mutant = Mutant(module, function, one["was"], one["now"])
            assert mutant not in reasons, f"listed twice: {mutant}"
            reasons[mutant] = squeezed(entry["why"])
    return reasons


def function_source(module: str, function: str, root: Path = ROOT) -> str | None:
    """Source of a function or method, squeezed; None where it is not there."""
    path = root / (module.replace(".", "/") + ".py")
    if not path.exists():
        return None
    source = path.read_text(encoding="utf-8")
    node: ast.AST = ast.parse(source)
    for name in function.split("."):
        inner = [one for one in getattr(node, "body", ()) if getattr(one, "name", None) == name]
        if not inner:
            return None
        node = inner[-1]
    return squeezed(ast.get_source_segment(source, node) or "")


def table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Counts by module and status, in Markdown; what crashed and what was not run have a column where there are any."""
    columns = [one for one in COLUMNS if one in ALWAYS or any(one in counted for counted in counts.values())]
    rows = [f"| module | mutants | {' | '.join(COLUMNS[one] for one in columns)} | survived |"]
    rows += ["|---" * (len(columns) + 3) + "|"]
    total = [0] * (len(columns) + 2)
    for module in sorted(counts):
        known = [counts[module].get(status, 0) for status in columns]
        row = [sum(counts[module].values()), *known, sum(counts[module].values()) - sum(known)]
        total = [one + other for one, other in zip(total, row, strict=True)]
        rows.append(f"| `{module}` | " + " | ".join(map(str, row)) + " |")
    return "\n".join([*rows, "| all | " + " | ".join(map(str, total)) + " |"])


def counted(table: str) -> dict[str, dict[str, int]]:
    """Counts by module and status, of a table."""
    head, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()]
    status = {shown: name for name, shown in COLUMNS.items()} | {"survived": "survived"}
    return {
        row[0]: {status[shown]: int(cell) for shown, cell in zip(head[2:], row[2:], strict=True) if int(cell)}
        for row in rows[:-1]
    }


def unexplained(alive: Iterable[Mutant], listed: Mapping[Mutant, str]) -> list[Mutant]:
    """Survivors that no list has."""
    return sorted({one for one in alive if one not in listed})
