"""Which machine code libraries run: the same on every x86-64 processor with AVX2 and FMA, if asked before they load.

OpenBLAS, MKL, torch and NumPy each bring code for several generations of processors and take the newest that fits. Each
rounds differently, so that one seed gives as many figures as there are processors. What they read from the environment
when they are loaded names one code path for all (``docs/machines.md`` has what that costs). Importing ``fl_peel`` names
it, unless ``FL_PEEL_CODE_PATHS=native`` or the variable is set already; worker processes inherit it.

Imports no library: it must come first.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, MutableMapping
from importlib.metadata import version
from pathlib import Path

SWITCH = "FL_PEEL_CODE_PATHS"
"""``native``: every library chooses for itself."""
NEEDED = frozenset({"avx2", "fma"})
"""Processor flags that the code paths below need."""
OPENBLAS, MKL, TORCH = "Haswell", "COMPATIBLE", "avx2"
"""Code paths from 2013, the year of AVX2. MKL's own AVX2 code differs on processors of other makers than Intel."""
WAIT = {"OPENBLAS_THREAD_TIMEOUT": "14"}
"""2 ** this cycles, 5 us: how long an idle thread of OpenBLAS keeps a core from others. No code path."""
_READ_BY = {
    "OPENBLAS_CORETYPE": "numpy",
    "NPY_DISABLE_CPU_FEATURES": "numpy",
    "MKL_CBWR": "torch",
    "ATEN_CPU_CAPABILITY": "torch",
}
late: dict[str, str] = {}
"""Variables that were set after the library that reads them was loaded, and that library."""


def pinned(flags: frozenset[str], numpy_version: str) -> dict[str, str]:
    """Return the environment that names a processor's code paths by its flags; empty where it lacks ``NEEDED``."""
    if not flags >= NEEDED:
        return {}
    newer = "X86_V4 AVX512_ICL AVX512_SPR"
    if tuple(int(part) for part in numpy_version.split(".")[:2]) < (2, 4):
        newer = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
    return {
        "OPENBLAS_CORETYPE": OPENBLAS,
        "MKL_CBWR": MKL,
        "ATEN_CPU_CAPABILITY": TORCH,
        "NPY_DISABLE_CPU_FEATURES": newer,
    }


def pin(environ: MutableMapping[str, str] = os.environ) -> None:
    """Name the code paths in the environment, where nobody did."""
    if environ.get(SWITCH) == "native":
        return
    for name, value in WAIT.items():
        environ.setdefault(name, value)
    for name, value in pinned(processor_flags(), version("numpy")).items():
        if name not in environ:
            environ[name] = value
            if _READ_BY[name] in sys.modules:
                late[name] = _READ_BY[name]


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the processor's flags as Linux names them; the empty set on other processors or systems."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def in_effect() -> dict[str, str]:
    """The code path of each library as it runs. Loads NumPy, and torch only where its path is not named."""
    import numpy as np
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    blas = {str(library["architecture"]) for library in threadpool_info() if library["internal_api"] == "openblas"}
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    return {
        "openblas": ", ".join(sorted(blas)) or "none",
        **_of_torch(),
        "numpy": str((simd.get("found") or simd["baseline"])[-1]),
    }


def _of_torch() -> dict[str, str]:
    """Return the code paths of torch, and of MKL, which comes with it."""
    mkl, named = os.environ.get("MKL_CBWR", "native"), os.environ.get("ATEN_CPU_CAPABILITY")
    if "torch" not in sys.modules and named is not None:
        return {"mkl": mkl, "torch": named.upper()}
    import torch

    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return {"mkl": mkl if has_mkl else "none", "torch": torch.backends.cpu.get_cpu_capability()}


def described(paths: Mapping[str, str], late: Mapping[str, str]) -> str:
    """Return ``pinned`` where figures are the same on every processor, else the code paths that libraries chose."""
    newer = paths["numpy"].startswith(("AVX512", "X86_V4"))
    wanted = {"openblas": OPENBLAS, "mkl": MKL, "torch": TORCH.upper()}
    if not late and not newer and all(paths[name] in (value, "none") for name, value in wanted.items()):
        return "pinned"
    rest = f"; too late for {', '.join(sorted(set(late.values())))}" if late else ""
    return "native: " + ", ".join(f"{name} {path}" for name, path in paths.items()) + rest


def code_paths() -> str:
    """:func:`described` of this process."""
    return described(in_effect(), late)
