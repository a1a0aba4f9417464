"""Rows and summary of compare.json: PEEL beside the others, each as validation chose it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from fl_peel.figures import Estimate
from fl_peel.ranking.bootstrap import holm
from simulations.studies.paired_rows import Row, ratio_of, ratios_in_json, with_interval

OWN = ("peel", "peel-single-budget", "group-exposure", "group-popularity")
"""PEEL, and what it is compared with by name."""


def with_intervals(rows: Sequence[Row], num_devices: int) -> list[Row]:
    """Rows with ``recall@20_interval`` and ``ndcg@20_interval`` and, where validation chose them, ``peel_over``: PEEL's
    recall at that budget over theirs, each as chosen, and ``p_holm``: p-value of no difference, corrected for all of
    these comparisons (Holm). num_devices: that have test items.
    """
    chosen = {row["share"]: row for row in rows if row["method"] == "peel" and row["chosen"]}
    ratios: list[Estimate | None] = []
    for row in rows:
        peel = chosen.get(row["share"])
        paired = peel is not None and row["chosen"] and row is not peel
        ratios.append(ratio_of(peel, row, num_devices) if paired and peel is not None else None)
    known = [place for place, ratio in enumerate(ratios) if ratio is not None and ratio.p_value is not None]
    corrected = dict(zip(known, holm([cast(Estimate, ratios[place]).p_value or 0.0 for place in known]), strict=True))
    return [
        with_interval(row, num_devices)
        | ratios_in_json("peel_over", ratio)
        | ({"p_holm": corrected[place]} if place in corrected else {})
        for place, (row, ratio) in enumerate(zip(rows, ratios, strict=True))
    ]


def summary(rows: Sequence[Row], full: Mapping[str, Any], refinement: Mapping[str, Any], num_devices: int = 0) -> Row:
    """The comparisons that matter, each between what validation chose; recall on test.

    budgets: for each share PEEL's recall, its ratio to the full global table, to fixed orders of user groups (exposure,
    popularity), to the best rival without user groups and the best with them (the rivals that validation likes best;
    ceilings are none) and to PEEL trained for that budget alone; with several seeds also the differences, seed by seed.
    Ratios of rows with replicates have a paired interval beside them, ``..._interval``; num_devices: that have test
    items.
    """

    def ratio(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Row:
        paired = ratio_of(one, other, num_devices)
        ends = None if paired is None else paired.ends
        return {name: _ratio(one["recall@20"], other["recall@20"])} | ({f"{name}_interval": list(ends)} if ends else {})

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
