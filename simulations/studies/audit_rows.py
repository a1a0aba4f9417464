"""Rows of an audit: attacks on what was observed, and their figures.

A row is a name and changes to the scenario; whoever wants other rows names them with ``--row NAME:PATH=VALUE,...``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from fl_peel.attacks import Accomplice, Attack, DeviceView, load_attack
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
from fl_peel.data.interactions import UserItems
from fl_peel.errors import ScenarioError
from fl_peel.randomness import rng_for
from fl_peel.scenario.protection import Privacy, SecureAggregation
from fl_peel.scenario.scenario import Scenario
from simulations.scenario_files import shipped_scenarios, validated
from simulations.studies.observer import Observer, WatchedDevices


def attacked(observer: Observer, names: Iterable[str], seed: int) -> dict[str, dict[str, Any]]:
    """Outcome of each attack by name, as in audit.json.

    advantage, advantage_low, advantage_high, auc, devices, candidates, secret; for items also precision, recall, f1 on
    all items that the device held, and random_f1, what guessing as many at random gives.
    """
    watched = observer.watched()
    views = [observer.view(device) for device in watched.devices.tolist()]
    return {name: _one(load_attack(name), watched, views, seed) for name in names}


def control(observer: Observer, seed: int) -> dict[str, Any]:
    """The outcome of knowing the server's ranking and nothing of the device: what the candidates themselves give away.

    It is no attack; where it is not near 0, the candidates are not balanced and no other figure means anything.
    """
    watched = observer.watched()
    views = [observer.view(device) for device in watched.devices.tolist()]
    return _one(_Ranking(), watched, views, seed)


class _Ranking(Attack):
    """Items the server ranks first."""

    name, secret = "ranking", "train items"

    def scores(self, view: DeviceView, candidates: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        """Minus the row's place in what the server sent, in the rounds it sent it."""
        total = np.full(view.num_items, -2.0)
        for one in view.rounds:
            total[one.items] = -np.arange(len(one.items)) / max(len(one.items), 1)
        return total[candidates]


def _one(attack: Attack, watched: WatchedDevices, views: list[DeviceView], seed: int) -> dict[str, Any]:
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


EPSILONS = (1.0, 2.0, 4.0, 8.0)


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
    from simulations.scenario_files import _with_override

    bare = _bare(base)
    rows = []
    for text in texts:
        name, colon, changes = text.partition(":")
        if not colon or not name.strip():
            raise ScenarioError(f"--row {text}: expected NAME:PATH=VALUE,PATH=VALUE")
        content: dict[str, Any] = bare.model_dump(mode="json")
        for change in filter(None, changes.split(",")):
            content = _with_override(content, change)
        rows.append(AuditRow(name.strip(), validated(Scenario, content, f"--row {name.strip()}")))
    return rows
