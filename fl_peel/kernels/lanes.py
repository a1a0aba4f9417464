"""Sums in an order that is written down, inside compiled loops: the same bits on any processor.

A compiler that may reorder sums ("fastmath") does so by the width of the processor's registers. Here a sum is over 16
lanes, added up in halves, and every product is fused with its addition (IEEE 754's fusedMultiplyAdd, one rounding).
Sixteen lanes are a register, two or four, whatever the processor has; one without fused multiplication computes it in
software, tens of times slower.
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
