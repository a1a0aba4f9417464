"""Which heavy libraries a piece of code loads, found in a process of its own."""

from __future__ import annotations

import ast
import subprocess
import sys

from tests.helpers.root import ROOT

HEAVY = frozenset(
    (
        "cryptography",
        "dp_accounting",
        "flwr",
        "matplotlib",
        "numba",
        "numpy",
        "pyarrow",
        "ray",
        "scipy",
        "scipy.linalg",
        "scipy.special",
        "sklearn",
        "torch",
    )
)


def loaded_by(code: str, *args: str) -> set[str]:
    """The heavy libraries, and rooms of the house, that are loaded once the code has run with these arguments."""
    wanted = {*HEAVY, "clients", "fl_peel", "simulations", "strategies"}
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\ntry:\n    exec({code!r})\nexcept SystemExit: pass\n"
            f"print(sorted({wanted!r} & {{*sys.modules}}))",
            *args,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return set(ast.literal_eval(ran.stdout.splitlines()[-1]))
