"""What the reader without Python holds of an artefact is little more than its bytes."""

import json
import subprocess

import numpy as np
import pytest

from clients.runtime import READER
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import prefix_length
from fl_peel.blocks.stored import StoredEmbedding
from tests.helpers.node import needs_node

COLUMNS = 64
FLAGS = ("--expose-gc", "--no-flush-bytecode", "--max-semi-space-size=1")
"""Garbage is collected when it is asked for, and about every megabyte."""


def artefact(budget_bytes):
    """A file that is as large as its budget allows: single items in int8."""
    layout = BlockLayout(np.arange(1 + budget_bytes // COLUMNS, dtype=np.int32), COLUMNS, 1)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(layout.num_items, COLUMNS)).astype(np.float32)
    blocks = rng.permutation(layout.num_blocks)
    kept = blocks[: prefix_length(layout, "int8", blocks, budget_bytes)]
    return StoredEmbedding.build(layout, "int8", table[0], kept, table).to_bytes()


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("budget", [10_000, 100_000, 1_000_000])
def test_memory_is_a_small_multiple_of_the_bytes_promised(tmp_path, budget):
    """held: of the file; live: at most, while it is read, checked and ranked. A process of Node for each."""
    small, file = tmp_path / "small.peel", tmp_path / "artefact.peel"
    small.write_bytes(artefact(1000))
    file.write_bytes(artefact(budget))
    stored = file.stat().st_size
    command = ["node", *FLAGS, str(READER.parent / "memory.mjs"), str(small), str(file)]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"budget {budget:,}, file {stored:,}, held {figures['held']:,}, live {figures['live']:,}")
    assert stored <= budget
    assert figures["held"] < 1.5 * stored + 64_000
    assert figures["live"] < 4 * stored + 1_000_000
