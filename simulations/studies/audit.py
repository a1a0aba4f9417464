"""`fl-peel audit`: what each privacy mechanism leaks, measured by attacks, beside what it costs in recall.

Every row is a run of its own on the engine, measured like a trial; while it goes its way, an observer records what a
server sees of single devices (:mod:`simulations.studies.observer`), and every attack is tried on that. Where a
mechanism adds noise, canary devices bound its epsilon from below. A row that is done is kept by content
(:mod:`simulations.studies.study`): an audit that was stopped goes on with the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import yaml
from flwr.serverapp import Grid
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fl_peel.attacks import Accomplice, Attack, DeviceView, attack_names, load_attack
from fl_peel.attacks.base import (
    ITEM_SECRETS,
    Outcome,
    best_count_threshold,
    best_threshold,
    checked_scores,
    item_outcome,
    label_outcome,
    precision_recall_f1,
    squares,
)
from fl_peel.attacks.canary import canary_epsilon
from fl_peel.data.interactions import UserItems
from fl_peel.errors import ScenarioError
from fl_peel.events import Event, OnEvent
from fl_peel.figures import Estimate
from fl_peel.json_codec import from_plain
from fl_peel.randomness import rng_for
from fl_peel.scenario.method import Privacy, SecureAggregation
from fl_peel.scenario.scenario import Scenario
from simulations.engine.engine import on_remaining_machines, simulated
from simulations.engine.inputs import data_folder, run_folder
from simulations.report import drawing
from simulations.report.drawing import BLUE, INK, MUTED, Plot
from simulations.report.render import Chart, Page, ResultKind, Section
from simulations.report.table_view import ABSENT, TableView, format_estimate, format_metric, format_ratio, format_share
from simulations.resumable import CHECKPOINTS, data_digest, owned_store, versions
from simulations.scenario_files import StudyArguments, shipped_scenarios, validated, with_override
from simulations.studies.observer import Observer, TapGrid, WatchedDevices
from simulations.studies.schema import AttackFigures, AuditedRow, AuditResult
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
EPSILONS = (1.0, 2.0, 4.0, 8.0)


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

    rows: further ones, ``NAME:PATH=VALUE,...``; see :func:`added_rows`; arguments:
    :class:`simulations.scenario_files.StudyArguments`.

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
    return frame.written(figures, AUDIT)


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
    of_sums = {
        "reconstruction": observer.stage1.reconstruction(),
        "differencing": observer.stage1.differencing(),
    }
    row_content |= {name: asdict(one) for name, one in of_sums.items() if one is not None}
    absent = {"steps": observer.stage1.absences(), "rounds": observer.absences()}
    row_content["absences"] = {name: asdict(one) for name, one in absent.items() if one is not None}
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


# ---- Attacks on what was observed, and their figures


def attacked(observer: Observer, names: Iterable[str], seed: int) -> dict[str, dict[str, Any]]:
    """Outcome of each attack by name, as in audit.json.

    advantage, advantage_low, advantage_high, auc, devices, candidates, secret; for items also precision, recall, f1 on
    all items that the device held, and random_f1, what guessing as many at random gives.
    """
    watched = observer.watched()
    views = [observer.view(device) for device in watched.devices.tolist()]
    return {name: _outcome(load_attack(name), watched, views, seed) for name in names}


def control(observer: Observer, seed: int) -> dict[str, Any]:
    """The outcome of knowing the server's ranking and nothing of the device: what the candidates themselves give away.

    It is no attack; where it is not near 0, the candidates are not balanced and no other figure means anything.
    """
    watched = observer.watched()
    views = [observer.view(device) for device in watched.devices.tolist()]
    return _outcome(_Ranking(), watched, views, seed)


class _Ranking(Attack):
    """Items the server ranks first."""

    name, secret = "ranking", "train items"

    def scores(self, view: DeviceView, candidates: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        """Minus the row's place in what the server sent, in the rounds it sent it."""
        total = np.full(view.num_items, -2.0)
        for one in view.rounds:
            total[one.items] = -np.arange(len(one.items)) / max(len(one.items), 1)
        return total[candidates]


def _outcome(attack: Attack, watched: WatchedDevices, views: list[DeviceView], seed: int) -> dict[str, Any]:
    figures = (_items if attack.secret in ITEM_SECRETS else _labels)(attack, watched, views, seed)
    return {"secret": attack.secret, **figures}


def _items(attack: Attack, watched: WatchedDevices, views: list[DeviceView], seed: int) -> dict[str, Any]:
    secret, others = watched.splits.train, (watched.splits.validation, watched.splits.test)
    if attack.secret == "validation items":
        secret, others = watched.splits.validation, (watched.splits.train, watched.splits.test)
    has = _table(secret, watched.splits.num_items)
    # an attack on stage 1 may be after any item: devices are asked about all of them
    held = watched.on_device if attack.stage == "refinement" else np.ones_like(has)
    usable = held & ~np.logical_or.reduce([_table(part, watched.splits.num_items) for part in others])
    everything = [np.flatnonzero(row) for row in usable]  # items the device held and that are no other secret of its
    known = [Accomplice(views[i], everything[i], has[i, everything[i]]) for i in np.flatnonzero(watched.accomplices)]
    attack.learn(known, seed)
    scores = [checked_scores(attack, views[i], everything[i], seed) for i in range(len(views))]
    spread = np.full(usable.shape, np.nan)
    for i, items in enumerate(everything):
        spread[i, items] = scores[i]
    rng = rng_for(seed, "audit", "squares", attack.secret)
    parts = {}
    halves = {"known": watched.accomplices, "attacked": ~watched.accomplices}
    for name, chosen in halves.items():
        places = np.flatnonzero(chosen)
        triples = squares(list(has[places]), list(usable[places]), watched.groups[places], rng)
        who, item, member = (np.array(column) for column in zip(*triples, strict=True)) if triples else _NONE
        who = places[who.astype(np.int64)]
        parts[name] = (spread[who, item.astype(np.int64)], member.astype(np.bool_), who)
    threshold = best_threshold(*parts["known"][:2])
    outcome = item_outcome(*parts["attacked"], threshold, seed)
    natural = {name: _pooled(scores, has, everything, np.flatnonzero(chosen)) for name, chosen in halves.items()}
    call = best_count_threshold(*natural["known"]) if len(natural["known"][0]) else 0.0
    truth = natural["attacked"][1]
    precision, recall, f1 = precision_recall_f1(natural["attacked"][0] > call, truth)
    # guessing members at random at their own rate p: precision p, recall p
    rate = float(truth.mean()) if len(truth) else 0.0
    return _plain(outcome) | {"precision": precision, "recall": recall, "f1": f1, "random_f1": rate}


_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))


def _pooled(
    scores: list[NDArray[np.float64]], has: NDArray[np.bool_], items: list[NDArray[np.int64]], places: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if not len(places):
        return np.zeros(0), np.zeros(0, np.bool_)
    return np.concatenate([scores[i] for i in places]), np.concatenate([has[i, items[i]] for i in places])


def _table(items: UserItems, num_items: int) -> NDArray[np.bool_]:
    table = np.zeros((items.num_users, num_items), np.bool_)
    table[items.users(), items.items] = True
    return table


def _labels(attack: Attack, watched: WatchedDevices, views: list[DeviceView], seed: int) -> dict[str, Any]:
    truth, count = (
        (watched.groups, watched.num_groups)
        if attack.secret == "user group"
        else (watched.classes, watched.num_classes)
    )
    candidates = np.arange(count)
    one_hot = truth[:, None] == candidates
    known = [Accomplice(views[i], candidates, one_hot[i]) for i in np.flatnonzero(watched.accomplices)]
    attack.learn(known, seed)
    places = np.flatnonzero(~watched.accomplices)
    scores = np.stack([checked_scores(attack, views[i], candidates, seed) for i in places])
    return _plain(label_outcome(scores, one_hot[places], seed))


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        "advantage": outcome.advantage,
        "advantage_low": outcome.low,
        "advantage_high": outcome.high,
        "auc": outcome.auc,
        "devices": outcome.devices,
        "candidates": outcome.candidates,
    }


# ---- Rows: a name and changes to the scenario; whoever wants others names them with ``--row NAME:PATH=VALUE,...``


@dataclass(frozen=True)
class AuditRow:
    """One row: its name, and the scenario under which it runs."""

    name: str
    scenario: Scenario


Planned = dict[str, Callable[[], Scenario]]
"""Rows by name, and functions that make their scenarios: those of rows that are not wanted need not be possible."""


def chosen_rows(
    base: Scenario,
    added: Sequence[AuditRow] = (),
    *,
    clip_norm: float,
    epsilons: Sequence[float] = EPSILONS,
    only: Sequence[str] | None = None,
) -> list[AuditRow]:
    """The usual rows and those ``added``, or of these ``only`` the named ones.

    Raises:
        ScenarioError: an unknown name, a name given twice, or a row that this scenario cannot have.
    """
    usual = planned(base, clip_norm=clip_norm, epsilons=epsilons)
    names = [*usual, *(row.name for row in added)]
    for name in names:
        if names.count(name) > 1:
            raise ScenarioError(f"--row {name}: a row with this name exists; give another")
    if only is not None:
        unknown = [name for name in only if name not in names]
        if unknown or not only:
            raise ScenarioError(f"--only: no row {(*unknown, '')[0]!r}; choose from {', '.join(names)}")
    rows = []
    for name in names:
        if only is not None and name not in only:
            continue
        own = next((row for row in added if row.name == name), None)
        rows.append(own or _made(name, usual[name]))
        made = rows[-1].scenario
        if made.refinement.rounds == 0 and not made.pretraining.by_devices:
            raise ScenarioError(f"refinement.rounds: 0 in row {name!r} shows a server nothing; set 1 or more")
    return rows


def _made(name: str, make: Callable[[], Scenario]) -> AuditRow:
    try:
        return AuditRow(name, make())
    except ScenarioError as mistake:
        raise ScenarioError(f"{mistake}; or choose other rows with --only") from mistake


def planned(base: Scenario, *, clip_norm: float, epsilons: Sequence[float]) -> Planned:
    """The usual rows. clip_norm: bound of a device's update where the scenario has none.

    What the scenario protects by itself is the last row; all others start from it without any protection but
    ``privacy.min_owners``.
    """
    bare = _bare(base)
    clip: dict[str, Any] = {"kind": "flat", "norm": clip_norm}
    if base.privacy.clipping.kind != "none":
        clip = base.privacy.clipping.model_dump() | {"kind": "flat"}
    hidden = {"rows": "all-sent", "requests": "group-prefix"}
    delta = base.privacy.delta
    rows: Planned = {"none": lambda: bare}

    def row(name: str, privacy: dict[str, Any], **others: Any) -> None:
        privacy = {"min_owners": base.privacy.min_owners} | privacy
        content = bare.model_dump(mode="json") | {"privacy": privacy} | others
        rows[name] = lambda: validated(Scenario, content, name)

    row("clipping", {"clipping": clip})
    row("hidden rows and requests", {"clipping": clip, **hidden})
    for epsilon in epsilons:
        keys = {"mechanism": "central-gaussian", "target_epsilon": epsilon, "delta": delta, "clipping": clip}
        row(f"central DP, epsilon {epsilon:g}", keys | hidden | _group_epsilon(base, epsilon))
    keys = {"mechanism": "local-gaussian", "target_epsilon": 8.0, "delta": delta, "clipping": clip}
    row("local DP, epsilon 8", keys | hidden | _group_epsilon(base, 8.0))
    row("secure aggregation", {"clipping": clip}, secure_aggregation={"enabled": True})
    if (base.privacy, base.secure_aggregation) != (bare.privacy, bare.secure_aggregation):
        rows[_free(base.name, rows)] = lambda: base
    elif "private" in shipped_scenarios():
        rows["private"] = lambda: _private(bare)
    return rows


def _bare(base: Scenario) -> Scenario:
    """The scenario without protection but its ``privacy.min_owners``."""
    privacy = Privacy(min_owners=base.privacy.min_owners)
    return base.model_copy(update={"privacy": privacy, "secure_aggregation": SecureAggregation()})


def _free(name: str, rows: Planned) -> str:
    """The name, or what it is called where a usual row has it already."""
    return f"{name} (the scenario)" if name in rows else name


def _group_epsilon(base: Scenario, epsilon: float) -> dict[str, float]:
    """A tenth of the budget for the user group's answer, where some devices must answer it."""
    return {"group_epsilon": epsilon / 10} if base.pretraining.collected.share < 1 else {}


def _private(bare: Scenario) -> Scenario:
    """The protections of the scenario ``private``, and its controller's memory, on this scenario's data."""
    content = yaml.safe_load(shipped_scenarios()["private"].read_text(encoding="utf-8"))
    sections = {key: content[key] for key in ("privacy", "secure_aggregation") if key in content}
    changed = bare.model_dump(mode="json") | sections
    changed["controller"] = changed["controller"] | content.get("controller", {})
    for key in ("sampling", "cohort_share", "rounds"):
        if key in content.get("refinement", {}):
            changed["refinement"] = changed["refinement"] | {key: content["refinement"][key]}
    return validated(Scenario, changed, "private")


def added_rows(base: Scenario, texts: Iterable[str]) -> list[AuditRow]:
    """Rows of the user's own, ``NAME:PATH=VALUE,PATH=VALUE``: changes to the scenario without protection.

    Raises:
        ScenarioError: not of this form, or not a scenario.
    """
    bare = _bare(base)
    rows = []
    for text in texts:
        name, colon, changes = text.partition(":")
        if not colon or not name.strip():
            raise ScenarioError(f"--row {text}: expected NAME:PATH=VALUE,PATH=VALUE")
        content: dict[str, Any] = bare.model_dump(mode="json")
        for change in filter(None, changes.split(",")):
            content = with_override(content, change)
        rows.append(AuditRow(name.strip(), validated(Scenario, content, f"--row {name.strip()}")))
    return rows


SUCCEEDS, HOLDS = 0.2, 0.02
"""Advantage that an attack must have on the unprotected run, and may have under protection at most."""
PANELS, TITLE_PT = 5, 7.5
"""Panels beside one another in the figure, and the size of their titles."""


def audit_view(result: AuditResult) -> TableView:
    """One line a mechanism: epsilon, recall, and the advantage of every attack."""
    rows = result.rows
    names = list(dict.fromkeys(name for row in rows for name in row.attacks))
    body = []
    for row in rows:
        cells = [_advantage(row.attacks[name]) if name in row.attacks else ABSENT for name in names]
        epsilon = ABSENT if row.epsilon is None else f"{row.epsilon:.3g}"
        shown = None if row.canary is None else row.canary["epsilon_low"]
        least = ABSENT if shown is None else f"{shown:.2f}"
        recall = (format_metric(row.recall.value), format_ratio(row.to_none))
        body.append((row.mechanism, row.view, epsilon, least, *recall, *cells))
    columns = ("mechanism", "server sees", "epsilon", "epsilon shown", "Recall@20", "relative to none", *names)
    share = rows[0].share if rows else 0.01
    note = (
        f"Advantage (TPR - FPR) ± half its 95 % interval; Recall@20 at {format_share(share)} of the full table, "
        "and its paired ratio to the run without protection. "
        "Epsilon shown: lower bound at 95 %, empirical, from many canary devices in one run (without noise, the most "
        "that these can show)."
    )
    decoded = [
        f"{row.mechanism}: the decoder of stage 1's sums finds {one.exact} of {one.single_owners} whole histories of "
        f"devices that alone have some item, and of {one.devices} owners of the {one.items} opened items with the "
        f"fewest owners the histories of {one.exact_devices}, but for items that are not opened: F1 {one.f1:.3f} "
        f"(guessing by popularity: {one.popularity_f1:.3f})."
        for row in rows
        if (one := row.reconstruction) is not None
    ]
    decoded += [
        f"{row.mechanism}: differences of two sums of vectors are the vectors of {alone.devices} devices, F1 "
        f"{alone.f1:.3f} (guessing by popularity: {alone.popularity_f1:.3f})."
        for row in rows
        if (alone := row.differencing) is not None
    ]
    decoded += [
        f"{row.mechanism}: in one of two item counts alone, of {name}, devices are {alone.devices} times, and the "
        f"difference tells their histories with F1 {alone.f1:.3f} (guessing by popularity: {alone.popularity_f1:.3f})."
        for row in rows
        for name, alone in row.absences.items()
    ]
    note = " ".join((note, *decoded))
    return TableView("Leakage of each mechanism", columns, tuple(body), 2, note, terminal=True)


def audit_verdicts(result: AuditResult) -> tuple[str, ...]:
    """Say what the strongest attack gains over guessing, where most leaks and where least does."""
    rows = [row for row in result.rows if row.attacks]
    rows.sort(key=lambda row: -_strongest(row)[1].advantage.value)  # of equal ones, the first stays first
    shown = [("Most", row) for row in rows[:1]] + [("Least", row) for row in rows[1:][-1:]]
    return tuple(_verdict(word, row, *_strongest(row)) for word, row in shown)


def _strongest(row: AuditedRow) -> tuple[str, AttackFigures]:
    return max(row.attacks.items(), key=lambda attack: attack[1].advantage.value)


def _verdict(word: str, row: AuditedRow, attack: str, figures: AttackFigures) -> str:
    return (
        f"{word} leaks under {row.mechanism}, where the server sees {row.view}: the strongest of {len(row.attacks)} "
        f"attacks, {attack}, guesses {figures.secret} with an advantage of {format_estimate(figures.advantage)} over "
        f"chance (1: certainty){_beyond_chance(figures.advantage)}."
    )


def _beyond_chance(advantage: Estimate) -> str:
    if advantage.low is None:
        return ""
    return f": {'' if advantage.low > 0 else 'not '}significantly better than chance"


def _advantage(figures: AttackFigures) -> str:
    low, high = figures.advantage.ends or (0.0, 0.0)
    return f"{figures.advantage.value:.3f} ±{(high - low) / 2:.3f}"


@drawing.in_both_forms
def audit_plot(result: AuditResult) -> Plot:
    """Plot privacy against utility: a panel for each attack and for recall; grey: no better than chance."""
    rows = result.rows
    names = list(dict.fromkeys(name for row in rows for name in row.attacks))
    places = list(range(len(rows), 0, -1))
    panel_rows = math.ceil((len(names) + 1) / PANELS)
    figure, panels = drawing.new_figure(
        (0.7 + 0.2 * len(rows)) * panel_rows, panel_rows, PANELS, narrow_columns=2, sharey=True
    )
    for panel in panels[len(names) + 1 :]:
        panel.remove()
    known = [one.advantage for row in rows for one in row.attacks.values()]
    lowest = min((one.low if one.low is not None else one.value for one in known), default=0.0)
    for panel, name in zip(panels, names, strict=False):
        for row, place in zip(rows, places, strict=True):
            if name in row.attacks:
                advantage = row.attacks[name].advantage
                color = BLUE if (advantage.ends or (advantage.value,))[0] > 0 else MUTED
                _dot(panel, place, advantage, color, f"{row.mechanism}, {name}: {_advantage(row.attacks[name])}")
        panel.axvline(0.0, color=INK, linewidth=0.8, zorder=1)
        panel.set_xlim(min(-0.1, lowest - 0.05), 1.05)
        panel.set_title(name, fontsize=TITLE_PT, fontweight="normal")
    recall = panels[len(names)]
    for row, place in zip(rows, places, strict=True):
        _dot(recall, place, row.recall, INK, f"{row.mechanism}: Recall@20 {format_estimate(row.recall)}")
    recall.set_title("Recall@20", fontsize=TITLE_PT, fontweight="normal")
    recall.xaxis.set_major_locator(MaxNLocator(2))
    recall.set_yticks(places, [row.mechanism for row in rows])
    recall.set_ylim(0.4, len(rows) + 0.6)
    worst = {row.mechanism: max((a.advantage.value for a in row.attacks.values()), default=0.0) for row in rows}
    words = "; ".join(f"{row.mechanism} {worst[row.mechanism]:.2f} at recall {row.recall.value:.4f}" for row in rows)
    return drawing.finish(figure, "audit", "Privacy and utility", f"Largest attack advantage by mechanism: {words}.")


def _dot(panel: Axes, place: float, figure: Estimate, color: str, words: str) -> None:
    """Draw a figure as a dot with its interval across, and words where it is pointed at."""
    panel.plot([figure.value], [place], "o", color=color, markersize=4)
    drawing.error_bars(panel, [place], [figure], color, across=True)
    drawing.hover(panel, [figure.value], [place], [words])


def audit_page(result: AuditResult) -> Page:
    """Return the page of an audit."""
    caption = (
        "Attacks on single devices, from exactly what the protocol reveals to the server. A panel for each attack: "
        "its advantage (TPR - FPR) under each mechanism, grey where it does not significantly exceed 0. Last panel: "
        "recall. Bars: 95 % intervals."
    )
    parts = (Chart(lambda: audit_plot(result), caption), audit_view(result))
    return Page(
        f"{result.name}: privacy audit",
        [Section("leaks", "Leakage and cost of each mechanism", parts)],
        audit_verdicts(result),
        [
            ("devices attacked", str(result.settings["devices"])),
            ("rounds observed", str(result.settings["rounds"])),
            ("mechanisms", str(len(result.rows))),
            ("collected for pretraining", format_share(result.collected_share)),
        ],
        f"fl-peel audit {result.name}",
    )


AUDIT = ResultKind("audit", partial(from_plain, AuditResult), audit_page)
