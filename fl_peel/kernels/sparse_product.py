"""Compiled sparse products of pretraining. A sum adds its terms one by one, in the order that they are stored, one
rounding a product and one a sum: the same bits on every processor and for any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from fl_peel.kernels.lanes import LANES, fetch, lanes_at, lanes_of, row_start

WIDE = 64
"""Columns whose sums stay in registers while a row is added up."""
AHEAD = 12
"""Terms after the one that is added, whose row is asked for: rows lie anywhere, and memory takes its time."""


@intrinsic
def _sum_wide(typingctx, indptr, columns, values, table, row, column, out):  # type: ignore[no-untyped-def]
    """Write columns ``column`` .. ``column + WIDE`` of a row of the product: :func:`spread_rows`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        row, column = arguments[4:6]
        number, floats = row.type, ir.VectorType(ir.FloatType(), LANES)

        def constant(value: int, kind: Any = number) -> Any:
            return ir.Constant(kind, value)

        views = [context.make_array(signature.args[at])(context, builder, arguments[at]) for at in range(3)]
        indptr, columns, values = (view.data for view in views)
        first, last = (
            builder.sext(builder.load(builder.gep(indptr, [place])), number)
            for place in (row, builder.add(row, constant(1)))
        )
        final = builder.sub(builder.extract_value(views[1].shape, 0), constant(1))
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)

        def start(term: Any) -> Any:
            there = builder.sext(builder.load(builder.gep(columns, [term])), number)
            return builder.gep(row_start(context, builder, signature.args[3], arguments[3], there), [column])

        places = [constant(place) for place in range(0, WIDE, LANES)]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(floats, [0.0] * LANES)) for _ in places]
        with cgutils.for_range_slice(builder, first, last, constant(1)) as (term, _):
            later = builder.add(term, constant(AHEAD))
            later = start(builder.select(builder.icmp_signed("<", later, final), later, final))
            mine, value = start(term), lanes_of(builder, builder.load(builder.gep(values, [term])))
            for place, total in zip(places, sums, strict=True):
                near = builder.bitcast(builder.gep(later, [place]), byte)
                builder.call(prefetch, [near, constant(0, flag), constant(3, flag), constant(1, flag)])
                product = builder.fmul(value, builder.load(lanes_at(builder, mine, place), align=4))
                builder.store(builder.fadd(builder.load(total), product), total)
        written = builder.gep(row_start(context, builder, signature.args[6], arguments[6], row), [column])
        for place, total in zip(places, sums, strict=True):
            builder.store(builder.load(total), lanes_at(builder, written, place), align=4)
        return context.get_dummy_value()

    kinds = indptr, columns, values, table, types.int64, types.int64, out
    return types.void(*kinds), generate


@njit(nogil=True, cache=True)
def spread_rows(
    indptr,  # (n + 1,) int32
    columns,  # (indptr[-1],) int32
    values,  # (indptr[-1],) float32
    table,  # (m, d) float32
    first,
    last,
    out,  # (n, d) float32, rows first .. last written: of the product of the sparse matrix and the table
    total,  # (n, d) float32, or (0, d): the same rows are added to it
):
    dim = table.shape[1]
    wide = dim // WIDE * WIDE
    rest = np.empty(dim, np.float32)
    adds = len(total) > 0
    for r in range(first, last):
        for c in range(0, wide, WIDE):
            _sum_wide(indptr, columns, values, table, r, c, out)
        if wide < dim:
            rest[:] = np.float32(0.0)
            for k in range(indptr[r], indptr[r + 1]):
                value, other = values[k], columns[k]
                for c in range(wide, dim):
                    rest[c] += value * table[other, c]
            for c in range(wide, dim):
                out[r, c] = rest[c]
        if adds:
            for c in range(dim):
                total[r, c] += out[r, c]


@intrinsic
def _add_scaled_lanes(typingctx, target, to, table, of, factor, first, last):  # type: ignore[no-untyped-def]
    """:func:`add_scaled_rows` of one row and the columns ``first`` .. ``last``, a multiple of 16 of them."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        given, added = (
            row_start(context, builder, signature.args[at], arguments[at], arguments[at + 1]) for at in (2, 0)
        )
        factor = lanes_of(builder, arguments[4])
        with cgutils.for_range_slice(builder, *arguments[5:7], ir.Constant(arguments[5].type, LANES)) as (column, _):
            place = lanes_at(builder, added, column)
            product = builder.fmul(builder.load(lanes_at(builder, given, column), align=4), factor)
            builder.store(builder.fadd(builder.load(place, align=4), product), place, align=4)
        return context.get_dummy_value()

    kinds = target, types.int64, table, types.int64, types.float32, types.int64, types.int64
    return types.void(*kinds), generate


@njit(nogil=True, cache=True)
def add_scaled_rows(
    target,  # (n, d) float32, columns first .. last added to
    into,  # (p,) int32: rows of target
    table,  # (m, d) float32
    rows,  # (p,) int64: rows of table
    factors,  # (p,) float32
    first,
    last,
):
    whole = first + (last - first) // LANES * LANES
    for k in range(len(into)):
        fetch(target, into[min(k + AHEAD, len(into) - 1)])
        factor = factors[k]
        to, of = into[k], rows[k]
        _add_scaled_lanes(target, to, table, of, factor, first, whole)
        for c in range(whole, last):
            target[to, c] += table[of, c] * factor


@njit(nogil=True, cache=True)
def sum_rows(
    indptr,  # (n + 1,) int32
    columns,  # (indptr[-1],) int32
    values,  # (indptr[-1],) float64
    table,  # (m, d) float32
    out,  # (n, d) float32, written: the product of the sparse matrix and the table, added up in float64
):
    dim = table.shape[1]
    row = np.empty(dim)
    for r in range(len(indptr) - 1):
        row[:] = 0.0
        for k in range(indptr[r], indptr[r + 1]):
            value, other = values[k], columns[k]
            for c in range(dim):
                row[c] += value * np.float64(table[other, c])
        for c in range(dim):
            out[r, c] = np.float32(row[c])


@njit(nogil=True, cache=True)
def add_passed_rows(
    indptr,  # (U + 1,) int64
    items,  # (indptr[-1],) int32: items of every user, ascending
    factors,  # (U,) float64
    table,  # (I, k) float32
    opened,  # (I,) bool: rows that are added to
    sums,  # (I, k) int64
):
    """Each user's sum of the rows of its items, times its factor, rounded, is added to the rows of its items."""
    columns = table.shape[1]
    vector, whole = np.empty(columns), np.empty(columns, np.int64)
    for u in range(len(indptr) - 1):
        first, last = indptr[u], indptr[u + 1]
        if first == last:
            continue
        vector[:] = 0.0
        for k in range(first, last):
            item = items[k]
            for c in range(columns):
                vector[c] += np.float64(table[item, c])
        for c in range(columns):
            whole[c] = np.int64(np.rint(vector[c] * factors[u]))
        for k in range(first, last):
            item = items[k]
            if opened[item]:
                for c in range(columns):
                    sums[item, c] += whole[c]


# ---- Compiled scores of items by the interactions of a user's neighbours: two steps through the interaction graph


@njit(nogil=True, cache=True)
def neighbour_scores(
    users,  # (M,) int64: whose scores are wanted
    indptr,  # (U + 1,) int64
    items,  # (indptr[-1],) int32: items of every user
    item_indptr,  # (I + 1,) int64
    item_users,  # (item_indptr[-1],) int32: users of every item
    scores,  # (M, I) float32, added to
):
    num_users = len(indptr) - 1
    weight = np.zeros(num_users, np.float32)
    met = np.empty(num_users, np.int32)
    for k in range(len(users)):
        u = users[k]
        degree = indptr[u + 1] - indptr[u]
        if degree == 0:
            continue
        own = np.float32(1.0 / np.sqrt(np.float64(degree)))
        num_met = 0
        for a in range(indptr[u], indptr[u + 1]):
            i = items[a]
            first, last = item_indptr[i], item_indptr[i + 1]
            step = np.float32(1.0 / np.float64(last - first))
            for b in range(first, last):
                v = item_users[b]
                if weight[v] == 0.0:
                    met[num_met] = v
                    num_met += 1
                weight[v] += step
        for m in range(num_met):
            v = met[m]
            pull = own * weight[v] / np.float32(indptr[v + 1] - indptr[v])
            weight[v] = 0.0
            for a in range(indptr[v], indptr[v + 1]):
                scores[k, items[a]] += pull
