"""Compile the loops that every run needs before it calls them: ``python -m fl_peel.kernels.compile_ahead``.

A loop is compiled when it is first called, by every process that calls it: a first run waits for it in joining, in its
first round and in its evaluation. A process beside the run's own compiles while Ray starts and stage 1 trains; what it
made lies in numba's cache (:mod:`fl_peel.kernels.compile_cache`), where the others find it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llvmlite.binding
import numba
from numba import types

from fl_peel import kernels
from fl_peel.kernels.compile_cache import VARIABLE
from fl_peel.packages import own_environment

LOOPS = {
    "train_devices": "float32.2 int32.2 int64.1 int64.1 float32.2 int64.1 int32.1 uint64.1 int64 int64 int64 float64 "
    "float64 float64 boolean float64 float64 boolean boolean int32.2 int64.2 boolean.1 int64.2 float64.1 int64.1 "
    "int64.1 float64.1",
    "top_rows": "float32.3 int32.3 int32.1 int64.2 int64.2 int64.1 float32.2 int64.1 int32.1 int64.1 int32.3",
    "find_hits": "int32.2 int64.1 int32.1 int64 boolean.2",
    "block_signals": "float32.2 int32.2 int64.1 float32.2 int32.2 int64.1 int32.1 int64.1 int64.1",
    "neighbour_scores": "int64.1 int64.1 int32.1 int64.1 int32.1 float32.2",
    "tile_rows": "float32.2 int32.2 int64 float32.3 int32.3",
    "spread_rows": "int32.1 int32.1 float32.1 float32.2 int64 int64 float32.2 float32.2",
    "add_scaled_rows": "float32.2 int32.1 float32.2 int64.1 float32.1 int64 int64",
    "weighted_sums": "uint64.1 float64.1 float64.2 float64.2",
    "largest_magnitudes": "float32.2 int64.1 float32.1",
    "encode_integers": "float32.2 int64.1 float32.1 float32 int8.2",
    "coding_errors": "float32.2 int64.1 int8.2 float32.1 float32.1",
    "decode_int8": "const.int8.2 float32.1 int64.1 float32.2",
    "add_rows": "int64.2 int64 const.int32.1 const.int32.2 | int64.2 int64 const.int32.1 const.int64.2",
    "step_rows": "float32.2 int32.1 int64.2 float64.2 float32",
    "serving_cutoffs": "int64.1 int64.1 int64.2 int64 int64.1 int64.1 int64.1 int64.1 int64.1",
}
"""Types of arguments that a run of the main job calls a loop with, the slowest to compile first. ``float32.2`` is a
C-contiguous matrix, ``const`` one that comes from a message; ``|`` stands between what may be either."""


def signatures(loop: str) -> list[tuple[types.Type, ...]]:
    """Return the types of a loop's arguments, in every way that a run calls it."""
    return [tuple(_type(word) for word in way.split()) for way in LOOPS[loop].split("|")]


def _type(word: str) -> types.Type:
    name, _, dims = word.removeprefix("const.").partition(".")
    number = getattr(types, name)
    return types.Array(number, int(dims), "C", readonly=word.startswith("const.")) if dims else number


def compile_all() -> None:
    """Compile all loops into numba's cache, and mark them there as compiled."""
    for loop in LOOPS:
        for way in signatures(loop):
            getattr(kernels, loop).compile(way)
    stamp = _stamp()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.touch()


def is_compiled() -> bool:
    """Return whether the loops as they are were compiled for this processor."""
    return _stamp().is_file()


def _stamp() -> Path:
    """Return the file that marks these sources as compiled, by this compiler, for this processor."""
    folder = Path(kernels.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(folder.glob("*.py")):
        digest.update(file.read_bytes())
    processor = os.environ.get("NUMBA_CPU_NAME") or llvmlite.binding.get_host_cpu_name()
    digest.update(repr((numba.__version__, sys.version_info, processor)).encode())
    cache = os.environ.get(VARIABLE)
    return (Path(cache) if cache else folder / "__pycache__") / f"{digest.hexdigest()}.compiled"


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Let another process compile in the meantime what is not compiled yet; it ends with the block."""
    if is_compiled():
        yield
        return
    words = [sys.executable, "-m", "fl_peel.kernels.compile_ahead"]
    with subprocess.Popen(
        words,
        env=own_environment(),
        start_new_session=True,  # Ctrl-C is for the run, which ends this
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as compiling:
        try:
            yield
        finally:
            compiling.kill()


if __name__ == "__main__":
    compile_all()
