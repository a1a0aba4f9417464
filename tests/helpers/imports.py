"""Which file imports which, read from the source and not from what happens to be loaded."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.helpers.root import ROOT


def modules(package: str) -> list[Path]:
    """Files of a package and of those within it."""
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def statements(source: str) -> tuple[tuple[str, int, tuple[str, ...] | None], ...]:
    """Return (module, level, names) of every import in a source, at any depth; names: None of ``import module``. Each
    source is parsed once.
    """
    result: list[tuple[str, int, tuple[str, ...] | None]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            result += [(alias.name, 0, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            result.append((node.module or "", node.level, tuple(alias.name for alias in node.names)))
    return tuple(result)


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, at any depth of its code; relative ones made absolute."""
    package = path.relative_to(ROOT).parent.parts
    for module, level, _ in statements(path.read_text()):
        yield ".".join([*package[: len(package) + 1 - level], module]) if level else module


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
        result: set[str] = set()
        for module, level, names in statements(source):
            assert not level, f"{name}: a relative import"
            inside = {f"{module}.{part}" for part in names or ()}
            result |= inside & files.keys()
            if names is None or not inside <= files.keys():
                result.add(module)
        graph[name] = (result & files.keys()) - {name}
    return graph
