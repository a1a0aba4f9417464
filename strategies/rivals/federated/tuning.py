"""A federated rival is trained under every setting of its grid; validation chooses setting and round, then the test is
looked at, once.

What a rival serves is measured by PEEL's own ranking, its bytes as they are stored.

All rivals have as many settings, rounds and looks at validation, so that none has been tuned with more effort.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import numpy as np

from fl_peel.blocks.compression import DenseTable, stored_bytes
from fl_peel.blocks.precision import dequantize, quantize
from fl_peel.blocks.settings import Precision
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import UserItems
from fl_peel.events import Event
from fl_peel.randomness import rng_for
from fl_peel.ranking.top import recall_ndcg, top_rows
from strategies.rivals.base import TOP_N, DeviceQuality, Request, Split, replicates, whole_table
from strategies.rivals.federated.base import Federated, FederatedContext, FloatArray, IntArray, RowUpdates, ServedTables


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


RECALL = "recall@20"


@dataclass(frozen=True)
class Effort:
    """The effort for every setting. rounds: at most; every: rounds between looks at validation; patience: looks without
    a better recall after which it ends; panel: devices that are looked at, drawn by the seed.
    """

    rounds: int = 150
    every: int = 5
    patience: int = 6
    panel: int = 2000


@dataclass(frozen=True)
class BestRound:
    """The best round of a training. recall: of the panel on validation; down, up: (U,) bytes until then; last: rounds
    that were run.
    """

    setting: Any
    round: int
    recall: float
    served: ServedTables
    down: IntArray
    up: IntArray
    last: int


def train(method: Federated[Any], setting: Any, context: FederatedContext, effort: Effort) -> BestRound:
    """Rounds until validation is no longer better, or numbers diverge; devices, messages and server as in
    :class:`Federated`.
    """
    panel = panel_of(context, effort.panel)
    server, kept = method.server(context, setting), method.device_states(context, setting)
    down, up = np.zeros(context.num_devices, np.int64), np.zeros(context.num_devices, np.int64)
    best: BestRound | None = None
    number = 0
    for number in range(1, effort.rounds + 1):
        devices = context.present(number)
        sums = method.nothing(context)
        for some in context.chunks(devices):
            down[some] += method.sent(server, some, context)
            message = method.answer(server, kept, some, number, context, setting)
            up[some] += message.num_bytes
            sums += message
        server = method.merged(server, sums, setting)
        if number % effort.every and number != effort.rounds:
            continue
        final = method.served(server, kept, context, setting)
        if not storable(final):
            break
        for served in choices(final):
            recall = quality(served, context, "validation", among=panel)[RECALL]
            if best is None or recall > best.recall:
                best = BestRound(setting, number, recall, copied(served), down.copy(), up.copy(), number)
        assert best is not None
        if number - best.round >= effort.patience * effort.every:
            break
    return replace(best or diverged(context, setting), last=number)


def storable(served: ServedTables) -> bool:
    """Whether all numbers are finite, and vectors fit fp16: training has not diverged."""
    parts = (*served.tables, *(() if served.own is None else (served.own.rows,)))
    largest = float(np.abs(served.users).max(initial=0))
    return all(np.isfinite(part).all() for part in parts) and largest < float(np.finfo(np.float16).max)


def diverged(context: FederatedContext, setting: Any) -> BestRound:
    """Return the result of a setting under which no table could be served: zero recall for every device."""
    nothing = np.zeros(context.num_devices, np.int64)
    table, users = np.zeros((context.num_items, 1), np.float32), np.zeros((context.num_devices, 1), np.float32)
    return BestRound(setting, 0, 0.0, ServedTables((table,), nothing, users), nothing, nothing, 0)


def choices(served: ServedTables) -> list[ServedTables]:
    """Return what validation chooses from after a round: with devices' own rows, if there are any, and without."""
    return [served] if served.own is None else [served, replace(served, own=None)]


def copied(served: ServedTables) -> ServedTables:
    """Copy what is served now; later rounds change what devices keep."""
    return replace(served, users=served.users.copy())


def panel_of(context: FederatedContext, size: int) -> IntArray:
    """Devices with validation items, at most so many, ascending."""
    able = np.flatnonzero(context.splits.validation.counts() > 0)
    return np.sort(rng_for(context.seed, "federated-panel").permutation(able)[:size])


def tuned(
    method: Federated[Any], context: FederatedContext, precisions: Sequence[Precision], effort: Effort | None = None
) -> dict[str, Any]:
    """The method at its best setting and round: {"rows": one for each precision, "setting", "own_rows",
    "tried", "trained"}.

    Bytes are of the chosen training alone, up to its best round; ``down`` with the table that is served in the end.
    """
    effort = effort or Effort()
    start = time.perf_counter()
    best: BestRound | None = None
    tried = []
    for place, setting in enumerate(method.grid, start=1):
        one = train(method, setting, context, effort)
        tried.append({"setting": plain(setting), "round": one.round, "last": one.last, "validation": one.recall})
        if best is None or one.recall > best.recall:
            best = one
        text = f"{plain(setting)}: validation {RECALL} {one.recall:.4f} after {one.round} rounds"
        context.on_event(Event(method.name, place, len(method.grid), text))
    assert best is not None
    seconds = time.perf_counter() - start
    rows = [
        trial_row(best, context, precision) | {"seconds": seconds, "trials": len(method.grid)}
        for precision in precisions
    ]
    own_rows = best.served.own is not None
    return {"rows": rows, "setting": plain(best.setting), "own_rows": own_rows, "tried": tried, "trained": best}


def trial_row(
    best: BestRound, context: FederatedContext, precision: Precision, served: ServedTables | None = None
) -> dict[str, Any]:
    """Return what is reported of a training at a precision; ``served`` in place of what it serves."""
    shown = served or best.served
    held = held_bytes(shown, precision)
    on_test = served_quality(shown, context, "test", precision)
    return {
        "precision": precision,
        "stored_bytes_max": int(held.max(initial=0)),
        "stored_bytes_mean": float(held.mean()),
        "bytes_down_mean": float((best.down + held).mean()),
        "bytes_up_mean": float(best.up.mean()),
        "rounds": best.round,
        "validation_recall@20": quality(shown, context, "validation", precision)[RECALL],
        **on_test.mean(),
        "replicates": replicates(on_test),
    }


def plain(setting: Any) -> dict[str, Any]:
    """A setting for the report."""
    return asdict(setting) if is_dataclass(setting) and not isinstance(setting, type) else {}
