"""Block precision: error bounds at every magnitude, and rows that are special."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.blocks.layout import (
    BlockLayout,
    code_columns,
    code_dtype,
    dequantize,
    has_scales,
    integer_scales,
    quantize,
    row_bytes,
    scale_divisors,
)
from fl_peel.blocks.ranked_blocks import pack_blocks
from fl_peel.errors import ScenarioError
from fl_peel.scenario.settings import PRECISIONS
from tests.helpers.blocks import seeds
from tests.helpers.examples import examples
from tests.helpers.readable_twins import integer_codes


def rows_at(seed: int, exponents: list[int], num_dims: int) -> np.ndarray:
    """Normal rows (R, num_dims), one per exponent, of magnitude 10 ** exponent."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(len(exponents), num_dims)) * 10.0 ** np.array(exponents, float)[:, None]
    return rows.astype(np.float32)


def round_trip(rows: np.ndarray, precision: str) -> np.ndarray:
    codes, scales = quantize(rows, precision)
    return dequantize(codes, scales, precision, rows.shape[1])


magnitudes = st.lists(st.integers(-9, 4), min_size=1, max_size=6)


def test_row_bytes_by_hand():
    assert {p: row_bytes(5, p) for p in PRECISIONS} == {"fp32": 20, "fp16": 10, "int8": 5 + 2, "int4": 3 + 2}
    assert {p: row_bytes(64, p) for p in PRECISIONS} == {"fp32": 256, "fp16": 128, "int8": 66, "int4": 34}


@examples(60)
@given(seed=seeds, num_rows=st.integers(0, 5), num_dims=st.integers(1, 9), precision=st.sampled_from(PRECISIONS))
def test_codes_have_the_promised_bytes(seed, num_rows, num_dims, precision):
    rows = rows_at(seed, [0] * num_rows, num_dims)
    codes, scales = quantize(rows, precision)
    assert codes.dtype == code_dtype(precision)
    assert codes.shape == (num_rows, code_columns(num_dims, precision))
    assert scales.shape == ((num_rows,) if has_scales(precision) else (0,))
    assert codes.nbytes + scales.nbytes == num_rows * row_bytes(num_dims, precision)
    assert dequantize(codes, scales, precision, num_dims).shape == rows.shape


@examples(150)
@given(seed=seeds, exponents=magnitudes, num_dims=st.integers(1, 9))
def test_floats_lose_nothing_or_half_a_unit_in_the_last_place(seed, exponents, num_dims):
    rows = rows_at(seed, exponents, num_dims)
    assert (round_trip(rows, "fp32") == rows).all()
    # 11 significant bits: 2**-11 of the value; below 2**-14 the steps are 2**-24 wide, half of that is 2**-25
    error = np.abs(round_trip(rows, "fp16").astype(np.float64) - rows)
    assert (error <= 2.0**-11 * np.abs(rows) + 2.0**-25).all()


@pytest.mark.parametrize("num_dims", [1, 7, 8, 64, 65, 128, 129, 300])
def test_compiled_codes_are_those_of_the_readable_twin(num_dims):
    rows = rows_at(3, [-6, -3, 0, 1] * 50, num_dims)
    rows[::17] = 0
    codes, _ = quantize(rows, "int8")
    assert np.array_equal(codes, integer_codes(rows, 127, (1.0,)))
    packed, scales = quantize(rows, "int4")
    codes = dequantize(packed, np.ones_like(scales), "int4", num_dims)
    assert np.array_equal(codes, integer_codes(rows, 7, (1.0, 0.9, 0.8, 0.7)))
    some = np.array([5, 2, 170])
    assert np.array_equal(quantize(rows, "int4", some)[0], packed[some])


@examples(150)
@given(seed=seeds, exponents=magnitudes, num_dims=st.integers(1, 9))
def test_int8_is_within_half_a_step_at_every_magnitude(seed, exponents, num_dims):
    rows = rows_at(seed, exponents, num_dims)
    codes, scales = quantize(rows, "int8")
    steps = scales.astype(np.float64)[:, None]
    error = np.abs(codes * steps - rows)
    assert (error <= 0.5 * steps * (1 + 1e-6)).all()
    assert (dequantize(codes, scales, "int8", num_dims) == codes * scales.astype(np.float32)[:, None]).all()
    # and the step is no wider than it must be: the largest magnitude / 127, up to the rounding of the scale
    needed = np.abs(rows).max(axis=1) / 127
    assert (scales <= needed * (1 + 2.0**-11) + 2.0**-24).all()


@examples(150)
@given(seed=seeds, exponents=st.lists(st.integers(-2, 4), min_size=1, max_size=6), num_dims=st.integers(1, 9))
def test_int4_is_no_worse_than_scaling_by_the_maximum(seed, exponents, num_dims):
    rows = rows_at(seed, exponents, num_dims)
    scales = (np.abs(rows).max(axis=1) / 7).astype(np.float16).astype(np.float32)[:, None]
    plain = np.clip(np.rint(rows / scales), -7, 7) * scales
    ours = round_trip(rows, "int4")
    # compared in float64, hence a little room for the sums in float32 by which the clip is chosen
    assert (((ours - rows) ** 2.0).sum(axis=1) <= ((plain - rows) ** 2.0).sum(axis=1) * (1 + 1e-5) + 1e-30).all()


def test_int4_clips_a_lone_large_value_when_that_costs_less():
    # max scaling: step 10/7, so that 3.6 (2.52 steps) becomes 4.29, off by 0.69 in each of seven columns
    rows = np.array([[10.0, 3.6, 3.6, 3.6, 3.6, 3.6, 3.6, 3.6]], np.float32)
    # clipped to 9: 1 off at one place, step 9/7, 3.6 is 2.8 steps -> 3.857, off by 0.257: 1 + 7 x 0.066 = 1.46
    # clipped to 8: 2 off; clipped to 7: 3 off; max scaling: 7 x 0.470 = 3.29
    decoded = round_trip(rows, "int4")[0]
    np.testing.assert_allclose(decoded, [9.0] + [27 / 7] * 7, rtol=1e-3)


@pytest.mark.parametrize(
    "row",
    [
        # steps 1.25 and 1.125 are off by the same: .5625, .375, 0, .625 and .0625, .25, .875, .125
        [5.5625, -5.375, -8.75, -6.875],
        # likewise but for a few units in the last place, less than sums of squares in float32 tell apart
        [5.562502861022949, -5.375004768371582, -8.75, -6.874990463256836],
        [-7.9999895095825195, 8.75, 1.8750056028366089, -3.187485694885254],
    ],
)
def test_int4_clips_nothing_where_that_gains_nothing(row):
    assert quantize(np.array([row], np.float32), "int4")[1].tolist() == [1.25]


def test_a_scale_that_cuts_by_half_a_step_is_kept():
    least = 2.0**-24  # the smallest half-precision number
    largest = np.array([127.5 * least, 127.75 * least], np.float32)
    assert integer_scales(largest, "int8").tolist() == [least, 2 * least]


def test_rows_of_zeros_are_divided_by_one():
    divisors = scale_divisors(np.array([0, 0.5, 3], np.float16))
    assert divisors.dtype == np.float32
    assert divisors.tolist() == [1, 0.5, 3]


@examples(100)
@given(seed=seeds, exponents=magnitudes, num_dims=st.integers(1, 9))
def test_int4_without_clipping_is_within_half_a_step(seed, exponents, num_dims):
    """Values inside the range that the scale spans are off by half a step at most."""
    rows = rows_at(seed, exponents, num_dims)
    codes, scales = quantize(rows, "int4")
    steps = scales.astype(np.float64)[:, None]
    inside = np.abs(rows) <= 7.5 * steps
    error = np.abs(dequantize(codes, scales, "int4", num_dims) - rows.astype(np.float64))
    assert (error <= 0.5 * steps * (1 + 1e-6))[inside].all()
    assert (np.abs(rows) <= 7.5 * steps / 0.69).all()  # nothing is clipped below 70% of the largest


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zero_rows_stay_zero(precision):
    rows = np.zeros((3, 5), np.float32)
    rows[1] = [1, -1, 0.5, 0, 0]
    decoded = round_trip(rows, precision)
    assert not decoded[[0, 2]].any()
    assert decoded[1].any()


def test_odd_columns_of_int4_leave_half_a_byte():
    rows = np.array([[7, -7, 3]], np.float32)  # scale 1, codes 7 -7 3
    codes, scales = quantize(rows, "int4")
    assert scales.tolist() == [1.0]
    # +8 and two to a byte, the first in the low half: 15 | 1 << 4, then 11 | 8 << 4 (the filling is code 0)
    assert codes.tolist() == [[15 + 16, 11 + 128]]
    assert dequantize(codes, scales, "int4", 3).tolist() == [[7, -7, 3]]


@examples(150)
@given(
    seed=seeds,
    exponents=st.lists(st.integers(-1, 4), min_size=1, max_size=4),
    num_dims=st.integers(1, 9),
    precision=st.sampled_from(PRECISIONS),
)
def test_coding_what_was_decoded_changes_nothing(seed, exponents, num_dims, precision):
    """A device stores again what it was sent, and ranks with the same numbers as the evaluation did."""
    rows = rows_at(seed, exponents, num_dims)
    rows[np.abs(rows).max(axis=1) < 0.02] = 0  # below, a scale has fewer than 11 bits
    once = round_trip(rows, precision)
    assert (round_trip(once, precision) == once).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(precision, value):
    rows = np.ones((2, 3), np.float32)
    rows[1, 2] = value
    with pytest.raises(ScenarioError, match="diverged") as caught:
        quantize(rows, precision)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bits", [0x7F800001, 0xFFBFFFFF])
def test_what_signals_that_it_is_no_number_is_refused_without_a_warning(precision, bits):
    """As a damaged file may hold it."""
    rows = np.ones((2, 3), np.float32)
    rows.view(np.uint32)[1, 2] = bits
    layout = BlockLayout(np.arange(2, dtype=np.int32), 3, 1)
    for coded in (lambda: quantize(rows, precision), lambda: pack_blocks(layout, precision, np.arange(2), rows)):
        with pytest.raises(ScenarioError, match="diverged"):
            coded()


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 65504.0), ("int8", 65504.0 * 127), ("int4", 65504.0 * 7)])
def test_what_is_too_large_for_fp16_is_refused(precision, limit):
    assert round_trip(np.full((1, 2), limit, np.float32), precision)[0, 0] == limit
    with pytest.raises(ScenarioError, match=f"cannot be stored as {precision}"):
        quantize(np.full((1, 2), limit * 1.01, np.float32), precision)
    assert round_trip(np.full((1, 2), limit * 1.01, np.float32), "fp32")[0, 0] == np.float32(limit * 1.01)
