"""Memory of the reader without Python beside the bytes promised: ``python -m simulations.bench.runtime``.

Artefacts of single items in int8 with 64 columns, as large as their budget allows; a process of Node for each.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clients.runtime import READER
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import prefix_length
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.errors import EngineError, FlPeelError

BUDGETS = (10_000, 100_000, 1_000_000)
COLUMNS = 64
FLAGS = ("--expose-gc", "--no-flush-bytecode", "--max-semi-space-size=1")
"""Garbage is collected when it is asked for, and about every megabyte."""


@dataclass(frozen=True)
class ReaderMemory:
    """The memory that the reader takes for one artefact, in bytes: its budget and length; what is held of it; the most
    that was live while it was read, checked and ranked.
    """

    budget: int
    stored: int
    held: int
    live: int


def artefact(budget_bytes: int) -> bytes:
    """A file that is as large as its budget allows."""
    layout = BlockLayout(np.arange(1 + budget_bytes // COLUMNS, dtype=np.int32), COLUMNS, 1)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(layout.num_items, COLUMNS)).astype(np.float32)
    blocks = rng.permutation(layout.num_blocks)
    kept = blocks[: prefix_length(layout, "int8", blocks, budget_bytes)]
    return StoredEmbedding.build(layout, "int8", table[0], kept, table).to_bytes()


def measured() -> Iterator[ReaderMemory]:
    """Memory at each budget.

    Raises:
        EngineError: there is no Node, or it fails.
    """
    node = shutil.which("node")
    if node is None:
        raise EngineError("node is not on the path; install Node 18 or newer")
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.peel"
        small.write_bytes(artefact(1000))
        for budget in BUDGETS:
            file = Path(folder) / f"{budget}.peel"
            file.write_bytes(artefact(budget))
            command = [node, *FLAGS, str(READER.parent / "memory.mjs"), str(small), str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise EngineError(f"node: {done.stderr.strip().splitlines()[-1]}; install Node 18 or newer")
            figures = json.loads(done.stdout)
            held = max(figures["held"], 0)
            yield ReaderMemory(budget, file.stat().st_size, held, max(figures["live"], held))


def main() -> None:
    """Print the table."""
    print("| budget | file | held | live at most, while it is read, checked and ranked |\n|---|---|---|---|")
    try:
        for row in measured():
            print("| " + " | ".join(f"{size:,}" for size in (row.budget, row.stored, row.held, row.live)) + " |")
    except FlPeelError as mistake:
        sys.exit(f"error: {mistake}")


if __name__ == "__main__":
    main()
