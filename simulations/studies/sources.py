"""The source files that a piece of work runs through, found by following imports.

From a stage's entry modules every import statement is followed, at whatever depth of the code it stands: within
functions, under ``TYPE_CHECKING``, of a submodule by its package's name. Importing a module runs the ``__init__`` of
every package above it, so those belong to it too, and so do the data files that lie in a package beside its modules
(the shipped fleets). Names that a package imports when they are first asked for stand under ``TYPE_CHECKING`` in its
``__init__``: each leads to its home for those who ask for it alone. Nobody keeps a list that can be forgotten.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import uuid
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from fl_peel.package_check import PACKAGES, own_root
from fl_peel.plugins import all_added

DATA_SUFFIXES = (".yaml", ".yml", ".json", ".jsonl", ".toml")
"""Suffixes of files that a package reads, in its own folder and in folders of it that are not packages."""


@cache
def digest_of(modules: tuple[str, ...], root: Path) -> str:
    """A name for all the code behind ``modules``: another one as soon as a byte of it changes.

    root: the folder that our packages lie in. Read once: what runs in this process is what was there when it started.

    Raises:
        ModuleNotFoundError: a module of ours that is not there.
    """
    digest = hashlib.blake2b(digest_size=10)
    for name, path in sources_of(modules, root).items():
        # a module without a file was typed into an interpreter: who knows whether it is the same next time
        content = uuid.uuid4().bytes if path is None else path.read_bytes()
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()


def sources_of(modules: Iterable[str], root: Path) -> dict[str, Path | None]:
    """Files behind ``modules`` by name, sorted: modules by their dotted names, data files by package and path.

    Followed are our own packages and those that the modules themselves lie in; what else is installed is not. None
    stands for a module that was not read from a file.

    Raises:
        ModuleNotFoundError: a module of ours that is not there.
    """
    followed = {*PACKAGES, *(name.partition(".")[0] for name in modules)}
    files: dict[str, Path | None] = {}
    tried: set[str] = set()
    pending = []
    for name in modules:
        path = module_file(name, root)
        if path is None and name.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"{name}: no such module in {root}", name=name)
        if path is None:
            files[name] = None
        pending.append(name)
    while pending:
        words = pending.pop().split(".")
        for length in range(1, len(words) + 1):  # of a.b.c the packages a and a.b too
            name = ".".join(words[:length])
            if name in tried or words[0] not in followed:
                continue
            tried.add(name)
            path = module_file(name, root)
            if path is None:  # a function, a class, a value: of the module itself, or lazily of another
                pending += _home(name, root)
                continue
            files[name] = path
            is_package = path.name == "__init__.py"
            package = name if is_package else name.rpartition(".")[0]
            if path.suffix == ".py":
                pending += imported_names(path.read_text(encoding="utf-8"), package, lazy=is_package)
            if (path.parent / "__init__.py").is_file():
                files |= {f"{package}:{data.relative_to(path.parent).as_posix()}": data for data in _data(path.parent)}
    return dict(sorted(files.items()))


def _home(name: str, root: Path) -> list[str]:
    """Return where a name of a package lies, by the package's ``__init__``."""
    package, _, last = name.rpartition(".")
    path = module_file(package, root) if package else None
    if path is None or path.name != "__init__.py":
        return []
    for node in _typed_imports(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and last in (alias.asname or alias.name for alias in node.names):
            return [node.module or ""]
    return []


def _typed_imports(tree: ast.Module) -> list[ast.stmt]:
    """Return the statements under ``TYPE_CHECKING`` at the top of a module."""
    return [
        node
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for node in block.body
    ]


@cache
def imported_names(text: str, package: str, *, lazy: bool = False) -> frozenset[str]:
    """Dotted names that a file of ``package`` imports, modules and what is taken from them alike.

    lazy: but for those under ``TYPE_CHECKING``, which the ``__init__`` of a package imports when they are asked for.
    """
    names: set[str] = set()
    tree = ast.parse(text)
    left_out = set(_typed_imports(tree)) if lazy else set()
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _data(folder: Path) -> Iterator[Path]:
    """Data files of a package, but for those of packages within it."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not (path / "__init__.py").is_file() and path.name != "__pycache__":
            yield from _data(path)
        elif path.is_file() and path.suffix in DATA_SUFFIXES:
            yield path


def module_file(name: str, root: Path) -> Path | None:
    """The file of a module, without importing it; None where there is none."""
    top, _, rest = name.partition(".")
    if top in PACKAGES:
        return _below(root / top, rest)
    loaded = getattr(sys.modules.get(name), "__file__", None)  # also of __main__, which cannot be looked up
    if loaded is not None:
        return Path(loaded)
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return None
    if spec is None:
        return None
    if not rest and spec.origin is not None:
        return Path(spec.origin) if Path(spec.origin).is_file() else None
    places = [_below(Path(place), rest) for place in spec.submodule_search_locations or ()]
    return next((place for place in places if place is not None), None)


def _below(folder: Path, rest: str) -> Path | None:
    path = folder.joinpath(*filter(None, rest.split(".")))
    candidates = [path / "__init__.py", *([path.with_name(f"{path.name}.py")] if rest else [])]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@cache
def plugin_modules() -> tuple[str, ...]:
    """Modules that installed packages add to a run: selectors, mechanisms, profiles and so on."""
    modules = {point.module for point in all_added()}
    return tuple(sorted(module for module in modules if module_file(module, own_root()) is not None))


__all__ = ["digest_of", "imported_names", "module_file", "plugin_modules", "sources_of"]
