"""Rows of a comparison: central and federated rivals beside the elastic table.

Where nothing is collected rivals are federated: central ones start from a table of interactions. What each federated
rival is, and where it departs from its paper: docs/federated-rivals.md. Stages are kept as in the other comparison.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from clients.fleet.fleet import FleetBudgets, load_fleet
from fl_peel.blocks.compression import largest_dim
from fl_peel.blocks.layout import share_bytes
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.errors import ScenarioError
from fl_peel.figures import Estimate
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import COUNT_EXPONENTS, VALUE_EXPONENTS, Precision
from simulations.run_options import StudyArguments
from simulations.studies.compare_report import COMPARE
from simulations.studies.study import (
    REPLICATES,
    Frame,
    Row,
    Study,
    aggregated,
    corrected,
    decisive,
    ratio_of,
    ratios_in_json,
    with_interval,
)
from strategies.evaluation.trials import Trial
from strategies.rivals.base import Request, Rival, empty_row
from strategies.rivals.bpr import FedAvgBpr
from strategies.rivals.compressed import Hashing, Pep, ProductQuantization
from strategies.rivals.fcf import Fcf
from strategies.rivals.federated import Effort, Federated, FederatedContext, IntArray, Popularity, trial_row, tuned
from strategies.rivals.groups import PerGroup
from strategies.rivals.hetefedrec import HeteFedRec
from strategies.rivals.pfedrec import PFedRec
from strategies.rivals.rule import Rule
from strategies.rivals.server import CachedList, Ease, ItemNeighbours
from strategies.rivals.table_rivals import FixedTiers, MagnitudePruning, SmallerDimension, TruncatedSvd
from strategies.rounds.strategy import sample_cohort

DENSE: tuple[Precision, ...] = ("fp32", "int8", "int4")
SPARSE: tuple[Precision, ...] = ("fp16", "int8", "int4")
SMALL: tuple[Precision, ...] = ("int8", "int4")
BOOKS: tuple[Precision, ...] = ("fp16", "int8")
"""Precisions of codebooks; where groups have their own, int8 alone, which halves the time."""

RIVALS: tuple[tuple[Rival, tuple[Precision, ...]], ...] = (
    (SmallerDimension(), DENSE),
    (TruncatedSvd(), DENSE),
    (PerGroup("truncated-svd-groups", (TruncatedSvd(closest=("plain",)), TruncatedSvd(closest=("by scores",)))), DENSE),
    (MagnitudePruning(), SPARSE),
    (PerGroup("magnitude-pruning-groups", (MagnitudePruning(),)), SPARSE),
    (Pep(), SPARSE),
    (ProductQuantization(), BOOKS),
    (PerGroup("product-quantization-groups", ProductQuantization().settings()), ("int8",)),
    (Hashing(), SMALL),
    (FixedTiers(), DENSE),
    (Rule(), DENSE),
    (CachedList(), ("fp32",)),
)
"""Rivals under every budget, and the precisions each is tried at."""
CEILINGS: tuple[Rival, ...] = (Ease(), ItemNeighbours())
"""Methods of a server that knows no budget: measured once."""


def some(names: Iterable[str]) -> tuple[tuple[tuple[Rival, tuple[Precision, ...]], ...], tuple[Rival, ...]]:
    """Return the members of ``RIVALS`` and of ``CEILINGS`` that have these names.

    Raises:
        ScenarioError: a name that none of them has.
    """
    wanted = set(names)
    known = [rival.name for rival, _ in RIVALS] + [ceiling.name for ceiling in CEILINGS]
    if strange := sorted(wanted - set(known)):
        raise ScenarioError(f"--rivals: unknown {', '.join(strange)}; choose from {', '.join(known)}")
    return (
        tuple(one for one in RIVALS if one[0].name in wanted),
        tuple(one for one in CEILINGS if one.name in wanted),
    )


def modules_of(rival: Rival) -> tuple[str, ...]:
    """Modules that a rival's stage enters: its own, and those of the rivals that it makes for every user group."""
    inside = rival.settings if isinstance(rival, PerGroup) else ()
    return tuple(dict.fromkeys(type(one).__module__ for one in (rival, *inside)))


BUDGETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
WHOLE: tuple[Precision, ...] = ("fp32", "int8")
"""Precisions of the rivals' full tables."""
METHODS: tuple[Federated[Any], ...] = (Popularity(), FedAvgBpr(), Fcf(), PFedRec(), HeteFedRec())
MEANS = ("bytes_down_mean", "bytes_up_mean", "stored_bytes_mean", "rounds")
"""Columns of rows, besides metrics, that are averaged over seeds."""


def nothing_is_collected(scenario: Scenario) -> bool:
    """Whether no interaction leaves a device, in either stage."""
    return scenario.pretraining.by_devices and scenario.pretraining.collected.share == 0


def compare_federated(
    scenario: str | Path | Scenario,
    budgets: Iterable[float] = BUDGETS,
    *,
    seeds: int = 1,
    methods: Sequence[Federated[Any]] = METHODS,
    effort: Effort | None = None,
    **arguments: Unpack[StudyArguments],
) -> dict[str, Any]:
    """Compare PEEL at every budget, and its full tables, with federated rivals; write compare.json and its companions.

    Raises:
        FlPeelError: a mistake in the scenario, data or profiles, or a failed engine; one line each.
    """
    frame = Frame.from_scenario(scenario, arguments)
    _check(frame.scenario)
    shares = tuple(sorted(set(budgets)))
    seeds_done = frame.by_seed(seeds, lambda study: _one_seed(study, shares, methods, effort or Effort()))
    by_seed = list(seeds_done.values())
    rows = aggregated([one["rows"] for one in by_seed])
    for place, line in enumerate(rows):
        line |= {key: statistics.fmean(one["rows"][place][key] for one in by_seed) for key in MEANS}
    devices = by_seed[0]["devices"]
    figures = {
        "full_table": with_interval(aggregated([[one["full_table"]] for one in by_seed])[0], devices),
        "rows": over_peel(rows, devices),
        "tuning": {str(seed): one["tuning"] for seed, one in seeds_done.items()},
        "stages": {str(seed): one["stages"] for seed, one in seeds_done.items()},
        "seeds": seeds,
    }
    return frame.written(figures, COMPARE)


def _check(scenario: Scenario) -> None:
    if not nothing_is_collected(scenario):
        raise ScenarioError(
            "pretraining.collected.share: federated rivals need a fully federated scenario; set it to 0, with "
            "model: spectral and source: devices"
        )
    for key, asked, remedy in (
        ("privacy.mechanism", scenario.privacy.noised, "none"),
        ("secure_aggregation.enabled", scenario.secure_aggregation.enabled, "false"),
        ("poisoning.share", scenario.poisoning.share > 0, "0"),
    ):
        if asked:
            raise ScenarioError(f"{key}: federated rivals do not support it; set it to {remedy}")


def _one_seed(
    study: Study, shares: tuple[float, ...], methods: Sequence[Federated[Any]], effort: Effort
) -> dict[str, Any]:
    trial = Trial("peel", study.scenario, shares, DENSE, (study.scenario.selector,), full_tables=True)
    peel = study.trials([trial])["peel"]
    rows = peel_rows(peel, study.scenario)
    tuning = {}
    for method in methods:
        what = [decisive(study.scenario), repr(method), list(shares), dataclasses.astuple(effort)]

        def work(method: Federated[Any] = method) -> dict[str, Any]:
            return served_rows(method, federated_context(study), shares, effort)

        served = study.stage(method.name, what, work, (type(method).__module__,))
        rows += served["rows"]
        tuning[method.name] = {key: served[key] for key in ("setting", "own_rows", "tried")}
    full = {**peel["full_table"]["refined"], "bytes": peel["full_table"]["bytes"]}
    devices = study.tested_devices
    return {"rows": rows, "full_table": full, "devices": devices, "tuning": tuning, "stages": study.seconds}


def over_peel(rows: Sequence[dict[str, Any]], num_devices: int) -> list[dict[str, Any]]:
    """Rows with intervals in place of replicates, and ``to_peel``: recall over that of PEEL's full tables, paired, and
    ``p_holm``: p-value of no difference, corrected for all of these.
    """
    (peel,) = (line for line in rows if line["method"] == "peel-full")
    ratios = [None if line is peel else ratio_of(line, peel, num_devices) for line in rows]
    return _with_ratios(rows, "to_peel", ratios, num_devices)


def peel_rows(result: dict[str, Any], scenario: Scenario) -> list[dict[str, Any]]:
    """PEEL at its budgets, and with full tables: after stage 1 alone, and refined.

    down: in stage 1 and in rounds, a device on average, and what the largest device stores in the end. trials: filters
    of stage 1 that devices choose from on validation.
    """
    full, moved = result["full_table"], result["moved"]
    rounds = len(result["devices_trained"])
    start, both = moved["stage1"], {key: moved["stage1"][key] + moved["rounds"][key] for key in ("down", "up")}

    def line(method: str, share: float, stored: int, moved: dict[str, float], rounds: int) -> dict[str, Any]:
        return {
            **{"method": method, "group_aware": True, "share": share, "rounds": rounds, "trials": filters(scenario)},
            **{"stored_bytes_max": stored, "stored_bytes_mean": float(stored)},
            **{"bytes_down_mean": moved["down"] + stored, "bytes_up_mean": moved["up"]},
        }

    rows = []
    for one in result["rows"]:
        kept = {key: one[key] for key in ("precision", "budget_bytes", "seconds", "note")}
        quality = {**one["test"], "validation_recall@20": one["validation"]["recall@20"]}
        if REPLICATES in one:
            quality[REPLICATES] = one[REPLICATES]
        rows.append(line("peel", one["share"], one["stored_bytes_max"], both, rounds) | kept | quality)
    for method, name, spent, number in (("peel-stage-1", "start", start, 0), ("peel-full", "refined", both, rounds)):
        kept = {"precision": "fp32", "budget_bytes": full["bytes"], "seconds": 0.0, "note": ""}
        quality = {**full[name], "validation_recall@20": full[f"{name}_validation"]["recall@20"]}
        stored = full["bytes"] + overhead_bytes(scenario.pretraining.embedding_dim)
        rows.append(line(method, 1.0, stored, spent, number) | kept | quality)
    return rows


def filters(scenario: Scenario) -> int:
    """Return how many filters stage 1 lets devices choose from."""
    pretraining = scenario.pretraining
    counts = len(COUNT_EXPONENTS) if pretraining.count_exponent is None else 1
    return counts * (len(VALUE_EXPONENTS) if pretraining.value_exponent is None else 1)


def served_rows(
    method: Federated[Any], context: FederatedContext, shares: Sequence[float], effort: Effort
) -> dict[str, Any]:
    """A tuned rival: its full table at two precisions and, where it has several widths, what fits each budget."""
    result = tuned(method, context, ("fp32",) if method.name == "popularity" else WHOLE, effort)
    best = result.pop("trained")
    full_bytes = 4 * context.num_items * context.dim
    common = {"method": method.name, "group_aware": False, "note": ""}
    rows = [{**common, "share": 1.0, "budget_bytes": full_bytes, **one} for one in result["rows"]]
    if isinstance(method, HeteFedRec):
        widths = method.widths(context)
        for precision in DENSE:
            for share in shares:
                request = Request(precision, share, share_bytes(full_bytes, share))
                most = largest_dim(context.num_items, precision, request.budget_bytes, context.dim)
                fitting = [place for place, width in enumerate(widths) if width <= most]
                line = {"rounds": best.round, "trials": len(method.grid), "seconds": 0.0}
                if fitting:
                    served = method.at_width(best.served, fitting[-1], context, best.setting)
                    line |= trial_row(best, context, precision, served) | {"note": f"{widths[fitting[-1]]} columns"}
                else:
                    empty = empty_row(request)
                    line |= {**empty["test"], "validation_recall@20": 0.0, "note": empty["note"]}
                    line |= {"stored_bytes_max": 0, "stored_bytes_mean": 0.0, "precision": precision}
                    line |= {"bytes_down_mean": float(best.down.mean()), "bytes_up_mean": float(best.up.mean())}
                rows.append({**common, "share": share, "budget_bytes": request.budget_bytes, **line})
    return {**result, "rows": rows}


def federated_context(study: Study) -> FederatedContext:
    """The study's devices, with the memory, and there in the rounds, that the scenario's fleet gives them."""
    scenario = study.scenario
    devices = np.arange(study.splits.num_users)
    fleet = load_fleet(scenario.fleet)
    full_bytes = 4 * study.splits.num_items * scenario.pretraining.embedding_dim
    memory = FleetBudgets(fleet, scenario.seed, devices, full_bytes).ceiling()
    refinement = scenario.refinement

    def present(number: int) -> IntArray:
        asked = sample_cohort(
            scenario.seed, number, devices, refinement.sampling_rate, poisson=refinement.sampling == "poisson"
        )
        return asked[fleet.available(scenario.seed, asked, float(number))]

    return FederatedContext(
        study.splits, scenario.pretraining.embedding_dim, scenario.seed, memory, present, study.on_event
    )


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
    return _with_ratios(rows, "peel_over", ratios, num_devices)


def _with_ratios(rows: Sequence[Row], name: str, ratios: Sequence[Estimate | None], num_devices: int) -> list[Row]:
    """Return rows with intervals, and with ratios by this name and ``p_holm`` where there are any."""
    p_values = corrected(dict(enumerate(ratios)))
    return [
        with_interval(row, num_devices)
        | ratios_in_json(name, ratio)
        | ({"p_holm": p_values[place]} if place in p_values else {})
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
