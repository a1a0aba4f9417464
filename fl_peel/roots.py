"""Which copy of the packages runs: all four must come from one folder, and server and nodes must run the same code.

A folder called ``clients`` in the working directory of Flower's SuperLink or of a Ray worker hides ours. Better to
say so than to run half of another program.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from fl_peel.errors import EngineError

PACKAGES = ("fl_peel", "clients", "strategies", "simulations")


def own_root() -> Path:
    """Folder that this copy of the packages lies in."""
    return Path(__file__).resolve().parent.parent


def check_one_root(working_dir: Path | None = None) -> Path:
    """Make sure that all packages come from :func:`own_root`, and return it.

    working_dir: also look whether a module in this folder would hide one of ours (Ray puts the working directory in
    front of the path of its workers).

    Raises:
        EngineError: naming both roots.
    """
    root = own_root()
    for name in PACKAGES:
        places = [_found(name)]
        if working_dir is not None:
            places.append(_in_folder(name, working_dir))
        for place in places:
            if place is not None and place.resolve() != root:
                raise EngineError(
                    f"package {name} is found in {place.resolve()}, but fl_peel runs from {root}; "
                    f"run from another folder, or rename {place / name}"
                )
    return root


def _found(name: str) -> Path | None:
    """Folder that ``import name`` would take the package from; None where it would find none."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, put into sys.modules by hand
        return None
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    return origin.parent.parent if origin.name == "__init__.py" else origin.parent


def _in_folder(name: str, folder: Path) -> Path | None:
    """``folder`` if it holds a package or module of that name; a plain folder without ``__init__.py`` hides nothing."""
    hides = (folder / name / "__init__.py").is_file() or (folder / f"{name}.py").is_file()
    return folder if hides else None


@cache
def code_digest() -> str:
    """A name for the code of this copy: equal for equal ``.py`` files, wherever they lie."""
    root = own_root()
    digest = hashlib.blake2b(digest_size=8)
    for name in PACKAGES:
        for path in sorted((root / name).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


__all__ = ["PACKAGES", "check_one_root", "code_digest", "own_root"]
