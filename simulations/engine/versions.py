"""Versions that figures depend on besides scenario and seed: versions of packages, and the code paths that libraries
run.
"""

from __future__ import annotations

import platform
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fl_peel import __version__
from fl_peel.cpu_dispatch import code_paths
from fl_peel.packages import own_root

LOCK = "requirements.lock"
"""Name of the lock file in the root of the source: one ``name==version`` a line. It is not in wheels."""


def versions() -> dict[str, str]:
    """Return versions of this package, Python and what figures depend on, whether locked, and the code paths."""
    others = ("flwr", "torch", "numpy", "scikit-learn", "ray", "numba")
    installed = {name: version(name) for name in others}
    lock = environment(own_root() / LOCK)
    return {
        "fl-peel": __version__,
        "python": platform.python_version(),
        **installed,
        "lock": lock,
        "code": code_paths(),
    }


def environment(lock: Path) -> str:
    """The environment by a digest of the versions of what is locked, and whether they are those of the lock file."""
    wanted = locked(lock)
    if not wanted:
        return "none here"
    installed = {name: _installed(name) for name in wanted}
    digest = blake2b(
        "\n".join(f"{name}=={installed[name]}" for name in sorted(installed)).encode(), digest_size=8
    ).hexdigest()
    other = [
        f"{name} {installed[name]} for {wanted[name]}" for name in sorted(wanted) if installed[name] != wanted[name]
    ]
    return f"{digest}, {'as locked' if not other else 'not as locked: ' + ', '.join(other)}"


def locked(lock: Path) -> dict[str, str]:
    """Versions by name; none where there is no such file."""
    if not lock.is_file():
        return {}
    lines = [line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==", 1) for line in lines if "==" in line)


@cache
def _installed(name: str) -> str:
    """Version of an installed package, looked up once a process: there are a hundred, and files of each to read."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
