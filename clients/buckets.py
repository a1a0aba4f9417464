"""Sub-cohorts: the devices of a user group, hashed by identity into buckets whose sums are sent one by one.

A bucket does not depend on the round or the node, so that neither do the sums over all nodes. The server sees sums over
fewer devices: a trade of privacy for robustness.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_peel.config import Scenario
from fl_peel.interactions import IntArray
from fl_peel.randomness import device_seeds
from fl_peel.wire import Arrays

if TYPE_CHECKING:
    from clients.work import MembersRound

BY_ROW = ("rows", "sums", "touched", "row_loss", "row_examples")
WIDE = ("wide_rows", "wide_sums")
BY_BLOCK = ("holders", "hits", "shown", "exposed")


def buckets_of(scenario: Scenario, devices: IntArray) -> IntArray:
    """Bucket of each device, (N,)."""
    count = scenario.refinement.aggregation.robust.buckets
    seeds = device_seeds(scenario.seed, "buckets", devices=devices)
    return np.asarray(seeds % np.uint64(count)).astype(np.int64)


def merged(parts: dict[int, MembersRound], num_buckets: int) -> MembersRound:
    """One user group's round from those of its buckets, at least one, by their numbers."""
    rounds = list(parts.values())
    return replace(
        rounds[0],
        arrays=merged_arrays({number: one.arrays for number, one in parts.items()}, num_buckets),
        trained=sum(one.trained for one in rounds),
        loss=sum(one.loss for one in rounds),
        recall=sum(one.recall for one in rounds),
        ndcg=sum(one.ndcg for one in rounds),
        evaluated=sum(one.evaluated for one in rounds),
        slowest_us=max(one.slowest_us for one in rounds),
        traces=[trace for one in rounds for trace in one.traces],
        kept=np.concatenate([one.kept for one in rounds]),
        users=np.concatenate([one.users for one in rounds]),
        members=np.concatenate([one.members for one in rounds]),
        last=np.concatenate([one.last for one in rounds]),
    )


def merged_arrays(parts: dict[int, Arrays], num_buckets: int) -> Arrays:
    """Row arrays one bucket after the other, with buckets (T,) and wide_buckets (W,) that say whose they are; sums over
    the buckets of per-block arrays (K,); bucket_holders (num_buckets, K).
    """
    replies = list(parts.values())
    found: Arrays = {name: np.concatenate([reply[name] for reply in replies]) for name in (*BY_ROW, *WIDE)}
    found["buckets"] = _numbers(parts, "rows")
    found["wide_buckets"] = _numbers(parts, "wide_rows")
    for name in BY_BLOCK:
        if name in replies[0]:
            found[name] = np.sum([reply[name] for reply in replies], axis=0, dtype=replies[0][name].dtype)
    found["bucket_holders"] = np.zeros((num_buckets, len(replies[0]["holders"])), np.int32)
    for number, reply in parts.items():
        found["bucket_holders"][number] = reply["holders"]
    return found


def _numbers(parts: dict[int, Arrays], name: str) -> NDArray[np.int32]:
    return np.repeat(list(parts), [len(reply[name]) for reply in parts.values()]).astype(np.int32)


__all__ = ["buckets_of", "merged", "merged_arrays"]
