"""The rows of an audit: the scenario without protection, with single protections, and as the scenario itself says.

A row is a name and changes to the scenario; whoever wants other rows names them with ``--row NAME:PATH=VALUE,...``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fl_peel.config import Privacy, Scenario, SecureAggregation, shipped_scenarios, validated
from fl_peel.errors import ScenarioError

EPSILONS = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Mechanism:
    """One row: its name, and the scenario under which it runs."""

    name: str
    scenario: Scenario


def mechanisms(base: Scenario, *, clip_norm: float, epsilons: Sequence[float] = EPSILONS) -> list[Mechanism]:
    """The usual rows. clip_norm: bound of a device's update where the scenario has none.

    What the scenario protects by itself is the last row; all others start from it without any protection.
    """
    bare = base.model_copy(update={"privacy": Privacy(), "secure_aggregation": SecureAggregation()})
    clip = {"kind": "flat", "norm": clip_norm}
    if base.privacy.clipping.kind != "none":
        clip = base.privacy.clipping.model_dump() | {"kind": "flat"}
    hidden = {"rows": "all-sent", "requests": "group-prefix"}
    delta = base.privacy.delta

    def row(name: str, privacy: dict[str, Any], **others: Any) -> Mechanism:
        content = bare.model_dump(mode="json") | {"privacy": privacy} | others
        return Mechanism(name, validated(Scenario, content, name))

    rows = [Mechanism("none", bare)]
    rows.append(row("clipping", {"clipping": clip}))
    rows.append(row("hidden rows and requests", {"clipping": clip, **hidden}))
    for epsilon in epsilons:
        keys = {"mechanism": "central-gaussian", "target_epsilon": epsilon, "delta": delta, "clipping": clip}
        rows.append(row(f"central DP, epsilon {epsilon:g}", keys | hidden | _group_epsilon(base, epsilon)))
    keys = {"mechanism": "local-gaussian", "target_epsilon": 8.0, "delta": delta, "clipping": clip}
    rows.append(row("local DP, epsilon 8", keys | hidden | _group_epsilon(base, 8.0)))
    rows.append(row("secure aggregation", {"clipping": clip}, secure_aggregation={"enabled": True}))
    if (base.privacy, base.secure_aggregation) != (bare.privacy, bare.secure_aggregation):
        rows.append(Mechanism(base.name, base))
    elif "private" in shipped_scenarios() and (protected := _private(bare)) is not None:
        rows.append(protected)
    return rows


def _group_epsilon(base: Scenario, epsilon: float) -> dict[str, float]:
    """A tenth of the budget for the user group's answer, where some devices must answer it."""
    return {"group_epsilon": epsilon / 10} if base.pretraining.collected.share < 1 else {}


def _private(bare: Scenario) -> Mechanism | None:
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
    return Mechanism("private", validated(Scenario, changed, "private")) if sections else None


def added_rows(base: Scenario, texts: Iterable[str]) -> list[Mechanism]:
    """Rows of the user's own, ``NAME:PATH=VALUE,PATH=VALUE``: changes to the scenario without protection.

    Raises:
        ScenarioError: not of this form, or not a scenario.
    """
    from fl_peel.config import _with_override

    bare = base.model_copy(update={"privacy": Privacy(), "secure_aggregation": SecureAggregation()})
    rows = []
    for text in texts:
        name, colon, changes = text.partition(":")
        if not colon or not name.strip():
            raise ScenarioError(f"--row {text}: expected NAME:PATH=VALUE,PATH=VALUE")
        content: dict[str, Any] = bare.model_dump(mode="json")
        for change in filter(None, changes.split(",")):
            content = _with_override(content, change)
        rows.append(Mechanism(name.strip(), validated(Scenario, content, f"--row {name.strip()}")))
    return rows


__all__ = ["EPSILONS", "Mechanism", "added_rows", "mechanisms"]
