"""Block precision: how the numbers of an embedding block are stored.

``fp32`` and ``fp16`` store floats. ``int8`` and ``int4`` are symmetric per-row quantization: a row of a block is
``scale * codes`` with one fp16 scale; two int4 codes share a byte. The int8 scale maps the row's largest magnitude
to the largest code; the int4 scale is the one of a few candidates with the least squared error, since with 15
levels clipping a lone large value costs less than a coarse grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_peel.errors import ScenarioError
from fl_peel.scenario.settings import Precision

SCALE_BYTES = 2
"""Bytes of the fp16 scale that each row of an int8 or int4 block carries."""

_INT4_CLIPS = (1.0, 0.9, 0.8, 0.7)
_MAX_CODE = {"int8": 127, "int4": 7}

Codes = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.int8] | NDArray[np.uint8]


def has_scales(precision: Precision) -> bool:
    """Whether rows of this precision carry a scale."""
    return precision in _MAX_CODE


def row_bytes(num_dims: int, precision: Precision) -> int:
    """Bytes of one row of a block of ``num_dims`` columns: its codes and, if any, its scale."""
    match precision:
        case "fp32":
            return 4 * num_dims
        case "fp16":
            return 2 * num_dims
        case "int8":
            return num_dims + SCALE_BYTES
        case "int4":
            return (num_dims + 1) // 2 + SCALE_BYTES


def code_dtype(precision: Precision) -> np.dtype[np.generic]:
    """NumPy type in which codes are stored (int4 packs two codes in a uint8)."""
    return np.dtype({"fp32": "<f4", "fp16": "<f2", "int8": "i1", "int4": "u1"}[precision])


def code_columns(num_dims: int, precision: Precision) -> int:
    """Columns of the code array of a block of ``num_dims`` columns."""
    return (num_dims + 1) // 2 if precision == "int4" else num_dims


def integer_scales(largest: NDArray[np.float32], precision: Precision) -> NDArray[np.float16]:
    """Scale of each row (R,) whose largest magnitude is ``largest`` (R,), for int8 or int4.

    Raises:
        ScenarioError: a magnitude is not finite, or too large for an fp16 scale.
    """
    max_code = _MAX_CODE[precision]
    with np.errstate(over="ignore", invalid="ignore"):
        scales = (largest / max_code).astype(np.float16)  # (R,)
    if not np.isfinite(scales).all():
        raise _unstorable(precision)
    # a tiny scale has few bits: where rounding made it so small that codes would be cut by more than half a step,
    # take the next one
    short = largest > (max_code + 0.5) * scales.astype(np.float32)
    scales[short] = np.nextafter(scales[short], np.float16(np.inf))
    return scales


def scale_divisors(scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """What rows are divided by to get their codes, (R,): 1 for a row of zeros."""
    return np.where(scales > 0, scales, np.float16(1)).astype(np.float32)


def _integer_codes(
    rows: NDArray[np.float32], clip: float, precision: Precision
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    max_code = _MAX_CODE[precision]
    with np.errstate(invalid="ignore"):  # what is no number is refused by its scale
        largest = np.abs(rows).max(axis=1, initial=0.0) * clip
    scales = integer_scales(largest, precision)
    codes = np.clip(np.rint(rows / scale_divisors(scales)[:, None]), -max_code, max_code).astype(np.int8)
    return codes, scales


def _unstorable(precision: Precision) -> ScenarioError:
    return ScenarioError(
        f"embeddings hold values that are not finite or too large, so that they cannot be stored as {precision}: "
        "training diverged; lower the learning rates"
    )


def quantize(rows: NDArray[np.float32], precision: Precision) -> tuple[Codes, NDArray[np.float16]]:
    """Encode rows (R, s): codes (R, code_columns) and scales (R,), the latter empty for floats.

    Raises:
        ScenarioError: a value is not finite, or too large for fp16 or an fp16 scale.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if precision in ("fp32", "fp16"):
        with np.errstate(over="ignore"):
            floats = rows if precision == "fp32" else rows.astype(np.float16)
        if not np.isfinite(floats).all():
            raise _unstorable(precision)
        return floats, np.zeros(0, np.float16)
    codes, scales = _integer_codes(rows, 1.0, precision)
    if precision == "int8":
        return codes, scales
    best = ((codes * scales[:, None].astype(np.float32) - rows) ** 2).sum(axis=1)
    for clip in _INT4_CLIPS[1:]:
        other, other_scales = _integer_codes(rows, clip, precision)
        error = ((other * other_scales[:, None].astype(np.float32) - rows) ** 2).sum(axis=1)
        better = error < best
        codes[better], scales[better], best[better] = other[better], other_scales[better], error[better]
    if codes.shape[1] % 2:
        codes = np.concatenate([codes, np.zeros((len(codes), 1), np.int8)], axis=1)
    nibbles = (codes + 8).astype(np.uint8)  # -7..7 -> 1..15
    return (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).astype(np.uint8), scales


def dequantize(codes: Codes, scales: NDArray[np.float16], precision: Precision, num_dims: int) -> NDArray[np.float32]:
    """Decode to rows (R, num_dims) float32: exactly what the device computes with."""
    if precision in ("fp32", "fp16"):
        return codes.astype(np.float32)
    if precision == "int4":
        packed = codes.astype(np.uint8)
        wide = np.empty((len(packed), 2 * packed.shape[1]), np.int8)
        wide[:, 0::2] = (packed & 15).astype(np.int8) - 8
        wide[:, 1::2] = (packed >> 4).astype(np.int8) - 8
        codes = wide[:, :num_dims]
    return codes.astype(np.float32) * scales[:, None].astype(np.float32)
