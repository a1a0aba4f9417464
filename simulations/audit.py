"""`fl-peel audit`: what each privacy mechanism leaks, measured by attacks, beside what it costs in recall.

Every row is a run of its own on the engine, measured like a trial; while it goes its way, an observer records what a
server sees of single devices (:mod:`simulations.audit_views`), and every attack is tried on that. Where a mechanism
adds noise, canary devices bound its epsilon from below.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

import fl_peel
from fl_peel.attacks import attack_names, load_attack
from fl_peel.attacks.canary import worst_canary
from fl_peel.config import Scenario, load_scenario
from fl_peel.errors import ScenarioError
from fl_peel.events import Event, OnEvent, silent
from simulations.audit_attacks import attacked, control
from simulations.audit_mechanisms import EPSILONS, Mechanism, added_rows, mechanisms
from simulations.audit_report import write_audit
from simulations.audit_views import Observer, TapGrid
from simulations.inputs import checked
from simulations.runner import run_folder, simulated, versions
from strategies.nodes import Nodes
from strategies.server_app import Place, privacy_plan
from strategies.trials import Trial, run_trial

CANARY = "canary"


@dataclass(frozen=True)
class AuditSettings:
    """devices: watched, a quarter of them accomplices; rounds: seen, from the first; share: budget that recall is
    measured at; clip_norm: for rows that clip where the scenario does not say; canary_trials: with and without,
    for each of canary_seeds seeds.
    """

    devices: int = 400
    rounds: int = 8
    share: float = 0.01
    clip_norm: float = 1.0
    epsilons: tuple[float, ...] = EPSILONS
    canary_trials: int = 1000
    canary_seeds: int = 1
    attacks: tuple[str, ...] | None = None
    only: tuple[str, ...] | None = None


def audit(
    scenario: str | Path | Scenario,
    *,
    out: str | Path,
    settings: AuditSettings | None = None,
    rows: Iterable[str] = (),
    overrides: Iterable[str] = (),
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    on_event: OnEvent = silent,
    command: str | None = None,
) -> dict[str, Any]:
    """Audit every row and write audit.json, audit.csv, audit.html and audit.svg.

    rows: further ones, ``NAME:PATH=VALUE,...``; see :func:`simulations.audit_mechanisms.added_rows`.

    Raises:
        FlPeelError: a mistake in the scenario, the data or the rows, an unknown attack, or a failed engine.
    """
    settings = settings or AuditSettings()
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario, overrides)
    folder = Path(out)
    scenario = checked(scenario, folder, working_dir=Path.cwd())
    names = list(settings.attacks or attack_names())
    for name in names:
        load_attack(name)  # an unknown one shows now
    found = mechanisms(scenario, clip_norm=settings.clip_norm, epsilons=settings.epsilons)
    chosen = _only([*found, *added_rows(scenario, rows)], settings.only)
    with run_folder() as run_dir:
        data = os.path.abspath(data_dir) if data_dir else os.environ.get("FL_PEEL_DATA", "")
        place = Place(data, str(run_dir), str(cache_dir or ""))

        def server(grid: Grid, _: Scenario, place: Place, on_event: OnEvent) -> dict[str, Any]:
            return {"rows": audited(grid, chosen, place, settings, names, on_event)}

        result = simulated(scenario, place, on_event, server=server)
    result |= {
        "settings": asdict(settings),
        "collected_share": scenario.pretraining.collected.share,
        "scenario": scenario.model_dump(mode="json"),
        "seed": scenario.seed,
        "versions": versions(),
    }
    if command:
        result["command"] = command
    write_audit(result, folder)
    return result


def _only(rows: list[Mechanism], names: Sequence[str] | None) -> list[Mechanism]:
    if names is None:
        return rows
    unknown = [name for name in names if name not in {row.name for row in rows}]
    if unknown:
        raise ScenarioError(f"--only: no row {unknown[0]!r}; choose from {', '.join(row.name for row in rows)}")
    return [row for row in rows if row.name in names]


def audited(
    grid: Grid,
    rows: Sequence[Mechanism],
    place: Place,
    settings: AuditSettings,
    names: Sequence[str],
    on_event: OnEvent = silent,
) -> list[dict[str, Any]]:
    """Run and attack one row after the other on the nodes of ``grid``; the rows of audit.json."""
    first = rows[0].scenario
    root = os.fspath(Path(fl_peel.__file__).resolve().parent.parent)
    nodes = Nodes.connect(grid, first.to_json(), root=root, timeout_s=first.engine.reply_timeout_s)
    results = []
    for number, row in enumerate(rows, start=1):
        results.append(_one(grid, nodes, row, place, settings, names, on_event))
        on_event(Event("audit", number, len(rows), row.name))
    return results


def _one(
    grid: Grid,
    nodes: Nodes,
    row: Mechanism,
    place: Place,
    settings: AuditSettings,
    names: Sequence[str],
    on_event: OnEvent,
) -> dict[str, Any]:
    scenario = row.scenario
    sums_only = scenario.secure_aggregation.enabled and scenario.secure_aggregation.masked
    observer = Observer(
        scenario, place.data_dir, place.run_dir, len(nodes.ids), settings.devices, settings.rounds, sums_only
    )
    precision, selector = scenario.blocks.precision, scenario.selector
    # the larger budgets of the run too: devices are sent a list for the largest, and skip on it what they never need
    shares = (settings.share, *(share for share in scenario.evaluation.budgets if share > settings.share))
    trial = Trial(row.name, scenario, shares, (precision,), (selector,))
    tap = TapGrid(grid, observer)
    measured = run_trial(tap, replace(nodes, grid=tap), trial, place, _quieter(row.name, on_event))
    found: dict[str, Any] = {
        "mechanism": row.name,
        "view": "sums over a user group" if sums_only else "one device",
        "epsilon": None,
        "delta": None,
        "recall@20": measured["rows"][0]["test"]["recall@20"],
        "validation recall@20": measured["rows"][0]["validation"]["recall@20"],
        "share": settings.share,
        "attacks": attacked(observer, names, scenario.seed),
        "control": control(observer, scenario.seed),
        "privacy": scenario.privacy.model_dump(mode="json"),
    }
    plan = privacy_plan(scenario, place)
    canary = worst_canary(scenario, plan, trials=settings.canary_trials, seeds=settings.canary_seeds)
    found[CANARY] = {**asdict(canary), "epsilon_accounted": None if plan is None else plan.cost.epsilon}
    if plan is not None:
        found |= {"epsilon": plan.epsilon, "delta": scenario.privacy.delta}
    return found


def _quieter(name: str, on_event: OnEvent) -> OnEvent:
    """Only a row's rounds are told, under its name."""

    def told(event: Event) -> None:
        if event.stage == "refinement":
            on_event(Event(name, event.done, event.total, event.text))

    return told


__all__ = ["AuditSettings", "audit", "audited"]
