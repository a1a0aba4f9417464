"""Rows of compare.json, from those of several seeds: means, spread, what validation chose, and the bars."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from simulations.studies.compare.paired import METRICS, Row, ends_of, ratio_of

OWN = ("peel", "peel-single-budget", "group-exposure", "group-popularity")
"""PEEL, and what it is compared with by name."""


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


def summary(rows: Sequence[Row], full: Mapping[str, Any], refinement: Mapping[str, Any], num_devices: int = 0) -> Row:
    """The comparisons that matter, each between what validation chose; recall on test.

    budgets: for each share PEEL's recall, its ratio to the full global table, to fixed orders of user groups (exposure,
    popularity), to the best rival without user groups and the best with them (the rivals that validation likes best;
    ceilings are none) and to PEEL trained for that budget alone; with several seeds also the differences, seed by seed.
    Ratios of rows with replicates have a paired interval beside them, ``..._interval``; num_devices: that have test
    items.
    """

    def ratio(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Row:
        ends = ends_of(ratio_of(one, other, num_devices))
        return {name: _ratio(one["recall@20"], other["recall@20"])} | ({f"{name}_interval": ends} if ends else {})

    lines = []
    for share in sorted({row["share"] for row in rows}):
        here = {row["method"]: row for row in rows if row["share"] == share and row["chosen"]}
        peel = here.get("peel")
        if peel is None:
            continue
        others = [row for row in here.values() if not row.get("ceiling")]
        rival = _best(row for row in others if not row["group_aware"])
        of_groups = _best(row for row in others if row["group_aware"] and row["method"] not in OWN)
        line: Row = {
            "share": share,
            "precision": peel["precision"],
            "recall@20": peel["recall@20"],
            **ratio("to_full_table", peel, full),
        }
        for name, other in (
            ("group_exposure", here.get("group-exposure")),
            ("group_popularity", here.get("group-popularity")),
            ("best_without_groups", rival),
            ("best_with_groups", of_groups),
            ("single_budget", here.get("peel-single-budget")),
        ):
            if other is not None:
                line |= ratio(f"to_{name}", peel, other)
                line |= _difference(name, peel, other)
        for name, other in (("rival", rival), ("rival_with_groups", of_groups)):
            if other is not None and other["recall@20"] > 0:
                line[name] = f"{other['method']} {other['precision']}"
        lines.append(line)
    result: Row = {"budgets": lines}
    for name in ("none", "start", "central"):
        if refinement.get(name) and refinement.get("federated"):
            result |= ratio(f"federated_to_{name}", refinement["federated"], refinement[name])
    return result


def _best(rows: Iterable[Row]) -> Row | None:
    """Return the row that is best on validation."""
    return max(rows, key=lambda row: row["validation_recall@20"], default=None)


def _difference(name: str, one: Row, other: Row) -> Row:
    """Recall of one minus that of the other, seed by seed: mean and standard deviation, where there are several."""
    if "recall@20_by_seed" not in one:
        return {}
    differences = [a - b for a, b in zip(one["recall@20_by_seed"], other["recall@20_by_seed"], strict=True)]
    return {
        f"minus_{name}": statistics.fmean(differences),
        f"minus_{name}_std": statistics.stdev(differences),
    }


def _ratio(value: float, reference: float) -> float | None:
    return value / reference if reference > 0 else None
