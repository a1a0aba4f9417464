"""Rows of many tables in one file, written and read table after table."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_peel.mmap_arrays import drop_pages_now
from strategies.groups.group_tables import FloatArray, write_all

Sum = tuple[int, int]
"""Number of bytes of one table's rows, and their CRC-32."""


@dataclass(frozen=True)
class RowFile:
    """A file of rows. It does not describe itself: its writer keeps the sums."""

    path: Path

    def write(self, tables: Sequence[tuple[FloatArray, NDArray[np.bool_]]]) -> list[Sum]:
        """Write of each table (I, d) the rows (I,) that are named, over whatever was there.

        Raises:
            OSError: it cannot be written, as on a full disk.
        """
        sizes = [int(rows.sum()) * table.shape[1] * 4 for table, rows in tables]
        places = np.cumsum([0, *sizes])
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)

        def write_table(number: int) -> Sum:
            table, rows = tables[number]
            data = memoryview(np.ascontiguousarray(table[rows], np.float32).reshape(-1).data).cast("B")
            drop_pages_now(table)
            write_all(file, data, int(places[number]))
            return len(data), zlib.crc32(data)

        try:
            with ThreadPoolExecutor(max_workers=2) as pool:
                return list(pool.map(write_table, range(len(tables))))
        finally:
            os.close(file)

    def check(self, sums: Sequence[Sum]) -> None:
        """Whether these rows are in the file.

        Raises:
            OSError: it cannot be read.
            ValueError: other rows are.
        """
        with self.path.open("rb") as file:
            for num_bytes, wanted in sums:
                if os.fstat(file.fileno()).st_size < file.tell() + num_bytes:
                    raise ValueError("rows of tables are missing")
                if zlib.crc32(file.read(num_bytes)) != wanted:
                    raise ValueError("rows of tables do not fit their sums")

    def read(self, tables: Sequence[tuple[FloatArray, NDArray[np.bool_]]], sums: Sequence[Sum]) -> None:
        """Rows of a file that was checked, to where they were written from."""
        with self.path.open("rb") as file:
            for (table, rows), (num_bytes, _) in zip(tables, sums, strict=True):
                table[rows] = np.frombuffer(file.read(num_bytes), np.float32).reshape(-1, table.shape[1])
                drop_pages_now(table)


__all__ = ["RowFile", "Sum"]
