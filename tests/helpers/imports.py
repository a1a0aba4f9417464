"""Which file imports which, read from the source and not from what happens to be loaded."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.helpers.root import ROOT


def modules(package: str) -> list[Path]:
    """Files of a package and of those within it."""
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, at any depth of its code; relative ones made absolute."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (
                ".".join([*package[: len(package) + 1 - node.level], node.module or ""]) if node.level else node.module
            )


def dotted(path: Path) -> str:
    """The name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def import_graph(files: Mapping[str, str]) -> dict[str, set[str]]:
    """What each module of ``files`` (dotted name -> source) imports of the others, by any statement at any depth.

    ``from package import name`` imports ``package.name`` where that is a module, else the package's own file.
    """
    graph = {}
    for name, source in files.items():
        found = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: a relative import"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inside & files.keys()
                if not inside <= files.keys():
                    found.add(node.module)
        graph[name] = (found & files.keys()) - {name}
    return graph
