"""Quality of what a federated rival serves: PEEL's own ranking, and bytes as they are stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fl_peel.blocks.compression import DenseTable, stored_bytes
from fl_peel.blocks.precision import dequantize, quantize
from fl_peel.blocks.settings import Precision
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import UserItems
from fl_peel.ranking.top import recall_ndcg, top_rows
from strategies.rivals.base import TOP_N, Request, Split, whole_table
from strategies.rivals.federated.base import FederatedContext, FloatArray, IntArray, RowUpdates, ServedTables
from strategies.rivals.quality import DeviceQuality


def quality(
    served: ServedTables,
    context: FederatedContext,
    split: Split,
    precision: Precision = "fp32",
    among: IntArray | None = None,
) -> dict[str, float]:
    """Mean Recall@20 and NDCG@20 over devices (or the given ones) with at least one item to find."""
    return served_quality(served, context, split, precision, among).mean()


def served_quality(
    served: ServedTables,
    context: FederatedContext,
    split: Split,
    precision: Precision = "fp32",
    among: IntArray | None = None,
) -> DeviceQuality:
    """Return the quality for each device (or each of the given ones) with at least one item to find."""
    splits = context.splits
    wanted = splits.test if split == "test" else splits.validation
    exclude = context.seen if split == "test" else splits.train
    asked = np.arange(context.num_devices) if among is None else among
    recall, ndcg = np.zeros(context.num_devices), np.zeros(context.num_devices)
    chosen = asked[wanted.counts()[asked] > 0]
    for place, table in enumerate(served.tables):
        tier = chosen[served.tier[chosen] == place]
        for some in context.chunks(tier):
            users = stored_user(np.ascontiguousarray(served.users[some, : table.shape[1]]))
            option = whole_table(Request(precision, 1.0, 0), DenseTable.from_table(table, precision), users, 0.0)
            hidden = exclude.select(some)
            if served.own is None:
                best = top_rows(option.ranked, option.test_cutoffs, users, hidden, TOP_N)
            else:
                own = select_devices(served.own, some)
                theirs = UserItems(own.indptr, own.items)
                others = top_rows(option.ranked, option.test_cutoffs, users, hidden.merged(theirs), TOP_N)
                rows = as_stored(served.tables[place][own.items] + own.rows, precision)
                best = with_own_rows(others, option.ranked.table, users, hidden, replace(own, rows=rows), TOP_N)
            recall[some], ndcg[some] = recall_ndcg(option.ranked, best, wanted.select(some), TOP_N)
    return DeviceQuality(chosen, recall[chosen], ndcg[chosen], np.ones(len(chosen), np.bool_))


def held_bytes(served: ServedTables, precision: Precision) -> IntArray:
    """Bytes (U,) of what each device holds to rank: header, vector in fp16, its whole table."""
    sizes = [stored_bytes(DenseTable.from_table(table, precision)) for table in served.tables]
    return np.array(sizes, np.int64)[served.tier]


def as_stored(rows: FloatArray, precision: Precision) -> FloatArray:
    """Rows (E, w) as they come back from storage."""
    return dequantize(*quantize(rows, precision), precision, rows.shape[1])


def select_devices(updates: RowUpdates, devices: IntArray) -> RowUpdates:
    """The updates of these devices (N,) alone, in this order."""
    numbered = UserItems(updates.indptr, np.arange(len(updates.items), dtype=np.int32)).select(devices)
    return RowUpdates(numbered.indptr, updates.items[numbered.items], updates.rows[numbered.items])


def with_own_rows(
    others: np.ndarray, table: FloatArray, users: FloatArray, hidden: UserItems, own: RowUpdates, n: int
) -> np.ndarray:
    """The n best items (N, n) of each device where some rows are its own; -1 where it has fewer.

    others: the best (N, n) among all items but these and hidden ones; own.rows: whole rows. Ties go to the smaller
    item, as in the ranking loop.
    """
    best = np.full_like(others, -1)
    for k in range(len(users)):
        some = slice(own.indptr[k], own.indptr[k + 1])
        allowed = ~np.isin(own.items[some], hidden.row(k))
        rest = others[k][others[k] >= 0]
        items = np.concatenate([own.items[some][allowed], rest])
        scores = np.concatenate([own.rows[some][allowed], table[rest]]) @ users[k]
        order = np.lexsort((items, -scores))[:n]
        best[k, : len(order)] = items[order]
    return best
