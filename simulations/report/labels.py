"""Words for the keys and values of a result, so that no page shows a key."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from strategies.figures.schema import EXCLUDING_SMALL, FIXED_TIERS, FULL_GLOBAL, FULL_REFINED, PEEL, TRAINED_WITHOUT

METHODS: Mapping[str, str] = MappingProxyType(
    {
        PEEL: "elastic (PEEL)",
        FULL_REFINED: "refined full table",
        FULL_GLOBAL: "global full table",
        FIXED_TIERS: "fixed tiers",
        EXCLUDING_SMALL: "small devices excluded",
        TRAINED_WITHOUT: "elastic, trained without small devices",
    }
)
FULL_TABLES: Mapping[str, str] = MappingProxyType(
    {
        "global": "global table",
        "start": "group tables before refinement",
        "refined": "group tables after refinement",
    }
)
SELECTORS: Mapping[str, str] = MappingProxyType(
    {
        "exposure": "exposure in the group",
        "shown": "exposure in the group",  # its name in reports of earlier versions
        "popularity": "popularity in the group",
        "global-popularity": "global popularity",
        "energy": "energy",
        "random": "random order",
        "controller": "the controller",
    }
)
KEYS: Mapping[str, str] = MappingProxyType(
    {
        "accountant": "accountant",
        "adjacency": "adjacency",
        "budget_violations": "budget violations",
        "clip_norms": "clipping bounds, by round",
        "counters": "device counters",
        "cpus": "processors",
        "delta": "delta",
        "device_rounds": "device-rounds left out",
        "epsilon_pld": "epsilon by privacy loss distributions",
        "epsilon_rdp": "epsilon by Rényi divergences",
        "excluding_small": "small devices excluded",
        "grew": "re-selections that grew",
        "growth_bytes": "bytes sent for growth",
        "growth_bytes_per_device_hour": "bytes sent for growth, per device and hour",
        "growth_to_missing": "bytes sent for growth, relative to those missing",
        "hours": "hours followed",
        "kind": "attack",
        "missing_block_bytes": "bytes of missing blocks",
        "noise_multiplier": "noise multiplier",
        "noise_source": "noise source",
        "noise_std": "standard deviation of the noise",
        "not_covered": "not covered",
        "num_targets": "target items",
        "requests": "blocks that devices request",
        "reselections": "re-selections",
        "reselections_per_device_hour": "re-selections per device and hour",
        "rigid_bytes_per_device_hour": "bytes sent to a rigid device per hour",
        "rigid_empty_share": "share of time in which rigid devices store nothing",
        "rigid_recall": "recall of rigid devices",
        "rows": "rows that devices send",
        "shrank": "re-selections that shrank",
        "shrink_bytes": "bytes sent for shrinking",
        "target_epsilon": "target epsilon",
    }
)
VALUES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("rows", "touched"): "those they changed",
        ("rows", "all-sent"): "all rows they were sent",
        ("requests", "own-budget"): "those that fit their own budget",
        ("requests", "group-prefix"): "those that fit the largest budget",
        ("noise_source", "seed"): "the run's seed",
        ("noise_source", "system"): "the operating system",
        ("clipping", "per-block"): "per block",
    }
)


def method_name(key: str) -> str:
    """A way of serving devices in words: 'peel' -> 'elastic (PEEL)'."""
    return METHODS.get(key, key)


def selector_name(key: str) -> str:
    """Return the words for a selector: 'exposure' -> 'exposure in the group'; a user's own by its name."""
    return SELECTORS.get(key, f"“{key}”")


def key_name(path: str) -> str:
    """A key, or keys within one another, in words: 'of.growth_bytes' -> 'of, bytes sent to grow'."""
    return ", ".join(METHODS.get(key) or KEYS.get(key) or metric_name(key) for key in path.split("."))


def metric_name(metric: str) -> str:
    """Return a metric key as written for readers: 'ndcg@20' -> 'NDCG@20'."""
    return metric.replace("recall@", "Recall@").replace("ndcg@", "NDCG@").replace("_", " ")
