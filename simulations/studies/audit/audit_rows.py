"""The rows of an audit: the scenario without protection, with single protections, and as the scenario itself says.

A row is a name and changes to the scenario; whoever wants other rows names them with ``--row NAME:PATH=VALUE,...``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fl_peel.errors import ScenarioError
from fl_peel.scenario.protection import Privacy, SecureAggregation
from fl_peel.scenario.scenario import Scenario
from simulations.scenario_files import shipped_scenarios, validated

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
    """The scenario without protection but its ``privacy.min_owners``, and without what is for protected sums alone."""
    pretraining = base.pretraining.model_copy(update={"row_sketch": None})
    privacy = Privacy(min_owners=base.privacy.min_owners)
    changes = {"privacy": privacy, "secure_aggregation": SecureAggregation(), "pretraining": pretraining}
    return base.model_copy(update=changes)


def _free(name: str, rows: Planned) -> str:
    """The name, or what it is called where a usual row has it already."""
    return f"{name} (the scenario)" if name in rows else name


def _group_epsilon(base: Scenario, epsilon: float) -> dict[str, float]:
    """A tenth of the budget for the user group's answer, where some devices must answer it."""
    return {"group_epsilon": epsilon / 10} if base.pretraining.collected.share < 1 else {}


def _private(bare: Scenario) -> Scenario:
    """The protections of the shipped scenario ``private``, and the memory of its controller, which is chosen for the
    noise, on this scenario's data.
    """
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
