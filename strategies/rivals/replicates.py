"""What a rival's figures on the test are in the replicates of a bootstrap, by the weights that PEEL's have."""

from __future__ import annotations

import numpy as np

from fl_peel.ranking.bootstrap import REPLICATES, Replicates
from fl_peel.ranking.top import evaluate
from strategies.rivals.base import TOP_N, Listed, Material, Option
from strategies.rivals.quality import list_metrics

Plain = dict[str, list[float | None]]


def replicates(option: Option | Listed, material: Material) -> Plain:
    """Mean recall and NDCG of the devices of a whole population with test items, as :func:`in_json` has them."""
    wanted = material.splits.test
    chosen = np.flatnonzero(wanted.counts() > 0)
    want, seen = wanted.select(chosen), material.seen.select(chosen)
    if isinstance(option, Listed):
        recall, ndcg = list_metrics(option.lists["test"][chosen], want, material.num_items)
    else:
        recall, ndcg = evaluate(option.ranked, option.test_cutoffs[chosen], option.users[chosen], seen, want, TOP_N)
    counted = np.ones(len(chosen), np.bool_)
    return in_json(Replicates.of(chosen, recall[:, None], ndcg[:, None], counted, REPLICATES))


def in_json(sums: Replicates, place: int = 0) -> Plain:
    """Means (B,) of one figure by metric; None in a replicate that drew no device."""
    return {
        f"{metric}@{TOP_N}": [None if np.isnan(mean) else mean for mean in means[place].tolist()]
        for metric, means in zip(("recall", "ndcg"), sums.means(), strict=True)
    }


__all__ = ["Plain", "in_json", "replicates"]
