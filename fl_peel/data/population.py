"""Synthetic populations of any size, for scale tests: power-law popularity, planted taste groups, written in chunks.

A device belongs to a group drawn evenly, an item to the world ``item % num_groups`` with the rank ``item //
num_groups`` in it. A device takes items of its own world (or, with probability ``noise``, of another world drawn
evenly); within a world the item of rank r is drawn with a weight of (r + 1) ** -exponent, without repeats. How many
items it takes is log-normal. All of a device depends on the seed, the worlds and its own number alone: a larger
population has the smaller one as its beginning, and chunks of any size give the same files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.data.interactions import CONTRIBUTED, PARTS, Splits, UserItems
from fl_peel.errors import DataError
from fl_peel.mmap_arrays import drop_pages
from fl_peel.randomness import device_seeds, device_uniforms

CHUNK = 50_000
"""Devices made at a time, by default: a few dozen megabytes."""


@dataclass(frozen=True)
class Population:
    """Recipe of a synthetic population. median_items, sigma: parameters of the log-normal number of items per device,
    which is clipped to at least ``min_items`` and at most half a world; noise: share of the items from other worlds;
    exponent: exponent of the power law of popularity; held_out: share of a device's items for validation, and the
    same share for test.
    """

    seed: int
    num_devices: int
    num_items: int
    num_groups: int = 16
    median_items: float = 20.0
    sigma: float = 0.7
    min_items: int = 5
    noise: float = 0.1
    exponent: float = 0.8
    held_out: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            DataError: a parameter is out of its range.
        """
        if self.num_devices < 1 or not 1 <= self.num_groups <= self.num_items:
            raise DataError(
                f"population: num_devices={self.num_devices} must be at least 1, num_groups={self.num_groups} in "
                f"1..num_items={self.num_items}"
            )
        if not (0 <= self.noise <= 1 and 0 <= self.held_out < 0.5):
            raise DataError(f"population: noise={self.noise} must lie in 0..1, held_out={self.held_out} in 0..0.5")
        if self.noise and self.num_groups == 1:
            raise DataError(f"population: noise={self.noise} needs a second group to take items from")
        if not 1 <= self.min_items <= self._most_items:
            raise DataError(
                f"population: min_items={self.min_items} must lie in 1..{self._most_items}, half a world; "
                "use more items or fewer groups"
            )

    @property
    def _most_items(self) -> int:
        return self.num_items // self.num_groups // 2

    @cached_property
    def _cumulative(self) -> NDArray[np.float64]:
        """Cumulative weights of the ranks of the largest world, (ranks,)."""
        ranks = -(-self.num_items // self.num_groups)
        return np.cumsum((np.arange(ranks) + 1.0) ** -self.exponent)

    def groups(self, devices: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the group of each device, (N,)."""
        uniforms = device_uniforms(self.seed, "population", "group", devices=devices)
        return np.minimum(uniforms * self.num_groups, self.num_groups - 1).astype(np.int32)

    def counts(self, start: int, stop: int) -> NDArray[np.int64]:
        from scipy.special import ndtri  # of which runs on data sets need nothing

        uniforms = device_uniforms(self.seed, "population", "count", devices=np.arange(start, stop))
        wanted = np.rint(self.median_items * np.exp(self.sigma * ndtri(np.maximum(uniforms, 1e-16))))
        return np.clip(wanted, self.min_items, self._most_items).astype(np.int64)

    def rows(self, start: int, stop: int) -> UserItems:
        """Return the items of the devices start..stop-1, in the order drawn."""
        indptr = np.zeros(stop - start + 1, np.int64)
        np.cumsum(self.counts(start, stop), out=indptr[1:])
        items = np.empty(indptr[-1], np.int32)
        devices = np.arange(start, stop)
        seeds = device_seeds(self.seed, "population", "items", devices=devices)
        kernels.draw_items(
            seeds, self.groups(devices), indptr, self._cumulative, self.num_items, self.num_groups, self.noise, items
        )
        return UserItems(indptr, items)

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[int, UserItems]]:
        """Iterate over chunks: the number of the first device, and the items."""
        for start in range(0, self.num_devices, size):
            yield start, self.rows(start, min(start + size, self.num_devices))

    def write(self, folder: Path, *, chunk: int = CHUNK) -> None:
        """Write all parts where ``data.path`` can name them, through memory maps, one chunk at a time."""
        folder.mkdir(parents=True, exist_ok=True)
        totals = np.zeros(3, np.int64)
        for start in range(0, self.num_devices, chunk):
            totals += self._shares(self.counts(start, min(start + chunk, self.num_devices))).sum(axis=1)
        pointers, items = [], []
        for part, total in zip(PARTS, totals, strict=True):
            pointers.append(_created(folder / f"{part}-indptr.npy", np.int64, self.num_devices + 1))
            items.append(_created(folder / f"{part}-items.npy", np.int32, int(total)))
        ends = np.zeros(3, np.int64)
        for start, rows in self.chunks(chunk):
            shares = self._shares(rows.counts())  # (3, N)
            part_of = np.repeat(np.tile(np.arange(3), rows.num_users), shares.T.reshape(-1))  # (interactions,)
            for i in range(3):
                stops = ends[i] + np.cumsum(shares[i])
                pointers[i][start + 1 : start + 1 + len(stops)] = stops
                if stops[-1] > ends[i]:
                    items[i][ends[i] : stops[-1]] = rows.items[part_of == i]
                ends[i] = stops[-1]
            drop_pages(*pointers, *items)
        for array in [*pointers, *items]:
            if isinstance(array, np.memmap):
                array.flush()
        np.save(folder / "num_items.npy", np.int64(self.num_items))

    def _shares(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of a device's items are train, validation and test, (3, N)."""
        held_out = np.floor(counts * self.held_out).astype(np.int64)
        return np.stack([counts - 2 * held_out, held_out, held_out])


def read_splits(folder: Path, *, beyond: bool = False) -> Splits:
    """What :meth:`Population.write` wrote, mapped into memory. beyond: whether devices may have items that no table has
    a row of, as in a timeline.

    Raises:
        DataError: a file is missing, or is not what it must be.
    """
    contributed = (CONTRIBUTED,) if (folder / f"{CONTRIBUTED}-items.npy").is_file() else ()
    names = [f"{part}-{what}.npy" for part in (*PARTS, *contributed) for what in ("indptr", "items")]
    try:
        stamps = tuple((folder / name).stat().st_mtime_ns for name in (*names, "num_items.npy"))
    except OSError as error:
        raise _damaged(folder, f"{error.strerror}: {Path(error.filename).name}") from error
    return _read(folder, stamps, bool(contributed), beyond)


@lru_cache(maxsize=4)
def _read(folder: Path, stamps: tuple[int, ...], contributed: bool, beyond: bool) -> Splits:
    """``stamps`` keep the cache from answering with older files."""
    num_items = _array(folder, "num_items", np.dtype(np.int64), 0)
    if not 0 < int(num_items) < 1 << 31:
        raise _damaged(folder, f"num_items.npy has {int(num_items)} items")
    limit = 1 << 31 if beyond else int(num_items)
    parts = [_rows(folder, part, limit) for part in (*PARTS, *((CONTRIBUTED,) if contributed else ()))]
    if len({part.num_users for part in parts}) > 1:
        raise _damaged(folder, f"its parts are of {[part.num_users for part in parts]} devices")
    return Splits(parts[0], parts[1], parts[2], int(num_items), parts[3] if contributed else None)


def _rows(folder: Path, part: str, limit: int) -> UserItems:
    indptr = _array(folder, f"{part}-indptr", np.dtype(np.int64), 1)
    items = _array(folder, f"{part}-items", np.dtype(np.int32), 1)
    if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(items) or (np.diff(indptr) < 0).any():
        raise _damaged(folder, f"{part}-indptr.npy does not divide the {len(items)} items of {part}-items.npy")
    if len(items) and (items.min() < 0 or items.max() >= limit):
        raise _damaged(folder, f"{part}-items.npy has items from {items.min()} to {items.max()}, not 0 to {limit - 1}")
    drop_pages(indptr, items)
    return UserItems(indptr, items)


def _array(folder: Path, name: str, dtype: np.dtype[Any], dimensions: int) -> NDArray[Any]:
    try:
        array = np.load(folder / f"{name}.npy", mmap_mode="r")  # no more of it is read than is there
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(folder, f"{name}.npy: {' '.join(str(error).split())[:120]}") from error
    if array.dtype != dtype or array.ndim != dimensions:
        raise _damaged(folder, f"{name}.npy: {array.ndim} dimensions of {array.dtype}, not {dimensions} of {dtype}")
    return np.asarray(array)


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"{folder}: no devices' items: {why}; write the folder again")


def _created(path: Path, dtype: type[np.generic], length: int) -> NDArray[np.generic]:
    if length == 0:  # an empty file cannot be mapped
        np.save(path, np.zeros(0, dtype))
        return np.zeros(0, dtype)
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))
    mapped[:1] = 0
    return mapped
