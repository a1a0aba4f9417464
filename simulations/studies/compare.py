"""`fl-peel compare`: PEEL and every rival under the same budgets; what each is, and is tuned on, is in docs/compare.md.

Federated methods are trials on Flower nodes (:mod:`strategies.evaluation.trials`), central ones compete on the
pretrained tables (:mod:`strategies.rivals.base`). Every stage is kept under ``DIR/checkpoints`` as soon as it is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import yaml

from clients.fleet.fleet import load_fleet
from fl_peel.blocks.layout import share_bytes
from fl_peel.errors import ScenarioError
from fl_peel.pretraining.clusters import choose_group
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import Precision, pretraining_device
from fl_peel.training.workers import fixed_threads
from simulations.report.result_files import write_files
from simulations.run_options import StudyArguments
from simulations.studies.compare_report import COMPARE
from simulations.studies.compare_rows import BUDGETS, CEILINGS, DENSE, RIVALS, modules_of, summary, with_intervals
from simulations.studies.study import Frame, Study, aggregated, decisive, decisive_of_starts, with_interval
from strategies.evaluation.trials import Trial
from strategies.groups.start import starting_tables
from strategies.rivals.base import UNLIMITED, GroupStarts, Material, Request, Rival, compete
from strategies.rivals.central import refine_centrally

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
    :class:`simulations.run_options.StudyArguments`.

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
    material = None

    def competed(rival: Rival, requests: list[Request]) -> list[dict[str, Any]]:
        def work() -> list[dict[str, Any]]:
            nonlocal material
            material = material or material_of(study)
            return compete(rival, material, requests)

        what = [repr(rival), [dataclasses.astuple(request) for request in requests]]
        decides = [decisive_of_starts(study.scenario), what]
        served = study.stage(rival.name, decides, work, modules_of(rival))
        return [{"method": rival.name, "group_aware": rival.group_aware, **flat(row)} for row in served]

    for rival, precisions in rivals:
        requests = [Request(p, share, budget_of(study, share)) for p in precisions for share in shares]
        rows += [{**row, "ceiling": rival.ceiling} for row in competed(rival, requests)]
    looked_up_to = [ceiling_row(row) for rival in ceilings for row in competed(rival, [UNLIMITED])]
    central = study.stage("central refinement", decisive(study.scenario), lambda: refined(study, material))
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


def refined(study: Study, material: Material | None) -> dict[str, Any]:
    """Central refinement with the passes over the data that a device makes in all rounds."""
    refinement = study.scenario.refinement
    material = material or material_of(study)
    local = refinement.local.config(material.config.temperature)
    assert material.starts is not None
    groups, start = study.prepared().groups, material.starts.table
    with fixed_threads(1):
        return refine_centrally(material, groups, local, refinement.rounds * local.epochs, start=start)
