"""`fl-peel audit`: what each privacy mechanism leaks, measured by attacks, beside what it costs in recall.

Every row is a run of its own on the engine, measured like a trial; while it goes its way, an observer records what a
server sees of single devices (:mod:`simulations.studies.observer`), and every attack is tried on that. Where a
mechanism adds noise, canary devices bound its epsilon from below. A row that is done is kept by content
(:mod:`simulations.studies.study`): an audit that was stopped goes on with the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from flwr.serverapp import Grid

from fl_peel.attacks import attack_names, load_attack
from fl_peel.attacks.canary import canary_epsilon
from fl_peel.errors import ScenarioError
from fl_peel.events import Event, OnEvent
from fl_peel.scenario.scenario import Scenario
from simulations.engine.engine import on_remaining_machines, simulated
from simulations.engine.folders import data_folder, run_folder
from simulations.engine.versions import versions
from simulations.resumable import CHECKPOINTS, data_digest, owned_store
from simulations.run_options import StudyArguments
from simulations.studies.audit_report import audit_page, audit_plot
from simulations.studies.audit_rows import EPSILONS, AuditRow, added_rows, attacked, chosen_rows, control
from simulations.studies.observer import Observer, TapGrid
from simulations.studies.schema import AuditResult
from simulations.studies.study import (
    REPLICATES,
    Checkpoints,
    Frame,
    decisive,
    ratio_of,
    ratios_in_json,
    stage_key,
    study_splits,
    with_interval,
)
from strategies.evaluation.trials import Trial, run_trial
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths
from strategies.run.stage1_outcome import privacy_plan

CANARY = "canary"


@dataclass(frozen=True)
class AuditSettings:
    """The settings of an audit. devices: number of watched devices, a quarter of them accomplices; rounds: number of
    rounds seen, from the first; share: budget that recall is measured at; clip_norm: for rows that clip where the
    scenario gives no norm.
    """

    devices: int = 400
    rounds: int = 8
    share: float = 0.01
    clip_norm: float = 1.0
    epsilons: tuple[float, ...] = EPSILONS
    attacks: tuple[str, ...] | None = None
    only: tuple[str, ...] | None = None


def audit(
    scenario: str | Path | Scenario,
    *,
    settings: AuditSettings | None = None,
    rows: Iterable[str] = (),
    **arguments: Unpack[StudyArguments],
) -> dict[str, Any]:
    """Audit every row and write audit.json, audit.csv, audit.html and audit.svg.

    rows: further ones, ``NAME:PATH=VALUE,...``; see :func:`simulations.studies.audit_rows.added_rows`; arguments:
    :class:`simulations.run_options.StudyArguments`.

    Raises:
        FlPeelError: a mistake in the scenario, the data or the rows, an unknown attack, or a failed engine.
    """
    settings = settings or AuditSettings()
    frame = Frame.from_scenario(scenario, arguments)
    scenario = frame.scenario
    names = list(settings.attacks or attacks_on(scenario))
    for name in names:
        load_attack(name)  # an unknown one shows now
    chosen = chosen_rows(
        scenario,
        added_rows(scenario, rows),
        clip_norm=settings.clip_norm,
        epsilons=settings.epsilons,
        only=settings.only,
    )
    with run_folder() as run_dir:
        paths = RunPaths(data_folder(frame.options.data_dir), str(run_dir), str(frame.options.cache_dir or ""))
        for row in chosen:  # what cannot be had is told before anything runs
            devices = int((study_splits(row.scenario, paths).test.counts() > 0).sum())
            privacy_plan(row.scenario, paths)
            _require_replay(row)
        with owned_store(frame.out / CHECKPOINTS) as store:
            checkpoints = Checkpoints(store, frame.options.on_event, fresh=frame.options.fresh)
            keys = {row.name: row_key(row, paths, settings, names) for row in chosen}

            def save(row: dict[str, Any], seconds: float) -> Any:
                return checkpoints.write(row["mechanism"], keys[row["mechanism"]], row, seconds)

            def all_rows(_: bool) -> dict[str, Any]:
                rows = checkpoints.read(keys)
                missing = [row for row in chosen if row.name not in rows]

                def server(grid: Grid, _: Scenario, paths: RunPaths, on_event: OnEvent) -> dict[str, Any]:
                    run = Run.connect(grid, missing[0].scenario, paths, on_event)
                    done = audited(run, missing, settings, names, save)
                    return {row["mechanism"]: row for row in done}

                if missing:
                    rows |= simulated(scenario, paths, frame.options.on_event, server=server)
                return rows

            done_rows = on_remaining_machines(all_rows)
    figures = {
        "rows": compared([done_rows[row.name] for row in chosen], devices),
        "settings": asdict(settings),
        "collected_share": scenario.pretraining.collected.share,
    }
    return frame.written(figures, AuditResult, audit_plot, audit_page)


def row_key(row: AuditRow, paths: RunPaths, settings: AuditSettings, names: Sequence[str]) -> dict[str, Any]:
    """Return what decides a row: scenario, data, what is watched, attacks, code and versions; not other rows."""
    watched = asdict(replace(settings, epsilons=(), clip_norm=0.0, only=None, attacks=tuple(names)))
    evaluation = row.scenario.evaluation.model_dump(mode="json")
    content = ["audit", decisive(row.scenario), evaluation, row.scenario.engine.nodes, watched, versions()]
    return stage_key(data_digest(study_splits(row.scenario, paths)), content)


def compared(rows: Sequence[dict[str, Any]], num_devices: int) -> list[dict[str, Any]]:
    """The rows with intervals in place of replicates, and recall relative to the row without protection."""
    shown = [{key: value for key, value in row.items() if value is not None or key != REPLICATES} for row in rows]
    none = next((row for row in shown if row["mechanism"] == "none"), None)
    lines = []
    for row in shown:
        ratio = None if none is None or row is none else ratio_of(row, none, num_devices)
        lines.append(with_interval(row, num_devices) | ratios_in_json("to_none", ratio))
    return lines


def _require_replay(row: AuditRow) -> None:
    """Refuse noise that is another one when a device is asked once more.

    Raises:
        ScenarioError: naming the row and the key.
    """
    if row.scenario.privacy.noise_source == "system":
        raise ScenarioError(
            f"{row.name}: privacy.noise_source: system does not repeat noise, and an audit asks attacked "
            "devices a second time for their contribution; set seed"
        )


def attacks_on(scenario: Scenario) -> list[str]:
    """Return every attack on a stage that devices of this scenario take part in."""
    stages = {"stage 1": scenario.pretraining.by_devices, "refinement": scenario.refinement.rounds > 0}
    return [name for name in attack_names() if stages[load_attack(name).stage]]


def audited(
    run: Run,
    rows: Sequence[AuditRow],
    settings: AuditSettings,
    names: Sequence[str],
    save: Callable[[dict[str, Any], float], dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Run and attack one row after the other on the nodes of a run; the rows of audit.json. save: keeps each, with
    its seconds, as soon as it is there, and returns it as it will be read.
    """
    results = []
    for number, row in enumerate(rows, start=1):
        start = time.perf_counter()
        one = _one(run, row, settings, names)
        results.append(one if save is None else save(one, time.perf_counter() - start))
        run.on_event(Event("audit", number, len(rows), row.name))
    return results


def _one(run: Run, row: AuditRow, settings: AuditSettings, names: Sequence[str]) -> dict[str, Any]:
    scenario, paths, nodes = row.scenario, run.paths, run.nodes
    sums_alone = scenario.secure_aggregation.enabled and scenario.secure_aggregation.masked
    observer = Observer(
        scenario, paths.data_dir, paths.run_dir, len(nodes.ids), settings.devices, settings.rounds, sums_alone
    )
    precision, selector = scenario.blocks.precision, scenario.selector
    # the larger budgets of the run too: devices are sent a list for the largest, and skip on it what they never need
    shares = (settings.share, *(share for share in scenario.evaluation.budgets if share > settings.share))
    trial = Trial(row.name, scenario, shares, (precision,), (selector,))
    tapped = replace(nodes, grid=TapGrid(run.grid, observer))
    measured = run_trial(replace(run, nodes=tapped, on_event=_quieter(row.name, run.on_event)), trial)
    observer.finish()
    row_content: dict[str, Any] = {
        "mechanism": row.name,
        "view": "sums over a user group" if sums_alone else "one device",
        "epsilon": None,
        "delta": None,
        **{key: measured["rows"][0]["test"][key] for key in ("recall@20", "ndcg@20")},
        REPLICATES: measured["rows"][0].get(REPLICATES),
        "validation recall@20": measured["rows"][0]["validation"]["recall@20"],
        "share": settings.share,
        "attacks": attacked(observer, names, scenario.seed) if observer.views else {},
        "control": control(observer, scenario.seed) if observer.views else None,
        "privacy": scenario.privacy.model_dump(mode="json"),
    }
    of_sums = {"reconstruction": observer.stage1.reconstruction(), "differencing": observer.stage1.differencing()}
    row_content |= {name: asdict(one) for name, one in of_sums.items() if one is not None}
    if not observer.views:  # under secure aggregation, where every user group is too small
        row_content["note"] = "no sum was opened: no user group had enough devices in any observed round"
    plan = privacy_plan(scenario, paths)
    row_content[CANARY] = {
        "epsilon_low": canary_epsilon(scenario, plan, seed=scenario.seed),
        "epsilon_accounted": None if plan is None else plan.cost.epsilon,
    }
    if plan is not None:
        row_content |= {"epsilon": plan.epsilon, "delta": scenario.privacy.delta}
    return row_content


def _quieter(name: str, on_event: OnEvent) -> OnEvent:
    """Pass on the events of a row's rounds only, under its name."""

    def on_row_event(event: Event) -> None:
        if event.stage == "refinement":
            on_event(Event(name, event.done, event.total, event.text))

    return on_row_event
