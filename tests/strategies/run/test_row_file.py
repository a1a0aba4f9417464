"""Rows of tables in a file come back as they were, or not at all."""

import numpy as np
import pytest

from strategies.run.row_file import RowFile

RNG = np.random.default_rng(3)


def some_tables():
    """Of three sizes: some rows, none, all."""
    tables = [RNG.standard_normal((rows, 4)).astype(np.float32) for rows in (5, 7, 3)]
    return [
        (table, rows)
        for table, rows in zip(tables, (RNG.random(5) < 0.5, np.zeros(7, bool), np.ones(3, bool)), strict=True)
    ]


def test_rows_come_back_where_they_were(tmp_path):
    tables, file = some_tables(), RowFile(tmp_path / "rows")
    sums = file.write(tables)
    file.check(sums)
    others = [(np.zeros_like(table), rows) for table, rows in tables]
    file.read(others, sums)
    for (table, rows), (other, _) in zip(tables, others, strict=True):
        assert np.array_equal(other[rows], table[rows])
        assert not other[~rows].any()


def test_a_file_is_written_over(tmp_path):
    file = RowFile(tmp_path / "rows")
    file.write(some_tables())
    tables = some_tables()[2:]
    sums = file.write(tables)
    file.check(sums)
    other = np.zeros_like(tables[0][0])
    file.read([(other, tables[0][1])], sums)
    assert np.array_equal(other, tables[0][0])


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_other_rows_are_told(damage, tmp_path):
    file = RowFile(tmp_path / "rows")
    sums = file.write(some_tables())
    data = bytearray(file.path.read_bytes())
    if damage == "gone":
        file.path.unlink()
    else:
        data[-1] ^= 1
        file.path.write_bytes(data[:-1] if damage == "cut" else data)
    with pytest.raises((ValueError, OSError)):
        file.check(sums)
