"""Compiled loops over the devices of a cohort: local training, ranking, weight signals; and over rows of tables.

Every loop handles the devices of one user group, one after the other, on the group's ranked blocks
(:class:`fl_peel.blocks.ranked_blocks.RankedBlocks`): ``table`` (R, d) holds the rows the group was sent, ``position``
(R, S) the rank of each block and ``first_position`` (R,), ascending, each row's best rank. A device that keeps the
first ``c`` blocks has the rows with ``first_position < c`` and, of those, the slices with ``position < c``: no table is
copied per device, and memory does not grow with the cohort.

Sums over devices are integers in units of ``1 / FIXED_POINT``. Integer addition is associative, so that a sum does not
depend on the order of devices or on how they are spread over nodes.

The readable twins are in ``tests/helpers/readable_twins.py``; tests compare the two.
"""

from pathlib import Path

from fl_peel.kernels.compile_cache import choose_cache_folder

choose_cache_folder(Path(__file__).parent)

from fl_peel.kernels.packing import (
    add_rows,
    coding_errors,
    decode_int8,
    encode_integers,
    largest_magnitudes,
    step_rows,
)
from fl_peel.kernels.random import count_examples, draw_batches, draw_items, weighted_sums
from fl_peel.kernels.ranking import block_signals, bounded_hits, find_hits, serving_cutoffs, tile_rows, top_rows
from fl_peel.kernels.sparse_product import add_passed_rows, add_scaled_rows, neighbour_scores, spread_rows, sum_rows
from fl_peel.kernels.training import train_devices

FIXED_POINT = float(1 << 24)
"""Resolution of sums: an update of one device is rounded to the nearest 2**-24 (6e-8)."""

__all__ = [
    "FIXED_POINT",
    "add_passed_rows",
    "add_rows",
    "add_scaled_rows",
    "block_signals",
    "bounded_hits",
    "coding_errors",
    "count_examples",
    "decode_int8",
    "draw_batches",
    "draw_items",
    "encode_integers",
    "find_hits",
    "largest_magnitudes",
    "neighbour_scores",
    "serving_cutoffs",
    "spread_rows",
    "step_rows",
    "sum_rows",
    "tile_rows",
    "top_rows",
    "train_devices",
    "weighted_sums",
]
