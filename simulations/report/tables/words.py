"""What a reader calls the keys and values of a result: no page shows a key."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from strategies.figures.schema import (
    EXCLUDING_SMALL,
    FIXED_TIERS,
    FULL_GLOBAL,
    FULL_REFINED,
    PEEL,
    TRAINED_WITHOUT,
)

METHODS: Mapping[str, str] = MappingProxyType(
    {
        PEEL: "elastic (PEEL)",
        FULL_REFINED: "full table, refined",
        FULL_GLOBAL: "full table, global",
        FIXED_TIERS: "fixed tiers",
        EXCLUDING_SMALL: "small devices excluded",
        TRAINED_WITHOUT: "trained without them",
    }
)
SELECTORS: Mapping[str, str] = MappingProxyType(
    {
        "shown": "what a group is shown",
        "popularity": "popularity in the group",
        "global-popularity": "popularity with all",
        "energy": "energy",
        "random": "chance",
        "controller": "the controller",
    }
)
KEYS: Mapping[str, str] = MappingProxyType(
    {
        "accountant": "accounted by",
        "adjacency": "neighbouring runs",
        "budget_violations": "times over budget",
        "clip_norms": "bounds of updates, by round",
        "counters": "counters of devices",
        "cpus": "processors",
        "delta": "delta",
        "device_rounds": "devices left out, by round",
        "epsilon_pld": "epsilon by privacy loss distributions",
        "epsilon_rdp": "epsilon by Rényi divergences",
        "excluding_small": "small devices excluded",
        "grew": "re-selections that grew",
        "growth_bytes": "bytes sent to grow",
        "growth_bytes_per_device_hour": "bytes sent to grow, a device and hour",
        "growth_to_missing": "bytes sent to grow, over those missing",
        "hours": "hours followed",
        "kind": "attack",
        "missing_block_bytes": "bytes of blocks that were missing",
        "noise_multiplier": "noise, of the bound",
        "noise_source": "noise drawn from",
        "noise_std": "standard deviation of the noise",
        "not_covered": "not covered",
        "num_targets": "targets",
        "requests": "devices ask for",
        "reselections": "re-selections",
        "reselections_per_device_hour": "re-selections a device and hour",
        "rigid_bytes_per_device_hour": "bytes sent to a rigid device an hour",
        "rigid_empty_share": "share of time that rigid devices hold nothing",
        "rigid_recall": "recall of rigid devices",
        "rows": "rows that devices send",
        "shrank": "re-selections that shrank",
        "shrink_bytes": "bytes sent to shrink",
        "target_epsilon": "epsilon asked for",
    }
)
VALUES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("rows", "touched"): "those they touched",
        ("rows", "all-sent"): "all that they were sent",
        ("requests", "own-budget"): "what their own budget holds",
        ("requests", "group-prefix"): "as many blocks as anybody in their group",
        ("noise_source", "seed"): "the run's seed",
        ("noise_source", "system"): "the operating system",
        ("clipping", "per-block"): "block by block",
    }
)


def method_name(key: str) -> str:
    """A way of serving devices in words: 'peel' -> 'elastic (PEEL)'."""
    return METHODS.get(key, key)


def selector_name(key: str) -> str:
    """By what blocks are chosen: 'shown' -> 'what a group is shown'; a user's own selector by its name."""
    return SELECTORS.get(key, f"“{key}”")


def key_name(path: str) -> str:
    """A key, or keys within one another, in words: 'of.growth_bytes' -> 'of, bytes sent to grow'."""
    return ", ".join(METHODS.get(key) or KEYS.get(key) or metric_name(key) for key in path.split("."))


def metric_name(metric: str) -> str:
    """How a metric key is written for readers: 'ndcg@20' -> 'NDCG@20'."""
    return metric.replace("recall@", "Recall@").replace("ndcg@", "NDCG@").replace("_", " ")


__all__ = ["KEYS", "METHODS", "SELECTORS", "VALUES", "key_name", "method_name", "metric_name", "selector_name"]
