"""The packages: which copy of them runs, and names that are imported when they are first asked for.

All four must come from one folder, and server and nodes must run the same code. A folder called ``clients`` in the
working directory of Flower's SuperLink or of a Ray worker hides ours. Better to say so than to run half of another
program.

Public names are imported when they are asked for, so that importing a package costs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fl_peel.errors import EngineError, MissingExtraError

PACKAGES = ("fl_peel", "clients", "strategies", "simulations")


def own_root() -> Path:
    """Return the folder that this copy of the packages lies in."""
    return Path(__file__).resolve().parent.parent


def own_environment() -> dict[str, str]:
    """Return the environment of a process that must find this copy of the packages first."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(own_root()), os.environ.get("PYTHONPATH", "")])}


def check_one_root(working_dir: Path | None = None) -> Path:
    """Make sure that all packages come from :func:`own_root`, and return it.

    working_dir: of workers that look there first, as those of ``flwr run`` do. Another copy of the same code may lie
    there, as when a SuperLink was started in the repository; any other module of one of our names would hide ours.

    Raises:
        EngineError: naming both roots.
    """
    root = own_root()
    for name in PACKAGES:
        place = _package_folder(name)
        if place is not None and place.resolve() != root:
            raise _two_roots(name, place, root)
    if working_dir is not None and working_dir.resolve() != root:
        hidden = [name for name in PACKAGES if _hides(working_dir, name)]
        if hidden and code_digest(working_dir.resolve()) != code_digest(root):
            raise _two_roots(hidden[0], working_dir, root)
    return root


def _two_roots(name: str, place: Path, root: Path) -> EngineError:
    return EngineError(
        f"package {name} is found in {place.resolve()}, but fl_peel runs from {root}; "
        f"run (or start the SuperLink) in another folder, or rename {place.resolve() / name}"
    )


def _package_folder(name: str) -> Path | None:
    """Return the folder that ``import name`` would take the package from; None where it would find none."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, put into sys.modules by hand
        return None
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    return origin.parent.parent if origin.name == "__init__.py" else origin.parent


def _hides(folder: Path, name: str) -> bool:
    """Return whether the folder has a package or module of that name; a folder without ``__init__.py`` hides none."""
    return (folder / name / "__init__.py").is_file() or (folder / f"{name}.py").is_file()


@cache
def code_digest(root: Path) -> str:
    """Return a digest of the packages' code in ``root``: equal for equal ``.py`` files, wherever they lie."""
    digest = hashlib.blake2b(digest_size=8)
    for name in PACKAGES:
        for path in sorted((root / name).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def imported_when_asked(package: str, file: str) -> Callable[[str], Any]:
    """Return a package's ``__getattr__`` (PEP 562). Its public names, ``__all__``, are those that its ``__init__``,
    ``file``, imports under ``TYPE_CHECKING``, which type checkers read, too: one list for all.
    """
    homes = {
        alias.name: str(node.module)
        for block in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def public_name(name: str) -> Any:
        if name == "__all__":
            return sorted(homes)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return public_name


# ---- Packages that only some users need: imported when they are asked for


def optional(module: str, extra: str, what: str) -> Any:
    """A module of a package that ``pip install 'fl-peel[extra]'`` brings. what: needs it, for the message.

    Raises:
        MissingExtraError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{what} needs {module} ({error}); pip install 'fl-peel[{extra}]'") from None
