"""Sums in an order that is written down, inside compiled loops: the same bits on any processor.

A compiler that may reorder sums ("fastmath") does so by the width of the processor's registers. Here a sum is over 16
lanes, added up in halves, and every product is fused with its addition (IEEE 754's fusedMultiplyAdd, one rounding).
Sixteen lanes are a register, two or four, whatever the processor has; one without fused multiplication computes it in
software, tens of times slower.

So is one row of a table at a time, 16 columns at once: a step of descent, and sums in fixed point. They are written
out for lanes, as a compiler cannot know that the arrays do not overlap, and would look at every row anew.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

LANES = 16
_FLOAT, _INT32 = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)


@intrinsic
def fma(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    """a b + c of float32 with one rounding."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(_FLOAT, [_FLOAT] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fma", [_FLOAT], kind), arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


def row_start(context: Any, builder: Any, kind: Any, matrix: Any, row: Any) -> Any:
    """Pointer to the first number of a row of a C-contiguous matrix."""
    view = context.make_array(kind)(context, builder, matrix)
    return builder.gep(view.data, [builder.mul(row, builder.extract_value(view.shape, 1))])


def lanes_at(builder: Any, start: Any, column: Any, kind: Any = _VECTOR) -> Any:
    """Pointer to the lanes of a row that begin with a column."""
    return builder.bitcast(builder.gep(start, [column]), kind.as_pointer())


def lanes_of(builder: Any, value: Any) -> Any:
    """A number in all lanes."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES))


def fused_lanes(builder: Any) -> Any:
    """The function a b + c of 16 lanes, with one rounding each."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")


def added_lanes(builder: Any, lanes: Any) -> Any:
    """Sum of 16 lanes: the upper half onto the lower one, until one is left."""
    width = LANES
    while width > 1:
        width //= 2
        nothing = ir.Constant(lanes.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(lanes, nothing, ir.Constant(ir.VectorType(_INT32, width), list(some)))
            for some in (range(width), range(width, 2 * width))
        )
        lanes = builder.fadd(low, high)
    return builder.extract_element(lanes, ir.Constant(_INT32, 0))


@intrinsic
def _whole_lanes(typingctx, a, i, b, j, first, count):  # type: ignore[no-untyped-def]
    """Sum of a[i, c] b[j, c] over the columns first <= c < first + count, a multiple of 16; C-contiguous matrices."""
    if (a.layout, b.layout, a.dtype, b.dtype) != ("C", "C", types.float32, types.float32):
        raise TypingError(f"dot: {a} and {b} must be C-contiguous matrices of float32")

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        starts = [
            builder.gep(
                row_start(context, builder, signature.args[at], arguments[at], arguments[at + 1]), arguments[4:5]
            )
            for at in (0, 2)
        ]
        fused, number = fused_lanes(builder), arguments[5].type
        total = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES))
        ends = ir.Constant(number, 0), arguments[5], ir.Constant(number, LANES)
        with cgutils.for_range_slice(builder, *ends) as (place, _):
            parts = [builder.load(lanes_at(builder, start, place), align=4) for start in starts]
            builder.store(builder.call(fused, [*parts, builder.load(total)]), total)
        return added_lanes(builder, builder.load(total))

    return types.float32(a, types.int64, b, types.int64, types.int64, types.int64), generate


@njit(nogil=True, cache=True, inline="always")
def dot(a, i, b, j, first, last):
    """Sum of a[i, c] b[j, c] over first <= c < last, of C-contiguous float32 matrices: 16 lanes, then what is left."""
    whole = (last - first) // 16 * 16
    total = _whole_lanes(a, i, b, j, first, whole)
    for c in range(first + whole, last):
        total = fma(a[i, c], b[j, c], total)
    return total


# ---- Numbers as whole multiples of 1 / FIXED_POINT, inside compiled loops


UNIT = 16777216.0  # FIXED_POINT, as a literal


@njit(nogil=True, cache=True, inline="always")
def fixed(value):
    return np.int64(math.floor(np.float64(value) * UNIT + 0.5))


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
