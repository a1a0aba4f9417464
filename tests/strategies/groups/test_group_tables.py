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

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RowOrder, rank_blocks, ranked_as_numbered
from fl_peel.blocks.resizing import ElasticEmbedding
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.interactions import UserItems
from fl_peel.mmap_arrays import AROUND_BYTES, drop_pages_now, lies_in_file
from fl_peel.weighting.block_statistics import BlockStatistics
from strategies.groups import state
from strategies.groups import state as shelves
from strategies.groups.start import shown_in_lists
from strategies.groups.state import (
    BlockSums,
    ServerOptimizer,
    Shelf,
    UserGroupState,
    copied_states,
    copied_tables,
    empty_tables,
    put_once,
    shelf_for,
)
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
    assert not last.any()
    del last
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


@pytest.fixture
def shelf(tmp_path):
    return Shelf(str(tmp_path))


def numbers(first: int, count: int = 3000) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32)


@pytest.mark.parametrize("fallocate", [True, False])
def test_what_is_put_is_the_same_array_in_a_file_without_a_name(tmp_path, monkeypatch, fallocate):
    if not fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    made = Shelf(str(tmp_path))
    arrays = [numbers(0), numbers(10).astype(np.float64), numbers(0).reshape(30, 100)[:, :50]]
    put = [made.put(array) for array in arrays]
    for array, there in zip(arrays, put, strict=True):
        drop_pages_now(there)
        assert there.dtype == array.dtype
        assert np.array_equal(there, array)
        assert lies_in_file(there)
        assert not lies_in_file(array)
    assert not list(tmp_path.iterdir())


def test_it_cannot_be_changed_there(shelf):
    with pytest.raises(ValueError, match="read-only"):
        shelf.put(numbers(0))[0] = 1


def test_memory_does_not_hold_what_rests(shelf):
    there = shelf.put(numbers(0, 1 << 20))
    assert there.sum() > 0
    before = resident_bytes(there)
    shelf.put(there)
    assert before >= there.nbytes
    assert resident_bytes(there) == 0


def test_what_the_system_reads_around_an_array_rests_with_it(shelf):
    *before, there, after = sorted((shelf.put(numbers(k)) for k in range(6)), key=lambda array: array.ctypes.data)
    assert there.sum() > 0
    drop_pages_now(there)
    assert resident_bytes(there) == 0
    assert before[-1][1] - before[-1][0] == after[1] - after[0] == 1


def test_what_lies_there_is_not_put_again(shelf):
    there = shelf.put(numbers(0))
    assert shelf.put(there) is there


def test_a_place_is_taken_again_when_nobody_holds_what_was_there(shelf):
    first = shelf.put(numbers(0))
    place = first.ctypes.data
    view = first[10:20].reshape(2, 5)
    del first
    others = [shelf.put(numbers(k)) for k in range(1, 5)]
    assert view[0, 0] == 10
    assert all(other.ctypes.data != place for other in others)
    del view
    assert shelf.put(numbers(7)).ctypes.data == place


def test_many_lie_side_by_side_whatever_the_file_grows_by(shelf, monkeypatch):
    monkeypatch.setattr(shelves, "CHUNK_BYTES", 30_000)
    put = [shelf.put(numbers(k)) for k in range(20)]
    assert all(np.array_equal(there, numbers(k)) for k, there in enumerate(put))


@pytest.mark.parametrize("what", ["posix_fallocate", "pwrite"])
def test_on_a_full_disk_arrays_stay_in_memory(shelf, monkeypatch, what):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, what, full)
    array = numbers(0)
    assert shelf.put(array) is array


def test_little_needs_no_shelf(tmp_path):
    assert shelf_for(shelves.MOST_UNSHELVED, str(tmp_path)) is None
    assert shelf_for(1 << 40, "") is None
    assert shelf_for(shelves.MOST_UNSHELVED + 1, str(tmp_path)) is not None


def test_what_many_share_lies_there_once(shelf):
    array = numbers(0)
    assert put_once(None, {"loss": array})["loss"] is array
    there = put_once(shelf, {"loss": array})["loss"]
    assert lies_in_file(there)
    assert shelf.put(there) is there


def known(state) -> dict[str, np.ndarray]:
    return vars(state.statistics) | {
        "counted_interactions": state.counted_interactions,
        "counted_devices": state.counted_devices,
    }


def test_what_is_known_of_a_resting_group_lies_there_and_is_the_same(shelf):
    state, _ = group_state()
    before = {name: array.copy() for name, array in known(state).items()}
    state.shelf = shelf
    state.drop_pages()
    for name, array in known(state).items():
        assert lies_in_file(array), name
        assert np.array_equal(array, before[name]), name


def test_a_copy_keeps_what_was_known_when_its_group_learns(shelf, tmp_path):
    state, _ = group_state()
    state.shelf = shelf
    state.drop_pages()
    before = copy.deepcopy(known(state))
    (kept,) = copied_states([state], str(tmp_path))
    for _ in range(3):
        state.statistics.loss = state.statistics.loss + 1
        state.counted_devices = state.counted_devices + 1
        state.drop_pages()
    assert all(np.array_equal(array, before[name]) for name, array in known(kept).items())
    assert np.array_equal(state.statistics.loss, before["loss"] + 3)
    assert np.array_equal(state.counted_devices, before["counted_devices"] + 3)


def test_what_was_known_before_a_round_rests_though_a_copy_holds_it(shelf, tmp_path):
    layout, four = BlockLayout(np.arange(50_000, dtype=np.int32), 2, 1), np.full(50_000, 0.5, np.float32)
    _, scenario = group_state()
    statistics = BlockStatistics(*(four.copy() for _ in range(5)))
    state = UserGroupState(
        np.zeros((50_000, 2), np.float32),
        statistics,
        ServerOptimizer("sgd", 1.0),
        np.zeros(50_000),
        np.zeros(50_000),
        shelf,
    )
    state.drop_pages()
    (kept,) = copied_states([state], str(tmp_path))
    blocks = np.arange(10)
    order = RowOrder.from_blocks(layout, blocks)
    total = BlockSums.zeros(len(order.items), 1, 2, len(blocks))
    state.take_statistics(layout, blocks, order, total, scenario)
    state.drop_pages()
    assert not np.shares_memory(kept.counted_devices, state.counted_devices)
    assert resident_bytes(kept.counted_devices) < kept.counted_devices.nbytes / 2


# --- Which block is worth most before any round, in cases computed by hand.


NOTHING = UserItems(np.zeros(2, np.int64), np.zeros(0, np.int32))
USER = np.ones((1, 2), np.float32)
FIRST, SECOND, THIRD = 1.0, 1 / np.log2(3), 1 / np.log2(4)
"""What the places of a list count."""
NARROW = [[9, 1], [5.4, 0.6], [2.7, 0.3]]
"""Rows of two slices of a column each: the first slice makes nine tenths of every score."""
WIDE = [[5, 5], [2, 2], [1, 1]]


@pytest.mark.parametrize(
    ("table", "groups", "worth", "kept"),
    [
        # the third item's first slice (.45) is worth more than the first item's second one (.1)
        (
            NARROW,
            [0, 1, 2],
            [0.9 * FIRST, 0.1 * FIRST, 0.9 * SECOND, 0.1 * SECOND, 0.9 * THIRD, 0.1 * THIRD],
            [0, 2, 4],
        ),
        # the first item's second slice (.5) is worth more than the second item's first one (.32)
        (WIDE, [0, 1, 2], [0.5 * FIRST, 0.5 * FIRST, 0.5 * SECOND, 0.5 * SECOND, 0.5 * THIRD, 0.5 * THIRD], [0, 1, 2]),
        # the mean of the first two items' first slices (.73) is worth more a row than that of the third (.45)
        (NARROW, [0, 0, 1], [0.45 * (FIRST + SECOND), 0.05 * (FIRST + SECOND), 0.9 * THIRD, 0.1 * THIRD], [0, 2]),
    ],
    ids=["narrow", "wide", "coarse"],
)
def test_the_block_that_is_worth_most_for_its_bytes_is_kept_first(table, groups, worth, kept):
    layout, rows = BlockLayout(np.array(groups, np.int32), 2, 2), np.array(table, np.float32)
    shown = shown_in_lists(ranked_as_numbered(layout, rows), USER, NOTHING, list_length=3)
    per_row = shown / np.repeat(layout.group_sizes, 2)
    assert per_row == pytest.approx(worth, abs=1e-6)
    ranked = rank_blocks(layout, "int8", per_row, rows)
    room = int(layout.block_bytes("int8")[kept].sum())
    elastic = ElasticEmbedding(ranked, USER[0], np.zeros(0, np.int64))
    assert elastic.kept(overhead_bytes(2) + room).tolist() == kept
