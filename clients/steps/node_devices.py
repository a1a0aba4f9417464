"""Devices of a node that answer a step: their items, and the vectors that they keep on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from clients.node.cohort import Cohort
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.errors import EngineError, MessageError
from fl_peel.steps.units import Floats, Ints, add_rows, unit_vectors


@dataclass(frozen=True)
class NodeDevices:
    """The hosted devices at ``places`` (N,); see :class:`fl_peel.steps.base.StepDevices`."""

    cohort: Cohort
    places: IntArray

    @cached_property
    def contributed(self) -> UserItems:
        """See :class:`fl_peel.steps.base.StepDevices`."""
        return self.cohort.splits.contributed_items.select(self.places)

    @cached_property
    def train(self) -> UserItems:
        """See :class:`fl_peel.steps.base.StepDevices`."""
        return self.cohort.splits.train.select(self.places)

    @cached_property
    def validation(self) -> UserItems:
        """See :class:`fl_peel.steps.base.StepDevices`."""
        return self.cohort.splits.validation.select(self.places)

    @cached_property
    def _vectors(self) -> Floats:
        """The vectors of all hosted devices, mapped."""
        return cast(Floats, np.load(self.cohort.vectors_file, mmap_mode="r"))

    def vectors(self, some: Ints | None = None, columns: int | None = None) -> Floats:
        """See :class:`fl_peel.steps.base.StepDevices`.

        Raises:
            MessageError: vectors have fewer columns.
        """
        if columns is not None and columns > self._vectors.shape[1]:
            raise MessageError(f"StepRequest: {columns} columns of vectors of {self._vectors.shape[1]}")
        return np.asarray(self._vectors[:, :columns][self.places if some is None else self.places[some]])

    def keep_vectors(self, table: Floats, first: int, columns: int, default: Floats | None) -> None:
        """See :class:`fl_peel.steps.base.StepDevices`; all hosted devices make their vectors, also those that are
        offline, as soon as they come back: a vector depends on no other device.
        """
        cohort, path = self.cohort, self.cohort.vectors_file
        rows = add_rows(table, cohort.rows, cohort.fading)
        if table.shape[1] < columns:  # as they are, so that any part of them may be asked for again
            rows = _in_parts(path.with_suffix(".parts.npy"), first, columns, rows)
        if first + table.shape[1] == columns:
            vectors = unit_vectors(rows)
            if default is not None:
                vectors[cohort.joining & (cohort.rows.counts() == 0)] = default
            path.parent.mkdir(parents=True, exist_ok=True)
            done = path.with_suffix(".done.npy")
            np.save(done, vectors)
            done.replace(path)


def _in_parts(path: Path, first: int, columns: int, part: Floats) -> Floats:
    """All columns of devices' vectors (N, K) so far, with this part (N, k) of them.

    Raises:
        EngineError: the parts before it are not there.
    """
    shape = (len(part), columns)
    if first == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, "w+", np.float32, shape)
    try:
        rows = np.load(path, mmap_mode="r+")
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: devices have not computed the first columns of their vectors") from error
    if rows.shape != shape:
        raise EngineError(f"{path}: of shape {rows.shape}, not {shape}; start the run again")
    rows[:, first : first + part.shape[1]] = part
    rows.flush()
    return cast(Floats, rows)
