"""Tables that lie in a file are tables like others, and leave memory when they rest."""

import copy
import gc
import mmap
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_peel.mmap_arrays import AROUND_BYTES, drop_pages_now
from strategies.groups import state
from strategies.groups.state import copied_states, copied_tables, empty_tables
from tests.strategies.groups.test_aggregation import group_state

SHAPE = (1000, 64)  # 62.5 pages


@pytest.fixture
def in_files(monkeypatch):
    monkeypatch.setattr(state, "MOST_IN_MEMORY", 0)


def resident_bytes(table: np.ndarray) -> int:
    """Of the mapping that a table lies in, as the kernel tells."""
    start = np.frombuffer(table.base, np.uint8).ctypes.data
    smaps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    (about,) = re.findall(rf"^{start:x}-.*?^Rss: +(\d+) kB", smaps, re.MULTILINE | re.DOTALL)
    return 1024 * int(about)


def test_few_tables_stay_in_memory(tmp_path):
    assert all(table.base is None for table in empty_tables(3, SHAPE, str(tmp_path)))


def test_without_a_folder_all_stay_in_memory(in_files):
    assert all(table.base is None for table in empty_tables(3, SHAPE, ""))


@pytest.mark.parametrize("fallocate", [True, False])
def test_tables_in_a_file_are_apart_and_zero_at_first(in_files, tmp_path, monkeypatch, fallocate):
    if not fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    made = empty_tables(3, SHAPE, str(tmp_path))
    assert not any(table.any() for table in made)
    for number, table in enumerate(made):
        table[:] = number + 1
    for number, table in enumerate(made):
        drop_pages_now(table)
        assert isinstance(table.base, mmap.mmap)
        assert (table == number + 1).all()
    assert not list(tmp_path.iterdir())  # no name that a killed process would leave


@pytest.mark.parametrize("at_once", [1 << 30, 1000], ids=["whole", "in pieces"])
def test_copies_in_a_file_are_apart_from_what_they_are_of(in_files, tmp_path, monkeypatch, at_once):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: write(file, data[:at_once], place))
    made = [np.random.default_rng(number).random((50, 7), np.float32) for number in range(3)]
    kept = [table.copy() for table in made]
    copies = copied_tables(made, str(tmp_path))
    for table in made:
        table[:] = 0
    for one, other in zip(copies, kept, strict=True):
        assert isinstance(one.base, mmap.mmap)
        assert (one == other).all()
        one[:] = 1
    assert not list(tmp_path.iterdir())


def test_copies_stay_in_memory_where_tables_do(tmp_path):
    made = [np.ones((50, 7), np.float32)] * 2
    copies = copied_tables(made, str(tmp_path))
    made[0][:] = 2
    assert [(one.base, float(one.max())) for one in copies] == [(None, 1.0)] * 2
    assert copied_tables([], str(tmp_path)) == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel does not tell")
def test_a_table_that_rests_takes_no_memory(in_files, tmp_path):
    one, other = empty_tables(2, SHAPE, str(tmp_path))
    one[:], other[:] = 1, 2
    assert resident_bytes(one) >= one.nbytes + other.nbytes
    drop_pages_now(one)
    assert other.nbytes - AROUND_BYTES <= resident_bytes(one) <= other.nbytes  # and of what lies around it, little
    drop_pages_now(other)
    assert resident_bytes(one) == 0
    assert (one.sum(), other.sum()) == (one.size, 2 * other.size)


def test_the_file_is_gone_with_its_last_table(in_files, tmp_path):
    gc.collect()  # else what earlier tests left open is closed meanwhile
    open_before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    made = empty_tables(2, SHAPE, str(tmp_path))
    last = made[1]
    del made
    gc.collect()
    assert not last.any()
    del last
    gc.collect()
    if open_before:
        assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_disk_without_room_says_so_before_anything_is_written(in_files, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        empty_tables(2, SHAPE, str(tmp_path))


@pytest.mark.parametrize("most", [0, 1 << 30])
def test_a_copied_group_is_a_group_of_its_own(most, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "MOST_IN_MEMORY", most)
    first, _ = group_state("adam")
    second = replace(copy.deepcopy(first), table=first.table + 1)
    copies = copied_states([first, second], str(tmp_path))
    for group, twin in zip((first, second), copies, strict=True):
        assert np.array_equal(group.table, twin.table)
        before = twin.table.copy()
        group.table += 1
        with pytest.raises(ValueError, match="read-only"):
            group.statistics.popularity[:] = 9  # it is the copy's, too
        with pytest.raises(ValueError, match="read-only"):
            group.counted_devices[:] = 9
        group.statistics.popularity = group.statistics.popularity + 9
        group.optimizer.learning_rate = 9
        assert np.array_equal(twin.table, before)
        assert (twin.statistics.popularity.max(), twin.counted_devices.max()) == (0.5, 4.0)
        assert twin.optimizer.learning_rate == 1.0
    assert isinstance(copies[0].table.base, mmap.mmap) == (most == 0)
