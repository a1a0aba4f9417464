"""Sums in an order that is written down: those of the readable twin, on any processor."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from numba.core.errors import TypingError

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.data.datasets import Population
from fl_peel.kernels.lanes import dot
from fl_peel.ranking.top import top_rows
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.group import signals_of_group, train_group
from fl_peel.training.update import LocalWork
from tests.helpers import readable_twins as reference
from tests.helpers.root import ROOT


@njit
def compiled(a, i, b, j, first, last):
    return dot(a, i, b, j, first, last)


def rows(seed, width):
    """Two rows whose sum depends on its order."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, width)).astype(np.float32) * rng.choice([1e-3, 1, 1e3], (2, width)).astype(np.float32)


@given(st.integers(0, 10**6), st.integers(0, 70), st.integers(0, 70))
def test_sums_are_those_of_the_readable_twin_to_the_last_bit(seed, first, count):
    table = rows(seed, 140)
    some = slice(first, first + count)
    assert compiled(table, 0, table, 1, first, first + count) == reference.dot(table[0, some], table[1, some])


def test_the_order_is_seen():
    """One by one, numbers give another sum than in lanes: else the test above would show nothing."""
    table = rows(1, 64)
    one_by_one = np.float32(0)
    for left, right in table.T:
        one_by_one = np.float32(np.float64(left) * np.float64(right) + np.float64(one_by_one))
    assert compiled(table, 0, table, 1, 0, 64) != one_by_one


def test_columns_far_apart_are_refused():
    table = np.ones((4, 40), np.float32)
    with pytest.raises(TypingError, match="C-contiguous"):
        compiled(table[:, ::2], 0, table, 0, 0, 20)
    with pytest.raises(TypingError, match="float32"):
        compiled(table.astype(np.float64), 0, table, 0, 0, 20)


def test_no_loop_lets_the_compiler_reorder():
    sources = sorted((ROOT / "fl_peel" / "kernels").glob("*.py"))
    assert len(sources) > 5
    assert [path.name for path in sources if "fastmath" in path.read_text() and path.name != "lanes.py"] == []


def digest_of_work():
    """Of all that devices of two tables, and the server, compute in compiled loops."""
    rng, devices, items, dim = np.random.default_rng(0), 60, 200, 40
    train = Population(0, devices, items, 2).rows(0, devices)
    users = rng.standard_normal((devices, dim), np.float32)
    digest = hashlib.blake2b(digest_size=8)
    for slices in (1, 4):
        layout = BlockLayout(np.arange(items, dtype=np.int32), dim, slices)
        table = rng.standard_normal((items, dim), np.float32)
        ranked = rank_blocks(layout, "int8", rng.random(layout.num_blocks), table)
        cutoffs = rng.integers(50, len(ranked.blocks) + 1, devices)
        clipped = LocalTraining(loss="bpr", max_norm=0.1, clip_blocks=slices > 1)
        for how in (LocalTraining(loss="sampled-softmax"), clipped):
            seeds = np.arange(devices, dtype=np.uint64)
            trained, update = train_group(LocalWork(ranked, cutoffs, users, train, seeds, how))
            best = top_rows(ranked, cutoffs, trained, train, 20)
            signals = signals_of_group(ranked, cutoffs, trained, best, train)
            for values in (trained, update.sums, update.tallies, update.norms, update.loss, best, *signals):
                digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def runs_here(needed):
    """Whether this processor has what compiled code needs."""
    from fl_peel.cpu_dispatch import processor_flags

    return set(needed.split()) <= processor_flags()


@pytest.mark.slow
@pytest.mark.skipif(not runs_here("avx2 fma"), reason="needs the code of other x86-64 processors to run here")
def test_training_ranking_and_signals_are_the_same_bits_for_every_processor(compiled_for_others):
    """As compiled for this one and for haswell, with which ``tests/fl_peel/test_cpu_dispatch.py`` does a whole run."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_CPU")}
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import digest_of_work; print(digest_of_work())"],
        env=kept | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CACHE_DIR": compiled_for_others},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest_of_work()
