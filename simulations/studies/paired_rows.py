"""Rows of a study, from those of several seeds: means, spread, intervals, and ratios of two rows, device by device."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fl_peel.figures import Estimate
from fl_peel.json_codec import to_plain
from fl_peel.ranking.bootstrap import Sample

METRICS = ("recall@20", "ndcg@20")
REPLICATES = "replicates"
"""Key of a row before its intervals are known: metric -> its mean in every replicate."""

Row = dict[str, Any]


def aggregated(by_seed: Sequence[Sequence[Row]]) -> list[Row]:
    """The first seed's rows with means over seeds, and ``*_std`` (sample standard deviation) where there are several.

    Rows of all seeds are in the same order. For each method and budget, ``chosen`` marks the precision with the best
    recall on validation. Replicates are averaged as well: a device has the same weight in all seeds.
    """
    rows: list[Row] = []
    for same in zip(*by_seed, strict=True):
        row = dict(same[0])
        for key in (*METRICS, "validation_recall@20", "seconds"):
            if key in row:
                row[key] = statistics.fmean(other[key] for other in same)
        if "trials" in row:
            row["trials"] = max(other["trials"] for other in same)
        if "stored_bytes_max" in row:
            row["stored_bytes_max"] = max(other["stored_bytes_max"] for other in same)
        if len(same) > 1:
            row |= {f"{metric}_std": statistics.stdev(other[metric] for other in same) for metric in METRICS}
            row["seeds"] = len(same)
            row |= {f"{metric}_by_seed": [other[metric] for other in same] for metric in METRICS}
        if all("replicates" in other for other in same):
            drawn = {m: np.array([other["replicates"][m] for other in same], np.float64).mean(axis=0) for m in METRICS}
            row["replicates"] = {metric: values.tolist() for metric, values in drawn.items()}
        rows.append(row)
    best: dict[tuple[str, float], Row] = {}
    for row in filter(_competes, rows):
        place = (row["method"], row["share"])
        if place not in best or row["validation_recall@20"] > best[place]["validation_recall@20"]:
            best[place] = row
    return [row | {"chosen": row is best[row["method"], row["share"]]} if _competes(row) else row for row in rows]


def _competes(row: Row) -> bool:
    """Whether it is a method at a budget, one precision of several."""
    return "method" in row and "share" in row


def with_interval(row: Mapping[str, Any], num_devices: int) -> Row:
    """A row with the ends of each metric's interval in place of its replicates. Of several seeds intervals are over
    devices and seeds (docs/statistics.md). num_devices: that have test items.
    """
    more: Row = {}
    for metric in METRICS if REPLICATES in row else ():
        ends = _sample(row, metric, num_devices).estimate().ends
        if ends is not None:
            more[f"{metric}_interval"] = list(ends)
    return {key: value for key, value in row.items() if key != REPLICATES} | more


def ratio_of(one: Mapping[str, Any], other: Mapping[str, Any], num_devices: int) -> Estimate | None:
    """Recall of one row over another's, paired; None where one has no replicates, or the other finds nothing. p_value:
    of no difference between the two.
    """
    if REPLICATES not in one or REPLICATES not in other or other["recall@20"] <= 0:
        return None
    samples = [_sample(row, "recall@20", num_devices) for row in (one, other)]
    p_value = samples[0].less(samples[1]).p_value
    if not all(samples[1].by_seed):
        samples = [Sample(sample.value, sample.drawn, sample.devices) for sample in samples]
    ratio = samples[0].over(samples[1])
    return None if ratio is None else replace(ratio.bare(), p_value=p_value)


def ratios_in_json(name: str, ratio: Estimate | None) -> Row:
    """Return a ratio as rows of a study's JSON have it; nothing where there is none."""
    return {} if ratio is None else {name: to_plain(ratio)}


def _sample(row: Mapping[str, Any], metric: str, num_devices: int) -> Sample:
    drawn = np.array(row[REPLICATES][metric], np.float64)  # None: NaN
    return Sample(row[metric], drawn, num_devices, tuple(row.get(f"{metric}_by_seed", ())))
