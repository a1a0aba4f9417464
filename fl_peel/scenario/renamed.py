"""Former names of a scenario's keys and values. They are accepted for one version, with a warning of one line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

logger = logging.getLogger("fl_peel")

KEYS: Mapping[str, str] = {
    "data.timeline.nearer": "data.timeline.regroup_margin",
    "data.timeline.fading": "data.timeline.decay_interactions",
    "data.timeline.leaving": "data.timeline.inactivity_half_life",
    "data.timeline.allowance": "data.timeline.max_changed_rows",
    "data.timeline.fresh_exponents": "data.timeline.recency_exponents",
    "pretraining.panel": "pretraining.filter_devices",
    "pretraining.windows": "pretraining.open_rounds",
    "controller.memory": "controller.signal_momentum",
    "refinement.contents": "refinement.contribution",
}
"""Former path of a key -> its present one, in the same mapping."""
VALUES: Mapping[str, Mapping[str, str]] = {
    "selector": {"shown": "exposure"},
    "evaluation.selectors": {"shown": "exposure"},
    "controller.features": {"shown": "exposure"},
}
"""Path of a key -> former value -> present one; of a list, every entry."""


def present_key(path: str) -> str:
    """Return the present name of a key's path, and warn where it is a former one."""
    for former, present in KEYS.items():
        if path == former or path.startswith(f"{former}."):
            _warn(f"key {former}", present)
            return present + path.removeprefix(former)
    return path


def with_present_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scenario's mapping with the present names of keys and values, and warn of former ones. A former key
    stays where its present one is given, too, so that it is refused as unknown.
    """
    return _renamed(content, "")


def _renamed(content: Mapping[str, Any], place: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{place}{key}"
        present = KEYS.get(path, path)
        if present != path and present.rpartition(".")[2] not in content:
            _warn(f"key {path}", present)
            key, path = present.rpartition(".")[2], present
        result[key] = _renamed(value, f"{path}.") if isinstance(value, Mapping) else _value(path, value)
    return result


def _value(path: str, value: Any) -> Any:
    former = VALUES.get(path, {})
    if isinstance(value, (list, tuple)):
        return [_value(path, one) for one in value] if former else value
    if isinstance(value, str) and value in former:
        _warn(f"{path}: {value}", former[value])
        return former[value]
    return value


@cache
def _warn(former: str, present: str) -> None:
    """Say it once in a process."""
    logger.warning("scenario: %s is now called %s; the former name works in this version", former, present)


__all__ = ["KEYS", "VALUES", "present_key", "with_present_names"]
