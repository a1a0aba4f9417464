"""`fl-peel compare`: PEEL and every rival under the same budgets; what each is, and is tuned on, is in docs/compare.md.

Federated methods are trials on Flower nodes (:mod:`strategies.evaluation.trials`), central ones compete on the
pretrained tables (:mod:`strategies.rivals.base`), or, where nothing is collected, on those that PEEL's user groups have
from sums. Every stage is kept under ``DIR/checkpoints`` as soon as it is done.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import yaml
from flwr.serverapp import Grid

from clients.fleet.fleet import FleetBudgets, load_fleet
from fl_peel.blocks.compression import largest_dim
from fl_peel.blocks.layout import share_bytes
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.errors import ScenarioError
from fl_peel.events import OnEvent
from fl_peel.figures import Estimate
from fl_peel.pretraining.central_training import PretrainedEmbeddings
from fl_peel.pretraining.clusters import choose_group
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import Precision, pretraining_device
from fl_peel.training.workers import fixed_threads
from simulations.engine.engine import simulated
from simulations.report.result_files import write_files
from simulations.scenario_files import StudyArguments
from simulations.studies.compare_report import COMPARE
from simulations.studies.study import (
    REPLICATES,
    Frame,
    Row,
    Study,
    StudyStage,
    aggregated,
    corrected,
    decisive,
    decisive_of_starts,
    ratio_of,
    ratios_in_json,
    with_interval,
)
from strategies.evaluation.trials import Trial
from strategies.groups.start import starting_tables
from strategies.rivals.base import UNLIMITED, GroupStarts, IntArray, Material, Request, Rival, compete, empty_row
from strategies.rivals.bpr import FedAvgBpr
from strategies.rivals.central import refine_centrally
from strategies.rivals.colr import Colr
from strategies.rivals.compressed import Hashing, Pep, ProductQuantization, ResidualQuantization
from strategies.rivals.fcf import Fcf
from strategies.rivals.federated import Effort, Federated, FederatedContext, Popularity, trial_row, tuned
from strategies.rivals.groups import PerGroup
from strategies.rivals.hetefedrec import HeteFedRec
from strategies.rivals.pfedrec import PFedRec
from strategies.rivals.rule import Rule
from strategies.rivals.server import CachedList, Ease, FullTable, ItemNeighbours
from strategies.rivals.table_rivals import FixedTiers, MagnitudePruning, SmallerDimension, TruncatedSvd, UniformWidth
from strategies.rounds.strategy import sample_cohort
from strategies.run.prepare import prepare
from strategies.run.refinement import with_parts
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths

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
    (PerGroup("residual-quantization-groups", ResidualQuantization().settings()), ("int8",)),
    (PerGroup("uniform-width-groups", UniformWidth().settings()), SMALL),
    (Hashing(), SMALL),
    (FixedTiers(), DENSE),
    (Rule(), DENSE),
    (CachedList(), ("fp32",)),
)
"""Rivals under every budget, and the precisions each is tried at."""
CEILINGS: tuple[Rival, ...] = (Ease(), ItemNeighbours())
"""Methods of a server that knows no budget: measured once."""
GROUP_LIST = CachedList(tables=(PerGroup("groups' start", (FullTable(),)),))
"""The list of a server that has every device's interactions beside the tables that PEEL makes without them."""
BY_SUMS = (*((rival, tried) for rival, tried in RIVALS if isinstance(rival, PerGroup)), (GROUP_LIST, ("fp32",)))
"""Rivals that need no table but those of PEEL's user groups: they are measured where nothing is collected, too."""

BUDGETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
WHOLE: tuple[Precision, ...] = ("fp32", "int8")
"""Precisions of the rivals' full tables."""
METHODS: tuple[Federated[Any], ...] = (Popularity(), FedAvgBpr(), Colr(), Fcf(), PFedRec(), HeteFedRec())
MEANS = ("bytes_down_mean", "bytes_up_mean", "stored_bytes_mean", "rounds")
"""Columns of rows, besides metrics, that are averaged over seeds."""
COSTS = {
    "pep": 16,
    "product-quantization-groups": 16,
    "residual-quantization-groups": 45,
    "rule": 14,
    "smaller-dimension": 6,
    "central refinement": 6,
    "hashing": 6,
    "product-quantization": 4,
    "item-neighbours": 3,
    "fixed-tiers": 1,
}
"""About how long stages take on ML-100K relative to a short one, for telling how much time is left."""
OWN = ("peel", "peel-single-budget", "group-exposure", "group-popularity")
"""PEEL, and what it is compared with by name."""

GROUP_SELECTORS = {"exposure": "group-exposure", "popularity": "group-popularity"}
"""Fixed orders of each user group's table, and the names of the methods they make: refined under that order, too, so
that none is measured on tables that were made for another.
"""
GLOBAL_SELECTORS = {"global-popularity": "popular-items", "random": "random-blocks", "energy": "magnitude-blocks"}
"""Fixed orders of one table for everybody, and the names of the methods they make."""


def compare(
    scenario: str | Path | Scenario,
    budgets: Iterable[float] = BUDGETS,
    *,
    seeds: int = 1,
    single_budgets: Iterable[float] | None = None,
    rivals: Sequence[tuple[Rival, tuple[Precision, ...]]] = RIVALS,
    ceilings: Sequence[Rival] = CEILINGS,
    **arguments: Unpack[StudyArguments],
) -> dict[str, Any]:
    """Compare all methods at every budget (shares of the fp32 full table) and write compare.json and its companions.

    seeds: how many, from the scenario's on; with more than one, figures are means and carry their spread.
    single_budgets: for which PEEL is also trained with that budget alone (None: up to three of ``budgets``); arguments:
    :class:`simulations.scenario_files.StudyArguments`.

    Raises:
        FlPeelError: a mistake in the scenario, data or profiles, or a failed engine; one line each.
    """
    frame = Frame.from_scenario(scenario, arguments)
    if frame.scenario.pretraining.model == "spectral":
        raise ScenarioError(
            "pretraining.model: spectral makes no global table, from which rivals start; compare another "
            "model, run the scenario, or collect nothing (pretraining.collected.share: 0, source: devices)"
        )
    shares = tuple(sorted(set(budgets)))
    single = shares[1::2][:3] or shares[:1] if single_budgets is None else tuple(sorted(set(single_budgets)))
    seeds_done = frame.by_seed(seeds, lambda study: _one_seed(study, shares, single, rivals, ceilings))
    by_seed = list(seeds_done.values())
    devices = min(result["devices"] for result in by_seed)
    rows = aggregated([result["rows"] for result in by_seed])
    full = aggregated([[result["full_table"]] for result in by_seed])[0]
    refinement = {
        name: None
        if by_seed[0]["refinement"][name] is None
        else aggregated([[r["refinement"][name]] for r in by_seed])[0]
        for name in ("none", "start", "federated", "central")
    }
    figures = {
        "full_table": with_interval(full, devices),
        "rows": with_intervals(rows, devices),
        "ceilings": [with_interval(row, devices) for row in aggregated([result["ceilings"] for result in by_seed])],
        "refinement": {name: one and with_interval(one, devices) for name, one in refinement.items()},
        "summary": summary(rows, full, refinement, devices),
        "stages": {str(seed): one["stages"] for seed, one in seeds_done.items()},
        "seeds": seeds,
    }
    return frame.written(figures, COMPARE)


def _one_seed(
    study: Study,
    shares: tuple[float, ...],
    single: tuple[float, ...],
    rivals: Sequence[tuple[Rival, tuple[Precision, ...]]],
    ceilings: Sequence[Rival],
) -> dict[str, Any]:
    trials = federated_trials(study, shares, single)
    results = study.trials(trials)
    own = study.scenario.selector
    rows = named_rows(results["peel"], [(own, "peel")], group_aware=True)
    for selector, name in GROUP_SELECTORS.items():
        rows += named_rows(results["peel" if selector == own else name], [(selector, name)], group_aware=True)
    for name in (trial.name for trial in trials if trial.name.startswith("peel-single-budget")):
        rows += named_rows(results[name], [(own, "peel-single-budget")], group_aware=True)
    rows += named_rows(results["global"], [(own, "global-elastic"), *GLOBAL_SELECTORS.items()], group_aware=False)
    rows += named_rows(results["peel-authors"], [(own, "peel-authors")], group_aware=False)
    rows += named_rows(results["peel-authors-groups"], [(own, "peel-authors-groups")], group_aware=True)

    def competing(rival: Rival, requests: list[Request]) -> StudyStage:
        what = [repr(rival), [dataclasses.astuple(request) for request in requests]]
        decides = [decisive_of_starts(study.scenario), what]
        return competition(rival, decides, material_of, requests)

    asked = [(rival, requests_of(study, precisions, shares)) for rival, precisions in rivals]
    asked += [(rival, [UNLIMITED]) for rival in ceilings]
    refinement = StudyStage("central refinement", decisive(study.scenario), refined, cost=COSTS["central refinement"])
    *served, central = study.stages([*(competing(*one) for one in asked), refinement])
    named = [
        [{"method": rival.name, "group_aware": rival.group_aware, **flat(row)} for row in some]
        for (rival, _), some in zip(asked, served, strict=True)
    ]
    for (rival, _), some in zip(rivals, named, strict=False):
        rows += [{**row, "ceiling": rival.ceiling} for row in some]
    looked_up_to = [ceiling_row(row) for some in named[len(rivals) :] for row in some]
    full = results["peel"]["full_table"]
    return {
        "rows": [{"ceiling": False, **row} for row in rows],
        "ceilings": looked_up_to,
        "devices": study.tested_devices,
        "full_table": {**full["global"], "bytes": full["bytes"]},
        "refinement": {
            "none": full["global"],
            "start": full["start"],
            "federated": full["refined"],
            "central": {**central["test"], "rates": central["rates"], "epochs": central["epochs"]},
        },
        "stages": study.seconds,
    }


def competition(
    rival: Rival, decides: object, material_of: Callable[[Study], Material], requests: list[Request]
) -> StudyStage:
    """The stage in which a rival serves these requests from material of the study."""
    work = partial(_competed, rival, material_of, requests)
    here = material_of is material_by_sums
    return StudyStage(rival.name, decides, work, modules_of(rival), COSTS.get(rival.name, 1), here)


def _competed(
    rival: Rival, material_of: Callable[[Study], Material], requests: list[Request], study: Study
) -> list[dict[str, Any]]:
    return compete(rival, study.once(material_of), requests)


def federated_trials(study: Study, shares: tuple[float, ...], single: tuple[float, ...]) -> list[Trial]:
    """PEEL under fixed orders of blocks, one budget alone, one table for everybody, and the authors' layout."""
    scenario = study.scenario
    own = scenario.selector
    everybody = scenario.model_copy(
        update={"user_groups": scenario.user_groups.model_copy(update={"count": 1, "min_size": 1})}
    )
    dim = scenario.pretraining.embedding_dim
    slices = max(n for n in range(1, 17) if dim % n == 0)
    layout = scenario.blocks.model_copy(
        update={"item_groups": "contiguous", "count": min(20, study.splits.num_items), "num_slices": slices}
    )
    trials = [
        Trial("peel", scenario, shares, DENSE, (own,), full_tables=True),
        *(
            Trial(name, scenario.model_copy(update={"selector": selector}), shares, DENSE, (selector,))
            for selector, name in GROUP_SELECTORS.items()
            if selector != own
        ),
        Trial("global", everybody, shares, DENSE, tuple(dict.fromkeys((own, *GLOBAL_SELECTORS)))),
        Trial("peel-authors", everybody.model_copy(update={"blocks": layout}), shares, DENSE, (own,)),
        Trial("peel-authors-groups", scenario.model_copy(update={"blocks": layout}), shares, DENSE, (own,)),
    ]
    for share in single:
        fleet = single_budget_fleet(study, share)
        alone = scenario.model_copy(update={"fleet": fleet, "budget_factor": 1.0})
        trials.append(Trial(f"peel-single-budget {share * 100:g}%", alone, (share,), DENSE, (own,)))
    return trials


def single_budget_fleet(study: Study, share: float) -> str:
    """A fleet file of devices that all have one budget, and are there as often as those of the scenario's fleet."""
    scenario = study.scenario
    devices = np.arange(study.splits.num_users)
    fleet = load_fleet(scenario.fleet)
    rounds = range(1, max(scenario.refinement.rounds, 1) + 1)
    there = float(np.mean([fleet.available(scenario.seed, devices, float(number)).mean() for number in rounds]))
    content = {
        "profiles": [{"name": "single-budget", "memory": {"table_share": share}, "availability": round(there, 4)}]
    }
    name = f"single-budget-{share:g}-{there:.4f}.yaml"
    write_files(study.checkpoints.store.folder, {name: yaml.safe_dump(content).encode()})
    return str((study.checkpoints.store.folder / name).absolute())


def named_rows(
    result: dict[str, Any], methods: Sequence[tuple[str, str]], *, group_aware: bool
) -> list[dict[str, Any]]:
    """A trial's rows under the names of the methods that its selectors make: pairs of selector and method.

    One selector makes two methods where the scenario's own is one that is compared with anyway.
    """
    return [
        {"method": method, "group_aware": group_aware, **flat(row)}
        for row in result["rows"]
        for selector, method in methods
        if row["selector"] == selector
    ]


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as compare.json has it: test figures by their own names, and validation recall besides."""
    left_out = {"validation", "test", "selector", "evaluation_seconds"}
    kept = {key: value for key, value in row.items() if key not in left_out}
    return {**kept, **row["test"], "validation_recall@20": row["validation"]["recall@20"]}


def ceiling_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row that knows no budget: its bytes are those of the model, on the server."""
    left_out = {"precision", "share", "budget_bytes", "stored_bytes_max", "group_aware"}
    return {
        "server_bytes": row["stored_bytes_max"],
        "ceiling": True,
        **{key: value for key, value in row.items() if key not in left_out},
    }


def budget_of(study: Study, share: float) -> int:
    """Bytes of a share of the fp32 full item table."""
    return share_bytes(4 * study.splits.num_items * study.scenario.pretraining.embedding_dim, share)


def requests_of(study: Study, precisions: Iterable[Precision], shares: Iterable[float]) -> list[Request]:
    """Return what a rival is asked to serve at these shares of the fp32 full item table."""
    return [Request(p, share, budget_of(study, share)) for p in precisions for share in shares]


def material_of(study: Study) -> Material:
    """Return what central rivals start from; devices of which nothing was collected choose their group."""
    prepared = study.prepared()
    plain = Material(
        prepared.given,
        prepared.has_data,
        study.splits,
        prepared.pretrained,
        study.scenario.pretraining.config(),
        study.scenario.seed,
        pretraining_device(study.scenario.engine.device),
        study.paths.cache_dir,
        study.on_event,
    )
    assignment = prepared.groups.assignment.copy()
    alone = np.flatnonzero(assignment < 0)
    assignment[alone] = choose_group(plain.users[alone], prepared.groups.centroids)
    tables = starting_tables(study.scenario, prepared.pretrained, prepared.groups, prepared.given)
    return dataclasses.replace(plain, starts=GroupStarts(assignment, tables))


def refined(study: Study) -> dict[str, Any]:
    """Central refinement with the passes over the data that a device makes in all rounds."""
    refinement = study.scenario.refinement
    material = study.once(material_of)
    local = refinement.local.config(material.config.temperature)
    assert material.starts is not None
    groups, start = study.prepared().groups, material.starts.table
    with fixed_threads(1):
        return refine_centrally(material, groups, local, refinement.rounds * local.epochs, start=start)


def some(names: Iterable[str]) -> dict[str, Any]:
    """Return the members of ``RIVALS`` and of ``CEILINGS`` that have these names, as :func:`compare` takes them.

    Raises:
        ScenarioError: a name that none of them has.
    """
    wanted = _known(names, [*(rival.name for rival, _ in RIVALS), *(ceiling.name for ceiling in CEILINGS)])
    return {
        "rivals": tuple(one for one in RIVALS if one[0].name in wanted),
        "ceilings": tuple(one for one in CEILINGS if one.name in wanted),
    }


def some_federated(names: Iterable[str]) -> dict[str, Any]:
    """Return the members of ``METHODS`` and of ``BY_SUMS`` that have these names, as :func:`compare_federated` takes
    them.

    Raises:
        ScenarioError: a name that none of them has.
    """
    wanted = _known(names, [*(method.name for method in METHODS), *(rival.name for rival, _ in BY_SUMS)])
    return {
        "methods": tuple(method for method in METHODS if method.name in wanted),
        "rivals": tuple(one for one in BY_SUMS if one[0].name in wanted),
    }


def _known(names: Iterable[str], known: Sequence[str]) -> set[str]:
    wanted = set(names)
    if strange := sorted(wanted - set(known)):
        raise ScenarioError(f"--rivals: unknown {', '.join(strange)}; choose from {', '.join(known)}")
    return wanted


def modules_of(rival: Rival) -> tuple[str, ...]:
    """Modules that a rival's stage enters: its own, and those of the rivals that it makes for every user group."""
    inside = rival.settings if isinstance(rival, PerGroup) else ()
    return tuple(dict.fromkeys(type(one).__module__ for one in (rival, *inside)))


def nothing_is_collected(scenario: Scenario) -> bool:
    """Whether no interaction leaves a device, in either stage."""
    return scenario.pretraining.by_devices and scenario.pretraining.collected.share == 0


def compare_federated(
    scenario: str | Path | Scenario,
    budgets: Iterable[float] = BUDGETS,
    *,
    seeds: int = 1,
    methods: Sequence[Federated[Any]] = METHODS,
    rivals: Sequence[tuple[Rival, tuple[Precision, ...]]] = BY_SUMS,
    effort: Effort | None = None,
    **arguments: Unpack[StudyArguments],
) -> dict[str, Any]:
    """Compare PEEL at every budget, and its full tables, with federated methods, and with rivals that start from the
    tables of its user groups; write compare.json and its companions. ``data.refit`` is left out: settings are chosen on
    the validation items that it trains on.

    Raises:
        FlPeelError: a mistake in the scenario, data or profiles, or a failed engine; one line each.
    """
    frame = Frame.from_scenario(scenario, arguments)
    _check(frame.scenario)
    frame = dataclasses.replace(frame, scenario=with_parts(frame.scenario, {"data": {"refit": False}}))
    shares = tuple(sorted(set(budgets)))
    asked = shares, methods, rivals, effort or Effort()
    seeds_done = frame.by_seed(seeds, lambda study: _one_federated_seed(study, *asked))
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


def _one_federated_seed(
    study: Study,
    shares: tuple[float, ...],
    methods: Sequence[Federated[Any]],
    rivals: Sequence[tuple[Rival, tuple[Precision, ...]]],
    effort: Effort,
) -> dict[str, Any]:
    trial = Trial("peel", study.scenario, shares, DENSE, (study.scenario.selector,), full_tables=True)
    peel = study.trials([trial])["peel"]
    rows = peel_rows(peel, study.scenario)
    tuning = {}
    stages = [
        StudyStage(
            method.name,
            [decisive(study.scenario), repr(method), list(shares), dataclasses.astuple(effort)],
            partial(served_rows, method, shares, effort),
            (type(method).__module__,),
            COSTS.get(method.name, 1),
        )
        for method in methods
    ]
    for method, served in zip(methods, study.stages(stages), strict=True):
        rows += served["rows"]
        tuning[method.name] = {key: served[key] for key in ("setting", "own_rows", "tried")}
    stages = []
    for rival, precisions in rivals:
        requests = requests_of(study, precisions, shares)
        what = [decisive(study.scenario), repr(rival), [dataclasses.astuple(request) for request in requests]]
        stages.append(competition(rival, what, material_by_sums, requests))
    for (rival, _), served in zip(rivals, study.stages(stages), strict=True):
        rows += [by_sums_row(rival, row, peel["moved"]["stage1"]) for row in served]
    full = {**peel["full_table"]["refined"], "bytes": peel["full_table"]["bytes"]}
    devices = study.tested_devices
    return {"rows": rows, "full_table": full, "devices": devices, "tuning": tuning, "stages": study.seconds}


def over_peel(rows: Sequence[dict[str, Any]], num_devices: int) -> list[dict[str, Any]]:
    """Rows with intervals in place of replicates, and ``to_peel``: recall over that of PEEL's full tables, paired, and
    ``p_holm``: p-value of no difference, corrected for all of these; ``peel_over``: PEEL's recall at the same budget
    over theirs, where validation chose both.
    """
    at_budget = {line["share"]: line for line in rows if line["method"] == "peel" and line["chosen"]}
    rows = [
        line | ratios_in_json("peel_over", ratio_of(at_budget[line["share"]], line, num_devices))
        if line["chosen"] and line["share"] in at_budget and line["method"] != "peel"
        else line
        for line in rows
    ]
    (peel,) = (line for line in rows if line["method"] == "peel-full")
    ratios = [None if line is peel else ratio_of(line, peel, num_devices) for line in rows]
    return _with_ratios(rows, "to_peel", ratios, num_devices)


def peel_rows(result: dict[str, Any], scenario: Scenario) -> list[dict[str, Any]]:
    """PEEL at its budgets, and with full tables: after stage 1 alone, and refined.

    down: in stage 1 and in rounds, a device on average, and what the largest device stores in the end. trials: filters
    of stage 1 that devices choose from on validation, at most.
    """
    full, moved = result["full_table"], result["moved"]
    rounds, trials = len(result["devices_trained"]), scenario.pretraining.spectral().num_filters
    start, both = moved["stage1"], {key: moved["stage1"][key] + moved["rounds"][key] for key in ("down", "up")}

    def line(method: str, share: float, stored: int, moved: dict[str, float], rounds: int) -> dict[str, Any]:
        return {
            **{"method": method, "group_aware": True, "share": share, "rounds": rounds, "trials": trials},
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


def by_sums_row(rival: Rival, row: Row, moved: Mapping[str, float]) -> Row:
    """A row of a rival that starts from the tables of PEEL's user groups. moved: bytes of a device in stage 1, by which
    these are made; what it stores it downloads, too.
    """
    stored = row["stored_bytes_max"]
    return {
        **{"method": rival.name, "group_aware": rival.group_aware, "ceiling": rival.ceiling, "rounds": 0, **flat(row)},
        **{"stored_bytes_mean": float(stored), "bytes_down_mean": moved["down"] + stored, "bytes_up_mean": moved["up"]},
    }


def material_by_sums(study: Study) -> Material:
    """What rivals start from where nothing is collected: tables and exposures of PEEL's user groups, of sums alone,
    each device's own embedding and group, and counts of items, which are sums, too.
    """

    def server(grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent) -> Material:
        prepared = prepare(Run.connect(grid, scenario, paths, on_event))
        states = prepared.states(scenario, paths.run_dir)
        shown = [state.statistics.of_item_groups(prepared.layout.num_slices).shown for state in states]
        items, train = prepared.layout.item_group, study.splits.train
        users, groups = prepared.joining.join(train)
        return Material(
            train,
            np.ones(len(users), np.bool_),
            study.splits,
            PretrainedEmbeddings(users, np.zeros((study.splits.num_items, users.shape[1]), np.float32), 1.0),
            scenario.pretraining.config(),
            scenario.seed,
            on_event=study.on_event,
            starts=GroupStarts(groups, lambda group: states[group].table, lambda group: shown[group][items]),
        )

    return simulated(study.scenario, study.paths, study.on_event, server=server)


def served_rows(method: Federated[Any], shares: Sequence[float], effort: Effort, study: Study) -> dict[str, Any]:
    """A tuned rival: its full table at two precisions and, where it has several widths, what fits each budget."""
    context = federated_context(study)
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
                    line["bytes_down_mean"] = best.down / len(context.devices)
                    line["bytes_up_mean"] = best.up / len(context.devices)
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
