"""Owners in a round of refinement under secure aggregation: they are counted first, and few of them open nothing.

A device that trains changes the rows of its items and those of others, as negatives: a row's sum is over many devices,
of which few may have the item. What such a sum says is then what these have. Before each round devices therefore say,
in a sum of its own over the same devices of the same user group, of which slices of rows they have the item and learn
from it. Where :func:`fl_peel.steps.base.opened_rows` says no they then say zeros, as of a row that stays closed in a
step of stage 1. Who touches a row is not counted, since nearly everybody does.

They count once they have trained, so that who is late or loses its memory is in neither sum. Validation hits of a block
are of fewer devices than that almost everywhere, so such rounds have no signals
(:func:`fl_peel.exchange.release.wants_signals`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import ArraySpec
from fl_peel.exchange.bounded_statistic import GroupShape
from fl_peel.secure.device_protocol import DeviceBytes
from fl_peel.secure.vector import CHECK, Field, Values, VectorLayout
from fl_peel.training.update import GroupUpdate

OWNER_ARRAYS = {"owners": ArraySpec(("R", "S"), least=0, most="N")}
"""What N devices count: those that have the item of each of R rows, by slice."""


def owners_layout(group: GroupShape, *, num_devices: int) -> VectorLayout:
    """Return the layout of the vector in which devices of a user group count."""
    return VectorLayout((Field("owners", (group.rows, group.slices), 32), Field(CHECK, (1,), 64)), num_devices)


def owners_bytes(neighbours: int, group: GroupShape, layout: VectorLayout) -> DeviceBytes:
    """Return the bytes that counting takes of a device with so many neighbours: the exchanges of the protocol, and
    what is opened, a bit each.
    """
    moved = DeviceBytes.from_sizes(neighbours, layout.num_bytes)
    return DeviceBytes(moved.download + -(-group.rows * group.slices // 8), moved.upload, moved.vector)


def owned(update: GroupUpdate) -> Values:
    """Return what one device counts. update: its own, of this round."""
    mine = (update.row_examples > 0)[:, None] & (update.touched > 0)
    return {"owners": mine.astype(np.int64)}


def closed(values: Values, opened: NDArray[np.bool_]) -> Values:
    """Return a device's contribution, with an entry for every row, and zeros for all that stays closed. opened: (R, S)
    slices of rows.
    """
    rows = opened.any(axis=1)
    masks = {"touched": opened, "row_loss": rows, "row_examples": rows}
    result: Values = {}
    for name, array in values.items():
        if name in ("sums", "updates"):
            by_slice = array.reshape(*opened.shape, -1)
            result[name] = np.where(opened[:, :, None], by_slice, 0).reshape(array.shape)
        else:
            result[name] = np.where(masks[name], array, 0) if name in masks else array
    return result
