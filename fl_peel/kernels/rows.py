"""One row of a table at a time, 16 columns at once, inside compiled loops: a step of descent, and sums in fixed point.

As in :mod:`fl_peel.kernels.lanes`, what is added up is added in an order that is written down. Written out for lanes,
as a compiler cannot know that the arrays do not overlap, and would look at every row anew.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from fl_peel.kernels.lanes import LANES, UNIT, added_lanes, fma, fused_lanes, lanes_at, lanes_of, row_start

_FLOATS, _INTS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)


@intrinsic
def fetch(typingctx, array, row):  # type: ignore[no-untyped-def]
    """Ask for a row of a C-contiguous matrix to be brought near: a hint to the processor, without effect on results."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        num_bytes = builder.mul(cgutils.unpack_tuple(builder, view.shape)[1], view.itemsize)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        start = builder.gep(builder.bitcast(view.data, byte), [builder.mul(arguments[1], num_bytes)])
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        zero, line = (ir.Constant(num_bytes.type, value) for value in (0, 64))
        with cgutils.for_range_slice(builder, zero, num_bytes, line) as (offset, _):
            builder.call(prefetch, [builder.gep(start, [offset]), *(ir.Constant(number, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def _step_lanes(typingctx, table, row, users, i, gradient, step, push, shrink, rate, count):  # type: ignore[no-untyped-def]
    """:func:`step_row` of the first ``count`` columns, a multiple of 16."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        zero = ir.Constant(arguments[1].type, 0)
        places = (0, arguments[1]), (2, arguments[3]), (4, zero), (5, zero)
        rows = [row_start(context, builder, signature.args[at], arguments[at], number) for at, number in places]
        push, shrink, rate = (lanes_of(builder, number) for number in arguments[6:9])
        fused = fused_lanes(builder)
        total = cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, [0.0] * LANES))
        with cgutils.for_range_slice(builder, zero, arguments[9], ir.Constant(zero.type, LANES)) as (column, _):
            value_at, user_at, gradient_at, step_at = (lanes_at(builder, start, column, _FLOATS) for start in rows)
            value, user = builder.load(value_at, align=4), builder.load(user_at, align=4)
            added = builder.call(fused, [push, value, builder.load(gradient_at, align=4)])
            builder.store(added, gradient_at, align=4)
            slope = builder.call(fused, [push, user, builder.fmul(shrink, value)])
            change = builder.fsub(builder.call(fused, [builder.fneg(rate), slope, value]), value)
            builder.store(change, step_at, align=4)
            builder.store(builder.call(fused, [change, change, builder.load(total)]), total)
        return added_lanes(builder, builder.load(total))

    kinds = table, types.int64, users, types.int64, gradient, step
    return types.float32(*kinds, types.float32, types.float32, types.float32, types.int64), generate


@njit(nogil=True, cache=True, inline="always")
def step_row(table, row, users, i, gradient, step, push, shrink, rate):
    """What a step of descent adds to a row whose gradient is push * users[i] + shrink * row, in ``step`` (1, d); the
    user's own gradient grows by push * row in ``gradient`` (1, d). Returns the step's squared norm.
    """
    dim = table.shape[1]
    whole = dim // 16 * 16
    total = _step_lanes(table, row, users, i, gradient, step, push, shrink, rate, whole)
    for c in range(whole, dim):
        value = table[row, c]
        gradient[0, c] = fma(push, value, gradient[0, c])
        step[0, c] = fma(-rate, fma(push, users[i, c], shrink * value), value) - value
        total = fma(step[0, c], step[0, c], total)
    return total


@intrinsic
def _add_lanes(typingctx, sums, row, step, begins, count):  # type: ignore[no-untyped-def]
    """:func:`add_fixed` of the first ``count`` columns, a multiple of 16."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        zero = ir.Constant(arguments[1].type, 0)
        sums_row = row_start(context, builder, signature.args[0], arguments[0], arguments[1])
        step_row = row_start(context, builder, signature.args[2], arguments[2], zero)
        unit, half = (ir.Constant(_FLOATS, [number] * LANES) for number in (UNIT, 0.5))
        kind = ir.FunctionType(_FLOATS, [_FLOATS])
        floor = cgutils.get_or_insert_function(builder.module, kind, f"llvm.floor.v{LANES}f32")
        with cgutils.for_range_slice(builder, zero, arguments[4], ir.Constant(zero.type, LANES)) as (column, _):
            scaled = builder.fmul(builder.load(lanes_at(builder, step_row, column, _FLOATS), align=4), unit)
            below = builder.call(floor, [scaled])
            up = builder.zext(builder.fcmp_ordered(">=", builder.fsub(scaled, below), half), _INTS)
            whole = builder.add(builder.fptosi(below, _INTS), up)
            place = lanes_at(builder, sums_row, column, _INTS)
            before = builder.select(arguments[3], ir.Constant(_INTS, [0] * LANES), builder.load(place, align=4))
            builder.store(builder.add(before, whole), place, align=4)
        return context.get_dummy_value()

    return types.void(sums, types.int64, step, types.boolean, types.int64), generate


@njit(nogil=True, cache=True, inline="always")
def add_fixed(sums, row, step, begins):
    """Add ``step`` (1, d), less than 2**31 units each, to a row of ``sums`` (R, d) int32; begins: there is nothing yet.

    A number times a power of two is exact, and so are its whole part and what is left: 32 bits say what
    :func:`fl_peel.kernels.lanes.fixed` does.
    """
    dim = sums.shape[1]
    whole = dim // 16 * 16
    _add_lanes(sums, row, step, begins, whole)
    for c in range(whole, dim):
        rounded = np.int32(np.floor(np.float64(step[0, c]) * UNIT + 0.5))
        sums[row, c] = rounded if begins else sums[row, c] + rounded
