"""Bucketed contents: the devices of a user group, hashed by identity into buckets whose sums are sent one by one.

A bucket does not depend on the round or the node, so that neither do the sums over all nodes. The server sees sums over
fewer devices: a trade of privacy for robustness.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from clients.round.open import OpenDeviceContents
from clients.round.outcome import MembersReply, StateUpdate
from fl_peel.data.interactions import IntArray
from fl_peel.randomness import device_seeds
from fl_peel.scenario.scenario import Scenario
from fl_peel.wire import Arrays

BY_ROW = ("rows", "sums", "touched", "row_loss", "row_examples")
WIDE = ("wide_rows", "wide_sums")
BY_BLOCK = ("holders", "hits", "shown", "exposed")


class BucketedDeviceContents(OpenDeviceContents):
    """The open contribution, bucket by bucket."""

    def parts(self, devices: IntArray) -> dict[int, NDArray[np.bool_]]:
        """Return the devices of each bucket."""
        buckets = buckets_of(self.scenario, devices)
        return {number: buckets == number for number in np.unique(buckets).tolist()}

    def joined(self, replies: dict[int, MembersReply]) -> MembersReply:
        """The rounds of the buckets, put together."""
        arrays = {number: reply.arrays for number, reply in replies.items()}
        return MembersReply(
            merged_arrays(arrays, self.scenario.refinement.aggregation.robust.buckets),
            reduce(add, (reply.counts for reply in replies.values())),
            StateUpdate.joined([reply.state_update for reply in replies.values()]),
        )


def buckets_of(scenario: Scenario, devices: IntArray) -> IntArray:
    """Bucket of each device, (N,)."""
    count = scenario.refinement.aggregation.robust.buckets
    seeds = device_seeds(scenario.seed, "buckets", devices=devices)
    return np.asarray(seeds % np.uint64(count)).astype(np.int64)


def merged_arrays(parts: dict[int, Arrays], num_buckets: int) -> Arrays:
    """Merge the arrays of buckets: row arrays one bucket after the other, with buckets (T,) and wide_buckets (W,) for
    the bucket of each row; sums over the buckets of per-block arrays (K,); bucket_holders (num_buckets, K).
    """
    replies = list(parts.values())
    merged: Arrays = {name: np.concatenate([reply[name] for reply in replies]) for name in (*BY_ROW, *WIDE)}
    merged["buckets"] = _numbers(parts, "rows")
    merged["wide_buckets"] = _numbers(parts, "wide_rows")
    for name in BY_BLOCK:
        if name in replies[0]:
            merged[name] = np.sum([reply[name] for reply in replies], axis=0, dtype=replies[0][name].dtype)
    merged["bucket_holders"] = np.zeros((num_buckets, len(replies[0]["holders"])), np.int32)
    for number, reply in parts.items():
        merged["bucket_holders"][number] = reply["holders"]
    return merged


def _numbers(parts: dict[int, Arrays], name: str) -> NDArray[np.int32]:
    return np.repeat(list(parts), [len(reply[name]) for reply in parts.values()]).astype(np.int32)
