"""Arrays in files are the same, however few of their pages are in memory."""

import numpy as np
import pytest

from fl_peel import mmap_arrays
from fl_peel.mmap_arrays import drop_pages, put_rows, rows_at


@pytest.fixture
def array(tmp_path):
    """Twenty pages in a file."""
    np.save(tmp_path / "it.npy", np.arange(20 * 1024, dtype=np.float32).reshape(20, 1024))
    return np.load(tmp_path / "it.npy", mmap_mode="r+")


@pytest.mark.parametrize("most", [0, 1 << 14, 1 << 30])
def test_rows_are_read_and_written_as_by_index(most, array, tmp_path, monkeypatch):
    monkeypatch.setattr(mmap_arrays, "MOST_IN_MEMORY", most)
    places = np.random.default_rng(0).permutation(20)[:13]
    whole = np.array(array)
    assert (rows_at(array, places) == whole[places]).all()
    assert rows_at(array, places[:0]).shape == (0, 1024)
    put_rows(array, places, -whole[places])
    whole[places] *= -1
    drop_pages(array)
    assert (array == whole).all()
    assert (np.load(tmp_path / "it.npy") == whole).all()


def test_what_is_let_go_is_out_of_memory_and_comes_back(tmp_path, monkeypatch):
    np.save(tmp_path / "it.npy", np.ones(4 << 20, np.float32))
    array = np.asarray(np.load(tmp_path / "it.npy", mmap_mode="r"))
    assert array.sum() == 4 << 20
    before = resident(tmp_path / "it.npy")
    drop_pages(array[:10])
    assert resident(tmp_path / "it.npy") == before, "small ones stay"
    monkeypatch.setattr(mmap_arrays, "MOST_IN_MEMORY", 0)
    drop_pages(array)
    assert resident(tmp_path / "it.npy") < before / 10
    assert array.sum() == 4 << 20


def resident(path) -> int:
    """KiB of a file that this process has in memory."""
    here, total = False, 0
    for line in open("/proc/self/smaps"):  # noqa: SIM115
        if "-" in line.split()[0]:
            here = line.rstrip().endswith(str(path))
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_what_lies_in_memory_is_kept():
    array = np.ones(3)
    drop_pages(array)
    assert array.sum() == 3
